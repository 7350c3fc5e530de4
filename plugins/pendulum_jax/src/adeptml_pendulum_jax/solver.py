"""The pendulum behind adeptml's face: NumPy in, NumPy out, and the pullback beside the result.

The pattern to copy for a JAX solver of your own. `pendulum.trajectory` is pure JAX; what stands
here is what it takes to call such a function from the outside, again and again, at no risk.

**Compile both halves.** ``jax.vjp`` returns a pullback that is itself a pytree. So one jitted
function may return it and another may take it, and each is traced once for a set of shapes. A bare
``jax.vjp`` traces f at each call.

**Compile seldom.** A new batch size is a new shape, and compiling takes a second. So the batch is
padded to a power of two. The rows added repeat row 0, which is known to be valid (a row of zeros
would have L = 0), and have cotangent 0, so that they add nothing to what the samples share.

**Double precision, locally.** ``jax.enable_x64(True)`` as a context, entered again in each
pullback; JAX would compute in float32 otherwise. The global flag belongs to the user.

**Nothing is shared with the caller.** What comes in is copied: JAX may take over an array's memory
instead of its values, and the pullback reads it long after the caller has changed it. What goes out
is copied: JAX's own memory is read-only, and the pullback needs it.
"""

from collections.abc import Callable
from functools import partial
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

from adeptml_core.errors import SampleError
from adeptml_pendulum_jax.pendulum import trajectory

__all__ = ["example", "forward", "jvp"]

Floats = NDArray[np.floating[Any]]
Pullback = Callable[[Floats], tuple[Floats, Floats]]

ERROR_LIMIT = 1e-6
"""rad (and rad/s): a trajectory that is estimated to be worse is refused."""

ESTIMATE_ORDER = 7  # local errors of order 8, summed over a number of steps that goes as 1 / h


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
    _require_physical(x, params)
    batch, dtype = len(x), x.dtype
    rows = None if params.ndim == 1 else batch
    with jax.enable_x64(True):
        inputs = _padded(x), _padded(params)
        y, transpose, error = _linearized(*inputs, dt, steps=steps, substeps=substeps)
        _require_resolved(np.asarray(error)[:batch], x, params, dt, substeps)

    def pullback(grad_output: Floats) -> tuple[Floats, Floats]:
        with jax.enable_x64(True):
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
    SampleError
        As in `forward`.
    """
    _require_physical(x, params)
    batch = len(x)
    with jax.enable_x64(True):
        inputs = _padded(x), _padded(dx), _padded(params)
        dy, error = _pushed(*inputs, dt, steps=steps, substeps=substeps)
        _require_resolved(np.asarray(error)[:batch], x, params, dt, substeps)
    return _numpy(dy, x.dtype, batch)


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


def _padded(array: Floats, *, repeat: bool = True) -> NDArray[np.float64]:
    """Copy in float64, the batch padded to a power of two; shared params stay as they are.

    The rows added repeat row 0, or, with ``repeat=False``, are 0. The copy is NumPy's, which nobody
    else holds: JAX is welcome to its memory. ``jnp.array`` would compile a program for each shape.
    """
    rows = len(array)
    size = 1 << (rows - 1).bit_length() if array.ndim > 1 else rows
    private = np.empty((size, *array.shape[1:]))
    private[:rows] = array
    private[rows:] = array[0] if repeat else 0.0
    return private


def _numpy(array: jax.Array, dtype: np.dtype[Any], rows: int | None) -> Floats:
    """Copy the first `rows` to NumPy, so that the result is the caller's own and writeable."""
    return np.array(np.asarray(array)[:rows], dtype=dtype)


# ---- refusals ----------------------------------------------------------------------------------


def _require_physical(x: Floats, params: Floats) -> None:
    """Refuse the first sample whose inputs make no pendulum."""
    of_row = np.broadcast_to(params, (len(x), 4))
    L, c = of_row[:, 0], of_row[:, 1]
    _refuse(~np.isfinite(x).all(axis=1), lambda row: f"{_state(x[row])}: not finite")
    _refuse(~np.isfinite(of_row).all(axis=1), lambda row: f"{_params(of_row[row])}: not finite")
    _refuse(L <= 0, lambda row: f"L = params[0] = {L[row]:g} m: a length is positive")
    _refuse(c < 0, lambda row: f"c = params[1] = {c[row]:g} 1/s: damping is not negative")


def _require_resolved(
    error: NDArray[np.float64], x: Floats, params: Floats, dt: float, substeps: int
) -> None:
    """Refuse the sample that the step suits least, if it is too long for it."""
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
