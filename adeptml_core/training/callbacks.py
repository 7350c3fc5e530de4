"""The user's own code in the loop.

A callback is a subclass of `Callback`, or just a function, which is called after each epoch. If it
has ``state_dict`` and ``load_state_dict``, its state is part of the checkpoint and comes back on
resume.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from adeptml_core.errors import ConfigError

__all__ = ["Callback", "TrainingState"]


@dataclass
class TrainingState:
    """What a callback sees.

    Attributes
    ----------
    model, optimizer, scheduler
        As given to `train`.
    directory : Path
        The run's directory.
    writer : SummaryWriter or None
        TensorBoard's; None on all ranks but the first.
    epoch, epochs : int
        The present one (0-based), and how many there will be in all.
    batch, step : int
        Batches used in this epoch, and updates made in the whole training.
    loss : float
        Of the last batch.
    train_loss, test_loss : float
        Means over the epoch; NaN before its end.
    metrics : dict of str to float
        Means over the test pass.
    stop : bool
        Set it to True to end the training after this batch or epoch, as if it were the last.
    """

    model: nn.Module
    optimizer: Any
    scheduler: Any
    directory: Path
    writer: Any
    epochs: int
    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss: float = math.nan
    train_loss: float = math.nan
    test_loss: float = math.nan
    metrics: dict[str, float] = field(default_factory=dict)
    stop: bool = False


class Callback:
    """Base of callbacks; every method does nothing."""

    def on_start(self, state: TrainingState) -> None:
        """Do something before the first batch, of a resumed run too."""

    def on_step(self, state: TrainingState) -> None:
        """Do something after an update."""

    def on_epoch(self, state: TrainingState) -> None:
        """Do something after an epoch: train and test pass, schedulers, log."""

    def on_end(self, state: TrainingState) -> None:
        """Do something after the last epoch; not after an error or an interruption."""


class _AfterEpoch(Callback):
    """A bare function, called after each epoch."""

    def __init__(self, function: Callable[[TrainingState], Any]) -> None:
        self._function = function

    def on_epoch(self, state: TrainingState) -> None:
        self._function(state)


def checked_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """Return the callbacks, functions wrapped.

    Raises
    ------
    ConfigError
        For what is neither a `Callback` nor a function.
    """
    if not isinstance(callbacks, Sequence):
        raise ConfigError(f"callbacks={callbacks!r} must be a list")
    return tuple(_checked(callback) for callback in callbacks)


def _checked(callback: Any) -> Callback:
    if isinstance(callback, Callback):
        return callback
    if callable(callback) and not isinstance(callback, type):
        return _AfterEpoch(callback)
    raise ConfigError(
        f"callbacks holds {callback!r}; it must be an instance of Callback, or a function of the "
        "training's state"
    )
