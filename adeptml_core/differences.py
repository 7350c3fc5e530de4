"""Second derivatives by differences of the pullback, or an error: never a plausible wrong number.

Wanted is ``d/de pullback_(z + e v)(g)``, z = (x, *args). It is linear in v, so each array moves by
itself, since their units differ. The differences are central, at h and h/2,

    D(h) = (pullback_(z + h v)(g) - pullback_(z - h v)(g)) / 2h,     D = (4 D(h/2) - D(h)) / 3,

in the solver's widest dtype. Truncation falls with h^4, rounding grows with eps / h; they weigh the
same at ``h = eps^(1/5)`` of the scale on which the pullback varies: about 1e-12 of the result in
float64. That scale is not known. It is taken to be the size of z first; where rounding then drowns
the difference (z is near zero, on a scale that is not its own) h grows, up to the step for a z of
size 1, and each entry keeps its best. Where D(h) and D(h/2) still disagree, the scale was another:
that is an `InputError`, and so is a z without room within its declared bounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adeptml_core.errors import AdeptmlError, InputError
from adeptml_core.linearizer import AnyArray, Linearizer, wanted
from adeptml_core.solver import Solver

__all__ = ["differences"]

Parts = list[AnyArray | None]
"""One for each of ``(x, *args)``; None where the pullback does not speak of it."""

GROWTH = 1e3
PRECISE = 1e-9  # of the largest entry; rounding below this is no reason for a longer step
DISAGREE = 0.05  # of the largest entry; a right scale leaves about h^2 = 1e-6
NOISE = 1e3  # times rounding, which D(h) and D(h/2) may differ by for no other reason


def differences(
    solver: Linearizer,
    g: AnyArray,
    tangents: Sequence[AnyArray | None],
    x: AnyArray,
    args: tuple[Any, ...],
) -> tuple[AnyArray | None, ...]:
    """Return the derivative of ``pullback(g)`` along `tangents`.

    Parameters
    ----------
    solver : Linearizer
        Deterministic.
    g : ndarray, shape (batch, *y_core)
    tangents : sequence of (ndarray or None), the shapes of ``(x, *args)``
    x : ndarray, shape (batch, *core)
    args : tuple of array_like

    Returns
    -------
    tuple of (ndarray or None), the shapes of ``(x, *args)``, dtype of x

    Raises
    ------
    InputError
        There is no room within the declared bounds, or the differences disagree.
    """
    wide = _widest(solver)
    point = [
        np.asarray(value, wide) if is_wanted else value
        for value, is_wanted in zip((x, *args), wanted(solver, 1 + len(args)), strict=True)
    ]
    line = _Lines(solver, point, np.asarray(g, wide), _rows_move_alone(solver, point))
    total: Parts = [
        np.zeros(np.shape(value), wide) if is_wanted else None
        for value, is_wanted in zip(point, wanted(solver, len(point)), strict=True)
    ]
    for index, move in enumerate(tangents):
        if move is not None and np.any(move):
            part = line.along(index, np.asarray(move, wide))
            total = [
                None if t is None or p is None else t + p for t, p in zip(total, part, strict=True)
            ]
    return tuple(None if t is None else np.asarray(t, x.dtype) for t in total)


def _widest(solver: Linearizer) -> np.dtype[Any]:
    if not isinstance(solver, Solver):
        return np.dtype(np.float64)
    return max((np.dtype(name) for name in solver.spec.dtypes), key=lambda dtype: dtype.itemsize)


def _rows_move_alone(solver: Linearizer, point: Sequence[Any]) -> bool:
    """Tell whether each row may have a step of its own: a shared arg's cotangent sums over rows."""
    if not solver.row_independent or not isinstance(solver, Solver):
        return False
    return not any(
        is_wanted and solver.is_shared(index, np.ndim(value))
        for index, (value, is_wanted) in enumerate(
            zip(point[1:], solver.spec.differentiable[1:], strict=True)
        )
    )


@dataclass(frozen=True)
class _Estimate:
    """What one pair of steps says of the derivative of each cotangent."""

    value: AnyArray
    gap: AnyArray  # |D(h) - D(h/2)|
    rounding: AnyArray  # eps * |pullback| / h

    @property
    def error(self) -> AnyArray:
        """Of the extrapolation: the gap is of order h^2, its square of order h^4."""
        size = np.abs(self.value) + self.rounding
        with np.errstate(all="ignore"):
            error = np.where(size > 0, self.gap**2 / size, 0.0) + self.rounding
        return np.where(np.isfinite(self.value) & np.isfinite(error), error, np.inf)

    def better_of(self, other: "_Estimate") -> "_Estimate":
        """Return, entry by entry, that of the smaller error."""
        theirs = other.error < self.error
        pairs = [(getattr(self, n), getattr(other, n)) for n in ("value", "gap", "rounding")]
        return _Estimate(*(np.where(theirs, b, a) for a, b in pairs))


class _Lines:
    """Lines through one point: for each row its own step, or one for all."""

    def __init__(self, solver: Linearizer, point: Sequence[Any], g: AnyArray, by_row: bool) -> None:
        self.solver = solver
        self.point = point
        self.g = g
        self.by_row = by_row
        self.eps = float(np.finfo(g.dtype).eps)

    def along(self, index: int, move: AnyArray) -> Parts:
        """Return the derivative of the pullback as array `index` moves."""
        step, longest = self._steps(index, move)
        best = self._estimates(index, move, step)
        while not self._are_precise(best) and (step < longest).any():
            step = np.minimum(step * GROWTH, longest)
            try:
                with np.errstate(all="ignore"):
                    longer = self._estimates(index, move, step)
            except (AdeptmlError, ArithmeticError, ValueError, RuntimeError):
                break  # as far as that the solver does not go
            best = [
                None if b is None or c is None else b.better_of(c)
                for b, c in zip(best, longer, strict=True)
            ]
        for estimate in best:
            if estimate is not None and self._disagrees(estimate):
                raise self._refusal(index)
        return [None if estimate is None else estimate.value for estimate in best]

    def _steps(self, index: int, move: AnyArray) -> tuple[AnyArray, AnyArray]:
        """Return the first step and the longest, shape (batch,) or ()."""
        rows = len(move) if self.by_row else 1
        size, pace = (np.abs(a).reshape(rows, -1).max(1) for a in (self.point[index], move))
        pace = np.where(pace > 0, pace, 1.0)
        size = np.where(size > 0, size, 1.0)
        room = 0.9 * self._room(index, move, rows)
        wished = self.eps**0.2 * size / pace
        if (room < 1e-3 * wished).any():
            raise InputError(
                f"{self.solver.name}: a second derivative by differences needs room to move "
                f"{self._name(index)}, but a value lies on its declared bound or next to it. Move "
                "it inside, or declare hvp= in the solver's spec."
            )
        first = np.minimum(wished, room)
        longest = np.maximum(first, np.minimum(self.eps**0.2 / pace, room))
        return (first, longest) if self.by_row else (first[0], longest[0])

    def _room(self, index: int, move: AnyArray, rows: int) -> AnyArray:
        """Return how far the point may go, both ways, within the declared bounds."""
        if not isinstance(self.solver, Solver):
            return np.full(rows, np.inf)
        array, value = self.solver.spec.inputs[index], self.point[index]
        room = np.full(value.shape, np.inf)
        if array.low is not None:
            room = np.minimum(room, value - np.asarray(array.low))
        if array.high is not None:
            room = np.minimum(room, np.asarray(array.high) - value)
        with np.errstate(divide="ignore", invalid="ignore"):
            paces = np.where(move == 0, np.inf, room / np.abs(move))
        # Outside its bounds nothing is promised anyway: no use in holding a point there.
        return np.asarray(np.where(paces < 0, np.inf, paces).reshape(rows, -1).min(1))

    def _estimates(self, index: int, move: AnyArray, step: AnyArray) -> list[_Estimate | None]:
        coarse, size = self._slopes(index, move, step)
        fine, _ = self._slopes(index, move, step / 2)
        return [
            None
            if c is None or f is None or s is None
            else _Estimate((4 * f - c) / 3, np.abs(c - f), self.eps * s / self._fitting(step, s))
            for c, f, s in zip(coarse, fine, size, strict=True)
        ]

    def _slopes(self, index: int, move: AnyArray, step: AnyArray) -> tuple[Parts, Parts]:
        """Return D(step), and the size of the cotangents that it is made of."""
        ahead, behind = (self._pulled(index, move, sign * step) for sign in (1, -1))
        slopes: Parts = [
            None if a is None or b is None else (a - b) / (2 * self._fitting(step, a))
            for a, b in zip(ahead, behind, strict=True)
        ]
        return slopes, [None if a is None else np.abs(a) for a in ahead]

    def _pulled(self, index: int, move: AnyArray, step: AnyArray) -> Parts:
        moved = list(self.point)
        moved[index] = moved[index] + self._fitting(step, move) * move
        found = self.solver.pullback_at(*moved)(self.g)
        return [*found, *(None for _ in moved[len(found) :])]  # bare functions speak of x alone

    def _fitting(self, step: AnyArray, like: AnyArray) -> AnyArray:
        """Return the steps of the rows (or the one step), to be broadcast against `like`."""
        return step if not self.by_row else step.reshape(-1, *(1 for _ in like.shape[1:]))

    # -- how good they are --

    def _largest(self, values: AnyArray) -> AnyArray:
        """Return the largest entry, of each row where rows are apart; shaped to broadcast."""
        axes = tuple(range(1 if self.by_row else 0, values.ndim))
        return np.asarray(np.abs(values).max(axis=axes, keepdims=True, initial=0.0))

    def _are_precise(self, estimates: Sequence[_Estimate | None]) -> bool:
        return all(
            e is None or bool((e.rounding <= PRECISE * self._largest(e.value)).all())
            for e in estimates
        )

    def _disagrees(self, estimate: _Estimate) -> bool:
        allowed = DISAGREE * self._largest(estimate.value) + NOISE * estimate.rounding
        return not bool((estimate.gap <= allowed).all())

    def _name(self, index: int) -> str:
        return "x" if index == 0 else self.solver.arg_name(index - 1)

    def _refusal(self, index: int) -> InputError:
        return InputError(
            f"{self.solver.name}: the second derivative in {self._name(index)} cannot be had by "
            "differences: steps of another size give another number. The solver varies on a scale "
            "that the size of its input does not tell (entries of very different size, a kink, a "
            "loose tolerance). Scale the input, or declare hvp= in the solver's spec."
        )
