"""What the tests share: an independent solution to compare with, and rods to try."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import expm

from adeptml_heat1d.rod import Rod

ROD_ENDS = {
    "fixed": {"h_left": np.inf, "h_right": np.inf},
    "insulated": {"h_left": 0.0, "h_right": 0.0},
    "films": {"h_left": 2.0, "h_right": 0.3},
    "mixed": {"h_left": 0.0, "h_right": np.inf},
}


@pytest.fixture
def rng() -> np.random.Generator:
    """Return the same random numbers for every test."""
    return np.random.default_rng(0)


@pytest.fixture(params=ROD_ENDS.values(), ids=ROD_ENDS)
def options(request: pytest.FixtureRequest) -> dict[str, float]:
    """Return options with each kind of ends, none of them at its default."""
    return {"length": 1.3, "rho_c": 0.7, "t": 0.05, **request.param}


def _dense_solution(
    T0: NDArray, k: NDArray, q: NDArray, T_ext: NDArray, **options: float
) -> NDArray:
    rod, n = Rod(**options), len(T0)
    dx = rod.length / n
    resistances = dx / (2 * k)
    left, right = (1 / h if h else np.inf for h in (rod.h_left, rod.h_right))
    G = np.concatenate(
        [
            [1 / (left + resistances[0])],
            1 / (resistances[:-1] + resistances[1:]),
            [1 / (resistances[-1] + right)],
        ]
    )
    f = q * dx + G[0] * T_ext[0] * np.eye(n)[0] + G[-1] * T_ext[1] * np.eye(n)[-1]
    K = np.diag(G[:-1] + G[1:]) - np.diag(G[1:-1], 1) - np.diag(G[1:-1], -1)
    generator = np.block([[-K, f[:, None]], [np.zeros((1, n + 1))]])  # the last entry stays 1
    start = np.append(T0, 1.0)
    return (expm(generator * rod.t / (rod.rho_c * dx)) @ start)[:n]


@pytest.fixture
def dense_solution() -> Callable[..., NDArray]:
    """Return a solver for one sample that shares no line with ours: SciPy's dense exponential.

    The matrix is assembled, and takes complex arguments, for derivatives by the complex step.
    """
    return _dense_solution
