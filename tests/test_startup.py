"""Help answers at once, and checking a scenario loads no array library."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from whole_runs import HEAT, PHINVERSE, WAVE, write_scenario

ARRAYS = {"torch", "jax", "jaxlib", "equinox", "optax"}
HEAVY = ARRAYS | {"phi", "phiml", "xarray", "netCDF4", "matplotlib", "numpy", "scipy"}
FLOOR = "import typer, pydantic, yaml, rich"
"""What any command line of this kind imports."""
ROUNDS = 7

LOADED = """
import sys
from typer.testing import CliRunner
import typer_cli
result = CliRunner().invoke(typer_cli.app, sys.argv[1:], catch_exceptions=False)
assert result.exit_code == 0, result.output
print(*sorted({name.partition('.')[0] for name in sys.modules}))
"""


def loaded(*arguments: str) -> set[str]:
    """Top-level modules after a command, run in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("command", [(), ("run",), ("validate",), ("plot",)])
def test_help_loads_nothing_heavy(command):
    assert not loaded(*command, "--help") & HEAVY


def test_checking_a_scenario_loads_no_array_library(tmp_path):
    path = str(write_scenario(tmp_path, HEAT))
    assert not loaded("validate", path) & (ARRAYS | {"xarray", "matplotlib"})
    assert not loaded("run", path, "--dry-run") & (ARRAYS | {"xarray", "matplotlib"})


@pytest.mark.parametrize("command", [("list",), ("list", "pdes"), ("schema",), ("list", "scenarios")])
def test_looking_around_loads_no_array_library(command):
    assert not loaded(*command) & ARRAYS


def test_running_on_one_backend_does_not_load_the_other(tmp_path):
    path = str(write_scenario(tmp_path, WAVE))
    out = ("--out", str(tmp_path), "--steps", "1")
    assert "jax" not in loaded("run", path, "--backend", "torch", *out)
    assert "torch" not in loaded("run", path, "--backend", "jax", *out)


def seconds(command: list[str]) -> float:
    """Processor time of a process, which other work on the machine changes less than the clock."""
    before = os.times()
    subprocess.run(command, capture_output=True, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_help_takes_little_longer_than_the_imports_of_any_command_line():
    floor, own, wall = [], [], []
    for _ in range(ROUNDS):
        floor.append(seconds([sys.executable, "-c", FLOOR]))
        start = time.perf_counter()
        own.append(seconds([str(PHINVERSE), "--help"]))
        wall.append(time.perf_counter() - start)
    # Side by side and the best of several: what remains is the programs' own work.
    assert min(own) <= 2.5 * min(floor), f"{min(own):.2f} s of {min(floor):.2f} s, on the clock {min(wall):.2f} s"
