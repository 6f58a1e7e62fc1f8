"""A trained run as a surrogate: its own numbers again, files that do not fit, blocks, CF, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr
from whole_runs import BACKENDS, DIRECT, DP, HEAT, cli, execute, write_scenario

import toolkit
from toolkit.core.errors import DivergenceError, ScenarioError, StorageError
from toolkit.physics.sampling import draw
from toolkit.runs import checkpoint, predict_input, record
from toolkit.runs.predict import predict
from toolkit.scenario.layouts import timing
from toolkit.training.data import Source, validation_samples

SCENARIOS = Path(toolkit.__file__).parents[1] / "scenarios"
CLOSED = """\
name: closed
description: A network pushes a Burgers flow at each step.
grid: {cells: {x: 12}, extent: {x: 2.0}, boundary: periodic}
pde: {type: burgers, viscosity: 0.01, scheme: semi_lagrangian}
time: {steps: 3, dt: 1/32}
controls: {push: {acts_on: force.velocity}}
data: {type: wave_pairs, modes: 2, validation: 5, seed: 1}
networks:
  controller: {type: conv_net, layers: [3], input: [state, target, time], output: push, every_step: true}
loss: {type: l2, on: final.velocity}
update: {type: dp, optimizer: {type: adam, learning_rate: 1e-3}}
train: {steps: 3, batch_size: 2, validate_every: 3}
run: {backend: torch, device: cpu, precision: float64}
output: {samples: 5, plots: false}
"""
"""Networks in the loop; the samples bring the start."""


def trained(folder: Path, text: str, backend: str, *changes: tuple[str, str]) -> Path:
    """Directory of a run of this scenario."""
    folder.mkdir(exist_ok=True)
    run = execute(write_scenario(folder, text, *changes), folder / "runs", {"run.backend": backend})
    run.stored.close()
    return run.path


@pytest.fixture(scope="module")
def heat(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of an open loop with all validation samples in its fields, by backend."""
    folder = tmp_path_factory.mktemp("heat")
    whole = ("samples: 3", "samples: 5")
    return {name: trained(folder / name, HEAT, name, whole) for name in BACKENDS}


def drawn(run: Path, path: Path) -> Path:
    """The validation samples of a run on a line, as a file of samples."""
    sections = toolkit.load_scenario(run / "scenario.yaml").sections
    data = sections.data

    def sampler(rng, count):
        return draw(data.sampler, sections.grid, sections.pde.options, data.options, timing(sections), rng, count)

    samples = validation_samples(Source(sampler, data.seed), data.validation)
    variables = {}
    for key, values in samples.items():
        role, _, name = key.partition(".")
        file_name = f"{name}_target" if role == "target" else f"{role}_{name}"
        variables[file_name] = (("sample", "x"), values)
    xr.Dataset(variables).to_netcdf(path)
    return path


def assert_same(run: Path, predicted: Path, names: tuple[str, ...]) -> None:
    """What a run has written of its validation samples is predicted again."""
    with xr.open_dataset(run / "fields.nc") as own, xr.open_dataset(predicted) as found:
        for name in names:
            assert found[name].dims == own[name].dims
            # Sums of a few hundred float64 terms, in blocks of another size: a few units in the last place.
            np.testing.assert_allclose(found[name], own[name], rtol=1e-12, atol=1e-13)
            assert found[name].attrs == own[name].attrs


@pytest.mark.parametrize("name", BACKENDS)
def test_validation_samples_give_the_fields_of_the_run(heat, tmp_path, name):
    run = heat[name]
    seen = []
    events = toolkit.runs.events.Events(progress=lambda done, total, metrics: seen.append((done, total)))
    done = predict(run, run / "fields.nc", tmp_path / "out.nc", batch=2, events=events)
    names = ("temperature", "temperature_target", "initial_temperature", "initial_temperature_reference")
    assert_same(run, tmp_path / "out.nc", names)
    assert (done.samples, seen) == (5, [(2, 5), (4, 5), (5, 5)])
    with xr.open_dataset(tmp_path / "out.nc") as found, toolkit.open_run(run) as stored:
        final = found.temperature.isel(t=-1)
        loss = 0.5 * ((final - found.temperature_target) ** 2).sum(("x", "y"))
        np.testing.assert_allclose(found.loss, loss, rtol=1e-12)
        error = found.initial_temperature - found.initial_temperature_reference
        np.testing.assert_allclose(found.control_error, 0.5 * (error**2).sum(("x", "y")), rtol=1e-12)
        # The means are those of the last validation.
        assert done.loss == pytest.approx(float(stored.metrics.validation_loss[-1]), rel=1e-12)
        assert done.control_error == pytest.approx(float(stored.metrics.control_error[-1]), rel=1e-12)
        assert found.clipped_l1.mean() == pytest.approx(float(stored.metrics.clipped_l1[-1]), rel=1e-12)
        assert list(found.sample.values) == [0, 1, 2, 3, 4]
        assert (found.attrs["updates"], found.attrs["run"]) == (4, str(run))
    assert list(tmp_path.iterdir()) == [tmp_path / "out.nc"]


def test_a_run_of_one_backend_predicts_on_the_other(heat, tmp_path):
    run = heat["torch"]
    predict(run, run / "fields.nc", tmp_path / "out.nc", backend="jax")
    with xr.open_dataset(run / "fields.nc") as own, xr.open_dataset(tmp_path / "out.nc") as found:
        # Two libraries, each with its own order of sums.
        np.testing.assert_allclose(found.temperature, own.temperature, rtol=1e-10, atol=1e-12)
        assert (found.attrs["backend"], found.attrs["device"]) == ("jax", "cpu")
        assert found.attrs["scenario"] == (run / "scenario.yaml").read_text()


@pytest.mark.parametrize("name", BACKENDS)
def test_a_closed_loop_starts_where_the_file_says(tmp_path, name):
    run = trained(tmp_path / "run", CLOSED, name)
    source = drawn(run, tmp_path / "in.nc")
    predict(run, source, tmp_path / "out.nc", batch=3)
    assert_same(run, tmp_path / "out.nc", ("velocity", "velocity_target", "push"))
    with xr.open_dataset(source) as given, xr.open_dataset(tmp_path / "out.nc") as found:
        np.testing.assert_array_equal(
            found.velocity.isel(t=0).values.squeeze(), given.initial_velocity.values.squeeze()
        )
        assert np.isnan(found.push.isel(t=-1)).all()
    predict(run, run / "fields.nc", tmp_path / "again.nc", batch=5)
    assert_same(run, tmp_path / "again.nc", ("velocity", "velocity_target", "push"))
    bad = tmp_path / "bad.nc"
    with xr.open_dataset(source) as given:
        given.drop_vars("initial_velocity").to_netcdf(bad)
    words = r"bad\.nc: initial_velocity is missing: the samples that the networks were trained on give initial.velocity"
    with pytest.raises(ScenarioError, match=words):
        predict(run, bad, tmp_path / "no.nc")


def test_single_precision_stays_single(tmp_path):
    run = trained(tmp_path / "run", HEAT, "torch", DP, ("precision: float64", "precision: float32"))
    with xr.open_dataset(run / "fields.nc") as fields:
        fields.astype(float).to_netcdf(tmp_path / "in.nc")
    said = []
    predict(run, tmp_path / "in.nc", tmp_path / "out.nc", events=toolkit.runs.events.Events(message=said.append))
    assert "temperature_target is rounded to float32, in which the run computes" in said
    with xr.open_dataset(run / "fields.nc") as own, xr.open_dataset(tmp_path / "out.nc") as found:
        assert found.temperature.dtype == found.loss.dtype == np.float32
        np.testing.assert_allclose(found.temperature, own.temperature, rtol=1e-5, atol=1e-6)


# --- what does not fit --------------------------------------------------------------------------------------------


def changed(fields: xr.Dataset, change) -> xr.Dataset:
    return change(fields[["temperature_target"]].load())


def with_attribute(name, **attributes):
    def change(fields):
        fields[name].attrs.update(attributes)
        return fields

    return change


def with_hole(fields):
    fields.temperature_target[3, 1, 2] = np.nan
    return fields


GRID = {"cells": {"x": 8, "y": 8}, "extent": {"x": 64.0, "y": 32.0}}
MISFITS = {
    "cells": (lambda f: f.isel(x=slice(6)), "temperature_target has sample: 5, x: 6, y: 8, expected sample: 5, x: 8"),
    "coordinates": (
        lambda f: f.assign_coords(x=f.x / 2),
        "cells along x of .* are not those of the grid: 8 from 2 to 30 in the file, 8 from 4 to 60 here",
    ),
    "extent": (
        with_attribute("temperature_target", grid=json.dumps(GRID)),
        "temperature_target lies on a grid with extent {'x': 64.0, 'y': 32.0}, expected {'x': 64.0, 'y': 64.0}",
    ),
    "units": (with_attribute("temperature_target", units="degC"), "has the units 'degC', expected 'K'; convert it"),
    "field": (
        lambda f: f.rename(temperature_target="heat_target"),
        "temperature_target is missing: network estimator sees it; expected it along sample, x: 8, y: 8",
    ),
    "place": (lambda f: f.assign(force_wind=f.temperature_target), "force_wind would act on force.wind, which PDE"),
    "components": (
        lambda f: f.assign(temperature_target=f.temperature_target.expand_dims(component=2, axis=-1)),
        "has sample: 5, x: 8, y: 8, component: 2, expected sample: 5, x: 8, y: 8",
    ),
    "type": (lambda f: f.astype(str), "temperature_target holds .*, expected numbers"),
    "values": (with_hole, "temperature_target holds values that are not finite or missing, sample 3"),
    "samples": (lambda f: f.isel(sample=slice(0)).drop_vars("sample"), "holds no samples: `sample` has length 0"),
    "nothing": (lambda f: f.rename(temperature_target="other"), "holds no samples: no variable <field>_target"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_files_that_do_not_fit_are_refused_with_the_reason(heat, tmp_path, what):
    change, words = MISFITS[what]
    with xr.open_dataset(heat["torch"] / "fields.nc") as fields:
        changed(fields, change).to_netcdf(tmp_path / "in.nc")
    words = words.replace("{", r"\{").replace("}", r"\}")
    with pytest.raises(ScenarioError, match=rf"in\.nc[:,] .*{words}"):
        predict(heat["torch"], tmp_path / "in.nc", tmp_path / "out.nc")
    assert list(tmp_path.iterdir()) == [tmp_path / "in.nc"]


def test_components_have_names_and_an_order(tmp_path):
    sections = toolkit.load_scenario(SCENARIOS / "sine.yaml").sections
    names = sections.fields["y"].components
    for labels in (names, names[::-1]):
        with netCDF4.Dataset(tmp_path / "in.nc", "w") as dataset:
            dataset.createDimension("sample", 3)
            dataset.createDimension("y_component", 2)
            dataset.createVariable("y_target", "f8", ("y_component", "sample"))[...] = 0.5
            written = dataset.createVariable("y_component_name", str, ("y_component",))
            written[:] = np.array(labels, object)
        if labels == names:
            with predict_input.open_samples(tmp_path / "in.nc", sections) as samples:
                assert samples.block(0, 2)["target.y"].shape == (2, 2)
            continue
        words = "y_target has the components y1, y0, expected y0, y1, in this order"
        with pytest.raises(ScenarioError, match=words), predict_input.open_samples(tmp_path / "in.nc", sections):
            pass


def test_targets_along_t_are_taken_at_the_times_of_the_run(tmp_path):
    small = {"grid.cells": {"x": 12}, "time.steps": 3}
    sections = toolkit.load_scenario(SCENARIOS / "burgers_correction.yaml", small).sections
    given = {
        "velocity_target": (("sample", "t", "x"), np.zeros((2, 4, 12))),
        "initial_velocity": (("sample", "x"), np.zeros((2, 12))),
    }
    for dt, fits in ((1 / 32, True), (1 / 16, False)):
        path = tmp_path / f"{fits}.nc"
        xr.Dataset(given, {"t": np.arange(4) * dt}).to_netcdf(path)
        if fits:
            with predict_input.open_samples(path, sections) as samples:
                assert samples.block(0, 2)["target.velocity"].shape == (2, 3, 12)
            continue
        words = "velocity_target is given at times t from 0 to 0.1875, expected steps of 0.03125 from 0"
        with pytest.raises(ScenarioError, match=words), predict_input.open_samples(path, sections):
            pass


def test_forces_as_runs_write_them_are_references(tmp_path):
    text = CLOSED.replace("[state, target, time]", "target").replace(", every_step: true", "")
    sections = toolkit.load_scenario(write_scenario(tmp_path, text)).sections
    force = np.zeros((2, 4, 12))
    force[:, -1] = np.nan
    field = (("sample", "x"), np.zeros((2, 12)))
    given = {"velocity_target": field, "initial_velocity": field}
    given["push_reference"] = (("sample", "t", "x"), force)
    xr.Dataset(given).to_netcdf(tmp_path / "in.nc")
    with predict_input.open_samples(tmp_path / "in.nc", sections) as samples:
        assert samples.block(0, 2)["force.velocity"].shape == (2, 3, 12)


def test_runs_that_cannot_predict_say_why(heat, tmp_path):
    direct = trained(tmp_path / "direct", DIRECT, "torch")
    with pytest.raises(ScenarioError, match="this run has no network that could predict"):
        predict(direct, direct / "fields.nc", tmp_path / "out.nc")
    run = heat["torch"]
    with pytest.raises(ScenarioError, match=r"--batch 0: expected a number of samples"):
        predict(run, run / "fields.nc", tmp_path / "out.nc", batch=0)
    with pytest.raises(ScenarioError, match="this is the input; choose another name"):
        predict(run, run / "fields.nc", run / "fields.nc")
    with pytest.raises(ScenarioError, match=r"no such folder: .*away; make it first"):
        predict(run, run / "fields.nc", tmp_path / "away" / "out.nc")
    with pytest.raises(ScenarioError, match="expected the name of a netCDF file, this is a folder"):
        predict(run, run / "fields.nc", tmp_path)


def test_a_checkpoint_of_other_networks_is_refused(tmp_path):
    run = trained(tmp_path / "run", HEAT, "torch")
    arrays, state = checkpoint.load(run / "checkpoint")
    name = next(key for key in arrays if key.startswith("params/"))
    checkpoint.save(run / "checkpoint", {**arrays, name: arrays[name][..., :0]}, state)
    with pytest.raises(StorageError, match="the checkpoint does not fit the networks of the scenario: estimator/"):
        predict(run, run / "fields.nc", tmp_path / "out.nc")


def test_an_interrupted_run_predicts_from_its_checkpoint(tmp_path):
    run = trained(tmp_path / "run", HEAT, "torch")
    record.update(run / "run.json", status="interrupted", reason="Ctrl-C")
    said = []
    predict(run, run / "fields.nc", tmp_path / "out.nc", events=toolkit.runs.events.Events(message=said.append))
    assert f"{run} is interrupted; its checkpoint after 4 updates is used" in said


def test_the_samples_of_the_run_may_be_gone(heat, tmp_path, monkeypatch):
    with xr.open_dataset(heat["torch"] / "fields.nc") as fields:
        fields[["temperature_target", "initial_temperature_reference"]].to_netcdf(tmp_path / "own.nc")
    data = ("{type: hot_rectangles, validation: 5, seed: 1}", f"{{type: file, path: {tmp_path}/own.nc, validation: 2}}")
    run = trained(tmp_path / "run", HEAT, "torch", data)
    (tmp_path / "own.nc").rename(tmp_path / "moved.nc")
    said = []
    events = toolkit.runs.events.Events(message=said.append)
    monkeypatch.chdir(tmp_path)
    assert predict(run.relative_to(tmp_path), "moved.nc", "out.nc", events=events).samples == 5
    assert any("the run's own samples are gone" in text for text in said)


def test_a_sample_that_diverges_is_named_and_the_old_file_stays(heat, tmp_path):
    with xr.open_dataset(heat["torch"] / "fields.nc") as fields:
        given = fields[["temperature_target"]].load()
    given.temperature_target[3] = 1e308
    given.to_netcdf(tmp_path / "in.nc")
    (tmp_path / "out.nc").write_text("earlier")
    with pytest.raises(DivergenceError, match=r"sample 3: .* is not finite; these samples may lie far from"):
        predict(heat["torch"], tmp_path / "in.nc", tmp_path / "out.nc", batch=2)
    assert (tmp_path / "out.nc").read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.nc", "out.nc"]


# --- files and commands -------------------------------------------------------------------------------------------


def test_no_block_is_larger_than_asked_for(heat, tmp_path, monkeypatch):
    sizes, whole = [], predict_input.SampleFile.block

    def block(self, start, stop):
        sizes.append(stop - start)
        return whole(self, start, stop)

    monkeypatch.setattr(predict_input.SampleFile, "block", block)
    predict(heat["torch"], heat["torch"] / "fields.nc", tmp_path / "out.nc", batch=2)
    # The first block is read once more, for the shapes.
    assert sizes == [2, 2, 2, 1]
    with netCDF4.Dataset(tmp_path / "out.nc") as written:
        assert written.dimensions["sample"].isunlimited()
        assert written["temperature"].chunking() == [2, 2, 8, 8]


def test_the_command_predicts_and_the_file_is_clean(heat, tmp_path):
    run = heat["torch"]
    arguments = ("--input", run / "fields.nc", "--output", tmp_path / "out.nc")
    done = cli("predict", run, *arguments, "--batch", 4)
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'out.nc'}\n")
    assert "5 samples in " in done.stderr
    assert "next: python -c" in done.stderr
    checker = Path(sys.executable).with_name("compliance-checker")
    checked = subprocess.run(
        [checker, "--test=cf:1.11", tmp_path / "out.nc"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    assert "All tests passed!" in checked.stdout
    last = cli("predict", "last", *arguments, "--out", run.parents[1], "--quiet")
    assert (last.exit_code, last.stderr) == (0, "")


def test_the_command_tells_mistakes_from_failures(heat, tmp_path):
    run = heat["torch"]
    output = ("--output", tmp_path / "out.nc")
    missing = cli("predict", run, "--input", tmp_path / "no.nc", *output)
    assert (missing.exit_code, missing.stderr) == (2, f"--input {tmp_path / 'no.nc'}: no such file\n")
    (tmp_path / "text.nc").write_text("text")
    assert cli("predict", run, "--input", tmp_path / "text.nc", *output).exit_code == 2
    assert cli("predict", tmp_path, "--input", run / "fields.nc", *output).exit_code == 2
    assert cli("predict", run, "--input", run / "fields.nc", *output, "--device", "gpu:9").exit_code == 4
    wrong = cli("predict", run, "--input", run / "fields.nc", *output, "--backend", "numpy")
    assert wrong.exit_code == 2
    assert "run.backend" in wrong.stderr
