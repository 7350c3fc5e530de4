"""Where the time of a step goes: into which solver, and into the rest, which is the network.

In a step that is timed, every solver of a hybrid model stands behind a watch: two looks at the
clock around each call of `forward`, `linearize` and the pullback. The guards around the plugin's
own functions count as the solver's. Watches cost some ten microseconds a step, and to put them on
and off costs more, so of steps that are done in a few milliseconds every sixteenth is timed. Copies
of the model are made without watches.
"""

import copy
from dataclasses import replace
from time import perf_counter
from typing import Any

from torch import nn

from adeptml_core.checkpoint import unwrapped
from adeptml_core.linearizer import AnyArray, Linearizer, Pullback

__all__ = ["Watched", "Watches"]

SLOW = 5e-3  # s; a step that takes longer is always timed
SAMPLED = 16  # of faster ones every so many


class Watched:
    """A solver with a watch; otherwise as the solver itself.

    Attributes
    ----------
    seconds : float
        Spent in it so far.
    """

    def __init__(self, solver: Linearizer) -> None:
        self.seconds = 0.0
        self.solver = solver
        self.name = solver.name
        self.differentiable = solver.differentiable
        self.keeps_pullback = solver.keeps_pullback
        self.deterministic = solver.deterministic
        self.arg_name = solver.arg_name

    def __getattr__(self, name: str) -> Any:
        if name == "solver":  # not there yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.solver, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The solver's, as of every transparent proxy: what is declared is asked by isinstance."""
        return type(self.solver)

    def __repr__(self) -> str:
        """As the solver's."""
        return repr(self.solver)

    def __deepcopy__(self, memo: dict[int, Any]) -> Linearizer:
        return copy.deepcopy(self.solver, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.solver,)

    def forward(self, x: AnyArray, *args: Any) -> AnyArray:
        """Return y."""
        started = perf_counter()
        try:
            return self.solver.forward(x, *args)
        finally:
            self.seconds += perf_counter() - started

    def linearize(self, x: AnyArray, *args: Any) -> tuple[AnyArray, Pullback]:
        """Return y and the pullback at ``(x, *args)``."""
        started = perf_counter()
        y, pullback = self.solver.linearize(x, *args)
        self.seconds += perf_counter() - started
        return y, self._watched(pullback)

    def pullback_at(self, x: AnyArray, *args: Any) -> Pullback:
        """Return the pullback alone."""
        started = perf_counter()
        pullback = self.solver.pullback_at(x, *args)
        self.seconds += perf_counter() - started
        return self._watched(pullback)

    def _watched(self, pullback: Pullback) -> Pullback:
        def watched(g: AnyArray) -> tuple[AnyArray | None, ...]:
            started = perf_counter()
            try:
                return pullback(g)
            finally:
                self.seconds += perf_counter() - started

        return watched


def _itself(solver: Linearizer) -> Linearizer:
    return solver


class Watches:
    """The watches of a model's solvers, and what they showed in one epoch.

    A model that is no `HybridModel`, or has no solvers, has none, and `turn` does nothing.

    Attributes
    ----------
    steps : int
        Number of steps that were timed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._steps: dict[str, Any] = getattr(unwrapped(model), "_steps", {})
        self._bare = {name: step for name, step in self._steps.items() if hasattr(step, "solver")}
        self._watches = {name: Watched(step.solver) for name, step in self._bare.items()}
        self._behind = {
            name: replace(self._bare[name], solver=watch) for name, watch in self._watches.items()
        }
        self._is_on = False
        self.start()

    def start(self) -> None:
        """Begin an epoch."""
        self.steps, self._seconds, self._last = 0, 0.0, 0.0
        for watch in self._watches.values():
            watch.seconds = 0.0

    def turn(self, number: int) -> None:
        """Turn the watches on or off for the step of that number."""
        on = self._last > SLOW or number % SAMPLED == 0
        if on is not self._is_on:
            self._steps.update(self._behind if on else self._bare)
            self._is_on = on

    def note(self, seconds: float) -> None:
        """Note how long the step took."""
        self._last = seconds
        if self._is_on:
            self.steps += 1
            self._seconds += seconds

    def off(self) -> None:
        """Take the watches from the model."""
        self._steps.update(self._bare)
        self._is_on = False

    def means(self) -> dict[str, float]:
        """Return the mean seconds of a step in each solver and in the network, by their tags."""
        if not self._watches or not self.steps:
            return {}
        spent = {f"Time/solver/{name}": watch.seconds for name, watch in self._watches.items()}
        spent["Time/network"] = self._seconds - sum(spent.values())
        return {tag: seconds / self.steps for tag, seconds in spent.items()}
