import numpy as np
import pytest
import xarray as xr
from phiml import math
from phiml.math import batch, channel, extrapolation, spatial

from toolkit.core.errors import StorageError
from toolkit.physics.grid import Grid
from toolkit.runs import datasets, layout
from toolkit.runs.fields import write_fields
from toolkit.runs.layout import Variable
from toolkit.runs.phiflow_fields import grid_from_attributes, grid_text, to_phiflow

GRID = Grid({"x": 8, "y": 6}, {"x": 4.0, "y": 1.5}, {"x-": "zero", "x+": 2.5, "y-": "zero_gradient", "y+": "zero"})


@pytest.fixture
def stored(tmp_path):
    generator = np.random.default_rng(0)
    arrays = [
        (
            Variable("velocity", ("sample", "t", "x", "y", "component"), "velocity"),
            generator.normal(size=(3, 2, 8, 6, 2)),
        ),
        (Variable("smoke", ("x", "y"), "smoke"), generator.normal(size=(8, 6))),
        (Variable("mass", ("sample",), "mass"), generator.normal(size=3)),
    ]
    coordinates = [
        layout.sample_coordinate(3),
        layout.time_coordinate([0.0, 0.5]),
        *layout.spatial_coordinates(GRID),
    ]
    write_fields(tmp_path / "f.nc", arrays, [*coordinates, layout.component_coordinate(["x", "y"])], {}, GRID)
    # At its default precision PhiML hands out float32 whatever it holds.
    with math.precision(64), datasets.open_dataset(tmp_path / "f.nc") as fields:
        yield fields, {variable.name: values for variable, values in arrays}


def test_a_grid_survives_as_text():
    assert grid_from_attributes({"grid": grid_text(GRID)}) == GRID


def test_a_scalar_field_comes_back_with_box_and_boundary(stored):
    fields, written = stored
    field = to_phiflow(fields.smoke)
    assert field.shape == spatial(x=8, y=6)
    np.testing.assert_array_equal(field.values.numpy("x,y"), written["smoke"])
    np.testing.assert_allclose(field.dx.numpy("vector"), GRID.dx, rtol=1e-12)  # round-off of a division
    assert field.boundary == GRID.phi_boundary
    assert field.boundary != extrapolation.PERIODIC


def test_samples_and_times_become_batches_and_components_the_vector(stored):
    fields, written = stored
    field = to_phiflow(fields.velocity)
    assert set(field.shape) == set(batch(sample=3, t=2) & spatial(x=8, y=6) & channel(vector="x,y"))
    np.testing.assert_array_equal(field.values.numpy("sample,t,x,y,vector"), written["velocity"])
    one = to_phiflow(fields.velocity.isel(sample=1, t=-1).sel(component="y"))
    np.testing.assert_array_equal(one.values.numpy("x,y"), written["velocity"][1, 1, ..., 1])


def test_the_order_of_dimensions_does_not_matter(stored):
    fields, written = stored
    field = to_phiflow(fields.smoke.transpose("y", "x"))
    np.testing.assert_array_equal(field.values.numpy("x,y"), written["smoke"])


def test_arrays_that_lost_their_grid_are_refused(stored):
    fields, _ = stored
    with pytest.raises(StorageError, match="no attribute `grid`"):
        to_phiflow(xr.DataArray(np.zeros(3), dims="x"))
    with pytest.raises(StorageError, match="smoke has 4 values along x, its grid has 8 cells"):
        to_phiflow(fields.smoke.isel(x=slice(4)))
    with pytest.raises(StorageError, match="no attribute `grid`"):
        to_phiflow(fields.mass)
