import subprocess
import sys
from pathlib import Path

import netCDF4
import numpy as np
import pytest

from toolkit.core.errors import StorageError
from toolkit.physics.grid import Grid
from toolkit.runs import datasets, layout, metrics, names
from toolkit.runs.fields import FieldWriter, write_fields
from toolkit.runs.layout import Variable
from toolkit.runs.provenance import collect

GRID = Grid({"x": 8, "y": 6}, {"x": 4.0, "y": 1.5}, {"x-": "zero", "x+": 2.5})
SPACE = layout.spatial_coordinates(GRID, "m")
RNG = np.random.default_rng(0)

WRITE_FOREVER = """
import sys
from pathlib import Path
import numpy as np
from toolkit.runs import layout
from toolkit.runs.fields import FieldWriter
coordinates = [layout.time_coordinate(), layout.Coordinate("x", np.arange(64.0), "x")]
variables = [layout.Variable(name, ("t", "x"), name) for name in "ab"]
writer = FieldWriter(Path(sys.argv[1]), variables, coordinates, {}, append_dim="t")
while True:
    frame = writer.frames
    writer.append(0.5 * frame, {name: np.full(64, frame + 1.0) for name in "ab"})
    print(writer.frames, flush=True)
"""


def attributes():
    provenance = collect(["phinverse", "run", "heat.yaml"], Path("/"))
    return datasets.global_attributes("heat", "A test.", "name: heat\n", provenance, ["Holl et al. 2022"])


def stream(path, variables=None, **options):
    variables = variables or [Variable("u", ("t", "x", "y"), "temperature", "K")]
    coordinates = [layout.time_coordinate(units="s"), *SPACE, layout.component_coordinate(["x", "y"])]
    return FieldWriter(path, variables, coordinates, attributes(), append_dim="t", grid=GRID, **options)


def validation_file(path):
    """A file with all that a trained network leaves: trajectory, vectors, targets, complex controls."""
    dims = ("sample", "x", "y")
    arrays = [
        (
            Variable("u", ("sample", "t", "x", "y"), "temperature", "K", role="state"),
            RNG.normal(size=(3, 2, 8, 6)),
        ),
        (Variable("v", (*dims, "component"), "velocity", "m s-1", "float32"), RNG.normal(size=(3, 8, 6, 2))),
        (Variable("u_target", dims, "target", "K", role="target"), RNG.normal(size=(3, 8, 6))),
        (
            Variable("c", dims, "amplitude", dtype="complex128", role="control"),
            1j * RNG.normal(size=(3, 8, 6)),
        ),
        (Variable("index", ("sample",), "index", dtype="int64"), np.array([1, -2, 3])),
    ]
    coordinates = [layout.sample_coordinate(3), layout.time_coordinate([0.0, 0.5], "s"), *SPACE]
    write_fields(path, arrays, [*coordinates, layout.component_coordinate(["x", "y"])], attributes(), GRID)
    return {variable.name: values for variable, values in arrays}


def test_whole_files_give_back_what_was_written(tmp_path):
    written = validation_file(tmp_path / "fields.nc")
    with datasets.open_dataset(tmp_path / "fields.nc") as fields:
        assert set(fields.data_vars) == set(written)
        for name, values in written.items():
            # float32 is what `v` is stored in.
            np.testing.assert_array_equal(fields[name], values.astype("float32") if name == "v" else values)
        assert fields.v.sel(component="y").dims == ("sample", "x", "y")
        np.testing.assert_allclose(fields.x, GRID.coordinates("x"), rtol=0, atol=0)
        assert fields.u_target.attrs["role"] == "target"
        assert fields.attrs["scenario"] == "name: heat\n"


def test_complex_arrays_are_stored_in_two_parts(tmp_path):
    validation_file(tmp_path / "fields.nc")
    with netCDF4.Dataset(tmp_path / "fields.nc") as raw:
        assert {"c_re", "c_im"} <= set(raw.variables)
        assert "c" not in raw.variables
        assert raw["c_im"].long_name == "imaginary part of amplitude"
    with datasets.open_dataset(tmp_path / "fields.nc") as fields:
        assert fields.c.dtype == np.complex128
        assert fields.c.attrs["long_name"] == "amplitude"


def test_frames_are_on_disk_when_append_returns(tmp_path):
    path = tmp_path / "fields.nc"
    with stream(path) as writer:
        for frame in range(3):
            writer.append(0.1 * frame, {"u": np.full((8, 6), frame)})
        assert writer.frames == 3
        # Also to a reader while the writer goes on.
        with netCDF4.Dataset(path) as raw:
            assert raw.dimensions["t"].isunlimited()
            assert raw.data_model == "NETCDF3_64BIT_DATA"
            np.testing.assert_array_equal(raw["u"][:, 2, 3], [0, 1, 2])


@pytest.mark.parametrize("attempt", range(2))
def test_a_killed_run_leaves_a_readable_file_with_every_frame(tmp_path, attempt):
    path = tmp_path / "fields.nc"
    with subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, str(path)], stdout=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None
        lines = [p.stdout.readline() for _ in range(20 + attempt * 7)]
        p.kill()
        reported = int((p.stdout.read().split() or lines)[-1])
    with datasets.open_dataset(path) as fields:
        assert fields.sizes["t"] in (reported, reported + 1)
        for name in "ab":
            expected = np.repeat(np.arange(1.0, reported + 1)[:, None], 64, axis=1)
            np.testing.assert_array_equal(fields[name][:reported], expected)


def test_a_resumed_stream_drops_later_frames_and_goes_on(tmp_path):
    path = tmp_path / "fields.nc"
    with stream(path) as writer:
        for frame in range(5):
            writer.append(frame, {"u": np.full((8, 6), frame)})
    with FieldWriter.resume(path, 2) as writer:
        writer.append(2.0, {"u": np.full((8, 6), 20)})
    with datasets.open_dataset(path) as fields:
        np.testing.assert_array_equal(fields.t, [0.0, 1.0, 2.0])
        np.testing.assert_array_equal(fields.u[:, 0, 0], [0, 1, 20])
        assert fields.attrs["title"] == "heat"
        assert fields.u.attrs["units"] == "K"
        assert list(fields.component.values) == ["x", "y"]


def test_resuming_behind_the_end_is_refused(tmp_path):
    with stream(tmp_path / "fields.nc") as writer:
        writer.append(0.0, {"u": np.zeros((8, 6))})
    with pytest.raises(StorageError, match="holds 1 frames"):
        FieldWriter.resume(tmp_path / "fields.nc", 2)


def test_streams_run_along_step_and_may_hold_fixed_variables(tmp_path):
    variables = [
        Variable("x", ("sample", "step", "component"), "control"),
        Variable("y_target", ("sample",), "y*"),
    ]
    coordinates = [layout.sample_coordinate(2), layout.step_coordinate(), layout.component_coordinate("ab")]
    with FieldWriter(tmp_path / "fields.nc", variables, coordinates, attributes(), append_dim="step") as writer:
        writer.write({"y_target": np.array([1.0, 2.0])})
        for step in (0, 10, 20):
            writer.append(step, {"x": np.full((2, 2), step)})
    with datasets.open_dataset(tmp_path / "fields.nc") as fields:
        np.testing.assert_array_equal(fields.step, [0, 10, 20])
        np.testing.assert_array_equal(fields.x.sel(sample=1, component="b"), [0, 10, 20])
        np.testing.assert_array_equal(fields.y_target, [1.0, 2.0])


def test_shapes_and_names_that_do_not_fit_are_refused(tmp_path):
    with stream(tmp_path / "fields.nc") as writer:
        with pytest.raises(ValueError, match=r"u has shape \(6, 8\), the file expects \(8, 6\)"):
            writer.append(0.0, {"u": np.zeros((6, 8))})
        with pytest.raises(ValueError, match="a frame holds"):
            writer.append(0.0, {"v": np.zeros((8, 6))})
        with pytest.raises(ValueError, match="write it with `append`"):
            writer.write({"u": np.zeros((1, 8, 6))})
        with pytest.raises(ValueError, match="no variable 'v'"):
            writer.write({"v": np.zeros(1)})
    with pytest.raises(ValueError, match="no coordinate is given"):
        write_fields(tmp_path / "f.nc", [(Variable("u", ("q",), "u"), np.zeros(1))], [], {})
    with pytest.raises(ValueError, match="role of u"):
        Variable("u", (), "u", role="truth")


def test_a_failed_file_does_not_appear(tmp_path):
    with pytest.raises(ValueError, match="has shape"):
        write_fields(tmp_path / "f.nc", [(Variable("u", ("x",), "u"), np.zeros(3))], SPACE[:1], {})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"cannot write .*fields\.nc"):
        stream(tmp_path / "nowhere" / "fields.nc")


def test_huge_frames_are_split_into_chunks_that_hdf5_takes(monkeypatch, tmp_path):
    monkeypatch.setattr(layout, "MAX_CHUNK", 8 * 6 * 8 // 2)
    write_fields(
        tmp_path / "fields.nc",
        [(Variable("u", ("sample", "x", "y"), "u"), np.ones((1, 8, 6)))],
        [*SPACE, layout.sample_coordinate(1)],
        {},
    )
    with netCDF4.Dataset(tmp_path / "fields.nc") as raw:
        assert raw["u"].chunking() == [1, 4, 6]


def test_the_public_checker_finds_no_fault(tmp_path):
    validation_file(tmp_path / "validation.nc")
    with stream(tmp_path / "stream.nc") as writer:
        for frame in range(2):
            writer.append(frame, {"u": np.zeros((8, 6))})
    records = [{"step": 0, "validation_loss": 1.0}, {"step": 1, "train_loss": 2.0, "gradient_norm": 1.0}]
    metrics.write_metrics_nc(tmp_path / "metrics.nc", records, attributes() | {"compile_seconds": 0.5})
    dataset = metrics.to_dataset(records, attributes()).expand_dims(rule=["sip", "adam"])
    datasets.write_dataset(tmp_path / "labelled.nc", dataset)
    files = sorted(str(path) for path in tmp_path.glob("*.nc"))
    checker = Path(sys.executable).with_name("compliance-checker")
    done = subprocess.run([checker, "--test=cf:1.11", *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("All tests passed!") == len(files) == 4, done.stdout
    assert "exceptions occurred" not in done.stdout + done.stderr


def test_no_forbidden_name_or_attribute_is_written(tmp_path):
    validation_file(tmp_path / "fields.nc")
    with netCDF4.Dataset(tmp_path / "fields.nc") as raw:
        assert raw.Conventions == names.CONVENTIONS
        assert {"title", "summary", "source", "history", "references", "scenario", "provenance"} <= set(raw.ncattrs())
        assert "time" not in raw.dimensions
        for name, variable in raw.variables.items():
            about = set(variable.ncattrs())
            assert "axis" not in about
            assert {"long_name", "units", "coverage_content_type"} <= about
            assert name not in raw.dimensions or "_FillValue" not in about
            assert all(isinstance(variable.getncattr(a), str | int | float | np.number) for a in about)
