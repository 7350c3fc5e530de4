r"""The rod: what the options mean, and the heat equation in space.

.. math::  \rho c \, \partial_t T = \partial_x (k \, \partial_x T) + q, \qquad 0 < x < L,
.. math::  k \, \partial_n T = h \, (T_{ext} - T) \quad \text{at both ends}.

Finite volumes: n cells of width dx, each with one temperature at its centre. Heat flows between two
neighbouring centres through two half cells in series, and between an end cell's centre and the
ambient through half a cell and the film in series::

    T_ext[0] --1/h--|--r0--T[0]--r0--|--r1--T[1]--r1--|-- ... --T[n-1]--r--|--1/h-- T_ext[1]
                  face 0           face 1                               face n

with the resistance ``r_i = dx / (2 k_i)`` of half a cell. So all n + 1 faces, the ends included,
have one formula: append a film to each end of the list of half cells, and

    G_f = 1 / (r_{f-1} + r_f)                                                            W/m^2/K

is the conductance of face f, between its left and its right neighbour. No film resistance (h = inf)
gives the Dirichlet condition, an infinite one (h = 0) the insulated end; neither is a special case.

The heat balance of the cells is then

    rho_c dx dT/dt = -K T + f,    K = D^T diag(G) D,    f = q dx + G_end T_ext,

D being the difference across the faces, with zeros outside. A jump of k between two cells is
handled exactly in the steady state, since resistances in series are.

In this module arrays have the space axis first, ``(n, batch)``, with ``batch`` 1 where shared.
"""

from dataclasses import dataclass
from math import inf, isfinite
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from adeptml_core.errors import ConfigError
from adeptml_heat1d.poles import require_count

__all__ = [
    "Options",
    "Rod",
    "conductances",
    "conductances_pullback",
    "source",
    "source_pullback",
]

Field = NDArray[np.float64]


class Options(TypedDict, total=False):
    """The keywords of every solver function, as a type checker sees them; `Rod` tells the rest."""

    length: float
    rho_c: float
    h_left: float
    h_right: float
    t: float
    poles: int


POSITIVE = "must be positive and finite"
FILM = "must not be negative; 0 insulates, inf sets the temperature"
TIME = (
    "must be finite and not negative; heat runs in one direction, and some rods have no end state"
)


def _require(condition: bool, name: str, value: float, unit: str, rule: str) -> None:
    if not condition:
        raise ConfigError(f"option {name} = {value!r} {unit}: {rule}")


@dataclass(frozen=True, kw_only=True)
class Rod:
    """The options that all three solvers take.

    Parameters
    ----------
    length : float, m
        Of the rod; positive.
    rho_c : float, J/m^3/K
        Heat capacity per volume; positive.
    h_left, h_right : float, W/m^2/K
        Film coefficients of the ends: 0 insulates, ``inf`` sets the end's face to ``T_ext``.
    t : float, s
        Time at which the temperature is wanted; not negative.
    poles : int
        Of the rational approximation in time (`adeptml_heat1d.poles`).

    Raises
    ------
    ConfigError
        For a value out of bounds. (Core checks most of them before; this serves direct calls too.)
    """

    length: float = 1.0
    rho_c: float = 1.0
    h_left: float = inf
    h_right: float = inf
    t: float = 1.0
    poles: int = 14

    def __post_init__(self) -> None:
        _require(isfinite(self.length) and self.length > 0, "length", self.length, "m", POSITIVE)
        _require(isfinite(self.rho_c) and self.rho_c > 0, "rho_c", self.rho_c, "J/m^3/K", POSITIVE)
        _require(self.h_left >= 0, "h_left", self.h_left, "W/m^2/K", FILM)
        _require(self.h_right >= 0, "h_right", self.h_right, "W/m^2/K", FILM)
        _require(isfinite(self.t) and self.t >= 0, "t", self.t, "s", TIME)
        require_count(self.poles)

    @property
    def films(self) -> tuple[float, float]:
        """Resistances of the two films, m^2 K/W: from 0 to ``inf``."""
        left, right = (1 / h if h else inf for h in (self.h_left, self.h_right))
        return left, right


def conductances(k: Field, rod: Rod) -> Field:
    """Return the conductance of every face.

    Parameters
    ----------
    k : ndarray, shape (n, batch), float64, W/m/K
        Positive.
    rod : Rod

    Returns
    -------
    ndarray, shape (n + 1, batch), float64, W/m^2/K

    Examples
    --------
    >>> conductances(np.ones((2, 1)), Rod(h_right=0.0)).ravel()
    array([4., 2., 0.])
    """
    left, right = (np.full_like(k[:1], film) for film in rod.films)
    with np.errstate(over="ignore"):  # k near 1e-308 insulates, near 1e308 it conducts without end
        half_cells = rod.length / (2 * len(k)) / k
        resistances = np.concatenate([left, half_cells, right])
        return np.asarray(1 / (resistances[:-1] + resistances[1:]))


def conductances_pullback(grad: Field, k: Field, G: Field, rod: Rod) -> Field:
    r"""Carry the cotangent of the conductances back to the conductivity.

    With ``G_f = 1 / (r_{f-1} + r_f)`` and ``r_i = dx / (2 k_i)``,

    .. math::  \frac{dG_f}{dk_i} = -G_f^2 \, \frac{dr_i}{dk_i} = \frac{2}{dx} (G_f r_i)^2

    for both faces of the cell i, that is f = i and f = i + 1. The bracket is the cell's share of
    the resistance of the face, a number between 0 and 1.

    Parameters
    ----------
    grad : ndarray, shape (n + 1, batch), float64
        Cotangent of `conductances`.
    k : ndarray, shape (n, batch or 1), float64, W/m/K
    G : ndarray, shape (n + 1, batch or 1), float64, W/m^2/K
        ``conductances(k, rod)``.
    rod : Rod

    Returns
    -------
    ndarray, shape (n, batch), float64
        Cotangent of k for each sample.
    """
    per_width = 2 * len(k) / rod.length
    half_cells = per_width * k  # the conductance 1 / r, which does not overflow
    left, right = G[:-1] / half_cells, G[1:] / half_cells
    return np.asarray(per_width * (grad[:-1] * left**2 + grad[1:] * right**2))


def source(q: Field, T_ext: Field, G: Field, rod: Rod) -> Field:
    """Return the heat that enters each cell per area, ``f = q dx + G_end T_ext``.

    Parameters
    ----------
    q : ndarray, shape (n, batch), float64, W/m^3
    T_ext : ndarray, shape (2, batch), float64, K
    G : ndarray, shape (n + 1, batch), float64, W/m^2/K
    rod : Rod

    Returns
    -------
    ndarray, shape (n, batch), float64, W/m^2
    """
    through_ends = G[[0, -1]] * T_ext
    batch = np.broadcast_shapes(q.shape[1:], through_ends.shape[1:])
    f = np.empty((len(q), *batch))
    f[...] = q * (rod.length / len(q))
    f[0] += through_ends[0]
    f[-1] += through_ends[1]
    return f


def source_pullback(grad: Field, G: Field, rod: Rod) -> tuple[Field, Field]:
    """Carry the cotangent of the source back to q and to T_ext.

    The part that goes to G is left to `adeptml_heat1d.evolution`, where it joins that of K.

    Parameters
    ----------
    grad : ndarray, shape (n, batch), float64
        Cotangent of `source`.
    G : ndarray, shape (n + 1, batch or 1), float64, W/m^2/K
    rod : Rod

    Returns
    -------
    grad_q : ndarray, shape (n, batch), float64
    grad_T_ext : ndarray, shape (2, batch), float64
    """
    return grad * (rod.length / len(grad)), grad[[0, -1]] * G[[0, -1]]
