"""Time: a budget for the examination of one solver, a limit for each of its calls.

A solver may hang. Its calls run in the main thread under an interval timer, whose signal ends a
Python loop, a sleep or any C code that returns to the interpreter now and then. What never returns
can only be ended with its process: where that is the solver's own
(`adeptml_core.conformance.isolation`), a watchdog that needs no interpreter does it.
"""

import contextlib
import faulthandler
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import IO

__all__ = ["Budget", "Hang", "end_with_the_process", "time_limit"]

GRACE = 1.0  # seconds that a signal has to do its work before the process is ended


class Hang(BaseException):
    """A call of the solver exceeded the time limit.

    Not an `Exception`: a solver that retries whatever fails must not swallow it.
    """

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"{what} did not return within {seconds:g} s")
        self.what = what
        self.seconds = seconds


class Budget:
    """A number of seconds, counted from now.

    Parameters
    ----------
    seconds : float, optional
        None: no end.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self.started = time.perf_counter()

    def spent(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.started

    def left(self) -> float:
        """Return the seconds until the end, infinity where there is none."""
        return float("inf") if self.seconds is None else self.seconds - self.spent()


def _can_interrupt() -> bool:
    """Tell whether signals reach this thread: the main one, on systems that have timers."""
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()


_trace: IO[str] | None = None


def end_with_the_process(trace: IO[str]) -> None:
    """From now on end this process where a call hangs beyond signals; `trace` then says where."""
    global _trace  # noqa: PLW0603 - there is one process, and one watchdog in it
    _trace = trace


@contextlib.contextmanager
def _watchdog(seconds: float) -> Iterator[None]:
    if _trace is None:
        yield
        return
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=_trace)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raise `Hang` where the block takes longer than `seconds`.

    Elsewhere than in the main thread there is no way to do so, and the block runs without a limit.
    """
    if not _can_interrupt():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang(what, seconds)

    handler = signal.signal(signal.SIGALRM, ring)
    delay, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with _watchdog(seconds):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, delay, interval)
        signal.signal(signal.SIGALRM, handler)
