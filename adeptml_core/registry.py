"""From an entry point to a `SolverSpec`, and what can go wrong on the way.

A plugin is found through ``importlib.metadata`` (group ``adeptml.solvers``; the entry point's name
is the solver's name, its value a light module) and asked for its specs through one pluggy hook.
The loop is our own: pluggy's loader stops at the first broken plugin, and a registry that dies of
its worst member serves nobody. Here every entry point is on its own; what fails becomes a
`Problem` beside the healthy.

======  ==============================================================================
code    cause
======  ==============================================================================
P101    the entry point leads nowhere
P102    a dependency is missing
P103    the plugin fails at import: a syntax error, an exception, ``sys.exit``
P104    the hook's signature is wrong
P105    there is no hook
P106    the hook raised, returned something else than specs, or its spec is bad
P107    the entry point's name is not among the plugin's specs
P108    the plugin is made for another contract or another version of core
P109    two distributions claim one name (an error only when the bare name is used)
P110    leftover metadata of an uninstalled distribution
======  ==============================================================================

Two environment variables act before anything is imported: ``ADEPTML_PLUGINS`` (an allow-list; empty
means none) and ``ADEPTML_DISABLE_PLUGINS``. Both take solver and distribution names.
"""

import contextlib
import importlib
import importlib.metadata
import io
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType
from typing import Any

import pluggy

from adeptml_core import plugin
from adeptml_core._version import __version__
from adeptml_core.errors import ApiVersionError, PluginError, UnknownSolverError
from adeptml_core.spec import SolverSpec, did_you_mean, normalize_name

__all__ = [
    "GROUP",
    "Entry",
    "Problem",
    "Row",
    "entries",
    "find",
    "get_solver",
    "load",
    "missing_requirements",
    "scan",
    "solvers",
]

GROUP = "adeptml.solvers"
CORE = "adeptml-core"
ALLOW = "ADEPTML_PLUGINS"
DENY = "ADEPTML_DISABLE_PLUGINS"


@dataclass(frozen=True)
class Entry:
    """One entry point: a solver's name and the light module that knows more.

    Parameters
    ----------
    name : str
        The solver's name, normalised.
    module : str
        The entry point's value.
    distribution, version : str
        Where it comes from.
    requires : tuple of str
        The distribution's ``Requires-Dist`` lines.
    """

    name: str
    module: str
    distribution: str
    version: str
    requires: tuple[str, ...] = field(default=(), repr=False)

    @property
    def qualified(self) -> str:
        """``"adeptml-heat1d/heat1d"``: unambiguous where two distributions claim one name."""
        return f"{normalize_name(self.distribution)}/{self.name}"

    def error(self, code: str, message: str, mend: str) -> PluginError:
        """Return the error that says what is wrong with this entry point."""
        return PluginError(
            message,
            code=code,
            distribution=self.distribution,
            version=self.version,
            entry_point=self.name,
            mend=mend,
        )


@dataclass(frozen=True)
class Problem:
    """What is wrong with one plugin, in one line of cause and one of mend."""

    code: str
    distribution: str
    version: str
    entry_point: str
    message: str
    mend: str
    traceback: str = field(default="", repr=False, compare=False)

    @classmethod
    def of(cls, error: PluginError) -> "Problem":
        """Return the row for `error`, with the traceback of its cause."""
        cause = error.__cause__
        lines = traceback.format_exception(cause) if cause is not None else []
        return cls(
            error.code,
            error.distribution,
            error.version,
            error.entry_point,
            error.message,
            error.mend,
            "".join(lines),
        )


@dataclass(frozen=True)
class Row:
    """One line of the list: an entry point, its spec where it has one, and its state.

    ``state`` is ``ready``, ``needs`` (something is not installed), ``disabled``, ``duplicate`` or
    ``broken``; ``needs`` holds the unmet requirements.
    """

    entry: Entry
    spec: SolverSpec | None
    state: str
    needs: tuple[str, ...] = ()


# ---- metadata: nothing of a plugin is imported here ------------------------------------------


def entries() -> tuple[Entry, ...]:
    """Return every entry point of the group, sorted; from metadata alone."""
    return _discover(tuple(sys.path))[0]


@lru_cache(maxsize=8)
def _discover(path: tuple[str, ...]) -> tuple[tuple[Entry, ...], tuple[Problem, ...]]:
    """Read the metadata on `path`: the entry points of the group, and leftovers (P110)."""
    found: dict[str, tuple[Entry, ...]] = {}
    leftovers: list[Problem] = []
    for distribution in importlib.metadata.distributions(path=list(path)):
        if GROUP not in (_read(distribution, "entry_points.txt") or ""):
            continue
        identity = _identity(distribution)
        if identity is None:
            leftovers.append(_leftover(distribution))
        elif normalize_name(identity[0]) not in found and not _is_shadowed(distribution, path):
            found[normalize_name(identity[0])] = tuple(_entries_of(distribution, *identity))
    ordered = sorted((e for group in found.values() for e in group), key=lambda e: e.qualified)
    return tuple(sorted(ordered, key=lambda e: e.name)), tuple(leftovers)


def _read(distribution: importlib.metadata.Distribution, name: str) -> str | None:
    try:
        return distribution.read_text(name)
    except (OSError, UnicodeError):
        return None


def _identity(distribution: importlib.metadata.Distribution) -> tuple[str, str] | None:
    """Return (name, version), or None where the metadata is the rest of an uninstall."""
    if not _read(distribution, "METADATA") and not _read(distribution, "PKG-INFO"):
        return None
    name = distribution.metadata.get("Name")
    version = distribution.metadata.get("Version")
    return (name, version) if name and version else None


def _is_shadowed(distribution: importlib.metadata.Distribution, path: tuple[str, ...]) -> bool:
    """Tell whether another distribution of the same name stands before this one on the path."""
    name = distribution.metadata["Name"]
    first = next(iter(importlib.metadata.distributions(name=name, path=list(path))), None)
    return first is not None and _place(first) != _place(distribution)


def _place(distribution: importlib.metadata.Distribution) -> str:
    """Return the folder of the metadata (``importlib.metadata`` has no public name for it)."""
    return str(getattr(distribution, "_path", id(distribution)))


def _entries_of(
    distribution: importlib.metadata.Distribution, name: str, version: str
) -> Iterator[Entry]:
    requires = tuple(distribution.metadata.get_all("Requires-Dist") or ())
    for point in distribution.entry_points:
        if point.group == GROUP:
            yield Entry(normalize_name(point.name), point.value, name, version, requires)


def _leftover(distribution: importlib.metadata.Distribution) -> Problem:
    folder = os.path.basename(_place(distribution))
    return Problem(
        "P110",
        folder,
        "",
        "",
        f"leftover metadata without a name or version: {_place(distribution)}",
        "delete that folder; if the plugin is wanted, install it again",
    )


def _switch(name: str) -> frozenset[str] | None:
    """Return the names in an environment variable, normalised; None where it is not set."""
    value = os.environ.get(name)
    if value is None:
        return None
    names = (item.strip() for item in value.split(","))
    return frozenset("/".join(map(normalize_name, n.split("/"))) for n in names if n)


def _disabled_by(entry: Entry) -> str:
    """Return the switch that turns `entry` off, or an empty string."""
    names = {entry.name, normalize_name(entry.distribution), entry.qualified}
    allowed, denied = _switch(ALLOW), _switch(DENY)
    if denied is not None and names & denied:
        return DENY
    if allowed is not None and not names & allowed:
        return ALLOW
    return ""


# ---- one plugin: import its light module, call its hook ----------------------------------------


def load(entry: Entry) -> SolverSpec:
    """Import the light module of `entry`, and nothing else, and return its spec.

    Raises
    ------
    PluginError
        P101 to P108.
    """
    _check_core_version(entry)
    specs = _specs_of(entry)
    matches = [spec for spec in specs if spec.name == entry.name]
    if len(matches) > 1:
        raise entry.error(
            "P106",
            f"its hook returns {len(matches)} specs called {entry.name!r}",
            "give each spec a name and an entry point of its own",
        )
    if not matches:
        names = ", ".join(repr(spec.name) for spec in specs) or "none"
        raise entry.error(
            "P107",
            f"entry point {entry.name!r} is not among the specs of {entry.module} ({names})",
            "in the plugin's pyproject.toml, name the entry point as the spec is named",
        )
    return matches[0]


def _check_core_version(entry: Entry, cause: BaseException | None = None) -> None:
    """Raise P108 where the plugin's ``Requires-Dist`` excludes this core."""
    for line in entry.requires:
        if not normalize_name(line).startswith(CORE):
            continue
        if not _is_met(line, {CORE: __version__}):
            raise _other_core(entry, f"it asks for '{line}'") from cause


def _other_core(entry: Entry, why: str) -> PluginError:
    asked = [line for line in entry.requires if normalize_name(line).startswith(CORE)]
    mend = f"pip install '{asked[0]}'" if asked else f"pip install -U {CORE} {entry.distribution}"
    return entry.error("P108", f"made for another adeptml-core than {__version__}: {why}", mend)


_loaded: dict[tuple[str, str], tuple[Any, tuple[SolverSpec, ...]]] = {}


def _specs_of(entry: Entry) -> tuple[SolverSpec, ...]:
    """Return all specs of the entry's module; a module is asked once, however many names it has."""
    key = (entry.distribution, entry.module)
    target = _import(entry)
    if key not in _loaded or _loaded[key][0] is not target:
        _loaded[key] = (target, _call_hook(entry, target))
    return _loaded[key][1]


def _import(entry: Entry) -> Any:
    module_name, _, attribute = entry.module.partition(":")
    try:
        with _quiet_stdout():
            target: Any = importlib.import_module(module_name.strip())
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _import_problem(entry, module_name.strip(), error) from error
    for name in filter(None, attribute.strip().split(".")):
        try:
            target = getattr(target, name)
        except AttributeError as error:
            raise _nowhere(entry, f"{module_name} has no attribute {name!r}") from error
    return target


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Send what a plugin prints at import to stderr, so that stdout stays what was asked for."""
    with contextlib.redirect_stdout(sys.stderr or io.StringIO()):
        yield


def _import_problem(entry: Entry, module: str, error: BaseException) -> PluginError:
    """Tell P101, P102, P103 and P108 apart."""
    missing = error.name if isinstance(error, ImportError) else None
    if missing is not None and missing.split(".")[0] == plugin.__name__.split(".")[0]:
        return _other_core(entry, str(error))
    if isinstance(error, ModuleNotFoundError) and missing:
        if module == missing or module.startswith(f"{missing}."):
            return _nowhere(entry, f"there is no module {missing!r}")
        package = _provider(missing, entry.requires)
        mend = f"pip install {package}" if package else f"install the package that has {missing!r}"
        return entry.error("P102", f"needs {missing!r}, which is not installed", mend)
    what = f"sys.exit({error.code!r})" if isinstance(error, SystemExit) else _one_line(error)
    return entry.error(
        "P103",
        f"fails at import, {_place_of(error)}: {what}",
        "mend the plugin there, or switch it off: "
        f"{DENY}={normalize_name(entry.distribution)}",
    )


def _nowhere(entry: Entry, why: str) -> PluginError:
    return entry.error(
        "P101",
        f"entry point {entry.name!r} = {entry.module!r} leads nowhere: {why}",
        f"install it again: pip install --force-reinstall {entry.distribution}; "
        "its author: the value must be the light module's import path",
    )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place_of(error: BaseException) -> str:
    """Return ``file:line`` where the error arose in the plugin."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [f for f in _frames(error.__traceback__) if "importlib" not in f[0]]
    return "{}:{}".format(*frames[-1]) if frames else "unknown place"


def _frames(trace: TracebackType | None) -> Iterator[tuple[str, int]]:
    for frame, line in traceback.walk_tb(trace):
        yield frame.f_code.co_filename, line


def _provider(module: str, requires: Iterable[str]) -> str:
    """Return the requirement that probably provides `module`, or an empty string."""
    top = normalize_name(module.split(".")[0])
    for line in requires:
        if normalize_name(_requirement_name(line)) == top:
            return _requirement_name(line)
    return ""


def _requirement_name(line: str) -> str:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        return Requirement(line).name
    except InvalidRequirement:
        return ""


def _call_hook(entry: Entry, target: Any) -> tuple[SolverSpec, ...]:
    """Register `target` with a plugin manager of its own and collect its specs."""
    manager = pluggy.PluginManager(plugin.PROJECT)
    manager.add_hookspecs(plugin)
    try:
        manager.register(target)
    except pluggy.PluginValidationError as error:
        raise entry.error(
            "P104",
            f"the hook's signature is wrong: {_last_line(error)}",
            "write it without parameters: def adeptml_solvers():",
        ) from error
    implementations = manager.hook.adeptml_solvers.get_hookimpls()
    if not implementations:
        raise _no_hook(entry, target, manager)
    specs: list[SolverSpec] = []
    for implementation in implementations:
        specs.extend(_checked_specs(entry, implementation.function))
    return tuple(specs)


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1].strip()


def _no_hook(entry: Entry, target: Any, manager: pluggy.PluginManager) -> PluginError:
    hooks = [name for name in vars(manager.hook) if not name.startswith("_")]
    misspelt = [name for name in hooks if name != "adeptml_solvers"]
    if misspelt:
        return entry.error(
            "P105",
            f"{entry.module} has no hook 'adeptml_solvers', but one called {misspelt[0]!r}",
            "rename it: def adeptml_solvers():",
        )
    plain = hasattr(target, "adeptml_solvers")
    mend = "mark the function with @hookimpl" if plain else "add @hookimpl def adeptml_solvers():"
    return entry.error("P105", f"{entry.module} has no hook 'adeptml_solvers'", mend)


def _checked_specs(entry: Entry, hook: Any) -> Sequence[SolverSpec]:
    try:
        with _quiet_stdout():
            result = hook()
    except KeyboardInterrupt:
        raise
    except ApiVersionError as error:
        raise _other_core(entry, str(error)) from error
    except BaseException as error:
        if isinstance(error, TypeError):
            _check_core_version(entry, error)
        raise _bad_hook(entry, f"raised {_one_line(error)} ({_place_of(error)})") from error
    if not isinstance(result, list | tuple):
        raise _bad_hook(entry, f"returned {type(result).__name__}, not a list of SolverSpec")
    for item in result:
        if not isinstance(item, SolverSpec):
            raise _bad_hook(entry, f"returned a list that holds {item!r}, not a SolverSpec")
    return result


def _bad_hook(entry: Entry, what: str) -> PluginError:
    return entry.error(
        "P106",
        f"the hook of {entry.module} {what}",
        "mend the plugin's spec; `adeptml plugins validate` checks it",
    )


# ---- requirements ------------------------------------------------------------------------------


def missing_requirements(spec: SolverSpec) -> tuple[str, ...]:
    """Return those of ``spec.requires`` that are not installed in a fitting version."""
    return tuple(line for line in spec.requires if not _is_met(line))


def _is_met(line: str, known: dict[str, str] | None = None) -> bool:
    """Tell whether the PEP 508 requirement holds here; one that cannot be read does not."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(line)
    except InvalidRequirement:
        return False
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return True
    name = normalize_name(requirement.name)
    version = (known or {}).get(name) or _installed_version(name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# ---- all plugins -------------------------------------------------------------------------------


def scan() -> tuple[list[Row], list[Problem]]:
    """Load every light module that is switched on: one row an entry point, and what is wrong."""
    everything, leftovers = _discover(tuple(sys.path))
    problems = list(leftovers)
    claims = _claims(everything)
    rows = [_row(entry, claims[entry.name], problems) for entry in everything]
    for name, claimants in claims.items():
        if len(claimants) > 1:
            problems.append(Problem.of(_ambiguous(name, claimants)))
    return rows, problems


def _claims(found: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Group the entry points that are switched on by solver name."""
    claims: dict[str, list[Entry]] = {}
    for entry in found:
        claimants = claims.setdefault(entry.name, [])
        if not _disabled_by(entry):
            claimants.append(entry)
    return claims


def _row(entry: Entry, claimants: list[Entry], problems: list[Problem]) -> Row:
    if _disabled_by(entry):
        return Row(entry, None, "disabled")
    try:
        spec = load(entry)
    except PluginError as error:
        problems.append(Problem.of(error))
        return Row(entry, None, "broken")
    if len(claimants) > 1:
        return Row(entry, spec, "duplicate")
    needs = missing_requirements(spec)
    return Row(entry, spec, "needs" if needs else "ready", needs)


def _ambiguous(name: str, claimants: Sequence[Entry]) -> PluginError:
    first = claimants[0]
    by = " and ".join(f"{e.distribution} {e.version}" for e in claimants)
    choice = " or ".join(repr(e.qualified) for e in claimants)
    return first.error(
        "P109", f"{name!r} is claimed by {by}", f"say which: {choice}; or uninstall one of them"
    )


def solvers() -> dict[str, SolverSpec]:
    """Return the solvers that are installed and sound, by name.

    Light: imports the plugins' light modules only. A name that two distributions claim stands
    under ``distribution/name``. What is broken is left out here; `scan` and
    ``adeptml plugins list`` show it.
    """
    rows, _ = scan()
    return {
        row.entry.qualified if row.state == "duplicate" else row.entry.name: row.spec
        for row in rows
        if row.spec is not None
    }


def find(name: str) -> Entry:
    """Return the entry point for `name` (``"heat1d"`` or ``"adeptml-heat1d/heat1d"``).

    Raises
    ------
    UnknownSolverError
        Nothing of that name is installed and switched on.
    PluginError
        P109: two distributions claim the bare name.
    """
    wanted = "/".join(map(normalize_name, str(name).split("/")))
    matches = _matches(wanted)
    if not matches:
        _discover.cache_clear()  # installed since? a notebook's process outlives its pip
        matches = _matches(wanted)
    active = [entry for entry in matches if not _disabled_by(entry)]
    if not active:
        raise _unknown(str(name), matches)
    if len(active) > 1:
        raise _ambiguous(wanted, active)
    return active[0]


def _matches(wanted: str) -> list[Entry]:
    return [entry for entry in entries() if wanted in (entry.name, entry.qualified)]


def _unknown(name: str, matches: Sequence[Entry]) -> UnknownSolverError:
    if matches:
        switch = _disabled_by(matches[0])
        state = f"set to {os.environ.get(switch)!r}"
        return UnknownSolverError(
            f"the solver {name!r} is switched off: {switch} is {state}.", name=name
        )
    names = sorted({entry.name for entry in entries() if not _disabled_by(entry)})
    if not names:
        return UnknownSolverError(
            f"no solver is called {name!r}: no solver plugin is installed. Install the "
            "distribution that provides it, for instance: pip install adeptml-heat1d",
            name=name,
        )
    hint = did_you_mean(name, names)
    listed = ", ".join(names)
    return UnknownSolverError(
        f"no solver is called {name!r}.{hint}\nInstalled: {listed}.",
        name=name,
        suggestions=tuple(n for n in names if repr(n) in hint),
    )


def get_solver(name: str) -> SolverSpec:
    """Return the spec of the solver called `name`; that one plugin is imported, no other.

    Parameters
    ----------
    name : str
        ``"heat1d"``, or ``"adeptml-heat1d/heat1d"`` where two distributions claim it. Case, ``_``
        and ``.`` are folded as in distribution names.

    Raises
    ------
    UnknownSolverError
        No such solver; the message says what comes close.
    PluginError
        Its plugin is broken: code, distribution, cause and mend.
    """
    return load(find(name))
