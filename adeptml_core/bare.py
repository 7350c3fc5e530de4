"""A solver without a spec: two bare functions, as upstream took them, behind the same face.

Nothing is declared, so nothing is taken for granted, and none of a declared solver's freedoms is
used: no shared memory, no chunks, no gradient to args.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from adeptml_core.errors import ContractError, InputError
from adeptml_core.linearizer import AnyArray, Pullback, Shape, attribute, place
from adeptml_core.spec import Mode, check_second_order

__all__ = ["RawSolver"]

INTEGRAL = "biu"


class RawSolver:
    """A solver without a spec: bare functions, as ``PhysicsConfig(forward_func=...)`` takes them.

    Parameters
    ----------
    mode : Mode
        What `forward` and `derivative` mean.
    forward : callable
        ``forward(x, *args) -> y``; in split mode ``-> (y, pullback)``.
    derivative : callable, optional
        ``jacobian(x, *args)`` or ``vjp(x, grad_output, *args)``; not used in split mode.
    second_order : ``"differences"``, optional
        As of `Solver`.

    Notes
    -----
    Nothing is declared, so nothing is taken for granted: the functions get private, writable copies
    in the dtype of x; y must be ``(batch, ...)`` with at least two axes (one, if x has one); dx
    must have the shape of x; a Jacobian is ``(batch, *y, *x)`` or the same flattened to three axes.
    Results are cast to the dtype of x, if they are real and fit. No cotangent of the args.
    """

    differentiable: tuple[bool, ...] | None = None
    deterministic = True
    identity = ""
    second_order: str | None = None

    def __init__(
        self,
        mode: Mode,
        forward: Callable[..., Any],
        derivative: Callable[..., Any] | None = None,
        *,
        name: str = "",
        second_order: str | None = None,
    ) -> None:
        self.mode = mode
        self.row_independent = mode is Mode.JACOBIAN  # (batch, out, in) implies it
        if second_order is not None:
            self.second_order = check_second_order(second_order)
        self.name = name or getattr(forward, "__name__", type(forward).__name__)
        self.keeps_pullback = mode is Mode.SPLIT_VJP
        self._forward = forward
        self._derivative = derivative

    def has(self, role: str) -> bool:
        """Tell that there is no jvp and no hvp."""
        return False

    def jacobians(self, y: Shape, x: AnyArray, *args: Any) -> tuple[AnyArray | None, ...]:
        """Return the Jacobian of y (of that shape) for x, shape (batch, *y, *x)."""
        if x.size == 0:
            return (np.zeros((*y, *x.shape[1:]), x.dtype),)
        result = self._call("jacobian", self._require_derivative(), x, args)
        return (self._jacobian_of(result, x, y).reshape(*y, *x.shape[1:]),)

    def arg_name(self, index: int) -> str:
        """Return ``"args[0]"``: bare functions have no names for them."""
        return f"args[{index}]"

    def forward(self, x: AnyArray, *args: Any) -> AnyArray:
        """Return y, shape (batch, ...), in the dtype of x."""
        return self._run(x, args)[0]

    def linearize(self, x: AnyArray, *args: Any) -> tuple[AnyArray, Pullback]:
        """Return y and the pullback at ``(x, *args)``."""
        y, split = self._run(x, args)
        return y, functools.partial(self._pull, x, args, split)

    def pullback_at(self, x: AnyArray, *args: Any) -> Pullback:
        """Return the pullback alone: in split mode by running forward again."""
        split = self._run(x, args)[1] if self.keeps_pullback else None
        return functools.partial(self._pull, x, args, split)

    def _run(self, x: AnyArray, args: tuple[Any, ...]) -> tuple[AnyArray, Any]:
        if x.dtype.kind != "f":
            raise InputError(
                f"{self.name}: x is {x.dtype}; a solver's x is real and floating, or its results "
                "would be cut off. Convert it, e.g. x.float()."
            )
        result, split = self._call("forward", self._forward, x, args), None
        if self.keeps_pullback:
            pair = isinstance(result, tuple | list) and len(result) == 2 and callable(result[1])
            if not pair:
                self._broken(
                    "forward",
                    f"returned {type(result).__name__}; in split mode it returns (y, pullback)",
                )
            result, split = result
        elif isinstance(result, tuple | list) and len(result) == 2 and callable(result[1]):
            self._broken("forward", "returned (y, pullback): set use_split_vjp=True")
        y = self._cast("forward", result, x.dtype)
        batched = y.ndim >= min(2, x.ndim) and y.shape[:1] == x.shape[:1]
        if not batched:
            self._broken(
                "forward",
                f"returned shape {y.shape} for x of shape {x.shape}, expected (batch, out) = "
                f"({x.shape[0] if x.ndim else ''}, out), one row for each row of x.",
                (*x.shape[:1], "out"),
                y.shape,
            )
        return y, split

    def _pull(
        self, x: AnyArray, args: tuple[Any, ...], split: Any, g: AnyArray
    ) -> tuple[AnyArray | None, ...]:
        if x.size == 0:
            return (np.zeros_like(x),)
        if split is not None:
            result = self._call("pullback", split, g, ())
        elif self.mode is Mode.VJP:
            result = self._call("vjp", self._require_derivative(), x, (g, *args))
        else:
            result = self._call("jacobian", self._require_derivative(), x, args)
            return (self._contract(result, x, g),)
        role = "pullback" if split is not None else "vjp"
        dx = self._cast(role, result[0] if isinstance(result, tuple | list) else result, x.dtype)
        if dx.shape != x.shape:
            self._broken(
                role,
                f"returned shape {dx.shape}, expected {x.shape}: the cotangent of x.",
                x.shape,
                dx.shape,
            )
        return (dx,)

    def _contract(self, result: Any, x: AnyArray, g: AnyArray) -> AnyArray:
        jacobian = self._jacobian_of(result, x, g.shape)
        rows = np.matmul(g.reshape(len(g), 1, jacobian.shape[1]), jacobian)
        return np.asarray(rows.reshape(x.shape))

    def _jacobian_of(self, result: Any, x: AnyArray, y: Shape) -> AnyArray:
        """Return what the Jacobian's function gave as (batch, out, in), checked."""
        jacobian = self._cast("jacobian", result, x.dtype)
        full = (*y, *x.shape[1:])
        flat = (len(x), math.prod(y[1:]), math.prod(x.shape[1:]))
        if jacobian.shape not in (full, flat):
            transposed = (len(x), *x.shape[1:], *y[1:])
            hint = " Its axes are transposed." if jacobian.shape == transposed else ""
            self._broken(
                "jacobian",
                f"returned shape {jacobian.shape}, expected {full} = (batch, out, in).{hint}",
                full,
                jacobian.shape,
            )
        return jacobian.reshape(flat)

    def _require_derivative(self) -> Callable[..., Any]:
        if self._derivative is None:
            what = "vjp(x, grad_output, *args)" if self.mode is Mode.VJP else "jacobian(x, *args)"
            raise ContractError(
                f"{self.name}: mode {self.mode} needs a derivative function, {what}",
                solver=self.name,
                mode=self.mode.value,
                where="jacobian_func",
            )
        return self._derivative

    def _call(
        self, role: str, function: Callable[..., Any], x: AnyArray, args: tuple[Any, ...]
    ) -> Any:
        copies = [arg.copy() if isinstance(arg, np.ndarray) else arg for arg in args]
        try:
            return function(np.array(x, order="C"), *copies)
        except Exception as error:
            note = f"raised by {self.name} in its {role}"
            attribute(error, self.name, lambda: f"{note} ({place(function)})")
            raise

    def _cast(self, role: str, value: Any, dtype: np.dtype[Any]) -> AnyArray:
        """Return `value` in `dtype`; refused where that would change more than its precision."""
        if isinstance(value, np.ma.MaskedArray):
            self._broken(role, "returned a masked array; its mask would be lost")
        array = np.asarray(value)
        if array.dtype == dtype:
            return array
        if array.dtype.kind not in INTEGRAL + "f":
            self._broken(
                role,
                f"returned {array.dtype}, expected real numbers of {dtype}; "
                "a cast would lose what makes them different.",
                dtype,
                array.dtype,
            )
        try:
            with np.errstate(over="raise"):
                return array.astype(dtype)
        except FloatingPointError:
            self._broken(
                role,
                f"returned {array.dtype} with values too large for {dtype}, the dtype of x; "
                "give x as float64 or scale the result.",
                dtype,
                array.dtype,
            )

    def _broken(
        self, role: str, message: str, expected: object = None, got: object = None
    ) -> NoReturn:
        function = self._derivative if role in ("jacobian", "vjp") else self._forward
        where = place(function) if function is not None else ""
        raise ContractError(
            f"{self.name} ({self.mode}): {role} {message} {where}".rstrip(),
            solver=self.name,
            mode=self.mode.value,
            where=f"{role} ({where})",
            expected=expected,
            got=got,
        )
