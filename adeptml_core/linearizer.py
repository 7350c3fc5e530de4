"""The face of every solver, whatever is behind it: linearise, and the pullback is there."""

import inspect
import os
from collections.abc import Callable
from typing import Any, Protocol

from numpy.typing import NDArray

from adeptml_core.errors import AdeptmlError, SampleError
from adeptml_core.spec import Mode

__all__ = ["AnyArray", "Linearizer", "Pullback", "Shape", "attribute", "place", "wanted"]

AnyArray = NDArray[Any]
Shape = tuple[int, ...]
Pullback = Callable[[AnyArray], tuple[AnyArray | None, ...]]
"""``pullback(g) -> (dx, *dargs)``, None where an arg is not differentiable."""


class Linearizer(Protocol):
    """The face of every solver, local or remote.

    Attributes
    ----------
    name : str
        For messages.
    differentiable : tuple of bool, or None
        For each of ``(x, *args)``, whether the pullback gives a cotangent; None: for x alone.
    keeps_pullback : bool
        Whether the pullback of `linearize` is worth keeping, because `pullback_at` would have to
        run forward again.
    deterministic : bool
        Whether running forward again gives the same pullback.
    row_independent : bool
        Whether row i of y depends on row i of x and of per-sample args alone.
    second_order : ``"differences"`` or None
        How second derivatives are obtained where the solver has no rule of its own.
    identity : str
        What a compiled or exported program calls the solver; empty where it has no name.
    """

    name: str
    mode: Mode
    differentiable: tuple[bool, ...] | None
    keeps_pullback: bool
    deterministic: bool
    row_independent: bool
    second_order: str | None
    identity: str

    def forward(self, x: AnyArray, *args: Any) -> AnyArray:
        """Return y."""

    def linearize(self, x: AnyArray, *args: Any) -> tuple[AnyArray, Pullback]:
        """Return y and the pullback at ``(x, *args)``."""

    def pullback_at(self, x: AnyArray, *args: Any) -> Pullback:
        """Return the pullback alone, where y is known already."""

    def has(self, role: str) -> bool:
        """Tell whether the solver itself gives ``"jvp"`` or ``"hvp"``."""

    def jacobians(self, y: Shape, x: AnyArray, *args: Any) -> tuple[AnyArray | None, ...]:
        """Return dy/dx and dy/dargs, each (batch, *y_core, *core), in jacobian mode."""

    def arg_name(self, index: int) -> str:
        """Return the name of ``args[index]``, for messages."""


def wanted(solver: Linearizer, count: int) -> tuple[bool, ...]:
    """Tell for each of ``(x, *args)``, `count` in all, whether the pullback speaks of it."""
    return solver.differentiable or (True, *(False for _ in range(count - 1)))


def place(function: Callable[..., Any]) -> str:
    """Return ``"package/module.py:61"``, as much of it as can be known."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"
    path = os.path.join(*code.co_filename.split(os.sep)[-2:])
    return f"{path}:{code.co_firstlineno}"


def attribute(error: Exception, solver: str, note: Callable[[], str]) -> None:
    """Say of an error that a solver's function raised whose it is, where it does not say so itself.

    Parameters
    ----------
    error : Exception
        A `SampleError` gets the solver's name; our other errors have it; any other gets the note.
    solver : str
        Its name.
    note : callable
        Makes the note: it is made only where it is wanted.
    """
    if isinstance(error, SampleError):
        error.solver = error.solver or solver
    elif not isinstance(error, AdeptmlError):
        error.add_note(note())
