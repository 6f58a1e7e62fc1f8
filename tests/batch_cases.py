"""Scenarios and plugins for tests of batches: small members, and plugins that break in the processes of a batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from whole_runs import status

from toolkit.core import registry

PARABOLA = """\
name: parabola
description: Gradient descent from (3, 3).
pde: parabola
controls:
  x: {acts_on: initial.x, initial: [3.0, 3.0]}
loss: {type: squared_norm, on: final.y}
update: {type: dp, optimizer: {type: sgd, learning_rate: 0.01}}
train: {steps: 4, validate_every: 2, checkpoint_every: 2}
run: {backend: torch, device: cpu, precision: float64}
output: {plots: false}
"""

PLUGINS = """\
import os, signal
from dataclasses import replace
from plugins.parabola import PLUGIN

class Bug:
    def step(self, state, inputs, t, dt):
        raise ZeroDivisionError("a bug in a plugin")

class Crash:
    def step(self, state, inputs, t, dt):
        print("these were its last words", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)

bug = replace(PLUGIN, name="bug", build=lambda grid, parameters: Bug(), traceable=False)
crash = replace(PLUGIN, name="crash", build=lambda grid, parameters: Crash(), traceable=False)
"""


def install_plugins(folder: Path, monkeypatch: Any) -> None:
    """Install the PDEs `bug`, `crash` and `absent` (cannot be imported) for this process and those that it starts."""
    site = folder / "site"
    about = site / "broken_plugins-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugins\nVersion: 1.0\n")
    points = ("bug = broken_plugins:bug", "crash = broken_plugins:crash", "absent = not_there_at_all:PLUGIN")
    (about / "entry_points.txt").write_text("[phinverse.pdes]\n" + "\n".join(points) + "\n")
    (site / "broken_plugins.py").write_text(PLUGINS)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.syspath_prepend(str(site))
    registry.refresh()
    # The registry of this process must not remember them when the test is over.
    monkeypatch.setattr(registry, "available", registry.available.__wrapped__)


def members(folder: Path) -> dict[str, Path]:
    """Directories with a run below a folder, by the folder's name."""
    return {path.parent.name: path.parent for path in sorted(folder.rglob("run.json"))}


def statuses(folder: Path) -> list[str]:
    """What became of the runs below a folder, sorted."""
    return sorted(status(path)["status"] for path in members(folder).values())


def assert_same_results(one: Path, other: Path) -> None:
    """Two runs have the same numbers, bit for bit, but for the times it took."""
    for name in ("metrics.nc", "fields.nc"):
        with xr.open_dataset(one / name) as a, xr.open_dataset(other / name) as b:
            assert set(a.variables) == set(b.variables)
            for variable in set(a.variables) - {"wall_seconds", "step_seconds"}:
                np.testing.assert_array_equal(a[variable].values, b[variable].values, err_msg=f"{name}: {variable}")


def forget_plugins() -> None:
    """Drop the module that a test has installed."""
    sys.modules.pop("broken_plugins", None)
