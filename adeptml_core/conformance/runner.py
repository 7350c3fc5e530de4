"""One runner for ``check``, ``validate`` and ``gradcheck``: it decides what runs, in which order.

The cheap and telling checks come first, so that a budget buys as much as it can. A check whose
ground has given way is skipped with the reason: one fault is reported once.
"""

import contextlib
import functools
import io
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from adeptml_core.conformance import (
    basics,
    batches,
    ownership,
    pullbacks,
    ranges,
    statics,
    surroundings,
    tangents,
    verdicts,
)
from adeptml_core.conformance import settings as option_values
from adeptml_core.conformance.limits import Budget, Hang, time_limit
from adeptml_core.conformance.ownership import settle
from adeptml_core.conformance.probe import Probe
from adeptml_core.conformance.records import (
    UNAVAILABLE,
    Diagnosis,
    Finding,
    Record,
    SolverReport,
    Status,
    failed,
    inconclusive,
    skipped,
    verdict_of,
)
from adeptml_core.conformance.statics import Subject
from adeptml_core.conformance.surroundings import AT_IMPORT, Watch, as_it_was
from adeptml_core.errors import ConfigError, ContractError, Unavailable
from adeptml_core.spec import SolverSpec

__all__ = ["PARTS", "Check", "Run", "Settings", "check_ids", "checks_of"]

PARTS = ("static", "contract", "gradient")
GROUND = ("example", "results")
"""Where these have failed, there is nothing to stand on."""

UNCALLED = ("sizes", "example")
"""These do not call the solver, and come before its first call."""

STEADY = ("inputs-unchanged", "deterministic", "pullback-repeatable", "pullback-own-call")
"""Where one of these has failed, every comparison of two calls may fail as well."""

ROWS = ("rows-independent", "batch-sizes")
"""Where one of these has failed, gradients that are measured in stacks of rows may fail as well."""


@dataclass(frozen=True)
class Check:
    """One check.

    Parameters
    ----------
    id : str
        Stable: ``expected_failures`` names it.
    title : str
        For people.
    part : str
        One of `PARTS`.
    function : callable
        ``(Subject) -> Finding`` in the static part, ``(Probe) -> Finding`` elsewhere.
    needs : tuple of str
        Checks without which this one cannot run.
    explained_by : tuple of str
        Checks whose failure makes this one fail as well; it is then skipped: each fault once.
    """

    id: str
    title: str
    part: str
    function: Callable[[Any], Finding]
    needs: tuple[str, ...] = GROUND
    explained_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How to examine.

    Parameters
    ----------
    parts : tuple of str
        Some of `PARTS`.
    seed : int
    options : mapping
        For each solver by its name, its options by name.
    budget : float, optional
        Seconds for each solver.
    limit : float
        Seconds for one call of a solver.
    dtype : str, optional
        The only dtype to take gradients in.
    directions : int, optional
        Dense directions at each example point.
    """

    parts: tuple[str, ...] = PARTS
    seed: int = 0
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    budget: float | None = None
    limit: float = 60.0
    dtype: str | None = None
    directions: int | None = None


def _static(spec: SolverSpec) -> Iterator[Check]:
    def check(name: str, title: str, function: Callable[..., Finding]) -> Check:
        return Check(name, title, "static", function, needs=())

    yield check("requirements", "requirements are met", statics.check_requirements_are_met)
    yield check("light-module", "the light module is light", statics.check_light_module_is_light)
    yield check("functions", "the functions exist", statics.check_functions_exist)
    yield check("parameters", "the functions take what is declared", statics.check_parameters_agree)
    yield check("inputs-known", "there is something to try", statics.check_example_is_declared)
    yield check(
        "expected-failures",
        "expected failures exist",
        lambda subject: statics.check_expected_failures_exist(subject, check_ids(spec)),
    )


def _basic(spec: SolverSpec) -> Iterator[Check]:
    yield Check(
        "sizes", "every size is given", "contract", basics.check_sizes_are_given, ("functions",)
    )
    yield Check(
        "example",
        "the example is valid",
        "contract",
        basics.check_example_is_valid,
        ("functions", "sizes"),
    )
    yield Check(
        "results",
        "shapes, dtypes, finite",
        "contract",
        basics.check_results_are_as_declared,
        ("example", "parameters"),
    )


def _contract(spec: SolverSpec) -> Iterator[Check]:
    def check(name: str, title: str, function: Callable[..., Finding], *causes: str) -> Check:
        return Check(name, title, "contract", function, explained_by=causes)

    yield check("inputs-unchanged", "inputs stay unchanged", ownership.check_inputs_stay_unchanged)
    yield check("results-owned", "results are the caller's", ownership.check_results_are_owned)
    yield check(
        "deterministic",
        "deterministic",
        pullbacks.check_solver_is_deterministic,
        "inputs-unchanged",
    )
    yield check(
        "pullback-repeatable",
        "a pullback called twice",
        pullbacks.check_pullback_is_repeatable,
        *STEADY[:2],
    )
    yield check(
        "pullback-own-call",
        "two forwards, then the first pullback",
        pullbacks.check_pullback_belongs_to_its_call,
        *STEADY[:3],
    )
    yield check(
        "pullback-linear", "linear in the cotangent", pullbacks.check_pullback_is_linear, *STEADY
    )
    yield check(
        "rows-independent",
        "rows are independent",
        batches.check_rows_are_independent,
        *STEADY,
        "pullback-linear",
    )
    yield check(
        "batch-sizes",
        "any batch size",
        batches.check_batch_size_does_not_matter,
        *STEADY,
        "pullback-linear",
        "rows-independent",
    )
    yield check(
        "shared-args",
        "shared args sum",
        batches.check_shared_args_sum_their_batch,
        *STEADY,
        "pullback-linear",
        *(f"gradient.{a.name}" for a in spec.args if a.differentiable),
    )
    yield check("global-state", "global state is kept", surroundings.check_global_state_is_kept)
    yield check("special-values", "special values", ranges.check_special_values_are_finite)
    yield check(
        "bounds",
        "finite within the bounds",
        ranges.check_bounds_are_kept,
        "special-values",
        *_further(spec),
    )
    yield check(
        "precision",
        "the precision of x is kept",
        basics.check_precision_is_kept,
        *STEADY,
        *_further(spec),
        *_further_gradients(spec),
    )
    for dtype in spec.dtypes:
        if np.dtype(dtype) != _best(spec):
            yield check(
                f"results.{dtype}",
                f"shapes, dtypes, finite in {dtype}",
                functools.partial(basics.check_results_are_as_declared, dtype=dtype),
            )
    yield check("jvp", "jvp is the transpose", tangents.check_jvp_agrees, *STEADY, *_wrong_x(spec))
    yield check("hvp", "hvp is the second derivative", tangents.check_hvp_agrees, *STEADY)


def _further(spec: SolverSpec) -> tuple[str, ...]:
    """Return the checks of shapes and dtypes in all dtypes but the best."""
    return tuple(f"results.{d}" for d in spec.dtypes if np.dtype(d) != _best(spec))


def _further_gradients(spec: SolverSpec) -> tuple[str, ...]:
    """Return the checks of gradients in the other dtypes: they say more about what is wrong."""
    names = [a.name for a, d in zip(spec.inputs, spec.differentiable, strict=True) if d]
    others = [d for d in spec.dtypes if np.dtype(d) != _best(spec)]
    return tuple(f"gradient.{name}.{dtype}" for name in names for dtype in others)


def _wrong_x(spec: SolverSpec) -> tuple[str, ...]:
    """Return the check that says whether it is the pullback that jvp disagrees with."""
    return (f"gradient.{spec.x.name}",)


def _late(spec: SolverSpec) -> Iterator[Check]:
    yield Check(
        "options",
        "other options",
        "contract",
        option_values.check_options_are_followed,
        explained_by=(*STEADY, "pullback-linear"),
    )
    yield Check(
        "threads",
        "threads do not meet",
        "contract",
        surroundings.check_threads_agree,
        explained_by=(*STEADY, "results-owned"),
    )


def _best(spec: SolverSpec) -> np.dtype[Any]:
    return max((np.dtype(name) for name in spec.dtypes), key=lambda dtype: dtype.itemsize)


def _gradients(spec: SolverSpec, wanted: Settings) -> Iterator[Check]:
    best = _best(spec).name
    for dtype in sorted(spec.dtypes, key=lambda name: name != best):
        if wanted.dtype not in (None, dtype):
            continue
        for index, array in enumerate(spec.inputs):
            if not spec.differentiable[index]:
                continue
            role = "x" if index == 0 else f"args[{index - 1}]"
            plain_name = f"{role} '{array.name}'" if array.name != role else role
            suffix, note = ("", "") if dtype == best else (f".{dtype}", f" in {dtype}")
            yield Check(
                f"gradient.{array.name}{suffix}",
                f"gradient of {plain_name}{note}",
                "gradient",
                functools.partial(
                    verdicts.check_gradient,
                    index=index,
                    dtype=dtype,
                    directions=wanted.directions,
                ),
                needs=(*GROUND, *_before(array.name, dtype, best)),
                explained_by=(*STEADY, "pullback-linear", *ROWS, "options"),
            )


def _before(array: str, dtype: str, best: str) -> tuple[str, ...]:
    """Return what the gradient in a further dtype stands on: wrong in one is wrong in all."""
    return () if dtype == best else (f"results.{dtype}", f"gradient.{array}")


def checks_of(spec: SolverSpec, wanted: Settings | None = None) -> list[Check]:
    """Return the checks of a solver, in the order in which they run."""
    wanted = wanted or Settings()
    checks = [
        *_static(spec),
        *_basic(spec),
        *_contract(spec),
        *_gradients(spec, wanted),
        *_late(spec),
    ]
    ground = GROUND if wanted.parts != ("static",) else ()
    return [check for check in checks if check.part in wanted.parts or check.id in ground]


def check_ids(spec: SolverSpec) -> frozenset[str]:
    """Return the ids of all checks of a solver: what ``expected_failures`` may name."""
    return frozenset(check.id for check in checks_of(spec))


class Run:
    """The examination of one solver; each check runs when its record is asked for, and once.

    Parameters
    ----------
    subject : Subject
    wanted : Settings, optional
    output : text stream, optional
        Takes what the solver prints; None: the report does.

    Attributes
    ----------
    begun, ended : callable
        Called with each `Check` as it begins, with each `Record` as it ends; a check that asks for
        the record of another one ends after it.
    """

    def __init__(
        self,
        subject: Subject,
        wanted: Settings | None = None,
        *,
        output: IO[str] | None = None,
    ) -> None:
        self.subject = subject
        self.settings = wanted or Settings()
        self.begun: Callable[[Check], object] = lambda check: None
        self.ended: Callable[[Record], object] = lambda record: None
        self.checks = {check.id: check for check in checks_of(subject.spec, self.settings)}
        self.budget = Budget(self.settings.budget)
        self.output: IO[str] = output or io.StringIO()
        self.unavailable = ""
        self.hang = ""
        self.watch = Watch()
        self._records: dict[str, Record] = {}

    @functools.cached_property
    def probe(self) -> Probe:
        """The solver under examination, not called yet."""
        probe = Probe(
            self.subject.spec,
            _options_for(self.subject.spec, self.settings.options.get(self.subject.spec.name, {})),
            seed=self.settings.seed,
            budget=self.budget,
            limit=self.settings.limit,
            distribution=self.subject.distribution,
            version=self.subject.version,
        )
        with time_limit(self.settings.limit, f"importing {self.subject.spec.name}"):
            for role in self.subject.declared():
                probe.solver.function(role)
        imported = self.watch.changes()
        probe.changes_at_import = {k: v for k, v in imported.items() if k in AT_IMPORT}
        return probe

    @functools.cached_property
    def settled_probe(self) -> Probe:
        """The solver under examination, after its very first calls."""
        probe, watch = self.probe, Watch()
        if "options" in self.checks:
            probe.trials = option_values.tried_first(probe)
        settle(probe)
        probe.changes_at_first_call = watch.changes()
        return probe

    def record(self, name: str) -> Record:
        """Return the record of the check called `name`, run now if it has not run yet."""
        if name not in self._records:
            check = self.checks[name]
            self.begun(check)
            started = time.perf_counter()
            finding = self._expected(check, self._finding(check))
            self._records[name] = Record(
                check.id,
                check.title,
                finding.status,
                finding.message,
                finding.data,
                time.perf_counter() - started,
            )
            self.ended(self._records[name])
        return self._records[name]

    def _finding(self, check: Check) -> Finding:
        if self.unavailable:
            return skipped(f"not run: {self.unavailable}", not_run=True)
        if self.hang:
            return skipped(f"not run: {self.hang}", not_run=True)
        for name in check.needs:
            if self._is_bad(name):
                return skipped(f"not run: it stands on '{name}'", not_run=True)
        if self.budget.left() <= 0:
            more = 4 * (self.settings.budget or 1)
            return inconclusive(f"not run: the budget is used up. --budget {more:g} would do more.")
        finding = self._run(check)
        if finding.status in (Status.FAILED, Status.INCONCLUSIVE) and not self.hang:
            return self._explained(check, finding)
        return finding

    def _is_bad(self, name: str) -> bool:
        if name not in self.checks:
            return False
        record = self.record(name)
        bad = (Status.FAILED, Status.INCONCLUSIVE, Status.EXPECTED_FAILURE)
        return record.status in bad or bool(record.data.get("not_run"))

    def _explained(self, check: Check, finding: Finding) -> Finding:
        """Report a fault once: where another check has named the cause, only point to it."""
        for name in check.explained_by:
            cause = name in self.checks and self.record(name)
            if not cause or cause.status not in (Status.FAILED, Status.EXPECTED_FAILURE):
                continue
            diagnosis = cause.data.get("diagnosis")
            # Wrong options explain a wrong gradient only where a cache mixes them up;
            if name == "options" and diagnosis != Diagnosis.STALE_STATE:
                continue
            # a wrong gradient explains wrong sums only where it is another array's.
            if check.id == "shared-args" and "gradient" in name and diagnosis != Diagnosis.ARG:
                continue
            return skipped(f"{finding.status} as well, as it must: see '{name}'")
        return finding

    def _run(self, check: Check) -> Finding:
        """Run one check; whatever the solver does, there is a finding."""
        try:
            with self._contained():
                return self._called(check)
        except Unavailable as error:
            self.unavailable = error.reason
            return skipped(f"unavailable: {error.reason}")
        except Hang as error:
            self.hang = str(error)
            return failed(
                f"{error}. Is there a loop that waits for convergence without a limit?",
                hang=True,
            )
        except ContractError as error:
            return failed(str(error), expected=error.expected, got=error.got)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return _raised(error)

    def _called(self, check: Check) -> Finding:
        if check.id in UNCALLED:
            return check.function(self.probe)
        if check.part != "static":
            return check.function(self.settled_probe)
        if check.id != "functions":
            return check.function(self.subject)
        with time_limit(self.settings.limit, f"importing {self.subject.spec.name}"):
            return check.function(self.subject)  # the first that imports the solver's module

    @contextlib.contextmanager
    def _contained(self) -> Iterator[None]:
        """Keep what the solver prints and warns out of the report; warnings are no errors here."""
        with (
            contextlib.redirect_stdout(self.output),
            contextlib.redirect_stderr(self.output),
            warnings.catch_warnings(),
            as_it_was(),
        ):
            warnings.simplefilter("ignore")
            yield

    def _expected(self, check: Check, finding: Finding) -> Finding:
        """Turn a declared failure into an expected one; strictly: it must fail."""
        reason = self.subject.spec.expected_failures.get(check.id)
        if reason is None:
            return finding
        if finding.status is Status.FAILED:
            return Finding(Status.EXPECTED_FAILURE, f"{reason}\n{finding.message}", finding.data)
        if finding.status is Status.PASSED:
            return failed(
                f"it was expected to fail ({reason}), and passes: take it out of expected_failures",
                expected="failed",
                got="passed",
            )
        return finding

    def report(self) -> SolverReport:
        """Run all checks that have not run yet, and return the report."""
        records = tuple(self.record(name) for name in self.checks)
        probe = self.__dict__.get("probe")
        return SolverReport(
            name=self.subject.name or self.subject.spec.name,
            mode=str(self.subject.spec.mode),
            distribution=self.subject.distribution,
            version=self.subject.version,
            verdict=UNAVAILABLE if self.unavailable else verdict_of(records),
            records=records,
            message=self.unavailable,
            seconds=self.budget.spent(),
            calls=probe.calls if probe else 0,
            tolerance=self.subject.spec.tolerance,
            options=probe.solver.options if probe else {},
            curves=tuple(probe.curves) if probe else (),
            output=self.output.getvalue() if isinstance(self.output, io.StringIO) else "",
        )


def _raised(error: BaseException) -> Finding:
    """Return the finding for an exception that escaped from the solver (or from a check)."""
    notes = "\n".join(getattr(error, "__notes__", ()))
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    text = f"{type(error).__name__}: {error}"
    return failed(
        "\n".join(part for part in (f"raised {text} ({place})", notes) if part),
        Diagnosis.CONTRACT,
        got=text,
        traceback="".join(traceback.format_exception(error)),
    )


def _options_for(spec: SolverSpec, given: Mapping[str, object]) -> dict[str, object]:
    """Return all options of `spec`; without a required one the solver is unavailable."""
    try:
        return spec.resolve_options(given)
    except ConfigError as error:
        missing = [o.name for o in spec.options if o.required and o.name not in given]
        if missing:
            settings = " ".join(f"--option {name}=..." for name in missing)
            raise Unavailable(f"needs a value for {', '.join(missing)}: {settings}") from error
        raise
