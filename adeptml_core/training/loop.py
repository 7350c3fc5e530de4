"""The loop: epochs of batches, a test pass, and a run directory that is whole at every moment.

Whatever can be wrong is looked at before the run directory is made: settings, loaders, the first
batch, the checkpoint to go on from. After that, the training can be left at two kinds of places,
after a batch and after an epoch, and at both ``last.ckpt`` can be written.
"""

import datetime
import math
import random
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from adeptml_core.checkpoint import State, UnstorableError
from adeptml_core.errors import ConfigError, NonFiniteError, SampleError
from adeptml_core.training.batches import Batch, Epochs, unpacked
from adeptml_core.training.callbacks import TrainingState
from adeptml_core.training.interruption import InterruptedFetch, Interruption
from adeptml_core.training.log import learning_rates, tagged
from adeptml_core.training.progress import Progress
from adeptml_core.training.ranks import Ranks
from adeptml_core.training.resume import (
    Best,
    Parts,
    Position,
    read_checkpoint,
    write_checkpoint,
)
from adeptml_core.training.runs import LAST, checkpoint_to_resume, claim, described, weights
from adeptml_core.training.session import Session
from adeptml_core.training.settings import (
    TEST_LOSS,
    TRAIN_LOSS,
    OnNonFinite,
    SchedulerPer,
    Settings,
    check_parts,
    check_ranks,
    is_plateau,
)
from adeptml_core.training.step import Step, evaluating
from adeptml_core.training.timing import Watches

__all__ = ["Training"]


LONG = 64  # batches; in longer epochs the norm of the gradient is measured in every eighth


class _Ended(Exception):  # noqa: N818 - the end of a training, not a fault
    """The training ends here, as if it had come to its last epoch."""


@dataclass
class _Times:
    """Seconds of one epoch in this session: since its start, in updates, waiting for batches."""

    began: float
    batches: int = 0
    updating: float = 0.0
    waiting: float = 0.0

    def means(self) -> dict[str, float]:
        """Return the means over the batches, by their tags."""
        seconds = {"Time/step": self.updating, "Time/data": self.waiting}
        return {tag: spent / self.batches for tag, spent in seconds.items() if self.batches}


class Training:
    """One training, from its checks to its last file.

    Parameters are those of `adeptml_core.train_utils.train`; making one changes nothing.

    Raises
    ------
    ConfigError
        A setting, a loader or another object is wrong.
    """

    def __init__(
        self,
        model: nn.Module,
        train_loader: Iterable[Any],
        test_loader: Iterable[Any] | None,
        optimizer: Any,
        loss_fn: Any,
        scheduler: Any,
        settings: Settings,
    ) -> None:
        self.ranks = Ranks()
        self.given = settings
        self.settings = settings.checked(has_test_loader=test_loader is not None)
        check_parts(
            model, train_loader, test_loader, optimizer, loss_fn, scheduler, self.settings.epochs
        )
        check_ranks(model, train_loader, self.ranks)
        self.model = model
        self.test_loader = test_loader
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.parts = Parts(model, optimizer, loss_fn, scheduler, self.settings.callbacks)
        self.interruption = Interruption()
        self.epochs = Epochs(train_loader, [test_loader], self.interruption.fetched)
        self.steps_per_batch = self.settings.scheduler_per is SchedulerPer.STEP and not is_plateau(
            scheduler
        )
        self.step = Step(
            model,
            optimizer,
            loss_fn,
            scheduler if self.steps_per_batch else None,
            self.settings.grad_clip,
            self.ranks,
            self._place,
        )
        shown = self.settings.progress if self.ranks.is_first else False
        self.progress = Progress(shown, self.epochs.length)
        self._norm_every = 1 if (self.epochs.length or LONG) < LONG else 8
        self.watches = Watches(model)
        self.position = Position()
        self.best = Best()
        self._saved_step = 0
        self._saved_time = time.monotonic()

    # -- the whole --

    def run(self, base: Path, resume: Any = None) -> None:
        """Train, in a new run directory of `base` or in that of the run that goes on.

        Raises
        ------
        ConfigError
            The first batch is none.
        ResumeError
            The run cannot go on from its checkpoint.
        NonFiniteError
            A loss or gradient is NaN or infinite, and `on_nonfinite` is ``"raise"``.
        KeyboardInterrupt, SystemExit
            After SIGINT or SIGTERM, with a checkpoint behind it.
        OSError
            A file could not be written.
        """
        self.is_resumable = self._can_be_resumed(resume)
        with self.interruption:
            checkpoint = self._prepare(base, resume)
            with self._session(base, checkpoint) as self.session:
                self.state = self._new_state()
                try:
                    self._train()
                except (InterruptedFetch, RuntimeError) as error:
                    self._end_if_interrupted(error)
                    raise

    def _prepare(self, base: Path, resume: Any) -> Path | None:
        """Make all ready for the next batch; return the checkpoint of the run that goes on."""
        checkpoint = self.ranks.share(checkpoint_to_resume(resume, base))
        try:
            if checkpoint is None:
                self._begin()
            else:
                self._go_on_from(checkpoint)
            if self.interruption.requested is not None and self.ranks.size == 1:
                raise InterruptedFetch
        except InterruptedFetch:
            self._end("Training interrupted before its first batch; nothing has changed on disk.")
        return checkpoint

    def _train(self) -> None:
        if self.position.step or self.position.epoch:
            self.session.log.print(
                f"Going on with {self.session.directory.name} at epoch {self.position.epoch}, "
                f"batch {self.position.batch}"
            )
        self._call("on_start")
        try:
            while self.position.epoch < self.settings.epochs and not self._has_lost_patience():
                self._epoch()
        except _Ended:
            pass
        finally:
            self.progress.end()
        self._write_weights("model_final.pt")
        self._write_checkpoint()
        self._call("on_end")

    def _begin(self) -> None:
        """Prepare a new run: seeds, and the first batch."""
        if self.settings.seed is not None:
            seed = self.settings.seed + self.ranks.rank
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
        if self.settings.epochs:
            self.epochs.open(0)

    def _go_on_from(self, checkpoint: Path) -> None:
        resumed = read_checkpoint(checkpoint, self.parts, self.epochs.length, self.ranks)
        self.parts.restore(resumed.parts)
        self.position, self.best = resumed.position, resumed.best
        self._saved_step = self.position.step
        if resumed.start is None:
            self.epochs.restore_random(resumed.random)
        else:
            self.epochs.reopen(
                self.position.epoch, resumed.start, self.position.batch, resumed.random
            )

    def _session(self, base: Path, checkpoint: Path | None) -> Session:
        if checkpoint is not None:
            directory = checkpoint.parent
        else:
            directory = self.ranks.share(claim(base) if self.ranks.is_first else base)
        description = described(
            self.model, self.epochs.loader, self.optimizer, self.parts.loss_fn, self.scheduler
        )
        settings = self.given.record()
        session = Session(
            directory,
            is_first=self.ranks.is_first,
            prints=self.settings.prints,
            epoch=self.position.epoch,
            description={"settings": settings, "ranks": self.ranks.size, **description},
        )
        if checkpoint is None:
            session.log.hyperparameters(settings, description)
        return session

    def _can_be_resumed(self, resume: Any) -> bool:
        """Tell whether ``last.ckpt`` can be written at all: some schedulers hold odd objects."""
        try:
            self.parts.state()
        except UnstorableError as error:
            if resume is not None or self.settings.save_every is not None:
                raise
            warnings.warn(f"no {LAST} will be written: {error}", UserWarning, stacklevel=5)
            return False
        return True

    # -- an epoch --

    def _epoch(self) -> None:
        times = _Times(time.perf_counter())
        if self.epochs.start is None:
            self._open_epoch()
        self._train_pass(times)
        loss, norm = self._train_means()
        results = {TRAIN_LOSS: loss, **self._test_pass()}
        self.progress.end()
        self._log(results, norm, times)
        self._step_scheduler_after_epoch(results)
        self._judge(results)
        self._show_to_callbacks(results)
        self._close_epoch()

    def _open_epoch(self) -> None:
        """Open an epoch after the first; a loader that is used up must not cost what was learnt."""
        now = self.epochs.random()
        try:
            self.epochs.open(self.position.epoch, now)
        except InterruptedFetch as error:
            self.epochs.close()
            self._leave_by_failure(error, now)
        except ConfigError:
            self.epochs.close()
            self._write_checkpoint(now)
            raise

    def _train_pass(self, times: _Times) -> None:
        self.progress.start(self.position.epoch)
        self.watches.start()
        try:
            started = time.perf_counter()
            for item in self.epochs:
                fetched = time.perf_counter()
                self.watches.turn(times.batches)
                self._batch(unpacked(item, "train_loader"))
                ended = time.perf_counter()
                self.watches.note(ended - fetched)
                times.waiting += fetched - started
                times.updating += ended - fetched
                times.batches += 1
                started = ended
        except InterruptedFetch as error:
            self._leave_by_failure(error)
        finally:
            self.watches.off()

    def _batch(self, batch: Batch) -> None:
        position = self.position
        measured = self.step.measures_norm = position.batch % self._norm_every == 0
        loss = self._update(batch)
        position.batch += 1
        if not math.isnan(loss):
            position.step += 1
            position.counted += 1
            position.loss_sum += loss
            if measured:
                position.norm_sum += self.step.gradient_norm
                position.normed += 1
        if self.progress.is_on:
            self.progress.step(position.batch, loss)
        if self.settings.callbacks:
            self._place_state(loss)
            self._call("on_step")
        self._after_batch()

    def _place(self) -> str:
        return f"batch {self.position.batch} of epoch {self.position.epoch}"

    def _update(self, batch: Batch) -> float:
        """Return the loss of one update; NaN for a batch that is left out."""
        try:
            return self.step.train(batch)
        except (NonFiniteError, SampleError) as error:
            policy = self.settings.on_nonfinite
            what = str(error)
            if isinstance(error, SampleError):
                error.add_note(f"in {self._place()}; no update was made")
                what = f"{self._place()}: {str(error).rstrip('.')}."
            if policy is OnNonFinite.RAISE:
                error.add_note(
                    f'on_nonfinite="{OnNonFinite.SKIP}" leaves such batches out, '
                    f'"{OnNonFinite.STOP}" ends the training there'
                )
                raise
            self.optimizer.zero_grad()
            if policy is OnNonFinite.STOP:
                self.session.log.print(f"{what} The training ends here.")
                self.state.stop = True
            else:
                warnings.warn(f"{what} The batch is left out.", UserWarning, stacklevel=8)
            return math.nan
        except Exception as error:
            error.add_note(f"in {self._place()}")
            raise

    def _after_batch(self) -> None:
        """Leave, end or write a checkpoint, where a signal, a callback or `save_every` wants it."""
        leave, end = self.interruption.requested is not None, self.state.stop
        save = self.settings.save_every is not None and self._is_checkpoint_due()
        if self.ranks.size > 1:
            leave, end, save = self.ranks.any(leave, end, save)
        if leave:
            self._leave()
        if end:
            raise _Ended
        if save:
            self._write_checkpoint()

    def _train_means(self) -> tuple[float, float]:
        """Return the mean loss over the epoch's updates, and the mean of the measured norms."""
        position = self.position
        losses, norms, count, normed = self.ranks.sum(
            position.loss_sum, position.norm_sum, position.counted, position.normed
        )
        if not count:
            raise NonFiniteError(f"no batch of epoch {position.epoch} had a finite loss")
        return losses / count, norms / normed if normed else math.nan

    def _test_pass(self) -> dict[str, float]:
        """Return the means of loss and metrics over the test batches."""
        if self.test_loader is None:
            return {}
        now = self.epochs.random()
        names = (TEST_LOSS, *self.settings.metrics)
        sums, count = [0.0] * len(names), 0
        self.ranks.spread(self.model.buffers())
        try:
            with evaluating(self.model):
                for item in self.interruption.fetched(iter(self.test_loader)):
                    values = self._tested(unpacked(item, "test_loader"))
                    sums = [total + value for total, value in zip(sums, values, strict=True)]
                    count += 1
                    if self.interruption.requested is not None and self.ranks.size == 1:
                        raise InterruptedFetch  # the test pass will start over
        except InterruptedFetch as error:
            self._leave_by_failure(error, now)
        *sums, batches = self.ranks.sum(*sums, count)
        if not batches:
            self._write_checkpoint(now)
            raise ConfigError(
                f"test_loader yielded no batch in epoch {self.position.epoch}. Give an iterable "
                "that starts anew each epoch, or test_loader=None for no test pass."
            )
        return {name: total / batches for name, total in zip(names, sums, strict=True)}

    def _tested(self, batch: Batch) -> list[float]:
        loss, y_pred = self.step.test(batch)
        with torch.no_grad():
            metrics = self.settings.metrics.items()
            return [loss, *(_measured(name, metric, y_pred, batch.y) for name, metric in metrics)]

    def _log(self, results: dict[str, float], norm: float, times: _Times) -> None:
        epoch, log = self.position.epoch, self.session.log
        seconds = time.perf_counter() - times.began
        log.epoch(epoch, seconds, results[TRAIN_LOSS], results.get(TEST_LOSS))
        scalars = {
            **tagged(results),
            **learning_rates([group["lr"] for group in self.optimizer.param_groups]),
            "GradientNorm": norm,
            "Time/epoch": seconds,
            **times.means(),
            **self.watches.means(),
        }
        log.scalars(epoch, scalars)
        self.session.results = results

    def _step_scheduler_after_epoch(self, results: dict[str, float]) -> None:
        if self.scheduler is None or self.steps_per_batch:
            return
        if is_plateau(self.scheduler):
            self.scheduler.step(results.get(TEST_LOSS, results[TRAIN_LOSS]))
        else:
            self.scheduler.step()

    def _judge(self, results: dict[str, float]) -> None:
        """Keep the best weights, count the epochs since."""
        monitor = self.settings.monitor
        value = results[monitor.name]
        if not monitor.is_better(value, than=self.best.value):
            self.best.waited += 1
            return
        self.best = Best(value, self.position.epoch)
        if self.settings.keep_best:
            self._write_weights("model_best.pt")

    def _has_lost_patience(self) -> bool:
        if self.settings.patience is None or self.best.waited < self.settings.patience:
            return False
        self.session.log.print(
            f"No better {self.settings.monitor.name} for {self.best.waited} epochs "
            f"(best: {self.best.value} at epoch {self.best.epoch}); the training ends here."
        )
        return True

    def _close_epoch(self) -> None:
        epoch = self.position.epoch
        self.epochs.close()
        self.position.next_epoch()
        self.session.epoch = self.position.epoch
        if epoch % self.settings.save_frequency == 0 and epoch != 0:
            self._write_weights(f"Model_{epoch}.pt")
            self._write_checkpoint()
        leave, end = self.ranks.any(self.interruption.requested is not None, self.state.stop)
        if leave:
            self._leave()
        if end:
            raise _Ended

    # -- callbacks --

    def _new_state(self) -> TrainingState:
        return TrainingState(
            self.model,
            self.optimizer,
            self.scheduler,
            self.session.directory,
            self.session.log.writer,
            self.settings.epochs,
            epoch=self.position.epoch,
            batch=self.position.batch,
            step=self.position.step,
        )

    def _place_state(self, loss: float) -> None:
        state, position = self.state, self.position
        state.epoch, state.batch, state.step = position.epoch, position.batch, position.step
        state.loss = loss
        state.train_loss = state.test_loss = math.nan

    def _show_to_callbacks(self, results: dict[str, float]) -> None:
        state = self.state
        state.epoch = self.position.epoch
        state.train_loss = results[TRAIN_LOSS]
        state.test_loss = results.get(TEST_LOSS, math.nan)
        state.metrics = {name: results[name] for name in self.settings.metrics}
        self._call("on_epoch")

    def _call(self, event: str) -> None:
        for index, callback in enumerate(self.settings.callbacks):
            try:
                getattr(callback, event)(self.state)
            except Exception as error:
                error.add_note(f"raised by callbacks[{index}] in {event}, {self._place()}")
                raise

    # -- files --

    def _write_weights(self, name: str) -> None:
        if self.ranks.is_first:
            weights(self.model, self.session.directory / name)

    def _is_checkpoint_due(self) -> bool:
        every = self.settings.save_every
        if every is None:
            return False
        if isinstance(every, datetime.timedelta):
            return time.monotonic() - self._saved_time >= every.total_seconds()
        return self.position.step - self._saved_step >= every

    def _write_checkpoint(self, now: State | None = None) -> None:
        """Write ``last.ckpt``, to go on with the random states `now` (None: the present ones)."""
        if not self.is_resumable:
            return
        write_checkpoint(
            self.session.directory / LAST,
            self.parts,
            self.position,
            self.best,
            now or self.epochs.random(),
            self.epochs.start,
            self.epochs.length,
            self.ranks,
        )
        self._saved_step, self._saved_time = self.position.step, time.monotonic()

    def _leave(self, now: State | None = None) -> NoReturn:
        """Write a checkpoint and end as the signal wanted."""
        self.progress.end()
        self._write_checkpoint(now)
        place = f"epoch {self.position.epoch}, batch {self.position.batch}"
        way_on = "No checkpoint could be written"
        if self.is_resumable:
            way_on = f"To go on: train(..., resume={str(self.session.directory)!r})"
        self._end(f"Training interrupted at {place}. {way_on}")

    def _end(self, message: str) -> NoReturn:
        self.interruption.end(message if self.ranks.is_first else "")

    def _leave_by_failure(self, error: InterruptedFetch, now: State | None = None) -> NoReturn:
        """Leave where a signal took a loader from us, with a checkpoint if this process is alone.

        Other ranks may stand elsewhere, and would wait for each other in the writing of it.
        """
        if self.ranks.size > 1:
            raise error
        self._leave(now)

    def _end_if_interrupted(self, error: Exception) -> None:
        """End as the signal wanted, if there was one: it took a loader, or another rank, from us.

        No checkpoint can be written then; the last one stands.
        """
        ours = isinstance(error, InterruptedFetch) or self.ranks.size > 1
        if self.interruption.requested is None or not ours:
            return
        self.progress.end()
        way_on = "there is none"
        if (self.session.directory / LAST).exists():
            way_on = f"to go on from the last: train(..., resume={str(self.session.directory)!r})"
        self._end(
            f"Training interrupted at epoch {self.position.epoch}, batch {self.position.batch}, by "
            f"{error.__cause__ or error}. No checkpoint could be written; {way_on}"
        )


def _measured(name: str, metric: Callable[[Any, Any], Any], y_pred: Any, y: Any) -> float:
    """Return what a metric gives as a number."""
    try:
        value = metric(y_pred, y)
    except Exception as error:
        error.add_note(f"raised by the metric {name!r}")
        raise
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ConfigError(
            f"the metric {name!r} returned shape {tuple(value.shape)}; it must return a number"
        )
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(
            f"the metric {name!r} returned {value!r}; it must return a number"
        ) from None
