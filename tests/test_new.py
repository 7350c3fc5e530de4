"""``adeptml plugins new``: what it writes passes the proof, and a wrong gradient in it does not."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_plugins import write_distribution

from adeptml_core import registry
from adeptml_core.cli import adeptml

EVERY = [(m, b) for m in ("jacobian", "vjp", "split_vjp") for b in ("numpy", "jax")]

WRONG = {
    ("jacobian", "numpy"): ("(-t * x * decay)", "(t * x * decay)"),
    ("vjp", "numpy"): ("drate = -t *", "drate = t *"),
    ("split_vjp", "numpy"): ("return grad_output * decay,", "return grad_output * rate,"),
    ("split_vjp", "jax"): ("np.array(dx, dtype)", "np.array(1.01 * dx, dtype)"),
}
"""For each mode, a line of the generated solver and what an author might have written instead."""


def new(name: str, *arguments: str) -> Result:
    """Run ``adeptml plugins new``."""
    return CliRunner().invoke(adeptml, ["plugins", "new", name, *arguments])


def install(folder: Path, site: Path) -> None:
    """Make a generated package importable from `site`, as an editable installation does."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    points = project["entry-points"][registry.GROUP]
    write_distribution(site, project["name"], version=project["version"], points=points)
    for package in (folder / "src").iterdir():
        (site / package.name).symlink_to(package, target_is_directory=True)


def verdict(name: str, verb: str = "check") -> tuple[str, int, list[str]]:
    """Return the verdict on one solver, the exit code, and the checks that did not pass."""
    result = CliRunner().invoke(adeptml, ["plugins", verb, name, "--json"])
    [solver] = json.loads(result.stdout)["solvers"]
    checks = [c["id"] for c in solver["checks"] if c["status"] in ("failed", "inconclusive")]
    return solver["verdict"], result.exit_code, checks


@pytest.mark.parametrize(("mode", "backend"), EVERY)
def test_what_is_generated_passes(tmp_path: Path, site: Path, mode: str, backend: str) -> None:
    """In every mode and backend, without a warning, under a name with a dash."""
    if backend == "jax":
        pytest.importorskip("jax")
    result = new("new-one", "--mode", mode, "--backend", backend, "--directory", str(tmp_path))
    assert (result.exit_code, result.stderr) == (0, "")
    install(tmp_path / "adeptml-new-one", site)
    assert verdict("new-one") == ("passed", 0, [])


@pytest.mark.parametrize(("mode", "backend"), WRONG)
def test_a_wrong_gradient_in_it_fails(tmp_path: Path, site: Path, mode: str, backend: str) -> None:
    """One wrong line in the generated derivative turns the proof red."""
    if backend == "jax":
        pytest.importorskip("jax")
    new("new-one", "--mode", mode, "--backend", backend, "--directory", str(tmp_path))
    folder = tmp_path / "adeptml-new-one"
    solver = folder / "src" / "adeptml_new_one" / "solver.py"
    right, wrong = WRONG[mode, backend]
    assert right in solver.read_text()
    solver.write_text(solver.read_text().replace(right, wrong))
    install(folder, site)
    found, code, checks = verdict("new-one", "gradcheck")
    assert (found, code) == ("failed", 1)
    assert any(check.startswith("gradient") for check in checks), checks


@pytest.mark.slow
def test_its_own_tests_run_from_its_folder(tmp_path: Path) -> None:
    """Built as a wheel by its own backend, and proved by the tests that it brings."""
    assert new("new-two", "--mode", "vjp", "--directory", str(tmp_path)).exit_code == 0
    folder = tmp_path / "adeptml-new-two"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    target = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(tmp_path / "site")]
    subprocess.run([*pip, *target, str(folder)], check=True, capture_output=True)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert re.search(r"\d\d passed", result.stdout)


def test_it_is_clean_by_the_houses_own_rules(tmp_path: Path) -> None:
    """What is generated is formatted and linted as core is."""
    for mode, backend in EVERY:
        name = f"clean-{backend}-{mode.replace('_', '-')}"
        new(name, "--mode", mode, "--backend", backend, "--directory", str(tmp_path))
    config = Path(__file__).parents[1] / "pyproject.toml"
    for what in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *what, "--config", str(config), str(tmp_path)]
        result = subprocess.run(ruff, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout


def test_what_is_said(tmp_path: Path) -> None:
    """The files, and the two commands that come next; as JSON for programs."""
    result = new("new-one", "--mode", "vjp", "--directory", str(tmp_path))
    assert "  src/adeptml_new_one/solver.py\n" in result.stdout
    assert f"pip install -e {tmp_path / 'adeptml-new-one'}" in result.stdout
    assert "adeptml plugins check new-one" in result.stdout
    data = json.loads(new("b", "--mode", "vjp", "--directory", str(tmp_path), "--json").stdout)
    assert (data["schema"], data["name"]) == (1, "b")
    assert data["directory"] == str(tmp_path / "adeptml-b")
    assert all((tmp_path / "adeptml-b" / file).is_file() for file in data["files"])


def test_nothing_is_written_over(tmp_path: Path) -> None:
    """A folder that holds something is left as it is."""
    folder = tmp_path / "adeptml-new-one"
    folder.mkdir()
    (folder / "precious").write_text("data")
    result = new("new-one", "--mode", "vjp", "--directory", str(tmp_path))
    assert result.exit_code == 1
    assert "exists already; nothing was written" in result.stderr
    assert [file.name for file in folder.iterdir()] == ["precious"]


def test_a_name_that_is_taken_is_noted(tmp_path: Path) -> None:
    """Two distributions with one solver's name would be P109."""
    result = new("heat1d", "--mode", "vjp", "--directory", str(tmp_path))
    assert result.exit_code == 0
    assert "note: a solver called 'heat1d' is installed already" in result.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My_Flow", "Did you mean 'my-flow'"),
        ("my flow", "Did you mean 'my-flow'"),
        ("../flow", "cannot name a solver"),
        ("flöw", "cannot name a solver"),
        ("", "cannot name a solver"),
        ("adeptml-flow", "say 'flow'"),
        ("core", "which is adeptml itself"),
    ],
)
def test_names_that_no_plugin_can_have(tmp_path: Path, name: str, message: str) -> None:
    """The reason, and the name that was probably meant; nothing is written."""
    result = new(name, "--mode", "vjp", "--directory", str(tmp_path))
    assert result.exit_code == 1
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    """A usage error, not a traceback."""
    (tmp_path / "file").touch()
    assert new("a", "--mode", "vjp", "--directory", str(tmp_path / "file")).exit_code == 2


def test_a_mode_is_asked_for() -> None:
    """The usage error lists the three."""
    result = new("a")
    assert result.exit_code == 2
    assert "jacobian" in result.stderr
