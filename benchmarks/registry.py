"""What ``adeptml plugins list`` costs beside the least that such a command could cost.

Run: ``python benchmarks/registry.py [--rounds N]``. Every command runs in a process of its own,
interleaved with the others; the figures are medians of CPU time (user and system, all threads) and
their ratios to the bare process of the same installation, which imports click, pluggy and
``importlib.metadata`` and does nothing with them. A second bare process also reads the entry
points, as any command with plugins must.
"""

import sys

if sys.path[0].endswith("benchmarks"):
    # The tests' fake plugins serve here too; and operator.py beside this file must not stand in
    # for the standard library's `operator`.
    sys.path[0] = sys.path[0].removesuffix("benchmarks") + "tests"

import argparse
import os
import statistics
import subprocess
import tempfile
from importlib.metadata import entry_points
from pathlib import Path

from fake_plugins import write_sound

BARE = "import click, pluggy, importlib.metadata"
READING = f"{BARE}\nimportlib.metadata.entry_points(group='adeptml.solvers')"
COMMAND = "import sys; from adeptml_core.cli import main; sys.argv[0] = 'adeptml'; main()"
FIELDS = """
options=(
    Option("length", 1.0, unit="m", low=1e-9, doc="length of the rod"),
    Option("t", 1.0, unit="s", low=0.0, doc="time"),
    Option("poles", 14, choices=(8, 10, 12, 14, 16)),
),
args=(
    Array("k", ("n",), unit="W/m/K", low=1e-9, differentiable=True, doc="conductivity"),
    Array("q", ("n",), unit="W/m^3", differentiable=True, doc="source"),
    Array("T_ext", (2,), unit="K", differentiable=True, doc="ambient"),
),
example="fake_solver:example", requires=("numpy>=1.26",)
"""

# The real plugins of this environment stay out of it.
INSTALLED = {point.dist.name for point in entry_points(group="adeptml.solvers") if point.dist}

Command = tuple[list[str], dict[str, str]]


def write_sites(root: Path) -> tuple[Path, Path]:
    """Write two installations: two plugins; two hundred solvers in twenty distributions."""
    few, many = root / "few", root / "many"
    for site, distributions, solvers in ((few, 2, 2), (many, 20, 10)):
        for i in range(distributions):
            names = [f"solver-{i}-{j}" for j in range(solvers)]
            write_sound(site, f"adeptml-fake-{i}", *names, fields=FIELDS.strip())
    return few, many


def commands(few: Path, many: Path) -> dict[str, tuple[Command, str, float | None]]:
    """Return, by label, what to run, the label of its bare process, and the ratio to keep."""
    names = {"_ADEPTML_COMPLETE": "bash_complete", "COMP_WORDS": "adeptml plugins show s"}
    completion = names | {"COMP_CWORD": "3"}
    listing = [COMMAND, "plugins", "list"]
    return {
        "bare, 2 plugins": (_on(few, [BARE]), "", None),
        "bare, entry points read, 2 plugins": (_on(few, [READING]), "bare, 2 plugins", None),
        "list, 2 plugins": (_on(few, listing), "bare, 2 plugins", 1.15),
        "bare, 200 solvers": (_on(many, [BARE]), "", None),
        "bare, entry points read, 200 solvers": (_on(many, [READING]), "bare, 200 solvers", None),
        "list --names, 200 solvers": (_on(many, [*listing, "--names"]), "bare, 200 solvers", 1.15),
        "completion, 200 solvers": (_on(many, [COMMAND], completion), "bare, 200 solvers", 1.15),
        "list, 200 solvers": (_on(many, listing), "bare, 200 solvers", 1.6),
    }


def _on(site: Path, code: list[str], extra: dict[str, str] | None = None) -> Command:
    env = os.environ | {"PYTHONPATH": str(site), "PYTHONPYCACHEPREFIX": str(site.parent / "pyc")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    env |= {"ADEPTML_DISABLE_PLUGINS": ",".join(INSTALLED)} | (extra or {})
    return [sys.executable, "-c", *code], env


def cpu_milliseconds(command: Command) -> float:
    """Run the command; return user and system time of its process."""
    arguments, env = command
    process = subprocess.Popen(arguments, env=env, stdout=subprocess.DEVNULL, cwd="/")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit {process.returncode}: {arguments}")
    return 1000 * (usage.ru_utime + usage.ru_stime)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as root:
        cases = commands(*write_sites(Path(root)))
        times: dict[str, list[float]] = {label: [] for label in cases}
        for i in range(rounds + 1):
            for label, (command, _, _) in cases.items():
                time = cpu_milliseconds(command)
                if i:  # the first round writes the bytecode
                    times[label].append(time)
    for label, (_, bare, target) in cases.items():
        median = statistics.median(times[label])
        ratio = f"{median / statistics.median(times[bare]):5.2f}" if bare else "     "
        goal = f"  (at most {target})" if target else ""
        print(f"{label:38}{median:8.1f} ms {ratio}{goal}")


if __name__ == "__main__":
    main()
