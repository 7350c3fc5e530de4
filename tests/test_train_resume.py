"""A run that was killed and goes on ends with the bits of the run that was not."""

import copy
import datetime
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

import adeptml_core.training.batches
from adeptml_core.errors import ConfigError, ResumeError
from adeptml_core.train_utils import Callback, TrainingState, train

EPOCHS, BATCHES = 3, 4


class NoisyData(Dataset[tuple[Tensor, Tensor]]):
    """Every sample carries noise from NumPy's and Python's global generators."""

    def __len__(self) -> int:
        return 4 * BATCHES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = np.random.normal() + random.gauss(0, 1)
        x = torch.tensor([index / 16, math.sin(index), noise], dtype=torch.float64)
        return x, x[:1] ** 2


class Network(nn.Module):
    """Dropout and BatchNorm: both have to come back as they were."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(
            nn.Linear(3, width),
            nn.BatchNorm1d(width),
            nn.Tanh(),
            nn.Dropout(0.3),
            nn.Linear(width, 1),
        ).double()

    def forward(self, x: Tensor, phy_args: object = None) -> Tensor:
        return self.inner(x)


class Killed(Exception):  # noqa: N818 - a stand-in for SIGKILL
    """Comes out of nowhere; nothing is written on its way."""


class Kill(Callback):
    """Kills the run after a number of updates, or at the end of an epoch."""

    def __init__(self, *, step: int | None = None, epoch: int | None = None) -> None:
        self.step, self.epoch = step, epoch

    def on_step(self, state: TrainingState) -> None:
        if state.step == self.step:
            raise Killed

    def on_epoch(self, state: TrainingState) -> None:
        if state.epoch == self.epoch:
            raise Killed


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def lbfgs(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")


def cosine(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * BATCHES)


def milestones(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5, 7])


def one_cycle(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=EPOCHS * BATCHES)


def plateau(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)


def shuffled(workers: int = 0) -> DataLoader[Any]:
    return DataLoader(NoisyData(), batch_size=4, shuffle=True, num_workers=workers)


def of_its_own_generator() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(5)
    return DataLoader(NoisyData(), batch_size=4, shuffle=True, generator=generator)


def weighted() -> DataLoader[Any]:
    sampler = WeightedRandomSampler(torch.arange(1.0, 17.0), num_samples=16)
    return DataLoader(NoisyData(), batch_size=4, sampler=sampler)


def run(
    base: Path | str = "runs",
    *,
    optimizer: Callable[..., Any] = adam,
    scheduler: Callable[..., Any] = cosine,
    loader: Callable[[], Any] = shuffled,
    network: Callable[[], nn.Module] = Network,
    epochs: int = EPOCHS,
    **settings: Any,
) -> nn.Module:
    """Build everything anew, as a script that is started again does, and train."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(1)
    model = network()
    stepped = optimizer(model)
    test = DataLoader(NoisyData(), batch_size=8, shuffle=True)
    return train(
        model, loader(), test, stepped, nn.MSELoss(), scheduler(stepped), base, epochs,
        settings.pop("print_training_loss", False), settings.pop("save_frequency", 1), **settings
    )  # fmt: skip


def logged(base: Path | str, tag: str, number: int = 1) -> list[tuple[int, float]]:
    accumulator = EventAccumulator(str(Path(base) / f"run_{number}"))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def assert_equal_runs(base: Path | str, other: Path | str) -> None:
    """Every tensor of the last checkpoints, of model, optimizer and all, is equal to the bit."""
    states = [torch.load(Path(b) / "run_1/last.ckpt", weights_only=True) for b in (base, other)]
    assert_equal(*(state["parts"] for state in states))
    assert_equal(*(state["best"] for state in states))
    assert_equal(*(state["ranks"] for state in states))
    for tag in ("Loss/train", "Loss/test", "GradientNorm", "LearningRate"):
        assert logged(base, tag) == logged(other, tag)


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        keys = a.keys() - {"differentiable"}  # LBFGS has it after load_state_dict only
        assert keys == b.keys() - {"differentiable"}
        for key in keys:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    else:
        assert a == b


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ---- to the bit ----------------------------------------------------------------------------------

PLACES = {
    "first batch": Kill(step=2),
    "middle of an epoch": Kill(step=BATCHES + 2),
    "last batch of an epoch": Kill(step=2 * BATCHES),
    "end of an epoch": Kill(epoch=1),
}


@pytest.mark.parametrize("place", PLACES)
def test_killed_anywhere(place: str) -> None:
    """With a checkpoint after every update, and the run killed in the update after it."""
    run("whole", save_every=1)
    with pytest.raises(Killed):
        run("killed", save_every=1, callbacks=[PLACES[place]])
    run("killed", save_every=1, resume="auto")
    assert_equal_runs("whole", "killed")


def worst(y_pred: Tensor, y: Tensor) -> Tensor:
    return (y_pred - y).abs().max()


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": lbfgs},
        {"scheduler": milestones},
        {"scheduler": one_cycle},
        {"scheduler": plateau},
        {"scheduler": plateau, "keep_best": "Loss/train", "patience": 10},
        {"scheduler_per": "epoch", "grad_clip": 0.1},
        {"loader": of_its_own_generator},
        {"loader": weighted},
        {"metrics": {"worst": worst}},
        {"seed": 9},
    ],
    ids=lambda c: "+".join(f"{k}={getattr(v, '__name__', type(v).__name__)}" for k, v in c.items()),
)
def test_killed_with_other_parts(changes: dict[str, Any]) -> None:
    """A checkpoint every three updates, the run killed two updates after the second of them."""
    run("whole", **changes)
    with pytest.raises(Killed):
        run("killed", save_every=3, callbacks=[Kill(step=8)], **changes)
    saved = torch.load("killed/run_1/last.ckpt", weights_only=True)
    assert saved["ranks"][0]["position"]["batch"] > 0  # in the middle of an epoch
    run("killed", resume="killed/run_1", **changes)
    assert_equal_runs("whole", "killed")


@pytest.mark.slow
def test_killed_with_workers() -> None:
    """Two worker processes prefetch batches that nobody used; they are not counted."""
    loader = lambda: shuffled(workers=2)  # noqa: E731
    run("whole", loader=loader)
    with pytest.raises(Killed):
        run("killed", loader=loader, save_every=3, callbacks=[Kill(step=8)])
    run("killed", loader=loader, resume="auto")
    assert_equal_runs("whole", "killed")


def test_killed_in_the_test_pass() -> None:
    """The training part is not repeated, the test pass is."""

    class KillInTest(Network):
        def forward(self, x: Tensor, phy_args: object = None) -> Tensor:
            if not self.training:
                raise Killed
            return super().forward(x)

    run("whole")
    with pytest.raises(Killed):
        run("killed", save_every=1, network=KillInTest)
    run("killed", resume="auto")
    assert_equal_runs("whole", "killed")


def test_killed_again_and_again() -> None:
    """A run that dies at every second update comes to its end none the less."""
    run("whole", save_every=1)
    sessions = 0
    for step in range(2, EPOCHS * BATCHES, 2):
        with pytest.raises(Killed):
            run("killed", save_every=1, resume="auto", callbacks=[Kill(step=step)])
        sessions += 1
    run("killed", save_every=1, resume="auto")
    assert_equal_runs("whole", "killed")
    record = json.loads(Path("killed/run_1/run.json").read_text())
    assert len(record["sessions"]) == sessions + 1


def test_without_the_random_state_it_would_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: leave the random states alone, and other bits come out."""
    run("whole")
    with pytest.raises(Killed):
        run("killed", save_every=3, callbacks=[Kill(step=8)])
    monkeypatch.setattr(adeptml_core.training.batches, "restore_random_state", lambda state: None)
    run("killed", resume="auto")
    with pytest.raises(AssertionError):
        assert_equal_runs("whole", "killed")


def test_more_epochs_go_on_where_fewer_ended() -> None:
    """``epochs`` is the total: 2, then 3 of them, is 3."""
    run("whole", epochs=3)
    run("grown", epochs=2)
    run("grown", epochs=3, resume="auto")
    assert_equal_runs("whole", "grown")


def test_a_finished_run_has_nothing_left() -> None:
    """Its weights are loaded, nothing is trained, no new run is made."""
    done = run()
    again = run(resume="auto")
    assert_equal(dict(again.state_dict()), dict(done.state_dict()))
    assert [p.name for p in Path("runs").iterdir()] == ["run_1"]
    assert [step for step, _ in logged("runs", "Loss/train")] == [0, 1, 2]


def test_state_of_loss_function_and_callbacks_comes_back() -> None:
    """A loss with a parameter of its own, a callback that averages: both are parts of the run."""

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, y_pred: Tensor, y: Tensor) -> Tensor:
            return self.weight.exp() * F.mse_loss(y_pred, y) - self.weight

    class Count(Callback):
        steps = 0

        def on_step(self, state: TrainingState) -> None:
            self.steps += 1

        def state_dict(self) -> dict[str, int]:
            return {"steps": self.steps}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.steps = state["steps"]

    def session(epochs: int, **settings: Any) -> tuple[Weighted, Count]:
        model, loss_fn, count = Network(), Weighted(), Count()
        optimizer = torch.optim.SGD([*model.parameters(), *loss_fn.parameters()], lr=0.01)
        train(
            model,
            shuffled(),
            None,
            optimizer,
            loss_fn,
            None,
            "runs",
            epochs,
            False,
            callbacks=[count],
            **settings,
        )
        return loss_fn, count

    loss_fn, _ = session(1)
    weight = loss_fn.weight.item()
    assert weight != 1.0
    loss_fn, count = session(1, resume="auto")
    assert loss_fn.weight.item() == weight
    assert count.steps == BATCHES


# ---- where a run goes on -------------------------------------------------------------------------


def test_auto_starts_a_new_run_where_there_is_none() -> None:
    """Directories without a checkpoint cannot go on."""
    Path("runs/run_3").mkdir(parents=True)
    run(resume="auto")
    assert Path("runs/run_4/last.ckpt").exists()


def test_auto_takes_the_newest_run_that_can_go_on() -> None:
    """The largest number with a last.ckpt, as a number: run_10 is newer than run_9."""
    run(epochs=1)
    Path("runs/run_1").rename("runs/run_10")
    Path("runs/run_11").mkdir()
    Path("runs/run_9").mkdir()
    Path("runs/run_9/last.ckpt").write_bytes(b"older")
    run(epochs=2, resume="auto")
    assert [step for step, _ in logged("runs", "Loss/train", 10)] == [0, 1]


@pytest.mark.parametrize("resume", ["runs/run_1", Path("runs/run_1"), "runs/run_1/last.ckpt"])
def test_a_run_is_named_by_directory_or_file(resume: Any) -> None:
    """Either stands for the run, whose directory is used again."""
    run(epochs=1)
    run("other", epochs=2, resume=resume)
    assert not Path("other").exists()
    assert [step for step, _ in logged("runs", "Loss/train")] == [0, 1]


def test_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    """One line tells where it goes on."""
    run(epochs=1)
    run(epochs=2, resume="auto", print_training_loss=True)
    assert capsys.readouterr().out.splitlines()[0] == "Going on with run_1 at epoch 1, batch 0"


def test_save_every_takes_a_duration() -> None:
    """A duration that is always over: a checkpoint after each update."""
    with pytest.raises(Killed):
        run(save_every=datetime.timedelta(microseconds=1), callbacks=[Kill(step=3)])
    saved = torch.load("runs/run_1/last.ckpt", weights_only=True)
    assert saved["ranks"][0]["position"]["step"] == 2


def test_strays_are_cleared() -> None:
    """A temporary file that a killed process left is gone after the next start."""
    run(epochs=1)
    stray = Path("runs/run_1/.last.ckpt.123.tmp")
    stray.write_bytes(b"half")
    run(epochs=1, resume="auto")
    assert not stray.exists()


# ---- what cannot go on ---------------------------------------------------------------------------


def checkpoint(change: Callable[[dict[str, Any]], object]) -> None:
    """Train for an epoch and change the checkpoint."""
    run(epochs=1)
    state = torch.load("runs/run_1/last.ckpt", weights_only=True)
    change(state)
    torch.save(state, "runs/run_1/last.ckpt")


@pytest.mark.parametrize("size", [0, 10, 1000])
@pytest.mark.parametrize("resume", ["auto", "runs/run_1"])
def test_a_truncated_checkpoint_is_an_error(size: int, resume: str) -> None:
    """It is named and left as it is; "auto" does not pass over it in silence."""
    run(epochs=1)
    path = Path("runs/run_1/last.ckpt")
    data = path.read_bytes()[:size]
    path.write_bytes(data)
    with pytest.raises(ResumeError, match=r"run_1/last.ckpt cannot be read"):
        run(epochs=2, resume=resume)
    assert path.read_bytes() == data
    assert [p.name for p in Path("runs").iterdir()] == ["run_1"]


@pytest.mark.parametrize(
    ("resume", "message"),
    [
        ("runs/run_1/model_final.pt", "bare state_dict"),
        ("runs/run_1/run.json", "cannot be read"),
        ("runs/run_7", "does not exist"),
        ("runs", r"runs/last.ckpt does not exist"),
        ("tensor.pt", "it holds a Tensor"),
        ("model.pt", "it is a adeptml-model file"),
    ],
)
def test_a_foreign_file_is_an_error(resume: str, message: str) -> None:
    """Weights, text, another kind of file: each is told apart."""
    run(epochs=1)
    torch.save(torch.zeros(3), "tensor.pt")
    torch.save({"format": "adeptml-model"}, "model.pt")
    with pytest.raises(ResumeError, match=message):
        run(epochs=2, resume=resume)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(version=99), "version 99"),
        (lambda s: s.pop("parts"), "damaged: KeyError: 'parts'"),
        (lambda s: s["ranks"].append(s["ranks"][0]), r"had 2 rank\(s\), now there are 1"),
        (lambda s: s["solvers"].update(heat={"version": "1"}), r"solvers\['heat'\] was {'ver"),
        (lambda s: s.update(config={"models": {}}), r"config was {'models': {}} in the run, now"),
        (lambda s: s["ranks"][0]["position"].pop("step"), None),
    ],
    ids=["version", "parts", "ranks", "solvers", "config", "position"],
)
def test_a_checkpoint_of_another_training_is_an_error(
    change: Callable[..., Any], message: str | None
) -> None:
    """Another number of ranks, another solver, another config: it would not go on as it began."""
    checkpoint(change)
    if message is None:  # a field with a default
        run(epochs=2, resume="auto")
    else:
        with pytest.raises(ResumeError, match=message):
            run(epochs=2, resume="auto")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": lbfgs}, "the run's optimizer is Adam, this one is LBFGS"),
        ({"scheduler": one_cycle}, "the run's scheduler is CosineAnnealingLR, this one is OneC"),
        (
            {"scheduler": lambda optimizer: None},
            "the run's scheduler is Cosine.*, this one is none",
        ),
        (
            {"network": lambda: Network(width=9)},
            r"shape \(8, 3\) and torch.float64 for inner.0.weight",
        ),
        ({"network": lambda: Network().float()}, "this model shape .* and torch.float32"),
        ({"loader": of_its_own_generator}, "0 generators of their own, these have 1"),
    ],
    ids=["optimizer", "scheduler", "no scheduler", "width", "dtype", "generators"],
)
def test_other_parts_are_an_error(changes: dict[str, Any], message: str) -> None:
    """The objects must be of the kind that the run had; the model at hand stays untouched."""
    run(epochs=1)
    model = changes.pop("network", Network)()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ResumeError, match=message):
        run(epochs=2, resume="auto", network=lambda: model, **changes)
    if "generators" not in message:
        assert_equal(dict(model.state_dict()), dict(before))


def test_other_parameter_groups_are_an_error() -> None:
    """The state of one group does not fit two."""
    two = lambda model: torch.optim.Adam(  # noqa: E731
        [{"params": [p]} for p in model.parameters()], lr=0.01
    )
    run(epochs=1)
    with pytest.raises(ResumeError, match="state of optimizer does not fit"):
        run(epochs=2, resume="auto", optimizer=two)


def test_another_loader_is_an_error_in_the_middle_of_an_epoch() -> None:
    """After batch 2 of 4 there is no going on in a loader of 8; between epochs it is a warning."""
    with pytest.raises(Killed):
        run(save_every=2, callbacks=[Kill(step=3)])
    finer = lambda: DataLoader(NoisyData(), batch_size=2, shuffle=True)  # noqa: E731
    with pytest.raises(ResumeError, match="had 4 batches in the run, now it has 8"):
        run(resume="auto", loader=finer)
    run(resume="auto")
    with pytest.warns(UserWarning, match="goes on with other data"):
        run(epochs=4, resume="auto", loader=finer)


def test_another_learning_rate_is_told() -> None:
    """The run's own settings hold, and a warning says so."""
    run(epochs=1)
    slower = lambda model: torch.optim.Adam(model.parameters(), lr=0.001)  # noqa: E731
    with pytest.warns(UserWarning, match=r"lr is 0.001 in this script, 0.01 in the run"):
        run(epochs=2, resume="auto", optimizer=slower)


class Odd:
    """A scheduler with a state that no file can hold."""

    def __init__(self, optimizer: object) -> None:
        pass

    def step(self) -> None:
        pass

    def state_dict(self) -> dict[str, object]:
        return {"function": print}

    def load_state_dict(self, state: object) -> None:
        pass


def test_a_state_that_no_file_can_hold() -> None:
    """A run that never asked for resume is warned and trains; one that did is refused."""
    with pytest.warns(UserWarning, match=r"no last.ckpt will be written: scheduler\['function'\]"):
        run(epochs=1, scheduler=Odd)
    assert Path("runs/run_1/model_final.pt").exists()
    assert not Path("runs/run_1/last.ckpt").exists()
    for changes in ({"save_every": 1}, {"resume": "auto"}):
        with pytest.raises(ConfigError, match="scheduler"):
            run(epochs=1, scheduler=Odd, **changes)


def test_the_file_loads_without_running_code() -> None:
    """weights_only=True reads all of it: no class of ours, no NumPy object."""
    run(epochs=2, save_every=3)
    state = torch.load("runs/run_1/last.ckpt", weights_only=True)
    assert state["format"] == "adeptml-training"
