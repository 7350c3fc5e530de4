"""Solvers that misbehave towards the process: each is reported, and the next one follows."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_plugins import HOOK, write_distribution

LIGHT = """
@hookimpl
def adeptml_solvers():
    return [SolverSpec(
        name="{name}", mode="vjp", summary="misbehaves", x=Array("x", ("n",)), y=Array("y", ("n",)),
        forward="{module}:forward", vjp="{module}:vjp", example="{module}:example",
    )]
"""
SOUND = """
import ctypes, os, subprocess, sys, threading, time
import numpy as np

def example(rng, batch):
    return (rng.standard_normal((batch, 4)),)

def forward(x):
    return np.sin(x)

def vjp(x, g):
    return np.cos(x) * g
"""
MISBEHAVIOUR = {
    # name: (source, the check that fails, a part of what is said)
    "raises": (
        "def forward(x): raise RuntimeError('mesh is not closed')",
        "results",
        "raised RuntimeError: mesh is not closed",
    ),
    "hangs": (
        "def vjp(x, g):\n    while True: pass",
        "results",
        "pullback of hangs did not return",
    ),
    "sleeps": ("def vjp(x, g): time.sleep(1000)", "results", "pullback of sleeps did not return"),
    "hangs-in-c": (  # without a moment in which the interpreter could handle a signal
        "def forward(x): sum(range(10**15))",
        "results",
        "could not be interrupted, in fake_hangs_in_c.py:13 (forward)",
    ),
    "import-hangs": ("time.sleep(1000)", "functions", "importing import-hangs did not return"),
    "exits": ("def forward(x): sys.exit(3)", "results", "raised SystemExit: 3"),
    "os-exits": ("def vjp(x, g): os._exit(0)", "results", "ended its process (exit code 0)"),
    "segfaults": (
        "def vjp(x, g): ctypes.string_at(0)",
        "results",
        "segmentation fault, in fake_segfaults.py:13 (vjp)",
    ),
    "import-segfaults": ("ctypes.string_at(0)", "functions", "segmentation fault"),
    "nan": ("def vjp(x, g): return np.full_like(x, np.nan)", "results", "is nan at index [0, 0]"),
    "threads": (
        "def forward(x):\n"
        "    threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "    return np.sin(x)",
        "global-state",
        "changes the running threads",
    ),
    "seterr": (
        "def forward(x):\n    np.seterr(all='ignore')\n    return np.sin(x)",
        "global-state",
        "numpy's error state",
    ),
    "reads-stdin": ("def forward(x): input()", "results", "raised EOFError"),
    "deadlocks": (
        "lock = threading.Lock()\n"
        "def forward(x):\n"
        "    if threading.current_thread() is not threading.main_thread(): lock.acquire()\n"
        "    return np.sin(x)",
        "threads",
        "never come back",
    ),
}
PRINTS = """
def forward(x):
    print("by print")
    os.write(1, b"by the descriptor\\n")
    ctypes.CDLL(None).printf(b"by C\\n")
    ctypes.CDLL(None).fflush(None)
    if len(x) == 64:
        subprocess.run([sys.executable, "-S", "-c", "print('by a child')"], check=True)
    return np.sin(x)
"""
LEAVES_CHILD = """
def forward(x):
    if not os.path.exists("child"):
        child = os.fork()
        if not child:
            time.sleep(1000)
        open("child", "w").write(str(child))
    return np.sin(x)
"""


def write_solver(site: Path, name: str, source: str) -> None:
    """Write a plugin with one solver of that name, sound but for what `source` does."""
    module = f"fake_{name.replace('-', '_')}"
    light = HOOK + LIGHT.format(name=name, module=module)
    write_distribution(
        site,
        f"fake-{name}",
        points={name: f"{module}_light"},
        modules={f"{module}_light": light, module: SOUND + source},
    )


def check(site: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run ``adeptml plugins check`` as people do."""
    return subprocess.run(
        [sys.executable, "-m", "adeptml_core", "plugins", "check", *arguments],
        env=os.environ | {"PYTHONPATH": str(site)},
        cwd=site,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_whatever_a_solver_does_is_reported_and_the_next_one_follows(tmp_path: Path) -> None:
    """Raise, hang, exit, crash, start threads: a finding each, in one run; a sound one passes."""
    for name, (source, _, _) in MISBEHAVIOUR.items():
        write_solver(tmp_path, name, source)
    write_solver(tmp_path, "sound", "")
    result = check(tmp_path, *MISBEHAVIOUR, "sound", "--json", "--limit", "2")
    assert result.returncode == 1, result.stderr
    solvers = {solver["name"]: solver for solver in json.loads(result.stdout)["solvers"]}
    assert list(solvers) == [*MISBEHAVIOUR, "sound"]
    for name, (_, wanted, said) in MISBEHAVIOUR.items():
        failed = {c["id"]: c for c in solvers[name]["checks"] if c["status"] == "failed"}
        assert list(failed) == [wanted], name
        assert said in failed[wanted]["message"]
        assert failed[wanted]["data"]["diagnosis"] == "contract"
    assert solvers["sound"]["verdict"] == "passed"


def test_what_was_found_before_a_crash_stands(tmp_path: Path) -> None:
    """A solver that crashes in large batches only: what passed before has passed."""
    write_solver(tmp_path, "late", "def vjp(x, g):\n    return g if len(x) < 64 else os._exit(7)")
    checks = json.loads(check(tmp_path, "late", "--json").stdout)["solvers"][0]["checks"]
    status = {c["id"]: c["status"] for c in checks}
    assert (status["example"], status["results"], status["threads"]) == (
        "passed",
        "failed",
        "skipped",
    )


def test_what_a_solver_prints_is_kept_apart(tmp_path: Path) -> None:
    """By print, by descriptor, from C, by a child: stdout is JSON, the report holds the output."""
    write_solver(tmp_path, "prints", PRINTS)
    result = check(tmp_path, "prints", "--json")
    solver = json.loads(result.stdout)["solvers"][0]
    assert (solver["verdict"], result.returncode, result.stderr) == ("passed", 0, "")
    for road in ("by print", "by the descriptor", "by C", "by a child"):
        assert road in solver["output"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_children_end_with_the_examination(tmp_path: Path) -> None:
    """A child that a solver forks neither holds the command up nor outlives it."""
    write_solver(tmp_path, "forks", LEAVES_CHILD)
    assert check(tmp_path, "forks", "--json").returncode == 0
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if _is_gone(child):
            return
        time.sleep(0.1)
    pytest.fail(f"process {child} outlived the command")


def _is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().split()[2] == "Z"  # dead, and nobody waits for it
