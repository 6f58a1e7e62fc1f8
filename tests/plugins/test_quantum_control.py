"""The published closed-loop control of a quantum particle: sizes, the uncontrolled loss, and its plateau."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numeric_cases import Case, case_of, updated

from toolkit import load_scenario
from toolkit.core.architecture import count_parameters
from toolkit.core.backend import using
from toolkit.scenario.build import architectures
from toolkit.scenario.layouts import observation_layout

CONTROL = Path(__file__).parents[2] / "scenarios" / "quantum_control.yaml"


def control_case(backend, **overrides: Any) -> Case:
    """The published closed loop with 8 samples, whose untrained controller does nothing."""
    keys = {"data.train": 8, "data.validation": 8, "networks.controller.zero_output": True, **overrides}
    return case_of(load_scenario(CONTROL, {"run.precision": "float64", **keys}).sections, backend)


def uncontrolled(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """(loss per sample, Σ|ψ|² (B, 128)) of the closed loop."""
    problem, batch, b = case.problem, case.validation, case.problem.backend

    def run(context: Any) -> Any:
        y = problem.observe({}, context, problem.policy(case.params, {}))
        return problem.loss(y, batch.targets), y["trajectory.psi"]

    loss, psi = b.compile(run, batch.context)(batch.context)
    return b.numpy(loss), np.sum(b.numpy(psi).astype(float) ** 2, axis=(2, 3))


def test_without_a_control_the_loss_is_the_number_of_states(backend):
    """The levels keep their populations: no part of levels 1 and 2 ever overlaps the target."""
    loss, norms = uncontrolled(control_case(backend, **{"data.target_levels": [5]}))
    assert loss == pytest.approx(np.full(8, 128.0), abs=1e-12)
    # Rounding over 128 steps; measured 3.5e-14.
    assert np.max(np.abs(norms - 1)) < 1e-13


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_in_single_precision_the_norm_drifts_by_a_few_hundred_thousandths(name):
    with using(name, "cpu", "float32", "float32") as b:
        loss, norms = uncontrolled(control_case(b, **{"run.precision": "float32"}))
    assert loss == pytest.approx(np.full(8, 128.0), abs=1e-4)
    # Measured 3.5e-5: the condition of the solve's basis, 17, times single rounding over 128 steps.
    assert 1e-6 < np.max(np.abs(norms - 1)) < 1e-4


def test_published_sizes_of_the_closed_loop():
    sections = load_scenario(CONTROL).sections
    assert sections.data is not None
    assert sections.grid is not None
    assert sections.grid.dx == pytest.approx((2 / 33,), rel=1e-15)
    assert not sections.data.shuffle
    architecture = architectures(sections)["controller"]
    assert count_parameters(architecture) == 11_701
    assert (architecture.input_shape, architecture.output_shape) == ((2, 32), (1,))
    assert observation_layout(sections, "trajectory.psi").shape == (128, 32, 2)


def test_a_controller_that_starts_at_zero_never_learns(backend):
    """Without any overlap with the target |⟨a, ψ⟩|² is flat: why the published output layer is drawn."""
    found = {
        zero: updated(
            control_case(backend, **{"networks.controller.zero_output": zero, "time.steps": 20, "update.flow": "full"})
        )
        for zero in (True, False)
    }
    assert found[True]["loss"][""] == pytest.approx(8 * 20, abs=1e-10)
    assert max(np.max(np.abs(value)) for value in found[True]["direction"].values()) < 1e-11
    assert 8 * 19 < found[False]["loss"][""] < 8 * 20 - 1e-3
    assert min(np.max(np.abs(value)) for value in found[False]["direction"].values()) > 1e-6
