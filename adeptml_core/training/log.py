"""What a run tells while it runs: a printed line an epoch, and TensorBoard scalars.

Scalars are written once an epoch: one a step would cost a fifth of a small step. ``Loss/train`` and
``Loss/test`` stand at step = epoch, from 0.

===========================  ============================================================
``Loss/train``, ``/test``    mean over the batches
``Metrics/<name>``           mean over the test batches
``LearningRate``             at the end of the epoch; ``LearningRate/<i>`` for more groups
``GradientNorm``             mean 2-norm over the updates (of an epoch of 64 or more batches, over
                             every eighth), before clipping
``Time/step``, ``/data``     mean seconds for an update, and for waiting for its batch
``Time/solver/<member>``     of an update, in that solver of a hybrid model: forward and pullback
``Time/network``             of an update, in all the rest; both from every sixteenth update, where
                             updates take less than 5 ms
``Time/epoch``               seconds, with the test pass
===========================  ============================================================
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Log", "learning_rates", "tagged"]

RESULTS = ("Loss/train", "Loss/test")


class Log:
    """The log of one run; silent on all ranks but the first.

    Parameters
    ----------
    directory : Path
        Of the run.
    is_first : bool
        Whether this rank writes.
    prints : bool
        Whether a line is printed after each epoch.
    epoch : int
        The first epoch of this session; what an earlier session logged from there on is void.
    """

    def __init__(self, directory: Path, *, is_first: bool, prints: bool, epoch: int) -> None:
        self._prints = prints and is_first
        self.writer: Any = None
        if is_first:
            from torch.utils.tensorboard import SummaryWriter  # 0.2 s: not for who does not train

            purge = {"purge_step": epoch} if epoch else {}
            self.writer = SummaryWriter(log_dir=str(directory), **purge)

    def print(self, line: str) -> None:
        """Print a line, where lines are wanted."""
        if self._prints:
            print(line, flush=True)

    def epoch(self, epoch: int, seconds: float, train_loss: float, test_loss: float | None) -> None:
        """Print the line of an epoch."""
        test = "" if test_loss is None else f" | Test Loss: {test_loss:.6f}"
        self.print(f"Epoch {epoch} | Time: {seconds:.2f}s | Train Loss: {train_loss:.6f}{test}")

    def scalars(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write scalars at step = `epoch`, all in one event: each wakes the writer's thread."""
        if self.writer is None:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        pairs = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.writer.file_writer.add_summary(Summary(value=pairs), epoch)

    def hyperparameters(self, *tables: Mapping[str, Any]) -> None:
        """Write settings for TensorBoard's HParams page.

        Into the run's own event file: ``SummaryWriter.add_hparams`` would open another.
        """
        if self.writer is None:
            return
        from torch.utils.tensorboard.summary import hparams

        flat = {name: value for table in tables for name, value in _flat(table)}
        for summary in hparams(flat, dict.fromkeys(RESULTS, 0)):  # type: ignore[no-untyped-call]
            self.writer.file_writer.add_summary(summary)

    def close(self) -> None:
        """Flush and close the event file."""
        if self.writer is not None:
            self.writer.close()


def tagged(results: Mapping[str, float]) -> dict[str, float]:
    """Return losses under their own names, metrics under ``Metrics/``."""
    return {n if n.startswith("Loss/") else f"Metrics/{n}": v for n, v in results.items()}


def learning_rates(rates: Sequence[Any]) -> dict[str, float]:
    """Return the learning rate of each parameter group, by its tag."""
    tags = ["LearningRate", *(f"LearningRate/{index}" for index in range(1, len(rates)))]
    return {tag: float(rate) for tag, rate in zip(tags, rates, strict=True)}


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the plain values of nested tables as ``("optimizer.class", "Adam")``."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
            for index, item in enumerate(value):
                yield from _flat(item, f"{prefix}{name}.{index}.")
        elif isinstance(value, bool | int | float | str):
            yield prefix + name, value
