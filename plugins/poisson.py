r"""The Poisson equation on a box, and its exact inverse: find the source that belongs to a potential.

    ∇²y = x,     (∇²y)_i = Σ_axes (y_{i−1} − 2y_i + y_{i+1}) / dx²,     y = V Λ⁻¹ Vᵀ x

The discrete Laplacian is a sum of one-dimensional ones, so products of their eigenvectors V are its eigenvectors and
sums of their eigenvalues λ = −(4/dx²) sin²(θ/2) its eigenvalues. What lies one cell outside a side, and V:

    zero:            0 there                     discrete sine transform I       θ_k = π(k + 1) / (N + 1)
    zero_gradient:   the outermost cell again    discrete cosine transform II    θ_k = πk / N
    zero on one side, zero_gradient on the other                                 θ_k = π(2k + 1) / (2N + 1)
    periodic:        the opposite cell           discrete Hartley transform      θ_k = 2πk / N

The solve is therefore exact for any combination of boundaries, cell sizes and numbers of cells, has no iterations that
could fail, and passes every derivative. A transform is one product with the N × N matrix V per axis: faster on a CPU
than a sine transform made from FFTs up to 256² cells, and within twice its time at 1024².

Where no side is `zero`, y is known up to a constant and exists only for sources of mean zero: the mean of x is
ignored, that of y is 0. One time step solves the equation, whatever its length; or, where the potential is given, it
evaluates the operator (Schnell et al. 2022 learn its inverse so).
Source: Holl et al. 2022, section 4 "Poisson's equation", and the published code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from phiml import math

from toolkit import (
    FieldSpec,
    Grid,
    Inputs,
    InverseProblem,
    InverseSolver,
    InverseSolverPlugin,
    Monitor,
    NoOptions,
    Options,
    PDEPlugin,
    Sampler,
    StabilityNumber,
    State,
    option,
)

CONTROL, OBSERVATION = "initial.source", "final.potential"
MAX_MEAN = 1e-4
"""Largest |mean| / rms of a source of mean zero: far above the rounding of float32."""


class PoissonParameters(Options):
    """Which side of the equation is known."""

    given: Literal["source", "potential"] = option(
        "source",
        description="what a step starts from: it finds the potential of a source, or the source of a potential",
    )


def eigenbasis(cells: int, dx: float, lower: str | float, upper: str | float) -> tuple[np.ndarray, np.ndarray]:
    """(λ (N,), V (N, N)) of the second difference along one axis, in 1 / length² and orthonormal in columns."""
    i, k = np.arange(cells)[:, None], np.arange(cells)[None]
    if lower == "periodic":
        theta = 2 * np.pi * k / cells
        vectors = np.cos(theta * i) + np.sin(theta * i)
    elif (lower, upper) == ("zero", "zero"):
        theta = np.pi * (k + 1) / (cells + 1)
        vectors = np.sin(theta * (i + 1))
    elif (lower, upper) == ("zero_gradient", "zero_gradient"):
        theta = np.pi * k / cells
        vectors = np.cos(theta * (i + 0.5))
    else:
        theta = np.pi * (2 * k + 1) / (2 * cells + 1)
        vectors = np.sin(theta * (i + 1))
        vectors = vectors if lower == "zero" else vectors[::-1]
    # sin²(θ/2), because 1 − cos θ loses the smallest eigenvalues, by which the solve divides.
    return -4 * np.sin(theta[0] / 2) ** 2 / dx**2, vectors / np.linalg.norm(vectors, axis=0)


@dataclass(frozen=True)
class Poisson:
    """The solve and the operator it inverts; tensors of the eigenbasis by axis."""

    grid: Grid
    vectors: dict[str, Any]
    """V, with dimensions (axis, axis_mode)."""
    eigenvalues: Any
    """λ of the whole Laplacian with dimensions `<axis>_mode`, in 1 / length²."""
    given: str = "source"

    @property
    def singular(self) -> bool:
        """Whether constants are in the null space: no side holds the potential at zero."""
        return "zero" not in self.grid.boundary_words()

    def solve(self, source: Any) -> Any:
        """y with ∇²y = x; on a singular box y of mean zero with ∇²y = x − mean x."""
        spectrum = source
        for axis, vectors in self.vectors.items():
            spectrum = math.dot(spectrum, axis, vectors, axis)
        # Only the constant has λ = 0, exactly: sin 0 on every axis.
        null = self.eigenvalues == 0
        potential: Any = math.where(null, 0.0, spectrum / math.where(null, 1.0, self.eigenvalues))
        for axis, vectors in self.vectors.items():
            potential = math.dot(potential, f"{axis}_mode", vectors, f"{axis}_mode")
        return potential

    def laplace(self, potential: Any) -> Any:
        """∇²y with PhiFlow's boundaries, in units of y / length²."""
        total: Any = 0.0
        for axis, dx in zip(self.grid.axes, self.grid.dx, strict=True):
            total = total + math.laplace(potential, dx, self.grid.phi_boundary, axis)
        return total

    def solvable(self, source: Any) -> Any:
        """The part of a source that has a potential: without its mean where the box is singular."""
        return source - math.mean(source, self.grid.axes) if self.singular else source

    def step(self, state: State, inputs: Inputs, t: Any, dt: float) -> dict[str, Any]:
        if self.given == "potential":
            return {"source": self.laplace(state["potential"]), "potential": state["potential"]}
        return {"source": state["source"], "potential": self.solve(state["source"])}


def _build(grid: Grid | None, parameters: PoissonParameters) -> Poisson:
    assert grid is not None
    vectors, eigenvalues = {}, np.zeros(grid.shape)
    for i, (axis, dx) in enumerate(zip(grid.axes, grid.dx, strict=True)):
        values, basis = eigenbasis(grid.cells[axis], dx, grid.side(axis, "-"), grid.side(axis, "+"))
        vectors[axis] = math.wrap(basis, math.spatial(axis, f"{axis}_mode"))
        eigenvalues += values.reshape([-1 if j == i else 1 for j in range(len(grid.axes))])
    modes = math.spatial(*(f"{axis}_mode" for axis in grid.axes))
    return Poisson(grid, vectors, math.wrap(eigenvalues, modes), parameters.given)


# --- inverse -----------------------------------------------------------------------------------------------------


def _laplacian(problem: InverseProblem, options: NoOptions) -> InverseSolver:
    """x̂ = x₀ + ∇²(y_target − y₀), without the mean of x₀ where no potential tells it."""
    poisson = problem.pde
    assert isinstance(poisson, Poisson)

    def solve(x0: State, y0: State, y_target: State) -> dict[str, Any]:
        correction = poisson.laplace(y_target[OBSERVATION] - y0[OBSERVATION])
        return {CONTROL: poisson.solvable(x0[CONTROL]) + correction}

    return solve


# --- sampler -----------------------------------------------------------------------------------------------------


class SmoothNoiseOptions(Options):
    """Random sources (or potentials, where those are given) with large structures."""

    scale: float = option(10.0, gt=0, units="length", description="size of the fluctuations")
    smoothness: float = option(1.0, ge=0, description="s: amplitudes fall as 1 / |k|^(2s)")


CUTOFF = 0.1
"""|k|² in (waves per `scale`)² at and below which modes are left out: they would dominate."""


def _amplitudes(grid: Grid, options: SmoothNoiseOptions) -> np.ndarray:
    """Amplitude per Fourier mode: |k|^(−2s), k the waves per `scale`, and 0 at and below the cut-off."""
    squared = sum((k * options.scale / (2 * np.pi)) ** 2 for k in grid.wavenumbers())
    squared = np.asarray(squared)
    kept = squared > CUTOFF
    return np.where(kept, np.where(kept, squared, 1.0) ** -options.smoothness, 0.0)


def _smooth_noise(
    grid: Grid | None,
    parameters: PoissonParameters,
    options: SmoothNoiseOptions,
    rng: np.random.Generator,
    count: int,
) -> dict[str, np.ndarray]:
    """Re F⁻¹[(n₁ + i n₂) |k|^(−2s)] with normal n₁, n₂, per sample with mean 0 and standard deviation 1."""
    assert grid is not None
    shape, axes = (count, *grid.shape), tuple(range(1, 1 + len(grid.shape)))
    spectrum = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) * _amplitudes(grid, options)
    noise = np.fft.ifftn(spectrum, axes=axes).real
    noise = noise - np.mean(noise, axes, keepdims=True)
    return {f"initial.{parameters.given}": noise / np.std(noise, axes, keepdims=True)}


def _check_noise(grid: Grid | None, parameters: PoissonParameters, options: SmoothNoiseOptions) -> str | None:
    assert grid is not None
    if np.any(_amplitudes(grid, options)):
        return None
    shortest = sum(np.max(k**2) for k in grid.wavenumbers()) ** -0.5 * 2 * np.pi if max(grid.shape) > 1 else np.inf
    longest = options.scale / CUTOFF**0.5
    change = f"raise data.scale above {shortest * CUTOFF**0.5:.4g}" if np.isfinite(shortest) else "use more cells"
    return f"data.scale: no wave of this grid is shorter than {longest:.4g} = scale / √{CUTOFF}; {change}"


def _check_source(grid: Grid | None, parameters: PoissonParameters, sample: Mapping[str, np.ndarray]) -> str | None:
    """Where constants are in the null space, a source with a mean has no potential."""
    assert grid is not None
    source = sample.get(CONTROL)
    if source is None or parameters.given == "potential" or "zero" in grid.boundary_words():
        return None
    # As a fraction of the largest value, so that nothing overflows.
    scaled = source / (np.max(abs(source)) or 1.0)
    mean = abs(np.mean(scaled)) / (np.sqrt(np.mean(scaled**2)) or 1.0)
    if mean <= MAX_MEAN:
        return None
    return (
        f"{CONTROL}: its mean is {np.mean(source):.3g}, {mean:.2g} of its rms, but a box without a side at zero has "
        "no potential for it; subtract the mean, or set grid.boundary: zero on a side"
    )


# --- plugin ------------------------------------------------------------------------------------------------------


def _relative(part: Any, whole: Any) -> Any:
    """rms of a part over the rms of the whole, per sample; 0 / 0 counts as 0."""
    axes = whole.shape.spatial
    scale = math.sqrt(math.mean(whole**2, axes))
    return math.sqrt(math.mean(part**2, axes)) / math.where(scale == 0, 1.0, scale)


def _unsolved(initial: State, current: State, found: str = "potential") -> Any:
    """Whether no step was made yet, per sample: what it finds is still as at the start."""
    change = abs(current[found] - initial[found])
    return math.max(change, change.shape.spatial) == 0


def _mean_source(initial: State, current: State) -> Any:
    """|mean x| / rms x before the first step, where only a simulation looks: there the source is given by the data,
    while a source that is being learned may have any mean on its way."""
    source = current["source"]
    mean = math.mean(source, source.shape.spatial)
    return math.where(_unsolved(initial, current), _relative(mean + 0 * source, source), 0.0)


def _matrix_size(parameters: PoissonParameters, grid: Grid | None, dt: float) -> tuple[StabilityNumber, ...]:
    """V holds the square of this number: 2 GB at the limit."""
    assert grid is not None
    return (StabilityNumber("largest number of cells along an axis", max(grid.shape), 16384, "grid.cells"),)


def _monitors(parameters: PoissonParameters, grid: Grid | None) -> tuple[Monitor, ...]:
    poisson = _build(grid, parameters)
    found = "source" if parameters.given == "potential" else "potential"

    def residual(initial: State, current: State) -> Any:
        source, potential = poisson.solvable(current["source"]), current["potential"]
        left = _relative(poisson.laplace(potential) - source, source)
        return math.where(_unsolved(initial, current, found), 0.0, left)

    # Rounding of float32 gives 1e-5 on 64² cells, growing with the number of cells; 1e-2 is a solution lost.
    solved = Monitor("residual", "relative residual of the Poisson equation", residual, 1e-2, "run.precision")
    mean = Monitor("mean_source", "relative mean of the given source", _mean_source, MAX_MEAN, "data")
    # The source of a potential has the mean zero of itself.
    return (solved, mean) if poisson.singular and found == "potential" else (solved,)


PLUGIN = PDEPlugin(
    name="poisson",
    summary="Poisson equation, solved exactly for periodic, zero and zero-gradient sides; find the source",
    equation="∇²y = x",
    parameters=PoissonParameters,
    fields=lambda parameters, grid: (
        FieldSpec("source", "source of the potential"),
        FieldSpec("potential", "potential"),
    ),
    build=_build,
    boundaries=frozenset({"periodic", "zero", "zero_gradient"}),
    samplers={
        "smooth_noise": Sampler(
            "random smooth sources (or given potentials) of mean 0 and standard deviation 1",
            _smooth_noise,
            SmoothNoiseOptions,
            _check_noise,
        )
    },
    inverse_solvers={
        "laplacian": InverseSolverPlugin(
            name="laplacian",
            summary="the discrete Laplacian of the step in the potential: exact",
            build=_laplacian,
            inverts=("poisson",),
            control=CONTROL,
            observation=OBSERVATION,
            references=("Holl et al. 2022, section 4",),
        )
    },
    monitors=_monitors,
    check_sample=_check_source,
    stability=_matrix_size,
    references=("Holl et al. 2022, section 4 and Fig. 6a", "Schnell, Holl, Thuerey 2022 (given: potential)"),
)
