"""The operator under every torch transform: right, against the twin, or refused aloud."""

import functools
import gc
import threading
import weakref

import numpy as np
import operator_table as table
import pytest
import torch
from torch.func import grad, hessian, jacrev, jvp, vmap
from torch.utils import _pytree as pytree
from twins import counting, plain, plain_hvp, plain_jvp, with_args

from adeptml_core.autograd import apply
from adeptml_core.bare import RawSolver
from adeptml_core.errors import ContractError, HigherOrderError, InputError
from adeptml_core.plugin import Array, SolverSpec
from adeptml_core.solver import Solver
from adeptml_core.spec import Mode
from adeptml_core.training.timing import Watched

# torch's own: the batched fallback of vmap over some ops, and a renamed helper of dual numbers
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")

CASES = list(table.cases())
every_mode = pytest.mark.parametrize("mode", table.MODES)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_row = pytest.mark.parametrize("row", table.ROWS, ids=lambda row: row.title)


def called(solver):
    """Return the solver as a function of tensors."""
    return functools.partial(apply, solver)


def assert_same(got, expected, **tolerances):
    """Compare nested tensors."""
    got, expected = pytree.tree_leaves(got), pytree.tree_leaves(expected)
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **(tolerances or {"rtol": 1e-9, "atol": 1e-10}))


@every_row
@every_mode
@every_case
def test_right_or_refused(row, mode, case):
    """Each cell of the table, where the solver has no rule for second derivatives."""
    f = called(case.twin.solver(mode))
    if row.outcome(False) == table.RIGHT:
        assert_same(row.run(f, *case.point), row.run(case.twin.torch, *case.point))
    else:
        with pytest.raises(HigherOrderError, match=row.refusal):
            row.run(f, *case.point)


@every_row
@every_mode
@every_case
def test_differences_give_the_second_derivatives(row, mode, case):
    """With differences chosen, all second derivatives are right; third ones are refused."""
    f = called(case.twin.solver(mode, "differences"))
    if row.outcome(True) == table.RIGHT:
        expected = row.run(case.twin.torch, *case.point)
        assert_same(row.run(f, *case.point), expected, rtol=1e-8, atol=1e-9)
    else:
        with pytest.raises(HigherOrderError, match=row.refusal):
            row.run(f, *case.point)


@every_row
@every_mode
def test_a_declared_rule_gives_the_second_derivatives(row, mode):
    """With hvp declared, second derivatives in x are right to rounding."""
    f = called(plain.solver(mode, hvp=plain_hvp))
    case = CASES[0]
    if row.outcome(True) == table.RIGHT:
        assert_same(row.run(f, *case.point), row.run(case.twin.torch, *case.point))
    else:
        with pytest.raises(HigherOrderError, match=row.refusal):
            row.run(f, *case.point)


@every_row
@every_mode
def test_a_solver_behind_a_watch_differentiates_as_without(row, mode):
    """Training times a step now and then: that must not change what a derivative is made of."""
    f = called(Watched(plain.solver(mode, hvp=plain_hvp)))
    case = CASES[0]
    if row.outcome(True) == table.RIGHT:
        assert_same(row.run(f, *case.point), row.run(case.twin.torch, *case.point))
    else:
        with pytest.raises(HigherOrderError, match=row.refusal):
            row.run(f, *case.point)


# ---- how a tangent is found ----------------------------------------------------------------------


def solver_of(mode="vjp", second_order=None, n="n", m="n", **fields):
    """Return a solver without args from its functions."""
    declared = {"name": "one", "summary": "one", "x": Array("x", (n,)), "y": Array("y", (m,))}
    return Solver(SolverSpec(**(declared | {"mode": mode} | fields)), second_order=second_order)


def some(*shape, seed=0):
    """Return a tensor of float64."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64)


def test_a_tangent_of_many_pullbacks_is_refused():
    """Above 64 pullbacks the error names jvp= as the mend; with 64 it is right."""

    def repeated(m):
        return solver_of(
            m=m,
            forward=lambda x: np.repeat(x.sum(1, keepdims=True), m, axis=1),
            vjp=lambda x, g: np.repeat(g.sum(1, keepdims=True), x.shape[1], axis=1),
        )

    x = some(2, 3)
    y, dy = jvp(called(repeated(64)), (x,), (x,))
    assert_same(dy, y)
    with pytest.raises(HigherOrderError, match=r"takes 65 pullbacks.*jvp="):
        jvp(called(repeated(65)), (x,), (x,))


def test_a_declared_jvp_is_used():
    """One call of jvp, and none of the pullback."""
    calls = []

    def tangent(x, dx):
        calls.append(1)
        return plain_jvp(x, dx)

    x = some(2, 3)
    f = called(plain.solver("vjp", jvp=tangent))
    assert_same(jvp(f, (x,), (x,)), jvp(plain.torch, (x,), (x,)))
    assert calls == [1]


def test_a_wrong_tangent_is_refused():
    """What jvp returns is checked like any result."""
    x = some(2, 3)
    solver = plain.solver("vjp", jvp=lambda x, dx: dx)
    with pytest.raises(ContractError, match=r"jvp returned shape \(2, 3\), expected \(2, 2\)"):
        jvp(called(solver), (x,), (x,))


def coupled_twin(x):
    return x * x.sum()


@pytest.mark.parametrize("mode", ["vjp", "split_vjp"])
def test_coupled_rows_take_a_pullback_each(mode):
    """Where rows depend on each other, tangents, vmap and second derivatives are right too."""

    def vjp(x, g):
        return g * x.sum() + (g * x).sum()

    functions = {
        "vjp": {"forward": coupled_twin, "vjp": vjp},
        "split_vjp": {"forward": lambda x: (coupled_twin(x), lambda g: (vjp(x, g),))},
    }
    f = called(solver_of(mode, "differences", row_independent=False, **functions[mode]))
    x = some(3, 2)
    assert_same(jvp(f, (x,), (x + 1,)), jvp(coupled_twin, (x,), (x + 1,)))
    assert_same(vmap(f)(table.stacked(x)), vmap(coupled_twin)(table.stacked(x)))
    assert_same(jacrev(f)(x), jacrev(coupled_twin)(x))
    expected = hessian(table.loss(coupled_twin))(x)
    assert_same(hessian(table.loss(f))(x), expected, rtol=1e-8, atol=1e-8)
    with pytest.raises(HigherOrderError, match="each row"):
        jvp(f, (some(40, 2),), (some(40, 2),))


def test_an_arg_that_cannot_be_spread_is_looped_over():
    """A ``batched=False`` arg under vmap, and its tangent."""
    shared = Array("k", ("n",), differentiable=True, batched=False)

    def scaled(x, k):
        assert k.ndim == 1
        return x**2 * k, lambda g: (2 * x * k * g, (g * x**2).sum(0))

    f = called(solver_of("split_vjp", args=(shared,), forward=scaled))
    x, k = some(2, 3), some(3, seed=1)

    def twin(x, k):
        return x**2 * k

    assert_same(jvp(f, (x, k), (k + x, k)), jvp(twin, (x, k), (k + x, k)))
    for dims in ((0, 0), (None, 0), (0, None)):
        given = [v if d is None else table.stacked(v) for v, d in zip((x, k), dims, strict=True)]
        of = [vmap(grad(table.loss(g), argnums=(0, 1)), in_dims=dims)(*given) for g in (f, twin)]
        assert_same(*of)


# ---- pullbacks: how many, how long ---------------------------------------------------------------


def test_a_kept_pullback_is_not_made_again():
    """torch.func and create_graph use the pullback that forward returned."""
    solver, calls = counting(deterministic=False)
    x = some(2, 3)
    assert_same(grad(lambda x: called(solver)(x).sum())(x), 2 * x)
    assert calls == ["forward", "pullback"]
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(called(solver)(leaf).sum(), leaf, create_graph=True)
    assert calls == ["forward", "pullback"] * 2
    assert_same(jacrev(called(solver))(x[:1]).diagonal(dim1=1, dim2=3).sum((0, 1)), 2 * x[0])


def test_a_lost_pullback_of_a_random_solver_is_refused():
    """Where it would have to run again at folded points, it says no."""
    solver, _ = counting(deterministic=False)
    with pytest.raises(HigherOrderError, match="not deterministic"):
        vmap(grad(lambda x: called(solver)(x).sum()))(some(2, 3, 3))


def test_pullbacks_are_freed():
    """No pullback outlives what torch keeps: eager, torch.func, forward mode, the ops."""
    alive = weakref.WeakValueDictionary()

    class Residual(np.ndarray):
        pass

    def forward(x):
        residual = (2 * x).view(Residual)
        alive[id(residual)] = residual
        return np.array(x**2), lambda g: (np.asarray(residual * g),)

    solver = solver_of("split_vjp", forward=forward)
    f, x = called(solver), some(2, 3)

    def retained():
        leaf = x.clone().requires_grad_()
        y = f(leaf).sum()
        for _ in range(2):
            torch.autograd.grad(y, leaf, retain_graph=True)
        assert len(alive) == 1

    def by_the_op():
        leaf = x.clone().requires_grad_()
        y, ticket = torch.ops.adeptml.linearize(leaf, [], solver.identity)
        del ticket
        assert len(alive) == 1
        y.sum().backward()
        assert_same(leaf.grad, 2 * x)

    def create_graph():
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(f(leaf).sum(), leaf, create_graph=True)

    for use in (
        retained,
        by_the_op,
        create_graph,
        lambda: f(x.clone().requires_grad_()),
        lambda: grad(lambda x: f(x).sum())(x),
        lambda: jvp(f, (x,), (x,)),
        lambda: vmap(f)(table.stacked(x)),
    ):
        use()
        gc.collect()
        assert len(alive) == 0


def test_an_in_place_edit_is_detected_under_create_graph():
    """The node of the backward pass saves x as torch does."""
    x = some(2, 3).requires_grad_()
    z = x * 1
    y = called(plain.solver("split_vjp"))(z)
    z.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


# ---- second derivatives --------------------------------------------------------------------------


@every_mode
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_torchs_own_judges(mode, case):
    """Gradcheck with forward mode, gradgradcheck with forward over reverse."""
    point = table.leaves(case.point)
    assert torch.autograd.gradcheck(called(case.twin.solver(mode)), point, check_forward_ad=True)
    twice = called(case.twin.solver(mode, "differences"))
    assert torch.autograd.gradgradcheck(twice, point, check_fwd_over_rev=True)


def test_differences_are_accurate():
    """About 1e-11 of the result, for values and scales of any size."""
    for scale in (1e-6, 1.0, 1e6):
        solver = solver_of(
            second_order="differences",
            forward=lambda x, s=scale: np.sin(x / s),
            vjp=lambda x, g, s=scale: np.cos(x / s) / s * g,
        )
        x = (some(3, 4) * scale).requires_grad_()
        (first,) = torch.autograd.grad(called(solver)(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        expected = -torch.sin(x / scale) / scale**2
        assert ((second - expected).abs().max() / expected.abs().max()).item() < 1e-10


def second_of(f, x):
    """Return the derivative of the gradient of ``f(x).sum()`` along ones."""
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
    return torch.autograd.grad(first.sum(), x)[0]


@pytest.mark.parametrize("size", [0.0, 1e-16, 1e-12, 1e-9, 1e-3, 1.0, 1e3])
def test_differences_find_the_scale(size):
    """The size of x may say nothing: x + x**2 varies on the scale of 1, wherever x is."""
    f = called(
        solver_of(
            second_order="differences",
            forward=lambda x: x + x**2,
            vjp=lambda x, g: (1 + 2 * x) * g,
        )
    )
    x = some(2, 3) * size
    assert_same(second_of(f, x), torch.full((2, 3), 2.0).double(), rtol=1e-8, atol=0.0)


def test_a_scale_that_cannot_be_found_is_refused():
    """Entries of very different size, each varying on its own scale; and a kink."""
    scale = np.array([300.0, 1e-9])
    f = called(
        solver_of(
            second_order="differences",
            forward=lambda x: np.sin(x / scale),
            vjp=lambda x, g: np.cos(x / scale) / scale * g,
        )
    )
    with pytest.raises(InputError, match="steps of another size"):
        second_of(f, torch.tensor([[200.0, 5e-10]]).double())
    kinked = called(
        solver_of(
            second_order="differences",
            forward=lambda x: np.abs(x) * x,
            vjp=lambda x, g: 2 * np.abs(x) * g,
        )
    )
    step = called(
        solver_of(
            second_order="differences",
            forward=np.abs,
            vjp=lambda x, g: np.sign(x) * g,
        )
    )
    assert_same(
        second_of(kinked, torch.tensor([[2.0, -2.0]]).double()),
        torch.tensor([[2.0, -2.0]]).double(),
    )
    with pytest.raises(InputError, match="kink"):
        second_of(step, torch.tensor([[0.0, 1.0]]).double())


def test_a_linear_solver_has_no_second_derivative():
    """Zero to rounding, and not refused for its rounding."""
    matrix = some(3, 3, seed=2).numpy()
    f = called(
        solver_of(
            second_order="differences",
            forward=lambda x: x @ matrix,
            vjp=lambda x, g: g @ matrix.T,
        )
    )
    assert second_of(f, some(4, 3)).abs().max() < 1e-9


def test_args_of_other_units_have_their_own_steps():
    """X about 300, an arg about 1e-6: mixed second derivatives are right."""

    def forward(x, d):
        return np.sin(x / 300) * np.exp(d * 1e6)

    def pulled(x, g, d):
        grown = np.exp(d * 1e6) * g
        return np.cos(x / 300) / 300 * grown, 1e6 * np.sin(x / 300) * grown

    small = Array("d", ("n",), differentiable=True)
    f = called(solver_of(second_order="differences", args=(small,), forward=forward, vjp=pulled))
    x, d = 300 * some(2, 3), 1e-6 * some(2, 3, seed=1)

    def twin(x, d):
        return torch.sin(x / 300) * torch.exp(d * 1e6)

    found, expected = ([hessian(table.loss(g), argnums=(0, 1))(x, d)] for g in (f, twin))
    for ours, theirs in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        assert ((ours - theirs).abs().max() / theirs.abs().max()).item() < 1e-8


def test_differences_keep_within_the_bounds():
    """Near a bound the step shrinks; on it there is no room, and the error says so."""
    seen = []

    def root(x, g):
        seen.append(x.min())
        return g / (2 * np.sqrt(x))

    fields = {"x": Array("x", ("n",), low=0.5), "forward": np.sqrt, "vjp": root}
    f = called(solver_of(second_order="differences", **fields))
    x = torch.tensor([[0.5001, 2.0]], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert_same(second, -0.25 * x.detach() ** -1.5, rtol=1e-8, atol=0.0)
    assert min(seen) >= 0.5
    x = torch.tensor([[0.5, 2.0]], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
    with pytest.raises(InputError, match="bound"):
        torch.autograd.grad(first.sum(), x)


def test_a_rule_for_x_does_not_speak_of_args():
    """Hvp covers x alone: what would need the args' part is refused."""
    fields = {f: getattr(with_args.spec("vjp"), f) for f in ("x", "args", "y", "forward", "vjp")}
    solver = solver_of(hvp=lambda x, g, v, a, s: np.zeros_like(x), **fields)
    x, a, s = table.leaves(CASES[1].point)
    first = torch.autograd.grad(called(solver)(x, a, s).sum(), (x, a), create_graph=True)
    with pytest.raises(HigherOrderError, match="not of the args"):
        torch.autograd.grad(first[1].sum(), x, retain_graph=True)
    with pytest.raises(HigherOrderError, match="second derivative"):
        torch.autograd.grad(first[0].sum(), a)


# ---- args, dtypes, bare functions, threads -------------------------------------------------------


def test_undeclared_args_warn_or_are_refused():
    """Reverse mode detaches with one warning, forward mode refuses."""

    def times(x, k):
        return x * k, lambda g: (g * k,)

    fields = {"name": "undeclared", "args": (Array("k", ("n",)),), "forward": times}
    f = called(solver_of("split_vjp", **fields))
    x, k = some(2, 3), some(3)
    with pytest.warns(UserWarning, match="declares no derivative"):
        assert_same(grad(lambda k: f(x, k).sum())(k), torch.zeros(3).double())
    with pytest.raises(HigherOrderError, match="forward mode reached k"):
        jvp(lambda k: f(x, k), (k,), (k,))


def test_integer_args_pass_through():
    """They have no tangent, and are folded like the others."""
    count = Array("power", (), dtype="int64")
    f = called(
        solver_of(
            "vjp",
            args=(count,),
            forward=lambda x, n: x ** n.reshape(-1, 1),
            vjp=lambda x, g, n: g * n.reshape(-1, 1) * x ** (n.reshape(-1, 1) - 1),
        )
    )
    x, n = some(2, 3), torch.tensor(3)
    assert_same(grad(lambda x: f(x, n).sum())(x), 3 * x**2)
    assert_same(jvp(lambda x: f(x, n), (x,), (x,)), (x**3, 3 * x**3))
    powers = torch.tensor([1, 2, 3])
    assert_same(vmap(f, in_dims=(None, 0))(x, powers), torch.stack([x, x**2, x**3]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("declared", [("float64", "float32"), ("float32",), ("float64",)])
def test_dtypes_come_back(dtype, declared):
    """Values, tangents and gradients have the dtype of x, whatever the solver computes in."""
    f = called(plain.solver("split_vjp", "differences", dtypes=declared))
    x = some(2, 3).to(dtype)
    tolerance = {"rtol": 100 * torch.finfo(dtype).eps, "atol": 100 * torch.finfo(dtype).eps}
    tolerance = {k: max(v, 1e-4 if declared == ("float32",) else 0) for k, v in tolerance.items()}
    wide = x.double()
    for ours, twin in (
        (jvp(f, (x,), (x,)), jvp(plain.torch, (wide,), (wide,))),
        (grad(table.loss(f))(x), grad(table.loss(plain.torch))(wide)),
        (vmap(f)(table.stacked(x)), vmap(plain.torch)(table.stacked(x).double())),
    ):
        assert all(value.dtype is dtype for value in pytree.tree_leaves(ours))
        assert_same(pytree.tree_map(torch.Tensor.double, ours), twin, **tolerance)


def raw(mode):
    """Return bare functions for x**2 * k with one arg of any kind."""
    functions = {
        Mode.JACOBIAN: (
            lambda x, k: x**2 * k,
            lambda x, k: (2 * x * k)[:, :, None] * np.eye(x.shape[1]),
        ),
        Mode.VJP: (lambda x, k: x**2 * k, lambda x, g, k: 2 * x * k * g),
        Mode.SPLIT_VJP: (lambda x, k: (x**2 * k, lambda g: (2 * x * k * g,)), None),
    }
    return functions[mode]


@every_mode
def test_bare_functions_may_be_transformed_too(mode):
    """As slow loops where nothing is declared, but right."""
    solver = RawSolver(Mode(mode), *raw(Mode(mode)), second_order="differences")
    x = some(3, 2)

    def f(x):
        return apply(solver, x, 3.0)

    def twin(x):
        return 3 * x**2

    for transformed in (
        lambda f: grad(table.loss(f))(x),
        lambda f: jvp(f, (x,), (x,)),
        lambda f: vmap(f)(table.stacked(x)),
        lambda f: jacrev(f)(x),
    ):
        assert_same(transformed(f), transformed(twin))
    assert_same(hessian(table.loss(f))(x), hessian(table.loss(twin))(x), rtol=1e-8, atol=1e-8)


def test_threads_do_not_meet():
    """Several threads differentiate several models, each its own numbers."""
    failures = []

    def work(number):
        f = called(plain.solver(table.MODES[number % 3]))
        for i in range(20):
            x = some(4, 3, seed=100 * number + i)
            try:
                assert_same(grad(table.loss(f))(x), grad(table.loss(plain.torch))(x))
                assert_same(table.backward(f, x), table.backward(plain.torch, x))
            except AssertionError as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# ---- what an attack found ------------------------------------------------------------------------


@every_mode
def test_a_buffer_with_one_other_holder_is_copied(mode):
    """A large result that the solver still holds is never torch's own memory."""
    n = 8192
    y_buffer, dx_buffer = np.zeros((1, n)), np.zeros((1, n))

    def forward(x):
        np.multiply(x, x, out=y_buffer)
        return y_buffer

    def vjp(x, g):
        np.multiply(2 * x, g, out=dx_buffer)
        return dx_buffer

    functions = {
        "jacobian": {"forward": forward, "vjp": vjp},
        "vjp": {"forward": forward, "vjp": vjp},
        "split_vjp": {"forward": lambda x: (forward(x), lambda g: (vjp(x, g),))},
    }
    mode = "vjp" if mode == "jacobian" else mode  # a Jacobian of this size would hold half a GB
    f = called(solver_of(mode, **functions[mode]))
    x = some(1, n)
    expected = x**2, 2 * x
    for gradient in (
        lambda x: table.backward(lambda x: f(x).sqrt(), x)[0],
        grad(lambda x: f(x).sum()),
    ):
        first, y = gradient(x), f(x)
        kept = first.clone(), y.clone()
        gradient(x + 1)
        assert_same((first, y), kept)
    assert_same((f(x), grad(lambda x: f(x).sum())(x)), expected)


def test_a_rule_for_x_refuses_what_forward_mode_asks_of_args():
    """Forward over reverse: the derivative of an arg's gradient along x has no rule."""
    fields = {f: getattr(with_args.spec("vjp"), f) for f in ("x", "args", "y", "forward", "vjp")}
    f = called(solver_of(hvp=lambda x, g, v, a, s: np.zeros_like(x), **fields))
    x, a, s = CASES[1].point
    with pytest.raises(HigherOrderError, match="not of the args"):
        jvp(lambda x: grad(lambda a: f(x, a, s).sum())(a), (x,), (x,))


@every_mode
def test_tensor_args_of_bare_functions_are_batched(mode):
    """They go through vmap like any tensor; a gradient to them is warned of, once."""
    solver = RawSolver(Mode(mode), *raw(Mode(mode)), name=f"bare-{mode}")
    x, k = some(3, 2), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    found = vmap(lambda k: apply(solver, x, k))(k)
    assert_same(found, k[:, None, None] * x**2)
    with pytest.warns(UserWarning, match="declares no derivative"):
        assert_same(grad(lambda k: apply(solver, x, k).sum())(k[0]), torch.zeros(()).double())


def test_lists_that_are_edited_later_do_not_reach_the_pullback():
    """What has no version counter is copied at the call."""

    def forward(x, factors):
        return x * factors[0], lambda g: (g * factors[0],)

    x, factors = some(2, 3).requires_grad_(), [2.0]
    y = apply(RawSolver(Mode.SPLIT_VJP, forward), x, factors)
    factors[0] = 5.0
    y.sum().backward()
    assert_same(x.grad, torch.full((2, 3), 2.0).double())


def test_what_has_no_values_is_refused_by_name():
    """Sparse tensors and torch's old vmap have no memory for a solver to read."""
    solver = plain.solver("vjp")
    with pytest.raises(InputError, match="to_dense"):
        apply(solver, torch.eye(3, dtype=torch.float64).to_sparse())
    x = some(2, 3).requires_grad_()
    with pytest.raises(InputError, match=r"use torch\.func"):
        torch.autograd.functional.jacobian(called(solver), x, vectorize=True)


@pytest.mark.parametrize("second_order", [None, "differences"])
def test_an_empty_batch_has_second_derivatives_of_the_right_places(second_order):
    """Zeros for x and the declared args, in their own shapes; nothing for the others."""
    args = (Array("count", (5,)), Array("k", ("n",), differentiable=True))
    hvp = {} if second_order else {"hvp": lambda x, g, v, count, k: 2 * k * g * v}
    solver = solver_of(
        "split_vjp",
        second_order,
        args=args,
        forward=lambda x, count, k: (x**2 * k, lambda g: (2 * x * k * g, None, (g * x**2).sum(0))),
        **hvp,
    )
    x, count, k = (v.requires_grad_() for v in (some(0, 3), some(5), some(3)))
    y = apply(solver, x, count.detach(), k)
    first = torch.autograd.grad(y.sum(), x, create_graph=True)
    inputs = (x, k) if second_order else (x,)
    found = torch.autograd.grad(first[0].sum(), inputs)
    assert [tuple(f.shape) for f in found] == [tuple(i.shape) for i in inputs]


def test_masked_results_of_bare_functions_are_refused():
    """As a declared solver's: the mask would be dropped in silence."""
    solver = RawSolver(Mode.VJP, lambda x: np.ma.masked_less(x, 0.0), lambda x, g: g)
    with pytest.raises(ContractError, match="mask would be lost"):
        apply(solver, some(2, 3))
