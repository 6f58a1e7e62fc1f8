"""Whole runs of direct optimisation: controls of every sample along the steps, found from data."""

from __future__ import annotations

import numpy as np
import pytest
from whole_runs import BACKENDS, DIRECT, DP, assert_compliant, decaying_waves, execute, half_sum, write_scenario

import toolkit
from toolkit.core.streams import stream


@pytest.fixture(scope="module", params=BACKENDS)
def optimised(request, tmp_path_factory):
    """A direct optimisation of three samples."""
    folder = tmp_path_factory.mktemp(request.param)
    run = execute(write_scenario(folder, DIRECT), folder / "runs", {"run.backend": request.param})
    yield run
    run.stored.close()


def test_a_direct_optimisation_records_every_step_of_every_sample(optimised):
    fields = optimised.fields
    assert fields.initial_temperature.dims == ("sample", "step", "x", "y")
    assert fields.temperature.dims == ("sample", "step", "x", "y")
    np.testing.assert_array_equal(fields.step, [0, 1, 2, 3, 4])
    assert (fields.initial_temperature.isel(step=0) == 0).all()
    assert (fields.initial_temperature.isel(step=1) != 0).any()
    # Every sample starts at L = ½Σy*² and falls with the very first inversion.
    assert optimised.metrics.validation_loss[-1] < 1e-3 * optimised.metrics.validation_loss[0]
    assert set(optimised.network) == {"control/initial_temperature"}
    np.testing.assert_array_equal(
        optimised.network["control/initial_temperature"], fields.initial_temperature.isel(step=-1)
    )


def test_control_error_of_a_direct_optimisation_is_that_of_its_targets(optimised, tmp_path):
    run = toolkit.load_scenario(optimised.path / "scenario.yaml").sections
    data = run.data
    assert data is not None
    assert data.sampler is not None
    truth = data.sampler.sample(run.grid, run.pde.options, data.options, stream(data.seed, "validation"), 3)
    error = half_sum(optimised.fields.initial_temperature - truth["initial.temperature"][:, None])
    recorded = optimised.metrics.control_error.dropna("step")
    # Sums in another order.
    np.testing.assert_allclose(error.mean("sample").sel(step=recorded.step), recorded, rtol=1e-12)


def test_frames_of_a_direct_optimisation_can_be_thinned(tmp_path):
    run = execute(write_scenario(tmp_path, DIRECT), tmp_path, {"output.every": 3, "output.fields": ["temperature"]})
    with run.stored:
        assert set(run.fields.data_vars) == {"temperature"}
        # Every third, and the last.
        np.testing.assert_array_equal(run.fields.step, [0, 3, 4])


RATE = """\
name: rate
grid: {cells: {x: 8, y: 8}, extent: {x: 64, y: 64}}
pde: {type: heat, diffusivity: 1.0}
controls: {rate: {acts_on: parameter.diffusivity, initial: 4.0}}
data: {type: file, path: samples.nc, train: 1, validation: 2}
loss: l2
update: {type: dp, optimizer: lbfgs}
train: {steps: 8}
run: {precision: float64, device: cpu}
output: {plots: false}
"""


@pytest.mark.parametrize("name", BACKENDS)
def test_a_parameter_of_the_pde_is_found_from_what_it_did(tmp_path, name):
    decaying_waves(tmp_path / "samples.nc", 1.0)
    run = execute(write_scenario(tmp_path, RATE), tmp_path, {"run.backend": name})
    with run.stored:
        rate = run.fields.rate
        assert rate.dims == ("sample", "step")
        assert rate.sizes["sample"] == 2
        # Words for people are no units of CF.
        assert (rate.attrs["long_name"], rate.attrs["units"]) == ("rate, in length² / time", "1")
        assert (rate.isel(step=0) == 4.0).all()
        # Superlinear convergence in one dimension per sample: eight steps leave less than a millionth.
        np.testing.assert_allclose(rate.isel(step=-1), 8.0, rtol=1e-6)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_force_and_a_source_are_optimised_together(tmp_path, name):
    decaying_waves(tmp_path / "samples.nc", 3.0)
    path = write_scenario(
        tmp_path,
        DIRECT,
        DP,
        (
            "  initial_temperature: {acts_on: initial.temperature, initial: 0.0}",
            "  pulse: {acts_on: force.temperature, initial: 0.0}\n  glow: {acts_on: source.temperature, initial: 0.0}",
        ),
        (
            "data: {type: hot_rectangles, validation: 3, seed: 1}",
            "data: {type: file, path: samples.nc, train: 1, validation: 2}",
        ),
        ("controls:", "time: {steps: 3, dt: 0.5}\ncontrols:"),
    )
    run = execute(path, tmp_path, {"run.backend": name, "update.optimizer.learning_rate": 0.1})
    with run.stored:
        fields, loss = run.fields, run.metrics.validation_loss.dropna("step")
        assert fields.pulse.dims == ("sample", "step", "t", "x", "y")
        assert fields.glow.dims == fields.temperature.dims == ("sample", "step", "x", "y")
        # A force acts during a step: its times are where the three steps begin.
        np.testing.assert_array_equal(fields.t, [0.0, 0.5, 1.0])
        assert loss[-1] < loss[0]
        # A source is a force that is the same in every step, so its gradient is the sum of theirs.
        first = fields.isel(step=1)
        np.testing.assert_allclose(first.glow, first.pulse.sum("t"), rtol=1e-12, atol=1e-15)
        assert (abs(first.glow) > 0).any()


@pytest.mark.parametrize("optimised", ["torch"], indirect=True)
def test_the_public_checker_finds_no_fault_in_a_run(optimised, tmp_path):
    decaying_waves(tmp_path / "samples.nc", 1.0)
    rate = execute(write_scenario(tmp_path, RATE), tmp_path)
    rate.stored.close()
    assert_compliant(optimised.path, rate.path)
