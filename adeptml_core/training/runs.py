"""One run, one directory: claimed by nobody else, and telling later what was run.

A run lives in ``<base>/run_<n>``. The number is one more than the largest there is, and the
directory is claimed by creating it: `mkdir` succeeds for one of two runs that start together, and
the other takes the next number. Other names in the base (``figures``, ``backup_2024``) mean
nothing.

=====================  ===================================================================
``Model_<epoch>.pt``   weights, every `save_frequency` epochs: a bare state_dict
``model_final.pt``     weights at the end
``model_best.pt``      weights at the best epoch, where `keep_best` asks for it
``last.ckpt``          all that it takes to go on; see `adeptml_core.training.resume`
``run.json``           what was run: settings, versions, solvers, git commit, sessions
``events.out.*``       TensorBoard
=====================  ===================================================================
"""

import datetime
import json
import math
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adeptml_core._version import __version__
from adeptml_core.checkpoint import (
    clear_strays,
    git_commit,
    save,
    solver_provenance,
    unwrapped,
    write_atomically,
)
from adeptml_core.errors import ConfigError, ResumeError

__all__ = ["LAST", "Record", "checkpoint_to_resume", "claim", "config_of", "described", "weights"]

LAST = "last.ckpt"
RECORD = "run.json"
AUTO = "auto"
RUN = re.compile(r"run_([0-9]+)")


# ---- directories -------------------------------------------------------------------------------


def numbered(base: Path) -> dict[int, Path]:
    """Return the entries of `base` that are called exactly ``run_<n>``, by number."""
    names = (
        [(RUN.fullmatch(entry.name), entry) for entry in base.iterdir()] if base.is_dir() else []
    )
    return {int(match[1]): entry for match, entry in names if match}


def claim(base: Path) -> Path:
    """Create and return a run directory that nobody else has.

    Raises
    ------
    OSError
        `base` is a file, or cannot be written to.
    """
    try:
        base.mkdir(parents=True, exist_ok=True)
        number = max(numbered(base), default=0) + 1
        while True:
            directory = base / f"run_{number}"
            try:
                directory.mkdir()
                return directory
            except FileExistsError:  # another run, started at the same time
                number += 1
    except OSError as error:
        error.add_note(f"no run directory could be made in {base}")
        raise


def checkpoint_to_resume(resume: Any, base: Path) -> Path | None:
    """Return the checkpoint that ``resume=`` means, None for a new run.

    Parameters
    ----------
    resume : None, "auto" or path-like
        As `train` takes it: a run directory, or a checkpoint in it.
    base : Path
        Where ``"auto"`` looks.

    Raises
    ------
    ResumeError
        There is no checkpoint at the path.
    ConfigError
        `resume` is something else.
    """
    if resume is None:
        return None
    if not isinstance(resume, str | os.PathLike):
        raise ConfigError(f'resume={resume!r} must be None, "auto", a run directory or its {LAST}')
    if resume == AUTO:
        runs = sorted(numbered(base).items(), reverse=True)
        return next((run / LAST for _, run in runs if (run / LAST).exists()), None)
    path = Path(os.fspath(resume))
    path = path / LAST if path.is_dir() else path
    if not path.exists():
        raise ResumeError(f"resume={os.fspath(resume)!r}: {path} does not exist")
    return path


def weights(model: nn.Module, path: Path) -> None:
    """Write the bare state_dict of `model`, under the names of the unwrapped model."""
    save(unwrapped(model).state_dict(), path)


# ---- the record --------------------------------------------------------------------------------


class Record:
    """``run.json``: what was run, by what, and how it ended; for whoever asks a year later.

    Parameters
    ----------
    directory : Path
        Of the run.
    settings : mapping
        What `train` was given.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any], *, epoch: int) -> None:
        clear_strays(directory)
        self._path = directory / RECORD
        sessions = _earlier_sessions(self._path)
        self._session: dict[str, Any] = {
            "started": _now(),
            "ended": None,
            "status": "running",
            "from_epoch": epoch,
            "command": sys.argv,
            "process": os.getpid(),
            **_surroundings(),
        }
        self._content = {
            "schema": 1,
            **{name: jsonable(value) for name, value in settings.items()},
            "sessions": [*sessions, self._session],
        }
        self._write()

    def end(self, status: str, epoch: int, results: Mapping[str, float]) -> None:
        """Note how the session ended."""
        self._session |= {"ended": _now(), "status": status, "to_epoch": epoch}
        self._session["results"] = jsonable(results)
        self._write()

    def _write(self) -> None:
        text = json.dumps(self._content, indent=2, ensure_ascii=False)
        write_atomically(self._path, (text + "\n").encode())


def _earlier_sessions(path: Path) -> list[Any]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["sessions"])
    except (OSError, ValueError, KeyError):
        return []


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _surroundings() -> dict[str, Any]:
    return {
        "adeptml_core": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": git_commit(),
    }


def described(
    model: nn.Module, train_loader: object, optimizer: Any, loss_fn: object, scheduler: object
) -> dict[str, Any]:
    """Return what can be told of the parts of a training, for the record."""
    inner = unwrapped(model)
    return {
        "model": {
            "class": type(inner).__name__,
            "parameters": sum(p.numel() for p in inner.parameters()),
            "config": config_of(model) or repr(inner),
        },
        "solvers": solver_provenance(model),
        "optimizer": {
            "class": type(optimizer).__name__,
            "groups": [
                {key: value for key, value in group.items() if key != "params"}
                for group in optimizer.param_groups
            ],
        },
        "scheduler": type(scheduler).__name__ if scheduler is not None else None,
        "loss_fn": getattr(loss_fn, "__qualname__", None) or repr(loss_fn),
        "train_loader": {
            "class": type(train_loader).__name__,
            "batch_size": getattr(train_loader, "batch_size", None),
            "samples": _length(getattr(train_loader, "dataset", None)),
            "batches": _length(train_loader),
        },
    }


def config_of(model: nn.Module) -> dict[str, Any] | None:
    """Return the model's config as data, None where it has none or holds bare functions."""
    to_dict = getattr(getattr(unwrapped(model), "config", None), "to_dict", None)
    if not callable(to_dict):
        return None
    try:
        config: dict[str, Any] = to_dict()
    except ConfigError:
        return None
    return config


def _length(value: Any) -> int | None:
    try:
        return len(value)
    except TypeError:
        return None


def jsonable(value: Any) -> Any:
    """Return `value` as JSON has it; what it has not, as text."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str | int | float | None):
        return value
    return getattr(value, "__qualname__", None) or str(value)
