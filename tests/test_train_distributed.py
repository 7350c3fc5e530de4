"""Two ranks over gloo on the loopback, launched as users launch them: by torchrun."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from adeptml_core.errors import ConfigError
from adeptml_core.train_utils import train
from adeptml_core.training.ranks import Ranks
from adeptml_core.training.settings import check_ranks

PARTS = """
    import json, math, os, sys, warnings
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
    from adeptml_core.train_utils import Callback, train

    torch.set_num_threads(1)
    X = torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(16, 3)
    DATA = TensorDataset(X, X[:, :1] ** 2)

    def network():
        torch.manual_seed(0)
        inner = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        class Network(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = inner
            def forward(self, x, phy_args=None):
                return self.inner(x)
        return Network()

    def optimizer_of(model, name):
        if name == "lbfgs":
            return torch.optim.LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def scheduler_of(optimizer):
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
"""

EXPERIMENTS = """
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    def run(base, name="sgd", epochs=3, data=DATA, batch=4, **settings):
        model = DistributedDataParallel(network())
        optimizer = optimizer_of(model, name)
        sampler = DistributedSampler(data, shuffle=False)
        loader = DataLoader(data, batch_size=batch, sampler=sampler)
        test = DataLoader(data, batch_size=4 + rank, sampler=sampler)
        same = train(model, loader, test, optimizer, nn.MSELoss(), scheduler_of(optimizer), base,
                     epochs, **settings)
        assert same is model
        return model

    class Killed(Exception):
        pass

    def kill(state):
        if state.epoch == 1:
            raise Killed

    # 1. equal to one process with the whole batch
    for name in ("sgd", "lbfgs"):
        run(name, name)

    # 2. killed and resumed
    try:
        run("killed", callbacks=[kill], save_every=1)
    except Killed:
        pass
    run("killed", resume="auto")

    # 3. a bad row on one rank: both leave the batch out
    bad = X.clone()
    bad[1, 0] = math.nan  # rank 1's, in its first batch
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = run("skipped", data=TensorDataset(bad, X[:, :1]), on_nonfinite="skip",
                    print_training_loss=False)
    skips = [str(w.message) for w in caught if "left out" in str(w.message)]
    with open(f"skips{rank}.json", "w") as file:
        json.dump([skips, [p.tolist() for p in model.parameters()]], file)

    # 4. a callback on one rank ends the training of both
    def stop(state):
        state.stop = rank == 1
    run("stopped", callbacks=[stop], print_training_loss=False)

    dist.destroy_process_group()
"""

FAILURE = """
    dist.init_process_group("gloo")

    class Fails(Callback):
        def on_step(self, state):
            if dist.get_rank() == 1 and state.step == 2:
                raise RuntimeError("the licence server is gone")

    model = DistributedDataParallel(network())
    optimizer = optimizer_of(model, "sgd")
    loader = DataLoader(DATA, batch_size=4, sampler=DistributedSampler(DATA))
    train(model, loader, None, optimizer, nn.MSELoss(), None, "runs", 100, callbacks=[Fails()])
"""


def torchrun(script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run `script` on two ranks of this machine."""
    path = directory / "script.py"
    path.write_text(textwrap.dedent(PARTS) + textwrap.dedent(script))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, "--local-addr=127.0.0.1", "--nproc-per-node=2", str(path)],
        cwd=directory,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the directory in which two ranks have made their experiments."""
    directory = tmp_path_factory.mktemp("ranks")
    done = torchrun(EXPERIMENTS, directory)
    assert done.returncode == 0, done.stderr
    (directory / "stdout").write_text(done.stdout)
    return directory


def final(base: Path) -> dict[str, torch.Tensor]:
    return torch.load(base / "run_1" / "model_final.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "lbfgs"])
def test_two_ranks_train_as_one(
    here: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same global batches in one process give the same weights, to rounding."""
    monkeypatch.chdir(tmp_path)
    parts: dict[str, Any] = {}
    exec(textwrap.dedent(PARTS), parts)
    model = parts["network"]()
    optimizer = parts["optimizer_of"](model, name)
    x, y = parts["DATA"].tensors
    # ranks take every other sample, four each: batches of eight in order
    loader = [(x[:8], y[:8]), (x[8:], y[8:])]
    train(model, loader, loader, optimizer, nn.MSELoss(), parts["scheduler_of"](optimizer), "one",
          3, False)  # fmt: skip
    for key, value in final(tmp_path / "one").items():
        # sums of eight terms in another order, some 50 evaluations: 1e-13 of values of order one
        torch.testing.assert_close(final(here / name)[key], value, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_one_set_of_files_and_lines(here: Path) -> None:
    """The first rank writes and prints; files hold the unwrapped model's names."""
    names = sorted(p.name.split(".")[0] for p in (here / "sgd" / "run_1").iterdir())
    assert names == ["events", "last", "model_final", "run"]
    assert os.listdir(here / "sgd") == ["run_1"]
    assert all(name.startswith("inner.") for name in final(here / "sgd"))
    assert json.loads((here / "sgd/run_1/run.json").read_text())["ranks"] == 2
    lines = (here / "stdout").read_text().splitlines()
    assert len([line for line in lines if line.startswith("Epoch 0 |")]) == 3
    assert len([line for line in lines if line.startswith("Going on")]) == 1


@pytest.mark.slow
def test_two_ranks_resume_exactly(here: Path) -> None:
    """Killed in the second epoch, the run ends with the bits of the one that was not."""
    for key, value in final(here / "sgd").items():
        assert torch.equal(final(here / "killed")[key], value), key


@pytest.mark.slow
def test_a_bad_row_on_one_rank_is_skipped_by_both(here: Path) -> None:
    """They leave out the same batches and keep the same weights; the guilty one says more."""
    (skips, weights), (other_skips, other_weights) = (
        json.loads((here / f"skips{rank}.json").read_text()) for rank in (0, 1)
    )
    assert len(skips) == len(other_skips) == 3
    assert "on another rank" in skips[0]
    assert "first at row 0 of the batch" in other_skips[0]
    assert weights == other_weights


@pytest.mark.slow
def test_ending_is_decided_together(here: Path) -> None:
    """One rank's callback ends the training after the first epoch; the other does not hang."""
    state = torch.load(here / "stopped/run_1/last.ckpt", weights_only=True)
    assert [own["position"]["epoch"] for own in state["ranks"]] == [1, 1]


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_job(tmp_path: Path) -> None:
    """The other does not wait for ever, and the error that began it is shown."""
    done = torchrun(FAILURE, tmp_path)
    assert done.returncode == 1
    assert "the licence server is gone" in done.stderr


# ---- one process ---------------------------------------------------------------------------------


class Two(Ranks):
    """Two ranks, as far as the checks can tell."""

    def __init__(self, lengths: list[int]) -> None:
        self.rank, self.size, self._lengths = 0, 2, lengths

    def gather(self, value: Any) -> list[Any]:
        return self._lengths


def test_an_unwrapped_model_is_refused() -> None:
    """Each rank would train a model of its own."""
    with pytest.raises(ConfigError, match=r"DistributedDataParallel\(model\)"):
        check_ranks(nn.Linear(1, 1), [], Two([1, 1]))


def test_loaders_of_unequal_length_are_refused() -> None:
    """The ranks would wait for each other for ever."""
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)
    with pytest.raises(ConfigError, match=r"have \[3, 4\] batches"):
        check_ranks(wrapped, [1, 2, 3], Two([3, 4]))


def test_a_plain_loader_is_told() -> None:
    """Without a DistributedSampler all ranks may train on the same samples."""
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(4, 1)))
    with pytest.warns(UserWarning, match="no DistributedSampler"):
        check_ranks(wrapped, loader, Two([4, 4]))


def test_one_rank_answers_for_itself() -> None:
    """Without a process group every question costs nothing."""
    ranks = Ranks()
    assert (ranks.rank, ranks.size, ranks.is_first) == (0, 1, True)
    assert ranks.any(True, False) == (True, False)
    assert ranks.sum(1.5, 2.0) == (1.5, 2.0)
    assert ranks.mean(3.0) == 3.0
    assert ranks.share("x") == "x"
    assert ranks.gather("x") == ["x"]
