"""The pendulum behind adeptml's face: NumPy in, NumPy out, and the pullback beside the result.

The pattern to copy for a JAX solver of your own. `pendulum.trajectory` is pure JAX; what stands
here is what it takes to call such a function from the outside, again and again, at no risk.

**Compile both halves.** ``jax.vjp`` returns a pullback that is itself a pytree. So one jitted
function may return it and another may take it, and each is traced once for a set of shapes. A bare
``jax.vjp`` traces f at each call.

**Compile seldom.** A new batch size is a new shape, and compiling takes a second. So the batch is
padded to a power of two. The rows added repeat row 0, which is known to be valid (a row of zeros
would have L = 0), and have cotangent 0, so that they add nothing to what the samples share.

**JAX's settings are the user's.** `_settings` are ours, a context that each pullback enters again:
double precision above all, since JAX computes in float32 otherwise, and leave for what a stricter
user may have forbidden.

**Nothing is shared with the caller.** What comes in is copied: JAX may take over an array's memory
instead of its values, and the pullback reads it long after the caller has changed it. What goes out
is copied: JAX's own memory is read-only, and the pullback needs it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

try:
    import jax
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "pendulum-jax computes with JAX, which is not installed: pip install 'jax>=0.10'",
        name="jax",
    ) from missing

import numpy as np
from numpy.typing import NDArray

from adeptml_core.errors import ConfigError, InputError, SampleError
from adeptml_pendulum_jax.pendulum import GRAVITY, trajectory

__all__ = ["example", "forward", "jvp"]

Floats = NDArray[np.floating[Any]]
Pullback = Callable[[Floats], tuple[Floats, Floats]]

ERROR_LIMIT = 1e-6
"""rad (and rad/s): a trajectory that is estimated to be worse is refused."""

ESTIMATE_ORDER = 7  # local errors of order 8, summed over a number of steps that goes as 1 / h

SMALL_SWING = 7e-8
"""A step of h adds 7e-8 (rate h)^9 of a small swing to its error, where rate h < 1."""


def forward(
    x: Floats, params: Floats, *, dt: float, steps: int, substeps: int
) -> tuple[Floats, Pullback]:
    """Return the trajectory, and its pullback.

    Parameters
    ----------
    x : ndarray, shape (batch, 2), float64 or float32, rad and rad/s
        Angle and angular velocity at t = 0.
    params : ndarray, shape (batch, 4) or (4,), dtype of x
        Length L > 0 (m), damping c >= 0 (1/s), drive A (1/s^2) and its angular frequency Omega
        (rad/s): one set for each sample, or one for all.
    dt : float, s
        Time between the states returned.
    steps : int
        Number of states returned.
    substeps : int
        Runge-Kutta steps in each dt.

    Returns
    -------
    y : ndarray, shape (batch, steps, 2), dtype of x, rad and rad/s
        ``y[:, k]`` is the state at ``(k + 1) dt``: the initial state, which is x, is not repeated,
        and ``y[:, -1]`` is the x with which to go on.
    pullback : callable
        ``pullback(grad_output) -> (dx, dparams)``, of the shapes of x and params: the exact
        derivative of y as computed. Where params are shared, dparams is summed over the batch.
        ``pullback(a * g) == a * pullback(g)`` to rounding.

    Raises
    ------
    SampleError
        L or c out of range; an input that is not finite; steps too long for this pendulum.
    InputError
        Where the shapes disagree. (Core sees to that before; so it does to the options.)
    ConfigError
        For an option out of bounds.

    Notes
    -----
    All is computed in float64, whatever the dtype of x.

    Examples
    --------
    >>> x, params = np.array([[0.5, 0.0]]), np.array([1.0, 0.1, 0.0, 0.0])
    >>> y, pullback = forward(x, params, dt=0.05, steps=20, substeps=2)
    >>> y.shape
    (1, 20, 2)
    >>> dx, dparams = pullback(np.ones_like(y))
    >>> dx.shape, dparams.shape
    ((1, 2), (4,))
    """
    _require_sound(x, params, dt, steps, substeps)
    batch, dtype = len(x), np.result_type(x, np.float32)  # an integer x must not truncate y
    rows = None if params.ndim == 1 else batch
    with _settings():
        inputs = _padded(x), _padded(params)
        y, transpose, error = _linearized(*inputs, dt, steps=steps, substeps=substeps)
        _require_resolved(np.asarray(error)[:batch], x, params, dt, substeps)

    def pullback(grad_output: Floats) -> tuple[Floats, Floats]:
        _require_shape("grad_output", grad_output, (batch, steps, 2))
        with _settings():
            dx, dparams = _transposed(transpose, _padded(grad_output, repeat=False))
        return _numpy(dx, dtype, batch), _numpy(dparams, dtype, rows)

    return _numpy(y, dtype, batch), pullback


def jvp(x: Floats, dx: Floats, params: Floats, *, dt: float, steps: int, substeps: int) -> Floats:
    """Return the change of the trajectory along a change of the initial state.

    Parameters
    ----------
    x, params, dt, steps, substeps
        As in `forward`.
    dx : ndarray, shape (batch, 2), dtype of x
        Tangent of x.

    Returns
    -------
    dy : ndarray, shape (batch, steps, 2), dtype of x

    Raises
    ------
    SampleError, InputError, ConfigError
        As in `forward`.
    """
    _require_sound(x, params, dt, steps, substeps)
    _require_shape("dx", dx, x.shape)
    batch = len(x)
    with _settings():
        inputs = _padded(x), _padded(dx), _padded(params)
        dy, error = _pushed(*inputs, dt, steps=steps, substeps=substeps)
        _require_resolved(np.asarray(error)[:batch], x, params, dt, substeps)
    return _numpy(dy, np.result_type(x, np.float32), batch)


def example(
    rng: np.random.Generator, batch: int, **options: object
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return valid inputs: swings of all sizes, each with a pendulum of its own.

    Parameters
    ----------
    rng : Generator
    batch : int
    **options
        Not used: the inputs suit any.

    Returns
    -------
    x : ndarray, shape (batch, 2), rad and rad/s
    params : ndarray, shape (batch, 4)
    """
    x = rng.uniform((-2.5, -2.0), (2.5, 2.0), (batch, 2))
    params = rng.uniform((0.5, 0.0, 0.0, 0.5), (2.0, 0.5, 2.0, 4.0), (batch, 4))
    return x, params


# ---- compiled: once for each batch size (a power of two), steps and substeps --------------------


@partial(jax.jit, static_argnames=("steps", "substeps"))
def _linearized(
    x: jax.Array, params: jax.Array, dt: jax.Array, *, steps: int, substeps: int
) -> tuple[jax.Array, Callable[..., Any], jax.Array]:
    """Return y, its pullback as a pytree, and the estimated error."""
    model = partial(trajectory, dt=dt, steps=steps, substeps=substeps)
    y, transpose, error = jax.vjp(model, x, params, has_aux=True)
    return y, transpose, error


@jax.jit
def _transposed(transpose: Callable[..., Any], grad_output: jax.Array) -> tuple[jax.Array, ...]:
    """Return the cotangents of x and params."""
    return tuple(transpose(grad_output))


@partial(jax.jit, static_argnames=("steps", "substeps"))
def _pushed(
    x: jax.Array, dx: jax.Array, params: jax.Array, dt: jax.Array, *, steps: int, substeps: int
) -> tuple[jax.Array, jax.Array]:
    """Return dy along dx, and the estimated error of y."""
    model = partial(trajectory, params=params, dt=dt, steps=steps, substeps=substeps)
    _, dy, error = jax.jvp(model, (x,), (dx,), has_aux=True)
    return dy, error


# ---- the way in and the way out ----------------------------------------------------------------


@contextmanager
def _settings() -> Iterator[None]:
    """Set JAX as this module needs it, whatever the user has set.

    Its threads do not survive a fork: it would wait for them without end.
    """
    if _process_of_jax() != os.getpid():
        raise RuntimeError(
            "pendulum-jax has run before this process was forked, and JAX does not survive a fork. "
            "Start processes by 'spawn': DataLoader(..., multiprocessing_context=\"spawn\")"
        )
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.transfer_guard("allow"),
    ):
        yield


@cache
def _process_of_jax() -> int:
    """Return the process in which this was first asked, and JAX first run for us."""
    return os.getpid()


def _padded(array: Floats, *, repeat: bool = True) -> NDArray[np.float64]:
    """Copy in float64, the batch padded to a power of two; shared params stay as they are.

    The rows added repeat row 0 (1, if there is none), or, with ``repeat=False``, are 0. The copy is
    NumPy's, which nobody else holds: JAX is welcome to its memory. ``jnp.array`` would compile a
    program for each shape.
    """
    rows = len(array)
    size = 1 << (rows - 1).bit_length() if array.ndim > 1 else rows
    private = np.empty((size, *array.shape[1:]))
    private[:rows] = array
    private[rows:] = array[0] if repeat and rows else float(repeat)
    return private


def _numpy(array: jax.Array, dtype: np.dtype[Any], rows: int | None) -> Floats:
    """Copy the first `rows` to NumPy, so that the result is the caller's own and writeable."""
    return np.array(np.asarray(array)[:rows], dtype=dtype)


# ---- refusals ----------------------------------------------------------------------------------


def _require_sound(x: Floats, params: Floats, dt: float, steps: int, substeps: int) -> None:
    """Refuse what is no problem for this solver."""
    _require_shape("x", x, (len(x), 2))
    _require_shape("params", params, (4,), (len(x), 4))
    if not (np.isfinite(dt) and dt > 0):
        raise ConfigError(f"option dt = {dt!r} s: must be positive and finite")
    if steps < 1 or substeps < 1:
        raise ConfigError(f"options steps = {steps!r}, substeps = {substeps!r}: must be 1 or more")
    of_row = np.broadcast_to(params, (len(x), 4)).astype(np.float64)
    _require_physical(x, of_row)
    _require_fine(x, of_row, dt, steps, substeps)


def _require_shape(name: str, array: Floats, *allowed: tuple[int, ...]) -> None:
    if array.shape not in allowed or np.iscomplexobj(array):
        listed = " or ".join(map(str, allowed))
        raise InputError(
            f"{name} is {array.dtype} of shape {array.shape}; it must be real, of shape {listed}"
        )


def _require_physical(x: Floats, of_row: Floats) -> None:
    """Refuse the first sample whose inputs make no pendulum."""
    L, c = of_row[:, 0], of_row[:, 1]
    _refuse(~np.isfinite(x).all(axis=1), lambda row: f"{_state(x[row])}: not finite")
    _refuse(~np.isfinite(of_row).all(axis=1), lambda row: f"{_params(of_row[row])}: not finite")
    _refuse(L <= 0, lambda row: f"L = params[0] = {L[row]:g} m: a length is positive")
    _refuse(c < 0, lambda row: f"c = params[1] = {c[row]:g} 1/s: damping is not negative")


def _require_fine(x: Floats, of_row: Floats, dt: float, steps: int, substeps: int) -> None:
    """Refuse the first sample that a step is too long for, whatever its swing.

    The estimate that each step makes of its error cannot tell: at rest there is no error, and yet
    a derivative; and the two embedded methods agree by chance for some steps that are far too long.
    """
    L, c, _, Omega = of_row.T
    with np.errstate(over="ignore"):
        rates = np.stack([np.sqrt(GRAVITY / L), c, np.abs(Omega), np.abs(x[:, 1])])
        turns = dt * rates.max(axis=0)  # rad, in each dt
        # A step within a radian, and steps * substeps * SMALL_SWING * (turns / substeps)^9 < limit.
        whole = (steps * SMALL_SWING / ERROR_LIMIT) ** (1 / 8) * turns ** (9 / 8)
    wanted = np.ceil(np.maximum(turns, whole))

    def reason(row: int) -> str:
        fastest = int(rates[:, row].argmax())
        what = ("sqrt(g / L)", "c", "|Omega|", "|omega0|")[fastest]
        enough = f"Set substeps = {wanted[row]:.0f} or more"
        return (
            f"a step of dt / substeps = {dt / substeps:g} s is too long for {_state(x[row])}, "
            f"{_params(of_row[row])}, with {what} = {rates[fastest, row]:g} 1/s. "
            + (enough if wanted[row] < 1e9 else "No number of substeps will do")
        )

    _refuse(wanted > substeps, reason)


def _require_resolved(
    error: NDArray[np.float64], x: Floats, params: Floats, dt: float, substeps: int
) -> None:
    """Refuse the sample that the step suits least, if it is too long for it."""
    if not error.size:
        return
    error = np.where(np.isnan(error), np.inf, error)
    row = int(np.argmax(error))
    if error[row] <= ERROR_LIMIT:
        return
    raise SampleError(
        row,
        f"a step of dt / substeps = {dt / substeps:g} s is too long for {_state(x[row])}, "
        f"{_params(np.broadcast_to(params, (len(x), 4))[row])}: the trajectory's estimated error "
        f"is {error[row]:.1e} rad, the limit {ERROR_LIMIT:g} rad. " + _mend(error[row], substeps),
    )


def _mend(error: float, substeps: int) -> str:
    """Say how many substeps would bring `error` down to the limit.

    Ten times as many are no more than a try: an error so large says that nothing was resolved.
    """
    factor = (error / ERROR_LIMIT) ** (1 / ESTIMATE_ORDER)
    if factor < 10:
        return f"Try substeps = {int(np.ceil(substeps * factor))} or more"
    return f"Nothing is resolved: try substeps = {10 * substeps}, and more if that is refused, too"


def _refuse(bad: Any, reason: Callable[[int], str]) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise SampleError(row, reason(row))


def _state(x: Floats) -> str:
    return f"(theta0, omega0) = ({x[0]:g} rad, {x[1]:g} rad/s)"


def _params(params: Floats) -> str:
    L, c, A, Omega = params
    return f"(L, c, A, Omega) = ({L:g} m, {c:g} 1/s, {A:g} 1/s^2, {Omega:g} rad/s)"
