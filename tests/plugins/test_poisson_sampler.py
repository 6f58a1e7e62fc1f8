"""The sources of the Poisson experiment: the published statistics and spectrum, on grids with room for them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from phiml import math
from phiml.math import batch, spatial
from poisson_cases import PAPER, box, noise, pde

from plugins.poisson import PLUGIN, PoissonParameters, SmoothNoiseOptions
from toolkit.physics.grid import Grid


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """PhiML computes in double precision where no backend is asked for."""
    with math.precision(64):
        yield


@pytest.mark.parametrize("grid", [PAPER, box(("zero", "zero")), box(("periodic",) * 3)], ids=["64²", "2-D", "3-D"])
def test_every_source_has_mean_0_and_standard_deviation_1(grid):
    x, axes = noise(5, grid), tuple(range(1, 1 + len(grid.axes)))
    assert np.max(np.abs(x.mean(axes))) < 1e-14
    # ½Σx*² is half the number of cells: 2048 on 64².
    assert 0.5 * np.sum(x**2, axes) == pytest.approx(np.full(5, np.prod(grid.shape) / 2), rel=1e-13)


def test_sources_have_the_published_size():
    """E Σ|x*| ≈ 3290, and potentials of standard deviation ≈ 14."""
    x = noise(200)
    # Four standard errors of the sum, and what the last printed digit leaves open.
    total = np.sum(np.abs(x), axis=(1, 2))
    assert abs(np.mean(total) - 3290) < 4 * np.std(total) / np.sqrt(200) + 5
    y = pde(PAPER).solve(math.tensor(x, batch("sample"), spatial("x,y"))).numpy("sample,x,y")
    assert np.mean(np.std(y, axis=(1, 2))) == pytest.approx(14, abs=1)


@pytest.mark.parametrize(("scale", "smoothness"), [(10.0, 1.0), (25.0, 0.5)])
def test_spectrum_of_the_sources(scale, smoothness):
    """Power of mode k ∝ |k|^(−4s) above the cut-off, none below; k in waves per `scale`, for any cell size."""
    grid = Grid({"x": 24, "y": 16}, {"x": 48.0, "y": 64.0})
    power = np.mean(np.abs(np.fft.fft2(noise(3000, grid, scale=scale, smoothness=smoothness))) ** 2, axis=0)
    kx = np.fft.fftfreq(24, 2.0)[:, None] * scale
    ky = np.fft.fftfreq(16, 4.0)[None] * scale
    k2 = kx**2 + ky**2
    assert np.max(power[k2 <= 0.1]) < 1e-20 * np.max(power)
    kept = k2 > 0.1
    weighted = power[kept] * k2[kept] ** (2 * smoothness)
    # 3000 samples scatter by 2 to 3 %; dividing by each sample's own deviation bends the strongest modes a little.
    assert np.max(weighted) / np.min(weighted) < 1.35


def test_a_grid_without_room_for_the_noise_is_refused():
    check = PLUGIN.samplers["smooth_noise"].check
    assert check(PAPER, PoissonParameters(), SmoothNoiseOptions()) is None
    tight = check(PAPER, PoissonParameters(), SmoothNoiseOptions(scale=0.4))
    # Two cells in each direction are the shortest wave: k = scale √(½² + ½²) > √0.1.
    assert tight is not None
    assert tight.startswith("data.scale: no wave of this grid is shorter than 1.265")
    assert tight.endswith("raise data.scale above 0.4472")
    assert check(PAPER, PoissonParameters(), SmoothNoiseOptions(scale=0.4473)) is None
    point = check(Grid({"x": 1}, {"x": 1.0}), PoissonParameters(), SmoothNoiseOptions())
    assert point is not None
    assert point.endswith("use more cells")
