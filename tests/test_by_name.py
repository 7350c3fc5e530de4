"""Solvers with a spec: guards in both directions, and every rule of where an arg comes from."""

import copy
import json
import math
import pickle
import tomllib
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import tomlkit
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import adeptml_core
from adeptml_core import autograd
from adeptml_core.configs import HybridConfig, MLPConfig, PhysicsConfig
from adeptml_core.ensemble import HybridModel
from adeptml_core.errors import (
    ConfigError,
    ContractError,
    HigherOrderError,
    InputError,
    SampleError,
    UnknownSolverError,
)
from adeptml_core.plugin import Array, Option, SolverSpec
from adeptml_core.solver import Solver

NDA = NDArray[Any]


# A solver with a bit of everything: y = scale * (k * x + b), k differentiable, b not, n steps.


def forward(x: NDA, k: NDA, b: NDA, *, scale: float) -> NDA:
    return x.dtype.type(scale) * (k * x + np.expand_dims(b, -1))


def vjp(x: NDA, g: NDA, k: NDA, b: NDA, *, scale: float) -> tuple[NDA, NDA, None]:
    g = x.dtype.type(scale) * g
    dk = g * x
    return g * k, dk if k.ndim == 2 else dk.sum(0), None


def split(x: NDA, k: NDA, b: NDA, *, scale: float) -> Any:
    return forward(x, k, b, scale=scale), lambda g: vjp(x, g, k, b, scale=scale)


def jacobian(x: NDA, k: NDA, b: NDA, *, scale: float) -> tuple[NDA, NDA, None]:
    eye = np.eye(x.shape[1], dtype=x.dtype) * x.dtype.type(scale)
    rows = np.broadcast_to(k, x.shape)
    return rows[:, :, None] * eye, x[:, :, None] * eye, None


def spec(mode: str = "vjp", **changes: Any) -> SolverSpec:
    functions: dict[str, Any] = {
        "vjp": {"forward": forward, "vjp": vjp},
        "split_vjp": {"forward": split},
        "jacobian": {"forward": forward, "jacobian": jacobian},
    }[mode]
    fields: dict[str, Any] = {
        "name": "line",
        "mode": mode,
        "summary": "a line through the batch",
        "x": Array("x", ("n",), unit="m"),
        "args": (Array("k", ("n",), differentiable=True), Array("b", unit="m")),
        "y": Array("y", ("n",), unit="m"),
        "options": (Option("scale", 1.0), Option("label", "none"), Option("steps", 3)),
        **functions,
        **changes,
    }
    for role in ("forward", "vjp", "jacobian"):
        if callable(fields.get(role)) and fields[role] in (forward, vjp, split, jacobian):
            fields[role] = _only_scale(fields[role])
    return SolverSpec(**fields)


def _only_scale(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, scale: float, label: str, steps: int) -> Any:
        return function(*args, scale=scale)

    return wrapped


MODES = ["jacobian", "vjp", "split_vjp"]
every_mode = pytest.mark.parametrize("mode", MODES)


def values(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


# ---- the operator --------------------------------------------------------------------------------


@every_mode
@pytest.mark.parametrize("shared", [True, False])
def test_gradients_of_x_and_of_declared_args(mode: str, shared: bool) -> None:
    """Both are those of differences, for a shared arg and for one per sample."""
    solver = Solver(spec(mode), {"scale": 1.5})
    x, k = values(4, 3), values(3, seed=1) if shared else values(4, 3, seed=1)
    assert torch.autograd.gradcheck(lambda x, k: autograd.apply(solver, x, k, 2.0), (x, k))


@every_mode
def test_spread_args_give_summed_gradients(mode: str) -> None:
    """batched=True: core repeats a shared arg for the solver, and sums its gradient."""
    args = (Array("k", ("n",), differentiable=True, batched=True), Array("b"))
    solver = Solver(spec(mode, args=args))
    x, k = values(4, 3), values(3, seed=1)
    autograd.apply(solver, x, k, 0.0).sum().backward()
    torch.testing.assert_close(k.grad, x.detach().sum(0))


@every_mode
def test_parameters_as_args(mode: str) -> None:
    """An nn.Parameter trains as any tensor does; a shared one gets its own shape back."""
    k = nn.Parameter(torch.ones(3, dtype=torch.float64))
    autograd.apply(Solver(spec(mode)), values(4, 3), k, 0.0).sum().backward()
    assert k.grad.shape == (3,)


@every_mode
def test_declared_arg_alone_requires_grad(mode: str) -> None:
    """A gradient flows to an arg where x needs none."""
    x, k = values(4, 3).detach(), values(3, seed=1)
    autograd.apply(Solver(spec(mode)), x, k, 0.0).sum().backward()
    torch.testing.assert_close(k.grad, x.sum(0))


@every_mode
def test_undeclared_arg_warns_once_and_gets_no_gradient(mode: str) -> None:
    """One warning names solver and arg; the rest of the gradient is right."""
    solver = Solver(spec(mode, name=f"line-{mode.replace('_', '-')}"))
    x, k = values(4, 3), values(3, seed=1)
    b = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    with pytest.warns(UserWarning, match=rf"{solver.name}: b requires grad"):
        autograd.apply(solver, x, k, b).sum().backward()
    assert b.grad is None
    torch.testing.assert_close(x.grad, k.detach().expand(4, 3))


@every_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_that_the_solver_does_not_declare(mode: str, dtype: torch.dtype) -> None:
    """Core casts on the way in and back out, for y, dx and dk."""
    solver = Solver(spec(mode, dtypes=("float64",)))
    x, k = values(4, 3).detach().to(dtype), values(3, seed=1).detach().to(dtype)
    x.requires_grad_()
    k.requires_grad_()
    y = autograd.apply(solver, x, k, 0.0)
    y.sum().backward()
    assert {y.dtype, x.grad.dtype, k.grad.dtype} == {dtype}


def test_half_is_computed_in_float32() -> None:
    """The solver sees float32 where it declares it."""
    seen = []

    def forward(x: NDA, k: NDA, b: NDA, **_: Any) -> NDA:
        seen.append((x.dtype, k.dtype))
        return x

    solver = Solver(spec(forward=forward))
    autograd.apply(solver, torch.ones(2, 3, dtype=torch.float16), torch.ones(3), 0.0)
    assert seen == [(np.float32, np.float32)]


def test_inputs_are_read_only_and_contiguous() -> None:
    """A solver that writes to its input raises instead of corrupting torch's memory."""

    def vandal(x: NDA, k: NDA, b: NDA, **_: Any) -> NDA:
        assert x.flags.c_contiguous
        assert k.flags.c_contiguous
        x *= 2
        return x

    x = torch.ones(3, 2, dtype=torch.float64).T
    with pytest.raises(ValueError, match="read-only") as caught:
        autograd.apply(Solver(spec(forward=vandal)), x, torch.ones(3), 0.0)
    assert "raised by the solver line in its forward" in caught.value.__notes__[0]


def test_writable_inputs_are_private_copies() -> None:
    """writable_inputs=True buys copies, for Fortran and Cython that insist."""

    def vandal(x: NDA, k: NDA, b: NDA, **_: Any) -> NDA:
        x *= 2
        return x

    x = torch.ones(2, 3, dtype=torch.float64)
    y = autograd.apply(Solver(spec(forward=vandal, writable_inputs=True)), x, torch.ones(3), 0.0)
    assert (x == 1).all()
    assert (y == 2).all()


@every_mode
def test_empty_batch_is_answered_by_core(mode: str) -> None:
    """The solver never sees it; gradients are zero, of the right shape."""
    x, k = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True), values(3)
    y = autograd.apply(Solver(spec(mode)), x, k, 0.0)
    y.sum().backward()
    assert (y.shape, x.grad.shape) == ((0, 3), (0, 3))
    assert (k.grad == 0).all()


@every_mode
def test_second_derivatives_are_refused(mode: str) -> None:
    """In args as in x."""
    x, k = values(4, 3), values(3, seed=1)
    y = autograd.apply(Solver(spec(mode)), x, k, 0.0)
    (gk,) = torch.autograd.grad((y**2).sum(), k, create_graph=True)
    with pytest.raises(HigherOrderError) as caught:
        gk.sum().backward()
    assert caught.value.solver == "line"


def test_a_lost_pullback_is_made_anew_where_that_is_right() -> None:
    """Saved-tensor hooks that copy lose the ticket: forward runs again, if it is deterministic."""

    def run(solver: Solver) -> Tensor:
        x, k = values(4, 3), values(3, seed=1)
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda t: t):
            y = autograd.apply(solver, x, k, 0.0)
        y.sum().backward()
        return x.grad

    torch.testing.assert_close(run(Solver(spec("split_vjp"))), values(3, seed=1).expand(4, 3))
    with pytest.raises(HigherOrderError, match="not deterministic"):
        run(Solver(spec("split_vjp", deterministic=False)))


def test_checkpointing_works() -> None:
    """torch.utils.checkpoint recomputes the solver's forward, and the gradient is the same."""
    solver = Solver(spec("split_vjp"))
    x, k = values(4, 3), values(3, seed=1)
    y = torch.utils.checkpoint.checkpoint(
        lambda x: autograd.apply(solver, x, k, 0.0), x, use_reentrant=False
    )
    y.sum().backward()
    torch.testing.assert_close(x.grad, k.detach().expand(4, 3))


def test_compile_runs_the_solver_beside_the_graph() -> None:
    """torch.compile breaks the graph around a solver, and both sides agree."""
    solver = Solver(spec())
    x, k = values(4, 3), values(3, seed=1)

    def model(x: Tensor) -> Tensor:
        return autograd.apply(solver, 2 * x, k, 0.0) * 3

    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dynamo's own deprecations
        y = torch.compile(model, backend="eager")(x)
    torch.testing.assert_close(y, model(x))


def test_solver_of_one_distribution_is_locked() -> None:
    """thread_safe=False: no two calls at a time, and the lock may be taken again inside."""
    inside = []

    def forward(x: NDA, k: NDA, b: NDA, **_: Any) -> NDA:
        inside.append(1)
        assert len(inside) == 1 or nested
        inside.pop()
        return x + 0

    nested = False
    solver = Solver(spec(forward=forward, thread_safe=False), distribution="d")
    from concurrent.futures import ThreadPoolExecutor

    x = np.ones((2, 3))
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: solver.forward(x, np.ones(3), 0.0), range(200)))
    assert len(results) == 200


# ---- what comes back -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x: x[:1], r"returned shape \(1, 3\), expected \(4, 3\) = \(batch, n\)"),
        (lambda x: x[:, :2], r"returned shape \(4, 2\), expected \(4, 3\)"),
        (lambda x: x * 1j, "complex128.*imaginary part"),
        (lambda x: x.astype("float32"), "float32 for y, expected float64.*dtypes="),
        (lambda x: x.astype(int), "int64"),
        (lambda x: (x, lambda g: g), "the mode is split_vjp"),
        (lambda x: None, "returned None"),
    ],
)
def test_wrong_results_of_forward(result: Callable[[NDA], Any], message: str) -> None:
    """What, where, why and the mend; the values are fields too."""
    solver = Solver(spec(forward=lambda x, k, b, **_: result(x)))
    with pytest.raises(ContractError, match=message) as caught:
        autograd.apply(solver, values(4, 3), torch.ones(3), 0.0)
    assert (caught.value.solver, caught.value.mode) == ("line", "vjp")
    assert "test_by_name.py" in caught.value.where


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x, g: (g[:1], g[0], None), r"returned shape \(1, 3\) for x, expected \(4, 3\)"),
        (lambda x, g: (g, g, None), "summed over the batch: the arg is shared"),
        (lambda x, g: g, "expected a tuple of 3"),
        (lambda x, g: (g, g[0]), "returned 2 entries, expected a tuple of 3"),
        (lambda x, g: (g, None, None), "returned None for k"),
        (lambda x, g: (g * 1j, g[0], None), "complex128"),
    ],
)
def test_wrong_results_of_vjp(result: Callable[..., Any], message: str) -> None:
    """The wrong cotangent is named, with its array."""
    solver = Solver(spec(vjp=lambda x, g, k, b, **_: result(x, g)))
    y = autograd.apply(solver, values(4, 3), values(3), 0.0)
    with pytest.raises(ContractError, match=message):
        y.sum().backward()


def test_split_forward_without_a_pullback() -> None:
    """Mode split_vjp wants (y, pullback)."""
    solver = Solver(spec("split_vjp", forward=lambda x, k, b, **_: x))
    with pytest.raises(ContractError, match=r"in mode split_vjp it returns \(y, pullback\)"):
        autograd.apply(solver, values(4, 3), torch.ones(3), 0.0)


def test_transposed_jacobian() -> None:
    """(batch, *x, *y) is told from (batch, *y, *x)."""
    wide = spec(
        "jacobian",
        args=(),
        y=Array("y", (2,)),
        forward=lambda x, **_: x[:, :2].copy(),
        jacobian=lambda x, **_: np.ones((len(x), 3, 2)),
    )
    y = autograd.apply(Solver(wide), values(4, 3))
    with pytest.raises(ContractError, match="transposed: first y, then x"):
        y.sum().backward()


def test_sample_errors_name_the_solver() -> None:
    """The solver says which row and why; core adds who."""

    def forward(x: NDA, k: NDA, b: NDA, **_: Any) -> NDA:
        raise SampleError(2, "k[1] = -1: a slope is positive")

    with pytest.raises(SampleError, match=r"line: sample 2 of the batch: k\[1\] = -1") as caught:
        autograd.apply(Solver(spec(forward=forward)), values(4, 3), torch.ones(3), 0.0)
    assert (caught.value.solver, caught.value.row) == ("line", 2)


def test_a_size_that_is_a_number_is_told_with_both_shapes() -> None:
    """Shared by the batch or one for each sample: the reader sees both."""
    four = spec(args=(Array("p", (4,)), Array("b", (), differentiable=True)))
    with pytest.raises(InputError, match=r"p has shape \(2,\), expected \(4,\) or \(batch, 4\),"):
        autograd.apply(Solver(four), values(2, 3), torch.ones(2), 0.0)


def test_a_network_that_fails_is_named_with_what_it_was_given() -> None:
    """NumPy's data are float64 and torch's networks float32: the mend stands in the error."""
    model = HybridModel(HybridConfig(models={"law": MLPConfig(3, 4, 2, 1, "tanh", "identity")}))
    with pytest.raises(RuntimeError) as caught:
        model(torch.ones(5, 3, dtype=torch.float64))
    where, mend = caught.value.__notes__
    assert where == "in network 'law', whose input has shape (5, 3) and is torch.float64"
    assert ".to(torch.float32)" in mend
    with pytest.raises(RuntimeError) as caught:
        model(torch.ones(5, 7))
    assert len(caught.value.__notes__) == 1  # not a matter of dtypes


# ---- what goes in --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "args", "message"),
    [
        (torch.ones(3), [torch.ones(3), 0.0], "Add the batch axis"),
        (torch.ones(2, 3, 1), [torch.ones(3), 0.0], "x has shape"),
        (
            torch.ones(2, 3),
            [torch.ones(4), 0.0],
            r"expected \(n,\) or \(batch, n\) with n = 3 by x",
        ),
        (torch.ones(2, 3), [torch.ones(5, 3), 0.0], "batch = 2 first"),
        (torch.ones(2, 3), [torch.ones(1, 2, 3), 0.0], "core shape"),
        (torch.ones(2, 3), [torch.ones(3)], r"takes 2 args after x \(k, b\), got 1"),
        (torch.ones(2, 3, dtype=torch.int64), [torch.ones(3), 0.0], "x .* is int64"),
        (torch.ones(2, 3, dtype=torch.complex64), [torch.ones(3), 0.0], "complex64"),
        (torch.ones(2, 3), [torch.ones(3) * 1j, 0.0], "k is complex64"),
        (torch.ones(2, 3), [torch.tensor([1e300] * 3, dtype=torch.float64), 0.0], "too large"),
        (np.ones((2, 3)), [torch.ones(3), 0.0], "takes a torch.Tensor"),
    ],
)
def test_wrong_inputs(x: Any, args: list[Any], message: str) -> None:
    """Before the solver runs, naming solver and array."""
    with pytest.raises(InputError, match=message) as caught:
        autograd.apply(Solver(spec()), x, *args)
    assert str(caught.value).startswith("line")


def test_shared_only_args_refuse_samples() -> None:
    """batched=False: a per-sample arg is not averaged, summed or looped over."""
    solver = Solver(spec(args=(Array("k", ("n",), batched=False), Array("b"))))
    with pytest.raises(InputError, match="shared by the batch"):
        autograd.apply(solver, torch.ones(2, 3), torch.ones(2, 3), 0.0)


def test_integer_args_are_passed_as_they_are() -> None:
    """A declared integer arg keeps its dtype; a float for it is refused."""
    seen = []

    def pick(x: NDA, i: NDA, **_: Any) -> NDA:
        seen.append(i.dtype)
        return x[:, i]

    indexed = spec(args=(Array("i", ("m",), dtype="int64"),), y=Array("y", ("m",)), forward=pick)
    y = autograd.apply(Solver(indexed), torch.ones(2, 3), torch.tensor([0, 1]))
    assert (y.shape, seen) == ((2, 2), [np.int64])
    with pytest.raises(InputError, match="i is float32, but the solver takes int64"):
        autograd.apply(Solver(indexed), torch.ones(2, 3), torch.tensor([0.0, 1.0]))


def test_sizes_from_options_and_functions() -> None:
    """An integer option, or sizes=, gives what the inputs do not; asked once, at first need."""
    asked = []

    def sizes(**options: Any) -> dict[str, int]:
        asked.append(options)
        return {"m": 2}

    def forward(x: NDA, **options: Any) -> NDA:
        return np.zeros((len(x), options["steps"], 2))

    meshed = spec(args=(), y=Array("y", ("steps", "m")), forward=forward, sizes=sizes)
    solver = Solver(meshed, {"steps": 5})
    HybridModel(HybridConfig({"mesh": PhysicsConfig(solver=meshed)}))
    assert asked == []
    for _ in range(2):
        assert solver.forward(np.ones((3, 3))).shape == (3, 5, 2)
    assert len(asked) == 1


# ---- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scal": 2.0}, "no option 'scal'. Did you mean 'scale'"),
        ({"scale": "2"}, "must be a value of type float"),
        ({"scale": True}, "must be a value of type float"),
        ({"steps": 2.5}, "must be a value of type int"),
        ({"label": 1}, "must be a value of type str"),
        ({"scale": math.nan}, "scale"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    """At the config's construction, against the declaration."""
    with pytest.raises(ConfigError, match=message):
        PhysicsConfig(solver=spec(), options=options)


def test_required_options() -> None:
    """A type in place of a default must be set."""
    needs = spec(options=(*spec().options, Option("mesh", str)))
    with pytest.raises(ConfigError, match="line needs a value for mesh"):
        PhysicsConfig(solver=needs)
    assert PhysicsConfig(solver=needs, options={"mesh": "a"}).options == {"mesh": "a"}


# ---- where an arg comes from ---------------------------------------------------------------------


def model_of(**member: Any) -> HybridModel:
    return HybridModel(HybridConfig({"line": PhysicsConfig(solver=spec(), **member)}))


X = torch.ones(2, 3, dtype=torch.float64)


def test_constants() -> None:
    """From the config: lists, numbers, arrays and tensors."""
    assert (model_of(args={"k": [1.0, 2.0, 3.0], "b": 1})(X)[0] == torch.tensor([2, 3, 4])).all()
    k = np.ones(3)
    model = model_of(args={"k": k, "b": torch.tensor(0.0)})
    k[:] = 100.0
    assert (model(X) == 1).all()


@pytest.mark.parametrize(
    "phy_args",
    [[2.0, 1.0], {"line": [2.0, 1.0]}, {"line": {"b": 1.0, "k": [2.0, 2.0, 2.0]}}],
)
def test_by_position_and_by_name(phy_args: Any) -> None:
    """A list, a list per member, a mapping per member."""
    args = phy_args if isinstance(phy_args, dict) else [torch.full((3,), 2.0), 1.0]
    if isinstance(args, dict) and isinstance(args["line"], list):
        args = {"line": [torch.full((3,), 2.0), 1.0]}
    assert (model_of()(X, args) == 3).all()


def test_a_list_fills_what_nothing_else_feeds() -> None:
    """In order, skipping constants; too few or too many is an error that lists them."""
    model = model_of(args={"k": [2.0, 2.0, 2.0]})
    assert (model(X, [1.0]) == 3).all()
    with pytest.raises(ConfigError, match=r"2 entries for 1 args without another source \(b\)"):
        model(X, [1.0, 2.0])


def test_phy_args_override_constants() -> None:
    """By name, for one call."""
    model = model_of(args={"k": [2.0] * 3, "b": 0.0})
    assert (model(X, {"line": {"b": 5.0}}) == 7).all()
    assert (model(X) == 2).all()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "args k and b have no source"),
        ({"k": [1.0] * 3}, "arg b has no source"),
    ],
)
def test_args_without_a_source(args: dict[str, Any], message: str) -> None:
    """The error names them and the three places where they may come from."""
    with pytest.raises(ConfigError, match=f"model 'line' \\(solver line\\): {message}.*arg_inputs"):
        model_of(args=args)(X)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"kk": 1.0}, "no arg 'kk'. Did you mean 'k'"),
        ({"x": 1.0}, "its x, which the routing feeds"),
        ({"k": [[1.0], [1.0, 2.0]]}, "ragged"),
        ({"k": [[[1.0]]]}, "core shape"),
        ({"b": "one"}, "no number"),
        ({"b": None}, "no number"),
        ({"b": 1j}, "no number"),
        ({"k": np.ones(3) * 1j}, "no number"),
        ({"k": np.array(["a", "b", "c"])}, "no number"),
        ({"k": np.array([None] * 3)}, "no number"),
        ({"k": [1.0, math.nan, 1.0]}, "NaN"),
        ({"k": torch.tensor([1.0, math.nan, 1.0])}, "NaN"),
        ({"b": 10**400}, "too large"),
        ({"k": nn.Parameter(torch.ones(3))}, "never trained"),
    ],
)
def test_wrong_constants(args: dict[str, Any], message: str) -> None:
    """At the config's construction."""
    with pytest.raises(ConfigError, match=message):
        model_of(args=args)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("int8", 300),
        ("uint8", -1),
        ("uint16", np.int64(70_000)),
        ("int64", 10**30),
        ("int64", 1.0),
        ("int64", torch.tensor(1.5)),
        ("bool", 2),
    ],
)
def test_constants_that_do_not_fit_their_dtype(dtype: str, value: Any) -> None:
    """300 is not 44, though int8 would have it so."""
    args = (Array("k", ("n",)), Array("b", dtype=dtype))
    with pytest.raises(ConfigError, match=rf"args\['b'\]=.* does not fit into {dtype}"):
        PhysicsConfig(solver=spec(args=args), args={"b": value})


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("int8", -128), ("uint64", 2**63), ("bool", True), ("int32", np.int8(3)), (None, 2**100)],
)
def test_constants_arrive_as_they_are(dtype: str | None, value: Any) -> None:
    """The ends of every dtype's range included."""
    seen: list[NDA] = []

    def look(x: NDA, k: NDA, b: NDA, **_: Any) -> NDA:
        seen.append(b)
        return x + 0

    args = (Array("k", ("n",)), Array("b", dtype=dtype))
    config = PhysicsConfig(solver=spec(args=args, forward=look), args={"b": value, "k": [1.0] * 3})
    HybridModel(HybridConfig({"line": config}))(X)
    assert (seen[0].dtype, seen[0].item()) == (np.dtype(dtype or "float64"), value)


@pytest.mark.parametrize("pack", [list, tuple, np.array, torch.DoubleTensor])
def test_constants_keep_every_digit(pack: Any) -> None:
    """A list of Python numbers does not pass through torch's default dtype, float32."""
    model = model_of(args={"k": pack([300.1, 1 / 3, 1e-300]), "b": 0})
    assert (model(X)[0] == torch.tensor([300.1, 1 / 3, 1e-300], dtype=torch.float64)).all()


@pytest.mark.parametrize("pack", [lambda k: [k, 0.0], lambda k: {"line": {"k": k, "b": 0.0}}])
def test_none_is_no_source(pack: Any) -> None:
    """None in the place of an arg is not an array of objects."""
    with pytest.raises(ConfigError, match="arg k has no source"):
        model_of()(X, pack(None))


def test_a_ragged_list_is_no_arg() -> None:
    """The solver is named, not only numpy's trouble with it."""
    with pytest.raises(InputError, match="line: an arg is no array of numbers"):
        model_of()(X, [[[1.0], [1.0, 2.0]], 0.0])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.tensor(1.0), "'Input', which feeds x, has no batch axis"),
        (None, "'Input', which feeds x, is None"),
    ],
)
def test_x_without_a_batch(x: Any, message: str) -> None:
    """The member, the source and what is missing."""
    with pytest.raises(InputError, match=message):
        model_of(args={"k": [1.0] * 3, "b": 0.0})(x)


def test_unknown_names_in_phy_args() -> None:
    """With the name that was probably meant."""
    with pytest.raises(ConfigError, match=r"there is no arg 'bb'. Did you mean 'b'"):
        model_of()(X, {"line": {"bb": 1.0}})


def fed(arg: str = "k", selector: Any = None, **changes: Any) -> HybridModel:
    config: dict[str, Any] = {
        "models": {
            "law": MLPConfig(3, 4, 3, 1, "tanh", "softplus"),
            "line": PhysicsConfig(solver=spec(), args={"b": 0.0}),
        },
        "model_inputs": {"law": {"Input": None}, "line": {"Input": None}},
        "arg_inputs": {"line": {arg: {"law": selector}}},
        **changes,
    }
    return HybridModel(HybridConfig(**config)).double()


def test_a_member_feeds_an_arg_and_trains_through_it() -> None:
    """The network's output is k; its gradient is that of the product written in torch."""
    model = fed()
    x = values(4, 3)
    twin = copy.deepcopy(model)
    (model(x) ** 2).sum().backward()
    ((twin.models_nn["law"](x) * x) ** 2).sum().backward()
    for got, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad)


def test_columns_feed_an_arg() -> None:
    """Columns of several sources are concatenated, then reshaped to the core."""
    model = fed(arg_inputs={"line": {"k": {"law": [0, 1], "Input": [2]}}})
    x = values(4, 3)
    k = torch.cat([model.models_nn["law"](x)[:, :2], x[:, 2:]], dim=1)
    torch.testing.assert_close(model(x), k * x)


class Shared(nn.Module):
    """A parameter for all samples, whatever comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.k


def test_a_sole_source_of_the_cores_shape_is_shared() -> None:
    """A module without a batch axis gives one arg for the whole batch."""
    model = HybridModel(
        HybridConfig(
            {"k": Shared(), "line": PhysicsConfig(solver=spec(), args={"b": 0.0})},
            {"line": {"Input": None}},
            {"line": {"k": {"k": None}}},
        )
    )
    model(X).sum().backward()
    assert (model.models_nn["k"].k.grad == 2.0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arg_inputs": {"line": {"kk": {"law": None}}}}, "no arg 'kk'"),
        ({"arg_inputs": {"lime": {"k": {"law": None}}}}, "no member 'lime'. Did you mean 'line'"),
        ({"arg_inputs": {"law": {"k": {"Input": None}}}}, "only a solver given by name"),
        ({"arg_inputs": {"line": {"k": {"low": None}}}}, "no source 'low'. Did you mean 'law'"),
        ({"arg_inputs": {"line": {"k": {}}}}, "names no source"),
        ({"arg_inputs": {"line": {"k": {"law": []}}}}, "empty selection"),
        ({"arg_inputs": {"line": {"k": {"law": [3]}}}}, "no column 3"),
        ({"arg_inputs": {"line": {"b": {"law": [0]}}}}, "it would never train"),
        ({"model_inputs": {"law": {"Input": None}}}, "needs a model_inputs entry"),
    ],
)
def test_wrong_arg_inputs(changes: dict[str, Any], message: str) -> None:
    """All at construction."""
    with pytest.raises(ConfigError, match=message):
        fed(**changes)


def test_an_arg_fed_twice() -> None:
    """arg_inputs and phy_args exclude each other."""
    with pytest.raises(ConfigError, match="'k' is fed by arg_inputs already"):
        fed()(X, {"line": {"k": 1.0}})


def test_columns_that_do_not_fit_the_core() -> None:
    """What is routed must fill the declared shape exactly."""
    with pytest.raises(ConfigError, match=r"2 columns are routed to k.*with n = 3"):
        fed(selector=[0, 1])(values(4, 3))


def test_x_is_reshaped_to_the_core() -> None:
    """A flat output feeds a solver with a two-dimensional core, and back."""
    field = spec(
        args=(),
        x=Array("x", (2, "m")),
        y=Array("y", ("m", 2)),
        forward=lambda x, **_: np.swapaxes(x, 1, 2).copy(),
        vjp=lambda x, g, **_: np.swapaxes(g, 1, 2).copy(),
    )
    model = HybridModel(HybridConfig({"field": PhysicsConfig(solver=field), "flat": nn.Flatten()}))
    x = values(4, 6)
    torch.testing.assert_close(model(x), x.view(4, 2, 3).transpose(1, 2).reshape(4, 6))


def test_scalar_y_feeds_a_network() -> None:
    """A y of shape (batch,) is a column for the networks that follow."""
    total = spec(
        args=(),
        y=Array("y"),
        forward=lambda x, **_: x.sum(1),
        vjp=lambda x, g, **_: np.repeat(g[:, None], x.shape[1], axis=1),
    )
    net = nn.Linear(4, 1).double()
    model = HybridModel(
        HybridConfig(
            {"sum": PhysicsConfig(solver=total), "net": net},
            {"net": {"sum": None, "Input": None}},
        )
    )
    x = values(2, 3)
    torch.testing.assert_close(model(x), net(torch.cat([x.sum(1, keepdim=True), x], 1)))


def test_units_that_differ_are_noticed() -> None:
    """One solver's K into another's m: a warning that says which."""
    hot = spec(name="hot", y=Array("T", ("n",), unit="K"))
    with pytest.warns(UserWarning, match="'hot' gives T in K, but it feeds x of 'line'.* in m"):
        HybridConfig({"hot": PhysicsConfig(solver=hot), "line": PhysicsConfig(solver=spec())})


# ---- copies, files -------------------------------------------------------------------------------


def test_model_by_name_pickles_and_copies() -> None:
    """Functions given by reference need nothing that does not pickle."""
    packaged = SolverSpec(
        name="double",
        mode="vjp",
        summary="twice x",
        x=Array("x", ("n",)),
        y=Array("y", ("n",)),
        forward="numpy:add.reduce",
        vjp="numpy:add.reduce",
    )
    model = HybridModel(HybridConfig({"d": PhysicsConfig(solver=packaged)}))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert list(twin.models_physics) == ["d"]


def test_bare_functions_have_no_data_form() -> None:
    """to_dict says so, with the member's name."""
    config = HybridConfig({"old": PhysicsConfig(np.sin, np.cos)})
    with pytest.raises(ConfigError, match="member 'old': a bare forward_func has no name"):
        config.to_dict()


@pytest.mark.parametrize("through", ["json", "toml"])
def test_config_survives_json_and_toml(through: str) -> None:
    """Names, options, constants, routing, infinities and modules come back equal."""
    own = nn.Linear(3, 3)
    config = HybridConfig(
        models={
            "own": own,
            "net": MLPConfig(3, 4, 3, 1, "tanh", "softplus"),
            "heat": PhysicsConfig(
                solver="heat1d",
                options={"h_left": math.inf, "t": 2.0},
                args={"T_ext": np.array([300.0, 280.0]), "q": [0.0, 1.0, -math.inf]},
            ),
            "prop": "heat1d-propagator",
        },
        model_inputs={"heat": {"Input": [0, 1, 2]}, "net": {"own": None}},
        arg_inputs={"heat": {"k": {"net": None}}},
    )
    data = config.to_dict()
    if through == "json":
        text = json.dumps(data, allow_nan=False)
        back = json.loads(text)
    else:
        back = tomllib.loads(tomlkit.dumps(data))
    again = HybridConfig.from_dict(back, modules={"own": own})
    assert again.to_dict() == data
    assert again.models["heat"].options == {"h_left": math.inf, "t": 2.0}
    assert again.models["heat"].args["q"][2] == -math.inf
    assert again.models["own"] is own
    with pytest.raises(ConfigError, match="give it back: modules="):
        HybridConfig.from_dict(back)


def test_unknown_keys_in_data() -> None:
    """A misspelt key is not dropped."""
    with pytest.raises(ConfigError, match="unknown key 'model_input'"):
        HybridConfig.from_dict({"models": {}, "model_input": {}})


NET = MLPConfig(3, 4, 3, 1, "tanh", "softplus").to_dict()
HEAT = {"solver": "heat1d"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "expected a table of settings"),
        ({}, "models: None must be a mapping"),
        ({"models": {"a": 3}}, "neither a solver's name nor a table"),
        ({"models": {"a": {}}}, "num_input_dim, .* missing"),
        ({"models": {"a": NET | {"num_input_dim": "3"}}}, "must be an integer"),
        ({"models": {"a": NET | {"bias": True}}}, "unknown key 'bias'"),
        ({"models": {"a": {"solver": 3}}}, "must be a solver's name"),
        ({"models": {"a": HEAT | {"option": {}}}}, "unknown key 'option'. Did you mean 'options'"),
        ({"models": {"a": HEAT | {"options": [1]}}}, "options: .* must be a mapping"),
        ({"models": {"a": HEAT | {"options": {"t": "Infinity"}}}}, "value of type float"),
        ({"models": {"a": HEAT | {"args": "x"}}}, "args: .* must be a mapping"),
        ({"models": {"a": HEAT | {"args": {"q": ["nan"]}}}}, "no number"),
        ({"models": {"a": {"module": "a", "solver": "heat1d"}}}, "unknown key 'solver'"),
        ({"models": {"a": NET}, "model_inputs": {"a": "all"}}, "must be a mapping"),
        ({"models": {"a": NET}, "model_inputs": {"a": {"Input": "al"}}}, "selects no columns"),
        ({"models": {"a": NET}, "arg_inputs": []}, "arg_inputs: .* must be a mapping"),
    ],
)
def test_damaged_data(data: Any, message: str) -> None:
    """What was edited by hand, and wrongly, is said to be so, with its key."""
    with pytest.raises(ConfigError, match=message):
        HybridConfig.from_dict(data)


@pytest.mark.parametrize(
    ("modules", "message"),
    [([nn.Identity()], "modules: .* must be a mapping"), ({"a": "heat1d"}, "not a torch")],
)
def test_modules_that_are_none(modules: Any, message: str) -> None:
    """A solver's name does not slip in where a module was saved."""
    with pytest.raises(ConfigError, match=message):
        HybridConfig.from_dict({"models": {"a": {"module": "a"}}}, modules)


@pytest.mark.parametrize(
    "value", [[Fraction(1, 3), 2], [np.float32(300.1), np.int64(2)], torch.tensor([0.1, 2.0])]
)
def test_constants_of_every_kind_survive(value: Any) -> None:
    """Fractions, numpy's numbers and tensors become plain numbers."""
    config = HybridConfig({"h": PhysicsConfig(solver="heat1d", args={"T_ext": value})})
    text = json.dumps(config.to_dict(), allow_nan=False)
    again = HybridConfig.from_dict(json.loads(text)).models["h"].args["T_ext"]
    assert again == [float(v) for v in value]


# ---- solve ---------------------------------------------------------------------------------------


def test_solve_by_name() -> None:
    """Tensors in, tensor out, with gradients to x and declared args."""
    T0 = torch.full((2, 8), 300.0, dtype=torch.float64, requires_grad=True)
    k = torch.ones(8, dtype=torch.float64, requires_grad=True)
    T = adeptml_core.solve(
        "heat1d", T0, k, 0.0 * torch.ones(8), torch.tensor([310.0, 290.0]), options={"t": 0.1}
    )
    T.sum().backward()
    assert T.shape == (2, 8)
    assert T0.grad.abs().sum() > 0
    assert k.grad.shape == (8,)


def test_solve_of_an_unknown_name() -> None:
    """Did you mean."""
    with pytest.raises(UnknownSolverError, match="Did you mean 'heat1d'"):
        adeptml_core.solve("heat1", torch.ones(1, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["t"], "must map names to values"),
        ("t=1", "must map names to values"),
        ({"t": np.array([1.0])}, "t"),
        ({"t": {}}, "t"),
        ({"t": True}, "t"),
    ],
)
def test_wrong_options_of_solve_are_config_errors(options: Any, message: str) -> None:
    """Also right after the same solver was used with an equal value of the right type."""
    T0, k, ends = torch.rand(2, 4).double(), torch.ones(4), torch.tensor([1.0, 2.0])
    adeptml_core.solve("heat1d", T0, k, torch.zeros(4), ends, options={"t": 1.0})
    with pytest.raises(ConfigError, match=message):
        adeptml_core.solve("heat1d", T0, k, torch.zeros(4), ends, options=options)


def test_a_cotangent_may_overflow_in_half_precision() -> None:
    """To infinity, as a gradient scaler expects it; a y that does not fit is still an error."""
    fields: dict[str, Any] = {"x": Array("x", ("n",)), "y": Array("y", ("n",))}
    steep = SolverSpec(
        name="steep",
        mode="vjp",
        summary="steep",
        forward=lambda x: x,
        vjp=lambda x, g: 1e6 * g,
        **fields,
    )
    x = torch.ones(2, 3, dtype=torch.float16, requires_grad=True)
    autograd.apply(Solver(steep), x).sum().backward()
    assert x.grad is not None
    assert torch.isinf(x.grad).all()


def test_a_masked_array_is_refused() -> None:
    """Its mask would be dropped in silence."""
    fields: dict[str, Any] = {"x": Array("x", ("n",)), "y": Array("y", ("n",))}
    masked = SolverSpec(
        name="masked",
        mode="vjp",
        summary="masked",
        forward=lambda x: np.ma.masked_less(x, 0.0),
        vjp=lambda x, g: g,
        **fields,
    )
    with pytest.raises(ContractError, match="mask would be lost"):
        autograd.apply(Solver(masked), torch.zeros(2, 3))
