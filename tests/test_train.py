"""`train`: the run directory, the log, the printed lines, and slips that must not cost a run."""

import copy
import inspect
import itertools
import json
import math
import os
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from torch.utils.data import DataLoader, TensorDataset

from adeptml_core.errors import ConfigError, NonFiniteError
from adeptml_core.train_utils import train


class Affine(nn.Module):
    """A stand-in for a hybrid model; keeps what it was called with."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(3, 1)
        self.norm = nn.BatchNorm1d(1)
        self.calls: list[tuple[object, bool, bool]] = []

    def forward(self, x: Tensor, phy_args: object = None) -> Tensor:
        self.calls.append((phy_args, self.training, torch.is_grad_enabled()))
        return self.norm(self.linear(x))


def samples(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=generator), torch.randn(count, 1, generator=generator)


TRAIN = TensorDataset(*samples(10, seed=1))
TEST = TensorDataset(*samples(6, seed=2))


def run(filename: Any = "runs", epochs: Any = 1, **changes: Any) -> nn.Module:
    """Train a fresh model with everything at hand, but for what the test changes."""
    model = changes.pop("model", None) or Affine()
    optimizer = changes.pop("optimizer", None) or torch.optim.Adam(model.parameters(), lr=0.01)
    parts = {
        "train_loader": DataLoader(TRAIN, batch_size=4),
        "test_loader": DataLoader(TEST, batch_size=4),
        "loss_fn": nn.MSELoss(),
        "scheduler": None,
        **changes,
    }
    return train(model=model, optimizer=optimizer, filename=filename, epochs=epochs, **parts)


def events(directory: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(directory))
    accumulator.Reload()
    return accumulator


def scalars(directory: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(directory).Scalars(tag)]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ---- what upstream does --------------------------------------------------------------------------


def test_signature_begins_as_upstreams() -> None:
    """Eleven parameters in upstream's order with its defaults; everything new is keyword-only."""
    parameters = inspect.signature(train).parameters
    positional = {n: p.default for n, p in parameters.items() if p.kind is not p.KEYWORD_ONLY}
    empty = inspect.Parameter.empty
    assert list(positional.items()) == [
        ("model", empty),
        ("train_loader", empty),
        ("test_loader", empty),
        ("optimizer", empty),
        ("loss_fn", empty),
        ("scheduler", empty),
        ("filename", empty),
        ("epochs", empty),
        ("print_training_loss", True),
        ("save_frequency", 50),
        ("grad_clip", None),
    ]


def test_returns_the_same_object() -> None:
    """The model is trained in place."""
    model = Affine()
    before = model.linear.weight.clone()
    assert run(model=model) is model
    assert not torch.equal(model.linear.weight, before)


def test_trains_as_a_hand_written_loop() -> None:
    """Same seed, same shuffles, same losses, same weights: to the bit."""

    def parts() -> tuple[Affine, torch.optim.Adam, Any, DataLoader[Any]]:
        model = Affine()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.9)
        torch.manual_seed(7)
        return model, optimizer, scheduler, DataLoader(TRAIN, batch_size=4, shuffle=True)

    plain, optimizer, scheduler, loader = parts()
    means = []
    for _ in range(3):
        losses = []
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.mse_loss(plain(x), y)
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
        means.append(sum(losses) / len(losses))
    ours, optimizer, scheduler, loader = parts()
    run(
        epochs=3,
        model=ours,
        optimizer=optimizer,
        scheduler=scheduler,
        train_loader=loader,
        test_loader=None,
    )
    for name, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    # TensorBoard keeps float32
    logged = [value for _, value in scalars(Path("runs/run_1"), "Loss/train")]
    assert logged == pytest.approx(means, rel=2**-23)


def test_files_and_their_names() -> None:
    """Weights at epochs 2 and 4, not at 0; the final ones; one event file."""
    model = run("runs/deep", epochs=5, save_frequency=2)
    names = sorted(p.name for p in Path("runs/deep/run_1").iterdir())
    assert [n for n in names if n.endswith(".pt")] == ["Model_2.pt", "Model_4.pt", "model_final.pt"]
    assert len([n for n in names if n.startswith("events.out.tfevents")]) == 1
    assert {"last.ckpt", "run.json"} < set(names)
    final = torch.load("runs/deep/run_1/model_final.pt", weights_only=True)
    assert final.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(final[name], value)


def test_no_epochs_still_leave_a_final_model() -> None:
    """epochs=0 writes model_final.pt and trains nothing."""
    model = Affine()
    before = copy.deepcopy(model.state_dict())
    run(epochs=0, model=model)
    final = torch.load("runs/run_1/model_final.pt", weights_only=True)
    assert torch.equal(final["linear.weight"], before["linear.weight"])
    assert model.calls == []


def test_printed_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """One line an epoch, in upstream's form, and nothing else."""
    run(epochs=2)
    lines = capsys.readouterr().out.splitlines()
    form = r"Epoch {} \| Time: \d+\.\d\ds \| Train Loss: \d\.\d{{6}} \| Test Loss: \d\.\d{{6}}"
    assert len(lines) == 2
    for epoch, line in enumerate(lines):
        assert re.fullmatch(form.format(epoch), line), line


def test_nothing_is_printed_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    """print_training_loss=False is silence on both streams."""
    run(print_training_loss=False)
    assert capsys.readouterr() == ("", "")


def test_scalars_stand_at_the_epoch() -> None:
    """Loss/train and Loss/test at steps 0 and 1: the means over the batches."""
    model = Affine().eval()  # BatchNorm with its fixed statistics: the loss can be recomputed
    still = torch.optim.SGD(model.parameters(), lr=1e-30)
    run(epochs=2, model=model, optimizer=still)
    with torch.no_grad():
        for tag, data in (("Loss/train", TRAIN), ("Loss/test", TEST)):
            batches = DataLoader(data, batch_size=4)
            losses = [F.mse_loss(model(x), y).item() for x, y in batches]
            mean = sum(losses) / len(losses)
            got = scalars(Path("runs/run_1"), tag)
            assert [step for step, _ in got] == [0, 1]
            assert [value for _, value in got] == pytest.approx([mean, mean], rel=2**-23)


def test_other_scalars() -> None:
    """Learning rate, gradient norm and times are there too."""
    optimizer_model = Affine()
    groups = [
        {"params": optimizer_model.linear.parameters(), "lr": 0.1},
        {"params": optimizer_model.norm.parameters(), "lr": 0.2},
    ]
    optimizer = torch.optim.SGD(groups)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    run(
        epochs=2,
        model=optimizer_model,
        optimizer=optimizer,
        scheduler=scheduler,
        scheduler_per="epoch",
    )
    directory = Path("runs/run_1")
    single = 2**-23
    assert scalars(directory, "LearningRate") == [
        (0, pytest.approx(0.1, rel=single)),
        (1, pytest.approx(0.05, rel=single)),
    ]
    assert scalars(directory, "LearningRate/1") == [
        (0, pytest.approx(0.2, rel=single)),
        (1, pytest.approx(0.1, rel=single)),
    ]
    for tag in ("GradientNorm", "Time/epoch", "Time/step", "Time/data"):
        assert all(value > 0 for _, value in scalars(directory, tag)), tag


@pytest.mark.parametrize("filename", ["runs", "a/b", Path("c"), "absolute"])
def test_where_the_run_lies(filename: Any, tmp_path: Path) -> None:
    """Under the working directory, or under an absolute path; a Path will do."""
    base = tmp_path / "elsewhere" if filename == "absolute" else tmp_path / filename
    run(str(base) if filename == "absolute" else filename)
    assert (base / "run_1" / "model_final.pt").exists()


def test_scheduler_steps_once_a_batch() -> None:
    """Three batches an epoch, two epochs: six steps."""
    model = Affine()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    run(epochs=2, model=model, optimizer=optimizer, scheduler=scheduler)
    assert optimizer.param_groups[0]["lr"] == 0.1 / 2**6


def test_grad_clip_bounds_the_update() -> None:
    """Plain SGD with rate 1 moves by the clipped norm at most; the log has the norm before."""
    model = Affine()
    before = torch.cat([p.detach().clone().ravel() for p in model.parameters()])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    one = [next(iter(DataLoader(TRAIN, batch_size=4)))]
    run(model=model, optimizer=optimizer, train_loader=one, grad_clip=1e-3)
    after = torch.cat([p.detach().ravel() for p in model.parameters()])
    # rounding: values of order 1 in float32, four ulps on a distance of 1e-3
    assert (after - before).norm().item() == pytest.approx(1e-3, abs=4 * 2**-23)
    assert scalars(Path("runs/run_1"), "GradientNorm")[0][1] > 1e-2


@pytest.mark.parametrize(
    ("rest", "expected"),
    [((), None), ((torch.ones(4, 2), torch.ones(3)), [(4, 2), (3,)])],
    ids=["(x, y)", "(x, y, *args)"],
)
def test_loaders_give_args(rest: tuple[Tensor, ...], expected: object) -> None:
    """What follows y is phy_args, a list; None where nothing follows."""
    model = Affine()
    batch = (*samples(4, seed=1), *rest)
    run(model=model, train_loader=[batch], test_loader=[list(batch)])
    for given, _, _ in model.calls:
        assert (given and [tuple(a.shape) for a in given]) == expected


def test_a_dict_after_y_is_phy_args() -> None:
    """(x, y, {model: args}) goes to the model as it is."""
    model = Affine()
    args = {"heat": [torch.ones(4)]}
    run(model=model, train_loader=[(*samples(4, seed=1), args)], test_loader=None)
    assert model.calls[0][0] is args


# ---- what upstream gets wrong --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], 1),
        (["figures", "__pycache__", "run_1"], 2),
        (["backup_2024", "run_2"], 3),
        (["run_9", "run_10"], 11),
        (["run_x", "run_-3", "run_3.5", "xrun_8", "run_5_old", "run_"], 1),
        (["run_007"], 8),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else str(value),
)
def test_only_exact_names_count(entries: list[str], expected: int) -> None:
    """Other directories neither reset nor advance the number, and no run is overwritten."""
    for entry in entries:
        Path("runs", entry).mkdir(parents=True)
        Path("runs", entry, "precious").write_text("data")
    run()
    assert Path("runs", f"run_{expected}", "model_final.pt").exists()
    for entry in entries:
        assert os.listdir(Path("runs", entry)) == ["precious"]


def test_a_file_takes_a_number_too() -> None:
    """A file called run_1 is not written over."""
    Path("runs").mkdir()
    Path("runs/run_1").write_text("data")
    run()
    assert Path("runs/run_1").read_text() == "data"
    assert Path("runs/run_2/model_final.pt").exists()


def test_the_number_is_taken_by_making_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another process was faster with the number, the next one is taken."""
    real = Path.mkdir

    def overtaken(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.name == "run_1":
            real(self, exist_ok=True)
            raise FileExistsError(self)
        real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", overtaken)
    run()
    assert os.listdir("runs/run_1") == []
    assert Path("runs/run_2/model_final.pt").exists()


def test_the_test_pass_is_made_in_evaluation_mode() -> None:
    """BatchNorm does not absorb test data; every submodule gets its own mode back."""
    with_test, without = Affine(), Affine()
    with_test.linear.eval()
    run(model=with_test, epochs=2)
    run(model=without, epochs=2, test_loader=None)
    for name, value in without.state_dict().items():
        assert torch.equal(with_test.state_dict()[name], value), name
    assert [call[1:] for call in with_test.calls[:5]] == [(True, True)] * 3 + [(False, False)] * 2
    assert [m.training for m in (with_test, with_test.linear, with_test.norm)] == [
        True,
        False,
        True,
    ]


def test_modes_come_back_after_an_error() -> None:
    """A test batch that fails leaves the model in training mode."""
    model = Affine()
    with pytest.raises(RuntimeError):
        run(model=model, test_loader=[(torch.zeros(4, 99), torch.zeros(4, 1))])
    assert model.training


def test_plateau_is_given_the_test_loss() -> None:
    """ReduceLROnPlateau with patience 0 halves the rate each time the test loss gets no better."""
    model = Affine()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-30)
    seen = []

    class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics: Any, epoch: Any = None) -> None:
            seen.append(metrics)
            super().step(metrics)

    run(
        epochs=3,
        model=model,
        optimizer=optimizer,
        scheduler=Plateau(optimizer, factor=0.5, patience=0, eps=0.0),
    )
    assert seen == pytest.approx(
        [v for _, v in scalars(Path("runs/run_1"), "Loss/test")], rel=2**-23
    )
    falls = sum(later >= earlier * (1 - 1e-4) for earlier, later in itertools.pairwise(seen))
    assert falls > 0
    assert optimizer.param_groups[0]["lr"] == 1e-30 / 2**falls


def test_lbfgs_trains() -> None:
    """A linear target is found to rounding within one epoch."""
    model = nn.Module()
    model.linear = nn.Linear(3, 1).double()
    model.forward = lambda x, phy_args=None: model.linear(x)  # type: ignore[method-assign]
    x = samples(10, seed=1)[0].double()
    data = [(x, x.sum(1, keepdim=True))]
    run(
        model=model,
        train_loader=data,
        test_loader=data,
        loss_fn=nn.MSELoss(),
        optimizer=torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe"),
    )
    assert scalars(Path("runs/run_1"), "Loss/test")[0][1] < 1e-10


class Restarting:
    """An iterable without a length."""

    def __init__(self, *epochs: list[Any]) -> None:
        self._epochs = iter(epochs)

    def __iter__(self) -> Iterator[Any]:
        return iter(next(self._epochs))


BATCH = samples(4, seed=1)


@pytest.mark.parametrize("name", ["train_loader", "test_loader"])
@pytest.mark.parametrize(
    "make_loader",
    [
        lambda: [],
        lambda: DataLoader(TensorDataset(*samples(3, seed=1)), batch_size=4, drop_last=True),
        lambda: Restarting([]),
    ],
    ids=["list", "dropped", "no length"],
)
def test_an_empty_loader_is_refused(name: str, make_loader: Any) -> None:
    """Before anything is made, where that can be known; a mean of nothing is never logged."""
    with pytest.raises(ConfigError, match=name):
        run(**{name: make_loader()})
    if name == "train_loader" or not isinstance(make_loader(), Restarting):
        assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["train_loader", "test_loader"])
def test_a_generator_is_refused_at_once(name: str) -> None:
    """It would be used up after one epoch; for one epoch it will do."""
    with pytest.raises(ConfigError, match=f"{name} is a generator, which can be read once"):
        run(epochs=2, **{name: (batch for batch in [BATCH])})
    assert not Path("runs").exists()
    run(epochs=1, **{name: (batch for batch in [BATCH])})


def test_an_exhausted_loader_loses_nothing() -> None:
    """What was learnt before lies in last.ckpt."""
    model = Affine()
    with pytest.raises(ConfigError, match=r"no batch in epoch 1.*read once"):
        run(epochs=2, model=model, train_loader=Restarting([BATCH], []))
    saved = torch.load("runs/run_1/last.ckpt", weights_only=True)
    assert torch.equal(saved["parts"]["model"]["state"]["linear.weight"], model.linear.weight)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(4, 3), r"a bare tensor of shape \(4, 3\).*TensorDataset"),
        ((torch.zeros(4, 3),), r"yielded 1 item\(s\)"),
        ({"x": 1, "y": 2}, "yielded a dict"),
        ("ab", "yielded a str"),
        (None, "yielded a NoneType"),
        (([[0.0]], torch.zeros(1)), "yielded a list for x"),
        ((torch.zeros(4, 3), None), "yielded a NoneType for y"),
        ((*BATCH, 1, {"heat": []}), "a dict stands alone"),
    ],
    ids=["tensor", "single", "dict", "str", "None", "list", "no y", "dict among args"],
)
def test_odd_batches_are_refused(batch: Any, message: str) -> None:
    """Rows 0 and 1 of a bare tensor are not x and y; no directory is made."""
    with pytest.raises(ConfigError, match=message):
        run(train_loader=[batch])
    assert not Path("runs").exists()
    with pytest.raises(ConfigError, match=r"test_loader yielded|test_loader: "):
        run(test_loader=[batch])


def test_a_loader_that_is_a_tensor_is_refused() -> None:
    """A tensor can be iterated over, but its rows are no batches."""
    for loader in (torch.zeros(4, 3), {"x": 1}, None, 3):
        with pytest.raises(ConfigError, match="train_loader is a"):
            run(train_loader=loader)


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("save_frequency", [0, -1, 2.0, "5", None, True]),
        ("epochs", [-1, 2.5, "3", None, True]),
        ("grad_clip", [0, -1.0, math.nan, "1"]),
        ("save_every", [0, 1.5, "1h"]),
        ("patience", [0, 1.5]),
        ("keep_best", ["loss", ("Loss/test", "least"), 3]),
        ("metrics", [["accuracy"], {"accuracy": 1}, {"Loss/test": F.mse_loss}]),
        ("on_nonfinite", ["ignore", None]),
        ("scheduler_per", ["batch", None]),
        ("progress", ["bar"]),
        ("callbacks", [[3], 3, [dict]]),
        ("seed", [-1, 1.5, "x"]),
        ("resume", [3, True]),
        ("optimizer", [F.relu]),
        ("loss_fn", ["mse"]),
        ("scheduler", [F.relu]),
    ],
)
def test_a_wrong_setting_is_refused_at_the_start(setting: str, values: list[Any]) -> None:
    """Each names itself and its value, and nothing is made."""
    for value in values:
        with pytest.raises(ConfigError, match=setting):
            run(**{setting: value})
    assert not Path("runs").exists()


def test_a_model_that_is_no_module_is_refused() -> None:
    """A function has no parameters that could be trained."""
    optimizer = torch.optim.SGD(Affine().parameters())
    with pytest.raises(ConfigError, match="model is a function"):
        train(lambda x, args: x, [BATCH], None, optimizer, F.mse_loss, None, "runs", 1)


def test_numpy_integers_are_integers() -> None:
    """Settings often come from arrays."""
    import numpy as np

    run(epochs=np.int64(2), save_frequency=np.int32(1))
    assert Path("runs/run_1/Model_1.pt").exists()


def test_nan_does_not_train_on() -> None:
    """The loss of the bad batch ends the training; the parameters are finite, no final model."""
    model = Affine()
    x, y = samples(4, seed=3)
    bad = x.clone()
    bad[3, 1] = math.nan
    with pytest.raises(NonFiniteError, match=r"batch 1 of epoch 0.* row 3") as caught:
        run(model=model, train_loader=[(x, y), (bad, y)])
    assert "on_nonfinite" in caught.value.__notes__[0]
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert not Path("runs/run_1/model_final.pt").exists()


def test_broadcasting_is_refused() -> None:
    """A (B,) target against a (B, 1) output would train on B times B pairs."""
    x, y = BATCH
    with pytest.raises(ConfigError, match="broadcasts"):
        run(train_loader=[(x, y.squeeze(1))])


def test_forward_hooks_fire() -> None:
    """The model is called, not its forward method."""
    model = Affine()
    seen = []
    model.register_forward_hook(lambda *_: seen.append(True))
    run(model=model)
    assert len(seen) == 3 + 2


def test_training_in_a_thread_installs_no_handlers() -> None:
    """Python has signal handlers in the main thread only; elsewhere train works without."""
    import signal

    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert Path("runs/run_1/model_final.pt").exists()
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_base_that_is_a_file_is_an_error_that_says_so() -> None:
    """The message carries the path."""
    Path("runs").write_text("data")
    with pytest.raises(OSError, match="runs") as caught:
        run()
    assert "no run directory" in caught.value.__notes__[0]


# ---- the record ----------------------------------------------------------------------------------


def test_record_explains_the_run() -> None:
    """Settings, parts, versions, and how it ended."""
    run(epochs=1, seed=3)
    record = json.loads(Path("runs/run_1/run.json").read_text())
    assert record["settings"]["seed"] == 3
    assert record["optimizer"]["class"] == "Adam"
    assert record["optimizer"]["groups"][0]["lr"] == 0.01
    assert record["train_loader"] == {
        "class": "DataLoader",
        "batch_size": 4,
        "samples": 10,
        "batches": 3,
    }
    (session,) = record["sessions"]
    assert session["status"] == "finished"
    assert session["torch"] == torch.__version__
    assert session["results"]["Loss/train"] > 0


def test_record_tells_of_a_failure() -> None:
    """A run that died says of what."""
    with pytest.raises(NonFiniteError):
        run(loss_fn=lambda y_pred, y: y_pred.mean() * math.nan)
    (session,) = json.loads(Path("runs/run_1/run.json").read_text())["sessions"]
    assert session["status"].startswith("NonFiniteError: the loss of batch 0 of epoch 0 is nan")


def test_hyperparameters_go_to_the_same_event_file() -> None:
    """TensorBoard's HParams page has the settings, and the run still has one event file."""
    run()
    tags = events(Path("runs/run_1")).summary_metadata
    assert any(tag.startswith("_hparams_/") for tag in tags)
    assert len(list(Path("runs").rglob("events.out.*"))) == 1


def test_no_warnings() -> None:
    """An ordinary run warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run()
