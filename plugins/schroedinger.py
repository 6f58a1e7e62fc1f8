r"""The Schrödinger equation in a one-dimensional infinite well, with a dipole field of one number per time step.

    i ∂ψ/∂t = H ψ,     H = −K ∂²/∂x² + V(x) + u(t) x,     ψ = 0 at both walls,     ħ = 1

Crank–Nicolson with u constant in a step is unitary:

    (1 + i dt/2 H) ψ' = (1 − i dt/2 H) ψ,     so     ψ' = 2 (1 + i dt/2 H)⁻¹ ψ − ψ

Points x_j = j dx, j = 1 … N, lie one dx from the walls, which are at 0 and (N + 1) dx. The grid's cells are centred
at (j − ½) dx: its extent is N dx and its boundary `zero`, one cell outside, is the wall. x counts from the left wall.

Only u changes from step to step, so the solve is a product with fixed matrices. With X = diag(x), M = 1 + i dt/2 H(u=0)
and the complex symmetric X^(−½) M X^(−½) = R Λ Rᵀ, Rᵀ R = 1 (not R*: the eigenvectors are no unitary matrix),

    (M + i dt/2 u X)⁻¹ = T (Λ + i dt/2 u)⁻¹ Tᵀ,     T = X^(−½) R

R is found once and refined by Newton steps in extended precision, so that ψ' is unitary to rounding (times R's
condition number: prefer float64). Two small products are several times faster than a tridiagonal or dense solve on
both backends, and so are their derivatives. Where R is ill-conditioned (many points and small steps, such as N = 64 and
dt = 0.001 in a well of length 2) the tridiagonal system is solved by cyclic reduction instead; it needs no pivoting,
because the Hermitian part of every Schur complement of 1 + i dt/2 H is at least 1.

States are vectors with Σ_j |ψ_j|² = 1, without a factor dx; level m is the m-th eigenvector of H(u=0), from 1.
Schnell, Holl, Thuerey 2022, section 4 "The quantum dipole" (K = 1, no ½; N = 14, dx = 2/15, V = 0).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from phiml import math

from toolkit import (
    FieldSpec,
    Grid,
    Inputs,
    Loss,
    LossPlugin,
    Monitor,
    NoOptions,
    Options,
    PDEPlugin,
    Sampler,
    ScenarioError,
    StabilityNumber,
    State,
    Timing,
    option,
)

DIPOLE = "dipole"
"""The control, `force.dipole`."""
NEWTON_STEPS = 2
"""Each doubles the correct digits of the eigenvectors; they start with some 13."""
MAX_CONDITION = 300.0
"""Of R; a larger one takes digits, and the tridiagonal solve is used."""


class SchroedingerParameters(Options):
    """The well."""

    kinetic: float = option(1.0, gt=0, units="length² / time", description="K = ħ / 2m, factor of −∂²ψ/∂x²")
    potential: Literal["none", "harmonic"] | list[float] = option(
        "none",
        units="1 / time",
        description="V: none, harmonic (stiffness (x − middle)²), or its value at every point",
    )
    stiffness: float = option(0.0, units="1 / (length² time)", description="of the harmonic potential")


def positions(grid: Grid) -> np.ndarray:
    """x_j, counted from the left wall."""
    return (np.arange(grid.cells["x"]) + 1) * grid.dx[0]


def potential(grid: Grid, parameters: SchroedingerParameters) -> np.ndarray:
    """V at every point."""
    x = positions(grid)
    if isinstance(parameters.potential, list):
        values = np.asarray(parameters.potential, float)
        if values.shape != x.shape:
            raise ScenarioError(f"pde.potential: expected {x.size} values, one per cell, got {values.size}")
        return values
    if parameters.potential == "none":
        return np.zeros_like(x)
    return parameters.stiffness * (x - (x[0] + x[-1]) / 2) ** 2


def hamiltonian(grid: Grid, parameters: SchroedingerParameters) -> np.ndarray:
    """H without the dipole field, real and symmetric, (N, N)."""
    n = grid.cells["x"]
    second = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    return parameters.kinetic * second / grid.dx[0] ** 2 + np.diag(potential(grid, parameters))


def levels(grid: Grid, parameters: SchroedingerParameters) -> tuple[np.ndarray, np.ndarray]:
    """(energies (N,), eigenvectors in columns (N, N)) of H without the field; each rises from the left wall."""
    energies, vectors = np.linalg.eigh(hamiltonian(grid, parameters))
    return energies, vectors * np.where(vectors[0] < 0, -1.0, 1.0)


def solve_basis(h: np.ndarray, x: np.ndarray, dt: float) -> tuple[np.ndarray, np.ndarray, float]:
    """(Λ (N,), T (N, N), condition of R) of the solve; refined only where R is well-conditioned."""
    wide, wider = np.longdouble, np.clongdouble
    root = np.sqrt(x.astype(wide))
    scaled = (np.eye(len(x), dtype=wider) + wider(1j) * (wide(dt) / 2 * h.astype(wide))) / root[:, None] / root
    _, vectors = np.linalg.eig(scaled.astype(complex))
    with np.errstate(divide="ignore", invalid="ignore"):
        r = (vectors / np.sqrt(np.sum(vectors**2, axis=0))).astype(wider)
    condition = float(np.linalg.cond(r.astype(complex))) if np.all(np.isfinite(r)) else np.inf
    for _ in range(NEWTON_STEPS if condition <= MAX_CONDITION else 0):
        products, energies = r.T @ r, r.T @ scaled @ r
        values = np.diag(energies) / np.diag(products)
        gaps = values[None] - values[:, None] + np.eye(len(x))
        change = (energies - products * values[None]) / gaps
        np.fill_diagonal(change, (1 - np.diag(products)) / 2)
        r = r + r @ change
    values = np.diag(r.T @ scaled @ r) / np.diag(r.T @ r)
    return values.astype(complex), (r / root[:, None]).astype(complex), condition


def solve_tridiagonal(diagonal: Any, coupling: Any, right: Any) -> Any:
    """φ along `x` of the symmetric system d_i φ_i + e_i φ_{i+1} + e_{i−1} φ_{i−1} = r_i by cyclic reduction.

    `diagonal` and `right` have 2^k − 1 entries, `coupling` one less. Every second unknown is eliminated, then the rest.
    """
    if diagonal.shape.get_size("x") == 1:
        return right / diagonal
    inverse, given = 1 / diagonal.x[::2], right.x[::2]
    before, after = coupling.x[::2], coupling.x[1::2]
    down, up = before * inverse.x[:-1], after * inverse.x[1:]
    kept = solve_tridiagonal(
        diagonal.x[1::2] - before * down - after * up,
        -up.x[:-1] * before.x[1:],
        right.x[1::2] - down * given.x[:-1] - up * given.x[1:],
    )
    nothing = 0 * given.x[:1]
    told = math.concat([before * kept, nothing], "x") + math.concat([nothing, after * kept], "x")
    eliminated = inverse * (given - told)
    pairs = math.stack([eliminated.x[:-1], kept], math.spatial("parity"))
    return math.concat([math.pack_dims(pairs, "x,parity", math.spatial("x")), eliminated.x[-1:]], "x")


@dataclass(frozen=True)
class Schroedinger:
    """One Crank–Nicolson step."""

    grid: Grid
    parameters: SchroedingerParameters
    _bases: dict[float, tuple[Any, Any, float]] = field(default_factory=dict, repr=False, compare=False)
    """Λ, T and the condition of R by time step."""

    def _basis(self, dt: float) -> tuple[Any, Any, float]:
        if dt not in self._bases:
            found = solve_basis(hamiltonian(self.grid, self.parameters), positions(self.grid), dt)
            values, vectors = found[0], found[1]
            mode = math.channel("mode")
            self._bases[dt] = math.wrap(values, mode), math.wrap(vectors, math.spatial("x"), mode), found[2]
        return self._bases[dt]

    def _solve(self, psi: Any, dipole: Any, dt: float) -> Any:
        """(1 + i dt/2 H)⁻¹ ψ with the field."""
        values, vectors, condition = self._basis(dt)
        if condition > MAX_CONDITION:
            return self._solve_points(psi, dipole, dt)
        modes = math.dot(psi, "x", vectors, "x") / (values + (0.5j * dt) * dipole)
        return math.dot(modes, "mode", vectors, "mode")

    def _solve_points(self, psi: Any, dipole: Any, dt: float) -> Any:
        """The same by elimination, on 2^k − 1 points of which those beyond the wall are coupled to nothing."""
        h, n = hamiltonian(self.grid, self.parameters), self.grid.cells["x"]
        rest = 2 ** int(np.ceil(np.log2(n + 1))) - 1 - n
        along = math.spatial("x")
        position = math.wrap(np.pad(positions(self.grid), (0, rest)), along)
        diagonal = math.wrap(np.pad(1 + 0.5j * dt * np.diag(h), (0, rest), constant_values=1), along)
        coupling = math.wrap(np.pad(0.5j * dt * np.diag(h, 1), (0, rest)), along)
        right = math.concat([psi, *[0 * psi.x[:1]] * rest], "x")
        return solve_tridiagonal(diagonal + (0.5j * dt) * position * dipole, coupling, right).x[:n]

    def step(self, state: State, inputs: Inputs, t: Any, dt: float) -> dict[str, Any]:
        parts = state["psi"]
        psi = parts.vector["re"] + 1j * parts.vector["im"]
        new = 2 * self._solve(psi, inputs.force.get(DIPOLE, 0.0), dt) - psi
        return {"psi": math.stack([math.real(new), math.imag(new)], math.channel(vector="re,im"))}


def _build(grid: Grid | None, parameters: SchroedingerParameters) -> Schroedinger:
    assert grid is not None
    return Schroedinger(grid, parameters)


# --- loss and sampler --------------------------------------------------------------------------------------------


def _fidelity(options: NoOptions) -> Loss:
    """L = 1 − |Σ_j a_j* b_j|², a the target; a global phase does not matter."""

    def value(b: Any, a: Any) -> Any:
        (a_re, a_im), (b_re, b_im) = ((v.vector["re"], v.vector["im"]) for v in (a, b))
        real = math.sum(a_re * b_re + a_im * b_im, "x")
        imaginary = math.sum(a_re * b_im - a_im * b_re, "x")
        loss = 1 - real**2 - imaginary**2
        return math.sum(loss, loss.shape.without("sample"))

    return Loss(value)


class SuperpositionOptions(Options):
    """Random superpositions at the start and as the target."""

    initial_levels: list[int] = option([1], min_length=1, description="levels at the start, the lowest is 1")
    target_levels: list[int] = option([2, 3], min_length=1, description="levels of the target")
    initial_weights: list[float] = option([], description="factors of the coefficients; none: 1")
    target_weights: list[float] = option([], description="factors of the coefficients; none: 1")
    initial_phases: bool = option(False, description="multiply each coefficient by a random phase")
    target_phases: bool = option(False, description="multiply each coefficient by a random phase")
    every_step: bool = option(False, description="the target is one of every time step, for a loss on the trajectory")


def _superposition(
    grid: Grid | None,
    parameters: SchroedingerParameters,
    options: SuperpositionOptions,
    timing: Timing,
    rng: np.random.Generator,
    count: int,
) -> dict[str, np.ndarray]:
    """Σ f_m e_m, f = w c / |w c| with normal c (a single level has f = 1); two real components."""
    assert grid is not None
    _, vectors = levels(grid, parameters)

    def draw(chosen: list[int], weights: list[float], phases: bool) -> np.ndarray:
        weighted = rng.standard_normal((count, len(chosen))) * (weights or 1.0)
        c = weighted if len(chosen) > 1 else np.ones((count, 1))
        c = c / np.linalg.norm(c, axis=1, keepdims=True)
        if phases:
            c = c * np.exp(2j * np.pi * rng.random(c.shape))
        psi = c @ vectors[:, np.asarray(chosen) - 1].T
        return np.stack([np.real(psi), np.imag(psi)], axis=-1)

    start = draw(options.initial_levels, options.initial_weights, options.initial_phases)
    target = draw(options.target_levels, options.target_weights, options.target_phases)
    if options.every_step:
        target = np.repeat(target[:, None], timing.steps, axis=1)
    return {"initial.psi": start, "target.psi": target}


def _check_superposition(
    grid: Grid | None, parameters: SchroedingerParameters, options: SuperpositionOptions, timing: Timing
) -> str | None:
    assert grid is not None
    n = grid.cells["x"]
    for which in ("initial", "target"):
        chosen, weights = getattr(options, f"{which}_levels"), getattr(options, f"{which}_weights")
        if not all(1 <= level <= n for level in chosen) or len(set(chosen)) < len(chosen):
            return f"data.{which}_levels: expected different levels from 1 to {n}, got {chosen}"
        if weights and (len(weights) != len(chosen) or not any(weights)):
            return f"data.{which}_weights: expected {len(chosen)} numbers, one per level and not all 0, got {weights}"
    return None


# --- plugin ------------------------------------------------------------------------------------------------------


def _norm_drift(initial: State, current: State) -> Any:
    """|Σ|ψ|² − Σ|ψ₀|²| / Σ|ψ₀|² per sample; 0 without a state."""
    before, after = (math.sum(s["psi"] ** 2, "x,vector") for s in (initial, current))
    return abs(after - before) / math.where(before == 0, 1.0, before)


def _stability(parameters: SchroedingerParameters, grid: Grid | None, dt: float) -> tuple[StabilityNumber, ...]:
    """The phase of the highest level per step, of which Crank–Nicolson makes 2 atan(½ of it): stable, but slowed."""
    assert grid is not None
    highest = float(np.max(np.abs(levels(grid, parameters)[0]))) * dt
    return (StabilityNumber("phase of the highest level per step", highest, None, "time.dt"),)


PLUGIN = PDEPlugin(
    name="schroedinger",
    summary="Schrödinger equation in a one-dimensional well, Crank–Nicolson; steer a state by a dipole field",
    equation="i ∂ψ/∂t = −K ∂²ψ/∂x² + V(x) ψ + u(t) x ψ",
    parameters=SchroedingerParameters,
    fields=lambda parameters, grid: (FieldSpec("psi", "wave function", components=("re", "im")),),
    build=_build,
    dimensions=(1,),
    boundaries=frozenset({"zero"}),
    forces=(DIPOLE,),
    actions=lambda parameters, grid: (FieldSpec(DIPOLE, "strength of the dipole field", on_grid=False),),
    samplers={
        "superposition": Sampler(
            "random superpositions of levels, at the start and as the target",
            _superposition,
            SuperpositionOptions,
            _check_superposition,
            in_time=True,
        )
    },
    losses={
        "fidelity": LossPlugin(
            "1 − |⟨target, ψ⟩|² per sample, in [0, 1]", _fidelity, judges=("final.psi", "trajectory.psi")
        )
    },
    # 400 steps on 14 points lose 1e-13 in float64 and 1e-4 in float32; more than 1e-2 is another state.
    monitors=lambda parameters, grid: (
        Monitor("norm_drift", "relative drift of the norm", _norm_drift, 1e-2, "run.precision"),
    ),
    stability=_stability,
    references=("Schnell, Holl, Thuerey: Half-Inverse Gradients for Physical Deep Learning, ICLR 2022",),
)
