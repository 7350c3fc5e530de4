"""A script written for AdePT-ML, with nothing changed but its imports."""

import re
import subprocess
import sys
from pathlib import Path

import torch

DATA = Path(__file__).parent / "data"


def test_a_script_runs_after_changing_its_imports(tmp_path: Path) -> None:
    """It prints, digit for digit, what it printed with 2.1, and leaves the same files."""
    source = (DATA / "upstream_script.py").read_text()
    script = tmp_path / "script.py"
    script.write_text(re.sub(r"^from adeptml\b", "from adeptml_core", source, flags=re.MULTILINE))
    result = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.stderr == ""
    printed = re.sub(r"Time: \d+\.\d\ds", "Time: 0.00s", result.stdout)
    assert printed == (DATA / "upstream_script.txt").read_text()
    for mode in ("jacobian", "vjp", "split"):
        run = tmp_path / mode / "run_1"
        names = {file.name for file in run.iterdir()}
        assert {"Model_2.pt", "Model_4.pt", "model_final.pt"} <= names
        state = torch.load(run / "model_final.pt", weights_only=True)
        assert next(iter(state)) == "models_nn.nn.layers.0.weight"
