"""Poisson: monitors of the solve, and sources that have no potential are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from phiml import math
from phiml.math import batch, spatial
from poisson_cases import LEARNED, PAPER, box, pde, problem, sources

import toolkit
from plugins.poisson import PLUGIN, PoissonParameters
from toolkit.core.errors import DivergenceError, ScenarioError
from toolkit.physics.grid import Grid
from toolkit.runs import monitors
from toolkit.scenario import check_samples
from toolkit.scenario.load import scenario_from_text


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """PhiML computes in double precision where no backend is asked for."""
    with math.precision(64):
        yield


def test_boundary_values_are_refused():
    text = LEARNED.format(update="dp", boundary="{x: zero, y: {lower: 1.0, upper: zero}}")
    with pytest.raises(ScenarioError, match="boundary"):
        scenario_from_text(text)


def monitor(grid: Grid, name: str) -> Any:
    return next(m for m in PLUGIN.monitors(PoissonParameters(), grid) if m.name == name)


def test_monitor_sees_a_wrong_potential_but_no_mean():
    grid = box(("periodic", "zero_gradient"))
    x = math.tensor(sources(grid), batch("sample"), spatial("x,y"))
    solution = {"source": x, "potential": pde(grid).solve(x)}
    start = {"source": x, "potential": 0 * x}
    residual = monitor(grid, "residual").measure
    assert np.all(residual(start, solution).numpy("sample") < 1e-13)
    assert np.all(residual(start, start).numpy("sample") == 0)
    wrong = {"source": x, "potential": 1.5 * solution["potential"]}
    assert np.allclose(residual(start, wrong).numpy("sample"), 0.5, rtol=1e-12)
    shifted = {"source": x + 2, "potential": solution["potential"]}
    assert np.all(residual(start, shifted).numpy("sample") < 1e-12)


def test_monitor_judges_the_mean_of_a_given_source_alone():
    """Before the first step the source is given; afterwards, and so in training, it may be a prediction."""
    grid = box(("periodic", "zero_gradient"))
    x = math.tensor(sources(grid) + 2, batch("sample"), spatial("x,y"))
    start, solution = {"source": x, "potential": 0 * x}, {"source": x, "potential": pde(grid).solve(x)}
    rms = np.sqrt(np.mean((sources(grid) + 2) ** 2, axis=(1, 2)))
    measure = monitor(grid, "mean_source").measure
    assert np.allclose(measure(start, start).numpy("sample"), 2 / rms, rtol=1e-12)
    assert np.all(measure(start, solution).numpy("sample") == 0)
    assert [m.name for m in PLUGIN.monitors(PoissonParameters(), PAPER)] == ["residual"]


SIMULATED = """
name: sim
grid: {{cells: {{x: 8}}, extent: {{x: 16}}, boundary: periodic}}
pde: poisson
data: {{type: file, path: {path}, validation: 2}}
run: {{precision: float64}}
output: {{plots: false}}
"""


def simulated(folder: Path, x: np.ndarray) -> Path:
    xr.Dataset({"initial_source": (("sample", "x"), x)}).to_netcdf(folder / "sources.nc")
    path = folder / "sim.yaml"
    path.write_text(SIMULATED.format(path=folder / "sources.nc"), encoding="utf-8")
    return path


def test_given_sources_without_a_mean_are_simulated(tmp_path):
    x = np.random.default_rng(0).standard_normal((3, 8))
    path = simulated(tmp_path, x - x.mean(1, keepdims=True))
    run = toolkit.run(toolkit.load_scenario(path), out=tmp_path)
    with run.stored:
        assert float(run.metrics.residual.max()) < 1e-12


def test_given_sources_with_a_mean_are_refused_where_they_have_no_potential(tmp_path, monkeypatch):
    monkeypatch.setattr(check_samples, "BLOCK", 8 * 8)  # one sample at a time
    x = np.random.default_rng(0).standard_normal((3, 8))
    x -= x.mean(1, keepdims=True)
    x[2] += 0.5
    path = simulated(tmp_path, x)
    with pytest.raises(ScenarioError) as caught:
        toolkit.load_scenario(path)
    assert f"{path}:5:26: data.path: sources.nc, sample 2: initial_source: its mean is 0.5" in str(caught.value)
    assert "subtract the mean, or set grid.boundary: zero on a side" in str(caught.value)
    toolkit.load_scenario(path, {"grid.boundary": "zero"})


START = """
name: start
grid: {cells: {x: 4}}
pde: poisson
controls: {charge: {acts_on: initial.source, initial: [1, -1, 1, 0]}}
"""


def test_a_start_value_with_a_mean_is_refused_where_nothing_will_change_it():
    with pytest.raises(ScenarioError, match=r"5:55: controls.charge.initial: its mean is 0.25, 0.29 of its rms"):
        scenario_from_text(START)
    scenario_from_text(START.replace("0]", "-1]"))
    scenario_from_text(START, {"grid.boundary": "zero"})
    learned = {"data": {"type": "smooth_noise"}, "loss.on": "final.potential", "loss.type": "l2"}
    update = {"type": "sip", "inverse_solver": "laplacian", "optimizer": {"type": "sgd", "learning_rate": 1.0}}
    scenario_from_text(START, {**learned, "data.scale": 2.0, "update": update})


@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_monitor_of_the_mean_fails_a_run_that_nobody_checked(backend, mean):
    x = np.random.default_rng(0).standard_normal((1, 8))
    made = problem(backend, Grid({"x": 8}, {"x": 16.0}))
    made = replace(made, monitors=PLUGIN.monitors(PoissonParameters(), made.grid))
    start = made.initial_state({"initial.source": backend.array(x - x.mean() + mean)}, {})
    measured = {key: float(value) for key, value in monitors.measure(made, start, start).items()}
    if mean:
        with pytest.raises(DivergenceError, match=r"relative mean of the given source .* change data"):
            monitors.check(made, measured, "time step 0")
    else:
        monitors.check(made, measured, "time step 0")
