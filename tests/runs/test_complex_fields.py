"""Complex fields in files: two real variables, joined by open_run, accepted again as data."""

from __future__ import annotations

import netCDF4
import numpy as np
import pytest
from whole_runs import cli

import toolkit

QUANTUM = """
name: quantum
grid: {cells: {x: 6}, extent: {x: 0.9}, boundary: zero}
pde: {type: schroedinger, kinetic: 1.0, potential: none}
time: {steps: 3, dt: 0.05}
controls:
  field: {acts_on: force.dipole}
data: {type: superposition, initial_levels: [1], target_levels: [2, 3], train: 4, validation: 2, seed: 1}
networks:
  controller: {type: mlp, layers: [4], activation: tanh, input: target, output: field}
loss: {type: fidelity, on: final.psi}
update: {type: dp, optimizer: {type: adam, learning_rate: 1e-3}}
train: {steps: 2, batch_size: 2, validate_every: 1}
run: {backend: jax, precision: float64}
output: {plots: false}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantum")
    path = folder / "quantum.yaml"
    path.write_text(QUANTUM, encoding="utf-8")
    return toolkit.run(toolkit.load_scenario(path), out=folder / "runs")


def from_file(folder):
    """The scenario on samples.nc, one sample for training and one for validation."""
    text = QUANTUM.replace("name: quantum", "name: again").replace("batch_size: 2", "batch_size: 1")
    before, after = text[: text.index("data:")], text[text.index("networks:") :]
    path = folder / "again.yaml"
    path.write_text(f"{before}data: {{type: file, path: samples.nc, train: 1, validation: 1}}\n{after}", "utf-8")
    return path


def test_files_hold_real_and_imaginary_parts(finished):
    with netCDF4.Dataset(finished.path / "fields.nc") as file:
        assert {"psi_re", "psi_im", "psi_target_re", "psi_target_im"} <= set(file.variables)
        assert "psi" not in file.variables
        assert "component" not in file.dimensions
        assert file["psi_re"].dimensions == ("sample", "t", "x")


def test_open_run_joins_them(finished):
    psi = finished.fields.psi
    assert np.iscomplexobj(psi.values)
    assert psi.dims == ("sample", "t", "x")
    # Crank–Nicolson keeps the norm to rounding; the state at t = 0 is real, later ones are not.
    assert np.allclose(np.sum(np.abs(psi.values) ** 2, axis=-1), 1.0, atol=1e-12)
    assert np.max(np.abs(psi.isel(t=-1).values.imag)) > 1e-3


def test_a_run_serves_as_data_again(finished, tmp_path):
    # The start is no control here: a file has to give it beside the target.
    source = tmp_path / "samples.nc"
    with netCDF4.Dataset(finished.path / "fields.nc") as old, netCDF4.Dataset(source, "w") as new:
        for name in ("sample", "x"):
            new.createDimension(name, len(old.dimensions[name]))
        for part in ("re", "im"):
            new.createVariable(f"psi_target_{part}", "f8", ("sample", "x"))[:] = old[f"psi_target_{part}"][:]
            new.createVariable(f"initial_psi_{part}", "f8", ("sample", "x"))[:] = old[f"psi_{part}"][:, 0]
    path = from_file(tmp_path)
    run = toolkit.run(toolkit.load_scenario(path), out=tmp_path / "runs")
    again, first = run.fields.psi_target.values, finished.fields.psi_target.values
    assert np.array_equal(again, first[1:])
    assert np.allclose(run.fields.psi.isel(t=0).values, finished.fields.psi.isel(sample=[1], t=0).values, atol=1e-15)


def test_parts_of_the_wrong_shape_are_refused(tmp_path):
    with netCDF4.Dataset(tmp_path / "samples.nc", "w") as new:
        new.createDimension("sample", 2)
        new.createDimension("x", 5)
        for name in ("psi_target_re", "psi_target_im", "initial_psi_re", "initial_psi_im"):
            new.createVariable(name, "f8", ("sample", "x"))[:] = 1.0
    result = cli("validate", from_file(tmp_path))
    assert result.exit_code == 2
    assert "psi_target has sample: 2, x: 5, component: 2, expected sample: 2, x: 6, component: 2" in result.stderr


@pytest.mark.parametrize("other", [("x", "sample"), ("sample", "y"), ()])
def test_parts_on_different_dimensions_are_refused(tmp_path, other):
    with netCDF4.Dataset(tmp_path / "samples.nc", "w") as new:
        for dimension, size in (("sample", 2), ("x", 6), ("y", 5)):
            new.createDimension(dimension, size)
        for name in ("initial_psi_re", "initial_psi_im", "psi_target_re"):
            new.createVariable(name, "f8", ("sample", "x"))[:] = 1.0
        new.createVariable("psi_target_im", "f8", other)[...] = 1.0
    result = cli("validate", from_file(tmp_path))
    assert result.exit_code == 2
    words = f"psi_target_im has {', '.join(other) or 'none'}; expected the same, in the same order"
    assert f"data.path: psi_target_re has the dimensions sample, x, {words}" in result.stderr
