"""Ctrl-C and SIGTERM, put off to a place where the state is whole.

Python would raise `KeyboardInterrupt` between any two instructions: in the middle of an update,
say, when some parameters have moved and others have not. Here the first signal only takes a note;
the loop finishes its batch, writes its checkpoint, and ends as the signal wanted. A second signal
acts at once, for the user who will not wait for a slow solver; the last checkpoint stands.

A signal rarely comes alone. Whoever ends a job ends the workers of its loaders too, and torch
raises an error wherever the main process stands when one of them dies, be it in the middle of an
update, be it before the main process has seen the signal itself. So SIGCHLD is put off as well, to
the moment when a batch is fetched; and an error of fetching waits a little for the signal that may
have caused it. If one comes, the error is the signal's: `InterruptedFetch`.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn, TypeVar

__all__ = ["InterruptedFetch", "Interruption"]

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SIGCHLD: Any = getattr(signal, "SIGCHLD", None)  # Windows has none
EXIT_BY_SIGTERM = 128 + signal.SIGTERM  # what a shell reports of a process that SIGTERM ended
GRACE = 1.0  # s between a worker's death and the signal to us, where one hand sends both

Handler = Callable[[int, FrameType | None], Any] | int | None

CUT_OFF = (OSError, EOFError)  # what a worker leaves that dies while it sends


class InterruptedFetch(Exception):  # noqa: N818 - the end of a training, not a fault
    """A loader failed because a signal ended its workers."""


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
        self._of_torch: Any = None
        self._fetching = self._child_died = False

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
        if self._of_torch is not None and self.requested is not signal.SIGTERM:
            signal.signal(SIGCHLD, self._of_torch)  # after SIGTERM more workers may die yet

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._act_in_child(number)
            return
        if self.requested is not None:
            self._restore()
            self._raise(signal.Signals(number), "stopped at once by a second signal")
        self.requested = signal.Signals(number)
        print(
            f"{self.requested.name}: finishing the batch, then writing a checkpoint "
            "(once more to stop at once)",
            file=sys.stderr,
            flush=True,
        )

    def _act_in_child(self, number: int) -> None:
        """In a process that was forked off (a loader's worker), which inherited this handler.

        Ctrl-C goes to the whole process group; the worker lives on, so that its parent can finish
        the batch. SIGTERM is meant for the worker itself, and ends it as it would have.
        """
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    # -- loaders and their workers --

    def fetched(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield what `batches` yields.

        Raises
        ------
        InterruptedFetch
            It failed, and a signal is the cause.
        """
        self._take_sigchld()
        while True:
            try:
                self._fetching = True
                if self._child_died:
                    self._ask_torch()
                batch = next(batches)
                self._fetching = False
            except StopIteration:
                return
            except Exception as error:
                if self.explains(error):
                    raise InterruptedFetch from error
                raise
            finally:
                self._fetching = False
            yield batch

    def explains(self, error: Exception) -> bool:
        """Tell whether a signal came, or comes in a moment, where `error` may be its doing."""
        if self._previous and ("DataLoader worker" in str(error) or isinstance(error, CUT_OFF)):
            deadline = time.monotonic() + GRACE
            while self.requested is None and time.monotonic() < deadline:
                time.sleep(0.01)
        return self.requested is not None

    def _take_sigchld(self) -> None:
        """Take SIGCHLD from torch, which sets its handler with the first worker that it starts."""
        handler = signal.getsignal(SIGCHLD) if self._previous and SIGCHLD is not None else None
        if callable(handler) and handler != self._on_child:
            self._of_torch = handler
            signal.signal(SIGCHLD, self._on_child)

    def _on_child(self, number: int, frame: FrameType | None) -> None:
        self._child_died = True
        if self._fetching and os.getpid() == self._process:
            self._ask_torch()

    def _ask_torch(self) -> None:
        """Let torch raise its error, if a worker has died and no signal is the cause."""
        if self._child_died and self.requested is None:
            self._child_died = False
            self._of_torch(SIGCHLD, None)

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
