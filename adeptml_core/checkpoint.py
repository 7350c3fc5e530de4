"""Files that are whole or not there: atomic writing, resume states, models in one file.

A checkpoint is only worth its name if the process may die at any moment while it is written. So
nothing here ever opens a file under its final name: the bytes go to a temporary file in the same
directory, are flushed to the disk, and take the name in one step::

    write .last.ckpt.<pid>.tmp  ->  fsync  ->  rename to last.ckpt  ->  fsync of the directory

A full disk, a kill or a power cut at any arrow leaves the previous `last.ckpt` as it was.

What is written holds tensors, numbers, text and containers of them, nothing else; so it loads with
``weights_only=True``, which runs no code from the file.
"""

import collections
import contextlib
import io
import os
import random
import subprocess
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from adeptml_core import registry
from adeptml_core._version import __version__
from adeptml_core.configs import HybridConfig
from adeptml_core.errors import AdeptmlError, ConfigError, PluginError, UnknownSolverError

__all__ = [
    "UnstorableError",
    "clear_strays",
    "git_commit",
    "load_model",
    "random_state",
    "read",
    "restore_random_state",
    "save",
    "save_model",
    "solver_provenance",
    "storable",
    "unwrapped",
    "write_atomically",
]

MODEL_FORMAT = "adeptml-model"
FORMAT_VERSION = 1
TEMPORARY = ".tmp"
GIT_PATIENCE = 5.0  # s

Model = TypeVar("Model", bound=nn.Module)
State = dict[str, Any]
"""What `torch.save` writes and `torch.load(..., weights_only=True)` reads back."""


# ---- whole files -------------------------------------------------------------------------------


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path` so that the file is the old one or the new one at every moment.

    Raises
    ------
    OSError
        The disk is full, the directory is read-only or gone. A file that was there is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # an interruption too leaves nothing behind
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        kept = "; the one that was there is intact" if path.exists() else ""
        error.add_note(f"{path} could not be written{kept}")
        raise
    _flush_directory(path.parent)


def _flush_directory(directory: Path) -> None:
    """Make a rename survive a power cut; Windows, where directories cannot be opened, does so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def clear_strays(directory: Path) -> None:
    """Remove temporary files that a killed process left in `directory`."""
    for stray in directory.glob(f".*{TEMPORARY}"):
        stray.unlink(missing_ok=True)


def save(state: object, path: Path) -> None:
    """Write `state` as `torch.save` does, atomically.

    It is serialised in memory first: `torch.save` reports a full disk as an internal error of its
    archive writer, the file system as the `OSError` that it is.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getbuffer())


def read(path: Path, kind: str, error: type[AdeptmlError]) -> State:
    """Return the state that `save` wrote to `path`.

    Parameters
    ----------
    path : Path
    kind : str
        The value that must stand under ``"format"``.
    error : type
        What to raise where the file is missing, damaged, foreign or of a newer version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise error(f"{path} does not exist") from None
    except Exception as cause:  # zipfile, pickle and torch each have their own for "damaged"
        raise error(
            f"{path} cannot be read ({type(cause).__name__}): it is damaged, cut short, or not a "
            f"file of this kind ({kind})"
        ) from cause
    if not isinstance(state, dict) or state.get("format") != kind:
        raise error(f"{path} is no {kind} file{_guess(state)}")
    if state.get("version") != FORMAT_VERSION:
        raise error(
            f"{path} has version {state.get('version')!r} of {kind}; adeptml-core {__version__} "
            f"reads version {FORMAT_VERSION}"
        )
    return state


def _guess(state: object) -> str:
    if not isinstance(state, dict):
        return f"; it holds a {type(state).__name__}"
    if isinstance(state.get("format"), str):
        return f"; it is a {state['format']} file"
    if state and all(isinstance(value, Tensor) for value in state.values()):
        return "; it is a bare state_dict, which model.load_state_dict takes"
    return ""


# ---- what may stand in a file ------------------------------------------------------------------


class UnstorableError(ConfigError):
    """A state holds an object that cannot be read back without running code from the file."""


PLAIN = (Tensor, int, float, complex, str, bool, type(None), torch.dtype, torch.device)


def storable(value: Any, where: str) -> Any:
    """Return `value` made of what ``weights_only=True`` reads back.

    NumPy scalars become Python numbers and arrays tensors; containers are rebuilt.

    Parameters
    ----------
    value : object
    where : str
        What `value` is, for the message.

    Raises
    ------
    UnstorableError
        For anything else (a function, an object), naming its place.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Mapping):
        items = {key: storable(item, f"{where}[{key!r}]") for key, item in value.items()}
        return KEPT_MAPPINGS.get(type(value), dict)(items)
    if isinstance(value, list | tuple):
        listed = [storable(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return listed if isinstance(value, list) else tuple(listed)
    raise UnstorableError(
        f"{where} is {value!r}, of type {type(value).__name__}; a checkpoint holds tensors, "
        "numbers, text, and lists and dicts of these"
    )


KEPT_MAPPINGS: dict[type, Callable[..., Any]] = {
    collections.OrderedDict: collections.OrderedDict,
    collections.Counter: collections.Counter,
}


# ---- random states -----------------------------------------------------------------------------


def random_state() -> State:
    """Return the state of every global random generator: torch, its devices, NumPy, Python."""
    state: State = {
        "torch": torch.get_rng_state(),
        "numpy": _numpy_state(),
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: State) -> None:
    """Put the global random generators where `random_state` found them."""
    torch.set_rng_state(state["torch"])
    _restore_numpy_state(state["numpy"])
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def _numpy_state() -> State:
    state: Any = np.random.get_state(legacy=False)
    inner = dict(state["state"])
    if "key" in inner:  # Mersenne Twister: 624 words; other generators hold plain numbers
        inner["key"] = torch.from_numpy(inner["key"].astype(np.int64))
    return {**state, "state": inner}


def _restore_numpy_state(state: State) -> None:
    inner = dict(state["state"])
    if "key" in inner:
        inner["key"] = inner["key"].numpy().astype(np.uint32)
    np.random.set_state({**state, "state": inner})


# ---- models ------------------------------------------------------------------------------------


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module that `DistributedDataParallel` or `torch.compile` wraps."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]  # what torch.compile keeps
        else:
            return model


def solver_provenance(model: nn.Module) -> dict[str, dict[str, str]]:
    """Return, for each member that is a solver by name, where the solver comes from.

    Returns
    -------
    dict
        ``{"heat": {"solver": "heat1d", "distribution": "adeptml-heat1d", "version": "0.1.0"}}``;
        empty for a model that is no `HybridModel`.
    """
    config = getattr(unwrapped(model), "config", None)
    found = {}
    for member, value in getattr(config, "models", {}).items():
        name = value if isinstance(value, str) else getattr(value, "solver", None)
        if isinstance(name, str):
            entry = registry.find(name)
            found[member] = {
                "solver": name,
                "distribution": entry.distribution,
                "version": entry.version,
            }
    return found


def git_commit() -> str | None:
    """Return the working directory's commit, with ``-dirty`` after changes; None without one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=GIT_PATIENCE, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def save_model(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a hybrid model as one file: config, weights, and where its solvers come from.

    Parameters
    ----------
    model : HybridModel
        Its solvers are given by name; its own modules go as weights, and are given back at load.
    path : path-like
        Written atomically.

    Raises
    ------
    ConfigError
        The model has no config, or a member of bare functions, which a file cannot hold.
    """
    model = unwrapped(model)
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        raise ConfigError(
            f"a {type(model).__name__} has no config to save; for a module of your own write "
            "torch.save(model.state_dict(), path)"
        )
    state = {
        "format": MODEL_FORMAT,
        "version": FORMAT_VERSION,
        "adeptml": __version__,
        "torch": str(torch.__version__),
        "git": git_commit(),
        "config": storable(config.to_dict(), "config"),
        "weights": storable(model.state_dict(), "state_dict"),
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
        "solvers": solver_provenance(model),
    }
    save(state, Path(path))


def load_model(
    kind: Callable[[HybridConfig], Model],
    path: str | os.PathLike[str],
    modules: Mapping[str, nn.Module] | None = None,
) -> Model:
    """Return the hybrid model that `save_model` wrote, on the CPU, in the dtypes it had.

    Parameters
    ----------
    kind : type
        `HybridModel`, whose `load` this is.
    path : path-like
    modules : mapping of str to torch.nn.Module, optional
        The model's own modules by member name; their weights are filled in.

    Returns
    -------
    HybridModel

    Raises
    ------
    ConfigError
        The file is missing, damaged or foreign; a module is missing or does not fit the weights.
    PluginError
        A solver is not installed; the mend is the pip line.

    Warns
    -----
    UserWarning
        A solver's version differs from the one that the model was saved with.
    """
    state = read(Path(path), MODEL_FORMAT, ConfigError)
    for member, origin in state["solvers"].items():
        _check_installed(path, member, origin)
    model = kind(HybridConfig.from_dict(state["config"], modules=modules))
    _fill(model, state["weights"], path)
    frozen = set(state["frozen"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return model


def _check_installed(path: str | os.PathLike[str], member: str, origin: Mapping[str, str]) -> None:
    name, distribution, version = origin["solver"], origin["distribution"], origin["version"]
    try:
        entry = registry.find(name)
    except UnknownSolverError as error:
        raise PluginError(
            f"{os.fspath(path)}: member {member!r} is the solver {name!r} of {distribution} "
            f"{version}, which is not installed",
            distribution=distribution,
            version=version,
            entry_point=name,
            mend=f"pip install {distribution}=={version}",
        ) from error
    if (entry.distribution, entry.version) != (distribution, version):
        warnings.warn(
            f"{os.fspath(path)}: member {member!r} was saved with {name!r} of {distribution} "
            f"{version}; installed is {entry.distribution} {entry.version}",
            UserWarning,
            stacklevel=4,
        )


def _fill(model: nn.Module, weights: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Load `weights` in their own dtypes: a float64 model must not come back rounded to float32."""
    for name, tensor in _named_tensors(model):
        saved = weights.get(name)
        if isinstance(saved, Tensor) and saved.dtype != tensor.dtype:
            tensor.data = tensor.data.to(saved.dtype)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"{os.fspath(path)}: the weights do not fit the model: {error}"
        ) from error


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
