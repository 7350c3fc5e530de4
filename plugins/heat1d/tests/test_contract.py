"""What adeptml relies on: dtypes, memory, rows, errors. The same for all three solvers."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adeptml_core.errors import ConfigError, InputError, SampleError
from adeptml_heat1d import conductivity, propagator, solver

Pullback = Callable[[NDArray], tuple[NDArray, ...]]
Inputs = tuple[NDArray, ...]

MODULES = {
    "heat1d": solver,
    "heat1d-conductivity": conductivity,
    "heat1d-propagator": propagator,
}
BATCHES = [1, 3, 40]  # on either side of the width where the kind of sweep changes


@pytest.fixture(params=MODULES.values(), ids=MODULES)
def module(request: pytest.FixtureRequest) -> ModuleType:
    """Return the module of each solver."""
    return request.param


def linearize(module: ModuleType, *inputs: NDArray, **options: float) -> tuple[NDArray, Pullback]:
    """Return the result and a pullback, whatever the mode; a Jacobian is its own pullback."""
    if module is solver:
        return solver.forward(*inputs, **options)
    y = module.forward(*inputs, **options)
    if module is conductivity:
        x, *args = inputs
        return y, lambda g: conductivity.vjp(x, g, *args, **options)
    return y, lambda g: (propagator.jacobian(*inputs, **options),)


def frozen(*arrays: NDArray) -> Inputs:
    """Return read-only copies, as core hands them over."""
    copies = tuple(np.array(array, order="C") for array in arrays)
    for copy in copies:
        copy.setflags(write=False)
    return copies


def everything(module: ModuleType, inputs: Inputs, g: NDArray, **options: float) -> list[NDArray]:
    """Return the result and all derivatives."""
    y, pullback = linearize(module, *inputs, **options)
    return [y, *pullback(g)]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("t", [0.0, 0.7])
def test_results_are_fresh_and_inputs_untouched(
    module: ModuleType, t: float, batch: int, dtype: type, rng: np.random.Generator
) -> None:
    """Results have x's dtype, own their memory, are writeable, and share none of it."""
    inputs = frozen(*(a.astype(dtype) for a in module.example(rng, batch, t=t)))
    (g,) = frozen(rng.normal(size=(batch, 16)).astype(dtype))
    before = frozen(*inputs, g)
    y, pullback = linearize(module, *inputs, t=t)
    results = [y, *pullback(g), *pullback(g)]
    for result in results:
        assert result.dtype == dtype
        assert result.flags.c_contiguous
        assert result.flags.owndata
        assert result.flags.writeable
        assert np.isfinite(result).all()
    everyone = [*results, *inputs, g]
    for i, first in enumerate(results):
        assert not any(np.shares_memory(first, other) for other in everyone[i + 1 :])
    for array, copy in zip((*inputs, g), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_float32_is_float64_rounded(module: ModuleType, rng: np.random.Generator) -> None:
    """The arithmetic is in float64: only the inputs and the results are rounded to float32."""
    single = frozen(*(a.astype(np.float32) for a in module.example(rng, 3)))
    double = frozen(*(a.astype(np.float64) for a in single))
    g = rng.normal(size=(3, 16)).astype(np.float32)
    for got, expected in zip(
        everything(module, single, g), everything(module, double, g.astype(float)), strict=True
    ):
        np.testing.assert_array_equal(got, expected.astype(np.float32))


def test_integer_x_is_not_truncated() -> None:
    """A direct call with whole numbers computes in float64 instead of cutting the result."""
    T0 = np.array([[0, 100]])
    T = propagator.forward(T0, np.ones(2), np.zeros(2), np.zeros(2), t=0.1)
    assert T.dtype == np.float64
    assert (np.round(T) != T).all()


@pytest.mark.parametrize("batch", BATCHES)
def test_rows_are_independent(module: ModuleType, batch: int, rng: np.random.Generator) -> None:
    """A sample has the same result and derivatives alone, in company, and in another place."""
    inputs, g = module.example(rng, batch), rng.normal(size=(batch, 16))
    together = everything(module, inputs, g)
    order = rng.permutation(batch)
    permuted = everything(module, tuple(a[order] if a.ndim == 2 else a for a in inputs), g[order])
    last = everything(module, tuple(a[-1:] if a.ndim == 2 else a for a in inputs), g[-1:])
    for one, many, mixed in zip(last, together, permuted, strict=True):
        size = np.abs(many).max()
        np.testing.assert_allclose(one[0], many[-1], rtol=0, atol=1e-13 * size)
        np.testing.assert_allclose(mixed, many[order], rtol=0, atol=1e-13 * size)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("batch", [3, 40])
@pytest.mark.parametrize("spoilt", [0, 2, 3])
def test_non_finite_sample_spoils_itself_alone(
    spoilt: int, batch: int, bad: float, rng: np.random.Generator
) -> None:
    """NaN or infinity in T0, q or T_ext makes that row NaN, and its k-gradient; no other number."""
    inputs, g = solver.example(rng, batch), rng.normal(size=(batch, 16))
    healthy = everything(solver, inputs, g)
    inputs[spoilt][1, -1] = bad
    T, grad_T0, grad_k, grad_q, grad_T_ext = everything(solver, inputs, g)
    assert np.isnan(T[1]).all()
    assert np.isnan(grad_k[1]).all()
    others = np.arange(batch) != 1
    for got, expected in zip((T, grad_T0, grad_k, grad_q, grad_T_ext), healthy, strict=True):
        np.testing.assert_array_equal(got[others], expected[others])


@pytest.mark.parametrize("batch", [3, 40])
def test_non_finite_cotangent_spoils_itself_alone(batch: int, rng: np.random.Generator) -> None:
    """A loss that is NaN for one sample leaves the gradients of the others alone."""
    inputs, g = solver.example(rng, batch), rng.normal(size=(batch, 16))
    healthy = everything(solver, inputs, g)
    g[1, 3] = np.nan
    T, *gradients = everything(solver, inputs, g)
    np.testing.assert_array_equal(T, healthy[0])
    others = np.arange(batch) != 1
    for got, expected in zip(gradients, healthy[1:], strict=True):
        assert np.isnan(got[1]).all()
        np.testing.assert_array_equal(got[others], expected[others])


def test_non_finite_shared_arg_spoils_everyone(rng: np.random.Generator) -> None:
    """What all samples share, all samples suffer from; nothing finite is made up."""
    T0, k, q, T_ext = solver.example(rng, 3)
    q[0, 5] = np.nan
    T, _, grad_k, _, _ = everything(solver, (T0, k[0], q[0], T_ext), np.ones((3, 16)))
    assert np.isnan(T).all()
    assert np.isnan(grad_k).all()


@pytest.mark.parametrize("t", [0.0, 1.0])
@pytest.mark.parametrize("value", [0.0, -0.25, np.nan, np.inf, -np.inf])
def test_bad_conductivity_names_row_cell_value_and_unit(
    value: float, t: float, rng: np.random.Generator
) -> None:
    """The first bad sample is refused, in words and in fields, at t = 0 as well."""
    T0, k, q, T_ext = solver.example(rng, 4)
    k[2, 3] = value
    for call in (
        lambda: solver.forward(T0, k, q, T_ext, t=t),
        lambda: conductivity.forward(k, T0, q, T_ext, t=t),
        lambda: conductivity.vjp(k, T0, T0, q, T_ext, t=t),
    ):
        with pytest.raises(SampleError) as caught:
            call()
        assert caught.value.row == 2
        assert caught.value.reason.startswith(f"k[3] = {value:g} W/m/K: a conductivity is positive")


def test_bad_shared_conductivity_says_that_it_is_shared(rng: np.random.Generator) -> None:
    """It is reported at row 0, and the text says that it is everybody's."""
    T0, k, q, T_ext = propagator.example(rng, 4)
    k[3] = -1e-5
    for call in (solver.forward, propagator.forward, propagator.jacobian):
        with pytest.raises(SampleError) as caught:
            call(T0, k, q, T_ext)
        assert caught.value.row == 0
        assert caught.value.reason.startswith("k[3] = -1e-05 W/m/K, shared by the whole batch: ")


def test_bad_option_is_a_config_error(module: ModuleType, rng: np.random.Generator) -> None:
    """Options are checked in direct calls, too."""
    inputs = module.example(rng, 2)
    with pytest.raises(ConfigError, match=r"option rho_c = 0\.0 J/m\^3/K: must be positive"):
        module.forward(*inputs, rho_c=0.0)


def wrong_shapes() -> Iterator[tuple[str, int, tuple[int, ...]]]:
    yield "k", 1, (5,)
    yield "k", 1, (1, 16)  # NumPy would spread it over the batch
    yield "q", 2, (1,)
    yield "q", 2, ()
    yield "T_ext", 3, (1,)
    yield "T_ext", 3, (3, 1)


@pytest.mark.parametrize(("name", "position", "shape"), list(wrong_shapes()))
def test_wrong_shape_is_an_input_error(
    name: str, position: int, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    """Nothing is broadcast that the contract does not allow."""
    inputs = list(solver.example(rng, 3))
    inputs[position] = np.ones(shape)
    with pytest.raises(InputError) as caught:
        solver.forward(*inputs)
    assert str(caught.value).startswith(f"{name} has shape {shape}; it must be (3, ")


@pytest.mark.parametrize("function", [propagator.forward, propagator.jacobian])
def test_the_propagator_takes_one_material(function: Callable) -> None:
    """As many materials as cells must not be taken for those of the unit impulses."""
    square = np.array([[1.0, 2.0], [30.0, 4.0]])
    with pytest.raises(InputError, match=r"k has shape \(2, 2\); it must be \(2,\)"):
        function(np.ones((2, 2)), square, np.zeros(2), np.ones(2), t=0.1)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_an_overflow_spoils_its_own_sample_alone(
    position: int, batch: int, rng: np.random.Generator
) -> None:
    """A number that is finite, but not what is made of it."""
    inputs = solver.example(rng, batch)
    expected, pullback = solver.forward(*inputs)
    g = rng.normal(size=expected.shape)
    gradients = pullback(g)
    inputs[position][-1, 0] = 1e308
    T, pullback = solver.forward(*inputs)
    assert np.isnan(T[-1]).all()
    np.testing.assert_allclose(T[:-1], expected[:-1], rtol=1e-12)
    for got, wanted in zip(pullback(g), gradients, strict=True):
        np.testing.assert_allclose(got[:-1], wanted[:-1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("poles", [7, 14.0, "14"])
def test_a_count_of_poles_that_there_is_not_is_a_config_error(
    poles: Any, rng: np.random.Generator
) -> None:
    """At t = 0 too, where no poles are needed."""
    with pytest.raises(ConfigError, match=r"option poles = .* choose one of 8, 10, 12, 14, 16"):
        solver.forward(*solver.example(rng, 2), poles=poles, t=0.0)


def test_a_rod_without_cells_is_an_input_error(module: ModuleType) -> None:
    """A selection that came out empty must not end as a division by zero."""
    shared_k = module is propagator
    shapes = [(3, 0), (0,) if shared_k else (3, 0), (3, 0), (3, 2)]
    with pytest.raises(InputError, match=r"the rod has no cells: .* n = 0"):
        module.forward(*map(np.ones, shapes))


def test_wrong_cotangent_is_an_input_error(rng: np.random.Generator) -> None:
    """A cotangent has the shape of the temperature."""
    _, pullback = solver.forward(*solver.example(rng, 3))
    with pytest.raises(InputError, match=r"grad_output has shape \(1, 16\); it must be \(3, 16\)"):
        pullback(np.ones((1, 16)))


@pytest.mark.parametrize("batch", BATCHES)
def test_no_time_is_the_identity(batch: int, rng: np.random.Generator) -> None:
    """At t = 0 the temperature is a copy, its pullback the identity, bit for bit."""
    inputs, g = solver.example(rng, batch), rng.normal(size=(batch, 16))
    T, grad_T0, *others = everything(solver, inputs, g, t=0.0)
    np.testing.assert_array_equal(T, inputs[0])
    np.testing.assert_array_equal(grad_T0, g)
    for gradient, arg in zip(others, inputs[1:], strict=True):
        np.testing.assert_array_equal(gradient, np.zeros(arg.shape))
    J = propagator.jacobian(inputs[0], inputs[1][0], *inputs[2:], t=0.0)
    np.testing.assert_array_equal(J, np.broadcast_to(np.eye(16), J.shape))


def test_no_time_spreads_a_shared_state(rng: np.random.Generator) -> None:
    """In vjp mode T0 may be shared: at t = 0 as well, each sample has its own copy."""
    k, T0, q, T_ext = conductivity.example(rng, 3)
    T = conductivity.forward(k, T0[0], q, T_ext, t=0.0)
    np.testing.assert_array_equal(T, np.broadcast_to(T0[0], (3, 16)))
    grad_T0 = conductivity.vjp(k, np.ones((3, 16)), T0[0], q, T_ext, t=0.0)[1]
    np.testing.assert_array_equal(grad_T0, np.full(16, 3.0))


@pytest.mark.parametrize("batch", BATCHES)
def test_pullbacks_may_be_kept_and_repeated(batch: int, rng: np.random.Generator) -> None:
    """Each pullback belongs to its own forward, in any order and any number of times."""
    g = rng.normal(size=(batch, 16))
    runs = [solver.forward(*solver.example(rng, batch), t=t)[1] for t in (0.5, 2.0)]
    first = [pullback(g) for pullback in runs]
    again = [pullback(g) for pullback in reversed(runs)][::-1]
    for one, two in zip(first, again, strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0][0], first[1][0])


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shared", [False, True])
def test_pullback_does_not_read_the_callers_arrays(
    shared: bool, batch: int, rng: np.random.Generator
) -> None:
    """Core promises that inputs stay as they are; a direct caller may reuse them all the same."""
    T0, *args = solver.example(rng, batch)
    inputs = (T0, *(arg[0].copy() for arg in args)) if shared else (T0, *args)
    g = rng.normal(size=(batch, 16))
    _, pullback = solver.forward(*inputs)
    before = pullback(g)
    for array in inputs:
        array[:] = np.nan
    for got, expected in zip(pullback(g), before, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("batch", BATCHES)
def test_one_pullback_serves_many_threads(batch: int, rng: np.random.Generator) -> None:
    """Factors are only read after they are made."""
    _, pullback = solver.forward(*solver.example(rng, batch))
    cotangents = rng.normal(size=(24, batch, 16))
    expected = [pullback(g) for g in cotangents]
    with ThreadPoolExecutor(4) as threads:
        got = list(threads.map(pullback, cotangents))
    for a, b in zip(got, expected, strict=True):
        for one, two in zip(a, b, strict=True):
            np.testing.assert_array_equal(one, two)


def test_error_state_of_numpy_is_left_alone(module: ModuleType, rng: np.random.Generator) -> None:
    """What the user has set for floating-point errors is so afterwards."""
    with np.errstate(all="raise", under="ignore"):
        before = np.geterr()
        everything(module, module.example(rng, 2), np.ones((2, 16)))
        assert np.geterr() == before


def test_empty_batch(module: ModuleType, rng: np.random.Generator) -> None:
    """No samples in, none out, and zero for what they would have shared."""
    x, *args = module.example(rng, 1)
    args = [arg[0] if arg.ndim == 2 else arg for arg in args]
    y, *gradients = everything(module, (x[:0], *args), np.ones((0, 16)))
    assert y.shape == (0, 16)
    for gradient, arg in zip(gradients[1:], args, strict=False):
        np.testing.assert_array_equal(gradient, np.zeros(arg.shape))


@pytest.mark.parametrize("t", [0.0, 1e-3, 3600.0])
def test_examples_are_valid_varied_and_alive(
    module: ModuleType, t: float, rng: np.random.Generator
) -> None:
    """They fit the options: at time t the initial state is neither untouched nor forgotten."""
    options = {"t": t, "length": 0.2, "rho_c": 2e6, "h_left": 10.0}
    inputs = module.example(rng, 5, **options)
    assert all(np.ptp(array) > 0 for array in inputs)
    y, pullback = linearize(module, *inputs, **options)
    assert np.isfinite(y).all()
    if t > 0:
        P = propagator.jacobian(*propagator.example(rng, 1, **options), **options)[0]
        assert 0.1 < np.abs(P - np.diag(np.diag(P))).max() < 0.9
        gradients = pullback(rng.normal(size=(5, 16)))
        assert all(np.abs(gradient).max() > 0 for gradient in gradients)
