r"""What a step sweep looks like: error and remainder against the step, for people to look at.

Along each line, for a cotangent w, with the claimed slope p,

.. math::

    E(h) = |w \cdot (f(h) - f(-h)) / 2h - p|, \quad
    R(h) = |w \cdot (f(h) - f(0)) - h p|.

Where p is right, E falls as h² until the solver's noise takes over and it grows as 1/h, and R falls
as h². Where p is wrong, E ends in a plateau, whose height is the error, and R falls as h only. Both
are divided by the size of the gradient.
"""

from typing import Any

import numpy as np

from adeptml_core.conformance.gradients import Examination

__all__ = ["curve_of"]

LINES = 5  # more of them only blacken the picture


def curve_of(examined: Examination, status: str) -> dict[str, Any]:
    """Return the curves of one array, ready for JSON.

    Returns
    -------
    dict
        ``array``, ``title``, ``dtype``, ``tolerance``, ``status``, and ``lines``: a list of
        ``{"label", "wrong", "step", "error", "remainder", "bar"}``; zeros and what is not finite
        are None.
    """
    wrong = np.argwhere(examined.wrong)[:1]
    points, first = np.unique(examined.lines.point[examined.is_example], return_index=True)
    shown = [(int(np.flatnonzero(examined.is_example)[i]), 0) for i in first[:LINES]]
    worst = [(int(line), int(column)) for line, column in wrong]
    lines = [_line(examined, *at) for at in dict.fromkeys([*shown, *worst])]
    return {
        "array": examined.probe.name(examined.index),
        "title": examined.probe.title(examined.index),
        "dtype": examined.bench.dtype.name,
        "tolerance": examined.tolerance,
        "status": status,
        "points": len(points),
        "lines": lines,
    }


def _line(examined: Examination, line: int, column: int) -> dict[str, Any]:
    weights = examined.weights[line, column]
    judged, steps = examined.judged, examined.measured.steps[line]
    slope = examined.measured.slopes[line] @ weights
    ahead = slope + examined.measured.bends[line] @ weights / 2  # w . (f(h) - f(0)) / h
    size = float(judged.scale[line, column]) or 1.0
    claimed = judged.claimed[line, column]
    return {
        "label": examined.labels[line],
        "wrong": bool(examined.wrong[line, column]),
        "step": steps.tolist(),
        "error": _positive(np.abs(slope - claimed) / size),
        "remainder": _positive(np.abs(ahead - claimed) * steps / size),
        "bar": _positive(np.array([judged.bar[line, column] / size]))[0],
    }


def _positive(values: Any) -> list[float | None]:
    return [float(v) if np.isfinite(v) and v > 0 else None for v in values]
