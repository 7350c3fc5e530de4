"""The gradient of each array, by differences: whether it is right, at every kind of point.

For each differentiable array, lines are drawn through the example, through the declared bounds and
beyond the example; each is judged with several cotangents (`adeptml_core.conformance.judgement`),
and the Jacobian at one point is compared whole (`adeptml_core.conformance.jacobian`). The defect
that each part catches:

================= =============================================================================
dense directions  almost anything: a sign, a factor, a missing term
sparse, one-hot   a wrong entry or boundary row that a dense sum hides
equalised w       an error in outputs that are small beside the others
bounds            a regime that the example does not reach; equal entries; values next to a bound
scaled example    a term that vanishes near the example
bounds scan       a regime that fills a per cent of the bounds
Jacobian          one wrong entry among thousands, and where it is
pooled slope      a factor close to 1, under noise
================= =============================================================================
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adeptml_core.conformance import points as drawing
from adeptml_core.conformance.differences import Sweep, estimate, sweep
from adeptml_core.conformance.jacobian import Block, compare
from adeptml_core.conformance.judgement import (
    Judgement,
    Roughness,
    judge,
    retried,
    roughness,
    without_derivative,
)
from adeptml_core.conformance.lines import Bench, CallBench, Floats, Lines, RowBench, make_lines
from adeptml_core.conformance.probe import Inputs, Probe

__all__ = ["Examination", "examine", "tolerance_of"]

TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "float16": 0.05}
EXAMPLES = 8
COTANGENTS = 4
SPARSE = 0.25  # part of the components that a sparse direction or cotangent has
RETRIED = 12  # suspect lines that are measured again; more would not change the verdict
RETRIED_BY_CALL = 4  # ... where each evaluation is a call
SCANNED = 256
WORST = 6
ROUNDINGS = 64.0
MOST_VALUES = 2**24  # numbers that a sweep may hold: 128 MB


def tolerance_of(probe: Probe, dtype: np.dtype[Any]) -> float:
    """Return the relative accuracy demanded: what rounding allows, or what the author claims."""
    return max(TOLERANCE[dtype.name], probe.spec.tolerance or 0.0)


@dataclass
class Examination:
    """All that was measured of one array's gradient; what the diagnosis and the plots read.

    ``wrong`` (L, C) marks the confirmed failures, ``rough`` those that jumps of the value explain.
    """

    probe: Probe
    bench: Bench
    index: int
    tolerance: float
    lines: Lines
    labels: list[str]
    measured: Sweep
    weights: Floats
    judged: Judgement
    scale: Floats
    is_example: Any
    wrong: Any
    rough: Any
    typical: Floats
    blocks: list[Block] = field(default_factory=list)


def examine(
    probe: Probe,
    index: int,
    dtype: np.dtype[Any],
    *,
    directions: int | None = None,
    thorough: bool = True,
) -> Examination:
    """Measure the gradient of input `index` in `dtype`.

    Parameters
    ----------
    directions : int, optional
        Dense directions at each example point; more of them find smaller errors in single entries.
    thorough : bool
        False: the example points and one dense direction each, for variants of a solver that is
        examined elsewhere.
    """
    rng = probe.rng(f"gradient:{probe.name(index)}:{dtype.name}")
    bench: CallBench | RowBench
    if probe.coupled or not probe.is_stacked(index):
        bench, labels = _call_bench(probe, dtype, thorough)
    else:
        bench, labels = _row_bench(probe, index, dtype, rng, thorough)
    core = drawing.spread_of(probe, index)
    scale = np.array(np.broadcast_to(core, bench.shape(index))).ravel()
    lines, kinds = _lines(bench, index, labels, scale, rng, directions, thorough)
    examined = _judged(probe, bench, index, lines, kinds, scale, rng)
    _confirm(examined)
    if thorough and not examined.wrong.any():
        _scan(examined, rng)
    if thorough:
        _whole_jacobian(examined, rng)
    return examined


# ---- points -----------------------------------------------------------------------------------


def _call_bench(probe: Probe, dtype: np.dtype[Any], thorough: bool) -> tuple[CallBench, list[str]]:
    """Return a few whole calls as points."""
    rng = probe.rng("call points")
    batch = 3 if probe.spec.row_independent is False else 1 if probe.coupled else 2
    draws = [probe.cast(probe.draw(rng, batch), dtype) for _ in range(4 if thorough else 2)]
    return CallBench(probe, draws), ["example"] * len(draws)


def _row_bench(
    probe: Probe, index: int, dtype: np.dtype[Any], rng: np.random.Generator, thorough: bool
) -> tuple[RowBench, list[str]]:
    """Return example rows, rows inside the bounds, and rows beyond the example that work."""
    count = EXAMPLES if thorough else 4
    base = probe.cast(probe.examples("gradient", count), dtype)
    stacks, labels = [base], ["example"] * count
    if thorough:
        inside = drawing.bounded_points(probe, base, rng, dtype)
        beyond = [p for p in drawing.free_points(probe, base, rng, dtype) if _works(probe, p[1])]
        for label, point in _usable(probe, inside) + beyond:
            stacks.append(point)
            labels.append(label)
    return RowBench(probe, drawing.joined(stacks, probe)), labels


def _works(probe: Probe, point: Inputs) -> bool:
    """Tell whether the solver computes anything there; any complaint of it will do."""
    try:
        return bool(np.isfinite(probe.forward_rows(point)).all())
    except Exception:  # whatever it says, that point is not promised
        return False


def _usable(probe: Probe, inside: list[tuple[str, Inputs]]) -> list[tuple[str, Inputs]]:
    """Return points within the bounds, unless the solver breaks there, which another check says."""
    if not inside or _works(probe, drawing.joined([p for _, p in inside], probe)):
        return inside
    return [item for item in inside if _works(probe, item[1])]


# ---- lines ------------------------------------------------------------------------------------


def _lines(
    bench: Bench,
    index: int,
    labels: list[str],
    scale: Floats,
    rng: np.random.Generator,
    directions: int | None,
    thorough: bool,
) -> tuple[Lines, list[str]]:
    """Return lines through every point, and the label of each."""
    base = bench.base(index)
    n = len(scale)
    points, kinds, vectors = [], [], []
    for point, label in enumerate(labels):
        here = _scale_at(bench, index, base[point], scale, label)
        for vector in _directions(n, label, rng, directions, thorough):
            points.append(point)
            kinds.append(label)
            vectors.append(vector * here)
    kept = _affordable(bench, len(points), n, base.shape[0])
    chosen = np.arange(len(points)) if kept >= len(points) else _spread_choice(len(points), kept)
    lines = make_lines(bench, index, np.array(points)[chosen], np.array(vectors)[chosen])
    moving = np.flatnonzero((lines.longest > 0) & np.any(lines.unit != 0, axis=1))
    return lines.some(moving), [kinds[i] for i in chosen[moving]]


def _spread_choice(total: int, kept: int) -> Any:
    """Return `kept` numbers below `total`, evenly spread: some of every kind of point."""
    return np.unique(np.linspace(0, total - 1, kept).round().astype(int))


def _affordable(bench: Bench, lines: int, n: int, points: int) -> int:
    """Return how many lines memory and time allow; a slow solver gets fewer, but four at least."""
    probe, evaluations = bench.probe, 29
    most = max(4, MOST_VALUES // (evaluations * max(n, 1)))
    share = min(probe.budget.left(), 60.0) / (4 * max(1, sum(probe.spec.differentiable)))
    if isinstance(bench, CallBench):
        rows = len(bench.points[0][0])
        one = evaluations * probe.seconds(rows) + COTANGENTS * probe.pull_seconds(rows)
    else:
        one = evaluations * max(0.0, probe.seconds(2) - probe.seconds(1))
        one += COTANGENTS * max(0.0, probe.pull_seconds(2) - probe.pull_seconds(1))
    return min(lines, most, max(4, int(share / one)) if one > 0 else most)


def _scale_at(bench: Bench, index: int, base: Floats, scale: Floats, label: str) -> Floats:
    """Return the scale of each component at a point.

    Points drawn from bounds may lie decades below the example: there a step as large as the
    example's spread would leave the regime, and the bounds. So it is capped by the room, and by the
    value itself where the array cannot be negative.
    """
    if label == "example":
        return scale
    if " x " in label:
        return np.minimum(scale, np.maximum(np.abs(base), 0.1 * scale))
    low, high = (np.broadcast_to(b, bench.shape(index)).ravel() for b in bench.probe.bounds(index))
    room = np.minimum(base - low, high - base)
    capped = np.where(low >= 0, np.minimum(scale, np.abs(base)), scale)
    return np.asarray(np.minimum(capped, np.maximum(2 * room, 0.0)))


def _directions(
    n: int, label: str, rng: np.random.Generator, directions: int | None, thorough: bool
) -> list[Floats]:
    dense = 1 if directions is None or label != "example" else max(1, directions)
    vectors = [rng.standard_normal(n) for _ in range(dense)]
    if thorough and n > 1:
        sparse = rng.standard_normal(n) * (rng.random(n) < SPARSE)
        sparse[rng.integers(n)] = 1.0
        vectors.append(sparse)
        if label == "example":
            single = np.zeros(n)
            single[rng.integers(n)] = 1.0
            vectors.append(single)
    return vectors


# ---- cotangents and judgement -----------------------------------------------------------------


def _judged(
    probe: Probe,
    bench: Bench,
    index: int,
    lines: Lines,
    kinds: list[str],
    scale: Floats,
    rng: np.random.Generator,
) -> Examination:
    measured = sweep(bench, lines)
    weights, typical = _cotangents(measured, rng, bench.dtype)
    tolerance = tolerance_of(probe, bench.dtype)
    claimed, size = _claims(bench, lines, weights)
    judged = judge(measured, weights, claimed, size, tolerance, typical)
    judged = _ignored_where_undefined(judged, measured)
    return Examination(
        probe,
        bench,
        index,
        tolerance,
        lines,
        kinds,
        measured,
        weights,
        judged,
        scale,
        np.array([kind == "example" for kind in kinds]),
        wrong=np.zeros_like(judged.suspect),
        rough=np.zeros_like(judged.suspect),
        typical=typical,
    )


def _claims(bench: Bench, lines: Lines, weights: Floats) -> tuple[Floats, Floats]:
    moved = bench.pull(lines, weights) * lines.direction[:, None, :]
    with np.errstate(invalid="ignore", over="ignore"):
        return moved.sum(-1), np.sqrt((moved**2).sum(-1))


def _ignored_where_undefined(judged: Judgement, measured: Sweep) -> Judgement:
    """Let points be where result or gradient is not finite: other checks say whether it may."""
    finite = np.asarray(np.isfinite(measured.value).all(axis=1))
    defined = finite[:, None] & np.isfinite(judged.claimed)
    return Judgement(
        judged.claimed,
        judged.slope,
        np.where(defined, judged.bar, np.inf),
        judged.scale,
        np.where(defined, judged.error, 0.0),
        judged.step,
        judged.suspect & defined,
        judged.kinked & defined,
    )


def _cotangents(
    measured: Sweep, rng: np.random.Generator, dtype: np.dtype[Any]
) -> tuple[Floats, Floats]:
    """Return cotangents (L, C, m) for each line, and the typical slope of each output (m,).

    Plain; equalised, so that outputs which hardly move count as much as those that do; equalised
    and sparse; one-hot.
    """
    slope, bar, _ = estimate(measured).best()
    known = np.where(np.isfinite(bar), np.abs(slope), 0.0)
    typical = _typical(known, dtype)
    count, m = known.shape
    if m == 1:
        return np.ones((count, 1, 1)), typical
    largest = known.max(axis=1, keepdims=True)
    trusted = np.maximum(known, np.maximum(3 * np.where(np.isfinite(bar), bar, 0), 1e-9 * largest))
    equal = np.where(largest > 0, largest / np.maximum(trusted, 1e-300), 1.0)
    plain, second, third = (rng.standard_normal((count, m)) for _ in range(3))
    sparse = third * (rng.random((count, m)) < SPARSE)
    single = np.zeros((count, m))
    chosen = rng.integers(m, size=count)
    single[np.arange(count), chosen] = 1.0
    sparse[np.arange(count), chosen] += third[np.arange(count), chosen]
    return np.stack([plain, second * equal, sparse * equal, single], axis=1), typical


def _typical(known: Floats, dtype: np.dtype[Any]) -> Floats:
    """Return the usual slope of each output, against which vanishing ones are measured: (m,).

    The median over all lines; and at least so much that a few roundings of the largest slope are no
    error: where a sigmoid saturates, its derivative is 1e-100, and a right formula may say 0.
    """
    rounding = ROUNDINGS * float(np.finfo(dtype).eps) / TOLERANCE[dtype.name]
    largest = known.max(axis=0, initial=0.0)
    usual = np.median(known, axis=0) if len(known) else largest
    return np.asarray(np.maximum(usual, rounding * largest))


def _confirm(examined: Examination) -> None:
    """Measure the suspects again, and set aside what jumps of the value explain."""
    judged = examined.judged
    suspects = _worst_lines(judged.suspect, judged)
    if isinstance(examined.bench, CallBench):
        suspects = suspects[:RETRIED_BY_CALL]
    if not len(suspects):
        return
    lines, weights = examined.lines.some(suspects), examined.weights[suspects]
    first = _part(judged, suspects)
    again = retried(
        examined.bench, lines, weights, first, examined.tolerance, examined.typical
    ).suspect
    if again.any():
        torn = again & without_derivative(examined.bench, lines, weights, first)
        judged.kinked[suspects] |= torn
        again &= ~torn
    rough = np.zeros_like(again)
    for column in np.flatnonzero(again.any(axis=0)):
        found = roughness(examined.bench, lines, weights[:, column])
        rough[:, column] = _explained(found, first.error[:, column], lines) & again[:, column]
    if rough.sum() > again.sum() / 2:
        rough |= again & (
            np.abs(first.error) <= 3 * np.max(np.abs(first.error), where=rough, initial=0)
        )
    examined.wrong[suspects] = again & ~rough
    examined.rough[suspects] = rough


def _explained(found: Roughness, error: Floats, lines: Lines) -> Any:
    return found.explains(error, lines.longest)


def _part(judged: Judgement, which: Any) -> Judgement:
    return Judgement(*(getattr(judged, name)[which] for name in Judgement.__annotations__))


def _worst_lines(mask: Any, judged: Judgement) -> Any:
    """Return the numbers of the lines that are worst among those marked, at most `RETRIED`."""
    marked = np.flatnonzero(mask.any(axis=1))
    excess = np.nan_to_num(np.abs(judged.error) / (judged.scale + 1e-300), nan=np.inf)
    excess = np.where(mask, excess, 0.0).max(axis=1)[marked]
    return marked[np.argsort(-excess, kind="stable")][:RETRIED]


# ---- the bounds, wall to wall -----------------------------------------------------------------


def _scan(examined: Examination, rng: np.random.Generator) -> None:
    """Screen many points in the bounds with few steps; sweep the worst of them in full."""
    probe, bench, index = examined.probe, examined.bench, examined.index
    if not isinstance(bench, RowBench) or not any(
        probe.is_bounded(i) for i in range(len(probe.spec.inputs))
    ):
        return
    rows = min(SCANNED, MOST_VALUES // (64 * max(1, len(examined.scale))))
    if probe.seconds(11 * rows) + probe.pull_seconds(COTANGENTS * rows) > min(
        2.0, probe.budget.left() / 4
    ):
        rows = 32
    base = probe.cast(probe.examples("scan", EXAMPLES), bench.dtype)
    stack = drawing.corners(probe, base, rng, bench.dtype, rows)
    if not _works(probe, stack):
        return
    scan = RowBench(probe, stack)
    values = scan.base(index)
    scale = np.stack([_scale_at(scan, index, v, examined.scale, "scan") for v in values])
    lines = make_lines(
        scan, index, np.arange(rows), rng.standard_normal(scale.shape) * scale, longest=2.0**-5
    )
    lines = lines.some(np.flatnonzero((lines.longest > 0) & np.any(lines.unit != 0, axis=1)))
    if not len(lines):
        return
    short = Lines(index, lines.point, lines.unit * 4.0 ** (lines.count - 5), lines.longest, 5)
    worst = _screened(scan, short, rng)
    label = [f"{probe.name(index)} in the bounds"] * len(worst)
    deeper = _judged(probe, scan, index, lines.some(worst), label, examined.scale, rng)
    _confirm(deeper)
    if deeper.wrong.any():
        _take_over(examined, deeper)


def _screened(bench: RowBench, lines: Lines, rng: np.random.Generator) -> Any:
    """Return the lines whose gradient looks worst after five steps."""
    measured = sweep(bench, lines)
    weights, typical = _cotangents(measured, rng, bench.dtype)
    claimed, size = _claims(bench, lines, weights)
    judged = _ignored_where_undefined(
        judge(measured, weights, claimed, size, 1e-6, typical), measured
    )
    excess = np.abs(judged.error) / (1e-6 * judged.scale + 3 * judged.bar + 1e-300)
    return np.argsort(-np.nan_to_num(excess, nan=np.inf).max(axis=1), kind="stable")[:WORST]


def _take_over(examined: Examination, found: Examination) -> None:
    """Let the scan's findings stand for the examination: that is where the fault is."""
    for name in (
        "bench",
        "lines",
        "labels",
        "measured",
        "weights",
        "judged",
        "wrong",
        "rough",
        "typical",
    ):
        setattr(examined, name, getattr(found, name))
    examined.is_example = found.is_example


# ---- the Jacobian -----------------------------------------------------------------------------


def _whole_jacobian(examined: Examination, rng: np.random.Generator) -> None:
    """Compare the whole Jacobian, at the worst point where there is one, else at an example."""
    point = 0
    if examined.wrong.any():
        worst = _worst_lines(examined.wrong, examined.judged)[0]
        point = int(examined.lines.point[worst])
    block = compare(examined.bench, examined.index, point, examined.scale, rng, examined.tolerance)
    if block.wrong.any() and not examined.wrong.any():
        block = _without_jumps(examined, block)
    examined.blocks.append(block)


def _without_jumps(examined: Examination, block: Block) -> Block:
    """Return `block` with those entries cleared that jumps or a missing derivative explain."""
    lines = np.flatnonzero(block.wrong.any(axis=0))
    made = make_lines(
        examined.bench,
        block.index,
        np.full(len(lines), block.point),
        block.inputs[lines] * examined.scale,
    )
    error = block.returned - block.measured
    part = Judgement(*(getattr(block.judgement, name)[lines] for name in Judgement.__annotations__))
    weights = np.broadcast_to(block.outputs, (len(lines), *block.outputs.shape))
    block.wrong[:, lines] &= ~without_derivative(examined.bench, made, weights, part).T
    for number, line in enumerate(lines):
        for output in np.flatnonzero(block.wrong[:, line])[:8]:
            one = made.some(np.array([number]))
            found = roughness(examined.bench, one, block.outputs[output][None])
            if found.explains(error[output, line], one.longest)[0]:
                block.wrong[output, line] = False
    return block


def all_suspects(examined: Sequence[Examination]) -> int:
    """Return how many probes were suspect before they were measured again."""
    return sum(int(e.judged.suspect.sum()) for e in examined)
