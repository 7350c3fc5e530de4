"""The solver ``heat1d-propagator``, in jacobian mode: the whole Jacobian, once for all samples.

For one material, given loads and time, the temperature is affine in the initial state,
``T(t) = P T0 + p``, and the Jacobian is the propagator ``P = exp(-t K / (rho_c dx))``: the same
for each sample. The mode is right where the Jacobian is small and cheap, or of interest by itself.
No arg is declared differentiable, so ``jacobian`` returns a plain array.
"""

from typing import Unpack

import numpy as np

from adeptml_heat1d import solver
from adeptml_heat1d.rod import Options, Rod
from adeptml_heat1d.rows import Float, Solution, require_shape

__all__ = ["example", "forward", "jacobian"]


def forward(x: Float, k: Float, q: Float, T_ext: Float, **options: Unpack[Options]) -> Float:
    """Solve the heat equation up to time t.

    Parameters
    ----------
    x : ndarray, shape (batch, n), float64 or float32, K
        Initial temperature of each cell.
    k : ndarray, shape (n,), W/m/K
        Conductivity of each cell, positive; shared by the batch.
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
        Where k is not positive and finite.
    InputError
        Where the shapes disagree.
    ConfigError
        For an option out of bounds.

    Examples
    --------
    >>> forward(np.ones((1, 3)), np.ones(3), np.zeros(3), np.zeros(2), t=0.1).round(3)
    array([[0.28 , 0.533, 0.28 ]])
    """
    require_shape("k", k, x.shape[1:])
    return Solution(Rod(**options), x, k, q, T_ext, like=x).temperature()


def jacobian(x: Float, k: Float, q: Float, T_ext: Float, **options: Unpack[Options]) -> Float:
    """Return the propagator, for each sample.

    Parameters
    ----------
    x, k, q, T_ext : ndarray
        As of `forward`; of x, q and T_ext only the shapes and the dtype matter.
    **options
        As of `forward`.

    Returns
    -------
    ndarray, shape (batch, n, n), dtype of x
        ``dT[i] / dx[j]`` at ``[sample, i, j]``: symmetric, not negative, its rows summing to 1 in
        an insulated rod, to less in any other.

    Raises
    ------
    SampleError, InputError, ConfigError
        As `forward`.

    Examples
    --------
    >>> insulated = {"h_left": 0.0, "h_right": 0.0, "t": 0.05}
    >>> P = jacobian(np.ones((1, 2)), np.ones(2), np.zeros(2), np.zeros(2), **insulated)
    >>> P.round(3)
    array([[[0.835, 0.165],
            [0.165, 0.835]]])
    """
    batch, n = x.shape
    require_shape("k", k, (n,))  # n of them would pass for those of the n impulses
    impulses = np.eye(n, dtype=x.dtype)  # a sample for each cell: row i becomes column i of P
    responses = Solution(Rod(**options), impulses, k, np.zeros(n), np.zeros(2), like=impulses)
    return np.broadcast_to(responses.temperature().T, (batch, n, n)).copy()


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
    x, k, q, T_ext : ndarray, shapes (batch, 16), (16,), (batch, 16) and (batch, 2), float64
    """
    x, k, q, T_ext = solver.example(rng, batch, **options)
    return x, k[0], q, T_ext
