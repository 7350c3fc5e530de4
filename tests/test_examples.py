"""The examples run, and their figures are what they are for."""

import importlib.util
import math
import os
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
    import sys

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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("station,time\n", "the header is"),
        ("station,time_cst,T5cm,T10cm,T20cm\nA,yesterday,1,2,3\n", "line 2"),
        ("station,time_cst,T5cm,T10cm,T20cm\nA,10/2/14 12:00,1,2\n", "2 temperatures"),
        ("station,time_cst,T5cm,T10cm,T20cm\n", "no measurements"),
    ],
)
def test_files_of_another_format(tmp_path: Path, text: str, message: str) -> None:
    """The error names file and line."""
    path = tmp_path / "odd.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        example("soil_temperature").read([path])
