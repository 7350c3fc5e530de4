"""One batch: forward, loss, backward, update. Or an error, and nothing has changed.

The order of things is what makes a bad batch harmless. The loss is looked at before backward, the
gradients before the update; only then do parameters move. A model's buffers (BatchNorm's running
means) move in forward already, so they are put back.

A shape that fits by accident is refused too: a ``(B,)`` output against a ``(B, 1)`` target
broadcasts to ``(B, B)`` and trains on pairs that do not belong together.
"""

import contextlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils._python_dispatch import TorchDispatchMode

from adeptml_core.errors import ConfigError, NonFiniteError, SampleError
from adeptml_core.training.batches import Batch
from adeptml_core.training.nonfinite import (
    Culprit,
    find_culprit_of_gradient,
    find_culprit_of_loss,
    is_finite,
)
from adeptml_core.training.ranks import Ranks

__all__ = ["Step", "evaluating", "needs_closure"]

LossFunction = Callable[[Any, Any], Tensor]


class Step:
    """Trains on one batch at a time.

    Parameters
    ----------
    model : torch.nn.Module
        Called as ``model(x, phy_args)``.
    optimizer : torch.optim.Optimizer
        One that needs a closure (LBFGS) gets it.
    loss_fn : callable
        ``(y_pred, y) -> scalar tensor``.
    scheduler : optional
        Stepped after each update.
    grad_clip : float, optional
        Largest 2-norm of the gradient of all the model's parameters together.
    ranks : Ranks, optional
        The processes that train together.
    place : callable, optional
        Tells where in the training this is, for messages.

    Attributes
    ----------
    measures_norm : bool
        Whether the next update measures the norm of its gradient; one that clips does so anyway.
    gradient_norm : float
        The last that was measured: the 2-norm over the parameters, before clipping.

    Raises
    ------
    ConfigError
        Clipping together with a closure: it would change the function under the line search.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: LossFunction,
        scheduler: Any = None,
        grad_clip: float | None = None,
        ranks: Ranks | None = None,
        place: Callable[[], str] = lambda: "this batch",
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        self.scheduler = scheduler
        self.grad_clip = checked_grad_clip(grad_clip)
        self.ranks = ranks or Ranks()
        self.gradient_norm = math.nan
        self.measures_norm = True
        self._are_finite = _AreFinite()
        self.place = place
        self._has_closure = needs_closure(optimizer)
        self._drops_gradients = type(optimizer).zero_grad is Optimizer.zero_grad
        self._agreed_shapes: set[tuple[torch.Size, torch.Size]] = set()
        self._has_buffers = any(True for _ in model.buffers())
        if self._has_closure and grad_clip is not None:
            raise ConfigError(
                f"grad_clip={grad_clip} with {type(optimizer).__name__}: clipping changes the "
                "gradient under its line search, which then fails. Leave grad_clip out, or take "
                "an optimizer without a closure."
            )

    def train(self, batch: Batch) -> float:
        """Train on one batch and return its loss before the update.

        Raises
        ------
        NonFiniteError
            The loss or a gradient is NaN or infinite; parameters, buffers and the optimizer are as
            they were before the batch.
        SampleError
            A solver refuses a sample; the same holds.
        ConfigError
            The loss is no scalar, depends on no parameter, or broadcasts y_pred against y.
        """
        if self._has_buffers:
            with self._buffers_kept():
                loss = self._update(batch)
        else:
            loss = self._update(batch)
        if self.scheduler is not None:
            self.scheduler.step()
        return loss

    def _update(self, batch: Batch) -> float:
        if self._has_closure:
            return self._update_by_closure(batch)
        loss = self._evaluate_with_gradient(batch)
        self.optimizer.step()
        return loss

    def test(self, batch: Batch) -> tuple[float, Any]:
        """Return the loss of one batch and the model's output; without gradients.

        Past `DistributedDataParallel`, whose forward may wait for the other ranks: their test
        loaders need not have as many batches.
        """
        model = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
        with torch.no_grad():
            y_pred = model(batch.x, batch.args)
            return self._loss_of(y_pred, batch.y).item(), y_pred

    # -- the loss and its gradient --

    def _evaluate_with_gradient(self, batch: Batch) -> float:
        """Return the loss; leave its gradient, finite and clipped, in the parameters."""
        self._forget_gradients()
        loss = self._loss_of(self._output(batch), batch.y)
        if not loss.requires_grad:
            raise ConfigError(
                "the loss does not depend on any parameter that requires grad: nothing would be "
                "trained. Is a tensor detached in the model or in loss_fn, or everything frozen?"
            )
        value = loss.item()
        if not math.isfinite(value) or self.ranks.size > 1:
            self._refuse_loss_unless_finite(value, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = self._gradients()
        if self.measures_norm or self.grad_clip is not None or not self._are_finite(gradients):
            self.gradient_norm = self._clipped_norm(gradients)
            if not math.isfinite(self.gradient_norm):
                self._refuse_gradient(batch)
        return value

    def _output(self, batch: Batch) -> Any:
        try:
            return self.model(batch.x, batch.args)
        except SampleError:
            self.ranks.any(True)  # the others are about to ask whether the loss is finite
            raise

    def _forget_gradients(self) -> None:
        """Do what torch's ``zero_grad`` does, without its profiling: 4% of a small step."""
        if not self._drops_gradients:
            self.optimizer.zero_grad()
            return
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _loss_of(self, y_pred: Any, y: Any) -> Tensor:
        if self._may_broadcast(y_pred, y):
            loss = watched_loss(self.loss_fn, y_pred, y)
            self._agreed_shapes.add((y_pred.shape, y.shape))
        else:
            loss = self.loss_fn(y_pred, y)
        if not isinstance(loss, Tensor):
            raise ConfigError(
                f"loss_fn returned a {type(loss).__name__}; it must return a scalar tensor"
            )
        if loss.numel() != 1:
            raise ConfigError(
                f"loss_fn returned shape {tuple(loss.shape)}; it must return a scalar, say the mean"
            )
        return loss

    def _may_broadcast(self, y_pred: Any, y: Any) -> bool:
        """Tell whether the loss function must be watched at work: rare, so cheap to rule out."""
        if not isinstance(y_pred, Tensor) or not isinstance(y, Tensor) or y_pred.shape == y.shape:
            return False
        if (y_pred.shape, y.shape) in self._agreed_shapes:
            return False
        return y_pred.is_floating_point() and y.is_floating_point()

    def _clipped_norm(self, gradients: list[Tensor]) -> float:
        if not gradients:
            raise ConfigError(
                "backward gave no gradient to any parameter of the optimizer: nothing would be "
                "trained. Was the optimizer made with the parameters of this model?"
            )
        if self.grad_clip is not None:
            return nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip).item()
        return norm_of(gradients)

    def _gradients(self) -> list[Tensor]:
        return [
            gradient
            for group in self.optimizer.param_groups
            for parameter in group["params"]
            if (gradient := parameter.grad) is not None
        ]

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.optimizer.param_groups:
            yield from group["params"]

    # -- updates by closure --

    def _update_by_closure(self, batch: Batch) -> float:
        """Let the optimizer evaluate the batch as often as its line search wants.

        Every rank must see the same loss, or the ranks take different branches of the search; the
        gradients are averaged already.
        """
        losses: list[float] = []

        def closure() -> float:
            losses.append(self.ranks.mean(self._evaluate_with_gradient(batch)))
            return losses[-1]

        with self._all_kept():
            self.optimizer.step(closure)
        return losses[0]

    @contextlib.contextmanager
    def _all_kept(self) -> Iterator[None]:
        """Undo a line search that did not come to its end: it stands at some trial point."""
        parameters = list(self._parameters())
        values = [p.detach().clone() for p in parameters]
        state = _copied(self.optimizer.state_dict())
        try:
            yield
        except BaseException:
            with torch.no_grad():
                for parameter, value in zip(parameters, values, strict=True):
                    parameter.copy_(value)
            self.optimizer.load_state_dict(state)
            raise

    @contextlib.contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        """Put the buffers back where a batch came to nothing."""
        buffers = list(self.model.buffers())
        values = [buffer.detach().clone() for buffer in buffers]
        try:
            yield
        except BaseException:
            with torch.no_grad():
                for buffer, value in zip(buffers, values, strict=True):
                    buffer.copy_(value)
            raise

    # -- refusals --

    def _refuse_loss_unless_finite(self, value: float, batch: Batch) -> None:
        (anywhere,) = self.ranks.any(not math.isfinite(value))
        if not anywhere:
            return
        if math.isfinite(value):
            what, culprit = "is not finite", Culprit("on another rank, which says more")
        else:
            what, culprit = f"is {value}", self._search(find_culprit_of_loss, batch)
        raise non_finite(f"the loss of {self.place()} {what}", culprit)

    def _refuse_gradient(self, batch: Batch) -> None:
        """Refuse a gradient that is not finite.

        A norm may overflow where every entry is finite, which harms nobody unless it is clipped by.
        """
        if self.grad_clip is None and all(is_finite(gradient) for gradient in self._gradients()):
            return
        culprit = self._search(find_culprit_of_gradient, batch)
        raise non_finite(f"the gradient of {self.place()} is not finite", culprit)

    def _search(self, find: Callable[..., Culprit], batch: Batch) -> Culprit:
        try:
            return find(self.model, batch, self.loss_fn)
        except Exception as error:  # the search must not hide what it was made for
            return Culprit(f"the search for the cause ended in {type(error).__name__}: {error}")


def non_finite(what: str, culprit: Culprit) -> NonFiniteError:
    """Return the error, with the culprit's parts as its fields."""
    error = NonFiniteError(f"{what}: {culprit}. The parameters are as they were before it.")
    vars(error).update(solver=culprit.solver, member=culprit.member, row=culprit.row)
    return error


def needs_closure(optimizer: Optimizer) -> bool:
    """Tell whether ``optimizer.step`` cannot do without a closure, as that of LBFGS."""
    parameters = inspect.signature(optimizer.step).parameters
    closure = parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def checked_grad_clip(grad_clip: Any) -> float | None:
    """Return `grad_clip`, refused where it would stop or spoil the training."""
    if grad_clip is None:
        return None
    is_number = isinstance(grad_clip, Real) and not isinstance(grad_clip, bool)
    if not is_number or not float(grad_clip) > 0:
        raise ConfigError(
            f"grad_clip={grad_clip!r} must be a positive number: the largest norm of the gradient"
        )
    return float(grad_clip)


def refuse_plateau(scheduler: object) -> None:
    """Refuse `ReduceLROnPlateau` where there is no epoch whose loss it could be given."""
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ConfigError(
            "train_step cannot step ReduceLROnPlateau, which wants the loss of a whole epoch: pass "
            "scheduler=None and call scheduler.step(test_loss) after each epoch (train does so)"
        )


class _AreFinite:
    """Tells whether all gradients are finite, for a quarter of what their norm costs.

    By the fused call with which torch's `GradScaler` looks for overflows; it multiplies by one, so
    the gradients stay what they are. Where it cannot be had (no gradient, another device, sparse or
    complex numbers) the answer is no, and the norm has to tell.
    """

    def __init__(self) -> None:
        self._found, self._one = torch.zeros(1), torch.ones(1)
        self._works = True

    def __call__(self, gradients: list[Tensor]) -> bool:
        if not gradients or not self._works:
            return False
        try:
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found, self._one)
        except (RuntimeError, AttributeError):  # not for these gradients; not in this torch
            self._works = False
            return False
        if not self._found.item():
            return True
        self._found.zero_()
        return False


def norm_of(gradients: list[Tensor]) -> float:
    """Return the 2-norm of all gradients together, from one fused call: 3% of a small step."""
    dense = [g if g.layout is torch.strided else g.coalesce().values() for g in gradients]
    return math.hypot(*[norm.item() for norm in torch._foreach_norm(dense)])


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode, and every submodule back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _copied(state: Any) -> Any:
    """Return a deep copy of an optimizer's state_dict."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_copied(value) for value in state)
    return state


# ---- broadcasting ------------------------------------------------------------------------------


def watched_loss(loss_fn: LossFunction, y_pred: Tensor, y: Tensor) -> Any:
    """Return ``loss_fn(y_pred, y)``, refused where it broadcasts one against the other.

    The shapes alone do not tell: a loss that takes mean and variance from a ``(B, 2)`` output and
    a ``(B, 1)`` target is fine. So the elementwise operations are watched, for one that combines a
    descendant of all of y_pred with a descendant of all of y.
    """
    with warnings.catch_warnings():
        # torch's own losses expand first and combine equal shapes later; but they warn.
        warnings.filterwarnings("error", message="Using a (target|input) size")
        try:
            with _Watch(y_pred, y):
                return loss_fn(y_pred, y)
        except UserWarning:
            raise _broadcasts(y_pred, y) from None


def _broadcasts(y_pred: Tensor, y: Tensor) -> ConfigError:
    return ConfigError(
        f"loss_fn broadcasts the output of shape {tuple(y_pred.shape)} against the target of shape "
        f"{tuple(y.shape)}: it would compare values that do not belong together. Give both "
        "the same shape, e.g. y.reshape(y_pred.shape)."
    )


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows y_pred and y through the loss function."""

    def __init__(self, y_pred: Tensor, y: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._roots = (y_pred, y)
        self._descendants: tuple[list[Tensor], list[Tensor]] = ([y_pred], [y])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        family = [[t for t in tensors if any(t is d for d in kin)] for kin in self._descendants]
        if torch.Tag.pointwise in func.tags and all(
            any(t.shape == root.shape for t in kin)
            for kin, root in zip(family, self._roots, strict=True)
        ):
            raise _broadcasts(*self._roots)
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            of_y_pred, of_y = map(bool, family)
            if of_y_pred != of_y:  # a descendant of both is a comparison, not a side of one
                self._descendants[of_y].append(result)  # kept alive: identity is by object
        return result
