"""The solver ``heat1d-conductivity``, in vjp mode: the same rod seen from its material.

Here the conductivity is x, what a network upstream gives, and the initial state an arg. In vjp
mode ``vjp`` stands alone: it knows nothing of an earlier ``forward`` and solves again. That costs a
second solve, and buys a solver without any state between two calls. Where that is too dear, write
split_vjp (`adeptml_heat1d.solver`).
"""

from typing import Unpack

import numpy as np

from adeptml_heat1d import solver
from adeptml_heat1d.rod import Options, Rod
from adeptml_heat1d.rows import Float, Solution

__all__ = ["example", "forward", "vjp"]


def forward(x: Float, T0: Float, q: Float, T_ext: Float, **options: Unpack[Options]) -> Float:
    """Solve the heat equation up to time t.

    Parameters
    ----------
    x : ndarray, shape (batch, n), float64 or float32, W/m/K
        Conductivity of each cell, positive.
    T0 : ndarray, shape (batch, n) or (n,), K
        Initial temperature of each cell.
    q : ndarray, shape (batch, n) or (n,), W/m^3
        Heat source in each cell.
    T_ext : ndarray, shape (batch, 2) or (2,), K
        Ambient temperature, left and right.
    **options
        As of `adeptml_heat1d.solver.forward`.

    Returns
    -------
    ndarray, shape (batch, n), dtype of x, K
        Temperature at time t.

    Raises
    ------
    SampleError
        Where x is not positive and finite.
    ConfigError
        For an option out of bounds.

    Examples
    --------
    >>> k, T0, q = np.ones((1, 3)), np.zeros(3), np.zeros(3)
    >>> forward(k, T0, q, np.array([1.0, 1.0]), t=0.1).round(3)
    array([[0.72 , 0.467, 0.72 ]])
    """
    return _solve(x, T0, q, T_ext, options).temperature()


def vjp(
    x: Float,
    grad_output: Float,
    T0: Float,
    q: Float,
    T_ext: Float,
    **options: Unpack[Options],
) -> tuple[Float, Float, Float, Float]:
    """Carry the cotangent of `forward` back to all its inputs.

    Parameters
    ----------
    x, T0, q, T_ext : ndarray
        As of `forward`.
    grad_output : ndarray, shape (batch, n)
        Cotangent of the temperature at time t.
    **options
        As of `forward`.

    Returns
    -------
    grad_x, grad_T0, grad_q, grad_T_ext : ndarray, dtype of x
        Each in the shape of what it belongs to; that of a shared arg is summed over the batch.

    Raises
    ------
    SampleError, ConfigError
        As `forward`.
    """
    solution = _solve(x, T0, q, T_ext, options)
    grad_T0, grad_x, grad_q, grad_T_ext = solution.pullback(grad_output)
    return grad_x, grad_T0, grad_q, grad_T_ext


def _solve(x: Float, T0: Float, q: Float, T_ext: Float, options: Options) -> Solution:
    return Solution(Rod(**options), T0, x, q, T_ext, like=x)


def example(
    rng: np.random.Generator, batch: int, **options: Unpack[Options]
) -> tuple[Float, Float, Float, Float]:
    """Draw inputs that fit the options.

    Parameters
    ----------
    rng : numpy.random.Generator
    batch : int
    **options
        As of `forward`.

    Returns
    -------
    x, T0, q, T_ext : ndarray, shapes (batch, 16) three times and (batch, 2), float64
    """
    T0, k, q, T_ext = solver.example(rng, batch, **options)
    return k, T0, q, T_ext
