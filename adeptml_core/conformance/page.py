"""A run as one self-contained page: verdicts, findings, pictures, and where it was made.

Nothing on it is fetched from anywhere: it can be mailed, archived beside results, attached to a
ticket. No scripts; ``<details>`` folds. Light and dark follow the reader's system.
"""

import datetime
import platform
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from adeptml_core import registry
from adeptml_core.conformance.plot import as_svg
from adeptml_core.conformance.records import Record, SolverReport, Status
from adeptml_core.conformance.style import STYLE
from adeptml_core.conformance.text import reproduction, summary_line

__all__ = ["environment", "page"]

OPEN = (Status.FAILED, Status.INCONCLUSIVE, Status.EXPECTED_FAILURE)
VERDICTS = ("failed", "inconclusive", "unavailable", "passed")
LIBRARIES = ("numpy", "scipy", "torch", "jax")


def page(
    reports: Sequence[SolverReport],
    *,
    verb: str,
    seed: int,
    options: Mapping[str, str],
    problems: Sequence[registry.Problem] = (),
) -> str:
    """Return the page of one run.

    Parameters
    ----------
    reports : sequence of SolverReport
    verb : str
        Of the command, which the page repeats for each solver.
    seed : int
    options : mapping
        What was given with ``--option``.
    problems : sequence of Problem
        Plugins that could not be loaded.
    """
    found = summary_line(reports, len(problems), seed)
    worst = next((v for v in VERDICTS if any(r.verdict == v for r in reports)), "passed")
    worst = "failed" if problems else worst
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>adeptml: {escape(found)}</title><style>{STYLE}</style></head><body><main>",
        f'<header class="{worst}"><p class="over">adeptml plugins {escape(verb)}</p>',
        f"<h1>{escape(found[0].upper() + found[1:])}</h1>",
        f"{_contents(reports)}</header>",
        *(_problem(problem) for problem in problems),
        *(_solver(report, verb, seed, options) for report in reports),
        *([f'<p class="legend">{LEGEND}</p>'] if any(r.curves for r in reports) else []),
        _environment_section(environment(seed, options)),
        "</main></body></html>\n",
    ]
    return "\n".join(parts)


def environment(seed: int, options: Mapping[str, str]) -> dict[str, str]:
    """Return where and with what the run was made: what somebody needs to repeat it."""
    rows = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seed": str(seed),
        "options": ", ".join(f"{k}={v}" for k, v in options.items()) or "as declared",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": f"{platform.system()} {platform.machine()}, {platform.platform(terse=True)}",
        registry.CORE: registry.installed_version(registry.CORE) or "from source",
    }
    for name in LIBRARIES:
        version = registry.installed_version(name)
        rows |= {name: version} if version else {}
    rows |= {entry.distribution: entry.version for entry in registry.entries()}
    return rows


# ---- parts --------------------------------------------------------------------------------------


def _contents(reports: Sequence[SolverReport]) -> str:
    items = "".join(
        f'<li><a href="#{escape(r.name)}">{_pill(r.verdict)}<span>{escape(r.name)}</span></a></li>'
        for r in sorted(reports, key=lambda r: VERDICTS.index(r.verdict))
    )
    return f'<ul class="contents">{items}</ul>'


def _pill(verdict: str) -> str:
    return f'<span class="pill {verdict}">{verdict}</span>'


def _problem(problem: registry.Problem) -> str:
    origin = f"{problem.distribution} {problem.version}".strip()
    return (
        f'<section class="solver failed"><h2>{escape(origin)}<span class="pill failed">'
        f"{problem.code}</span></h2><p>{escape(problem.message)}</p>"
        f"<p><b>mend</b> {escape(problem.mend)}</p></section>"
    )


def _solver(report: SolverReport, verb: str, seed: int, options: Mapping[str, str]) -> str:
    mine = {name: value for name, value in options.items() if name in report.options}
    parts = [
        f'<section class="solver {report.verdict}" id="{escape(report.name)}">',
        f"<h2>{escape(report.name)}{_pill(report.verdict)}</h2>",
        f'<p class="facts">{_facts(report)}</p>',
    ]
    if report.message:
        parts.append(f"<p>{escape(report.message)}</p>")
    parts += [_finding(record) for record in report.records if record.status in OPEN]
    if report.verdict in ("failed", "inconclusive"):
        again = reproduction(verb, report.name, seed, mine)
        parts.append(f'<p class="again"><b>reproduce</b> <code>{escape(again)}</code></p>')
    parts += [*_pictures(report), _checks(report), *_output(report), "</section>"]
    return "\n".join(parts)


def _facts(report: SolverReport) -> str:
    origin = f"{report.distribution} {report.version}".strip()
    given = ", ".join(f"{k} = {v}" for k, v in report.options.items())
    facts = [
        report.mode,
        origin,
        f"{report.calls} calls of the solver" if report.calls else "",
        f"{report.seconds:.1f} s",
        f"claims a tolerance of {report.tolerance:g}" if report.tolerance else "",
        f"with {given}" if given else "",
    ]
    return " · ".join(escape(fact) for fact in facts if fact)


def _finding(record: Record) -> str:
    status = str(record.status).replace("_", " ")
    diagnosis = record.data.get("diagnosis") if record.status is Status.FAILED else None
    tag = f'<span class="tag">{escape(str(diagnosis))}</span>' if diagnosis else ""
    lines = "".join(f"<p>{_sentence(line)}</p>" for line in record.message.splitlines() if line)
    return (
        f'<article class="{record.status}"><h3>{escape(record.title)}'
        f"<small>{status}</small>{tag}<code>{escape(record.id)}</code></h3>{lines}</article>"
    )


def _sentence(line: str) -> str:
    lead, colon, rest = line.partition(": ")
    if colon and lead in ("look at", "worst entry"):
        return f"<b>{lead}</b> {escape(rest)}"
    return escape(line)


def _pictures(report: SolverReport) -> Iterator[str]:
    if not report.curves:
        return
    yield (
        '<details open><summary>Error and remainder against the step</summary><div class="grid">'
    )
    for curve in report.curves:
        caption = f"{curve['title']}, {curve['dtype']}"
        yield (
            f"<figure>{as_svg(curve)}<figcaption>{escape(caption)} "
            f'<span class="mark {curve["status"]}">{curve["status"]}</span></figcaption></figure>'
        )
    yield "</div></details>"


LEGEND = (
    'How to read the pictures: <i class="error"></i> central difference minus the returned '
    "gradient, relative: falls as h² down to the solver's noise where the gradient is right, ends "
    'in a plateau where it is wrong. <i class="remainder"></i> Taylor remainder: falls as h² where '
    'right, as h where wrong. <i class="wrong"></i> A line that failed.'
)


def _checks(report: SolverReport) -> str:
    rows = "".join(
        f'<tr><td><span class="mark {r.status}">{str(r.status).replace("_", " ")}</span></td>'
        f"<td>{escape(r.title)}<code>{escape(r.id)}</code></td>"
        f"<td>{escape(r.message.partition(chr(10))[0])}</td>"
        f'<td class="number">{r.seconds:.2f} s</td></tr>'
        for r in report.records
    )
    counts = ", ".join(
        f"{report.count(status)} {str(status).replace('_', ' ')}"
        for status in Status
        if report.count(status)
    )
    return (
        f"<details><summary>All {len(report.records)} checks: {counts}</summary>"
        f'<div class="scroll"><table>{rows}</table></div></details>'
    )


def _output(report: SolverReport) -> Iterator[str]:
    if report.output.strip():
        count = len(report.output.splitlines())
        yield (
            f"<details><summary>What it printed: {count} lines</summary>"
            f"<pre>{escape(report.output)}</pre></details>"
        )


def _environment_section(rows: Mapping[str, Any]) -> str:
    cells = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in rows.items())
    return f'<section class="environment"><h2>Environment</h2><dl>{cells}</dl></section>'
