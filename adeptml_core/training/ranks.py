"""The processes that train together: one, or a `torch.distributed` group.

Data parallel training must take every decision in common. If one rank stops, skips a batch or
writes a checkpoint while the others go on, they wait for it in the next collective for ever. So
the loop asks here, and with one process the answers cost nothing.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Ranks"]

T = TypeVar("T")


class Ranks:
    """The place of this process in the default process group.

    Attributes
    ----------
    rank, size : int
        0 and 1 where there is no group.
    """

    def __init__(self) -> None:
        grouped = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if grouped else 0
        self.size: int = dist.get_world_size() if grouped else 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return, for each flag, whether it is set on any rank."""
        if self.size == 1:
            return flags
        votes = self._tensor([float(flag) for flag in flags])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return tuple(bool(vote) for vote in votes.tolist())

    def sum(self, *values: float) -> tuple[float, ...]:
        """Return each value summed over the ranks, in float64."""
        if self.size == 1:
            return values
        totals = self._tensor(list(values))
        dist.all_reduce(totals, op=dist.ReduceOp.SUM)
        return tuple(totals.tolist())

    def mean(self, value: float) -> float:
        """Return the mean of a number over the ranks; the same bits on all of them."""
        return self.sum(value)[0] / self.size

    def share(self, value: T) -> T:
        """Return the first rank's value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self._device())
        return box[0]

    def spread(self, buffers: Iterable[Tensor]) -> None:
        """Give all ranks the first one's values."""
        if self.size > 1:
            for buffer in buffers:
                dist.broadcast(buffer, src=0)

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in order of rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def _tensor(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self._device())

    def _device(self) -> torch.device:
        """Return where collectives want their tensors: NCCL knows GPUs only."""
        if dist.get_backend() == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")
