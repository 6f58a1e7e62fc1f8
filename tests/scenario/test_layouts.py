"""Shapes of controls and observations, and the channels that networks see and give."""

from __future__ import annotations

import pytest
from whole_runs import samples_file

from toolkit.core.errors import ScenarioError
from toolkit.networks.plugin import NetworkShape
from toolkit.scenario.layouts import control_layout, network_shape, observation_layout, target_keys
from toolkit.scenario.load import load_scenario, scenario_from_text

FORCE, TARGETS = ("initial.u", "force.u"), ("type: bumps", "type: targets")
VECTORS = ("type: u_net, levels: 2, filters: 4", "type: mlp, layers: [3]")
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

    with pytest.raises(ScenarioError, match="partly on the grid and partly not; use a network of vectors"):
        load_scenario(path)


def test_an_action_is_one_number_per_step(write):
    path = write(("initial.u", "force.knob"), TARGETS, ("steps: 2", "steps: 5"), VECTORS, SOLVER)
    sections = load_scenario(path).sections

    assert control_layout(sections, sections.controls["start"]).shape == (5,)
    assert sections.described["knob"].units == "V"
    assert set(sections.fields) == {"u"}
    # All of the target goes in and all steps come out, as vectors.
    assert _shape(path) == NetworkShape(16 * 8, 5)


def test_an_action_in_closed_loop_is_one_number(write):
    path = write(("initial.u", "force.knob"), TARGETS, VECTORS, ("input: target", "every_step: true"), SOLVER)

    assert _shape(path) == NetworkShape(16 * 8, 1)


def test_an_action_accepts_only_what_the_plugin_says(write):
    with pytest.raises(ScenarioError, match=r"has no 'source\.knob'; places that accept source: none"):
        load_scenario(write(("initial.u", "source.knob")))
    with pytest.raises(ScenarioError, match=r"has no 'initial\.knob'; places that accept initial: u"):
        load_scenario(write(("initial.u", "initial.knob")))
