"""What there is to know of a solver before its module is imported: the facts behind ``show``.

The functions of a solver are found and their lines read from the source text; a solver that needs
jax is described on a machine that has none.
"""

import ast
import importlib.machinery
import importlib.util
import inspect
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from adeptml_core.registry import (
    Entry,
    Row,
    State,
    installed_version,
    is_met,
    requirement_name,
    shortened,
)
from adeptml_core.spec import ALL_FUNCTIONS, Array, Function, Option, SolverSpec

__all__ = [
    "Place",
    "Requirement",
    "as_json",
    "functions",
    "locate",
    "requirements",
    "row_as_json",
    "snippet",
    "usable_name",
]


class Place(NamedTuple):
    """Where a function stands; ``line`` is 0 and ``file`` is empty where that is not known."""

    reference: str
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        if not self.file:
            return "not found"
        file = shortened(self.file)
        return f"{file}:{self.line}" if self.line else file


class Requirement(NamedTuple):
    """A PEP 508 line, what is installed of it, and whether that will do."""

    line: str
    installed: str | None
    is_met: bool


# ---- where the functions stand -----------------------------------------------------------------


def functions(spec: SolverSpec) -> dict[str, Place]:
    """Return the place of each function that the spec declares, by role."""
    declared = {role: getattr(spec, role) for role in ALL_FUNCTIONS}
    return {role: locate(found) for role, found in declared.items() if found is not None}


def locate(function: Function) -> Place:
    """Return where a function stands, without importing the module it is named in."""
    if not isinstance(function, str):
        return _place_of_callable(function)
    module, _, attribute = function.partition(":")
    file = _file_of(module)
    if file is None:
        return Place(function)
    return Place(function, file, _line_of(file, attribute.split(".")))


def _place_of_callable(function: Any) -> Place:
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    reference = f"{getattr(function, '__module__', '')}:{name}"
    return Place(reference, code.co_filename, code.co_firstlineno) if code else Place(reference)


def _file_of(module: str) -> str | None:
    """Return the file of a module by walking down from its top-level package.

    ``importlib.util.find_spec`` on the full name would import every package on the way.
    """
    top, *below = module.split(".")
    try:
        found = importlib.util.find_spec(top)
        name = top
        for part in below:
            if found is None or found.submodule_search_locations is None:
                return None
            name = f"{name}.{part}"
            found = importlib.machinery.PathFinder.find_spec(
                name, list(found.submodule_search_locations)
            )
    except (ImportError, ValueError):  # a finder gave up; a module in sys.modules has no spec
        return None
    return found.origin if found is not None else None


def _line_of(file: str, names: Sequence[str]) -> int:
    """Return the line that binds the (dotted) name, 0 where the source does not show it."""
    try:
        with open(file, "rb") as source:
            body: Sequence[ast.stmt] = ast.parse(source.read()).body
    except (OSError, SyntaxError, ValueError):  # an extension module, for instance
        return 0
    node: ast.stmt | None = None
    for name in names:
        bindings = [node for node in _statements(body) if name in _bound_by(node)]
        if not bindings:
            return 0
        node = bindings[-1]
        body = node.body if isinstance(node, ast.ClassDef) else []
    return node.lineno if node else 0


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run when the body does, those under ``if`` and ``try`` too."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from _statements(
                [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]
            )


def _bound_by(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {
        name.id
        for target in targets
        if isinstance(target, ast.AST)
        for name in ast.walk(target)
        if isinstance(name, ast.Name)
    }


# ---- what it needs -----------------------------------------------------------------------------


def requirements(entry: Entry, spec: SolverSpec) -> tuple[Requirement, ...]:
    """Return what the distribution requires, then what the spec adds; extras are left out."""
    lines = [line for line in entry.requires if not _is_of_an_extra(line)]
    lines += [line for line in spec.requires if line not in lines]
    return tuple(
        Requirement(line, installed_version(requirement_name(line)), is_met(line)) for line in lines
    )


def _is_of_an_extra(line: str) -> bool:
    return re.search(r"\bextra\b", line.partition(";")[2]) is not None


# ---- how to use it -----------------------------------------------------------------------------


def usable_name(row: Row) -> str:
    """Return the name that selects this solver and no other."""
    return row.entry.qualified if row.state == State.DUPLICATE else row.entry.name


def snippet(spec: SolverSpec, name: str = "") -> str:
    """Return Python that builds a model around the solver; pasted, it runs.

    Parameters
    ----------
    spec : SolverSpec
        The solver.
    name : str, optional
        How to call it, where ``spec.name`` alone would be ambiguous.
    """
    member = spec.name.replace("-", "_")
    options = _example_options(spec)
    given = f", options={{{options}}}" if options else ""
    args = ", ".join(f'"{array.name}": {array.name}' for array in spec.args)
    more = f', phy_args={{"{member}": {{{args}}}}}' if args else ""
    return "\n".join(
        (
            "from adeptml_core import HybridModel",
            "from adeptml_core.configs import HybridConfig, PhysicsConfig",
            "",
            f'physics = PhysicsConfig(solver="{name or spec.name}"{given})',
            f'model = HybridModel(HybridConfig(models={{"{member}": physics}}))',
            f"# {spec.y.name} = model({spec.x.name}{more})",
            f"# {'; '.join(_shapes(spec))}",
        )
    )


def _shapes(spec: SolverSpec) -> Iterator[str]:
    """Yield ``"k: (n) or (batch, n)"`` for each input."""
    for array in spec.inputs:
        sizes = ", ".join(map(str, array.shape))
        shared = f"({sizes},)" if len(array.shape) == 1 else f"({sizes})"
        each = f"(batch, {sizes})" if sizes else "(batch,)"
        is_spread = array is spec.x or array.batched is True
        forms = [] if is_spread else [shared]
        forms += [] if array.batched is False else [each]
        yield f"{array.name}: {' or '.join(forms)}"


def _example_options(spec: SolverSpec) -> str:
    """Return what must be set, or else the first option, to show how it is done."""
    chosen = [option for option in spec.options if option.required] or spec.options[:1]
    return ", ".join(f'"{option.name}": {_literal(_example_value(option))}' for option in chosen)


def _example_value(option: Option) -> Any:
    """Return a value that the option accepts."""
    if not option.required:
        return option.default
    if option.choices:
        return option.choices[0]
    for limit in (option.low, option.high):
        if limit is not None and option.type in (int, float):
            return option.type(limit)
    return {bool: False, int: 1, float: 1.0, str: "..."}.get(option.type, ())


def _literal(value: object) -> str:
    """Return `value` as Python source; infinity has no literal of its own."""
    if isinstance(value, tuple):
        items = ", ".join(map(_literal, value))
        return f"({items},)" if len(value) == 1 else f"({items})"
    if isinstance(value, float) and math.isinf(value):
        return f'float("{value}")'
    if isinstance(value, str):
        return json.dumps(value)  # in double quotes; JSON's escapes are Python's too
    return repr(value)


# ---- as JSON -----------------------------------------------------------------------------------


def row_as_json(row: Row) -> dict[str, Any]:
    """Return a line of ``list --json``; what a broken plugin cannot tell is null."""
    entry, spec = row.entry, row.spec
    return {
        "name": entry.name,
        "mode": spec and str(spec.mode),
        "signature": spec and spec.signature,
        "summary": spec and spec.summary,
        "distribution": entry.distribution,
        "version": entry.version,
        "entry_point": entry.spelling,
        "state": str(row.state),
    }


def as_json(row: Row, spec: SolverSpec) -> dict[str, Any]:
    """Return everything that ``show`` tells."""
    return row_as_json(row) | {
        "api": spec.api,
        "x": _array_as_json(spec.x, differentiable=True),
        "args": [_array_as_json(a, differentiable=a.differentiable) for a in spec.args],
        "y": _array_as_json(spec.y, differentiable=True),
        "options": [_option_as_json(option) for option in spec.options],
        "dtypes": list(spec.dtypes),
        "row_independent": spec.row_independent,
        "deterministic": spec.deterministic,
        "thread_safe": spec.thread_safe,
        "writable_inputs": spec.writable_inputs,
        "tolerance": spec.tolerance,
        "expected_failures": dict(spec.expected_failures),
        "functions": [
            {"role": role, "reference": p.reference, "file": p.file or None, "line": p.line or None}
            for role, p in functions(spec).items()
        ],
        "requirements": [
            {"requirement": r.line, "installed": r.installed, "met": r.is_met}
            for r in requirements(row.entry, spec)
        ],
        "url": spec.url,
        "citation": spec.citation,
        "snippet": snippet(spec, usable_name(row)),
    }


def _array_as_json(array: Array, *, differentiable: bool) -> dict[str, Any]:
    return {
        "name": array.name,
        "shape": list(array.shape),
        "unit": array.unit,
        "low": _finite(array.low),
        "high": _finite(array.high),
        "differentiable": differentiable,
        "dtype": array.dtype,
        "batched": array.batched,
        "doc": array.doc,
    }


def _option_as_json(option: Option) -> dict[str, Any]:
    return {
        "name": option.name,
        "type": option.type.__name__,
        "required": option.required,
        "default": None if option.required else _finite(option.default),
        "unit": option.unit,
        "low": _finite(option.low),
        "high": _finite(option.high),
        "choices": option.choices and _finite(option.choices),
        "doc": option.doc,
    }


def _finite(value: Any) -> Any:
    """Return `value` for JSON, which knows no infinity: ``"inf"``, ``"-inf"``."""
    if isinstance(value, tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value
