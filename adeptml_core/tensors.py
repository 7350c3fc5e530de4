"""Tensors and arrays: torch's memory as the solver may see it, the solver's as torch may have it.

Memory is shared only where nobody can be harmed. Solvers read torch's memory through read-only
views. A result is adopted without a copy only if it owns its memory and nobody else holds it: not
the solver's buffer, not the pullback's closure.
"""

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adeptml_core.errors import InputError
from adeptml_core.linearizer import AnyArray

__all__ = ["adopted", "argument", "array_of"]

MUTABLE = (np.ndarray, list, tuple)  # `|` would make it anew at every call
SMALL = 4096  # elements; below, a copy costs less than finding out whether it is needed


def array_of(tensor: Tensor) -> AnyArray:
    """Return the values, read-only; no copy where they are on the CPU; bfloat16 as float32."""
    try:
        array = tensor.numpy(force=True)
    except (TypeError, RuntimeError) as error:
        if tensor.dtype is torch.bfloat16:  # which numpy does not have
            return array_of(tensor.float())
        raise _unreadable(tensor, error) from error
    array.setflags(False)  # type: ignore[call-arg] # not writeable: this view, not the tensor
    return array


def _unreadable(tensor: Tensor, error: Exception) -> InputError:
    kind = f"{type(tensor).__name__} of {tensor.dtype}, {tensor.layout}, on {tensor.device}"
    mend = "Give an ordinary tensor, e.g. by to_dense() or float()."
    if "Batching rule" in str(error):
        mend = (
            "is_grads_batched=True and vectorize=True use torch's old vmap, which no solver can "
            "serve: use torch.func (jacrev, jacfwd, hessian, or vmap of a vjp)."
        )
    return InputError(f"a solver reads dense values in memory, and this {kind} has none. {mend}")


def argument(value: Any) -> Any:
    """Return an arg as the solver takes it; what has no version for torch to watch is copied."""
    if isinstance(value, Tensor):
        return array_of(value)
    return _private(value) if isinstance(value, MUTABLE) else value


def _private(value: Any) -> Any:
    """Return a copy of arrays and lists, that nobody's later edit reaches the pullback."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (list, tuple):  # a subclass may be made otherwise
        return type(value)(_private(item) for item in value)
    return value


def adopted(array: Any, like: Tensor) -> Tensor:
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
    """Return what ``getrefcount`` says in `adopted` of an array that only its caller holds.

    The number is the interpreter's affair (3.14 counts one less), so it is measured, in the same
    constellation. Without a global lock it means nothing, and every array counts as held.
    """

    def adopted(array: AnyArray) -> int:
        return sys.getrefcount(array)

    array = np.empty(1)
    has_lock = getattr(sys, "_is_gil_enabled", lambda: True)()
    return adopted(array) if has_lock else -1


_sole_holder = _count_of_sole_holder()
