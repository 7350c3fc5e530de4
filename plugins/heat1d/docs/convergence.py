"""Draw docs/convergence.png: how the error falls, in space and in time.

Run it in an environment with matplotlib: ``python docs/convergence.py``. Left, three problems with
exact solutions, on finer and finer grids. Right, all eigenmodes of one grid at many times, with
more and more poles: the matrix is exact there, so that only the error in time is left.
"""

from pathlib import Path
from typing import Unpack

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from adeptml_heat1d.poles import POLE_COUNTS
from adeptml_heat1d.rod import Options
from adeptml_heat1d.solver import forward

Field = NDArray[np.float64]

CELLS = np.array([16, 32, 64, 128, 256, 512, 1024])
HALPHEN = 9.28903  # factor in the error of the best rational approximation, for each pole
COLOURS = ("#0b6e99", "#d1622b", "#4c9a52")


def centres(n: int) -> Field:
    """Return the positions of the cells in a rod of 1 m."""
    return (np.arange(n) + 0.5) / n


def solve(
    T0: Field, k: Field, q: Field, T_ext: tuple[float, float], **options: Unpack[Options]
) -> Field:
    """Solve for one sample."""
    return np.asarray(forward(T0[None], k, q, np.array(T_ext), **options)[0][0])


def fourier_mode(n: int) -> float:
    """Return the error of the decay of sin(pi x) between ends at temperature 0."""
    T0 = np.sin(np.pi * centres(n))
    T = solve(T0, np.ones(n), np.zeros(n), (0.0, 0.0), t=0.1)
    return float(np.abs(T - T0 * np.exp(-0.1 * np.pi**2)).max())


def steady_state(n: int) -> float:
    """Return the error of a steady state between two films, with k = 1 + x."""
    x = centres(n)
    slope = 2 * np.cos(2 * x) + 2 * x
    q = -slope - (1 + x) * (2 - 4 * np.sin(2 * x))
    left, right = 0 - 2 / 3.0, np.sin(2) + 1 + 2 * (2 * np.cos(2) + 2) / 0.7
    T = solve(np.zeros(n), 1 + x, q, (left, right), t=1e3, h_left=3.0, h_right=0.7)
    return float(np.abs(T - (np.sin(2 * x) + x**2)).max())


def transient(n: int) -> float:
    """Return the error on the way to e^x, the slowest mode between two films decaying."""
    x, h = centres(n), 2 * np.tan(1.0)
    ambient = (1 - 1 / h, np.e * (1 + 1 / h))
    mode = np.cos(2 * x - 1)
    T = solve(np.exp(x) + mode, np.ones(n), -np.exp(x), ambient, t=0.2, h_left=h, h_right=h)
    return float(np.abs(T - np.exp(x) - mode * np.exp(-0.8)).max())


def error_in_time(poles: int, *, source: bool) -> float:
    """Return the largest error over all modes of 64 cells, and times from 1e-6 to 10 s.

    With a source in place of the initial state, its largest possible effect, ``t q``, is the scale.
    """
    n = 64
    modes = np.cos(np.pi * np.arange(n)[:, None] * centres(n))
    rates = 4 * n**2 * np.sin(np.pi * np.arange(n) / (2 * n)) ** 2
    errors = []
    for t in np.logspace(-6, 1, 200):
        T0, q = (np.zeros_like(modes), modes / t) if source else (modes, np.zeros_like(modes))
        T, _ = forward(T0, np.ones(n), q, np.zeros(2), t=t, h_left=0.0, h_right=0.0, poles=poles)
        x = np.append(-1.0, -rates[1:] * t)  # the first mode is the mean, which does not decay
        factor = np.expm1(x) / x if source else np.exp(x)
        factor[0] = 1
        errors.append(float(np.abs(T - factor[:, None] * modes).max()))
    return max(errors)


def draw_space(axes: Axes) -> None:
    """Draw the errors over the number of cells."""
    problems = {
        "Fourier mode, fixed ends": fourier_mode,
        "steady state, films, k = 1 + x": steady_state,
        "transient with source, films": transient,
    }
    for (label, problem), colour, marker in zip(problems.items(), COLOURS, "osD", strict=True):
        errors = np.array([problem(n) for n in CELLS])
        order = np.log2(errors[-2] / errors[-1])
        axes.loglog(CELLS, errors, marker=marker, color=colour, label=f"{label}: {order:.3f}")
    guide = 1.5 * CELLS[[0, -1]] ** -2.0
    axes.loglog(CELLS[[0, -1]], guide, "--", color="0.6", lw=1, zorder=0)
    axes.annotate("order 2", (150, 2.0 / 150**2), color="0.45")
    axes.set_xticks(CELLS, [str(n) for n in CELLS])
    axes.minorticks_off()
    axes.set(title="in space: order 2", xlabel="cells", ylabel="largest error, K")
    axes.legend(title="problem: observed order", loc="lower left", frameon=False)


def draw_time(axes: Axes) -> None:
    """Draw the errors over the number of poles."""
    series = (("initial state", False, "o"), ("source", True, "s"))
    for (label, source, marker), colour in zip(series, COLOURS, strict=False):
        errors = [error_in_time(poles, source=source) for poles in POLE_COUNTS]
        axes.semilogy(POLE_COUNTS, errors, marker=marker, color=colour, label=label)
        print(f"{label:14}", *(f"{error:.1e}" for error in errors))
    guide = 1.1 * HALPHEN ** -np.array(POLE_COUNTS, dtype=float)
    axes.semilogy(POLE_COUNTS, guide, "--", color="0.6", lw=1, zorder=0)
    axes.annotate("best possible,\n$9.289^{-p}$", (14.3, 8e-15), color="0.45", ha="right", va="top")
    axes.annotate("rounding", (15.2, 7e-14), color="0.45", ha="center", va="top")
    axes.set_ylim(1e-16, 1e-5)
    axes.set_xticks(POLE_COUNTS)
    axes.minorticks_off()
    axes.set(
        title="in time: a digit for each pole", xlabel="poles p", ylabel="largest relative error"
    )
    axes.legend(title="response to", loc="upper right", frameon=False)


def main() -> None:
    """Draw both panels, and print the figures of the README."""
    plt.rcParams.update({"font.size": 10, "lines.linewidth": 1.6, "lines.markersize": 5})
    figure, (space, time) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    draw_space(space)
    draw_time(time)
    for axes in (space, time):
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
