"""Time and peak memory of one solver call with its gradient: ours, bare numpy, and two peers.

For each mode and size the same element-wise cube runs forward and backward

- *numpy*: the solver's two functions, called by hand: what nobody can beat;
- *by name*: through `adeptml_core.autograd.apply` and a `SolverSpec`;
- *functions*: through `Physics`, `Physics_VJP`, `Physics_SplitVJP`;
- *adeptml 2.1*: the same bare functions through its classes (``pip install adeptml==2.1``);
- *tesseract*: the same as a Tesseract in process (`tesseract_cube.py`), through tesseract-torch; it
  has one way to differentiate, the vector-Jacobian product.

All run interleaved in one process, on one thread; shown are medians over the rounds, and ratios of
medians. Peak memory is what numpy and torch allocate above the inputs, in units of one array, from
a run of its own for each.

::

    python -m venv scratch
    scratch/bin/pip install -e . adeptml==2.1 tesseract-torch "tesseract-core[runtime]"
    scratch/bin/python benchmarks/operator.py
"""

import sys

if sys.path and sys.path[0].endswith("benchmarks"):
    del sys.path[0]  # or this file would stand in for the standard library's `operator`

import argparse
import functools
import gc
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adeptml_core import autograd, models
from adeptml_core.plugin import Array, SolverSpec
from adeptml_core.solver import Solver

MODES = ("jacobian", "vjp", "split_vjp")
SIZES = ((1, 8), (32, 8), (4096, 1024))
BURST = 0.01  # seconds; the same for all, so that a slow one does not leave the others cold
# A Jacobian of the large size would hold 32 GiB: there the mode is measured at 4096 x 16.
LARGE_JACOBIAN = (4096, 16)


def cube(x: Any) -> Any:
    return x * x * x


def cube_jacobian(x: Any) -> Any:
    jacobian = np.zeros((*x.shape, x.shape[1]), x.dtype)
    diagonal = np.arange(x.shape[1])
    jacobian[:, diagonal, diagonal] = 3 * x * x
    return jacobian


def cube_vjp(x: Any, g: Any) -> Any:
    return 3 * x * x * g


def cube_split(x: Any) -> Any:
    return x * x * x, lambda g: (3 * x * x * g,)


def spec(mode: str) -> SolverSpec:
    functions = {
        "jacobian": {"forward": cube, "jacobian": cube_jacobian},
        "vjp": {"forward": cube, "vjp": cube_vjp},
        "split_vjp": {"forward": cube_split},
    }
    return SolverSpec(
        name="cube",
        mode=mode,
        summary="x to the third",
        x=Array("x", ("n",)),
        y=Array("y", ("n",)),
        **functions[mode],
    )


def by_hand(mode: str) -> Callable[[Any, Any], Any]:
    """Return (x, g) -> (y, dx) in numpy alone."""
    if mode == "jacobian":
        return lambda x, g: (cube(x), np.matmul(g[:, None], cube_jacobian(x))[:, 0])
    if mode == "vjp":
        return lambda x, g: (cube(x), cube_vjp(x, g))

    def split(x: Any, g: Any) -> Any:
        y, pullback = cube_split(x)
        return y, pullback(g)[0]

    return split


def classes(module: Any, mode: str) -> Callable[[Any], Any]:
    """Return x -> y through the classes that take bare functions."""
    if mode == "jacobian":
        return lambda x: module.Physics.apply(x, cube, cube_jacobian)
    if mode == "vjp":
        return lambda x: module.Physics_VJP.apply(x, cube, cube_vjp)
    return lambda x: module.Physics_SplitVJP.apply(x, cube_split)


def rivals(mode: str) -> dict[str, Callable[[Any], Any]]:
    """Return the ways through torch, by label."""
    solver = Solver(spec(mode))
    ways: dict[str, Callable[[Any], Any]] = {
        "by name": lambda x: autograd.apply(solver, x),
        "functions": classes(models, mode),
    }
    try:
        import adeptml.models as upstream
    except ImportError:
        print("adeptml 2.1 is not installed here: no comparison with it", file=sys.stderr)
    else:
        ways["adeptml 2.1"] = classes(upstream, mode)
    if mode == "vjp" and (way := tesseract()):
        ways["tesseract"] = way
    return ways


@functools.cache
def tesseract() -> Callable[[Any], Any] | None:
    """Return x -> y through tesseract-torch, where it is installed."""
    try:
        from tesseract_core import Tesseract
        from tesseract_torch import apply_tesseract
    except ImportError:
        print("tesseract-torch is not installed here: no comparison with it", file=sys.stderr)
        return None
    cube = Tesseract.from_tesseract_api(Path(__file__).with_name("tesseract_cube.py"))
    return lambda x: apply_tesseract(cube, {"x": x})["y"]


def runs(mode: str, shape: tuple[int, int], *, grad: bool = True) -> dict[str, Callable[[], Any]]:
    """Return what is timed: forward and backward, or forward alone without grad."""
    x = torch.randn(shape, dtype=torch.float64, requires_grad=grad)
    g = torch.randn(shape, dtype=torch.float64)
    array, cotangent = x.detach().numpy(), g.numpy()
    hand = by_hand(mode)
    forward = (lambda x: cube_split(x)[0]) if mode == "split_vjp" else cube

    def through(way: Callable[[Any], Any]) -> Callable[[], Any]:
        return (lambda: torch.autograd.grad(way(x), x, g)) if grad else (lambda: way(x))

    plain: Callable[[], Any] = (
        (lambda: hand(array, cotangent)) if grad else (lambda: forward(array))
    )
    return {"numpy": plain} | {label: through(way) for label, way in rivals(mode).items()}


def timed(run: Callable[[], Any], repeats: int) -> float:
    """Return the seconds of one run, collector off, as `timeit` has it."""
    gc.disable()
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    passed = time.perf_counter() - started
    gc.enable()
    return passed / repeats


def medians(ways: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Interleave short bursts of all ways; return the median time of each, in seconds."""
    bursts: dict[str, list[float]] = {label: [] for label in ways}
    for run in ways.values():
        timed(run, 3)
    once = {label: min(timed(run, 2) for _ in range(3)) for label, run in ways.items()}
    repeats = {label: max(1, int(BURST / time)) for label, time in once.items()}
    rounds = max(7, int(seconds / sum(repeats[label] * time for label, time in once.items())))
    for _ in range(rounds):
        for label, run in ways.items():
            bursts[label].append(timed(run, repeats[label]))
    return {label: statistics.median(times) for label, times in bursts.items()}


def peak(mode: str, shape: tuple[int, int], label: str) -> float:
    """Return the peak of resident memory above the inputs in a process of its own, in arrays."""
    command = [sys.executable, __file__, "--peak", mode, str(shape[0]), str(shape[1]), label]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout) / (8 * shape[0] * shape[1])


def measure_peak(mode: str, shape: tuple[int, int], label: str) -> float:
    """Return the bytes by which one run raises this process's resident peak."""
    small = runs(mode, (2, 2))[label]
    small()  # what is loaded once is not counted
    run = runs(mode, shape)[label]
    _reset_peak()
    before = _resident("VmRSS")
    kept = run()  # results stay alive, as in a training step
    after = _resident("VmHWM")
    del kept
    return after - before


def _reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")


def _resident(field: str) -> float:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return 1024.0 * float(line.split()[1])


def table(seconds: float) -> None:
    labels = ["numpy", "by name", "functions", "adeptml 2.1", "tesseract"]
    print(f"{'':34s}" + "".join(f"{label:>14s}" for label in labels) + f"{'by name /':>16s}")
    print(f"{'mode':11s}{'x':>12s}{'':11s}" + " " * 70 + f"{'2.1':>10s}{'numpy':>7s}")
    for mode in MODES:
        for size in SIZES:
            shape = LARGE_JACOBIAN if mode == "jacobian" and size == SIZES[-1] else size
            for grad in (True, False):
                what = "f + b" if grad else "no grad"
                with torch.set_grad_enabled(grad):
                    found = medians(runs(mode, shape, grad=grad), seconds)
                _row(mode, shape, what, labels, found, lambda v: f"{1e6 * v:.1f} us")
            if size == SIZES[-1]:
                peaks = {label: peak(mode, shape, label) for label in found}
                _row(mode, shape, "peak", labels, peaks, lambda v: f"{v:.2f} arrays")


def _row(
    mode: str,
    shape: tuple[int, int],
    what: str,
    labels: list[str],
    found: dict[str, float],
    shown: Callable[[float], str],
) -> None:
    cells = "".join(f"{shown(found[la]) if la in found else '-':>14s}" for la in labels)
    ours, upstream = found["by name"], found.get("adeptml 2.1")
    against = f"{ours / upstream:10.2f}" if upstream else f"{'-':>10s}"
    size = f"{shape[0]} x {shape[1]}"
    print(
        f"{mode:11s}{size:>12s} {what:10s}{cells}{against}{ours / found['numpy']:7.2f}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each line of the table")
    parser.add_argument("--peak", nargs=4, metavar=("MODE", "ROWS", "COLUMNS", "LABEL"))
    settings = parser.parse_args()
    torch.set_num_threads(1)
    if settings.peak:
        mode, rows, columns, label = settings.peak
        print(measure_peak(mode, (int(rows), int(columns)), label))
    else:
        table(settings.seconds)


if __name__ == "__main__":
    main()
