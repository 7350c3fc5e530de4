"""The proof for a plugin's own tests: one line, one pytest case for each check.

In ``tests/test_conformance.py`` of a plugin::

    from adeptml_core.testing import solver_checks

    test_heat1d = solver_checks("heat1d")

Without pytest, `check_solver` returns the records.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from adeptml_core import registry
from adeptml_core.conformance.records import Record, SolverReport, Status
from adeptml_core.conformance.runner import PARTS, Run, Settings
from adeptml_core.conformance.statics import Subject
from adeptml_core.spec import SolverSpec

__all__ = ["check_solver", "report_solver", "solver_checks"]


def check_solver(
    solver: str | SolverSpec,
    options: Mapping[str, object] | None = None,
    *,
    seed: int = 0,
    budget: float | None = None,
    parts: Sequence[str] = PARTS,
) -> list[Record]:
    """Examine one solver and return what each check found.

    Parameters
    ----------
    solver : str or SolverSpec
        The name of an installed solver, or a spec.
    options : mapping, optional
        Values by name.
    seed : int
        Of all random draws.
    budget : float, optional
        Seconds.
    parts : sequence of str
        Some of ``"static"``, ``"contract"``, ``"gradient"``.

    Returns
    -------
    list of Record
        With ``id``, ``status``, ``message`` and ``data``.

    Raises
    ------
    UnknownSolverError, PluginError, ConfigError
        No such solver; a broken plugin; wrong options. What is wrong with the *solver* is never
        raised: it stands in the records.

    Examples
    --------
    >>> from adeptml_core.plugin import Array, SolverSpec
    >>> cube = SolverSpec(
    ...     name="cube", mode="vjp", summary="x to the third",
    ...     x=Array("x", (3,), low=-1.0, high=1.0), y=Array("y", (3,)),
    ...     forward=lambda x: x**3, vjp=lambda x, g: 2 * x**2 * g,
    ... )
    >>> [(r.id, str(r.data["diagnosis"])) for r in check_solver(cube) if r.status == "failed"]
    [('gradient.x', 'factor')]
    """
    return list(report_solver(solver, options, seed=seed, budget=budget, parts=parts).records)


def report_solver(
    solver: str | SolverSpec,
    options: Mapping[str, object] | None = None,
    *,
    seed: int = 0,
    budget: float | None = None,
    parts: Sequence[str] = PARTS,
) -> SolverReport:
    """Examine one solver and return the whole report: verdict, records, time, calls.

    Parameters and errors are those of `check_solver`.
    """
    return _run(solver, options, seed=seed, budget=budget, parts=tuple(parts)).report()


def _run(solver: str | SolverSpec, options: Mapping[str, object] | None, **settings: Any) -> Run:
    subject = _subject(solver)
    given = dict(options or {})
    if given:
        # Wrong options are the caller's slip, not a finding about the solver.
        required = {o.name: o.type() for o in subject.spec.options if o.required}
        subject.spec.resolve_options(required | given)
    return Run(subject, Settings(options={subject.spec.name: given}, **settings))


def _subject(solver: str | SolverSpec) -> Subject:
    if isinstance(solver, SolverSpec):
        return Subject(solver)
    entry = registry.find(solver)
    return Subject(registry.load(entry), entry, solver)


def solver_checks(
    solver: str | SolverSpec,
    *,
    options: Mapping[str, object] | None = None,
    seed: int = 0,
    budget: float | None = None,
) -> Callable[..., None]:
    """Return a pytest test with one case for each check of a solver.

    Parameters
    ----------
    solver : str or SolverSpec
    options : mapping, optional
        Values by name; a solver with required options needs them.
    seed : int
    budget : float, optional
        Seconds for the whole solver.

    Returns
    -------
    callable
        To be bound to a name that pytest collects: ``test_heat1d = solver_checks("heat1d")``.

    Notes
    -----
    A check that fails fails its case, with diagnosis, place and values. One that is skipped or
    inconclusive skips it, with the reason; an expected failure is an ``xfail``. Each case runs its
    own check (and those it stands on), so ``-k gradient`` is quick.
    """
    import pytest

    @lru_cache(maxsize=1)
    def examined() -> Run:
        return _run(solver, options, seed=seed, budget=budget)

    names = list(_run(solver, options, seed=seed, budget=budget).checks)

    @pytest.mark.parametrize("check", names)
    def test_solver(check: str) -> None:
        """One check of the solver."""
        record = examined().record(check)
        reason = f"{record.title}: {record.message}"
        if record.status is Status.FAILED:
            pytest.fail(f"{reason}\ndiagnosis: {record.data.get('diagnosis')}", pytrace=False)
        if record.status is Status.EXPECTED_FAILURE:
            pytest.xfail(reason)
        if record.status is Status.INCONCLUSIVE:
            pytest.skip(f"inconclusive: {reason}")
        if record.status is Status.SKIPPED:
            pytest.skip(reason)

    return test_solver
