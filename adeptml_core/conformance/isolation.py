"""One process for each solver: whatever it does there, the command goes on to the next.

A solver may call ``sys.exit`` or ``os._exit``, crash in C, hang where no signal reaches it, print
from Fortran, start threads and children, change whatever is global. In a process of its own it may.
The worker (`adeptml_core.conformance.worker`) tells what it begins and what it has found, line by
line, so that what was found before a crash stands, and the crash itself becomes a finding of the
check during which it happened.
"""

import contextlib
import dataclasses
import json
import os
import queue
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from adeptml_core.conformance.records import Record, SolverReport, Status, verdict_of
from adeptml_core.conformance.runner import Check, Settings, checks_of
from adeptml_core.conformance.statics import Subject

__all__ = ["Progress", "run_isolated"]

Progress = Callable[[str, str, int, int], None]
"""``progress(solver, check title, number, of how many)``, called as each check begins."""

MOST_OUTPUT = 20_000  # characters of what the solver printed
POLL = 0.2  # seconds
LAST_WORDS = 2.0  # seconds that the reader has to finish after the worker's end


def run_isolated(
    subjects: Iterable[Subject], wanted: Settings, progress: Progress | None = None
) -> Iterator[SolverReport]:
    """Yield the report of each solver as soon as it is finished, each from a process of its own.

    Parameters
    ----------
    subjects : iterable of Subject
        Installed solvers: the worker finds them by name.
    wanted : Settings
    progress : callable, optional
    """
    for subject in subjects:
        with tempfile.TemporaryDirectory(prefix="adeptml-") as folder:
            yield _Conversation(subject, wanted, progress, Path(folder)).report()


class _Conversation:
    """With one worker, about one solver."""

    def __init__(
        self, subject: Subject, wanted: Settings, progress: Progress | None, folder: Path
    ) -> None:
        self.subject = subject
        self.wanted = wanted
        self.progress = progress
        self.trace = folder / "trace"
        self.printed = folder / "output"
        self.checks = {check.id: check for check in checks_of(subject.spec, wanted)}
        self.open: list[str] = []  # begun, not ended: a check may ask for another one
        self.records: dict[str, Record] = {}
        self.finished: SolverReport | None = None

    def report(self) -> SolverReport:
        """Have the solver examined; return what was found, or what became of the worker."""
        with open(self.printed, "wb") as output:
            worker = self._started(output)
            lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
            reader = threading.Thread(target=_read, args=(worker.stdout, lines), daemon=True)
            reader.start()
            try:
                self._listen(worker, reader, lines)
            finally:
                _end(worker)
                reader.join(LAST_WORDS)
        report = self.finished or self._cut_short(worker.returncode)
        return dataclasses.replace(report, output=self._output())

    def _started(self, output: IO[bytes]) -> "subprocess.Popen[bytes]":
        job = {
            "name": self.subject.name or self.subject.spec.name,
            "path": sys.path,
            "trace": str(self.trace),
            "settings": dataclasses.asdict(self.wanted),
        }
        # A fresh interpreter: a fork of this one would inherit its threads' locks, and whatever
        # the solvers before have loaded. -u: what is printed before a crash is not lost.
        worker = subprocess.Popen(
            [sys.executable, "-u", "-c", START.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            start_new_session=True,  # so that it can be ended with all its children
        )
        assert worker.stdin is not None, "it is a pipe"
        with contextlib.suppress(BrokenPipeError), worker.stdin as pipe:
            pipe.write(json.dumps(job).encode())
        return worker

    def _listen(
        self,
        worker: "subprocess.Popen[bytes]",
        reader: threading.Thread,
        lines: "queue.SimpleQueue[bytes | None]",
    ) -> None:
        """Take in documents until the worker ends; a child that keeps the pipe open cannot hold us.

        Reading is a thread's business, so that the end of the worker is noticed in any case.
        """
        while self.finished is None:
            try:
                line = lines.get(timeout=POLL)
            except queue.Empty:
                if worker.poll() is None:
                    continue
                reader.join(LAST_WORDS)
                if lines.empty():
                    return
                continue
            if line is None:
                return
            self._take(*json.loads(line))

    def _take(self, kind: str, data: Any) -> None:
        if kind == "begun":
            self.open.append(data)
            if self.progress is not None:
                name = self.subject.name or self.subject.spec.name
                number = 1 + list(self.checks).index(data)
                self.progress(name, self.checks[data].title, number, len(self.checks))
        elif kind == "ended":
            record = Record.from_dict(data)
            self.open.remove(record.id)
            self.records[record.id] = record
        else:
            self.finished = SolverReport.from_dict(data)

    def _output(self) -> str:
        text = self.printed.read_text(encoding="utf-8", errors="replace")
        cut = len(text) - MOST_OUTPUT
        return text if cut <= 0 else f"{text[:MOST_OUTPUT]}\n... and {cut} characters more"

    # -- where it ended too early --

    def _cut_short(self, code: int) -> SolverReport:
        """Return the report of a solver whose worker died: what was found, and how it died."""
        culprit = self.open[-1] if self.open else ""
        spec = self.subject.spec
        records = tuple(self._record(check, culprit, code) for check in self.checks.values())
        return SolverReport(
            name=self.subject.name or spec.name,
            mode=str(spec.mode),
            distribution=self.subject.distribution,
            version=self.subject.version,
            verdict=verdict_of(records),
            records=records,
            seconds=sum(record.seconds for record in records),
            tolerance=spec.tolerance,
        )

    def _record(self, check: Check, culprit: str, code: int) -> Record:
        if check.id in self.records:
            return self.records[check.id]
        if check.id == culprit or not culprit:
            message = self._how_it_died(code)
            data = {"diagnosis": "contract", "exit_code": code, "got": message.partition("\n")[0]}
            return Record(check.id, check.title, Status.FAILED, message, data)
        why = "not run: the solver's process is gone"
        return Record(check.id, check.title, Status.SKIPPED, why, {"not_run": True})

    def _how_it_died(self, code: int) -> str:
        trace = self.trace.read_text(errors="replace") if self.trace.exists() else ""
        place = _place(trace)
        where = f", in {place}" if place else ""
        if "Timeout (" in trace:
            return (
                f"a call of {self.subject.spec.name} did not return within "
                f"{self.wanted.limit:g} s, and could not be interrupted{where}.\n"
                "look at: a loop in compiled code that waits for convergence without a limit."
            )
        if code < 0:
            name = signal.Signals(-code).name
            what, hint = SIGNALS.get(name, (f"by {name}", "the compiled code, and what it prints."))
            return f"the solver ended its process {what}{where}.\nlook at: {hint}"
        return (
            f"the solver ended its process (exit code {code}){where}.\n"
            "look at: os._exit, or a library that calls exit() or STOP where it should report."
        )


SIGNALS = {
    "SIGSEGV": (
        "by a segmentation fault",
        "what is read or written past the end of an array, in compiled code.",
    ),
    "SIGABRT": ("by abort()", "the compiled code, and what it prints before it gives up."),
    "SIGKILL": (
        "or the system did (SIGKILL)",
        "the memory it takes: the system ends what takes too much.",
    ),
}

START = (
    "import sys; sys.path[:] = {path!r}; from adeptml_core.conformance.worker import main; main()"
)
"""What the worker's interpreter is told: the same modules as here, however they were found."""


def _read(stream: IO[bytes], lines: "queue.SimpleQueue[bytes | None]") -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _end(worker: "subprocess.Popen[bytes]") -> None:
    """End the worker, if it has not ended, and whatever it started."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.wait(timeout=POLL)  # it has said all, and ends by itself
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.pid, signal.SIGKILL)
    else:
        worker.kill()
    worker.wait()


def _place(trace: str) -> str:
    """Return ``solver.py:12 (forward)``: the innermost frame that is the solver's own."""
    foreign = (str(Path(__file__).parents[1]), sysconfig.get_path("stdlib"))
    # faulthandler writes the main thread last, and marks the one that crashed.
    section = trace.rpartition("Current thread")[2].rpartition("Thread 0x")[2]
    frames = re.findall(r'File "([^"]+)", line (\d+) in (\S+)', section)
    for file, line, function in frames:
        if not file.startswith(foreign) and f"{os.sep}site-packages{os.sep}" not in file:
            return f"{Path(file).name}:{line} ({function})"
    return ""
