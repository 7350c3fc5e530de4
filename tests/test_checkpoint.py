"""Files that are whole or not there, states that load without running code, models in one file."""

import collections
import errno
import math
import os
import random
import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_plugins import write_sound
from torch import nn

from adeptml_core import registry
from adeptml_core.checkpoint import (
    MODEL_FORMAT,
    UnstorableError,
    clear_strays,
    random_state,
    read,
    restore_random_state,
    save,
    save_model,
    solver_provenance,
    storable,
    unwrapped,
    write_atomically,
)
from adeptml_core.configs import HybridConfig, MLPConfig, PhysicsConfig
from adeptml_core.ensemble import HybridModel
from adeptml_core.errors import ConfigError, PluginError, ResumeError

# ---- whole files ---------------------------------------------------------------------------------


def test_write_replaces(tmp_path: Path) -> None:
    """The new bytes stand under the name, and nothing else is left in the directory."""
    path = tmp_path / "last.ckpt"
    for data in (b"old", b"new"):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_the_name_never_holds_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushed before it is renamed; until then the old bytes stand, whatever happens."""
    path = tmp_path / "last.ckpt"
    write_atomically(path, b"old")
    steps = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        steps.append(("fsync", path.read_bytes()))
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        steps.append(("replace", Path(source).read_bytes()))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomically(path, b"new")
    assert steps == [("fsync", b"old"), ("replace", b"new"), ("fsync", b"new")]


@pytest.fixture
def _full_disk() -> Iterator[None]:
    """Let no file grow beyond a few kilobytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("_full_disk")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """The error is the system's, with the path; the last good file is untouched."""
    path = tmp_path / "model.pt"
    save([1, 2], path)
    before = path.read_bytes()
    with pytest.raises(OSError, match="File too large") as caught:
        save(torch.zeros(10_000), path)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.__notes__ == [
        f"{path} could not be written; the one that was there is intact"
    ]
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.pt"]


def test_an_interruption_leaves_no_stray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of writing cleans up after itself."""

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "last.ckpt", b"new")
    assert os.listdir(tmp_path) == []


def test_strays_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    """Only our own temporaries: hidden, and named so."""
    names = [".last.ckpt.123.tmp", "notes.tmp", ".hidden", "last.ckpt"]
    for name in names:
        (tmp_path / name).touch()
    clear_strays(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(names[1:])


def test_a_missing_directory_says_so(tmp_path: Path) -> None:
    """The note names the file that could not be written."""
    path = tmp_path / "gone" / "model.pt"
    with pytest.raises(FileNotFoundError) as caught:
        save([], path)
    assert caught.value.__notes__ == [f"{path} could not be written"]


# ---- what may stand in a file --------------------------------------------------------------------


def test_storable_makes_plain(tmp_path: Path) -> None:
    """NumPy's numbers and arrays become Python's and torch's; Counters stay what they are."""
    state = {
        "rate": np.float64(0.1),
        "count": np.int64(3),
        "array": np.arange(3.0),
        "milestones": collections.Counter({3: 1}),
        "ordered": collections.OrderedDict(a=(1, [None, True, "x", 2j])),
        "default": collections.defaultdict(int, a=1),
        "dtype": torch.float64,
    }
    save({"format": "test", "version": 1, "state": storable(state, "state")}, tmp_path / "f")
    loaded = read(tmp_path / "f", "test", ResumeError)["state"]
    assert torch.equal(loaded.pop("array"), torch.arange(3.0, dtype=torch.float64))
    assert type(loaded["milestones"]) is collections.Counter
    assert type(loaded["rate"]) is float
    assert loaded == {k: v for k, v in state.items() if k != "array"}


@pytest.mark.parametrize("value", [print, {1, 2}, object(), b"bytes", nn.Linear(1, 1)])
def test_what_no_file_can_hold_is_named(value: object) -> None:
    """The message gives the place: state['a'][1]."""
    with pytest.raises(UnstorableError, match=r"^state\['a'\]\[1\] is .* of type "):
        storable({"a": [0, value]}, "state")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "cannot be read"),
        (b"PK\x03\x04 half a zip", "cannot be read"),
        ({"format": "other", "version": 1}, "is no test file; it is a other file"),
        ({"format": "test", "version": 9}, "has version 9 of test"),
        ({"weight": torch.zeros(1)}, "bare state_dict"),
        ([1, 2], "it holds a list"),
        ({}, "is no test file$"),
        (print, "cannot be read"),
    ],
    ids=["missing", "empty", "half", "other", "version", "weights", "list", "dict", "code"],
)
def test_read_refuses(tmp_path: Path, content: object, message: str) -> None:
    """Missing, damaged, foreign, newer, or with code in it: the caller's kind of error."""
    path = tmp_path / "file"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ResumeError, match=message) as caught:
        read(path, "test", ResumeError)
    assert str(path) in str(caught.value)


# ---- random states -------------------------------------------------------------------------------


def draws() -> tuple[float, float, float, float]:
    """Return a draw of each generator; NumPy's normal has a second value in store."""
    return torch.rand(()).item(), np.random.normal(), np.random.normal(), random.gauss(0, 1)


def test_random_states_come_back(tmp_path: Path) -> None:
    """Through a file: every global generator repeats itself, stored Gaussians included."""
    np.random.normal()
    random.gauss(0, 1)
    save({"format": "test", "version": 1, "random": random_state()}, tmp_path / "f")
    expected = draws()
    draws()
    restore_random_state(read(tmp_path / "f", "test", ResumeError)["random"])
    assert draws() == expected


def test_another_numpy_generator_comes_back() -> None:
    """NumPy's global state may be set to another bit generator, with numbers for a state."""
    previous = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(3))
        state = storable(random_state(), "random")
        expected = draws()
        restore_random_state(state)
        assert draws() == expected
    finally:
        np.random.set_bit_generator(previous)


# ---- models --------------------------------------------------------------------------------------


def hybrid(own: nn.Module | None = None) -> HybridModel:
    """Return a model with a network, a solver by name with options, and a module of its own."""
    torch.manual_seed(0)
    config = HybridConfig(
        models={
            "law": MLPConfig(4, 5, 4, 2, "swish", "softplus"),
            "cube": PhysicsConfig(solver="cube", options={"scale": math.inf}),
            "own": own or nn.Linear(4, 1),
        },
        model_inputs={"cube": {"law": [3, 2, 1, 0]}},
    )
    return HybridModel(config).double()


@pytest.fixture
def _cube(site: Path) -> None:
    """Install adeptml-cube 1.0 with the solver cube."""
    fields = 'options=(Option("scale", 1.0),)'
    write_sound(site, "adeptml-cube", "cube", fields=fields)


@pytest.mark.usefixtures("_cube")
def test_a_model_comes_back_from_one_file(tmp_path: Path) -> None:
    """Weights to the bit and in their dtype, config, frozen parameters."""
    model = hybrid()
    model.models_nn["law"].linear_in.weight.requires_grad_(False)
    save_model(model, tmp_path / "m.pt")
    own = nn.Linear(4, 1)
    loaded = HybridModel.load(tmp_path / "m.pt", modules={"own": own})
    assert isinstance(loaded, HybridModel)
    assert loaded.config.to_dict() == model.config.to_dict()
    assert loaded.models_nn["own"] is own
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float64
        assert torch.equal(value, expected[name]), name
    frozen = [name for name, p in loaded.named_parameters() if not p.requires_grad]
    assert frozen == ["models_nn.law.linear_in.weight"]


@pytest.mark.usefixtures("_cube")
def test_a_model_saves_and_loads_itself(tmp_path: Path) -> None:
    """The methods of the model are the two functions."""
    model = hybrid()
    model.save(tmp_path / "m.pt")
    loaded = HybridModel.load(tmp_path / "m.pt", modules={"own": nn.Linear(4, 1)})
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("is_a_repository", [True, False])
def test_the_commit_is_told_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_a_repository: bool
) -> None:
    """Of the working directory, with a mark after changes; None outside of a repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if is_a_repository:
        identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
        (tmp_path / "script.py").write_text("")
        for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "First"]):
            subprocess.run(["git", *command], check=True, env={**os.environ, "HOME": "/nowhere"})
        (tmp_path / "script.py").write_text("x = 1\n")
    HybridModel(HybridConfig({"net": MLPConfig(1, 1, 1, 1, "tanh", "identity")})).save("m.pt")
    commit = torch.load("m.pt", weights_only=True)["git"]
    assert re.fullmatch(r"[0-9a-f]{40}-dirty", commit) if is_a_repository else commit is None


@pytest.mark.usefixtures("_cube")
def test_the_file_is_data(tmp_path: Path) -> None:
    """It loads with weights_only, and says where its solvers come from."""
    save_model(hybrid(), tmp_path / "m.pt")
    state = torch.load(tmp_path / "m.pt", weights_only=True)
    assert state["format"] == MODEL_FORMAT
    assert state["solvers"] == {
        "cube": {"solver": "cube", "distribution": "adeptml-cube", "version": "1.0"}
    }


@pytest.mark.usefixtures("_cube")
def test_a_missing_module_is_asked_for(tmp_path: Path) -> None:
    """The message says how to give it back; a module too many is refused too."""
    save_model(hybrid(), tmp_path / "m.pt")
    with pytest.raises(ConfigError, match=r"modules={'own': "):
        HybridModel.load(tmp_path / "m.pt")
    with pytest.raises(ConfigError, match="'odd'"):
        HybridModel.load(
            tmp_path / "m.pt", modules={"own": nn.Linear(4, 1), "odd": nn.Linear(1, 1)}
        )


@pytest.mark.usefixtures("_cube")
def test_a_module_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """Other shapes are not this model's."""
    save_model(hybrid(), tmp_path / "m.pt")
    with pytest.raises(ConfigError, match=r"weights do not fit(.|\n)*models_nn.own.weight"):
        HybridModel.load(tmp_path / "m.pt", modules={"own": nn.Linear(3, 1)})


@pytest.mark.usefixtures("_cube")
def test_a_missing_plugin_is_an_error_with_the_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gets the file learns what to install."""
    save_model(hybrid(), tmp_path / "m.pt")
    monkeypatch.setenv(registry.ALLOW, "")
    with pytest.raises(PluginError, match="member 'cube' is the solver 'cube'") as caught:
        HybridModel.load(tmp_path / "m.pt", modules={"own": nn.Linear(4, 1)})
    assert caught.value.mend == "pip install adeptml-cube==1.0"


@pytest.mark.usefixtures("_cube")
def test_another_version_is_a_warning(tmp_path: Path) -> None:
    """The model loads, and the warning names both versions."""
    save_model(hybrid(), tmp_path / "m.pt")
    state = torch.load(tmp_path / "m.pt", weights_only=True)
    state["solvers"]["cube"]["version"] = "0.9"
    save(state, tmp_path / "m.pt")
    message = re.escape("was saved with 'cube' of adeptml-cube 0.9; installed is adeptml-cube 1.0")
    with pytest.warns(UserWarning, match=message):
        HybridModel.load(tmp_path / "m.pt", modules={"own": nn.Linear(4, 1)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(1, 1), "a Linear has no config to save"),
        (
            lambda: HybridModel(
                HybridConfig({"f": PhysicsConfig(abs, lambda x, g: g, use_vjp=True)})
            ),
            "member 'f': a bare forward_func has no name",
        ),
    ],
    ids=["no hybrid model", "bare functions"],
)
def test_what_cannot_be_one_file_is_refused(tmp_path: Path, make: Any, message: str) -> None:
    """Nothing is written where the file could not be loaded."""
    with pytest.raises(ConfigError, match=message):
        save_model(make(), tmp_path / "m.pt")
    assert not (tmp_path / "m.pt").exists()


def test_provenance_of_a_model_without_solvers_is_empty() -> None:
    """Any module will do."""
    assert solver_provenance(nn.Linear(1, 1)) == {}


def test_wrappers_are_looked_through() -> None:
    """torch.compile prefixes every name; files hold the names of the model itself."""
    model = nn.Linear(2, 1)
    compiled = torch.compile(model, backend="eager")
    assert unwrapped(compiled) is model
    assert unwrapped(model) is model
