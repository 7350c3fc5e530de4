"""Who gave the first NaN.

A loss that is NaN has a first cause: a value in the data, a parameter, one row of one solver's
result, the loss function, or, where the loss is finite and a gradient is not, one pullback. The
search runs the batch once more, member by member. It costs one forward pass, once, and only after
something has gone wrong.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adeptml_core.checkpoint import random_state, restore_random_state, unwrapped
from adeptml_core.training.batches import Batch

__all__ = ["Culprit", "find_culprit_of_gradient", "find_culprit_of_loss"]

LossFunction = Callable[[Any, Any], Tensor]

ROWS_TRIED = 4096  # rows that are put through the loss function one by one


@dataclass(frozen=True)
class Culprit:
    """Where the first value that is not finite came from.

    Parameters
    ----------
    what : str
        In words, for the message.
    row : int, optional
        The first row of the batch.
    member, solver : str
        The member of the hybrid model, and its solver's name where it has one.
    """

    what: str
    row: int | None = None
    member: str = ""
    solver: str = ""

    def __str__(self) -> str:
        return (
            self.what if self.row is None else f"{self.what}, first at row {self.row} of the batch"
        )


def find_culprit_of_loss(model: nn.Module, batch: Batch, loss_fn: LossFunction) -> Culprit:
    """Return what made the loss of `batch` NaN or infinite."""
    bad_data = _first_bad(_data(batch))
    if bad_data is not None:
        return Culprit(f"the loader gave {bad_data[0]} that is not finite", bad_data[1])
    for name, parameter in model.named_parameters():
        if not is_finite(parameter):
            return Culprit(f"the parameter {name} is not finite already")
    with _as_before(), torch.no_grad():
        outputs = _outputs(model, batch)
        bad_output = _first_bad(outputs.items())
        if bad_output is not None:
            return _member(model, "the output of {} is not finite", *bad_output)
        return Culprit(
            "loss_fn, of finite values", _bad_row_of_loss(_last(outputs), batch, loss_fn)
        )


def find_culprit_of_gradient(model: nn.Module, batch: Batch, loss_fn: LossFunction) -> Culprit:
    """Return what made a gradient of `batch` NaN or infinite while the loss was finite."""
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not is_finite(parameter.grad)
    ]
    reached = Culprit(f"it reaches the parameter {names[0]}" if names else "a gradient")
    with _as_before(), torch.enable_grad():
        outputs = _outputs(model, batch)
        watched = {name: y for name, y in outputs.items() if y.requires_grad}
        loss = loss_fn(_last(outputs), batch.y)
        cotangents = torch.autograd.grad(loss, list(watched.values()), allow_unused=True)
    bad = [
        (name, g)
        for name, g in zip(watched, cotangents, strict=True)
        if g is not None and not is_finite(g)
    ]
    if not bad:
        return reached
    name, g = bad[-1]
    consumer = _consumer(model, name, list(outputs))
    if consumer is None:
        return Culprit("the derivative of loss_fn is not finite", first_bad_row(g))
    return _member(model, "the derivative of {} is not finite", consumer, first_bad_row(g))


# ---- the parts of a model ----------------------------------------------------------------------


def _outputs(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return what each member gives for `batch`; for a model without members, what it gives."""
    inner = unwrapped(model)
    run = getattr(inner, "run", None)
    if callable(run) and hasattr(inner, "models_physics"):
        outputs: dict[str, Tensor] = run(batch.x, batch.args)
        return outputs or {"": batch.x}
    return {"": inner(batch.x, batch.args)}


def _last(outputs: dict[str, Tensor]) -> Tensor:
    return next(reversed(outputs.values()))


def _member(model: nn.Module, sentence: str, member: str, row: int | None) -> Culprit:
    """Return the culprit for a member of the model, by its name and its solver's."""
    if not member:
        return Culprit(sentence.format("the model"), row)
    config = getattr(unwrapped(model), "config", None)
    value = getattr(config, "models", {}).get(member)
    solver = value if isinstance(value, str) else getattr(value, "solver", None)
    solver = getattr(solver, "name", solver) or ""
    named = f"{member!r}, the solver {solver}," if solver else f"the member {member!r}"
    return Culprit(sentence.format(named), row, member, solver)


def _consumer(model: nn.Module, source: str, members: list[str]) -> str | None:
    """Return the last member that `source` feeds: through it came its cotangent."""
    config = getattr(unwrapped(model), "config", None)
    feeds = []
    previous = ""
    for member in members:
        routed = (getattr(config, "model_inputs", None) or {}).get(member, {previous: None})
        args = (getattr(config, "arg_inputs", None) or {}).get(member, {})
        if source in routed or any(source in sources for sources in args.values()):
            feeds.append(member)
        previous = member
    return feeds[-1] if feeds and source else None


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Put the random states back: the search must not change what the next batch draws."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)


# ---- values ------------------------------------------------------------------------------------


def is_finite(tensor: Tensor) -> bool:
    """Tell whether all values are finite; integers always are."""
    return bool(torch.isfinite(tensor).all())


def first_bad_row(tensor: Tensor) -> int | None:
    """Return the first index along the batch axis that holds a value which is not finite."""
    if tensor.ndim == 0:
        return None
    finite = torch.isfinite(tensor).reshape(tensor.shape[0], -1).all(dim=1)
    return int((~finite).nonzero()[0, 0])


def _first_bad(tensors: Any) -> tuple[str, int | None] | None:
    for name, tensor in tensors:
        if isinstance(tensor, Tensor) and not is_finite(tensor):
            return name, first_bad_row(tensor)
    return None


def _data(batch: Batch) -> Iterator[tuple[str, Any]]:
    yield "an x", batch.x
    yield "a y", batch.y
    yield from _named_args(batch.args, "an arg")


def _named_args(args: Any, what: str) -> Iterator[tuple[str, Any]]:
    """Yield every tensor in phy_args, however deep, with its place."""
    if isinstance(args, Mapping):
        for key, value in args.items():
            yield from _named_args(value, f"{what} [{key!r}]")
    elif isinstance(args, list | tuple):
        for index, value in enumerate(args):
            yield from _named_args(value, f"{what} [{index}]")
    else:
        yield what, args


def _bad_row_of_loss(y_pred: Any, batch: Batch, loss_fn: LossFunction) -> int | None:
    """Return the first row whose loss, taken alone, is not finite."""
    if not isinstance(y_pred, Tensor) or not isinstance(batch.y, Tensor):
        return None
    with contextlib.suppress(Exception):  # a loss function need not take a single row
        for row in range(min(len(y_pred), ROWS_TRIED)):
            loss = loss_fn(y_pred[row : row + 1], batch.y[row : row + 1])
            if not math.isfinite(loss):
                return row
    return None
