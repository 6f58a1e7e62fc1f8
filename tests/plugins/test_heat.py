"""Heat: exact decay, forcing and gradients; the damped inverse and its iteration; statistics of the samplers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numeric_cases import relative
from phiml import math
from phiml.math import batch, spatial

from plugins.heat import PLUGIN, HeatParameters, damping_exponent
from plugins.heat_samplers import CosineOptions, HotRectanglesOptions
from toolkit.physics.grid import Grid
from toolkit.physics.layout import Layout
from toolkit.physics.losses import L2
from toolkit.physics.plugin import Inputs
from toolkit.physics.rollout import Controls, Rollout
from toolkit.scenario.build import build
from toolkit.scenario.load import load_scenario
from toolkit.scenario.sweep import expand
from toolkit.training.loop import evaluate, train
from toolkit.training.problem import Batch, Control, LossTerm, Problem

SCENARIOS = Path(__file__).resolve().parents[2] / "scenarios"
SAMPLER = PLUGIN.samplers["hot_rectangles"]
CELLS = {"x": 12, "y": 10, "z": 8}
D, DT = 0.7, 0.3


def grid(axes: str, dx: float) -> Grid:
    """Cells of size dx along x, 1.5 dx along y and 2 dx along z; as many as in CELLS."""
    sizes = dict(zip("xyz", (dx, 1.5 * dx, 2 * dx), strict=True))
    return Grid({a: CELLS[a] for a in axes}, {a: CELLS[a] * sizes[a] for a in axes})


def heat(grid: Grid, diffusivity: float = D, **parameters: Any) -> Any:
    return PLUGIN.build(grid, HeatParameters(diffusivity=diffusivity, **parameters))


def rollout(backend, grid: Grid, steps: int = 1, dt: float = DT, diffusivity: float = D) -> Rollout:
    layout = Layout((), dict(grid.cells))
    return Rollout(backend, heat(grid, diffusivity), {"temperature": layout}, {"diffusivity": Layout()}, steps, dt)


def mode(grid: Grid, waves: tuple[int, ...] = (1, 2, 1), phase: float = 0.4) -> tuple[np.ndarray, float]:
    """(Π cos(k_a a + phase) on the grid, |k|²)."""
    wave, squared = np.ones(grid.shape), 0.0
    for i, axis in enumerate(grid.axes):
        k = 2 * np.pi * waves[i] / grid.extent[axis]
        along = np.cos(k * grid.coordinates(axis) + phase)
        wave = wave * along.reshape([-1 if j == i else 1 for j in range(len(grid.axes))])
        squared += k**2
    return wave, squared


def compiled(backend, function, *arrays: np.ndarray) -> np.ndarray:
    natives = [backend.array(a, "physics") for a in arrays]
    return backend.numpy(backend.compile(function, *natives)(*natives))


# --- forward ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dx", [0.3, 1.0, 2.7])
@pytest.mark.parametrize("axes", ["x", "xy", "xyz"])
def test_a_mode_decays_exactly_for_any_cell_size(backend, axes, dx):
    g = grid(axes, dx)
    # A time in which the mode loses a few e-foldings whatever its wavelength; cells are not 1 and not square.
    wave, squared = mode(g)
    dt = 2.0 / (D * squared)
    roll = rollout(backend, g, dt=dt)
    found = compiled(backend, lambda u: roll({"temperature": u}).final["temperature"], 3 + wave[None])
    # Relative to the decayed amplitude: rounding of one FFT pair.
    assert np.max(np.abs(found[0] - 3 - np.exp(-2.0) * wave)) < 1e-12 * np.exp(-2.0) * np.max(np.abs(wave))


def test_steps_add_up(backend):
    """Steps compose: the scheme has no error in time that more steps could change."""
    g = grid("xy", 1.3)
    u = np.random.default_rng(0).standard_normal((2, *g.shape))
    one, five = rollout(backend, g, 1, DT), rollout(backend, g, 5, DT / 5)
    ends = [compiled(backend, lambda u, r=r: r({"temperature": u}).final["temperature"], u) for r in (one, five)]
    assert relative(*ends) < 1e-13


@pytest.mark.parametrize("kind", ["force", "source"])
@pytest.mark.parametrize("diffusivity", [D, 3e-3, 1e-7])
def test_constant_heating_follows_the_analytic_solution(backend, kind, diffusivity):
    """û(T) = e^{−λT} û(0) + (1 − e^{−λT}) / λ f, λ = D|k|².

    (1 − e^{−ℓ}) / ℓ has two branches: ℓ is 0.2, 9e-4 where its series ends to count, and 3e-8.
    """
    g, steps = grid("xy", 1.0), 4
    wave, squared = mode(g)
    roll = rollout(backend, g, steps, diffusivity=diffusivity)
    rate, duration = diffusivity * squared, steps * DT
    strength = 1.7

    def final(u: Any, f: Any) -> Any:
        if kind == "force":
            controls = Controls(force={"temperature": backend.xp.stack([f] * steps, axis=1)})
        else:
            controls = Controls(source={"temperature": f})
        return roll({"temperature": u}, controls).final["temperature"]

    found = compiled(backend, final, wave[None], strength * (wave + 0.5)[None])
    expected = np.exp(-rate * duration) * wave - np.expm1(-rate * duration) / rate * strength * wave
    expected = expected + 0.5 * strength * duration  # the mean only gains
    assert relative(found[0], expected) < 1e-13


def test_order_of_dimensions_does_not_matter(backend):
    g = grid("xy", 0.8)
    u = np.random.default_rng(1).standard_normal((2, *g.shape))
    pde = heat(g)
    straight = math.tensor(u, batch("sample"), spatial("x,y"))
    turned = math.tensor(u.transpose(2, 1, 0), spatial("y,x"), batch("sample"))
    results = [
        pde.step({"temperature": t}, Inputs(), 0.0, DT)["temperature"].numpy("sample,x,y") for t in (straight, turned)
    ]
    assert relative(*results) < 1e-14


def test_exchanging_the_axes_exchanges_the_solution(backend):
    """A 12 x 10 grid with its extents, and the same turned by 90°."""
    g = grid("xy", 0.8)
    turned = Grid({"x": 10, "y": 12}, {"x": g.extent["y"], "y": g.extent["x"]})
    u = np.random.default_rng(2).standard_normal((1, *g.shape))
    first = compiled(backend, lambda u: rollout(backend, g)({"temperature": u}).final["temperature"], u)
    second = compiled(
        backend, lambda u: rollout(backend, turned)({"temperature": u}).final["temperature"], u.transpose(0, 2, 1)
    )
    assert relative(first, second.transpose(0, 2, 1)) < 1e-13


def test_gradient_with_respect_to_the_diffusivity(backend):
    """∂/∂D ½Σu(T)² of one mode is −|k|²T Σu(T)²."""
    g, steps = grid("xy", 1.0), 3
    wave, squared = mode(g)
    roll = rollout(backend, g, steps)
    u = backend.array(np.stack([wave, wave]), "physics")
    given = np.array([0.7, 1.9])

    def half_square(diffusivity: Any) -> Any:
        final = roll({"temperature": u}, Controls(parameter={"diffusivity": diffusivity})).final["temperature"]
        return 0.5 * backend.xp.sum(final**2), ()

    def gradient(diffusivity: Any) -> Any:
        return backend.value_and_gradient(half_square, diffusivity)[2]

    found = compiled(backend, gradient, given)
    duration = steps * DT
    energy = np.exp(-2 * given * squared * duration) * np.sum(wave**2)
    assert relative(found, -squared * duration * energy) < 1e-12
    h = 1e-6
    ends = [compiled(backend, lambda d: half_square(d)[0], given + s * np.array([h, 0])) for s in (1, -1)]
    assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(found[0], rel=1e-7)  # h² plus rounding over h


# --- damped inverse -----------------------------------------------------------------------------------------------

PAPER = Grid({"x": 64, "y": 64}, {"x": 64.0, "y": 64.0})


def inverse_iteration(backend, x_true: np.ndarray, calls: int, **options: Any) -> list[np.ndarray]:
    """x after 0, 1, … calls of the damped inverse from x = 0, on the published grid with D t = 8."""
    layout = Layout((), dict(PAPER.cells))
    plugin = PLUGIN.inverse_solvers["damped_spectral"]
    roll = rollout(backend, PAPER, 1, 1.0, 8.0)
    problem = Problem(
        backend=backend,
        plugin=PLUGIN,
        parameters=HeatParameters(diffusivity=8.0),
        grid=PAPER,
        rollout=roll,
        controls=(Control("u0", "initial.temperature", layout),),
        networks=(),
        terms=(LossTerm("final.temperature", L2),),
        observations={"final.temperature": layout},
        solver=(plugin, plugin.options(**options)),
    )

    def step(x: Any, y_target: Any) -> Any:
        x, y_target = {"initial.temperature": x}, {"final.temperature": y_target}
        return problem.invert(x, problem.observe(x, {}), y_target, {})["initial.temperature"]

    truth = backend.array(x_true, "physics")
    y_target = problem.observe({"initial.temperature": truth}, {})["final.temperature"]
    step = backend.compile(step, truth, y_target)
    x = [backend.array(np.zeros_like(x_true), "physics")]
    for _ in range(calls):
        x.append(step(x[-1], y_target))
    return [backend.numpy(value) for value in x]


def half_square(a: np.ndarray) -> np.ndarray:
    return 0.5 * np.sum(a**2, axis=(1, 2))


def rectangles(count: int, seed: int = 0) -> np.ndarray:
    parameters, options = HeatParameters(diffusivity=8.0), HotRectanglesOptions()
    drawn = SAMPLER.sample(PAPER, parameters, options, np.random.default_rng(seed), count)
    return drawn["initial.temperature"]


def test_largest_decay_of_the_published_case():
    decay = heat(PAPER, 8.0).decay(1.0)
    # 8 (2π)² (½² + ½²)
    assert float(math.max(decay)) == pytest.approx(157.914, abs=1e-3)
    assert float(math.min(decay)) == 0


def test_one_inverse_step_from_zero(backend):
    x_true = rectangles(16)
    start, x = inverse_iteration(backend, x_true, 1)
    assert np.mean(half_square(x - x_true)) < np.mean(half_square(start - x_true)) / 12
    before, after = (np.mean(np.sum(np.abs(v - x_true), axis=(1, 2))) for v in (start, x))
    assert after < 0.45 * before
    # The modes that carry y are inverted fully; what is left in y is the noise they are trusted above.
    k2 = np.asarray(sum(k**2 for k in PAPER.wavenumbers()))
    y_error = np.fft.ifft2(np.fft.fft2(x - x_true) * np.exp(-8 * k2)).real
    assert np.mean(half_square(y_error)) < 1e-11


def test_iterating_the_inverse_explodes_without_the_noise_floor_and_stays_with_it(backend):
    """The third call inverts rounding errors of a vanished difference unless they count as noise."""
    x_true = rectangles(8)
    without = [np.mean(half_square(x - x_true)) for x in inverse_iteration(backend, x_true, 3, noise_floor=0.0)]
    assert without[2] < without[0] / 12
    assert without[3] > 100 * without[0]
    floored = [np.mean(half_square(x - x_true)) for x in inverse_iteration(backend, x_true, 100)]
    assert floored[100] <= floored[2] < floored[1]
    # It creeps further by less than 2 % in 98 calls.
    assert floored[100] == pytest.approx(floored[2], rel=0.02)


def trust(backend, amplitude: np.ndarray, decay: np.ndarray, noise: float, points: float) -> np.ndarray:
    """A(k) of a one-dimensional spectrum."""
    spectrum = Layout((), {"x": len(decay)})
    a, ell = (spectrum.wrap(backend.array(v[None], "physics")) for v in (amplitude, decay))
    sigma = Layout().wrap(backend.array(np.array([noise]), "physics"))
    return backend.numpy(spectrum.native(damping_exponent(a, ell, sigma, points, 0.68), 1))[0]


@pytest.mark.parametrize(("amplitude", "noise"), [(0.0, 1e-6), (1.0, 0.0), (1e-12, 1e-6), (1e3, 1e-6), (0.0, 0.0)])
def test_trust_is_full_at_the_mean_and_neutral_where_nothing_is_known(backend, amplitude, noise):
    """K = e^{ℓA}: 1 at k = 0 whatever A; p = ½ at amplitude 0, hence A = 0 and K = 1; never NaN."""
    decay = np.array([0.0, 5.0, 13.0, 20.0, 157.9, 700.0])
    found = trust(backend, np.full(6, amplitude), decay, noise, 64.0)
    assert np.all(np.abs(found) <= 1)  # false for NaN
    kernel = np.exp(decay * found)
    assert np.all(np.isfinite(kernel))
    assert kernel[0] == 1
    if amplitude > noise > 0:
        assert found[-1] == -1  # a mode that cannot have survived is noise
    if amplitude == 0:
        assert np.all(found == 0)


def test_trust_is_the_logistic_of_the_published_probabilities(backend):
    decay, amplitude, noise, n = np.array([2.0, 2.0, 6.0, 9.0]), np.array([3.0, 0.03, 0.1, 0.05]), 0.04, 16.0
    signal = n * np.exp(-decay)
    s, r = (0.5 * np.exp(-0.5 * (amplitude / scale) ** 2) for scale in (signal, noise))
    p = s / (s + r)
    expected = np.where((p > 0.5) & (p < 0.68), 0, 2 * p - 1)
    found = trust(backend, amplitude, decay, noise, n)
    assert np.allclose(found, expected, atol=1e-14)
    assert found[0] > 0.99  # this one stands out of the noise
    assert 0.5 < p[1] < 0.68
    assert found[1] == 0  # not sure enough to act
    assert -1 <= found[3] < found[2] < 0  # what cannot have survived is diffused once more


# --- samplers -----------------------------------------------------------------------------------------------------


def test_expected_heat_of_the_rectangles():
    """E Σx* = E[n] E[strength] E[area] = 7 · ½ · 10² = 350: half edges are U(0, 10), so edges average 10."""
    total = np.sum(rectangles(600), axis=(1, 2))
    error = np.std(total) / np.sqrt(len(total))
    assert error < 12
    # Four standard errors: a failure by chance once in 16 000; soft edges add no bias on average.
    assert abs(np.mean(total) - 350) < 4 * error


def test_rectangles_are_soft_boxes_inside_the_domain():
    parameters = HeatParameters(diffusivity=1.0)
    options = HotRectanglesOptions(boxes=(1, 1), half_size=(6.0, 6.0), strength=(2.0, 2.0))
    drawn = SAMPLER.sample(PAPER, parameters, options, np.random.default_rng(0), 5)["initial.temperature"]
    assert np.max(drawn) == 2
    assert np.min(drawn) == 0
    for u in drawn:
        # 12 cells across, and an edge cell that is partly inside on either side.
        for along in (u.max(axis=0), u.max(axis=1)):
            assert 12 <= np.count_nonzero(along) <= 14
            assert 11 <= np.count_nonzero(along == 2) <= 12


def test_cosine_sampler_is_an_eigenmode(backend):
    g = grid("xy", 0.5)
    sampler = PLUGIN.samplers["cosine"]
    drawn = sampler.sample(g, None, CosineOptions(waves=2, amplitude=3.0), np.random.default_rng(0), 2)
    u = drawn["initial.temperature"]
    rate = D * sum((4 * np.pi / length) ** 2 for length in g.extent.values())
    found = compiled(backend, lambda u: rollout(backend, g)({"temperature": u}).final["temperature"], u)
    assert np.max(np.abs(found - np.exp(-rate * DT) * u)) < 1e-13


@pytest.mark.parametrize(
    ("sampler", "options", "words"),
    [
        ("hot_rectangles", {"half_size": (0.0, 40.0)}, "data.half_size: boxes of edge 80 do not fit"),
        ("hot_rectangles", {"boxes": (5, 2)}, "data.boxes: the first of"),
        ("hot_rectangles", {"boxes": (-1, 2)}, "must not be negative"),
        ("cosine", {"waves": 32}, "32 waves need more than 64 cells"),
    ],
)
def test_samplers_refuse_what_does_not_fit_the_grid(sampler, options, words):
    plugin = PLUGIN.samplers[sampler]
    assert words in plugin.check(PAPER, None, plugin.options(**options))
    assert plugin.check(PAPER, None, plugin.options()) is None


# --- constraint and monitor ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("match", [True, False])
def test_predictions_take_the_mean_of_the_target(match):
    rng = np.random.default_rng(0)
    x, y = (math.tensor(rng.standard_normal((3, 8)), batch("sample"), spatial("x")) for _ in range(2))
    parameters = HeatParameters(diffusivity=1.0, match_mean=match)
    assert PLUGIN.correct_controls is not None
    x_y = {"initial.temperature": x}, {"final.temperature": y}
    # A source adds heat: then the mean of the target is not that of the start.
    heated = PLUGIN.correct_controls(parameters, *x_y, frozenset({"source.temperature"}))
    assert heated["initial.temperature"] is x
    shifted = PLUGIN.correct_controls(parameters, *x_y, frozenset({"parameter.diffusivity"}))
    found, given, wanted = (t.numpy("sample,x") for t in (shifted["initial.temperature"], x, y))
    expected = given + (wanted.mean(1) - given.mean(1))[:, None] if match else given
    assert np.allclose(found, expected, atol=1e-15)


def test_monitor_sees_a_drifting_mean():
    (monitor,) = PLUGIN.monitors(None, None)
    u = math.tensor([[1.0, -1.0, 1.0, -1.0], [2.0, 2.0, 2.0, 2.0]], batch("sample"), spatial("x"))
    drift = monitor.measure({"temperature": u}, {"temperature": u + 0.5}).numpy("sample")
    assert np.allclose(drift, [0.5, 0.25], rtol=1e-14)


# --- metric and direct optimisation -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["x", "xy"])
def test_clipped_l1_is_that_of_numpy(backend, shape):
    rng = np.random.default_rng(0)
    g = grid(shape, 1.0)
    x, truth = rng.standard_normal((2, 4, *g.shape))
    layout = Layout((), dict(g.cells))
    problem = Problem(
        backend=backend,
        plugin=PLUGIN,
        parameters=HeatParameters(diffusivity=D),
        grid=g,
        rollout=rollout(backend, g),
        controls=(Control("u0", "initial.temperature", layout),),
        networks=(),
        terms=(),
        observations={},
    )
    native = {"initial.temperature": backend.array(x, "physics")}
    references = {"initial.temperature": backend.array(truth, "physics")}
    found = problem.control_metrics(native, Batch(references=references))
    assert list(found) == ["clipped_l1"]
    expected = np.sum(np.abs(np.maximum(x, 0) - truth).reshape(4, -1), axis=1)
    # A sum of at most 120 terms.
    np.testing.assert_allclose(backend.numpy(found["clipped_l1"]), expected, rtol=1e-14)
    assert problem.control_metrics(native, Batch()) == {}


def test_clipped_l1_clips_temperatures_alone(backend):
    """A force may cool and a diffusivity has no cells; both count as they are."""
    (metric,) = PLUGIN.control_metrics
    rng = np.random.default_rng(1)
    u, u_true = rng.standard_normal((2, 3, 5))
    f, f_true = rng.standard_normal((2, 3, 4, 5))
    d, d_true = rng.standard_normal((2, 3))

    def state(u: Any, f: Any, d: Any) -> dict[str, Any]:
        return {
            "initial.temperature": math.tensor(u, batch("sample"), spatial("x")),
            "force.temperature": math.tensor(f, batch("sample,t"), spatial("x")),
            "parameter.diffusivity": math.tensor(d, batch("sample")),
        }

    found = metric.measure(None, state(u, f, d), {}, state(u_true, f_true, d_true))
    expected = np.abs(np.maximum(u, 0) - u_true).sum(1) + np.abs(f - f_true).sum((1, 2)) + np.abs(d - d_true)
    np.testing.assert_allclose(found.numpy("sample"), expected, rtol=1e-14)


# Both backends' steps are tested above; compiling the search of L-BFGS on JAX would take longest here.
@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_fields_optimised_one_by_one_are_found_by_sip_and_not_by_gradient_descent(backend):
    """The scenario with few samples on a quarter of the grid; three steps of each rule from zero."""
    small = {"grid": {"cells": {"x": 32, "y": 32}, "extent": {"x": 32, "y": 32}}, "data.validation": 4}
    found, start = {}, np.zeros(4)
    for cell in expand(load_scenario(SCENARIOS / "heat_direct.yaml", small)):
        built = build(cell.scenario.sections, backend, lambda path: {})
        assert built.trainer is not None
        assert built.batches is not None
        assert built.validation is not None
        state = built.trainer.start(built.params, built.buffers)
        assert not any(np.any(backend.numpy(v)) for v in state.params.values())
        start = backend.numpy(evaluate(built.problem, state.params, {}, built.validation).loss)
        for now, _ in train(built.trainer, state, built.batches, 3):
            state = now
        result = evaluate(built.problem, state.params, {}, built.validation)
        assert result.control_error is not None
        arrays = (result.loss, result.control_error, result.control_metrics["clipped_l1"])
        found[cell.labels["rule"]] = [backend.numpy(v) for v in arrays]
    loss, error, clipped = found["sip"]
    assert np.max(loss) < 1e-10
    # Gradient descent has found the longest waves alone; L-BFGS lowers the sum of all losses.
    slow, slow_error, slow_clipped = found["gradient_descent"]
    assert np.all((slow < start) & (slow > 1e6 * loss))
    assert np.all(error < 0.5 * slow_error)
    assert np.all(clipped < slow_clipped)
    assert np.max(loss) < np.sum(found["lbfgs"][0]) < np.sum(start)
