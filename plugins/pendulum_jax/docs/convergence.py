"""Draw convergence.png: the error of ten-second swings against the length of the step.

    python docs/convergence.py

The reference is exact: without damping and drive a pendulum released at rest follows Jacobi's
elliptic functions (see `tests/test_physics.py`). The classical method of order 4 stands beside for
comparison, with three times as many steps, so that it costs as much.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from scipy.special import ellipj, ellipkm1

from adeptml_pendulum_jax.pendulum import GRAVITY, slope, trajectory

mpl.use("Agg")
import matplotlib.pyplot as plt

SWINGS = (0.1, 1.0, 2.0, 3.0)  # rad
DURATION = 10.0  # s
STATES = 20
SUBSTEPS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 48, 64)  # per 0.5 s
STAGES_OF_ORDER_8, STAGES_OF_ORDER_4 = 12, 4

Floats = NDArray[np.float64]


def exact() -> Floats:
    """Return theta at the times of the states, shape (swings, states), rad."""
    k = np.sin(np.array(SWINGS) / 2)[:, None]
    t = DURATION / STATES * np.arange(1, STATES + 1)
    sn, _, dn, _ = ellipj(ellipkm1(1 - k**2) - np.sqrt(GRAVITY) * t, k**2)
    return np.asarray(2 * np.arctan2(k * sn, dn))


def order_8(x: jax.Array, params: jax.Array, substeps: int) -> jax.Array:
    """Return the states by the solver's own method."""
    return trajectory(x, params, DURATION / STATES, steps=STATES, substeps=substeps)[0]


def order_4(x: jax.Array, params: jax.Array, substeps: int) -> jax.Array:
    """Return the states by the classical Runge-Kutta method, at the same cost."""
    substeps *= STAGES_OF_ORDER_8 // STAGES_OF_ORDER_4
    h = DURATION / STATES / substeps
    L, c, A, Omega = jnp.split(jnp.atleast_2d(params).T, 4)

    def f(t: jax.Array, y: jax.Array) -> jax.Array:
        return slope(y, L, c, A * jnp.cos(Omega * t))

    def advance(y: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
        t = count * h
        k1 = f(t, y)
        k2 = f(t + h / 2, y + h / 2 * k1)
        k3 = f(t + h / 2, y + h / 2 * k2)
        k4 = f(t + h, y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return y, y

    _, states = jax.lax.scan(advance, x.T, jnp.arange(STATES * substeps))
    return jnp.transpose(states[substeps - 1 :: substeps], (2, 0, 1))


def errors(method: Callable[[jax.Array, jax.Array, int], jax.Array]) -> Floats:
    """Return the largest error of theta, shape (substeps, swings), rad."""
    x = np.stack([SWINGS, np.zeros(len(SWINGS))], axis=1)
    params = np.array([1.0, 0.0, 0.0, 0.0])
    run = jax.jit(method, static_argnums=2)
    with jax.enable_x64(True):
        states = [np.asarray(run(x, params, substeps)) for substeps in SUBSTEPS]
    return np.stack([np.abs(y[..., 0] - exact()).max(axis=1) for y in states])


def draw(path: Path) -> None:
    """Draw the picture and print its numbers."""
    evaluations = np.array(SUBSTEPS) * STAGES_OF_ORDER_8 * STATES / DURATION
    figure, axes = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
    eighth, fourth = errors(order_8), errors(order_4)
    for column, theta0 in enumerate(SWINGS):
        color = f"C{column}"
        axes.loglog(evaluations, eighth[:, column], "o-", color=color, label=f"{theta0:g} rad")
        axes.loglog(evaluations, fourth[:, column], "--", color=color, lw=1)
    axes.plot([], [], "k--", lw=1, label="classical order 4")
    default = 2 * STAGES_OF_ORDER_8 / 0.05
    axes.axvline(default, color="0.6", lw=1, zorder=0)
    axes.text(default * 0.97, 2e-16, "the default: 2 substeps in 0.05 s", color="0.4", ha="right")
    guide = evaluations[:5]
    axes.loglog(guide, 1e-14 * (guide / guide[-1]) ** -8.0, color="k", lw=1)
    axes.text(guide[1], 1e-12, "slope -8", ha="right")
    axes.set(
        xlabel="evaluations of the acceleration, per second of motion",
        ylabel="largest error of the angle over 10 s (rad)",
        ylim=(1e-16, 1e1),
        title="Undamped swings of a 1 m pendulum against Jacobi's elliptic functions",
    )
    axes.legend(title="order 8, released from", loc="upper right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    print(np.column_stack([evaluations, eighth]))


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".png"))
