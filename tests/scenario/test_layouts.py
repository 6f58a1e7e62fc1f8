"""Shapes of controls and observations, and the channels that networks see and give."""

from __future__ import annotations

import pytest
from whole_runs import samples_file

from toolkit.core.errors import ScenarioError
from toolkit.networks.plugin import NetworkShape
from toolkit.scenario.layouts import control_layout, network_shape, observation_layout, target_keys
from toolkit.scenario.load import load_scenario, scenario_from_text

FORCE, TARGETS = ("initial.u", "force.u"), ("type: bumps", "type: targets")
SOLVER = ("type: sip\n  inverse_solver: spectral", "type: dp")


def _shape(path) -> NetworkShape:
    sections = load_scenario(path).sections
    return network_shape(sections, sections.networks["estimator"])


def test_a_network_maps_the_target_to_the_control(write):
    assert _shape(write()) == NetworkShape(1, 1, (16, 8), periodic=True)


def test_a_force_in_open_loop_has_a_channel_per_step(write):
    path = write(FORCE, TARGETS, ("steps: 2", "steps: 5"), SOLVER)

    assert _shape(path) == NetworkShape(1, 5, (16, 8), periodic=True)
    sections = load_scenario(path).sections
    assert control_layout(sections, sections.controls["start"]).shape == (5, 16, 8)


def test_a_force_in_closed_loop_is_that_of_one_step(write):
    path = write(FORCE, TARGETS, ("input: target", "every_step: true, batch_norm: false"), SOLVER)

    assert _shape(path) == NetworkShape(1, 1, (16, 8), periodic=True)


def test_a_trajectory_as_target_has_a_channel_per_step(write):
    path = write(("final.u", "trajectory.u"), ("periodic", "zero"), SOLVER)

    assert _shape(path) == NetworkShape(2, 1, (16, 8), periodic=False)
    assert observation_layout(load_scenario(path).sections, "trajectory.u").shape == (2, 16, 8)


def test_an_observation_is_seen_once_however_many_terms_judge_it(write):
    path = write(("{type: l2, on: final.u}", "[l2, l1, {type: mean, on: trajectory.u}]"), SOLVER)

    assert target_keys(load_scenario(path).sections) == ("final.u",)
    assert _shape(path).inputs == 1


def test_components_are_channels(tmp_path):
    path = samples_file(tmp_path / "c.nc", p_target=("component",))
    text = "name: c\npde: cold\nloss: {type: l2, on: final.p}\nupdate: dp\n"
    text += f"data: {{type: file, path: {path}}}\n"
    network = "networks: {f: {type: mlp, output: [x, y]}}\ntrain: {batch_size: 2}\n"
    controls = "controls: {x: {acts_on: initial.p}, y: {acts_on: initial.q}}\n"
    sections = scenario_from_text(text + network + controls).sections

    assert network_shape(sections, sections.networks["f"]) == NetworkShape(2, 4)


def test_a_number_and_a_field_cannot_come_from_one_network_on_a_grid(write):
    path = write(("initial.u", "parameter.diffusivity"), SOLVER)

    with pytest.raises(ScenarioError, match="its input and output are partly on the grid and partly not"):
        load_scenario(path)
