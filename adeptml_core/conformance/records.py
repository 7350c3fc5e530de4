"""What an examination leaves behind: findings, records, reports, and their one JSON form.

A check returns a `Finding`. The runner adds the check's id and the time it took, which makes a
`Record`; the records of one solver make a `SolverReport`, whose verdict is the worst of them::

    failed  >  inconclusive  >  passed        (skipped and expected failures count as passed)

``unavailable`` stands apart: the solver could not be run here at all.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, SupportsInt

import numpy as np

__all__ = [
    "SCHEMA",
    "Diagnosis",
    "Finding",
    "Record",
    "SolverReport",
    "Status",
    "failed",
    "inconclusive",
    "passed",
    "plain",
    "skipped",
    "verdict_of",
]

SCHEMA = 1
UNAVAILABLE = "unavailable"


class Status(StrEnum):
    """How one check ended."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    SKIPPED = "skipped"
    EXPECTED_FAILURE = "expected_failure"


class Diagnosis(StrEnum):
    """What is probably wrong, where a check failed."""

    SIGN = "sign"
    TRANSPOSE = "transpose"
    FACTOR = "factor"
    MISSING_TERM = "missing-term"
    ROWS = "rows"
    ARG = "arg"
    STALE_STATE = "stale-state"
    ENTRY = "entry"
    CONTRACT = "contract"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Parameters
    ----------
    status : Status
    message : str
        Sentences for a person: what, where, how large, what to look at. Lines are kept.
    data : mapping
        The same for a program. A failed check has ``diagnosis``, ``array``, ``index``, ``expected``
        and ``got``.
    """

    status: Status
    message: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


def passed(message: str = "", **data: Any) -> Finding:
    """Return the finding that all is well."""
    return Finding(Status.PASSED, message, data)


def skipped(why: str, **data: Any) -> Finding:
    """Return the finding that the check does not apply, and why."""
    return Finding(Status.SKIPPED, why, data)


def inconclusive(message: str, **data: Any) -> Finding:
    """Return the finding that nothing could be decided; `message` says what would decide it."""
    return Finding(Status.INCONCLUSIVE, message, data)


def failed(
    message: str,
    diagnosis: Diagnosis = Diagnosis.CONTRACT,
    *,
    array: str | None = None,
    index: Iterable[SupportsInt] | None = None,
    expected: Any = None,
    got: Any = None,
    **data: Any,
) -> Finding:
    """Return the finding that something is wrong, with what is needed to see it again."""
    common = {
        "diagnosis": diagnosis,
        "array": array,
        "index": None if index is None else [int(i) for i in index],
        "expected": expected,
        "got": got,
    }
    return Finding(Status.FAILED, message, common | data)


@dataclass(frozen=True, slots=True)
class Record:
    """One check of one solver, finished."""

    id: str
    title: str
    status: Status
    message: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON knows it."""
        return {
            "id": self.id,
            "title": self.title,
            "status": self.status.value,
            "message": self.message,
            "data": plain(self.data),
            "seconds": round(self.seconds, 4),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Record":
        """Return the record that `to_dict` told."""
        return cls(**dict(data) | {"status": Status(data["status"])})


@dataclass(frozen=True, slots=True)
class SolverReport:
    """All records of one solver.

    ``message`` says why a solver is unavailable; ``output`` is what it printed while it ran;
    ``curves`` holds the step sweeps that the plots draw.
    """

    name: str
    mode: str
    distribution: str
    version: str
    verdict: str
    records: tuple[Record, ...]
    message: str = ""
    seconds: float = 0.0
    calls: int = 0
    tolerance: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    output: str = ""
    curves: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    def count(self, status: Status) -> int:
        """Return how many records have that status."""
        return sum(record.status is status for record in self.records)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON knows it (without the curves, which only plots need)."""
        return {
            "name": self.name,
            "mode": self.mode,
            "distribution": self.distribution,
            "version": self.version,
            "verdict": self.verdict,
            "message": self.message,
            "options": plain(self.options),
            "tolerance": self.tolerance,
            "seconds": round(self.seconds, 3),
            "calls": self.calls,
            "output": self.output,
            "checks": [record.to_dict() for record in self.records],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "SolverReport":
        """Return the report that `to_dict` told; with curves, if they were told as well."""
        fields = dict(data)
        records = tuple(Record.from_dict(record) for record in fields.pop("checks"))
        return cls(records=records, **fields)


def verdict_of(records: Iterable[Record]) -> str:
    """Return the worst of the records: failed, inconclusive or passed."""
    found = {record.status for record in records}
    for status in (Status.FAILED, Status.INCONCLUSIVE):
        if status in found:
            return status.value
    return Status.PASSED.value


def plain(value: Any) -> Any:
    """Return `value` in types that strict JSON has; NaN and infinities become strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)
