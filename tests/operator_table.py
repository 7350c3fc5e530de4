"""What torch does to a solver, and whether that is right or refused: `docs/operator.md`'s table.

Each row is a transform: a function of ``f(x, *args)``, the same for a solver and for its twin in
torch. What the twin gives is the truth. ``python tests/operator_table.py`` prints the table as the
docs show it.
"""

import copy
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from twins import Twin, cores, plain, with_args

MODES = ("jacobian", "vjp", "split_vjp")
BATCH = 4
RIGHT = "right"

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Row:
    """A transform, and what becomes of it.

    Parameters
    ----------
    title : str
    run : callable
        ``(f, *z) -> tensors``.
    refusal : str, optional
        What the error says where the solver has no second-order rule; none: right everywhere.
    always : bool
        Whether it is refused with such a rule too.
    """

    title: str
    run: Callable[..., Any]
    refusal: str = ""
    always: bool = False

    def outcome(self, second_order: bool) -> str:
        """Return ``"right"`` or ``"refused"``."""
        return "refused" if self.refusal and (self.always or not second_order) else RIGHT


def numbers(z: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(range(len(z)))


def stacked(z: Tensor, count: int = 3) -> Tensor:
    """Return `count` different versions of `z`, along a new first axis."""
    return torch.stack([z * (1 + 0.1 * i) for i in range(count)])


def loss(f: Function) -> Function:
    return lambda *z: f(*z).pow(2).sum()


def tangents(z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.cos(3 * value) for value in z)


def leaves(z: tuple[Tensor, ...]) -> list[Tensor]:
    return [value.detach().clone().requires_grad_() for value in z]


def backward(f: Function, *z: Tensor) -> Any:
    z = tuple(leaves(z))
    return torch.autograd.grad(loss(f)(*z), z)


def backward_twice(f: Function, *z: Tensor) -> Any:
    z = tuple(leaves(z))
    y = loss(f)(*z)
    first = torch.autograd.grad(y, z, retain_graph=True)
    return *first, *torch.autograd.grad(y, z)


def without_grad(f: Function, *z: Tensor) -> Any:
    with torch.no_grad():
        first = f(*z)
    with torch.inference_mode():
        return first, f(*z)


def forward_mode(f: Function, *z: Tensor) -> Any:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(z, tangents(z), strict=True)]
        return tuple(forward_ad.unpack_dual(f(*duals)))


def forward_mode_over_backward(f: Function, *z: Tensor) -> Any:
    with forward_ad.dual_level():
        z = tuple(
            forward_ad.make_dual(value, v) for value, v in zip(leaves(z), tangents(z), strict=True)
        )
        first = torch.autograd.grad(loss(f)(*z), z, create_graph=True)
        return [forward_ad.unpack_dual(g).tangent for g in first]


def vmap_of_grad(f: Function, *z: Tensor) -> Any:
    return vmap(grad(loss(f), argnums=numbers(z)))(*map(stacked, z))


def vmap_over_x(f: Function, *z: Tensor) -> Any:
    x, *args = z
    gradient = grad(loss(f), argnums=numbers(z))
    return vmap(gradient, in_dims=(0, *(None for _ in args)))(stacked(x), *args)


def vmap_over_args(f: Function, *z: Tensor) -> Any:
    x, *args = z
    if not args:
        return vmap(f, in_dims=1, out_dims=1)(stacked(x).movedim(0, 1))
    gradient = grad(loss(f), argnums=numbers(z))
    return vmap(gradient, in_dims=(None, *(0 for _ in args)))(x, *map(stacked, args))


def vmap_of_vmap(f: Function, *z: Tensor) -> Any:
    twice = [stacked(stacked(value), 2) for value in z]
    return vmap(vmap(grad(loss(f), argnums=numbers(z))))(*twice)


def vmap_of_jvp(f: Function, *z: Tensor) -> Any:
    return vmap(lambda *z: jvp(f, z, tangents(z)))(*map(stacked, z))


def double_backward(f: Function, *z: Tensor) -> Any:
    z = tuple(leaves(z))
    first = torch.autograd.grad(loss(f)(*z), z, create_graph=True)
    return torch.autograd.grad(sum(g.pow(2).sum() for g in first), z)


def gradient_in_the_cotangent(f: Function, *z: Tensor) -> Any:
    z = tuple(leaves(z))
    y = f(*z)
    g = torch.ones_like(y, requires_grad=True)
    first = torch.autograd.grad(y, z, g, create_graph=True)
    return torch.autograd.grad(sum(dz.sin().sum() for dz in first), g)


def third(f: Function, *z: Tensor) -> Any:
    return jacrev(hessian(lambda x: f(x, *z[1:]).pow(2).sum()))(z[0])


def jacfwd_of_jacfwd(f: Function, *z: Tensor) -> Any:
    return jacfwd(jacfwd(lambda x: f(x, *z[1:]).pow(2).sum()))(z[0])


def copies(f: Function, *z: Tensor) -> Any:
    made = copy.copy(f), copy.deepcopy(f), pickle.loads(pickle.dumps(f))
    return [backward(g, *z) for g in made]


NO_RULE = "a second derivative was asked for"

ROWS = (
    Row("backward", backward),
    Row("backward twice, retain_graph", backward_twice),
    Row("no_grad, inference_mode", without_grad),
    Row("copy, deepcopy, pickle", copies),
    Row("forward mode (dual numbers)", forward_mode),
    Row("func.grad", lambda f, *z: grad(loss(f), argnums=numbers(z))(*z)),
    Row("func.vjp", lambda f, *z: vjp(f, *z)[1](torch.cos(f(*z)))),
    Row("func.jacrev", lambda f, *z: jacrev(f, argnums=numbers(z))(*z)),
    Row("func.jvp", lambda f, *z: jvp(f, z, tangents(z))),
    Row("func.jacfwd", lambda f, *z: jacfwd(f, argnums=numbers(z))(*z)),
    Row("vmap", lambda f, *z: vmap(f)(*map(stacked, z))),
    Row("vmap of grad", vmap_of_grad),
    Row("vmap of grad, over x alone", vmap_over_x),
    Row("vmap of grad, over the args alone", vmap_over_args),
    Row("vmap of vmap of grad", vmap_of_vmap),
    Row("vmap of jvp", vmap_of_jvp),
    Row("second derivative in the cotangent", gradient_in_the_cotangent),
    Row("backward of backward", double_backward, NO_RULE),
    Row("forward mode over backward", forward_mode_over_backward, NO_RULE),
    Row(
        "func.hessian (jacfwd of jacrev)",
        lambda f, *z: hessian(loss(f), argnums=numbers(z))(*z),
        NO_RULE,
    ),
    Row(
        "jacrev of jacrev",
        lambda f, *z: jacrev(jacrev(loss(f), argnums=numbers(z)), argnums=numbers(z))(*z),
        NO_RULE,
    ),
    Row(
        "jacrev of jacfwd",
        lambda f, *z: jacrev(jacfwd(loss(f), argnums=numbers(z)), argnums=numbers(z))(*z),
        NO_RULE,
    ),
    Row(
        "vmap of hessian",
        lambda f, *z: vmap(hessian(loss(f), argnums=numbers(z)))(*(stacked(v, 2) for v in z)),
        NO_RULE,
    ),
    Row("jacfwd of jacfwd", jacfwd_of_jacfwd, "second derivative|forward mode over", always=True),
    Row("third derivative", third, "second derivative|third derivative", always=True),
)

PROGRAMS = (
    ("torch.compile, fullgraph: eager, aot_eager, inductor; static and dynamic batch", RIGHT),
    ("torch.export, save, load in a new process; forward and backward", RIGHT),
    ("torch.library.opcheck of both ops", RIGHT),
    ("make_fx, fake tensors; with backward", RIGHT),
    ("checkpoint, save_on_cpu, allow_mutation_on_saved_tensors", RIGHT),
    ("DistributedDataParallel, two ranks", RIGHT),
    ("make_fx around torch.func", "refused"),
    ("is_grads_batched, autograd.functional with vectorize (torch's old vmap)", "refused"),
    ("torch.compile around torch.func", "refused, or beside the graph"),
    ("forward mode and torch.func around a compiled or exported program", "refused"),
    ("second derivative through a compiled program", "refused"),
)
"""Held by `test_program.py`, `test_operator_hostile.py` and `test_train_distributed.py`."""


@dataclass(frozen=True)
class Case:
    """A twin at a point."""

    twin: Twin
    name: str
    point: tuple[Tensor, ...]


def cases() -> Iterator[Case]:
    """Yield: without args; args shared and per sample; several core dimensions."""
    for twin, label in ((plain, "no args"), (with_args, "args"), (cores, "cores")):
        shapes = [tuple(3 if s == "n" else s for s in array.shape) for array in twin.arrays]
        x, *args = shapes
        forms = {"shared": args, "per sample": [(BATCH, *core) for core in args]}
        for form, wanted in forms.items() if args else {"": []}.items():
            draw = torch.Generator().manual_seed(1)
            point = tuple(
                torch.randn(shape, generator=draw, dtype=torch.float64)
                for shape in ((BATCH, *x), *wanted)
            )
            yield Case(twin, f"{label} {form}".strip(), point)


def markdown() -> str:
    """Return the table."""
    lines = [
        '| torch | solver as it is | with `hvp=` or `second_order="differences"` |',
        "|---|---|---|",
    ]
    lines += [f"| {row.title} | {row.outcome(False)} | {row.outcome(True)} |" for row in ROWS]
    lines += [f"| {title} | {outcome} | {outcome} |" for title, outcome in PROGRAMS]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
