"""Ctrl-C and SIGTERM, put off to a place where the state is whole.

Python would raise `KeyboardInterrupt` between any two instructions: in the middle of an update,
say, when some parameters have moved and others have not. Here the first signal only takes a note;
the loop finishes its batch, writes its checkpoint, and ends as the signal wanted. A second signal
acts at once, for the user who will not wait for a slow solver; the last checkpoint stands.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn

__all__ = ["Interruption"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SIGCHLD = getattr(signal, "SIGCHLD", None)  # Windows has none
EXIT_BY_SIGTERM = 128 + signal.SIGTERM  # what a shell reports of a process that SIGTERM ended

Handler = Callable[[int, FrameType | None], Any] | int | None


class Interruption:
    """A context in which the first SIGINT or SIGTERM sets a flag instead of ending the process.

    Handlers are installed in the main thread only (elsewhere Python has none), and not for a
    signal that is ignored or that code outside Python handles. Leaving the context restores them.

    Attributes
    ----------
    requested : signal.Signals or None
        The signal that came.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._previous: dict[signal.Signals, Handler] = {}
        self._process = os.getpid()

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._act_in_child(number)
            return
        if self.requested is not None:
            self._restore()
            self._raise(signal.Signals(number), "stopped at once by a second signal")
        self.requested = signal.Signals(number)
        self._let_children_die()
        print(
            f"{self.requested.name}: finishing the batch, then writing a checkpoint "
            "(once more to stop at once)",
            file=sys.stderr,
            flush=True,
        )

    def _let_children_die(self) -> None:
        """Take SIGCHLD from torch, which raises, wherever it stands, when a loader's worker dies.

        Whoever ends a job ends its workers too; the batch at hand does not need them any more.
        """
        if SIGCHLD is not None and signal.getsignal(SIGCHLD) is not None:
            self._previous[SIGCHLD] = signal.signal(SIGCHLD, signal.SIG_DFL)

    def _act_in_child(self, number: int) -> None:
        """In a process that was forked off (a loader's worker), which inherited this handler.

        Ctrl-C goes to the whole process group; the worker lives on, so that its parent can finish
        the batch. SIGTERM is meant for the worker itself, and ends it as it would have.
        """
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def end(self, message: str) -> NoReturn:
        """End as the signal wanted: `KeyboardInterrupt`, or exit status 143.

        A handler that was there before (a cluster's requeuing hook, say) is called first.

        Raises
        ------
        KeyboardInterrupt
            After SIGINT, with `message`.
        SystemExit
            After SIGTERM.
        """
        self._restore()
        number = self.requested or signal.SIGTERM  # None: the signal reached another rank
        if message:
            print(message, file=sys.stderr, flush=True)
        previous = self._previous.get(number)
        if callable(previous) and previous is not signal.default_int_handler:
            previous(number, None)
        self._raise(number, message)

    def _raise(self, number: signal.Signals, message: str) -> NoReturn:
        if number == signal.SIGINT:
            raise KeyboardInterrupt(message)
        raise SystemExit(EXIT_BY_SIGTERM)
