r"""The equation of motion, and the trajectory as a pure function of JAX arrays.

A rigid pendulum of length L, damped in proportion to its velocity, with a torque that drives it:

.. math::  \ddot\theta = -\frac{g}{L} \sin\theta - c \, \dot\theta + A \cos(\Omega t) .

theta is the angle from the hanging rest position; g is the standard acceleration of free fall. The
equation is exact for any angle: the pendulum may swing over the top.

Axes: inside, the state comes first and the batch last, ``(2, batch)``, so that each operation runs
over contiguous memory; outside, the batch comes first, as adeptml wants it.

Rows are taken with `jnp.split`, not by an index. The transpose of a split is one concatenation;
that of n indices is n arrays padded with zeros, and their sum. It halves the backward pass.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from adeptml_pendulum_jax import dormand_prince

__all__ = ["GRAVITY", "slope", "trajectory"]

GRAVITY = 9.80665
"""m/s^2, the standard value (3rd CGPM, 1901)."""


def slope(state: jax.Array, L: jax.Array, c: jax.Array, drive: jax.Array) -> jax.Array:
    """Return the time derivative of (theta, omega).

    Parameters
    ----------
    state : Array, shape (2, batch), rad and rad/s
    L : Array, shape (1, batch or 1), m
    c : Array, shape (1, batch or 1), 1/s
    drive : Array, shape (1, batch or 1), 1/s^2
        ``A cos(Omega t)`` at the time of the state.

    Returns
    -------
    Array, shape (2, batch), rad/s and rad/s^2
    """
    theta, omega = jnp.split(state, 2)
    return jnp.concatenate([omega, -(GRAVITY / L) * jnp.sin(theta) - c * omega + drive])


def trajectory(
    x: jax.Array, params: jax.Array, dt: ArrayLike, *, steps: int, substeps: int
) -> tuple[jax.Array, jax.Array]:
    """Return the states at dt, 2 dt, ..., steps dt, with an estimate of their error.

    Parameters
    ----------
    x : Array, shape (batch, 2), rad and rad/s
        State at t = 0.
    params : Array, shape (batch, 4) or (4,)
        L in m, c in 1/s, A in 1/s^2, Omega in rad/s.
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
    keeps six numbers for each step and sample instead of sixty, which also makes it twice as fast.

    Sines and cosines in double precision are most of what a step costs. Those of the drive, at the
    twelve nodes ``t + c_i h``, come from one pair for each step and one for each node, by
    ``cos(a + b) = cos a cos b - sin a sin b``.
    """
    h = jnp.asarray(dt) / substeps
    L, c, A, Omega = jnp.split(jnp.atleast_2d(params).T, 4)
    start = Omega * (h * jnp.arange(steps * substeps)[:, None])  # phase of the drive at each step
    since = Omega * (h * jnp.array(dormand_prince.NODES)[:, None])  # and what each node adds
    cos_since, sin_since = A * jnp.cos(since), A * jnp.sin(since)

    @jax.checkpoint
    def advance(
        state: jax.Array, phase: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        cos, sin = phase
        drives = jnp.split(cos * cos_since - sin * sin_since, len(dormand_prince.NODES))
        state, error = dormand_prince.step(lambda stage, y: slope(y, L, c, drives[stage]), state, h)
        return state, (state, error)

    _, (states, errors) = jax.lax.scan(advance, x.T, (jnp.cos(start), jnp.sin(start)))
    return jnp.transpose(states[substeps - 1 :: substeps], (2, 0, 1)), errors.sum(axis=0)
