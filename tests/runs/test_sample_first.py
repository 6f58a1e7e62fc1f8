"""Streams have `t` or `step` first in the file and `sample` first for users; nothing is read before it is asked for."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.runs import datasets, layout
from toolkit.runs.fields import FieldWriter

VALUES = np.random.default_rng(0).normal(size=(3, 5, 4, 2))
"""sample, t, x, component."""


@pytest.fixture
def file(tmp_path):
    """A stream of five frames of three samples."""
    path = tmp_path / "fields.nc"
    variables = [layout.Variable("u", ("sample", "t", "x", "component"), "u", dtype="complex128")]
    coordinates = [
        layout.sample_coordinate(3),
        layout.time_coordinate(),
        layout.Coordinate("x", np.arange(4.0), "x"),
        layout.component_coordinate("ab"),
    ]
    with FieldWriter(path, variables, coordinates, {}, append_dim="t") as writer:
        for frame in range(5):
            writer.append(0.5 * frame, {"u": VALUES[:, frame] * (1 + 2j)})
    return path


@pytest.mark.parametrize("chunks", [False, True], ids=["numpy", "dask"])
def test_dimensions_are_in_the_usual_order_however_they_are_indexed(file, chunks):
    whole = VALUES * (1 + 2j)
    with datasets.open_raw(file) as raw:
        assert raw.u_re.dims == ("t", "sample", "x", "component")
    with datasets.open_dataset(file, chunks) as ds:
        u = ds.u
        assert u.dims == ("sample", "t", "x", "component")
        np.testing.assert_array_equal(u[1, 2], whole[1, 2])
        np.testing.assert_array_equal(u[:, [3, 0], ::2, 1], whole[..., 1][:, [3, 0], ::2])
        np.testing.assert_array_equal(u.isel(t=-1, sample=[2, 0]), whole[[2, 0], -1])
        np.testing.assert_array_equal(u.sel(component="b", t=1.0).isel(x=slice(3, 0, -1)), whole[:, 2, 3:0:-1, 1])
        np.testing.assert_array_equal(u.transpose("x", ...), whole.transpose(2, 0, 1, 3))
        np.testing.assert_allclose(u.mean("t"), whole.mean(axis=1), rtol=0, atol=1e-15)  # the order of a sum of five
        np.testing.assert_array_equal(u, whole)


def test_a_frame_is_read_alone(file, monkeypatch):
    with datasets.open_dataset(file, chunks={"t": 1}) as ds:
        read = []
        original = datasets._complex
        monkeypatch.setattr(datasets, "_complex", lambda *parts: read.append(parts[0].shape) or original(*parts))
        np.testing.assert_array_equal(ds.u.isel(t=3), VALUES[:, 3] * (1 + 2j))
    assert all(shape[1] == 1 for shape in read)
