"""The scenarios that come with phinverse: well formed, and those with known results give them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from whole_runs import BACKENDS, execute

import toolkit
from toolkit.commands.locate import shipped
from toolkit.scenario.schema import KEYS

SHIPPED = shipped()

# Ten steps of three methods from (3, 3); a test below derives them.
PARABOLA = {
    "parabola_gradient": (2.4512184, 0.9617115),
    "parabola_newton": (0.0520246, 0.9238383),
    "parabola_inverse": (0.0847426, 0.5042100),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_scenario_loads_and_is_named_like_its_file(name):
    scenario = toolkit.load_scenario(SHIPPED[name])
    assert scenario.name == name
    assert scenario.sections.header.description.endswith(".")


@pytest.mark.parametrize("name", SHIPPED)
def test_keys_stand_in_the_order_of_the_format(name):
    written = list(yaml.safe_load(SHIPPED[name].read_text(encoding="utf-8")))
    assert written == [key for key in KEYS if key in written]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_resolved_scenario_is_the_scenario(name, tmp_path):
    scenario = toolkit.load_scenario(SHIPPED[name])
    path = tmp_path / "scenario.yaml"
    path.write_text(scenario.to_yaml(), encoding="utf-8")
    again = toolkit.load_scenario(path)
    assert again.content_hash() == scenario.content_hash()
    assert again.to_yaml() == scenario.to_yaml()


def test_the_baselines_differ_from_sip_in_their_update_alone():
    sections = {
        name: toolkit.load_scenario(SHIPPED[name]).sections for name in ("heat_sip", "heat_adam", "heat_supervised")
    }
    for key in ("grid", "pde", "time", "controls", "data", "networks", "loss", "train", "run", "output"):
        values = [getattr(s, key) for s in sections.values()]
        assert values[0] == values[1] == values[2], key
    assert [s.update.type for s in sections.values() if s.update] == ["sip", "dp", "supervised"]


def x_along_steps(name: str, out: Path, overrides: dict[str, object]) -> np.ndarray:
    run = execute(SHIPPED[name], out, {"output.plots": False, "run.device": "cpu", **overrides})
    with run.stored:
        assert run.fields.x.dims == ("step", "component")
        assert list(run.fields.component.values) == ["x0", "x1"]
        np.testing.assert_array_equal(run.fields.step, np.arange(11))
        return run.fields.x.values


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PARABOLA)
def test_ten_steps_from_3_3_end_where_the_method_says(tmp_path, name, backend):
    x = x_along_steps(name, tmp_path, {"run.backend": backend})
    np.testing.assert_array_equal(x[0], [3.0, 3.0])
    # The reference numbers come from single precision; 1e-5 is what they are trusted to.
    np.testing.assert_allclose(x[-1], PARABOLA[name], rtol=0, atol=1e-5)


def test_the_reference_numbers_follow_from_the_formulas():
    gradient = newton = inverse = np.array([3.0, 3.0])
    for _ in range(10):
        gradient = gradient - 0.01 * np.array([2 * gradient[0], 4 * gradient[1] ** 3])
        newton = newton * [2 / 3, 8 / 9]
        inverse = np.array([0.7 * inverse[0], np.sqrt(0.7) * inverse[1]])
    for name, x in (("gradient", gradient), ("newton", newton), ("inverse", inverse)):
        # The reference numbers were computed in single precision: seven digits, ten roundings.
        np.testing.assert_allclose(x, PARABOLA[f"parabola_{name}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PARABOLA)
def test_the_start_is_where_the_scenario_puts_it(tmp_path, name):
    x = x_along_steps(name, tmp_path, {"controls.x.initial": [2.0, 1.5]})
    np.testing.assert_array_equal(x[0], [2.0, 1.5])
    factors = {
        "parabola_newton": (2 / 3, 8 / 9),
        "parabola_inverse": (0.7, 0.7**0.5),
        "parabola_gradient": (0.98, 0.91),
    }
    # One step in closed form, to rounding: 4·1.5³·0.01 = 0.09·1.5 for the gradient.
    np.testing.assert_allclose(x[1], np.multiply(factors[name], [2.0, 1.5]), rtol=1e-12)


@pytest.mark.parametrize("name", ["heat_sip", "heat_adam", "heat_supervised"])
def test_the_heat_family_learns_when_made_small(tmp_path, name):
    small = {
        "grid.cells": {"x": 8, "y": 8},
        "networks.estimator.levels": 2,
        "networks.estimator.filters": 2,
        "train.steps": 8,
        "train.validate_every": 8,
        "train.batch_size": 4,
        "data.validation": 4,
        "update.optimizer.learning_rate": 1e-2,
        "output.plots": False,
    }
    run = execute(SHIPPED[name], tmp_path, small)
    with run.stored:
        error = run.metrics.control_error.dropna("step")
        # Even eight steps of a tiny network find some of the heat.
        assert error[-1] < error[0]
        assert run.fields.temperature.attrs["units"] == "K"


def test_the_forward_scenario_conserves_heat(tmp_path):
    run = execute(SHIPPED["heat_forward"], tmp_path, {"grid.cells": {"x": 16, "y": 16}, "output.plots": False})
    with run.stored:
        mean = run.fields.temperature.mean(("x", "y"))
        assert run.fields.sizes["t"] == 11
        # A mean over 256 cells, twenty steps of rounding.
        np.testing.assert_allclose(mean, mean.isel(t=[0] * 11), rtol=1e-12)


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        ("[1, 2, 3]", r"expected a number or the shape \(2,\) for initial.x, got the shape \(3,\)"),
        ("[[1, 2], [3]]", r"expected a number or the shape \(2,\) for initial.x, got lists of unequal lengths"),
    ],
)
def test_a_start_value_of_another_shape_is_refused(start, sentence):
    path = shipped()["parabola_newton"]
    with pytest.raises(toolkit.ScenarioError, match=sentence):
        toolkit.load_scenario(path, [f"controls.x.initial={start}"])
