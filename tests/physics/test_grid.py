"""Grids: coordinates, wavenumbers, boundaries, what is refused, and PhiFlow's view of the same cells."""

from __future__ import annotations

import numpy as np
import pytest
from phiml import math
from phiml.math import spatial

from toolkit.physics.grid import Grid

GRID = Grid({"x": 4, "y": 6}, {"x": 2.0, "y": 9.0}, {"y-": "zero", "y+": 3.5})


def test_sizes_per_axis():
    assert (GRID.axes, GRID.shape, GRID.dx) == (("x", "y"), (4, 6), (0.5, 1.5))


def test_coordinates_are_cell_centres():
    assert np.allclose(GRID.coordinates("x"), [0.25, 0.75, 1.25, 1.75], rtol=1e-15)
    assert np.allclose(GRID.coordinates("y")[[0, -1]], [0.75, 8.25], rtol=1e-15)


def test_wavenumbers_differentiate_a_wave():
    """i k û is the derivative, so k is angular, per length, and laid out along its own axis."""
    x, y = (GRID.coordinates(a) for a in "xy")
    kx, ky = GRID.wavenumbers()
    assert (kx.shape, ky.shape) == ((4, 1), (1, 6))
    px, py = 2 * np.pi / 2.0, 2 * np.pi * 2 / 9.0
    wave = np.sin(px * x)[:, None] * np.cos(py * y)[None]
    dx = np.fft.ifft2(1j * kx * np.fft.fft2(wave)).real
    dy = np.fft.ifft2(1j * ky * np.fft.fft2(wave)).real
    assert np.allclose(dx, px * np.cos(px * x)[:, None] * np.cos(py * y)[None], atol=1e-13)
    assert np.allclose(dy, -py * np.sin(px * x)[:, None] * np.sin(py * y)[None], atol=1e-13)


def test_boundaries_by_side():
    assert [GRID.side(a, e) for a in "xy" for e in "-+"] == ["periodic", "periodic", "zero", 3.5]
    assert GRID.boundary_words() == {"periodic", "zero", "value"}


@pytest.mark.parametrize(
    ("sides", "below", "above"),
    [
        ({}, 4.0, 1.0),
        ({"x-": "zero", "x+": "zero_gradient"}, 0.0, 4.0),
        ({"x-": 3.5, "x+": -2}, 3.5, -2.0),
    ],
)
def test_phiflow_sees_these_values_beyond_the_sides(sides, below, above):
    values = math.tensor([1.0, 2.0, 3.0, 4.0], spatial("x"))
    padded = math.pad(values, {"x": (1, 1)}, Grid({"x": 4}, {"x": 1.0}, sides).phi_boundary)
    assert padded.numpy("x").tolist() == [below, 1, 2, 3, 4, above]


def test_phiflow_field_has_the_same_cells():
    values = math.tensor(np.arange(24.0).reshape(4, 6), spatial("x,y"))
    field = GRID.field(values)
    assert np.allclose(field.dx.numpy("vector"), GRID.dx, rtol=1e-7)  # PhiFlow keeps bounds in single precision
    centres = field.center.numpy("x,y,vector")
    assert np.allclose(centres[:, 0, 0], GRID.coordinates("x"), rtol=1e-6)
    assert np.allclose(centres[0, :, 1], GRID.coordinates("y"), rtol=1e-6)
    assert np.array_equal(field.values.numpy("x,y"), values.numpy("x,y"))


@pytest.mark.parametrize(
    ("cells", "extent", "boundary", "words"),
    [
        ({"y": 4, "x": 4}, {"y": 1.0, "x": 1.0}, {}, "axes must be"),
        ({"x": 4}, {"y": 1.0}, {}, "axes must be"),
        ({"x": 0}, {"x": 1.0}, {}, "axis x: cells and extent must be positive"),
        ({"x": 4, "y": 4}, {"x": 1.0, "y": 0.0}, {}, "axis y: cells and extent must be positive"),
        ({"x": 4}, {"x": float("nan")}, {}, "axis x: cells and extent must be positive"),
        ({"x": 4}, {"x": 1.0}, {"x-": "zero"}, "axis x: periodic on one side only"),
    ],
)
def test_impossible_grids_are_refused(cells, extent, boundary, words):
    with pytest.raises(ValueError, match=words):
        Grid(cells, extent, boundary)
