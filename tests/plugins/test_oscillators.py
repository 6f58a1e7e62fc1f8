"""Oscillators: the chain against NumPy and the reference values, and a control that is no field of the state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numeric_cases import built, relative
from whole_runs import execute, write_scenario

from plugins.oscillators import PLUGIN, Oscillators, OscillatorsParameters, UniformOptions, components
from toolkit import ScenarioError, load_scenario
from toolkit.physics.inverse import tensors
from toolkit.physics.layout import Layout
from toolkit.physics.rollout import Controls, Rollout
from toolkit.scenario.describe import describe
from toolkit.scenario.load import scenario_from_text

SCENARIOS = Path(__file__).parents[2] / "scenarios"
NONLINEAR = OscillatorsParameters()
LINEAR = OscillatorsParameters(linear_coupling=0.2, cubic_coupling=0.0, control_strength=1.0)
PAPER, NOTEBOOK = (NONLINEAR, 96, 0.125), (LINEAR, 24, 0.5)
START = np.array([[0.2, 0.7, 0.4, 0.9]])
TEXT = """
name: case
pde: {type: oscillators, linear_coupling: 0.2, cubic_coupling: 0.3}
time: {steps: 5, dt: 0.2}
controls: {drive: {acts_on: force.drive}}
data: {type: uniform, train: 8, validation: 3}
networks: {f: {type: mlp, layers: [3], activation: tanh, input: target, output: drive}}
loss: {type: l2, on: final.state, weight: 2.0}
update: {type: dp, optimizer: {type: sgd, learning_rate: 0.1}}
train: {steps: 2, batch_size: 4}
"""


def rollout(backend, parameters: OscillatorsParameters, steps: int, dt: float) -> Rollout:
    layout = {"state": Layout(components(parameters))}
    return Rollout(backend, Oscillators(parameters), layout, {}, steps, dt, {"drive": Layout()})


def final(backend, case: tuple[OscillatorsParameters, int, float], start: np.ndarray, drive: np.ndarray) -> np.ndarray:
    """The last state of a compiled rollout."""
    roll = rollout(backend, *case)

    def run(start: Any, drive: Any) -> Any:
        return roll({"state": start}, Controls({"drive": drive})).final["state"]

    args = backend.array(start), backend.array(drive)
    return backend.numpy(backend.compile(run, *args)(*args))


def numpy_rate(s: np.ndarray, u: np.ndarray, parameters: OscillatorsParameters) -> np.ndarray:
    """The equations of motion, written with full arrays and neighbours looked up one by one."""
    n = parameters.number
    x, result = s[:, :n], np.zeros_like(s)
    result[:, :n] = s[:, n:]
    for i in range(n):
        force = -x[:, i]
        for j in (i - 1, i + 1):
            if 0 <= j < n:
                d = x[:, j] - x[:, i]
                force = force + parameters.linear_coupling * d + parameters.cubic_coupling * d**3
        result[:, n + i] = force
    result[:, -1] += parameters.control_strength * u
    return result


def numpy_rk4(s: np.ndarray, u: np.ndarray, dt: float, parameters: OscillatorsParameters) -> np.ndarray:
    for k in range(u.shape[1]):
        k1 = numpy_rate(s, u[:, k], parameters)
        k2 = numpy_rate(s + dt / 2 * k1, u[:, k], parameters)
        k3 = numpy_rate(s + dt / 2 * k2, u[:, k], parameters)
        k4 = numpy_rate(s + dt * k3, u[:, k], parameters)
        s = s + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return s


def energy(backend, parameters: OscillatorsParameters, states: np.ndarray) -> np.ndarray:
    layouts = {"state": Layout(components(parameters))}
    found = Oscillators(parameters).energy(tensors({"state": backend.array(states)}, layouts))
    return backend.numpy(Layout().native(found, len(states)))


# --- physics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "drive", "expected", "squared"),
    [
        (PAPER, 0.0, (0.1407807713, -0.0788955164, 1.1476926684, 0.4322305969), 1.3880376833),
        (PAPER, 0.1, (-0.0203459536, 0.1290795717, 0.9963997756, 0.4225458769), 0.9581576068),
        (NOTEBOOK, 0.0, (-0.1711231029, 0.2239045591, 1.0936629854, 0.4826081318), 1.0197835353),
        (NOTEBOOK, 0.1, (-0.2004971743, 0.2694123999, 1.0247423183, 0.4975276744), 0.8980906051),
    ],
)
def test_final_states_of_the_published_chains(backend, case, drive, expected, squared):
    y = final(backend, case, START, np.full((1, case[1]), drive))
    # The reference values have ten digits.
    assert np.max(np.abs(y - expected)) < 6e-11
    assert np.sum((y - START) ** 2) == pytest.approx(squared, abs=1e-10)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_driven_chain_of_any_length_equals_numpy(backend, number):
    parameters = OscillatorsParameters(number=number, linear_coupling=0.4, cubic_coupling=-0.3, control_strength=1.7)
    rng = np.random.default_rng(number)
    s, u = rng.standard_normal((3, 2 * number)), rng.standard_normal((3, 7))
    expected = numpy_rk4(s, u, 0.1, parameters)
    # Seven steps of some forty roundings.
    assert relative(final(backend, (parameters, 7, 0.1), s, u), expected) < 1e-13


def test_the_order_of_the_method_is_four(backend):
    start = np.random.default_rng(0).random((20, 4))
    exact = numpy_rk4(start, np.zeros((20, 2048)), 4 / 2048, NONLINEAR)
    errors = [np.max(np.abs(final(backend, (NONLINEAR, n, 4 / n), start, np.zeros((20, n))) - exact)) for n in (32, 64)]
    # h⁵ terms of the expansion still show at these steps.
    assert np.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.2)


@pytest.mark.parametrize(("case", "most"), [(PAPER, 4e-4), (NOTEBOOK, 1.2e-2)])
def test_energy_is_conserved_as_well_as_the_method_does(backend, case, most):
    start = np.random.default_rng(1).random((1000, 4))
    end = final(backend, case, start, np.zeros((1000, case[1])))
    before, after = (energy(backend, case[0], s) for s in (start, end))
    # Reference: at most 2.4e-4 over another sample of starts, on average 1.5e-5.
    assert np.max(np.abs(after / before - 1)) < most
    if case is PAPER:
        assert np.mean(np.abs(after / before - 1)) == pytest.approx(1.5e-5, rel=0.2)
        assert relative(before, 0.5 * np.sum(start**2, axis=1) + 0.25 * (start[:, 0] - start[:, 1]) ** 4) < 1e-14


@pytest.mark.parametrize(("case", "expected"), [(PAPER, 0.7956), (NOTEBOOK, 0.7277)])
def test_mean_loss_without_control(backend, case, expected):
    drawn = PLUGIN.samplers["uniform"].sample(None, case[0], UniformOptions(), np.random.default_rng(2), 20000)
    y = final(backend, case, drawn["initial.state"], np.zeros((20000, case[1])))
    loss = np.sum((y - drawn["target.state"]) ** 2, axis=1)
    # Reference over 400 000 samples; four standard errors of 20 000.
    assert np.mean(loss) == pytest.approx(expected, abs=4 * np.std(loss) / 20000**0.5)


def test_batched_jacobian_of_the_drive_equals_differences(backend):
    """Forward and backward, all outputs of all samples; the step is traced, as in training."""
    rng = np.random.default_rng(3)
    s, u = rng.random((3, 4)), 0.3 * rng.standard_normal((3, 6))
    roll, start = rollout(backend, NONLINEAR, 6, 0.2), {"state": backend.array(s)}
    roll.prepare(start, Controls({"drive": backend.array(u)}))

    def observe(u: Any) -> Any:
        return roll(start, Controls({"drive": u})).final["state"]

    forward = backend.numpy(backend.pushforwards(observe, backend.array(u)))
    backward = backend.numpy(backend.pullbacks(observe, backend.array(u), True))
    h = 1e-5
    numeric = np.stack(
        [
            (numpy_rk4(s, u + h * e, 0.2, NONLINEAR) - numpy_rk4(s, u - h * e, 0.2, NONLINEAR)) / (2 * h)
            for e in np.eye(6)
        ]
    )
    # Central differences: h² plus rounding over h.
    assert relative(forward, numeric) < 1e-8
    assert relative(backward, forward.transpose(2, 1, 0)) < 1e-13


# --- the control --------------------------------------------------------------------------------------------------


def test_a_network_gives_the_drive_of_all_steps_at_once(backend):
    case = built(TEXT, backend)
    x, _ = case.problem.predict(case.params, case.buffers, case.validation, training=False)
    drive = backend.numpy(x["force.drive"])
    assert drive.shape == (3, 5)
    y = backend.numpy(case.problem.observe(x, case.validation.context)["final.state"])
    start = backend.numpy(case.validation.context["initial.state"])
    parameters = OscillatorsParameters(linear_coupling=0.2, cubic_coupling=0.3)
    assert relative(y, numpy_rk4(start, drive, 0.2, parameters)) < 1e-13
    # The published loss: squared errors of all four numbers, no ½.
    loss = backend.numpy(case.problem.loss({"final.state": backend.array(y)}, case.validation.targets))
    assert relative(loss, np.sum((y - start) ** 2, axis=1)) < 1e-13


def test_a_network_in_the_loop_drives_by_one_number_per_step(backend):
    text = TEXT.replace("input: target", "every_step: true")
    case = built(text, backend)
    problem = case.problem
    policy = problem.policy(case.params, case.buffers, case.validation.targets)
    found = problem.simulate({}, case.validation.context, policy, record=True)
    drive = backend.numpy(found.forces["drive"])
    assert drive.shape == (3, 5)
    start = backend.numpy(case.validation.context["initial.state"])
    parameters = OscillatorsParameters(linear_coupling=0.2, cubic_coupling=0.3)
    assert relative(backend.numpy(found.final["state"]), numpy_rk4(start, drive, 0.2, parameters)) < 1e-13
    assert np.std(drive) > 1e-4
    _, record = case.trainer.step(case.trainer.start(case.params, case.buffers), case.batches(0))
    assert record["train_loss"] > 0


def test_the_linear_chain_is_solved_by_one_gauss_newton_step(tmp_path, backend):
    """Direct optimisation of 24 numbers on which four outputs depend linearly; the drive keeps its name."""
    text = """\
name: direct
description: The drive of each sample, found in one step.
pde: {type: oscillators, linear_coupling: 0.2, cubic_coupling: 0.0, control_strength: 1.0}
time: {steps: 24, dt: 0.5}
controls: {u: {acts_on: force.drive, initial: 0.0}}
data: {type: uniform, validation: 3}
loss: {type: l2, on: final.state}
update: {type: sip, inverse_solver: gauss_newton, optimizer: {type: sgd, learning_rate: 1.0}}
train: {steps: 2}
run: {device: cpu, precision: float64}
output: {plots: false}
"""
    run = execute(write_scenario(tmp_path, text), tmp_path, {"run.backend": backend.name})
    with run.stored:
        loss = run.metrics.train_loss.dropna("step").values
        assert loss[0] > 0.1
        # The step solves the linear problem to rounding times its condition, here with a little damping.
        assert loss[-1] < 1e-10
        assert run.fields.u.dims == ("sample", "step", "t")
        assert run.fields.u.attrs["long_name"] == "drive of the last oscillator"
        assert run.fields.u.attrs["units"] == "1"


def test_a_file_with_a_drive_is_checked_and_read(tmp_path):
    import xarray as xr

    rng = np.random.default_rng(0)
    start, drive = rng.random((4, 4)), rng.random((4, 5))
    data = {"initial_state": (("sample", "component"), start), "force_drive": (("sample", "t"), drive)}
    xr.Dataset(data).to_netcdf(tmp_path / "given.nc")
    # Without a target in the file it is simulated with the drive of the file.
    head = TEXT.partition("controls")[0].replace("case", "file")
    text = f"{head}data: {{type: file, path: {tmp_path}/given.nc}}\nrun: {{precision: float64, device: cpu}}\n"
    run = execute(write_scenario(tmp_path, text), tmp_path, {"output.plots": False})
    parameters = OscillatorsParameters(linear_coupling=0.2, cubic_coupling=0.3)
    with run.stored:
        assert relative(run.fields.state.values[:, -1], numpy_rk4(start, drive, 0.2, parameters)) < 1e-13
    controls = text + "controls: {drive: {acts_on: force.drive, initial: 0.0}}\nloss: l2\nupdate: dp\n"
    with pytest.raises(ScenarioError, match=r"force_drive has sample: 4, t: 5, expected sample: 4, t: 6"):
        scenario_from_text(controls, {"time.steps": 6})


# --- plugin and scenarios -----------------------------------------------------------------------------------------


def test_samples_are_uniform_and_their_own_targets():
    options = UniformOptions(range=(-0.5, 2.0))
    drawn = PLUGIN.samplers["uniform"].sample(None, NONLINEAR, options, np.random.default_rng(0), 4000)
    assert np.array_equal(drawn["initial.state"], drawn["target.state"])
    assert drawn["initial.state"].shape == (4000, 4)
    assert -0.5 <= drawn["initial.state"].min() < -0.49
    assert 1.99 < drawn["initial.state"].max() < 2.0
    # Four standard errors of a mean of 16 000 uniform numbers.
    assert np.mean(drawn["initial.state"]) == pytest.approx(0.75, abs=4 * 2.5 / 12**0.5 / 16000**0.5)


def test_an_empty_range_is_refused():
    with pytest.raises(ScenarioError, match=r"data\.range: expected first < second, got \[1, 1\]"):
        scenario_from_text(TEXT, {"data.range": [1, 1]})


@pytest.mark.parametrize(
    ("name", "parameters", "drive"), [("oscillators_adam", 2956, 96), ("oscillators_linear_adam", 1444, 24)]
)
def test_shipped_scenarios_have_the_published_sizes(name, parameters, drive):
    described = describe(load_scenario(SCENARIOS / f"{name}.yaml"))
    assert described.trained == parameters
    assert described.controls[0].shape == (drive,)
    assert described.observations[0].size == 4


@pytest.mark.parametrize("backend", ["torch", "jax"], indirect=True)
def test_the_linear_scenario_learns(tmp_path, backend):
    small = {"run.backend": backend.name, "run.device": "cpu", "data.train": 256, "data.validation": 64}
    limit = {"train.steps": 24, "train.time_limit": None, "train.batch_size": 64, "train.validate_every": 8}
    run = execute(SCENARIOS / "oscillators_linear_adam.yaml", tmp_path, {**small, **limit})
    with run.stored:
        assert run.fields.drive.dims == ("sample", "t")
        assert run.fields.state.dims == ("sample", "t", "component")
        loss = run.metrics.validation_loss.dropna("step").values
        # The first two dozen steps of the published case take a fifth off.
        assert loss[-1] < 0.9 * loss[0]
    assert (run.path / "plots" / "comparison_drive.png").is_file()
