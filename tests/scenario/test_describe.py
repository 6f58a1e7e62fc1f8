"""The numbers that `validate` prints, counted by hand."""

from __future__ import annotations

from toolkit.scenario.describe import describe, explain
from toolkit.scenario.load import load_scenario, scenario_from_text


def test_a_scenario_with_a_network_on_a_grid(write):
    mlp = "{type: mlp, layers: [10], input: target, output: start}"
    text = write(("{type: u_net, levels: 2, filters: 4, input: target, output: start}", mlp))
    description = describe(load_scenario(text))

    assert description.cells == (16, 8)
    assert description.dx[1] == 0.5
    assert description.fields[0].shape == (16, 8)
    assert description.controls[0].size == 128
    # 128 → 10 → 128, weights and biases
    assert description.networks[0].parameters == 128 * 10 + 10 + 10 * 128 + 128
    assert description.trained == description.networks[0].parameters
    assert description.jacobian is not None
    # batch 4 of 128 outputs, in the network's 4 bytes
    assert (description.jacobian.rows, description.jacobian.columns) == (512, 2698)
    assert description.jacobian.bytes == 512 * 2698 * 4
    assert description.memory > 4 * 2698 * 4
    assert description.stability[0].name == "diffusion number"
    assert description.sweep_cells == 1


def test_a_direct_optimisation_trains_the_control_itself():
    text = "name: d\npde: cold\nloss: {type: mean, on: final.p}\nupdate: dp\ntrain: {batch_size: 1}\n"
    scenario = scenario_from_text(text + "controls: {x: {acts_on: initial.p, initial: [3, 3]}}\n")
    description = describe(scenario)

    assert description.cells == ()
    assert description.trained == 2
    assert description.jacobian is not None
    assert (description.jacobian.rows, description.jacobian.columns) == (2, 2)


def test_explain_names_every_value_once(write):
    scenario = load_scenario(write(), ["run.seed=3"])
    rows = explain(scenario)

    assert len({row.key for row in rows}) == len(rows)
    by_key = {row.key: (row.value, row.origin) for row in rows}
    assert by_key["run.seed"] == (3, "--set run.seed=3")
    assert by_key["time.dt"] == (0.5, f"{scenario.path}:4")
    assert by_key["run.backend"] == ("torch", "default")
