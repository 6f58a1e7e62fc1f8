"""The rotated sine: published figures, derivatives in closed form, the closest preimage, and training with SIP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numeric_cases import case_of
from phiml import math
from phiml.math import batch, channel

from plugins.sine import PLUGIN, SineParameters, UniformOptions, frame, nearest_arcsine
from toolkit import Inputs, ScenarioError
from toolkit.core.backend import using
from toolkit.core.streams import stream
from toolkit.physics.inverse import flat_loss, natives, tensors
from toolkit.physics.solvers.newton import NEWTON
from toolkit.scenario.load import load_scenario
from toolkit.training.loop import train

SCENARIO = Path(__file__).parents[2] / "scenarios" / "sine.yaml"
METRIC = PLUGIN.control_metrics[0].measure
CASES = [(32.0, 45.0), (1.0, 45.0), (5.0, -20.0)]


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    with math.precision(64):
        yield


def matrix(parameters: SineParameters) -> np.ndarray:
    """M = diag(s/ξ, s·ξ) R(φ), written down once more."""
    c, s = np.cos(np.deg2rad(parameters.phi)), np.sin(np.deg2rad(parameters.phi))
    return np.diag([parameters.scale / parameters.xi, parameters.scale * parameters.xi]) @ np.array([[c, -s], [s, c]])


def case(backend: Any, xi: float, phi: float, **overrides: Any) -> Any:
    """The shipped scenario in float64 with another map."""
    keys = {"run.precision": "float64", "pde.xi": xi, "pde.phi": phi, "data.validation": 6, **overrides}
    return case_of(load_scenario(SCENARIO, keys).sections, backend)


def points(xi: float, phi: float, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """(x, y*) with h = M x spread over two periods of the sine and ±2 in the stiff direction."""
    rng = stream(3, "points")
    h = rng.uniform(-1, 1, (count, 2)) * [2 * np.pi, 2]
    return h @ np.linalg.inv(matrix(SineParameters(xi=xi, phi=phi))).T, rng.uniform(-1, 1, (count, 2))


def distance(parameters: SineParameters, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`x_distance` of arrays (count, 2)."""
    x_tensor = math.wrap(x, batch("sample"), channel(vector="x0,x1"))
    y_tensor = math.wrap(y, batch("sample"), channel(vector="y0,y1"))
    return METRIC(parameters, {"initial.x": x_tensor}, {"final.y": y_tensor}, {}).numpy("sample")


def solved(problem: Any, solver: Any, x: np.ndarray, y_target: np.ndarray, **options: Any) -> np.ndarray:
    """x̂ of a solver, compiled on JAX."""
    b = problem.backend
    inverse = problem.inverse_problem({})

    def function(x: Any, y_target: Any) -> Any:
        x0, target = {"initial.x": x}, {"final.y": y_target}
        solve = solver.build(inverse, solver.options(**options))
        y0 = problem.observe(x0, {})
        found = solve(tensors(x0, layouts), tensors(y0, observed), tensors(target, observed))
        return natives(found, layouts)["initial.x"]

    layouts, observed = inverse.controls, inverse.observations
    arguments = (b.array(x, "physics"), b.array(y_target, "physics"))
    return b.numpy(b.compile(function, *arguments)(*arguments))


def derivatives(problem: Any, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(∂L/∂x, ∂²L/∂x²) by automatic differentiation, compiled on JAX."""
    b, loss = problem.backend, flat_loss(problem.inverse_problem({}))

    def function(x: Any, y: Any) -> Any:
        return b.gradient_and_hessian(loss, x, {"final.y": y}, {})

    arguments = (b.array(x, "physics"), b.array(y, "physics"))
    gradient, hessian = b.compile(function, *arguments)(*arguments)
    return b.numpy(gradient), b.numpy(hessian)


# --- the map -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("xi", "phi"), CASES)
def test_the_map_is_the_published_one(backend, xi, phi):
    problem = case(backend, xi, phi).problem
    x, _ = points(xi, phi)
    h = x @ matrix(SineParameters(xi=xi, phi=phi)).T
    y = backend.numpy(problem.observe({"initial.x": backend.array(x, "physics")}, {})["final.y"])
    # h₂ is a difference of numbers up to (sξ)|x| = 6e3.
    np.testing.assert_allclose(y, np.stack([np.sin(h[:, 0]), h[:, 1]], axis=1), rtol=0, atol=1e-11)


def test_a_parameter_may_be_a_control(backend):
    pde = PLUGIN.build(None, SineParameters(xi=32, phi=45))
    x, _ = points(32.0, 45.0, 3)
    state = {"x": math.wrap(x, batch("sample"), channel(vector="x0,x1"))}
    given = {
        "xi": math.wrap([1.0, 5.0, 5.0], batch("sample")),
        "phi": math.wrap([45.0, -20.0, 0.0], batch("sample")),
    }
    together = pde.step(state, Inputs(parameter=given), 0.0, 1.0)["y"].numpy("sample,vector")
    for i, (xi, phi) in enumerate([(1.0, 45.0), (5.0, -20.0), (5.0, 0.0)]):
        h = matrix(SineParameters(xi=xi, phi=phi)) @ x[i]
        np.testing.assert_allclose(together[i], [np.sin(h[0]), h[1]], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("xi", [1.0, 32.0])
def test_xi_sets_the_condition_number(backend, xi):
    problem = case(backend, xi, 45.0).problem
    # At the minimum the Hessian is JᵀJ, whose condition number is the square: ξ⁴.
    _, hessian = derivatives(problem, np.zeros((1, 2)), np.zeros((1, 2)))
    assert np.linalg.cond(hessian[0]) == pytest.approx(xi**4, rel=1e-8)


@pytest.mark.parametrize(("xi", "expected"), [(1.0, 0.0826), (32.0, 1.825)])
def test_published_distance_and_loss_at_the_origin(xi, expected):
    parameters = SineParameters(xi=xi, phi=45)
    y = PLUGIN.samplers["uniform"].sample(None, parameters, UniformOptions(), stream(0, "test"), 100_000)["target.y"]
    # Means over 1e5 samples: three standard errors are below 0.5 %.
    assert np.mean(distance(parameters, np.zeros_like(y), y)) == pytest.approx(expected, rel=5e-3)
    # ½|0 − y|² for any ξ: 1/3, published as .3335.
    assert np.mean(0.5 * np.sum(y**2, axis=1)) == pytest.approx(1 / 3, rel=5e-3)


# --- derivatives and Newton's method -----------------------------------------------------------------------------


@pytest.mark.parametrize(("xi", "phi"), CASES)
def test_gradient_and_hessian_in_closed_form(backend, xi, phi):
    """g = Mᵀ(e ∘ (cos h₁, 1)) and H = Mᵀ diag(a) M, against automatic differentiation."""
    x, y = points(xi, phi)
    m = matrix(SineParameters(xi=xi, phi=phi))
    h = x @ m.T
    e = np.stack([np.sin(h[:, 0]), h[:, 1]], axis=1) - y
    a = np.stack([np.cos(h[:, 0]) ** 2 - e[:, 0] * np.sin(h[:, 0]), np.ones(len(h))], axis=1)
    expected_g = (e * np.stack([np.cos(h[:, 0]), np.ones(len(h))], axis=1)) @ m
    expected_h = np.einsum("ki,bk,kj->bij", m, a, m)
    g, hessian = derivatives(case(backend, xi, phi).problem, x, y)
    # Rounding relative to the largest entry, which is (sξ)² times larger than the smallest.
    np.testing.assert_allclose(g, expected_g, rtol=0, atol=1e-10 * np.abs(expected_g).max())
    np.testing.assert_allclose(hessian, expected_h, rtol=0, atol=1e-10 * np.abs(expected_h).max())


@pytest.mark.parametrize("limit", [0.2, None])
@pytest.mark.parametrize(("xi", "phi"), CASES)
def test_analytic_newton_is_the_generic_newton(backend, xi, phi, limit):
    problem = case(backend, xi, phi).problem
    x, y = points(xi, phi)
    steps = [
        solved(problem, solver, x, y, max_loss_change=limit) - x
        for solver in (PLUGIN.inverse_solvers["analytic_newton"], NEWTON)
    ]
    h = x @ matrix(SineParameters(xi=xi, phi=phi)).T
    e = np.sin(h[:, 0]) - y[:, 0]
    curvature = np.cos(h[:, 0]) ** 2 - e * np.sin(h[:, 0])
    assert (curvature < 0).any()
    assert (curvature > 0).any()
    # Numerical eigenvalues are good to ε times the largest one, so those of the flat direction to ε ξ⁴ / |a|; the
    # smallest |a| of these points is about 1e-2. Steps of a map without limit grow as 1/|a| too.
    scale = np.abs(steps[0]).max(axis=1, keepdims=True)
    tolerance = 1e-14 * xi**4 / np.abs(curvature)[:, None] + 1e-10
    assert np.all(np.abs(steps[0] - steps[1]) <= tolerance * scale)


def test_newton_descends_and_keeps_its_limit(backend):
    problem = case(backend, 32.0, 45.0).problem
    x, y = points(32.0, 45.0)
    step = solved(problem, PLUGIN.inverse_solvers["analytic_newton"], x, y) - x
    gradient, _ = derivatives(problem, x, y)
    change = np.sum(gradient * step, axis=1)
    assert np.all(change <= 0)
    # Along the flat direction, the first row of R.
    parameters = SineParameters(xi=32, phi=45)
    flat = matrix(parameters)[0] / np.linalg.norm(matrix(parameters)[0])
    first = (gradient @ flat) * (step @ flat)
    # 1e-9: g is up to 1e3 times larger in the other direction.
    assert np.all(np.abs(first) <= 0.2 + 1e-9)
    assert np.isclose(np.abs(first), 0.2, atol=1e-9).any()


# --- the closest preimage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-2, 0, 3])
@pytest.mark.parametrize("branch", [0, 1])
@pytest.mark.parametrize(("xi", "phi"), CASES)
def test_the_distance_vanishes_at_every_preimage(xi, phi, branch, shift):
    parameters = SineParameters(xi=xi, phi=phi)
    y = stream(4, "y").uniform(-1, 1, (50, 2))
    h1 = [np.arcsin(y[:, 0]), np.pi - np.arcsin(y[:, 0])][branch] + 2 * np.pi * shift
    x = np.stack([h1, y[:, 1]], axis=1) @ np.linalg.inv(matrix(parameters)).T
    # Rounding of h₁, up to 22, carried back by ξ/s.
    assert np.all(distance(parameters, x, y) < 1e-13 * (1 + xi))


def test_the_distance_is_that_of_the_nearest_of_many_preimages():
    parameters = SineParameters(xi=3.0, phi=20.0)
    x, y = points(3.0, 20.0)
    principal = np.arcsin(y[:, 0])
    inverse = np.linalg.inv(matrix(parameters))
    all_distances = [
        np.linalg.norm(np.stack([h1 + 2 * np.pi * k, y[:, 1]], axis=1) @ inverse.T - x, axis=1)
        for h1 in (principal, np.pi - principal)
        for k in range(-4, 5)
    ]
    # Rounding.
    np.testing.assert_allclose(distance(parameters, x, y), np.min(all_distances, axis=0), rtol=1e-9)


@pytest.mark.parametrize(("xi", "phi"), CASES)
def test_closest_preimage_is_exact_and_nearest(backend, xi, phi):
    problem = case(backend, xi, phi).problem
    parameters = SineParameters(xi=xi, phi=phi)
    x, y = points(xi, phi)
    found = solved(problem, PLUGIN.inverse_solvers["closest_preimage"], x, y)
    reached = backend.numpy(problem.observe({"initial.x": backend.array(found, "physics")}, {})["final.y"])
    # Rounding; h₂ loses ξ² between the small and the large sensitivity.
    np.testing.assert_allclose(reached, y, rtol=0, atol=1e-13 * xi**2)
    np.testing.assert_allclose(np.linalg.norm(found - x, axis=1), distance(parameters, x, y), rtol=1e-9)


def test_arcsine_clips_what_has_no_solution():
    y, h = math.wrap([1.5, -2.0, 0.0], batch("sample")), math.wrap([7.0, 1.0, 3.0], batch("sample"))
    np.testing.assert_allclose(nearest_arcsine(y, h).numpy("sample"), np.pi * np.array([2.5, -0.5, 1.0]), rtol=1e-12)


def test_the_reference_is_a_preimage_with_its_sine_on_the_principal_branch():
    parameters = SineParameters(xi=32, phi=45)
    drawn = PLUGIN.samplers["uniform"].sample(None, parameters, UniformOptions(), stream(0, "test"), 100)
    h = drawn["initial.x"] @ matrix(parameters).T
    assert np.all(np.abs(h[:, 0]) <= np.pi / 2)
    np.testing.assert_allclose(np.stack([np.sin(h[:, 0]), h[:, 1]], axis=1), drawn["target.y"], rtol=0, atol=1e-12)
    unknown = UniformOptions(reference=False)
    assert set(PLUGIN.samplers["uniform"].sample(None, parameters, unknown, stream(0, "test"), 1)) == {"target.y"}


def test_the_metric_says_what_it_needs():
    with pytest.raises(ScenarioError, match=r"acts_on: initial\.x"):
        METRIC(SineParameters(xi=1), {}, {}, {})


def test_a_frame_turns_back_what_it_turned():
    known = frame(SineParameters(xi=5, phi=30))
    x = math.wrap([[1.0, 2.0]], batch("sample"), channel(vector="x0,x1"))
    np.testing.assert_allclose(known.rotate_back(*known.rotate(x)).numpy("sample,vector"), [[1, 2]], rtol=1e-14)


# --- training ----------------------------------------------------------------------------------------------------


def distances(steps: int, **overrides: Any) -> np.ndarray:
    """`train_x_distance` per step of the shipped scenario."""
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    with using("jax", "cpu", "float64", "float32") as backend:
        made = case_of(load_scenario(SCENARIO, {"data.validation": 4, **keys}).sections, backend)
        start = made.trainer.start(made.params, made.buffers)
        return np.array([r["train_x_distance"] for _, r in train(made.trainer, start, made.batches, steps)])


def test_sip_finds_the_preimage_where_adam_is_stuck():
    sip = distances(1000)
    adam = distances(1000, update__type="dp")
    assert sip[0] == adam[0]
    # Published: < .05 and > 1.5 after 1000 steps.
    assert np.mean(sip[-100:]) < 0.05
    assert np.mean(adam[-100:]) > 1.5


@pytest.mark.parametrize(
    "update",
    [{"update.proxy": "l2"}, {"update.inverse_solver": "newton"}, {"update.inverse_solver": "closest_preimage"}],
)
def test_variants_of_sip_learn_as_well(update):
    found = distances(600, **update)
    # .05 is reached at about step 700 by all of them; three times that, against a plateau of 1.8.
    assert np.mean(found[-100:]) < 0.15


def test_all_is_well_when_well_conditioned():
    sip, adam = distances(600, pde__xi=1), distances(600, pde__xi=1, update__type="dp")
    # Both fall from .08 below .003 by step 600 (1e-3 by step 3000).
    assert np.mean(sip[-100:]) < 0.003
    assert np.mean(adam[-100:]) < 0.004


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "l1"}, "'analytic_newton' has the derivatives of loss l2 only, not l1; set loss: l2"),
        ({"loss": {"type": "l2", "on": "final.y", "weight": 2.0}}, r"set loss.weight: 1 or max_loss_change: null"),
    ],
)
def test_the_closed_form_refuses_other_losses(changes, words):
    changes = {
        key: {"on": "final.y", "type": value} if isinstance(value, str) else value for key, value in changes.items()
    }
    with pytest.raises(ScenarioError, match=r"update\.inverse_solver: inverse solver " + ".*" + words):
        load_scenario(SCENARIO, {"update.inverse_solver": "analytic_newton", **changes})
    free = {"type": "analytic_newton", "max_loss_change": None}
    weighted = {"type": "l2", "on": "final.y", "weight": 2.0}
    load_scenario(SCENARIO, {"update.inverse_solver": free, "loss": weighted})
