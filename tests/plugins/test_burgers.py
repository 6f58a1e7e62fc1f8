"""Burgers: orders against Cole–Hopf, invariants, PhiFlow's own operators, reversal in time, the published control."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numeric_cases import case_of, relative
from phi.physics import advect, diffuse
from phiml import math
from phiml.math import batch, spatial
from whole_runs import samples_file

from plugins.burgers import PLUGIN, BurgersParameters
from plugins.burgers_samplers import EvolvedSineOptions, RandomWavesOptions, cole_hopf
from toolkit.core.backend import using
from toolkit.core.errors import ScenarioError
from toolkit.physics.grid import Grid
from toolkit.physics.layout import Layout
from toolkit.physics.losses import L2
from toolkit.physics.plugin import Inputs
from toolkit.physics.rollout import Controls, Rollout
from toolkit.scenario.load import load_scenario, scenario_from_text
from toolkit.training.problem import Control, LossTerm, Problem

SCENARIOS = Path(__file__).parents[2] / "scenarios"
SCHEMES = ("finite_difference", "spectral", "semi_lagrangian")
LENGTH = 3.0


def line(cells: int) -> Grid:
    return Grid({"x": cells}, {"x": LENGTH})


def rollout(backend, cells: int, scheme: str, steps: int, dt: float, viscosity: float = 0.02) -> Rollout:
    grid = line(cells)
    parameters = BurgersParameters(viscosity=viscosity, scheme=scheme)  # type: ignore[arg-type]
    layouts = {"velocity": Layout((), dict(grid.cells))}
    return Rollout(backend, PLUGIN.build(grid, parameters), layouts, {"viscosity": Layout()}, steps, dt)


def final(roll: Rollout, u: np.ndarray, **controls: dict[str, Any]) -> np.ndarray:
    """The velocity (sample, x) after all steps; compiled on JAX, traced on torch."""
    b = roll.backend
    native = b.array(u, "physics")
    roll.prepare({"velocity": native}, Controls(**controls))

    def run(u: Any) -> Any:
        return roll({"velocity": u}, Controls(**controls)).final["velocity"]

    return b.numpy(b.without_gradient(b.compile(run, native), native))


def waves(cells: int, count: int = 2, seed: int = 0) -> np.ndarray:
    sampler = PLUGIN.samplers["random_waves"]
    rng = np.random.default_rng(seed)
    return sampler.sample(line(cells), None, RandomWavesOptions(), rng, count)["initial.velocity"]


def error(backend, scheme: str, cells: int, steps: int, duration: float = 0.4, viscosity: float = 0.15) -> float:
    """Largest error against the closed form; the front is as wide as a tenth of the line."""
    grid = line(cells)
    start, end = (cole_hopf(grid, viscosity, 1, 1.3, t)[None] for t in (0.0, duration))
    found = final(rollout(backend, cells, scheme, steps, duration / steps, viscosity), start)
    return float(np.max(np.abs(found - end)))


# --- accuracy -----------------------------------------------------------------------------------------------------


def test_finite_differences_are_of_second_order_in_space(backend):
    coarse, fine = (error(backend, "finite_difference", cells, 80) for cells in (40, 80))
    # Measured 2.0; the error in time is 1e-4 of that in space.
    assert np.log2(coarse / fine) == pytest.approx(2, abs=0.1)
    assert fine < 1e-3


def test_the_spectral_scheme_converges_faster_than_any_power(backend):
    errors = [error(backend, "spectral", cells, 160) for cells in (16, 32, 64)]
    # The solution's modes fall like e^{−0.8 m}: each doubling squares the error.
    assert errors[1] < errors[0] / 30
    assert errors[2] < errors[1] / 500
    assert errors[2] < 1e-7


def test_semi_lagrangian_is_of_first_order(backend):
    # Steps as long as cells; diffusion numbers 0.24 and 0.48.
    coarse, fine = (error(backend, "semi_lagrangian", n, 75 * n // 64, 2.0, 0.02) for n in (64, 128))
    assert np.log2(coarse / fine) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("scheme", ["finite_difference", "spectral"])
def test_runge_kutta_is_of_fourth_order_with_a_force(backend, scheme):
    u, f = waves(32, 1), waves(32, 1, seed=1)
    ends = []
    for steps in (10, 20, 160):
        force = backend.array(np.repeat(f[:, None], steps, axis=1), "physics")
        ends.append(final(rollout(backend, 32, scheme, steps, 0.8 / steps, 0.01), u, force={"velocity": force}))
    coarse, fine = (np.max(np.abs(end - ends[-1])) for end in ends[:-1])
    assert np.log2(coarse / fine) == pytest.approx(4, abs=0.35)


@pytest.mark.parametrize("scheme", ["finite_difference", "spectral"])
def test_momentum_is_conserved_and_a_uniform_force_adds_to_it(backend, scheme):
    u = 0.3 + waves(24)
    source = backend.array(np.full_like(u, 0.7), "physics")
    for given, gain in (({}, 0.0), ({"source": {"velocity": source}}, 0.7 * 12 * 0.02)):
        found = final(rollout(backend, 24, scheme, 12, 0.02), u, **given)
        # Sums of 24 numbers, 12 steps of rounding.
        np.testing.assert_allclose(found.mean(1), u.mean(1) + gain, rtol=0, atol=1e-14)


def test_differences_conserve_energy_but_for_the_error_in_time(backend):
    u = waves(24)
    found = final(rollout(backend, 24, "finite_difference", 10, 0.01, viscosity=0.0), u)
    # RK4 changes the energy by O(dt⁵) per step; the plain form of the transport loses 1e-4 here.
    np.testing.assert_allclose(np.sum(found**2, 1), np.sum(u**2, 1), rtol=1e-9)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_shifted_starts_give_shifted_ends_and_mirrored_ones_mirrored(backend, scheme):
    u = waves(20, 1)
    turned = np.concatenate([u, np.roll(u, 7, axis=1), -u[:, ::-1]])
    end = final(rollout(backend, 20, scheme, 5, 0.03), turned)
    # Rounding; linear interpolation is continuous across cells.
    assert relative(end[1], np.roll(end[0], 7)) < 1e-13
    assert relative(end[2], -end[0][::-1]) < 1e-13


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_semi_lagrangian_is_phiflows(backend):
    """Diffusion and self-advection by PhiFlow's operators, with shifts of several cells; slow on JAX, op by op."""
    grid, u, dt, viscosity = line(16), 2 * waves(16), 0.3, 0.01
    found = final(rollout(backend, 16, "semi_lagrangian", 1, dt, viscosity), u)
    values = math.reshaped_tensor(backend.array(u, "physics"), [batch("sample"), spatial("x")])
    velocity = grid.field(values)
    v = diffuse.explicit(velocity, viscosity, dt, substeps=1)
    expected = advect.semi_lagrangian(v, v, dt).values.numpy("sample,x")
    assert relative(found, expected) < 1e-13  # positions in units of length there, of cells here
    assert np.max(np.abs(found - u)) > 0.1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradient_with_respect_to_start_force_and_viscosity(backend, scheme):
    rng, steps = np.random.default_rng(3), 3
    roll = rollout(backend, 12, scheme, steps, 0.1)
    x = {"u": waves(12), "f": rng.standard_normal((2, steps, 12)), "nu": np.array([0.01, 0.03])}
    direction = {name: rng.standard_normal(value.shape) for name, value in x.items()}
    direction["nu"] *= 0.1

    def loss(x: Any) -> Any:
        controls = Controls(force={"velocity": x["f"]}, parameter={"viscosity": x["nu"]})
        return backend.xp.sum(roll({"velocity": x["u"]}, controls).final["velocity"] ** 2), ()

    at = {name: backend.array(value, "physics") for name, value in x.items()}
    run = backend.compile(lambda x: backend.value_and_gradient(loss, x)[0::2], at)
    gradient = run(at)[1]
    exact = sum(np.sum(backend.numpy(gradient[name]) * direction[name]) for name in x)
    h = 1e-6
    ends = [
        float(run({name: backend.array(x[name] + s * h * direction[name], "physics") for name in x})[0])
        for s in (1, -1)
    ]
    # h² plus rounding over h.
    assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(exact, rel=1e-7)


def test_order_of_dimensions_does_not_matter():
    u = waves(12)
    for scheme in SCHEMES:
        pde = PLUGIN.build(line(12), BurgersParameters(viscosity=0.02, scheme=scheme))
        given = math.tensor(u, batch("sample"), spatial("x")), math.tensor(u.T, spatial("x"), batch("sample"))
        ends = [pde.step({"velocity": v}, Inputs(), 0.0, 0.1)["velocity"].numpy("sample,x") for v in given]
        assert relative(*ends) < 1e-14


# --- reversal in time ---------------------------------------------------------------------------------------------


def reversal(backend, cells: int, steps: int, dt: float, viscosity: float = 1e-3, **options: Any) -> Problem:
    plugin, roll = PLUGIN.inverse_solvers["time_reversal"], rollout(backend, cells, "semi_lagrangian", steps, dt)
    parameters = BurgersParameters(viscosity=viscosity, scheme="semi_lagrangian")
    roll = replace(roll, pde=PLUGIN.build(line(cells), parameters), _traced={})
    layout = Layout((), {"x": cells})
    return Problem(
        backend=backend,
        plugin=PLUGIN,
        parameters=parameters,
        grid=line(cells),
        rollout=roll,
        controls=(Control("u0", "initial.velocity", layout),),
        networks=(),
        terms=(LossTerm("final.velocity", L2),),
        observations={"final.velocity": layout},
        solver=(plugin, plugin.options(**options)),
    )


def reversed_from(problem: Problem, x: np.ndarray, y_target: np.ndarray, calls: int = 1) -> np.ndarray:
    b = problem.backend

    def solve(x: Any, y: Any) -> Any:
        for _ in range(calls):
            now = {"initial.velocity": x}
            x = problem.invert(now, problem.observe(now, {}), {"final.velocity": y}, {})["initial.velocity"]
        return x

    natives = b.array(x, "physics"), b.array(y_target, "physics")
    return b.numpy(b.without_gradient(b.compile(solve, *natives), *natives))


def test_reversal_finds_the_start_of_smooth_motion(backend):
    """From zero, where R(y₀) = 0: the error is that of the interpolation, which further calls reduce."""
    errors = []
    for cells in (64, 128):
        problem, truth = reversal(backend, cells, 8, 0.03, iterations=12), waves(cells, 2)
        target = final(problem.rollout, truth)
        # dt |∂u/∂x| is at most 0.2: far from a shock, yet the start has moved and steepened.
        assert relative(target, truth) > 0.2
        errors.append(relative(reversed_from(problem, np.zeros_like(truth), target), truth))
    # Each linear interpolation smooths, there and back, by up to dx²/8 of u'': 11 % and 5 % after 8 steps; order 1,
    # because finer cells are crossed in the same time. Three calls leave 0.6 %.
    assert errors[1] < 0.055
    assert errors[1] < errors[0] / 1.9
    assert relative(reversed_from(problem, np.zeros_like(truth), target, calls=3), truth) < 0.008


def test_sip_with_the_reversal_in_a_scenario(backend):
    """The control problem, stopped before the shock of t = 1/π; direct optimisation, one call per update."""
    changes = {
        "grid.cells": {"x": 64},
        "time.steps": 6,
        "data": {"type": "sine", "amplitude": -1.0, "train": 1, "validation": 1},
        "update": {
            "type": "sip",
            "inverse_solver": "time_reversal",
            "optimizer": {"type": "sgd", "learning_rate": 1.0},
        },
    }
    case = case_of(load_scenario(SCENARIOS / "burgers_control.yaml", changes).sections, backend)
    state, losses = case.trainer.start(case.params, case.buffers), []
    for k in range(4):
        state, record = case.trainer.step(state, case.batches(k))
        losses.append(float(record["train_loss"]))
    # Half the mean square of a sine, which has lost a little; each call leaves a few per cent, squared here.
    assert losses[0] == pytest.approx(0.25, rel=0.05)
    assert losses[1] < 0.01 * losses[0]
    assert losses[3] < 0.1 * losses[1]


def test_a_shock_keeps_its_start_and_leaves_the_other_samples_alone(backend):
    problem, truth = reversal(backend, 64, 4, 0.05, viscosity=0.0), waves(64, 2)
    target = final(problem.rollout, truth)
    jump = np.where(np.arange(64) < 32, 2.0, -2.0)
    # Every other cell moves two cells per step: the iteration converges, though characteristics cross.
    comb = np.where(np.arange(64) % 2, 0.0, 2 * LENGTH / 64 / 0.05)
    start = np.full((4, 64), 0.1)
    found = reversed_from(problem, start, np.stack([target[0], jump, comb, target[1]]))
    np.testing.assert_array_equal(found[1:3], start[1:3])
    assert np.max(np.abs(found[[0, 3]] - truth)) < 0.1 * np.max(np.abs(truth))


def test_an_iteration_that_has_not_converged_keeps_its_start(backend):
    problem, truth = reversal(backend, 32, 2, 0.05, iterations=1), waves(32, 1)
    start = np.full((1, 32), 0.1)
    np.testing.assert_array_equal(reversed_from(problem, start, final(problem.rollout, truth)), start)


def test_reversal_undoes_diffusion_exactly():
    """Without motion but for a drift of whole cells interpolation is exact; so is the inverse, noise included."""
    with using("torch", "cpu") as b:
        problem = reversal(b, 32, 3, LENGTH / 32, viscosity=5e-3)
        truth = 1 + 1e-9 * np.random.default_rng(0).standard_normal((1, 32))
        found = reversed_from(problem, np.ones((1, 32)), final(problem.rollout, truth))
    # Noise of 1e-9 moves u dt off whole cells by 1e-9, an error of 1e-18; rounding 1e-16 is doubled.
    assert np.max(np.abs(found - truth)) < 1e-14


REVERSED = """
name: case
grid: {cells: {x: 12}}
pde: {type: burgers, viscosity: 0.0, scheme: semi_lagrangian}
time: {steps: 2}
controls: {start: {acts_on: initial.velocity, initial: 0.0}}
data: {type: random_waves, validation: 1}
loss: l2
update: {type: sip, inverse_solver: time_reversal, optimizer: {type: sgd, learning_rate: 1.0}}
"""


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"pde.scheme": "spectral"}, "undoes pde.scheme semi_lagrangian, not spectral; set pde.scheme: semi_lagr"),
        # dt = dx², so the viscosity is the diffusion number: the finest wave is multiplied by 1 − 4ν per step.
        ({"pde.viscosity": 0.3}, "would amplify the finest waves by inf when it undoes the diffusion of 2 steps"),
        ({"pde.viscosity": 0.245}, "by 2.5e[+]03 .* more than its max_gain 1000; lower pde.viscosity"),
        # 1.25 to the power of ten thousand is no floating-point number.
        ({"pde.viscosity": 0.05, "time.steps": 10000}, "waves by inf"),
    ],
)
def test_reversal_refuses_what_it_cannot_undo(overrides, words):
    with pytest.raises(ScenarioError, match="update.inverse_solver: inverse solver 'time_reversal' .*" + words):
        scenario_from_text(REVERSED, overrides)
    scenario_from_text(REVERSED, {"pde.viscosity": 0.24})


def test_reversal_refuses_what_acts_on_the_motion(tmp_path):
    path = samples_file(tmp_path / "a.nc", 1, {"x": 12}, velocity_target=("x",), source_velocity=("x",))
    with pytest.raises(ScenarioError, match=r"undoes free motion only, but source\.velocity acts on it"):
        scenario_from_text(REVERSED, {"data": {"type": "file", "path": str(path)}})


# --- samplers, numbers, scenarios -----------------------------------------------------------------------------------


def test_evolved_sine_is_a_simulation_with_the_plugins_scheme():
    """Without viscosity, of which it makes two half steps, and without end points, from the start of `sine`."""
    grid = Grid({"x": 32}, {"x": 2.0})
    options = EvolvedSineOptions(viscosity=0.0, duration=0.5, steps=4, end_points=False)
    rng = np.random.default_rng(0)
    found = PLUGIN.samplers["evolved_sine"].sample(grid, None, options, rng, 2)["target.velocity"]
    sine = PLUGIN.samplers["sine"]
    u = math.tensor(sine.sample(grid, None, sine.options(), rng, 2)["initial.velocity"], batch("sample"), spatial("x"))
    pde = PLUGIN.build(grid, BurgersParameters(viscosity=0.0, scheme="semi_lagrangian"))
    with math.precision(64):
        for _ in range(4):
            u = pde.step({"velocity": u}, Inputs(), 0.0, 0.125)["velocity"]
        assert relative(found, u.numpy("sample,x")) < 1e-13


def test_the_control_scenario_gives_the_published_losses(backend):
    """Printed in the book's notebook; the target is rebuilt, which shifts the losses by up to 0.04 %."""
    case = case_of(load_scenario(SCENARIOS / "burgers_control.yaml").sections, backend)
    state = case.trainer.start(case.params, case.buffers)
    for k, printed in enumerate([0.382915, 0.326882, 0.281032, 0.242804, 0.210666, 0.183476]):
        state, record = case.trainer.step(state, case.batches(k))
        assert float(record["train_loss"]) == pytest.approx(printed, rel=1e-3)


def test_random_waves_stay_below_their_amplitude():
    drawn = waves(64, 200)
    assert np.max(np.abs(drawn)) <= 1
    assert np.max(np.abs(drawn)) > 0.7
    np.testing.assert_allclose(drawn.mean(1), 0, atol=1e-15)


@pytest.mark.parametrize(
    ("sampler", "options", "words"),
    [
        ("sine", {"waves": 8}, "data.waves: 8 waves need more than 16 cells, not 16"),
        ("random_waves", {"modes": 8}, "data.modes: 8 waves"),
        ("cole_hopf", {}, "zero without viscosity"),
        ("evolved_sine", {"viscosity": 1.0, "duration": 1.0, "steps": 4}, "diffusion number is 3.56"),
    ],
)
def test_samplers_refuse_what_does_not_fit(sampler, options, words):
    plugin = PLUGIN.samplers[sampler]
    assert words in plugin.check(line(16), BurgersParameters(viscosity=0.0), plugin.options(**options))


FORWARD = """
name: case
grid: {cells: {x: 16}, extent: {x: 4}}
pde: {type: burgers, viscosity: 0.01}
time: {steps: 2, dt: 0.1}
data: {type: random_waves, validation: 1}
"""


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"time.dt": 0.3}, "CFL number is 2.4, its limit is 2; change time.dt"),
        ({"time.dt": 0.2, "pde.scheme": "spectral"}, "CFL number is 1.6, its limit is 1.35"),
        ({"pde.viscosity": 0.4}, "diffusion number is 0.64, its limit is 0.5"),
        (
            {"pde.scheme": "semi_lagrangian", "pde.max_slope": 20.0},
            r"shock number dt max\|∂u/∂x\| is 2, its limit is 1",
        ),
    ],
)
def test_unstable_scenarios_are_refused(overrides, words):
    with pytest.raises(ScenarioError, match=words):
        scenario_from_text(FORWARD, overrides)
    scenario_from_text(FORWARD, {"time.dt": 3.0, "pde.scheme": "semi_lagrangian"})  # has no such limit


def test_rk4_is_stable_up_to_the_limits():
    """The amplification factor of every wave for all CFL and diffusion numbers within the limits together."""
    angle, amount = np.linspace(0, np.pi, 400)[:, None, None], np.linspace(0, 1, 40)
    z = -2j * amount[:, None] * np.sin(angle) - 2 * 0.5 * amount * (1 - np.cos(angle))
    spectral = -1j * 1.35 * np.pi * 2 / 3 * amount
    for value in (z, spectral):
        assert np.max(np.abs(1 + value + value**2 / 2 + value**3 / 6 + value**4 / 24)) <= 1 + 1e-12


def test_monitors_measure_growth_speed_and_slope():
    monitors = {m.name: m for m in PLUGIN.monitors(BurgersParameters(viscosity=0.0, max_slope=3.0), line(4))}
    before, after = (
        {"velocity": math.tensor(v, batch("sample"), spatial("x"))}
        for v in ([[1.0, 0, 0, 0], [0.0] * 4], [[1.5, 0, 0, -0.5], [0.0] * 4])
    )
    found = {name: m.measure(before, after).numpy("sample") for name, m in monitors.items()}
    np.testing.assert_allclose(found["energy_growth"], [1.5, 0])
    np.testing.assert_allclose(monitors["energy_growth"].measure(after, before).numpy("sample"), [0, 0])
    np.testing.assert_allclose(found["max_velocity"], [1.5, 0])
    np.testing.assert_allclose(found["max_slope"], [2 / 0.75, 0])  # from the last cell to the first
    assert (monitors["max_slope"].limit, monitors["max_velocity"].limit) == (3.0, 2.0)
    smooth = PLUGIN.monitors(BurgersParameters(viscosity=0.0, scheme="semi_lagrangian"), line(4))
    assert [m.limit for m in smooth] == [1e-4, None, None]
