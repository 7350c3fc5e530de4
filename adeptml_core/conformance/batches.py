"""Rows and batches: a row is its own affair, at any batch size, with shared and per-sample args.

Core cuts batches into chunks and pads them, data loaders end in a short batch, and a user who tries
one sample expects what the batch gave. All of that rests on `row_independent`.
"""

from typing import Any

import numpy as np

from adeptml_core.conformance.diagnosis import ratio_of
from adeptml_core.conformance.noise import within
from adeptml_core.conformance.probe import Inputs, Probe, magnitude
from adeptml_core.conformance.records import Diagnosis, Finding, failed, passed, skipped

__all__ = [
    "check_batch_size_does_not_matter",
    "check_rows_are_independent",
    "check_shared_args_sum_their_batch",
]

ROWS = {"float64": 1e-6, "float32": 2e-3}
SUMS = {"float64": 1e-7, "float32": 2e-3}
LARGE, MORE = 33, 130  # above chunk and block sizes that people use
PARTS = (1, 2, 7, 17, 65)
DEAR = 1.0  # seconds for the largest batch: then fewer sizes are tried
SMALL_ROW = 1e-3  # of the batch's largest value: rows below are measured by that


class _Answer:
    """y and the cotangents of one call, row by row, as private copies."""

    def __init__(self, probe: Probe, inputs: Inputs, g: Any) -> None:
        y, pullback = probe.linearize(inputs)
        cotangent = np.asarray(g[: len(y)], y.dtype).reshape(y.shape)
        pulled = pullback(cotangent)
        self.names = [f"y '{probe.spec.y.name}'"]
        self.arrays: list[str] = [probe.spec.y.name]
        self.values = [np.array(y, np.float64)]
        for index, value in enumerate(pulled):
            if value is not None and probe.is_stacked(index):
                self.names.append(f"the gradient of {probe.title(index)}")
                self.arrays.append(probe.name(index))
                self.values.append(np.array(value, np.float64))

    def rows(self, which: Any) -> list[Any]:
        return [value[which] for value in self.values]


def _difference(first: Any, second: Any, whole: Any) -> tuple[float, int]:
    """Return the largest difference of two sets of rows, each relative to its row; and the row."""
    size = np.maximum(_per_row(first), _per_row(second))
    size = np.maximum(size, SMALL_ROW * magnitude(whole))
    off = _per_row(first - second) / np.where(size > 0, size, 1.0)
    off = np.where(np.isfinite(off), off, np.inf)
    return float(off.max(initial=0.0)), int(off.argmax()) if off.size else 0


def _per_row(values: Any) -> Any:
    return np.abs(values.reshape(len(values), -1)).max(axis=1, initial=0.0)


def _limit(probe: Probe) -> float:
    return max(ROWS.get(probe.dtype.name, 0.05), probe.spec.tolerance or 0.0)


def _cotangents(probe: Probe, rows: int, label: str) -> Any:
    """Return random cotangents for `rows` rows of y."""
    size = probe.forward(probe.examples("y size", 1))[0].size
    return probe.rng(label).standard_normal((rows, size))


def check_rows_are_independent(probe: Probe) -> Finding:
    """Catch rows that see each other: a norm, a mean or a maximum over the batch, a common step."""
    if not probe.spec.row_independent:
        return skipped("declared row_independent=False")
    base, other = probe.examples("rows", 4), probe.examples("other rows", 4)
    g = _cotangents(probe, 4, "rows")
    together = _Answer(probe, base, g)
    order = np.array([2, 0, 3, 1])
    cases: list[tuple[str, _Answer, Any, Any]] = [
        ("in another order", _Answer(probe, probe.take(base, order), g[order]), slice(None), order)
    ]
    for row in (0, 2):
        kept = [i for i in range(4) if i != row]
        changed = tuple(
            _with_row(a, b, row) if probe.is_stacked(i) else a
            for i, (a, b) in enumerate(zip(base, other, strict=True))
        )
        swapped = np.array(g)
        swapped[row] = -3 * g[row - 1]
        cases.append((f"with row {row} changed", _Answer(probe, changed, swapped), kept, kept))
    cases += [
        ("alone", _Answer(probe, probe.take(base, [row]), g[[row]]), [0], [row]) for row in range(4)
    ]
    return _first_difference(probe, together, cases) or passed()


def _with_row(first: Any, second: Any, row: int) -> Any:
    changed = np.array(first)
    changed[row] = second[row]
    return changed


def _first_difference(
    probe: Probe, together: _Answer, cases: list[tuple[str, _Answer, Any, Any]]
) -> Finding | None:
    for label, answer, theirs, ours in cases:
        for number in range(len(answer.names)):
            got, expected = answer.rows(theirs)[number], together.rows(ours)[number]
            off, row = _difference(got, expected, together.values[number])
            if not within(probe, off, _limit(probe)):
                probe.coupled = True
                return _row_finding(probe, label, answer, number, got, expected, off, row)
    return None


def _row_finding(
    probe: Probe,
    label: str,
    answer: _Answer,
    number: int,
    got: Any,
    expected: Any,
    off: float,
    row: int,
) -> Finding:
    ratio = ratio_of(got, expected)
    if ratio is not None and not _is_whole(ratio) and not _is_whole(1 / ratio):
        ratio = None  # not the size of the batch: some norm over it
    note = f" It is {ratio:.4g} times as large." if ratio is not None else ""
    where = np.unravel_index(int(np.argmax(np.abs(got - expected)[row])), got.shape[1:])
    return failed(
        f"{answer.names[number]} of a row depends on the rest of the batch: {label} it differs by "
        f"{off:.2g} (relative).{note}\n"
        f"look at: sums, means, norms and maxima over axis 0 in {probe.where()}. If rows do depend "
        "on each other, declare row_independent=False.",
        Diagnosis.FACTOR if ratio is not None else Diagnosis.CONTRACT,
        array=answer.arrays[number],
        index=where,
        expected=float(expected[row][where]),
        got=float(got[row][where]),
        relative_error=off,
    )


def _is_whole(value: float) -> bool:
    return abs(value - round(value)) < 1e-3 and abs(value) > 1


def check_batch_size_does_not_matter(probe: Probe) -> Finding:
    """Catch what only large batches get wrong: a chunk's end, a block's remainder, a last row."""
    if probe.coupled:
        return skipped("rows depend on each other")
    is_dear = probe.compiles or probe.seconds(MORE) + probe.pull_seconds(MORE) > DEAR
    total = LARGE if is_dear else MORE
    base = probe.examples("batches", total)
    g = _cotangents(probe, total, "batches")
    for whole in sorted({LARGE, total}):
        together = _Answer(probe, probe.take(base, slice(whole)), g)
        for part in PARTS[:1] if is_dear else PARTS:
            finding = _parts(probe, base, g, together, whole, part)
            if finding is not None:
                return finding
    return passed(f"1 to {total}")


def _parts(
    probe: Probe, base: Inputs, g: Any, together: _Answer, whole: int, part: int
) -> Finding | None:
    if part >= whole:
        return None
    starts = range(0, whole, part) if part > 2 else (0, whole // 2, whole - part)
    cases = [
        (
            f"in a batch of {part} instead of {whole}",
            _Answer(probe, probe.take(base, slice(s, s + part)), g[s : s + part]),
            slice(None),
            slice(s, min(s + part, whole)),
        )
        for s in starts
        if s + part <= whole
    ]
    return _first_difference(probe, together, cases)


def check_shared_args_sum_their_batch(probe: Probe) -> Finding:
    """Catch a shared arg whose gradient is averaged, or taken from one row, instead of summed."""
    free = [i + 1 for i, array in enumerate(probe.spec.args) if array.batched is None]
    if not free:
        return skipped("no arg comes both shared and per sample")
    rows = 4 if probe.compiles else 8
    base = list(probe.examples("shared", rows))
    g = _cotangents(probe, rows, "shared")
    for chosen in [*[[i] for i in free], *([free] if len(free) > 1 else [])]:
        shared, spread = list(base), list(base)
        for index in chosen:
            shared[index] = np.array(base[index][0])
            spread[index] = np.array(np.broadcast_to(base[index][0], base[index].shape))
        finding = _shared(probe, tuple(shared), tuple(spread), g, chosen)
        if finding is not None:
            return finding
    return passed(", ".join(probe.name(i) for i in free))


def _shared(
    probe: Probe, shared: Inputs, spread: Inputs, g: Any, chosen: list[int]
) -> Finding | None:
    limit = SUMS.get(probe.dtype.name, 0.05)
    (y, pulled), (y_spread, pulled_spread) = (_call(probe, v, g) for v in (shared, spread))
    off, row = _difference(y, y_spread, y_spread)
    names = ", ".join(probe.title(i) for i in chosen)
    if not within(probe, off, limit):
        return failed(
            f"with {names} shared by the batch, y differs from the same given per sample by "
            f"{off:.2g} (row {row}).\nlook at: how {probe.where('forward')} broadcasts them.",
            array=probe.name(chosen[0]),
            expected=float(np.ravel(y_spread[row])[0]),
            got=float(np.ravel(y[row])[0]),
            relative_error=off,
        )
    for index, (got, rows) in enumerate(zip(pulled, pulled_spread, strict=True)):
        if got is None or rows is None:
            continue
        summed = rows.sum(axis=0) if index in chosen else rows
        size = np.abs(rows).sum(axis=0) if index in chosen else np.abs(rows)
        off = magnitude(got - summed) / (magnitude(size) or 1.0)
        if not within(probe, off, limit):
            return _shared_finding(probe, index, names, got, summed, off, len(g))
    return None


def _call(probe: Probe, inputs: Inputs, g: Any) -> tuple[Any, list[Any]]:
    y, pullback = probe.linearize(inputs)
    pulled = pullback(g.astype(y.dtype).reshape(y.shape))
    return np.array(y, np.float64), [None if v is None else np.array(v, np.float64) for v in pulled]


def _shared_finding(
    probe: Probe, index: int, names: str, got: Any, summed: Any, off: float, batch: int
) -> Finding:
    ratio = ratio_of(got, summed)
    where = np.unravel_index(int(np.argmax(np.abs(got - summed))), got.shape)
    if ratio is not None:
        spelt = f" = 1/{batch}" if abs(ratio * batch - 1) < 1e-3 else ""
        what = f"is {ratio:.4g}{spelt} of the sum over the batch; the batch has {batch} rows"
        hint = "is it averaged over the batch instead of summed?"
    else:
        what = f"is not the sum over the batch (relative difference {off:.2g})"
        hint = "over a shared arg the solver sums the cotangents of all rows."
    return failed(
        f"with {names} shared, the returned gradient of {probe.title(index)} {what}.\n"
        f"look at: {probe.where()}: {hint}",
        Diagnosis.FACTOR if ratio is not None else Diagnosis.MISSING_TERM,
        array=probe.name(index),
        index=where,
        expected=float(summed[where]),
        got=float(got[where]),
        relative_error=off,
    )
