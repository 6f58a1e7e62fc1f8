"""Combinations that would run and mean nothing are refused before anything runs."""

from __future__ import annotations

import numpy as np
import pytest
from whole_runs import DIRECT, HEAT, WAVE, cli, execute, write_scenario

import toolkit

NETWORK = "estimator: {type: conv_net, layers: [3], output: initial_temperature}"
LOOP = "loop: {type: conv_net, layers: [3], batch_norm: false, input: state, every_step: true, output: heating}"
SOLVER = "type: sip\n  inverse_solver: damped_spectral"


@pytest.mark.parametrize(
    ("text", "changes", "words"),
    [
        (WAVE, [("data: {type: cosine", "data: {validation: 0, type: cosine")], "data.validation"),
        (
            HEAT,
            [("controls:", "controls:\n  more: {acts_on: source.temperature, initial: 0.5}"), (SOLVER, "type: dp")],
            "controls.more.initial: a start value belongs to a direct optimisation",
        ),
        (
            DIRECT,
            [(SOLVER, "type: dp\n  clip: {norm: 1.0}"), ("{type: sgd, learning_rate: 1.0}", "lbfgs")],
            "update.clip: lbfgs chooses its own step length",
        ),
        (
            DIRECT,
            [("initial.temperature, initial: 0.0", "parameter.match_mean, initial: 0.0"), (SOLVER, "type: dp")],
            "parameters that can be controls: diffusivity",
        ),
        (
            DIRECT,
            [("initial.temperature, initial: 0.0", "parameter.diffusivity, initial: -0.5"), (SOLVER, "type: dp")],
            "initial: pde.diffusivity: Input should be greater than 0",
        ),
        (DIRECT, [("  initial_temperature:", "  temperature_target:")], "is the name of another variable"),
        (
            HEAT,
            [("  initial_temperature:", "  x:"), ("output: initial_temperature", "output: x")],
            "controls.x: 'x' is the name of another variable in the results",
        ),
        (
            HEAT,
            [
                ("initial_temperature: {acts_on: initial.temperature}", "heating: {acts_on: force.temperature}"),
                (NETWORK, LOOP),
                (SOLVER, "type: supervised"),
            ],
            "which a network in the loop has none of",
        ),
    ],
)
def test_a_combination_is_refused(tmp_path, text, changes, words):
    path = write_scenario(tmp_path, text, *changes)
    with pytest.raises(toolkit.ScenarioError) as caught:
        toolkit.load_scenario(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_simulation_starts_from_the_value_of_its_control(tmp_path, name):
    text = "name: given\ngrid: {cells: {x: 4}}\npde: {type: heat, diffusivity: 1.0}\n"
    text += "controls: {u0: {acts_on: initial.temperature, initial: [1, 2, 3, 2]}}\ntime: {steps: 2, dt: 0.1}\n"
    run = execute(write_scenario(tmp_path, text), tmp_path, {"run.backend": name, "output.plots": False})
    with run.stored:
        np.testing.assert_allclose(run.fields.temperature.isel(t=0), [1, 2, 3, 2], rtol=0, atol=0)
        assert float(run.fields.temperature.isel(t=2).max()) < 3


@pytest.mark.parametrize("name", ["123", "1e3", "null"])
def test_a_new_scenario_may_be_called_like_a_number(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert cli("new", name).exit_code == 0
    assert cli("validate", f"{name}.yaml").exit_code == 0


def test_a_new_scenario_needs_a_name_that_scenarios_may_have(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("new", "a,b").exit_code == 2
    assert not list(tmp_path.iterdir())


def test_testing_is_there_after_importing_the_toolkit():
    assert toolkit.testing.check_plugin.__name__ == "check_plugin"


def test_names_of_trajectories_before_training_are_taken(tmp_path):
    text = """
name: taken
pde: cart_pole
time: {steps: 3, dt: 0.01}
controls: {angle_untrained: {acts_on: force.push}}
data: hanging
networks: {f: {type: mlp, input: state, every_step: true, output: angle_untrained}}
loss: {type: upright, on: final.angle}
update: dp
"""
    path = tmp_path / "taken.yaml"
    path.write_text(text)
    with pytest.raises(toolkit.ScenarioError, match="'angle_untrained' is the name of another variable"):
        toolkit.load_scenario(path)
