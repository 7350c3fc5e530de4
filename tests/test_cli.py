import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from fake_plugins import (
    BROKEN,
    Broken,
    light_module,
    write_distribution,
    write_modules,
    write_sound,
)

from adeptml_core import HybridModel, cli, registry
from adeptml_core.cli import adeptml
from adeptml_core.describe import locate

SOLVER = """\
import functools
try:
    from nowhere_to_be_found import fast
except ImportError:
    fast = None
if fast is None:
    def forward(x):
        return x ** 3
@functools.cache
def vjp(x, grad_output):
    return 3 * x ** 2 * grad_output
class Mesh:
    @staticmethod
    def example(rng, batch):
        return (rng.normal(size=(batch, 4)),)
jvp, hvp = [functools.partial(vjp)] * 2
"""


def call(*arguments: str, **env: str) -> Result:
    """Run ``adeptml plugins ...`` in this process."""
    return CliRunner().invoke(adeptml, ["plugins", *arguments], env=env)


def document(*arguments: str) -> dict[str, object]:
    """Run with ``--json`` and parse what is on stdout."""
    data: dict[str, object] = json.loads(call(*arguments, "--json").stdout)
    return data


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Give a function that makes the command believe in a terminal of that width."""

    def set_width(width: int) -> None:
        monkeypatch.setattr(cli, "_width", lambda: width)

    return set_width


# ---- list --------------------------------------------------------------------------------------


def test_list_shows_mode_signature_and_origin(site: Path) -> None:
    """One line a solver: name, mode, signature with units, distribution and version."""
    write_sound(site, "fake-sound", "sound")
    result = call("list")
    line = next(line for line in result.stdout.splitlines() if line.startswith("sound "))
    assert re.split(r"\s{2,}", line) == ["sound", "vjp", "(x[n] m) -> y[n]", "fake-sound 1.0"]
    assert result.exit_code == 0


def test_list_shows_a_broken_plugin_with_code_and_mend(site: Path) -> None:
    """The row says broken and why in a code; below stand cause and mend."""
    next(b for b in BROKEN if b.name == "dependency").write(site)
    output = call("list").stdout
    assert re.search(r"^dependency\s+fake-dependency 0\.3\s+broken: P102$", output, re.MULTILINE)
    assert (
        "P102  fake-dependency 0.3  needs 'pyfr_that_is_not_there', which is not installed\n"
        "      mend: pip install 'pyfr-that-is-not-there>=2'\n"
    ) in output
    assert output.splitlines()[-1].endswith("1 needs attention")


def test_list_says_what_a_solver_still_needs(site: Path) -> None:
    """A missing requirement is a word in the row, not an error."""
    write_sound(site, "fake-thirsty", "thirsty", fields="requires=('jaxx>=2',)")
    result = call("list", "--strict")
    assert re.search(r"^thirsty .* needs jaxx>=2$", result.stdout, re.MULTILINE)
    assert result.exit_code == 0


def test_list_shows_what_is_switched_off(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver that is off keeps its row; a switch that means nothing gets a note on stderr."""
    write_sound(site, "fake-sound", "sound")
    monkeypatch.setenv(registry.DENY, "sound,sounnd")
    result = call("list")
    assert re.search(r"^sound .* switched off$", result.stdout, re.MULTILINE)
    assert "1 switched off" in result.stdout
    assert "note: ADEPTML_DISABLE_PLUGINS names 'sounnd'" in result.stderr


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_every_broken_plugin_in_list_and_show(site: Path, broken: Broken) -> None:
    """From the command, as from Python: code and mend, exit codes, the neighbour unharmed."""
    broken.write(site)
    write_sound(site, "fake-sound", "sound")
    listed = document("list")
    [problem] = [
        p
        for p in listed["problems"]  # type: ignore[attr-defined]
        if p["distribution"] == broken.distribution and p["code"] == broken.code
    ]
    assert broken.mend in problem["mend"]
    states = {row["name"]: row["state"] for row in listed["solvers"]}  # type: ignore[attr-defined]
    assert states["sound"] == "ready"
    assert call("list").exit_code == 0
    assert call("list", "--strict").exit_code == 1
    assert call("show", "sound").exit_code == 0
    shown = call("show", registry.normalize_name(problem["entry_point"]))
    is_ambiguous = broken.code == "P109"
    assert shown.exit_code == (2 if is_ambiguous else 1)
    assert broken.code in (shown.stderr if is_ambiguous else shown.stdout)


def test_every_broken_plugin_in_validate(site: Path) -> None:
    """All at once: each with its code and mend, exit code 1, the neighbour still passed."""
    write_modules(site, {"fake_solver": SOLVER})
    write_sound(site, "fake-sound", "sound", fields='example="fake_solver:Mesh.example"')
    for broken in BROKEN:
        broken.write(site)
    claimed = [broken for broken in BROKEN if broken.code == "P109"]
    points = {entry.distribution: entry.qualified for entry in registry.entries()}
    names = [points[broken.distribution] for broken in BROKEN if broken not in claimed]
    result = call("validate", "sound", *names, "--json")
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    problems = {problem["distribution"]: problem for problem in data["problems"]}
    for broken in BROKEN:
        if broken not in claimed:
            problem = problems.pop(broken.distribution)
            assert problem["code"] == broken.code
            assert broken.mend in problem["mend"]
    assert problems == {}
    assert {row["name"]: row["verdict"] for row in data["solvers"]}["sound"] == "passed"
    for broken in claimed:
        assert call("validate", points[broken.distribution]).exit_code == 2


def test_list_in_json_has_exactly_the_documented_keys(site: Path) -> None:
    """The schema is fixed: other programs read it."""
    write_sound(site, "fake-sound", "sound")
    next(b for b in BROKEN if b.name == "deep").write(site)
    data = document("list")
    assert list(data) == ["schema", "solvers", "problems"]
    assert data["schema"] == 1
    rows = {row["name"]: row for row in data["solvers"]}  # type: ignore[attr-defined]
    assert rows["sound"] == {
        "name": "sound",
        "mode": "vjp",
        "signature": "(x[n] m) -> y[n]",
        "summary": "elementwise cube",
        "distribution": "fake-sound",
        "version": "1.0",
        "entry_point": "sound",
        "state": "ready",
    }
    assert rows["deep"] | {"mode": None, "signature": None, "summary": None} == rows["deep"]
    assert rows["deep"]["state"] == "broken"
    [problem] = [p for p in data["problems"] if p["code"] == "P103"]  # type: ignore[attr-defined]
    assert list(problem) == ["code", "distribution", "version", "entry_point", "message", "mend"]


def test_names_alone_are_names_alone(site: Path) -> None:
    """``--names`` prints what selects each solver, one a line, and imports no plugin."""
    write_sound(site, "fake-a", "both", "one")
    write_sound(site, "fake-b", "both")
    lines = call("list", "--names").stdout.splitlines()
    assert {"fake-a/both", "fake-b/both", "one"} <= set(lines)
    assert document("list", "--names")["names"] == lines
    assert "fake_a_light" not in sys.modules


@pytest.mark.parametrize("verb", [["list"], ["list", "--names"], ["validate", "one"]])
def test_a_switch_that_means_nothing_is_told(site: Path, verb: list[str]) -> None:
    """Names are separated by commas: "one two" is no name, and stderr says so."""
    write_sound(site, "fake-a", "one")
    assert "'one two': nothing of that name" in call(*verb, ADEPTML_PLUGINS="one,one two").stderr


def test_names_alone_cannot_be_strict() -> None:
    """Nothing is loaded, so nothing could be found wrong: that is a usage error."""
    result = call("list", "--names", "--strict")
    assert result.exit_code == 2
    assert "--names loads no plugin" in result.stderr


# ---- width, colour -----------------------------------------------------------------------------

WIDE = "options=(Option('t', 1.0, unit='s', low=0.0, doc='time at which the state is wanted'),), "
WIDE += "args=tuple(Array(f'conductivity_{i}', ('n',), unit='W/m/K', low=0.0) for i in range(3))"


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
@pytest.mark.parametrize("verb", [["list"], ["show", "wide"]])
def test_tables_fit_the_terminal(
    site: Path, terminal: Callable[[int], None], width: int, verb: list[str]
) -> None:
    """No line of a table is longer than the terminal is wide, and nothing is cut off."""
    write_sound(site, "fake-wide", "wide", fields=WIDE)
    terminal(width)
    table = call(*verb).stdout.partition("\n\nfrom adeptml_core")[0]
    assert max(map(len, table.splitlines())) <= width
    assert "conductivity_2" in table


def test_lines_stay_whole_when_piped(site: Path) -> None:
    """Where stdout is no terminal there is no width: a line is a record."""
    write_sound(site, "fake-wide", "wide", fields=WIDE)
    line = next(line for line in call("list").stdout.splitlines() if line.startswith("wide "))
    assert re.search(r"conductivity_2\[n\] W/m/K\) -> y\[n\] +fake-wide 1\.0$", line)


def test_long_problems_wrap_below_themselves(site: Path, terminal: Callable[[int], None]) -> None:
    """Cause and mend are paragraphs with a hanging indent; long words stay whole, to be copied."""
    next(b for b in BROKEN if b.name == "bad-mode").write(site)
    terminal(60)
    lines = call("show", "bad-mode").stdout.splitlines()
    assert lines[0].startswith("P106  fake-bad-mode 0.3  ")
    assert {line[:6] for line in lines[1:]} == {" " * 6}
    assert any("ADEPTML_DISABLE_PLUGINS=fake-bad-mode" in line for line in lines)


def test_a_plugin_cannot_steer_the_terminal(site: Path) -> None:
    """Control characters in what a plugin declares come out escaped."""
    write_sound(site, "fake-red", "red", fields="citation='\\x1b[31mred\\x07'")
    result = call("show", "red")
    assert "\x1b" not in result.stdout
    assert "\\x1b[31mred\\x07" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "env", "coloured"),
    [
        ([], {}, False),
        (["--color", "always"], {}, True),
        (["--color", "always"], {"NO_COLOR": "1"}, True),
        (["--color", "never"], {}, False),
    ],
)
def test_colour_is_asked_for(
    site: Path, arguments: list[str], env: dict[str, str], coloured: bool
) -> None:
    """``--color`` decides; into a pipe ``auto`` writes none."""
    write_sound(site, "fake-sound", "sound")
    assert ("\x1b[" in call("list", *arguments, **env).stdout) == coloured


class Terminal:
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("env", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_no_color_is_honoured(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], coloured: bool
) -> None:
    """On a terminal there is colour, unless NO_COLOR is set and not empty, or it cannot."""
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert cli._is_coloured("auto", Terminal()) is coloured  # type: ignore[arg-type]


def test_json_is_never_coloured(site: Path) -> None:
    """JSON stays JSON, whatever is asked for."""
    write_sound(site, "fake-sound", "sound")
    json.loads(call("list", "--json", "--color", "always").stdout)


# ---- show --------------------------------------------------------------------------------------

RICH = """\
args=(Array("k", (2, "n"), unit="W/m/K", low=(0.0, -1.5, 2.0), high=float("inf"), batched=False),
      Array("mask", ("n",), dtype="bool", batched=True)),
options=(Option("mesh", str, doc="mesh file"), Option("scheme", "up", choices=("up", "down")),
         Option("t", float("inf"), unit="s")),
jvp="fake_solver:jvp", example="fake_solver:Mesh.example", hvp="fake_solver:gone",
dtypes=("float32",), row_independent=False, deterministic=False, thread_safe=False,
writable_inputs=True, tolerance=1e-6, requires=("click>=8", "jaxx"), url="https://example.org",
citation="Doe 2020", expected_failures={"float32": "single precision"}
"""


@pytest.fixture
def rich(site: Path) -> Path:
    write_modules(site, {"fake_solver": SOLVER})
    write_sound(site, "fake-rich", "rich", fields=RICH.strip())
    return site


def test_show_tells_everything_there_is_to_know(rich: Path) -> None:
    """Arrays, options, promises, functions, requirements met or not, what to cite."""
    output = call("show", "rich").stdout
    for text in (
        "rich   elementwise cube",
        "from fake-rich 1.0 (api 1)   mode vjp   float32",
        "needs jaxx: pip install jaxx",
        "k      arg  [2, n]    W/m/K  (0, -1.5, 2) .. inf  no        shared by the batch",
        "mask   arg  [n] bool                              no        per sample",
        "mesh    required (str)                  mesh file",
        "scheme  up                    up, down",
        "t       inf             s",
        "forward   fake_solver:forward       fake_solver.py:7",
        "vjp       fake_solver:vjp           fake_solver.py:10",
        "example   fake_solver:Mesh.example  fake_solver.py:14",
        "jvp       fake_solver:jvp           fake_solver.py:16",
        "jaxx               no         not met",
        "promise  rows of a batch depend on each other",
        "promise  equal inputs need not give equal results",
        "promise  one call at a time (not thread-safe)",
        "promise  gets private copies that it may write to",
        "promise  derivatives to a relative accuracy of 1e-06",
        "expects  float32 to fail: single precision",
        "cite     Doe 2020",
        "more     https://example.org",
    ):
        assert f"\n{text}" in f"\n{output}", text
    assert re.search(r"^click>=8 +\d\S+ +ok$", output, re.MULTILINE)
    assert re.search(r"^hvp       fake_solver:gone          fake_solver\.py$", output, re.MULTILINE)


def test_show_in_json_is_complete_and_strictly_json(rich: Path) -> None:
    """Infinities are text, functions have file and line, requirements their state."""
    result = call("show", "rich", "--json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    solver = json.loads(result.stdout, parse_constant=refuse)["solver"]
    assert solver["state"] == "needs"
    assert solver["args"][0]["low"] == [0.0, -1.5, 2.0]
    assert solver["args"][0]["high"] == "inf"
    assert solver["options"][0]["required"] is True
    assert solver["options"][2]["default"] == "inf"
    assert {"requirement": "jaxx", "installed": None, "met": False} in solver["requirements"]
    places = {place["role"]: place for place in solver["functions"]}
    assert places["forward"] == {
        "role": "forward",
        "reference": "fake_solver:forward",
        "file": str(rich / "fake_solver.py"),
        "line": 7,
    }
    assert places["hvp"]["line"] is None


def test_show_imports_no_solver(rich: Path) -> None:
    """The functions are found in the source text."""
    call("show", "rich")
    assert "fake_solver" not in sys.modules


def test_functions_are_found_without_importing_their_packages(site: Path) -> None:
    """Walking down to a module runs no package's ``__init__``."""
    write_modules(site, {"deep_package.below.solver": "def forward(x): ...\n"})
    for package in ("deep_package", "deep_package/below"):
        (site / package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    place = locate("deep_package.below.solver:forward")
    assert (place.file, place.line) == (str(site / "deep_package/below/solver.py"), 1)
    assert str(place) == "deep_package/below/solver.py:1"


@pytest.mark.parametrize(
    ("reference", "shown"),
    [
        ("fake_solver:Mesh.gone", "fake_solver.py"),
        ("fake_solver.below:f", "not found"),
        ("gone_package.solver:f", "not found"),
        ("sys:exit", "built-in"),
        ("without_spec:f", "not found"),
    ],
)
def test_functions_that_are_not_in_source_are_no_crash(
    rich: Path, monkeypatch: pytest.MonkeyPatch, reference: str, shown: str
) -> None:
    """What cannot be located is said to be so."""
    monkeypatch.setitem(sys.modules, "without_spec", ModuleType("without_spec"))
    assert str(locate(reference)) == shown


def test_callables_have_a_place_too() -> None:
    """A spec may hold functions themselves, built-in ones too."""
    assert locate(document).file == __file__
    assert str(locate(np.sin)) == "not found"


def test_show_by_name_that_two_claim(site: Path) -> None:
    """The bare name is a usage error that says how to choose; so chosen, it is shown."""
    write_sound(site, "fake-a", "both")
    write_sound(site, "fake-b", "both")
    result = call("show", "both")
    assert result.exit_code == 2
    assert "say which: 'fake-a/both' or 'fake-b/both'" in result.stderr
    assert 'PhysicsConfig(solver="fake-b/both")' in call("show", "fake-b/both").stdout


def test_show_an_unknown_name(site: Path) -> None:
    """Exit code 2, on stderr what comes close, nothing on stdout, in JSON mode either."""
    write_sound(site, "fake-heat", "heat-2d")
    for arguments in (["show", "heat2d"], ["show", "heat2d", "--json"]):
        result = call(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(
            "error: no solver is called 'heat2d'. Did you mean 'heat-2d'"
        )


# ---- the snippet -------------------------------------------------------------------------------

OPTIONS = {
    "none": "",
    "infinite": "options=(Option('t', float('inf')),)",
    "required str": "options=(Option('mesh', str), Option('t', 1.0))",
    "required float": "options=(Option('t', float, low=2.0),)",
    "required from above": "options=(Option('n', int, high=-1),)",
    "required bool": "options=(Option('on', bool),)",
    "required tuple": "options=(Option('ends', tuple),)",
    "required choice": "options=(Option('scheme', str, choices=('up\\\\', 'do\"wn')),)",
    "tuple": "options=(Option('ends', (1.0,)),)",
    "args": "args=(Array('k', ('n',)), Array('mask', ('n',), dtype='bool', batched=False))",
}


@pytest.mark.parametrize("fields", OPTIONS.values(), ids=OPTIONS)
def test_the_snippet_works_when_pasted(site: Path, fields: str) -> None:
    """``show`` ends in Python that runs as it stands and builds a model around the solver."""
    write_sound(site, "fake-pasted", "pasted-one", fields=fields)
    assert isinstance(pasted("pasted-one"), HybridModel)


def test_the_snippet_of_a_duplicate_names_the_distribution(site: Path) -> None:
    """Where the bare name is ambiguous, the snippet selects."""
    write_sound(site, "fake-a", "both")
    write_sound(site, "fake-b", "both")
    assert isinstance(pasted("fake-b/both"), HybridModel)


def test_the_snippets_of_what_is_installed_here() -> None:
    """The same holds for every real plugin in this environment."""
    for name in registry.names():
        assert isinstance(pasted(name), HybridModel)


def pasted(name: str) -> object:
    """Run the end of what ``show`` prints; return the model it makes."""
    output = call("show", name).stdout
    namespace: dict[str, object] = {}
    exec(output[output.index("from adeptml_core import") :], namespace)
    return namespace["model"]


# ---- errors ------------------------------------------------------------------------------------


def test_debug_shows_the_traceback(site: Path) -> None:
    """``--debug`` adds the plugin's own traceback to its problem."""
    next(b for b in BROKEN if b.name == "deep").write(site)
    assert "Traceback" not in call("show", "deep").output
    assert "ZeroDivisionError: division by zero" in call("show", "deep", "--debug").stdout
    assert "UnknownSolverError" in call("show", "nope", "--debug").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["list", "--nmes"], "No such option '--nmes'. Did you mean '--names'?"),
        (["show"], "Missing argument 'NAME'"),
        (["list", "--color", "yes"], "'yes' is not one of 'auto', 'always', 'never'"),
    ],
)
def test_usage_errors_exit_with_two(arguments: list[str], message: str) -> None:
    """A slip of the hand gets the usage, the reason, and what was probably meant."""
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_verb_turns_errors_of_the_system_into_messages() -> None:
    """A full disk is a message and exit code 1, not a traceback."""

    @click.command()
    @cli.verb
    def write(console: cli.Console) -> int:
        raise OSError(28, "No space left on device")

    result = CliRunner().invoke(write, [])
    assert result.exit_code == 1
    assert result.stderr == "error: [Errno 28] No space left on device\n"


def test_every_verb_has_the_same_manners() -> None:
    """``--json``, ``--debug`` and ``--color`` are everywhere, and every verb says what it does."""
    for name, command in cli.plugins.commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--json", "--debug", "--color"} <= options, name
        assert command.help, name


def test_a_plugin_without_entry_of_its_own_is_not_shown(site: Path) -> None:
    """Only what has an entry point has a name; the hook may know more specs."""
    write_distribution(
        site, "fake-more", points={"one": "more"}, modules={"more": light_module("one", "hidden")}
    )
    assert "hidden" not in call("list").stdout
