"""The optional derivatives: jvp by the dot-product test, hvp by differences of the pullback."""

from typing import Any

import numpy as np

from adeptml_core.conformance.basics import cotangent_for, natural
from adeptml_core.conformance.diagnosis import ratio_of
from adeptml_core.conformance.differences import estimate, sweep
from adeptml_core.conformance.judgement import BARS
from adeptml_core.conformance.lines import CallBench, Floats, Lines, make_lines
from adeptml_core.conformance.points import spread_of
from adeptml_core.conformance.probe import Inputs, Probe, magnitude
from adeptml_core.conformance.records import Diagnosis, Finding, failed, passed, skipped

__all__ = ["check_hvp_agrees", "check_jvp_agrees"]

AGREEMENT = {"float64": 1e-8, "float32": 1e-3}
DIRECTIONS = 4


def check_jvp_agrees(probe: Probe) -> Finding:
    """Catch a jvp that is not the transpose of the pullback: ``<J v, w> == <v, J^T w>``."""
    if probe.spec.jvp is None:
        return skipped("no jvp is declared")
    rng = probe.rng("jvp")
    limit = probe.tolerance(probe.dtype, AGREEMENT["float64"], AGREEMENT["float32"])
    scale = spread_of(probe, 0)
    for number in range(DIRECTIONS):
        inputs = natural(probe, 4, f"jvp {number}")
        y, pullback = probe.linearize(inputs)
        v = (rng.standard_normal(inputs[0].shape) * scale).astype(y.dtype)
        w = cotangent_for(y, rng)
        moved = np.asarray(probe.call("jvp", inputs[0], v, *inputs[1:]))
        if moved.shape != y.shape or moved.dtype != y.dtype:
            return failed(
                f"jvp returned {moved.dtype} of shape {moved.shape}, expected {y.dtype} of shape "
                f"{y.shape}, that of y",
                array=probe.spec.y.name,
                expected=list(y.shape),
                got=list(moved.shape),
            )
        pulled = pullback(w)[0]
        assert pulled is not None, "x is always differentiable"
        left, right = (np.asarray(a * b, np.float64) for a, b in ((moved, w), (v, pulled)))
        size = max(np.linalg.norm(left), np.linalg.norm(right))
        off = abs(left.sum() - right.sum()) / size if size else 0.0
        if off > limit or not np.isfinite(left).all():
            return _jvp_finding(probe, float(left.sum()), float(right.sum()), off)
    return passed(f"{DIRECTIONS} pairs")


def _jvp_finding(probe: Probe, left: float, right: float, off: float) -> Finding:
    ratio = left / right if right else 0.0
    known = {-1.0: Diagnosis.SIGN, 2.0: Diagnosis.FACTOR, 0.5: Diagnosis.FACTOR}
    diagnosis = next((d for r, d in known.items() if abs(ratio - r) < 1e-3), Diagnosis.UNKNOWN)
    return failed(
        f"<jvp(v), w> = {left:.6g}, but <v, pullback(w)> = {right:.6g} (relative difference "
        f"{off:.2g}): jvp and pullback are not transposes of one another.\n"
        f"look at: {probe.where('jvp')}; the gradient checks say whether the pullback is right.",
        diagnosis,
        array=probe.name(0),
        expected=right,
        got=left,
        relative_error=off,
    )


class _PullbackBench(CallBench):
    """The gradient of x as if it were the solver's result: its differences are what hvp claims."""

    def __init__(self, probe: Probe, points: list[Inputs], cotangent: Any) -> None:
        super().__init__(probe, points)
        self.cotangent = cotangent

    def _along(self, lines: Lines, line: int, multiples: Floats) -> Floats:
        x, *args = self.points[lines.point[line]]
        base = np.asarray(x, np.float64)
        values = []
        for multiple in multiples:
            moved = (base + (lines.unit[line] * multiple).reshape(base.shape)).astype(self.dtype)
            pulled = self.probe.pull((moved, *args), self.cotangent)[0]
            values.append(np.ravel(np.asarray(pulled)))
        return np.asarray(np.stack(values), np.float64)


def check_hvp_agrees(probe: Probe) -> Finding:
    """Catch an hvp that is not the derivative of the gradient of x along v."""
    if probe.spec.hvp is None:
        return skipped("no hvp is declared")
    rng = probe.rng("hvp")
    limit = probe.tolerance(probe.dtype, 1e-6, 1e-2)
    for number in range(2):
        inputs = natural(probe, 2, f"hvp {number}")
        g = cotangent_for(probe.forward(inputs), rng)
        scale = np.broadcast_to(spread_of(probe, 0), inputs[0].shape).ravel()
        bench = _PullbackBench(probe, [inputs], g)
        direction = (rng.standard_normal(scale.shape) * scale)[None]
        lines = make_lines(bench, 0, np.zeros(1, np.intp), direction)
        slope, bar, _ = estimate(sweep(bench, lines)).best()
        v = lines.direction.reshape(inputs[0].shape).astype(bench.dtype)
        got = np.asarray(probe.call("hvp", inputs[0], g, v, *inputs[1:]))
        if got.shape != v.shape:
            return failed(
                f"hvp returned shape {got.shape}, expected {v.shape}, that of x",
                array=probe.name(0),
                expected=list(v.shape),
                got=list(got.shape),
            )
        error = np.abs(np.ravel(got) - slope[0])
        allowed = limit * max(magnitude(slope), magnitude(got)) + BARS * bar[0]
        if (error > allowed).any() or not np.isfinite(got).all():
            return _hvp_finding(probe, got, slope[0], int(np.argmax(error - allowed)))
    return passed()


def _hvp_finding(probe: Probe, got: Any, slope: Any, worst: int) -> Finding:
    ratio = ratio_of(got, slope)
    note = f"; it is {ratio:.4g} times that throughout" if ratio is not None else ""
    where = np.unravel_index(worst, got.shape)
    return failed(
        f"hvp is not the derivative of the gradient of x: entry {list(map(int, where))} is "
        f"{got[where]:.6g}, differences of the gradient say {slope[worst]:.6g}{note}.\n"
        f"look at: {probe.where('hvp')}",
        Diagnosis.UNKNOWN
        if ratio is None
        else Diagnosis.SIGN
        if abs(ratio + 1) < 0.01
        else Diagnosis.FACTOR,
        array=probe.name(0),
        index=where,
        expected=float(slope[worst]),
        got=float(got[where]),
    )
