"""The command as people meet it: in a process of its own."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class
from fake_plugins import Run, light_module, write_distribution, write_modules, write_sound

from adeptml_core._version import __version__
from adeptml_core.cli import adeptml

HEAVY = """
import sys
from adeptml_core.cli import main
try:
    main()
finally:
    names = ("numpy", "scipy", "torch", "jax", "packaging", "pluggy", "adeptml_core.spec", "solver")
    print(*(name for name in names if name in sys.modules), file=sys.stderr)
"""


def heavy(site: Path, *arguments: str, **env: str) -> list[str]:
    """Run the command where everything is installed; return what it imported of the heavy."""
    result = subprocess.run(
        [sys.executable, "-c", HEAVY, *arguments],
        env=os.environ | {"PYTHONPATH": str(site)} | env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "sound" in result.stdout
    return result.stderr.split()


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    folder = tmp_path / "plugins"
    write_modules(folder, {"solver": "def forward(x):\n    return x\n"})
    fields = "example='solver:forward', requires=('numpy>=1.26',)"
    write_sound(folder, "fake-sound", "sound", "sound-two", fields=fields)
    return folder


# ---- lightness ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["show", "sound"]])
def test_listing_and_showing_import_nothing_heavy(sound: Path, arguments: list[str]) -> None:
    """Neither numpy nor torch, jax, scipy, packaging or the solver's own module."""
    assert heavy(sound, "plugins", *arguments) == ["pluggy", "adeptml_core.spec"]


def test_names_and_completion_import_metadata_alone(sound: Path) -> None:
    """Not even specs and pluggy, let alone a plugin."""
    assert heavy(sound, "plugins", "list", "--names") == []
    words = {"COMP_WORDS": "adeptml plugins show so", "COMP_CWORD": "3"}
    assert heavy(sound, _ADEPTML_COMPLETE="bash_complete", **words) == []


def test_the_package_is_light_to_import(run: Run) -> None:
    """``import adeptml_core`` and asking for the solvers need no numpy and no torch."""
    result = run(code="import adeptml_core; print(adeptml_core.solvers())")
    assert (result.stdout, result.stderr) == ("{}\n", "")


# ---- core alone --------------------------------------------------------------------------------


def test_core_alone_says_what_to_install(run: Run) -> None:
    """With no plugin, ``list`` is a beginning, not an empty table."""
    result = run("plugins", "list")
    assert result.returncode == 0
    assert "No solver plugin is installed" in result.stdout
    assert "pip install adeptml-heat1d" in result.stdout
    assert json.loads(run("plugins", "list", "--json").stdout) == {
        "schema": 1,
        "solvers": [],
        "problems": [],
    }


def test_core_alone_has_no_solver_of_any_name(run: Run) -> None:
    """A script that needs a plugin says which to install."""
    result = run("plugins", "show", "heat1d")
    assert result.returncode == 2
    assert "no solver plugin is installed" in result.stderr
    assert "pip install adeptml-heat1d" in result.stderr


@pytest.mark.parametrize("verb", ["check", "validate", "gradcheck"])
def test_examining_without_numpy_is_a_message(run: Run, verb: str) -> None:
    """Core without what it depends on: one line of cause, one of mend."""
    result = run("plugins", verb)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "error: this needs 'numpy', which is not installed\n       mend: pip install numpy\n"
    )
    assert "Traceback" in run("plugins", verb, "--debug").stderr


def test_list_and_show_work_without_torch_and_numpy(run: Run, sound: Path) -> None:
    """In an environment that has neither, from another directory."""
    result = run("plugins", "list", path=(sound,))
    assert (result.returncode, result.stderr) == (0, "")
    assert "needs numpy>=1.26" in result.stdout
    assert run("plugins", "show", "sound", path=(sound,)).returncode == 0


def test_versions_come_from_metadata(run: Run, sound: Path) -> None:
    """``--version`` lists core, torch, numpy and every plugin, whether they are there or not."""
    lines = dict(
        line.split(maxsplit=1) for line in run("--version", path=(sound,)).stdout.splitlines()
    )
    assert lines == {
        "adeptml-core": __version__,
        "python": sys.version.split()[0],
        "torch": "not installed",
        "numpy": "not installed",
        "fake-sound": "1.0",
    }


# ---- stdout is the command's alone -------------------------------------------------------------

NOISE = """
import atexit, ctypes, logging, os, subprocess, sys, warnings
print("by print")
sys.__stdout__.write("by the original stdout\\n"); sys.__stdout__.flush()
os.write(1, b"by the descriptor\\n")
subprocess.run([sys.executable, "-S", "-c", "print('by a child')"], check=True)
libc = ctypes.CDLL(None)
libc.printf(b"by buffered C\\n")
warnings.warn("by warning")
logging.getLogger("fake").warning("by logging")
atexit.register(print, "at exit")
"""


@pytest.mark.parametrize("verb", [["list"], ["show", "loud"]])
def test_noise_at_import_does_not_reach_stdout(run: Run, tmp_path: Path, verb: list[str]) -> None:
    """Prints, warnings, logs, C output and children go to stderr; stdout stays JSON."""
    write_distribution(
        tmp_path / "loud",
        "fake-loud",
        points={"loud": "loud_light"},
        modules={"loud_light": light_module("loud", body=NOISE)},
    )
    result = run("plugins", *verb, "--json", path=(tmp_path / "loud",))
    assert json.loads(result.stdout)["schema"] == 1
    for road in (
        "by print",
        "by the original stdout",
        "by the descriptor",
        "by a child",
        "by buffered C",
        "by warning",
        "by logging",
    ):
        assert road in result.stderr


def test_a_closed_pipe_is_no_traceback(sound: Path) -> None:
    """``adeptml plugins list | head`` ends quietly."""
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "adeptml_core", "plugins", "list"],
        env=os.environ | {"PYTHONPATH": str(sound)},
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert result.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--version"], ["plugins", "list"], ["plugins", "--help"]])
def test_a_full_disk_is_a_message(arguments: list[str], bare: Path) -> None:
    """Exit code 1 and one line on stderr, never a traceback."""
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-S", "-m", "adeptml_core", *arguments],
            env={"PYTHONPATH": str(bare)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 1
    assert result.stderr == "error: [Errno 28] No space left on device\n"


def test_an_odd_encoding_is_no_crash(run: Run, tmp_path: Path) -> None:
    """Text that stdout cannot encode comes out escaped."""
    folder = tmp_path / "plugins"
    write_sound(folder, "fake-unit", "unit", fields="citation='Gödel'")
    result = run("plugins", "show", "unit", path=(folder,), PYTHONIOENCODING="ascii")
    assert result.returncode == 0
    assert "cite     G\\xf6del" in result.stdout


def test_a_terminal_gets_colour_and_its_width(sound: Path, bare: Path) -> None:
    """On a real (pseudo) terminal of 60 columns: colours, and no line is longer."""
    master, slave = pty.openpty()
    environment = {"PYTHONPATH": f"{sound}{os.pathsep}{bare}", "COLUMNS": "60", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-S", "-m", "adeptml_core", "plugins", "list"],
        env=environment,
        stdout=slave,
    )
    process.wait(timeout=60)
    os.close(slave)
    output = os.read(master, 65536).decode()
    os.close(master)
    assert "\x1b[1msound" in output
    plain = [line.replace("\x1b[0m", "") for line in output.splitlines()]
    assert any(line.startswith("    (x[n] m) -> y[n]") for line in plain)


# ---- completion --------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_solver_names_complete(site: Path, shell: str) -> None:
    """Every shell's completion offers the installed names that begin with what is typed."""
    write_sound(site, "fake-sound", "sound", "sound-two", "other")
    kind = get_completion_class(shell)
    assert kind is not None
    completion = kind(adeptml, {}, "adeptml", "_ADEPTML_COMPLETE")
    items = completion.get_completions(["plugins", "show"], "SOU")
    assert [(item.value, item.help) for item in items] == [
        ("sound", "fake-sound 1.0"),
        ("sound-two", "fake-sound 1.0"),
    ]


def test_qualified_names_complete(site: Path) -> None:
    """Behind a distribution and a slash, its solvers."""
    write_sound(site, "fake-sound", "sound", "other")
    kind = get_completion_class("bash")
    assert kind is not None
    completion = kind(adeptml, {}, "adeptml", "_ADEPTML_COMPLETE")
    items = completion.get_completions(["plugins", "show"], "fake-sound/s")
    assert [item.value for item in items] == ["fake-sound/sound"]


PROTOCOL = {
    "bash": ({"COMP_WORDS": "adeptml plugins show sound-", "COMP_CWORD": "3"}, "plain,sound-two\n"),
    "zsh": (
        {"COMP_WORDS": "adeptml plugins show sound-", "COMP_CWORD": "3"},
        "plain\nsound-two\nfake-sound 1.0\n",
    ),
    "fish": ({"COMP_WORDS": "adeptml plugins show ", "COMP_CWORD": "sound-"}, None),
}


@pytest.mark.parametrize("shell", PROTOCOL)
def test_the_shells_protocol(run: Run, sound: Path, shell: str) -> None:
    """What a shell asks through the environment is answered on stdout, from metadata alone."""
    words, answer = PROTOCOL[shell]
    result = run(path=(sound,), _ADEPTML_COMPLETE=f"{shell}_complete", **words)
    assert "sound-two" in result.stdout
    assert "sound\n" not in result.stdout
    assert answer is None or result.stdout == answer


SCRIPTS = {
    "bash": (
        'eval "$(_ADEPTML_COMPLETE=bash_source adeptml)"\n'
        "COMP_WORDS=(adeptml plugins show sound-) COMP_CWORD=3\n"
        "_adeptml_completion adeptml\n"
        'echo "${COMPREPLY[@]}"\n',
        "sound-two\n",
    ),
    "fish": (
        "_ADEPTML_COMPLETE=fish_source adeptml | source\n"
        'complete -C "adeptml plugins show sound-"\n',
        "sound-two\tfake-sound 1.0\n",
    ),
}


@pytest.mark.parametrize("shell", SCRIPTS)
def test_shells_complete_for_real(bare: Path, sound: Path, tmp_path: Path, shell: str) -> None:
    """The script for the shell's start-up file, sourced by it, completes a solver's name."""
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    command = tmp_path / "adeptml"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -m adeptml_core "$@"\n')
    command.chmod(0o755)
    script, answer = SCRIPTS[shell]
    result = subprocess.run(
        [shell, "-c", script],
        env={
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{sound}{os.pathsep}{bare}",
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout, result.stderr) == (answer, "")
