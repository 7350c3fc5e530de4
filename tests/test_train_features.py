"""What `train` can do beyond upstream: best, patience, metrics, policies, callbacks, progress."""

import copy
import io
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import TensorDataset

from adeptml_core.configs import HybridConfig, PhysicsConfig
from adeptml_core.ensemble import HybridModel
from adeptml_core.errors import ConfigError, NonFiniteError, SampleError
from adeptml_core.train_utils import Callback, TrainingState, train
from adeptml_core.training.progress import Progress
from adeptml_core.training.timing import Watched


class Slope(nn.Module):
    """y = a x: one parameter whose course can be followed by hand."""

    def __init__(self, a: float = 0.0) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, x: Tensor, phy_args: object = None) -> Tensor:
        return self.a * x


X = torch.ones(2, 1, dtype=torch.float64)
BATCH = (X, X)


class Script:
    """A test loader whose targets make the test loss take given values, epoch by epoch."""

    def __init__(self, *losses: float) -> None:
        self.losses = iter(losses)

    def __iter__(self) -> Any:
        return iter([(0 * X, X * math.sqrt(next(self.losses)))])


def run(epochs: int = 1, model: nn.Module | None = None, **settings: Any) -> Any:
    model = model or Slope()
    optimizer = settings.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = settings.pop("scheduler", None)
    return train(
        model,
        settings.pop("train_loader", [BATCH]),
        settings.pop("test_loader", [BATCH]),
        optimizer,
        settings.pop("loss_fn", F.mse_loss),
        scheduler and scheduler(optimizer),
        "runs",
        epochs,
        settings.pop("print_training_loss", False),
        **settings,
    )


def scalars(tag: str) -> list[tuple[int, float]]:
    accumulator = EventAccumulator("runs/run_1")
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def slope(name: str) -> float:
    return torch.load(f"runs/run_1/{name}", weights_only=True)["a"].item()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Course(Callback):
    """Notes the parameter after every epoch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_epoch(self, state: TrainingState) -> None:
        self.values.append(state.model.a.item())


# ---- best and patience ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep_best", "best"),
    [("Loss/test", 1), ("Loss/train", 3), (("Loss/test", "max"), 2), (["Loss/test", "min"], 1)],
)
def test_keep_best_writes_the_best_weights(keep_best: Any, best: int) -> None:
    """The weights of the epoch with the best value, the first of equals."""
    course = Course()
    run(4, test_loader=Script(2.0, 1.0, 3.0, 1.0), keep_best=keep_best, callbacks=[course])
    assert slope("model_best.pt") == course.values[best]
    assert len(set(course.values)) == 4


def test_nothing_is_kept_unasked() -> None:
    """Without keep_best there is no such file."""
    run(2)
    assert not Path("runs/run_1/model_best.pt").exists()


def test_nan_is_never_the_best() -> None:
    """A test loss that is NaN neither becomes the best nor blocks a later one."""
    course = Course()
    run(3, test_loader=Script(math.nan, 2.0, math.nan), keep_best="Loss/test", callbacks=[course])
    assert slope("model_best.pt") == course.values[1]


def test_patience_ends_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    """Two epochs without a better test loss, and the third is not begun; a line says why."""
    losses = Script(3.0, 2.0, 2.5, 2.0, 1.0)
    run(5, test_loader=losses, patience=2, print_training_loss=True)
    lines = capsys.readouterr().out.splitlines()
    assert [step for step, _ in scalars("Loss/test")] == [0, 1, 2, 3]
    assert lines[-1].startswith("No better Loss/test for 2 epochs (best: 2")
    assert Path("runs/run_1/model_final.pt").exists()


def test_patience_is_resumed() -> None:
    """A run that lost patience stays ended; with more patience it goes on."""
    run(5, test_loader=Script(3.0, 4.0), patience=1)
    run(5, test_loader=Script(), patience=1, resume="auto")
    assert len(scalars("Loss/test")) == 2
    run(5, test_loader=Script(5.0, 6.0), patience=3, resume="auto")
    assert len(scalars("Loss/test")) == 4


def test_without_a_test_pass_the_train_loss_is_judged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Plateau schedulers and patience fall back to it; the printed line leaves the test out."""
    run(
        4, Slope(1.0), test_loader=None, patience=1, print_training_loss=True,
        optimizer=(optimizer := torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)),
        loss_fn=lambda y_pred, y: optimizer.param_groups[0]["params"][0].sum() * 0 + 1,
    )  # fmt: skip
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.endswith("Train Loss: 1.000000")
    assert last.startswith("No better Loss/train for 1 epochs")


def test_keep_best_of_a_test_loss_needs_a_test_pass() -> None:
    """The names that exist are listed."""
    with pytest.raises(ConfigError, match=r"names here: Loss/train$"):
        run(test_loader=None, keep_best="Loss/test")


# ---- metrics -------------------------------------------------------------------------------------


def test_metrics_are_means_over_the_test_batches() -> None:
    """Logged under Metrics/, known to keep_best, and evaluated in evaluation mode without grad."""

    def bias(y_pred: Tensor, y: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return (y_pred - y).mean()

    batches = [(X, 0 * X), (X, -2 * X)]
    run(
        2,
        Slope(5.0),
        test_loader=batches,
        optimizer=torch.optim.SGD([p := nn.Parameter(torch.ones(()))], lr=0.1),
        loss_fn=lambda y_pred, y: p * y_pred.mean().detach(),
        metrics={"bias": bias, "size": lambda y_pred, y: len(y)},
        keep_best=("bias", "max"),
    )
    # a = 5: biases 5 and 7
    assert scalars("Metrics/bias") == [(0, 6.0), (1, 6.0)]
    assert scalars("Metrics/size") == [(0, 2.0), (1, 2.0)]
    results = json.loads(Path("runs/run_1/run.json").read_text())["sessions"][0]["results"]
    assert results["bias"] == 6.0
    assert Path("runs/run_1/model_best.pt").exists()


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda y_pred, y: y_pred, r"returned shape \(2, 1\)"),
        (lambda y_pred, y: None, "returned None"),
    ],
)
def test_a_metric_that_is_no_number_is_refused(metric: Any, message: str) -> None:
    """It is named."""
    with pytest.raises(ConfigError, match=f"'odd' {message}"):
        run(metrics={"odd": metric})


def test_metrics_need_a_test_pass() -> None:
    """They are taken there and nowhere else."""
    with pytest.raises(ConfigError, match="metrics"):
        run(test_loader=None, metrics={"bias": F.l1_loss})


def test_a_model_that_fails_says_in_which_batch() -> None:
    """Torch's own words know nothing of batches."""
    good, bad = (torch.ones(2, 3), torch.ones(2, 1)), (torch.ones(2, 4), torch.ones(2, 1))
    hybrid = HybridModel(HybridConfig({"net": nn.Linear(3, 1)}))
    with pytest.raises(RuntimeError) as caught:
        run(model=hybrid, train_loader=[good, bad], test_loader=None)
    assert "in batch 1 of epoch 0" in caught.value.__notes__


# ---- what is not finite --------------------------------------------------------------------------

NAN = (X * math.nan, X)


def test_skip_leaves_the_batch_out() -> None:
    """The weights and the mean are those of a run without the batch; a warning tells of it."""
    with pytest.warns(UserWarning, match=r"batch 1 of epoch 0 .* The batch is left out") as warned:
        skipped = run(train_loader=[BATCH, NAN, BATCH], on_nonfinite="skip")
    assert warned[0].filename == __file__  # the line that called train
    loss = scalars("Loss/train")
    model = Slope()
    train(model, [BATCH, BATCH], None, torch.optim.SGD(model.parameters(), lr=0.1), F.mse_loss,
          None, "other", 1, False)  # fmt: skip
    assert torch.equal(skipped.a, model.a)
    accumulator = EventAccumulator("other/run_1")
    accumulator.Reload()
    assert loss == [(e.step, e.value) for e in accumulator.Scalars("Loss/train")]


def test_skip_does_not_step_the_scheduler() -> None:
    """A batch that is left out counts for nothing but the batch number."""
    optimizer = torch.optim.SGD((model := Slope()).parameters(), lr=0.8)
    with pytest.warns(UserWarning, match="left out"):
        run(
            model=model,
            optimizer=optimizer,
            train_loader=[BATCH, NAN, BATCH],
            on_nonfinite="skip",
            scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
        )
    assert optimizer.param_groups[0]["lr"] == 0.2


def test_skipping_everything_is_an_error() -> None:
    """An epoch of which nothing is left has no mean."""
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(NonFiniteError, match="no batch of epoch 0 had a finite loss"),
    ):
        run(train_loader=[NAN, NAN], on_nonfinite="skip")


def test_stop_ends_the_training_there(capsys: pytest.CaptureFixture[str]) -> None:
    """The final weights are those before the batch; a line says why it ended."""
    model = run(3, train_loader=[BATCH, NAN, BATCH], on_nonfinite="stop", print_training_loss=True)
    assert model.a.item() == pytest.approx(0.2)  # one step of SGD: 2 * 0.1 * (1 - 0)
    assert slope("model_final.pt") == model.a.item()
    assert capsys.readouterr().out.rstrip().endswith("The training ends here.")


def test_a_line_search_is_skipped_as_a_whole() -> None:
    """LBFGS has moved the parameters to a trial point by then; they come back."""
    calls = []

    def loss_fn(y_pred: Tensor, y: Tensor) -> Tensor:
        calls.append(True)
        return F.mse_loss(y_pred, y) * (math.nan if len(calls) == 6 else 1.0) + y_pred.cosh().mean()

    model = Slope()
    before: list[float] = []
    with pytest.warns(UserWarning, match="batch 1 of epoch 0"):
        run(
            model=model,
            optimizer=torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4),
            train_loader=[BATCH, BATCH],
            test_loader=None,
            loss_fn=loss_fn,
            on_nonfinite="skip",
            callbacks=[OnStep(lambda state: before.append(state.model.a.item()))],
        )
    assert len(calls) >= 6
    assert before[0] == before[1]


# ---- schedulers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("per", "steps"), [("step", 6), ("epoch", 2)])
def test_scheduler_per(per: str, steps: int) -> None:
    """Three batches an epoch, two epochs."""
    model = Slope()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run(
        2,
        model,
        optimizer=optimizer,
        train_loader=[BATCH] * 3,
        scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
        scheduler_per=per,
    )
    assert optimizer.param_groups[0]["lr"] == 0.1 / 2**steps


# ---- callbacks -----------------------------------------------------------------------------------


class OnStep(Callback):
    """Calls a function after each batch."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def on_step(self, state: TrainingState) -> None:
        self.function(state)


def test_callbacks_are_called_in_order() -> None:
    """Start, steps, epoch, end; each sees where the training is."""

    class Diary(Callback):
        def __init__(self) -> None:
            self.lines: list[tuple[Any, ...]] = []

        def on_start(self, state: TrainingState) -> None:
            self.lines.append(("start", state.directory.name, state.epochs))

        def on_step(self, state: TrainingState) -> None:
            assert math.isnan(state.test_loss)
            self.lines.append(("step", state.epoch, state.batch, state.step))

        def on_epoch(self, state: TrainingState) -> None:
            assert state.train_loss > 0 < state.test_loss
            self.lines.append(("epoch", state.epoch, state.metrics))

        def on_end(self, state: TrainingState) -> None:
            self.lines.append(("end", state.step))

    diary = Diary()
    run(2, train_loader=[BATCH] * 2, metrics={"one": lambda y_pred, y: 1}, callbacks=[diary])
    assert diary.lines == [
        ("start", "run_1", 2),
        ("step", 0, 1, 1),
        ("step", 0, 2, 2),
        ("epoch", 0, {"one": 1.0}),
        ("step", 1, 1, 3),
        ("step", 1, 2, 4),
        ("epoch", 1, {"one": 1.0}),
        ("end", 4),
    ]


def test_a_function_is_called_after_each_epoch() -> None:
    """It may write to TensorBoard."""
    run(2, callbacks=[lambda state: state.writer.add_scalar("own", state.epoch, state.epoch)])
    assert scalars("own") == [(0, 0.0), (1, 1.0)]


@pytest.mark.parametrize(
    ("callback", "steps"),
    [
        (OnStep(lambda state: setattr(state, "stop", state.step == 3)), 3),
        (lambda state: setattr(state, "stop", True), 2),
    ],
    ids=["after a batch", "after an epoch"],
)
def test_a_callback_may_end_the_training(callback: Any, steps: int) -> None:
    """With final weights and a checkpoint, as if it had been the last."""
    run(9, train_loader=[BATCH] * 2, callbacks=[callback])
    state = torch.load("runs/run_1/last.ckpt", weights_only=True)
    assert state["ranks"][0]["position"]["step"] == steps
    assert Path("runs/run_1/model_final.pt").exists()


# ---- seeds ---------------------------------------------------------------------------------------


def test_seed_sets_all_generators() -> None:
    """Whatever was drawn before, the training draws the same."""
    drawn = []

    def draw(state: TrainingState) -> None:
        drawn.append((torch.rand(()).item(), np.random.rand(), random.random()))

    for _ in range(2):
        run(callbacks=[draw], seed=2**40)
    assert drawn[0] == drawn[1]


def test_no_seed_leaves_the_generators_alone() -> None:
    """A script that seeds for itself keeps its numbers."""
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    run()
    assert torch.equal(torch.rand(()), expected)


# ---- progress ------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Give a clock that goes on by 0.4 s at each look."""
    now = [0.0]

    def monotonic() -> float:
        now[0] += 0.4
        return now[0]

    monkeypatch.setattr(time, "monotonic", monotonic)
    return now


@pytest.mark.usefixtures("clock")
def test_a_bar_on_a_terminal_is_wiped_away() -> None:
    """It has the epoch, the place, the loss; at the end the line is blank."""
    stream = Terminal()
    progress = Progress(None, 10, stream)
    progress.start(3)
    for done in range(1, 11):
        progress.step(done, 0.5)
    progress.end()
    text = stream.getvalue()
    assert "Epoch 3" in text
    assert "10/10" in text
    assert "loss 0.500000" in text
    assert text.endswith("\r\033[K\033[?25h")


def test_a_quick_epoch_shows_no_bar() -> None:
    """Nothing flickers for less than a second."""
    stream = Terminal()
    progress = Progress(None, 10, stream)
    progress.start(0)
    progress.step(1, 0.5)
    progress.end()
    assert stream.getvalue() == ""


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("batches", [None, 10])
def test_a_bar_of_unknown_length(batches: int | None) -> None:
    """A loader without a length has a bar that moves without an end."""
    stream = Terminal()
    progress = Progress(None, batches, stream)
    progress.start(0)
    for done in range(5, 11):  # resumed after four batches
        progress.step(done, 0.5)
    progress.end()
    assert "Epoch 0" in stream.getvalue()
    assert ("10/10" in stream.getvalue()) == (batches is not None)


@pytest.mark.parametrize(("shown", "lines"), [(None, 0), (False, 0), (True, 1)])
def test_elsewhere_a_line_now_and_then(shown: bool | None, lines: int, clock: list[float]) -> None:
    """Every half minute, if it is asked for; nothing by default."""
    stream = io.StringIO()
    progress = Progress(shown, 10, stream)
    progress.start(2)
    progress.step(1, 0.5)
    clock[0] += 31
    progress.step(7, 0.25)
    progress.step(8, 0.25)
    progress.end()
    text = stream.getvalue()
    assert text.count("\n") == lines
    assert not lines or text.startswith("Epoch 2 | Batch 7/10 | Time: 32s | Loss: 0.250000")


def test_no_bar_on_a_terminal_on_demand() -> None:
    """progress=False is silent anywhere."""
    stream = Terminal()
    progress = Progress(False, 10, stream)
    progress.start(0)
    time.sleep(0)
    progress.step(1, 0.5)
    progress.end()
    assert stream.getvalue() == ""


# ---- where the time goes -------------------------------------------------------------------------


def slow_hybrid(seconds: float) -> HybridModel:
    """Return a network before two solvers, the first of which takes its time both ways."""

    def forward(x: Any) -> Any:
        time.sleep(seconds)
        return 2 * x

    def vjp(x: Any, g: Any) -> Any:
        time.sleep(seconds)
        return 2 * g

    return HybridModel(
        HybridConfig(
            {
                "net": nn.Linear(1, 1).double(),
                "slow": PhysicsConfig(forward, vjp, use_vjp=True),
                "quick": PhysicsConfig(lambda x: x, lambda x, g: g, use_vjp=True),
            }
        )
    )


def test_step_time_is_split_into_solvers_and_network() -> None:
    """Both ways count, the test pass does not; the parts sum to the whole."""
    run(2, slow_hybrid(0.01), train_loader=[BATCH] * 3)
    means = {
        tag: scalars(f"Time/{tag}")
        for tag in ("step", "network", "data", "solver/slow", "solver/quick")
    }
    for epoch in (0, 1):
        step, network, data, slow, quick = (means[tag][epoch][1] for tag in means)
        assert 0.02 <= slow <= step
        assert quick < slow
        assert data < slow
        assert network > 0
        if epoch:  # every step is timed, once one was slow
            assert slow + quick + network == pytest.approx(step, rel=1e-5)  # float32 in the file


def test_the_model_comes_back_without_watches() -> None:
    """After an epoch, after an error; and a copy that a callback makes has none."""
    model = slow_hybrid(0.0)
    before = dict(model._steps)
    copies: list[HybridModel] = []
    run(1, model, callbacks=[OnStep(lambda state: copies.append(copy.deepcopy(state.model)))])
    assert model._steps == before
    solvers = [getattr(step, "solver", None) for step in copies[0]._steps.values()]
    assert not any(isinstance(solver, Watched) for solver in solvers)
    with pytest.raises(ZeroDivisionError):
        run(1, model, callbacks=[OnStep(lambda state: 1 // 0)])
    assert model._steps == before


def test_a_model_without_solvers_has_no_split() -> None:
    """A plain network's step is one time."""
    run()
    accumulator = EventAccumulator("runs/run_1")
    accumulator.Reload()
    times = {tag for tag in accumulator.Tags()["scalars"] if tag.startswith("Time/")}
    assert times == {"Time/step", "Time/data", "Time/epoch"}


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo looks, at a break
def test_a_compiled_model_is_timed_too() -> None:
    """What torch.compile wraps is looked through."""
    model = slow_hybrid(0.0)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    compiled = torch.compile(model, backend="eager")
    train(compiled, [BATCH], None, sgd, F.mse_loss, None, "runs", 1, False)
    assert len(scalars("Time/solver/slow")) == 1


# ---- what a solver refuses -----------------------------------------------------------------------


def refusing() -> HybridModel:
    """Return a model whose solver refuses negative samples."""

    def forward(x: Any) -> Any:
        if (x < 0).any():
            raise SampleError(int((x < 0).argmax()), "negative")
        return x

    solver = PhysicsConfig(forward, lambda x, g: g, use_vjp=True)
    model = HybridModel(HybridConfig({"net": nn.Linear(1, 1), "picky": solver})).double()
    with torch.no_grad():
        model.models_nn["net"].weight.fill_(1.0)
        model.models_nn["net"].bias.fill_(0.0)
    return model


REFUSED = (torch.tensor([[1.0], [-1.0]], dtype=torch.float64), X)


def test_a_refused_sample_follows_the_policy(capsys: pytest.CaptureFixture[str]) -> None:
    """As a NaN would: raised with the batch's place, left out, or the end."""
    with pytest.raises(SampleError, match="picky: sample 1") as caught:
        run(model=refusing(), train_loader=[BATCH, REFUSED])
    assert caught.value.__notes__[0] == "in batch 1 of epoch 0; no update was made"
    with pytest.warns(UserWarning, match=r"batch 1 of epoch 0: picky: sample 1.*left out"):
        run(1, refusing(), train_loader=[BATCH, REFUSED, BATCH], on_nonfinite="skip")
    run(2, refusing(), train_loader=[REFUSED], on_nonfinite="stop", print_training_loss=True)
    assert capsys.readouterr().out.rstrip().endswith("The training ends here.")


# ---- what is wrong is told before it is done -----------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_loader": TensorDataset(X, X)}, "train_loader is a TensorDataset"),
        ({"scheduler": lambda o: torch.optim.lr_scheduler.StepLR}, "the class StepLR"),
        (
            {"scheduler": lambda o: StepLR(torch.optim.SGD(Slope().parameters(), 0.1), 1)},
            "made for another optimizer",
        ),
        ({"model": nn.Linear(1, 1)}, r"a Linear, whose forward does not take \(x, phy_args\)"),
    ],
    ids=["samples", "class", "another optimizer", "x alone"],
)
def test_a_wrong_part_is_told(changes: dict[str, Any], message: str) -> None:
    """It would train on single samples, or change nothing in silence."""
    with pytest.raises(ConfigError, match=message):
        run(**changes)
    assert not Path("runs").exists()


def test_whose_error_it_is() -> None:
    """An error of a metric or a callback comes out as it is, with a note that names it."""
    with pytest.raises(ZeroDivisionError) as caught:
        run(metrics={"odd": lambda y_pred, y: 1 // 0})
    assert caught.value.__notes__ == ["raised by the metric 'odd'"]
    with pytest.raises(ZeroDivisionError) as caught:
        run(callbacks=[Course(), lambda state: 1 // 0])
    assert caught.value.__notes__ == ["raised by callbacks[1] in on_epoch, batch 1 of epoch 0"]
