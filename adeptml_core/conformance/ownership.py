"""Whose memory is it? Inputs that are written to, results that change later.

torch hands arrays on without copying them. A solver that writes to what it was given changes the
caller's tensor, or the cotangent that another branch of the model still needs; one that gives its
buffer away twice changes a result after the fact. Differences see none of it: each call on its own
is right.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from adeptml_core.conformance.basics import cotangent_for, natural
from adeptml_core.conformance.probe import AnyArray, Inputs, Probe
from adeptml_core.conformance.records import Finding, Status, failed, passed
from adeptml_core.errors import Unavailable
from adeptml_core.linearizer import Pullback
from adeptml_core.spec import Mode

__all__ = ["check_inputs_stay_unchanged", "check_results_are_owned", "settle"]

READ_ONLY = ("read-only", "readonly", "not writeable", "not writable")
# Steps that the exact test for overlap may take before the bounds decide. (Any, because numpy's
# stubs admit only -1 and 0.)
WORK: Any = 10_000

Named = list[tuple[str, AnyArray]]


def settle(probe: Probe) -> None:
    """Call the solver once; go on with private copies where it cannot do without writing.

    Any other complaint is left to the checks, which say more about it.
    """
    for other in [*(probe.with_options(trial.options) for trial in probe.trials[:1]), probe]:
        try:
            y, pullback = other.linearize(natural(other))
            pullback(cotangent_for(y, probe.rng("settle")))
        except Unavailable:
            raise
        except Exception as error:
            if any(word in str(error).lower() for word in READ_ONLY):
                probe.give_copies(f"{type(error).__name__}: {error}")
                return


def check_inputs_stay_unchanged(probe: Probe) -> Finding:
    """Catch a solver that writes to x, to an arg, or to the cotangent it was given."""
    if probe.writes_inputs:
        return failed(
            f"the solver writes to its inputs, which are read-only: {probe.writes_inputs}. Work on "
            "a copy (np.array(x)), or declare writable_inputs=True to be given private copies.",
            got=probe.writes_inputs,
        )
    if probe.spec.writable_inputs:
        return passed("it is given private copies, as declared")
    inputs = natural(probe)
    before = [np.array(value) for value in inputs]
    y, pullback = probe.linearize(inputs)
    g = cotangent_for(y, probe.rng("unchanged"))
    kept = np.array(g)
    pullback(g)
    _once_more(probe, pullback, g)
    named = [(probe.title(i), v, b) for i, (v, b) in enumerate(zip(inputs, before, strict=True))]
    for name, value, was in [*named, ("the cotangent of y", g, kept)]:
        changed = np.argwhere(~_same(value, was))
        if len(changed):
            where = tuple(changed[0])
            probe.give_copies(f"it changed {name} past its read-only flag")
            return failed(
                f"the solver changed {name}, past its read-only flag: "
                f"{was[where]} became {value[where]} at {list(map(int, where))}",
                array=name,
                index=changed[0],
                expected=float(was[where]),
                got=float(value[where]),
            )
    return passed()


def _same(first: AnyArray, second: AnyArray) -> Any:
    both_nan = np.not_equal(first, first) & np.not_equal(second, second)
    return (first == second) | both_nan


def check_results_are_owned(probe: Probe) -> Finding:
    """Catch a result that is an input, is handed out twice, or changes when the solver goes on."""
    first, second = natural(probe), natural(probe, label="owned second")
    counts = []
    for a, b in ((first, second), (probe.stacked(first), probe.stacked(second))):
        finding = _owned(probe, a, b)
        if finding.status is not Status.PASSED:
            return finding
        counts.append(finding)
    return _jacobian_is_owned(probe) or counts[0]


def _owned(probe: Probe, first: Inputs, second: Inputs) -> Finding:
    rng = probe.rng("owned")
    y, pullback = probe.linearize(first)
    g = cotangent_for(y, rng)
    y_kept = np.array(y)
    pulled = pullback(g)
    results = _results(probe, y, pulled)
    snapshot = [np.array(value) for _, value in results]
    if not _same(y, y_kept).all():
        return _changed(probe.spec.y.name, "its own pullback was called")
    inputs = [(probe.title(i), v) for i, v in enumerate(first)] + [("the cotangent of y", g)]
    again = _once_more(probe, pullback, cotangent_for(y, rng))
    y2, pullback2 = probe.linearize(second)
    later = again + _results(probe, y2, pullback2(g))
    for (name, value), was in zip(results, snapshot, strict=True):
        if not _same(value, was).all():
            return _changed(name, "the solver was called again")
    return (
        _shared(results, inputs, "is (a view of) its input")
        or _shared_within(results)
        or _shared(results, later, "shares its memory with a later result,")
        or passed(f"{len(results)} results")
    )


def _results(probe: Probe, y: AnyArray, pulled: Any) -> Named:
    return [(f"y '{probe.spec.y.name}'", y), *_pulled(probe, pulled)]


def _pulled(probe: Probe, pulled: Any) -> Named:
    return [
        (f"the gradient of {probe.title(i)}", v)
        for i, v in enumerate(pulled)
        if v is not None and v.size
    ]


def _once_more(probe: Probe, pullback: Pullback, g: AnyArray) -> Named:
    """Call a pullback again; where it raises, another check says so."""
    try:
        return _pulled(probe, pullback(g))
    except Unavailable:
        raise
    except Exception:
        return []


def _changed(name: str, when: str) -> Finding:
    return failed(
        f"{name} changed after it was returned, when {when}. Return a fresh array from every call "
        "(or a copy of the buffer).",
        array=name,
        expected="unchanged",
        got="changed",
    )


def _overlap(first: AnyArray, second: AnyArray) -> bool:
    try:
        return np.shares_memory(first, second, max_work=WORK)
    except np.exceptions.TooHardError:
        return np.may_share_memory(first, second)


def _shared(results: Named, others: Named, how: str) -> Finding | None:
    for name, value in results:
        for other_name, other in others:
            if _overlap(value, other):
                return failed(
                    f"{name} {how} {other_name}. Whoever writes to one changes the other: return a "
                    "copy.",
                    array=name,
                    expected="memory of its own",
                    got=other_name,
                )
    return None


def _shared_within(results: Named) -> Finding | None:
    for number, result in enumerate(results):
        found = _shared([result], results[number + 1 :], "shares its memory with")
        if found is not None:
            return found
    return None


def _jacobian_is_owned(probe: Probe) -> Finding | None:
    """Look at the plugin's own function: core contracts a Jacobian at once, which hides it."""
    if probe.solver.mode is not Mode.JACOBIAN:
        return None
    inputs = natural(probe)
    first, second = (list(_entries(probe.call("jacobian", *inputs))) for _ in range(2))
    kept = [np.array(value) for value in first]
    list(_entries(probe.call("jacobian", *natural(probe, label="owned second"))))
    for value, was in zip(first, kept, strict=True):
        if not _same(value, was).all():
            return _changed("the Jacobian", "the solver was called again")
    named = [
        [(f"the Jacobian {i}", v) for i, v in enumerate(entries)] for entries in (first, second)
    ]
    return _shared(named[0], named[1], "shares its memory with a later result,")


def _entries(result: Any) -> Iterator[AnyArray]:
    values = result if isinstance(result, tuple | list) else (result,)
    return (np.asarray(value) for value in values if value is not None)
