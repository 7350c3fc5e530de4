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
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from adeptml_core.conformance.basics import cotangent_for, natural
from adeptml_core.conformance.probe import Inputs, Probe, close
from adeptml_core.conformance.records import Finding, failed, passed, skipped

__all__ = ["WATCHED", "Watch", "check_global_state_is_kept", "check_threads_agree"]

THREADS = 4
SECONDS = 0.4
SWITCH_INTERVAL = 1e-5  # seconds between switches of the interpreter: races show sooner
CALLS = 3


def _digest(value: object) -> str:
    return hashlib.sha256(pickle.dumps(value)).hexdigest()[:12]


def _numpy_random() -> str:
    return _digest([str(part) for part in np.random.get_state(legacy=True)])


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


WATCHED: dict[str, Callable[[], Any]] = {
    "numpy's error state (np.seterr)": lambda: dict(np.geterr()),
    "numpy's global random state": _numpy_random,
    "python's random state": lambda: _digest(random.getstate()),
    "the working directory": os.getcwd,
    "the environment variables": lambda: dict(os.environ),
    "jax's x64 flag": _jax_x64,
    "the warning filters": lambda: len(warnings.filters),
    "the recursion limit": sys.getrecursionlimit,
    "numpy's print options": lambda: _digest(str(np.get_printoptions())),
    "the handler of SIGINT": lambda: signal.getsignal(signal.SIGINT),
    "torch's default dtype": lambda: str(
        _of_module("torch", lambda torch: torch.get_default_dtype(), "torch.float32")
    ),
    "torch's random state": lambda: _of_module(
        "torch", lambda torch: _digest(torch.random.get_rng_state().numpy().tobytes()), None
    ),
}
"""What is watched, and how it is read."""

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
        self.state = {name: read() for name, read in WATCHED.items()}
        self.threads = _threads()
        self._errors = np.geterr()
        self._numpy = np.random.get_state()
        self._python = random.getstate()
        self._folder = os.getcwd()
        self._environment = dict(os.environ)
        self._print = np.get_printoptions()
        self._recursion = sys.getrecursionlimit()

    def changes(self) -> dict[str, tuple[Any, Any]]:
        """Return what has changed since: (before, now) by name."""
        now = {name: read() for name, read in WATCHED.items()}
        found = {
            name: (was, now[name])
            for name, was in self.state.items()
            # torch came in the meantime: its state has no before.
            if now[name] != was and was is not None
        }
        started = _threads() - self.threads
        if started:
            names = sorted(thread.name for thread in started)
            found["the running threads"] = ("none", f"{len(names)} more: {', '.join(names[:3])}")
        return found

    def restore(self) -> None:
        """Put back what can be put back."""
        np.seterr(**self._errors)
        np.random.set_state(self._numpy)
        random.setstate(self._python)
        os.chdir(self._folder)
        for name in set(os.environ) - set(self._environment):
            del os.environ[name]
        os.environ.update(self._environment)
        sys.setrecursionlimit(self._recursion)
        jax = sys.modules.get("jax")
        if jax is not None and _jax_x64() != self.state["jax's x64 flag"]:
            jax.config.update("jax_enable_x64", self.state["jax's x64 flag"])


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
    try:
        for number in range(CALLS):
            y, pullback = probe.linearize(natural(probe, 4, f"watched {number}"))
            pullback(cotangent_for(y, probe.rng("watched")))
        changes = {**probe.changes_at_first_call, **watch.changes()}
    finally:
        watch.restore()
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
        for thread in threads:
            thread.join(timeout=probe.limit)
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
