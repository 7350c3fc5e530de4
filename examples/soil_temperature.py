r"""Learn a soil's diffusivity from its thermometers, and forecast its temperature for a day.

A deep soil station logs the temperature at fourteen depths from 5 to 225 cm. In between heat is
conducted,

.. math::  \partial_t T = \partial_z (\alpha(z) \, \partial_z T),

and nobody has measured the diffusivity alpha. A small network of depth gives it; the solver
``heat1d`` carries the temperatures forward, hour by hour, between the measured ones at the two
ends; what it misses at the twelve inner depths a day later is what the network learns from, through
the solver's adjoint. It is judged on a summer that it has not seen.

Two models are trained. `Profile` is just that: the network, and one number for how late the
uppermost sensor answers. `Corrected` adds what one sees when looking at the misses:

*A miss comes back.* Dry soil conducts otherwise than wet soil, and dry it stays for weeks. So what
was missed yesterday, known when today's forecast is made, foretells what will be missed today: a
fading sum of the last days' misses is added, of the same sensor at the same hour. Two numbers are
learned, how much and how far back. An hour that was not measured adds nothing.

*The instrument breathes.* No wave of the day reaches 225 cm (it has fallen to 1e-7 there), and yet
this sensor swings by a tenth of a kelvin every morning: the logger warms up. Other sensors share
that. Their shares are learned; the swing is taken off what goes in, and put on what is forecast.

The data are those of the North Dakota Agricultural Weather Network's deep soil stations
(https://ndawn.ndsu.nodak.edu), and not ours to ship. Some years of Fargo come with the teaching
notes https://github.com/andres-patrignani/pynotes. A row is an hour, in degrees Celsius::

    station,time_cst,T5cm,T10cm,T20cm, ... ,T225cm
    Fargo,10/2/14 12:00,18.09,15.36,14.49, ... ,11.16

Run it::

    python examples/soil_temperature.py FILE.csv.gz                   # each summer held back once
    python examples/soil_temperature.py FILE.csv.gz --hold-back 2016  # this one, all others train
    python examples/soil_temperature.py A.csv B.csv --train 2015 --hold-back 2018
"""

import argparse
import csv
import gzip
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from adeptml_core import MLPConfig, solve
from adeptml_core.models import MLP

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DAY = 24  # hours that a forecast spans
SUMMER = (5, 9)  # first and last month that are forecast: frost would need latent heat
CELLS = 44
MEMORY = 5  # days of misses that are remembered
ODD = 0.5  # K; what exceeds it (rain that runs down the cracks) is no habit, and counts no more
EVERY = 8  # hours from one forecast to the next in training; must divide a day

Forecaster = Callable[[Tensor, Tensor], Tensor]
"""``(T, starts) -> forecasts``, as `Profile.forward`."""


# ---- measurements --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """What a station measured: a row for every hour from the first to the last."""

    clock: NDArray[np.datetime64]  # (hours,)
    depths: NDArray[np.float64]  # (sensors,), m
    T: Tensor  # (hours, sensors), degrees Celsius; NaN where missing

    @property
    def year(self) -> NDArray[np.int64]:
        """Return the year that each hour belongs to, 0 outside of summer."""
        month = self.clock.astype("datetime64[M]").astype(np.int64) % 12 + 1
        year = self.clock.astype("datetime64[Y]").astype(np.int64) + 1970
        return np.where((month >= SUMMER[0]) & (month <= SUMMER[1]), year, 0)


def read(paths: Iterable[Path]) -> Record:
    """Read a station's files; an hour that is left out, or told in two ways, is missing."""
    rows: dict[np.datetime64, list[float]] = {}
    depths: list[float] = []
    for path in paths:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            lines = csv.reader(file)
            columns = Columns.of(next(lines, []), path.name)
            if depths and columns.depths != depths:
                raise ValueError(f"{path.name}: depths {columns.depths} m, but before {depths} m")
            depths = columns.depths
            for number, cells in enumerate(lines, start=2):
                if not any(cells):
                    continue
                hour, T = columns.parsed(cells, f"{path.name}, line {number}")
                is_told_twice = hour in rows and not np.array_equal(rows[hour], T, equal_nan=True)
                rows[hour] = [math.nan] * len(T) if is_told_twice else T
    if not rows:
        raise ValueError("the files hold no measurements")
    clock = np.arange(min(rows), max(rows) + np.timedelta64(1, "h"))
    missing = [math.nan] * len(depths)
    T = torch.tensor([rows.get(hour, missing) for hour in clock], dtype=torch.float64)
    return Record(clock, np.array(depths), T)


CLOCKS = ("%m/%d/%y %H:%M", "%m/%d/%Y %H:%M", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S")


@dataclass(frozen=True)
class Columns:
    """Where a file has what, whatever their order and whatever else it has."""

    time: int
    sensors: list[int]  # from the top
    depths: list[float]  # m, of these

    @classmethod
    def of(cls, header: Sequence[str], where: str) -> "Columns":
        """Find the columns by their names: time or time_cst; T5cm, T10cm, ..."""
        names = [name.strip().lstrip("\ufeff").lower() for name in header]
        found = {re.fullmatch(r"t_?([\d.]+) ?cm", name): i for i, name in enumerate(names)}
        sensors = sorted((float(match[1]) / 100, i) for match, i in found.items() if match)
        times = [i for i, name in enumerate(names) if name.startswith(("time", "date"))]
        if len(times) != 1 or len(sensors) < 3 or len({d for d, _ in sensors}) < len(sensors):
            raise ValueError(
                f"{where}: the header is {','.join(header)!r}; expected one column of times and at "
                "least three of depths: station,time_cst,T5cm,T10cm,..."
            )
        return cls(times[0], [i for _, i in sensors], [depth for depth, _ in sensors])

    def parsed(self, cells: Sequence[str], where: str) -> tuple[np.datetime64, list[float]]:
        """Return a row's hour and temperatures, NaN for those that are missing or cannot be."""
        try:
            hour = hour_of(cells[self.time].strip())
            T = [measured(cells[i].strip()) for i in self.sensors]
        except IndexError:
            raise ValueError(f"{where}: {len(cells)} cells, fewer than the header has") from None
        except ValueError as error:
            raise ValueError(
                f"{where}: {error}; expected station,10/2/14 12:00,18.09,..."
            ) from None
        return hour, T


def hour_of(text: str) -> np.datetime64:
    """Return the hour that a text names, in one of the formats `CLOCKS`."""
    for clock in CLOCKS:
        try:
            return np.datetime64(datetime.strptime(text.replace("T", " "), clock), "h")
        except ValueError:
            continue
    raise ValueError(f"{text!r} is no time")


def measured(text: str) -> float:
    """Return a temperature, NaN where there is none, or one that soil cannot have (-999)."""
    if text.upper() in ("", "M", "NA", "N/A", "NULL", "NONE"):
        return math.nan
    value = float(text)
    return value if abs(value) < 60 else math.nan


@dataclass(frozen=True)
class Forecasts:
    """The hours at which forecasts start, and which of them are judged."""

    starts: Tensor  # (forecasts,), rows of the record
    judged: Tensor  # (forecasts,), bool: the others precede the season, and only fill the memory

    @classmethod
    def of(cls, record: Record, years: Iterable[int], every: int = 1) -> "Forecasts":
        """Return all that the record allows: a whole profile at the start, both ends for a day."""
        measured = record.T.isfinite().numpy()
        both_ends = measured[:, 0] & measured[:, -1]
        windows = np.lib.stride_tricks.sliding_window_view(both_ends, DAY + 1)
        starts = np.flatnonzero(windows.all(axis=1) & measured.all(axis=1)[:-DAY])
        year = record.year
        season = np.isin(year, list(years))
        judged = season[starts] & season[starts + DAY]
        soon = np.minimum(starts + MEMORY * DAY, len(season) - 1)
        hour = record.clock[starts].astype(np.int64)
        kept = (judged | season[soon]) & (hour % every == 0)
        return cls(torch.from_numpy(starts[kept]), torch.from_numpy(judged[kept]))


# ---- models --------------------------------------------------------------------------------------


class Ground:
    """The soil between the first and the last sensor, in cells.

    Parameters
    ----------
    depths : ndarray, shape (sensors,), m
    """

    def __init__(self, depths: NDArray[np.float64]) -> None:
        top, bottom = depths[0], depths[-1]
        cells = top + (bottom - top) * (np.arange(CELLS) + 0.5) / CELLS
        self.scaled_depth = torch.from_numpy(2 * (cells - top) / (bottom - top) - 1)[:, None]
        self.to_cells = spline(depths, cells)
        self.to_inner = spline(np.array([top, *cells, bottom]), depths[1:-1])
        # Only k / rho_c matters: with rho_c = 1 the conductivity is the diffusivity.
        self.hour = {"length": float(bottom - top), "rho_c": 1.0, "t": 3600.0, "poles": 8}

    def conduct(self, diffusivity: Tensor, T: Tensor, starts: Tensor, late: Tensor) -> Tensor:
        """Return the temperatures at the inner depths a day after each start.

        Parameters
        ----------
        diffusivity : Tensor, shape (CELLS,), m^2/s
        T : Tensor, shape (hours, sensors)
            Of it, the profile at the start and both ends for a day are used, and nothing else.
        starts : Tensor, shape (forecasts,)
        late : Tensor, shape (), h
            By how much the sensors at the ends lag behind the soil.

        Returns
        -------
        Tensor, shape (forecasts, sensors - 2)
        """
        ends = T[starts[:, None] + torch.arange(DAY + 1)][..., [0, -1]]  # (forecasts, 25, 2)
        before, after = ends[:, :-1], ends[:, 1:]
        ambient = before + (0.5 + late) * (after - before)  # each hour's mean, if not late
        cells, no_source = T[starts] @ self.to_cells.T, torch.zeros(CELLS, dtype=T.dtype)
        for hour in range(DAY):
            cells = solve(
                "heat1d", cells, diffusivity, no_source, ambient[:, hour], options=self.hour
            )
        return torch.cat([ends[:, -1, :1], cells, ends[:, -1, 1:]], dim=1) @ self.to_inner.T


def spline(known: NDArray[np.float64], wanted: NDArray[np.float64]) -> Tensor:
    """Return the matrix, shape (wanted, known), of cubic spline interpolation."""
    return torch.from_numpy(CubicSpline(known, np.eye(len(known)), bc_type="natural")(wanted))


class Profile(nn.Module):
    """Diffusivity by depth, and nothing more.

    Parameters
    ----------
    depths : ndarray, shape (sensors,), m
    """

    def __init__(self, depths: NDArray[np.float64]) -> None:
        super().__init__()
        self.ground = Ground(depths)
        self.network = MLP(MLPConfig(1, 16, 1, 2, "tanh", "identity")).double()
        self.late = nn.Parameter(torch.zeros((), dtype=torch.float64))  # h

    def diffusivity(self) -> Tensor:
        """Return the diffusivity of each cell, shape (CELLS,), m^2/s."""
        return 3e-7 * self.network(self.ground.scaled_depth)[:, 0].exp()  # 3e-7: moist loam

    def forward(self, T: Tensor, starts: Tensor) -> Tensor:
        """Return the temperatures a day after the starts, as `Ground.conduct` does."""
        return self.ground.conduct(self.diffusivity(), T, starts, self.late)

    @torch.no_grad()
    def summary(self) -> str:
        """Say what was learned, in a line."""
        top, bottom = self.diffusivity()[[0, -1]]
        return f"{top:.2e} to {bottom:.2e} m^2/s, the end sensors {float(self.late):.1f} h late"


class Corrected(Profile):
    """Diffusivity by depth, the memory of misses, and the instrument's swing.

    Parameters
    ----------
    depths : ndarray, shape (sensors,), m
    """

    def __init__(self, depths: NDArray[np.float64]) -> None:
        super().__init__(depths)
        self.weight = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.fading = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.shares = nn.Parameter(torch.ones(len(depths) - 2, dtype=torch.float64))

    def forward(self, T: Tensor, starts: Tensor) -> Tensor:
        """Return the forecasts, shape (forecasts, sensors - 2)."""
        swing = swing_of(T[:, -1])[:, None]
        share_of_ends = self.shares.new_tensor([0.0, 1.0])
        shares = torch.cat([share_of_ends[:1], self.shares, share_of_ends[1:]])
        soil = T - swing * shares
        forecast = super().forward(soil, starts)
        missed = soil[starts + DAY, 1:-1] - forecast
        return (
            forecast + self.remembered(missed, starts, len(T)) + swing[starts + DAY] * self.shares
        )

    @torch.no_grad()
    def summary(self) -> str:
        """Say what was learned, in a line."""
        fade, swing = torch.sigmoid(self.fading), self.shares.max()
        memory = f"misses count {float(self.weight):.2f} times {fade:.2f}^days"
        return f"{super().summary()}; {memory}; shares in the swing up to {swing:.1f}"

    def remembered(self, missed: Tensor, starts: Tensor, hours: int) -> Tensor:
        """Return what the misses known at each start foretell, shape of `missed`.

        Parameters
        ----------
        missed : Tensor, shape (forecasts, sensors - 2), K
            By the forecast from each start, and so known a day after it.
        starts : Tensor, shape (forecasts,)
        hours : int
            Length of the record.
        """
        habit = ODD * torch.tanh(missed.nan_to_num() / ODD)
        # Rows beyond the record stay zero: that is where an index before its first hour leads.
        known = habit.new_zeros(hours + MEMORY * DAY, habit.shape[1])
        known = known.index_put((starts + DAY,), habit)
        fade = torch.sigmoid(self.fading)
        return self.weight * sum(fade**day * known[starts - day * DAY] for day in range(MEMORY))


def swing_of(T: Tensor) -> Tensor:
    """Return by how much a sensor exceeds its mean of the last day, 0 where that is not known."""
    last_day = nn.functional.pad(T, (DAY, 0), value=math.nan).unfold(0, DAY + 1, 1)
    return (T - last_day.mean(dim=1)).nan_to_num().clamp(-ODD, ODD)


# ---- training and judging ------------------------------------------------------------------------


def fit(model: nn.Module, record: Record, years: Iterable[int], steps: int) -> float:
    """Train on the summers of these years; return the last loss.

    The loss is Huber's, quadratic below 0.2 K: two cloudbursts must not shape the profile.
    """
    forecasts = Forecasts.of(record, years, EVERY)
    truth = record.T[forecasts.starts + DAY, 1:-1]
    counts = forecasts.judged[:, None] & truth.isfinite()
    adam = torch.optim.Adam(model.parameters(), lr=0.03)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        adam.zero_grad()
        got = model(record.T, forecasts.starts)
        loss = nn.functional.huber_loss(got[counts], truth[counts], delta=0.2)
        loss.backward()
        adam.step()
        cosine.step()
    return loss.item()


def constant(record: Record, diffusivity: float) -> Forecaster:
    """Return the forecaster for one diffusivity, m^2/s, at all depths."""
    ground = Ground(record.depths)
    everywhere, late = torch.full((CELLS,), diffusivity).double(), torch.zeros(()).double()
    return lambda T, starts: ground.conduct(everywhere, T, starts, late)


@torch.no_grad()
def best_constant(record: Record, years: Iterable[int]) -> float:
    """Return the diffusivity, m^2/s, that alone forecasts the summers of these years best."""
    forecasts = Forecasts.of(record, years, EVERY)

    def error(log_diffusivity: float) -> float:
        forecaster = constant(record, math.exp(log_diffusivity))
        return float(rms(errors(forecaster, record, forecasts)))

    return math.exp(minimize_scalar(error, bounds=np.log([5e-8, 2e-6]), method="bounded").x)


def errors(forecaster: Forecaster, record: Record, forecasts: Forecasts) -> Tensor:
    """Return forecast minus measurement, shape (judged, sensors - 2), K; NaN if not measured."""
    forecast = forecaster(record.T, forecasts.starts)
    return (forecast - record.T[forecasts.starts + DAY, 1:-1])[forecasts.judged]


def rms(error: Tensor, dim: int | None = None) -> Tensor:
    """Return the root mean square, over what was measured."""
    return error.square().nanmean(dim).sqrt()


@dataclass(frozen=True)
class Trial:
    """What was trained on some years, to be judged on others."""

    trained_on: Sequence[int]
    forecasters: dict[str, Forecaster]
    profile: Tensor  # (CELLS,), m^2/s: that of the last model


def trial(record: Record, years: Sequence[int], steps: int) -> Trial:
    """Train both models on the summers of these years, and find their best constant."""
    best = best_constant(record, years)
    print(f"\ntrained on {listed(years)}: best constant {best:.2e} m^2/s", flush=True)
    forecasters: dict[str, Forecaster] = {
        "persistence": lambda T, starts: T[starts, 1:-1],
        "best constant": constant(record, best),
    }
    for kind in (Profile, Corrected):
        started = time.perf_counter()
        torch.manual_seed(0)
        model = kind(record.depths)
        fit(model, record, years, steps)
        forecasters[kind.__name__.lower()] = model
        print(f"  {model.summary()}   ({time.perf_counter() - started:.0f} s)", flush=True)
    return Trial(years, forecasters, model.diffusivity().detach())


@torch.no_grad()
def judged(record: Record, trial: Trial, year: int) -> dict[str, Tensor]:
    """Print and return each forecaster's error in the summer of a year, shape (1 + inner,), K.

    The first is that over all inner depths.
    """
    forecasts = Forecasts.of(record, [year])
    count, columns = (
        int(forecasts.judged.sum()),
        ["all", *(f"{d * 100:.0f}" for d in inner(record))],
    )
    print(f"\nheld back: {year}, {count} forecasts; RMS error in K, by depth in cm")
    print(f"  {'':14s}" + "".join(f"{column:>7s}" for column in columns))
    found = {}
    for name, forecaster in trial.forecasters.items():
        error = errors(forecaster, record, forecasts)
        found[name] = torch.cat([rms(error)[None], rms(error, dim=0)])
        print(f"  {name:14s}" + "".join(f"{value:7.3f}" for value in found[name]), flush=True)
    return found


def inner(record: Record) -> NDArray[np.float64]:
    """Return the depths that are forecast, m."""
    return record.depths[1:-1]


def listed(years: Sequence[int]) -> str:
    """Return the years as one reads them."""
    return " and ".join(", ".join(map(str, years)).rsplit(", ", 1))


# ---- the picture ---------------------------------------------------------------------------------

STYLE = {  # of each forecaster: colour, line style
    "persistence": ("#b9bec6", "-"),
    "best constant": ("#6b7280", "--"),
    "profile": ("#d9772b", "-"),
    "corrected": ("#1f5fa8", "-"),
}
SHOWN = ("profile", "corrected")  # over the fortnight
FORTNIGHT = 14 * DAY


def draw(
    path: Path, record: Record, trials: Sequence[Trial], year: int, found: Mapping[str, Tensor]
) -> None:
    """Draw the learned profiles, the errors by depth, and a fortnight of the summer held back."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(11, 8.2), layout="constrained")
    profiles, by_depth, fortnight = figure.subplot_mosaic(
        [["profiles", "errors"], ["fortnight", "fortnight"]], height_ratios=(1, 1)
    ).values()
    draw_profiles(profiles, record, trials)
    draw_errors(by_depth, record, found)
    draw_fortnight(fortnight, record, trials[-1], year)
    profiles.set_title("What the soil conducts", loc="left", fontweight="bold")
    by_depth.set_title(f"A day ahead, in {year}, held back", loc="left", fontweight="bold")
    for axes in (profiles, by_depth, fortnight):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def draw_profiles(axes: "Axes", record: Record, trials: Sequence[Trial]) -> None:
    """Draw the diffusivity over depth: a line for each set of summers trained on."""
    top, bottom = 100 * record.depths[[0, -1]]
    cells = np.linspace(top, bottom, 2 * CELLS + 1)[1::2]
    for trial, colour in zip(trials, ("#1f5fa8", "#4fa3a5", "#8a6fb0", "#c25b7a"), strict=False):
        label = f"learned in {listed(trial.trained_on)}"
        axes.plot(1e6 * trial.profile, cells, color=colour, lw=2, label=label)
    for depth in 100 * record.depths:
        axes.plot(0.0, depth, ">", color="black", ms=4, clip_on=False)
    axes.set(xlabel="diffusivity  [mm²/s]", ylabel="depth  [cm]", xlim=(0, None))
    axes.set_ylim(bottom + 5, 0)
    axes.legend(frameon=False, loc="lower left")


def draw_errors(axes: "Axes", record: Record, found: Mapping[str, Tensor]) -> None:
    """Draw the errors over depth."""
    for name, (colour, line) in STYLE.items():
        overall, *by_depth = found[name].tolist()
        label = f"{name}: {overall:.2f} K"
        axes.plot(by_depth, 100 * record.depths[1:-1], line, color=colour, lw=2, label=label)
    axes.set(xlabel="RMS error  [K]", ylabel="depth  [cm]", xscale="log")
    axes.set_ylim(100 * record.depths[-1] + 5, 0)
    axes.set_xticks([0.03, 0.1, 0.3, 1.0], ["0.03", "0.1", "0.3", "1"])
    axes.minorticks_off()
    axes.legend(frameon=False, loc="lower right")


def draw_fortnight(axes: "Axes", record: Record, trial: Trial, year: int) -> None:
    """Draw what was measured, and what had been forecast the day before."""
    forecasts = Forecasts.of(record, [year])
    starts = forecasts.starts[forecasts.judged]
    begin = np.searchsorted(record.clock[starts], np.datetime64(f"{year}-07-08T00", "h"))
    shown = slice(min(int(begin), max(0, len(starts) - FORTNIGHT)), None)
    rows = (starts[shown][:FORTNIGHT] + DAY).numpy()
    days = (record.clock[rows] - record.clock[rows[0]]).astype(int) / DAY
    for sensor in (1, 3):
        axes.plot(days, record.T[rows, sensor], color="black", lw=5, alpha=0.2)
        for name in SHOWN:
            with torch.no_grad():
                got = trial.forecasters[name](record.T, forecasts.starts)[forecasts.judged]
            colour, line = STYLE[name]
            axes.plot(days, got[shown][:FORTNIGHT, sensor - 1], line, color=colour, lw=1.4)
        depth = f"{100 * record.depths[sensor]:.0f} cm"
        axes.annotate(depth, (days[-1], record.T[rows[-1], sensor]), (6, -4),
                      textcoords="offset points")  # fmt: skip
    axes.plot([], [], color="black", lw=5, alpha=0.2, label="measured")
    for name in SHOWN:
        axes.plot([], [], color=STYLE[name][0], label=f"{name}, forecast the day before")
    axes.set(xlabel=f"days from {str(record.clock[rows[0]])[:10]}", ylabel="temperature  [°C]")
    axes.set_title("A fortnight of forecasts", loc="left", fontweight="bold")
    axes.set_ylim(top=axes.get_ylim()[1] + 1.5)
    axes.legend(frameon=False, loc="upper left", ncols=3)


# ---- the story -----------------------------------------------------------------------------------


def planned(
    years: Sequence[int], train: Sequence[int] | None, hold_back: Sequence[int] | None
) -> list[tuple[list[int], list[int]]]:
    """Return which summers to train on, and which to judge these models on: none is in both.

    With neither named each summer is held back once, and all others train.
    """
    unknown = sorted({*(train or ()), *(hold_back or ())} - set(years))
    if unknown:
        raise ValueError(f"no summer of {listed(unknown)}: the files have {years}")
    both = sorted(set(train or ()) & set(hold_back or ()))
    if both:
        raise ValueError(f"{listed(both)} cannot be trained on and held back")
    if train or hold_back:
        trained_on = train or [y for y in years if y not in (hold_back or ())]
        plan = [(sorted(trained_on), hold_back or [y for y in years if y not in trained_on])]
    else:
        plan = [([other for other in years if other != y], [y]) for y in years]
    if not plan or not all(part for parts in plan for part in parts):
        raise ValueError(
            f"the files have the summers {years}: one to train on and one to hold back"
        )
    return plan


def main(arguments: Sequence[str] | None = None) -> dict[int, dict[str, float]]:
    """Run the example; return the errors over all inner depths, K, by year held back and model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="a station's CSV, or several of them")
    year = {"type": int, "action": "append", "metavar": "YEAR"}
    parser.add_argument("--hold-back", **year, help="judge on it; no model sees it (repeatable)")
    parser.add_argument("--train", **year, help="train on it; else on all not held back")
    parser.add_argument("--out", type=Path, default=Path("soil"), help="folder for the picture")
    parser.add_argument("--quick", action="store_true", help="a few steps: does everything work?")
    settings = parser.parse_args(arguments)
    draws = find_spec("matplotlib") is not None
    if not draws:
        print('no picture will be drawn: matplotlib is missing (pip install -e ".[examples]")')
    torch.set_num_threads(1)

    record = read(settings.files)
    years = [int(y) for y in np.unique(record.year) if y]
    years = [y for y in years if Forecasts.of(record, [y]).judged.sum() > 10 * DAY]
    try:
        plan = planned(years, settings.train, settings.hold_back)
    except ValueError as error:
        parser.error(str(error))

    trials, errors_of = [], {}
    for trained_on, held_back in plan:
        trials.append(trial(record, trained_on, steps=20 if settings.quick else 150))
        for year in held_back:
            found = judged(record, trials[-1], year)
            errors_of[year] = {name: float(error[0]) for name, error in found.items()}
    picture = settings.out / "soil_temperature.png"
    settings.out.mkdir(parents=True, exist_ok=True)
    if draws:
        draw(picture, record, trials, plan[-1][1][-1], found)
        print(f"picture: {picture}")
    return errors_of


if __name__ == "__main__":
    main()
