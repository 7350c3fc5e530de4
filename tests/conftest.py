import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# --import-mode=importlib puts no folder of the tests on the path; helpers beside them need it.
sys.path.insert(0, str(Path(__file__).parent))

from fake_plugins import Run, write_distribution

from adeptml_core import registry


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a folder on ``sys.path`` to write distributions to; forget what it was imported from."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    for switch in (registry.ALLOW, registry.DENY):
        monkeypatch.delenv(switch, raising=False)
    yield folder
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(folder)):
            del sys.modules[name]
    registry._discover.cache_clear()
    registry._loaded.clear()


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder that holds core and what its command needs: no numpy, no torch, no plugin."""
    folder = tmp_path_factory.mktemp("bare")
    for name in ("adeptml_core", "click", "pluggy", "packaging"):
        package = Path(str(importlib.import_module(name).__file__)).parent
        (folder / name).symlink_to(package, target_is_directory=True)
    write_distribution(folder, "adeptml-core", version="0.1.0", points="", requires=())
    return folder


@pytest.fixture
def run(bare: Path, tmp_path: Path) -> Run:
    """Give a function that runs Python, or the command, in a process without site-packages."""

    def run_process(
        *arguments: str, path: tuple[Path, ...] = (), code: str = "", **env: str
    ) -> subprocess.CompletedProcess[str]:
        what = ["-c", code] if code else ["-m", "adeptml_core"]
        return subprocess.run(
            [sys.executable, "-S", *what, *arguments],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.pathsep.join(map(str, (*path, bare))),
                "PYTHONDONTWRITEBYTECODE": "1",
                **env,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run_process
