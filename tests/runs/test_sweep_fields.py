"""Fields of a sweep in one file: axes, what is missing, what does not fit together, size; and read without a file."""

from __future__ import annotations

import json
import os
import tracemalloc

import dask.array
import netCDF4
import numpy as np
import pytest
import xarray as xr

from toolkit import open_sweep
from toolkit.core.errors import ScenarioError, StorageError
from toolkit.physics.grid import Grid
from toolkit.runs import atomic, datasets, execute, layout, record, sweep_fields
from toolkit.runs.directory import RunDirectory
from toolkit.runs.events import Events
from toolkit.runs.fields import FieldWriter
from toolkit.runs.fields import write_fields as write_member_fields
from toolkit.runs.layout import Variable
from toolkit.runs.metrics import to_dataset
from toolkit.runs.sweep_fields import write_fields
from toolkit.runs.zarr_fields import write_store

GRID = Grid({"x": 4, "y": 6}, {"x": 2.0, "y": 1.5})
SCENARIO = "name: made\ndescription: Made up.\npde: {type: heat}\n"


def values(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def member(folder, number, grid=GRID, times=(0.0, 0.5, 1.0), state="done", dtype="float64", extra=(), store=False):
    """A run with these fields, filled from its number."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = grid.shape
    arrays = [
        (Variable("u", ("sample", "t", *grid.axes), "speed", "m s-1", dtype), values(number, 2, len(times), *cells)),
        (Variable("drive", ("sample", "component"), "drive", dtype=dtype, role="control"), values(number + 50, 2, 2)),
        (Variable("rate", (), "rate of decay", dtype=dtype), np.array(float(number))),
        *extra,
    ]
    coordinates = [layout.sample_coordinate(2), layout.time_coordinate(list(times)), *layout.spatial_coordinates(grid)]
    coordinates.append(layout.component_coordinate(["left", "right"]))
    write, name = (write_store, "fields.zarr") if store else (write_member_fields, "fields.nc")
    write(folder / name, arrays, coordinates, {"title": "made"}, grid)
    record.write(folder / "run.json", record.RunRecord(state, reason=None if state == "done" else "too hot"))


def sweep_of(folder, cells):
    """A sweep's directory without members."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_json(folder / "sweep.json", {"scenario": "made", "cells": cells})
    atomic.write_text(folder / "scenario.yaml", SCENARIO)
    return folder


def pair(folder, first=None, second=None):
    """A sweep of two members that differ in what is given."""
    sweep_of(folder, {"a": {"pde.nu": 1}, "b": {"pde.nu": 2}})
    member(folder / "a", 1, **(first or {}))
    member(folder / "b", 2, **(second or {}))
    return folder


def silent(text):
    raise AssertionError(f"nothing was to be said: {text}")


CELLS = {f"{rule}{seed}": {"rule": rule, "run.seed": seed} for rule in ("sip", "dp") for seed in (3, 1, 2)}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two rules and three seeds; one member has failed, one has not begun. Its fields are together."""
    folder = sweep_of(tmp_path_factory.mktemp("sweep"), CELLS)
    for number, cell in enumerate(CELLS):
        if cell != "dp1":
            member(folder / cell, number, state="failed" if cell == "sip2" else "done")
    assert write_fields(folder, silent) == folder / "fields.nc"
    return folder


# --- the file --------------------------------------------------------------------------------------------------------


def test_members_lie_at_their_labels_and_those_that_are_missing_are_nan_and_named(sweep):
    with open_sweep(sweep, "fields") as ds:
        assert ds.u.dims == ("rule", "seed", "sample", "t", "x", "y")
        assert list(ds.rule.values) == ["sip", "dp"]
        assert list(ds.seed.values) == [1, 2, 3]
        assert list(ds.component.values) == ["left", "right"]
        np.testing.assert_array_equal(ds.x, GRID.coordinates("x"))
        for number, (cell, labels) in enumerate(CELLS.items()):
            found = ds.sel(rule=labels["rule"], seed=labels["run.seed"])
            if cell in ("sip2", "dp1"):
                assert all(found[name].isnull().all() for name in ("u", "drive", "rate"))
                continue
            np.testing.assert_array_equal(found.u, values(number, 2, 3, 4, 6))
            np.testing.assert_array_equal(found.drive.sel(component="right"), values(number + 50, 2, 2)[:, 1])
            assert float(found.rate) == number
        assert json.loads(ds.missing_members) == {"sip2": "failed: too hot", "dp1": "has not begun"}
        assert json.loads(ds.left_out_variables) == {}
        assert (ds.title, ds.scenario) == ("made", SCENARIO)
        assert (ds.u.units, ds.u.long_name, ds.drive.role) == ("m s-1", "speed", "control")
        assert ds.seed.scenario_key == "run.seed"


def test_chunks_are_those_of_a_member_and_compressed_and_what_is_missing_takes_no_space(sweep):
    with netCDF4.Dataset(sweep / "fields.nc") as file:
        variable = file.variables["u"]
        assert variable.chunking() == [1, 1, 2, 3, 4, 6]
        assert variable.filters()["zlib"]
        # Every byte of a chunk that is read is found: those of missing members were never written.
        assert np.isnan(variable[1, 0].filled(np.nan)).all()
        assert list(file.variables["rule_name"][:]) == ["sip", "dp"]
        assert variable.coordinates == "rule_name"


def test_memory_does_not_grow_with_the_members(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_fields, "CHUNK_BYTES", 2**16)
    monkeypatch.setattr(sweep_fields, "PIECE_BYTES", 2**17)
    large = Grid({"x": 64, "y": 64}, {"x": 1.0, "y": 1.0})
    folder = sweep_of(tmp_path, {f"m{i}": {"run.seed": i} for i in range(3)})
    for i in range(3):
        member(folder / f"m{i}", i, large, times=np.arange(16.0))
    tracemalloc.start()
    write_fields(folder, silent)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # One member has 1 MB of values; two pieces of 128 kB and what xarray and netCDF4 need for headers are traced.
    assert peak < 0.6 * 2**20
    with open_sweep(folder, "fields") as ds:
        np.testing.assert_array_equal(ds.u.sel(seed=2), values(2, 2, 16, 64, 64))


# --- what does not fit together --------------------------------------------------------------------------------------


def test_variables_along_a_dimension_that_differs_are_left_out_with_the_reason(tmp_path):
    said = []
    folder = pair(tmp_path, {"times": (0.0, 0.5)}, {"times": (0.0, 0.25, 0.5)})
    assert write_fields(folder, said.append) is not None
    reason = "t has 2 values in a, 3 in b"
    assert said == [f"left out of fields.nc of the sweep: u ({reason})"]
    with open_sweep(folder, "fields") as ds:
        assert set(ds.data_vars) == {"drive", "rate"}
        assert json.loads(ds.left_out_variables) == {"u": reason}
        assert "t" not in ds.dims
        np.testing.assert_array_equal(ds.rate, [1, 2])


def test_coordinates_with_other_values_and_variables_of_some_members_alone_are_left_out(tmp_path):
    said = []
    wave = (Variable("wave", ("x",), "wave"), np.zeros(4))
    here = (Variable("here", ("sample",), "here"), np.zeros(2))
    turned = (Variable("turned", ("x",), "turned"), np.zeros(4))
    other = (Variable("turned", ("y",), "turned"), np.zeros(6))
    folder = pair(tmp_path, {"extra": [wave, turned]}, {"extra": [here, other], "times": (0.0, 0.5, 0.75)})
    write_fields(folder, said.append)
    with open_sweep(folder, "fields") as ds:
        assert json.loads(ds.left_out_variables) == {
            "here": "not in a",
            "u": "t has other values in a than in b",
            "wave": "not in b",
            "turned": "x in a, y in b",
        }
    assert len(said) == 1


def test_a_grid_that_is_an_axis_leaves_nothing_to_combine(tmp_path):
    finer = Grid({"x": 8, "y": 6}, {"x": 2.0, "y": 1.5})
    folder = pair(tmp_path, {}, {"grid": finer})
    (folder / "fields.nc").write_bytes(b"of an earlier state")
    os.utime(folder / "fields.nc", ns=(0, 0))
    for cell in "ab":
        with netCDF4.Dataset(folder / cell / "fields.nc", "a") as file:
            for name in ("drive", "rate"):
                file.renameVariable(name, f"{name}_{cell}")
    said = []
    assert write_fields(folder, said.append) is None
    assert not (folder / "fields.nc").exists()
    assert said[0].startswith("the members have no field in common: ")
    assert "u (x has 4 values in a, 8 in b)" in said[0]
    with pytest.raises(StorageError, match=r"no field in common: .*u \(x has 4 values in a, 8 in b\)"):
        open_sweep(folder, "fields")


def test_attributes_and_precisions_that_differ(tmp_path, monkeypatch):
    walls = Grid(GRID.cells, GRID.extent, dict.fromkeys(("x-", "x+", "y-", "y+"), "zero"))
    folder = pair(tmp_path, {"dtype": "float32"}, {"grid": walls})
    monkeypatch.setattr(datasets, "LAZY_BYTES", 1000)
    said = []
    write_fields(folder, said.append)
    # What takes a while is announced.
    assert said == ["putting the fields of 2 members together: 0.0 GB"]
    with open_sweep(folder, "fields") as ds:
        # Neither boundary is that of both.
        assert "grid" not in ds.u.attrs
        assert ds.u.chunks is not None
        assert ds.u.dtype == np.float64
        np.testing.assert_array_equal(ds.u.sel(nu=1), values(1, 2, 3, 4, 6).astype("float32"))


def test_complex_fields_are_joined_and_names_do_not_clash(tmp_path):
    psi = np.array([1 + 2j, complex(np.nan, 1), complex(3, np.inf), 0j])
    sweep_of(tmp_path, {"m": {"pde.x": 7, "pde.u": 1}})
    member(tmp_path / "m", 0, extra=[(Variable("psi", ("x",), "wave", dtype="complex128"), psi)])
    write_fields(tmp_path, silent)
    with open_sweep(tmp_path, "fields") as ds:
        assert ds.psi.dims == ("axis_x", "axis_u", "x")
        np.testing.assert_array_equal(ds.psi.sel(axis_x=7, axis_u=1), psi)
        assert ds.psi.long_name == "wave"


def test_stores_of_members_are_put_together_as_files_are(tmp_path):
    folder = pair(tmp_path, {"store": True}, {})
    with open_sweep(folder, "fields", chunks=True) as lazy:
        lazy.load()
    write_fields(folder, silent)
    with open_sweep(folder, "fields") as ds:
        np.testing.assert_array_equal(ds.u.sel(nu=1), values(1, 2, 3, 4, 6))
        np.testing.assert_array_equal(ds.drive.sel(component="left"), [values(n + 50, 2, 2)[:, 0] for n in (1, 2)])
        assert lazy.drop_attrs().identical(ds.load().drop_attrs())


def test_what_is_no_sweep_or_has_no_fields_is_told(tmp_path):
    folder = sweep_of(tmp_path / "s", {"a": {"run.seed": 0}})
    assert write_fields(folder, silent) is None
    with pytest.raises(StorageError, match="no member of this sweep is done and has fields"):
        open_sweep(folder, "fields")
    with pytest.raises(ScenarioError, match="expected 'metrics' or 'fields'"):
        open_sweep(folder, "plots")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ScenarioError, match="not the directory of a sweep"):
        write_fields(tmp_path, silent)


# --- without the file ------------------------------------------------------------------------------------------------


def test_what_is_too_large_for_one_file_is_read_from_the_members_when_asked_for(sweep, tmp_path, monkeypatch):
    with open_sweep(sweep, "fields") as ds:
        whole = ds.load()
    folder = sweep_of(tmp_path, CELLS)
    for cell in CELLS:
        if (sweep / cell).exists():
            (folder / cell).symlink_to(sweep / cell)
    monkeypatch.setattr(sweep_fields, "MAX_BYTES", 10**3)
    said = []
    assert write_fields(folder, said.append) is None
    assert "take 0.0 GB" in said[0]
    assert f"toolkit.open_sweep('{folder}', 'fields') reads them" in said[0]
    read, original = [], sweep_fields.read_part
    monkeypatch.setattr(sweep_fields, "read_part", lambda *part: read.append(part) or original(*part))
    with open_sweep(folder, "fields") as lazy:
        assert read == []
        one = lazy.u.sel(rule="dp", seed=2).isel(t=-1, x=[2, 0])
        np.testing.assert_array_equal(one, values(5, 2, 3, 4, 6)[:, -1, [2, 0]])
        assert [path.parent.name for path, *_ in read] == ["dp2"]
        np.testing.assert_array_equal(lazy.u[:, [2, 0], 0, :, 1], whole.u[:, [2, 0], 0, :, 1])
        assert lazy.drop_attrs().identical(whole.drop_attrs())
        assert lazy.u.attrs == whole.u.attrs
    with open_sweep(folder, "fields", chunks={"seed": 1, "t": 1}) as lazy:
        assert isinstance(lazy.u.data, dask.array.Array)
        assert lazy.u.data.chunksize == (2, 1, 2, 1, 4, 6)
        # Sums in another order.
        xr.testing.assert_allclose(lazy.u.mean("t").compute(), whole.u.mean("t"), rtol=1e-14)


def test_a_file_older_than_its_members_is_not_used(tmp_path):
    folder = pair(tmp_path)
    (folder / "b" / "run.json").unlink()
    write_fields(folder, silent)
    with open_sweep(folder, "fields") as ds:
        assert ds.rate.isnull().values.tolist() == [False, True]
    record.write(folder / "b" / "run.json", record.RunRecord("done"))
    later = (folder / "fields.nc").stat().st_mtime_ns + 1
    os.utime(folder / "b" / "run.json", ns=(later, later))
    with open_sweep(folder, "fields") as ds:
        assert ds.rate.values.tolist() == [1, 2]
    write_fields(folder, silent)
    written = (folder / "fields.nc").stat()
    write_fields(folder, silent)
    assert (folder / "fields.nc").stat() == written


def test_a_failure_does_not_cost_the_metrics(tmp_path, monkeypatch):
    folder = pair(tmp_path)
    for cell in "ab":
        datasets.write_dataset(folder / cell / "metrics.nc", to_dataset([{"step": 0, "train_loss": 1.0}]))

    def full(*arguments):
        raise StorageError("the disk is full")

    monkeypatch.setattr(execute, "write_fields", full)
    said = []
    execute.combine_cells(RunDirectory(folder), [], Events(said.append))
    assert said == ["the fields of the members are not put together: the disk is full"]
    assert (folder / "metrics.nc").is_file()


def test_streams_are_put_together_with_their_labels(tmp_path):
    """They have labels as characters, and `step` first."""
    folder = sweep_of(tmp_path / "it", {"a": {"pde.nu": 1}, "b": {"pde.nu": 2}})
    for number, cell in enumerate("ab"):
        (folder / cell).mkdir()
        variables = [Variable("u", ("sample", "step", "component"), "u")]
        coordinates = [layout.sample_coordinate(2), layout.step_coordinate(), layout.component_coordinate(["ä", "y1"])]
        with FieldWriter(folder / cell / "fields.nc", variables, coordinates, {}, append_dim="step") as writer:
            for step in (0, 5, 10):
                writer.append(step, {"u": values(number, 3, 2, 2)[step // 5]})
        record.write(folder / cell / "run.json", record.RunRecord("done"))
    assert write_fields(folder, silent) == folder / "fields.nc"
    with open_sweep(folder, "fields") as ds:
        assert ds.u.dims == ("nu", "sample", "step", "component")
        assert list(ds.component.values) == ["ä", "y1"]
        np.testing.assert_array_equal(ds.u.sel(nu=2, component="y1"), values(1, 3, 2, 2)[:, :, 1].T)
