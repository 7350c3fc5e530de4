"""Many shifted tridiagonal systems at once: ``(K + z_j) x_j = b_j`` for every pole and sample.

**The factors.** Read ``K + z`` as an electrical ladder: nodes in a row, joined by the conductances
G_1 ... G_{n-1}, tied to the ground by G_0 and G_n at the two ends and by the leak z at every node.
Eliminating the nodes from the left, let e_i be the admittance from node i to the ground through all
that lies at and left of it. The next node sees its own leak, beside G_{i+1} in series with e_i::

    e_0 = z + G_0,    e_{i+1} = z + G_{i+1} e_i / (G_{i+1} + e_i)

    d_i = e_i + G_{i+1}     the pivots
    l_i = G_{i+1} / d_i     what the elimination carries from node i to node i + 1

That is the LDL^T factorisation of K + z, without the textbook's subtraction: assembled, d_i would be
(G_i + G_{i+1} + z) - G_i^2 / d_{i-1}, where numbers of the size of G cancel down to the size of z.
On a fine grid, or for a good conductor, that costs log10(G / z) digits (six of sixteen at n = 1024);
the ladder loses none. It needs no pivoting either: Im z > 0, so Im e_i >= Im z > 0 throughout, and no
pivot comes near zero.

**The sweeps** down and up the ladder come in two kinds, because Python pays for each step and LAPACK
for each number. Microseconds, one factorisation / one solve, 7 poles, one thread of a cloud machine:

====================== ============= ============ ==============
n = 64, samples        factors       `BlockSweep` `LadderSweep`
====================== ============= ============ ==============
1                      MEASURE
====================== ============= ============ ==============

Factors are written once, by `factorise`, and only read after; sweeps may run concurrently.
"""

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import ztbtrs

__all__ = ["BlockSweep", "LadderSweep", "Sweep", "factorise"]

Real = NDArray[np.float64]
Complex = NDArray[np.complex128]

NARROW = 64  # poles times samples up to which the LAPACK calls win; measured, see above


class Sweep(Protocol):
    """The factors of all systems, ready to solve.

    Attributes
    ----------
    order : {"C", "F"}
        Memory order in which `solve` runs at full speed; in the other one it copies.
    """

    order: Literal["C", "F"]

    def solve(self, b: Complex) -> Complex:
        """Return x, shape (n, poles, batch), with ``(K + z) x = b``; b may be overwritten."""


def factorise(G: Real, z: Complex, batch: int) -> Sweep:
    """Factorise ``K + z_j`` for all poles and samples.

    Parameters
    ----------
    G : ndarray, shape (n + 1, batch or 1), float64
        Conductances; 1 where one material is shared by the batch: it is factorised once.
    z : ndarray, shape (poles,), complex128
        Shifts, with positive imaginary parts.
    batch : int
        Number of samples that will be solved for.

    Returns
    -------
    Sweep
        Whichever kind is faster at this width.

    Examples
    --------
    >>> sweep = factorise(np.ones((2, 1)), np.array([1j]), batch=1)  # one node: (2 + i) x = 5
    >>> sweep.solve(np.array([[[5 + 0j]]])).item()
    (2-1j)
    """
    pivots, carries = _ladder(G, z)
    kind = BlockSweep if len(z) * batch <= NARROW else LadderSweep
    return kind(pivots, carries)


def _ladder(G: Real, z: Complex) -> tuple[Complex, Complex]:
    """Return pivots d and carries l, shape (n, poles, batch or 1); the last carry leads nowhere."""
    n, samples = len(G) - 1, G.shape[1]
    rungs = np.empty((n + 1, len(z), samples), dtype=np.complex128)  # complex and of full width:
    rungs[...] = G[:, None, :]  # saves casting and broadcasting in each of the n steps
    leak = np.repeat(z[:, None], samples, axis=1)
    pivots = np.empty_like(rungs[1:])
    carries = np.empty_like(pivots)
    e = leak + rungs[0]
    for rung, pivot, carry in zip(rungs[1:], pivots, carries, strict=True):
        np.add(e, rung, out=pivot)
        np.divide(rung, pivot, out=carry)
        np.multiply(carry, e, out=e)
        np.add(e, leak, out=e)
    return pivots, carries


class LadderSweep:
    """Sweep with NumPy, one step for each node, over all poles and samples at once."""

    order: Literal["C", "F"] = "C"

    def __init__(self, pivots: Complex, carries: Complex) -> None:
        self.inverse_pivots = np.reciprocal(pivots, out=pivots)
        self.carries = carries

    def solve(self, b: Complex) -> Complex:
        """Return x, shape (n, poles, batch), in the memory of b."""
        carried = np.empty_like(b[0])
        carries = self.carries[:-1]
        for carry, here, right in zip(carries, b[:-1], b[1:], strict=True):
            np.multiply(carry, here, out=carried)
            np.add(right, carried, out=right)
        np.multiply(b, self.inverse_pivots, out=b)
        for carry, here, right in zip(carries[::-1], b[-2::-1], b[:0:-1], strict=True):
            np.multiply(carry, right, out=carried)
            np.add(here, carried, out=here)
        return b


class BlockSweep:
    """Sweep with two LAPACK calls, over one long ladder that strings all systems together.

    ``ztbtrs`` takes the triangular factor as a band: the unit diagonal, which it does not read, and
    ``-l`` below it. Between two systems stands a zero.
    """

    order: Literal["C", "F"] = "F"

    def __init__(self, pivots: Complex, carries: Complex) -> None:
        carries[-1] = 0  # between one system and the next
        self.inverse_pivots = _strung(np.reciprocal(pivots, out=pivots), pivots.shape[2])
        self.band = np.empty((2, pivots.size), dtype=np.complex128, order="F")
        self.band[1] = -_strung(carries, pivots.shape[2])[:,0]
        self.samples = pivots.shape[2]

    def solve(self, b: Complex) -> Complex:
        """Return x, shape (n, poles, batch), in the memory of b if that has Fortran order."""
        rhs = b.reshape(len(self.inverse_pivots), -1, order="F")
        y, _ = ztbtrs(self.band, rhs, uplo="L", diag="U", overwrite_b=True)
        y *= self.inverse_pivots
        x, _ = ztbtrs(self.band, y, uplo="L", trans="T", diag="U", overwrite_b=True)
        return np.asarray(x).reshape(b.shape, order="F")


def _strung(systems: Complex, columns) -> Complex:
    return systems.reshape(-1, 1, order="F")
