"""The solution against what is known exactly of it.

Temperatures here are of order 1, so that absolute tolerances are relative ones.
"""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from adeptml_heat1d.propagator import jacobian
from adeptml_heat1d.solver import forward

INSULATED = {"h_left": 0.0, "h_right": 0.0}
SECOND_ORDER = (1.95, 2.05)  # what discretisation in space has, from 32 cells on


def solve(T0, k=1.0, q=0.0, T_ext=(0.0, 0.0), **options) -> NDArray:
    """Solve for one sample."""
    fields = (np.broadcast_to(np.asarray(field, float), np.shape(T0)) for field in (k, q))
    return forward(np.asarray(T0, float)[None], *fields, np.asarray(T_ext, float), **options)[0][0]


def centres(n: int, length: float = 1.0) -> NDArray:
    return (np.arange(n) + 0.5) * length / n


def orders(error_at: Callable[[int], float]) -> NDArray:
    """Return the observed orders of convergence, from 32 to 512 cells."""
    errors = [error_at(n) for n in (32, 64, 128, 256, 512)]
    return np.log2(np.divide(errors[:-1], errors[1:]))


def assert_second_order(error_at: Callable[[int], float]) -> None:
    low, high = SECOND_ORDER
    observed = orders(error_at)
    assert ((observed > low) & (observed < high)).all(), observed


@pytest.mark.parametrize("mode", [1, 2])
def test_fourier_mode_converges_with_order_two(mode: int) -> None:
    """sin(m pi x / L) decays as exp(-a (m pi / L)^2 t) between ends at temperature 0."""
    length, rho_c, k, t = 2.0, 3.0, 1.5, 0.2
    wave = mode * np.pi / length

    def error(n: int) -> float:
        T0 = np.sin(wave * centres(n, length))
        exact = T0 * np.exp(-k / rho_c * wave**2 * t)
        return np.abs(solve(T0, k, length=length, rho_c=rho_c, t=t) - exact).max()

    assert_second_order(error)


@pytest.mark.parametrize("mode", [1, 5, 20, 63])
@pytest.mark.parametrize(
    ("ends", "shape"),
    [({}, np.sin), (INSULATED, np.cos)],
    ids=["fixed", "insulated"],
)
@pytest.mark.parametrize("decays", [0.0, 0.1, 1.0, 10.0])
def test_discrete_eigenmode_decays_exactly(
    mode: int, ends: dict[str, float], shape: np.ufunc, decays: float
) -> None:
    """The matrix has these eigenvectors; on them nothing but the error in time is left."""
    n, k, rho_c = 64, 0.8, 1.7
    T0 = shape(mode * np.pi * centres(n))
    rate = 4 * k * n**2 / rho_c * np.sin(mode * np.pi / (2 * n)) ** 2  # 1/s
    T = solve(T0, k, rho_c=rho_c, t=decays / rate, **ends)
    np.testing.assert_allclose(T, T0 * np.exp(-decays), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [256, 1024])
def test_roundoff_does_not_grow_with_the_grid(n: int) -> None:
    """On 1024 cells t k / (rho_c dx^2) is 1e5; what an assembled matrix would lose stays ours."""
    T0 = np.cos(np.pi * centres(n))
    t = 0.1
    rate = 4 * n**2 * np.sin(np.pi / (2 * n)) ** 2
    np.testing.assert_allclose(
        solve(T0, t=t, **INSULATED), T0 * np.exp(-rate * t), rtol=0, atol=1e-12
    )


def test_manufactured_steady_state_with_films() -> None:
    """With k = 1 + x and films at both ends, the source of sin(2x) + x^2 leads to it."""
    h_left, h_right = 3.0, 0.7

    def exact(x):
        return np.sin(2 * x) + x**2

    def slope(x):
        return 2 * np.cos(2 * x) + 2 * x

    def source(x):  # -(k T')'
        return -slope(x) - (1 + x) * (2 - 4 * np.sin(2 * x))

    T_ext = (exact(0.0) - slope(0.0) / h_left, exact(1.0) + 2 * slope(1.0) / h_right)

    def error(n: int) -> float:
        x = centres(n)
        steady = solve(np.zeros(n), 1 + x, source(x), T_ext, t=1e3, h_left=h_left, h_right=h_right)
        return np.abs(steady - exact(x)).max()

    assert_second_order(error)


def test_manufactured_transient_with_source_and_films() -> None:
    """A steady state plus the slowest mode between two films, cos(2x - 1) exp(-4 a t)."""
    k, rho_c, t = 0.6, 1.4, 0.3
    h = 2 * k * np.tan(1.0)  # the film with which that mode agrees

    def exact(x, t):
        return np.exp(x) + np.cos(2 * x - 1) * np.exp(-4 * k / rho_c * t)

    T_ext = (1 - k / h, np.e * (1 + k / h))  # of the steady state e^x

    def error(n: int) -> float:
        x = centres(n)
        T = solve(exact(x, 0.0), k, -k * np.exp(x), T_ext, rho_c=rho_c, t=t, h_left=h, h_right=h)
        return np.abs(T - exact(x, t)).max()

    assert_second_order(error)


def test_layered_wall_is_exact() -> None:
    """A jump of k between two cells costs nothing: the steady profile, linear in each layer."""
    n, k_left, k_right = 20, 50.0, 0.2
    x = centres(n)
    k = np.where(x < 0.5, k_left, k_right)
    flux = 100.0 / (0.5 / k_left + 0.5 / k_right)  # W/m^2
    exact = np.where(x < 0.5, 100 - flux * x / k_left, flux * (1 - x) / k_right)
    steady = solve(np.zeros(n), k, T_ext=(100.0, 0.0), t=1e6)
    # The error of r(0) = 1, 1e-13 at most, and some roundings, times 100 K.
    np.testing.assert_allclose(steady, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("t", [1e-3, 1.0, 1e3, 1e9])
@pytest.mark.parametrize("poles", [8, 10, 12, 14, 16])
def test_insulated_rod_keeps_its_energy(t: float, poles: int, rng: np.random.Generator) -> None:
    """Without source, the mean temperature stays, for any time and number of poles."""
    T0, k = rng.uniform(0, 1, 64), rng.lognormal(0.0, 1.0, 64)
    T = solve(T0, k, t=t, poles=poles, **INSULATED)
    assert T.mean() == pytest.approx(T0.mean(), abs=1e-12)


@pytest.mark.parametrize(("poles", "error"), [(8, 8e-7), (14, 2.5e-12), (16, 4e-13)])
def test_insulated_rod_gains_what_the_source_gives(
    poles: int, error: float, rng: np.random.Generator
) -> None:
    """The gain is t times the source, to the error of phi(0) (see test_poles)."""
    T0, k, q = rng.uniform(0, 1, 64), rng.lognormal(0.0, 1.0, 64), rng.uniform(0, 2, 64)
    T = solve(T0, k, q, t=0.5, rho_c=2.0, poles=poles, **INSULATED)
    gain = 0.5 / 2.0 * q.mean()
    assert T.mean() - T0.mean() == pytest.approx(gain, abs=error * gain + 1e-13)


@pytest.mark.parametrize("t", [1e-6, 1e-3, 0.1, 10.0])
def test_maximum_principle(t: float, rng: np.random.Generator) -> None:
    """No temperature leaves the range of the initial and the ambient ones."""
    k = rng.lognormal(0.0, 3.0, 64)
    T0 = rng.uniform(0, 1, 64)
    T = solve(T0, k, T_ext=(0.2, 0.9), t=t, h_left=5.0)
    low, high = T0.min(), T0.max()
    assert T.min() >= low - 1e-12
    assert T.max() <= high + 1e-12


def test_semigroup(options: dict[str, float], rng: np.random.Generator) -> None:
    """Going t and then s is going t + s."""
    k, q = rng.lognormal(0.0, 1.0, 40), rng.normal(size=40)
    T0, T_ext = rng.normal(size=40), (0.3, -0.4)
    t, s = 0.02, 0.05
    halfway = solve(T0, k, q, T_ext, **{**options, "t": t})
    twice = solve(halfway, k, q, T_ext, **{**options, "t": s})
    once = solve(T0, k, q, T_ext, **{**options, "t": t + s})
    np.testing.assert_allclose(twice, once, rtol=0, atol=1e-11)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_agrees_with_the_dense_exponential(
    n: int, options: dict[str, float], dense_solution: Callable, rng: np.random.Generator
) -> None:
    """Any rod, one cell included, agrees with SciPy's expm of the assembled matrix."""
    T0, q, T_ext = rng.normal(size=n), rng.normal(size=n), rng.normal(size=2)
    k = rng.lognormal(0.0, 1.0, n)
    expected = dense_solution(T0, k, q, T_ext, **options)
    np.testing.assert_allclose(solve(T0, k, q, T_ext, **options), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("poles", [8, 10, 12, 14, 16])
def test_error_of_each_number_of_poles(
    poles: int, dense_solution: Callable, rng: np.random.Generator
) -> None:
    """The matrix is symmetric, so the error in T0 is, in the 2-norm, that on the negative axis."""
    error = {8: 2.3e-8, 10: 2.7e-10, 12: 3.2e-12, 14: 5e-13, 16: 5e-13}[poles]  # 5e-13: roundings
    T0, k = rng.normal(size=12), rng.lognormal(size=12)
    T = solve(T0, k, t=0.01, poles=poles)
    exact = dense_solution(T0, k, np.zeros(12), np.zeros(2), t=0.01)
    assert np.linalg.norm(T - exact) < error * np.linalg.norm(T0)


def test_extreme_conductivities_stay_finite_and_right(rng: np.random.Generator) -> None:
    """Where k = 1e-8 W/m/K nothing moves in 1 s; where k = 1e8 all mixes; both may meet."""
    T0 = rng.uniform(0, 1, 64)
    np.testing.assert_allclose(solve(T0, 1e-8, **INSULATED), T0, rtol=0, atol=1e-3)
    np.testing.assert_allclose(solve(T0, 1e8, **INSULATED), T0.mean(), rtol=0, atol=1e-12)
    half_and_half = np.repeat([1e-8, 1e8], 32)
    T, pullback = forward(T0[None], half_and_half, np.zeros(64), np.zeros(2), **INSULATED)
    np.testing.assert_allclose(T[0, 32:], T0[32:].mean(), rtol=0, atol=1e-3)
    assert all(np.isfinite(gradient).all() for gradient in pullback(np.ones((1, 64))))


def test_film_tends_to_contact(rng: np.random.Generator) -> None:
    """A film of 1e12 W/m^2/K and none at all differ by 1e-12; one of 1e-12 and insulation too."""
    T0, k, T_ext = rng.uniform(0, 1, 16), rng.lognormal(size=16), (0.0, 1.0)
    for limit, near in ((np.inf, 1e12), (0.0, 1e-12)):
        at_limit = solve(T0, k, T_ext=T_ext, t=0.1, h_left=limit, h_right=limit)
        close = solve(T0, k, T_ext=T_ext, t=0.1, h_left=near, h_right=near)
        np.testing.assert_allclose(close, at_limit, rtol=0, atol=1e-9)


def test_memory_does_not_depend_on_time(rng: np.random.Generator) -> None:
    """A million times as long costs not a byte more: nothing steps, nothing is checkpointed."""
    T0, k = rng.uniform(0, 1, (32, 64)), rng.lognormal(size=(32, 64))

    def peak(t: float) -> int:
        tracemalloc.start()
        _, pullback = forward(T0, k, np.zeros(64), np.zeros(2), t=t)
        pullback(T0)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(1.0)  # computes the poles
    assert peak(1e3) == pytest.approx(peak(1e-3), rel=0.01)


def test_propagator_is_a_symmetric_averaging(
    options: dict[str, float], rng: np.random.Generator
) -> None:
    """exp(-tK/M) is symmetric and not negative; each temperature is an average, or leaks away."""
    k = rng.lognormal(0.0, 1.0, 24)
    P = jacobian(np.zeros((1, 24)), k, np.zeros(24), np.zeros(2), **options)[0]
    np.testing.assert_allclose(P, P.T, rtol=0, atol=1e-13)
    assert P.min() > -1e-12
    assert P.sum(axis=1).max() < 1 + 1e-12
    if options["h_left"] == options["h_right"] == 0:
        np.testing.assert_allclose(P.sum(axis=1), 1, rtol=0, atol=1e-12)
