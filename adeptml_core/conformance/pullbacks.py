"""Laws of the pullback: it belongs to its call, can be repeated, is linear; and determinism.

Each takes a handful of calls. None of these faults shows in differences, which ask for one forward
and one pullback at a time: training asks for many forwards first, and then for the pullbacks.
"""

from typing import Any

import numpy as np

from adeptml_core.conformance.basics import cotangent_for, natural
from adeptml_core.conformance.noise import within
from adeptml_core.conformance.probe import Inputs, Probe, close, magnitude
from adeptml_core.conformance.records import Diagnosis, Finding, failed, passed, skipped
from adeptml_core.errors import Unavailable
from adeptml_core.linearizer import Pullback

__all__ = [
    "check_pullback_belongs_to_its_call",
    "check_pullback_is_linear",
    "check_pullback_is_repeatable",
    "check_solver_is_deterministic",
]

ROUNDING = {"float64": 1e-9, "float32": 1e-4}
"""Two runs of the same arithmetic differ by no more, however ill-conditioned."""

LINEAR = {"float64": 1e-6, "float32": 1e-3}
EPS = 64.0  # roundings that the order of a sum may cost
SMALL = 3  # rows; its multiples are batch sizes that no other check uses


def _tolerance(probe: Probe, table: dict[str, float]) -> float:
    return table.get(probe.dtype.name, 0.05)


def _compared(first: Any, second: Any) -> tuple[float, int]:
    """Return the largest relative difference between two sets of cotangents, and where it is."""
    worst, where = 0.0, 0
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        if a is not None and b is not None:
            off = close(a, b)
            if off > worst:
                worst, where = off, index
    return worst, where


def _copied(values: Any) -> list[Any]:
    return [None if value is None else np.array(value) for value in values]


def check_pullback_belongs_to_its_call(probe: Probe) -> Finding:
    """Catch state that a later forward overwrites, and caches that ignore what they depend on."""
    a, b = natural(probe), natural(probe, label="later")
    rng = probe.rng("own call")
    tolerance = _tolerance(probe, ROUNDING)
    y, pullback = probe.linearize(a)
    g = cotangent_for(y, rng)
    early = _copied(pullback(g))
    other_y, other = probe.linearize(b)
    other(cotangent_for(other_y, rng))
    probe.forward(natural(probe, 1 if probe.compiles else 2, "small"))
    worst, where = _late(pullback, g, early)
    if within(probe, worst, tolerance) and probe.spec.deterministic:
        # Once more without the early call, in which a solver may have settled what it closes over.
        _, pullback = probe.linearize(a)
        probe.linearize(b)
        worst, where = _late(pullback, g, early)
    if not within(probe, worst, tolerance):
        how = (
            f"gives another gradient ({probe.title(where)}, relative difference {worst:.2g})"
            if np.isfinite(worst)
            else "fails"
        )
        return failed(
            f"after another forward, the pullback of the first one {how}.\n"
            f"look at: what {probe.where()} closes over or keeps; it must hold this call's values, "
            "not the module's or the object's.",
            Diagnosis.STALE_STATE,
            array=probe.name(where),
            expected="the gradient of its own call",
            got=worst,
        )
    return _cached(probe) or passed()


def _late(pullback: Pullback, g: Any, early: list[Any]) -> tuple[float, int]:
    """Compare a late call of a pullback with an early one; infinitely far where it raises."""
    try:
        return _compared(early, pullback(g))
    except Unavailable:
        raise
    except Exception:  # it worked before the other forward, so that is what broke it
        return np.inf, 0


def _cached(probe: Probe) -> Finding | None:
    """Look for results that are kept from a call with other inputs.

    A point is met after another one of the same shape; then the same rows again, repeated to a
    batch of a size that nothing was called with before, where no cache can have an answer. Between
    the two points all inputs differ, and then one alone: a key may lack just that one.
    """
    if probe.coupled or not probe.spec.deterministic or probe.compiles:
        return None
    first, later = (probe.examples(f"fresh {which}", SMALL) for which in ("first", "later"))
    size = probe.forward(probe.take(first, slice(1)))[0].size
    g = probe.rng("fresh").standard_normal((SMALL, size))
    alone = [i for i in range(len(first)) if len(first) > 1 and probe.is_stacked(i)]
    for number, index in enumerate([None, *alone]):
        changed = later if index is None else _with(first, index, later[index])
        finding = _cached_between(probe, first, changed, g, index, 2 + 2 * number)
        if finding is not None:
            return finding
    return None


def _with(inputs: Inputs, index: int, value: Any) -> Inputs:
    return tuple(value if i == index else v for i, v in enumerate(inputs))


def _cached_between(
    probe: Probe,
    first: Inputs,
    later: Inputs,
    g: Any,
    index: int | None,
    times: int,
) -> Finding | None:
    came_first, came_second = (_rows_of(probe, point, g) for point in (first, later))
    # Repeated as a whole, the rows keep the company they have: a maximum or mean over the batch,
    # which is another check's affair, stays the same.
    again = [
        _rows_of(probe, probe.take(point, np.tile(np.arange(SMALL), n)), np.tile(g, (n, 1)))
        for n, point in ((times, first), (times + 1, later))
    ]
    if _furthest(came_first, again[0]) > 1e-6:
        return None
    worst = _furthest(came_second, again[1])
    if within(probe, worst, 1e-6):
        return None
    what = "the shape alone" if index is None else f"other inputs, and not on {probe.title(index)}"
    changed = "all inputs" if index is None else f"{probe.title(index)} alone"
    return failed(
        f"with {changed} changed, the solver answers as it did before: the same rows in a batch of "
        f"another size give another result (relative difference {worst:.2g}).\n"
        f"look at: a cache that depends on {what}; its key must hold all that the cached value "
        "depends on.",
        Diagnosis.STALE_STATE,
        array=None if index is None else probe.name(index),
        expected="the result for these inputs",
        got=worst,
    )


def _rows_of(probe: Probe, inputs: Inputs, g: Any) -> list[Any]:
    """Return the first rows of y and of all cotangents that have rows."""
    y, pullback = probe.linearize(inputs)
    pulled = pullback(g.astype(y.dtype).reshape(y.shape))
    stacked = [v for i, v in enumerate(pulled) if v is not None and probe.is_stacked(i)]
    return [np.array(v[:SMALL]) for v in (y, *stacked)]


def _furthest(first: list[Any], second: list[Any]) -> float:
    return max(close(a, b) for a, b in zip(first, second, strict=True))


def check_pullback_is_repeatable(probe: Probe) -> Finding:
    """Catch a pullback that accumulates, uses itself up, or remembers the last cotangent."""
    y, pullback = probe.linearize(natural(probe))
    rng = probe.rng("repeatable")
    g, h = cotangent_for(y, rng), cotangent_for(y, rng)
    first = _copied(pullback(g))
    for count, cotangent in enumerate((g, h, g), start=2):
        try:
            answer = _copied(pullback(cotangent))
        except Unavailable:
            raise
        except Exception as error:  # it worked before, so that is what used it up
            return failed(
                f"called for the {_ordinal(count)} time, the pullback raises "
                f"{type(error).__name__}: {error}.\n"
                f"look at: what {probe.where()} uses up: a tape, a popped list, an iterator.",
                Diagnosis.STALE_STATE,
                expected="the same gradient",
                got=f"{type(error).__name__}: {error}",
            )
        worst, where = _compared(first, answer) if cotangent is g else (0.0, 0)
        if not within(probe, worst, _tolerance(probe, ROUNDING)):
            return failed(
                f"called for the {_ordinal(count)} time with the same cotangent, the pullback "
                f"gives another gradient of {probe.title(where)} "
                f"(relative difference {worst:.2g}).\n"
                f"look at: what {probe.where()} adds to or changes in place.",
                Diagnosis.STALE_STATE,
                array=probe.name(where),
                expected=_example_value(first[where]),
                got=_example_value(answer[where]),
            )
    return passed()


def _ordinal(count: int) -> str:
    return {2: "second", 3: "third", 4: "fourth"}[count]


def _example_value(values: Any) -> float:
    return float(np.ravel(values)[0])


def check_pullback_is_linear(probe: Probe) -> Finding:
    """Catch a cotangent clipped, normalised or compared inside, and loose adjoint solves."""
    y, pullback = probe.linearize(natural(probe))
    rng = probe.rng("linear")
    g, h = cotangent_for(y, rng), cotangent_for(y, rng)
    pulled, pulled_h = _copied(pullback(g)), _copied(pullback(h))
    tolerance = probe.tolerance(probe.dtype, LINEAR["float64"], LINEAR["float32"])
    # Declared noise does not shrink with the cotangent: there small ones would show it alone.
    scales = (1e3, 1e-3, 1e6, 1e-6, -1.0) if probe.spec.deterministic else (1e3, 1e6, -1.0)
    cases: list[tuple[str, Any, list[Any]]] = [
        (f"{s:g} g", s * g, [_scaled(v, s) for v in pulled]) for s in scales
    ]
    if probe.spec.deterministic:
        cases.append(("0", 0 * g, [_scaled(v, 0.0) for v in pulled]))
    cases.append(("2 g - 3 h", 2 * g - 3 * h, _sums(_scale(pulled, 2), _scale(pulled_h, -3))))
    mask = rng.random(g.shape) < 0.5
    halves = [_copied(pullback(np.where(part, g, 0).astype(g.dtype))) for part in (mask, ~mask)]
    cases.append(("g in two halves", g, _sums(*halves)))
    for label, cotangent, expected in cases:
        got = _copied(pullback(cotangent.astype(g.dtype)))
        finding = _linear(probe, label, expected, got, tolerance)
        if finding is not None:
            return finding
    return passed()


def _scaled(value: Any, factor: float) -> Any:
    return None if value is None else factor * np.asarray(value, np.float64)


def _scale(values: list[Any], factor: float) -> list[Any]:
    return [_scaled(value, factor) for value in values]


def _sums(first: list[Any], second: list[Any]) -> list[Any]:
    return [
        None if a is None else np.asarray(a, np.float64) + b
        for a, b in zip(first, second, strict=True)
    ]


def _linear(
    probe: Probe, label: str, expected: list[Any], got: list[Any], tolerance: float
) -> Finding | None:
    for index, (wanted, found) in enumerate(zip(expected, got, strict=True)):
        if wanted is None or not np.isfinite(wanted).all() or magnitude(wanted) > _top(probe):
            continue
        size = max(magnitude(wanted), magnitude(found))
        off = magnitude(np.asarray(found, np.float64) - wanted) / size if size else 0.0
        if not (within(probe, off, tolerance) and np.isfinite(found).all()):
            return failed(
                f"the pullback is not linear: pullback({label}) differs from the same made of "
                f"pullback(g) and pullback(h) by {off:.2g} of {probe.title(index)}.\n"
                "look at: clipping, normalising, thresholds or absolute tolerances on the "
                f"cotangent in {probe.where()}.",
                array=probe.name(index),
                expected=_example_value(wanted),
                got=_example_value(found),
                relative_error=off,
            )
    return None


def _top(probe: Probe) -> float:
    return float(np.finfo(probe.dtype).max) / 1e3


def check_solver_is_deterministic(probe: Probe) -> Finding:
    """Catch hidden randomness, warm starts and counters: equal inputs, other results."""
    if not probe.spec.deterministic:
        return skipped("declared deterministic=False")
    inputs = natural(probe)
    runs = [_run(probe, inputs)]
    _run(probe, natural(probe, label="in between"))
    runs += [_run(probe, inputs) for _ in range(3)]
    limit = EPS * float(np.finfo(probe.dtype).eps)
    for later in runs[1:]:
        worst, where = _compared(runs[0], later)
        if worst > limit:
            # Settled once nothing else comes between: it is the call before that shows.
            remembers = _compared(runs[-2], runs[-1])[0] <= limit
            return _varying(probe, runs[0][where], later[where], worst, where, remembers)
    return passed()


def _varying(
    probe: Probe, first: Any, later: Any, worst: float, where: int, remembers: bool
) -> Finding:
    name = probe.spec.y.name if not where else probe.name(where - 1)
    what = f"y '{name}'" if not where else f"the gradient of {probe.title(where - 1)}"
    cause = (
        "It depends on the call before: a warm start, a buffer, the last result handed out late."
        if remembers
        else "Random numbers, a counter, a race?"
    )
    return failed(
        f"equal inputs give different results: {what} differs by {worst:.2g} (relative). {cause}\n"
        f"look at: what {probe.where()} keeps between calls. If it is meant so, declare "
        "deterministic=False.",
        Diagnosis.STALE_STATE if remembers else Diagnosis.CONTRACT,
        array=name,
        expected=_example_value(first),
        got=_example_value(later),
        relative_error=worst,
    )


def _run(probe: Probe, inputs: Inputs) -> list[Any]:
    y, pullback = probe.linearize(inputs)
    g = cotangent_for(y, probe.rng("deterministic"))
    return _copied([np.array(y), *pullback(g)])
