"""Solvers side by side: error and time of each on the same problems, in one run.

`heat1d` and `pendulum` define the problems and the peers; here is what they share. A *peer* is a
name and a function that prepares a problem and returns a call: forward and all gradients. Each peer
lives in a process of its own, so that one which hangs can be ended, and one whose package is
missing leaves the others in peace. For every problem the parent asks each peer for its results,
which it holds against the reference, and then for short bursts of calls, peer after peer, round
after round: a neighbour's load falls on all of them alike.

Everything runs on one thread, and what is shown is the time that the *processor* spent, the median
over the rounds. On an idle machine that is the time by the clock.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

# NPROC is the size of XLA's pool. On two threads JAX's tridiagonal solve can stand still for good:
# each call occupies one of the pool while it waits for another, and two calls wait for each other.
ONE_THREAD = {
    "NPROC": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "JAX_PLATFORMS": "cpu",
}
BURST = 0.05  # s, of calls in a row
ROUNDS = 7
SLOW = 1.0  # s; such a call is made once in a burst, and in one round

Call = Callable[[], tuple[Any, Sequence[Any] | None]]
"""``() -> (y, gradients)``; None where the peer has no gradient."""


@dataclass(frozen=True)
class Peer:
    """One way to solve the problem.

    Parameters
    ----------
    label : str
    prepare : callable
        ``problem -> Call``. What is done once (compiling, conversion) is done here.
    needs : sequence of str
        Modules without which it cannot run.
    memory : callable, optional
        ``problem -> bytes`` that a call takes, where that may be too much.
    family : str
        What the picture draws in one colour.
    """

    label: str
    prepare: Callable[[Any], Call]
    needs: Sequence[str] = ()
    memory: Callable[[Any], float] | None = None
    family: str = ""


@dataclass(frozen=True)
class Cell:
    """What one peer did with one problem: either times and errors, or the reason why not."""

    peer: str
    family: str
    problem: str
    seconds: float | None = None
    error: float | None = None
    gradient_error: float | None = None
    said: str = ""


def torch_call(problem: Any, solution: Callable[..., Any]) -> Call:
    """Return the call of a function of tensors, with torch's gradients.

    Parameters
    ----------
    problem
        Its ``inputs()`` are those of the function, and the cotangent.
    solution : callable
        ``solution(*inputs) -> y``.
    """
    import torch

    torch.set_num_threads(1)
    *arrays, g = (torch.tensor(a) for a in problem.inputs())
    inputs = [a.requires_grad_() for a in arrays]

    def call() -> tuple[Any, Any]:
        y = solution(*inputs)
        gradients = torch.autograd.grad(y, inputs, g)
        return y.detach(), gradients

    return call


class Worker:
    """A peer in a process of its own, which is ended where it asks too much, and begun anew.

    Parameters
    ----------
    peer : Peer
    limit : float, s
        For one request.
    memory : float, bytes
        For one call.
    """

    def __init__(self, peer: Peer, limit: float, memory: float) -> None:
        self.peer, self.limit, self.memory = peer, limit, memory
        self.too_much: tuple[Any, str] | None = None  # a problem, and what came of it
        self.process: BaseProcess | None = None
        missing = [name for name in peer.needs if importlib.util.find_spec(name) is None]
        self.missing = f"needs {', '.join(missing)}" if missing else ""

    def prepare(self, problem: Any) -> Any:
        """Return the seconds of one call, y and the gradients; or a text that says why not."""
        if self.missing:
            return self.missing
        if self.too_much and problem.covers(self.too_much[0]):
            return self.too_much[1]
        if self.peer.memory and self.peer.memory(problem) > self.memory:
            answer: Any = f"> {self.memory / 2**30:.0f} GB"
        else:
            answer = self.ask("prepare", problem)
        if isinstance(answer, str):
            self.too_much = problem, answer
        return answer

    def ask(self, *request: Any) -> Any:
        """Return the answer, or a text that says why there is none."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(
                target=_serve, args=(self.peer, theirs, self.limit), daemon=True
            )
            self.process.start()
            theirs.close()
        self.pipe.send(request)
        try:
            # The clock on the wall, generously: it ends only what stands still.
            answer = self.pipe.recv() if self.pipe.poll(5 * self.limit) else "hangs"
        except (EOFError, OSError):
            self.process.join()
            too_long = self.process.exitcode == -signal.SIGPROF
            answer = f"> {self.limit:.0f} s" if too_long else "ran out of memory"
        if isinstance(answer, str):
            self.close()
        return answer

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def _serve(peer: Peer, pipe: Connection, limit: float) -> None:
    """Answer the parent: ``("prepare", problem)`` with results, ``("burst", count)`` with a time.

    An answer that is a string says what went wrong. The timer counts what the processor spends on
    this process, and its signal ends it, whatever it is doing.
    """
    call: Call
    while True:
        try:
            what, given = pipe.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, limit)
        try:
            if what == "prepare":
                call = peer.prepare(given)
                y, gradients = call()
                kept = None if gradients is None else [np.array(g) for g in gradients]
                pipe.send((_warm(call), np.array(y), kept))
            else:
                started = time.process_time()
                for _ in range(given):
                    call()
                pipe.send((time.process_time() - started) / given)
        except Exception as error:
            pipe.send(f"failed: {type(error).__name__}: {str(error).splitlines()[0][:60]}")


def _warm(call: Call) -> float:
    """Return the time of a call that is not the first, nor, if it is short, the tenth."""
    repeats = 1
    while True:
        started = time.process_time()
        for _ in range(repeats):
            call()
        spent = time.process_time() - started
        if spent > BURST or repeats > 1000:
            return spent / repeats
        repeats *= 4


def hold(
    peers: Sequence[Peer],
    problems: Sequence[Any],
    reference: Callable[[Any], tuple[Any, Sequence[Any]]],
    *,
    limit: float,
    memory: float,
) -> list[Cell]:
    """Let all peers solve all problems, and print what they did.

    Parameters
    ----------
    peers : sequence of Peer
        The first is the one to which times are compared.
    problems : sequence
        Each has a ``label``, and ``covers(other)``: at least as large. What was too much for a peer
        it is not asked again, nor what covers it.
    reference : callable
        ``problem -> (y, gradients)`` of the first few samples.
    limit : float, s
        For one request to a peer.
    memory : float, bytes
        What a call may take.
    """
    workers = [Worker(peer, limit, memory) for peer in peers]
    for worker in workers:
        if worker.missing:
            print(f"{worker.peer.label} is left out: it {worker.missing}", file=sys.stderr)
    cells: list[Cell] = []
    for problem in problems:
        answers = [worker.prepare(problem) for worker in workers]
        seconds = _times(workers, answers)
        expected = reference(problem)
        row = [
            _cell(worker.peer, problem, answer, spent, expected)
            for worker, answer, spent in zip(workers, answers, seconds, strict=True)
        ]
        _show(problem.label, row)
        cells += row
    for worker in workers:
        worker.close()
    return cells


def _times(workers: Sequence[Worker], answers: Sequence[Any]) -> list[float]:
    """Return the median time of a call of each worker; 0 of those that gave no answer."""
    once = [0.0 if isinstance(answer, str) else answer[0] for answer in answers]
    bursts: list[list[float]] = [[] for _ in workers]
    for turn in range(ROUNDS):
        for worker, spent, times in zip(workers, once, bursts, strict=True):
            if 0 < spent < SLOW or (spent >= SLOW and turn == 0):
                answer = worker.ask("burst", max(1, int(BURST / spent)))
                times.extend([] if isinstance(answer, str) else [answer])
    return [statistics.median(times or [spent]) for times, spent in zip(bursts, once, strict=True)]


def _cell(
    peer: Peer, problem: Any, answer: Any, seconds: float, expected: tuple[Any, Sequence[Any]]
) -> Cell:
    if isinstance(answer, str):
        return Cell(peer.label, peer.family, problem.label, said=answer)
    _, y, gradients = answer
    return Cell(
        peer.label,
        peer.family,
        problem.label,
        seconds=seconds,
        error=_distance([y], [expected[0]]),
        gradient_error=None if gradients is None else _distance(gradients, expected[1]),
    )


def _distance(got: Sequence[Any], expected: Sequence[Any]) -> float:
    """Return the largest relative distance in the 2-norm, sample by sample, array by array."""
    worst = 0.0
    for one, other in zip(got, expected, strict=True):
        rows = np.asarray(one, dtype=float)[: len(other)].reshape(len(other), -1)
        truth = np.asarray(other, dtype=float).reshape(len(other), -1)
        distance = np.linalg.norm(rows - truth, axis=1) / np.linalg.norm(truth, axis=1)
        worst = max(worst, float(distance.max())) if np.isfinite(distance).all() else np.inf
    return worst


# ---- what is shown -------------------------------------------------------------------------------


def _show(problem: str, cells: Sequence[Cell]) -> None:
    ours = cells[0].seconds
    print(f"\n{problem}\n  {'':34s}{'time':>12s}{'/ ours':>9s}{'error':>10s}{'of gradient':>13s}")
    for cell in cells:
        if cell.seconds is None:
            print(f"  {cell.peer:34s}{cell.said:>12s}", flush=True)
            continue
        ratio = f"{cell.seconds / ours:.2f}" if ours else "-"
        gradient = "none" if cell.gradient_error is None else f"{cell.gradient_error:.0e}"
        times = f"{_time(cell.seconds):>12s}{ratio:>9s}"
        print(f"  {cell.peer:34s}{times}{cell.error:>10.0e}{gradient:>13s}", flush=True)


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def markdown(cells: Sequence[Cell]) -> str:
    """Return the table of the docs: times as multiples of the first peer's, errors beneath."""
    problems = list(dict.fromkeys(cell.problem for cell in cells))
    peers = list(dict.fromkeys(cell.peer for cell in cells))
    at = {(cell.peer, cell.problem): cell for cell in cells}
    lines = [
        "| | error, of gradient | " + " | ".join(problems) + " |",
        "|---|---|" + "---|" * len(problems),
    ]
    for peer in peers:
        row = [at[peer, problem] for problem in problems]
        measured = [cell for cell in row if cell.seconds is not None]
        errors = _span([cell.error for cell in measured])
        gradients = [cell.gradient_error for cell in measured]
        of_gradient = "none" if None in gradients else _span(gradients)
        times = [_multiple(cell, at[peers[0], cell.problem]) for cell in row]
        lines.append(f"| {peer} | {errors}, {of_gradient} | " + " | ".join(times) + " |")
    return "\n".join(lines)


def _span(errors: Sequence[float | None]) -> str:
    known = [error for error in errors if error is not None]
    if not known:
        return "-"
    low, high = f"{min(known):.0e}", f"{max(known):.0e}"
    return low if low == high else f"{low} to {high}"


def _multiple(cell: Cell, ours: Cell) -> str:
    if cell.seconds is None or ours.seconds is None:
        return cell.said.partition(":")[0]  # why it failed is told where the problem is shown
    ratio = cell.seconds / ours.seconds
    return f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:,.0f}"


def draw(
    path: Path,
    cells: Sequence[Cell],
    rows: Sequence[str],
    columns: Sequence[str],
    colours: Mapping[str, str],
) -> None:
    """Draw error of the gradient (of y where there is none) against time, a panel each problem.

    Parameters
    ----------
    path : Path
    cells : sequence of Cell
    rows, columns : sequence of str
        Their labels; a problem's label is ``f"{column}, {row}"``. Those of none are left out.
    colours : mapping
        Of each family.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    held = {cell.problem for cell in cells}  # --quick holds the smallest alone
    rows = [row for row in rows if any(f"{column}, {row}" in held for column in columns)]
    columns = [column for column in columns if any(f"{column}, {row}" in held for row in rows)]
    plt.rcParams.update({"font.size": 9})
    figure, panels = plt.subplots(
        len(rows),
        len(columns),
        figsize=(3.3 * len(columns) + 2.2, 2.1 * len(rows) + 1.7),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    peers = list(dict.fromkeys(cell.peer for cell in cells if cell.seconds is not None))
    shapes = dict(zip(peers, _shapes(cells, peers), strict=True))
    for row, axes_row in zip(rows, panels, strict=True):
        for column, axes in zip(columns, axes_row, strict=True):
            for cell in cells:
                if cell.problem != f"{column}, {row}" or cell.seconds is None:
                    continue
                has_gradient = cell.gradient_error is not None
                error = max(filter(None, (cell.error, cell.gradient_error)))
                axes.loglog(
                    cell.seconds,
                    min(error, 1.0),
                    shapes[cell.peer],
                    color=colours[cell.family],
                    mfc=colours[cell.family] if has_gradient else "white",
                    ms=10 if cell.family == cells[0].family else 7,
                    mec="white" if has_gradient else colours[cell.family],
                    zorder=3 if cell.family == cells[0].family else 2,
                )
            axes.set_title(f"{column}, {row}", loc="left", fontsize=9)
            axes.grid(color="0.93")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylim(1e-15, 3.0)
    figure.supxlabel("time of forward and all gradients  [s]")
    figure.supylabel("relative error, the largest of all results")
    handles = []
    for peer in peers:
        family, has_gradient = _nature(cells, peer)
        face = colours[family] if has_gradient else "white"
        look = {"marker": shapes[peer], "ms": 7, "color": colours[family], "mfc": face}
        handles.append(plt.Line2D([], [], ls="", label=peer, **look))
    hollow = (
        {"title": "hollow: no gradient"} if any(not _nature(cells, p)[1] for p in peers) else {}
    )
    figure.legend(
        handles=handles, loc="outside right center", frameon=False, fontsize=8.5, **hollow
    )
    figure.savefig(path, dpi=150)


def _nature(cells: Sequence[Cell], peer: str) -> tuple[str, bool]:
    cell = next(cell for cell in cells if cell.peer == peer and cell.seconds is not None)
    return cell.family, cell.gradient_error is not None


def _shapes(cells: Sequence[Cell], peers: Sequence[str]) -> list[str]:
    """Return a marker for each peer, different within a family."""
    seen: dict[str, int] = {}
    chosen = []
    for peer in peers:
        family, _ = _nature(cells, peer)
        chosen.append("osD^v"[seen.get(family, 0) % 5])
        seen[family] = seen.get(family, 0) + 1
    return chosen


# ---- the command ---------------------------------------------------------------------------------


def parser(doc: str) -> argparse.ArgumentParser:
    """Return the options that both benchmarks take."""
    found = argparse.ArgumentParser(description=doc.splitlines()[0])
    found.add_argument(
        "--limit",
        type=float,
        default=60.0,
        help="processor seconds that one peer may spend on one problem",
    )
    found.add_argument("--memory", type=float, default=4.0, help="GB that a peer may take")
    found.add_argument("--only", default="", help="peers whose label contains this, and ours")
    found.add_argument("--quick", action="store_true", help="the smallest problem alone")
    found.add_argument("--save", type=Path, help="write the figures as JSON")
    found.add_argument("--load", type=Path, help="draw and tabulate saved figures; run nothing")
    found.add_argument("--plot", type=Path, help="draw error against time")
    found.add_argument("--markdown", action="store_true", help="print the table of the docs")
    return found


def run(
    settings: argparse.Namespace,
    peers: Sequence[Peer],
    problems: Sequence[Any],
    reference: Callable[[Any], tuple[Any, Sequence[Any]]],
) -> list[Cell]:
    """Hold the contest as the options say, or load one that was held."""
    if settings.load:
        return [Cell(**cell) for cell in json.loads(settings.load.read_text())]
    os.environ.update(ONE_THREAD)  # the workers inherit it
    chosen = [peer for peer in peers if settings.only in peer.label or peer is peers[0]]
    cells = hold(
        chosen,
        problems[:1] if settings.quick else problems,
        reference,
        limit=settings.limit,
        memory=settings.memory * 2**30,
    )
    if settings.save:
        settings.save.write_text(json.dumps([asdict(cell) for cell in cells], indent=1))
    return cells


def main(
    doc: str,
    peers: Sequence[Peer],
    problems: Sequence[Any],
    reference: Callable[[Any], tuple[Any, Sequence[Any]]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    colours: Mapping[str, str],
) -> None:
    """Be the command of a benchmark: hold the contest, tabulate and draw, as the options say.

    Parameters
    ----------
    doc : str
        Of the benchmark: its first line is the command's help.
    peers, problems, reference
        As of `hold`.
    rows, columns, colours
        As of `draw`.
    """
    settings = parser(doc).parse_args()
    cells = run(settings, peers, problems, reference)
    if settings.markdown:
        print(markdown(cells))
    if settings.plot:
        draw(settings.plot, cells, rows, columns, colours)
