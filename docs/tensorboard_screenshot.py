"""Take the picture of TensorBoard's page that docs/training.md shows, in a real browser.

Trains two short runs of a hybrid through heat1d, starts TensorBoard on the loopback, lets a
headless Chromium draw the page, and ends the server again.

::

    apt-get install chromium
    python docs/tensorboard_screenshot.py [--out docs/img/tensorboard.png] [--browser chromium]
"""

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

from adeptml_core import HybridConfig, HybridModel, MLPConfig, PhysicsConfig, train

IMAGE = Path(__file__).parent / "img" / "tensorboard.png"
CELLS, EPOCHS, HOT = 16, 40, 50.0  # K
SIZE = "1900,1900"
DRAWN = 25_000  # ms of the page's own clock, for its scripts and charts
PATIENCE = 60.0  # s for the server to come up
PAGE = "/?darkMode=false&smoothing=0&tagFilter=.%2B#timeseries"  # the filter opens all groups


def run_twice(runs: Path) -> None:
    """Train with two learning rates, so that there are curves to compare."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    phi, start = torch.rand(256, CELLS), HOT * torch.rand(256, CELLS)
    x = torch.cat([phi, start], dim=1)
    law = HybridConfig(
        models={
            "law": MLPConfig(CELLS, 32, CELLS, 1, "swish", "softplus"),
            "heat": PhysicsConfig(
                solver="heat1d",
                options={"t": 0.1},
                args={"q": [0.0] * CELLS, "T_ext": [HOT, 0.0]},
            ),
        },
        model_inputs={
            "law": {"Input": list(range(CELLS))},
            "heat": {"Input": list(range(CELLS, 2 * CELLS))},
        },
        arg_inputs={"heat": {"k": {"law": None}}},
    )
    with torch.no_grad():
        teacher = HybridModel(law)
        y = teacher(x) + 0.1 * torch.randn(256, CELLS)
    loader = DataLoader(TensorDataset(x[:192], y[:192]), batch_size=32, shuffle=True)
    test = DataLoader(TensorDataset(x[192:], y[192:]), batch_size=64)
    for rate in (3e-3, 3e-4):
        model = HybridModel(law)
        adam = torch.optim.Adam(model.parameters(), rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, EPOCHS)
        train(
            model, loader, test, adam, torch.nn.MSELoss(), schedule, runs, EPOCHS, False,
            scheduler_per="epoch", metrics={"worst": worst}, keep_best="Loss/test",
        )  # fmt: skip


def worst(y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the largest error, K."""
    return (y_pred - y).abs().max()


def free_port() -> int:
    """Return a port of the loopback that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def photograph(browser: str, url: str, out: Path) -> None:
    """Let the browser draw the page to a file."""
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser,
                "--headless=new",
                "--no-sandbox",  # in a container there is none to be had
                "--disable-gpu",
                "--disable-3d-apis",  # charts are drawn as SVG, which a picture catches
                "--hide-scrollbars",
                f"--user-data-dir={profile}",
                f"--window-size={SIZE}",
                f"--virtual-time-budget={DRAWN}",
                f"--screenshot={out.absolute()}",
                url,
            ],
            check=True,
            capture_output=True,
            timeout=180,
        )


def main() -> None:
    """Train, serve, photograph, end the server."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=IMAGE)
    parser.add_argument("--browser", default=shutil.which("chromium") or "chromium")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        run_twice(runs)
        port = free_port()
        server = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs),
             "--host", "127.0.0.1", "--port", str(port), "--reload_interval", "5"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_for(f"http://127.0.0.1:{port}/data/plugins_listing")
            time.sleep(5)  # for the first reading of the event files
            photograph(settings.browser, f"http://127.0.0.1:{port}{PAGE}", settings.out)
        finally:
            server.terminate()
            server.wait()
    print(settings.out)


if __name__ == "__main__":
    main()
