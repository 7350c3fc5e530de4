r"""From the initial temperature to that at time t, and back: the solver proper and its adjoint.

**Forward.** `rod` leaves ``rho_c dx dT/dt = -K T + f`` with constant K and f. With
``s = t / (rho_c dx)`` its solution is

.. math::  T(t) = e^{-sK} T_0 + s \, \varphi(-sK) f, \qquad \varphi(x) = (e^x - 1) / x .

`poles` gives ``e^x ~ r(x) = sum_j c_j / (x - z_j)`` with ``r(0) = 1``. The function phi needs no
poles of its own: put r in place of the exponential, and term by term

.. math::  \frac{r(x) - r(0)}{x}
           = \sum_j \frac{c_j}{x} \left( \frac{1}{x - z_j} + \frac{1}{z_j} \right)
           = \sum_j \frac{c_j}{z_j} \frac{1}{x - z_j} .

At ``x = -sK`` each ``1 / (x - z_j)`` becomes ``-(sK + z_j)^-1``. So with one solve for each j,

.. math::  (sK + z_j) \, x_j = b_j = -c_j \left( T_0 + \frac{s}{z_j} f \right),
           \qquad T(t) = 2 \, \mathrm{Re} \sum_j x_j,

the sum being over the upper half plane. Nothing steps in time; nothing but the x_j and the factors
need be kept, whatever t is.

**Backward.** Let g be the cotangent of T(t): we want the derivative of ``g . T(t)``. Vary everything
that stands in the system:

.. math::  dx_j = (sK + z_j)^{-1} (db_j - s \, dK \, x_j), \qquad
           g \cdot dT = 2 \, \mathrm{Re} \sum_j a_j^T (db_j - s \, dK \, x_j),

where ``(sK + z_j) a_j = g``: the matrix is symmetric (not Hermitian), so that the adjoint systems have
the factors of the forward ones. It remains to read off:

- ``db_j = -c_j dT_0`` gives ``grad T_0 = -2 Re sum c_j a_j``. That is r(-sK) g: the propagator is
  symmetric.
- ``db_j = -c_j s / z_j df`` gives ``grad f = -2 s Re sum (c_j / z_j) a_j``; `rod` takes it on to q and
  T_ext.
- ``K = D^T diag(G) D`` gives ``a^T dK x = sum_f dG_f (D a)_f (D x)_f``: the conductance of a face
  feels the *product of the two drops across it*, ``grad G_f = -2 s Re sum_j (D a_j)_f (D x_j)_f``.
- At an end, G also multiplies T_ext in f. Put ``-(c_j / z_j) T_ext`` as the value of x_j beyond the
  end, and 0 as that of a_j: the product of the drops then contains that term too (write it out: it is
  ``a (x - x_beyond)`` at the left end), and the ends have the same formula as the other faces. `rod`
  takes grad G on to k.

This is the exact derivative of what forward computes, not a discretised adjoint equation, and it is
linear in g. It never integrates the heat equation backwards in time, which no arithmetic survives.

Here the space axis comes first and the batch last, ``(n, batch)`` and ``(n, poles, batch)``: a step
from cell to cell is then one contiguous slab. ``batch`` is 1 in what the samples share.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adeptml_heat1d import tridiagonal
from adeptml_heat1d.tridiagonal import factorise
from adeptml_heat1d.poles import exponential_poles
from adeptml_heat1d.rod import (
    Rod,
    conductances,
    conductances_pullback,
    source,
    source_pullback,
)

__all__ = ["Evolution", "evolve"]

Field = NDArray[np.float64]
Complex = NDArray[np.complex128]


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """A solved problem: the temperature, and what its adjoint needs.

    Parameters
    ----------
    rod : Rod
    T : ndarray, shape (n, batch), float64, K
        Temperature at time t.
    k : ndarray, shape (n, batch or 1), float64, W/m/K
    G : ndarray, shape (n + 1, batch or 1), float64, W/m^2/K
    sweep : Sweep
        Factors of ``sK + z_j``.
    drops : ndarray, shape (n + 1, poles / 2, batch), complex128
        ``D x_j``, the difference of x_j across each face.
    """

    rod: Rod
    T: Field
    k: Field
    G: Field
    sweep: tridiagonal.Sweep
    drops: Complex

    def pullback(self, g: Field) -> tuple[Field, Field, Field, Field]:
        """Return the cotangents of (T0, k, q, T_ext), each for every sample.

        Parameters
        ----------
        g : ndarray, shape (n, batch), float64
            Cotangent of T.

        Returns
        -------
        tuple of ndarray, shapes (n, batch) three times and (2, batch), float64
        """
        z, c = exponential_poles(self.rod.poles)
        s = _scaled_time(self.rod, len(g))
        a = self.sweep.solve(np.repeat(g[:, None, :].astype(np.complex128), len(z), axis=1))
        weights = np.stack([-2 * c, -2 * s * c / z])  # of grad T0 and grad f
        grad_T0, grad_f = np.moveaxis((weights @ a).real, 1, 0)
        grad_G = -2 * s * np.einsum("fjb,fjb->fb", _drops(a, 0.0), self.drops).real
        grad_k = conductances_pullback(grad_G, self.k, self.rod)
        return grad_T0, grad_k, *source_pullback(grad_f, self.G, self.rod)


def evolve(rod: Rod, T0: Field, k: Field, q: Field, T_ext: Field) -> Evolution:
    """Solve for the temperature at time t.

    Parameters
    ----------
    rod : Rod
        The options, with t > 0.
    T0 : ndarray, shape (n, batch or 1), float64, K
        Initial temperature.
    k : ndarray, shape (n, batch or 1), float64, W/m/K
        Conductivity, positive.
    q : ndarray, shape (n, batch or 1), float64, W/m^3
        Heat source.
    T_ext : ndarray, shape (2, batch or 1), float64, K
        Ambient temperature beyond the left and the right end.

    Returns
    -------
    Evolution
        The temperature and its pullback.
    """
    z, c = exponential_poles(rod.poles)
    s = _scaled_time(rod, len(T0))
    G = conductances(k, rod)
    f = source(q, T_ext, G, rod)
    b = -c[:, None] * T0[:, None, :] - (s * c / z)[:, None] * f[:, None, :]
    sweep = factorise(s * G, z, b.shape[-1])
    if sweep.order=="F": b=np.asfortranarray(b)
    x = sweep.solve(b)
    T = 2 * x.real.sum(axis=1)
    drops = _drops(x, -(c / z)[:, None] * T_ext[:, None, :])
    return Evolution(rod=rod, T=T, k=k, G=G, sweep=sweep, drops=drops)


def _scaled_time(rod, n):
    return rod.t * n / (rod.rho_c * rod.length)


def _drops(x, beyond):
    left, right = np.broadcast_to(beyond, (2, *x.shape[1:]))
    D = np.empty((len(x) + 1, *x.shape[1:]), complex)
    D[0] = x[0] - left
    np.subtract(x[1:], x[:-1], out=D[1:-1])
    D[-1] = right - x[-1]
    return D
