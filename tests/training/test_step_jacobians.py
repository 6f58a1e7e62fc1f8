"""∂y/∂x from the Jacobians of all steps at once, against backward passes through the rollout, and where it is taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from jacobian_cases import CHAIN, DRIVE, HEAT, SOLVE, TEXTS, WELL, case_named, network, outputs, reference
from numeric_cases import Case, built, relative, updated
from whole_runs import register

from toolkit.core.backend import Backend, using
from toolkit.physics.layout import Layout
from toolkit.training import batch_jacobian, step_jacobians
from toolkit.training.half_inversion import HalfInverseRule

LONG = "time: {steps: 12, dt: 0.2}"
HEATED = HEAT.replace("hot_rectangles", "rectangle_pairs").replace("data:", "time: {steps: 9, dt: 0.3}\ndata:")
BURGERS = (
    """
name: case
grid: {cells: {x: 6}, extent: {x: 1}}
pde: {type: burgers, viscosity: 0.003, scheme: SCHEME}
time: {steps: 9, dt: 0.02}
data: {type: wave_pairs, modes: 2, validation: 3}
loss: {type: l2, on: final.velocity}
controls: {push: {acts_on: force.velocity}}
update: {type: hig, optimizer: {type: sgd, learning_rate: 0.1}}
train: {steps: 2, batch_size: 3}
"""
    + f"networks: {{f: {network(output='push')}}}"
)
OTHERS: dict[str, str] = {
    "complex state": WELL.replace("time: {steps: 5, dt: 0.2}", LONG),
    "spectral steps": HEATED
    + f"controls: {{u: {{acts_on: force.temperature}}}}\nnetworks: {{f: {network(output='u')}}}",
    "semi-Lagrangian steps": BURGERS.replace("SCHEME", "semi_lagrangian"),
    "start alone": CHAIN
    + f"controls: {{s: {{acts_on: initial.state}}}}\nnetworks: {{f: {network('[3]', output='s')}}}",
    "controls themselves": CHAIN + "controls: {drive: {acts_on: force.drive, initial: 0.1}}",
}


@pytest.fixture
def backend() -> Iterator[Backend]:
    with using("torch", "cpu", "float64", "float64") as active:
        yield active


@pytest.fixture(autouse=True)
def _few_steps_suffice(monkeypatch):
    register(monkeypatch, "pdes", screened="jacobian_cases:SCREENED")
    monkeypatch.setattr(step_jacobians, "FEWEST_STEPS", 2)


def map_of(case: Case) -> Any:
    """y(θ) as the rule takes it."""
    x, _ = case.problem.predict(case.params, case.buffers, case.validation, training=True)
    rule = case.trainer.rule
    assert isinstance(rule, HalfInverseRule)
    return rule.observed(case.problem, case.buffers, case.validation, x)


def jacobian(of: Any, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """(y, J), J (B, d, n) of the controls themselves."""
    b = case.problem.backend
    direct = batch_jacobian.only_controls(case.params)
    y, j = batch_jacobian.control_blocks(of, case.params) if direct else batch_jacobian.jacobian(of, case.params, 3)
    return b.numpy(y), b.numpy(j)


@pytest.mark.parametrize("name", ["force per step", "two networks"])
def test_steps_give_the_jacobian_of_one_backward_pass_per_row(backend, name):
    case = case_named(name, backend)
    of = map_of(case)
    assert of.outer_rows is not None
    y, j = jacobian(of, case)
    # Orders of float64 sums.
    assert relative(j, reference(name)[0]) < 1e-12
    assert relative(y, backend.numpy(outputs(case, case.params))) < 1e-13


@pytest.mark.parametrize("name", OTHERS)
def test_steps_give_what_pullbacks_through_the_rollout_give(backend, name):
    case = built(OTHERS[name], backend)
    of = map_of(case)
    assert of.outer_rows is not None
    y, j = jacobian(of, case)
    y_plain, j_plain = jacobian(replace(of, outer_rows=None), case)
    # Orders of float64 sums.
    assert relative(y, y_plain) < 1e-13
    assert relative(j, j_plain) < 1e-12
    assert np.abs(j_plain).max() > 0


def test_the_rule_gives_the_same_direction_and_loss(backend, monkeypatch):
    case = built(OTHERS["complex state"], backend)
    found = updated(case)
    monkeypatch.setattr(step_jacobians, "FEWEST_STEPS", 1000)
    plain = updated(case)
    # Rounding times the condition number of what is kept, 1e6 at most, of a Gram matrix.
    assert relative(found["direction"]["f/out.weight"], plain["direction"]["f/out.weight"]) < 1e-6
    assert float(found["loss"][""]) == pytest.approx(float(plain["loss"][""]), rel=1e-13)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (SOLVE, "steps are not traced"),
        (TEXTS["network at every step"], "the state decides the force"),
        (TEXTS["one number per sample"], "a parameter acts at every step"),
    ],
)
def test_other_problems_are_left_to_pullbacks(backend, text, why):
    case = built(text, backend)
    assert map_of(case).outer_rows is None, why


def test_trajectories_few_steps_little_memory_and_programs_of_jax_are_left_to_pullbacks(backend, monkeypatch):
    problem = case_named("force per step", backend).problem
    keys = ("force.drive",)
    assert step_jacobians.applies(problem, keys, 3)
    judged = replace(problem, observations={"trajectory.state": Layout(("x1", "x2", "v1", "v2"), steps=6)})
    assert not step_jacobians.applies(judged, keys, 3)
    # 8 bytes of 3 samples, 6 steps, 4 x 5.
    monkeypatch.setattr(step_jacobians, "MEMORY", 8 * 3 * 6 * 4 * 5 - 1)
    assert not step_jacobians.applies(problem, keys, 3)
    monkeypatch.setattr(step_jacobians, "MEMORY", 8 * 3 * 6 * 4 * 5)
    assert step_jacobians.applies(problem, keys, 3)
    monkeypatch.setattr(step_jacobians, "FEWEST_STEPS", 7)
    assert not step_jacobians.applies(problem, keys, 3)
    monkeypatch.setattr(step_jacobians, "FEWEST_STEPS", 2)
    with using("jax", "cpu", "float64", "float64") as jax:
        other = built(CHAIN + DRIVE + f"networks: {{f: {network('[4, 3]')}}}", jax).problem
        assert not step_jacobians.applies(other, keys, 3)
