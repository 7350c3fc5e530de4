r"""The Jacobian at one point, from both sides: by differences, and by pullbacks.

Where it is small (n inputs up to 64, m outputs up to 256) it is compared entry by entry. Where it
is larger, inputs and outputs are split into disjoint random groups with random signs, and what is
compared is the Jacobian compressed from both sides,

.. math::

    S_y J S_x, \quad
    S_y \in \{-1, 0, 1\}^{groups \times m}, \;
    S_x \in \{-1, 0, 1\}^{n \times groups}.

Every entry of J is in exactly one entry of that, so that one wrong entry among millions cannot
escape, and among fewer companions than in a dense direction it weighs more. Then the group is
opened and the entry named.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from adeptml_core.conformance.differences import estimate, sweep
from adeptml_core.conformance.judgement import Judgement, judge, retried
from adeptml_core.conformance.lines import Bench, CallBench, Floats, make_lines

__all__ = ["Block", "compare", "groups"]

SMALL_INPUT = 64
SMALL_OUTPUT = 256
INPUT_GROUPS = 64
OUTPUT_GROUPS = 64
CALL_GROUPS = 16  # where each probe costs a call


@dataclass(frozen=True)
class Block:
    """The Jacobian of one array at one point, compressed to (outputs, inputs).

    Parameters
    ----------
    point, index : int
        Which point of the bench, which input.
    returned, measured, bar : ndarray, shape (c, l)
        By pullbacks, by differences, and the error bar.
    wrong : ndarray of bool, shape (c, l)
        Which entries are surely wrong.
    outputs, inputs : ndarray, shape (c, m), (l, n)
        The groups: 0 and +-1.
    directions : ndarray, shape (l, n)
        The directions that were measured: ``inputs`` times the unit of each component.
    judgement : Judgement
        Every entry's, transposed.
    """

    point: int
    index: int
    returned: Floats
    measured: Floats
    bar: Floats
    wrong: np.ndarray[Any, np.dtype[np.bool_]]
    outputs: Floats
    inputs: Floats
    directions: Floats
    judgement: Judgement

    @property
    def is_full(self) -> bool:
        """Whether each entry is one entry of the Jacobian itself."""
        single = [
            np.count_nonzero(g, axis=1).max(initial=0) <= 1 for g in (self.outputs, self.inputs)
        ]
        return all(single)


def groups(size: int, count: int, rng: np.random.Generator) -> Floats:
    """Return `count` disjoint groups of `size` members with random signs, shape (count, size)."""
    if size <= count:
        return np.eye(size)
    members = rng.permutation(size) % count
    signs = rng.choice([-1.0, 1.0], size)
    return np.asarray(np.where(np.arange(count)[:, None] == members, signs, 0.0))


def compare(
    bench: Bench,
    index: int,
    point: int,
    scale: Floats,
    rng: np.random.Generator,
    tolerance: float,
    *,
    inputs: Floats | None = None,
    outputs: Floats | None = None,
    m: int = 0,
) -> Block:
    """Compare the two Jacobians of input `index` at one point of the bench.

    Parameters
    ----------
    scale : ndarray, shape (n,)
        The unit of each input component.
    inputs, outputs : ndarray, optional
        Groups to use in place of random ones.
    """
    by_call = isinstance(bench, CallBench)
    if inputs is None:
        most = CALL_GROUPS if by_call else INPUT_GROUPS
        inputs = groups(len(scale), most, rng)
    lines = make_lines(bench, index, np.full(len(inputs), point), inputs * scale)
    measured = sweep(bench, lines)
    m = measured.value.shape[1]
    if outputs is None:
        most = CALL_GROUPS if by_call else SMALL_OUTPUT if m <= SMALL_OUTPUT else OUTPUT_GROUPS
        outputs = groups(m, most, rng)
    pulled = bench.pull_at(point, index, outputs)  # (c, n)
    direction = lines.direction
    claimed = direction @ pulled.T  # (l, c)
    size = np.sqrt(direction**2 @ pulled.T**2)
    compressed = measured.combined(outputs)
    typical = _typical(compressed)
    judgement = judge(compressed, None, claimed, size, tolerance, typical)
    wrong = judgement.suspect
    suspects = np.flatnonzero(wrong.any(axis=1))[:12]
    confirmed = np.zeros_like(wrong)
    if len(suspects):
        confirmed[suspects] = _confirmed(
            bench, lines, suspects, outputs, judgement, tolerance, measured
        )
    return Block(
        point,
        index,
        claimed.T,
        judgement.slope.T,
        judgement.bar.T,
        confirmed.T,
        outputs,
        inputs,
        direction,
        judgement,
    )


def _typical(compressed: Any) -> Floats:
    """Return the usual size of a row of the compressed Jacobian, shape (c,)."""
    slope, bar, _ = estimate(compressed).best()
    known = np.where(np.isfinite(bar), np.abs(slope), 0.0)
    # An entry is small where the row is large elsewhere: rounding of the row is no error of it.
    return np.asarray(np.sqrt(np.mean(known**2, axis=0)))


def _confirmed(
    bench: Bench,
    lines: Any,
    suspects: Any,
    outputs: Floats,
    judgement: Judgement,
    tolerance: float,
    measured: Any,
) -> Any:
    some = lines.some(suspects)
    weights = np.broadcast_to(outputs, (len(suspects), *outputs.shape))
    part = Judgement(*(getattr(judgement, name)[suspects] for name in Judgement.__annotations__))
    typical = np.zeros(outputs.shape[1])
    return retried(bench, some, weights, part, tolerance, typical).suspect
