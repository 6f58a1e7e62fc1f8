"""Pictures and films of fields that are larger than the memory: what is not shown is not read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr
from whole_runs import WAVE

from toolkit.physics.grid import Grid
from toolkit.runs import layout, names, panels, record
from toolkit.runs.directory import RunDirectory
from toolkit.runs.layout import Variable
from toolkit.runs.plots import simulation_frames
from toolkit.runs.provenance import collect
from toolkit.runs.trajectories import trajectories
from toolkit.runs.zarr_fields import ZarrFieldWriter

FRAMES = 40_000
CELLS = {"x": 256, "y": 256}
"""40 000 frames of 256² float32 are 10.5 GB."""

DRAW = """
import json, sys, time
from pathlib import Path
from toolkit.runs import film, peak_memory, plots
film.MAX_FRAMES, film.HOLD = 4, 1
found = {}
for folder in map(Path, sys.argv[1:]):
    peak_memory.reset()
    start = time.process_time()
    pictures = [path.name for path in plots.write_plots(folder)] + [film.write_film(folder).name]
    found[folder.name] = [pictures, time.process_time() - start, peak_memory.peak_bytes()]
print(json.dumps(found))
"""


def directory(folder: Path) -> RunDirectory:
    """A run directory without fields."""
    folder.mkdir()
    made = RunDirectory(folder)
    made.scenario.write_text(WAVE, encoding="utf-8")
    record.write(made.record, record.begin("wave", "0", collect(()), backend="torch", device="cpu", seeds={}))
    return made


def header(cells: dict[str, int]) -> tuple[list[Variable], list[layout.Coordinate]]:
    grid = Grid(cells, dict.fromkeys(cells, 1.0))
    variables = [Variable("temperature", ("sample", "t", *cells), "temperature", "K", "float32", role="state")]
    return variables, [layout.sample_coordinate(1), layout.time_coordinate(), *layout.spatial_coordinates(grid)]


def sparse_file(path: Path, cells: dict[str, int], frames: int, written: list[int]) -> None:
    """A file of many frames of which some are written; the others take no space."""
    with netCDF4.Dataset(path, "w") as dataset:
        dataset.title = "sparse"
        sizes = {"t": None, **cells}
        for dim, size in sizes.items():
            dataset.createDimension(dim, size)
            dataset.createVariable(dim, "f8", (dim,))[:] = np.arange(size or frames)
        field = dataset.createVariable(
            "temperature", "f4", tuple(sizes), fill_value=np.nan, chunksizes=(1, *cells.values())
        )
        field.setncatts({"long_name": "temperature", "units": "K", "role": "state"})
        for k in written:
            field[k] = float(k)


def sparse_store(path: Path) -> None:
    variables, coordinates = header(CELLS)
    with ZarrFieldWriter(path, variables, coordinates, {"title": "sparse"}, append_dim="t") as writer:
        for k in range(0, FRAMES, FRAMES // 4):
            writer.frames = k
            writer.append(0.1 * k, {"temperature": np.full((1, *CELLS.values()), k, "float32")})
        writer.frames = FRAMES - 1
        writer.append(0.1 * FRAMES, {"temperature": np.zeros((1, *CELLS.values()), "float32")})


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the system does not tell the peak of the memory"
)
def test_ten_gigabytes_are_drawn_in_a_tenth_of_the_memory(tmp_path):
    planes, line, store = (directory(tmp_path / name) for name in ("planes", "line", "store"))
    sparse_file(planes.fields, CELLS, FRAMES, [0, 10_000, FRAMES - 1])
    sparse_file(line.fields, {"x": 4096}, 160 * 4096, [0, 1])  # as large, one dimension of space
    sparse_store(store.fields_store)
    for made in (planes, line, store):
        with xr.open_dataset(made.stored_fields, decode_times=False) as found:
            assert found.temperature.nbytes > 10e9
        assert sum(path.stat().st_size for path in made.path.rglob("*") if path.is_file()) < 30e6
    command = [sys.executable, "-c", DRAW, *(str(made.path) for made in (planes, line, store))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    for pictures, seconds, peak in json.loads(done.stdout).values():
        assert pictures == ["simulation.png", "film.gif"]
        # Libraries and figures take some 250 MB and 3 s.
        assert peak < 0.6e9
        assert seconds < 20


def test_sections_have_no_more_points_than_a_panel_has_pixels():
    long = xr.DataArray(np.arange(50_000.0), dims="t")
    assert panels.section(long).size <= panels.LINE_POINTS
    wide = xr.DataArray(np.zeros((2500, 4000)), dims=("x", "y"))
    section = panels.section(wide)
    assert section.shape == (834, 1000)
    assert panels.section(wide, points=100).shape == (100, 100)
    small = xr.DataArray(np.zeros((12, 3)), dims=("x", "component"))
    assert panels.thinned(small, points=4).shape == (4, 3)


@pytest.mark.parametrize("kind", ["vector", "complex", "volume"])
def test_a_section_is_not_read_before_it_is_asked_for(kind):
    """Of a lazily opened array a section computes the part that it shows."""
    read = []

    def values(*shape):
        read.append(shape)
        return np.ones(shape, complex if kind == "complex" else float)

    shape, dims = {
        "vector": ((5, 30, 20, 2), ("t", "x", "y", "component")),
        "complex": ((5, 30, 20), ("t", "x", "y")),
        "volume": ((5, 30, 20, 10), ("t", "x", "y", "z")),
    }[kind]
    lazy = xr.DataArray(dask_array(values, shape, kind), dims=dims)
    section = panels.section(lazy)
    assert read == []
    assert section.dims == ("x", "y")
    assert np.isfinite(section.compute()).all()
    assert len(read) == 1


def dask_array(values, shape, kind):
    """One chunk per frame, each made by a call of `values`."""
    dask = pytest.importorskip("dask")
    array = pytest.importorskip("dask.array")
    dtype = complex if kind == "complex" else float
    parts = [array.from_delayed(dask.delayed(values)(1, *shape[1:]), (1, *shape[1:]), dtype) for _ in range(shape[0])]
    return array.concatenate(parts)


def test_many_times_and_samples_of_a_closed_loop_are_thinned():
    variables = {
        name: (("sample", "t", "component"), np.zeros((150, 5000, 2))) for name in ("angle", "angle" + names.UNTRAINED)
    }
    figure = trajectories(xr.Dataset(variables, {"t": np.arange(5000.0), "component": ["a", "b"]}))
    lines = figure.axes[0].lines
    assert len(lines) == 2 * 100
    assert len(lines[0].get_xdata()) <= 2000


def test_a_long_simulation_in_one_dimension_is_a_picture_of_so_many_times():
    fields = xr.Dataset({"u": (("t", "x"), np.random.default_rng(0).normal(size=(3000, 8)))}, {"t": np.arange(3000.0)})
    fields = fields.assign_coords(x=np.arange(8.0))
    image = simulation_frames(fields).axes[0].get_images()[0]
    assert image.get_array().shape == (8, 1000)
    assert list(image.get_extent()[:2]) == [-1.5, 2998.5]  # 1000 times, 3 apart
