"""Where a solver is examined: its example, and what its bounds promise beyond.

An example shows how the author thinks the solver is used; the bounds are what the author promises.
Defects hide where nobody looks: in a regime that the example does not reach, at equal entries where
a divided difference is 0/0, next to a bound.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from adeptml_core.conformance.lines import Floats
from adeptml_core.conformance.probe import AnyArray, Inputs, Probe

__all__ = ["bounded_points", "corners", "free_points", "joined", "spread_of"]

DRAWS_FOR_SPREAD = 32
NEAR = 1e-2  # of the span: "next to a bound", where differences still have room
LOWEST_DECADE = 1e-3  # of the typical size, where log-uniform draws from 0 begin


def spread_of(probe: Probe, index: int) -> Floats:
    """Return the usual spread of each component of input `index`, in its core shape.

    The standard deviation over many draws of the example; where a component never varies, the mean
    of the others; where none does, 0.3 of the largest value.
    """
    rng = probe.rng("spread")
    if probe.is_stacked(index):
        draws = probe.stacked(probe.draw(rng, DRAWS_FOR_SPREAD))[index]
        draws = np.concatenate([draws, probe.stacked(probe.draw(rng, 2))[index]])
    else:
        draws = np.stack([probe.draw(rng, 2)[index] for _ in range(8)])
    values = np.asarray(draws, np.float64)
    spread, largest = values.std(axis=0), np.abs(values).max(axis=0, initial=0.0)
    varies = spread > 1e-9 * largest
    if not varies.any():
        return np.full(spread.shape, 0.3 * largest.max(initial=0.0) or 1.0)
    return np.asarray(np.where(varies, spread, spread[varies].mean()))


def joined(stacks: list[Inputs], probe: Probe) -> Inputs:
    """Return one stack made of many; what cannot be stacked is that of the first."""
    return tuple(
        np.concatenate(parts) if probe.is_stacked(i) else parts[0]
        for i, parts in enumerate(zip(*stacks, strict=True))
    )


def _replaced(
    probe: Probe, base: Inputs, row: int, values: dict[int, Floats], dtype: np.dtype[Any]
) -> Inputs:
    """Return one row of `base` with some inputs replaced."""
    point = list(probe.take(base, np.array([row % len(base[0])])))
    for index, value in values.items():
        point[index] = probe.inside(index, value.reshape(point[index].shape), dtype)
    return tuple(point)


def _varied(probe: Probe, bounded: bool) -> Iterator[int]:
    """Yield the floating inputs that can be stacked and are bounded, or are not."""
    for index, array in enumerate(probe.spec.inputs):
        floating = array.dtype is None
        if floating and probe.is_stacked(index) and probe.is_bounded(index) is bounded:
            yield index


def _families(
    probe: Probe, index: int, base: Inputs, rng: np.random.Generator
) -> Iterator[tuple[str, Floats]]:
    """Yield values for one bounded input: drawn, level, and next to each bound."""
    shape = base[index].shape[1:]
    low, high = probe.span(index, np.abs(base[index]).max(initial=0.0))
    for _ in range(3):
        yield "uniform", rng.uniform(low, high, shape)
    yield "log-uniform", log_uniform(rng, low, high, shape)
    for _ in range(2):
        yield "level", np.broadcast_to(low + (high - low) * rng.uniform(0.05, 0.95), shape).copy()
    yield "near low", low + (high - low) * NEAR * rng.uniform(0.5, 1, shape)
    yield "near high", high - (high - low) * NEAR * rng.uniform(0.5, 1, shape)


def log_uniform(rng: np.random.Generator, low: Any, high: Any, shape: tuple[int, ...]) -> Floats:
    """Draw so that each decade is as likely as the next; signs as the bounds allow."""
    top = np.maximum(np.abs(low), np.abs(high))
    bottom = np.where(low > 0, low, np.where(high < 0, -high, LOWEST_DECADE * top))
    bottom, top = (np.maximum(value, 1e-300) for value in (bottom, top))
    size = np.exp(rng.uniform(np.log(bottom), np.log(top), shape))
    sign = np.where(low >= 0, 1.0, np.where(high <= 0, -1.0, rng.choice([-1.0, 1.0], shape)))
    return np.asarray(np.clip(sign * size, low, high))


def bounded_points(
    probe: Probe, base: Inputs, rng: np.random.Generator, dtype: np.dtype[Any]
) -> list[tuple[str, Inputs]]:
    """Return points inside the declared bounds: one input at a time, then all of them at once."""
    inputs = list(_varied(probe, bounded=True))
    points = []
    for index in inputs:
        for row, (label, value) in enumerate(_families(probe, index, base, rng)):
            name = f"{probe.name(index)} {label}"
            points.append((name, _replaced(probe, base, row, {index: value}, dtype)))
    for row in range(6 if len(inputs) > 1 else 0):
        values = {
            index: (log_uniform if row % 2 else rng.uniform)(
                *_arguments(probe, index, base, rng, row)
            )
            for index in inputs
        }
        points.append(("jointly", _replaced(probe, base, row, values, dtype)))
    return points


def _arguments(
    probe: Probe, index: int, base: Inputs, rng: np.random.Generator, row: int
) -> tuple[Any, ...]:
    low, high = probe.span(index, np.abs(base[index]).max(initial=0.0))
    shape = base[index].shape[1:]
    return (rng, low, high, shape) if row % 2 else (low, high, shape)


def free_points(
    probe: Probe, base: Inputs, rng: np.random.Generator, dtype: np.dtype[Any]
) -> list[tuple[str, Inputs]]:
    """Return the example scaled, mirrored and levelled, for inputs without bounds.

    Nothing is promised there in so many words: what the solver refuses or cannot compute is let be.
    """
    points = []
    for index in _varied(probe, bounded=False):
        for row, factor in enumerate((0.1, 3.0, -1.0)):
            value = factor * np.asarray(base[index][row % len(base[0])], np.float64)
            name = f"{probe.name(index)} x {factor:g}"
            points.append((name, _replaced(probe, base, row, {index: value}, dtype)))
        level = np.full(base[index].shape[1:], float(np.mean(base[index][0])))
        name = f"{probe.name(index)} level"
        points.append((name, _replaced(probe, base, 0, {index: level}, dtype)))
    return points


def corners(
    probe: Probe, base: Inputs, rng: np.random.Generator, dtype: np.dtype[Any], rows: int
) -> Inputs:
    """Return a stack of points all over the bounds, their corners included.

    The first rows have every bounded input at its lowest, then at its highest value, then each one
    alone; the rest mix low, high, level, uniform and log-uniform at random.
    """
    inputs = list(_varied(probe, bounded=True))
    picked = rng.integers(len(base[0]), size=rows)
    stack = [np.array(value) for value in probe.take(base, picked)]
    for index in inputs:
        shape = stack[index].shape[1:]
        low, high = probe.span(index, np.abs(base[index]).max(initial=0.0))
        kinds = rng.integers(5, size=rows)
        kinds[:2] = (0, 1)
        values = [_corner(rng, kind, low, high, shape) for kind in kinds]
        stack[index] = probe.inside(index, np.stack(values), dtype)
    for row, index in enumerate(inputs * 2, start=2):
        if row < rows:
            for other in inputs:
                if other != index:
                    stack[other][row] = base[other][picked[row]]
            bound = probe.span(index, np.abs(base[index]).max(initial=0.0))[row % 2]
            value = np.broadcast_to(bound, stack[index].shape[1:])
            stack[index][row] = probe.inside(index, value, dtype)
    return tuple(stack)


def _corner(
    rng: np.random.Generator, kind: int, low: Any, high: Any, shape: tuple[int, ...]
) -> AnyArray:
    if kind < 2:
        return np.array(np.broadcast_to((low, high)[kind], shape))
    if kind == 2:
        return np.broadcast_to(low + (high - low) * rng.uniform(), shape).copy()
    return log_uniform(rng, low, high, shape) if kind == 3 else rng.uniform(low, high, shape)
