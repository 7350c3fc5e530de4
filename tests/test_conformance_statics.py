"""The static part: what is told of a plugin without running its solver, on sickness and twin."""

from pathlib import Path

import pytest
from fake_plugins import HOOK, spec, write_distribution

from adeptml_core import registry
from adeptml_core.conformance import Run, Settings, Status, Subject
from adeptml_core.plugin import Array, SolverSpec

SOLVER = """
import numpy as np
def example(rng, batch): return (rng.standard_normal((batch, 3)),)
def forward(x): return x**3
def vjp(x, g): return 3 * x**2 * g
"""


def subject(site: Path, *, light: str = "", fields: str = "") -> Subject:
    """Install a solver called cube, and find it as the command does."""
    fields = f"example='cube_solver:example'{fields}"
    source = spec("cube", fields).replace("fake_solver", "cube_solver")
    hook = f"{HOOK}{light}\n@hookimpl\ndef adeptml_solvers():\n    return [{source}]\n"
    write_distribution(
        site,
        "fake-cube",
        points={"cube": "cube_light"},
        modules={"cube_light": hook, "cube_solver": SOLVER},
    )
    entry = registry.find("cube")
    return Subject(registry.load(entry), entry, "cube")


def static(examined: Subject) -> Run:
    """Return a run of the static part alone."""
    return Run(examined, Settings(parts=("static",)))


@pytest.mark.parametrize(("light", "status"), [("import numpy", "failed"), ("", "passed")])
def test_a_light_module_imports_nothing_heavy(site: Path, light: str, status: str) -> None:
    """One that imports numpy slows every listing; what it imports is named."""
    record = static(subject(site, light=light)).record("light-module")
    assert record.status == status
    assert ("numpy" in record.message) == (status == "failed")


def test_a_missing_requirement_makes_a_solver_unavailable(site: Path) -> None:
    """It is no fault of the solver's: the verdict says what to install."""
    report = static(subject(site, fields=", requires=('no-such-library>=2',)")).report()
    assert report.verdict == "unavailable"
    assert "pip install 'no-such-library>=2'" in report.message


def test_what_is_required_and_there_is_counted(site: Path) -> None:
    """A requirement that is met says nothing."""
    record = static(subject(site, fields=", requires=('numpy>=1.26',)")).record("requirements")
    assert record.status is Status.PASSED


@pytest.mark.parametrize(("low", "status"), [(None, "inconclusive"), (0.5, "passed")])
def test_a_solver_that_nobody_can_try(low: float | None, status: str) -> None:
    """Neither example nor bounds: what to declare is said; bounds alone are enough."""
    cube = SolverSpec(
        name="cube",
        mode="vjp",
        summary="x to the third",
        x=Array("x", (3,), low=low),
        y=Array("y", (3,)),
        forward=lambda x: x**3,
        vjp=lambda x, g: 3 * x**2 * g,
    )
    report = Run(Subject(cube)).report()
    assert report.verdict == status
    found = {r.id: r for r in report.records}["inputs-known"]
    assert found.status == status
    assert ("x has no bounds" in found.message) == (low is None)
