"""What a solver does to the rest of the process: global state, output, other threads.

`WATCHED` is the list of global things that a solver has no business to change; each is read before
and after. Whatever changed is put back, so that one solver's habit does not colour the next one's
verdict.
"""

import contextlib
import hashlib
import os
import pickle
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from adeptml_core.conformance.basics import cotangent_for, natural
from adeptml_core.conformance.probe import Inputs, Probe, close
from adeptml_core.conformance.records import Finding, failed, passed, skipped

__all__ = ["WATCHED", "Watch", "as_it_was", "check_global_state_is_kept", "check_threads_agree"]

THREADS = 4
SECONDS = 0.4
PATIENCE = 10.0  # seconds for the calls that are under way when time is up
SWITCH_INTERVAL = 1e-5  # seconds between switches of the interpreter: races show sooner
CALLS = 3


def _digest(value: object) -> str:
    return hashlib.sha256(pickle.dumps(value)).hexdigest()[:12]


def _of_module(module: str, read: Callable[[Any], object], default: object) -> object:
    """Read something of a module that may not be loaded: then it has its default."""
    found = sys.modules.get(module)
    if found is None:
        return default
    try:
        return read(found)
    except AttributeError:  # a module half imported, or another version of it
        return default


def _jax_x64() -> object:
    asked = os.environ.get("JAX_ENABLE_X64", "").lower() in ("1", "true", "yes", "on")
    return _of_module("jax", lambda jax: bool(jax.config.jax_enable_x64), asked)


def _set_jax_x64(value: Any) -> None:
    if _jax_x64() != value:
        _of_module("jax", lambda jax: jax.config.update("jax_enable_x64", value), None)


def _set_environment(value: dict[str, str]) -> None:
    for name in set(os.environ) - set(value):
        del os.environ[name]
    os.environ.update(value)


def _set_filters(value: list[Any]) -> None:
    if list(warnings.filters) != value:
        warnings.filters[:] = value  # type: ignore[index] # a list, whatever the stubs say
        warnings._filters_mutated()  # type: ignore[attr-defined] # as catch_warnings does


def _set_interrupt(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGINT, handler)


def _torch_dtype() -> object:
    return _of_module("torch", lambda torch: torch.get_default_dtype(), None)


def _torch_random() -> object:
    return _of_module("torch", lambda torch: torch.random.get_rng_state(), None)


class Thing(NamedTuple):
    """Something global: how it is read, how it is put back, and what of it is compared."""

    read: Callable[[], Any]
    put: Callable[[Any], object]
    shown: Callable[[Any], Any] = lambda value: value


WATCHED: dict[str, Thing] = {
    "numpy's error state (np.seterr)": Thing(np.geterr, lambda value: np.seterr(**value)),
    "numpy's global random state": Thing(
        np.random.get_state, np.random.set_state, lambda value: _digest([str(v) for v in value])
    ),
    "python's random state": Thing(random.getstate, random.setstate, _digest),
    "the working directory": Thing(os.getcwd, os.chdir),
    "the environment variables": Thing(lambda: dict(os.environ), _set_environment),
    "jax's x64 flag": Thing(_jax_x64, _set_jax_x64),
    "the warning filters": Thing(lambda: list(warnings.filters), _set_filters, len),
    "the recursion limit": Thing(sys.getrecursionlimit, sys.setrecursionlimit),
    "numpy's print options": Thing(
        np.get_printoptions, lambda value: np.set_printoptions(**value), lambda v: _digest(str(v))
    ),
    "the handler of SIGINT": Thing(lambda: signal.getsignal(signal.SIGINT), _set_interrupt),
    "torch's default dtype": Thing(
        _torch_dtype,
        lambda value: value and sys.modules["torch"].set_default_dtype(value),
        lambda value: value and str(value),
    ),
    "torch's random state": Thing(
        _torch_random,
        lambda value: value is not None and sys.modules["torch"].random.set_rng_state(value),
        lambda value: None if value is None else _digest(value.numpy().tobytes()),
    ),
}
"""What is watched. None stands for what a module that is not loaded would have."""

AT_IMPORT = (
    "numpy's error state (np.seterr)",
    "the working directory",
    "jax's x64 flag",
    "the recursion limit",
    "torch's default dtype",
)
"""What importing a module must not change either; filters and variables it may set."""


class Watch:
    """The watched state at one moment."""

    def __init__(self) -> None:
        self.state = {name: thing.read() for name, thing in WATCHED.items()}
        self.threads = _threads()

    def changes(self) -> dict[str, tuple[Any, Any]]:
        """Return what has changed since: (before, now) by name."""
        found = {}
        for name, thing in WATCHED.items():
            was, now = thing.shown(self.state[name]), thing.shown(thing.read())
            if now != was and was is not None:  # None: its module came in the meantime
                found[name] = (was, now)
        started = _threads() - self.threads
        if started:
            names = sorted(thread.name for thread in started)
            found["the running threads"] = ("none", f"{len(names)} more: {', '.join(names[:3])}")
        return found

    def restore(self) -> None:
        """Put back what can be put back."""
        for name, thing in WATCHED.items():
            thing.put(self.state[name])


@contextlib.contextmanager
def as_it_was() -> Iterator[None]:
    """Put everything back at the end, so that a check finds the same world alone and after others.

    And before: the random states move on, as they would in a program at work. A solver that seeds
    them would show no change where they stand at that very seed.
    """
    watch = Watch()
    np.random.random()
    random.random()
    try:
        yield
    finally:
        watch.restore()


def _threads() -> set[threading.Thread]:
    """Return the live Python threads that are no pool's workers: pools are kept on purpose."""
    pools = sys.modules.get("concurrent.futures.thread")
    workers = set(getattr(pools, "_threads_queues", {}))
    return {t for t in threading.enumerate() if t not in workers and t.is_alive()}


def check_global_state_is_kept(probe: Probe) -> Finding:
    """Catch a solver that changes numpy's error state, seeds the world, moves or leaves threads."""
    for name, (before, after) in probe.changes_at_import.items():
        return _state_finding(probe, f"importing the solver changes {name}", name, before, after)
    watch = Watch()
    for number in range(CALLS):
        y, pullback = probe.linearize(natural(probe, 4, f"watched {number}"))
        pullback(cotangent_for(y, probe.rng("watched")))
    changes = {**probe.changes_at_first_call, **watch.changes()}
    for name, (before, after) in changes.items():
        return _state_finding(probe, f"calling the solver changes {name}", name, before, after)
    return passed(f"{len(WATCHED) + 1} things watched")


def _state_finding(probe: Probe, what: str, name: str, before: Any, after: Any) -> Finding:
    shown = ""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [k for k in {**before, **after} if before.get(k) != after.get(k)]
        shown = f" ({', '.join(f'{k}: {before.get(k)} -> {after.get(k)}' for k in keys[:3])})"
    elif "state" not in name:
        shown = f" ({before} -> {after})"
    return failed(
        f"{what}{shown}.\n"
        "look at: set it for the call alone (with np.errstate(...), a Generator of its own, a "
        "context manager), and join what is started.",
        expected=str(before),
        got=str(after),
        changed=name,
    )


def check_threads_agree(probe: Probe) -> Finding:
    """Catch work arrays and other state that threads share: each sees the other's numbers."""
    if not probe.spec.thread_safe:
        return skipped("declared thread_safe=False: core calls it from one thread at a time")
    if not probe.spec.deterministic:
        return skipped("declared deterministic=False: nothing to compare with")
    points = [natural(probe, 4, f"thread {number}") for number in range(THREADS)]
    expected = [_answers(probe, point) for point in points]
    wrong: list[tuple[int, float]] = []
    errors: list[BaseException] = []
    duration = min(SECONDS, max(0.0, probe.budget.left() / 4))
    stop = threading.Event()

    def work(number: int) -> None:
        try:
            while not stop.is_set() and not wrong and not errors:
                answers = _answers(probe, points[number])
                off = max(close(a, b) for a, b in zip(expected[number], answers, strict=True))
                if off > 1e-6:
                    wrong.append((number, off))
        except BaseException as error:
            errors.append(error)

    with _eager_switching():
        threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        stop.wait(duration)
        stop.set()
        deadline = time.monotonic() + min(probe.limit, PATIENCE)
        for thread in threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
    stuck = sum(thread.is_alive() for thread in threads)
    if stuck:
        return failed(
            f"called from {THREADS} threads at once, {stuck} calls never come back: a lock that is "
            f"taken and not given back, or a thread that only the main one can be.\n{ADVICE}",
            got=f"{stuck} of {THREADS} threads stuck",
            expected="results",
        )
    if errors:
        return failed(
            f"called from {THREADS} threads at once, the solver raises "
            f"{type(errors[0]).__name__}: {errors[0]}.\n{ADVICE}",
            got=str(errors[0]),
        )
    if wrong:
        return failed(
            f"called from {THREADS} threads at once, the solver gives other results (relative "
            f"difference {wrong[0][1]:.2g}).\n{ADVICE}",
            got=wrong[0][1],
            expected=0.0,
        )
    return passed(f"{THREADS} threads, {duration:g} s")


ADVICE = (
    "look at: work arrays and results kept in the module or the object. Give each call its own, or "
    "declare thread_safe=False."
)


@contextlib.contextmanager
def _eager_switching() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def _answers(probe: Probe, point: Inputs) -> list[Any]:
    y, pullback = probe.solver.linearize(*point)
    g = np.cos(np.arange(y.size, dtype=np.float64)).reshape(y.shape).astype(y.dtype)
    return [np.array(y), *(np.array(v) for v in pullback(g) if v is not None)]
