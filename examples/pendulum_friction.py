r"""Find the friction law of a pendulum that nobody took apart, from one noisy swing.

A pendulum is released and read twenty times a second, to 0.005 rad, until it has nearly come to
rest. How long is it, and what brakes it? In its bearing something rubs, the air drags; neither law
is known, only that friction brakes::

    theta'' = -(g / L) sin theta - c(|omega|) omega,      c > 0.

*Hybrid.* A small network gives c for each speed; ``pendulum-jax``, an installed solver called by
name, does the mechanics. The solver knows constant damping only: so it is called for a tenth of a
second at a time, with the damping of the speed half-way through, continued from the tenth before.
Length and law are learned together, through the solver's exact pullback, from the angles alone. No
speed is ever measured.

*Its rivals* learn from the same swing, in the same manner: linear damping, which is what textbooks
offer (the solver again, with one number for c), and a network that knows no mechanics and gives the
acceleration of each state.

*The manner* is multiple shooting. The swing is cut into windows of a second, which one call
carries forward side by side; where each begins is learned too, and a penalty asks that one end
where the next begins. So no trajectory is long enough to lose its phase while the law is wrong.

All are judged on a swing that none has seen: struck at the bottom, not released from above. The
truth is integrated by another program, without the tenths of a second. Run it::

    python examples/pendulum_friction.py            # two minutes: three models, five seeds
    python examples/pendulum_friction.py --quick    # seconds: does everything work?
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from adeptml_core import MLPConfig, solve
from adeptml_core.models import MLP

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LENGTH = 0.83  # m, the truth
GRAVITY = 9.80665  # m/s^2
NOISE = 0.005  # rad, of one reading
READ = 0.05  # s, from one reading to the next
SEGMENT = 2  # readings in a tenth of a second, in which the damping is constant
WINDOW = 20  # readings in a window
RELEASE, UNSEEN = (2.3, 0.0), (0.0, 5.5)  # (theta, omega), rad and rad/s
DURATION, AHEAD = 40.0, 30.0  # s: of the swing learned from, and of the forecast
DESCENTS = 3

HALF = {"dt": READ * SEGMENT / 2, "steps": 1, "substeps": 1}
TENTH = {"dt": READ, "steps": SEGMENT, "substeps": 1}


def true_friction(omega: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the deceleration in rad/s^2: a bearing that rubs, and air that drags."""
    return 0.14 * np.tanh(omega / 0.4) + 0.025 * omega * np.abs(omega)


# ---- the experiment ------------------------------------------------------------------------------


def true_swing(start: tuple[float, float], duration: float) -> Tensor:
    """Return the states at READ, 2 READ, ..., shape (readings, 2), by another integrator."""

    def slope(t: float, state: NDArray[np.float64]) -> list[float]:
        theta, omega = state
        return [omega, -GRAVITY / LENGTH * math.sin(theta) - float(true_friction(omega))]

    times = READ * np.arange(1, round(duration / READ) + 1)
    run = solve_ivp(slope, (0, times[-1]), start, "DOP853", t_eval=times, rtol=1e-10, atol=1e-10)
    return torch.from_numpy(run.y.T.copy())


@dataclass(frozen=True)
class Swing:
    """A swing that was read, cut into windows."""

    angles: Tensor  # (windows, WINDOW + 1), rad; the last reading is the next window's first
    starts: Tensor  # (windows, 2), a first guess of the states in which they begin


def read_swing(seed: int, duration: float) -> Swing:
    """Read the angle of the swing, with noise, and guess the speed from the readings."""
    generator = torch.Generator().manual_seed(seed)
    theta = true_swing(RELEASE, duration)[:, 0]
    theta = theta + NOISE * torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
    windows = (len(theta) - 9) // WINDOW
    first = 4 + WINDOW * torch.arange(windows)
    # A cubic through nine readings: its value and slope in their middle.
    near = torch.arange(-4, 5)
    cubic = torch.linalg.vander(READ * near.to(theta.dtype), N=4)
    starts = (theta[first[:, None] + near] @ torch.linalg.pinv(cubic).T)[:, :2]
    return Swing(theta[first[:-1, None] + torch.arange(WINDOW + 1)], starts[:-1])


# ---- models: states in, states at the readings out -----------------------------------------------


class Law(nn.Module):
    """Damping by speed: a network, positive."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = MLP(MLPConfig(1, 16, 1, 2, "tanh", "softplus"))

    def forward(self, speed: Tensor) -> Tensor:
        """Return c in 1/s, shape of speed."""
        return self.mlp(speed.unsqueeze(-1) / 3 - 1).squeeze(-1) / 3


class Linear(nn.Module):
    """The textbook's damping: one number."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(-1.5))

    def forward(self, speed: Tensor) -> Tensor:
        """Return c in 1/s, shape of speed."""
        return self.log.exp().expand_as(speed)


class Pendulum(nn.Module):
    """A pendulum of unknown length with some damping, on top of the installed solver.

    Parameters
    ----------
    damping : Module
        ``speed -> c``.
    """

    def __init__(self, damping: nn.Module) -> None:
        super().__init__()
        self.damping = damping
        self.log_length = nn.Parameter(torch.zeros(()))  # 1 m to begin with

    def params(self, speed: Tensor) -> Tensor:
        """Return (L, c, A, Omega) for each sample, shape (batch, 4): no drive."""
        c = self.damping(speed)
        none = torch.zeros_like(c)
        return torch.stack([self.log_length.exp().expand_as(c), c, none, none], dim=-1)

    def forward(self, state: Tensor, readings: int) -> Tensor:
        """Return the states at the next readings, shape (batch, readings, 2)."""
        here = self.params(state[:, 1].abs())
        middle = solve("pendulum-jax", state, here, options=HALF)[:, 0, 1]
        states = []
        for _ in range(readings // SEGMENT):
            segment = solve("pendulum-jax", state, self.params(middle.abs()), options=TENTH)
            states.append(segment)
            before, state = segment[:, SEGMENT // 2 - 1], segment[:, -1]
            middle = 2 * state[:, 1] - before[:, 1]  # the speed half a segment on
        return torch.cat(states, dim=1)


class Network(nn.Module):
    """The rival without mechanics: a network of the state gives the acceleration."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = MLP(MLPConfig(3, 48, 1, 2, "tanh", "identity"))

    def slope(self, state: Tensor) -> Tensor:
        """Return the time derivative of the state, shape (batch, 2)."""
        theta, omega = state[:, :1], state[:, 1:]
        seen = torch.cat([theta.sin(), theta.cos(), omega / 4], dim=1)
        return torch.cat([omega, 10 * self.mlp(seen)], dim=1)

    def forward(self, state: Tensor, readings: int) -> Tensor:
        """Return the states at the next readings, shape (batch, readings, 2), by Heun's method."""
        states = []
        for _ in range(readings):
            slope = self.slope(state)
            state = state + READ / 2 * (slope + self.slope(state + READ * slope))
            states.append(state)
        return torch.stack(states, dim=1)


MODELS = {
    "network in the solver": lambda: Pendulum(Law()),
    "linear damping": lambda: Pendulum(Linear()),
    "network alone": Network,
}


# ---- training and judging ------------------------------------------------------------------------


def fit(model: nn.Module, swing: Swing, steps: int) -> float:
    """Train the model and the windows' starts; return the misfit, 1 being that of the noise."""
    starts = nn.Parameter(swing.starts.clone())
    learned = [*model.parameters(), starts]

    def terms() -> tuple[Tensor, Tensor]:
        states = model(starts, WINDOW)
        angles = torch.cat([starts[:, None, :1], states[..., :1]], dim=1)[..., 0]
        gaps = states[:-1, -1] - starts[1:]
        return ((angles - swing.angles) / NOISE).square().mean(), (gaps / NOISE).square().mean()

    for _ in range(DESCENTS):  # a search that got stuck goes on where it has forgotten the way
        descent = torch.optim.LBFGS(
            learned,
            max_iter=steps,
            history_size=50,
            tolerance_change=1e-10,
            line_search_fn="strong_wolfe",
        )

        def closure(descent: torch.optim.Optimizer = descent) -> Tensor:
            descent.zero_grad()
            loss = torch.stack(terms()).sum()
            loss.backward()
            return loss

        descent.step(closure)
    with torch.no_grad():
        return terms()[0].item()


@dataclass(frozen=True)
class Found:
    """What one seed learned: by model, the forecast of the unseen swing; and the law."""

    forecasts: dict[str, Tensor]  # (readings, 2)
    friction: dict[str, Tensor]  # at SPEEDS, rad/s^2
    lengths: dict[str, float]  # m


SPEEDS = torch.linspace(0.0, 7.0, 141, dtype=torch.float64)


def trial(seed: int, duration: float, steps: int) -> Found:
    """Train all models on one reading of the swing."""
    swing = read_swing(seed, duration)
    start = torch.tensor([UNSEEN], dtype=torch.float64)
    found = Found({}, {}, {})
    for name, make in MODELS.items():
        began = time.perf_counter()
        torch.manual_seed(seed)
        model = make().double()
        misfit = fit(model, swing, steps)
        with torch.no_grad():
            found.forecasts[name] = model(start, round(AHEAD / READ))[0]
            said = ""
            if isinstance(model, Pendulum):
                found.friction[name] = model.damping(SPEEDS) * SPEEDS
                found.lengths[name] = float(model.log_length.exp())
                said = f"L = {found.lengths[name]:.4f} m   "
        spent = time.perf_counter() - began
        print(f"  seed {seed}  {name:22s} misfit {misfit:6.2f}   {said}{spent:5.1f} s", flush=True)
    return found


def forecast_errors(trials: Sequence[Found], truth: Tensor) -> dict[str, Tensor]:
    """Return the errors of the angle, rad, shape (seeds, readings), by model."""
    return {
        name: torch.stack([(found.forecasts[name] - truth)[:, 0].abs() for found in trials])
        for name in MODELS
    }


# ---- the picture ---------------------------------------------------------------------------------

COLOURS = dict(zip(MODELS, ("#1f5fa8", "#d9772b", "#8a6fb0"), strict=True))


def draw(path: Path, trials: Sequence[Found], truth: Tensor, speeds: Tensor) -> None:
    """Draw the law, how the forecasts' errors grow, and the last third of the unseen swing."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(11, 7.4), layout="constrained")
    law, growth, swing = figure.subplot_mosaic(
        [["law", "growth"], ["swing", "swing"]], height_ratios=(1.15, 1)
    ).values()
    draw_law(law, trials, speeds)
    draw_growth(growth, trials, truth)
    draw_swing(swing, trials[0], truth)
    for axes in (law, growth, swing):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def draw_law(axes: "Axes", trials: Sequence[Found], speeds: Tensor) -> None:
    """Draw friction over speed, the seeds as a band, with the speeds that occurred."""
    seen = axes.twinx()
    seen.hist(speeds.abs().numpy(), bins=40, color="#b9bec6", alpha=0.45)
    seen.set_yticks([])
    seen.spines[:].set_visible(False)
    seen.set_ylim(0, seen.get_ylim()[1] * 3.5)
    axes.set_zorder(seen.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.plot(SPEEDS, true_friction(SPEEDS.numpy()), color="black", lw=5, alpha=0.25,
              label="true friction")  # fmt: skip
    for name in reversed(trials[0].friction):
        band = torch.stack([found.friction[name] for found in trials])
        axes.fill_between(SPEEDS, band.amin(0), band.amax(0), color=COLOURS[name], alpha=0.2, lw=0)
        axes.plot(SPEEDS, band.mean(0), color=COLOURS[name], lw=2, label=name)
    axes.plot([], [], color="#b9bec6", lw=7, alpha=0.6, label="speeds that occurred")
    axes.set(xlabel="speed |ω|  [rad/s]", ylabel="deceleration  [rad/s²]")
    axes.set(xlim=(0, 7), ylim=(0, 1.8))
    axes.set_title("What brakes the pendulum", loc="left", fontweight="bold")
    axes.legend(frameon=False, loc="upper left")


def draw_growth(axes: "Axes", trials: Sequence[Found], truth: Tensor) -> None:
    """Draw how far the forecast of the unseen swing is off, so far, over time."""
    t = READ * np.arange(1, len(truth) + 1)
    for name, error in forecast_errors(trials, truth).items():
        worst = error.cummax(dim=1).values
        axes.fill_between(t, worst.amin(0), worst.amax(0), color=COLOURS[name], alpha=0.15, lw=0)
        axes.semilogy(t, worst.median(0).values, color=COLOURS[name], lw=2, label=name)
    axes.axhline(NOISE, color="#b9bec6", ls="--", lw=1)
    axes.annotate("noise of one reading", (t[-1], NOISE), (0, 4), textcoords="offset points",
                  ha="right", color="#6b7280", fontsize=9)  # fmt: skip
    axes.set(xlabel="seconds ahead", ylabel="largest error so far  [rad]", xlim=(0, t[-1]))
    axes.set_ylim(1e-4, 10)
    axes.set_title("How far its forecast is off", loc="left", fontweight="bold")
    axes.legend(frameon=False, loc="upper left")


def draw_swing(axes: "Axes", found: Found, truth: Tensor) -> None:
    """Draw the end of the unseen swing, and what each model had said of it at the beginning."""
    t = READ * np.arange(1, len(truth) + 1)
    shown = t > t[-1] - 12
    axes.plot(t[shown], truth[shown, 0], color="black", lw=6, alpha=0.2, label="true swing")
    for name, forecast in reversed(found.forecasts.items()):
        line = "-" if name == "network in the solver" else "--"
        axes.plot(t[shown], forecast[shown, 0], line, color=COLOURS[name], lw=1.6, label=name)
    top = float(truth[shown, 0].abs().max())
    axes.set(xlabel="seconds ahead", ylabel="angle  [rad]", xlim=(t[shown][0], t[-1]))
    axes.set_ylim(-1.2 * top, 1.6 * top)
    axes.set_title("A swing not seen, struck at the bottom: its end", loc="left", fontweight="bold")
    axes.legend(frameon=False, loc="upper right", ncols=4)


# ---- the story -----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run the example; return the figures that it prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("pendulum"), help="folder for the picture")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    settings = parser.parse_args(arguments)
    draws = find_spec("matplotlib") is not None
    if not draws:
        print('no picture will be drawn: matplotlib is missing (pip install -e ".[examples]")')
    torch.set_num_threads(1)
    began = time.perf_counter()

    seeds, duration, steps = (1, 30.0, 40) if settings.quick else (5, DURATION, 80)
    print(f"one swing of {duration:.0f} s, read {round(1 / READ)} times a second to {NOISE} rad")
    trials = [trial(seed, duration, steps) for seed in range(seeds)]

    truth = true_swing(UNSEEN, AHEAD)
    off = forecast_errors(trials, truth)
    errors = {name: error.square().mean(1).sqrt() for name, error in off.items()}
    speeds = true_swing(RELEASE, duration)[:, 1]
    occurred = speeds.abs().max() > SPEEDS
    friction = torch.from_numpy(true_friction(SPEEDS.numpy()))
    learned = torch.stack([found.friction["network in the solver"] for found in trials])
    law = float((learned - friction).abs()[:, occurred].mean() / friction[occurred].mean())
    lengths = torch.tensor([found.lengths["network in the solver"] for found in trials])

    print(f"\na swing not seen, {AHEAD:.0f} s ahead: RMS error of the angle, median of the seeds")
    for name, error in errors.items():
        print(f"  {name:22s} {error.median():.4f} rad   ({error.min():.4f} to {error.max():.4f})")
    print(
        f"length {lengths.mean():.4f} m, {lengths.min():.4f} to {lengths.max():.4f}; true {LENGTH}"
    )
    print(f"friction off by {law:.1%} on average, over the speeds that occurred")
    picture = settings.out / "pendulum_friction.png"
    settings.out.mkdir(parents=True, exist_ok=True)
    if draws:
        draw(picture, trials, truth, speeds)
        print(f"picture: {picture}")
    print(f"({time.perf_counter() - began:.0f} s)")
    return {name: float(error.median()) for name, error in errors.items()} | {
        "law": law,
        "length": float((lengths - LENGTH).abs().max() / LENGTH),
    }


if __name__ == "__main__":
    main()
