"""What else follows from a pullback: the pushforward, and the second derivative.

A solver ``y = f(z)``, ``z = (x, *args)``, gives ``pullback(g) = g @ J``. Two more products are
asked for, by forward-mode differentiation and by a second derivative:

*pushforward*  ``J @ v``. From the spec's ``jvp``; from the Jacobian, in that mode; else from one
pullback for each entry of y, since row j of J is ``pullback(e_j)``. Where rows are independent one
pullback serves that entry in all rows at once.

*curvature*  ``d/de pullback_(z + e v)(g)``. With ``phi(z) = g . f(z)`` it is the Hessian of phi
times v, so it is also the gradient in z of ``g . J v``, and of ``v . pullback(g)``: one product
serves the second derivatives of all kinds. From the spec's ``hvp`` (in x); or, where the user asked
for it, from central differences of the pullback.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adeptml_core.differences import differences
from adeptml_core.errors import HigherOrderError
from adeptml_core.linearizer import Linearizer, Pullback, wanted
from adeptml_core.solver import Solver
from adeptml_core.spec import Mode

__all__ = ["MOST_PULLBACKS", "curvature", "pushforward"]

AnyArray = NDArray[Any]
Tangents = Sequence[AnyArray | None]
"""One for each of ``(x, *args)``, None for zero."""

MOST_PULLBACKS = 64
"""For one pushforward. More would be slow in silence: a `jvp` costs about one forward."""


def pushforward(
    solver: Linearizer,
    tangents: Tangents,
    y: tuple[int, ...],
    pullback: Pullback | None,
    x: AnyArray,
    *args: Any,
) -> AnyArray:
    """Return the tangent of y, ``dy = J_x dx + J_args[0] dargs[0] + ...``.

    Parameters
    ----------
    solver : Linearizer
    tangents : sequence of (ndarray or None), the shapes of ``(x, *args)``
    y : tuple of int
        The shape of y.
    pullback : callable or None
        That at ``(x, *args)``, where it is known already.
    x : ndarray, shape (batch, *core)
    *args : array_like

    Returns
    -------
    ndarray, shape (batch, *y_core), dtype of x

    Raises
    ------
    HigherOrderError
        It would take more than `MOST_PULLBACKS` pullbacks, or another pullback than that at hand
        where the solver is not deterministic.
    """
    tangents = list(tangents)
    dy = np.zeros(y, x.dtype)
    if not dy.size:
        return dy
    if solver.mode is Mode.JACOBIAN:
        return dy + _from_jacobians(solver.jacobians(y, x, *args), tangents, dy)
    if isinstance(solver, Solver) and solver.has("jvp") and tangents[0] is not None:
        dy += solver.jvp(x, tangents[0], *args)
        tangents[0] = None
    if any(tangent is not None for tangent in tangents):
        dy += _from_pullbacks(solver, tangents, y, pullback, x, args)
    return dy


def _from_jacobians(jacobians: Tangents, tangents: Tangents, dy: AnyArray) -> AnyArray:
    total = np.zeros_like(dy)
    for jacobian, tangent in zip(jacobians, tangents, strict=False):
        if jacobian is None or tangent is None:
            continue
        core = jacobian.ndim - dy.ndim
        flat = jacobian.reshape(len(dy), math.prod(dy.shape[1:]), -1)
        per_sample = tangent.ndim > core
        columns = tangent.reshape(len(dy) if per_sample else 1, -1, 1)
        total += np.matmul(flat, columns).reshape(dy.shape)
    return total


def _from_pullbacks(
    solver: Linearizer,
    tangents: list[AnyArray | None],
    y: tuple[int, ...],
    pullback: Pullback | None,
    x: AnyArray,
    args: tuple[Any, ...],
) -> AnyArray:
    """Return J v, row by row of J: ``(J v)_j = pullback(e_j) . v``."""
    together = solver.row_independent and not _moves_what_is_always_shared(solver, tangents)
    if together:
        spread = [_spread(solver, i, a, tangents, len(x)) for i, a in enumerate(args)]
        if any(new is not old for new, old in zip(spread, args, strict=True)):
            pullback, args = None, tuple(spread)
    _check_count(solver, math.prod(y[1:]) * (1 if together else y[0]), together)
    if pullback is None:
        check_may_run_again(solver)
        pullback = solver.pullback_at(x, *args)
    dy = np.zeros((y[0], math.prod(y[1:])), x.dtype)
    for rows, entry in _entries(dy.shape, together):
        one_hot = np.zeros_like(dy)
        one_hot[rows, entry] = 1
        cotangents = pullback(one_hot.reshape(y))
        for cotangent, tangent in zip(cotangents, tangents, strict=False):
            if cotangent is None or tangent is None:
                continue
            product = cotangent * tangent
            dy[rows, entry] += product.reshape(y[0], -1).sum(1) if together else product.sum()
    return dy.reshape(y)


def _entries(shape: tuple[int, int], together: bool) -> Iterator[tuple[Any, int]]:
    rows: list[Any] = [slice(None)] if together else list(range(shape[0]))
    return ((row, entry) for row in rows for entry in range(shape[1]))


def _moves_what_is_always_shared(solver: Linearizer, tangents: Tangents) -> bool:
    if not isinstance(solver, Solver):
        return False
    arrays = zip(solver.spec.args, tangents[1:], strict=True)
    return any(array.batched is False and tangent is not None for array, tangent in arrays)


def _spread(
    solver: Linearizer, index: int, arg: Any, tangents: list[AnyArray | None], batch: int
) -> Any:
    """Return a shared arg once for each row if it moves: its cotangent must not be summed."""
    tangent = tangents[1 + index]
    if tangent is None or not isinstance(solver, Solver):
        return arg
    if not solver.is_shared(index, np.ndim(arg)):
        return arg
    tangents[1 + index] = np.broadcast_to(tangent, (batch, *np.shape(tangent)))
    return np.broadcast_to(arg, (batch, *np.shape(arg)))


def _check_count(solver: Linearizer, count: int, together: bool) -> None:
    if count <= MOST_PULLBACKS:
        return
    why = "one for each entry of y" if together else "one for each entry of y in each row"
    raise HigherOrderError(
        f"{solver.name}: this derivative needs J @ v (forward mode, or a second derivative), and "
        f"without a rule for it that takes {count} pullbacks, {why}; the limit is "
        f"{MOST_PULLBACKS}. Declare jvp= in the solver's spec, or use reverse mode (backward, "
        "torch.func.vjp, jacrev).",
        solver=solver.name,
    )


def check_may_run_again(solver: Linearizer) -> None:
    """Raise where the pullback is gone and running the solver again would give another one."""
    if solver.keeps_pullback and not solver.deterministic:
        raise HigherOrderError(
            f"{solver.name}: the pullback of this call is not at hand (a transform moved to other "
            "points, or a saved-tensor hook to other memory), and running the solver again would "
            "give another one: it is not deterministic. Use plain backward around this solver.",
            solver=solver.name,
        )


# ---- second derivatives --------------------------------------------------------------------------


def curvature(
    solver: Linearizer, g: AnyArray, tangents: Tangents, x: AnyArray, *args: Any
) -> tuple[AnyArray | None, ...]:
    """Return the derivative of ``pullback(g)`` along `tangents`, None for what has no rule.

    Parameters
    ----------
    solver : Linearizer
        With ``second_order="differences"``, or an ``hvp``.
    g : ndarray, shape (batch, *y_core)
    tangents : sequence of (ndarray or None), the shapes of ``(x, *args)``
    x, *args
        Where.

    Returns
    -------
    tuple of (ndarray or None), the shapes of ``(x, *args)``, dtype of x

    Raises
    ------
    InputError
        Differences cannot tell it: `adeptml_core.differences`.
    """
    if not x.size:
        wants = wanted(solver, 1 + len(args))
        has_all = solver.second_order is not None
        return tuple(
            np.zeros(np.shape(value), x.dtype) if index == 0 or (has_all and is_wanted) else None
            for index, (value, is_wanted) in enumerate(zip((x, *args), wants, strict=True))
        )
    if solver.second_order is None:
        assert isinstance(solver, Solver)  # only a spec declares hvp
        v = tangents[0]
        hx = np.zeros_like(x) if v is None else solver.hvp(x, g, v, *args)
        return (hx, *(None for _ in args))
    check_may_run_again(solver)
    return differences(solver, g, tangents, x, args)
