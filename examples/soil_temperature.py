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
"""

import argparse
import csv
import gzip
import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from adeptml_core import MLPConfig, solve
from adeptml_core.models import MLP

DAY = 24  # hours that a forecast spans
SUMMER = (5, 9)  # first and last month that are forecast: frost would need latent heat
CELLS = 44
MEMORY = 5  # days of misses that are remembered
ODD = 0.5  # K; what exceeds it (rain that runs down the cracks) is no habit, and counts no more
EVERY = 8  # hours from one forecast to the next in training; must divide a day


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
            depths = depths_in(next(lines, []), path.name)
            for number, cells in enumerate(lines, start=2):
                hour, T = parsed(cells, len(depths), f"{path.name}, line {number}")
                is_told_twice = hour in rows and not np.array_equal(rows[hour], T)
                rows[hour] = [math.nan] * len(T) if is_told_twice else T
    if not rows:
        raise ValueError("the files hold no measurements")
    clock = np.arange(min(rows), max(rows) + np.timedelta64(1, "h"))
    missing = [math.nan] * len(depths)
    T = torch.tensor([rows.get(hour, missing) for hour in clock], dtype=torch.float64)
    return Record(clock, np.array(depths), T)


def depths_in(header: Sequence[str], where: str) -> list[float]:
    """Return the depths in m that columns named T5cm, T10cm, ... stand for."""
    found = [re.fullmatch(r"T([\d.]+)cm", name.strip()) for name in header[2:]]
    depths = [float(match[1]) / 100 for match in found if match]
    if len(depths) < len(found) or len(depths) < 3 or depths != sorted(set(depths)):
        raise ValueError(
            f"{where}: the header is {','.join(header)!r}; expected station,time_cst and at least "
            "three depths, from the top: T5cm,T10cm,..."
        )
    return depths


def parsed(cells: Sequence[str], sensors: int, where: str) -> tuple[np.datetime64, list[float]]:
    """Return a row's hour and temperatures, NaN for those that are missing or cannot be."""
    try:
        hour = np.datetime64(datetime.strptime(cells[1], "%m/%d/%y %H:%M"), "h")
        T = [math.nan if cell.strip() in ("", "NA", "M") else float(cell) for cell in cells[2:]]
    except (ValueError, IndexError) as error:
        raise ValueError(f"{where}: {error}; expected station,10/2/14 12:00,18.09,...") from None
    if len(T) != sensors:
        raise ValueError(f"{where}: {len(T)} temperatures, but the header names {sensors}")
    return hour, [value if abs(value) < 60 else math.nan for value in T]  # -999 is no temperature


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
        """Return the forecasts, shape (forecasts, sensors - 2)."""
        return self.ground.conduct(self.diffusivity(), T, starts, self.late)


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
        return forecast + self.remembered(missed, starts, len(T)) + swing[starts + DAY] * self.shares

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


def best_constant(record: Record, years: Iterable[int]) -> float:
    """Return the diffusivity, m^2/s, that alone forecasts the summers of these years best."""
    ground, forecasts = Ground(record.depths), Forecasts.of(record, years, EVERY)

    def error(log_diffusivity: float) -> float:
        got = ground.constant(math.exp(log_diffusivity), record.T, forecasts.starts)
        return rms(errors(got, record, forecasts))

    return math.exp(minimize_scalar(error, np.log([5e-8, 2e-6]), method="bounded").x)


def errors(forecast: Tensor, record: Record, forecasts: Forecasts) -> Tensor:
    """Return forecast minus measurement, shape (judged, sensors - 2), NaN where not measured."""
    return (forecast - record.T[forecasts.starts + DAY, 1:-1])[forecasts.judged]


def rms(error: Tensor, dim: int | None = None) -> Tensor:
    """Return the root mean square of what was measured."""
    return error.square().nanmean(dim).sqrt()
