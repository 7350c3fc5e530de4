"""Between the contract and the physics: rows and dtypes on one side, columns on the other.

adeptml hands over read-only arrays with the batch first, in float64 or float32, and args with or
without a batch axis. The physics wants float64, the space axis first, and a batch axis throughout.
All three solvers cross here, both ways, so that the rules of the contract are kept in one place:

- an arg without a batch axis is one column, ``(core, 1)``, which every sample shares;
- its cotangent is the *sum* over the samples, and has the arg's own shape again;
- whatever goes out is a fresh array of its own, in the caller's dtype.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adeptml_core.errors import InputError, SampleError
from adeptml_heat1d.evolution import evolve
from adeptml_heat1d.rod import Rod

__all__ = ["Float", "Solution", "require_shape"]

Float = NDArray[np.floating[Any]]
Field = NDArray[np.float64]


class Solution:
    """The rod solved for a batch.

    Parameters
    ----------
    rod : Rod
        The options.
    T0 : ndarray, shape (batch, n) or (n,), float64 or float32, K
        Initial temperature.
    k : ndarray, shape (batch, n) or (n,), W/m/K
        Conductivity.
    q : ndarray, shape (batch, n) or (n,), W/m^3
        Heat source.
    T_ext : ndarray, shape (batch, 2) or (2,), K
        Ambient temperature beyond the left and the right end.
    like : ndarray, shape (batch, core)
        The solver's x: the results have its batch and its dtype.

    Raises
    ------
    InputError
        Where the shapes disagree, or the rod has no cells. (Core sees to most of that before; a
        direct call must not go wrong either.)
    SampleError
        Where k is not positive and finite.
    """

    def __init__(
        self, rod: Rod, T0: Float, k: Float, q: Float, T_ext: Float, *, like: Float
    ) -> None:
        inputs = {"T0": T0, "k": k, "q": q, "T_ext": T_ext}
        _check_shapes(inputs, like)
        _check_conductivity(k)
        self._shapes = tuple(array.shape for array in inputs.values())
        self._evolution = evolve(rod, *map(_columns, inputs.values()))
        self._dtype = np.result_type(like, np.float32)  # an integer x must not truncate T

    def temperature(self) -> Float:
        """Return T at time t, shape (batch, n), K."""
        return self._rows(self._evolution.temperature)

    def pullback(self, grad_output: Float) -> tuple[Float, Float, Float, Float]:
        """Return the cotangents of (T0, k, q, T_ext), each in the shape of its own.

        Parameters
        ----------
        grad_output : ndarray, shape (batch, n)
            Cotangent of `temperature`.

        Raises
        ------
        InputError
            For a cotangent of another shape.
        """
        require_shape("grad_output", grad_output, self._evolution.temperature.T.shape)
        gradients = self._evolution.pullback(_columns(grad_output))
        T0, k, q, T_ext = map(self._in_shape, gradients, self._shapes)
        return T0, k, q, T_ext

    def _in_shape(self, gradient: Field, shape: tuple[int, ...]) -> Float:
        """Return the cotangent per sample, or its sum where the samples share the array."""
        is_shared = len(shape) == 1
        return self._rows(gradient.sum(axis=1) if is_shared else gradient)

    def _rows(self, columns: Field) -> Float:
        return np.array(columns.T, dtype=self._dtype, order="C")


def _columns(array: Float) -> Field:
    """Return shape (core, batch), or (core, 1) for a shared array, in float64.

    A copy: the pullback reads it later, whatever a caller outside core does to the original.
    """
    return np.array(array, dtype=np.float64, ndmin=2).T


def _check_shapes(inputs: Mapping[str, Float], like: Float) -> None:
    """Refuse what NumPy might broadcast without a word."""
    n = inputs["T0"].shape[-1]
    if n == 0:
        raise InputError("the rod has no cells: T0, k and q have n = 0; n must be 1 or more")
    for name, array in inputs.items():
        core = 2 if name == "T_ext" else n
        shared = () if array is like else ((core,),)
        require_shape(name, array, (len(like), core), *shared)


def require_shape(name: str, array: Float, *allowed: tuple[int, ...]) -> None:
    """Raise InputError unless the array has one of the shapes."""
    if array.shape not in allowed:
        listed = " or ".join(map(str, allowed))
        raise InputError(f"{name} has shape {array.shape}; it must be {listed}, batch first")


def _check_conductivity(k: Float) -> None:
    """Refuse the first sample with a conductivity that no material has."""
    sound = (k > 0) & (k < np.inf)  # false for NaN, too
    if sound.all():
        return
    *sample, cell = (int(index) for index in np.argwhere(~sound)[0])
    sharing = "" if sample else ", shared by the whole batch"
    raise SampleError(
        sample[0] if sample else 0,
        f"k[{cell}] = {k[(*sample, cell)]:.6g} W/m/K{sharing}: a conductivity is positive and "
        "finite. If a network gives it, let that end in softplus or exp.",
    )
