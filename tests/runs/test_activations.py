"""Saturation of activations recorded while a network trains: `output.activations`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from whole_runs import HEAT, cli, execute, write_scenario

from toolkit.training.diagnosis import SATURATED, SaturationCount, saturated_share

FIT = """\
name: fit
pde: {type: toy_regression, scale: 0.5}
controls: {output: {acts_on: initial.x}}
data: {type: places, spacing: random, train: 8, validation: 5, seed: 1}
networks: {f: {type: mlp, layers: [6, 4], activation: tanh, input: initial.place, output: output}}
loss: {type: l2, on: final.y}
update: {type: dp, optimizer: {type: sgd, learning_rate: 1.5}}
train: {steps: 4, batch_size: 2, validate_every: 2}
run: {precision: float64}
output: {activations: true, samples: 5, plots: false}
"""
LOOP = """\
name: loop
pde: {type: oscillators}
time: {steps: 3, dt: 0.2}
controls: {drive: {acts_on: force.drive}}
data: {type: uniform, train: 4, validation: 3}
networks: {f: {type: mlp, layers: [5], activation: relu, every_step: true, input: state, output: drive}}
loss: l2
update: {type: dp, optimizer: {type: sgd, learning_rate: 1.5}}
train: {steps: 2, batch_size: 2, validate_every: 2}
run: {precision: float64}
output: {activations: true, plots: false}
"""


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_shares_are_those_of_the_trained_network_over_all_validation_samples(tmp_path, library):
    run = execute(write_scenario(tmp_path, FIT), tmp_path, {"run.backend": library})
    ds = run.metrics
    place = run.fields["place"].values.reshape(5, -1)[:, :1]
    weights = {name.partition("/")[2]: np.asarray(value) for name, value in run.network.items()}
    z = place @ weights["dense0.weight"].T + weights["dense0.bias"]
    first = saturated_share("tanh", z)
    second = saturated_share("tanh", np.tanh(z) @ weights["dense1.weight"].T + weights["dense1.bias"])
    # Steps this large saturate some neurons; batches of two and a last one of one sample count by their samples.
    assert 0 < second < 1
    assert float(ds.saturation_f_activation0[-1]) == pytest.approx(first, abs=1e-12)
    assert float(ds.saturation_f_activation1[-1]) == pytest.approx(second, abs=1e-12)
    recorded = ~np.isnan(ds.saturation_f_activation1.values)
    assert ds.step.values[recorded].tolist() == [0, 2, 4]
    assert ds.saturation_f_activation0.long_name == "share of saturated entries, tanh f/activation0, validation samples"
    assert ds.saturation_f_activation0.units == "1"


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_a_network_in_the_loop(tmp_path, library):
    share = execute(write_scenario(tmp_path, LOOP), tmp_path, {"run.backend": library}).metrics.saturation_f_activation0
    assert "units dead on all of them" in share.long_name
    assert set((share.dropna("step").values * 5).round(12)) <= set(range(6))


def test_nothing_is_measured_where_nobody_asks(tmp_path, monkeypatch):
    def refuse(*args: object) -> None:
        raise AssertionError("activations were looked at")

    monkeypatch.setattr("toolkit.runs.session.activation_inputs", refuse)
    run = execute(write_scenario(tmp_path, FIT, ("activations: true, ", "")), tmp_path)
    assert not [name for name in run.metrics if str(name).startswith("saturation")]


def test_a_unit_alive_in_one_batch_is_not_dead():
    count = SaturationCount("relu")
    for z in ([[-1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]], [[-1.0, 1.0, 1.0]]):
        count.add(np.array(z))
    assert count.share == pytest.approx(1 / 3)
    count = SaturationCount("tanh")
    for z in ([[9.0, 0.0], [9.0, 9.0]], [[0.0, 0.0]]):
        count.add(np.array(z))
    assert count.share == pytest.approx(3 / 6)
    assert 1 - np.tanh(9.0) ** 2 < SATURATED


@pytest.mark.parametrize("change", [("validation: 5", "validation: 0"), ("  estimator", "  estimator")])
def test_without_validation_samples_it_is_refused(tmp_path: Path, change):
    text = HEAT.replace("plots: false", "plots: false, activations: true")
    result = cli("validate", write_scenario(tmp_path, text, change))
    if change[0] == change[1]:
        assert result.exit_code == 0
    else:
        assert result.exit_code == 2
        assert "output.activations: activations are recorded at validation" in result.stderr
