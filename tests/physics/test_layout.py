"""Layouts and flat views: every round trip gives back the same numbers in the same places."""

from __future__ import annotations

import numpy as np
import pytest
from phiml import math
from phiml.math import batch, spatial

from toolkit.physics.grid import Grid
from toolkit.physics.inverse import flatten, natives, size, tensors, unflatten
from toolkit.physics.layout import Layout, field_layout
from toolkit.physics.losses import absolute, half_squared
from toolkit.physics.plugin import FieldSpec

LAYOUTS = {
    "scalar": Layout(),
    "vector": Layout(("a", "b")),
    "field": Layout((), {"x": 3, "y": 2}),
    "vector_field": Layout(("a", "b"), {"x": 3, "y": 2}),
    "force": Layout(("a",), {"x": 3}, steps=4),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_wrap_and_native_are_inverse(backend, name):
    layout = LAYOUTS[name]
    values = np.random.default_rng(0).standard_normal((5, *layout.shape))
    tensor = layout.wrap(backend.array(values))
    assert np.array_equal(backend.numpy(layout.native(tensor, 5)), values)
    assert layout.size == values[0].size


def test_wrapping_names_the_dimensions():
    values = np.arange(5 * 4 * 3 * 1.0).reshape(5, 4, 3, 1)
    tensor = LAYOUTS["force"].wrap(values)
    assert (tensor.shape.batch.names, tensor.shape.spatial.names) == (("sample", "t"), ("x",))
    assert float(tensor[{"sample": 2, "t": 1, "x": 2, "vector": "a"}]) == values[2, 1, 2, 0]


def test_native_takes_any_order_and_expands_what_is_missing():
    values = np.arange(6.0).reshape(2, 3)
    without_sample = math.tensor(values, spatial("y,x"))
    native = LAYOUTS["field"].native(without_sample, 4)
    assert np.array_equal(native, np.broadcast_to(values.T, (4, 3, 2)))


def test_layout_of_a_field_depends_on_where_it_lives():
    grid = Grid({"x": 3, "y": 2}, {"x": 1.0, "y": 1.0})
    on = FieldSpec("u", "u", components=("x", "y"))
    off = FieldSpec("q", "q", on_grid=False)
    assert field_layout(on, grid).shape == (3, 2, 2)
    assert field_layout(on, grid, steps=7).shape == (7, 3, 2, 2)
    assert field_layout(off, grid).shape == ()
    assert field_layout(on, None).shape == (2,)


def test_flat_view_concatenates_in_the_order_of_the_keys(backend):
    layouts = {"b": LAYOUTS["vector_field"], "a": LAYOUTS["scalar"], "c": LAYOUTS["force"]}
    rng = np.random.default_rng(2)
    values = {key: rng.standard_normal((5, *layout.shape)) for key, layout in layouts.items()}
    arrays = {key: backend.array(value) for key, value in values.items()}
    flat = flatten(arrays, layouts, backend)
    assert backend.numpy(flat).shape == (5, size(layouts)) == (5, 12 + 1 + 12)
    assert np.array_equal(backend.numpy(flat)[:, 12], values["a"])
    back = unflatten(flat, layouts, backend)
    through_phiml = natives(tensors(back, layouts), layouts)
    for key in layouts:
        assert np.array_equal(backend.numpy(through_phiml[key]), values[key])


def test_losses_sum_over_all_but_samples():
    values = np.random.default_rng(3).standard_normal((4, 3, 2))
    tensor = math.tensor(values, batch("sample"), spatial("x,y"))
    # PhiML computes in single precision outside of a run.
    assert np.allclose(half_squared(tensor).numpy("sample"), 0.5 * np.sum(values**2, axis=(1, 2)), rtol=1e-6)
    assert np.allclose(absolute(tensor).numpy("sample"), np.sum(np.abs(values), axis=(1, 2)), rtol=1e-6)
