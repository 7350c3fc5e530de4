"""How far the epoch is, on a terminal.

A bar for an epoch that takes longer than a second, redrawn ten times a second at most, and wiped
away at its end, so that the printed lines stand as they always did.
"""

import itertools
import sys
import time
from typing import Any, TextIO

import click

__all__ = ["Progress"]

PATIENCE = 1.0  # s before a bar appears
REDRAWN = 0.1  # s between two drawings
REPORTED = 30.0  # s between two lines where there is no terminal
WIPE = "\r\033[K\033[?25h"  # the line, and the cursor's hiding


class Progress:
    """The progress of one epoch after the other.

    Parameters
    ----------
    shown : bool or None
        None: a bar on a terminal, nothing elsewhere. True: elsewhere a line now and then. False:
        nothing anywhere.
    batches : int or None
        Number of batches in an epoch, where it is known.
    stream : file, optional
        Standard error by default.

    Attributes
    ----------
    is_on : bool
        Whether anything is ever shown.
    """

    def __init__(
        self, shown: bool | None, batches: int | None, stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stderr
        self._batches = batches
        self._has_terminal = self._stream.isatty()
        self.is_on = shown is True or (shown is None and self._has_terminal)
        self._bar: Any = None
        self._epoch = 0
        self._done = 0
        self._began = self._due = 0.0

    def start(self, epoch: int) -> None:
        """Begin an epoch."""
        self._epoch, self._done = epoch, 0
        self._began = time.monotonic()
        self._due = self._began + (PATIENCE if self._has_terminal else REPORTED)

    def step(self, done: int, loss: float) -> None:
        """Show that `done` batches are done, if it is time."""
        if not self.is_on or time.monotonic() < self._due:
            return
        if self._has_terminal:
            self._draw(done, loss)
            self._due = time.monotonic() + REDRAWN
        else:
            self._report(done, loss)
            self._due = time.monotonic() + REPORTED

    def end(self) -> None:
        """Wipe the bar away."""
        if self._bar is not None:
            self._stream.write(WIPE)
            self._stream.flush()
            self._bar = None

    def _draw(self, done: int, loss: float) -> None:
        if self._bar is None:
            self._bar = click.progressbar(
                itertools.repeat(None) if self._batches is None else None,
                length=self._batches,
                label=f"Epoch {self._epoch}",
                file=self._stream,
                show_pos=True,
                item_show_func=lambda loss: "" if loss is None else f"loss {loss:.6f}",
            )
        self._bar.update(done - self._done, loss)
        self._done = done

    def _report(self, done: int, loss: float) -> None:
        of = "" if self._batches is None else f"/{self._batches}"
        seconds = time.monotonic() - self._began
        line = f"Epoch {self._epoch} | Batch {done}{of} | Time: {seconds:.0f}s | Loss: {loss:.6f}"
        print(line, file=self._stream, flush=True)
