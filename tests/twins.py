"""Solvers with a twin in torch: what torch finds for the twin is the truth for the solver."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adeptml_core.plugin import Array, SolverSpec
from adeptml_core.solver import Solver

W = np.array([[0.5, -1.0], [1.5, 0.25], [-0.75, 2.0]])  # (n, m)


@dataclass(frozen=True)
class Twin:
    """One function, as a solver in each mode and in torch.

    Parameters
    ----------
    arrays : tuple of Array
        x, then the args.
    y : Array
    value, jacobian : callable
        Of ``(x, *args)``, all per sample; the Jacobian for x and each arg.
    of_tensors : callable
        The same function of tensors; args shared or per sample.
    name : str
        The variable of this module that holds it, by which it is pickled.
    """

    name: str
    arrays: tuple[Array, ...]
    y: Array
    value: Callable[..., Any]
    jacobians: Callable[..., tuple[Any, ...]]
    of_tensors: Callable[..., Tensor]

    def __reduce__(self) -> tuple[Any, ...]:
        return _named, (self.name,)

    def torch(self, *z: Tensor) -> Tensor:
        """Return the truth."""
        return self.of_tensors(*z)

    def spec(self, mode: str, **changed: Any) -> SolverSpec:
        """Return the solver's spec in a mode."""
        functions: dict[str, dict[str, Any]] = {
            "jacobian": {"forward": self._forward, "jacobian": self._jacobian},
            "vjp": {"forward": self._forward, "vjp": self._vjp},
            "split_vjp": {"forward": self._split},
        }
        x, *args = self.arrays
        declared = {"name": f"twin-{mode.replace('_', '-')}", "mode": mode, "summary": "a twin"}
        return SolverSpec(**declared, x=x, args=tuple(args), y=self.y, **functions[mode], **changed)

    def solver(self, mode: str, second_order: str | None = None, **changed: Any) -> Solver:
        """Return the solver in a mode."""
        return Solver(self.spec(mode, **changed), second_order=second_order)

    def _spread(self, x: Any, args: tuple[Any, ...]) -> list[Any]:
        return [
            a if a.ndim > len(array.shape) else np.broadcast_to(a, (len(x), *a.shape))
            for a, array in zip(args, self.arrays[1:], strict=True)
        ]

    def _forward(self, x: Any, *args: Any) -> Any:
        return self.value(x, *self._spread(x, args)).astype(x.dtype)

    def _jacobian(self, x: Any, *args: Any) -> Any:
        found = tuple(J.astype(x.dtype) for J in self.jacobians(x, *self._spread(x, args)))
        return found if args else found[0]

    def _vjp(self, x: Any, g: Any, *args: Any) -> Any:
        found = []
        for J, a in zip(self.jacobians(x, *self._spread(x, args)), (x, *args), strict=True):
            rows = np.einsum("bi,bi...->b...", g.reshape(len(g), -1), _flat(J, g.ndim - 1))
            found.append((rows if rows.ndim == a.ndim else rows.sum(0)).astype(x.dtype))
        return tuple(found) if args else found[0]

    def _split(self, x: Any, *args: Any) -> Any:
        def pullback(g: Any) -> Any:
            found = self._vjp(x, g, *args)
            return found if args else (found,)

        return self._forward(x, *args), pullback


def _named(name: str) -> Twin:
    twin: Twin = globals()[name]
    return twin


def _flat(J: Any, y_ndim: int) -> Any:
    return J.reshape(len(J), -1, *J.shape[1 + y_ndim :])


plain = Twin(
    name="plain",
    arrays=(Array("x", ("n",)),),
    y=Array("y", (2,)),
    value=lambda x: np.sin(x) @ W,
    jacobians=lambda x: (np.cos(x)[:, None] * W.T,),
    of_tensors=lambda x: torch.sin(x) @ torch.as_tensor(W, dtype=x.dtype),
)


def plain_hvp(x: Any, g: Any, v: Any) -> Any:
    """Return the second derivative of `plain`, along v."""
    return (-np.sin(x) * v * (g @ W.T)).astype(x.dtype)


def plain_jvp(x: Any, dx: Any) -> Any:
    """Return the tangent of `plain`."""
    return ((np.cos(x) * dx) @ W).astype(x.dtype)


with_args = Twin(
    name="with_args",
    arrays=(
        Array("x", ("n",)),
        Array("a", ("n",), differentiable=True),
        Array("s", differentiable=True),
    ),
    y=Array("y", (2,)),
    value=lambda x, a, s: s[:, None] * (np.sin(x * a) @ W),
    jacobians=lambda x, a, s: (
        (s[:, None] * np.cos(x * a) * a)[:, None] * W.T,
        (s[:, None] * np.cos(x * a) * x)[:, None] * W.T,
        np.sin(x * a) @ W,
    ),
    of_tensors=lambda x, a, s: (
        s[..., None] * (torch.sin(x * a) @ torch.as_tensor(W, dtype=x.dtype))
    ),
)

cores = Twin(
    name="cores",
    arrays=(Array("x", (2, "n")), Array("b", (2, "n"), differentiable=True)),
    y=Array("y", ("n",)),
    value=lambda x, b: (x**3 * b).sum(1),
    jacobians=lambda x, b: (
        np.einsum("bin,nk->bkin", 3 * x**2 * b, np.eye(x.shape[2])),
        np.einsum("bin,nk->bkin", x**3, np.eye(x.shape[2])),
    ),
    of_tensors=lambda x, b: (x**3 * b).sum(-2),
)


def counting(*, deterministic: bool = True) -> tuple[Solver, list[str]]:
    """Return a split solver for x**2 and the list of what was called."""
    calls: list[str] = []

    def forward(x: Any) -> Any:
        calls.append("forward")

        def pullback(g: Any) -> Any:
            calls.append("pullback")
            return (2 * x * g,)

        return x**2, pullback

    declared = {"name": "one", "summary": "one", "x": Array("x", ("n",)), "y": Array("y", ("n",))}
    spec = SolverSpec(mode="split_vjp", forward=forward, deterministic=deterministic, **declared)
    return Solver(spec), calls
