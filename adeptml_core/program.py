"""The operator inside compiled and exported programs: two ops that name their solver.

A program cannot hold a Python object, so ``adeptml::linearize`` and ``adeptml::pullback`` take the
solver's `identity`, a line of JSON: distribution and name, version, options. It is looked up where
the program runs; a process that loads a program needs ``import adeptml_core.autograd`` and the
plugin, nothing else. Shapes are known while tracing because the spec declares them.

What holds a program together with its time: a plugin that is missing is an error with the pip line,
one of another version a warning.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from adeptml_core.errors import HigherOrderError, InputError
from adeptml_core.solver import Solver, identified
from adeptml_core.transforms import functorch_is_active, linearized, pulled, warn_undeclared

__all__ = ["call"]

TENSORS = list[Tensor]


def call(identity: str, x: Tensor, args: Sequence[Tensor]) -> Tensor:
    """Record a call of the solver in the program that is being traced."""
    y, _ = torch.ops.adeptml.linearize(x, list(args), identity)
    return y  # type: ignore[no-any-return]


def is_recorded() -> bool:
    """Tell whether make_fx records what happens now, or fake tensors only play it."""
    try:  # private, all of it; without, a graph would hold y as a constant, as for any numpy code
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
        from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as modes
    except ImportError:
        return False
    return any(isinstance(mode, ProxyTorchDispatchMode | FakeTensorMode) for mode in modes())


def not_recorded(name: str) -> InputError:
    """Return the error for what has no place in a recorded graph."""
    return InputError(
        f"{name}: make_fx or fake tensors reached a solver that cannot be recorded: it would be a "
        "constant of the graph. Solvers with declared shapes can, but not under torch.func."
    )


# ---- forward -------------------------------------------------------------------------------------


@torch.library.custom_op("adeptml::linearize", mutates_args=())
def linearize(x: Tensor, args: TENSORS, solver: str) -> tuple[Tensor, Tensor]:
    """Return y and the ticket for its pullback."""
    _refuse_tangents(solver, x, *args)
    return linearized(identified(solver), x, args)


@linearize.register_fake
def _(x: Tensor, args: TENSORS, solver: str) -> tuple[Tensor, Tensor]:
    shapes = [tuple(t.shape) for t in (x, *args)]
    y = x.new_empty(identified(solver).shape_of_y(*shapes))
    return y, x.new_empty((), dtype=torch.int64, device="cpu")


def _save(ctx: Any, inputs: tuple[Tensor, TENSORS, str], output: tuple[Tensor, Tensor]) -> None:
    x, args, ctx.identity = inputs
    _warn_of_undeclared(identified(ctx.identity), args)
    ctx.save_for_backward(output[1], x, *args)
    ctx.set_materialize_grads(False)


def _warn_of_undeclared(solver: Solver, args: TENSORS) -> None:
    for index, (arg, array) in enumerate(zip(args, solver.spec.args, strict=True)):
        if arg.requires_grad and not array.differentiable:
            warn_undeclared(solver.name, solver.arg_name(index))


def _backward(ctx: Any, g: Tensor | None, _: Tensor) -> Any:
    ticket, x, *args = ctx.saved_tensors
    if g is None:
        return None, [None] * len(args), None
    solver = identified(ctx.identity)
    found = iter(torch.ops.adeptml.pullback(g, ticket, x, args, ctx.identity))
    dx, *dargs = (next(found) if is_wanted else None for is_wanted in solver.differentiable or ())
    return dx, dargs, None


linearize.register_autograd(_backward, setup_context=_save)


# ---- backward ------------------------------------------------------------------------------------


@torch.library.custom_op("adeptml::pullback", mutates_args=())
def pullback(g: Tensor, ticket: Tensor, x: Tensor, args: TENSORS, solver: str) -> TENSORS:
    """Return the cotangents of x and of each differentiable arg."""
    return pulled(identified(solver), ticket, g, x, args)


@pullback.register_fake
def _(g: Tensor, ticket: Tensor, x: Tensor, args: TENSORS, solver: str) -> TENSORS:
    wanted = identified(solver).differentiable or ()
    return [t.new_empty(t.shape) for t, w in zip((x, *args), wanted, strict=True) if w]


def _refuse(ctx: Any, *_: Any) -> Any:
    raise HigherOrderError(
        f"{ctx.name}: a second derivative through a compiled program was asked for; "
        "differentiate the eager model instead",
        solver=ctx.name,
    )


def _name(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.name = identified(inputs[-1]).name


pullback.register_autograd(_refuse, setup_context=_name)


# ---- what cannot be right ------------------------------------------------------------------------


def _refuse_tangents(solver: str, *tensors: Tensor) -> None:
    """Refuse forward mode, of which torch tells such an op nothing."""
    if any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):  # type: ignore[no-untyped-call]
        raise _not_here(solver)


def _not_here(solver: str) -> InputError:
    return InputError(
        f"{identified(solver).name}: forward mode or torch.func reached a compiled or exported "
        "program, which would drop derivatives in silence; use the eager model there"
    )


def _refuse_functorch() -> None:
    """Refuse torch.func around the op: its jvp would be zero in silence.

    There is no public hook for it. Where torch's private maker of the kernel has gone, the op stays
    as torch makes it, which refuses all of torch.func but jvp and jacfwd.
    """
    try:
        from torch._library.autograd import make_autograd_impl
    except ImportError:
        return
    kernel = make_autograd_impl(linearize._opoverload, linearize)

    def guarded(keyset: Any, x: Tensor, args: TENSORS, solver: str) -> Any:
        if functorch_is_active():
            raise _not_here(solver)
        return kernel(keyset, x, args, solver)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "overriding a kernel": it is meant
        _library.impl("linearize", guarded, "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]


_library = torch.library.Library("adeptml", "FRAGMENT")  # type: ignore[no-untyped-call]
"""Kept, since its kernels go with it."""

_refuse_functorch()
