"""Training: one batch at a time, or a whole run.

`train_step` makes a function that trains on one batch, for loops of your own. `train` is the whole
loop: TensorBoard, checkpoints, resume, early stopping. What it is made of lies in
`adeptml_core.training`.
"""

import datetime
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from adeptml_core.training.batches import Batch, as_phy_args
from adeptml_core.training.callbacks import Callback, TrainingState
from adeptml_core.training.loop import Training
from adeptml_core.training.settings import Settings
from adeptml_core.training.step import Step, evaluating, refuse_plateau

__all__ = ["Callback", "TrainingState", "train", "train_step"]

Model = TypeVar("Model", bound=nn.Module)
LossFunction = Callable[[Any, Any], Tensor]
PhysicsArgs = Sequence[Any] | Mapping[str, Any] | None


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: LossFunction,
    scheduler: Any = None,
    grad_clip: float | None = None,
) -> Callable[..., float]:
    """Return a function that trains on one batch.

    Parameters
    ----------
    model : torch.nn.Module
        Called as ``model(x, phy_args)``.
    optimizer : torch.optim.Optimizer
        LBFGS and others that need a closure get one.
    loss_fn : callable
        ``loss_fn(y_pred, y) -> scalar tensor``.
    scheduler : torch.optim.lr_scheduler.LRScheduler, optional
        Stepped after each batch.
    grad_clip : float, optional
        Largest 2-norm of the gradient.

    Returns
    -------
    callable
        ``step(x, y, args, test=False) -> float``: the loss before the update. `args` are the
        ``phy_args`` of the model, a list, a dict or None. With ``test=True`` the model is evaluated
        in evaluation mode, without gradients, and nothing is updated.

    Raises
    ------
    ConfigError
        At once: `ReduceLROnPlateau`, which wants the loss of an epoch; clipping together with a
        closure. From ``step``: a loss that is no scalar, does not depend on the parameters, or
        broadcasts the output against a target of another shape.
    NonFiniteError
        From ``step``: the loss or a gradient is NaN or infinite. The parameters are untouched.

    Examples
    --------
    >>> import torch
    >>> from adeptml_core.configs import HybridConfig, MLPConfig
    >>> from adeptml_core.ensemble import HybridModel
    >>> model = HybridModel(HybridConfig({"net": MLPConfig(2, 8, 1, 1, "tanh", "identity")}))
    >>> step = train_step(model, torch.optim.Adam(model.parameters()), torch.nn.MSELoss())
    >>> loss = step(torch.zeros(4, 2), torch.ones(4, 1), [])
    """
    refuse_plateau(scheduler)
    step = Step(model, optimizer, loss_fn, scheduler, grad_clip)

    def _batch_step(x: Tensor, y: Any, args: PhysicsArgs = None, test: bool = False) -> float:
        batch = Batch(x, y, as_phy_args(args, "train_step"))
        if not test:
            return step.train(batch)
        with evaluating(model):
            return step.test(batch)[0]

    return _batch_step


def train(
    model: Model,
    train_loader: Iterable[Any],
    test_loader: Iterable[Any] | None,
    optimizer: Optimizer,
    loss_fn: LossFunction,
    scheduler: Any,
    filename: str | os.PathLike[str],
    epochs: int,
    print_training_loss: bool = True,
    save_frequency: int = 50,
    grad_clip: float | None = None,
    *,
    resume: str | os.PathLike[str] | None = None,
    save_every: int | datetime.timedelta | None = None,
    keep_best: str | tuple[str, str] | None = None,
    patience: int | None = None,
    metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    on_nonfinite: str = "raise",
    scheduler_per: str = "step",
    progress: bool | None = None,
    callbacks: Sequence[Callback | Callable[[TrainingState], Any]] = (),
    seed: int | None = None,
) -> Model:
    """Train a model, log to TensorBoard, and leave checkpoints from which the run can go on.

    Parameters
    ----------
    model : torch.nn.Module
        Called as ``model(x, phy_args)``. In a process group, wrapped in `DistributedDataParallel`.
    train_loader, test_loader : iterable
        Yield ``(x, y)``, ``(x, y, *args)`` or ``(x, y, {model: args})``, anew each epoch.
        ``test_loader=None`` leaves the test pass out.
    optimizer : torch.optim.Optimizer
        LBFGS and others that need a closure get one.
    loss_fn : callable
        ``loss_fn(y_pred, y) -> scalar tensor``.
    scheduler : torch.optim.lr_scheduler.LRScheduler or None
        Stepped after each batch; `ReduceLROnPlateau` after each epoch, with the test loss (the
        train loss where there is no test pass).
    filename : path-like
        Base directory, relative to the working directory. The run gets ``run_<n>`` in it, n being
        one more than the largest there is.
    epochs : int
        Number of epochs in all, resumed or not.
    print_training_loss : bool
        Whether a line is printed after each epoch.
    save_frequency : int
        Every so many epochs ``Model_<epoch>.pt`` is written.
    grad_clip : float, optional
        Largest 2-norm of the gradient.
    resume : {None, "auto"} or path-like, optional
        The run to go on with, to the bit: ``"auto"``, the newest run in `filename` that has a
        ``last.ckpt`` (a new run where there is none); or a run directory, or its ``last.ckpt``.
    save_every : int or timedelta, optional
        Write ``last.ckpt`` every so many updates, or so often, besides where it is written anyway:
        with each ``Model_<epoch>.pt``, at the end, and on interruption.
    keep_best : str or (str, "min" or "max"), optional
        Write ``model_best.pt`` whenever this is better than ever: ``"Loss/test"``,
        ``"Loss/train"`` or a metric's name. A bare name means: less is better.
    patience : int, optional
        End the training after so many epochs without a better value of what `keep_best` names, of
        the test loss by default.
    metrics : mapping of str to callable, optional
        ``metric(y_pred, y) -> number``, averaged over the batches of the test pass.
    on_nonfinite : {"raise", "skip", "stop"}
        What to do where a loss or gradient is NaN or infinite, or a solver refuses a sample: raise
        `NonFiniteError` or the solver's `SampleError`; leave the batch out, with a warning; or end
        the training there. The parameters are never touched.
    scheduler_per : {"step", "epoch"}
        How often the scheduler is stepped.
    progress : bool, optional
        None: a progress bar on a terminal, none elsewhere. True: elsewhere a line now and then.
    callbacks : sequence of Callback or callable
        Called in order; a function after each epoch, with the `TrainingState`.
    seed : int, optional
        Seeds torch, NumPy and Python before the first batch of a new run.

    Returns
    -------
    torch.nn.Module
        The same object, trained.

    Raises
    ------
    ConfigError
        A setting, a loader or another object is wrong. Settings and objects are looked at, and the
        first batch is fetched, before a directory is made.
    ResumeError
        The checkpoint is damaged, foreign, or belongs to another training.
    NonFiniteError, SampleError
        As `on_nonfinite` says; names the batch and, where it can be told, solver and row.
    KeyboardInterrupt
        After Ctrl-C: the batch is finished and a checkpoint written first. SIGTERM likewise, but
        ends as `SystemExit` with status 143. A second signal ends at once.

    Notes
    -----
    The test pass is made in evaluation mode; each submodule gets its own mode back. Otherwise the
    model's mode is left as it is.

    Files in the run directory: ``model_final.pt``, ``Model_<epoch>.pt``, ``model_best.pt`` (bare
    state_dicts), ``last.ckpt``, ``run.json`` (settings, versions, solvers, git commit), and one
    TensorBoard event file for each session. Every file is written under another name and renamed.

    A resumed run equals the uninterrupted one to the bit where the script gives it equal objects,
    and randomness comes from torch, NumPy's global state, Python's `random` and the generators of
    the loaders.
    """
    settings = Settings(
        epochs=epochs,
        print_training_loss=print_training_loss,
        save_frequency=save_frequency,
        grad_clip=grad_clip,
        save_every=save_every,
        keep_best=keep_best,
        patience=patience,
        metrics=metrics,
        on_nonfinite=on_nonfinite,
        scheduler_per=scheduler_per,
        progress=progress,
        callbacks=callbacks,
        seed=seed,
    )
    training = Training(model, train_loader, test_loader, optimizer, loss_fn, scheduler, settings)
    training.run(Path.cwd() / filename, resume)
    return model
