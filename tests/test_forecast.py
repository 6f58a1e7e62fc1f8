"""What `validate` says of a half-inversion, and what it refuses: through the command line, in numbers done by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from whole_runs import cli, write_scenario

from toolkit.core.half_inverse_choice import HalfInversion
from toolkit.scenario import extremes, forecast
from toolkit.scenario.describe import describe
from toolkit.scenario.load import scenario_from_text
from toolkit.training.inversion_plan import GIB, JacobianSize, plan

CHAIN = """\
name: chain
pde: {type: oscillators}
time: {steps: 96, dt: 0.125}
controls: {drive: {acts_on: force.drive}}
data: {type: uniform, train: 4096, validation: 8}
networks: {f: {type: mlp, layers: [20, 20, 20], output: drive}}
loss: l2
update: {type: hig, optimizer: {type: sgd, learning_rate: 0.01}}
train: {steps: 2, batch_size: 128}
run: {precision: float64}
"""
HEAT = """\
name: heat
grid: {cells: {x: 8, y: 8}, extent: {x: 64, y: 64}}
pde: {type: heat, diffusivity: 8.0}
controls: {u0: {acts_on: initial.temperature}}
data: {type: hot_rectangles, validation: 5}
networks: {f: {type: conv_net, layers: [3], output: u0}}
loss: l2
update: {type: sip, inverse_solver: damped_spectral, network_rule: hig}
train: {steps: 4, batch_size: 2}
run: {precision: float64}
"""
NO_NETWORK = CHAIN.replace("networks: {f: {type: mlp, layers: [20, 20, 20], output: drive}}\n", "").replace(
    "{acts_on: force.drive}", "{acts_on: force.drive, initial: 0.0}"
)


def inversion(tmp_path: Any, text: str, **overrides: Any) -> dict[str, Any]:
    """What `validate --json` says."""
    sets = [part for key, value in overrides.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
    result = cli("validate", write_scenario(tmp_path, text), "--json", *sets)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)[0]["inversion"]


def refusal(tmp_path: Any, text: str, **overrides: Any) -> str:
    """What it refuses."""
    sets = [part for key, value in overrides.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
    result = cli("validate", write_scenario(tmp_path, text), *sets)
    assert result.exit_code == 2
    return result.stderr


def test_dense_layers_by_their_factors(tmp_path):
    found = inversion(tmp_path, CHAIN)
    assert (found["way"], found["algorithm"]) == ("factored", "tridiagonal")
    # J Jᵀ of 128 x 4 rows with a copy and its eigenvectors; four outputs are four pullbacks.
    assert (found["jacobian_bytes"], found["gram_bytes"], found["sweeps"]) == (0, 3 * 8 * 512**2, 4)
    assert found["operations"] == 512**2 * (20 + 20 + 20 + 96) + 3 * 512**3


@pytest.mark.parametrize(
    ("options", "way", "algorithm"),
    [
        # Truncations that J Jᵀ does not resolve need J where it fits.
        ({"update__truncation": 1e-8}, "explicit", "adaptive"),
        ({"update__algorithm": "svd64"}, "explicit", "svd64"),
        ({"update__algorithm": "lanczos"}, "factored", "lanczos"),
        ({"update__memory": 0.007}, "factored", "tridiagonal"),
        ({"update__memory": 0.001}, "products", "lanczos"),
        ({"update__truncation": 1e-8, "update__memory": 0.007}, "factored", "adaptive"),
        ({"run__device": "gpu"}, "factored", "gram"),
        # More rows than parameters: the smaller side is JᵀJ, which the factors do not give.
        ({"train__batch_size": 2048}, "explicit", "tridiagonal"),
    ],
)
def test_ways(tmp_path, options, way, algorithm):
    found = inversion(tmp_path, CHAIN, **options)
    assert (found["way"], found["algorithm"]) == (way, algorithm)


def test_network_rule_inverts_the_map_from_parameters_to_controls(tmp_path):
    found = inversion(tmp_path, HEAT)
    # 2 samples of 8 x 8 controls; 3·9 + 3 parameters of the first layer, 3 + 1 of the last.
    assert (found["way"], found["algorithm"]) == ("explicit", "tridiagonal")
    assert found["jacobian_bytes"] == 8 * 2 * 64 * 34
    assert found["gram_bytes"] == 24 * 34**2


def test_controls_are_inverted_sample_by_sample(tmp_path):
    found = inversion(tmp_path, NO_NETWORK)
    assert (found["way"], found["algorithm"]) == ("samples", "gram")
    assert found["jacobian_bytes"] == 8 * 8 * 4 * 96
    assert "mix samples" in refusal(tmp_path, NO_NETWORK, update__algorithm="lanczos")


def test_other_rules_invert_nothing(tmp_path):
    assert inversion(tmp_path, CHAIN, update__type="dp") is None


def test_the_table_says_it(tmp_path):
    result = cli("validate", write_scenario(tmp_path, CHAIN))
    assert "tridiagonal, from the factors of dense layers: decomposition 6.29 MB; about 4 derivatives" in result.stdout


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"update__algorithm": "svd", "update__memory": 0.001}, "update.algorithm: 512 x 2,956: the Jacobian takes"),
        (
            {"update__algorithm": "factored", "train__batch_size": 4096, "update__memory": 0.01},
            "update.algorithm: 16,384 x 2,956: what is decomposed",
        ),
        (
            {"update__algorithm": "factored", "networks__f__every_step": "true", "networks__f__input": "state"},
            "use 'auto'",
        ),
    ],
)
def test_what_was_asked_for_by_name_and_does_not_fit_is_refused(tmp_path, options, expected):
    told = refusal(tmp_path, CHAIN, **options)
    assert expected in told
    if "memory" in str(options):
        assert "use 'auto', lower train.batch_size, or raise update.memory" in told


def test_options_of_a_network_rule_are_named_as_such(tmp_path):
    text = HEAT.replace("network_rule: hig", "network_rule: {type: hig, algorithm: svd, memory: 1e-6}")
    told = refusal(tmp_path, text)
    assert "heat.yaml:8:91: update.network_rule.algorithm: 128 x 34: the Jacobian" in told
    assert "raise update.network_rule.memory" in told


def test_what_this_machine_cannot_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "machine_memory", lambda: 4e6)
    told = refusal(tmp_path, CHAIN)
    assert "chain.yaml:9:31: train.batch_size: 512 x 2,956: an update holds 0.00586 GiB, this machine has" in told
    assert extremes.machine_memory() > 4e6


def test_nothing_that_fits_is_refused_and_auto_never_is_for_its_matrices():
    for samples in (1, 100, 10_000, 1_000_000):
        for columns in (10, 10_000, 10_000_000):
            for width in (None, 100):
                size = JacobianSize(samples, 8, columns, "float32", 8, width)
                met = plan(size, HalfInversion(), False, GIB)
                assert max(met.jacobian_bytes, met.gram_bytes) <= GIB


def test_rematerialised_steps_need_less_memory():
    text = """
name: case
pde: {type: oscillators}
time: {steps: 400, dt: 0.01}
controls: {drive: {acts_on: force.drive}}
data: {type: uniform}
networks: {f: {type: mlp, every_step: true, output: drive}}
loss: {type: l2, on: final.state}
update: dp
run: {rematerialise: %s}
"""
    kept, root, long = (describe(scenario_from_text(text % word)).memory for word in ("null", "auto", "500"))
    assert kept == long
    # Of 400 steps 20 are kept whole, and of states the starts of 20 stretches beside them; parameters stay.
    assert kept / 20 < root < kept / 10
