r"""The equation of motion, and the trajectory as a pure function of JAX arrays.

A rigid pendulum of length L, damped in proportion to its velocity, with a torque that drives it:

.. math::  \ddot\theta = -\frac{g}{L} \sin\theta - c \, \dot\theta + A \cos(\Omega t) .

theta is the angle from the hanging rest position; g is the standard acceleration of free fall. The
equation is exact for any angle: the pendulum may swing over the top.

Axes: inside, the state comes first and the batch last, ``(2, batch)``, so that each operation runs
over contiguous memory; outside, the batch comes first, as adeptml wants it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from adeptml_pendulum_jax import dormand_prince

__all__ = ["GRAVITY", "slope", "trajectory"]

GRAVITY = 9.80665
"""m/s^2, the standard value (3rd CGPM, 1901)."""


def slope(t: jax.Array, state: jax.Array, params: jax.Array) -> jax.Array:
    """Return the time derivative of (theta, omega).

    Parameters
    ----------
    t : Array, shape (), s
    state : Array, shape (2, batch), rad and rad/s
    params : Array, shape (4, batch or 1)
        L in m, c in 1/s, A in 1/s^2, Omega in rad/s.

    Returns
    -------
    Array, shape (2, batch), rad/s and rad/s^2
    """
    theta, omega = state
    L, c, A, Omega = params
    acceleration = -(GRAVITY / L) * jnp.sin(theta) - c * omega + A * jnp.cos(Omega * t)
    return jnp.stack([omega, acceleration])


def trajectory(
    x: jax.Array, params: jax.Array, dt: ArrayLike, *, steps: int, substeps: int
) -> tuple[jax.Array, jax.Array]:
    """Return the states at dt, 2 dt, ..., steps dt, with an estimate of their error.

    Parameters
    ----------
    x : Array, shape (batch, 2), rad and rad/s
        State at t = 0.
    params : Array, shape (batch, 4) or (4,)
        L, c, A, Omega; see `slope`.
    dt : array_like, shape (), s
        Time between the states that are returned.
    steps, substeps : int
        How many states are returned, and how many Runge-Kutta steps lead from each to the next.

    Returns
    -------
    states : Array, shape (batch, steps, 2)
    error : Array, shape (batch,)
        Sum of the estimated local errors; a chaotic pendulum amplifies it further.

    Notes
    -----
    `jax.checkpoint` makes the backward pass compute the slopes of a step anew. So the forward pass
    keeps two numbers for each step and sample instead of sixty, which also makes it twice as fast.
    """
    h = jnp.asarray(dt) / substeps
    slope_of_batch = partial(slope, params=jnp.atleast_2d(params).T)

    @jax.checkpoint
    def advance(state: jax.Array, count: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        state, error = dormand_prince.step(slope_of_batch, count * h, state, h)
        return state, (state, error)

    _, (states, errors) = jax.lax.scan(advance, x.T, jnp.arange(steps * substeps))
    return jnp.transpose(states[substeps - 1 :: substeps], (2, 0, 1)), errors.sum(axis=0)
