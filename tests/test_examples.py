"""The examples run, and their figures are what they are for."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
DEPTHS = (5, 10, 20, 30, 40, 50, 60, 80, 100, 125, 150, 175, 200, 225)  # cm
DIFFUSIVITY = 4e-7  # m^2/s


def example(name: str) -> ModuleType:
    """Return the example as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_material_law_in_short(tmp_path: Path) -> None:
    """A few experiments and steps suffice for the hybrid to beat the network several times over."""
    figures = example("material_law").main(["--quick", "--out", str(tmp_path)])
    assert figures["factor"] > 4
    assert figures["hybrid"] < 0.15
    assert (tmp_path / "material_law.png").stat().st_size > 10_000
    logs = list((tmp_path / "runs").rglob("events.out.tfevents.*"))
    assert len(logs) == 4  # one for each model and number of experiments


def soil_wave(depth: float, hour: float) -> float:
    """Return the temperature in a half-space that a day's and a year's wave warm from above."""
    total = 12.0
    for swing, period in ((6.0, 24.0), (10.0, 8766.0)):
        rate = 2 * math.pi / (period * 3600)
        reach = math.sqrt(2 * DIFFUSIVITY / rate)
        z = depth / 100 / reach
        total += swing * math.exp(-z) * math.sin(rate * hour * 3600 - z)
    return total


@pytest.fixture(scope="module")
def made_station(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a station's file: two summers of waves in a soil of known diffusivity, some gaps."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("soil") / "made.csv"
    header = "station,time_cst," + ",".join(f"T{d}cm" for d in DEPTHS)
    rows = [header]
    for year in (2015, 2016):
        begin = datetime(year, 5, 1)
        for hour in range(24 * 40):
            clock = begin + timedelta(hours=hour)
            since = (clock - datetime(2015, 1, 1)).total_seconds() / 3600
            T = [f"{soil_wave(d, since) + 0.01 * rng.normal():.3f}" for d in DEPTHS]
            if rng.random() < 0.01:
                T[3] = ""
            rows.append(f"Made,{clock.month}/{clock.day}/{clock:%y %H:%M},{','.join(T)}")
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.slow
def test_soil_of_known_diffusivity(made_station: Path, tmp_path: Path) -> None:
    """The best constant is near that of the data; the daily wave (10 cm) is coarsely sampled."""
    soil = example("soil_temperature")
    record = soil.read([made_station])
    assert soil.best_constant(record, [2015]) == pytest.approx(DIFFUSIVITY, rel=0.15)
    errors = soil.main(
        [str(made_station), "--quick", "--hold-back", "2016", "--out", str(tmp_path)]
    )
    assert errors[2016]["best constant"] < 0.05
    assert errors[2016]["profile"] < errors[2016]["persistence"] / 2
    assert (tmp_path / "soil_temperature.png").stat().st_size > 10_000


def measured() -> Path | None:
    """Return the measured file where it is at hand."""
    named = os.environ.get("ADEPTML_SOIL_CSV")
    if named:
        return Path(named)
    return next(iter(ROOT.parent.glob("shared/data/soil-temperature-*.csv.gz")), None)


@pytest.mark.slow
@pytest.mark.skipif(measured() is None, reason="needs the measured file: set ADEPTML_SOIL_CSV")
def test_measured_soil(tmp_path: Path) -> None:
    """On a held-back summer the learned profile is better than 0.20 K, and corrected than 0.18."""
    path = measured()
    errors = example("soil_temperature").main(
        [str(path), "--hold-back", "2016", "--out", str(tmp_path)]
    )
    assert errors[2016]["profile"] < 0.20
    assert errors[2016]["corrected"] < 0.18
    assert errors[2016]["persistence"] > 0.4


def test_soil_files_in_other_orders_and_dates_are_the_same(tmp_path: Path) -> None:
    """Columns are found by name, dates in four formats, a leap day; no number is none."""
    read = example("soil_temperature").read
    texts = {
        "a.csv": "station,time_cst,T5cm,T10cm,T20cm\n"
        "A,2/28/16 23:00,1,2,3\nA,2/29/16 0:00,4,NA,\nA,2/29/16 1:00,7,-999,M\n",
        "b.csv": "T20cm,rain,T5cm,Date,T10cm\n"
        "3,0,1,2016-02-28 23:00,2\nnan,0,4,2016-02-29T00:00:00,null\n\n,9,7,2/29/2016 1:00,6000\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    one, other = (read([tmp_path / name]) for name in texts)
    np.testing.assert_array_equal(one.clock, other.clock)
    np.testing.assert_array_equal(one.depths, other.depths)
    np.testing.assert_array_equal(one.T, other.T)
    assert one.clock[1] == np.datetime64("2016-02-29T00", "h")
    np.testing.assert_array_equal(one.T, [[1, 2, 3], [4, np.nan, np.nan], [7, np.nan, np.nan]])
    both = read([tmp_path / name for name in texts])  # each hour told twice, in the same way
    np.testing.assert_array_equal(both.T, one.T)


def test_soil_files_with_other_depths_do_not_mix(tmp_path: Path) -> None:
    """Two stations are not one; the error names the second file."""
    for name, depth in (("a.csv", 20), ("b.csv", 25)):
        (tmp_path / name).write_text(f"time,T5cm,T10cm,T{depth}cm\n1/1/16 0:00,1,2,3\n")
    with pytest.raises(ValueError, match=r"b\.csv: depths"):
        example("soil_temperature").read([tmp_path / "a.csv", tmp_path / "b.csv"])


def test_soil_years_are_trained_on_or_judged_never_both() -> None:
    """All that is held back is kept from training, one by one only where nothing is named."""
    planned = example("soil_temperature").planned
    assert planned([2015, 2016], None, None) == [([2016], [2015]), ([2015], [2016])]
    assert planned([2015, 2016, 2017, 2018], None, [2017, 2018]) == [([2015, 2016], [2017, 2018])]
    assert planned([2015, 2016, 2017], [2015], None) == [([2015], [2016, 2017])]
    assert planned([2015, 2016, 2017], [2015], [2017]) == [([2015], [2017])]
    for years, train, hold_back, message in (
        ([2015], None, None, "one to train on and one to hold back"),
        ([2015, 2016], None, [2015, 2016], "one to train on and one to hold back"),
        ([2015, 2016], [2015], [2015], "2015 cannot be trained on and held back"),
        ([2015, 2016], None, [2019], "no summer of 2019"),
    ):
        with pytest.raises(ValueError, match=message):
            planned(years, train, hold_back)


@pytest.mark.parametrize("kind", ["Profile", "Corrected"])
def test_soil_forecast_knows_nothing_of_the_day_that_it_forecasts(
    made_station: Path, kind: str
) -> None:
    """After its start a forecast reads the two ends alone; each inner reading may change at will.

    The ends are boundary temperatures. Yesterday's miss, of the forecast that came due at the
    start, does matter to `Corrected`.
    """
    import torch

    soil = example("soil_temperature")
    record = soil.read([made_station])
    torch.manual_seed(0)
    model = getattr(soil, kind)(record.depths)
    forecasts = soil.Forecasts.of(record, [2015])
    start = int(forecasts.starts[300])
    shown = forecasts.starts == start
    with torch.no_grad():
        expected = model(record.T, forecasts.starts)[shown]
        later = record.T.clone()
        later[start + 1 :, 1:-1] = 40 * torch.rand(later[start + 1 :, 1:-1].shape).double()
        assert torch.equal(model(later, forecasts.starts)[shown], expected)
        now = record.T.clone()
        now[start, 1:-1] += 1
        assert not torch.equal(model(now, forecasts.starts)[shown], expected)
        before = record.T.clone()
        before[start - soil.DAY, 1:-1] += 1  # where yesterday's forecast began
        remembers = not torch.equal(model(before, forecasts.starts)[shown], expected)
    assert remembers == (kind == "Corrected")


@pytest.mark.slow
def test_soil_training_never_sees_the_year_that_is_judged(made_station: Path) -> None:
    """Whatever was measured in 2016, the model trained on 2015 is the same to the last bit."""
    import torch

    soil = example("soil_temperature")
    record = soil.read([made_station])
    other = soil.Record(record.clock, record.depths, record.T.clone())
    other.T[record.year == 2016] = 20 * torch.rand(other.T[record.year == 2016].shape).double()
    weights = []
    for either in (record, other):
        torch.manual_seed(0)
        model = soil.Corrected(record.depths)
        soil.fit(model, either, [2015], steps=2)
        weights.append(torch.nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(*weights)


@pytest.mark.slow
def test_pendulum_friction_in_short(tmp_path: Path) -> None:
    """One swing of 30 s suffices to beat linear damping and a network without mechanics."""
    figures = example("pendulum_friction").main(["--quick", "--out", str(tmp_path)])
    assert figures["network in the solver"] < figures["linear damping"] / 2
    assert figures["network in the solver"] < figures["network alone"] / 2
    assert figures["length"] < 0.005
    assert figures["law"] < 0.15
    assert (tmp_path / "pendulum_friction.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("station,time\n", "the header is"),
        ("time,T5cm,T10cm,T10cm,T20cm\n", "the header is"),
        ("time,date,T5cm,T10cm,T20cm\n", "the header is"),
        (
            "station,time_cst,T5cm,T10cm,T20cm\nA,yesterday,1,2,3\n",
            "line 2: 'yesterday' is no time",
        ),
        ("station,time_cst,T5cm,T10cm,T20cm\nA,2/29/15 12:00,1,2,3\n", "line 2"),
        ("station,time_cst,T5cm,T10cm,T20cm\nA,10/2/14 12:00,1,2,hot\n", "line 2"),
        ("station,time_cst,T5cm,T10cm,T20cm\nA,10/2/14 12:00,1,2\n", "4 cells, fewer"),
        ("station,time_cst,T5cm,T10cm,T20cm\n", "no measurements"),
    ],
)
def test_files_of_another_format(tmp_path: Path, text: str, message: str) -> None:
    """The error names file and line."""
    path = tmp_path / "odd.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        example("soil_temperature").read([path])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["heat1d", "pendulum"])
def test_benchmarks_measure_and_name_who_is_missing(name: str, tmp_path: Path) -> None:
    """Without any peer a solver still stands beside its reference; the figures can be drawn."""
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.png"
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick"]
    command += ["--only", "torchdiffeq, dopri5, adjoint", "--limit", "10"]
    command += ["--save", str(figures), "--plot", str(picture), "--markdown"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    ours, rival = json.loads(figures.read_text())
    assert ours["error"] < 1e-12
    assert ours["gradient_error"] < 1e-10
    assert ours["seconds"] > 0
    if importlib.util.find_spec("torchdiffeq") is None:
        assert rival["said"] == "needs torchdiffeq"
        assert "adjoint is left out: it needs torchdiffeq" in done.stderr
    assert "| 1.00 |" in done.stdout
    assert picture.stat().st_size > 10_000
