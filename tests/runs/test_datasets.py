import json

import numpy as np
import pytest
import xarray as xr

from toolkit.core.errors import StorageError
from toolkit.runs import datasets


def test_attributes_become_text_or_numbers():
    cleaned = datasets.clean_attributes({"a": None, "b": True, "c": {"d": [1]}, "e": np.float32(0.5), "f": 2**70})
    assert cleaned == {"a": "null", "b": "true", "c": '{"d": [1]}', "e": 0.5, "f": str(2**70)}
    assert type(cleaned["e"]) is float


def test_labels_and_complex_numbers_survive_a_file(tmp_path):
    data = np.array([[1 + 2j, 3.0], [4.0, 5 - 1j]])
    dataset = xr.Dataset(
        {"psi": (("rule", "x"), data, {"long_name": "wave", "units": "1", "flag": True})},
        {"rule": ["sip", "adam"], "x": [0.5, 1.5]},
    )
    datasets.write_dataset(tmp_path / "a.nc", dataset)
    with datasets.open_dataset(tmp_path / "a.nc") as read:
        np.testing.assert_array_equal(read.psi.sel(rule="adam"), data[1])
        assert read.psi.attrs["long_name"] == "wave"
        assert json.loads(read.psi.attrs["flag"]) is True
    assert "psi" in dataset.data_vars
    assert list(tmp_path.iterdir()) == [tmp_path / "a.nc"]


@pytest.mark.parametrize("complex_part", [False, True])
def test_a_closed_dataset_gives_the_file_free(tmp_path, complex_part):
    values = np.ones(3, complex if complex_part else float)
    path = tmp_path / "a.nc"
    datasets.write_dataset(path, xr.Dataset({"a": ("x", values, {"long_name": "a"})}))
    datasets.open_dataset(path).close()
    # Writing in place fails as long as any handle holds the file.
    xr.Dataset({"b": ("x", values.real)}).to_netcdf(path, mode="a", engine="netcdf4")


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(StorageError, match=r"no file .*a\.nc"):
        datasets.open_dataset(tmp_path / "a.nc")
    (tmp_path / "a.nc").write_text("not netCDF")
    with pytest.raises(StorageError, match=r"cannot read .*a\.nc"):
        datasets.open_dataset(tmp_path / "a.nc")


@pytest.mark.parametrize(
    ("shape", "chunk", "expected"),
    [
        ((100, 8, 8), (1, 8, 8), (4, 8, 8)),  # whole frames of 512 bytes
        ((3, 8, 8), (1, 8, 8), (3, 8, 8)),
        ((100, 8, 8), (3, 8, 8), (3, 8, 8)),  # twice as much is too much
        ((100, 32, 32), (1, 32, 32), (1, 32, 32)),  # a chunk in the file is the least
        ((100, 32, 32), (1, 1, 1), (1, 8, 32)),  # without chunks in the file
        ((0, 8, 8), (1, 8, 8), (1, 8, 8)),
        ((), (), ()),
    ],
)
def test_chunks_in_dask_are_whole_multiples_of_those_in_the_file(shape, chunk, expected):
    assert datasets.grown(shape, chunk, itemsize=8, limit=2048) == expected
