"""The one differentiable operator: a solver, seen by torch as a function of tensors.

`apply` is all there is. What it does with a solver can be told in four sentences.

*Without grad* the solver is called and its result handed over; torch records nothing.

*With grad* one node is recorded. A pullback that costs nothing to make (vjp, jacobian) is let go
after the first backward, and made anew from the saved x and args if there is a second. One that
forward returned (split mode) must live and die as torch's saved tensors do: freed by backward, kept
by ``retain_graph``. So it rides on one of them: on a *ticket*, an empty tensor of which the
pullback is an attribute. Where another tensor comes back in its place (a hook moved it to disk,
say), forward runs again. Either way backward first asks for the saved tensors, and torch raises if
x or an arg was changed in place.

*The backward pass is itself a node.* Asked for a second derivative it refuses, aloud
(`HigherOrderError`): a pullback that numpy computed is a constant to torch, and torch would go on
with the wrong number.

*Memory is shared only where nobody can be harmed.* Solvers read torch's memory through read-only
views. A result is adopted without a copy only if it owns its memory and nobody else holds it: not
the solver's buffer, not the pullback's closure.
"""

import itertools
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adeptml_core.errors import HigherOrderError, InputError
from adeptml_core.solver import Linearizer, Pullback, Solver, named

__all__ = ["apply", "solve"]

AnyArray = NDArray[Any]

SMALL = 4096  # elements; below, a copy costs less than finding out whether it is needed


def solve(name: str, x: Tensor, *args: Any, options: Mapping[str, object] | None = None) -> Tensor:
    """Call an installed solver on tensors; differentiable in x and the args that it declares.

    Parameters
    ----------
    name : str
        ``"heat1d"``, or ``"adeptml-heat1d/heat1d"`` where two distributions claim it.
    x : Tensor, shape (batch, *core), floating
        The solver's x.
    *args : Tensor, array_like or number
        The solver's args, in order: each of its core shape (shared by the batch) or per sample.
    options : mapping, optional
        The solver's options by name.

    Returns
    -------
    Tensor, shape (batch, *y_core), dtype and device of x

    Raises
    ------
    UnknownSolverError, PluginError, ConfigError
        No such solver; a broken plugin; wrong options.
    InputError
        x or an arg does not fit what the solver declares.
    ContractError
        What the solver returned does not.
    """
    return apply(_named(name, _hashable(options)), x, *args)


def _hashable(options: Mapping[str, object] | None) -> tuple[tuple[str, object], ...]:
    items = (options or {}).items()
    return tuple((name, tuple(v) if isinstance(v, list) else v) for name, v in items)


@lru_cache(maxsize=128)
def _named(name: str, options: tuple[tuple[str, object], ...]) -> Solver:
    return named(name, dict(options))


def apply(solver: Linearizer, x: Tensor, *args: Any) -> Tensor:
    """Return ``solver(x, *args)``, differentiable in x and the declared args.

    Parameters
    ----------
    solver : Linearizer
        A `Solver` or `RawSolver`.
    x : Tensor, shape (batch, ...), floating
    *args : Tensor, ndarray, number or None

    Returns
    -------
    Tensor, shape (batch, ...), dtype and device of x

    Warns
    -----
    UserWarning
        Once for each arg that requires grad, but is not declared differentiable.
    """
    if torch.compiler.is_compiling():
        return cast(Tensor, _outside_the_graph(solver, x, *args))
    if not isinstance(x, Tensor):
        raise InputError(
            f"{solver.name}: x is of type {type(x).__name__}; the operator takes a torch.Tensor"
        )
    if torch.is_grad_enabled():
        in_args = bool(args) and any(isinstance(a, Tensor) and a.requires_grad for a in args)
        if in_args:
            args = _declared(solver, args)
            in_args = any(isinstance(a, Tensor) and a.requires_grad for a in args)
        if in_args or x.requires_grad:
            return _record(solver, x, *args)
    return _without_grad(solver, x, args)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _outside_the_graph(solver: Linearizer, x: Tensor, *args: Any) -> Tensor:
    """Run eagerly, beside what torch.compile compiles: a graph break, never a traced solver."""
    return apply(solver, x, *args)


def _declared(solver: Linearizer, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Detach the args that require grad without being declared differentiable; warn once."""
    declared = solver.differentiable or ()
    kept = list(args)
    for index, arg in enumerate(args):
        is_declared = index + 1 < len(declared) and declared[index + 1]
        if isinstance(arg, Tensor) and arg.requires_grad and not is_declared:
            _warn_once(solver.name, solver.arg_name(index))
            kept[index] = arg.detach()
    return tuple(kept)


_warned: set[tuple[str, str]] = set()


def _warn_once(solver: str, arg: str) -> None:
    if (solver, arg) in _warned:
        return
    _warned.add((solver, arg))
    warnings.warn(
        f"{solver}: {arg} requires grad, but the solver declares no derivative for it; it gets no "
        "gradient and will not train. Detach it, or declare the arg differentiable.",
        UserWarning,
        stacklevel=4,
    )


def _without_grad(solver: Linearizer, x: Tensor, args: tuple[Any, ...]) -> Tensor:
    for value in (x, *args):
        if isinstance(value, Tensor) and _has_tangent(value):
            raise InputError(
                f"{solver.name}: forward-mode differentiation is not supported here; use backward"
            )
    y = solver.forward(_array(x), *[_argument(arg) for arg in args])
    return _adopted(y, x)


def _has_tangent(value: Tensor) -> bool:
    dual = torch.autograd.forward_ad.unpack_dual(value)  # type: ignore[no-untyped-call]
    return dual.tangent is not None


_TENSOR = object()  # stands among the constants of a call where a tensor is


class _Linearization(torch.autograd.Function):
    """The node that forward records: y, and the way back to x and the args.

    It has no ``setup_context``: torch would bind the signature anew at every call, a third of the
    cost of a small solver.
    """

    @staticmethod
    def forward(ctx: Any, solver: Linearizer, x: Tensor, *args: Any) -> Tensor:
        arguments = [_argument(arg) for arg in args]
        pullback: Pullback | None
        y, pullback = solver.linearize(_array(x), *arguments)
        ticket = None
        if solver.keeps_pullback:
            ticket = Tensor()  # empty; the cheapest there is
            ticket.pullback = pullback  # type: ignore[attr-defined]
            pullback = None
        constants = None
        if args:
            is_tensor = [isinstance(arg, Tensor) for arg in args]
            ctx.save_for_backward(x, ticket, *itertools.compress(args, is_tensor))
            if not all(is_tensor):
                constants = [_TENSOR if t else a for t, a in zip(is_tensor, arguments, strict=True)]
        else:
            ctx.save_for_backward(x, ticket)
        ctx.kept = solver, pullback, constants
        return _adopted(y, x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, ticket, *args = ctx.saved_tensors  # raises if any was changed in place, or freed
        solver, pullback, constants = ctx.kept
        if constants is not None:
            tensors = iter(args)
            args = [next(tensors) if c is _TENSOR else c for c in constants]
        if ticket is not None:
            pullback = getattr(ticket, "pullback", None)
        if pullback is None:
            pullback = _made_anew(solver, x, args)
        else:  # torch frees what it saved; so do we, and a second time costs nothing
            ctx.kept = solver, None, constants
        if torch.is_grad_enabled():  # create_graph=True
            needed = ctx.needs_input_grad[1:]
            return None, *_Cotangents.apply(solver, pullback, needed, g, x, *args)  # type: ignore[no-untyped-call]
        if not args:
            return None, _adopted(pullback(_array(g))[0], x)
        return None, *_cotangents(pullback, ctx.needs_input_grad[1:], g, x, args)


# What ``_Linearization.apply`` comes to for plain tensors: torch's own wrapper binds signatures and
# looks for functorch first, a microsecond at each call, which `apply` above has done.
_record: Callable[..., Tensor] = super(torch.autograd.Function, _Linearization).apply


class _Cotangents(torch.autograd.Function):
    """The backward pass as a node of its own, which says no to a second derivative."""

    @staticmethod
    def forward(
        ctx: Any,
        solver: Linearizer,
        pullback: Pullback,
        needed: tuple[bool, ...],
        g: Tensor,
        x: Tensor,
        *args: Any,
    ) -> Any:
        ctx.solver = solver
        return _cotangents(pullback, needed, g, x, list(args))

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise HigherOrderError(
            f"{ctx.solver.name}: a second derivative was asked for, and the solver has no rule for "
            "it; torch would take its first derivative for a constant and return a wrong number. "
            "Where only first derivatives are meant, drop create_graph=True.",
            solver=ctx.solver.name,
        )


def _cotangents(
    pullback: Pullback, needed: tuple[bool, ...], g: Tensor, x: Tensor, args: list[Any]
) -> tuple[Tensor | None, ...]:
    """Return the cotangents of ``(x, *args)``, None for those not `needed`."""
    if not args:
        return (_adopted(pullback(_array(g))[0], x),)
    arrays: list[Any] = list(pullback(_array(g)))
    arrays.reverse()
    found = []
    for is_needed, like in zip(needed, (x, *args), strict=True):
        array = arrays.pop() if arrays else None  # `array` alone holds it
        found.append(_adopted(array, like) if is_needed else None)
    return tuple(found)


def _made_anew(solver: Linearizer, x: Tensor, args: list[Any]) -> Pullback:
    if solver.keeps_pullback and not solver.deterministic:
        raise HigherOrderError(
            f"{solver.name}: the pullback was lost (a saved-tensor hook, a clone), and running the "
            "solver again would give another one: it is not deterministic. Avoid hooks that move "
            "saved tensors around this solver.",
            solver=solver.name,
        )
    return solver.pullback_at(_array(x), *[_argument(arg) for arg in args])


# ---- tensors and arrays --------------------------------------------------------------------------


def _array(tensor: Tensor) -> AnyArray:
    """Return the values, read-only; no copy where they are on the CPU; bfloat16 as float32."""
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.float()
    array = tensor.numpy(force=True)
    array.setflags(write=False)  # this view; the tensor stays as it is
    return array


def _argument(value: Any) -> Any:
    """Return an arg as the solver takes it; numpy memory, which has no version, is copied."""
    if isinstance(value, Tensor):
        return _array(value)
    return value.copy() if isinstance(value, np.ndarray) else value


def _adopted(array: Any, like: Tensor) -> Tensor:
    """Return `array` as a tensor of the dtype and device of `like`.

    The caller's own variable must be the only reference to `array` besides those to be found out.
    """
    if array.size < SMALL or not _is_ours(array.flags) or sys.getrefcount(array) > _sole_holder:
        array = array.copy()
    tensor = torch.from_numpy(array)
    if tensor.dtype is not like.dtype or not like.is_cpu:
        tensor = tensor.to(device=like.device, dtype=like.dtype)
    return tensor


def _is_ours(flags: Any) -> bool:
    return bool(flags.owndata and flags.writeable and flags.c_contiguous)


def _count_of_sole_holder() -> int:
    """Return what ``getrefcount`` says in `_adopted` of an array that only its caller holds.

    The number is the interpreter's affair (3.14 counts one less), so it is measured, in the same
    constellation. Without a global lock it means nothing, and every array counts as held.
    """

    def adopted(array: AnyArray) -> int:
        return sys.getrefcount(array)

    array = np.empty(1)
    has_lock = getattr(sys, "_is_gil_enabled", lambda: True)()
    return adopted(array) if has_lock else -1


_sole_holder = _count_of_sole_holder()
