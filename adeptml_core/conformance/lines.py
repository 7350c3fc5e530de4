"""Straight lines through input space, and the two ways to evaluate a solver along them.

A line belongs to one input array and one point: ``t -> point + t * direction``. Along it the solver
is a function of one variable, whose slope at 0 the differences measure and the pullback claims.

**Exact steps.** A step is useless below the spacing of floating-point numbers at the point: with
``x = 1e6`` in float32 the nearest numbers are 0.06 apart. So each direction is rounded until its
smallest displacement is a whole number of spacings (`unit`), and every step is 4^k of those. Then
``point + step`` has no rounding error at all, whatever the offset of the point.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adeptml_core.conformance.probe import AnyArray, Inputs, Probe

__all__ = ["RATIO", "Bench", "CallBench", "Floats", "Lines", "RowBench", "make_lines"]

Floats = NDArray[np.float64]

RATIO = 4.0
"""Between steps. 2 would need twice the calls for a span, 10 leaves too few for Richardson."""

LONGEST_STEP = 0.5  # in units of the direction, which has about the size of the data's own spread
ROOM = 0.9  # of the way to the bounds, so that rounding does not cross them
STEPS = {"float64": 14, "float32": 9, "float16": 5}  # down to where only rounding is left
STACK = 2**22  # elements of inputs that are built at once


@dataclass(frozen=True)
class Lines:
    """L lines in one input array.

    Parameters
    ----------
    index : int
        The input: 0 is x.
    point : ndarray of int, shape (L,)
        Which point of the bench each line goes through.
    unit : ndarray, shape (L, n), float64
        The smallest displacement: whole spacings.
    longest : ndarray, shape (L,)
        The longest step h0; the k-th is ``h0 / 4**k``.
    count : int
        How many steps.
    """

    index: int
    point: NDArray[np.intp]
    unit: Floats
    longest: Floats
    count: int

    @property
    def steps(self) -> Floats:
        """The steps h, shape (L, count), longest first."""
        return np.asarray(self.longest[:, None] / RATIO ** np.arange(self.count))

    @property
    def multiples(self) -> Floats:
        """The steps in units, shape (count,)."""
        return np.asarray(RATIO ** np.arange(self.count - 1, -1, -1.0))

    @property
    def direction(self) -> Floats:
        """The directions, shape (L, n): what one unit of h moves."""
        return np.asarray(self.unit / self.steps[:, -1:])

    def __len__(self) -> int:
        return len(self.point)

    def some(self, which: Any) -> "Lines":
        """Return some of the lines."""
        return Lines(
            self.index, self.point[which], self.unit[which], self.longest[which], self.count
        )


class Bench(Protocol):
    """A solver and the points where it is examined."""

    probe: Probe
    dtype: np.dtype[Any]

    def base(self, index: int) -> Floats:
        """Return input `index` at every point, shape (points, n)."""

    def shape(self, index: int) -> tuple[int, ...]:
        """Return the shape of input `index` at one point."""

    def at(self, lines: Lines, multiples: Floats) -> Floats:
        """Return y at ``point + unit * multiple``, shape (L, multiples, m).

        `multiples` has shape (P,), the same for all lines, or (L, P).
        """

    def seconds(self, lines: int, multiples: int) -> float:
        """Return about how long `at` would take for so many lines and multiples."""

    def pull(self, lines: Lines, cotangents: Floats) -> Floats:
        """Return the cotangent of the lines' array for each ``cotangents[l, c]``: (L, C, n)."""

    def pull_at(self, point: int, index: int, cotangents: Floats) -> Floats:
        """Return the cotangent of input `index` at one point for each of (C, m): (C, n)."""


class RowBench:
    """Every row of a stack is a point; rows are independent, so one call serves many lines."""

    def __init__(self, probe: Probe, points: Inputs) -> None:
        self.probe = probe
        self.points = points
        self.dtype = points[0].dtype

    def base(self, index: int) -> Floats:
        """Return input `index` at every point, shape (points, n)."""
        value = self.points[index]
        return np.asarray(value, np.float64).reshape(len(value), -1)

    def shape(self, index: int) -> tuple[int, ...]:
        """Return the core shape of input `index`."""
        return self.points[index].shape[1:]

    def at(self, lines: Lines, multiples: Floats) -> Floats:
        """Return y along the lines, shape (L, P, m)."""
        count = multiples.shape[-1]
        row_size = sum(value[:1].size for value in self.points)
        together = max(1, STACK // max(1, row_size * count))
        parts = [
            self._at(lines.some(slice(start, start + together)), _rows(multiples, start, together))
            for start in range(0, len(lines), together)
        ]
        return np.concatenate(parts)

    def seconds(self, lines: int, multiples: int) -> float:
        """Return about how long `at` would take: every line and multiple is a row."""
        return self.probe.seconds(lines * multiples)

    def _at(self, lines: Lines, multiples: Floats) -> Floats:
        count = multiples.shape[-1]
        stack = list(self.probe.take(self.points, np.repeat(lines.point, count)))
        moved = self.base(lines.index)[lines.point][:, None, :] + (
            lines.unit[:, None, :] * np.broadcast_to(multiples, (len(lines), count))[..., None]
        )
        stack[lines.index] = moved.astype(self.dtype).reshape(stack[lines.index].shape)
        y = self.probe.forward_rows(tuple(stack), self._y_size())
        return y.reshape(len(lines), count, -1)

    def _y_size(self) -> int:
        return sum(value[:1].size for value in self.points[:1])

    def pull(self, lines: Lines, cotangents: Floats) -> Floats:
        """Return the cotangents of the lines' array, shape (L, C, n)."""
        stack = self.probe.take(self.points, lines.point)
        pulled = self.probe.pull_rows(
            stack, [cotangents[:, c].astype(self.dtype) for c in range(cotangents.shape[1])]
        )
        return np.stack([_given(entries[lines.index]) for entries in pulled], axis=1)

    def pull_at(self, point: int, index: int, cotangents: Floats) -> Floats:
        """Return the cotangent of input `index` at one point for each of (C, m): (C, n)."""
        stack = self.probe.take(self.points, np.full(len(cotangents), point))
        return _given(self.probe.pull_rows(stack, [cotangents.astype(self.dtype)])[0][index])


class CallBench:
    """Every point is a whole call: for solvers that couple rows, and for args shared by them."""

    def __init__(self, probe: Probe, points: Sequence[Inputs]) -> None:
        self.probe = probe
        self.points = points
        self.dtype = points[0][0].dtype

    def base(self, index: int) -> Floats:
        """Return input `index` at every point, shape (points, n)."""
        return np.stack([np.asarray(p[index], np.float64).ravel() for p in self.points])

    def shape(self, index: int) -> tuple[int, ...]:
        """Return the shape of input `index`, batch axis and all."""
        return self.points[0][index].shape

    def at(self, lines: Lines, multiples: Floats) -> Floats:
        """Return y, flattened, along the lines: one call for each."""
        spread = np.broadcast_to(multiples, (len(lines), multiples.shape[-1]))
        return np.stack([self._along(lines, i, row) for i, row in enumerate(spread)])

    def seconds(self, lines: int, multiples: int) -> float:
        """Return about how long `at` would take: every line and multiple is a call."""
        return lines * multiples * self.probe.seconds(len(self.points[0][0]))

    def _along(self, lines: Lines, line: int, multiples: Floats) -> Floats:
        point = list(self.points[lines.point[line]])
        base = np.asarray(point[lines.index], np.float64)
        values = []
        for multiple in multiples:
            moved = base + (lines.unit[line] * multiple).reshape(base.shape)
            point[lines.index] = moved.astype(self.dtype)
            values.append(np.array(self.probe.forward(tuple(point)), np.float64).ravel())
        return np.stack(values)

    def pull(self, lines: Lines, cotangents: Floats) -> Floats:
        """Return the cotangents of the lines' array, shape (L, C, n)."""
        return np.stack([self._pulled(lines, i, g) for i, g in enumerate(cotangents)])

    def _pulled(self, lines: Lines, line: int, cotangents: Floats) -> Floats:
        return self.pull_at(int(lines.point[line]), lines.index, cotangents)

    def pull_at(self, point: int, index: int, cotangents: Floats) -> Floats:
        """Return the cotangent of input `index` at one point for each of (C, m): (C, n)."""
        y, pullback = self.probe.linearize(self.points[point])
        shaped = cotangents.astype(y.dtype).reshape(-1, *y.shape)
        pulled = (np.array(_given(pullback(g)[index]), np.float64) for g in shaped)
        return np.stack([value.ravel() for value in pulled])


def _rows(multiples: Floats, start: int, count: int) -> Floats:
    return multiples if multiples.ndim == 1 else multiples[start : start + count]


def _given(value: AnyArray | None) -> AnyArray:
    assert value is not None, "lines are made for differentiable arrays only"
    return value


def make_lines(
    bench: Bench,
    index: int,
    point: NDArray[np.intp],
    direction: Floats,
    *,
    longest: float | Floats = LONGEST_STEP,
) -> Lines:
    """Return exact lines through `point` along about `direction`, as long as the bounds allow.

    Parameters
    ----------
    bench : Bench
    index : int
        The input array.
    point : ndarray of int, shape (L,)
    direction : ndarray, shape (L, n)
        In units of the array: a step of 1 moves by about the data's own spread.
    longest : float or ndarray, shape (L,)
        The longest step where there is room for it.
    """
    base = bench.base(index)[point]
    h0 = np.minimum(longest, ROOM * _room(bench, index, base, direction))
    reach = np.abs(base) + h0[:, None] * np.abs(direction)
    spacing = np.spacing(reach.astype(bench.dtype)).astype(np.float64)
    count = _resolved(STEPS[bench.dtype.name], h0, direction, spacing)
    shortest = h0[:, None] / RATIO ** (count - 1)
    spacings = np.rint(direction * shortest / spacing)
    spacings = np.where((spacings == 0) & (direction != 0), np.sign(direction), spacings)
    return Lines(index, point, spacings * spacing, h0, count)


def _room(bench: Bench, index: int, base: Floats, direction: Floats) -> Floats:
    """Return how far each line may go to both sides before it leaves the bounds."""
    shape = (len(base), *bench.shape(index))
    bounds = bench.probe.bounds(index)
    low, high = (np.broadcast_to(b, shape).reshape(base.shape) for b in bounds)
    nearest = np.minimum(base - low, high - base)
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.where(direction != 0, nearest / np.abs(direction), np.inf)
    return np.asarray(np.maximum(np.min(room, axis=1, initial=np.inf), 0.0))


def _resolved(count: int, h0: Floats, direction: Floats, spacing: Floats) -> int:
    """Return how many steps the spacing of numbers allows: at least 5, at most `count`."""
    moving = np.where(direction != 0, np.abs(direction), 0.0) * h0[:, None] / spacing
    widest = np.median(moving.max(axis=1, initial=0.0)) if len(moving) else 0.0
    if not np.isfinite(widest) or widest <= 1:
        return 5
    return int(np.clip(1 + np.floor(np.log(widest) / np.log(RATIO)), 5, count))
