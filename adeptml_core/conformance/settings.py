"""Options other than the defaults: whether the gradient is right there too, and follows them.

The variants are tried *before* the defaults and once more after them. A cache that ignores options
is right for whoever comes first; only in both orders does it show.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from adeptml_core.conformance.basics import cotangent_for, natural
from adeptml_core.conformance.gradients import Examination, examine
from adeptml_core.conformance.limits import Budget
from adeptml_core.conformance.noise import within
from adeptml_core.conformance.probe import Probe, Undeclared
from adeptml_core.conformance.pullbacks import _compared, _copied
from adeptml_core.conformance.records import Diagnosis, Finding, failed, passed, skipped
from adeptml_core.conformance.verdicts import finding_of
from adeptml_core.errors import AdeptmlError, ConfigError
from adeptml_core.spec import Option, SolverSpec

__all__ = ["Trial", "check_options_are_followed", "tried_first", "variants"]

MOST = 12  # variants
SHARE = 0.25  # of the budget
SECONDS = 8.0  # where there is no budget


@dataclass
class Trial:
    """One variant: what its gradients were before the defaults were ever used."""

    options: Mapping[str, Any]
    answers: list[Any]
    finding: Finding | None
    refused: str = ""


def variants(spec: SolverSpec, chosen: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield one change of one option at a time, within what is declared."""
    for option in spec.options:
        for value in _others(option, chosen[option.name]):
            try:
                valid = option.validate(value)
            except ConfigError:
                continue
            if valid != chosen[option.name]:
                yield {option.name: valid}


def _others(option: Option, value: Any) -> list[Any]:
    if option.choices is not None:
        return [choice for choice in option.choices if choice != value][:2]
    if option.type is bool:
        return [not value]
    if option.type is int:
        return [value + 1, value - 1] if value > 1 else [value + 1]
    if option.type is float:
        if not np.isfinite(value):
            return [1.0]
        return [1.5 * value, 0.5 * value] if value else [0.5, 1.0]
    return []


def tried_first(probe: Probe) -> list[Trial]:
    """Try every variant, before anything else is called; refusals are kept, not raised."""
    budget = Budget(min(SECONDS, SHARE * probe.budget.left()))
    trials: list[Trial] = []
    for changed in variants(probe.spec, probe.solver.options):
        if len(trials) >= MOST or budget.left() <= 0:
            break
        if probe.compiles and any(changed.keys() == trial.options.keys() for trial in trials):
            continue  # each costs a compilation: one variant of each option
        trials.append(_trial(probe, changed))
    return trials


def _trial(probe: Probe, changed: Mapping[str, Any]) -> Trial:
    other = probe.with_options(changed)
    try:
        return Trial(changed, _answers(other), _judged(other))
    except (AdeptmlError, Undeclared) as error:
        return Trial(changed, [], None, refused=str(error))
    except Exception as error:
        return Trial(changed, [], None, refused=f"{type(error).__name__}: {error}")


def _answers(probe: Probe) -> list[Any]:
    y, pullback = probe.linearize(natural(probe))
    return _copied([np.array(y), *pullback(cotangent_for(y, probe.rng("options")))])


def _judged(probe: Probe) -> Finding | None:
    """Return the first failure of a gradient with these options, if any."""
    for index, differentiable in enumerate(probe.spec.differentiable):
        if differentiable:
            examined: Examination = examine(probe, index, probe.dtype, thorough=False)
            finding = finding_of(examined)
            if finding.status == "failed":
                return finding
    return None


def check_options_are_followed(probe: Probe) -> Finding:
    """Catch a gradient that is right at the default options only, and caches that ignore them."""
    if not probe.spec.options:
        return skipped("no options are declared")
    trials = probe.trials
    usable = [trial for trial in trials if not trial.refused]
    if not usable:
        why = f": {trials[0].refused}" if trials else ""
        return skipped(f"no other value could be tried{why}")
    at_defaults = _judged(probe)
    for trial in usable:
        finding = _followed(probe, trial, at_defaults)
        if finding is not None:
            return finding
    names = ", ".join(sorted({name for trial in usable for name in trial.options}))
    refused = len(trials) - len(usable)
    note = f"; {refused} refused by the solver" if refused else ""
    return passed(f"{len(usable)} variants of {names}{note}")


def _followed(probe: Probe, trial: Trial, at_defaults: Finding | None) -> Finding | None:
    spelt = ", ".join(f"{name}={value!r}" for name, value in trial.options.items())
    later = _judged(probe.with_options(trial.options))
    first_wrong = trial.finding is not None
    if first_wrong and later is not None and at_defaults is None and trial.finding is not None:
        return _variant_finding(probe, spelt, trial.finding)
    if (first_wrong or later is not None) and at_defaults is not None:
        return None if first_wrong and later is not None else _cached(spelt, at_defaults)
    if not first_wrong and (later is not None or at_defaults is not None):
        return _cached(spelt, later or at_defaults)
    if probe.spec.deterministic:
        worst, where = _compared(trial.answers, _answers(probe.with_options(trial.options)))
        if not within(probe, worst, 1e-6):
            return failed(
                f"with {spelt} the solver gives one result before and another after it was called "
                f"with the defaults (relative difference {worst:.2g}).\n"
                "look at: a cache whose key lacks the options.",
                Diagnosis.STALE_STATE,
                array=None if not where else probe.name(where - 1),
                expected="the same",
                got=worst,
            )
    return None


def _variant_finding(probe: Probe, spelt: str, finding: Finding) -> Finding:
    data = dict(finding.data)
    diagnosis = data.pop("diagnosis")
    return failed(
        f"with {spelt}, and not with the defaults, the gradient of '{data['array']}' is wrong:\n"
        f"{finding.message}",
        diagnosis,
        **data,
        options=spelt,
    )


def _cached(spelt: str, finding: Finding | None) -> Finding:
    detail = f"\n{finding.message}" if finding else ""
    return failed(
        "the gradient is right for the option values used first, and wrong for others "
        f"({spelt} and the defaults were tried in both orders).{detail}\n"
        "look at: a cache whose key lacks the options.",
        Diagnosis.STALE_STATE,
        expected="the gradient for these options",
        got="that for others",
        options=spelt,
    )
