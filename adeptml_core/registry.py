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

from __future__ import annotations  # SolverSpec is a name here, not an import: see below

import functools
import importlib
import importlib.metadata
import operator
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from adeptml_core._version import __version__
from adeptml_core.errors import ApiVersionError, PluginError, SpecError, UnknownSolverError
from adeptml_core.names import did_you_mean, normalize_name

if TYPE_CHECKING:  # specs and pluggy are loaded with the first plugin, not to list names
    from adeptml_core.spec import SolverSpec

__all__ = [
    "GROUP",
    "Entry",
    "Problem",
    "Row",
    "State",
    "entries",
    "find",
    "get_solver",
    "installed_version",
    "is_met",
    "load",
    "missing_requirements",
    "names",
    "quoted",
    "requirement_name",
    "scan",
    "select",
    "shortened",
    "solvers",
    "specs_of",
    "unknown_switches",
]

GROUP = "adeptml.solvers"
HOOK = "adeptml_solvers"
CORE = "adeptml-core"
ALLOW = "ADEPTML_PLUGINS"
DENY = "ADEPTML_DISABLE_PLUGINS"

# The records below are tuples, not dataclasses: each dataclass would cost every command 0.4 ms.


class Entry(NamedTuple):
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
    spelling : str
        The entry point's name as the distribution writes it.
    """

    name: str
    module: str
    distribution: str
    version: str
    requires: tuple[str, ...] = ()
    spelling: str = ""

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
            entry_point=self.spelling or self.name,
            mend=mend,
        )


class Problem(NamedTuple):
    """What is wrong with one plugin, in one line of cause and one of mend."""

    code: str
    distribution: str
    version: str
    entry_point: str
    message: str
    mend: str
    traceback: str = ""

    @classmethod
    def of(cls, error: PluginError) -> Problem:
        """Return the row for `error`, with the traceback of its cause."""
        import traceback

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


class State(StrEnum):
    """How a row of the list stands."""

    READY = "ready"
    NEEDS = "needs"
    DISABLED = "disabled"
    DUPLICATE = "duplicate"
    BROKEN = "broken"


class Row(NamedTuple):
    """One line of the list: an entry point, its spec where it has one, and its state.

    ``needs`` holds the requirements that are not met, where the state is ``needs``.
    """

    entry: Entry
    spec: SolverSpec | None
    state: State
    needs: tuple[str, ...] = ()


# ---- metadata: nothing of a plugin is imported here ------------------------------------------


class _Metadata(NamedTuple):
    """What the ``.dist-info`` folder of a distribution with solvers says."""

    distribution: importlib.metadata.Distribution
    name: str
    version: str
    requires: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The folder's path (``importlib.metadata`` keeps it under a private name)."""
        return str(getattr(self.distribution, "_path", ""))


def entries() -> tuple[Entry, ...]:
    """Return every entry point of the group, sorted; from metadata alone."""
    return _discover(_path())[0]


def _path() -> tuple[str, ...]:
    """Return ``sys.path`` as imports see it: what is no text (a Path, None) is passed over."""
    return tuple(folder for folder in sys.path if isinstance(folder, str))


@functools.lru_cache(maxsize=8)
def _discover(path: tuple[str, ...]) -> tuple[tuple[Entry, ...], tuple[Problem, ...]]:
    """Read the metadata on `path`: the entry points of the group, and what is wrong with them."""
    found: list[Entry] = []
    problems: list[Problem] = []
    for rivals in _distributions(path, problems).values():
        metadata = _newest(rivals, problems)
        try:
            found.extend(_entries_of(metadata))
        except Exception as error:
            problems.append(_unreadable(metadata, error))
    return tuple(sorted(found)), tuple(sorted(problems))


def _distributions(
    path: tuple[str, ...], problems: list[Problem]
) -> dict[str, dict[str, _Metadata]]:
    """Group the distributions that have solvers by name, then by folder."""
    groups: dict[str, dict[str, _Metadata]] = {}
    for distribution in importlib.metadata.distributions(path=list(path)):
        if not _has_solvers(distribution):
            continue
        metadata = _metadata_of(distribution)
        if why := _why_leftover(metadata):
            problems.append(_leftover(metadata, why))
        elif not _is_shadowed(metadata, path):
            groups.setdefault(normalize_name(metadata.name), {})[metadata.folder] = metadata
    return groups


def _has_solvers(distribution: importlib.metadata.Distribution) -> bool:
    try:
        return GROUP in (distribution.read_text("entry_points.txt") or "")
    except OSError:
        return False
    except UnicodeError:  # damaged, but it may be one of ours: then it will be said
        file = os.path.join(str(getattr(distribution, "_path", "")), "entry_points.txt")
        with open(file, "rb") as damaged:
            return GROUP.encode() in damaged.read()


def _read(distribution: importlib.metadata.Distribution, name: str) -> str | None:
    try:
        return distribution.read_text(name)
    except (OSError, UnicodeError):
        return None


def _metadata_of(distribution: importlib.metadata.Distribution) -> _Metadata:
    """Read name, version and requirements; ``distribution.metadata`` would parse the README too.

    The core metadata are email headers up to the first blank line, and none of these three is ever
    folded. Their names may be written in any case.
    """
    text = _read(distribution, "METADATA") or _read(distribution, "PKG-INFO") or ""
    head = text.partition("\n\n")[0]
    lines = re.findall("(?im)^(name|version|requires-dist):[ \t]*(.*?)[ \t]*$", head)
    fields = [(key.title(), value) for key, value in lines]
    first = dict(reversed(fields))
    requires = tuple(value for key, value in fields if key == "Requires-Dist")
    return _Metadata(distribution, first.get("Name", ""), first.get("Version", ""), requires)


def _why_leftover(metadata: _Metadata) -> str:
    """Tell the rest of an interrupted uninstall from a distribution; empty for the latter."""
    if os.path.basename(metadata.folder).startswith("~"):
        return "pip put it aside and was interrupted"
    if not (metadata.name and metadata.version):
        return "its METADATA is missing or cannot be read"
    return ""


def _leftover(metadata: _Metadata, why: str) -> Problem:
    name = metadata.name or os.path.basename(metadata.folder)
    return Problem(
        "P110",
        name,
        metadata.version,
        "",
        f"leftover metadata, {why}: {metadata.folder}",
        "delete that folder; if the plugin is wanted, install it again",
    )


def _is_shadowed(metadata: _Metadata, path: tuple[str, ...]) -> bool:
    """Tell whether another folder on the path has a distribution of this name and comes first."""
    namesakes = importlib.metadata.distributions(name=metadata.name, path=list(path))
    first = next(iter(namesakes), metadata.distribution)
    return str(first.locate_file("")) != str(metadata.distribution.locate_file(""))


def _newest(rivals: Mapping[str, _Metadata], problems: list[Problem]) -> _Metadata:
    """Return the one, or the newest where an interrupted upgrade left two side by side."""
    if len(rivals) == 1:
        return next(iter(rivals.values()))
    from packaging.version import InvalidVersion, Version

    def age(metadata: _Metadata) -> tuple[Version, str]:
        try:
            return Version(metadata.version), metadata.folder
        except InvalidVersion:
            return Version("0"), metadata.folder

    *older, newest = sorted(rivals.values(), key=age)
    why = f"version {newest.version} lies beside it"
    problems.extend(_leftover(metadata, why) for metadata in older)
    return newest


def _entries_of(metadata: _Metadata) -> set[Entry]:
    """Return the entry points of one distribution; one that is written twice counts once."""
    name, version, requires = metadata.name, metadata.version, metadata.requires
    return {
        Entry(normalize_name(point.name), point.value, name, version, requires, point.name)
        for point in metadata.distribution.entry_points
        if point.group == GROUP
    }


def _unreadable(metadata: _Metadata, error: Exception) -> Problem:
    return Problem(
        "P101",
        metadata.name,
        metadata.version,
        "",
        f"its entry_points.txt cannot be read ({_one_line(error)})",
        f"install it again: pip install --force-reinstall {metadata.name}",
    )


def names() -> dict[str, Entry]:
    """Return what is installed and switched on by a name that selects it; from metadata alone."""
    return {
        entry.name if len(claimants) == 1 else entry.qualified: entry
        for claimants in _claims(entries()).values()
        for entry in claimants
    }


def _claims(found: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Group the entry points that are switched on by solver name."""
    claims: dict[str, list[Entry]] = {}
    for entry in found:
        claimants = claims.setdefault(entry.name, [])
        if not _disabled_by(entry):
            claimants.append(entry)
    return claims


# ---- switches ----------------------------------------------------------------------------------


def _switch(name: str) -> frozenset[str] | None:
    """Return the names in an environment variable, normalised; None where it is not set."""
    value = os.environ.get(name)
    return None if value is None else _names_in(value)


@functools.lru_cache(maxsize=8)
def _names_in(value: str) -> frozenset[str]:
    return frozenset(_normalized(item.strip()) for item in value.split(",") if item.strip())


def _normalized(name: str) -> str:
    """Fold a solver's name, qualified or not."""
    return "/".join(map(normalize_name, name.split("/")))


def _names_of(entry: Entry) -> set[str]:
    """Return the names by which a switch can mean `entry`."""
    return {entry.name, normalize_name(entry.distribution), entry.qualified}


def _disabled_by(entry: Entry) -> str:
    """Return the switch that turns `entry` off, or an empty string."""
    allowed, denied = _switch(ALLOW), _switch(DENY)
    if denied and denied & _names_of(entry):
        return DENY
    if allowed is not None and not allowed & _names_of(entry):
        return ALLOW
    return ""


def unknown_switches() -> dict[str, tuple[str, ...]]:
    """Return, for each switch, the names in it that mean nothing that is installed."""
    known = {name for entry in entries() for name in _names_of(entry)}
    unknown = {name: (_switch(name) or frozenset()) - known for name in (ALLOW, DENY)}
    return {name: tuple(sorted(names)) for name, names in unknown.items() if names}


# ---- requirements ------------------------------------------------------------------------------


def missing_requirements(spec: SolverSpec) -> tuple[str, ...]:
    """Return those of ``spec.requires`` that are not installed in a fitting version."""
    return tuple(line for line in spec.requires if not is_met(line))


def requirement_name(line: str) -> str:
    """Return the distribution that a PEP 508 line is about; empty where it starts with none."""
    match = re.match("[A-Za-z0-9][A-Za-z0-9._-]*", line.strip())
    return normalize_name(match[0].rstrip("._-")) if match else ""


def is_met(line: str, known: Mapping[str, str] | None = None) -> bool:
    """Tell whether a requirement holds here; one that cannot be read does not.

    Parameters
    ----------
    line : str
        PEP 508: ``"jax>=0.4.30; python_version < '3.14'"``.
    known : mapping, optional
        Versions to take for installed, by normalised name.
    """
    version = (known or {}).get(requirement_name(line)) or installed_version(requirement_name(line))
    simple = _is_met_simply(line, version)
    return simple if simple is not None else _is_met_pedantically(line, version)


_VERSION = r"\d{1,18}(?:\.\d{1,18})*"
_CLAUSE = rf"(>=|<=|==|!=|<|>)\s*({_VERSION})"
_SIMPLE = rf"[A-Za-z0-9][A-Za-z0-9._-]*\s*(?:{_CLAUSE}\s*(?:,\s*{_CLAUSE}\s*)*)?"
_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


def _is_met_simply(line: str, version: str | None) -> bool | None:
    """Decide ``name>=1.2,<3`` for plain release numbers; None where that is not all there is.

    This is what almost every plugin writes, and importing ``packaging`` to read it would take the
    command a quarter longer. A local label (``2.13.0+cpu``) counts for none of these comparisons.
    """
    if not re.fullmatch(_SIMPLE, line.strip()):
        return None
    if version is None:
        return False
    installed = re.fullmatch(rf"({_VERSION})(?:\+.*)?", version)
    if not installed:
        return None
    return all(
        _COMPARISONS[sign](_release(installed[1]), _release(wanted))
        for sign, wanted in re.findall(_CLAUSE, line)
    )


def _release(version: str) -> tuple[int, ...]:
    """Return ``"1.20.0"`` as (1, 20): zeros at the end do not count (PEP 440)."""
    numbers = [int(part) for part in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _is_met_pedantically(line: str, version: str | None) -> bool:
    """Decide any requirement, as PEP 508 and PEP 440 have it."""
    from packaging.requirements import Requirement

    try:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            return True
        return version is not None and requirement.specifier.contains(version, prereleases=True)
    except ValueError:  # no requirement, or a number of five thousand digits
        return False


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, None where there is none."""
    path = list(_path())
    for distribution in importlib.metadata.distributions(name=name, path=path) if name else ():
        version = _metadata_of(distribution).version
        if version:
            return version
    return None


# ---- one plugin: import its light module, call its hook ----------------------------------------


def load(entry: Entry) -> SolverSpec:
    """Import the light module of `entry`, and nothing else, and return its spec.

    Raises
    ------
    PluginError
        P101 to P108.
    """
    matches = [spec for spec in specs_of(entry) if spec.name == entry.name]
    if len(matches) > 1:
        raise entry.error(
            "P106",
            f"its hook returns {len(matches)} specs called {entry.name!r}",
            "the plugin's author: give each spec a name and an entry point of its own",
        )
    if not matches:
        raise _nameless(entry)
    return matches[0]


def _nameless(entry: Entry) -> PluginError:
    spelling = entry.spelling or entry.name
    listed = ", ".join(repr(spec.name) for spec in specs_of(entry)) or "none"
    return entry.error(
        "P107",
        f"entry point {spelling!r} is not among the specs of {entry.module} ({listed})",
        "the plugin's author: in pyproject.toml, name the entry point as the spec is named",
    )


Target: TypeAlias = Any
"""What an entry point leads to: a module as a rule, but any object with the hook will do."""

_loaded: dict[tuple[str, str], tuple[Target, tuple[SolverSpec, ...]]] = {}


def specs_of(entry: Entry) -> tuple[SolverSpec, ...]:
    """Return all specs of the entry's module; a module is asked once, however many names it has.

    Raises
    ------
    PluginError
        P101 to P106, P108.
    """
    _check_core_version(entry)
    key = (entry.distribution, entry.module)
    target = _import(entry)
    if key not in _loaded or _loaded[key][0] is not target:
        try:
            _loaded[key] = (target, _call_hook(entry, target))
        except (PluginError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a target that raises wherever it is touched
            what = f"cannot be looked for: {_one_line(error)}"
            raise _bad_hook(entry, what, "let the entry point be the light module") from error
    return _loaded[key][1]


def _core_lines(entry: Entry) -> list[str]:
    return [line for line in entry.requires if requirement_name(line) == CORE]


def _check_core_version(entry: Entry) -> None:
    """Raise P108 where the plugin's ``Requires-Dist`` excludes this core."""
    for line in _core_lines(entry):
        if not is_met(line, {CORE: __version__}):
            mend = f"pip install {line!r}, or a version of {entry.distribution} made for this core"
            raise entry.error("P108", f"asks for {line!r}, this is {CORE} {__version__}", mend)


def _import(entry: Entry) -> Target:
    """Return what the entry point leads to."""
    module, attributes = _reference(entry)
    try:
        target: Target = importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _import_problem(entry, module, error) from error
    for name in attributes:
        try:
            target = getattr(target, name)
        except AttributeError as error:
            raise _nowhere(entry, f"{module} has no attribute {name!r}") from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a module that imports on demand, and cannot
            raise _import_problem(entry, module, error) from error
    return target


def _reference(entry: Entry) -> tuple[str, list[str]]:
    """Split ``"package.module:attribute"``, extras ignored."""
    point = importlib.metadata.EntryPoint(entry.name, entry.module, GROUP)
    try:
        module, attribute = point.module, point.attr or ""
    except (AttributeError, AssertionError):  # from Python 3.13 on it is asserted
        module = attribute = ""
    if not all(part.isidentifier() for part in module.split(".")):
        raise _nowhere(entry, "that is no module's import path")
    return module, [name for name in attribute.split(".") if name]


def _import_problem(entry: Entry, module: str, error: BaseException) -> PluginError:
    """Tell P101, P102, P103 and P108 apart."""
    if _is_about_core(error):
        return _other_core(entry, error)
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and f"{module}.".startswith(f"{missing}."):
        return _nowhere(entry, f"there is no module {missing!r}")
    if missing and _top(missing) != _top(module):
        return entry.error(
            "P102", f"needs {missing!r}, which is not installed", _cure(entry, missing)
        )
    what = f"sys.exit({error.code!r})" if isinstance(error, SystemExit) else _one_line(error)
    return entry.error(
        "P103",
        f"fails at import, {_place_of(error, module)}: {what}",
        f"correct that line, or {_do_without(entry)}",
    )


def _do_without(entry: Entry) -> str:
    return f"do without this plugin: {DENY}={normalize_name(entry.distribution)}"


def _is_about_core(error: BaseException) -> bool:
    """Tell whether a plugin died looking for a name that this core does not have."""
    if isinstance(error, ImportError):
        return _top(error.name or "") == "adeptml_core"
    owner = error.obj if isinstance(error, AttributeError) else None
    return isinstance(owner, ModuleType) and _top(owner.__name__) == "adeptml_core"


def _top(module: str) -> str:
    return module.partition(".")[0]


def _other_core(entry: Entry, error: BaseException) -> PluginError:
    """Return P108 for a plugin that does not speak this core's language."""
    asked = "".join(f"; it declares {line!r}" for line in _core_lines(entry))
    newer = f"pip install -U {CORE}"
    mend = f"{newer} {entry.distribution}"
    if isinstance(error, ApiVersionError):
        mend = newer if error.is_newer else f"pip install -U {entry.distribution}"
    return entry.error(
        "P108", f"made for another {CORE} than {__version__}: {_text_of(error)}{asked}", mend
    )


def _nowhere(entry: Entry, why: str) -> PluginError:
    point = f"{entry.spelling or entry.name} = {entry.module!r}"
    return entry.error(
        "P101",
        f"entry point {point} leads nowhere: {why}",
        f"pip install --force-reinstall {entry.distribution}; the plugin's author: the value is "
        "the light module's import path",
    )


def _cure(entry: Entry, module: str) -> str:
    """Return the mend for a missing module: the requirement that provides it, as far as we know.

    A module's name need not be its distribution's (``skimage`` is in scikit-image), so where none
    bears the name, what the plugin declares and is not there will be it.
    """
    named = [li for li in entry.requires if requirement_name(li) == normalize_name(_top(module))]
    likely = named[:1] or [line for line in entry.requires if not is_met(line, {CORE: __version__})]
    if not likely:
        return f"pip install the package that provides {module!r}"
    return "pip install " + " ".join(quoted(line.partition(";")[0].strip()) for line in likely)


def quoted(requirement: str) -> str:
    """Quote for the shell what it would read as a redirection."""
    return requirement if re.fullmatch(r"[\w.-]+", requirement) else f"'{requirement}'"


LINE = 300
"""Characters of a foreign error message that a problem quotes; the traceback has it all."""


def _text_of(error: BaseException) -> str:
    """Return the message of an error on one line, without the file that some messages end in."""
    try:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        text = " ".join(message.split())
    except Exception:  # a plugin's own exception class may be as broken as the plugin
        text = ""
    if isinstance(error, ImportError):
        text = re.sub(r" \([^()]*\)$", "", text)
    return text if len(text) <= LINE else f"{text[:LINE]}..."


def _one_line(error: BaseException) -> str:
    text = _text_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place_of(error: BaseException, module: str) -> str:
    """Return ``package/file.py:line``: the plugin's own last frame on the way to the error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{shortened(error.filename)}:{error.lineno}"
    frames = list(_frames(error.__traceback__))
    own = [frame for frame in frames if _top(frame[0]) == _top(module)]
    for _, filename, line in reversed(own or frames):
        return f"{shortened(filename)}:{line}"
    return module


def _frames(trace: TracebackType | None) -> Iterator[tuple[str, str, int]]:
    """Yield module, file and line of each frame that is neither ours nor the import system's."""
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__") or ""
        filename = trace.tb_frame.f_code.co_filename
        if name != __name__ and not filename.startswith("<frozen"):
            yield name, filename, trace.tb_lineno
        trace = trace.tb_next


def shortened(filename: str) -> str:
    """Return a file's path below the folder of ``sys.path`` it is imported from."""
    folders = [os.path.join(os.path.abspath(folder), "") for folder in _path()]
    below = [filename.removeprefix(folder) for folder in folders if filename.startswith(folder)]
    return min(below, key=len, default=filename)


def _call_hook(entry: Entry, target: Target) -> tuple[SolverSpec, ...]:
    """Register `target` with a plugin manager of its own and collect its specs."""
    import pluggy  # only here and in `plugin`: naming the installed solvers needs neither

    from adeptml_core import plugin

    manager = pluggy.PluginManager(plugin.PROJECT)
    manager.add_hookspecs(plugin)
    try:
        manager.register(target)
    except pluggy.PluginValidationError as error:
        raise entry.error(
            "P104",
            f"the hook's signature is wrong: {str(error).strip().splitlines()[-1].strip()}",
            f"the plugin's author: write it without parameters, def {HOOK}():",
        ) from error
    implementations = manager.hook.adeptml_solvers.get_hookimpls()
    if not implementations:
        raise _no_hook(entry, target, vars(manager.hook))
    return tuple(spec for found in implementations for spec in _checked(entry, found.function))


def _no_hook(entry: Entry, target: Target, hooks: Iterable[str]) -> PluginError:
    misspelt = [name for name in hooks if not name.startswith("_") and name != HOOK]
    if misspelt:
        message = f"{entry.module} has no hook {HOOK!r}, but one called {misspelt[0]!r}"
        mend = f"rename it to {HOOK}"
    elif hasattr(target, HOOK):
        message = f"{entry.module} has a function {HOOK!r} that is not marked as a hook"
        mend = "put @hookimpl above it"
    else:
        message = f"{entry.module} has no hook {HOOK!r}"
        mend = f"add @hookimpl def {HOOK}():"
    return entry.error("P105", message, f"the plugin's author: {mend}")


def _checked(entry: Entry, hook: Callable[[], object]) -> Iterator[SolverSpec]:
    """Call the hook and yield its specs, P106 where they are none."""
    from adeptml_core.spec import SolverSpec

    try:
        result = hook()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, ApiVersionError) or _is_about_core(error):
            raise _other_core(entry, error) from error
        place = _place_of(error, _reference(entry)[0])
        fault = f"has a bad spec, {place}: {_text_of(error)}"
        if not isinstance(error, SpecError):
            fault = f"raised, {place}: {_one_line(error)}"
        raise _bad_hook(entry, fault) from error
    if not isinstance(result, list | tuple):
        what = "None" if result is None else f"an object of type {type(result).__name__}"
        raise _bad_hook(entry, f"returned {what}, not a list of SolverSpec", RETURN)
    for item in result:
        if not isinstance(item, SolverSpec):
            what = f"an entry of type {type(item).__name__}"
            raise _bad_hook(entry, f"returned a list with {what}, not SolverSpec", RETURN)
        yield item


CORRECT = "correct that line"
RETURN = "let it return [SolverSpec(...), ...]"


def _bad_hook(entry: Entry, what: str, mend: str = CORRECT) -> PluginError:
    return entry.error(
        "P106", f"the hook of {entry.module} {what}", f"{mend}, or {_do_without(entry)}"
    )


# ---- all plugins -------------------------------------------------------------------------------


def scan() -> tuple[list[Row], list[Problem]]:
    """Load every light module that is switched on: one row an entry point, and what is wrong."""
    everything, unreadable = _discover(_path())
    problems = list(unreadable)
    claims = _claims(everything)
    met = functools.cache(is_met)  # two hundred solvers ask for the same numpy
    rows = [_row(entry, claims[entry.name], problems, met) for entry in everything]
    for name, claimants in claims.items():
        if len(claimants) > 1:
            problems.append(Problem.of(_ambiguous(name, claimants)))
    return rows, problems


def _row(
    entry: Entry,
    claimants: Sequence[Entry],
    problems: list[Problem],
    met: Callable[[str], bool] = is_met,
) -> Row:
    if entry not in claimants:
        return Row(entry, None, State.DISABLED)
    try:
        spec = load(entry)
    except PluginError as error:
        problems.append(Problem.of(error))
        return Row(entry, None, State.BROKEN)
    if len(claimants) > 1:
        return Row(entry, spec, State.DUPLICATE)
    needs = tuple(line for line in spec.requires if not met(line))
    return Row(entry, spec, State.NEEDS if needs else State.READY, needs)


def _ambiguous(name: str, claimants: Sequence[Entry]) -> PluginError:
    """Return P109, for two distributions or for two entry points of one."""
    first = claimants[0]
    choices = sorted({entry.qualified for entry in claimants})
    if len(choices) == 1:
        spellings = " and ".join(f"{e.spelling} = {e.module!r}" for e in claimants)
        return first.error(
            "P109",
            f"its entry points {spellings} claim one name, {name!r}",
            "the plugin's author: names differ by more than case, '_', '.' and '-'",
        )
    by = " and ".join(f"{entry.distribution} {entry.version}" for entry in claimants)
    return first.error(
        "P109",
        f"the name {name!r} is claimed by {by}",
        f"say which: {' or '.join(map(repr, choices))}; or uninstall one of them",
    )


def solvers() -> dict[str, SolverSpec]:
    """Return the solvers that are installed and sound, by name.

    Light: imports the plugins' light modules only. A name that two distributions claim stands
    under ``distribution/name``. What is broken is left out here; `scan` and
    ``adeptml plugins list`` show it.
    """
    _refresh()
    rows, _ = scan()
    return {
        row.entry.qualified if row.state == State.DUPLICATE else row.entry.name: row.spec
        for row in rows
        if row.spec is not None
    }


def select(names: Sequence[str] = ()) -> tuple[list[Row], list[Problem]]:
    """Load the solvers of these names, no other plugin; without names, all of them, as `scan`.

    Returns
    -------
    rows : list of Row
        In the order of `names`, each once.
    problems : list of Problem
        What is wrong with those among them that are broken.

    Raises
    ------
    UnknownSolverError
        Nothing of that name is installed and switched on.
    PluginError
        P109: two distributions claim the bare name.
    """
    if not names:
        return scan()
    problems: list[Problem] = []
    found = dict.fromkeys(find(name) for name in names)
    claims = _claims(entries())
    return [_row(entry, claims[entry.name], problems) for entry in found], problems


def find(name: str) -> Entry:
    """Return the entry point for `name` (``"heat1d"`` or ``"adeptml-heat1d/heat1d"``).

    Raises
    ------
    UnknownSolverError
        Nothing of that name is installed and switched on.
    PluginError
        P109: two distributions claim the bare name.
    """
    matches = _matches(name)
    if not matches:
        _refresh()
        matches = _matches(name)
    active = [entry for entry in matches if not _disabled_by(entry)]
    if not active:
        raise _switched_off(name, matches) if matches else _unknown(name)
    if len(active) > 1:
        raise _ambiguous(_normalized(str(name)), active)
    return active[0]


def _matches(name: str) -> list[Entry]:
    wanted = _normalized(str(name))
    return [entry for entry in entries() if wanted in (entry.name, entry.qualified)]


def _refresh() -> None:
    """Forget what was discovered: a notebook's process outlives its ``pip install``."""
    _discover.cache_clear()
    importlib.invalidate_caches()


def _switched_off(name: str, matches: Sequence[Entry]) -> UnknownSolverError:
    switch = _disabled_by(matches[0])
    return UnknownSolverError(
        f"the solver {str(name)!r} is switched off: the environment variable {switch} is "
        f"{os.environ.get(switch)!r}.",
        name=str(name),
    )


def _unknown(name: str) -> UnknownSolverError:
    active = [entry for entry in entries() if not _disabled_by(entry)]
    if not active:
        return UnknownSolverError(
            f"no solver is called {str(name)!r}: no solver plugin is installed"
            f"{' and switched on' if entries() else ''}.\nInstall the distribution that provides "
            "it, for instance: pip install adeptml-heat1d",
            name=str(name),
        )
    names = sorted({entry.name for entry in active})
    known = names + [entry.qualified for entry in active] if "/" in str(name) else names
    hint = did_you_mean(_normalized(str(name)), known)
    return UnknownSolverError(
        f"no solver is called {str(name)!r}.{hint}\nInstalled: {_listed(names)}.",
        name=str(name),
        suggestions=tuple(n for n in known if repr(n) in hint),
    )


def _listed(names: Sequence[str], most: int = 12) -> str:
    """Return the names on a line, not all two hundred of them."""
    more = len(names) - most
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:most])} and {more} more"


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
