"""What can be told without running the solver: the static part, ``adeptml plugins validate``.

The solver's module is imported, its functions are looked at, none is called.
"""

import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from adeptml_core import registry
from adeptml_core.conformance.records import Finding, failed, inconclusive, passed, skipped
from adeptml_core.describe import locate, requirements
from adeptml_core.errors import PluginError, Unavailable
from adeptml_core.registry import Entry, quoted
from adeptml_core.solver import Solver
from adeptml_core.spec import ALL_FUNCTIONS, SolverSpec

__all__ = [
    "Subject",
    "check_example_is_declared",
    "check_expected_failures_exist",
    "check_functions_exist",
    "check_light_module_is_light",
    "check_parameters_agree",
    "check_requirements_are_met",
]

LIGHT = ("adeptml_core", "pluggy", "packaging", "typing_extensions")
"""Packages that a light module may bring along; everything else comes with the solver."""


@dataclass(frozen=True)
class Subject:
    """A solver to be examined, and where it comes from.

    Parameters
    ----------
    spec : SolverSpec
    entry : Entry, optional
        Its entry point; None for a spec that is not packaged.
    name : str
        How it is called on the command line: qualified where two distributions claim it.
    """

    spec: SolverSpec
    entry: Entry | None = None
    name: str = ""

    @property
    def distribution(self) -> str:
        """The distribution's name, empty for a spec that is not packaged."""
        return self.entry.distribution if self.entry else ""

    @property
    def version(self) -> str:
        """The distribution's version."""
        return self.entry.version if self.entry else ""

    def function(self, role: str) -> Callable[..., Any]:
        """Return the plugin's function of that role, without resolving options."""
        solver = Solver.__new__(Solver)
        solver.spec, solver.name = self.spec, self.spec.name
        solver.distribution, solver.version = self.distribution, self.version
        solver._functions = {}
        return solver.function(role)

    def declared(self) -> Iterator[str]:
        """Yield the roles of the functions that the spec declares."""
        return (role for role in ALL_FUNCTIONS if getattr(self.spec, role) is not None)

    def place(self, role: str) -> str:
        """Return where the function of that role stands, as far as that can be told."""
        return str(locate(getattr(self.spec, role)))


def check_requirements_are_met(subject: Subject) -> Finding:
    """Catch a plugin whose distribution or spec asks for what is not installed, or not as new.

    It cannot be tried here, which is no fault of the solver's: the verdict is *unavailable*.
    """
    if subject.entry is not None:
        lines = requirements(subject.entry, subject.spec)
        unmet = [f"{r.line} ({r.installed or 'not installed'})" for r in lines if not r.is_met]
        count = len(lines)
    else:
        unmet = list(registry.missing_requirements(subject.spec))
        count = len(subject.spec.requires)
    if unmet:
        mend = " ".join(quoted(line.partition(" (")[0]) for line in unmet)
        raise Unavailable(f"needs {', '.join(unmet)}; pip install {mend}")
    return passed(f"{count} met") if count else skipped("nothing is required")


def check_light_module_is_light(subject: Subject) -> Finding:
    """Catch a light module that imports numpy, torch or the solver: it slows every listing."""
    if subject.entry is None:
        return skipped("the spec is not packaged")
    heavy = [name for name in imported_by(subject.entry.module) if name.split(".")[0] not in LIGHT]
    own = subject.entry.module.partition(":")[0].split(".")[0]
    heavy = sorted({name.split(".")[0] for name in heavy} - {own})
    if heavy:
        return failed(
            f"{subject.entry.module} imports {', '.join(heavy)}. Listing solvers must not pay for "
            "that: name the functions as 'module:function' and import inside the solver's module.",
            expected=list(LIGHT),
            got=heavy,
        )
    return passed()


def imported_by(module: str) -> tuple[str, ...]:
    """Return what a fresh interpreter has imported, beyond the standard library, after `module`."""
    program = (
        "import contextlib, importlib, io, json, sys\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    module = importlib.import_module({module.partition(':')[0]!r})\n"
        "    hook = getattr(module, 'adeptml_solvers', None)\n"
        "    hook and hook()\n"
        "names = {name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(json.dumps(sorted(n for n in names if not n.startswith('_'))))\n"
    )
    path = "import sys; sys.path[:] = " + repr(sys.path) + "\n"
    ended = subprocess.run(
        [sys.executable, "-c", path + program],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    if ended.returncode:
        return ()
    # An editable install or a .pth file may have imported things before us.
    before = subprocess.run(
        [sys.executable, "-c", "import json, sys; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    tops = {name.split(".")[0] for name in json.loads(before.stdout)}
    return tuple(sorted(set(json.loads(ended.stdout.splitlines()[-1])) - tops))


def check_functions_exist(subject: Subject) -> Finding:
    """Catch ``"module:attribute"`` that leads nowhere, or to something that cannot be called."""
    for role in subject.declared():
        try:
            subject.function(role)
        except PluginError as error:
            if error.code == "P102":
                raise Unavailable(f"{error.message}; {error.mend}") from error
            return failed(f"{role}: {error.message}", array=None, expected=role, got=None)
    return passed(f"{len(list(subject.declared()))} functions")


def expected_parameters(spec: SolverSpec, role: str) -> tuple[str, ...]:
    """Return what a function of that role takes by position."""
    x, args = spec.x.name, tuple(array.name for array in spec.args)
    return {
        "forward": (x, *args),
        "jacobian": (x, *args),
        "vjp": (x, "grad_output", *args),
        "jvp": (x, f"d{x}", *args),
        "hvp": (x, "grad_output", "v", *args),
        "example": ("rng", "batch"),
        "sizes": (),
    }[role]


def check_parameters_agree(subject: Subject) -> Finding:
    """Catch a function that does not take the declared args and options, or in another order."""
    spec = subject.spec
    options = [option.name for option in spec.options]
    unseen = []
    for role in subject.declared():
        wanted = expected_parameters(spec, role)
        try:
            signature = inspect.signature(subject.function(role))
        except (PluginError, ValueError, TypeError):  # missing; or compiled, and shows none
            unseen.append(role)
            continue
        complaint = _does_not_take(signature, wanted, options) or _reordered(signature, wanted)
        if complaint:
            return failed(
                f"{role} {complaint}. It is called as "
                f"{role}({', '.join([*wanted, *_set(options)])}) "
                f"and stands in {subject.place(role)}.",
                expected=[*wanted, *options],
                got=str(signature),
            )
    note = f"; {', '.join(unseen)} cannot be looked into" if unseen else ""
    return passed(f"positional arguments and {len(options)} options{note}")


def _set(options: list[str]) -> list[str]:
    return [f"{name}=..." for name in options]


def _does_not_take(
    signature: inspect.Signature, wanted: tuple[str, ...], options: list[str]
) -> str:
    try:
        signature.bind(*wanted, **dict.fromkeys(options))
    except TypeError as error:
        return f"has the parameters {signature}: {error}"
    return ""


def _reordered(signature: inspect.Signature, wanted: tuple[str, ...]) -> str:
    """Tell whether the function names the same parameters in another order: surely a slip."""
    named = [
        p.name
        for p in signature.parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ][: len(wanted)]
    same = len(set(named) & set(wanted)) == len(wanted) and len(named) == len(wanted)
    if same and tuple(named) != wanted:
        return f"takes ({', '.join(named)}), but the spec declares ({', '.join(wanted)})"
    return ""


def check_example_is_declared(subject: Subject) -> Finding:
    """Catch a solver that nobody can try: no example, and no bounds to draw from."""
    spec = subject.spec
    if spec.example is not None:
        return passed()
    open_ended = [
        a.name for a in spec.inputs if a.dtype is None and a.low is None and a.high is None
    ]
    if open_ended:
        return inconclusive(
            f"there is no example, and {', '.join(open_ended)} "
            f"{'has' if len(open_ended) == 1 else 'have'} no bounds to draw from. Declare "
            "example='module:function', (rng, batch, **options) -> (x, *args), or low= and high=.",
            missing=open_ended,
        )
    return passed("drawn from the bounds")


def check_expected_failures_exist(subject: Subject, known: frozenset[str]) -> Finding:
    """Catch an expected failure of a check that does not exist: it would never be noticed."""
    declared = subject.spec.expected_failures
    if not declared:
        return skipped("none declared")
    unknown = sorted(set(declared) - known)
    if unknown:
        return failed(
            f"expected_failures names {', '.join(unknown)}; there is no such check. "
            f"Checks of this solver: {', '.join(sorted(known))}.",
            expected=sorted(known),
            got=unknown,
        )
    return passed(f"{len(declared)} declared")
