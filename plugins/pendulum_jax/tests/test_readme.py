"""What the documentation shows is run."""

import doctest
import re
from pathlib import Path

import pytest

from adeptml_pendulum_jax import solver
from adeptml_pendulum_jax.plugin import adeptml_solvers

README = Path(__file__).parents[1] / "README.md"


TEXT = README.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def run(program):
    """Run a program and return its variables."""
    variables = {}
    exec(compile(program, README.name, "exec"), variables)
    return variables


def test_the_readmes_first_example_runs():
    """The NumPy example works as printed, and its assertions hold."""
    assert run(EXAMPLES[0])["dparams"].shape == (4,)


@pytest.mark.slow
def test_the_readmes_example_in_pytorch_finds_the_pendulum(capsys):
    """L to 1 % and c to 5 %: 80 readings with noise of 0.01 determine them to 0.1 % and 2 %."""
    variables = run("".join(EXAMPLES[1:]))  # the hybrid model goes on from it
    assert variables["states"].shape == (1, 100, 2)
    learned = variables["log"].exp().tolist()
    assert learned == [pytest.approx(1.3, rel=0.01), pytest.approx(0.2, rel=0.05)]
    assert capsys.readouterr().out.startswith("tensor([1.29")


def test_the_docstrings_example_runs():
    """The example in `solver.forward` prints what it says."""
    assert doctest.testmod(solver) == doctest.TestResults(failed=0, attempted=5)


@pytest.mark.parametrize("option", adeptml_solvers()[0].options, ids=lambda option: option.name)
def test_the_readmes_table_has_the_options_and_their_defaults(option):
    """An option that changes its default changes the table as well."""
    assert f"| option `{option.name}` | {option.default} |" in TEXT
