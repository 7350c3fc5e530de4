"""What ``adeptml plugins check``, ``validate`` and ``gradcheck`` do, below their command lines."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from adeptml_core.conformance import options as option_text
from adeptml_core.conformance.isolation import run_isolated
from adeptml_core.conformance.page import page
from adeptml_core.conformance.plot import require_matplotlib, save_figure
from adeptml_core.conformance.records import UNAVAILABLE, SolverReport
from adeptml_core.conformance.runner import Settings
from adeptml_core.conformance.statics import Subject
from adeptml_core.conformance.text import reproduction, solver_lines, summary_line
from adeptml_core.errors import AdeptmlError
from adeptml_core.registry import Problem, Row, State

__all__ = ["Console", "Request", "examine"]

FINDING = 1


class Console(Protocol):
    """Where the command writes; `adeptml_core.cli.Console` is one."""

    as_json: bool
    debug: bool
    width: int | None

    def print(self, text: str = "") -> None:
        """Write a line to stdout."""

    def print_json(self, data: dict[str, Any]) -> None:
        """Write one JSON document to stdout."""

    def paint(self, text: str, meaning: str) -> str:
        """Colour `text` by what it means."""

    def print_problems(self, problems: Sequence[Problem]) -> None:
        """Write what is wrong with plugins that cannot be loaded."""


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    verb: str
    parts: tuple[str, ...]
    rows: Sequence[Row]
    problems: Sequence[Problem]
    named: bool
    seed: int = 0
    options: Sequence[str] = ()
    strict: bool = False
    report: str | None = None
    plot: str | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)

    def subjects(self) -> list[Subject]:
        """Return the solvers to examine: those that are sound, and switched on or named."""
        return [
            Subject(row.spec, row.entry, _name(row))
            for row in self.rows
            if row.spec is not None and row.state is not State.DISABLED
        ]

    def settings(self, subjects: Sequence[Subject]) -> Settings:
        """Return how to examine them."""
        given = option_text.split(self.options)
        chosen = option_text.parsed([subject.spec for subject in subjects], given) if given else {}
        limits = {name: value for name, value in self.limits.items() if value is not None}
        return Settings(parts=self.parts, seed=self.seed, options=chosen, **limits)


def _name(row: Row) -> str:
    return row.entry.qualified if row.state is State.DUPLICATE else row.entry.name


def examine(console: Console, request: Request) -> int:
    """Examine solvers, print each report as soon as it stands, and return the exit code."""
    subjects = request.subjects()
    settings = request.settings(subjects)
    if request.plot:
        require_matplotlib()
    if request.report:
        _require_writable(request.report)
    progress = _Progress() if not console.as_json and sys.stderr.isatty() else None
    width = max((len(subject.name) for subject in subjects), default=0)
    reports = []
    for report in run_isolated(subjects, settings, progress):
        reports.append(report)
        if progress is not None:
            progress.clear()
        if not console.as_json:
            _print(console, report, width)
    _write_files(reports, request)
    if console.as_json:
        console.print_json(_document(reports, request))
    else:
        _print_end(console, reports, request)
    return FINDING if _has_finding(reports, request) else 0


def _require_writable(file: str) -> None:
    """Complain before minutes of work are done for a page that cannot be written."""
    folder = Path(file).resolve().parent
    if not folder.is_dir():
        raise AdeptmlError(f"--report {file}: there is no folder {folder}")


def _write_files(reports: Sequence[SolverReport], request: Request) -> None:
    if request.plot:
        save_figure(reports, request.plot)
    if request.report:
        text = page(
            reports,
            verb=request.verb,
            seed=request.seed,
            options=option_text.split(request.options),
            problems=request.problems,
        )
        Path(request.report).write_text(text, encoding="utf-8")


def _print(console: Console, report: SolverReport, name_width: int) -> None:
    for line in solver_lines(
        report,
        name_width=name_width,
        paint=console.paint,
        width=console.width,
        debug=console.debug,
    ):
        console.print(line)


def _print_end(console: Console, reports: Sequence[SolverReport], request: Request) -> None:
    if request.problems:
        console.print()
        console.print_problems(request.problems)
    console.print(summary_line(reports, len(request.problems), request.seed))
    for file in (request.report, request.plot):
        if file:
            console.print(f"written: {file}")
    doubtful = [r for r in reports if r.verdict in ("failed", "inconclusive")]
    if doubtful:
        given = option_text.split(request.options)
        mine = {k: v for k, v in given.items() if k in doubtful[0].options}
        line = reproduction(request.verb, doubtful[0].name, request.seed, mine)
        more = "" if request.report else f"          more: --report {doubtful[0].name}.html"
        more = more if request.verb == "check" else ""
        console.print(f"reproduce: {line}{more}")


def _document(reports: Sequence[SolverReport], request: Request) -> dict[str, Any]:
    keys = ("code", "distribution", "version", "entry_point", "message", "mend")
    return {
        "seed": request.seed,
        "solvers": [report.to_dict() for report in reports],
        "problems": [{key: getattr(p, key) for key in keys} for p in request.problems],
    }


def _has_finding(reports: Sequence[SolverReport], request: Request) -> bool:
    bad = {"failed"}
    if request.strict:
        bad.add("inconclusive")
    if request.named or request.strict:
        bad.add(UNAVAILABLE)
    return bool(request.problems) or any(report.verdict in bad for report in reports)


class _Progress:
    """One line on stderr that says what is being done, and leaves no trace."""

    def __call__(self, solver: str, check: str, number: int, total: int) -> None:
        text = f"{solver}  {number}/{total}  {check}"
        sys.stderr.write(f"\r\x1b[K{text[:100]}")
        sys.stderr.flush()

    def clear(self) -> None:
        """Wipe the line."""
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
