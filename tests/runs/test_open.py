import tracemalloc

import dask
import netCDF4
import numpy as np
import pytest

from toolkit.core.errors import MissingError, ScenarioError, StorageError
from toolkit.physics.grid import Grid
from toolkit.runs import atomic, datasets, layout, record
from toolkit.runs.directory import create
from toolkit.runs.fields import FieldWriter, write_fields
from toolkit.runs.layout import Variable
from toolkit.runs.metrics import MetricsWriter, read_metrics, write_metrics_nc
from toolkit.runs.open import open_run
from toolkit.runs.provenance import collect
from toolkit.runs.zarr_fields import ZarrFieldWriter


@pytest.fixture
def directory(tmp_path):
    made = create(tmp_path, "heat", "abc", "mine")
    atomic.write_text(made.scenario, "name: heat\n")
    record.write(made.record, record.begin("heat", "abc", collect(["phinverse"], tmp_path), backend="jax"))
    with MetricsWriter(made.metrics_lines) as writer:
        writer.append({"step": 1, "train_loss": 2.0})
    return made


def test_a_running_run_shows_what_it_has_so_far(directory):
    with open_run(directory.path) as run:
        assert run.path == directory.path
        assert run.scenario_text == "name: heat\n"
        assert (run.record.status, run.record.backend) == ("running", "jax")
        np.testing.assert_array_equal(run.metrics.train_loss, [2.0])
        with pytest.raises(StorageError, match=r"no file .*fields\.nc"):
            _ = run.fields


def test_a_finished_run_shows_its_datasets(directory):
    write_metrics_nc(directory.metrics, read_metrics(directory.metrics_lines), {"compile_seconds": 3.0})
    write_fields(
        directory.fields,
        [(Variable("psi", ("sample",), "psi", dtype="complex128"), np.array([1j, 2.0]))],
        [layout.sample_coordinate(2)],
        {},
    )
    record.update(directory.record, status="done")
    with open_run(directory.path) as run:
        assert run.metrics.attrs["compile_seconds"] == 3.0
        np.testing.assert_array_equal(run.fields.psi, [1j, 2.0])
        assert run.fields is run.fields
    assert str(directory.path) in repr(run)


def test_metrics_of_an_earlier_session_do_not_hide_those_of_a_resumed_one(directory):
    write_metrics_nc(directory.metrics, [], {})
    with open_run(directory.path) as run:
        assert run.metrics.sizes["step"] == 1


def test_a_folder_without_record_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match=r"not a run directory: it holds no run\.json"):
        open_run(tmp_path)


# --- large fields ----------------------------------------------------------------------------------------------------

GRID = Grid({"x": 3, "y": 2}, {"x": 1.0, "y": 1.0})


def frames(count):
    """A wave and labelled speeds, frame by frame."""
    generator = np.random.default_rng(0)
    psi = generator.normal(size=(count, 3, 2)) + 1j * generator.normal(size=(count, 3, 2))
    psi[0, 0, 0], psi[1, 0, 0] = complex(1.0, np.inf), complex(np.nan, 2.0)
    return psi, generator.normal(size=(count, 3, 2, 2))


def write_frames(writer, path, count=7):
    """A stream of them in a file or store."""
    psi, speed = frames(count)
    variables = [
        Variable("psi", ("t", "x", "y"), "wave", dtype="complex128"),
        Variable("speed", ("t", "x", "y", "component"), "speed"),
    ]
    labels = layout.component_coordinate(["left", "right"])
    coordinates = [layout.time_coordinate(), *layout.spatial_coordinates(GRID), labels]
    with writer(path, variables, coordinates, {"title": "made"}, append_dim="t", grid=GRID) as stream:
        for i in range(count):
            stream.append(i / 2, {"psi": psi[i], "speed": speed[i]})
    return psi, speed


def is_lazy(array):
    return array.chunks is not None


def test_fields_are_dask_arrays_where_they_are_large_or_where_that_is_asked_for(directory, monkeypatch):
    psi, speed = write_frames(FieldWriter, directory.fields)
    with open_run(directory.path) as small, open_run(directory.path, chunks=True) as asked:
        assert not is_lazy(small.fields.psi)
        assert asked.fields.psi.data.chunksize == (7, 3, 2)
    monkeypatch.setattr(datasets, "LAZY_BYTES", 100)
    monkeypatch.setattr(datasets, "CHUNK_BYTES", 2 * speed[0].nbytes)
    with open_run(directory.path) as run, open_run(directory.path, chunks=False) as whole:
        assert not is_lazy(whole.fields.speed)
        # The parts of a complex variable are joined without being read, infinities and NaN as they were.
        assert is_lazy(run.fields.psi)
        assert run.fields.psi.data.chunksize == (2, 3, 2)
        assert run.fields.speed.data.chunksize == (2, 3, 2, 2)
        assert run.fields.psi.long_name == "wave"
        np.testing.assert_array_equal(run.fields.psi, psi)
        np.testing.assert_array_equal(run.fields.speed.sel(component="right", t=1.5), speed[3, ..., 1])
        assert run.fields.compute().identical(whole.fields.compute())
    with open_run(directory.path, chunks={"t": 3}) as run:
        assert run.fields.speed.chunks == ((3, 3, 1), (3,), (2,), (2,))


def test_a_mean_over_time_does_not_load_the_whole_file(directory):
    """314 MB, of which the frames that were never written take no space on the disk."""
    with netCDF4.Dataset(directory.fields, "w") as file:
        for dim, size in {"t": None, "x": 512, "y": 512}.items():
            file.createDimension(dim, size)
        variable = file.createVariable("u", "f4", ("t", "x", "y"), fill_value=np.nan, chunksizes=(1, 512, 512))
        variable[0], variable[299] = 1.0, 3.0
    with open_run(directory.path) as run, dask.config.set(scheduler="synchronous"):
        assert run.fields.u.data.chunksize == (32, 512, 512)
        tracemalloc.start()
        mean = run.fields.u.mean("t").compute()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    np.testing.assert_array_equal(mean, np.full((512, 512), 2.0))
    # Chunks of 34 MB: one with the mask and the copy that a mean without NaN makes, and the sums of ten chunks.
    assert peak < 128 * 2**20


def test_a_store_is_read_as_a_file_is(directory):
    write_frames(FieldWriter, directory.fields)
    with open_run(directory.path) as run:
        wanted = run.fields.load()
    directory.fields.unlink()
    write_frames(ZarrFieldWriter, directory.fields_store)
    for chunks in (None, True):
        with open_run(directory.path, chunks=chunks) as run:
            assert is_lazy(run.fields.psi) is bool(chunks)
            assert run.fields.compute().identical(wanted)


def test_a_store_without_its_package_or_that_is_broken_is_told(directory, monkeypatch):
    directory.fields_store.mkdir()
    with open_run(directory.path) as run:
        with pytest.raises(StorageError, match=r"cannot read .*fields\.zarr"):
            _ = run.fields
        monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingError, match=r"pip install 'phinverse\[zarr\]'"):
            _ = run.fields
