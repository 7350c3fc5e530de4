"""Many shifted tridiagonal systems at once: ``(K + z_j) x_j = b_j`` for every pole and sample.

**The factors.** Read ``K + z`` as an electrical ladder: nodes in a row, joined by the conductances
G_1 ... G_{n-1}, tied to the ground by G_0 and G_n at the two ends and by the leak z at every node.
Eliminating the nodes from the left, let e_i be the admittance from node i to the ground through
all that lies at and left of it. The next node sees its own leak, beside G_{i+1} in series with
e_i::

    e_0 = z + G_0,    e_{i+1} = z + G_{i+1} e_i / (G_{i+1} + e_i)

    d_i = e_i + G_{i+1}     the pivots
    l_i = G_{i+1} / d_i     what the elimination carries from node i to node i + 1

That is the factorisation ``K + z = L diag(d) L^T``, L having ones on and -l below its diagonal,
without the textbook's subtraction: assembled, d_i would be (G_i + G_{i+1} + z) - G_i^2 / d_{i-1},
where numbers of the size of G cancel down to the size of z. On a fine grid, or for a good
conductor, that costs log10(G / z) digits (six of sixteen at n = 1024); the ladder loses none. It
needs no pivoting either: Im z > 0, so Im e_i >= Im z > 0 throughout, and no pivot comes near zero.

**The sweeps** down and up the ladder come in two kinds, because Python pays for each step and
LAPACK for each number. Microseconds for one factorisation and two solves (a forward and its
pullback) of 64 cells with 14 poles, on one thread of a virtual machine (AMD EPYC), as
``docs/kernels.py`` prints them:

======= ========== =========== ========== ===========
        a material for each    one material for all
------- ---------------------- ----------------------
samples BlockSweep LadderSweep BlockSweep LadderSweep
======= ========== =========== ========== ===========
1       101        244         94         251
4       142        260         135        250
8       205        275         185        265
12      270        283         224        262
16      333        303         284        262
32      581        349         469        287
128     4106       756         1641       481
1024    24154      6955        13139      3760
======= ========== =========== ========== ===========

The columns cross near 12 samples, and do so for 16 and for 256 cells too.

Factors are written once, by `factorise`, and only read after; sweeps may run concurrently.
"""

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import ztbtrs

__all__ = ["BlockSweep", "LadderSweep", "Sweep", "factorise"]

Real = NDArray[np.float64]
Complex = NDArray[np.complex128]

NARROW = 80  # poles (of one half plane) times samples up to which LAPACK wins; measured, see above


class Sweep(Protocol):
    """The factors of all systems, ready to solve.

    Attributes
    ----------
    order : {"C", "F"}
        Memory order of the right-hand sides that `solve` takes without a copy.
    """

    order: Literal["C", "F"]

    def solve(self, b: Complex) -> Complex:
        """Return x, shape (n, poles, batch), with ``(K + z) x = b``; b may be overwritten.

        All of b must be finite: zero times NaN is NaN, and would creep into other samples.
        """


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
    if 0 < len(z) * batch <= NARROW:  # SciPy's ztbtrs corrupts memory where nothing is to solve
        return BlockSweep(pivots, carries)
    return LadderSweep(pivots, carries, batch)


def _ladder(G: Real, z: Complex) -> tuple[Complex, Complex]:
    """Return pivots d and carries l, shape (n, poles, batch or 1); the last carry is zero."""
    n, samples = len(G) - 1, G.shape[1]
    rungs = np.empty((n + 1, len(z), samples), dtype=np.complex128)  # complex and of full width:
    rungs[...] = G[:, None, :]  # saves casting and broadcasting in each of the n steps
    leak = np.repeat(z[:, None], samples, axis=1)
    pivots = np.empty_like(rungs[1:])
    e = leak + rungs[0]
    for rung, pivot in zip(rungs[1:], pivots, strict=True):
        np.add(e, rung, out=pivot)
        np.divide(rung, pivot, out=rung)  # from here on it is the carry
        np.multiply(rung, e, out=e)
        np.add(e, leak, out=e)
    carries = rungs[1:]
    carries[-1] = 0  # it led to the ground
    return pivots, carries


class LadderSweep:
    """Sweep with NumPy, one step for each node, over all poles and samples at once.

    Parameters
    ----------
    pivots, carries : ndarray, shape (n, poles, batch or 1), complex128
        The factors; overwritten.
    batch : int
        Width to which the factors are spread: NumPy multiplies equal shapes twice as fast as it
        broadcasts.
    """

    order: Literal["C", "F"] = "C"

    def __init__(self, pivots: Complex, carries: Complex, batch: int) -> None:
        factors = np.reciprocal(pivots, out=pivots), carries
        if pivots.shape[2] != batch:
            factors = pivots.repeat(batch, axis=2), carries.repeat(batch, axis=2)
        self.inverse_pivots, self.carries = factors

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

    The systems stand pole after pole, and sample after sample, which is the Fortran order of
    ``(n, poles, batch)``. Between two of them the carry is zero. Where the batch shares its
    material, the samples are right-hand sides of one matrix instead.

    Parameters
    ----------
    pivots, carries : ndarray, shape (n, poles, batch or 1), complex128
        The factors; overwritten.
    """

    order: Literal["C", "F"] = "F"

    def __init__(self, pivots: Complex, carries: Complex) -> None:
        self.inverse_pivots = np.reciprocal(pivots, out=pivots).reshape(-1, 1, order="F")
        self.band = np.ones((2, carries.size), dtype=np.complex128, order="F")
        self.band[1] = np.negative(carries, out=carries).ravel(order="F")

    def solve(self, b: Complex) -> Complex:
        """Return x, shape (n, poles, batch), in the memory of b if that has Fortran order."""
        strung = b.reshape(len(self.inverse_pivots), -1, order="F")
        x, _ = ztbtrs(self.band, strung, uplo="L", diag="U", overwrite_b=True)
        x *= self.inverse_pivots
        x, _ = ztbtrs(self.band, x, uplo="L", trans="T", diag="U", overwrite_b=True)
        return np.asarray(x.reshape(b.shape, order="F"))
