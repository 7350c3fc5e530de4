"""The README keeps its word."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from adeptml_heat1d.plugin import adeptml_solvers

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
FIRST_EXAMPLE = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)


def table_rows(heading: str) -> dict[str, list[str]]:
    """Return the cells of the table whose first heading that is, by their first cell."""
    lines = README[README.index(f"| {heading} |") :].splitlines()[2:]
    rows = {}
    for line in lines:
        if not line.startswith("|"):
            break
        first, *rest = (cell.strip() for cell in line.strip("|").split("|"))
        rows[first] = rest
    return rows


def test_first_example_prints_what_it_shows() -> None:
    """The example runs as it stands, and its output is the one below it."""
    found = FIRST_EXAMPLE.search(README)
    assert found
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(found[1], "README.md", "exec"), {})
    assert printed.getvalue() == found[2]


def test_tables_show_the_declared_arrays_and_options() -> None:
    """Names, units and defaults are those of the spec."""
    spec = adeptml_solvers()[0]
    arrays = table_rows("array")
    units = {array.name: array.unit for array in (*spec.inputs, spec.y)}
    readable = {name.removeprefix("result "): row[1] for name, row in arrays.items()}
    assert readable == {name: unit.replace("^3", "³") for name, unit in units.items()}
    options = {
        name: row[0] for names, row in table_rows("option").items() for name in names.split(", ")
    }
    assert options == {option.name: str(option.default) for option in spec.options}


def test_table_shows_the_declared_solvers() -> None:
    """Names, modes, x and gradients are those of the specs."""
    rows = table_rows("solver")
    for spec in adeptml_solvers():
        mode, x, differentiable, _ = rows[f"`{spec.name}`"]
        names = [
            array.name
            for array, is_differentiable in zip(spec.inputs, spec.differentiable, strict=True)
            if is_differentiable
        ]
        assert (mode, x) == (spec.mode, spec.x.name)
        assert differentiable.partition(";")[0] == ", ".join(names)


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_pictures_are_there(link: str) -> None:
    """What the text links to, the checkout has; beyond this folder only where there is one."""
    folder = Path(__file__).parents[1]
    if link.startswith("../..") and not (folder.parents[1] / "adeptml_core").is_dir():
        pytest.skip("a copy of this folder has no repository around it")
    assert (folder / link).is_file()
