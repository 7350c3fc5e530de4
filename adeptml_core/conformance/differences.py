r"""The slope of a function along lines, with an honest error bar, and no epsilon to choose.

Central differences at steps h, h/4, h/16, ... are combined to order 2, 4 and 6 (Richardson [1]_):

.. math::
    D_k = \frac{f(h_k) - f(-h_k)}{2 h_k}, \quad
    T^4_k = \frac{16 D_k - D_{k-1}}{15}, \quad
    T^6_k = \frac{256 T^4_k - T^4_{k-1}}{255}

Long steps suffer from truncation, short ones from the solver's noise. Both show in how much an
estimate still changes at the next step, :math:`\delta_k = |T_{k+1} - T_k|`:

* while truncation rules, the finer estimate is better than the change;
* noise of size η in f changes an estimate by η/h, so :math:`\delta_k h_{k+1}` *is* the noise, and
  the largest of the next few is the noise that the estimate at step h must expect, divided by h.

The error bar is the larger of the two, at every step and order; the estimate with the smallest bar
is taken, *without looking at the gradient that is to be judged*.

References
----------
.. [1] L. F. Richardson, "The approximate arithmetical solution by finite differences", Phil. Trans.
   R. Soc. A 210 (1911). https://doi.org/10.1098/rsta.1911.0009
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from adeptml_core.conformance.lines import RATIO, Bench, Floats, Lines

__all__ = ["Estimates", "Sweep", "estimate", "sweep"]

WINDOW = 5  # steps over which noise is looked for: one accidental agreement hides among five
GRID = 32  # points between a step that moves and one that does not
ONE_JUMP = 0.2  # of the way: between two steps there are up to four jumps
DEAR = 1.0  # seconds for a look between two steps
SAME_QUANTUM = 4.0  # quanta of rounding agree within this; dead zones of kinks do not


@dataclass(frozen=True)
class Sweep:
    """What was measured along L lines at K steps, for m outputs.

    Parameters
    ----------
    steps : ndarray, shape (L, K)
        h, longest first.
    slopes : ndarray, shape (L, K, m)
        Central differences.
    bends : ndarray, shape (L, K, m)
        ``(f(h) + f(-h) - 2 f(0)) / h``: goes to 0 with h, unless the point is at a kink.
    value : ndarray, shape (L, m)
        f(0).
    floor : ndarray, shape (L, m)
        What rounding leaves uncertain in f.
    """

    steps: Floats
    slopes: Floats
    bends: Floats
    value: Floats
    floor: Floats

    def combined(self, weights: Floats) -> "Sweep":
        """Return the sweep of ``f @ weights.T`` instead of f; weights have shape (outputs, m).

        One large product each (``@`` would make one of every line, a hundred times slower).
        """
        return Sweep(
            self.steps,
            np.tensordot(self.slopes, weights, (2, 1)),
            np.tensordot(self.bends, weights, (2, 1)),
            self.value @ weights.T,
            np.sqrt(self.floor**2 @ weights.T**2),
        )

    def some(self, which: Any) -> "Sweep":
        """Return some of the lines."""
        parts = (self.steps, self.slopes, self.bends, self.value, self.floor)
        return Sweep(*(part[which] for part in parts))


def sweep(bench: Bench, lines: Lines) -> Sweep:
    """Evaluate the solver on both sides of every point, at every step."""
    multiples = lines.multiples
    values = bench.at(lines, np.concatenate([multiples, -multiples, [0.0]]))
    count = lines.count
    ahead, behind, here = values[:, :count], values[:, count:-1], values[:, -1]
    steps = lines.steps
    rounding = float(np.finfo(bench.dtype).eps) * np.abs(here)
    with np.errstate(invalid="ignore", over="ignore"):
        slopes = (ahead - behind) / (2 * steps[..., None])
        bends = (ahead + behind - 2 * here[:, None]) / steps[..., None]
        moves = np.abs(ahead - behind)
        floor = np.maximum(rounding, _shared_quantum(moves, _quantum(bench, lines, moves)))
    return Sweep(steps, slopes, bends, here, floor)


def _quantum(bench: Bench, lines: Lines, moves: Floats) -> Floats:
    """Return the size below which f does not move at all, shape (L, m).

    A solver that computes inside in lower precision (or prints and reads back) moves in jumps: all
    differences below some step are exactly zero, and they agree with one another perfectly. The
    last one that is not zero is about the size of the jump. The same is seen at a point in the
    dead zone of a kink, where a slope of zero is the truth; there f sets out without a jump.
    """
    last = _last_moving(moves)
    stops = (moves > 0).any(axis=1) & (last < moves.shape[1] - 2)
    quantum = np.where(stops, np.take_along_axis(moves, last[:, None], axis=1)[:, 0], 0.0)
    for step in np.unique(last[stops]):
        outputs = stops & (last == step)
        which = np.flatnonzero(outputs.any(axis=1))
        multiple = lines.multiples[step]
        if multiple < GRID or bench.seconds(len(which), 2 * GRID + 2) > DEAR:
            continue
        smooth = np.zeros_like(outputs)
        smooth[which] = _sets_out_smoothly(bench, lines.some(which), multiple)
        quantum[outputs & smooth] = 0.0
    return np.asarray(quantum)


def _last_moving(moves: Floats) -> Any:
    """Return the number of the finest step that moves each output, shape (L, m)."""
    return moves.shape[1] - 1 - np.argmax((moves != 0)[:, ::-1], axis=1)


def _sets_out_smoothly(bench: Bench, lines: Lines, multiple: float) -> Any:
    """Tell which outputs change gradually from a step that leaves them still to one that does not.

    In a staircase the largest of the small changes in between is a whole jump.
    """
    grid = np.rint(np.linspace(multiple / RATIO, multiple, GRID + 1))
    values = bench.at(lines, np.concatenate([grid, -grid]))
    gradual = np.ones(values[:, 0].shape, dtype=bool)
    for side in (values[:, : len(grid)], values[:, len(grid) :]):
        change = np.abs(np.diff(side, axis=1))
        gradual &= change.max(axis=1) <= ONE_JUMP * change.sum(axis=1)
    return gradual


def _shared_quantum(moves: Floats, quantum: Floats) -> Floats:
    """Let outputs that never move share the quantum on which the others of their line agree."""
    never = (moves == 0).all(axis=1)
    for line in np.flatnonzero(never.any(axis=1) & (quantum > 0).any(axis=1)):
        found = quantum[line][quantum[line] > 0]
        if found.max() <= SAME_QUANTUM * found.min():
            quantum[line][never[line]] = np.median(found)
    return quantum


@dataclass(frozen=True)
class Estimates:
    """Every estimate of the slope, for L lines and C combinations of outputs.

    Parameters
    ----------
    slope, bar : ndarray, shape (L, S, C)
        The estimates over S pairs of step and order, and their error bars (inf where there is
        none).
    step : ndarray of int, shape (S,)
        Which step is the finest that each uses.
    order : ndarray of int, shape (S,)
    """

    slope: Floats
    bar: Floats
    step: np.ndarray[tuple[int], np.dtype[np.intp]]
    order: np.ndarray[tuple[int], np.dtype[np.intp]]

    def best(self) -> tuple[Floats, Floats, np.ndarray[tuple[int, ...], np.dtype[np.intp]]]:
        """Return slope, bar and number of the estimate with the smallest bar: each (L, C)."""
        which = np.argmin(self.bar, axis=1)
        picked = (np.take_along_axis(a, which[:, None], 1)[:, 0] for a in (self.slope, self.bar))
        slope, bar = picked
        return slope, bar, self.step[which]


def estimate(measured: Sweep, weights: Floats | None = None) -> Estimates:
    """Return the estimates of ``w . df/dt`` for the cotangents w.

    Parameters
    ----------
    measured : Sweep
    weights : ndarray, shape (L, C, m), optional
        Cotangents of each line; None: each output for itself (C = m).

    Notes
    -----
    With many outputs in one sum, its change from step to step may vanish by accident while the
    outputs themselves still move. So the change counts as the larger of that of the sum and the
    root of the summed squares.
    """
    floor = measured.floor
    if weights is not None:
        floor = np.sqrt(np.einsum("lm,lcm->lc", floor**2, weights**2))
    slopes, bars, steps, orders = [], [], [], []
    for order, table in zip((2, 4, 6), _richardson(measured.slopes), strict=True):
        first = measured.slopes.shape[1] - table.shape[1] + 1
        h = measured.steps[:, first:, None]  # step of the finer of each two
        change = _change(table, weights)
        with np.errstate(invalid="ignore", over="ignore"):
            noise = _running_max(np.nan_to_num(change * h, nan=np.inf))
            bar = np.maximum(noise, floor[:, None]) / h
        bars.append(bar)
        slopes.append(_contract(table[:, 1:], weights))
        steps.append(np.arange(first, measured.slopes.shape[1]))
        orders.append(np.full(table.shape[1] - 1, order))
    return Estimates(
        np.nan_to_num(np.concatenate(slopes, axis=1)),
        np.nan_to_num(np.concatenate(bars, axis=1), nan=np.inf),
        np.concatenate(steps),
        np.concatenate(orders),
    )


def _richardson(slopes: Floats) -> list[Floats]:
    """Return the tables of order 2, 4 and 6; each entry stands at its finest step."""
    tables = [slopes]
    for order in (2, 4):
        gain = RATIO**order
        last = tables[-1]
        with np.errstate(invalid="ignore"):
            tables.append((gain * last[:, 1:] - last[:, :-1]) / (gain - 1))
    return tables


def _contract(table: Floats, weights: Floats | None) -> Floats:
    return table if weights is None else np.einsum("lkm,lcm->lkc", table, weights, optimize=True)


def _change(table: Floats, weights: Floats | None) -> Floats:
    with np.errstate(invalid="ignore"):
        change = np.diff(table, axis=1)
    if weights is None:
        return np.abs(change)
    total = np.abs(_contract(change, weights))
    return np.maximum(total, np.sqrt(_contract(change**2, weights**2)))


def _running_max(values: Floats) -> Floats:
    """Return the maximum of each value and the next few along axis 1."""
    padded = np.pad(values, ((0, 0), (0, WINDOW - 1), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=1)
    return np.asarray(windows.max(axis=-1))
