"""Small scenarios that tests run from start to end, and three ways to run them: Python, command line, process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr

PHINVERSE = Path(sys.executable).with_name("phinverse")
PATIENCE = 120.0
"""Seconds to wait for a process; it starts in about three and works for less than ten."""

BACKENDS = ("torch", "jax")
DP = ("type: sip\n  inverse_solver: damped_spectral", "type: dp")
"""Differentiable physics in place of SIP."""

HEAT = """\
name: heat
description: A small inverse problem of the heat equation.
references: [a paper]
grid: {cells: {x: 8, y: 8}, extent: {x: 64, y: 64}}
pde: {type: heat, diffusivity: 8.0}
controls:
  initial_temperature: {acts_on: initial.temperature}
data: {type: hot_rectangles, validation: 5, seed: 1}
networks:
  estimator: {type: conv_net, layers: [3], output: initial_temperature}
loss: l2
update:
  type: sip
  inverse_solver: damped_spectral
  optimizer: {type: adam, learning_rate: 1e-3}
train: {steps: 4, batch_size: 2, validate_every: 2, checkpoint_every: 2}
run: {backend: torch, device: cpu, precision: float64}
output: {samples: 3, plots: false}
"""
"""A network under SIP."""

DIRECT = """\
name: direct
description: Each sample's initial temperature, optimised itself.
grid: {cells: {x: 8, y: 8}, extent: {x: 64, y: 64}}
pde: {type: heat, diffusivity: 8.0}
controls:
  initial_temperature: {acts_on: initial.temperature, initial: 0.0}
data: {type: hot_rectangles, validation: 3, seed: 1}
loss: l2
update:
  type: sip
  inverse_solver: damped_spectral
  optimizer: {type: sgd, learning_rate: 1.0}
train: {steps: 4, validate_every: 2, checkpoint_every: 2}
run: {backend: torch, device: cpu, precision: float64}
output: {plots: false}
"""
"""Direct optimisation with data."""

WAVE = """\
name: wave
description: A cosine that decays at a known rate.
grid: {cells: {x: 8, y: 8}, extent: {x: 64, y: 64}}
pde: {type: heat, diffusivity: 8.0}
time: {steps: 6, dt: 0.5}
data: {type: cosine, validation: 2}
run: {backend: torch, device: cpu, precision: float64}
output: {plots: false}
"""
"""A plain simulation."""


def write_scenario(folder: Path, text: str, *changes: tuple[str, str]) -> Path:
    """The scenario as a file of its name, pieces of its text replaced; every piece has to be there."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path = folder / f"{text.partition('name: ')[2].partition(chr(10))[0]}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def execute(path: Path | str, out: Path, overrides: dict[str, Any] | None = None, name: str = "it") -> Any:
    """`toolkit.run` of a scenario file."""
    import toolkit

    return toolkit.run(toolkit.load_scenario(path, overrides or {}), out=out, name=name)


def cli(*arguments: Any) -> Any:
    """Result (exit_code, stdout, stderr) of the command line in this process; a bug is raised."""
    from typer.testing import CliRunner

    from typer_cli import app

    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert "Traceback" not in result.stderr + result.stdout
    return result


def process(*arguments: Any) -> subprocess.Popen[str]:
    """The installed command, started as its own process."""
    command = [str(PHINVERSE), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(running: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process."""
    out, err = running.communicate(timeout=PATIENCE)
    return running.returncode, out, err


def recorded_steps(run: Path) -> list[int]:
    """Steps of the whole lines in `metrics.jsonl`."""
    lines = run / "metrics.jsonl"
    text = lines.read_text(encoding="utf-8") if lines.exists() else ""
    return [json.loads(line)["step"] for line in text.split("\n")[:-1]]


def wait_for_step(running: subprocess.Popen[str], run: Path, step: int) -> None:
    """Wait until the run has recorded this step."""
    deadline = time.monotonic() + PATIENCE
    while not any(done >= step for done in recorded_steps(run)):
        if running.poll() is not None or time.monotonic() > deadline:
            running.kill()
            raise AssertionError(f"no step {step}: {running.communicate()}")
        time.sleep(0.005)


def status(run: Path) -> dict[str, Any]:
    """`run.json`."""
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def files(folder: Path) -> set[str]:
    """All files below a folder."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def decaying_waves(path: Path, dt: float) -> Path:
    """Samples of the heat equation with diffusivity 8 in closed form: waves of amplitudes 1, 2, 3."""
    wave = np.cos(2 * np.pi * (np.arange(8) + 0.5) / 8)[:, None] * np.ones(8)
    samples = np.stack([wave, 2 * wave, 3 * wave])
    decay = np.exp(-8.0 * dt * (2 * np.pi / 64) ** 2)
    dims = ("sample", "x", "y")
    given = {"initial_temperature": (dims, samples), "temperature_target": (dims, decay * samples)}
    xr.Dataset(given).to_netcdf(path)
    return path


def half_sum(difference: xr.DataArray) -> xr.DataArray:
    """½ Σ difference² per sample and step."""
    return 0.5 * (difference**2).sum([d for d in difference.dims if d not in ("sample", "step")])


def assert_compliant(*runs: Path) -> None:
    """The public checker finds no fault in the datasets of these runs."""
    paths = [str(run / name) for run in runs for name in ("fields.nc", "metrics.nc")]
    checker = Path(sys.executable).with_name("compliance-checker")
    done = subprocess.run([checker, "--test=cf:1.11", *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("All tests passed!") == len(paths), done.stdout


def samples_file(path: Path, count: int = 3, cells: dict[str, int] | None = None, **variables: tuple[str, ...]) -> Path:
    """A netCDF file of zeros: each variable along `sample` and the dimensions given, `component` of length 2."""
    sizes = {"sample": count, "component": 2, **(cells or {})}
    with netCDF4.Dataset(path, "w") as dataset:
        for dim, size in sizes.items():
            dataset.createDimension(dim, size)
        for name, dims in variables.items():
            dataset.createVariable(name, "f8", ("sample", *dims))[...] = 0.0
    return path


def register(monkeypatch: Any, group: str, **plugins: str) -> None:
    """Register plugins beside the installed ones for one test: name -> `module:object`."""
    from importlib.metadata import EntryPoint

    from toolkit.core import registry

    installed = registry.available
    added = {name: EntryPoint(name, value, f"phinverse.{group}") for name, value in plugins.items()}
    monkeypatch.setattr(registry, "available", lambda g: installed(g) | (added if g == group else {}))
