"""The first calls: the example, and the shape, dtype and finiteness of what comes back."""

from typing import Any

import numpy as np

from adeptml_core.conformance.probe import Inputs, Probe, Undeclared, magnitude
from adeptml_core.conformance.records import Finding, failed, inconclusive, passed, skipped
from adeptml_core.errors import InputError

__all__ = [
    "check_example_is_valid",
    "check_precision_is_kept",
    "check_results_are_as_declared",
    "check_sizes_are_given",
    "cotangent_for",
    "natural",
]

ROWS = 64  # enough to meet a sample that is refused one time in twenty
CONDITION = 100.0  # times the effect of rounding the inputs to float32
PRECISION = 1e-3
FINE, COARSE = 2.0**-32, 2.0**-18  # relative: below and above what float32 resolves (2^-24)
STILL = 0.9  # of the entries
DIGITS = 0.5  # of the entries must be nonzero for their digits to say anything


def natural(probe: Probe, batch: int = 4, label: str = "natural") -> Inputs:
    """Return one draw as the example gives it: shared args shared."""
    return probe.draw(probe.rng(f"natural:{label}"), batch)


def cotangent_for(y: Any, rng: np.random.Generator) -> Any:
    """Return a random cotangent of y, in its dtype."""
    return rng.standard_normal(y.shape).astype(y.dtype)


def check_sizes_are_given(probe: Probe) -> Finding:
    """Catch a ``sizes=`` function that raises, returns no sizes, or lacks one that is needed."""
    if probe.spec.sizes is None:
        return skipped("no sizes= is declared")
    given = probe.solver.declared_sizes
    known = {size for array in probe.spec.inputs for size in array.shape} | set(given)
    missing = [size for size in probe.spec.y.shape if isinstance(size, str) and size not in known]
    if missing:
        return failed(
            f"sizes= gives {dict(given)}, but y '{probe.spec.y.name}' needs {', '.join(missing)}",
            array=probe.spec.y.name,
            expected=missing,
            got=sorted(given),
        )
    return passed(", ".join(f"{name} = {size}" for name, size in given.items()))


def check_example_is_valid(probe: Probe) -> Finding:
    """Catch an example that breaks the spec's own declarations, or that no seed reproduces."""
    try:
        first = natural(probe)
    except Undeclared as missing:
        return inconclusive(
            f"nothing to try it with: no example, and no bounds for {missing}. Declare example= or "
            "low= and high=.",
            missing=str(missing),
        )
    expected = 1 + len(probe.spec.args)
    if len(first) != expected:
        names = ", ".join(array.name for array in probe.spec.inputs)
        return failed(
            f"the example returned {len(first)} arrays, expected {expected}: ({names})",
            expected=expected,
            got=len(first),
        )
    if first[0].ndim < 1 or len(first[0]) != 4:
        return failed(
            f"the example was asked for a batch of 4 and gave {probe.title(0)} of shape "
            f"{first[0].shape}",
            array=probe.name(0),
            expected=4,
            got=list(first[0].shape),
        )
    return _shapes(probe, first) or _values(probe, first) or _draws(probe, first)


def _shapes(probe: Probe, inputs: Inputs) -> Finding | None:
    try:
        probe.solver._planned(tuple(value.shape for value in inputs))
    except InputError as error:
        return failed(f"the example does not fit the spec: {error}")
    return None


def _values(probe: Probe, inputs: Inputs) -> Finding | None:
    for index, value in enumerate(inputs):
        if not np.isfinite(value).all():
            return failed(
                f"the example gives {probe.title(index)} that is not finite",
                array=probe.name(index),
            )
        low, high = probe.bounds(index)
        outside = (value < low) | (value > high)
        if outside.any():
            where = np.argwhere(np.broadcast_to(outside, value.shape))[0]
            got = float(value[tuple(where)])
            return failed(
                f"the example gives {probe.title(index)} = {got:g}, outside its declared bounds",
                array=probe.name(index),
                index=where,
                expected=[np.min(low), np.max(high)],
                got=got,
            )
    return None


def _draws(probe: Probe, first: Inputs) -> Finding:
    again = natural(probe)
    if any(not np.array_equal(a, b) for a, b in zip(first, again, strict=True)):
        return failed(
            "the example gives different inputs for the same generator: draw everything from rng, "
            "or no finding can be reproduced"
        )
    other = natural(probe, label="another")
    if all(np.array_equal(a, b) for a, b in zip(first, other, strict=True)):
        return passed("always the same values: varied ones would try more", varied=False)
    return passed()


def check_results_are_as_declared(probe: Probe, dtype: Any = None) -> Finding:
    """Catch y or a cotangent of another shape or dtype, NaN at the example, and plain crashes."""
    dtype = np.dtype(dtype or probe.dtype)
    rng = probe.rng("results")
    for batch in (4, 1, ROWS):
        inputs = probe.cast(natural(probe, batch, f"results {batch}"), dtype)
        y, pullback = probe.linearize(inputs)
        pulled = pullback(cotangent_for(y, rng))
        named = [(probe.spec.y.name, y)]
        named += [(probe.name(i), v) for i, v in enumerate(pulled) if v is not None]
        for position, (name, value) in enumerate(named):
            bad = np.argwhere(~np.isfinite(value))
            if len(bad):
                what = f"y '{name}'" if not position else f"the gradient of '{name}'"
                return failed(
                    f"{what} is {value[tuple(bad[0])]} at index {_spelt(bad[0])} for an input of "
                    f"the example, in {dtype}",
                    array=name,
                    index=bad[0],
                    expected="finite",
                    got=float(value[tuple(bad[0])]),
                )
    return passed(f"{dtype}")


def _spelt(index: Any) -> str:
    return "[" + ", ".join(str(int(i)) for i in index) + "]"


def check_precision_is_kept(probe: Probe) -> Finding:
    """Catch float32 in the middle of a float64 gradient, and float32 results far from float64."""
    wide, narrow = np.dtype("float64"), np.dtype("float32")
    rng = probe.rng("precision")
    drawn = natural(probe, 4 if probe.compiles else 8, "precision")
    coarse, full = probe.cast(drawn, narrow), probe.cast(drawn, wide)
    fine = tuple(v.astype(wide) if v.dtype.kind == "f" else v for v in coarse)
    finding = _digits(probe, full, rng)
    if finding is not None or narrow.name not in probe.spec.dtypes:
        return finding or passed("float64 throughout")
    nudged = tuple(
        (v * (1 + 6e-8 * rng.choice([-1.0, 1.0], v.shape))).astype(wide)
        if v.dtype.kind == "f"
        else v
        for v in fine
    )
    g = None
    results = []
    for inputs in (fine, coarse, nudged):
        y, pullback = probe.linearize(inputs)
        g = cotangent_for(y, rng).astype(narrow) if g is None else g
        results.append((np.array(y), *pullback(g.astype(y.dtype))))
    return _compared(probe, *results)


def _digits(probe: Probe, inputs: Inputs, rng: np.random.Generator) -> Finding | None:
    """Tell whether a float64 gradient is computed in float32 somewhere: cast inside, and back."""
    y, pullback = probe.linearize(inputs)
    y = np.array(y)
    g = cotangent_for(y, rng)
    pulled = [None if v is None else np.array(v) for v in pullback(g)]
    if _has_float32_digits(y) or not probe.spec.deterministic:
        return None
    fine = [None if v is None else np.array(v) for v in pullback(g * (1 + FINE))]
    for index, (value, moved) in enumerate(zip(pulled, fine, strict=True)):
        if value is None:
            continue
        if _has_float32_digits(value):
            return _coarse(probe, index, "it has only the digits of float32")
        if _still(value, moved):
            return _coarse(probe, index, "it does not see the last digits of the cotangent")
    return _sees_inputs(probe, inputs, y, g, pulled)


def _sees_inputs(probe: Probe, inputs: Inputs, y: Any, g: Any, pulled: list[Any]) -> Finding | None:
    """Nudge all inputs by less than float32 resolves, then by more: what moves only then is cast.

    Only where y itself moves at once: a solver that is in float32 altogether is what it is.
    """
    answers = []
    for nudge in (FINE, COARSE):
        moved = tuple(
            probe.inside(i, v * (1 + nudge), v.dtype) if v.dtype.kind == "f" else v
            for i, v in enumerate(inputs)
        )
        moved_y, pullback = probe.linearize(moved)
        moved_y = np.array(moved_y)
        answers.append([moved_y, *(None if v is None else np.array(v) for v in pullback(g))])
    if _still(y, answers[0][0]):
        return None
    for index, value in enumerate(pulled):
        fine, coarse = (answer[1 + index] for answer in answers)
        if value is not None and _still(value, fine) and not _still(value, coarse):
            return _coarse(probe, index, "it does not see the last digits of the inputs")
    return None


def _still(first: Any, second: Any) -> bool:
    """Tell whether the entries that are not zero have stayed the same, nearly all of them."""
    telling = first != 0
    return bool(telling.any() and (first == second)[telling].mean() > STILL)


def _coarse(probe: Probe, index: int, what: str) -> Finding:
    return failed(
        f"the gradient of {probe.title(index)} is computed in float32, though all inputs are "
        f"float64: {what}. Keep the dtype of x throughout.\n"
        f"look at: casts and arrays made without a dtype in {probe.where()}",
        array=probe.name(index),
        expected="float64",
        got="float32",
    )


def _has_float32_digits(value: Any) -> bool:
    """Tell whether float64 numbers fill the 24 bits of a float32, and no bit more."""
    value = np.asarray(value)
    telling = value[(value != 0) & (np.abs(value) < 1e30) & (np.abs(value) > 1e-30)]
    if telling.size < max(4, DIGITS * value.size) or (telling.astype(np.float32) != telling).any():
        return False
    # Round numbers, and what cancellation leaves over, have few bits in any dtype.
    mantissa = np.frexp(telling)[0] * 2**24
    return bool((np.fmod(mantissa, 2**8) != 0).mean() > DIGITS)


def _compared(probe: Probe, fine: Any, coarse: Any, nudged: Any) -> Finding:
    worst = 0.0
    names = [probe.spec.y.name, *(a.name for a in probe.spec.inputs)]
    for position, (a, b, c) in enumerate(zip(fine, coarse, nudged, strict=True)):
        if a is None or b is None or c is None:
            continue
        size = max(_rms(a), magnitude(a) * 1e-3, 1e-30)
        off, natural_effect = _rms(np.asarray(b, np.float64) - a) / size, _rms(c - a) / size
        worst = max(worst, off)
        if off > PRECISION + CONDITION * natural_effect:
            what = "y" if not position else "the gradient of"
            return failed(
                f"{what} '{names[position]}' in float32 is {off:.1e} away from float64, where "
                f"rounding the inputs explains {natural_effect:.1e}",
                array=names[position],
                expected=natural_effect,
                got=off,
            )
    return passed(f"float32 within {worst:.0e} of float64", difference=worst)


def _rms(values: Any) -> float:
    values = np.asarray(values, np.float64)
    return float(np.sqrt(np.mean(values**2))) if values.size else 0.0
