"""What docs/training.md shows is run, in order, in one session as a reader would type it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
SCRIPTS = {b.partition("\n")[0].split()[-1]: b for b in BLOCKS if b.startswith("# file:")}
SESSION = [block for block in BLOCKS if block not in SCRIPTS.values()]
COMMANDS = re.findall(r"^torchrun .*$", PAGE, flags=re.MULTILINE)


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # the block on NaN
def test_the_session_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Block after block, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(SESSION):
        exec(compile(block, f"docs/training.md block {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "the loss of batch 0 of epoch 0 is inf: the output of " in said
    assert "is not finite, first at row 1 of the batch" in said
    assert "adeptml-heat1d" in said
    assert (tmp_path / "week/run_1/last.ckpt").is_file()
    assert len(list(tmp_path.glob("runs/run_*/model_best.pt"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_runs(command: str, tmp_path: Path) -> None:
    """The torchrun line, as it stands, on the script that it names."""
    _, *arguments, name = shlex.split(command)
    (tmp_path / name).write_text(SCRIPTS[name])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--local-addr=127.0.0.1", *arguments, name],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.startswith("Epoch 1 |")]) == 1


def test_every_keyword_of_train_is_told() -> None:
    """The page leaves none of them out."""
    import inspect

    from adeptml_core import train

    parameters = inspect.signature(train).parameters.values()
    new = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert [name for name in new if f"{name}=" not in PAGE] == []


def test_every_link_within_the_page_leads_somewhere() -> None:
    """The table's links are the headings."""
    headings = re.findall(r"^## (.*)$", PAGE, flags=re.MULTILINE)
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors
