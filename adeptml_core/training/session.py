"""From the run directory's first file to its last: the log, the record, and how it ended."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from adeptml_core.training.log import Log
from adeptml_core.training.runs import Record

__all__ = ["Session"]

FINISHED = "finished"


class Session:
    """A context that opens the log and the record of a run, and closes them however it ends.

    Parameters
    ----------
    directory : Path
        Of the run.
    is_first : bool
        Whether this rank writes files.
    prints : bool
        Whether lines are printed.
    epoch : int
        The first epoch of this session; 0 in a new run.
    description : mapping
        What is run, for the record.

    Attributes
    ----------
    log : Log
    results : dict of str to float
        The latest, for the record.
    """

    def __init__(
        self,
        directory: Path,
        *,
        is_first: bool,
        prints: bool,
        epoch: int,
        description: Mapping[str, Any],
    ) -> None:
        self.directory = directory
        self.log = Log(directory, is_first=is_first, prints=prints, epoch=epoch)
        self.epoch = epoch
        self.results: dict[str, float] = {}
        self._record = Record(directory, description, epoch=epoch) if is_first else None

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._record is not None:
                status = FINISHED if kind is None else f"{kind.__name__}: {error}"
                self._record.end(status, self.epoch, self.results)
            self.log.close()
        except OSError:
            if error is None:  # else the disk is full, and `error` says so already
                raise
