"""Files of samples are checked before anything runs: names, dimensions, grid, numbers of samples."""

from __future__ import annotations

import netCDF4
import numpy as np
import pytest
from whole_runs import samples_file

from toolkit.core.errors import ScenarioError
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
