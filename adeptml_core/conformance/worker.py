"""The far side of `adeptml_core.conformance.isolation`: one process that examines one solver.

It reads one job from stdin, as JSON, and writes one JSON document a line to what was its stdout:
what is begun, each record, and at last the report. stdout itself becomes stderr, and stdin leads
nowhere: whatever the solver, a C library below it or a child process prints or reads, it is not
this conversation.
"""

import faulthandler
import json
import os
import sys
from typing import IO, Any

from adeptml_core import registry
from adeptml_core.conformance.limits import end_with_the_process
from adeptml_core.conformance.records import Record, plain
from adeptml_core.conformance.runner import Check, Run, Settings
from adeptml_core.conformance.statics import Subject

__all__ = ["main"]


class _Channel:
    """Where the documents go."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def send(self, kind: str, data: Any) -> None:
        self.stream.write(json.dumps([kind, plain(data)], allow_nan=False) + "\n")
        self.stream.flush()

    def begun(self, check: Check) -> None:
        self.send("begun", check.id)

    def ended(self, record: Record) -> None:
        self.send("ended", record.to_dict())


def _take_over() -> tuple[Any, _Channel]:
    """Read the job; return it with the channel, and leave the solver a stdout without a reader."""
    job = json.loads(sys.stdin.buffer.read())
    channel = _Channel(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    return job, channel


def main() -> None:
    """Examine the solver of the job; end at once, whatever threads and exit handlers it left."""
    job, channel = _take_over()
    trace = open(job["trace"], "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    faulthandler.enable(trace)
    end_with_the_process(trace)
    sys.path[:] = job["path"]
    entry = registry.find(job["name"])
    subject = Subject(registry.load(entry), entry, job["name"])
    settings = Settings(**job["settings"] | {"parts": tuple(job["settings"]["parts"])})
    run = Run(subject, settings, output=sys.stderr)
    run.begun, run.ended = channel.begun, channel.ended
    report = run.report()
    channel.send("report", report.to_dict() | {"curves": report.curves})
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
