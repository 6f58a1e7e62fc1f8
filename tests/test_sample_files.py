"""Files of samples are checked before anything runs: names, dimensions, grid, numbers of samples."""

from __future__ import annotations

import netCDF4
import numpy as np
import pytest
from whole_runs import execute, samples_file

from toolkit.core.errors import ScenarioError
from toolkit.scenario import check_samples
from toolkit.scenario.load import scenario_from_text
from toolkit.training.data import file_key, file_split

TEXT = """
name: c
grid: {cells: {x: 4, y: 6}, extent: {x: 8, y: 6}}
pde: {type: heat, diffusivity: 1.0}
controls: {u0: {acts_on: initial.temperature}}
data: {type: file, path: PATH, validation: 1}
networks: {f: {type: mlp, output: u0}}
loss: l2
update: RULE
train: {batch_size: 2}
"""
GRID = {"x": 4, "y": 6}


def load(path, rule="dp", *changes):
    text = TEXT.replace("PATH", str(path)).replace("RULE", rule)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return scenario_from_text(text)


def refused(path, *words, rule="dp", changes=()):
    with pytest.raises(ScenarioError) as caught:
        load(path, rule, *changes)
    for word in words:
        assert word in str(caught.value)


def test_dimensions_may_come_in_any_order(tmp_path):
    load(samples_file(tmp_path / "a.nc", cells=GRID, temperature_target=("y", "x")))


def test_other_cells_are_refused(tmp_path):
    path = samples_file(tmp_path / "a.nc", cells={"x": 5, "y": 6}, temperature_target=("x", "y"))
    refused(path, "data.path: temperature_target has sample: 3, x: 5, y: 6, expected sample: 3, x: 4, y: 6")


def test_unknown_dimensions_are_refused(tmp_path):
    path = samples_file(tmp_path / "a.nc", cells={**GRID, "w": 2}, temperature_target=("x", "y", "w"))
    refused(path, "w: 2, expected sample: 3, x: 4, y: 6")


def test_other_coordinates_are_refused(tmp_path):
    path = samples_file(tmp_path / "a.nc", cells=GRID, temperature_target=("x", "y"))
    with netCDF4.Dataset(path, "a") as dataset:
        dataset.createVariable("x", "f8", ("x",))[:] = np.arange(4) + 0.5
    refused(path, "grid.cells: cells along x", "4 from 0.5 to 3.5 in the file, 4 from 1 to 7 here")


def test_numbers_of_samples_are_checked(tmp_path):
    path = samples_file(tmp_path / "a.nc", cells=GRID, temperature_target=("x", "y"))
    refused(path, "train.batch_size: a batch of 9 needs more than the 2", changes=[("batch_size: 2", "batch_size: 9")])
    refused(path, "the file holds 3 samples", changes=[("validation: 1", "validation: 3")])


def test_what_the_rule_needs_must_be_there(tmp_path):
    path = samples_file(tmp_path / "a.nc", cells=GRID, temperature_target=("x", "y"))
    refused(path, "needs the true control initial.temperature; the file gives target.temperature", rule="supervised")
    refused(samples_file(tmp_path / "b.nc", cells=GRID, other=("x", "y")), "holds no samples")


def test_what_is_no_file_of_samples_is_refused(tmp_path):
    path = tmp_path / "a.nc"
    path.write_text("text")
    refused(path, "data.path: cannot read a.nc as netCDF")


def test_names_of_variables_say_what_they_are():
    names = ["temperature_target", "initial_u", "initial_u_reference", "force_u", "temperature"]
    assert [file_key(name) for name in names] == ["target.temperature", "initial.u", "initial.u", "force.u", None]
    assert file_key("initial_u", "control") is None


def test_a_simulation_takes_the_whole_file():
    assert file_split(5, None, 0, whole=True) == (0, 5)
    assert file_split(5, None, 2, whole=True) == (0, 2)
    assert file_split(5, None, 2, whole=False) == (3, 2)
    assert file_split(5, 1, 2, whole=False) == (1, 2)


def write(path, values, **dims):
    """A file whose variables hold these values; `sample`, x, y first."""
    with netCDF4.Dataset(path, "w") as dataset:
        for dim, size in {"sample": len(values), **GRID, **dims}.items():
            dataset.createDimension(dim, size)
        kind = str if values.dtype.kind == "U" else "f8"
        dataset.createVariable("temperature_target", kind, ("sample", "x", "y"))[...] = values
    return path


def test_values_that_are_not_finite_are_refused_with_their_sample(tmp_path):
    values = np.zeros((200, 4, 6))
    write(tmp_path / "a.nc", values)
    load(tmp_path / "a.nc")
    for bad in (np.nan, np.inf):
        values[150, 2, 3] = bad
        path = write(tmp_path / "a.nc", values)
        refused(path, "data.path: a.nc: temperature_target holds values that are not finite or missing, sample 150")


def test_values_that_were_never_written_are_refused(tmp_path):
    path = tmp_path / "a.nc"
    with netCDF4.Dataset(path, "w") as dataset:
        for dim, size in {"sample": 3, **GRID}.items():
            dataset.createDimension(dim, size)
        dataset.createVariable("temperature_target", "f8", ("sample", "x", "y"))[:2] = 0.0
    refused(path, "temperature_target holds values that are not finite or missing, sample 2")


def test_a_file_is_looked_through_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(check_samples, "BLOCK", 7 * 8 * 24)
    values = np.zeros((20, 4, 6))
    values[13] = np.nan
    refused(write(tmp_path / "a.nc", values), "missing, sample 13")


def test_text_is_no_field(tmp_path):
    refused(write(tmp_path / "a.nc", np.full((3, 4, 6), "warm")), "temperature_target holds object, expected numbers")


def test_a_file_without_samples_is_refused(tmp_path):
    path = samples_file(tmp_path / "a.nc", 0, GRID, temperature_target=("x", "y"))
    refused(path, "data.path: ")
    simulated = samples_file(tmp_path / "b.nc", 0, GRID, initial_temperature=("x", "y"))
    text = SIMULATION.replace("PATH", str(simulated))
    with pytest.raises(ScenarioError, match=r"data.path: the file holds no samples: `sample` has length 0"):
        scenario_from_text(text)


def test_the_first_frame_of_a_target_along_t_may_be_empty(tmp_path):
    path = samples_file(tmp_path / "a.nc", 3, {**GRID, "t": 3}, temperature_target=("t", "x", "y"))
    changes = [("loss: l2", "time: {steps: 2}\nloss: {type: l2, on: trajectory.temperature}")]
    with netCDF4.Dataset(path, "a") as dataset:
        dataset["temperature_target"][:, 0] = np.nan
    load(path, "dp", *changes)
    with netCDF4.Dataset(path, "a") as dataset:
        dataset["temperature_target"][1, 2] = np.nan
    refused(path, "not finite or missing, sample 1", changes=changes)


SIMULATION = """
name: s
grid: {cells: {x: 4, y: 6}}
pde: {type: heat, diffusivity: 1.0}
data: {type: file, path: PATH}
"""


@pytest.mark.parametrize(
    ("variable", "dims", "words"),
    [
        ("initial_temperatur", ("x", "y"), "would act on initial.temperatur, which PDE 'heat' does not have"),
        ("force_heat", ("x", "y"), r"force.heat, .* \(force: temperature\); remove it"),
        ("parameter_match_mean", (), r"\(parameter: diffusivity\); remove it"),
        ("force_temperature", ("x", "y"), "force_temperature has sample: 3, x: 4, y: 6, expected sample: 3, .*t: 1"),
        ("source_temperature", ("y",), "source_temperature has sample: 3, y: 6, expected sample: 3, x: 4, y: 6"),
        ("initial_temperature_reference", ("x", "y"), "are both initial.temperature; remove one of them"),
    ],
)
def test_what_acts_on_nothing_or_in_another_shape_is_refused(tmp_path, variable, dims, words):
    path = samples_file(tmp_path / "a.nc", 3, GRID, initial_temperature=("x", "y"), **{variable: dims})
    with pytest.raises(ScenarioError, match=words):
        scenario_from_text(SIMULATION.replace("PATH", str(path)))


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_parameter_may_differ_from_sample_to_sample(tmp_path, name):
    path = samples_file(tmp_path / "a.nc", 3, GRID, initial_temperature=("x", "y"), parameter_diffusivity=())
    wave = np.cos(2 * np.pi * (np.arange(4) + 0.5) / 4)[:, None] * np.ones(6)
    with netCDF4.Dataset(path, "a") as dataset:
        dataset["initial_temperature"][:] = wave
        dataset["parameter_diffusivity"][:] = [0.1, 0.2, 0.3]
    scenario = tmp_path / "s.yaml"
    scenario.write_text(SIMULATION.replace("PATH", str(path)), encoding="utf-8")
    run = execute(scenario, tmp_path, {"run.backend": name, "run.precision": "float64", "output.plots": False})
    with run.stored:
        last = run.fields.temperature.isel(t=-1).values
    decay = np.exp(-np.array([0.1, 0.2, 0.3]) * (np.pi / 2) ** 2)
    np.testing.assert_allclose(last, decay[:, None, None] * wave, rtol=1e-12, atol=1e-14)


def test_a_solver_for_one_diffusivity_refuses_several(tmp_path):
    path = samples_file(tmp_path / "a.nc", 3, GRID, temperature_target=("x", "y"), parameter_diffusivity=())
    rule = "{type: sip, inverse_solver: damped_spectral}"
    refused(path, "update.inverse_solver: inverse solver 'damped_spectral' inverts one diffusivity", rule=rule)


def test_a_solver_that_finds_forces_refuses_forces_that_are_given(tmp_path):
    variables = {"temperature_target": ("x", "y"), "force_temperature": ("t", "x", "y")}
    path = samples_file(tmp_path / "a.nc", 3, {**GRID, "t": 1}, **variables)
    load(path, "{type: sip, inverse_solver: damped_spectral}")
    words = "inverse solver 'least_heating' finds heating per step; give a control that acts on force.temperature"
    refused(path, words, rule="{type: sip, inverse_solver: least_heating}")
