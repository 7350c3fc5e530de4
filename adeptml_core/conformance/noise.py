"""How rough the solver's values are, measured where it matters: before a law is called broken.

A solver that iterates until the whole batch has converged gives a row slightly other values in
another batch; within the accuracy that it has, that is no coupling. The accuracy shows in the jumps
of its values along a line.
"""

import numpy as np

from adeptml_core.conformance.basics import cotangent_for, natural
from adeptml_core.conformance.judgement import JUMPS, roughness
from adeptml_core.conformance.lines import CallBench, RowBench, make_lines
from adeptml_core.conformance.points import spread_of
from adeptml_core.conformance.probe import AnyArray, Inputs, Probe, close

__all__ = ["within"]

MOST = 1e-3  # relative: what jumps more than this is not noise
LINES = 4
REPEATS = 6
GENEROUS = 10.0  # single rows of a small batch scatter more than the largest of all


def within(probe: Probe, difference: float, limit: float) -> bool:
    """Tell whether a relative difference is allowed: by the limit, or by the solver's own noise."""
    if difference <= limit:
        return True
    if probe.spec.deterministic and not difference <= MOST:
        return False
    if probe.noise is None:
        probe.noise = _measured(probe) if probe.spec.deterministic else _spread(probe)
    return difference <= probe.noise


def _spread(probe: Probe) -> float:
    """Return how far equal calls of a solver of declared randomness lie apart, generously."""
    inputs = natural(probe, label="spread")
    runs = [_answers(probe, inputs) for _ in range(REPEATS)]
    return GENEROUS * max(
        close(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True)
    )


def _answers(probe: Probe, inputs: Inputs) -> list[AnyArray]:
    y, pullback = probe.linearize(inputs)
    pulled = pullback(cotangent_for(y, probe.rng("spread of results")))
    return [np.array(y), *(np.array(value) for value in pulled if value is not None)]


def _measured(probe: Probe) -> float:
    """Return 20 times the relative size of jumps along lines in x through the example."""
    rng = probe.rng("noise")
    spread = spread_of(probe, 0)
    if probe.coupled:
        bench: CallBench | RowBench = CallBench(probe, [probe.draw(rng, 3)])
        count = 1
    else:
        bench, count = RowBench(probe, probe.examples("noise", LINES)), LINES
    scale = np.broadcast_to(spread, bench.shape(0)).ravel()
    direction = rng.standard_normal((count, scale.size)) * scale
    lines = make_lines(bench, 0, np.arange(count), direction)
    value = bench.at(lines, np.zeros(1))[:, 0]
    weights = rng.standard_normal(value.shape)
    found = roughness(bench, lines, weights)
    size = np.sqrt(((weights * value) ** 2).sum(axis=1))
    relative = np.where(size > 0, found.jump / np.where(size > 0, size, 1.0), 0.0)
    return float(min(MOST, JUMPS * np.nan_to_num(relative).max()))
