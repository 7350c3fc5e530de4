"""What the bounds promise: finite results and derivatives everywhere inside, corners included."""

from typing import Any

import numpy as np

from adeptml_core.conformance import points as drawing
from adeptml_core.conformance.probe import Inputs, Probe
from adeptml_core.conformance.records import Finding, failed, passed, skipped
from adeptml_core.errors import Unavailable

__all__ = ["check_bounds_are_kept", "check_special_values_are_finite"]

ROWS = 256
FEW_ROWS = 32  # where a call is dear
DEAR = 2.0  # seconds


def check_bounds_are_kept(probe: Probe) -> Finding:
    """Catch NaN, overflow, refusals and crashes inside the declared bounds and at their corners."""
    if not any(probe.is_bounded(i) for i in range(len(probe.spec.inputs))):
        return skipped("no bounds are declared")
    rng = probe.rng("bounds")
    base = probe.examples("bounds", 8)
    rows = probe.rows_worth(ROWS if probe.seconds(ROWS) < DEAR else FEW_ROWS)
    tried = 0
    for dtype in probe.spec.dtypes:
        if dtype == "float16":
            continue  # it overflows at 65504, which is no fault of the solver's
        kind = np.dtype(dtype)
        stack = drawing.corners(probe, probe.cast(base, kind), rng, kind, rows)
        finding = _first_bad(probe, stack, rng)
        if finding is not None:
            return finding
        tried += rows
    return passed(f"{tried} points, corners included")


def _first_bad(probe: Probe, stack: Inputs, rng: np.random.Generator) -> Finding | None:
    try:
        bad = _bad_rows(probe, stack, rng)
    except Unavailable:
        raise
    except Exception as error:
        row = _raising_row(probe, stack, rng)
        return _finding(probe, stack, row, f"raises {type(error).__name__}: {error}", None)
    if bad is None:
        return None
    row, what, value = bad
    return _finding(probe, stack, row, f"{what} is {value}", value)


def _bad_rows(
    probe: Probe, stack: Inputs, rng: np.random.Generator
) -> tuple[int, str, float] | None:
    """Return the first row whose result or gradient is not finite, what it is, and the value."""
    if probe.coupled:
        rows = range(0, len(stack[0]), 4)
        parts = [probe.take(stack, slice(row, row + 4)) for row in rows]
    else:
        parts = [stack]
    for number, part in enumerate(parts):
        y, pullback = probe.linearize(part)
        values = [("y", y)]
        if np.isfinite(y).all():
            pulled = pullback(rng.standard_normal(y.shape).astype(y.dtype))
            values += [
                (f"the gradient of {probe.title(i)}", v)
                for i, v in enumerate(pulled)
                if v is not None
            ]
        for name, value in values:
            bad = np.argwhere(~np.isfinite(value))
            if len(bad):
                row = int(bad[0][0]) if value.shape[:1] == y.shape[:1] and value.ndim else 0
                return 4 * number + row, name, float(value[tuple(bad[0])])
    return None


def _raising_row(probe: Probe, stack: Inputs, rng: np.random.Generator) -> int:
    """Return a row that makes the solver raise on its own, the first where none does."""
    for row in range(len(stack[0])):
        try:
            _bad_rows(probe, probe.take(stack, slice(row, row + 1)), rng)
        except Exception:
            return row
    return 0


def _finding(probe: Probe, stack: Inputs, row: int, what: str, got: float | None) -> Finding:
    point = ", ".join(
        f"{probe.name(i)} = {_short(stack[i][row] if probe.is_stacked(i) else stack[i])}"
        for i in range(len(stack))
    )
    return failed(
        f"inside the declared bounds {what}, in {stack[0].dtype}, at {point}.\n"
        "The bounds promise finite results and right derivatives for all inputs within, bounds "
        "included: narrow them, or mend the solver there.",
        index=[row],
        expected="finite",
        got=got,
        point={probe.name(i): np.array(v) for i, v in enumerate(probe.take(stack, [row]))},
    )


def _short(value: Any) -> str:
    flat = np.ravel(value)
    if flat.size > 1 and (flat == flat[0]).all():
        return f"{flat[0]:.6g} throughout"
    shown = ", ".join(f"{v:.6g}" for v in flat[:4])
    return f"[{shown}{', ...' if flat.size > 4 else ''}]" if flat.size > 1 else shown


def check_special_values_are_finite(probe: Probe) -> Finding:
    """Catch 0/0 at values that drawing never meets: zero, equal entries, whole numbers.

    Inside declared bounds they are part of the promise. Where an array has none, nothing is
    promised in so many words, and what is found is said without a failure.
    """
    base = probe.take(probe.examples("special", 2), slice(0, 1))
    notes: list[str] = []
    for index in range(len(probe.spec.inputs)):
        if probe.spec.inputs[index].dtype is not None or not probe.is_stacked(index):
            continue
        for label, value in _special(base[index]):
            if not _is_inside(probe, index, value):
                continue
            point = list(base)
            point[index] = value
            what = _trouble(probe, tuple(point))
            if what and probe.is_bounded(index):
                return failed(
                    f"inside the declared bounds {what} where {probe.title(index)} is {label}.",
                    array=probe.name(index),
                    expected="finite",
                    got=what,
                )
            if what:
                notes.append(f"{what} where {probe.title(index)} is {label}")
    return passed("; ".join(notes), notes=notes)


def _special(value: Any) -> list[tuple[str, Any]]:
    return [
        ("zero", np.zeros_like(value)),
        ("the same throughout", np.full_like(value, value.flat[0] if value.size else 0)),
        ("one", np.ones_like(value)),
        ("negative", -np.abs(value)),
        ("a ramp with zero in it", _ramp(value)),
    ]


def _ramp(value: Any) -> Any:
    size = value.size
    return (np.arange(size) - size // 2).reshape(value.shape).astype(value.dtype)


def _is_inside(probe: Probe, index: int, value: Any) -> bool:
    low, high = probe.bounds(index)
    return bool(((value >= low) & (value <= high)).all())


def _trouble(probe: Probe, point: Inputs) -> str:
    """Return what is wrong with the result at a point, if anything."""
    try:
        y, pullback = probe.linearize(point)
        if not np.isfinite(y).all():
            return "y is not finite"
        pulled = pullback(np.ones_like(y))
    except Unavailable:
        raise
    except Exception as error:
        return f"the solver raises {type(error).__name__}"
    for index, value in enumerate(pulled):
        if value is not None and not np.isfinite(value).all():
            return f"the gradient of {probe.title(index)} is not finite"
    return ""
