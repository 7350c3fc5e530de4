"""The script that kills trainings, in short."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "kills.py"


@pytest.mark.slow
def test_killed_and_equal_and_the_control_differs(tmp_path: Path) -> None:
    """One kill of a training, one of its negative control: equal to the bit, and not."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "1", "--cases", "adam", "control"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "adam      killed 1 times, resumed: equal" in lines
    assert any(line.startswith("control   killed 1 times, resumed: DIFFERENT") for line in lines)
