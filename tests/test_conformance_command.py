"""What ``check`` and ``gradcheck`` leave behind: text, a page, a picture."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_plugins import HOOK, spec, write_distribution

from adeptml_core.cli import adeptml
from adeptml_core.conformance.plot import require_matplotlib
from adeptml_core.errors import AdeptmlError

SOLVER = """
import numpy as np
def example(rng, batch): return (rng.standard_normal((batch, 3)),)
def forward(x): return ROUND(x**3)
def vjp(x, g): return FACTOR * x**2 * g
def ROUND(y): return y
"""
ROUGH = "def ROUND(y): return (np.round(y * 50) / 50).astype(y.dtype)\n"


@pytest.fixture
def plugins(site: Path) -> Path:
    """Install a right solver, a wrong one, a rough one, and one that lacks a requirement."""
    for name, factor, more, fields in (
        ("right", 3, "", ""),
        ("wrong", -3, "", ""),
        ("rough", 3, ROUGH, ""),
        ("needy", 3, "", ", requires=('no-such-library>=2',)"),
    ):
        declared = spec(name, f"example='{name}_solver:example'{fields}")
        source = declared.replace("fake_solver", f"{name}_solver")
        hook = f"@hookimpl\ndef adeptml_solvers():\n    return [{source}]\n"
        write_distribution(
            site,
            f"fake-{name}",
            points={name: f"{name}_light"},
            modules={
                f"{name}_light": HOOK + hook,
                f"{name}_solver": SOLVER.replace("FACTOR", str(factor)) + more,
            },
        )
    return site


def run(*arguments: str) -> Result:
    """Run ``adeptml plugins ...`` in this process; its workers are others."""
    return CliRunner().invoke(adeptml, ["plugins", *arguments])


class _Page(HTMLParser):
    """The tags that are open, those seen, and everything that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.fetched += [str(v) for k, v in attrs if k in ("src", "href") and v and v[0] != "#"]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Leave what closes itself."""


@pytest.mark.slow
def test_the_page_is_whole_and_stands_alone(plugins: Path, tmp_path: Path) -> None:
    """Every verdict, finding, picture and the environment; well-formed; nothing is fetched."""
    file = tmp_path / "run.html"
    names = ("right", "wrong", "rough", "needy")
    result = run("check", *names, "--seed", "3", "--report", str(file))
    assert result.exit_code == 1
    assert f"written: {file}" in result.output
    text = file.read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert (page.open, page.fetched) == ([], [])
    assert "url(" not in text
    assert page.count["section"] == 5  # four solvers and the environment
    assert page.count["svg"] >= 3
    for name, verdict in zip(
        names, ("passed", "failed", "inconclusive", "unavailable"), strict=True
    ):
        assert f'<section class="solver {verdict}" id="{name}">' in text
    assert "the returned gradient has the wrong sign" in text
    assert "adeptml plugins check wrong --seed 3" in text
    assert "<dt>fake-wrong</dt><dd>1.0</dd>" in text


@pytest.mark.slow
def test_a_failure_reads_like_a_sentence(plugins: Path) -> None:
    """Verdict, diagnosis, both values, where to look, how to have it again."""
    result = run("check", "wrong")
    assert result.exit_code == 1
    for said in (
        r"wrong  FAILED +\d+ passed, 1 failed",
        r"gradient of x +FAILED   diagnosis: sign",
        r"worst entry \[\d\] of y\[\d\]: returned -?[\d.e-]+, differences say",
        r"look at: wrong_solver:vjp \(site/wrong_solver.py:5\)",
        r"0 of 1 can be trusted, 1 failed \(seed 0\)",
        r"reproduce: adeptml plugins check wrong --seed 0 +more: --report wrong.html",
    ):
        assert re.search(said, result.output), said


def test_a_report_into_nowhere_is_refused_at_once(plugins: Path, tmp_path: Path) -> None:
    """Before anything is examined."""
    result = run("check", "right", "--report", str(tmp_path / "no" / "run.html"))
    assert result.exit_code == 1
    assert "there is no folder" in result.output
    assert "passed" not in result.output


@pytest.mark.slow
def test_gradcheck_draws_its_sweeps(plugins: Path, tmp_path: Path) -> None:
    """A picture by matplotlib, for the dtype and directions asked for."""
    file = tmp_path / "sweeps.png"
    result = run("gradcheck", "right", "--plot", str(file), "--dtype", "float32", "--json")
    checks = {c["id"] for c in json.loads(result.stdout)["solvers"][0]["checks"]}
    assert checks == {"example", "results", "gradient.x.float32"}
    assert file.read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install is said before minutes of work."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(AdeptmlError, match=r"pip install 'adeptml-core\[plot\]'"):
        require_matplotlib()


@pytest.mark.slow
def test_the_curves_tell_right_from_wrong(plugins: Path) -> None:
    """Where the gradient is right the error falls with the step; where wrong, it stays at 2."""
    from adeptml_core import registry
    from adeptml_core.conformance import Run, Settings, Subject

    for name, is_right in (("right", True), ("wrong", False)):
        entry = registry.find(name)
        subject = Subject(registry.load(entry), entry, name)
        (curve,) = Run(subject, Settings(parts=("gradient",), dtype="float64")).report().curves
        smallest = [min(e for e in line["error"] if e) for line in curve["lines"]]
        assert (max(smallest) < 1e-6) is is_right
        assert any(line["wrong"] for line in curve["lines"]) is not is_right
