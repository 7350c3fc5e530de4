"""Kill a training twenty times; each time it must end with the bits of one that was not killed.

A case is a training of a hybrid through the installed ``heat1d`` (or through bare functions, where
it is not installed), in processes of its own. It is run once to its end. Then, kill by kill, it is
started anew, killed with SIGKILL at a random moment, several times over, and resumed to its end;
the files of weights must be equal, bit by bit, as must the optimizer, the scheduler and all random
states in ``last.ckpt``.

======== ===========================================================================================
adam     Adam, a cosine schedule, dropout, a shuffled loader; a checkpoint every three updates
workers  the same, with two worker processes and noise drawn in them
lbfgs    LBFGS with its line search, and `ReduceLROnPlateau`
ranks    two processes of ``torchrun`` over gloo on the loopback, killed together
======== ===========================================================================================

*control* is the same as adam, but for one thing: the random states are not restored. It must
differ, or the comparison could not fail.

::

    python benchmarks/kills.py                # twenty kills, some minutes
    python benchmarks/kills.py --kills 4 --cases adam control
"""

import sys

if sys.path and sys.path[0].endswith("benchmarks"):
    del sys.path[0]  # or operator.py beside this file would stand in for the standard library's

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CASES = {"adam": 7, "workers": 5, "lbfgs": 4, "ranks": 4}  # kills of each, twenty in all
CONTROL = "control"
EPOCHS, BATCHES, ROWS, CELLS = 6, 8, 4, 8
PAUSE = 0.01  # s, of every forward pass: so that a kill finds the run at work


# ---- the training, in a process of its own -------------------------------------------------------


def train_case(case: str, base: str) -> None:
    """Train; go on where there is something to go on from."""
    import numpy as np
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, DistributedSampler

    import adeptml_core.training.batches
    from adeptml_core import train

    torch.set_num_threads(1)
    if case == CONTROL:
        adeptml_core.training.batches.restore_random_state = lambda state: None
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    data = samples()
    sampler = None
    model: Any = hybrid()
    if case == "ranks":
        torch.distributed.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model)
        sampler = DistributedSampler(data)
    loader = DataLoader(
        data,
        batch_size=ROWS,
        shuffle=sampler is None,
        sampler=sampler,
        num_workers=2 if case == "workers" else 0,
    )
    optimizer: Any = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * BATCHES)
    if case == "lbfgs":
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3, line_search_fn="strong_wolfe")
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    train(
        model, loader, list(loader)[:1] if sampler is None else None, optimizer, nn.MSELoss(),
        scheduler, base, EPOCHS, save_frequency=2, resume="auto", save_every=3,
    )  # fmt: skip
    if case == "ranks":
        torch.distributed.destroy_process_group()


def samples() -> Any:
    """Return samples that carry noise from NumPy's and torch's global generators."""
    import numpy as np
    import torch

    class Noisy(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return ROWS * BATCHES

        def __getitem__(self, index: int) -> Any:
            generator = torch.Generator().manual_seed(index)
            x = torch.rand(2 * CELLS, generator=generator, dtype=torch.float64)
            noise = 0.01 * (torch.randn(CELLS, dtype=torch.float64) + np.random.normal())
            return x, x[CELLS:] + noise

    return Noisy()


def hybrid() -> Any:
    """Return a network with dropout that gives a rod its conductivity, and the rod."""
    import torch
    from torch import nn

    import adeptml_core as adeptml
    from adeptml_core import HybridConfig, HybridModel, PhysicsConfig

    torch.manual_seed(0)

    class Law(nn.Sequential):
        def forward(self, x: Any) -> Any:
            time.sleep(PAUSE)
            return super().forward(x)

    law = Law(
        nn.Linear(CELLS, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, CELLS), nn.Softplus()
    ).double()
    if "heat1d" not in adeptml.solvers():
        cube = PhysicsConfig(lambda x: x**3, lambda x, g: 3 * x**2 * g, use_vjp=True)
        return HybridModel(
            HybridConfig({"law": law, "cube": cube}, {"law": {"Input": list(range(CELLS))}})
        )
    constants = {"q": [0.0] * CELLS, "T_ext": [1.0, 0.0]}
    return HybridModel(
        HybridConfig(
            models={
                "law": law,
                "heat": PhysicsConfig(solver="heat1d", options={"t": 0.1}, args=constants),
            },
            model_inputs={
                "law": {"Input": list(range(CELLS))},
                "heat": {"Input": list(range(CELLS, 2 * CELLS))},
            },
            arg_inputs={"heat": {"k": {"law": None}}},
        )
    )


# ---- killing it ----------------------------------------------------------------------------------


def start(case: str, base: Path) -> "subprocess.Popen[bytes]":
    """Start the training in a process group of its own."""
    launcher = [sys.executable]
    if case == "ranks":
        launcher += ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        launcher += ["--nproc-per-node=2"]
    return subprocess.Popen(
        [*launcher, __file__, "--train", case, "--base", str(base)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=(base.parent / f"{base.name}.err").open("ab"),
        start_new_session=True,
    )


def finish(case: str, base: Path) -> float:
    """Let the training come to its end; return how long it took."""
    began = time.monotonic()
    process = start(case, base)
    if process.wait():
        log = (base.parent / f"{base.name}.err").read_text()
        raise SystemExit(f"{case}: the training failed by itself\n{log}")
    return time.monotonic() - began


def kill(case: str, base: Path, moment: float) -> bool:
    """Kill it and all its children `moment` s after its first checkpoint; False: too late."""
    process = start(case, base)
    had = stamp(base)
    while process.poll() is None and stamp(base) == had:
        time.sleep(0.005)
    time.sleep(moment)
    too_late = process.poll() is not None
    for group in {process.pid, *children(process.pid)}:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    process.wait()
    return not too_late


def children(pid: int) -> Iterator[int]:
    """Yield the children of a process, which torchrun starts in sessions of their own."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            yield from map(int, path.read_text().split())
        except OSError:
            continue


def stamp(base: Path) -> int:
    """Return what changes with every checkpoint."""
    try:
        return (base / "run_1" / "last.ckpt").stat().st_ino
    except FileNotFoundError:
        return 0


def differences(a: Path, b: Path) -> list[str]:
    """Return the names of what is not equal to the bit in the last states of two runs."""
    import torch

    found = []
    for name in ("model_final.pt", "last.ckpt"):
        one, other = (torch.load(base / "run_1" / name, weights_only=True) for base in (a, b))
        found += [f"{name}{place}" for place in unequal(one, other)]
    return found


def unequal(a: Any, b: Any, place: str = "") -> Iterator[str]:
    """Yield the places where two states differ."""
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if not torch.equal(a, b):
            yield place
    elif isinstance(a, dict) and isinstance(b, dict):
        for key in (a.keys() | b.keys()) - {"differentiable"}:  # LBFGS has it after a load only
            yield from unequal(a.get(key), b.get(key), f"{place}[{key!r}]")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from unequal(one, other, f"{place}[{index}]")
    elif a != b:
        yield place


def attack(case: str, kills: int, folder: Path) -> bool:
    """Kill a case `kills` times, each run up to three times; tell whether all were equal."""
    whole = folder / f"{case}-whole"
    plain = "adam" if case == CONTROL else case
    seconds = finish(plain, whole)
    work = EPOCHS * BATCHES * PAUSE
    equal = 0
    done = 0
    while done < kills:
        base = folder / f"{case}-{done}"
        wanted = min(random.randint(1, 3), kills - done)
        hits = sum(kill(case, base, random.uniform(0, work / 3)) for _ in range(wanted))
        finish(case, base)
        differs = differences(whole, base)
        equal += 0 if differs else hits
        done += hits
        verdict = "equal" if not differs else f"DIFFERENT in {len(differs)} places, {differs[0]}"
        print(f"{case:9s} killed {hits} times, resumed: {verdict}", flush=True)
        shutil.rmtree(base)
    print(f"{case:9s} {equal} of {done} kills ended equal ({seconds:.0f} s a whole run)")
    return equal == done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=0, help="of each case (default: 20 in all)")
    parser.add_argument("--cases", nargs="*", choices=[*CASES, CONTROL], default=[*CASES, CONTROL])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--base", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.train:
        train_case(settings.train, settings.base)
        return 0
    random.seed(settings.seed)
    right = True
    with tempfile.TemporaryDirectory() as folder:
        for case in settings.cases:
            kills = settings.kills or CASES.get(case, 1)
            right &= attack(case, kills, Path(folder)) is (case != CONTROL)
    print("as it must be" if right else "NOT as it must be")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
