"""Steps per CPU second: `train`, a loop written by hand, adeptml 2.1's `train`.

The same tiny hybrid (a network of 4-16-16-3, the cube of its output as bare numpy functions in
Jacobian mode), float32, Adam, mean squared error, from prebuilt batches of 32 and from a
`DataLoader`. The loops:

- *by hand*: zero_grad, forward, loss, backward, step, ``loss.item()``; a test pass an epoch; no
  log, no checkpoint. Once with adeptml-core's model, once with adeptml 2.1's;
- *train*: with all that it does unasked: log, checks for NaN and broadcasting, watches on solvers;
- *train, full*: besides, a metric, a callback after each step, the best weights kept, clipping;
- *adeptml 2.1*: its `train` with its model (``pip install adeptml==2.1``).

All loops run at the same time, each in its own thread, but only one moves: after every ten batches
its loader hands the turn on, and all share one core. So what the neighbours on a shared machine do
to one they do to all.
Counted is the CPU time of the whole process from turn to turn, which includes the log's thread, and
all that comes once an epoch; the first epoch is left out. A ratio is the median over the epochs.

::

    python -m venv scratch && scratch/bin/pip install -e . adeptml==2.1
    scratch/bin/python benchmarks/training.py
"""

import sys

if sys.path and sys.path[0].endswith("benchmarks"):
    del sys.path[0]  # or operator.py beside this file would stand in for the standard library's

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"  # read with torch, and meant for each of the threads

import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

import adeptml_core
import adeptml_core.configs
import adeptml_core.ensemble
from adeptml_core.train_utils import Callback, TrainingState

ROWS = 32
TURN = 10  # batches
BASE = "by hand"
RATIOS = (
    ("train", BASE, 0.97),
    ("train, full", BASE, None),
    ("train", "adeptml 2.1", 1.0),
    ("adeptml 2.1", BASE, None),
)


class Turns:
    """Lets one of several threads run at a time, and counts the CPU time of each.

    Attributes
    ----------
    seconds : dict of str to list of float
        By loop, the CPU time of each turn.
    """

    def __init__(self, labels: list[str]) -> None:
        self.seconds: dict[str, list[float]] = {label: [] for label in labels}
        self._waiting = {label: threading.Event() for label in labels}
        self._order: list[str] = []
        self._began = 0.0

    def begin(self) -> None:
        """Give the first turn."""
        self._next()

    def wait(self, label: str) -> None:
        """Wait for the turn of `label`."""
        self._waiting[label].wait()
        self._waiting[label].clear()
        self._began = time.process_time()

    def hand_on(self, label: str) -> None:
        """End the turn of `label`, and wait for its next."""
        self.seconds[label].append(time.process_time() - self._began)
        self._next()
        self.wait(label)

    def leave(self, label: str) -> None:
        """Take no more turns."""
        del self._waiting[label]
        self._order = [each for each in self._order if each != label]
        self._next()

    def _next(self) -> None:
        if not self._order:
            self._order = random.sample(list(self._waiting), len(self._waiting))
        if self._order:
            self._waiting[self._order.pop()].set()


class Loader:
    """Batches of one loop, ten in a turn."""

    def __init__(self, batches: Iterable[Any], turns: Turns, label: str) -> None:
        self._batches, self._turns, self._label = batches, turns, label

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self._batches):
            if number % TURN == 0:
                self._turns.hand_on(self._label)
            yield batch


def cube(x: Any) -> Any:
    return x**3


def cube_jacobian(x: Any) -> Any:
    return np.einsum("bi,ij->bij", 3 * x**2, np.eye(x.shape[1], dtype=x.dtype))


def hybrid(configs: ModuleType, ensemble: ModuleType) -> tuple[Any, torch.optim.Optimizer]:
    """Return the hybrid, made of one of the two packages, and its optimizer."""
    torch.manual_seed(0)
    model = ensemble.HybridModel(
        configs.HybridConfig(
            models={
                "net": configs.MLPConfig(4, 16, 3, 1, "tanh", "identity"),
                "cube": configs.PhysicsConfig(forward_func=cube, jacobian_func=cube_jacobian),
            }
        )
    )
    return model, torch.optim.Adam(model.parameters(), lr=1e-3)


def by_hand(configs: ModuleType, ensemble: ModuleType, loader: Any, test: Any, epochs: int) -> None:
    """Train as most people would write it."""
    model, optimizer = hybrid(configs, ensemble)
    loss_fn = torch.nn.MSELoss()
    for _ in range(epochs):
        model.train()
        total = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item()
        model.eval()
        with torch.no_grad():
            for x, y in test:
                total += loss_fn(model(x), y).item()


class Counts(Callback):
    """A callback that does next to nothing."""

    steps = 0

    def on_step(self, state: TrainingState) -> None:
        """Count."""
        self.steps += 1


def with_train(loader: Any, test: Any, epochs: int, **settings: Any) -> None:
    """Train with adeptml-core."""
    model, optimizer = hybrid(adeptml_core.configs, adeptml_core.ensemble)
    with tempfile.TemporaryDirectory() as runs:
        adeptml_core.train(
            model, loader, test, optimizer, torch.nn.MSELoss(), None, runs, epochs, False,
            **settings,
        )  # fmt: skip


def with_all(loader: Any, test: Any, epochs: int) -> None:
    """Train with adeptml-core, and much that may be asked of it."""
    with_train(
        loader, test, epochs, grad_clip=1e3, keep_best="Loss/test", callbacks=[Counts()],
        metrics={"worst": lambda y_pred, y: (y_pred - y).abs().max()},
    )  # fmt: skip


def loops() -> dict[str, Callable[[Any, Any, int], None]]:
    """Return what is compared, by label."""
    found: dict[str, Callable[[Any, Any, int], None]] = {
        BASE: lambda *args: by_hand(adeptml_core.configs, adeptml_core.ensemble, *args),
        "train": with_train,
        "train, full": with_all,
    }
    try:
        import adeptml.configs
        import adeptml.ensemble
        import adeptml.train_utils
    except ImportError:
        print("adeptml 2.1 is not installed here: no comparison with it", file=sys.stderr)
        return found

    def upstream(loader: Any, test: Any, epochs: int) -> None:
        model, optimizer = hybrid(adeptml.configs, adeptml.ensemble)
        with tempfile.TemporaryDirectory() as runs:
            adeptml.train_utils.train(
                model, loader, test, optimizer, torch.nn.MSELoss(), None, runs, epochs, False
            )

    found["by hand, 2.1"] = lambda *args: by_hand(adeptml.configs, adeptml.ensemble, *args)
    found["adeptml 2.1"] = upstream
    return found


def measure(make: Callable[[TensorDataset], Any], batches: int, epochs: int) -> dict[str, Any]:
    """Return, by loop, the CPU time of a step in each epoch."""
    x = torch.randn(ROWS * batches, 4)
    data, few = TensorDataset(x, x[:, :3] ** 2), TensorDataset(x[:ROWS], x[:ROWS, :3] ** 2)
    test = list(DataLoader(few, batch_size=ROWS))
    ways = loops()
    turns = Turns(list(ways))

    def run(label: str) -> None:
        turns.wait(label)
        try:
            ways[label](Loader(make(data), turns, label), test, epochs)
        finally:
            turns.leave(label)

    threads = [threading.Thread(target=run, args=(label,)) for label in ways]
    for thread in threads:
        thread.start()
    turns.begin()
    for thread in threads:
        thread.join()
    turns_an_epoch = batches // TURN
    found = {}
    for label, seconds in turns.seconds.items():
        # The first turn comes before the first batch, and the last batches end with the loop.
        steady = seconds[1 + turns_an_epoch :]
        starts = range(0, len(steady) - turns_an_epoch + 1, turns_an_epoch)
        found[label] = [sum(steady[i : i + turns_an_epoch]) / batches for i in starts]
    return found


def ratio(found: dict[str, list[float]], label: str, against: str) -> float:
    """Return the median over the epochs of one rate by another."""
    pairs = zip(found[label], found[against], strict=True)
    return statistics.median(other / own for own, other in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=200, help="in an epoch; tens")
    parser.add_argument("--epochs", type=int, default=30)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # one core for all: the other may be slower
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    prebuilt = lambda data: list(DataLoader(data, batch_size=ROWS))  # noqa: E731
    loaded = lambda data: DataLoader(data, batch_size=ROWS, shuffle=True)  # noqa: E731
    for make, name in ((prebuilt, "prebuilt batches"), (loaded, "DataLoader")):
        found = measure(make, settings.batches, settings.epochs)
        print(f"{name}: steps per CPU second")
        for label, seconds in found.items():
            print(f"  {label:30s}{1 / statistics.median(seconds):8.0f}")
        for label, against, goal in RATIOS:
            if against in found:
                wanted = "" if goal is None else f"   goal: {goal:.2f}"
                value = ratio(found, label, against)
                print(f"  {label + ' / ' + against:30s}{value:8.3f}{wanted}", flush=True)


if __name__ == "__main__":
    main()
