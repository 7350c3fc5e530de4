"""Ctrl-C, SIGTERM, SIGKILL, two runs at once, a full disk: nothing is lost."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from torch.utils.data import DataLoader, TensorDataset

from adeptml_core.train_utils import Callback, TrainingState, train
from adeptml_core.training.interruption import Interruption
from adeptml_core.training.runs import claim

EPOCHS, BATCHES = 3, 4
X = torch.linspace(-1, 1, 48).reshape(16, 3)
DATA = TensorDataset(X, X[:, :1] ** 2)


class Network(nn.Module):
    """With dropout, so that the random state matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor, phy_args: object = None) -> Tensor:
        return self.inner(x)


class Send(Callback):
    """Sends this process a signal, once or more, after an update or an epoch."""

    def __init__(
        self, number: int, *, step: int | None = None, epoch: int | None = None, times: int = 1
    ) -> None:
        self.number, self.step, self.epoch, self.times = number, step, epoch, times

    def on_step(self, state: TrainingState) -> None:
        if state.step == self.step:
            self._send()

    def on_epoch(self, state: TrainingState) -> None:
        if state.epoch == self.epoch:
            self._send()

    def _send(self) -> None:
        for _ in range(self.times):
            signal.raise_signal(self.number)


def run(base: str, network: type[Network] = Network, **settings: Any) -> Network:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = DataLoader(DATA, batch_size=4, shuffle=True)
    test = DataLoader(DATA, batch_size=8)
    train(model, loader, test, optimizer, F.mse_loss, None, base, EPOCHS, False, **settings)
    return model


def assert_resumes_exactly(base: str) -> None:
    """Let the interrupted run in `base` go on; it must end with the weights of a whole one."""
    resumed, whole = run(base, resume="auto"), run("whole")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give a directory of its own; afterwards the signal handlers must be those from before."""
    monkeypatch.chdir(tmp_path)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    left = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
        signal.signal(number, handler)
    assert left == handlers


# ---- Ctrl-C and SIGTERM --------------------------------------------------------------------------

PLACES = [
    {"step": 1},
    {"step": BATCHES + 2},
    {"step": 2 * BATCHES},
    {"epoch": 0},
    {"epoch": EPOCHS - 1},
]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_ctrl_c_leaves_a_checkpoint(
    place: dict[str, int], capfd: pytest.CaptureFixture[str]
) -> None:
    """After any batch or epoch: KeyboardInterrupt, a line that says how to go on, same bits."""
    with pytest.raises(KeyboardInterrupt, match=r"resume='.*run_1'") as caught:
        run("runs", callbacks=[Send(signal.SIGINT, **place)])
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("SIGINT: finishing the batch")
    assert lines[-1] == str(caught.value)
    assert not Path("runs/run_1/model_final.pt").exists()
    assert_resumes_exactly("runs")


def test_sigterm_leaves_a_checkpoint(capfd: pytest.CaptureFixture[str]) -> None:
    """As Ctrl-C does, but the process ends with status 143."""
    with pytest.raises(SystemExit) as caught:
        run("runs", callbacks=[Send(signal.SIGTERM, step=6)])
    assert caught.value.code == 143
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("Training interrupted at epoch 1, batch 2. To go on: train(..., resume=")
    assert_resumes_exactly("runs")


def test_interrupted_in_the_test_pass() -> None:
    """The test pass starts over; the training part is not repeated."""

    class Signalling(Network):
        def forward(self, x: Tensor, phy_args: object = None) -> Tensor:
            if not self.training:
                signal.raise_signal(signal.SIGINT)
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt, match=f"at epoch 0, batch {BATCHES}"):
        run("runs", Signalling)
    assert_resumes_exactly("runs")


class Dying:
    """A loader whose second epoch fails at its third batch, as when a signal ended a worker."""

    def __init__(
        self, number: int = signal.SIGINT, *, batches: int = 2, delay: float = 0.0
    ) -> None:
        self.number, self.batches, self.delay = number, batches, delay
        self.epochs = 0

    def __iter__(self) -> Iterator[Any]:
        self.epochs += 1
        for first in range(0, 16, 4):
            if self.epochs == 2 and first == 4 * self.batches:
                self._die()
            yield X[first : first + 4], X[first : first + 4, :1] ** 2

    def _die(self) -> None:
        if self.number:
            threading.Timer(self.delay, signal.raise_signal, [self.number]).start()
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")


def train_on(loader: Any, base: str, test: Any = None, **settings: Any) -> Network:
    model = Network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, loader, test, optimizer, F.mse_loss, None, base, EPOCHS, False, **settings)
    return model


WHOLE = [(X[i : i + 4], X[i : i + 4, :1] ** 2) for i in range(0, 16, 4)]


@pytest.mark.parametrize("batches", [0, 2])
@pytest.mark.parametrize("delay", [0.0, 0.2])
@pytest.mark.parametrize("in_test", [False, True])
def test_a_loader_that_dies_of_the_signal(batches: int, delay: float, in_test: bool) -> None:
    """A worker may die before we see the signal: the error of fetching is the interruption."""
    dying = Dying(signal.SIGTERM, batches=batches, delay=delay)
    loaders = (WHOLE, dying) if in_test else (dying, WHOLE)
    with pytest.raises(SystemExit) as caught:
        train_on(loaders[0], "runs", loaders[1])
    assert caught.value.code == 143
    position = torch.load("runs/run_1/last.ckpt", weights_only=True)["ranks"][0]["position"]
    assert (position["epoch"], position["batch"]) == (1, BATCHES if in_test else batches)
    resumed, whole = train_on(WHOLE, "runs", WHOLE, resume="auto"), train_on(WHOLE, "whole", WHOLE)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_loader_that_dies_of_itself() -> None:
    """Without a signal its error comes out as it is."""
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        train_on(Dying(0), "runs")


def test_a_signal_before_the_first_batch() -> None:
    """Nothing has been trained: no directory is made, and it ends as the signal wanted."""

    class Slow:
        def __iter__(self) -> Iterator[Any]:
            signal.raise_signal(signal.SIGTERM)
            yield from WHOLE

    with pytest.raises(SystemExit) as caught:
        train_on(Slow(), "runs")
    assert caught.value.code == 143
    assert not Path("runs").exists()


def test_a_worker_that_dies_in_an_update_is_told_at_the_next_fetch() -> None:
    """Torch raises wherever the main process stands; an update must not be torn by that."""
    dead, steps = [], []

    def of_torch(number: int, frame: object) -> None:
        if dead:  # else it was another child, say git
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    previous = signal.signal(signal.SIGCHLD, of_torch)

    class Dies(Callback):
        def on_step(self, state: TrainingState) -> None:
            if state.step == 2:
                dead.append(7)
                signal.raise_signal(signal.SIGCHLD)
            steps.append(state.step)

    try:
        with pytest.raises(RuntimeError, match="signal: Killed"):
            train_on(WHOLE, "runs", callbacks=[Dies()])
        assert signal.getsignal(signal.SIGCHLD) is of_torch
    finally:
        signal.signal(signal.SIGCHLD, previous)
    assert steps == [1, 2]


def test_a_second_signal_ends_at_once() -> None:
    """Whoever cannot wait for the batch does not get a new checkpoint; the last one stands."""
    with pytest.raises(KeyboardInterrupt, match="second signal"):
        run("runs", save_every=1, callbacks=[Send(signal.SIGINT, step=6, times=2)])
    assert_resumes_exactly("runs")


def test_a_handler_that_was_there_is_called() -> None:
    """A cluster's requeuing hook runs after the checkpoint is written, and is there again."""
    seen = []

    def hook(number: int, frame: object) -> None:
        seen.append((number, Path("runs/run_1/last.ckpt").exists()))

    previous = signal.signal(signal.SIGTERM, hook)
    try:
        with pytest.raises(SystemExit):
            run("runs", callbacks=[Send(signal.SIGTERM, step=2)])
        assert signal.getsignal(signal.SIGTERM) is hook
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert seen == [(signal.SIGTERM, True)]


def test_an_ignored_signal_stays_ignored() -> None:
    """A job in the background ignores Ctrl-C; train must not change that."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run("runs", callbacks=[Send(signal.SIGINT, step=2)])
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)
    assert Path("runs/run_1/model_final.pt").exists()


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 0), (signal.SIGTERM, -15)])
def test_a_forked_worker_does_not_answer_for_its_parent(number: int, expected: int) -> None:
    """It lives through Ctrl-C, so that the batch can be finished, and dies of SIGTERM as ever."""
    script = f"""
        import os, signal, sys
        from adeptml_core.training.interruption import Interruption
        with Interruption() as interruption:
            child = os.fork()
            if not child:
                os.kill(os.getpid(), {int(number)})
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            assert interruption.requested is None
        sys.exit(os.waitstatus_to_exitcode(status) != {expected})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nested_contexts_restore_each_other() -> None:
    """A training within a training (a sweep's callback) leaves the outer one its handlers."""
    with Interruption() as outer:
        with Interruption() as inner:
            signal.raise_signal(signal.SIGINT)
        assert inner.requested is signal.SIGINT
        assert outer.requested is None
        signal.raise_signal(signal.SIGINT)
        assert outer.requested is signal.SIGINT


# ---- processes -----------------------------------------------------------------------------------

# One process pays for the imports, and forks a child for each run that it is told to start.
SCRIPT = """
    import json, os, sys, time
    import torch
    import torch._dynamo  # which the first optimizer imports
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset
    from torch.utils.tensorboard import SummaryWriter
    from adeptml_core.train_utils import train

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 1))

        def forward(self, x, phy_args=None):
            time.sleep(0.002)
            return self.inner(x)

    def run(base, epochs, workers):
        torch.manual_seed(0)
        x = torch.linspace(-1, 1, 48).reshape(16, 3)
        data = TensorDataset(x, x[:, :1] ** 2)
        loader = DataLoader(data, batch_size=2, shuffle=True, num_workers=workers)
        model = Network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.9)
        train(model, loader, None, optimizer, nn.MSELoss(), scheduler, base, epochs,
              resume="auto", save_every=2)

    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        out, end = os.pipe()
        child = os.fork()
        if not child:
            os.setsid()
            os.dup2(end, 1)
            os.dup2(os.open(job["base"] + ".err", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 2)
            os.close(out), os.close(end)
            run(job["base"], job["epochs"], job["workers"])
            sys.exit()
        os.close(end)
        with open(out) as lines:
            lines.readline()
            if job["signal"]:
                time.sleep(job["moment"])
                os.killpg(child, job["signal"])
            lines.read()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Runner:
    """Runs the script's training in processes of their own, and sends them signals."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(
        self, base: str, number: int = 0, moment: float = 0.0, *, epochs: int = 5, workers: int = 0
    ) -> int:
        """Return the exit code of a training that gets a signal `moment` s after its first line."""
        job = {"base": str(Path(base).absolute()), "signal": number, "moment": moment}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({**job, "epochs": epochs, "workers": workers}), file=self._process.stdin)
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@pytest.fixture(scope="module")
def start() -> Iterator[Runner]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with process:
        yield Runner(process)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -2), (signal.SIGTERM, 143)])
def test_a_signal_to_the_process_group(start: Runner, number: int, code: int) -> None:
    """With two workers, which get the signal too: the last line tells how to go on."""
    assert start("runs", number, 0.05, epochs=1000, workers=2) == code
    assert "To go on: train(..., resume=" in Path("runs.err").read_text().splitlines()[-1]
    assert Path("runs/run_1/last.ckpt").exists()


@pytest.mark.slow
def test_sigkill_at_random_moments(start: Runner) -> None:
    """Killed wherever it stands, four times, the run ends with the bits of the one that was not."""
    for moment in (0.05, 0.11, 0.02, 0.17):
        assert start("killed", signal.SIGKILL, moment) == -signal.SIGKILL
    assert (start("whole"), start("killed")) == (0, 0)
    assert os.listdir("killed") == ["run_1"]
    whole, killed = (
        torch.load(f"{base}/run_1/model_final.pt", weights_only=True)
        for base in ("whole", "killed")
    )
    for name, value in whole.items():
        assert torch.equal(killed[name], value), name


# ---- two at once ---------------------------------------------------------------------------------


def test_runs_started_at_once_get_a_directory_each(tmp_path: Path) -> None:
    """Sixteen claims at the same moment: sixteen directories, numbered without a gap."""
    barrier = threading.Barrier(16)
    claimed = []

    def take() -> None:
        barrier.wait()
        claimed.append(claim(tmp_path / "runs").name)

    threads = [threading.Thread(target=take) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(f"run_{number}" for number in range(1, 17))


# ---- a full disk ---------------------------------------------------------------------------------


class Fill(Callback):
    """Lets no file grow beyond a size from some epoch on, as a full disk would."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch(self, state: TrainingState) -> None:
        if state.epoch == self.epoch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, self.limits()[1]))

    @staticmethod
    def limits() -> tuple[int, int]:
        return resource.getrlimit(resource.RLIMIT_FSIZE)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's
def test_a_full_disk_leaves_the_last_good_files() -> None:
    """The error names the file; what was written before is whole, and the run can go on."""
    limits = Fill.limits()
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            run("runs", save_frequency=1, callbacks=[Fill(epoch=2)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert "Model_2.pt could not be written" in caught.value.__notes__[0]
    names = sorted(path.name for path in Path("runs/run_1").iterdir())
    assert [n for n in names if n.endswith(".pt")] == ["Model_1.pt"]
    assert not [n for n in names if n.endswith(".tmp")]
    assert_resumes_exactly("runs")


class MakeReadOnly(Callback):
    """Takes the right to write in the run's directory away, as an expired quota or mount would."""

    def on_epoch(self, state: TrainingState) -> None:
        if state.epoch == 1:
            state.directory.chmod(0o555)
            if not os.geteuid():  # root may write anywhere
                os.seteuid(NOBODY)


NOBODY = 65534


# TensorBoard's writer has a thread of its own, which cannot write any more either.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_directory_that_becomes_read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the file; the checkpoint from before is whole, and the run can go on."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.chdir(folder)
        Path(folder).chmod(0o755)  # so that nobody gets as far as the run's directory
        try:
            with pytest.raises(PermissionError) as caught:
                run("runs", save_every=2, callbacks=[MakeReadOnly()])
        finally:
            os.seteuid(user)
            Path("runs/run_1").chmod(0o755)
        assert "Model_" in caught.value.__notes__[0] or "last.ckpt" in caught.value.__notes__[0]
        assert_resumes_exactly("runs")
        monkeypatch.undo()
