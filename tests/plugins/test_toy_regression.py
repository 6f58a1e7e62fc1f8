"""Toy regression: its map, its Jacobian and the plateau; a network that sees a start given by the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numeric_cases import Case, built, relative
from whole_runs import execute

from plugins.toy_regression import PLUGIN, PlacesOptions, ToyRegressionParameters
from toolkit import ScenarioError, load_scenario
from toolkit.scenario.describe import describe
from toolkit.scenario.load import scenario_from_text

SCENARIO = Path(__file__).parents[2] / "scenarios" / "toy_regression_adam.yaml"
SCALE = 0.01
TEXT = """
name: case
pde: {type: toy_regression, scale: 0.01}
controls: {output: {acts_on: initial.x}}
data: {type: places, train: 16, validation: 5}
networks: {fit: {type: mlp, layers: [7], activation: tanh, input: initial.place, output: output}}
loss: {type: l2, on: final.y}
update: {type: dp, optimizer: {type: sgd, learning_rate: 0.1}}
train: {steps: 2, batch_size: 8}
"""


def forward(case: Case, backend) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(s, network(s), y) of the validation samples."""
    x, _ = case.problem.predict(case.params, case.buffers, case.validation, training=False)
    y = case.problem.observe(x, case.validation.context)
    place = case.validation.context["initial.place"]
    return tuple(backend.numpy(v) for v in (place, x["initial.x"], y["final.y"]))  # type: ignore[return-value]


def test_map_and_network(backend):
    case = built(TEXT, backend)
    s, x, y = forward(case, backend)
    weights = {key.removeprefix("fit/"): backend.numpy(value) for key, value in case.params.items()}
    assert sum(value.size for value in weights.values()) == 30
    hidden = np.tanh(s[:, None] @ weights["dense0.weight"].T + weights["dense0.bias"])
    assert relative(x, hidden @ weights["out.weight"].T + weights["out.bias"]) < 1e-14
    assert relative(y, x * [1, SCALE]) < 1e-15
    loss = backend.numpy(case.problem.loss({"final.y": backend.array(y)}, case.validation.targets))
    wanted = np.stack([np.sin(6 * s), np.cos(9 * s)], axis=-1)
    assert relative(loss, 0.5 * np.sum((y - wanted) ** 2, axis=1)) < 1e-14


def test_the_jacobian_knows_the_scale(backend):
    """Rows of y₂ are λ times those of x₂: conditioning of order 1/λ."""
    case = built(TEXT, backend)

    def rows(params: Any) -> Any:
        x, _ = case.problem.predict(params, case.buffers, case.validation, training=False)
        return case.problem.observe(x, case.validation.context)["final.y"]

    jacobian = backend.jacrev(rows)(case.params)
    flat = np.concatenate([backend.numpy(v).reshape(5, 2, -1) for v in jacobian.values()], axis=-1)
    first, second = (np.linalg.norm(flat[:, i]) for i in range(2))
    # Both outputs of the network are alike at the start.
    assert 0.3 * SCALE < second / first < 3 * SCALE


def test_samples_solve_the_problem(backend):
    drawn = PLUGIN.samplers["places"].sample(
        None, ToyRegressionParameters(scale=SCALE), PlacesOptions(), np.random.default_rng(0), 1000
    )
    s = drawn["initial.place"]
    assert -1 <= s.min() < -0.99
    assert 0.99 < s.max() <= 1
    assert np.array_equal(drawn["target.y"], np.stack([np.sin(6 * s), np.cos(9 * s)], axis=-1))
    case = built(TEXT, backend)
    given = {key: backend.array(value) for key, value in drawn.items() if key.startswith("initial.")}
    assert relative(backend.numpy(case.problem.observe({}, given)["final.y"]), drawn["target.y"]) < 1e-14
    even = PLUGIN.samplers["places"].sample(
        None, ToyRegressionParameters(), PlacesOptions(spacing="even"), np.random.default_rng(0), 5
    )
    assert np.array_equal(even["initial.place"], [-1, -0.5, 0, 0.5, 1])


def test_the_plateau_of_plain_gradients():
    """The loss of a perfect first output and no second one."""
    s = np.linspace(-1, 1, 200001)
    # The trapezoidal rule on so many points is exact to nine digits.
    assert np.trapezoid(0.5 * np.cos(9 * s) ** 2, s) / 2 == pytest.approx((1 + np.sin(18) / 18) / 4, abs=1e-9)
    assert (1 + np.sin(18) / 18) / 4 == pytest.approx(0.2396, abs=5e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("initial.place", "initial.plaice"), r"no field 'plaice'; did you mean 'place'\?"),
        (("initial.place", "initial.x"), "initial.x is unknown here; a network sees only a start that the data give"),
        (("initial.place", "initial.y"), "the data give initial.place, initial.x, target.y, not initial.y"),
        (("input: initial.place", "input: state"), "only a network with `every_step: true` sees state"),
        (("initial.place", "[initial.place, initial.place]"), "once"),
        (("initial.place", "start"), "input"),
    ],
)
def test_a_network_sees_only_what_is_there(change, message):
    with pytest.raises(ScenarioError, match=message):
        scenario_from_text(TEXT.replace(*change))


def test_a_network_may_see_target_and_start_together(backend):
    case = built(TEXT.replace("initial.place", "[target, initial.place]"), backend)
    assert case.params["fit/dense0.weight"].shape == (7, 3)
    forward(case, backend)


def test_the_shipped_scenario_has_the_published_network():
    assert describe(load_scenario(SCENARIO)).trained == 30


@pytest.mark.parametrize("backend", ["torch", "jax"], indirect=True)
def test_the_shipped_scenario_learns(tmp_path, backend):
    small = {"train.steps": 60, "train.validate_every": 20, "run.backend": backend.name, "run.device": "cpu"}
    run = execute(SCENARIO, tmp_path, {**small, "output.plots": False})
    with run.stored:
        loss = run.metrics.validation_loss.dropna("step").values
        # From about ½⟨sin²⟩ + ½⟨cos²⟩ = 0.52 on the way to 0.44, the next plateau.
        assert loss[-1] < 0.95 * loss[0]
