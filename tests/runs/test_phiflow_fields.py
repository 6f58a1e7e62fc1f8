import numpy as np
import pytest
import xarray as xr
from phi import field as phi_field
from phiml import math
from phiml.math import batch, channel, extrapolation, spatial

from toolkit.core.errors import StorageError
from toolkit.physics.grid import Grid
from toolkit.runs import datasets, layout
from toolkit.runs.fields import write_fields
from toolkit.runs.layout import Variable
from toolkit.runs.phiflow_fields import from_phiflow, grid_from_attributes, grid_text, to_phiflow

GRID = Grid({"x": 8, "y": 6}, {"x": 4.0, "y": 1.5}, {"x-": "zero", "x+": 2.5, "y-": "zero_gradient", "y+": "zero"})
SIDES = ("x-", "x+", "y-", "y+")


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


def test_lazy_arrays_give_the_same_field(stored, tmp_path):
    _, written = stored
    with datasets.open_dataset(tmp_path / "f.nc", chunks={"t": 1}) as lazy:
        assert lazy.velocity.chunks is not None
        found = to_phiflow(lazy.velocity.isel(t=-1))
    np.testing.assert_array_equal(found.values.numpy("sample,x,y,vector"), written["velocity"][:, -1])


def test_axes_of_a_sweep_become_batches_with_their_labels(stored):
    fields, written = stored
    combined = xr.concat([fields.smoke, 2 * fields.smoke], xr.DataArray(["sip", "a, b"], dims="rule", name="rule"))
    combined = combined.expand_dims(seed=[3, 4]).assign_attrs(fields.smoke.attrs)
    field = to_phiflow(combined)
    assert set(field.shape) == set(batch(seed=2) & batch(rule=["sip", "a, b"]) & spatial(x=8, y=6))
    np.testing.assert_array_equal(field.rule["sip"].seed[0].values.numpy("x,y"), written["smoke"])
    np.testing.assert_array_equal(field.rule[1].seed[1].values.numpy("x,y"), 2 * written["smoke"])
    back = from_phiflow(field, like=combined)
    xr.testing.assert_equal(back, combined)
    assert back.attrs == {"grid": grid_text(GRID)}


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_field_that_becomes_an_array_and_a_field_again_is_the_same(stored, precision):
    fields, _ = stored
    array = fields.velocity.astype(precision)
    with math.precision(32):
        field = to_phiflow(array)
        back = from_phiflow(field, like=array)
        again = to_phiflow(back)
    assert back.dtype == precision
    np.testing.assert_array_equal(back, array)
    assert back.dims == array.dims
    assert set(again.shape) == set(field.shape)
    assert again.boundary == field.boundary == GRID.phi_boundary
    assert (again.bounds.lower == field.bounds.lower).all
    assert (again.bounds.upper == field.bounds.upper).all
    math.assert_close(again.values, field.values, rel_tolerance=0, abs_tolerance=0)


def test_the_result_of_an_operator_is_an_array_again(stored):
    fields, _ = stored
    one = fields.smoke.assign_coords(rule="sip")
    gradient = from_phiflow(phi_field.spatial_gradient(to_phiflow(one)), like=one)
    assert gradient.dims == ("x", "y", "component")
    assert list(gradient.component.values) == ["x", "y"]
    assert gradient.rule == "sip"
    np.testing.assert_array_equal(gradient.x, GRID.coordinates("x"))
    # A central difference of the inner cells; round-off of another order of operations.
    inner = (one[2:, :].values - one[:-2, :].values) / (2 * GRID.dx[0])
    np.testing.assert_allclose(gradient.sel(component="x")[1:-1], inner, rtol=1e-12)
    assert grid_from_attributes(gradient.attrs) == Grid(GRID.cells, GRID.extent, dict.fromkeys(SIDES, "zero"))
    mixed = extrapolation.combine_sides(x=extrapolation.ZERO, y=extrapolation.ZERO_GRADIENT)
    assert from_phiflow(to_phiflow(one).with_boundary(mixed), like=one).attrs == {}
    with pytest.raises(StorageError, match="not cell-centred on the grid of smoke"):
        from_phiflow(to_phiflow(one).x[0:2], like=one)


def test_gradients_pass_through_an_operator_on_a_stored_field(backend, stored):
    """½ Σ (∇²u)² on a periodic grid with cells of 0.5 × 0.25: its gradient is ∇²∇²u, the operator being symmetric."""
    periodic = Grid(GRID.cells, GRID.extent)
    values = np.random.default_rng(3).normal(size=(2, 8, 6))
    array = xr.DataArray(values, dims=("sample", "x", "y"), attrs={"grid": grid_text(periodic)})
    u = to_phiflow(array)

    def laplace(v):
        terms = [(np.roll(v, 1, i) - 2 * v + np.roll(v, -1, i)) / dx**2 for i, dx in ((1, 0.5), (2, 0.25))]
        return terms[0] + terms[1]

    def loss(v):
        return math.sum(math.l2_loss(phi_field.laplace(u.with_values(v)).values), "sample")

    start = math.tensor(u.values)
    assert start.default_backend.name == backend.name
    gradient = math.gradient(loss, "v", get_output=False)(start)
    # Round-off of second differences, relative to the largest value.
    expected = laplace(laplace(values))
    np.testing.assert_allclose(gradient.numpy("sample,x,y"), expected, atol=1e-12 * np.abs(expected).max())
