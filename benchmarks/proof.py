"""What the proof finds, and what other gradient checkers find, on the same solvers.

Run: ``python benchmarks/proof.py [--needle-seeds N] [--only NAME ...]``

Every checker gets the public catalogue (`tests/catalogue`): solvers with one defect each, their
healthy twins and right but awkward ones, wrapped as its documentation tells: the plainest
``torch.autograd.Function``, a ``jax.custom_vjp`` around callbacks, a Tesseract with ``apply`` and
``vector_jacobian_product``. Each checker runs with its own defaults, at the catalogue's example.

* *found*: a defect for which the checker says no, or raises. Half of the defects are in the state,
  the memory or the batches, which a gradient checker is not made to see; they are what training
  meets all the same. *gradient*: those that are wrong in the derivative.
* *alarms*: right solvers for which it says no. Skipped solvers (a checker has no integer inputs)
  count for neither.
* *calls*: forward and derivative calls of the solver, the median over the catalogue; *time*: all.

JAX and tesseract-core are optional: what is not installed is left out, with a word. Everything runs
in this process; Tesseract's own command would start a server or a container, so its
``check_gradients`` is called as its command line calls it.
"""

import sys

if sys.path[0].endswith("benchmarks"):
    # The catalogue lives in the tests; and operator.py beside this file must not stand in for the
    # standard library's `operator`.
    sys.path[0] = sys.path[0].removesuffix("benchmarks") + "tests"

import argparse
import contextlib
import io
import statistics
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from catalogue.awkward import AWKWARD
from catalogue.defects import DEFECTS, SEVERAL

from adeptml_core.conformance import Run, Settings, Subject

BATCH, LARGE = 3, 10_000
STATIC = ("functions", "parameters", "expected-failures", "example", "jvp", "hvp")
"""Checks of what no other checker is given: specs, examples, optional derivatives."""


class Skip(Exception):  # noqa: N818 - no error
    """A solver that a checker cannot be given."""


class Wrapped:
    """A solver as plain functions of its floating inputs, its calls counted."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self.options = spec.resolve_options({})
        self.calls = 0
        if spec.example is None:
            raise Skip("no example")
        drawn = spec.example(np.random.default_rng(0), BATCH, **self.options)
        if np.size(drawn[0]) > LARGE:  # some of the others build the whole Jacobian
            drawn = spec.example(np.random.default_rng(0), 1, **self.options)
        self.dtype = "float64" if "float64" in spec.dtypes else spec.dtypes[0]
        self.inputs = [
            np.asarray(v).astype(a.dtype or self.dtype)
            for v, a in zip(drawn, spec.inputs, strict=True)
        ]
        self.moving = [i for i, d in enumerate(spec.differentiable) if d]

    def forward(self, *inputs: Any) -> tuple[Any, Any]:
        """Return y and the function that gives the cotangents of all inputs."""
        spec, options = self.spec, self.options
        self.calls += 1
        if spec.mode == "split_vjp":
            y, pullback = spec.forward(*inputs, **options)
            return y, self._counted(pullback)
        y = spec.forward(*inputs, **options)
        if spec.mode == "vjp":
            return y, self._counted(lambda g: spec.vjp(inputs[0], g, *inputs[1:], **options))
        return y, self._counted(lambda g: self._contracted(inputs, g))

    def _counted(self, pull: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
        def counted(g: Any) -> tuple[Any, ...]:
            self.calls += 1
            pulled = pull(g)
            return tuple(pulled) if isinstance(pulled, tuple | list) else (pulled,)

        return counted

    def _contracted(self, inputs: Any, g: Any) -> tuple[Any, ...]:
        jacobian = self.spec.jacobian(*inputs, **self.options)
        entries = jacobian if isinstance(jacobian, tuple | list) else (jacobian,)
        return tuple(np.einsum("bi,bij->bj", g, J) for J in entries)


# ---- the checkers: each returns whether it says yes ---------------------------------------------


def ours(spec: Any) -> tuple[bool, int]:
    """Examine with this project's proof; inconclusive is no alarm."""
    run = Run(Subject(spec), Settings())
    report = run.report()
    return report.verdict != "failed", report.calls


def torch_gradcheck(spec: Any, *, fast: bool) -> tuple[bool, int]:
    """``torch.autograd.gradcheck``."""
    import torch

    wrapped = Wrapped(spec)

    class Solve(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> Any:
            y, ctx.pull = wrapped.forward(*(t.detach().numpy() for t in tensors))
            return torch.from_numpy(np.asarray(y))

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            pulled = ctx.pull(g.numpy())
            pulled = (*pulled, *[None] * (len(wrapped.inputs) - len(pulled)))
            return tuple(
                torch.from_numpy(np.asarray(v)) if i in wrapped.moving and v is not None else None
                for i, v in enumerate(pulled)
            )

    tensors = [
        torch.from_numpy(np.array(v)).requires_grad_(i in wrapped.moving)
        for i, v in enumerate(wrapped.inputs)
    ]
    try:
        good = torch.autograd.gradcheck(Solve.apply, tensors, fast_mode=fast)
    except Exception:
        good = False
    return bool(good), wrapped.calls


def jax_check_grads(spec: Any) -> tuple[bool, int]:
    """``jax.test_util.check_grads``, first order, reverse mode."""
    import jax
    from jax.test_util import check_grads

    wrapped = Wrapped(spec)
    moving = [wrapped.inputs[i] for i in wrapped.moving]

    def full(parts: Any) -> list[Any]:
        filled = list(wrapped.inputs)
        for i, part in zip(wrapped.moving, parts, strict=True):
            filled[i] = np.asarray(part)
        return filled

    pulls: dict[int, Any] = {}

    @jax.custom_vjp
    def solve(*parts: Any) -> Any:
        return np.asarray(wrapped.forward(*full(parts))[0])

    def ahead(*parts: Any) -> Any:
        y, pull = wrapped.forward(*full(parts))
        pulls[len(pulls)] = pull
        return np.asarray(y), len(pulls) - 1

    def back(kept: int, g: Any) -> tuple[Any, ...]:
        pulled = pulls[int(kept)](np.asarray(g))
        return tuple(np.asarray(pulled[i]) for i in wrapped.moving)

    solve.defvjp(ahead, back)
    try:
        with jax.enable_x64(True):
            check_grads(solve, moving, order=1, modes=["rev"])
    except Exception:
        return False, wrapped.calls
    return True, wrapped.calls


def tesseract(spec: Any) -> tuple[bool, int]:
    """Tesseract's ``check-gradients``, by the function that its command line calls."""
    from pydantic import BaseModel, create_model
    from tesseract_core.runtime import Array, Differentiable, Float32, Float64
    from tesseract_core.runtime.testing.finite_differences import check_gradients

    wrapped = Wrapped(spec)
    kind = Float64 if wrapped.dtype == "float64" else Float32
    names = [f"i{i}" for i in wrapped.moving]

    def arrays(shapes: dict[str, int]) -> dict[str, Any]:
        return {n: (Differentiable[Array[(None,) * r, kind]], ...) for n, r in shapes.items()}

    ranks = {n: wrapped.inputs[i].ndim for n, i in zip(names, wrapped.moving, strict=True)}
    InputSchema: type[BaseModel] = create_model("InputSchema", **arrays(ranks))
    y, _ = wrapped.forward(*wrapped.inputs)
    OutputSchema: type[BaseModel] = create_model("OutputSchema", **arrays({"y": np.ndim(y)}))

    def full(inputs: Any) -> list[Any]:
        filled = list(wrapped.inputs)
        for name, i in zip(names, wrapped.moving, strict=True):
            filled[i] = np.asarray(getattr(inputs, name))
        return filled

    def apply(inputs: InputSchema) -> OutputSchema:  # type: ignore[valid-type]
        return OutputSchema(y=wrapped.forward(*full(inputs))[0])

    def vector_jacobian_product(
        inputs: InputSchema,  # type: ignore[valid-type]
        vjp_inputs: set[str],
        vjp_outputs: set[str],
        cotangent_vector: dict[str, Any],
    ) -> dict[str, Any]:
        pulled = wrapped.forward(*full(inputs))[1](np.asarray(cotangent_vector["y"]))
        return {n: pulled[i] for n, i in zip(names, wrapped.moving, strict=True) if n in vjp_inputs}

    module = types.ModuleType("tesseract_api")
    for thing in (InputSchema, OutputSchema, apply, vector_jacobian_product):
        setattr(module, thing.__name__, thing)
    values = {n: wrapped.inputs[i] for n, i in zip(names, wrapped.moving, strict=True)}
    try:
        results = check_gradients(module, {"inputs": values}, seed=0, show_progress=False)
        good = not any(failures for _, failures, _ in results)
    except Exception:
        good = False
    return good, wrapped.calls


# ---- the table ----------------------------------------------------------------------------------


@dataclass
class Score:
    """What one checker did on the whole catalogue."""

    found: int = 0
    defects: int = 0
    gradient_found: int = 0
    gradients: int = 0
    alarms: int = 0
    right: int = 0
    skipped: int = 0
    seconds: float = 0.0
    calls: list[int] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    alarmed: list[str] = field(default_factory=list)


def solvers(only: list[str]) -> Iterator[tuple[str, str, Any]]:
    """Yield name, kind and maker: ``state`` or ``gradient`` for defects, ``right`` for others."""
    for name, defect in {**DEFECTS, **SEVERAL}.items():
        if (only and name not in only) or defect.check in STATIC:
            continue
        kind = "gradient" if defect.check.startswith("gradient") else "state"
        yield name, kind, defect.make
        yield f"{name}, healthy", "right", lambda make=defect.make: make(None)
    for name, make in AWKWARD.items():
        if not only or name in only:
            yield name, "right", make


def scored(check: Callable[[Any], tuple[bool, int]], only: list[str]) -> Score:
    """Give every solver of the catalogue to one checker."""
    score = Score()
    for name, kind, make in solvers(only):
        started = time.perf_counter()
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(None):
                good, calls = check(make())
        except Skip:
            score.skipped += 1
            continue
        score.seconds += time.perf_counter() - started
        score.calls.append(calls)
        if kind == "right":
            score.right += 1
            score.alarms += not good
            score.alarmed += [] if good else [name]
            continue
        score.defects += 1
        score.found += not good
        score.missed += [name] if good else []
        if kind == "gradient":
            score.gradients += 1
            score.gradient_found += not good
    return score


def checkers() -> dict[str, Callable[[Any], tuple[bool, int]]]:
    """Return the checkers that are installed; say which are not."""
    found = {
        "adeptml plugins check": ours,
        "torch gradcheck": lambda spec: torch_gradcheck(spec, fast=False),
        "torch gradcheck, fast mode": lambda spec: torch_gradcheck(spec, fast=True),
    }
    for module, name, check in (
        ("jax", "jax check_grads", jax_check_grads),
        ("tesseract_core.runtime", "tesseract check-gradients", tesseract),
    ):
        try:
            __import__(module)
        except ImportError as error:
            print(f"left out: {name} ({error})")
        else:
            found[name] = check
    return found


def needles(seeds: int) -> str:
    """Return in how many of so many seeds one wrong entry of 4096 is found, and by what calls."""
    found, calls = 0, []
    for seed in range(seeds):
        run = Run(Subject(DEFECTS["one of 4096"].make()), Settings(seed=seed, parts=("gradient",)))
        report = run.report()
        found += report.verdict == "failed"
        calls.append(report.calls)
    small = Run(
        Subject(DEFECTS["one of 4096"].make(n=2048)), Settings(parts=("gradient",))
    ).report()
    return (
        f"one wrong entry of 4096: found for {found} of {seeds} seeds, "
        f"{statistics.median(calls):.0f} calls of the solver (2048 entries: {small.calls})"
    )


def held(seeds: int) -> str:
    """Return what the proof misses and raises over so many seeds of the catalogue."""
    counts = dict.fromkeys(("defects", "missed", "diagnosis", "right", "alarms", "undecided"), 0)
    for seed in range(seeds):
        for defect in (DEFECTS | SEVERAL).values():
            report = Run(Subject(defect.make()), Settings(seed=seed)).report()
            given = [r.data["diagnosis"] for r in report.records if r.status == "failed"]
            counts["defects"] += 1
            counts["missed"] += not given
            counts["diagnosis"] += defect.diagnosis in given
        for make in AWKWARD.values():
            verdict = Run(Subject(make()), Settings(seed=seed)).report().verdict
            counts["right"] += 1
            counts["alarms"] += verdict == "failed"
            counts["undecided"] += verdict == "inconclusive"
    return (
        "over {seeds} seeds: {missed} of {defects} defects missed, {diagnosis} with the right "
        "diagnosis; of {right} awkward ones {alarms} failed, {undecided} undecided"
    ).format(seeds=seeds, **counts)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--needle-seeds", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=0, help="of the whole catalogue")
    parser.add_argument("--only", nargs="*", default=[], help="solvers of the catalogue")
    parser.add_argument("--names", action="store_true", help="name what was missed, and alarms")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    print(
        f"{'':28}{'found':>10}{'gradient':>10}{'alarms':>10}{'skipped':>9}{'calls':>7}{'time':>9}"
    )
    for name, check in checkers().items():
        s = scored(check, given.only)
        print(
            f"{name:28}{f'{s.found}/{s.defects}':>10}{f'{s.gradient_found}/{s.gradients}':>10}"
            f"{f'{s.alarms}/{s.right}':>10}{s.skipped:>9}{statistics.median(s.calls or [0]):>7.0f}"
            f"{s.seconds:>7.1f} s",
            flush=True,
        )
        if given.names:
            print(f"    missed: {', '.join(s.missed) or '-'}\n    alarms: {', '.join(s.alarmed)}")
    if given.seeds:
        print(held(given.seeds))
    if given.needle_seeds:
        print(needles(given.needle_seeds))


if __name__ == "__main__":
    main()
