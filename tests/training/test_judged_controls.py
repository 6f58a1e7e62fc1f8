"""Losses on controls themselves (`on: force.<name>`): values, gradients, and what validation says."""

from __future__ import annotations

import numpy as np
import pytest
from numeric_cases import built, tree_relative, updated

from toolkit.core.errors import ScenarioError
from toolkit.scenario.load import scenario_from_text

CHAIN = """
name: case
pde: {type: oscillators, cubic_coupling: 1.0}
time: {steps: 4, dt: 0.3}
controls: {drive: {acts_on: force.drive}}
data: {type: uniform, validation: 3}
networks: {f: {type: mlp, layers: [4], activation: tanh, output: drive}}
loss:
  - {type: l2, on: final.state}
  - {type: mean_square, on: force.drive, weight: 0.7}
update: {type: dp, optimizer: {type: sgd, learning_rate: 1.0}}
train: {steps: 2, batch_size: 3}
run: {precision: float64}
"""
LOOP = CHAIN.replace("output: drive}}", "output: drive, every_step: true, input: [state, target]}}")
DIRECT = CHAIN.replace(
    "controls: {drive: {acts_on: force.drive}}", "controls: {drive: {acts_on: force.drive, initial: 0.3}}"
).replace("networks: {f: {type: mlp, layers: [4], activation: tanh, output: drive}}\n", "")
HEAT = """
name: case
grid: {cells: {x: 8}, extent: {x: 8}}
pde: {type: heat, diffusivity: 0.05}
controls: {u0: {acts_on: initial.temperature}}
data: {type: hot_rectangles, half_size: [0, 2], validation: 3}
networks: {f: {type: mlp, layers: [5], input: target, output: u0}}
loss: [{type: l2, on: final.temperature}, {type: mean_square, on: initial.temperature}]
update: {type: dp, optimizer: adam}
train: {steps: 2, batch_size: 3}
"""


@pytest.mark.parametrize("text", [CHAIN, LOOP, DIRECT], ids=["open loop", "closed loop", "direct"])
def test_the_penalty_is_the_mean_square_of_the_control(backend, text):
    case, plain = built(text, backend), built(text.replace("weight: 0.7", "weight: 1e-300"), backend)
    problem, batch = case.problem, case.validation
    x, _ = problem.predict(case.params, case.buffers, batch, training=False)
    trajectory = problem.simulate(x, batch.context, problem.policy(case.params, case.buffers, batch.targets))
    drive = backend.numpy(trajectory.forces["drive"] if trajectory.forces else x["force.drive"])
    penalty = 0.7 * float(np.sum(np.mean(drive**2, axis=1)))
    assert penalty > 0
    difference = float(updated(case)["loss"][""]) - float(updated(plain)["loss"][""])
    # The difference of two sums of size 10.
    assert difference == pytest.approx(penalty, abs=1e-13)


def test_the_direction_is_its_gradient_too(backend):
    """Alone, ½ · 2/T Σ c² of a direct optimisation pulls every control to 0 at the rate 2 w / T."""
    case, plain = built(DIRECT, backend), built(DIRECT.replace("weight: 0.7", "weight: 1e-300"), backend)
    found, without = updated(case)["direction"], updated(plain)["direction"]
    pull = {name: found[name] - without[name] for name in found}
    assert tree_relative(pull, {name: np.full((3, 4), 2 * 0.7 / 4 * 0.3) for name in pull}) < 1e-12


@pytest.mark.parametrize("text", [CHAIN, LOOP], ids=["open loop", "closed loop"])
@pytest.mark.parametrize("rule", ["hig, truncation: 0", "levenberg_marquardt"])
def test_rules_with_a_jacobian_count_controls_among_the_outputs(backend, text, rule):
    """κ = 1 is the gradient, whatever the route; Levenberg–Marquardt at a huge damping is parallel to it."""
    more = ", exponent: 1.0" if rule.startswith("hig") else ", damping: 1e12"
    found = updated(built(text.replace("type: dp", f"type: {rule}{more}"), backend))["direction"]
    expected = updated(built(text, backend))["direction"]
    flat, other = (np.concatenate([tree[n].ravel() for n in sorted(tree)]) for tree in (found, expected))
    # Products of Jacobians of size 10, in another order; the damping leaves a part of 1e-12.
    assert flat / np.linalg.norm(flat) == pytest.approx(other / np.linalg.norm(other), abs=1e-10)
    assert np.linalg.norm(flat) == pytest.approx(np.linalg.norm(other), rel=1e-10) or not rule.startswith("hig")


def test_sip_with_the_gradient_is_dp_with_the_penalty(backend):
    text = CHAIN.replace("type: dp", "type: sip, inverse_solver: {type: gradient}")
    found, expected = updated(built(text, backend))["direction"], updated(built(CHAIN, backend))["direction"]
    assert tree_relative(found, expected) < 1e-12


@pytest.mark.parametrize(
    ("text", "change", "message"),
    [
        (
            CHAIN,
            {"loss.1.on": "force.drove"},
            "loss.1.on: no control acts on 'force.drove'; did you mean 'force.drive'",
        ),
        (CHAIN, {"loss.1.on": "initial.state"}, "no control acts on 'initial.state'"),
        (CHAIN, {"loss.1.type": "l2"}, "compares with a target, which controls have none of; use one without"),
        (HEAT, {"update": {"type": "sip", "inverse_solver": "damped_spectral", "optimizer": "adam"}}, "inverts final"),
    ],
)
def test_validation_names_what_is_wrong(text, change, message):
    with pytest.raises(ScenarioError, match=message):
        scenario_from_text(text, change)


@pytest.mark.parametrize("rule", ["hig", "{type: sip, inverse_solver: gradient}"])
def test_rules_that_go_back_more_than_once_refuse_rematerialised_steps(rule):
    text = CHAIN.replace("{type: dp, optimizer: {type: sgd, learning_rate: 1.0}}", rule)
    with pytest.raises(ScenarioError, match=r"run.rematerialise: .* leave the key out, or use 'dp' or 'stable_bptt'"):
        scenario_from_text(text, {"run.rematerialise": 2})


def test_targets_may_be_simulated_from_the_controls_that_are_judged(backend):
    case = built(HEAT, backend)
    update = updated(case)
    assert np.isfinite(update["loss"][""])
    assert case.batches(0).targets


WEIGHTS = HEAT.replace("on: initial.temperature}]", "on: initial.temperature, weight: %s}]").replace(
    "{type: dp, optimizer: adam}", "{type: %s, optimizer: {type: sgd, learning_rate: 1.0}}"
)


@pytest.mark.parametrize("rule", ["hig, truncation: 1e-5", "gauss_newton, truncation: 1e-5"])
def test_a_penalty_that_hardly_counts_hardly_changes_the_direction(backend, rule):
    """Outputs are counted in units of the loss: without that, the control itself would be half of the outputs."""
    alone = WEIGHTS.replace("[{type: l2, on: final.temperature}, ", "{type: l2, on: final.temperature}#") % (1, rule)
    expected = updated(built(alone, backend))["direction"]
    found = updated(built(WEIGHTS % (1e-14, rule), backend))["direction"]
    # The penalty is 1e-14 of the loss and its rows 1e-7 of the others; small singular values stretch that.
    assert tree_relative(found, expected) < 1e-3
    counted = updated(built(WEIGHTS % (1.0, rule), backend))["direction"]
    assert tree_relative(counted, expected) > 1e-2


def test_losses_say_what_they_judge():
    text = """
name: case
pde: {type: cart_pole}
time: {steps: 3, dt: 0.01}
controls: {push: {acts_on: force.push}}
data: {type: hanging}
networks: {f: {type: mlp, input: state, every_step: true, output: push}}
loss: [{type: upright, on: final.angle}, {type: upright, on: %s}]
update: dp
"""
    for place in ("force.push", "final.cart"):
        message = f"loss.1.on: loss 'upright' judges final.angle, trajectory.angle, not {place}"
        with pytest.raises(ScenarioError, match=message):
            scenario_from_text(text % place)
