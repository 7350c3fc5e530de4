"""Recover a material law that nobody measured.

A rod is filled with a composite whose filler fraction phi(x) differs from experiment to experiment.
How its conductivity depends on phi is not known: k = k(phi). What can be had are experiments:
start the rod from some temperature, heat it, cool its ends, and read eight noisy sensors after 15
minutes.

*Hybrid.* A small network gives k for each cell's phi; the heat equation (`heat1d`, an installed
solver, called by name) does the rest::

    phi ---> law ---> k --+
    T0, q, T_ext ---------+--> heat1d --> T --> eight of its columns: the sensors

The network never sees a conductivity. It learns from the sensors alone, through the solver's exact
adjoint, and what it has learned is a law: it holds for rods that look like none of those measured.

*Its rival* is a network that learns the sensors' readings from (phi, T0, q, T_ext) directly.

The data come from a grid three times finer than the model's, so that the model cannot owe its
success to sharing the data's errors. Run it::

    python examples/material_law.py            # two minutes: both models, three seeds, a picture
    python examples/material_law.py --quick    # seconds: does everything work?
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adeptml_core import HybridConfig, HybridModel, MLPConfig, PhysicsConfig, solve, train
from adeptml_core.models import MLP

N = 32  # cells of the model's grid
FINER = 3  # the truth's cells in one of the model's: odd, so that centres coincide
SENSORS = tuple(range(2, N, 4))  # the cells that have one
ROD = {"length": 0.1, "rho_c": 2e6, "t": 900.0, "h_left": 40.0}  # m, J/m^3/K, s, W/m^2/K
NOISE = 0.026  # of the readings' spread
AMBIENT = 300.0  # K


def true_law(phi: Tensor) -> Tensor:
    """Return the conductivity in W/m/K: the filler conducts once its grains touch, at phi ~ 0.4."""
    return 0.3 + 2.2 * torch.sigmoid((phi - 0.42) / 0.05) + 1.5 * phi**3


# ---- experiments ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Experiments:
    """What was set and what was read: x holds (phi, T0, q, T_ext), y the sensors, in K."""

    x: Tensor  # (experiments, 3 N + 2)
    y: Tensor  # (experiments, sensors)


def smooth(generator: torch.Generator, count: int, cells: int, waves: int) -> Tensor:
    """Return random smooth profiles, zero mean, unit variance, shape (count, cells)."""
    centres = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    order = torch.arange(1, waves + 1, dtype=torch.float64)
    amplitudes = torch.randn(count, waves, 2, generator=generator, dtype=torch.float64)
    angles = math.pi * order[:, None] * centres  # (waves, cells)
    shape = amplitudes[..., 0] @ angles.sin() + amplitudes[..., 1] @ angles.cos()
    return shape / math.sqrt(waves)


def experiments(count: int, seed: int, noise: float = NOISE) -> Experiments:
    """Make experiments on the fine grid, and describe them on the model's."""
    generator = torch.Generator().manual_seed(seed)
    fine = N * FINER
    phi = torch.sigmoid(1.3 * smooth(generator, count, fine, 4))
    T0 = AMBIENT + 15 * smooth(generator, count, fine, 3)
    q = 4e4 * smooth(generator, count, fine, 3)
    T_ext = AMBIENT + 15 * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    T = solve("heat1d", T0, true_law(phi), q, T_ext, options=ROD)
    middle = slice(FINER // 2, None, FINER)  # the fine cells whose centres the model's share
    y = T[:, middle][:, list(SENSORS)]
    y = y + noise * y.std() * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    return Experiments(torch.cat([phi[:, middle], T0[:, middle], q[:, middle], T_ext], dim=1), y)


# ---- the two models ------------------------------------------------------------------------------


class PerCell(nn.Module):
    """One small network, applied to each cell's filler fraction: a law knows no position."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = MLP(MLPConfig(1, 24, 1, 2, "swish", "softplus"))

    def forward(self, phi: Tensor) -> Tensor:
        """Return k in W/m/K, shape of phi."""
        return self.mlp(phi.unsqueeze(-1)).squeeze(-1) + 1e-3


def hybrid() -> HybridModel:
    """Return the law inside the heat equation, seen through the sensors."""
    config = HybridConfig(
        models={
            "law": PerCell(),
            "heat": PhysicsConfig(solver="heat1d", options=ROD),
            "sensors": nn.Identity(),
        },
        model_inputs={
            "law": {"Input": range(N)},
            "heat": {"Input": range(N, 2 * N)},
            "sensors": {"heat": SENSORS},
        },
        arg_inputs={
            "heat": {
                "k": {"law": None},
                "q": {"Input": range(2 * N, 3 * N)},
                "T_ext": {"Input": range(3 * N, 3 * N + 2)},
            }
        },
    )
    return HybridModel(config).double()


class Standardised(nn.Module):
    """The rival: a network on standardised inputs that gives standardised readings."""

    def __init__(self, data: Experiments) -> None:
        super().__init__()
        self.mlp = MLP(MLPConfig(3 * N + 2, 128, len(SENSORS), 2, "swish", "identity"))
        self.register_buffer("mean_x", data.x.mean(0))
        self.register_buffer("std_x", data.x.std(0))
        self.register_buffer("mean_y", data.y.mean(0))
        self.register_buffer("std_y", data.y.std(0))

    def forward(self, x: Tensor) -> Tensor:
        """Return the readings in K, shape (batch, sensors)."""
        return self.mlp((x - self.mean_x) / self.std_x) * self.std_y + self.mean_y


def pure_network(data: Experiments) -> HybridModel:
    """Return the rival, as a hybrid model of one member, so that both are trained alike."""
    return HybridModel(HybridConfig(models={"net": Standardised(data)})).double()


# ---- training and judging ------------------------------------------------------------------------


def fit(model: HybridModel, data: Experiments, *, steps: int, batch: int, directory: Path) -> None:
    """Train with Adam and one cosine; logs and weights go to ``directory/run_<n>``."""
    held_back = experiments(16, seed=999_983)
    loader = DataLoader(TensorDataset(data.x, data.y), batch_size=batch, shuffle=True)
    judge = DataLoader(TensorDataset(held_back.x, held_back.y), batch_size=16)
    epochs = max(1, steps // len(loader))
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
    cosine = torch.optim.lr_scheduler.OneCycleLR(adam, 1e-2, total_steps=epochs * len(loader) + 1)
    spread = data.y.var()

    def loss(got: Tensor, expected: Tensor) -> Tensor:
        return nn.functional.mse_loss(got, expected) / spread

    train(
        model,
        loader,
        judge,
        adam,
        loss,
        cosine,
        str(directory),
        epochs,
        print_training_loss=False,
        save_frequency=10 * epochs,
    )


@torch.no_grad()
def error(model: HybridModel, test: Experiments) -> float:
    """Return the error on experiments that the model has not seen, relative to their spread."""
    misfit = (model(test.x) - test.y).square().mean().sqrt()
    return float(misfit / test.y.std())


@dataclass(frozen=True)
class Curve:
    """Test errors of one kind of model: one row for each number of experiments, seeds across."""

    label: str
    counts: Sequence[int]
    errors: Tensor  # (counts, seeds)


def sweep(
    label: str, counts: Sequence[int], seeds: int, steps: int, directory: Path, test: Experiments
) -> tuple[Curve, HybridModel]:
    """Train one kind of model on more and more experiments; return the errors and the last one."""
    errors = torch.zeros(len(counts), seeds)
    for row, count in enumerate(counts):
        started = time.perf_counter()
        for seed in range(seeds):
            torch.manual_seed(seed)
            data = experiments(count, seed=1000 * seed + count)
            model = hybrid() if label == "hybrid" else pure_network(data)
            fit(model, data, steps=steps, batch=min(count, 64), directory=directory / label)
            errors[row, seed] = error(model, test)
        spent = time.perf_counter() - started
        mean = errors[row].mean()
        print(
            f"  {label:14s} {count:5d} experiments   error {mean:7.2%}   {spent:5.1f} s", flush=True
        )
    return Curve(label, counts, errors), model


# ---- the picture ---------------------------------------------------------------------------------


def draw(path: Path, model: HybridModel, data: Experiments, curves: Sequence[Curve]) -> None:
    """Draw the learned law beside the true one, and error against number of experiments."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, PercentFormatter, ScalarFormatter

    blue, orange, grey = "#1f5fa8", "#d9772b", "#b9bec6"
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")

    phi = torch.linspace(0.0, 1.0, 201, dtype=torch.float64)
    with torch.no_grad():
        learned = model.models_nn["law"](phi[None])[0]
    seen = left.twinx()
    seen.hist(data.x[:, :N].flatten().numpy(), bins=40, color=grey, alpha=0.45)
    seen.set_yticks([])
    seen.spines[:].set_visible(False)
    seen.set_ylim(0, seen.get_ylim()[1] * 3)
    left.set_zorder(seen.get_zorder() + 1)
    left.patch.set_visible(False)
    left.plot(phi, true_law(phi), color="black", lw=5, alpha=0.25, label="true law")
    left.plot(phi, learned, color=blue, lw=2, label=f"learned from {len(data.x)} experiments")
    left.plot([], [], color=grey, lw=7, alpha=0.6, label="fractions that occurred")
    left.set(
        xlabel="filler fraction φ", ylabel="conductivity k  [W/m/K]", xlim=(0, 1), ylim=(0, 4.5)
    )
    left.set_title("A law that nobody measured", loc="left", fontweight="bold")
    left.legend(frameon=False, loc="upper left")

    for curve, colour, marker in zip(curves, (blue, orange), ("o", "s"), strict=True):
        mean, low, high = curve.errors.mean(1), curve.errors.amin(1), curve.errors.amax(1)
        right.fill_between(curve.counts, low, high, color=colour, alpha=0.15, lw=0)
        right.loglog(curve.counts, mean, marker, ls="-", color=colour, label=curve.label)
    right.axhline(NOISE, color=grey, ls="--", lw=1)
    right.annotate("noise of one sensor", (curves[-1].counts[-1], NOISE), (0, 4),
                   textcoords="offset points", ha="right", color="#6b7280", fontsize=9)  # fmt: skip
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    right.xaxis.set_major_formatter(ScalarFormatter())
    right.minorticks_off()
    right.set(xlabel="experiments to learn from", ylabel="error on new experiments")
    right.set_title("Physics inside is worth data", loc="left", fontweight="bold")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


# ---- the story -----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run the demo; return the figures that it prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for logs and picture"
    )
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    settings = parser.parse_args(arguments)
    draws = find_spec("matplotlib") is not None
    if not draws:
        print('no picture will be drawn: matplotlib is missing (pip install -e ".[examples]")')
    torch.set_num_threads(1)
    started = time.perf_counter()

    if settings.quick:
        hybrid_counts, pure_counts, seeds, steps = (4, 16), (16, 128), 1, 120
    else:
        hybrid_counts, pure_counts, seeds, steps = (
            (4, 8, 16, 32, 64),
            (32, 100, 320, 1000, 3200),
            3,
            800,
        )
    test = experiments(256, seed=424_242, noise=0.0)
    logs = settings.out / "runs"

    print("the hybrid: a network k(phi) inside heat1d, by name")
    physics, model = sweep("hybrid", hybrid_counts, seeds, steps, logs, test)
    print("its rival: a network from the settings to the sensors")
    rival, _ = sweep("pure network", pure_counts, seeds, 2 * steps, logs, test)

    few, many = hybrid_counts[0], pure_counts[-1]
    best, worst = physics.errors.mean(1), rival.errors.mean(1)
    shared = [c for c in hybrid_counts if c in pure_counts][-1]
    factor = float(worst[pure_counts.index(shared)] / best[hybrid_counts.index(shared)])
    last = experiments(hybrid_counts[-1], seed=1000 * (seeds - 1) + hybrid_counts[-1])
    with torch.no_grad():
        phi = last.x[:, :N]
        k = model.models_nn["law"](phi)
        law = float((k - true_law(phi)).abs().mean() / true_law(phi).mean())

    picture = settings.out / "material_law.png"
    if draws:
        draw(picture, model, last, [physics, rival])
        print(f"picture: {picture}")
    print(f"logs: tensorboard --logdir {logs}")
    print(
        f"with {shared} experiments the hybrid errs {factor:.1f}x less than the pure network; "
        f"with {few} it errs {best[0]:.1%}, the pure network with {many} {worst[-1]:.1%}"
    )
    print(
        f"the learned law is off by {law:.1%} on average   ({time.perf_counter() - started:.0f} s)"
    )
    return {
        "factor": factor,
        "law": law,
        "hybrid": float(best[-1]),
        "pure": float(worst[-1]),
    }


if __name__ == "__main__":
    main()
