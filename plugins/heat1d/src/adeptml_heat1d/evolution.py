r"""From the initial temperature to that at time t, and back: the solver proper and its adjoint.

**Forward.** `rod` leaves ``rho_c dx dT/dt = -K T + f`` with constant K and f. With
``s = t / (rho_c dx)`` its solution is

.. math::  T(t) = e^{-sK} T_0 + s \, \varphi(-sK) f, \qquad \varphi(x) = (e^x - 1) / x .

`poles` gives ``e^x ~ r(x) = sum_j c_j / (x - z_j)`` with ``r(0) = 1``. The function phi needs no
poles of its own: put r in place of the exponential, and term by term

.. math::  \frac{r(x) - r(0)}{x}
           = \sum_j \frac{c_j}{x} \left( \frac{1}{x - z_j} + \frac{1}{z_j} \right)
           = \sum_j \frac{c_j}{z_j} \frac{1}{x - z_j} .

At ``x = -sK`` each ``1 / (x - z_j)`` becomes ``-(sK + z_j)^-1``. So one solve for each j in the
upper half plane is all; with the weights ``w_j = -2 c_j``,

.. math::  (sK + z_j) \, u_j = T_0 + \frac{s}{z_j} f, \qquad
           T(t) = \mathrm{Re} \sum_j w_j u_j .

Nothing steps in time; nothing but the u_j and the factors need be kept, whatever t is.

**Backward.** Let g be the cotangent of T(t): we want the derivative of ``g . T(t)``. Vary
everything that stands in the system, and let a_j solve the same system for g:

.. math::  (sK + z_j) \, a_j = g, \qquad g \cdot dT =
           \mathrm{Re} \sum_j w_j a_j^T \left( dT_0 + \frac{s}{z_j} df - s \, dK \, u_j \right) .

The matrix is symmetric (not Hermitian), so the factors of the forward pass serve again. It remains
to read off:

- ``grad T_0 = Re sum w_j a_j``. That is r(-sK) g: the propagator is symmetric.
- ``grad f = Re sum (s w_j / z_j) a_j``; `rod` takes it on to q and T_ext.
- ``K = D^T diag(G) D`` gives ``a^T dK u = sum_f dG_f (D a)_f (D u)_f``: the conductance of a face
  feels the *product of the two drops across it*, ``grad G_f = -s Re sum w_j (D a_j)_f (D u_j)_f``.
- At an end, G multiplies T_ext in f as well. Let the value of u_j beyond the end be ``T_ext / z_j``
  and that of a_j zero: the product of the drops, ``a (u - T_ext / z_j)`` at either end, then holds
  that term too, and the ends have the formula of the other faces. `rod` takes grad G on to k.

This is the exact derivative of what forward computes, not a discretised adjoint equation, and it is
linear in g. It never integrates the heat equation backwards in time, which no arithmetic survives.

Here the space axis comes first and the batch last, ``(n, batch)`` and ``(n, poles, batch)``; a
batch of 1 is shared by all samples. Which of the axes is contiguous, the sweep decides.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adeptml_heat1d.poles import exponential_poles
from adeptml_heat1d.rod import (
    Rod,
    conductances,
    conductances_pullback,
    source,
    source_pullback,
)
from adeptml_heat1d.tridiagonal import Sweep, factorise

__all__ = ["Evolution", "evolve"]

Field = NDArray[np.float64]
Complex = NDArray[np.complex128]
Gradients = tuple[Field, Field, Field, Field]

HUGE = 1e300  # beyond it a sum may overflow, and reach other samples as 0 * inf
CACHED = 2**15  # complex numbers, 512 KiB: what a processor's second cache holds, and more


class Evolution(Protocol):
    """A solved problem: the temperature, and the way back.

    Attributes
    ----------
    temperature : ndarray, shape (n, batch), float64, K
        At time t.
    """

    @property
    def temperature(self) -> Field: ...  # noqa: D102 - above

    def pullback(self, g: Field) -> Gradients:
        """Return the cotangents of (T0, k, q, T_ext), each for every sample.

        Parameters
        ----------
        g : ndarray, shape (n, batch), float64
            Cotangent of the temperature.

        Returns
        -------
        tuple of ndarray, shapes (n, batch) three times and (2, batch), float64
        """


def evolve(rod: Rod, T0: Field, k: Field, q: Field, T_ext: Field) -> Evolution:
    """Solve for the temperature at time t.

    A sample in which something is not finite, or so large that a sum may overflow, becomes NaN
    throughout; the others never notice.

    Parameters
    ----------
    rod : Rod
        The options.
    T0 : ndarray, shape (n, batch or 1), float64, K
        Initial temperature.
    k : ndarray, shape (n, batch or 1), float64, W/m/K
        Conductivity, positive and finite.
    q : ndarray, shape (n, batch or 1), float64, W/m^3
        Heat source.
    T_ext : ndarray, shape (2, batch or 1), float64, K
        Ambient temperature beyond the left and the right end.

    Returns
    -------
    Evolution
        The temperature and its pullback.
    """
    batch = np.broadcast_shapes(*(field.shape[1:] for field in (T0, k, q, T_ext)))[0]
    if rod.t == 0:
        return _Unchanged(temperature=np.broadcast_to(T0, (len(T0), batch)))

    z, c = exponential_poles(rod.poles)
    s = _scaled_time(rod, len(T0))
    G = conductances(k, rod)
    with np.errstate(over="ignore", invalid="ignore"):
        ladder, load = s * G, s * source(q, T_ext, G, rod)
    spoilt = _spoilt_samples(batch, T0, T_ext, ladder, load)
    T0, T_ext, ladder, load = (_without(spoilt, field) for field in (T0, T_ext, ladder, load))
    sweep = factorise(ladder, z, batch)
    b = np.empty((len(T0), len(z), batch), dtype=np.complex128, order=sweep.order)
    np.multiply((1 / z)[:, None], load[:, None, :], out=b)
    b += T0[:, None, :]
    u = _solve(sweep, b, spoilt)
    return _Evolved(rod=rod, k=k, T_ext=T_ext, G=G, sweep=sweep, u=u, temperature=_sum(-2 * c, u))


@dataclass(frozen=True, kw_only=True)
class _Unchanged:
    """The evolution over no time at all, where the formulas hold, but only to rounding."""

    temperature: Field

    def pullback(self, g: Field) -> Gradients:
        return g, np.zeros_like(g), np.zeros_like(g), np.zeros((2, g.shape[1]))


@dataclass(frozen=True, kw_only=True)
class _Evolved:
    """The evolution over some time.

    Parameters
    ----------
    rod : Rod
    k : ndarray, shape (n, batch or 1), float64, W/m/K
    T_ext : ndarray, shape (2, batch or 1), float64, K
    G : ndarray, shape (n + 1, batch or 1), float64, W/m^2/K
        Conductances.
    sweep : Sweep
        Factors of ``sK + z_j``.
    u : ndarray, shape (n, poles, batch), complex128
        Solutions u_j.
    temperature : ndarray, shape (n, batch), float64, K
    """

    rod: Rod
    k: Field
    T_ext: Field
    G: Field
    sweep: Sweep
    u: Complex
    temperature: Field

    def pullback(self, g: Field) -> Gradients:
        z, c = exponential_poles(self.rod.poles)
        s, w = _scaled_time(self.rod, len(g)), -2 * c
        a = self._adjoint(g)
        grad_T0, grad_f = _sum(w, a), _sum(s * w / z, a)
        grad_G = self._products_of_drops(-s * w, a, self.T_ext[:, None, :] / z[:, None])
        with np.errstate(over="ignore", invalid="ignore"):  # of the spoilt samples
            grad_k = conductances_pullback(grad_G, self.k, self.G, self.rod)
            return grad_T0, grad_k, *source_pullback(grad_f, self.G, self.rod)

    def _products_of_drops(self, weights: Complex, a: Complex, beyond: Complex) -> Field:
        """Return ``Re sum_j weights_j (D a_j) (D u_j)``, shape (n + 1, batch).

        A few faces at a time: of a wide batch all drops at once would be two more arrays as large
        as the u_j, and for the most part the time that it takes to be given that much memory.
        """
        faces, nothing = len(a) + 1, np.zeros((2, 1, 1))
        result = np.empty((faces, a.shape[2]))
        some = max(1, CACHED // max(1, a[0].size))
        for first in range(0, faces, some):
            last = min(first + some, faces)
            product = _drops(a, nothing, first, last)
            product *= _drops(self.u, beyond, first, last)
            result[first:last] = _sum(weights, product)
        return result

    def _adjoint(self, g: Field) -> Complex:
        """Return the a_j, shape (n, poles, batch); NaN where the cotangent is not finite."""
        spoilt = _spoilt_samples(g.shape[1], g)
        b = np.empty_like(self.u, order=self.sweep.order)
        b[...] = _without(spoilt, g)[:, None, :]
        return _solve(self.sweep, b, spoilt)


def _scaled_time(rod: Rod, n: int) -> float:
    """Return ``s = t / (rho_c dx)``, m^2 K/W."""
    return rod.t * n / (rod.rho_c * rod.length)


def _sum(weights: Complex, u: Complex) -> Field:
    """Return ``Re sum_j w_j u_j``, shape (n, batch)."""
    return np.asarray((weights @ u).real)


def _drops(u: Complex, beyond: Complex | Field, first: int, last: int) -> Complex:
    """Return rows ``first`` to ``last`` of D u, from u and its values beyond the two ends."""
    drops = np.empty_like(u, shape=(last - first, *u.shape[1:]))
    begin, end = max(first, 1), min(last, len(u))  # the faces with a cell on either side
    np.subtract(u[begin:end], u[begin - 1 : end - 1], out=drops[begin - first : end - first])
    if first == 0:
        np.subtract(u[0], beyond[0], out=drops[0])
    if last > len(u):
        np.subtract(beyond[1], u[-1], out=drops[-1])
    return drops


def _spoilt_samples(batch: int, *fields: Field) -> NDArray[np.bool_]:
    """Return which samples, shape (batch,), hold something that is not finite, or close to it."""
    spoilt = np.zeros(batch, dtype=np.bool_)
    for field in fields:
        sound = np.abs(field) < HUGE  # false for NaN, too
        if not sound.all():
            spoilt |= ~sound.all(axis=0)
    return spoilt


def _without(spoilt: NDArray[np.bool_], field: Field) -> Field:
    """Return the field with zeros for the spoilt samples: what they hold must not reach a sum."""
    return np.where(spoilt, 0.0, field) if spoilt.any() else field


def _solve(sweep: Sweep, b: Complex, spoilt: NDArray[np.bool_]) -> Complex:
    """Solve, and mark the spoilt samples."""
    u = sweep.solve(b)
    if spoilt.any():
        u[..., spoilt] = np.nan
    return u
