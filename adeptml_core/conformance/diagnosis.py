"""What is wrong with a gradient that failed: not only that it is.

Three readings of the same measurements, from the most to the least certain:

* all probes together, claimed p against measured q: a line through the origin of slope -1, 0 or c
  is a wrong sign, a missing gradient, a constant factor;
* the Jacobian at the worst point: its transpose, single entries, whole rows or columns;
* the other arrays and points: the gradient of another arg, of another point, right at the example
  and wrong in a regime.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from adeptml_core.conformance.differences import estimate, sweep
from adeptml_core.conformance.gradients import Examination, tolerance_of
from adeptml_core.conformance.jacobian import Block, compare, groups
from adeptml_core.conformance.judgement import BARS
from adeptml_core.conformance.lines import CallBench, Floats, make_lines
from adeptml_core.conformance.records import Diagnosis

__all__ = ["Entry", "Reading", "diagnose", "factor_name", "locate", "ratio_of"]

SAME = 1e-3  # relative: two gradients that agree so are the same, for a diagnosis
ACCURATE = 0.02  # probes measured worse than this say nothing about the kind of fault
FOLDED = 16  # groups of inputs and outputs, to look for a transpose
SPARSE = 0.7  # part of the entries: of a full Jacobian the pattern says nothing
RELATED = 0.3  # correlation above which most of the gradient is there and a part is missing


@dataclass(frozen=True)
class Reading:
    """A diagnosis, the sentence that says it, and what to look at."""

    diagnosis: Diagnosis
    sentence: str
    look_at: str


@dataclass(frozen=True)
class Entry:
    """The worst entry: where it is and the two values."""

    index: tuple[int, ...]
    output: tuple[int, ...] | None
    returned: float
    expected: float
    bar: float
    relative: float


def diagnose(examined: Examination) -> Reading:
    """Return the most telling reading of a failed examination."""
    for reading in (
        _pooled,
        _transposed,
        _axes_swapped,
        _swapped,
        _of_another_point,
        _of_the_first_call,
        _regime,
        _structure,
    ):
        found = reading(examined)
        if found is not None:
            return found
    return _related(examined)


# ---- all probes together ------------------------------------------------------------------------


def _accurate(examined: Examination) -> tuple[Floats, Floats, Floats]:
    """Return (p, q, error bar) of the probes that are measured well, each in its own scale."""
    judged = examined.judged
    good = (judged.resolution < ACCURATE) & np.isfinite(judged.claimed) & (judged.scale > 0)
    scale = judged.scale[good]
    return judged.claimed[good] / scale, judged.slope[good] / scale, judged.resolution[good]


def _is_explained(claimed: Floats, slope: Floats, residual: Floats, examined: Examination) -> bool:
    """Tell whether what is left over beside a factor is small, beside what was wrong before.

    Where one entry of thousands is wrong, most probes fit a factor of 1, and those that do not are
    no better for it.
    """
    error = np.abs(claimed - slope)
    wrong = error > 10 * examined.tolerance * np.maximum(np.abs(claimed), np.abs(slope))
    return (
        bool(np.median(residual[wrong]) <= 0.1 * np.median(error[wrong])) if wrong.any() else True
    )


def _pooled(examined: Examination) -> Reading | None:
    claimed, slope, bar = _accurate(examined)
    if len(claimed) < 2 or not np.any(slope):
        return None
    if not np.any(claimed):
        return Reading(
            Diagnosis.MISSING_TERM,
            "the returned gradient is zero everywhere, but the result does depend on the array.",
            "is the gradient ever computed, or lost on the way (a detached copy, integer "
            "division)?",
        )
    weight = 1 / (bar + SAME + examined.tolerance)
    factor = float((weight * claimed) @ (weight * slope) / np.sum((weight * slope) ** 2))
    residual = np.abs(claimed - factor * slope)
    # A constant factor leaves nothing over but the error bars; of noisy probes a few stick out.
    fits = residual <= 5 * (max(SAME, examined.tolerance) * np.abs(claimed).max() + bar)
    if fits.mean() < 0.95 or abs(factor - 1) < 3 * max(np.median(residual), examined.tolerance):
        return None
    if not _is_explained(claimed, slope, residual, examined):
        return None
    if abs(factor + 1) < 0.01:
        return Reading(
            Diagnosis.SIGN,
            "the returned gradient has the wrong sign in every direction tried.",
            "a minus lost or doubled: the adjoint of A(x) y = b is dx = -lambda . dA/dx . y",
        )
    return Reading(
        Diagnosis.FACTOR,
        f"the returned gradient is {factor_name(factor, examined)} of the true one in every "
        f"direction tried{_batch_note(examined)}.",
        _factor_hint(factor, examined),
    )


def factor_name(factor: float, examined: Examination) -> str:
    """Return ``0.125 = 1/8``, or ``0.01 = dt``, where the factor can be told."""
    value = f"{factor:.4g}"
    for name, candidate in _known_factors(examined):
        if math.isclose(factor, candidate, rel_tol=2e-3):
            return f"{value} = {name}" if name != value else value
    return value


def _known_factors(examined: Examination) -> Iterable[tuple[str, float]]:
    for option in examined.probe.spec.options:
        value = examined.probe.solver.options[option.name]
        if isinstance(value, int | float) and not isinstance(value, bool) and value not in (0, 1):
            yield option.name, float(value)
            yield f"1/{option.name}", 1.0 / value
            yield f"{option.name}^2", float(value) ** 2
    for whole in (2, 3, 4, 8, *_sizes(examined)):
        yield str(whole), float(whole)
        yield f"1/{whole}", 1.0 / whole
    yield "pi", math.pi
    yield "2 pi", 2 * math.pi
    yield "sqrt(2)", math.sqrt(2)


def _sizes(examined: Examination) -> list[int]:
    n, m = len(examined.scale), examined.measured.value.shape[1]
    return sorted({size for size in (n, m, _batch(examined)) if size > 1})


def _batch(examined: Examination) -> int:
    bench = examined.bench
    return len(bench.points[0][0]) if isinstance(bench, CallBench) else 1


def _batch_note(examined: Examination) -> str:
    batch = _batch(examined)
    return f"; the batch has {batch} rows" if batch > 1 else ""


def _factor_hint(factor: float, examined: Examination) -> str:
    batch = _batch(examined)
    if batch > 1 and math.isclose(factor, 1 / batch, rel_tol=1e-2):
        return "is the shared arg's gradient averaged over the batch instead of summed?"
    if math.isclose(abs(factor), 2, rel_tol=1e-2) or math.isclose(abs(factor), 0.5, rel_tol=1e-2):
        return "a 2 from a square differentiated, or a term that is counted twice or half"
    return "a factor of the chain rule: dt, dx, a unit, a normalisation"


# ---- other arrays, other points -----------------------------------------------------------------


def _swapped(examined: Examination) -> Reading | None:
    """Look for the gradient of another array of the same shape in the place of this one."""
    probe, bench = examined.probe, examined.bench
    lines = np.flatnonzero(examined.is_example)[:6]
    if not len(lines):
        return None
    for other, differentiable in enumerate(probe.spec.differentiable):
        same = other != examined.index and differentiable
        if not same or bench.shape(other) != bench.shape(examined.index):
            continue
        if not probe.is_stacked(other) and not isinstance(bench, CallBench):
            continue
        if _is_gradient_of(examined, other, lines):
            name = probe.title(other)
            return Reading(
                Diagnosis.ARG,
                f"the returned gradient is that of {name}.",
                "the order of what is returned: first x, then each arg as declared",
            )
    return None


def _is_gradient_of(examined: Examination, other: int, lines: Any) -> bool:
    direction = examined.lines.direction[lines]
    return _fits_along(examined, lines, other, direction, direction)


def _fits_along(
    examined: Examination, lines: Any, index: int, moved: Floats, claimed_along: Floats
) -> bool:
    """Tell whether what is returned, along one direction, is the slope of an input along another.

    Parameters
    ----------
    lines : ndarray of int
    index : int
        The input that is moved.
    moved, claimed_along : ndarray, shape (lines, n)
        The direction in which it is moved; that with which the returned gradient is contracted.
    """
    bench, weights = examined.bench, examined.weights[lines]
    along = make_lines(bench, index, examined.lines.point[lines], moved)
    slope, bar, _ = estimate(sweep(bench, along), weights).best()
    pulled = bench.pull(examined.lines.some(lines), weights)
    claimed = (pulled * claimed_along[:, None, :]).sum(-1)
    # Among many pairs some slopes are small by cancellation: they say little.
    size = np.abs(slope).max(axis=0, initial=0.0)
    good = np.isfinite(bar) & (bar < ACCURATE * np.abs(slope)) & (np.abs(slope) > 0.05 * size)
    if good.sum() < 3 or not np.any(claimed[good]):
        return False
    return bool(np.median(np.abs(claimed - slope)[good] / np.abs(slope)[good]) < 10 * SAME)


def _axes_swapped(examined: Examination) -> Reading | None:
    """Look for the gradient of a square matrix or field with its last two axes exchanged."""
    shape = examined.bench.shape(examined.index)
    lines = np.flatnonzero(examined.is_example)[:6]
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < 2 or not len(lines):
        return None
    if len(examined.probe.spec.inputs[examined.index].shape) < 2:
        return None  # the axis before the last is that of the batch
    direction = examined.lines.direction[lines].reshape(-1, *shape)
    turned = np.swapaxes(direction, -1, -2).reshape(len(lines), -1)
    if not _fits_along(examined, lines, examined.index, turned, examined.lines.direction[lines]):
        return None
    return Reading(
        Diagnosis.TRANSPOSE,
        "the returned gradient has its last two axes exchanged.",
        "the order of an outer product (dA[i, j] = g[i] * x[j] for y = A @ x), of reshape, of 'F'",
    )


def _of_the_first_call(examined: Examination) -> Reading | None:
    """Tell whether the gradient is right where the solver was called for the very first time."""
    first = examined.probe.first_inputs
    if first is None or not examined.wrong.any():
        return None
    bench = CallBench(examined.probe, [examined.probe.cast(first, examined.bench.dtype)])
    size = bench.base(examined.index).shape[1]
    # Along lines that showed the fault, with their cotangents, repeated for every row; and along
    # dense ones, for a fault that one line meets in one row and not in the next.
    rng = examined.probe.rng("first call")
    shown = np.argwhere(examined.wrong)[:3]
    direction = [np.resize(examined.lines.direction[line], size) for line, _ in shown]
    direction += [rng.standard_normal(size) * np.resize(examined.scale, size) for _ in range(2)]
    at_first = np.zeros(len(direction), np.intp)
    lines = make_lines(bench, examined.index, at_first, np.stack(direction))
    measured = sweep(bench, lines)
    m = measured.value.shape[1]
    weights = [np.resize(examined.weights[tuple(at)], (1, m)) for at in shown]
    weights += [rng.standard_normal((1, m)) for _ in range(2)]
    slope, bar, _ = estimate(measured, np.stack(weights)).best()
    pulled = bench.pull(lines, np.stack(weights)) * lines.direction[:, None, :]
    allowed = SAME * 1e-3 * np.sqrt((pulled**2).sum(-1)) + BARS * bar
    if not (np.abs(pulled.sum(-1) - slope) <= allowed).all():
        return None
    if not _elsewhere_wrong(examined):
        return None
    return Reading(
        Diagnosis.STALE_STATE,
        "the returned gradient is right at the inputs of the very first call, and wrong at others.",
        "what is made at the first call and kept: a matrix, its factors, coefficients, a mesh",
    )


def _elsewhere_wrong(examined: Examination) -> bool:
    """Tell whether every example point but the first has a wrong gradient."""
    at_example = np.flatnonzero(examined.is_example)
    wrong = examined.judged.suspect[at_example].any(axis=1)
    points = examined.lines.point[at_example]
    return len(set(points[wrong])) >= max(1, len(set(points)) - 1)


def _of_another_point(examined: Examination) -> Reading | None:
    """Tell whether the pullback ignores where it is: the same answer at every point."""
    judged, lines = examined.judged, examined.lines
    good = (judged.resolution[:, 0] < ACCURATE) & examined.is_example
    _, first_of_each = np.unique(lines.point[good], return_index=True)
    chosen = np.flatnonzero(good)[first_of_each]
    if len(chosen) < 3:
        return None
    weights = np.repeat(examined.weights[chosen[:1], :1], len(chosen), axis=0)
    pulled = examined.bench.pull(lines.some(chosen), weights)[:, 0]
    constant = np.abs(pulled - pulled[0]).max() <= 1e-6 * np.abs(pulled[0]).max()
    if not constant or not np.any(pulled[0]):
        return None
    direction = np.repeat(lines.direction[chosen[:1]], len(chosen), axis=0)
    same_way = make_lines(examined.bench, examined.index, lines.point[chosen], direction)
    slope, bar, _ = estimate(sweep(examined.bench, same_way), weights).best()
    if np.ptp(slope) <= 10 * (SAME * np.abs(slope).max() + bar.max()):
        return None  # the true gradient is constant too: a linear solver, wrong in another way
    claimed = same_way.direction @ pulled[0]
    once = np.abs(claimed - slope[:, 0]) <= SAME * np.abs(claimed) + BARS * bar[:, 0]
    return Reading(
        Diagnosis.STALE_STATE if once.any() else Diagnosis.MISSING_TERM,
        "the returned gradient is the same at every point, but the true one is not.",
        "what the derivative closes over or caches: coefficients frozen at one point, or the first",
    )


def _regime(examined: Examination) -> Reading | None:
    """Tell whether the gradient is right at the example and wrong elsewhere."""
    wrong = examined.wrong.any(axis=1)
    if not wrong.any() or examined.judged.suspect[examined.is_example].any():
        return None
    where = sorted({examined.labels[i] for i in np.flatnonzero(wrong)})
    return Reading(
        Diagnosis.MISSING_TERM,
        f"right at the example, wrong at other points: {', '.join(where[:3])}.",
        "a branch or term that the example does not reach, and a derivative that lacks it",
    )


# ---- the Jacobian -------------------------------------------------------------------------------


def _transposed(examined: Examination) -> Reading | None:
    for block in (*examined.blocks, *_folded(examined)):
        J, R = _in_units(block)
        if J.shape[0] != J.shape[1] or len(J) < 2 or not np.isfinite(R).all():
            continue
        if not block.is_full and not np.array_equal(block.inputs, block.outputs):
            continue  # random groups that differ: a transpose does not show in it
        size, off = np.linalg.norm(J), np.linalg.norm(R - J)
        # The bars of J rule how well two matrices can agree.
        noise = np.linalg.norm(np.where(np.isfinite(block.bar), block.bar, size))
        similar = np.linalg.norm(R - J.T) <= 10 * SAME * size + noise
        if similar and off > max(0.05 * size, 10 * noise):
            return Reading(
                Diagnosis.TRANSPOSE,
                "the returned gradient multiplies with the Jacobian in place of its transpose.",
                "the order of indices: dx[j] = sum over i of g[i] * dy[i]/dx[j], that is J.T @ g",
            )
    return None


def _folded(examined: Examination) -> Iterator[Block]:
    """Yield a large square Jacobian with inputs and outputs in the same groups: ``G J G.T``.

    Compressed so, the transpose is the transpose of the compressed one.
    """
    n, m = len(examined.scale), examined.measured.value.shape[1]
    if n != m or any(block.is_full for block in examined.blocks) or not examined.blocks:
        return
    unit = np.full(n, np.exp(np.mean(np.log(np.maximum(np.abs(examined.scale), 1e-300)))))
    rng = examined.probe.rng("folded")
    grouped = groups(n, FOLDED, rng)
    yield compare(
        examined.bench,
        examined.index,
        examined.blocks[0].point,
        unit,
        rng,
        examined.tolerance,
        inputs=grouped,
        outputs=grouped,
    )


def _in_units(block: Block) -> tuple[Floats, Floats]:
    """Return (measured, returned) with the units of the inputs taken out."""
    units = np.abs(block.directions).max(axis=1, initial=0.0)
    units = np.where(units > 0, units, 1.0)
    return block.measured / units, block.returned / units


def _structure(examined: Examination) -> Reading | None:
    """Look for single entries, rows or columns that are wrong while the rest is right."""
    for block in examined.blocks:
        wrong = _wrong_entries(block, examined.tolerance)
        if not wrong.any() or not block.wrong.any():
            continue
        there = (block.measured != 0) | (block.returned != 0)
        outputs, inputs = (np.flatnonzero(wrong.any(axis=axis)) for axis in (1, 0))
        whole_rows, whole_columns = (
            len(found) <= max(1, min(2, size - 2), size // 8) and len(found) < size
            for found, size in zip((outputs, inputs), wrong.shape, strict=True)
        )
        if not (whole_rows or whole_columns):
            continue
        if wrong.sum() == 1 and not _is_boundary(block, outputs, inputs, there):
            return _single(block)
        return _lines_reading(block, outputs, inputs, rows=whole_rows)
    return None


def _single(block: Block) -> Reading:
    return Reading(
        Diagnosis.ENTRY,
        "one entry of the Jacobian is wrong, the rest is right.",
        "an index off by one, an entry overwritten or left out",
    )


def _is_boundary(block: Block, outputs: Any, inputs: Any, there: Any) -> bool:
    """Tell whether a lone wrong entry is all there is in the first or last row."""
    if not block.is_full or len(there) < 3:
        return False
    row, column = int(outputs[0]), int(inputs[0])
    at_end = row in (0, len(there) - 1) and column in (0, there.shape[1] - 1)
    return at_end and int(there[row].sum()) == 1


def _lines_reading(block: Block, outputs: Any, inputs: Any, *, rows: bool) -> Reading:
    which = outputs if rows else inputs
    kind = "output" if rows else "input"
    named = ", ".join(str(int(i)) for i in which[:4])
    named = f" ({kind} {named})" if block.is_full else ""
    return Reading(
        Diagnosis.ROWS,
        f"the Jacobian is wrong in {len(which)} of {block.measured.shape[0 if rows else 1]} "
        f"{kind} rows{named}, and right in the others.",
        "the boundary conditions: rows at the ends that forward and derivative treat differently",
    )


def _wrong_entries(block: Block, tolerance: float) -> Any:
    scale = np.maximum(np.abs(block.measured), np.abs(block.returned))
    row = np.sqrt(np.mean(block.measured**2, axis=1, keepdims=True))
    allowed = 10 * tolerance * np.maximum(scale, 0.01 * row) + BARS * block.bar
    return np.abs(block.returned - block.measured) > allowed


def _related(examined: Examination) -> Reading:
    """Fall back on how much of the gradient is there."""
    claimed, slope, _ = _accurate(examined)
    size = np.linalg.norm(claimed) * np.linalg.norm(slope)
    correlation = float(claimed @ slope / size) if size else 0.0
    if correlation > RELATED or _has_the_same_pattern(examined):
        return Reading(
            Diagnosis.MISSING_TERM,
            f"the returned gradient goes with the true one (correlation {correlation:.2f}), but a "
            "part of it is missing or wrong.",
            "a term that the forward depends on and the derivative treats as a constant",
        )
    return Reading(
        Diagnosis.ARG if examined.index and correlation > -RELATED else Diagnosis.UNKNOWN,
        "the returned gradient has little to do with the true one "
        f"(correlation {correlation:.2f}).",
        "the formula, and the order of arguments",
    )


def _has_the_same_pattern(examined: Examination) -> bool:
    """Tell whether the Jacobian is sparse and what is returned is zero in the same places.

    Then entries are in their right places, however wrong: a derivative that lacks a term.
    """
    for block in examined.blocks:
        returned = np.abs(block.returned)
        if not block.is_full or not np.isfinite(returned).all():
            continue
        there = np.abs(block.measured) > BARS * block.bar
        given = returned > SAME * returned.max(initial=0.0)
        if there.any() and there.mean() < SPARSE and (given <= there).all():
            return bool(given.sum() > there.sum() / 2)
    return False


# ---- the worst entry ----------------------------------------------------------------------------


def locate(examined: Examination) -> Entry | None:
    """Return the worst wrong entry, its group opened where it was measured in one."""
    block = next((b for b in examined.blocks if b.wrong.any()), None)
    if block is None:
        block = _block_of_worst(examined)
    for _ in range(8):
        if block is None or not np.isfinite(block.returned).all():
            return None
        output, line = _worst(block)
        members = np.flatnonzero(block.inputs[line])
        outputs = np.flatnonzero(block.outputs[output])
        combined = block.outputs[output][outputs]
        lone_output = len(outputs) == 1 or not np.all(np.abs(combined) == 1)
        if len(members) == 1 and lone_output:
            return _entry(examined, block, output, line)
        block = _opened(examined, block, output, members, outputs)
    return None


def _block_of_worst(examined: Examination) -> Block | None:
    """Return the gradient of the worst probe, component by component."""
    judged = examined.judged
    excess = np.where(examined.wrong, judged.relative, 0.0)
    line, column = np.unravel_index(int(np.argmax(np.nan_to_num(excess, nan=np.inf))), excess.shape)
    return compare(
        examined.bench,
        examined.index,
        int(examined.lines.point[line]),
        examined.scale,
        examined.probe.rng("locate"),
        examined.tolerance,
        outputs=examined.weights[line, column][None],
    )


def _worst(block: Block) -> tuple[int, int]:
    excess = np.abs(block.returned - block.measured) - BARS * block.bar
    excess = np.where(np.isfinite(block.bar), excess, -np.inf)
    if block.wrong.any():
        excess = np.where(block.wrong, excess, -np.inf)
    output, line = np.unravel_index(int(np.argmax(excess)), excess.shape)
    return int(output), int(line)


def _opened(examined: Examination, block: Block, output: int, members: Any, outputs: Any) -> Block:
    """Compare again with the members of one group apart: first the inputs, then the outputs."""
    rng = examined.probe.rng("locate")
    n, m = block.inputs.shape[1], block.outputs.shape[1]
    if len(members) > 1:
        parts = np.array_split(members, min(len(members), 64))
        inputs = np.stack([np.isin(np.arange(n), part).astype(float) for part in parts])
        inputs *= np.abs(block.inputs).max(axis=0)
        chosen = block.outputs[output][None]
    else:
        inputs = np.eye(n)[members]
        parts = np.array_split(outputs, min(len(outputs), 64))
        chosen = np.stack([np.isin(np.arange(m), part).astype(float) for part in parts])
    return compare(
        examined.bench,
        block.index,
        block.point,
        examined.scale,
        rng,
        tolerance_of(examined.probe, examined.bench.dtype),
        inputs=inputs,
        outputs=chosen,
    )


def _entry(examined: Examination, block: Block, output: int, line: int) -> Entry:
    component = int(np.argmax(np.abs(block.directions[line])))
    unit = block.directions[line][component] or 1.0
    returned, measured = block.returned[output, line] / unit, block.measured[output, line] / unit
    single = np.flatnonzero(block.outputs[output])
    y_shape = examined.measured.value.shape[1]
    shape = examined.bench.shape(examined.index)
    size = max(abs(returned), abs(measured)) or 1.0
    return Entry(
        tuple(int(i) for i in np.unravel_index(component, shape)) if shape else (),
        (int(single[0]),) if len(single) == 1 and y_shape > 1 else None,
        float(returned),
        float(measured),
        float(abs(block.bar[output, line] / unit)),
        float(abs(returned - measured) / size),
    )


def ratio_of(got: Any, expected: Any) -> float | None:
    """Return c where ``got == c * expected`` throughout and c is not 1, else None."""
    got, expected = np.ravel(got), np.ravel(expected)
    size = float(expected @ expected)
    if not size or not np.isfinite(got).all():
        return None
    ratio = float(got @ expected / size)
    fits = np.linalg.norm(got - ratio * expected) <= SAME * np.linalg.norm(got)
    return ratio if fits and got.any() and abs(ratio - 1) > SAME else None
