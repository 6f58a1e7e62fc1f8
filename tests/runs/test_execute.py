"""Whole runs of training: what they leave behind is what they computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from phiml import math
from whole_runs import (
    BACKENDS,
    DP,
    HEAT,
    assert_compliant,
    decaying_waves,
    execute,
    files,
    half_sum,
    status,
    write_scenario,
)

import toolkit
from toolkit.core.backend import using
from toolkit.core.params import subtree
from toolkit.runs import checkpoint
from toolkit.runs.phiflow_fields import to_phiflow
from toolkit.runs.session import GROUPS
from toolkit.scenario.build import architectures


@pytest.fixture(scope="module", params=BACKENDS)
def trained(request, tmp_path_factory):
    """A trained network, with pictures."""
    folder = tmp_path_factory.mktemp(request.param)
    overrides = {"run.backend": request.param, "output.plots": True, "output.samples": 5}
    run = execute(write_scenario(folder, HEAT), folder / "runs", overrides)
    yield run
    run.stored.close()


# --- a network ----------------------------------------------------------------------------------------------------


def test_a_run_directory_holds_all_files_of_the_format(trained):
    found = files(trained.path)
    arrays = {name for name in found if name.startswith("checkpoint/arrays-")}
    assert arrays
    assert found - arrays == {
        *("scenario.yaml", "run.json", "metrics.jsonl", "metrics.nc", "fields.nc"),
        *("checkpoint/state.json", "checkpoint/previous.json"),
        *("plots/learning_curves.png", "plots/comparison_initial_temperature.png"),
    }
    assert trained.path.parts[-3:] == ("runs", "heat", "it")


def test_the_record_says_what_ran_where(trained):
    record = status(trained.path)
    assert record["status"] == "done"
    assert record["reason"] is None
    assert record["seeds"] == {"run": 0, "data": 1}
    assert record["details"]["precision"] == {"physics": "float64", "network": "float64"}
    assert record["details"]["exit_code"] == 0
    assert {"phinverse", "phiflow", record["backend"]} <= set(record["versions"])
    assert record["device"].startswith("cpu")


def test_fields_have_names_dimensions_and_units_of_the_format(trained):
    fields = trained.fields
    dims = {str(name): variable.dims for name, variable in fields.data_vars.items()}
    assert dims == {
        "temperature": ("sample", "t", "x", "y"),
        "temperature_target": ("sample", "x", "y"),
        "initial_temperature": ("sample", "x", "y"),
        "initial_temperature_reference": ("sample", "x", "y"),
    }
    assert dict(fields.sizes) == {"sample": 5, "t": 2, "x": 8, "y": 8}
    assert {variable.attrs["units"] for variable in fields.data_vars.values()} == {"K"}
    np.testing.assert_array_equal(fields.t, [0.0, 1.0])
    # The control is the state at the start.
    np.testing.assert_array_equal(fields.temperature.isel(t=0), fields.initial_temperature)


def test_losses_in_the_metrics_are_those_of_the_fields(trained):
    metrics, fields = trained.metrics, trained.fields
    assert {"train_loss", "validation_loss", "control_error", "wall_seconds", "step_seconds"} <= set(metrics)
    np.testing.assert_array_equal(metrics.step, [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(metrics.validation_loss.notnull(), [True, False, True, False, True])
    np.testing.assert_array_equal(metrics.train_loss.notnull(), [False, True, True, True, True])
    assert (metrics.wall_seconds.diff("step") > 0).all()
    assert metrics.attrs["compile_seconds"] >= 0
    loss = half_sum(fields.temperature.isel(t=-1) - fields.temperature_target)
    error = half_sum(fields.initial_temperature - fields.initial_temperature_reference)
    last = metrics.isel(step=-1)
    # Sums in another order: some roundings of 64 terms.
    assert float(last.validation_loss) == pytest.approx(float(loss.mean()), rel=1e-12)
    assert float(last.control_error) == pytest.approx(float(error.mean()), rel=1e-12)


def test_open_run_reads_what_run_returned(trained):
    with toolkit.open_run(trained.path) as stored:
        xr.testing.assert_identical(stored.fields, trained.fields)
        xr.testing.assert_identical(stored.metrics, trained.metrics)
        assert stored.record.status == "done"
    with xr.open_dataset(trained.path / "fields.nc") as raw:
        assert raw.attrs["title"] == "heat"
        assert raw.attrs["references"] == "a paper"
        assert "diffusivity: 8.0" in raw.attrs["scenario"]


def test_the_trained_network_is_returned_and_in_the_checkpoint(trained):
    assert set(trained.network) == {f"estimator/{n}.{p}" for n in ("conv0", "out") for p in ("weight", "bias")}
    arrays, state = checkpoint.load(trained.path / "checkpoint")
    assert state["step"] == 4
    for name, value in trained.network.items():
        assert value.dtype == np.float64
        np.testing.assert_array_equal(arrays[f"params/{name}"], value)
    assert {name.partition("/")[0] for name in arrays} <= set(GROUPS)


def test_a_stored_field_is_a_phiflow_field_again(trained):
    temperature = trained.fields.temperature
    with math.precision(64):
        field = to_phiflow(temperature)
        assert set(field.shape.batch.names) == {"sample", "t"}
        assert field.shape.spatial.sizes == (8, 8)
        np.testing.assert_array_equal(field.numpy("sample,t,x,y"), temperature)
        # Diffusion conserves the mean, which PhiFlow computes on its own grid; to rounding of sums over 64 cells.
        means = math.mean(field.values, "x,y").numpy("sample,t")
    np.testing.assert_allclose(means[:, 0], means[:, 1], rtol=1e-13)


def test_a_stored_scenario_runs_as_it_is_and_gives_the_same(trained, tmp_path):
    again = execute(trained.path / "scenario.yaml", tmp_path, {"output.plots": False, "output.samples": 2})
    with again.stored:
        for name, value in trained.network.items():
            np.testing.assert_array_equal(again.network[name], value)
        np.testing.assert_array_equal(again.metrics.train_loss, trained.metrics.train_loss)
        np.testing.assert_array_equal(again.fields.temperature_target, trained.fields.temperature_target[:2])


@pytest.mark.parametrize("trained", ["torch"], indirect=True)
def test_a_checkpoint_of_torch_predicts_the_same_with_jax(trained):
    scenario = toolkit.load_scenario(trained.path / "scenario.yaml")
    arrays, _ = checkpoint.load(trained.path / "checkpoint")
    predicted = {}
    for name in BACKENDS:
        with using(name, "cpu", "float64", "float64") as b:
            network = b.network(architectures(scenario.sections)["estimator"])
            params = {k.removeprefix("params/"): b.array(v) for k, v in arrays.items() if k.startswith("params/")}
            target = b.array(trained.fields.temperature_target.values[:, None])
            output, _ = network.apply(subtree(params, "estimator"), {}, target, False)
            predicted[name] = b.numpy(output)[:, 0]
    # Double precision, sums of 3·9 terms of order one.
    np.testing.assert_allclose(predicted["jax"], predicted["torch"], rtol=0, atol=1e-12)
    y = trained.fields.temperature_target
    shift = y.mean(("x", "y")).values - predicted["jax"].mean((1, 2))
    expected = predicted["jax"] + shift[:, None, None]
    np.testing.assert_allclose(trained.fields.initial_temperature, expected, rtol=0, atol=1e-12)


def test_chosen_fields_are_written_and_no_others(tmp_path):
    path = write_scenario(tmp_path, HEAT)
    run = execute(path, tmp_path, {"output.fields": ["initial_temperature"], "output.samples": 2, "train.steps": 1})
    with run.stored:
        assert set(run.fields.data_vars) == {"initial_temperature", "initial_temperature_reference"}
        assert run.fields.sizes["sample"] == 2
    none = execute(path, tmp_path, {"output.samples": 0, "train.steps": 1}, "none")
    assert not (none.path / "fields.nc").exists()


# --- other ways to learn ------------------------------------------------------------------------------------------

SAMPLER = "data: {type: hot_rectangles, validation: 5, seed: 1}"


def losses(run) -> np.ndarray:
    with run.stored:
        return run.metrics.validation_loss.dropna("step").values


@pytest.mark.parametrize(
    "overrides",
    [
        {"data.train": 8, "train.batch_size": 8, "update.optimizer": {"type": "lbfgs"}},
        {"data.train": 8, "train.batch_size": 8, "update.optimizer": {"type": "lbfgs"}, "run.backend": "jax"},
        {"data.train": 5, "update.clip": {"norm": 1e-3}},
        {"update.optimizer.learning_rate": {"type": "cosine", "initial": 1e-2, "steps": 4}},
        {"networks.estimator": {"type": "u_net", "levels": 2, "filters": 2, "output": "initial_temperature"}},
    ],
    ids=["lbfgs", "lbfgs on jax", "clip", "schedule", "u_net with statistics"],
)
def test_a_network_learns_with_every_option_of_the_update(tmp_path, overrides):
    run = execute(write_scenario(tmp_path, HEAT, DP), tmp_path, overrides)
    found = losses(run)
    assert np.isfinite(found).all()
    if "update.clip" in overrides:
        assert found[-1] != found[0]
    elif "networks.estimator" not in overrides:
        assert found[-1] < found[0]


def heated(folder: Path, network: str) -> Path:
    """A scenario that steers a known start with a force per time step."""
    decaying_waves(folder / "samples.nc", 3.0)
    return write_scenario(
        folder,
        HEAT,
        DP,
        ("initial_temperature: {acts_on: initial.temperature}", "heating: {acts_on: force.temperature}"),
        ("output: initial_temperature", network),
        ("controls:", "time: {steps: 3, dt: 0.5}\ncontrols:"),
        (SAMPLER, "data: {type: file, path: samples.nc, train: 2, validation: 1}"),
    )


@pytest.mark.parametrize("name", BACKENDS)
def test_an_open_loop_finds_a_force_per_time_step(tmp_path, name):
    run = execute(heated(tmp_path, "output: heating"), tmp_path, {"run.backend": name, "output.every": 2})
    with run.stored:
        fields = run.fields
        assert fields.heating.dims == fields.temperature.dims == ("sample", "t", "x", "y")
        np.testing.assert_array_equal(fields.t, [0.0, 1.0, 1.5])
        assert fields.heating.isel(t=[0, 1]).notnull().all()
        # No time step begins at the end.
        assert fields.heating.isel(t=-1).isnull().all()
        assert "heating_reference" not in fields
        assert fields.temperature_target.dims == ("sample", "x", "y")


@pytest.mark.parametrize("name", BACKENDS)
def test_a_closed_loop_calls_its_network_at_every_step(tmp_path, name):
    path = heated(tmp_path, "input: state, every_step: true, batch_norm: false, output: heating")
    run = execute(path, tmp_path, {"run.backend": name})
    with run.stored:
        fields = run.fields
        assert fields.heating.dims == ("sample", "t", "x", "y")
        np.testing.assert_array_equal(fields.t, [0.0, 0.5, 1.0, 1.5])
        # The force of each step enters the mean as ∫f dt; to rounding of means over 64 cells.
        gain = fields.temperature.mean(("x", "y")).diff("t", label="lower")
        given = 0.5 * fields.heating.mean(("x", "y")).isel(t=slice(0, 3))
        np.testing.assert_allclose(gain, given, rtol=0, atol=1e-13)
        assert (abs(gain) > 1e-6).all()


# --- data from a file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", ["torch"], indirect=True)
def test_fields_of_a_run_are_data_for_the_next(trained, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "targets.nc").write_bytes((trained.path / "fields.nc").read_bytes())
    data = "data: {type: file, path: data/targets.nc, train: 3, validation: 1}"
    path = write_scenario(tmp_path, HEAT, (SAMPLER, data))
    run = execute(path, tmp_path)
    with run.stored:
        for name in ("temperature_target", "initial_temperature_reference"):
            np.testing.assert_array_equal(run.fields[name][0], trained.fields[name][-1])
        assert run.metrics.control_error.notnull().any()


@pytest.mark.parametrize("trained", ["torch"], indirect=True)
def test_a_prediction_is_never_taken_for_the_truth(trained, tmp_path):
    fields = trained.fields.load()
    fields.drop_vars("initial_temperature_reference").to_netcdf(tmp_path / "targets.nc")
    data = "data: {type: file, path: targets.nc, validation: 1}"
    path = write_scenario(tmp_path, HEAT, (SAMPLER, data))
    run = execute(path, tmp_path)
    with run.stored:
        assert "initial_temperature_reference" not in run.fields
        assert run.metrics.control_error.isnull().all()


# --- the public checker -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", ["torch"], indirect=True)
def test_the_public_checker_finds_no_fault_in_a_run(trained, tmp_path):
    steered = execute(heated(tmp_path, "output: heating"), tmp_path)
    steered.stored.close()
    assert_compliant(trained.path, steered.path)
