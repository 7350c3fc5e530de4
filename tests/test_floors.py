"""The house keeps its floors: imports point downward only.

Read from the source text, so that an import inside a function counts as well: a lazy import upward
is a lazy way to a cycle.
"""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import adeptml_core

HOUSE = Path(adeptml_core.__file__).parent

FLOORS = {
    "_version": 0,
    "errors": 0,
    "names": 0,
    "spec": 0,
    "plugin": 0,
    "registry": 0,
    "configs": 0,
    "table": 0,
    "describe": 0,
    "scaffold": 0,
    "linearizer": 1,
    "plans": 1,
    "solver": 1,
    "bare": 1,
    "differences": 1,
    "derivatives": 1,
    "executors": 1,
    "worker": 1,
    "conformance": 1,
    "testing": 1,
    "tensors": 2,
    "batching": 2,
    "transforms": 2,
    "program": 2,
    "autograd": 2,
    "models": 2,
    "ensemble": 2,
    "checkpoint": 2,
    "training": 2,
    "train_utils": 2,
    "cli": 3,
    "__main__": 3,
    "__init__": 3,
}
"""Modules and subpackages by floor; 3 is the roof."""

ABOVE_ALL = {"cli", "__main__", "__init__"}

THIRD_PARTY: tuple[set[str], ...] = (
    {"pluggy", "packaging"},
    {"numpy", "scipy"},
    {"torch", "tensorboard", "click"},
    set(),
)
"""What each floor adds to what those below it may import; click draws training's progress bar."""

LAZILY = {
    ("configs", "torch"): "DEVICE and the check for a Module, in processes that have torch anyway",
    ("testing", "pytest"): "the pytest face; pytest itself is not a dependency",
    ("conformance", "matplotlib"): "plots in reports; an extra",
    ("conformance", "jax"): "whether a solver changed its flags, where it is loaded",
}
"""What a function of one module may import beyond its floor, and why."""


class Import(NamedTuple):
    """One import statement, of the house or of a third party."""

    module: str
    target: str
    is_lazy: bool
    line: int


def modules() -> dict[str, Path]:
    """Return every module of the house by dotted name below the package."""
    found = {}
    for file in sorted(HOUSE.rglob("*.py")):
        parts = file.relative_to(HOUSE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and parts[1:] else parts)] = file
    return found


def imports(module: str, file: Path) -> Iterator[Import]:
    """Yield the imports of a file; those for the type checker alone are none."""
    todo: list[tuple[ast.AST, bool]] = [(ast.parse(file.read_text(encoding="utf-8")), False)]
    while todo:
        node, is_lazy = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        is_lazy = is_lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target in targets(node):
                yield Import(module, target, is_lazy, node.lineno)
        todo += [(child, is_lazy) for child in ast.iter_child_nodes(node)]


def targets(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Return the dotted names an import statement leads to."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, "imports are absolute in this house"
    assert node.module is not None
    if node.module.split(".")[0] != HOUSE.name:
        return [node.module]
    names = [f"{node.module}.{alias.name}" for alias in node.names]
    known = {f"{HOUSE.name}.{name}" for name in modules()}
    return [name if name in known else node.module for name in names]


def all_imports() -> list[Import]:
    """Return every import in the house."""
    return [found for name, file in modules().items() for found in imports(name, file)]


def top(module: str) -> str:
    """Return the module or subpackage that has a floor."""
    return module.partition(".")[0]


def floor(target: str) -> int:
    """Return the floor of ``adeptml_core.x.y``; the package itself is light and below all."""
    inside = target.partition(".")[2]
    return FLOORS[top(inside)] if inside else -1


INSIDE = [found for found in all_imports() if top(found.target) == HOUSE.name]
OUTSIDE = [
    found
    for found in all_imports()
    if top(found.target) not in sys.stdlib_module_names and top(found.target) != HOUSE.name
]


def test_every_module_has_a_floor() -> None:
    """A new module says where it belongs."""
    assert {top(name) for name in modules()} <= FLOORS.keys()


@pytest.mark.parametrize("module", modules())
def test_imports_point_downward(module: str) -> None:
    """No module imports from a floor above its own, not even inside a function."""
    limit = FLOORS[top(module)]
    mine = [found for found in INSIDE if found.module == module and top(module) not in ABOVE_ALL]
    assert [found for found in mine if floor(found.target) > limit] == []


@pytest.mark.parametrize("module", modules())
def test_third_parties_stay_on_their_floors(module: str) -> None:
    """Floor 0 is stdlib and pluggy, floor 1 adds numpy, floor 2 torch; the roof has no more."""
    allowed = set.union(*THIRD_PARTY[: FLOORS[top(module)] + 1])
    strangers = [f for f in OUTSIDE if f.module == module and top(f.target) not in allowed]
    assert [
        f for f in strangers if not (f.is_lazy and (top(module), top(f.target)) in LAZILY)
    ] == []


def test_the_command_starts_light() -> None:
    """What the command imports at its top every keystroke pays for: click, and no specs yet."""
    at_once = {f.target for f in (*INSIDE, *OUTSIDE) if f.module == "cli" and not f.is_lazy}
    assert at_once == {
        "click",
        *(f"{HOUSE.name}.{module}" for module in ("errors", "registry", "table")),
    }


def test_packaging_is_never_imported_at_the_top() -> None:
    """Reading requirements pedantically costs a quarter of the command's time: only on demand."""
    assert [
        found for found in OUTSIDE if found.target.startswith("packaging") and not found.is_lazy
    ] == []


def test_there_are_no_cycles() -> None:
    """Within a floor too there is an order, lazy imports counted."""
    graph: dict[str, set[str]] = {}
    for found in INSIDE:
        target = found.target.partition(".")[2]
        if top(found.module) not in ABOVE_ALL and target and target != found.module:
            graph.setdefault(found.module, set()).add(target)
    assert list(TopologicalSorter(graph).static_order())
