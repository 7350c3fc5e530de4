"""``last.ckpt``: all that it takes to go on as if nothing had happened.

It holds the state of every part (model, optimizer, scheduler, a loss function's own parameters,
callbacks), the position in the training, the best result so far, and of every rank the random
states: now, and at the start of the epoch if it stands in the middle of one.

Going on with other parts than those of the run would be silently wrong, so whatever can be told
apart is: another optimizer, a solver's other version, options of a solver, the number of ranks, the
length of the loader. Everything is compared before anything is changed.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adeptml_core._version import __version__
from adeptml_core.checkpoint import (
    FORMAT_VERSION,
    State,
    read,
    save,
    solver_provenance,
    storable,
    unwrapped,
)
from adeptml_core.errors import AdeptmlError, ResumeError
from adeptml_core.training.ranks import Ranks
from adeptml_core.training.runs import config_of

__all__ = ["Best", "Parts", "Position", "Resumed", "read_checkpoint", "write_checkpoint"]

FORMAT = "adeptml-training"


@dataclass
class Position:
    """Where in the training we are, and the sums of the present epoch.

    Parameters
    ----------
    epoch, batch : int
        The present epoch, and how many of its batches are used up.
    step : int
        Updates since the beginning of the training.
    loss_sum, norm_sum : float
        Over this epoch's updates, on this rank: losses, and norms of the gradient.
    counted, normed : int
        Number of updates in the two sums.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    norm_sum: float = 0.0
    counted: int = 0
    normed: int = 0

    def next_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch += 1
        self.batch = self.counted = self.normed = 0
        self.loss_sum = self.norm_sum = 0.0


@dataclass
class Best:
    """The best value of the monitored quantity, and for how many epochs there was no better."""

    value: float | None = None
    epoch: int | None = None
    waited: int = 0


@dataclass(frozen=True)
class Parts:
    """The objects whose state makes up a training."""

    model: nn.Module
    optimizer: Any
    loss_fn: Any
    scheduler: Any = None
    callbacks: Sequence[Any] = ()

    def stateful(self) -> dict[str, Any]:
        """Return the parts that have a state of their own, by name."""
        named = {"model": unwrapped(self.model), "optimizer": self.optimizer}
        named |= {"scheduler": self.scheduler, "loss_fn": self.loss_fn}
        named |= {f"callbacks[{i}]": callback for i, callback in enumerate(self.callbacks)}
        return {name: part for name, part in named.items() if hasattr(part, "state_dict")}

    def state(self) -> State:
        """Return the state of every part; `UnstorableError` for one that no file can hold."""
        states: State = {
            name: {"class": type(part).__name__, "state": storable(part.state_dict(), name)}
            for name, part in self.stateful().items()
        }
        states["optimizer"]["defaults"] = storable(_defaults(self.optimizer), "optimizer.defaults")
        return states

    def check(self, saved: Mapping[str, Any]) -> None:
        """Raise `ResumeError` unless `saved` is the state of such parts."""
        present = self.stateful()
        for name in sorted({*present, *saved}):
            got = type(present[name]).__name__ if name in present else "none"
            expected = saved[name]["class"] if name in saved else "none"
            if got != expected and name != "model":
                raise ResumeError(f"the run's {name} is {expected}, this one is {got}")
        _check_weights(present["model"], saved["model"]["state"])

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Load the state of every part."""
        _warn_of_defaults(saved["optimizer"]["defaults"], _defaults(self.optimizer))
        for name, part in self.stateful().items():
            try:
                part.load_state_dict(saved[name]["state"])
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                raise ResumeError(f"the state of {name} does not fit: {error}") from error


def _check_weights(model: nn.Module, saved: Mapping[str, Any]) -> None:
    """Compare names, shapes and dtypes; `load_state_dict` itself would round in silence."""
    present = model.state_dict()
    for name in [*present, *saved]:
        found = [_described(state, name) for state in (saved, present)]
        if found[0] != found[1]:
            raise ResumeError(f"the run's model has {found[0]} for {name}, this model {found[1]}")


def _described(state: Mapping[str, Any], name: str) -> str:
    if name not in state:
        return "nothing"
    value = state[name]
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"shape {tuple(value.shape)} and {value.dtype}"


def _defaults(optimizer: Any) -> dict[str, Any]:
    """Return the settings that the script gave the optimizer; schedulers do not change them."""
    return dict(getattr(optimizer, "defaults", {}))


def _warn_of_defaults(run: Mapping[str, Any], script: Mapping[str, Any]) -> None:
    for name, value in script.items():
        if name in run and run[name] != value:
            warnings.warn(
                f"the optimizer's {name} is {value!r} in this script, {run[name]!r} in the run "
                "that goes on: the run's holds",
                UserWarning,
                stacklevel=2,
            )


# ---- the file ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resumed:
    """What a checkpoint says of this rank."""

    parts: State
    position: Position
    best: Best
    random: State
    start: State | None = field(default=None)


def write_checkpoint(
    path: Path,
    parts: Parts,
    position: Position,
    best: Best,
    random: State,
    start: State | None,
    batches: int | None,
    ranks: Ranks,
) -> None:
    """Write ``last.ckpt``; every rank calls it, the first one writes.

    Parameters
    ----------
    random : dict
        The random states now; see `Epochs.random`.
    start : dict or None
        Those at the start of the epoch; None between epochs.
    batches : int or None
        The length of the train loader.
    """
    own = {
        "position": asdict(position),
        "random": random,
        "start": start,
        "batches": batches,
    }
    of_ranks = ranks.gather(own)
    if not ranks.is_first:
        return
    state = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "adeptml": __version__,
        "torch": str(torch.__version__),
        "solvers": solver_provenance(parts.model),
        "config": storable(config_of(parts.model), "config"),
        "best": asdict(best),
        "parts": parts.state(),
        "ranks": of_ranks,
    }
    save(state, path)


def read_checkpoint(path: Path, parts: Parts, batches: int | None, ranks: Ranks) -> Resumed:
    """Return what `write_checkpoint` wrote, after comparing it with the parts at hand.

    Raises
    ------
    ResumeError
        The file is damaged or foreign, or belongs to another training.
    """
    state = read(path, FORMAT, ResumeError)
    try:
        _check_surroundings(state, parts, ranks)
        own = state["ranks"][ranks.rank]
        position = Position(**own["position"])
        _check_length(own["batches"], batches, position)
        parts.check(state["parts"])
    except AdeptmlError as error:
        raise ResumeError(f"{path}: {error}") from error
    except (KeyError, TypeError, IndexError) as error:
        raise ResumeError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return Resumed(
        parts=state["parts"],
        position=position,
        best=Best(**state["best"]),
        random=own["random"],
        start=own["start"],
    )


def _check_surroundings(state: State, parts: Parts, ranks: Ranks) -> None:
    if len(state["ranks"]) != ranks.size:
        raise ResumeError(
            f"the run had {len(state['ranks'])} rank(s), now there are {ranks.size}; each rank "
            "has its own share of the data and its own random state"
        )
    present = {"solvers": solver_provenance(parts.model), "config": config_of(parts.model)}
    for name, value in present.items():
        difference = _first_difference(name, state[name], storable(value, name))
        if difference:
            raise ResumeError(f"{difference}; the run would not go on as it began")


def _first_difference(where: str, saved: Any, present: Any) -> str | None:
    """Return in words where two pieces of plain data differ first."""
    if isinstance(saved, Mapping) and isinstance(present, Mapping):
        for key in [*saved, *present]:
            found = _first_difference(f"{where}[{key!r}]", saved.get(key), present.get(key))
            if found:
                return found
        return None
    return None if saved == present else f"{where} was {saved!r} in the run, now it is {present!r}"


def _check_length(saved: int | None, present: int | None, position: Position) -> None:
    """Refuse a loader of another length in the middle of an epoch; say so between epochs."""
    if saved == present or saved is None or present is None:
        return  # an unknown length says nothing; reopening the epoch counts
    message = f"train_loader had {saved} batches in the run, now it has {present}"
    if position.batch:
        raise ResumeError(f"{message}; it cannot be entered after batch {position.batch}")
    warnings.warn(f"{message}: the run goes on with other data", UserWarning, stacklevel=2)
