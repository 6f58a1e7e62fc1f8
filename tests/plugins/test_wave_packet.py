"""Wave packet: the record and its derivative; many solutions, of which the local inverse takes the nearest."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numeric_cases import Case, built, case_of
from phiml import math
from phiml.math import batch
from whole_runs import execute

from plugins.wave_packet import ARRIVAL, PLUGIN, ArrivalsOptions, WavePacketParameters
from toolkit import ScenarioError, load_scenario
from toolkit.physics.grid import Grid
from toolkit.scenario.load import scenario_from_text

SCENARIO = Path(__file__).parents[2] / "scenarios" / "wave_packet.yaml"
GRID = Grid({"x": 240}, {"x": 24.0})
OMEGA, WIDTH, AMPLITUDE, TRUTH = np.pi, 2.0, 1.7, 12.03
PERIOD = 2 * np.pi / OMEGA
T = GRID.coordinates("x")
SHAPE = WavePacketParameters(omega=OMEGA, width=WIDTH, amplitude=AMPLITUDE)
TEXT = f"""
name: case
grid: {{cells: {{x: 240}}, extent: {{x: 24}}, boundary: zero}}
pde: {{type: wave_packet, omega: {OMEGA}, width: {WIDTH}, amplitude: {AMPLITUDE}}}
controls: {{arrival: {{acts_on: initial.t0, initial: 12.0}}}}
data: {{type: arrivals, region: [{TRUTH / 24}, {TRUTH / 24}], validation: 1}}
loss: {{type: l2, on: final.signal}}
update: {{type: sip, inverse_solver: gauss_newton, optimizer: {{type: sgd, learning_rate: 1.0}}}}
train: {{steps: 1}}
"""


def record(t0: Any, omega: float = OMEGA, width: float = WIDTH, amplitude: float = AMPLITUDE) -> np.ndarray:
    """y at all moments, written down once more; arrivals (n,) give (n, 240)."""
    age = T - np.asarray(t0)[..., None]
    return amplitude * np.exp(-(age**2) / (2 * width**2)) * np.sin(omega * age)


def loss(t0: np.ndarray) -> np.ndarray:
    """½Σ(y(t0) − y(TRUTH))²."""
    return 0.5 * np.sum((record(t0) - record(TRUTH)) ** 2, axis=-1)


SCAN = TRUTH + np.linspace(-2.6 * PERIOD, 2.6 * PERIOD, 52001)
"""Arrivals, 2e-4 apart."""


def extrema(sign: int) -> np.ndarray:
    """Places of the minima (1) or maxima (-1) of the loss on SCAN."""
    values = sign * loss(SCAN)
    return SCAN[1:-1][(values[1:-1] < values[:-2]) & (values[1:-1] < values[2:])]


MODES, RIDGES = extrema(1), extrema(-1)


def trajectory(case: Case, starts: Mapping[str, Any], shape: Mapping[str, float], steps: int) -> dict[str, np.ndarray]:
    """Controls (steps + 1, n) of the scenario's inverse solver towards the record of a packet of this shape."""
    b, problem = case.problem.backend, case.problem
    count = len(starts[ARRIVAL])
    y_target = {"final.signal": b.array(np.tile(record(TRUTH, **shape), (count, 1)), "physics")}

    def step(x: Any) -> Any:
        return problem.invert(x, problem.observe(x, {}), y_target, {})

    path = [{key: b.array(np.asarray(value, float), "physics") for key, value in starts.items()}]
    advance = b.compile(step, path[0])
    for _ in range(steps):
        path.append(b.without_gradient(advance, path[-1]))
    return {key: np.stack([b.numpy(x[key]) for x in path]) for key in starts}


# --- the record ---------------------------------------------------------------------------------------------------


def test_the_record_is_the_formula(backend):
    problem = built(TEXT, backend).problem
    t0 = np.array([3.3, 8.0, 12.7])
    found = problem.observe({ARRIVAL: backend.array(t0, "physics")}, {})["final.signal"]
    # Rounding of a product of three numbers of order one.
    assert np.max(np.abs(backend.numpy(found) - record(t0))) < 1e-14


def test_the_derivative_by_the_arrival(backend):
    """∂y/∂t₀ = A e^(−a²/2w²) (a/w² sin ωa − ω cos ωa), a = t − t₀."""
    problem, t0 = built(TEXT, backend).problem, np.array([7.1, 9.4])
    x = backend.array(t0, "physics")
    _, push, _ = backend.linearize(lambda x: problem.observe({ARRIVAL: x}, {})["final.signal"], x)
    age = T - t0[:, None]
    envelope = AMPLITUDE * np.exp(-(age**2) / (2 * WIDTH**2))
    expected = envelope * (age / WIDTH**2 * np.sin(OMEGA * age) - OMEGA * np.cos(OMEGA * age))
    assert np.max(np.abs(backend.numpy(push(x * 0 + 1)) - expected)) < 1e-13


@pytest.mark.parametrize(("name", "true", "start"), [("omega", 3.3, 3.0), ("width", 2.1, 1.5), ("amplitude", 0.4, 1.7)])
def test_the_shape_can_be_unknown_too(backend, name, true, start):
    """Gauss–Newton finds each parameter of the PDE together with the arrival, from nearby."""
    more = f", {name}: {{acts_on: parameter.{name}, initial: {start}}}"
    text, key = TEXT.replace("initial: 12.0}", f"initial: 12.0}}{more}"), f"parameter.{name}"
    path = trajectory(built(text, backend), {ARRIVAL: [12.0], key: [start]}, {name: true}, 12)
    # A solution without residual: Gauss–Newton converges quadratically, to the damping of 1e-6.
    assert path[key][-1, 0] == pytest.approx(true, abs=1e-8)
    assert path[ARRIVAL][-1, 0] == pytest.approx(TRUTH, abs=1e-8)


# --- many solutions -----------------------------------------------------------------------------------------------


def test_the_loss_has_a_minimum_near_every_period_and_one_of_them_is_right():
    assert len(MODES) == 5
    offsets = (MODES - TRUTH) / PERIOD
    # The envelope pulls the outer minima inwards: tan ωδ = −δ / 2ωw².
    assert np.all(np.abs(offsets - np.round(offsets)) < 0.1)
    assert np.all(np.abs(OMEGA * MODES[3:] - OMEGA * TRUTH) < [2 * np.pi, 4 * np.pi])
    values = loss(MODES)
    assert values[2] < 1e-6
    assert np.all(values[[0, 1, 3, 4]] > 0.1 * loss(np.array([0.0])))


def test_the_loss_is_what_the_docstring_says():
    delta = SCAN - TRUTH
    energy = np.sum(record(TRUTH) ** 2)
    predicted = energy * (1 - np.exp(-(delta**2) / (4 * WIDTH**2)) * np.cos(OMEGA * delta))
    # Neglected: what the ends of the record cut off, 3.4 w from the outermost packet.
    assert np.max(np.abs(loss(SCAN) - predicted)) < 1e-4 * energy


def test_the_local_inverse_goes_to_the_nearest_solution_and_not_beyond(backend):
    """From everywhere between two maxima of the loss to the minimum between them, without passing it."""
    between = list(pairwise(RIDGES))
    assert len(between) >= 3
    inner = [mode for mode in MODES if RIDGES[0] < mode < RIDGES[-1]]
    starts = np.array([low + f * (high - low) for low, high in between for f in np.linspace(0.02, 0.98, 25)])
    goals = np.repeat(inner, 25)
    path = trajectory(built(TEXT, backend), {ARRIVAL: starts}, {}, 60)[ARRIVAL]
    # SCAN knows the minima to 1e-4.
    assert np.max(np.abs(path[-1] - goals)) < 2e-4
    side = np.sign(starts - goals)
    assert np.all(side * (path - goals) > -2e-4)
    assert np.all(np.diff(side * path, axis=0) < 2e-4)


def test_half_a_period_decides_between_two_solutions(backend):
    starts = TRUTH + PERIOD * np.array([-0.55, -0.45, 0.45, 0.55])
    path = trajectory(built(TEXT, backend), {ARRIVAL: starts}, {}, 30)[ARRIVAL]
    found = (path[-1] - TRUTH) / PERIOD
    assert np.array_equal(np.round(found), [-1, 0, 0, 1])


def test_gauss_newton_step_of_a_wide_packet(backend):
    """δ ← δ − sin(ωδ)/ω within δ²/w² and what the ends of the record cut off."""
    case, delta = built(TEXT, backend, pde__width=400.0), np.linspace(-0.9, 0.9, 7)
    found = trajectory(case, {ARRIVAL: TRUTH + delta}, {"width": 400.0}, 1)[ARRIVAL][-1] - TRUTH
    # The envelope still falls by (12/400)²/2 = 5e-4 over the record, of twelve whole periods.
    assert np.max(np.abs(found - (delta - np.sin(OMEGA * delta) / OMEGA))) < 1e-3


# --- data, metrics, checks ----------------------------------------------------------------------------------------


def test_arrivals_lie_in_the_region_and_records_carry_noise():
    drawn = PLUGIN.samplers["arrivals"].sample(
        GRID, SHAPE, ArrivalsOptions(region=(0.25, 0.5), noise=0.3), np.random.default_rng(0), 500
    )
    t0, noise = drawn[ARRIVAL], drawn["target.signal"] - record(drawn[ARRIVAL])
    assert t0.shape == (500,)
    assert 6 <= np.min(t0) < 6.1
    assert 11.9 < np.max(t0) <= 12
    # 120 000 values: the standard deviation is known to 0.3 %.
    assert np.std(noise) == pytest.approx(0.3, rel=0.02)
    assert abs(np.mean(noise)) < 0.005


@pytest.mark.parametrize("region", [(0.7, 0.3), (-0.1, 0.5), (0.5, 1.1)])
def test_a_region_outside_the_record_is_refused(region):
    check = PLUGIN.samplers["arrivals"].check
    assert "data.region: expected" in str(check(GRID, SHAPE, ArrivalsOptions(region=region)))
    assert check(GRID, SHAPE, ArrivalsOptions()) is None


def test_metrics_tell_the_right_solution_from_a_good_one():
    phase, periods = (metric.measure for metric in PLUGIN.control_metrics)
    controls = {ARRIVAL: math.tensor([8.0, 8.1, 10.2, 3.9], batch("sample"))}
    truth = {ARRIVAL: math.tensor([8.0, 8.0, 8.0, 8.0], batch("sample"))}
    # Single precision, PhiML's default.
    expected = [0, 0.1 * OMEGA, 0.2 * OMEGA, 0.1 * OMEGA]
    assert np.allclose(phase(SHAPE, controls, {}, truth).numpy("sample"), expected, atol=1e-5)
    assert np.array_equal(periods(SHAPE, controls, {}, truth).numpy("sample"), [0, 0, 1, 2])
    fast = {**truth, "parameter.omega": math.tensor([2 * OMEGA] * 4, batch("sample"))}
    assert np.array_equal(periods(SHAPE, controls, {}, fast).numpy("sample"), [0, 0, 2, 4])
    other = {"parameter.omega": math.tensor([1.0, 2.0, 3.0, 4.0], batch("sample"))}
    assert np.array_equal(periods(SHAPE, other, {}, other).numpy("sample"), [0, 0, 0, 0])


def test_a_record_with_less_than_two_samples_per_period_is_refused():
    with pytest.raises(ScenarioError, match=r"grid.cells: omega dx / pi .Nyquist. is 1.2, its limit is 1"):
        scenario_from_text(TEXT.replace("{x: 240}", "{x: 20}"))


def test_the_shipped_scenario_ends_in_the_nearest_solutions(backend):
    case = case_of(load_scenario(SCENARIO).sections, backend)
    state = case.trainer.start(case.params, case.buffers)
    start = backend.numpy(state.params["control/arrival"])
    truth = backend.numpy(case.validation.references[ARRIVAL])
    for k in range(20):
        state, _ = case.trainer.step(state, case.batches(k))
    found = backend.numpy(state.params["control/arrival"])
    off = (start - truth) / 2
    decided = np.abs(off - np.round(off)) < 0.45
    assert np.count_nonzero(decided) > 50
    # Period 2; noise of 0.1 in some 50 values of slope up to 3 moves an arrival by less than 0.05; the envelope
    # pulls the second solution by 0.07.
    assert np.max(np.abs(found - truth - 2 * np.round(off))[decided]) < 0.15
    # Most arrivals are more than half a period from the start, and so is what is found from it.
    assert 0 < np.mean(np.round(off) == 0) < 0.5


def test_a_whole_run_records_the_metrics(tmp_path):
    small = {"train.steps": 3, "train.checkpoint_every": 3, "data.validation": 4, "output.plots": False}
    run = execute(SCENARIO, tmp_path, small)
    with run.stored:
        assert run.metrics.periods_off.sizes == {"step": 4}
        np.testing.assert_array_equal(run.metrics.periods_off, run.metrics.periods_off[0])
        assert run.metrics.phase_error.attrs["units"] == "radian"
        assert float(run.metrics.phase_error[-1]) < 0.5 * float(run.metrics.phase_error[0])
        assert run.fields.arrival.dims == ("sample", "step")
