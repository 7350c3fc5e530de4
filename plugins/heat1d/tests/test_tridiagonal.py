"""The ladder factorisation and its two sweeps, against dense linear algebra."""

import numpy as np
import pytest

from adeptml_heat1d import tridiagonal
from adeptml_heat1d.poles import exponential_poles
from adeptml_heat1d.tridiagonal import BlockSweep, LadderSweep, factorise

KINDS = {"block": BlockSweep, "ladder": LadderSweep}
EPS = np.finfo(float).eps


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """Make `factorise` choose one kind of sweep whatever the width."""
    monkeypatch.setattr(tridiagonal, "NARROW", 10**9 if request.param == "block" else -1)
    return KINDS[request.param]


def assembled(G: np.ndarray, z: complex) -> np.ndarray:
    inner = G[1:-1]
    return np.diag(G[:-1] + G[1:] + z) - np.diag(inner, 1) - np.diag(inner, -1)


def complex_normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


@pytest.mark.parametrize("samples", [1, 5])
@pytest.mark.parametrize("n", [1, 2, 3, 17])
def test_solves_every_system(kind: type, n: int, samples: int, rng: np.random.Generator) -> None:
    """Each pole and sample gets the solution of its own system, shared matrix or not."""
    z, _ = exponential_poles(14)
    G = rng.lognormal(0.0, 2.0, (n + 1, samples))
    b = complex_normal(rng, n, len(z), 5)
    sweep = factorise(G, z, batch=5)
    assert isinstance(sweep, kind)
    x = sweep.solve(b.copy())
    for sample in range(5):
        for j, pole in enumerate(z):
            matrix = assembled(G[:, sample % samples], pole)
            expected = np.linalg.solve(matrix, b[:, j, sample])
            # np.linalg.solve loses eps * condition number, and |G / z| is up to 1e3 here.
            np.testing.assert_allclose(x[:, j, sample], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ["C", "F"])
def test_takes_both_memory_orders(kind: type, order: str, rng: np.random.Generator) -> None:
    """The memory order of the right-hand side is a matter of speed, not of the result."""
    z, _ = exponential_poles(8)
    b = complex_normal(rng, 4, len(z), 3)
    sweep = factorise(np.ones((5, 3)), z, batch=3)
    assert isinstance(sweep, kind)
    expected = sweep.solve(b.copy(order=sweep.order))
    np.testing.assert_array_equal(sweep.solve(np.array(b, order=order)), expected)


def test_factors_serve_many_solves(kind: type, rng: np.random.Generator) -> None:
    """A solve leaves the factors as they are."""
    z, _ = exponential_poles(14)
    sweep = factorise(np.ones((9, 2)), z, batch=2)
    assert isinstance(sweep, kind)
    b = complex_normal(rng, 8, len(z), 2)
    first, second = sweep.solve(b.copy()), sweep.solve(b.copy())
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("G", [1e-12, 1.0, 1e6, 1e12])
def test_no_digit_is_lost_to_a_good_conductor(kind: type, G: float) -> None:
    """Without ground at the ends a uniform right-hand side gives x = 1 / z for any conductance.

    The textbook's elimination subtracts numbers of size G to get one of size z, and would lose
    log10(G / z) digits: at G = 1e12, all but four.
    """
    n, (z, _) = 200, exponential_poles(14)
    conductances = np.full((n + 1, 1), G)
    conductances[[0, -1]] = 0
    sweep = factorise(conductances, z, batch=1)
    assert isinstance(sweep, kind)
    x = sweep.solve(np.ones((n, len(z), 1), dtype=complex))
    error = np.abs(x * z[:, None] - 1).max()
    assert error < 4 * n * EPS  # a few roundings for each of n steps, and no amplification


def test_kind_depends_on_the_width() -> None:
    """Narrow work goes to LAPACK, wide work to NumPy."""
    z, _ = exponential_poles(14)
    widest_narrow = tridiagonal.NARROW // len(z)
    G = np.ones((4, 1))
    assert isinstance(factorise(G, z, batch=widest_narrow), BlockSweep)
    assert isinstance(factorise(G, z, batch=widest_narrow + 1), LadderSweep)
