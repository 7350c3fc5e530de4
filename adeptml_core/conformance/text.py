"""Reports as text for a terminal: one line where a solver can be trusted, more where it cannot."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adeptml_core.conformance.records import UNAVAILABLE, Record, SolverReport, Status
from adeptml_core.table import Paint, paragraph, plain, printable

__all__ = ["reproduction", "solver_lines", "summary_line"]

MEANINGS = {
    "passed": "good",
    "failed": "bad",
    "inconclusive": "warn",
    "unavailable": "warn",
    "skipped": "dim",
    "expected_failure": "dim",
}
SHOWN = (Status.FAILED, Status.INCONCLUSIVE, Status.EXPECTED_FAILURE)
SHOUTED = {"failed": "FAILED"}


def solver_lines(
    report: SolverReport,
    *,
    name_width: int,
    paint: Paint = plain,
    width: int | None = None,
    debug: bool = False,
) -> Iterator[str]:
    """Yield the lines of one solver: the verdict, then what is wrong, with room around it."""
    yield _headline(report, name_width, paint)
    shown = [record for record in report.records if record.status in SHOWN]
    if report.verdict == UNAVAILABLE:
        return
    for record in shown:
        yield from _record_lines(record, paint, width, debug)
    yield from _printed_lines(report, paint, width)
    if shown and not all(record.status is Status.EXPECTED_FAILURE for record in shown):
        yield ""


def _headline(report: SolverReport, name_width: int, paint: Paint) -> str:
    verdict = SHOUTED.get(report.verdict, report.verdict)
    if report.verdict == UNAVAILABLE:
        tail = report.message.partition("\n")[0]
    else:
        tail = f"{_counts(report)}{f'{report.seconds:.1f} s':>9}"
    name = paint(report.name.ljust(name_width), "name")
    claimed = f"   tolerance {report.tolerance:g} as claimed" if report.tolerance else ""
    return f"{name}  {paint(verdict.ljust(12), MEANINGS[report.verdict])}  {tail}{claimed}"


def _counts(report: SolverReport) -> str:
    """Return ``31 checks, 1 skipped``; where something is wrong, how many of each."""
    passed, skipped = report.count(Status.PASSED), report.count(Status.SKIPPED)
    parts = [f"{passed} passed" if report.verdict != "passed" else f"{passed} checks"]
    for status, words in (
        (Status.FAILED, "failed"),
        (Status.INCONCLUSIVE, "inconclusive"),
        (Status.EXPECTED_FAILURE, "expected to fail"),
    ):
        count = report.count(status)
        parts += [f"{count} {words}"] if count else []
    parts += [f"{skipped} skipped"] if skipped else []
    return ", ".join(parts).ljust(28)


def _record_lines(record: Record, paint: Paint, width: int | None, debug: bool) -> Iterator[str]:
    status = SHOUTED.get(record.status, record.status.replace("_", " "))
    diagnosis = record.data.get("diagnosis")
    is_failed = record.status is Status.FAILED
    note = f"   diagnosis: {diagnosis}" if diagnosis and is_failed else ""
    yield ""
    yield (
        f" {paint(record.title.ljust(44), 'name')} "
        f"{paint(status, MEANINGS[record.status])}{note}   {paint(f'[{record.id}]', 'dim')}"
    )
    for line in record.message.splitlines():
        yield from paragraph(line, width=width, first="   ", indent="     ")
    if debug and record.data.get("traceback"):
        for line in str(record.data["traceback"]).splitlines():
            yield f"   {paint(printable(line), 'dim')}"


def _printed_lines(report: SolverReport, paint: Paint, width: int | None) -> Iterator[str]:
    """Say that the solver printed, with a taste of it; --json and --report have it all."""
    lines = [line.strip() for line in report.output.splitlines() if line.strip()]
    if lines:
        text = f"it printed {len(lines)} line{'s' * (len(lines) > 1)}, first: {lines[0][:60]}"
        for line in paragraph(text, width=width, first="   ", indent="     "):
            yield paint(line, "dim")


def summary_line(reports: Sequence[SolverReport], problems: int, seed: int) -> str:
    """Return the last line, which says whether they can be trusted."""
    total = len(reports) + problems
    sound = [report for report in reports if report.verdict == "passed"]
    if not total:
        return "nothing to check"
    if len(sound) == total:
        subject = f"all {total} can" if total > 1 else f"{sound[0].name} can"
        return f"{subject} be trusted (seed {seed})"
    parts = [f"{len(sound)} of {total} can be trusted"]
    for verdict in ("failed", "inconclusive", UNAVAILABLE):
        count = sum(report.verdict == verdict for report in reports)
        parts += [f"{count} {verdict}"] if count else []
    parts += [f"{problems} broken"] if problems else []
    return ", ".join(parts) + f" (seed {seed})"


def reproduction(verb: str, name: str, seed: int, options: Mapping[str, Any]) -> str:
    """Return the command that runs one solver's examination again."""
    words = ["adeptml", "plugins", verb, name, "--seed", str(seed)]
    for option, value in options.items():
        words += ["--option", f"{option}={value}"]
    return shlex.join(words)
