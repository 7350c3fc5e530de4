"""What the user asked of `train`, checked before anything is touched."""

import datetime
import inspect
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from itertools import chain
from types import GeneratorType
from typing import Any, TypeVar

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, TensorDataset

from adeptml_core.checkpoint import unwrapped
from adeptml_core.errors import ConfigError
from adeptml_core.training.batches import known_length
from adeptml_core.training.callbacks import Callback, checked_callbacks
from adeptml_core.training.ranks import Ranks
from adeptml_core.training.step import checked_grad_clip

__all__ = ["Monitor", "OnNonFinite", "SchedulerPer", "Settings", "check_parts", "check_ranks"]

TRAIN_LOSS = "Loss/train"
TEST_LOSS = "Loss/test"
Choice = TypeVar("Choice", bound=StrEnum)
ONE_SHOT = (GeneratorType, map, filter, zip, enumerate, reversed, chain)


class OnNonFinite(StrEnum):
    """What to do about a batch whose loss or gradient is NaN or infinite."""

    RAISE = "raise"
    SKIP = "skip"
    STOP = "stop"


class SchedulerPer(StrEnum):
    """How often the scheduler is stepped."""

    STEP = "step"
    EPOCH = "epoch"


@dataclass(frozen=True)
class Monitor:
    """A quantity to judge epochs by.

    Parameters
    ----------
    name : str
        ``"Loss/test"``, ``"Loss/train"`` or a metric's name.
    largest : bool
        Whether more is better.
    """

    name: str
    largest: bool = False

    def is_better(self, value: float, than: float | None) -> bool:
        """Tell whether `value` beats `than`; NaN beats nothing, and anything beats None."""
        if than is None:
            return not math.isnan(value)
        return value > than if self.largest else value < than


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of `train`, as given; `checked` returns them normalised.

    Parameters are those of `adeptml_core.train_utils.train`.
    """

    epochs: Any
    print_training_loss: bool
    save_frequency: Any
    grad_clip: Any
    save_every: Any
    keep_best: Any
    patience: Any
    metrics: Any
    on_nonfinite: Any
    scheduler_per: Any
    progress: bool | None
    callbacks: Any
    seed: Any

    def record(self) -> dict[str, Any]:
        """Return the settings by name, for ``run.json``."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**settings, "metrics": list(self.metrics or ())}

    def checked(self, has_test_loader: bool) -> "Checked":
        """Return the settings, each of its own type.

        Raises
        ------
        ConfigError
            For the first that is wrong.
        """
        metrics = checked_metrics(self.metrics, has_test_loader)
        if self.progress not in (None, True, False):
            raise ConfigError(f"progress={self.progress!r} must be None, True or False")
        return Checked(
            epochs=integer("epochs", self.epochs, least=0),
            save_frequency=integer("save_frequency", self.save_frequency, least=1),
            grad_clip=checked_grad_clip(self.grad_clip),
            save_every=checked_save_every(self.save_every),
            keep_best=self.keep_best is not None,
            monitor=checked_monitor(self.keep_best, metrics, has_test_loader),
            patience=None if self.patience is None else integer("patience", self.patience, least=1),
            metrics=metrics,
            on_nonfinite=choice("on_nonfinite", self.on_nonfinite, OnNonFinite),
            scheduler_per=choice("scheduler_per", self.scheduler_per, SchedulerPer),
            callbacks=checked_callbacks(self.callbacks),
            seed=None if self.seed is None else integer("seed", self.seed, least=0),
            prints=bool(self.print_training_loss),
            progress=self.progress,
        )


@dataclass(frozen=True, kw_only=True)
class Checked:
    """`Settings` that hold together."""

    epochs: int
    save_frequency: int
    grad_clip: float | None
    save_every: int | datetime.timedelta | None
    keep_best: bool
    monitor: Monitor
    patience: int | None
    metrics: dict[str, Callable[[Any, Any], Any]]
    on_nonfinite: OnNonFinite
    scheduler_per: SchedulerPer
    callbacks: tuple[Callback, ...]
    seed: int | None
    prints: bool
    progress: bool | None


def integer(name: str, value: Any, *, least: int) -> int:
    """Return `value` as an int of at least `least`; neither a bool nor a float will do."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ConfigError(f"{name}={value!r} must be an integer of at least {least}")
    return number


def choice(name: str, value: Any, choices: type[Choice]) -> Choice:
    """Return `value` as one of `choices`."""
    try:
        return choices(value)
    except ValueError:
        listed = ", ".join(f'"{each}"' for each in choices)
        raise ConfigError(f"{name}={value!r} must be one of {listed}") from None


def checked_save_every(value: Any) -> int | datetime.timedelta | None:
    """Return the interval between checkpoints."""
    if value is None:
        return None
    if isinstance(value, datetime.timedelta):
        if value > datetime.timedelta(0):
            return value
        raise ConfigError(f"save_every={value!r} must be positive")
    return integer("save_every", value, least=1)


def checked_metrics(metrics: Any, has_test_loader: bool) -> dict[str, Callable[[Any, Any], Any]]:
    """Return the metrics by name."""
    if metrics is None:
        return {}
    fits = isinstance(metrics, Mapping) and all(
        isinstance(name, str) and name and callable(metric) for name, metric in metrics.items()
    )
    if not fits:
        raise ConfigError(f"metrics={metrics!r} must map names to functions of (y_pred, y)")
    if metrics and not has_test_loader:
        raise ConfigError("metrics are taken over the test pass, and test_loader is None")
    if taken := {TRAIN_LOSS, TEST_LOSS} & set(metrics):
        raise ConfigError(f"metrics: {taken.pop()!r} names a loss already")
    return dict(metrics)


def checked_monitor(keep_best: Any, metrics: Mapping[str, Any], has_test_loader: bool) -> Monitor:
    """Return what epochs are judged by: the test loss, or the train loss where no test is made."""
    if keep_best is None:
        return Monitor(TEST_LOSS if has_test_loader else TRAIN_LOSS)
    is_pair = isinstance(keep_best, tuple | list) and len(keep_best) == 2
    name, mode = keep_best if is_pair else (keep_best, "min")
    known = [TRAIN_LOSS, *([TEST_LOSS] if has_test_loader else []), *metrics]
    if name not in known or mode not in ("min", "max"):
        raise ConfigError(
            f'keep_best={keep_best!r} must be a name, or (name, "min" or "max"); names here: '
            f"{', '.join(known)}"
        )
    return Monitor(name, largest=mode == "max")


# ---- the objects -------------------------------------------------------------------------------


def check_parts(
    model: Any,
    train_loader: Any,
    test_loader: Any,
    optimizer: Any,
    loss_fn: Any,
    scheduler: Any,
    epochs: int,
) -> None:
    """Raise `ConfigError` for an object that cannot play its part."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    for name in ("step", "zero_grad", "param_groups", "state_dict"):
        if not hasattr(optimizer, name):
            raise ConfigError(
                f"optimizer is a {type(optimizer).__name__}, without {name}; it must be a "
                "torch.optim.Optimizer"
            )
    if not callable(loss_fn):
        raise ConfigError(f"loss_fn={loss_fn!r} is not callable")
    _check_forward(model)
    if scheduler is not None:
        _check_scheduler(scheduler, optimizer)
    _check_loader("train_loader", train_loader, epochs)
    if test_loader is not None:
        _check_loader("test_loader", test_loader, epochs)


def _check_forward(model: nn.Module) -> None:
    """Refuse a module that takes x alone; it can be made a member of a hybrid."""
    inner = unwrapped(model)
    try:
        inspect.signature(inner.forward).bind(None, None)
    except ValueError:  # compiled code has no signature
        return
    except TypeError:
        raise ConfigError(
            f"model is a {type(inner).__name__}, whose forward does not take (x, phy_args). "
            'HybridModel(HybridConfig({"net": model})) makes one that does.'
        ) from None


def _check_scheduler(scheduler: Any, optimizer: Any) -> None:
    if isinstance(scheduler, type) or not callable(getattr(scheduler, "step", None)):
        got = f"the class {scheduler.__name__}" if isinstance(scheduler, type) else ""
        got = got or f"a {type(scheduler).__name__}, without step()"
        raise ConfigError(f"scheduler is {got}; it must be a scheduler, made for the optimizer")
    groups = getattr(getattr(scheduler, "optimizer", optimizer), "param_groups", None)
    if groups is not optimizer.param_groups:
        raise ConfigError(
            f"scheduler, a {type(scheduler).__name__}, was made for another optimizer: it would "
            "change nothing here. Make it anew, with the optimizer that train gets."
        )


def _check_loader(name: str, loader: Any, epochs: int) -> None:
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise ConfigError(f"{name} is a {type(loader).__name__}, which yields no batches")
    if hasattr(loader, "shape") or isinstance(loader, str | bytes | Mapping):
        raise ConfigError(f"{name} is a {type(loader).__name__}; it must yield batches, (x, y)")
    if isinstance(loader, TensorDataset):
        raise ConfigError(
            f"{name} is a TensorDataset, which yields single samples; give "
            "DataLoader(dataset, batch_size=...)"
        )
    if isinstance(loader, ONE_SHOT) and epochs > 1:
        raise ConfigError(
            f"{name} is a {type(loader).__name__}, which can be read once, for {epochs} epochs; "
            "give an iterable that starts anew each epoch: a list, a DataLoader"
        )
    if known_length(loader) == 0:
        hint = " test_loader=None leaves the test pass out." if name == "test_loader" else ""
        raise ConfigError(f"{name} has no batches.{hint}")


def is_plateau(scheduler: Any) -> bool:
    """Tell whether a scheduler wants the loss of an epoch."""
    return isinstance(scheduler, ReduceLROnPlateau)


def check_ranks(model: nn.Module, train_loader: Any, ranks: Ranks) -> None:
    """Raise `ConfigError` where the ranks of a process group would not train one model."""
    if ranks.size == 1:
        return
    if not isinstance(model, DistributedDataParallel):
        raise ConfigError(
            f"{ranks.size} processes train together, but the model is not wrapped: each would "
            "train its own. Write DistributedDataParallel(model)."
        )
    plain = isinstance(getattr(train_loader, "sampler", None), RandomSampler | SequentialSampler)
    if isinstance(train_loader, DataLoader) and plain:
        warnings.warn(
            f"{ranks.size} processes train together, and train_loader has no DistributedSampler: "
            "unless each rank was given its own data set, all of them train on the same samples",
            UserWarning,
            stacklevel=3,
        )
    lengths = ranks.gather(known_length(train_loader))
    if len(set(lengths)) > 1:
        raise ConfigError(
            f"the ranks' train loaders have {lengths} batches; the ranks would wait for each other "
            "for ever. DistributedSampler gives all the same number."
        )
