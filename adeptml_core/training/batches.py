"""What loaders yield, and an epoch that can be opened again in the middle.

A loader yields ``(x, y)``, ``(x, y, *args)`` or ``(x, y, {model: args})``. Everything else is an
error here: a bare tensor would unpack along its batch axis and train on rows 0 and 1.

To go on in the middle of an epoch bit for bit, one must know how it was opened. The order of a
shuffled loader comes from the random state *at the epoch's start*, the dropout of the next batch
from the random state *now*. So both are kept. `Epoch.reopen` restores the first, discards the
batches that were used, and restores the second.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from adeptml_core.checkpoint import State, random_state, restore_random_state
from adeptml_core.errors import ConfigError, ResumeError

__all__ = ["Batch", "Epochs", "as_phy_args", "unpacked"]

PhysicsArgs = Sequence[Any] | Mapping[str, Any] | None

EXPECTED = "expected (x, y), (x, y, *args) or (x, y, {model: args})"


class Batch(NamedTuple):
    """One batch, taken apart."""

    x: Tensor
    y: Any
    args: PhysicsArgs


def unpacked(batch: object, loader: str) -> Batch:
    """Return what `loader` yielded as (x, y, phy_args).

    Raises
    ------
    ConfigError
        It is no tuple or list of at least two, or x or y is no tensor.
    """
    if not isinstance(batch, tuple | list):
        hint = ""
        if isinstance(batch, Tensor):
            hint = " (torch.utils.data.TensorDataset(x, y) makes such pairs)"
        raise ConfigError(f"{loader} yielded {_described(batch)}; {EXPECTED}{hint}")
    if len(batch) < 2:
        raise ConfigError(f"{loader} yielded {len(batch)} item(s); {EXPECTED}")
    if len(batch) == 2 and isinstance(batch[0], Tensor) and isinstance(batch[1], Tensor):
        return Batch(batch[0], batch[1], None)  # nearly always
    x, y, *rest = batch
    if not isinstance(x, Tensor):
        raise ConfigError(f"{loader} yielded {_described(x)} for x; it must be a tensor")
    if not isinstance(y, Tensor | tuple | list | Mapping):
        raise ConfigError(f"{loader} yielded {_described(y)} for y; it must be a tensor")
    return Batch(x, y, as_phy_args(rest, loader) or None)


def as_phy_args(args: Any, where: str) -> PhysicsArgs:
    """Return what follows y as ``phy_args``: a mapping that stands alone, or a list."""
    if args is None or isinstance(args, Mapping):
        return args
    if not isinstance(args, list | tuple):
        raise ConfigError(f"{where}: args is {_described(args)}; it must be a list, a dict or None")
    if len(args) == 1 and isinstance(args[0], Mapping):
        return args[0]
    if any(isinstance(arg, Mapping) for arg in args):
        raise ConfigError(
            f"{where}: {len(args)} items after y, and one of them is a dict; a dict stands alone, "
            "{model: args}"
        )
    return list(args)


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a bare tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


class Epochs:
    """The train loader, epoch by epoch.

    Parameters
    ----------
    loader : iterable
        The user's loader.
    others : iterable of loaders
        Loaders whose generators must be put back too (the test loader).
    watched : callable, optional
        What an iterator goes through before it is read; see `Interruption.fetched`.

    Attributes
    ----------
    start : dict or None
        The random states when the present epoch was opened; None between epochs.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        others: Sequence[Iterable[Any] | None] = (),
        watched: Callable[[Iterator[Any]], Iterator[Any]] = iter,
    ) -> None:
        self.loader = loader
        self._watched = watched
        self.start: State | None = None
        self._generators = [g for each in (loader, *others) for g in _generators(each)]
        self._iterator: Iterator[Any] = iter(())
        self._ahead: list[Any] = []

    @property
    def length(self) -> int | None:
        """The number of batches of an epoch, where the loader knows it."""
        return known_length(self.loader)

    def open(self, epoch: int, start: State | None = None) -> None:
        """Begin an epoch and fetch its first batch.

        Parameters
        ----------
        epoch : int
        start : dict, optional
            The random states now, where they are at hand already.

        Raises
        ------
        ConfigError
            There is none: the loader is empty, or was used up by the epoch before.
        """
        self.start = start or self.random()
        self._make_iterator(epoch)
        self._ahead = list(self._take(1))
        if not self._ahead:
            raise ConfigError(
                f"train_loader yielded no batch in epoch {epoch}. {_why_empty(epoch)}"
            )
        unpacked(self._ahead[0], "train_loader")

    def reopen(self, epoch: int, start: State, used: int, now: State) -> None:
        """Open the epoch as it was opened at `start`, `used` batches later, when all was `now`.

        Raises
        ------
        ResumeError
            The loader has fewer batches than were used.
        """
        if epoch and getattr(self.loader, "persistent_workers", False):
            self._start_persistent_workers()
        self.start = start
        self.restore_random(start)
        self._make_iterator(epoch)
        found = sum(1 for _ in self._take(used))
        if found < used:
            raise ResumeError(
                f"the run stands after {used} batches of epoch {epoch}, but train_loader has "
                f"{found}: it is not the loader of that run"
            )
        self._ahead = []
        restore_random_state(now["global"])

    def random(self) -> State:
        """Return the random states now: the global ones, and those of the loaders' generators."""
        return {
            "global": random_state(),
            "generators": [generator.get_state() for generator in self._generators],
        }

    def restore_random(self, state: State) -> None:
        """Put back what `random` returned."""
        if len(state["generators"]) != len(self._generators):
            raise ResumeError(
                f"the run's loaders had {len(state['generators'])} generators of their own, these "
                f"have {len(self._generators)}: they are not the loaders of that run"
            )
        restore_random_state(state["global"])
        for generator, own in zip(self._generators, state["generators"], strict=True):
            generator.set_state(own)

    def __iter__(self) -> Iterator[Any]:
        """Yield what is left of the epoch."""
        yield from self._ahead
        self._ahead = []
        yield from self._iterator

    def close(self) -> None:
        """End the epoch."""
        self._iterator, self._ahead, self.start = iter(()), [], None

    def _make_iterator(self, epoch: int) -> None:
        for sampler in _samplers(self.loader):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        self._iterator = self._watched(iter(self.loader))

    def _take(self, count: int) -> Iterator[Any]:
        for _ in range(count):
            try:
                yield next(self._iterator)
            except StopIteration:
                return

    def _start_persistent_workers(self) -> None:
        """Let the workers draw their seed now: in the first run they did so in an earlier epoch."""
        warnings.warn(
            "train_loader keeps its workers over epochs (persistent_workers=True): the order of "
            "the samples is resumed exactly, random numbers drawn inside the workers are not",
            UserWarning,
            stacklevel=2,
        )
        iter(self.loader)


def _samplers(loader: object) -> list[Any]:
    """Return the samplers of a `DataLoader`, outer ones first."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    found = [
        getattr(loader, "sampler", None),
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
    ]
    unique = {id(sampler): sampler for sampler in found if sampler is not None}
    return list(unique.values())


def _generators(loader: object) -> list[torch.Generator]:
    """Return the random generators that the order of a loader depends on."""
    holders = [loader, *_samplers(loader)] if isinstance(loader, DataLoader) else [loader]
    found = [getattr(holder, "generator", None) for holder in holders]
    unique = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return list(unique.values())


def known_length(loader: object) -> int | None:
    """Return the number of batches, where the loader knows it."""
    try:
        return len(loader)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        return None


def _why_empty(epoch: int) -> str:
    if epoch:
        return (
            "It can be read once only; give an iterable that starts anew each epoch: a list, a "
            "DataLoader"
        )
    return "Is the data set empty, or smaller than one batch with drop_last=True?"
