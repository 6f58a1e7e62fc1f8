"""Poisson with `given: potential`: the forward map is the Laplacian, whose inverse a network learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numeric_cases import built, relative

from plugins.poisson import PLUGIN, PoissonParameters, SmoothNoiseOptions
from toolkit import ScenarioError, load_scenario
from toolkit.physics.grid import Grid
from toolkit.physics.layout import Layout
from toolkit.physics.rollout import Rollout
from toolkit.scenario.describe import describe
from toolkit.scenario.load import scenario_from_text

SCENARIO = Path(__file__).parents[2] / "scenarios" / "poisson_hig_adam.yaml"
GRID = Grid({"x": 8, "y": 8}, {"x": 8.0, "y": 8.0}, dict.fromkeys(("x-", "x+", "y-", "y+"), "zero"))
GIVEN = PoissonParameters(given="potential")
TEXT = """
name: case
grid: {cells: {x: 4, y: 4}, extent: {x: 4, y: 4}, boundary: zero}
pde: {type: poisson, given: potential}
controls: {potential_found: {acts_on: initial.potential}}
data: {type: smooth_noise, validation: 3}
networks: {inverse: {type: mlp, layers: [3], input: target, output: potential_found}}
loss: {type: l2, on: final.source}
update: {type: dp, optimizer: {type: sgd, learning_rate: 0.01}}
train: {steps: 1, batch_size: 2}
"""


def matrix() -> np.ndarray:
    line = -2 * np.eye(8) + np.eye(8, k=1) + np.eye(8, k=-1)
    return np.kron(line, np.eye(8)) + np.kron(np.eye(8), line)


def sources(backend, potential: np.ndarray) -> np.ndarray:
    layout = Layout((), dict(GRID.cells))
    roll = Rollout(backend, PLUGIN.build(GRID, GIVEN), {"source": layout, "potential": layout}, {}, 1, 1.0)

    def run(y: Any) -> Any:
        return roll({"source": 0 * y, "potential": y}).final["source"]

    y = backend.array(potential)
    return backend.numpy(backend.compile(run, y)(y))


def test_the_map_is_the_published_matrix(backend):
    columns = sources(backend, np.eye(64).reshape(64, 8, 8)).reshape(64, 64).T
    assert np.max(np.abs(columns - matrix())) < 1e-14
    eigenvalues = np.linalg.eigvalsh(columns)
    # Reference digits.
    assert eigenvalues[[0, -1]] == pytest.approx([-7.75877, -0.241230], abs=5e-6)
    assert eigenvalues[0] / eigenvalues[-1] == pytest.approx(32.1634, abs=5e-5)


def test_the_zero_predictor_has_the_reference_loss(backend):
    drawn = PLUGIN.samplers["smooth_noise"].sample(GRID, GIVEN, SmoothNoiseOptions(), np.random.default_rng(0), 4000)
    assert set(drawn) == {"initial.potential"}
    y = sources(backend, drawn["initial.potential"])
    loss = 0.5 * np.sum(y**2, axis=(1, 2))
    # Reference over 20 000 samples: 113.2; four standard errors of 4000. PhiFlow's own noise gave 112.3.
    assert np.mean(loss) == pytest.approx(113.2, abs=4 * np.std(loss) / 4000**0.5)
    assert np.sqrt(np.mean(y**2)) == pytest.approx(1.881, abs=0.01)


def test_targets_are_the_laplacian_of_the_samples(backend):
    case = built(TEXT, backend)
    truth = backend.numpy(case.validation.references["initial.potential"])
    line = -2 * np.eye(4) + np.eye(4, k=1) + np.eye(4, k=-1)
    expected = line @ truth + truth @ line
    assert relative(backend.numpy(case.validation.targets["final.source"]), expected) < 1e-14
    monitors = {monitor.name for monitor in case.problem.monitors}
    assert monitors == {"residual"}


def test_inverse_solvers_of_the_other_direction_are_refused():
    with pytest.raises(ScenarioError, match=r"finds initial\.source, not initial\.potential"):
        scenario_from_text(TEXT.replace("type: dp", "type: sip, inverse_solver: laplacian"))


def test_the_shipped_scenario_has_the_published_sizes():
    described = describe(load_scenario(SCENARIO))
    assert described.trained == 24896
    assert described.jacobian is not None
    assert (described.jacobian.rows, described.jacobian.columns) == (4096, 24896)
