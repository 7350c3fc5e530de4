"""What is shipped, rather than what lies in the tree: wheels, in an environment of their own."""

import importlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from adeptml_core._version import __version__

ROOT = Path(__file__).parents[1]
PROJECTS = (ROOT, ROOT / "plugins" / "heat1d", ROOT / "plugins" / "pendulum_jax")

pytestmark = pytest.mark.slow

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build the wheels of core and both plugins, with the backend that is installed here."""
    folder = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*pip, *offline, *map(str, PROJECTS)], check=True, capture_output=True)
    return {file.name.split("-")[0]: file for file in folder.glob("*.whl")}


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Make an environment with click and pluggy, and neither torch nor numpy nor jax."""
    folder = tmp_path / "environment"
    venv.create(folder, symlinks=True)
    for name in ("click", "pluggy", "packaging"):
        package = Path(str(importlib.import_module(name).__file__)).parent
        (site_packages(folder) / name).symlink_to(package, target_is_directory=True)
    return folder


def site_packages(environment: Path) -> Path:
    """Return the folder that packages are installed to."""
    [folder] = environment.glob("lib/python*/site-packages")
    return folder


def install(environment: Path, *arguments: Path | str) -> None:
    """Install wheels as pip does, their dependencies left out."""
    python = str(environment / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    offline = ["install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, *offline, *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def command(environment: Path, tmp_path: Path) -> Command:
    """Give a function that runs the installed script from another directory."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [environment / "bin" / "adeptml", *arguments],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_new_users_first_steps(
    wheels: dict[str, Path], environment: Path, command: Command
) -> None:
    """Core alone says what to install; a plugin, once installed, is listed and shown."""
    install(environment, wheels["adeptml_core"])
    result = command("plugins", "list")
    assert (result.returncode, result.stderr) == (0, "")
    assert "pip install adeptml-heat1d" in result.stdout

    install(environment, wheels["adeptml_heat1d"], wheels["adeptml_pendulum_jax"])
    data = json.loads(command("plugins", "list", "--json").stdout)
    states = {row["name"]: row["state"] for row in data["solvers"]}
    assert {"heat1d", "pendulum-jax"} <= states.keys()
    assert states["pendulum-jax"] == "needs"
    assert data["problems"] == []
    shown = command("plugins", "show", "heat1d")
    assert shown.returncode == 0
    assert 'PhysicsConfig(solver="heat1d"' in shown.stdout
    versions = command("--version").stdout.splitlines()
    assert versions[0].split() == ["adeptml-core", __version__]
    assert ["torch", "not", "installed"] in [line.split() for line in versions]


def test_a_plugin_that_breaks_can_be_mended_from_what_is_said(
    wheels: dict[str, Path], environment: Path, command: Command
) -> None:
    """A damaged plugin is a row with its cause, and the mend mends it."""
    install(environment, *(wheels[name] for name in ("adeptml_core", "adeptml_heat1d")))
    shutil.rmtree(site_packages(environment) / "adeptml_heat1d")
    broken = command("plugins", "list", "--strict")
    assert broken.returncode == 1
    assert "P101" in broken.stdout
    assert "mend: pip install --force-reinstall adeptml-heat1d" in broken.stdout
    install(environment, wheels["adeptml_heat1d"], "--force-reinstall")
    assert command("plugins", "list", "--strict").returncode == 0


def test_wheels_hold_packages_and_nothing_else(wheels: dict[str, Path]) -> None:
    """No tests, no caches, and the types are marked."""
    for package, file in wheels.items():
        names = zipfile.ZipFile(file).namelist()
        tops = {name.split("/")[0] for name in names}
        assert all(top == package or top.endswith(".dist-info") for top in tops), tops
        assert f"{package}/py.typed" in names
        assert not [name for name in names if "__pycache__" in name or "/tests/" in name]
