"""The exponential function: its inverse solvers in closed form, and what each way to update learns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numeric_cases import case_of
from phiml import math
from phiml.math import batch

from plugins.exponential import PLUGIN, UniformOptions
from toolkit.core.backend import using
from toolkit.core.errors import ScenarioError
from toolkit.core.streams import stream
from toolkit.physics.inverse import natives, tensors
from toolkit.physics.solvers.newton import NEWTON
from toolkit.scenario.load import load_scenario
from toolkit.scenario.sweep import expand
from toolkit.training.loop import train

SCENARIO = Path(__file__).parents[2] / "scenarios" / "exponential.yaml"
SHARP = {"run.precision": "float64", "data.validation": 2}


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    with math.precision(64):
        yield


def found_by(solver: Any, x: Any, y_target: Any, **options: Any) -> np.ndarray:
    """x̂ of one of the plugin's solvers, which need nothing of the problem."""
    unused: Any = None
    x, y = (math.wrap(np.asarray(values, float), batch("sample")) for values in (x, y_target))
    solve = PLUGIN.inverse_solvers[solver].build(unused, PLUGIN.inverse_solvers[solver].options(**options))
    found = solve({"initial.x": x}, {"final.y": math.exp(x)}, {"final.y": y})
    return found["initial.x"].numpy("sample")


# --- solvers -----------------------------------------------------------------------------------------------------


def test_the_newton_step_has_no_scale():
    """+1 far below the target, −½ far above it, wherever on the axis; g/h itself near the target."""
    far = found_by("clipped_newton", [-700.0, -30.0], np.exp([-600.0, -1.0]), max_step=2.0)
    # e^{-29} of the limit is left.
    np.testing.assert_allclose(far, [-699, -29], rtol=1e-12)
    far = found_by("clipped_newton", [-1.0, -600.0], np.exp([-30.0, -700.0]), max_step=2.0)
    np.testing.assert_allclose(far, [-1.5, -600.5], rtol=1e-12)
    near = found_by("clipped_newton", [-5.0], np.exp([-5.0]) * 1.01, max_step=2.0)
    np.testing.assert_allclose(near, [-5 + 0.01 / 0.99], rtol=1e-12)


def test_the_step_is_clipped_at_the_pole_and_never_leads_away():
    y = np.exp(np.linspace(-12, 0, 50))
    # The pole at ŷ = y/2 and points on both sides of it, where the Newton step itself changes sign.
    for factor in (0.5, 0.499, 0.501, 0.1, 0.9, 3.0):
        x = np.log(factor * y)
        step = found_by("clipped_newton", x, y, max_step=0.1) - x
        assert np.all(np.abs(step) <= 0.1 + 1e-12)
        assert np.all(np.sign(step) == (1 if factor < 1 else -1))
    at_pole = found_by("clipped_newton", [np.log(0.25)], [0.5], max_step=0.1)
    np.testing.assert_allclose(at_pole, np.log(0.25) + 0.1, rtol=1e-12)


def test_sign_goes_towards_the_solution_by_its_length():
    x, solution = np.array([-3.0, -11.0, -5.0]), np.array([-7.0, -1.0, -5.0])
    y = np.exp(solution)
    np.testing.assert_allclose(found_by("sign", x, y), [-4, -10, -5], rtol=1e-12)
    np.testing.assert_allclose(found_by("sign", x, y, length=0.5), [-3.5, -10.5, -5], rtol=1e-12)


def test_logarithm_is_the_inverse_and_stays_where_there_is_none():
    np.testing.assert_allclose(found_by("logarithm", [-3.0, -3.0], np.exp([-12.0, 2.0])), [-12, 2], rtol=1e-12)
    np.testing.assert_array_equal(found_by("logarithm", [-3.0, -4.0], [0.0, -1.0]), [-3, -4])


def test_clipped_newton_without_limit_is_the_generic_newton(backend):
    problem = case_of(load_scenario(SCENARIO, {**SHARP, "sweep": None}).sections, backend).problem
    inverse = problem.inverse_problem({})
    layouts, observed = inverse.controls, inverse.observations
    rng = stream(5, "points")
    x, y_target = rng.uniform(-4, 0, 50), np.exp(rng.uniform(-4, 0, 50))

    def function(x: Any, y_target: Any) -> Any:
        x0, target = {"initial.x": x}, {"final.y": y_target}
        y0 = problem.observe(x0, {})
        arguments = tensors(x0, layouts), tensors(y0, observed), tensors(target, observed)
        own: Any = PLUGIN.inverse_solvers["clipped_newton"]
        solvers = (own, own.options(max_step=1e9)), (NEWTON, NEWTON.options())
        return [natives(s.build(inverse, o)(*arguments), layouts)["initial.x"] for s, o in solvers]

    arguments = (backend.array(x, "physics"), backend.array(y_target, "physics"))
    a, b = (backend.numpy(found) for found in backend.compile(function, *arguments)(*arguments))
    # Rounding; the pole amplifies it where a point comes near.
    np.testing.assert_allclose(a, b, rtol=1e-10)


# --- data and metric ---------------------------------------------------------------------------------------------


def test_samples_fill_the_interval():
    sampler = PLUGIN.samplers["uniform"]
    x = sampler.sample(None, None, UniformOptions(), stream(0, "test"), 100_000)["initial.x"]
    assert x.min() >= -12
    assert x.max() <= 0
    # Three standard errors of the mean and of the deviation 12/√12.
    assert x.mean() == pytest.approx(-6, abs=0.035)
    assert x.std() == pytest.approx(12 / np.sqrt(12), abs=0.02)


def test_an_empty_interval_is_refused():
    message = PLUGIN.samplers["uniform"].check(None, None, UniformOptions(interval=(1.0, 1.0)))
    assert message == "data.interval: the first of [1, 1] must be smaller than the second"


def test_absolute_error():
    measure = PLUGIN.control_metrics[0].measure
    x, truth = (math.wrap([a, b], batch("sample")) for a, b in ((1.0, -2.0), (3.0, -5.0)))
    assert list(measure(None, {"initial.x": x}, {}, {"initial.x": truth}).numpy("sample")) == [2, 3]


# --- training ----------------------------------------------------------------------------------------------------


def test_the_sweep_differs_in_rule_and_optimizer_as_published():
    cells = expand(load_scenario(SCENARIO))
    found = {
        cell.labels["rule"]: (update.type, update.optimizer.type, update.optimizer.learning_rate)
        for cell in cells
        if (update := cell.scenario.sections.update) is not None
    }
    assert found == {
        "newton_clipped": ("sip", "sgd", 1e-2),
        "sign": ("sip", "sgd", 1e-2),
        "ground_truth": ("supervised", "sgd", 1e-2),
        "adjoint_sgd": ("dp", "sgd", 1e-2),
        "adjoint_adam": ("dp", "adam", 1e-3),
    }


def test_the_network_is_the_published_one(backend):
    made = case_of(load_scenario(SCENARIO, {**SHARP, "sweep": None}).sections, backend)
    assert sum(int(np.prod(value.shape)) for value in made.params.values()) == 2177


def final_error(**update: Any) -> float:
    """Mean |x − x*| of the last 200 of 1000 steps, from the same weights and batches."""
    keys = {f"update.{key}": value for key, value in update.items()}
    with using("jax", "cpu", "float64", "float32") as backend:
        sections = load_scenario(SCENARIO, {"data.validation": 2, "sweep": None, **keys}).sections
        made = case_of(sections, backend)
        start = made.trainer.start(made.params, made.buffers)
        records = [r["train_absolute_error"] for _, r in train(made.trainer, start, made.batches, 1000)]
    return float(np.mean(records[-200:]))


def test_steps_without_scale_learn_where_gradients_vanish():
    # Always predicting the mean of x* gives 3. Gradients through eˣ leave most of the interval worse than that (4.05),
    # the labels alone do not get beyond it yet (3.0), steps without a scale do (2.0 and 2.2).
    assert final_error(type="dp") > 3.8
    assert final_error(type="supervised") == pytest.approx(3.0, abs=0.1)
    assert final_error(inverse_solver={"type": "clipped_newton", "max_step": 0.5}) < 2.5
    assert final_error(inverse_solver="sign") < 2.5


def test_the_closed_form_refuses_other_losses():
    def load(solver: str, loss: str):
        changes = {"sweep": None, "update.type": "sip", "update.inverse_solver": solver}
        return load_scenario(SCENARIO, {**changes, "loss": {"type": loss, "on": "final.y"}})

    with pytest.raises(
        ScenarioError, match="'clipped_newton' has the derivatives of loss l2 only, not l1; set loss: l2"
    ):
        load("clipped_newton", "l1")
    load("clipped_newton", "l2")
    load("sign", "l1")
