"""What a plugin's light module imports, and all that it may import.

A plugin is a distribution with an entry point in the group ``adeptml.solvers`` whose value is a
module that implements one hook::

    from adeptml_core.plugin import Array, SolverSpec, hookimpl

    @hookimpl
    def adeptml_solvers():
        return [
            SolverSpec(
                name="cube", mode="vjp", summary="elementwise cube",
                x=Array("x", ("n",)), y=Array("y", ("n",)),
                forward="my_pkg.solver:forward", vjp="my_pkg.solver:vjp",
                example="my_pkg.solver:example",
            ),
        ]

The functions are named, not imported: listing solvers must not pay for numpy, torch or jax.
"""

from collections.abc import Sequence

import pluggy

from adeptml_core.errors import SampleError, Unavailable
from adeptml_core.spec import API, Array, Mode, Option, SolverSpec

__all__ = [
    "API",
    "Array",
    "Mode",
    "Option",
    "SampleError",
    "SolverSpec",
    "Unavailable",
    "hookimpl",
]

PROJECT = "adeptml"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def adeptml_solvers() -> Sequence[SolverSpec]:  # type: ignore[empty-body]
    """Return the solvers of this plugin; no arguments, so that the hook can evolve."""
