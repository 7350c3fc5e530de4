"""The operator under ``torch.func`` and forward mode: four nodes, closed under differentiation.

With z = (x, *args) and y = f(z), each node is a function that torch may batch, push forward and
pull back, and the derivatives of the first three are nodes again:

=================  =======================  ====================  =============================
node               gives                    derivative in g or v  derivative in z
=================  =======================  ====================  =============================
`Forward`          ``f(z)``                                       PullbackNode, PushforwardNode
`PullbackNode`     ``g @ J(z)``             PushforwardNode       CurvatureNode
`PushforwardNode`  ``J(z) @ v``             PullbackNode          CurvatureNode
`CurvatureNode`    ``d(g @ J(z)) @ v``      in v: CurvatureNode   refused
=================  =======================  ====================  =============================

Curvature exists where the solver declares ``hvp`` or the user asked for differences. Elsewhere z
enters the second and third node through `_Final`, an identity that says no when torch asks for its
derivative. It is asked only if the derivative is needed: the gradient in g alone is given.

*Batching.* `vmap` folds its axis into the solver's batch where rows are independent, spreading
shared args, whose cotangents are then summed again for each of the vmapped values; elsewhere it is
a loop.

*Tickets.* A pullback that forward returned (split mode) must live as long as torch keeps what was
saved for backward, and no longer. `Forward` returns it beside y as a ticket: an empty-looking
tensor over memory that carries the pullback, found again by the memory's address, whatever wrapper
torch puts around it. A ticket that is lost or void (no pullback, another point, a copy) only means
that forward runs again.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import Function

from adeptml_core.batching import Batched
from adeptml_core.derivatives import check_may_run_again, curvature, pushforward
from adeptml_core.errors import HigherOrderError, InputError
from adeptml_core.linearizer import Linearizer, Pullback, wanted
from adeptml_core.tensors import adopted, argument, array_of

try:
    from torch._C import _are_functorch_transforms_active as functorch_is_active
except ImportError:  # private, so it may go: then the nodes here serve every call, which is slower

    def functorch_is_active() -> bool:
        """Tell that nobody knows."""
        return True


__all__ = [
    "Bound",
    "Forward",
    "PullbackNode",
    "as_tensors",
    "at_their_places",
    "final",
    "functorch_is_active",
    "linearized",
    "pulled",
    "run",
    "ticket_of",
    "warn_undeclared",
]


AnyArray = NDArray[Any]


# ---- tickets -------------------------------------------------------------------------------------


class _Stub(np.ndarray[Any, Any]):
    """Memory that carries a pullback."""

    pullback: Pullback


_stubs: WeakValueDictionary[int, _Stub] = WeakValueDictionary()


def ticket_of(pullback: Pullback | None) -> Tensor:
    """Return a tensor that keeps `pullback` alive; for None one that says so."""
    if pullback is None:
        return torch.zeros((), dtype=torch.int64)
    stub = np.zeros((), np.int64).view(_Stub)
    stub.pullback = pullback
    ticket = torch.from_numpy(stub)
    _stubs[ticket.data_ptr()] = stub
    return ticket


def _redeemed(ticket: Tensor | None) -> Pullback | None:
    stub = None if ticket is None else _stubs.get(ticket.data_ptr())
    return None if stub is None else stub.pullback


# ---- what goes in --------------------------------------------------------------------------------


def as_tensors(args: Sequence[Any]) -> list[Tensor]:
    """Return a declared solver's args as tensors; numbers and arrays keep their precision."""
    return [arg if isinstance(arg, Tensor) else _as_tensor(arg) for arg in args]


def _as_tensor(arg: Any) -> Tensor:
    try:
        array = np.array(arg)
        if array.dtype.kind == "f" and array.dtype.itemsize > 8:
            array = array.astype(np.float64)  # the widest that torch has
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"an arg of type {type(arg).__name__} is no array of numbers: {error}. Where its "
            "values are tensors, give one tensor (torch.stack)."
        ) from error


class Bound:
    """Bare functions with their args, which get no derivative and may be anything.

    Those that are tensors go through the nodes like a declared solver's, so that torch can batch
    them, and refuse or warn where it would differentiate them.
    """

    def __init__(self, solver: Linearizer, args: Sequence[Any]) -> None:
        self.solver = solver
        self.args = args
        self.places = [i for i, arg in enumerate(args) if isinstance(arg, Tensor)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.solver, name)

    @property
    def tensors(self) -> list[Tensor]:
        """The args that are tensors."""
        return [self.args[i] for i in self.places]

    def arg_name(self, index: int) -> str:
        """Return the name of the tensor `index` among the args."""
        return self.solver.arg_name(self.places[index])

    def linearize(self, x: AnyArray, *arrays: AnyArray) -> tuple[AnyArray, Pullback]:
        """Return y and the pullback at x."""
        return self.solver.linearize(x, *self._all(arrays))

    def pullback_at(self, x: AnyArray, *arrays: AnyArray) -> Pullback:
        """Return the pullback alone."""
        return self.solver.pullback_at(x, *self._all(arrays))

    def jacobians(
        self, y: tuple[int, ...], x: AnyArray, *arrays: AnyArray
    ) -> tuple[AnyArray | None, ...]:
        """Return the Jacobian for x."""
        return self.solver.jacobians(y, x, *self._all(arrays))

    def _all(self, arrays: Sequence[AnyArray]) -> list[Any]:
        args = [None if i in self.places else argument(arg) for i, arg in enumerate(self.args)]
        for place, array in zip(self.places, arrays, strict=True):
            args[place] = array
        return args


_warned: set[tuple[str, str]] = set()


def warn_undeclared(solver: str, arg: str) -> None:
    """Say, once for each arg, that it requires grad and gets none."""
    if (solver, arg) in _warned:
        return
    _warned.add((solver, arg))
    warnings.warn(
        f"{solver}: {arg} requires grad, but the solver declares no derivative for it; it gets no "
        "gradient and will not train. Detach it, or declare the arg differentiable.",
        UserWarning,
        stacklevel=4,
    )


def _warn_of_undeclared(solver: Linearizer, needed: Sequence[bool]) -> None:
    """Warn of what only a level of torch.func knows: under vmap a tensor does not tell."""
    for index, (is_needed, is_wanted) in enumerate(
        zip(needed, wanted(solver, len(needed)), strict=True)
    ):
        if is_needed and not is_wanted:
            warn_undeclared(solver.name, solver.arg_name(index - 1))


# ---- what the nodes compute: plain tensors in and out --------------------------------------------


def linearized(solver: Linearizer, x: Tensor, args: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Return y and the ticket for its pullback."""
    y, pullback = solver.linearize(array_of(x), *map(argument, args))
    ticket = ticket_of(pullback if solver.keeps_pullback else None)
    return adopted(y, x), ticket


def pulled(
    solver: Linearizer, ticket: Tensor | None, g: Tensor, x: Tensor, args: Sequence[Any]
) -> list[Tensor]:
    """Return the cotangents of x and of each differentiable arg."""
    pullback = _redeemed(ticket)
    if pullback is None:
        check_may_run_again(solver)
        pullback = solver.pullback_at(array_of(x), *map(argument, args))
    arrays: list[Any] = list(pullback(array_of(g)))
    arrays.reverse()
    found = []
    for like in (x, *args):
        array = arrays.pop() if arrays else None  # `array` alone holds it
        if array is not None:
            found.append(adopted(array, like))
    return found


def _pushed(
    solver: Linearizer,
    core: tuple[int, ...],
    ticket: Tensor | None,
    point: Sequence[Any],
    tangents: Sequence[Tensor | None],
) -> Tensor:
    x, *args = point
    moves = [None if v is None else array_of(v) for v in tangents]
    arrays = [argument(arg) for arg in args]
    y = (len(x), *core)
    dy = pushforward(solver, moves, y, _redeemed(ticket), array_of(x), *arrays)
    return adopted(dy, x)


def _curved(
    solver: Linearizer, g: Tensor, point: Sequence[Any], tangents: Sequence[Tensor | None]
) -> list[Tensor]:
    x, *args = point
    moves = [None if v is None else array_of(v) for v in tangents]
    found = curvature(solver, array_of(g), moves, array_of(x), *map(argument, args))
    return [
        adopted(array, like)
        for array, like in zip(found, (x, *args))  # noqa: B905 - bare functions speak of x alone
        if array is not None  # a solver's own hvp speaks of x alone
    ]


# ---- the nodes -----------------------------------------------------------------------------------


def run(node: type[Function], *inputs: Any) -> Any:
    """Apply a node of this module; torch has no types for that."""
    return node.apply(*inputs)  # type: ignore[no-untyped-call]


class Forward(Function):
    """``(solver, x, *args) -> (y, ticket)``; the args are tensors."""

    @staticmethod
    def forward(solver: Linearizer, x: Tensor, *args: Tensor) -> Any:
        return linearized(solver, x, args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        solver, *point = inputs
        y, ticket = output
        ctx.mark_non_differentiable(ticket)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(ticket, *point)
        ctx.save_for_forward(ticket, *point)
        ctx.solver, ctx.core = solver, tuple(y.shape[1:])
        _warn_of_undeclared(solver, ctx.needs_input_grad[1:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        ticket, *point = ctx.saved_tensors
        if cotangents[0] is None:
            return (None,) * (1 + len(point))
        needed, at = ctx.needs_input_grad[1:], final(ctx.solver, point)
        found = run(PullbackNode, ctx.solver, needed, cotangents[0], ticket, *at)
        return None, *at_their_places(ctx.solver, found, len(point))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> Any:
        ticket, *point = ctx.saved_tensors
        _refuse_undeclared(ctx.solver, tangents)
        moved = run(
            PushforwardNode, ctx.solver, ctx.core, ticket, *final(ctx.solver, point), *tangents
        )
        return moved, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, solver: Linearizer, *point: Tensor) -> Any:
        def apply(point: Sequence[Any], _: Sequence[Any]) -> tuple[Tensor, ...]:
            return (run(Forward, solver, *point)[0],)

        batched = Batched(info, solver, point, in_dims[1:])
        (y,) = batched.run(apply)
        return (y, ticket_of(None)), (0, None)


class PullbackNode(Function):
    """``(solver, needed, g, ticket, x, *args) -> cotangents`` of x and each differentiable arg.

    All are given; `needed` tells which are read.
    """

    @staticmethod
    def forward(
        solver: Linearizer,
        needed: tuple[bool, ...],
        g: Tensor,
        ticket: Tensor | None,
        *point: Tensor,
    ) -> Any:
        return tuple(pulled(solver, ticket, g, point[0], point[1:]))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.solver, ctx.needed, g, ticket, *point = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(ticket, g, *point)
        ctx.save_for_forward(ticket, g, *point)

    @staticmethod
    def backward(ctx: Any, *v: Any) -> Any:
        ticket, g, *point = ctx.saved_tensors
        moves = at_their_places(ctx.solver, v, len(point))
        of_g = of_point = None
        if ctx.needs_input_grad[2]:
            at = final(ctx.solver, point)
            core = tuple(g.shape[1:])
            of_g = run(PushforwardNode, ctx.solver, core, ticket, *at, *moves)
        if any(ctx.needs_input_grad[4:]):
            of_point = _curvature(ctx.solver, g, point, moves, ctx.needs_input_grad[4:])
        return None, None, of_g, None, *(of_point or [None] * len(point))

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, dg: Any, ___: None, *moves: Any) -> Any:
        ticket, g, *point = ctx.saved_tensors
        total: Sequence[Any] = [None] * sum(wanted(ctx.solver, len(point)))
        if dg is not None:
            at = final(ctx.solver, point)
            total = run(PullbackNode, ctx.solver, ctx.needed, dg, ticket, *at)
        if any(v is not None for v in moves):
            _refuse_what_hvp_lacks(ctx.solver, ctx.needed)
            needed = wanted(ctx.solver, len(point))
            curved = _curvature(ctx.solver, g, point, moves, needed)
            curved = [c for c, is_wanted in zip(curved, needed, strict=True) if is_wanted]
            total = [c if t is None else t + c for t, c in zip(total, curved, strict=True)]
        return tuple(total)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        solver: Linearizer,
        needed: Any,
        g: Tensor,
        ticket: Any,
        *point: Any,
    ) -> Any:
        def apply(point: Sequence[Any], rest: Sequence[Any]) -> tuple[Tensor, ...]:
            (g,) = rest
            kept = ticket if batched.is_at_one_point else None
            return tuple(run(PullbackNode, solver, needed, g, kept, *point))

        batched = Batched(info, solver, point, in_dims[4:], [g], in_dims[2:3], sums=True)
        found = batched.run(apply)
        return found, (0,) * len(found)


class PushforwardNode(Function):
    """``(solver, y_core, ticket, x, *args, dx, *dargs) -> dy``; None for a tangent that is zero."""

    @staticmethod
    def forward(solver: Linearizer, core: tuple[int, ...], ticket: Any, *rest: Any) -> Any:
        point, tangents = _halves(rest)
        return _pushed(solver, core, ticket, point, tangents)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.solver, ctx.core, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, w: Any) -> Any:
        ticket, *rest = ctx.saved_tensors
        point, moves = _halves(rest)
        n = len(point)
        if w is None:
            return (None,) * (3 + 2 * n)
        of_point: Sequence[Any] = [None] * n
        if any(ctx.needs_input_grad[3 : 3 + n]):
            needed = ctx.needs_input_grad[3 : 3 + n]
            of_point = _curvature(ctx.solver, w, point, moves, needed)
        needed = ctx.needs_input_grad[3 + n :]
        found = run(PullbackNode, ctx.solver, needed, w, ticket, *final(ctx.solver, point))
        of_moves = at_their_places(ctx.solver, found, n)
        of_moves = [None if v is None else c for v, c in zip(moves, of_moves, strict=True)]
        return None, None, None, *of_point, *of_moves

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, ___: None, *tangents: Any) -> Any:
        ticket, *rest = ctx.saved_tensors
        point, _moves = _halves(rest)
        moved, turned = _halves(tangents)
        if any(v is not None for v in moved):
            raise _no_further(ctx.solver, "forward mode over forward mode")
        at = final(ctx.solver, point)
        return run(PushforwardNode, ctx.solver, ctx.core, ticket, *at, *turned)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, solver: Linearizer, core: Any, ticket: Any, *rest: Any
    ) -> Any:
        point, tangents = _halves(rest)
        dims, tangent_dims = _halves(in_dims[3:])

        def apply(point: Sequence[Any], tangents: Sequence[Any]) -> tuple[Tensor, ...]:
            kept = ticket if batched.is_at_one_point else None
            return (run(PushforwardNode, solver, core, kept, *point, *tangents),)

        batched = Batched(info, solver, point, dims, tangents, tangent_dims, are_tangents=True)
        return batched.run(apply)[0], 0


class CurvatureNode(Function):
    """``(solver, g, x, *args, vx, *vargs) -> d(pullback(g)) @ v``; for x alone with an hvp."""

    @staticmethod
    def forward(solver: Linearizer, g: Tensor, *rest: Any) -> Any:
        return tuple(_curved(solver, g, *_halves(rest)))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.solver, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *w: Any) -> Any:
        g, *rest = ctx.saved_tensors
        point, moves = _halves(rest)
        if ctx.solver.second_order is None:  # hvp, in x alone
            w = (w[0], *(None for _ in point[1:]))
        else:
            w = tuple(at_their_places(ctx.solver, w, len(point)))
        curved = CurvatureNode.along(ctx.solver, g, point, w)
        of_moves = [None if v is None else c for v, c in zip(moves, curved, strict=True)]
        return None, None, *(None for _ in point), *of_moves

    @staticmethod
    def jvp(ctx: Any, _: None, __: Any, *tangents: Any) -> Any:
        g, *rest = ctx.saved_tensors
        point, _moves = _halves(rest)
        _moved, turned = _halves(tangents)
        at = _ended(ctx.solver, g, *point)
        return run(CurvatureNode, ctx.solver, *at, *turned)

    @staticmethod
    def along(
        solver: Linearizer, g: Tensor, point: Sequence[Any], moves: Sequence[Any]
    ) -> list[Any]:
        """Return the node's results at their places; those that have no rule are None."""
        found = run(CurvatureNode, solver, *_ended(solver, g, *point), *moves)
        if solver.second_order is None:  # hvp, in x alone
            return [found[0], *(None for _ in point[1:])]
        return at_their_places(solver, found, len(point))

    @staticmethod
    def vmap(info: Any, in_dims: Any, solver: Linearizer, g: Tensor, *rest: Any) -> Any:
        point, tangents = _halves(rest)
        dims, tangent_dims = _halves(in_dims[2:])

        def apply(point: Sequence[Any], rest: Sequence[Any]) -> tuple[Tensor, ...]:
            *tangents, g = rest
            return tuple(run(CurvatureNode, solver, g, *point, *tangents))

        others, other_dims = [*tangents, g], [*tangent_dims, in_dims[1]]
        batched = Batched(
            info, solver, point, dims, others, other_dims, sums=True, are_tangents=True
        )
        found = batched.run(apply)
        return found, (0,) * len(found)


# ---- where z may not be differentiated any more --------------------------------------------------


class _Final(Function):
    """The identity; its derivative is refused, by the error that it is given."""

    generate_vmap_rule = True

    @staticmethod
    def forward(error: HigherOrderError, value: Tensor) -> Any:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.error = inputs[0]

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        raise ctx.error

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Any) -> Any:
        raise ctx.error


def final(solver: Linearizer, point: Sequence[Any]) -> list[Any]:
    """Return x and the args as they may enter a first derivative."""
    if not isinstance(point[0], Tensor) or solver.second_order is not None:
        return list(point)
    first, error = 1 if solver.has("hvp") else 0, _no_rule(solver)
    return [
        run(_Final, error, value) if index >= first and _floats(value) else value
        for index, value in enumerate(point)
    ]


def _ended(solver: Linearizer, *values: Any) -> list[Any]:
    """Return g, x and the args as they enter a second derivative."""
    error = _no_further(solver, "a third derivative")
    return [run(_Final, error, value) if _floats(value) else value for value in values]


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _curvature(
    solver: Linearizer,
    g: Tensor,
    point: Sequence[Any],
    moves: Sequence[Any],
    needed: Sequence[bool],
) -> list[Any]:
    """Return the derivative of ``pullback(g)`` along `moves` for x and the args.

    Where there is no rule, what stands here is never read: torch goes on to `_Final`, which
    refuses, or it did not ask. It is NaN all the same.
    """
    has_all, has_x = solver.second_order is not None, solver.has("hvp")
    if has_all or has_x:
        if not has_all and any(v is not None for v in moves[1:]):
            raise _no_rule(solver, HVP_LACKS)
        curved = CurvatureNode.along(solver, g, point, moves)
    else:
        curved = [None] * len(point)
    return [
        c if c is not None or not is_needed or not _floats(z) else torch.full_like(z, torch.nan)
        for c, z, is_needed in zip(curved, point, needed, strict=True)
    ]


HVP_LACKS = "hvp= is declared, which speaks of x alone, not of the args. "


def _refuse_what_hvp_lacks(solver: Linearizer, needed: Sequence[bool]) -> None:
    """Refuse the derivative of an arg's cotangent along x, which no hvp gives."""
    if solver.second_order is None and solver.has("hvp") and any(needed[1:]):
        raise _no_rule(solver, HVP_LACKS)


def _no_rule(solver: Linearizer, why: str = "") -> HigherOrderError:
    return HigherOrderError(
        f"{solver.name}: a second derivative was asked for, and the solver has no rule for it; "
        f"{why}torch would take its first derivative for a constant and return a wrong number. "
        "Where only first derivatives are meant, drop create_graph=True. Else declare hvp= in the "
        "solver's spec, or choose second_order='differences' (in PhysicsConfig or solve).",
        solver=solver.name,
    )


def _no_further(solver: Linearizer, what: str) -> HigherOrderError:
    return HigherOrderError(
        f"{solver.name}: {what} was asked for, for which there is no rule. Second derivatives go "
        "by reverse mode over reverse mode, or forward over reverse (torch.func.hessian).",
        solver=solver.name,
    )


def _refuse_undeclared(solver: Linearizer, tangents: Sequence[Any]) -> None:
    for index, (tangent, is_wanted) in enumerate(
        zip(tangents, wanted(solver, len(tangents)), strict=True)
    ):
        if tangent is not None and not is_wanted:
            raise HigherOrderError(
                f"{solver.name}: forward mode reached {solver.arg_name(index - 1)}, for which the "
                "solver declares no derivative. Detach it, or declare the arg differentiable.",
                solver=solver.name,
            )


# ---- places --------------------------------------------------------------------------------------


def at_their_places(solver: Linearizer, found: Sequence[Any], count: int) -> list[Any]:
    """Return what there is for x and the differentiable args, with None for the others."""
    values: Iterator[Any] = iter(found)
    return [next(values) if is_wanted else None for is_wanted in wanted(solver, count)]


def _halves(values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    half = len(values) // 2
    return values[:half], values[half:]
