"""The one differentiable operator: a solver, seen by torch as a function of tensors.

`apply` is all there is. What it does with a solver can be told in five sentences.

*Without grad* the solver is called and its result handed over; torch records nothing.

*With grad* one node is recorded. A pullback that costs nothing to make (vjp, jacobian) is let go
after the first backward, and made anew from the saved x and args if there is a second. One that
forward returned (split mode) must live and die as torch's saved tensors do: freed by backward, kept
by ``retain_graph``. So it rides on one of them: on an empty tensor of which the pullback is an
attribute. Where another tensor comes back in its place (a hook moved it to disk, say), forward runs
again. Either way backward first asks for the saved tensors, and torch raises if x or an arg was
changed in place.

*The backward pass is itself a node* when torch may want its derivative (``create_graph``). A second
derivative is right, by a rule that the solver declares or by differences that the user chose, or it
is refused, aloud (`HigherOrderError`): a pullback that numpy computed is a constant to torch, which
would go on with the wrong number.

*Under torch.func and in forward mode* the same four nodes work that serve a second derivative:
`adeptml_core.transforms`. *In a program that torch records* (compiled, exported, by make_fx) stand
two ops that name the solver: `adeptml_core.program`. The node below is for the plain case alone,
and as lean as torch allows.
"""

import itertools
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, is_grad_enabled
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from adeptml_core import program, transforms
from adeptml_core.derivatives import check_may_run_again
from adeptml_core.errors import ConfigError, InputError
from adeptml_core.linearizer import Linearizer, Pullback
from adeptml_core.solver import Solver, named
from adeptml_core.tensors import adopted, argument, array_of
from adeptml_core.transforms import functorch_is_active

_modes_are_active: Callable[[], object]
try:
    from torch._C import _len_torch_dispatch_stack as _modes_are_active
except ImportError:  # private, so it may go: make_fx is then refused by fake tensors alone
    _modes_are_active = bool

_dynamo_is_watching: Callable[[], object]
try:
    from torch._C._dynamo import eval_frame
except ImportError:  # private, so it may go: Dynamo then tries to trace solvers after a graph break
    _dynamo_is_watching = bool
else:
    _dynamo_is_watching = eval_frame.get_eval_frame_callback


__all__ = ["apply", "solve"]


def solve(
    name: str,
    x: Tensor,
    *args: Any,
    options: Mapping[str, object] | None = None,
    second_order: str | None = None,
) -> Tensor:
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
    second_order : ``"differences"``, optional
        Second derivatives by central differences of the pullback, about 1e-11 of their size in
        float64, or an `InputError` where steps disagree; by default they are refused, unless the
        solver declares a rule.

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
    if is_compiling() and not functorch_is_active():
        identity = _identity(name, options, second_order)
        return program.call(identity, x, transforms.as_tensors(args))
    return apply(_named(name, options, second_order), x, *args)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _identity(name: str, options: Mapping[str, object] | None, second_order: str | None) -> str:
    """Look the solver up while torch traces, not in the program."""
    return _named(name, options, second_order).identity


def _named(name: str, options: Mapping[str, object] | None, second_order: str | None) -> Solver:
    """Return the solver, from the last ones used where that can be told."""
    if not isinstance(options, Mapping | None):
        raise ConfigError(f"solve: options={options!r} must map names to values")
    # The type is part of the key: True is no 1.0, though they are equal.
    items = [(k, tuple(v) if isinstance(v, list) else v) for k, v in (options or {}).items()]
    key = tuple((k, type(v), v) for k, v in items)
    try:
        hash((name, key))
    except TypeError:  # an array or a dict among the values: named says what is wrong
        return named(name, options, second_order=second_order)
    return _cached(name, key, second_order)


@lru_cache(maxsize=128)
def _cached(
    name: str, key: tuple[tuple[str, type, object], ...], second_order: str | None
) -> Solver:
    return named(name, {k: v for k, _, v in key}, second_order=second_order)


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
    if is_compiling():
        return _in_a_program(solver, x, args)
    if _dynamo_is_watching():  # it failed to trace this call, and would trace numpy
        return cast(Tensor, _beside_the_program(solver, x, *args))
    if not isinstance(x, Tensor):
        raise InputError(
            f"{solver.name}: x is of type {type(x).__name__}; the operator takes a torch.Tensor"
        )
    if functorch_is_active() or getattr(forward_ad, "_current_level", 0) >= 0:
        return _transformed(solver, x, args)
    if _modes_are_active():
        if program.is_recorded():
            return _recorded(solver, x, args)
        # One mode lets users change what was saved, behind the back of a pullback that reads it.
        x, *args = [a.clone() if isinstance(a, Tensor) else a for a in (x, *args)]  # type: ignore[assignment]
    if is_grad_enabled():
        in_args = bool(args) and any(isinstance(a, Tensor) and a.requires_grad for a in args)
        if in_args:
            args = _declared(solver, args)
            in_args = any(isinstance(a, Tensor) and a.requires_grad for a in args)
        if in_args or x.requires_grad:
            return _record(solver, x, *args)  # type: ignore[no-any-return,no-untyped-call]
    y = solver.forward(array_of(x), *map(argument, args))
    return adopted(y, x)


def _declared(solver: Linearizer, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Detach the args that require grad without being declared differentiable; warn once."""
    declared = solver.differentiable or ()
    kept = list(args)
    for index, arg in enumerate(args):
        is_declared = index + 1 < len(declared) and declared[index + 1]
        if isinstance(arg, Tensor) and arg.requires_grad and not is_declared:
            transforms.warn_undeclared(solver.name, solver.arg_name(index))
            kept[index] = arg.detach()
    return tuple(kept)


def _in_a_program(solver: Linearizer, x: Tensor, args: tuple[Any, ...]) -> Tensor:
    """Record a call in the program that torch traces, or run beside it."""
    if isinstance(solver, Solver) and not functorch_is_active():
        return program.call(solver.identity, x, transforms.as_tensors(args))
    return cast(Tensor, _beside_the_program(solver, x, *args))


@torch.compiler.disable(  # type: ignore[no-untyped-call,untyped-decorator]
    reason="a solver enters a compiled program by its declared shapes, which bare functions do not "
    "have; and torch.compile around torch.func would lose its derivatives"
)
def _beside_the_program(solver: Linearizer, x: Tensor, *args: Any) -> Tensor:
    """Run eagerly: a graph break, never a traced solver."""
    return apply(solver, x, *args)


def _recorded(solver: Linearizer, x: Tensor, args: tuple[Any, ...]) -> Tensor:
    """Stand in a graph that make_fx makes, or among fake tensors; numpy would be a constant there.

    A bare function has no shapes to be recorded by.
    """
    if not isinstance(solver, Solver):
        raise program.not_recorded(solver.name)
    return program.call(solver.identity, x, transforms.as_tensors(args))


def _transformed(solver: Linearizer, x: Tensor, args: tuple[Any, ...]) -> Tensor:
    """Run as the node that torch may batch, push forward and pull back."""
    if _modes_are_active() and program.is_recorded():
        raise program.not_recorded(solver.name)
    args = _declared(solver, args)
    if isinstance(solver, Solver):
        point = [x, *transforms.as_tensors(args)]
    else:
        solver = transforms.Bound(solver, args)
        point = [x, *solver.tensors]
    y, _ = transforms.run(transforms.Forward, solver, *point)
    return cast(Tensor, y)


_TENSOR = object()  # stands among the constants of a call where a tensor is


class _Linearization(torch.autograd.Function):
    """The node that forward records: y, and the way back to x and the args.

    It has no ``setup_context``: torch would bind the signature anew at every call, a third of the
    cost of a small solver.
    """

    @staticmethod
    def forward(ctx: Any, solver: Linearizer, x: Tensor, *args: Any) -> Tensor:
        arguments = [argument(arg) for arg in args] if args else ()
        y, pullback = solver.linearize(array_of(x), *arguments)
        kept: Pullback | None = pullback
        ticket = constants = None
        if solver.keeps_pullback:
            ticket = Tensor()  # empty; the cheapest there is
            ticket.pullback = pullback  # type: ignore[attr-defined]
            kept = None
        if args:
            is_tensor = [isinstance(arg, Tensor) for arg in args]
            ctx.save_for_backward(x, ticket, *itertools.compress(args, is_tensor))
            if not all(is_tensor):
                constants = [_TENSOR if t else a for t, a in zip(is_tensor, arguments, strict=True)]
        else:
            ctx.save_for_backward(x, ticket)
        ctx.kept = solver, kept, constants
        return adopted(y, x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, ticket, *args = ctx.saved_tensors  # raises if any was changed in place, or freed
        solver, pullback, constants = ctx.kept
        if constants is not None:
            tensors = iter(args)
            args = [next(tensors) if c is _TENSOR else c for c in constants]
        if ticket is not None:
            pullback = getattr(ticket, "pullback", None)
        if is_grad_enabled():  # create_graph=True
            needed = ctx.needs_input_grad[1:]
            return None, *_differentiable(solver, needed, pullback, g, x, args)
        if pullback is None:
            check_may_run_again(solver)
            pullback = solver.pullback_at(array_of(x), *[argument(arg) for arg in args])
        else:  # torch frees what it saved; so do we, and a second time costs nothing
            ctx.kept = solver, None, constants
        if not args:
            dx = pullback(array_of(g))[0]  # `dx` alone holds it, or `adopted` finds out
            return None, adopted(dx, x)
        return None, *_cotangents(pullback, ctx.needs_input_grad[1:], g, x, args)


# What ``_Linearization.apply`` comes to for plain tensors: torch's own wrapper binds signatures and
# looks for functorch first, a microsecond at each call, which `apply` above has done.
_record = super(torch.autograd.Function, _Linearization).apply


def _cotangents(
    pullback: Pullback, needed: tuple[bool, ...], g: Tensor, x: Tensor, args: list[Any]
) -> tuple[Tensor | None, ...]:
    """Return the cotangents of ``(x, *args)``, None for those not `needed`."""
    arrays: list[Any] = list(pullback(array_of(g)))
    arrays.reverse()
    found = []
    for is_needed, like in zip(needed, (x, *args), strict=True):
        array = arrays.pop() if arrays else None  # `array` alone holds it
        found.append(adopted(array, like) if is_needed else None)
    return tuple(found)


def _differentiable(
    solver: Linearizer,
    needed: tuple[bool, ...],
    pullback: Pullback | None,
    g: Tensor,
    x: Tensor,
    args: list[Any],
) -> list[Tensor | None]:
    """Return the cotangents as results of a node of their own."""
    point: list[Any] = [x, *args]
    if isinstance(solver, Solver):
        point = [x, *transforms.as_tensors(args)]
        count = len(point)
    else:
        solver, count = transforms.Bound(solver, args), 1
        point = [x, *solver.tensors]
    ticket = transforms.ticket_of(pullback)
    point = transforms.final(solver, point)
    found = transforms.run(transforms.PullbackNode, solver, needed[: len(point)], g, ticket, *point)
    missing = [None] * (len(args) + 1 - count)
    return [*transforms.at_their_places(solver, found, count), *missing]
