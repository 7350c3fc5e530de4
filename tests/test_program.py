"""Solvers in compiled and exported programs: right, or refused aloud."""

import json
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import operator_table as table
import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from twins import cores, counting, plain, with_args

from adeptml_core import solve
from adeptml_core.autograd import apply
from adeptml_core.configs import HybridConfig, MLPConfig, PhysicsConfig
from adeptml_core.ensemble import HybridModel
from adeptml_core.errors import HigherOrderError, InputError, PluginError
from adeptml_core.models import Physics_SplitVJP
from adeptml_core.plugin import Array, SolverSpec
from adeptml_core.solver import Solver, identified, named

pytestmark = [
    # of torch's own making, while it traces and while it saves programs
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*lru_cache.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not:UserWarning"),
]

linearize = torch.ops.adeptml.linearize
pullback = torch.ops.adeptml.pullback


@pytest.fixture(autouse=True)
def forget():
    """Let every test trace anew."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def points(twin, *batches):
    """Yield a point for each batch size; the args are shared."""
    draw = torch.Generator().manual_seed(0)
    cores_ = [tuple(3 if s == "n" else s for s in array.shape) for array in twin.arrays]
    for batch in batches:
        shapes = [(batch, *cores_[0]), *cores_[1:]]
        yield [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]


def around(f):
    """Return `f` with some torch before and after it."""
    return lambda x, *args: torch.tanh(f(1.5 * x, *args)) * 2


EVERY = [(plain, mode) for mode in table.MODES]
EVERY += [(with_args, mode) for mode in table.MODES]
EVERY += [(cores, mode) for mode in table.MODES]


def assert_compiled_whole(backend, dynamic, mode, twin):
    """Compare values and gradients of one graph, at two batch sizes, with those of the twin."""
    solver = twin.solver(mode)
    f = torch.compile(
        around(lambda *z: apply(solver, *z)), backend=backend, fullgraph=True, dynamic=dynamic
    )
    for point in points(twin, 4, 7):
        truth = around(twin.torch)
        with torch.no_grad():
            torch.testing.assert_close(f(*point), truth(*point))
        torch.testing.assert_close(table.backward(f, *point), table.backward(truth, *point))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("twin", "mode"), EVERY, ids=lambda v: getattr(v, "name", v))
def test_compiled_whole(backend, dynamic, mode, twin):
    """One graph, any batch size, forward and backward, with and without grad."""
    assert_compiled_whole(backend, dynamic, mode, twin)


@pytest.mark.slow
@pytest.mark.parametrize("mode", table.MODES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_by_inductor(dynamic, mode):
    """The default backend, which compiles C++."""
    assert_compiled_whole("inductor", dynamic, mode, with_args)


def test_a_compiled_program_calls_the_solver_once():
    """Split mode keeps its pullback through the program: one forward, one pullback."""
    solver, calls = counting(deterministic=False)
    f = torch.compile(lambda x: apply(solver, x).sum(), backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    f(x).backward()
    torch.testing.assert_close(x.grad, (2 * x).detach())
    assert calls == ["forward", "pullback"]


def hybrid():
    """Return a model with a network that feeds heat1d's conductivity, and its input."""
    torch.manual_seed(0)
    config = HybridConfig(
        models={
            "law": MLPConfig(16, 8, 16, 1, "swish", "softplus"),
            "heat": PhysicsConfig(
                solver="heat1d",
                options={"t": 0.1},
                args={"q": [0.0] * 16, "T_ext": [310.0, 290.0]},
            ),
        },
        model_inputs={"law": {"Input": range(16)}, "heat": {"Input": range(16, 32)}},
        arg_inputs={"heat": {"k": {"law": None}}},
    )
    return HybridModel(config).double(), torch.rand(5, 32, dtype=torch.float64)


def gradients(model, parameters, x):
    return torch.autograd.grad(model(x).pow(2).sum(), parameters)


def test_a_hybrid_model_is_one_graph():
    """By name, routing and all; also a call of solve."""
    model, x = hybrid()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for got, expected in zip(
        gradients(compiled, list(model.parameters()), x),
        gradients(model, list(model.parameters()), x),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)

    def called(x):
        k, q, ends = torch.ones(32), torch.zeros(32), torch.tensor([310.0, 290.0])
        return solve("heat1d", x, k, q, ends, options={"t": 0.1})

    once = torch.compile(called, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(once(x), called(x))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_saved_and_loaded_elsewhere(strict, tmp_path):
    """A new process needs the op and the plugin alone; values and gradients agree."""
    model, x = hybrid()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=strict)
    torch.export.save(program, tmp_path / "model.pt2")
    more = torch.rand(7, 32, dtype=torch.float64)
    torch.save(
        (more, model(more), gradients(model, list(model.parameters()), more)), tmp_path / "truth.pt"
    )
    script = """
        import sys, torch
        import adeptml_core.autograd
        model = torch.export.load(sys.argv[1] + "/model.pt2").module()
        x, y, truth = torch.load(sys.argv[1] + "/truth.pt")
        torch.testing.assert_close(model(x), y)
        found = torch.autograd.grad(model(x).pow(2).sum(), list(model.parameters()))
        named = sorted(zip([n for n, _ in model.named_parameters()], found))
        for (name, got), expected in zip(named, truth):
            assert got.shape in {t.shape for t in truth}
        total = lambda tensors: sum(t.abs().sum() for t in tensors)
        torch.testing.assert_close(total(found), total(truth))
        assert not any(name.startswith("adeptml_core.ensemble") for name in sys.modules)
        print("same")
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "same", done.stderr
    assert '"solver": "adeptml-heat1d/heat1d"' in program.graph_module.code
    assert '"t": 0.1' in program.graph_module.code


def test_a_program_without_its_plugin_says_what_to_install():
    """The pip line; and a warning where another version is installed."""
    identity = json.loads(named("heat1d").identity)
    gone = identity | {"solver": "adeptml-flow/flow", "version": "0.3"}
    with pytest.raises(PluginError, match=r"pip install 'adeptml-flow==0\.3'"):
        identified(json.dumps(gone))
    older = json.dumps(identity | {"version": "0.0.9"})
    with pytest.warns(UserWarning, match=r"made with adeptml-heat1d 0\.0\.9"):
        assert identified(older).name == "heat1d"
    with pytest.raises(PluginError, match="not packaged"):
        identified("flow#123456789")


def test_identity_holds_options_and_the_rule():
    """What is looked up is what was meant."""
    solver = named("heat1d", {"t": 0.25}, second_order="differences")
    found = identified(solver.identity)
    assert (found.options, found.second_order) == (solver.options, "differences")


@pytest.mark.parametrize("mode", table.MODES)
@pytest.mark.parametrize("twin", [plain, with_args, cores], ids=lambda twin: twin.name)
def test_opcheck(mode, twin):
    """Torch's judge of custom ops, for both."""
    solver = twin.solver(mode)
    ((x, *args),) = points(twin, 4)
    torch.library.opcheck(linearize, (x, args, solver.identity))
    leaves = table.leaves((x, *args))
    torch.library.opcheck(linearize, (leaves[0], leaves[1:], solver.identity))
    y, ticket = linearize(x, args, solver.identity)
    torch.library.opcheck(pullback, (torch.cos(y), ticket, x, args, solver.identity))
    # A ticket that was copied is void, not wrong.
    for given in (ticket, ticket.clone()):
        found = pullback(torch.cos(y), given, x, args, solver.identity)
        expected = torch.autograd.grad(apply(solver, *leaves), leaves, torch.cos(y))
        torch.testing.assert_close(tuple(found), expected)


def test_make_fx_records_the_op():
    """Not the solver's result as a constant; bare functions are refused."""
    solver = plain.solver("split_vjp")
    ((x,),) = points(plain, 4)
    graph = make_fx(lambda x: apply(solver, x) * 2)(x)
    assert "adeptml.linearize" in graph.code
    torch.testing.assert_close(graph(x + 1), plain.torch(x + 1) * 2)

    def bare(x):
        return Physics_SplitVJP.apply(x, lambda x: (x**2, lambda g: (2 * x * g,)))

    with pytest.raises(InputError, match="constant of the graph"):
        make_fx(bare)(x)
    with pytest.raises(InputError, match="constant of the graph"):
        make_fx(grad(table.loss(lambda x: apply(solver, x))))(x)


# ---- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: jvp(f, (x,), (x,)),
        lambda f, x: grad(table.loss(f))(x),
        table.forward_mode,
        lambda f, x: vmap(f)(table.stacked(x)),
    ],
    ids=["jvp", "grad", "dual", "vmap"],
)
def test_transforms_around_a_program_are_refused(transform):
    """Torch would lose tangents in silence."""
    solver = plain.solver("split_vjp")
    ((x,),) = points(plain, 4)
    program = torch.export.export(_Module(solver), (x,)).module()
    for f in (lambda x: linearize(x, [], solver.identity)[0], program):
        with pytest.raises((InputError, RuntimeError), match=r"exported program|Batching rule"):
            transform(f, x)


class _Module(torch.nn.Module):
    def __init__(self, solver):
        super().__init__()
        self.solver = solver

    def forward(self, x):
        return apply(self.solver, x)


def test_compile_around_torch_func_is_right_or_refused():
    """As one graph it is refused; with breaks the solver runs beside it."""
    solver = plain.solver("split_vjp")
    ((x,),) = points(plain, 4)

    def pushed(x):
        return jvp(lambda x: apply(solver, x), (x,), (x,))

    with pytest.raises(Exception, match=r"torch\.func would lose|torch\.compiler\.disable"):
        torch.compile(pushed, backend="eager", fullgraph=True)(x)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(pushed, backend="eager")(x), pushed(x))


def test_a_second_derivative_through_a_program_is_refused():
    """The op of the backward pass has none."""
    solver = plain.solver("vjp", "differences")
    ((x,),) = points(plain, 4)
    x.requires_grad_()
    (first,) = torch.autograd.grad(
        linearize(x, [], solver.identity)[0].pow(2).sum(), x, create_graph=True
    )
    with pytest.raises(HigherOrderError, match="compiled program"):
        torch.autograd.grad(first.sum(), x)


def test_bare_functions_run_beside_the_program():
    """A graph break, never a traced solver; as one graph they are refused."""
    ((x,),) = points(plain, 4)
    kinds = []

    def forward(x):
        kinds.append(type(x).__module__)
        return x**2, lambda g: (2 * x * g,)

    def f(x):
        return Physics_SplitVJP.apply(2 * x, forward) + 1

    with pytest.raises(Exception, match="bare functions"):
        torch.compile(f, backend="aot_eager", fullgraph=True)(x)
    torch._dynamo.reset()
    compiled = torch.compile(f, backend="aot_eager")
    torch.testing.assert_close(table.backward(compiled, x), table.backward(f, x))
    assert set(kinds) == {"numpy"}


def test_undeclared_args_warn_in_a_program_too():
    """One warning, no gradient."""
    fields = {"x": Array("x", ("n",)), "y": Array("y", ("n",)), "args": (Array("k", ("n",)),)}
    spec = SolverSpec(
        name="undeclared-in-program",
        mode="vjp",
        summary="x k",
        forward=lambda x, k: x * k,
        vjp=lambda x, g, k: g * k,
        **fields,
    )
    solver = Solver(spec)
    x, k = torch.randn(2, 3), torch.randn(3, requires_grad=True)
    x.requires_grad_()
    f = torch.compile(lambda x, k: apply(solver, x, k), backend="aot_eager", fullgraph=True)
    with pytest.warns(UserWarning, match="declares no derivative"):
        y = f(x, k)
    y.sum().backward()
    assert k.grad is None or not k.grad.any()
    torch.testing.assert_close(x.grad, k.detach().expand(2, 3))


def test_wrong_inputs_are_named_while_tracing():
    """The solver's own message comes through."""
    solver = plain.solver("vjp")
    ((x,),) = points(plain, 4)
    with pytest.raises(Exception, match=r"takes 0 args after x"):
        torch.compile(lambda x: apply(solver, x, x), backend="eager", fullgraph=True)(x)


def test_a_dual_level_elsewhere_does_no_harm():
    """Only a tangent on the program's own inputs is refused."""
    solver = plain.solver("vjp")
    ((x,),) = points(plain, 4)
    with forward_ad.dual_level(), warnings.catch_warnings():
        y, _ = linearize(x, [], solver.identity)
    torch.testing.assert_close(y, plain.torch(x))


# ---- the page ------------------------------------------------------------------------------------

PAGE = (Path(__file__).parent.parent / "docs" / "operator.md").read_text(encoding="utf-8")


def test_the_page_shows_the_table_that_is_tested():
    """As `python tests/operator_table.py` prints it."""
    assert table.markdown() in PAGE


@pytest.mark.parametrize("number", [0, 1])
def test_the_page_s_examples_run(number, tmp_path, monkeypatch):
    """Each stands alone, in an empty directory."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks[number], f"operator.md block {number}", "exec"), {})
