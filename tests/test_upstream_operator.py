"""The operator's part of the table of behaviours: what scripts rely on, and what is cured."""

import copy
import gc
import pickle
import warnings
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from adeptml_core.errors import ContractError, HigherOrderError, InputError
from adeptml_core.models import Physics, Physics_SplitVJP, Physics_VJP

Array = NDArray[np.float64]


def cube(x: Array) -> Array:
    return x**3


def cube_jacobian(x: Array) -> Array:
    return 3 * (x**2)[:, :, None] * np.eye(x.shape[1], dtype=x.dtype)


def cube_vjp(x: Array, g: Array) -> Array:
    return 3 * x**2 * g


def cube_split(x: Array) -> tuple[Array, Callable[[Array], tuple[Array]]]:
    return x**3, lambda g: (3 * x**2 * g,)


def jacobian_mode(x: Tensor) -> Tensor:
    return Physics.apply(x, cube, cube_jacobian)


def vjp_mode(x: Tensor) -> Tensor:
    return Physics_VJP.apply(x, cube, cube_vjp)


def split_mode(x: Tensor) -> Tensor:
    return Physics_SplitVJP.apply(x, cube_split)


MODES = [
    pytest.param(jacobian_mode, id="jacobian"),
    pytest.param(vjp_mode, id="vjp"),
    pytest.param(split_mode, id="split_vjp"),
]
every_mode = pytest.mark.parametrize("operator", MODES)


def some_x(batch: int = 4, n: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, n, generator=generator, dtype=torch.float64).to(dtype)
    return x.requires_grad_()


# ---- to keep -------------------------------------------------------------------------------------


@every_mode
def test_gradient_is_right(operator: Callable[[Tensor], Tensor]) -> None:
    """Each mode gives the gradient that torch's own differences find."""
    assert torch.autograd.gradcheck(operator, (some_x(),))


@every_mode
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_result_has_the_dtype_of_x(
    operator: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    """Result and gradient come back in x.dtype, half and bfloat16 included."""
    x = some_x(dtype=dtype)
    y = operator(x)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype) == (dtype, dtype)
    torch.testing.assert_close(x.grad, (3 * x.double() ** 2).to(dtype).detach(), rtol=2e-2, atol=0)


def test_float64_result_of_a_float32_x_is_cast() -> None:
    """A solver that computes in float64 regardless gives float32 for a float32 x."""
    x = some_x(dtype=torch.float32)
    y = Physics_VJP.apply(x, lambda x: x.astype(np.float64), lambda x, g: g.astype(np.float64))
    y.sum().backward()
    assert (y.dtype, x.grad.dtype) == (torch.float32, torch.float32)


def test_one_derivative_call_a_backward_and_none_without_grad() -> None:
    """The derivative function runs once for each backward, never where x needs no gradient."""
    calls: list[str] = []

    def vjp(x: Array, g: Array) -> Array:
        calls.append("vjp")
        return cube_vjp(x, g)

    y = Physics_VJP.apply(some_x(), cube, vjp)
    assert calls == []
    y.sum().backward(retain_graph=True)
    assert calls == ["vjp"]
    y.sum().backward()
    assert calls == ["vjp", "vjp"]
    result = Physics_VJP.apply(some_x().detach(), cube, vjp)
    assert not result.requires_grad
    assert calls == ["vjp", "vjp"]


def test_args_reach_both_functions_and_keep_integer_dtypes() -> None:
    """Tensors arrive as arrays of their own dtype; None, numbers and arrays as they are."""
    seen = []

    def forward(x: Array, *args: object) -> Array:
        seen.append(args)
        return x * 2

    def jacobian(x: Array, *args: object) -> Array:
        seen.append(args)
        return np.broadcast_to(2 * np.eye(3), (len(x), 3, 3))

    args = [torch.tensor([1, 2]), torch.tensor(0.5), None, 3.0, np.arange(2.0)]
    Physics.apply(some_x(), forward, jacobian, args).sum().backward()
    assert len(seen) == 2
    for integers, half, nothing, number, array in seen:
        assert integers.dtype == np.int64
        assert (half.item(), nothing, number) == (0.5, None, 3.0)
        np.testing.assert_array_equal(array, [0.0, 1.0])


@pytest.mark.parametrize("pack", [tuple, list])
def test_pullback_may_return_a_tuple_or_a_list(pack: type) -> None:
    """What follows the cotangent of x is ignored."""
    x = some_x()
    y = Physics_SplitVJP.apply(x, lambda x: (x**3, lambda g: pack([3 * x**2 * g, None])))
    y.sum().backward()
    torch.testing.assert_close(x.grad, 3 * x.detach() ** 2)


def test_pullback_may_return_a_plain_array() -> None:
    """A plain cotangent is the cotangent, not a batch whose first row is taken."""
    x = some_x()
    Physics_SplitVJP.apply(x, lambda x: (x**3, lambda g: 3 * x**2 * g)).sum().backward()
    torch.testing.assert_close(x.grad, 3 * x.detach() ** 2)


def test_pullback_of_jax_works() -> None:
    """`jax.vjp`'s (y, pullback) is taken as it is, and its arrays are copied out."""
    jax = pytest.importorskip("jax")

    def forward(x: Array) -> object:
        return jax.vjp(lambda x: x**3, jax.numpy.asarray(x))

    x = some_x(dtype=torch.float32)
    y = Physics_SplitVJP.apply(x, forward)
    with torch.no_grad():
        y.mul_(0.0)  # our own memory, not that of jax
    y.sum().backward()
    torch.testing.assert_close(x.grad, 3 * x.detach() ** 2)


@every_mode
def test_awkward_cotangents(operator: Callable[[Tensor], Tensor]) -> None:
    """Expanded, transposed and strided cotangents give the same as a plain copy of them."""
    x = some_x(4, 4)
    for g in (
        torch.tensor(2.0, dtype=torch.float64).expand(4, 4),
        torch.randn(4, 4, dtype=torch.float64).T,
        torch.randn(4, 8, dtype=torch.float64)[:, ::2],
    ):
        (got,) = torch.autograd.grad(operator(x), x, g)
        torch.testing.assert_close(got, 3 * x.detach() ** 2 * g)


@every_mode
def test_non_contiguous_x(operator: Callable[[Tensor], Tensor]) -> None:
    """A transposed or sliced x is as good as a contiguous one."""
    base = some_x(6, 8)
    for x in (base.T, base[::2, 1::3]):
        (got,) = torch.autograd.grad(operator(x).sum(), base)
        (expected,) = torch.autograd.grad((x**3).sum(), base)
        torch.testing.assert_close(got, expected)


@every_mode
def test_graph_is_freed_and_kept_by_torchs_rules(operator: Callable[[Tensor], Tensor]) -> None:
    """Two backwards need retain_graph, and accumulate exactly twice the gradient."""
    x = some_x()
    y = operator(x).sum()
    y.backward(retain_graph=True)
    y.backward()
    torch.testing.assert_close(x.grad, 6 * x.detach() ** 2)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


# ---- not to carry over: silently wrong numbers ---------------------------------------------------


@every_mode
def test_second_derivative_is_refused(operator: Callable[[Tensor], Tensor]) -> None:
    """A second derivative raises; upstream gave 288 for 480 (y = x^3, L = sum y^2, x = 2)."""
    x = torch.tensor([[2.0]], dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad((operator(x) ** 2).sum(), x, create_graph=True)
    assert g.item() == 2 * 8 * 12
    with pytest.raises(HigherOrderError, match="second derivative"):
        torch.autograd.grad(g.sum(), x)


def test_second_derivative_is_refused_where_once_differentiable_is_silent() -> None:
    """Mixed losses, in which part of the second derivative is torch's own, raise as well."""
    x = torch.tensor([[2.0]], dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad((vjp_mode(x) * x**2).sum(), x, create_graph=True)
    with pytest.raises(HigherOrderError):
        torch.autograd.grad(g.sum(), x)


@every_mode
def test_first_derivative_with_create_graph_is_right(
    operator: Callable[[Tensor], Tensor],
) -> None:
    """create_graph=True alone is no offence."""
    x = some_x()
    (g,) = torch.autograd.grad(operator(x).sum(), x, create_graph=True)
    torch.testing.assert_close(g.detach(), 3 * x.detach() ** 2)


def test_transposed_jacobian_is_refused() -> None:
    """(batch, in, out) is not reshaped into (batch, out, in)."""

    def transposed(x: Array) -> Array:
        return np.ones((len(x), 3, 2))

    y = Physics.apply(some_x(), lambda x: x[:, :2], transposed)
    with pytest.raises(ContractError, match="transposed") as caught:
        y.sum().backward()
    assert caught.value.expected == (4, 2, 3)
    assert caught.value.got == (4, 3, 2)


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (lambda x: x[:2], "wrong batch"),
        (lambda x: x.sum(), "no batch at all"),
        (lambda x: x[:, 0], "(B,) would broadcast against (B, 1)"),
        (lambda x: x[None], "a leading axis too many"),
    ],
)
def test_wrong_shape_of_y_is_refused(result: Callable[[Array], Array], why: str) -> None:
    """A result without one row for each row of x never gets as far as a loss."""
    with pytest.raises(ContractError, match="expected \\(batch, out\\)") as caught:
        Physics_VJP.apply(some_x(), result, cube_vjp)
    assert caught.value.where.startswith("forward"), why


@pytest.mark.parametrize("operator", [Physics_VJP, Physics_SplitVJP])
def test_wrong_shape_of_dx_is_refused(operator: type) -> None:
    """A cotangent that torch would broadcast or sum is an error."""
    x = some_x()
    if operator is Physics_VJP:
        y = Physics_VJP.apply(x, cube, lambda x, g: g[:1])
    else:
        y = Physics_SplitVJP.apply(x, lambda x: (x**3, lambda g: (g[:1],)))
    with pytest.raises(ContractError, match="cotangent of x"):
        y.sum().backward()


@pytest.mark.parametrize("operator", [vjp_mode, split_mode])
def test_change_of_x_in_place_is_noticed(operator: Callable[[Tensor], Tensor]) -> None:
    """An in-place edit of x between forward and backward raises (upstream: 10 for 2)."""
    x = some_x()
    inner = x * 1
    y = operator(inner)
    with torch.no_grad():
        inner.mul_(5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every_mode
def test_solver_cannot_reach_torchs_memory(operator: Callable[[Tensor], Tensor]) -> None:
    """Bare functions may write to what they are given: it is theirs alone."""
    x = some_x()
    before = x.detach().clone()
    g = torch.ones_like(before)

    def vandal(x: Array, *rest: Array) -> Array:
        result = 3 * x**2 * rest[0] if rest else x**3
        for array in (x, *rest):
            array[:] = np.nan
        return result

    torch.autograd.grad(Physics_VJP.apply(x, vandal, vandal), x, g)
    torch.testing.assert_close(x.detach(), before)
    torch.testing.assert_close(g, torch.ones_like(before))
    assert operator(x).isfinite().all()


def test_reused_buffer_does_not_change_earlier_results() -> None:
    """A solver that returns the same array each time does not spoil what torch holds."""
    buffer = np.zeros((100, 100))

    def forward(x: Array) -> Array:
        buffer[:] = x**3
        return buffer

    first = Physics_VJP.apply(torch.full((100, 100), 2.0, dtype=torch.float64), forward, cube_vjp)
    Physics_VJP.apply(torch.full((100, 100), 3.0, dtype=torch.float64), forward, cube_vjp)
    assert (first == 8).all()


def test_result_that_the_pullback_reads_is_not_shared_with_torch() -> None:
    """An in-place edit of y cannot reach the array that the pullback closed over."""

    def forward(x: Array) -> tuple[Array, Callable[[Array], tuple[Array]]]:
        y = np.exp(x)
        return y, lambda g: (g * y,)

    x = torch.zeros(100, 100, dtype=torch.float64, requires_grad=True)
    y = Physics_SplitVJP.apply(x, forward)
    with torch.no_grad():
        y.mul_(5.0)
    y.sum().backward()
    assert (x.grad == 1.0).all()


def test_numpy_args_are_private_to_the_call() -> None:
    """A loader that reuses its arrays between forward and backward changes nothing."""
    x = some_x()
    scale = np.full(3, 2.0)
    y = Physics_VJP.apply(x, lambda x, s: x * s, lambda x, g, s: g * s, [scale])
    scale[:] = 100.0
    y.sum().backward()
    assert (x.grad == 2.0).all()


def test_tensor_args_changed_in_place_are_noticed() -> None:
    """The version counter of torch watches the args as well."""
    x = some_x()
    scale = torch.full((3,), 2.0, dtype=torch.float64)
    y = Physics_VJP.apply(x, lambda x, s: x * s, lambda x, g, s: g * s, [scale])
    scale.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_complex_result_is_refused() -> None:
    """The imaginary part is not dropped in silence, in y or in dx."""
    with pytest.raises(ContractError, match="complex128"):
        Physics_VJP.apply(some_x(), lambda x: x * 1j, cube_vjp)
    y = Physics_VJP.apply(some_x(), cube, lambda x, g: g * 1j)
    with pytest.raises(ContractError, match="complex128"):
        y.sum().backward()


def test_overflow_in_the_cast_is_refused() -> None:
    """A float64 result of 1e39 does not become inf in float32."""
    with pytest.raises(ContractError, match="too large for float32"):
        Physics_VJP.apply(
            some_x(dtype=torch.float32), lambda x: x.astype(np.float64) * 0 + 1e39, cube_vjp
        )


def test_integer_x_is_refused() -> None:
    """Results for an integer x would be cut off."""
    with pytest.raises(InputError, match="int64"):
        Physics_VJP.apply(torch.ones(2, 3, dtype=torch.int64), cube, cube_vjp)


def test_arg_that_requires_grad_gets_one_warning() -> None:
    """Bare functions give args no gradient, and say so once."""
    x = some_x()
    scale = torch.ones(3, dtype=torch.float64, requires_grad=True)

    def scaled(x: Array, s: Array) -> Array:
        return x * s

    with pytest.warns(UserWarning, match=r"scaled: args\[0\] requires grad"):
        y = Physics_VJP.apply(x, scaled, lambda x, g, s: g * s, [scale])
    y.sum().backward()
    assert scale.grad is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Physics_VJP.apply(x, scaled, lambda x, g, s: g * s, [scale])


# ---- limits that are gone ------------------------------------------------------------------------


@every_mode
def test_one_dimensional_x(operator: Callable[[Tensor], Tensor]) -> None:
    """An x of shape (batch,) works in vjp and split mode as before, and in jacobian mode too."""
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    flat = operator is jacobian_mode
    y = Physics.apply(x, cube, lambda x: 3 * x**2) if flat else operator(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, 3 * x.detach() ** 2)


@every_mode
def test_empty_batch(operator: Callable[[Tensor], Tensor]) -> None:
    """No rows in, no rows out, no rows of gradient."""
    x = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    y = operator(x)
    y.sum().backward()
    assert (y.shape, x.grad.shape) == ((0, 3), (0, 3))


def test_pullback_dies_with_the_graph() -> None:
    """Backward frees what the pullback holds, though y lives on; so does dropping the graph."""

    class Residual:
        pass

    def forward(x: Array) -> tuple[Array, Callable[[Array], tuple[Array]]]:
        residual = Residual()
        alive.append(weakref.ref(residual))
        return x**3, lambda g: (3 * x**2 * g, residual)[:1]

    alive: list[weakref.ref[Residual]] = []
    x = some_x()
    y = Physics_SplitVJP.apply(x, forward)
    gc.collect()
    assert alive[0]() is not None
    y.sum().backward()
    assert alive[0]() is None
    y = Physics_SplitVJP.apply(x, forward)
    del y
    assert alive[1]() is None


@every_mode
def test_result_goes_to_the_device_of_x(
    operator: Callable[[Tensor], Tensor],
) -> None:
    """No global device: what x is on is what y and the gradient are on."""
    x = some_x()
    y = operator(x)
    y.sum().backward()
    assert (y.device, x.grad.device) == (x.device, x.device)


def test_error_of_the_solver_says_which_solver() -> None:
    """An exception inside a solver keeps its type and gains a note."""

    def explode(x: Array) -> Array:
        raise ZeroDivisionError("no flow")

    with pytest.raises(ZeroDivisionError, match="no flow") as caught:
        Physics_VJP.apply(some_x(), explode, cube_vjp)
    assert "raised by explode in its forward" in caught.value.__notes__[0]


def test_functions_of_modules_pickle() -> None:
    """The faces hold nothing that does not pickle or copy."""
    assert pickle.loads(pickle.dumps(Physics_VJP)).apply is Physics_VJP.apply
    assert copy.deepcopy(Physics).apply is Physics.apply
