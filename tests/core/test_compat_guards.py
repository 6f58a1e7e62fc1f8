"""Each guard: what PhiFlow does without it, and the right result or a clear refusal with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from phi.field import CenteredGrid, Field, StaggeredGrid, divergence, laplace
from phi.geom import Box
from phi.physics import advect, diffuse, fluid
from phiml import math
from phiml.backend import NUMPY, NoBackendFound
from phiml.math import IncompatibleShapes, Tensor, batch, channel, extrapolation, spatial

from toolkit.core import compat
from toolkit.physics.grid import Grid

PERIODIC, CLOSED, OPEN = extrapolation.PERIODIC, extrapolation.ZERO, extrapolation.ZERO_GRADIENT
INFLOW = extrapolation.ConstantExtrapolation(math.vec(x=1.5, y=0.0))
SOLVE = compat.linear_solve(1e-12, 1e-12)


box: Any = Box  # called as box(x=size), which type checkers cannot follow
BOX = box(x=2.0, y=3.0)  # cells of 0.25 x 0.5: neither square nor of size 1


@pytest.fixture
def reference() -> Iterator[None]:
    """NumPy, for faults of PhiFlow's own code, which no backend changes."""
    with NUMPY, math.precision(64):
        yield


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def scalar(boundary: Any = PERIODIC, values: np.ndarray | None = None) -> Field:
    tensor = math.tensor(random(8, 6) if values is None else values, spatial("x,y"))
    return CenteredGrid(tensor, boundary, BOX, x=8, y=6)


def centred(boundary: Any = PERIODIC) -> Field:
    values = math.tensor(random(8, 6, 2), spatial("x,y"), channel(vector="x,y"))
    return CenteredGrid(values, boundary, BOX, x=8, y=6)


def staggered(boundary: Any = PERIODIC) -> Field:
    return centred(boundary).at(StaggeredGrid(0, boundary, BOX, x=8, y=6))


def largest(values: Tensor) -> float:
    return float(math.max(abs(values), lambda shape: shape))


# --- linear solves ---


def box_flow(cells: int) -> Field:
    """A smooth flow in a closed box: its pressure, (cells / π)² times its divergence, makes rounding tell."""
    wave = np.sin(2 * np.pi * (np.arange(cells) + 0.5) / cells)
    values = np.stack([wave[:, None] * np.ones(cells), wave * np.ones((cells, 1))], -1)
    tensor = math.tensor(values, spatial("x,y"), channel(vector="x,y"))
    domain = box(x=float(cells), y=float(cells))
    return CenteredGrid(tensor, CLOSED, domain, x=cells, y=cells).at(StaggeredGrid(0, CLOSED, domain, x=cells, y=cells))


# The warnings are those of the default that fails.
@pytest.mark.filterwarnings("ignore:Rank deficiency >= 1 detected", "ignore:spsolve requires")
def test_pressure_solve_in_single_precision(backend: Any) -> None:
    with math.precision(32):
        flow = box_flow(64)
        with pytest.raises(math.Diverged):
            fluid.make_incompressible(flow)
        result, _ = fluid.make_incompressible(flow, (), compat.linear_solve(1e-4, 1e-4))
        left, before = largest(compat.residual_check(result)), divergence(flow).values.numpy("x,y")
    # The stopping rule bounds the 2-norm of the residual, hence its maximum.
    assert left < 1e-4 * np.linalg.norm(before)


@pytest.mark.parametrize("arguments", [(0, 0), (-1e-5, 1e-5), (1e-5, 1e-5, 0)])
def test_impossible_tolerances_are_refused(arguments: Any) -> None:
    with pytest.raises(ValueError, match="a solve needs"):
        compat.linear_solve(*arguments)


@pytest.mark.filterwarnings("ignore:backend and device argument on jit:DeprecationWarning")  # used by PhiML
def test_a_compiled_solve_that_does_not_converge_is_silent_and_measured(backend: Any) -> None:
    few = compat.linear_solve(1e-9, 1e-9, max_iterations=3)

    def step(flow: Field) -> Tensor:
        return compat.residual_check(fluid.make_incompressible(flow, (), few)[0])

    with pytest.raises(math.NotConverged):
        step(staggered(CLOSED))
    # Nothing raises here; the divergence left over is far above the tolerance.
    assert largest(math.jit_compile(step)(staggered(CLOSED))) > 0.01


def test_residual_is_per_sample(backend: Any) -> None:
    scale = math.tensor([0.0, 1.0, 2.0], batch("sample"))
    flow = staggered(CLOSED)
    left = compat.residual_check(flow.with_values(flow.values * scale))
    one = largest(divergence(flow).values)
    np.testing.assert_allclose(left.numpy("sample"), [0, one, 2 * one], rtol=1e-14)


# --- boundaries and geometry ---


@pytest.mark.parametrize("make", [centred, staggered])
def test_arithmetic_adds_boundary_values(backend: Any, make: Any) -> None:
    flow = make(INFLOW)
    doubled = 0.5 * flow + 0.5 * flow
    back = compat.with_boundary(doubled, INFLOW)
    assert doubled.boundary != INFLOW
    assert back.boundary == INFLOW
    assert back.values.shape == flow.values.shape
    assert largest(laplace(doubled).values - laplace(flow).values) > 1
    # Halves add up exactly in binary.
    assert largest(laplace(back).values - laplace(flow).values) == 0


def test_different_grids_are_silently_resampled_and_refused(reference: None) -> None:
    coarse = CenteredGrid(1.0, PERIODIC, BOX, x=8, y=6)
    fine = CenteredGrid(1.0, PERIODIC, BOX, x=16, y=12)
    wide = CenteredGrid(1.0, PERIODIC, box(x=4.0, y=3.0), x=8, y=6)
    assert (coarse + fine).geometry == coarse.geometry
    assert (coarse + wide).geometry == coarse.geometry
    for other in (fine, wide, staggered()):
        with pytest.raises(ValueError, match="different grids"):
            compat.same_geometry(coarse, other)
    compat.same_geometry(coarse, scalar(CLOSED))
    compat.same_geometry(staggered(), staggered(CLOSED))


@pytest.mark.parametrize("backend", ["jax"], indirect=True)
@pytest.mark.parametrize("touched", [False, True])
def test_sample_points_first_used_while_compiling(backend: Any, touched: bool) -> None:
    import jax

    field, flow = scalar(), centred()
    if touched:
        assert compat.touch_geometry(field) is field
        compat.touch_geometry(flow)

    def step(a: Any) -> Any:
        tensor = math.reshaped_tensor(a, [spatial("x"), spatial("y")], convert=False)
        return advect.semi_lagrangian(field.with_values(tensor), flow, 0.1).values.native("x,y")

    start = backend.array(random(8, 6), "physics")
    first = jax.jit(step)(start)
    if not touched:
        with pytest.raises(jax.errors.UnexpectedTracerError):
            step(start)
        return
    # Compiling may fuse and reorder sums.
    np.testing.assert_allclose(backend.numpy(first), backend.numpy(step(start)), atol=1e-14)


# --- implicit diffusion ---


@pytest.mark.filterwarnings("ignore:TensorStack.stack_dim:DeprecationWarning")  # PhiML on its way to fail
@pytest.mark.parametrize("boundary", [CLOSED, INFLOW, PERIODIC], ids=["closed", "inflow", "periodic"])
@pytest.mark.parametrize("make", [centred, staggered])
def test_implicit_diffusion_is_the_inverse_of_an_explicit_step_back(backend: Any, make: Any, boundary: Any) -> None:
    flow = make(boundary)
    if make is staggered and boundary != PERIODIC:
        with pytest.raises(ValueError, match="has no dimension 'idx'"):
            diffuse.implicit(flow, 0.3, 0.1, SOLVE)
    result = compat.implicit_diffusion(flow, 0.3, 0.1, SOLVE)
    assert result.boundary == boundary
    assert result.values.shape == flow.values.shape
    # Bounded by the solver's tolerance.
    assert largest(diffuse.explicit(result, 0.3, -0.1).values - flow.values) < 1e-10


def test_implicit_diffusion_of_open_staggered_components(reference: None) -> None:
    flow = staggered(OPEN)
    result = compat.implicit_diffusion(flow, 0.3, 0.1, SOLVE)
    pairs = zip(math.unstack(flow, "vector"), math.unstack(result, "vector"), strict=True)
    for before, after in pairs:
        assert largest(diffuse.explicit(after, 0.3, -0.1).values - before.values) < 1e-10  # solver's tolerance


def test_implicit_diffusion_decays_each_mode_exactly_and_per_sample(backend: Any) -> None:
    x = (np.arange(8) + 0.5) * 0.25
    wave = np.cos(2 * np.pi * x / 2.0)[:, None] * np.ones((8, 6))
    diffusivity = math.tensor([0.1, 0.4], batch("sample"))
    result = compat.implicit_diffusion(scalar(values=wave), diffusivity, 0.2, SOLVE)
    eigenvalue = (2 - 2 * np.cos(2 * np.pi * 0.25 / 2.0)) / 0.25**2
    for i, nu in enumerate((0.1, 0.4)):
        exact = wave / (1 + nu * 0.2 * eigenvalue)
        np.testing.assert_allclose(result.values[{"sample": i}].numpy("x,y"), exact, atol=1e-10)  # solver's tolerance


# --- refusals ---


@pytest.mark.filterwarnings("ignore:phiml.math.vec_squared:DeprecationWarning")  # used by PhiFlow
def test_fourier_diffusion_ignores_the_cell_size_and_is_refused(reference: None) -> None:
    grid = Grid({"x": 16, "y": 8}, {"x": 4.0, "y": 6.0})
    x, y = np.meshgrid(grid.coordinates("x"), grid.coordinates("y"), indexing="ij")
    kx, ky = 2 * np.pi / 4.0, 2 * 2 * np.pi / 6.0
    start = np.sin(kx * x) * np.cos(ky * y)
    exact = start * np.exp(-0.05 * (kx**2 + ky**2))

    field = grid.field(math.tensor(start, spatial("x,y")))
    assert np.abs(diffuse.fourier(field, 0.05, 1.0).values.numpy("x,y") - exact).max() > 0.1
    with pytest.raises(ValueError, match=r"heat_kernel\(grid\.wavenumbers\(\)"):
        compat.require_supported("diffuse.fourier", field)

    spectrum = np.fft.fft2(start) * compat.heat_kernel(grid.wavenumbers(), 0.05 * 1.0)
    # Exact for resolved waves, up to the rounding of two transforms.
    np.testing.assert_allclose(np.fft.ifft2(spectrum).real, exact, atol=1e-14)


def test_implicit_derivatives_fail_and_are_refused(reference: None) -> None:
    with pytest.raises(NoBackendFound):
        laplace(scalar(), order=6, implicit=SOLVE)
    with pytest.raises(ValueError, match="fail on every backend"):
        compat.require_supported("field.laplace", scalar(), order=6, implicit=SOLVE)
    compat.require_supported("field.laplace", scalar(), order=4)


def wave_divergence_error(order: int) -> float:
    k = 2 * np.pi

    def wave(p: Any) -> Tensor:
        return math.vec(x=0.0 * p.vector["x"], y=math.cos(k * p.vector["x"]) * math.sin(k * p.vector["y"]))

    flow = StaggeredGrid(wave, PERIODIC, box(x=1.0, y=1.0), x=32, y=32)
    result = divergence(flow, order=order)
    points: Any = result.points
    return largest(result.values - k * math.cos(k * points.vector["x"]) * math.cos(k * points.vector["y"]))


@pytest.mark.filterwarnings("ignore:.*'apply_stencils' was traced:RuntimeWarning")  # how often, PhiML decides
def test_high_orders_of_staggered_fields_are_worse_and_refused(reference: None) -> None:
    # The derivative along the second axis comes from the wrong points.
    assert wave_divergence_error(4) > 5 * wave_divergence_error(2)
    assert divergence(staggered(CLOSED), order=4).values.shape.get_size("x") == 7  # of 8 cells
    with pytest.raises(ValueError, match="order 4 on a staggered field"):
        compat.require_supported("field.divergence", staggered(), order=4)


def test_differential_advection_of_a_scalar_is_refused(reference: None) -> None:
    with pytest.raises(AttributeError):
        advect.differential(scalar(), centred())
    with pytest.raises(ValueError, match="cannot advect a scalar"):
        compat.require_supported("advect.differential", scalar())
    compat.require_supported("advect.differential", centred())


def test_staggered_projection_in_1d_is_refused(reference: None) -> None:
    flow = StaggeredGrid(0, CLOSED, box(x=1.0), x=8)
    with pytest.raises(IncompatibleShapes):
        fluid.make_incompressible(flow, (), SOLVE)
    with pytest.raises(ValueError, match="no staggered divergence in 1-D"):
        compat.require_supported("fluid.make_incompressible", flow)
    with pytest.raises(ValueError, match="no staggered divergence in 1-D"):
        compat.residual_check(flow)
    compat.require_supported("fluid.make_incompressible", staggered())


def test_unknown_operators_are_refused(reference: None) -> None:
    with pytest.raises(ValueError, match=r"known: diffuse\.fourier"):
        compat.require_supported("laplace", scalar())


# --- the native boundary ---


@pytest.mark.parametrize("make", [centred, staggered])
@pytest.mark.parametrize("boundary", [CLOSED, INFLOW, PERIODIC], ids=["closed", "inflow", "periodic"])
def test_pack_and_unpack_keep_every_bit(backend: Any, make: Any, boundary: Any) -> None:
    state = {"flow": make(boundary), "smoke": scalar(OPEN) * math.tensor([1.0, 3.0], batch("sample"))}
    natives, unpack = compat.pack(state)
    again = unpack(natives)
    for name, field in state.items():
        assert again[name].geometry == field.geometry
        assert again[name].boundary == field.boundary
        assert again[name].values.shape == field.values.shape
        assert largest(again[name].values - field.values) == 0
    for one, other in zip(natives, compat.pack(again)[0], strict=True):
        assert backend.numpy(one).tobytes() == backend.numpy(other).tobytes()


def test_unpack_takes_other_arrays_and_passes_gradients(backend: Any) -> None:
    flow = staggered(CLOSED)
    natives, unpack = compat.pack(flow)

    def energy(tree: dict[str, Any]) -> tuple[Any, Any]:
        field = unpack([tree["0"], tree["1"]])
        return sum(math.sum(c.values**2).native() for c in field.vector), None

    _, _, gradient = backend.value_and_gradient(energy, {str(i): 3 * a for i, a in enumerate(natives)})
    for i, array in enumerate(natives):
        np.testing.assert_allclose(backend.numpy(gradient[str(i)]), 6 * backend.numpy(array), rtol=1e-15)
    with pytest.raises(ValueError, match="needs 2 arrays"):
        unpack(natives[:1])
