"""The rotation toy: its gradient is θ, its physics flow θ + k (θ₂, −θ₁), and what optimizers make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from closed_loops import FLOWS, direction
from numeric_cases import case_of

from toolkit.scenario.load import load_scenario

SCENARIO = Path(__file__).parents[2] / "scenarios" / "rotation.yaml"
ITERATIONS = {
    "G": {59: 0.002, 72: 0.010, 200: 0.0},
    "M": {35: 0.845, 60: 3.75, 83: 1.13, 107: 3.92, 128: 1.65, 154: 4.88, 175: 2.49, 200: 6.22},
    "C": {37: 0.486, 56: 1.11, 83: 0.131, 101: 0.395, 121: 0.057, 155: 0.030, 187: 0.019, 200: 0.067},
}
"""|θ|² after so many steps of Adam with learning rate 0.1 from (2, 4)."""


def case_with(backend, **overrides):
    keys = {name.replace("__", "."): value for name, value in overrides.items()}
    return case_of(load_scenario(SCENARIO, keys).sections, backend)


@pytest.mark.parametrize(("strength", "dt"), [(2.0, 1.0), (-0.5, 0.1)])
def test_directions_are_those_of_the_closed_form(backend, strength, dt):
    """Whatever the length of a step: its number counts."""
    case = case_with(backend, pde__strength=strength, time__dt=dt)
    for theta in ((2.0, 4.0), (2.3, -4.1), (0.0, 1.0)):
        turned = strength * np.array([theta[1], -theta[0]])
        # Without the path from state to state only the last control is left.
        expected = {"G": np.array(theta), "M": theta + turned, "S": turned}
        for name, flow in FLOWS.items():
            value, found = direction(case, flow)(theta)
            # A handful of products; θ₁θ₂ − θ₂θ₁ is exactly 0.
            assert value == pytest.approx(0.5 * (theta[0] ** 2 + theta[1] ** 2), rel=1e-15)
            assert found == pytest.approx(expected[name], abs=2e-15), (name, theta)


@pytest.mark.parametrize(("name", "flow"), [("G", "full"), ("M", "physics"), ("C", "combined")])
def test_adam_takes_the_published_way(backend, name, flow):
    """The gradient arrives, the physics flow circles ever further out, the combined one comes in slowly."""
    case = case_with(backend, update__flow=flow)
    state, losses = case.trainer.start(case.params, case.buffers), []
    for k in range(201):
        state, record = case.trainer.step(state, case.batches(k))
        losses.append(2 * float(record["train_loss"]))
    for k, expected in ITERATIONS[name].items():
        # Half a unit of the last digit printed: three digits at most, three behind the point.
        assert losses[k] == pytest.approx(expected, abs=6e-4 if expected < 1 else 6e-3), k


def test_after_three_steps_the_memory_stays(backend):
    case = case_with(backend, time__steps=6)
    found = case.problem.simulate({}, case.validation.context, case.problem.policy(case.params, {}), record=True)
    memory = backend.numpy(found.states["memory"])[0]
    assert memory.tolist() == [[2, 0, 0], [2, 4, 0], *[[2, 4, 0]] * 4]
    observed = backend.numpy(found.states["observation"])[0]
    assert observed[:3].tolist() == [[0, 1], [4, -2], [2, 4]]
