"""The solver ``heat1d``, in split_vjp mode: forward returns the result *and* its pullback.

The mode of choice where the way back needs what the way out has computed; here the factors of the
matrices. The pullback closes over this call's own `Solution`, never over anything that a later call
could change: so it may be kept, called again, or run in another thread.
"""

from collections.abc import Callable
from typing import Unpack

import numpy as np

from adeptml_heat1d.rod import Options, Rod
from adeptml_heat1d.rows import Float, Solution

__all__ = ["example", "forward"]

Pullback = Callable[[Float], tuple[Float, Float, Float, Float]]


def forward(
    x: Float, k: Float, q: Float, T_ext: Float, **options: Unpack[Options]
) -> tuple[Float, Pullback]:
    """Solve the heat equation up to time t.

    Parameters
    ----------
    x : ndarray, shape (batch, n), float64 or float32, K
        Initial temperature of each cell.
    k : ndarray, shape (batch, n) or (n,), W/m/K
        Conductivity of each cell, positive.
    q : ndarray, shape (batch, n) or (n,), W/m^3
        Heat source in each cell.
    T_ext : ndarray, shape (batch, 2) or (2,), K
        Ambient temperature, left and right.
    **options
        ``length`` m, ``rho_c`` J/m^3/K, ``h_left``, ``h_right`` W/m^2/K, ``t`` s, ``poles``: see
        `adeptml_heat1d.rod.Rod`.

    Returns
    -------
    T : ndarray, shape (batch, n), dtype of x, K
        Temperature at time t. A sample with a NaN or an infinity in x, q or T_ext is all NaN.
    pullback : callable
        ``pullback(grad_output) -> (grad_x, grad_k, grad_q, grad_T_ext)``, each in the shape of what
        it belongs to; that of a shared arg is summed over the batch. Linear:
        ``pullback(a * g) == a * pullback(g)`` to rounding.

    Raises
    ------
    SampleError
        Where k is not positive and finite.
    InputError
        Where the shapes disagree.
    ConfigError
        For an option out of bounds.

    Examples
    --------
    >>> T0, k, q = np.zeros((1, 3)), np.ones(3), np.zeros(3)
    >>> T, pullback = forward(T0, k, q, np.array([1.0, 1.0]), t=0.1)
    >>> T.round(3)
    array([[0.72 , 0.467, 0.72 ]])
    >>> [gradient.shape for gradient in pullback(np.ones((1, 3)))]
    [(1, 3), (3,), (3,), (2,)]
    """
    solution = Solution(Rod(**options), x, k, q, T_ext, like=x)
    return solution.temperature(), solution.pullback


def example(
    rng: np.random.Generator, batch: int, **options: Unpack[Options]
) -> tuple[Float, Float, Float, Float]:
    """Draw inputs that fit the options: a rod whose heat has spread some way at time t.

    Parameters
    ----------
    rng : numpy.random.Generator
    batch : int
    **options
        As of `forward`.

    Returns
    -------
    x, k, q, T_ext : ndarray, shapes (batch, 16) three times and (batch, 2), float64
    """
    rod, n = Rod(**options), 16
    t = rod.t or 1.0
    diffusivity = 0.03 * rod.length**2 / t  # exp(-0.03 pi^2) = 0.74: half way, nothing has died out
    T0 = rng.normal(300.0, 10.0, (batch, n))
    k = rod.rho_c * diffusivity * rng.lognormal(0.0, 0.5, (batch, n))
    q = rod.rho_c / t * rng.normal(0.0, 10.0, (batch, n))
    T_ext = rng.normal(300.0, 10.0, (batch, 2))
    return T0, k, q, T_ext
