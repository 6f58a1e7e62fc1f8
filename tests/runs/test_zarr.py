"""Fields in a Zarr store: what a netCDF file would hold, whole frames whenever the writer dies."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from whole_runs import DIRECT, HEAT, WAVE, cli, execute, files, status, write_scenario

import toolkit
from toolkit.core.errors import ScenarioError, StorageError
from toolkit.physics.grid import Grid
from toolkit.runs import atomic, datasets, layout, zarr_array
from toolkit.runs.events import Events
from toolkit.runs.execute import complete, resume
from toolkit.runs.fields import write_fields
from toolkit.runs.layout import Variable
from toolkit.runs.plots import write_plots
from toolkit.runs.predict import predict
from toolkit.runs.zarr_fields import ZarrFieldWriter, write_store

GRID = Grid({"x": 8, "y": 6}, {"x": 4.0, "y": 1.5}, {"x-": "zero", "x+": 2.5})
SPACE = layout.spatial_coordinates(GRID, "m")
VECTOR = layout.component_coordinate(["x", "y"])
RNG = np.random.default_rng(0)
ATTRIBUTES = {"title": "heat", "scenario": "name: heat\n", "compile_seconds": 0.5}

WRITE_FOREVER = """
import sys
from pathlib import Path
import numpy as np
from toolkit.runs import layout
from toolkit.runs.zarr_fields import ZarrFieldWriter
coordinates = [layout.time_coordinate(), layout.Coordinate("x", np.arange(64.0), "x")]
variables = [layout.Variable(name, ("t", "x"), name) for name in "ab"]
writer = ZarrFieldWriter(Path(sys.argv[1]), variables, coordinates, {}, append_dim="t")
while True:
    frame = writer.frames
    writer.append(0.5 * frame, {name: np.full(64, frame + 1.0) for name in "ab"})
    print(writer.frames, flush=True)
"""


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def stream(path: Path) -> ZarrFieldWriter:
    variables = [
        Variable("u", ("sample", "t", "x", "y"), "temperature", "K"),
        Variable("c", ("t",), "amplitude", dtype="complex128"),
        Variable("y_target", ("sample",), "target"),
    ]
    coordinates = [layout.sample_coordinate(2), layout.time_coordinate(), *SPACE, VECTOR]
    return ZarrFieldWriter(path, variables, coordinates, ATTRIBUTES, append_dim="t", grid=GRID)


def frame(number: float) -> dict[str, np.ndarray]:
    return {"u": np.full((2, 8, 6), number), "c": np.asarray(number * (1 + 2j))}


def check(path: Path, numbers: list[float], **options) -> None:
    """The store as xarray opens it holds these frames and no other."""
    with xr.open_zarr(path, **({"consolidated": True} | options), decode_times=False) as found:
        np.testing.assert_array_equal(found.t, 0.1 * np.arange(len(numbers)))
        for values, factor in ((found.u[0, :, 3, 2], 1), (found.u[1, :, 7, 5], 1), (found.c_re, 1), (found.c_im, 2)):
            np.testing.assert_array_equal(values, factor * np.array(numbers))


@pytest.fixture
def small_chunks(monkeypatch):
    """Two frames to a chunk, three times to one of the coordinate."""
    monkeypatch.setattr(zarr_array, "MOST_FRAMES", 2)
    monkeypatch.setattr(zarr_array, "COORDINATE_FRAMES", 3)


def test_a_store_holds_what_a_file_would(tmp_path):
    dims = ("sample", "x", "y")
    arrays = [
        (Variable("u", ("sample", "t", "x", "y"), "temperature", "K", role="state"), RNG.normal(size=(3, 2, 8, 6))),
        (Variable("v", (*dims, "component"), "velocity", "m s-1", "float32"), RNG.normal(size=(3, 8, 6, 2))),
        (Variable("c", dims, "amplitude", dtype="complex128", role="control"), 1j * RNG.normal(size=(3, 8, 6))),
        (Variable("index", ("sample",), "index", dtype="int64"), np.array([1, -2, 3])),
        (Variable("viscosity", (), "viscosity"), np.array(0.5)),
    ]
    coordinates = [layout.sample_coordinate(3), layout.time_coordinate([0.0, 0.5], "s"), *SPACE, VECTOR]
    for write, name in ((write_fields, "fields.nc"), (write_store, "fields.zarr")):
        write(tmp_path / name, arrays, coordinates, ATTRIBUTES, GRID)
    with (
        datasets.open_dataset(tmp_path / "fields.nc") as file,
        datasets.open_dataset(tmp_path / "fields.zarr") as store,
    ):
        xr.testing.assert_identical(store.load(), file.load())
    # Others read it without this package.
    with xr.open_zarr(tmp_path / "fields.zarr") as raw:
        assert {"c_re", "c_im", "component_name"} <= set(raw.variables)
        np.testing.assert_array_equal(raw.c_im, arrays[2][1].imag)
    assert zarr.open_group(tmp_path / "fields.zarr", mode="r").metadata.zarr_format == 3
    assert {path.name for path in tmp_path.iterdir()} == {"fields.nc", "fields.zarr"}


@pytest.mark.parametrize(
    ("sizes", "kind", "chunks"),
    [
        ({"sample": 2, "t": 0, "x": 256, "y": 256}, "float32", [2, 2, 256, 256]),  # 1 MB
        ({"t": 0}, "float64", [64]),
        ({"t": 0, "x": 4096, "y": 4096}, "float64", [1, 2048, 4096]),  # 128 MB are two chunks of 64
        ({"sample": 3, "t": 5, "x": 256, "y": 256}, "float64", [1, 2, 256, 256]),  # 1 MB
    ],
)
def test_chunks_are_some_frames_or_part_of_one(sizes, kind, chunks):
    append_dim = "t" if sizes["t"] == 0 else None
    about = zarr_array.described(tuple(sizes), sizes, kind, {}, append_dim)
    assert about["chunk_grid"]["configuration"]["chunk_shape"] == chunks


def test_arrays_of_several_chunks_are_put_together_again(tmp_path, monkeypatch):
    monkeypatch.setattr(zarr_array, "CHUNK_BYTES", 2 * 48 * 8)
    monkeypatch.setattr(zarr_array, "FRAME_BYTES", 24 * 8)
    values = RNG.normal(size=(5, 3, 8, 6))
    variable = Variable("u", ("sample", "t", "x", "y"), "temperature")
    coordinates = [layout.sample_coordinate(5), layout.time_coordinate([0.0, 0.5, 1.0]), *SPACE]
    write_store(tmp_path / "whole.zarr", [(variable, values)], coordinates, {}, GRID)
    streamed = [layout.sample_coordinate(5), layout.time_coordinate(), *SPACE]
    with ZarrFieldWriter(tmp_path / "stream.zarr", [variable], streamed, {}, "t", GRID) as writer:
        for number in range(3):
            writer.append(0.5 * number, {"u": values[:, number]})
    for name in ("whole.zarr", "stream.zarr"):
        assert len([p for p in (tmp_path / name / "u" / "c").rglob("*") if p.is_file()]) > 9
        with datasets.open_dataset(tmp_path / name) as found:
            np.testing.assert_array_equal(found.u, values)


def test_a_reader_sees_a_frame_as_soon_as_it_is_written(tmp_path, small_chunks):
    path = tmp_path / "fields.zarr"
    with stream(path) as writer:
        check(path, [])
        for number in range(5):
            writer.append(0.1 * number, frame(number))
            check(path, list(range(writer.frames)))
        writer.write({"y_target": np.array([1.0, 2.0])})
    # Readers of single arrays are served too, later.
    check(path, list(range(5)), consolidated=False)
    with datasets.open_dataset(path) as found:
        np.testing.assert_array_equal(found.y_target, [1.0, 2.0])


def test_whatever_was_written_last_whole_frames_are_left_and_a_resumed_stream_goes_on(
    tmp_path, small_chunks, monkeypatch
):
    """Every file that is written is once the last one, torn; the store is then read, resumed and finished."""
    swap, ticks = atomic.swap, itertools.count()
    # The metadata of the arrays follow after every frame.
    monkeypatch.setattr("toolkit.runs.zarr_fields.time.monotonic", lambda: 2.0 * next(ticks))
    coordinates = [layout.time_coordinate(), SPACE[1]]
    variables = [Variable(name, ("t", "y"), name) for name in "ab"]
    for last in itertools.count(1):
        path, left = tmp_path / f"{last}.zarr", itertools.count(last, -1)

        def torn(target, data, left=left):
            if next(left) == 1:
                target.parent.mkdir(parents=True, exist_ok=True)
                (target.parent / f".{target.name}.1.part").write_bytes(data[: len(data) // 2])
                raise Killed
            swap(target, data)

        writer = ZarrFieldWriter(path, variables, coordinates, ATTRIBUTES, append_dim="t")
        monkeypatch.setattr(atomic, "swap", torn)
        done = _appended(writer, 3)
        monkeypatch.setattr(atomic, "swap", swap)
        with xr.open_zarr(path) as found:
            counted = found.sizes["t"]
            assert counted in (done, done + 1)
            for name in "ab":
                np.testing.assert_array_equal(found[name][:, 4], np.arange(counted))
        resumed = ZarrFieldWriter.resume(path, counted)
        assert _appended(resumed, 4) == 4
        resumed.close()
        # By the metadata of each array, too.
        with xr.open_zarr(path, consolidated=False) as found:
            for name in "ab":
                np.testing.assert_array_equal(found[name][:, 4], np.arange(4))
        assert list(path.rglob(".*")) == []
        if done == 3:
            break
    # Of each frame a, b, t, the store's metadata and those of four arrays; nothing was torn at last.
    assert last == 3 * (3 + 1 + 4) + 1


def _appended(writer: ZarrFieldWriter, frames: int) -> int:
    """Append frames until there are so many or the writer is killed; those that were finished."""
    try:
        while writer.frames < frames:
            number = writer.frames
            writer.append(0.1 * number, {name: np.full(6, float(number)) for name in "ab"})
    except Killed:
        return number
    return writer.frames


@pytest.mark.parametrize("kept", [0, 1, 2, 3, 4, 5])
def test_a_resumed_stream_drops_later_frames(tmp_path, small_chunks, kept):
    path = tmp_path / "fields.zarr"
    with stream(path) as writer:
        for number in range(5):
            writer.append(0.1 * number, frame(number))
    resumed = ZarrFieldWriter.resume(path, kept)
    check(path, list(range(kept)))
    chunks = [p for p in (path / "u" / "c").rglob("*") if p.is_file()]
    assert len(chunks) == (kept + 1) // 2
    for number in range(kept, kept + 3):
        resumed.append(0.1 * number, frame(-number))
    resumed.close()
    check(path, [*range(kept), *(-number for number in range(kept, kept + 3))])
    # What a chunk has behind the last frame is empty, not left of the chunk before.
    if kept % 2 == 0:
        end = zarr.open_array(path / "u", mode="r+")
        end.resize((2, kept + 4, 8, 6))
        assert np.isnan(np.asarray(end[:, kept + 3])).all()


def test_resuming_what_is_not_there_is_refused(tmp_path):
    with stream(tmp_path / "fields.zarr") as writer:
        writer.append(0.0, frame(0))
    with pytest.raises(StorageError, match="holds 1 frames, the checkpoint counts 2; start the run again"):
        ZarrFieldWriter.resume(tmp_path / "fields.zarr", 2)
    with pytest.raises(StorageError, match=r"cannot read .*zarr\.json: no such file"):
        ZarrFieldWriter.resume(tmp_path / "other.zarr", 0)
    (tmp_path / "fields.zarr" / "zarr.json").write_text("{}")
    with pytest.raises(StorageError, match=r"zarr\.json is not that of a stream of fields"):
        ZarrFieldWriter.resume(tmp_path / "fields.zarr", 0)


def test_shapes_and_names_that_do_not_fit_are_refused(tmp_path):
    with stream(tmp_path / "fields.zarr") as writer:
        with pytest.raises(ValueError, match=r"u has shape \(8, 6\), the file expects \(2, 8, 6\)"):
            writer.append(0.0, {**frame(0), "u": np.zeros((8, 6))})
        with pytest.raises(ValueError, match="a frame holds"):
            writer.append(0.0, {"u": np.zeros((2, 8, 6))})
        with pytest.raises(ValueError, match="write it with `append`"):
            writer.write({"u": np.zeros((2, 1, 8, 6))})
        with pytest.raises(ValueError, match="no variable 'w'"):
            writer.write({"w": np.zeros(1)})
    with pytest.raises(ValueError, match="no coordinate is given for 't'"):
        ZarrFieldWriter(tmp_path / "f.zarr", [], SPACE, {}, append_dim="t")
    with pytest.raises(ValueError, match="no coordinate is given"):
        write_store(tmp_path / "f.zarr", [(Variable("u", ("q",), "u"), np.zeros(1))], [], {})
    assert {path.name for path in tmp_path.iterdir()} == {"fields.zarr"}


def test_a_killed_process_leaves_every_frame_it_had_finished(tmp_path):
    path = tmp_path / "fields.zarr"
    with subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, str(path)], stdout=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None
        lines = [p.stdout.readline() for _ in range(100)]
        p.kill()
        reported = int((p.stdout.read().split() or lines)[-1])
    with datasets.open_dataset(path) as fields:
        assert fields.sizes["t"] in (reported, reported + 1)
        expected = np.repeat(np.arange(1.0, fields.sizes["t"] + 1)[:, None], 64, axis=1)
        for name in "ab":
            np.testing.assert_array_equal(fields[name], expected)


# --- whole runs -------------------------------------------------------------------------------------------------------


def interrupted_at(step: int) -> Events:
    def progress(done: int, steps: int | None, record: object) -> None:
        if done == step:
            raise KeyboardInterrupt

    return Events(progress=progress)


@pytest.mark.parametrize("text", [HEAT, DIRECT, WAVE], ids=["network", "direct", "simulation"])
def test_runs_write_the_same_fields_in_both_formats_and_are_resumed(tmp_path, text):
    scenario = write_scenario(tmp_path, text)
    expected = execute(scenario, tmp_path, name="netcdf")
    given = toolkit.load_scenario(scenario, {"output.format": "zarr"})
    with pytest.raises(KeyboardInterrupt):
        toolkit.run(given, out=tmp_path, name="zarr", events=interrupted_at(3))
    path = expected.path.with_name("zarr")
    if text is not HEAT:
        # Frames behind the checkpoint are there, and will be dropped.
        with xr.open_zarr(path / "fields.zarr") as found:
            assert max(found.sizes.get("t", 0), found.sizes.get("step", 0)) > 3
    (path / ".fields.99999.part.zarr").mkdir()

    run = resume(path)

    with expected.stored, run.stored:
        wanted, found = expected.fields.load(), run.fields.load()
        xr.testing.assert_equal(found, wanted.transpose(*found.dims))
        for name in wanted.variables:
            assert found[name].attrs == wanted[name].attrs
        assert set(found.attrs) == set(wanted.attrs)
    assert "fields.nc" not in files(path)
    if text is HEAT:
        assert not (path / ".fields.99999.part.zarr").exists()
    if text is HEAT:
        done = predict(path, path / "fields.zarr", tmp_path / "out.nc")
        with xr.open_dataset(done.path) as predicted:
            # A file of 3 samples instead of the validation batch of 5: sums in another order.
            np.testing.assert_allclose(predicted.temperature, found.temperature, rtol=0, atol=1e-12)
        samples = ("{type: hot_rectangles, ", f"{{type: file, path: {path / 'fields.zarr'}, ")
        again = write_scenario(tmp_path, HEAT, samples, ("validation: 5, seed: 1", "validation: 1, train: 2"))
        assert toolkit.load_scenario(again).sections.data.path == path / "fields.zarr"
        (path / "none.zarr").mkdir()
        with pytest.raises(ScenarioError, match="cannot be read as a Zarr store"):
            predict(path, path / "none.zarr", tmp_path / "out.nc")
    if text is WAVE:
        assert [p.name for p in write_plots(path)] == ["simulation.png"]


def test_what_a_failed_attempt_left_is_replaced_in_the_other_format_too(tmp_path):
    path = tmp_path / "wave" / "it"
    scenario = toolkit.load_scenario(write_scenario(tmp_path, WAVE), {"output.format": "zarr"})
    path.mkdir(parents=True)
    (path / "fields.nc").write_text("old")
    (path / "fields.zarr" / "u").mkdir(parents=True)
    assert complete(path, scenario) == "done"
    assert "fields.nc" not in files(path)
    assert not (path / "fields.zarr" / "u").exists()
    with toolkit.open_run(path) as stored:
        assert stored.fields.sizes["t"] == 7


def test_the_command_line_names_the_store(tmp_path):
    path = write_scenario(tmp_path, WAVE)
    result = cli("run", path, "--set", "output.format=zarr", "--out", tmp_path, "--name", "it")
    assert result.exit_code == 0
    assert f"fields: {tmp_path / 'wave' / 'it' / 'fields.zarr'}" in result.stderr
    assert json.loads((tmp_path / "wave/it/fields.zarr/zarr.json").read_text())["attributes"]["title"] == "wave"
    assert status(tmp_path / "wave" / "it")["status"] == "done"


def test_without_the_package_nothing_is_begun(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "zarr" else find(name, *rest))
    path = write_scenario(tmp_path, WAVE, ("{plots: false}", "{plots: false, format: zarr}"))
    for command in ("validate", "run"):
        result = cli(command, path, *(["--out", tmp_path] if command == "run" else []))
        assert result.exit_code == 4
        assert "output.format: zarr needs the package zarr: pip install 'phinverse[zarr]'" in result.stderr
    assert files(tmp_path) == {"wave.yaml"}
