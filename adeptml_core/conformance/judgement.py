"""When a gradient is wrong, when it is not, and when nobody can tell.

A probe is a line and a cotangent w: the differences give ``q = w . df/dt`` with an error bar E, the
pullback claims ``p = pullback(w) . direction``. It fails where **all** of these hold, so that a
right gradient of an awkward function passes:

1. ``|p - q| > tol * scale + 10 E``. Measured on smooth, right solvers the error never exceeded
   about 2 E; ten is a wide berth. The scale is not q alone, which may vanish by cancellation, but
   the size of what cancelled.
2. No other accurate estimate (another step or order) agrees with p.
3. The point is not at a kink: the bend ``f(h) + f(-h) - 2 f(0)`` over h does not persist as h
   shrinks.
4. It fails again, by about the same amount, with other steps.
5. There is a derivative at the point: slopes along d, e and d + e add up.
6. The disagreement is not what jumps of the value explain. An adaptive or iterative solver is a
   patchwork of smooth pieces with small jumps between; its derivative inside a piece differs from
   the ideal one by up to jump / size of the piece.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from adeptml_core.conformance.differences import Estimates, Sweep, estimate, sweep
from adeptml_core.conformance.lines import Bench, Floats, Lines, make_lines

__all__ = [
    "BARS",
    "Judgement",
    "Roughness",
    "judge",
    "retried",
    "roughness",
    "without_derivative",
]

BARS = 10.0
AGREES = 0.25  # of the error: an estimate this near the gradient supports it ...
ACCURATE = 0.15  # ... if its own bar is smaller than this part of the error
BENT = 0.3  # of the error: bends smaller than this do not explain it
PERSISTS = 0.4  # of a bend two steps finer; a smooth function keeps 1/16
OTHER_STEPS = 0.7071  # neither a step of the ladder nor a rational part of one
SAME_ERROR = 0.5  # the error with other steps may differ by half
JUMPS = 20.0  # jumps explain errors up to this many times jump / piece
POINTS = 33  # along a line, to look for jumps
MAGNIFIED = 8.0
TORN = 0.03  # of the error: where slopes do not add up by this much, there is no derivative
OTHERS = 5  # directions that a suspect one is added to


@dataclass(frozen=True)
class Judgement:
    """The outcome of L lines with C cotangents each; every array has shape (L, C).

    Parameters
    ----------
    claimed, slope, bar : ndarray
        p, q and E.
    scale : ndarray
        What the error is measured against.
    error : ndarray
        ``p - q``.
    step : ndarray
        The h that was taken.
    suspect : ndarray of bool
        Conditions 1 to 3 hold.
    kinked : ndarray of bool
        Conditions 1 and 2 hold, but the point is at a kink.
    """

    claimed: Floats
    slope: Floats
    bar: Floats
    scale: Floats
    error: Floats
    step: Floats
    suspect: np.ndarray[Any, np.dtype[np.bool_]]
    kinked: np.ndarray[Any, np.dtype[np.bool_]]

    @property
    def relative(self) -> Floats:
        """The error over its scale."""
        return np.asarray(np.abs(self.error) / np.where(self.scale > 0, self.scale, 1.0))

    @property
    def resolution(self) -> Floats:
        """The error bar over the scale: what could be seen at best."""
        return np.asarray(self.bar / np.where(self.scale > 0, self.scale, 1.0))


def judge(
    measured: Sweep,
    weights: Floats | None,
    claimed: Floats,
    size: Floats,
    tolerance: float,
    typical: Floats,
) -> Judgement:
    """Judge claimed slopes by a sweep.

    Parameters
    ----------
    measured : Sweep
    weights : ndarray, shape (L, C, m), optional
        Cotangents; None: each output for itself.
    claimed : ndarray, shape (L, C)
        ``pullback(w) . direction``.
    size : ndarray, shape (L, C)
        ``norm(pullback(w) * direction)``: what may have cancelled in `claimed`.
    tolerance : float
        Relative.
    typical : ndarray, shape (m,)
        The usual slope of each output: where all slopes vanish, small errors are measured by it.
    """
    estimates = estimate(measured, weights)
    slope, bar, step = estimates.best()
    error = claimed - slope
    spread = _spread(measured, weights, step)
    scale = np.maximum(np.maximum(size, spread), np.abs(slope) / 2)
    if weights is None:
        floor = np.broadcast_to(typical, scale.shape)
    else:
        floor = np.sqrt(np.einsum("m,lcm->lc", typical**2, weights**2))
    scale = np.where(np.isfinite(bar), scale, np.maximum(size, floor))
    off = np.abs(error) > tolerance * np.maximum(scale, floor) + BARS * bar
    off |= ~np.isfinite(claimed)
    lonely = off & ~_supported(estimates, claimed, error)
    kinked = lonely & _kinked(measured, weights, step, error)
    h = np.take_along_axis(measured.steps, step, axis=1)
    return Judgement(
        claimed, slope, bar, np.maximum(scale, floor), error, h, lonely & ~kinked, kinked
    )


def _spread(measured: Sweep, weights: Floats | None, step: Any) -> Floats:
    """Return the root of the summed squares of the slopes at the chosen step, shape (L, C)."""
    if weights is None:
        return np.abs(np.take_along_axis(measured.slopes, step[:, None, :], axis=1)[:, 0])
    squares = np.einsum("lkm,lcm->lkc", measured.slopes**2, weights**2, optimize=True)
    return np.asarray(np.sqrt(np.take_along_axis(squares, step[:, None, :], axis=1)[:, 0]))


def _supported(estimates: Estimates, claimed: Floats, error: Floats) -> Any:
    """Tell which claims another accurate estimate supports."""
    size = np.abs(error)[:, None]
    near = np.abs(estimates.slope - claimed[:, None]) <= AGREES * size
    return ((estimates.bar <= ACCURATE * size) & near).any(axis=1)


def _kinked(measured: Sweep, weights: Floats | None, step: Any, error: Floats) -> Any:
    """Tell where the bend persists as the step shrinks: the function has a kink at the point.

    Either in the weighted sum itself, where the bend must be large enough to explain the error; or
    in any output along the line: where a sort or an eigenvalue has a tie, the outputs that bend
    are not those whose claimed slope is off, but there is no derivative for any of them.
    """
    bends = np.nan_to_num(measured.bends, nan=0.0, posinf=0.0, neginf=0.0)
    if weights is None:
        bend = np.abs(bends)
    else:
        bend = np.sqrt(np.einsum("lkm,lcm->lkc", bends**2, weights**2, optimize=True))
    here = np.take_along_axis(bend, step[:, None, :], axis=1)[:, 0]
    finer = np.minimum(step + 2, bend.shape[1] - 1)
    later = np.take_along_axis(bend, finer[:, None, :], axis=1)[:, 0]
    in_sum = (here > BENT * np.abs(error)) & (later > PERSISTS * here)
    return in_sum | _bent_somewhere(measured, bends)[:, None]


def _bent_somewhere(measured: Sweep, bends: Floats) -> Any:
    """Tell which lines go through a kink of some output: its bend stays the same at every step."""
    size = np.abs(bends)
    middle = slice(size.shape[1] // 3, 1 + 2 * size.shape[1] // 3)  # neither truncation nor noise
    size, steps = size[:, middle], measured.steps[:, middle, None]
    clear = size > 100 * measured.floor[:, None] / steps
    stays = size.min(axis=1) > (1 - PERSISTS / 4) * size.max(axis=1)
    return (clear.all(axis=1) & stays).any(axis=1)


def retried(
    bench: Bench, lines: Lines, weights: Floats, first: Judgement, tolerance: float, typical: Floats
) -> Judgement:
    """Judge the same lines again, with other steps; what was suspect stays so if both agree."""
    again = make_lines(
        bench,
        lines.index,
        lines.point,
        lines.direction,
        longest=OTHER_STEPS * lines.longest,
    )
    pulled = bench.pull(again, weights)
    moved = pulled * again.direction[:, None, :]
    second = judge(
        sweep(bench, again),
        weights,
        moved.sum(-1),
        np.sqrt((moved**2).sum(-1)),
        tolerance,
        typical,
    )
    same = np.abs(second.error - first.error) <= SAME_ERROR * np.abs(first.error)
    same |= ~np.isfinite(first.claimed)
    return Judgement(
        first.claimed,
        first.slope,
        first.bar,
        first.scale,
        first.error,
        first.step,
        first.suspect & second.suspect & same,
        first.kinked,
    )


def without_derivative(bench: Bench, lines: Lines, weights: Floats, judged: Judgement) -> Any:
    """Tell at which points the slopes along d, e and d + e do not add up, shape (L, C).

    There the function has no derivative, though it may have a slope along every line: a limiter
    where all its arguments vanish, ``|x| cos(3 phi)`` at the origin. Its bend along a line may well
    be zero, but a sum that is clearly off leaves no derivative to judge by.
    """
    rng = bench.probe.rng("additive")
    largest = np.abs(lines.direction).max(axis=1, keepdims=True)
    scale = np.where(lines.direction != 0, np.abs(lines.direction), largest)
    torn = np.zeros(judged.error.shape, dtype=bool)
    for _ in range(OTHERS):  # by chance one of them adds up
        other = rng.standard_normal(lines.direction.shape) * scale
        along = [
            make_lines(bench, lines.index, lines.point, direction, longest=lines.longest)
            for direction in (other, lines.direction + other)
        ]
        (one, one_bar), (both, both_bar) = (
            estimate(sweep(bench, made), weights).best()[:2] for made in along
        )
        gap = np.abs(both - one - judged.slope)
        # Each direction is rounded for itself (`make_lines`), so they do not quite add up either.
        left = along[1].direction - along[0].direction - lines.direction
        rounded = np.linalg.norm(left, axis=1) / np.linalg.norm(lines.direction, axis=1)
        size = np.abs(one) + np.abs(both) + np.abs(judged.slope)
        unsure = BARS * (one_bar + both_bar + judged.bar + rounded[:, None] * size)
        torn |= np.isfinite(gap) & (gap > unsure + TORN * np.abs(judged.error))
    # What one line shows of a point holds for all lines through it.
    points = lines.point[(torn & judged.suspect).any(axis=1)]
    return torn | np.isin(lines.point, points)[:, None]


@dataclass(frozen=True)
class Roughness:
    """Jumps of the value along each line, shape (L,): their size, and the size of the pieces."""

    jump: Floats
    piece: Floats

    def explains(self, error: Floats, longest: Floats) -> Any:
        """Tell which errors the jumps explain."""
        return np.abs(error) * np.minimum(longest, self.piece) <= JUMPS * self.jump


def roughness(bench: Bench, lines: Lines, weights: Floats) -> Roughness:
    """Look for jumps of ``w . f`` along each line; `weights` has shape (L, m).

    Fourth differences of a smooth function shrink by 256 when the spacing shrinks by 4. Over a jump
    they stay. So the largest is looked at again through a magnifying glass: if it has not shrunk
    there, it is a jump (a kink would have shrunk by the magnification).
    """
    jump, piece = np.zeros(len(lines)), np.ones(len(lines))
    for width in (4.0, 1.0, 0.25):
        half = width * lines.multiples[0]
        centre = np.zeros((len(lines), 1))
        grid = np.linspace(-half, half, POINTS)
        rough = _fourth(bench, lines, weights, centre + grid)
        spike = rough.max(axis=1)
        centre = grid[np.argmax(rough, axis=1) + 2][:, None]
        zoomed = _fourth(bench, lines, weights, centre + grid / MAGNIFIED)
        is_jump = (spike > 0) & (zoomed.max(axis=1) > 0.5 * spike)
        # A jump shows in four fourth differences (1, -3, 3, -1).
        spikes = np.maximum(1.0, (rough > 0.3 * spike[:, None]).sum(axis=1) / 3)
        size = 2 * width * lines.longest / spikes
        found = is_jump & (spike / 3 / size > jump / piece)
        jump, piece = np.where(found, spike / 3, jump), np.where(found, size, piece)
    return Roughness(jump, piece)


def _fourth(bench: Bench, lines: Lines, weights: Floats, multiples: Floats) -> Floats:
    """Return the size of fourth differences of f, weighted, along a grid: (L, points - 4)."""
    with np.errstate(invalid="ignore", over="ignore"):
        values = np.diff(bench.at(lines, np.rint(multiples)), 4, axis=1)
        total = np.sqrt(np.einsum("lpm,lm->lp", values**2, weights**2, optimize=True))
    return np.asarray(np.nan_to_num(total, nan=0.0, posinf=0.0, neginf=0.0))
