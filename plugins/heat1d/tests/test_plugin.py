"""The light module: what it declares, and what it does not import."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import adeptml_heat1d
from adeptml_core.plugin import SolverSpec
from adeptml_heat1d.plugin import adeptml_solvers
from adeptml_heat1d.poles import POLE_COUNTS
from adeptml_heat1d.rod import Options, Rod

SPECS = {spec.name: spec for spec in adeptml_solvers()}


@pytest.fixture(params=SPECS.values(), ids=SPECS)
def spec(request: pytest.FixtureRequest) -> SolverSpec:
    """Return each declared solver."""
    return request.param


def test_entry_points_name_the_solvers() -> None:
    """Each solver has its entry point, and each entry point leads to the light module."""
    found = {
        entry.name: entry.value
        for entry in entry_points(group="adeptml.solvers")
        if entry.value.startswith("adeptml_heat1d")
    }
    assert found == dict.fromkeys(SPECS, "adeptml_heat1d.plugin")


def test_listing_imports_nothing_heavy() -> None:
    """The light module and its specs cost neither numpy nor scipy, jax or torch."""
    code = (
        "import sys; from adeptml_heat1d.plugin import adeptml_solvers; adeptml_solvers(); "
        "print({'numpy', 'scipy', 'torch', 'jax'} & set(sys.modules) or 'light')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "light"


def test_functions_exist_and_take_what_is_declared(spec: SolverSpec) -> None:
    """The references resolve; parameters have the arrays' names, x being x."""
    args = [array.name for array in spec.args]
    expected = {
        "forward": ["x", *args],
        "vjp": ["x", "grad_output", *args],
        "jacobian": ["x", *args],
        "example": ["rng", "batch"],
    }
    for role, names in expected.items():
        reference = getattr(spec, role)
        if reference is None:
            continue
        module, _, attribute = reference.partition(":")
        function = getattr(importlib.import_module(module), attribute)
        assert list(inspect.signature(function).parameters) == [*names, "options"]


def test_options_are_those_of_the_rod(spec: SolverSpec) -> None:
    """The declaration, the dataclass and the typed keywords name the same options and defaults."""
    declared = {option.name: option.default for option in spec.options}
    assert declared == {name: getattr(Rod(), name) for name in declared}
    assert list(declared) == list(Options.__annotations__)
    assert list(declared) == list(inspect.signature(Rod).parameters)
    poles = next(option for option in spec.options if option.name == "poles")
    assert poles.choices == POLE_COUNTS


def test_default_options_are_accepted(spec: SolverSpec) -> None:
    """What core resolves, the rod takes."""
    assert Rod(**spec.resolve_options()) == Rod()


MODULES = [
    f"adeptml_heat1d.{found.name}" for found in pkgutil.iter_modules(adeptml_heat1d.__path__)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str) -> None:
    """What the docstrings show is what happens."""
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
