r"""The heat equation on a periodic box, and its uncertainty-aware inverse: find the past of a temperature field.

    ∂u/∂t = D Δu + f,     û(k, t + dt) = e^{−ℓ} û(k, t) + dt φ(ℓ) f̂(k),     ℓ(k) = D |k|² dt,  φ(ℓ) = (1 − e^{−ℓ}) / ℓ

is exact for any cell size, with angular wavenumbers k, because D is constant and f is constant within a step. The
inverse multiplies by e^{+ℓ}, which would amplify rounding errors without bound; `damped_spectral` trusts a mode only as
far as its amplitude stands out of the noise (Holl et al. 2022, section 4 "Heat equation", and the published code).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from phiml import math

from plugins.heat_samplers import SAMPLERS
from toolkit import (
    ControlMetric,
    FieldSpec,
    Grid,
    Inputs,
    InverseProblem,
    InverseSolver,
    InverseSolverPlugin,
    Monitor,
    Options,
    PDEPlugin,
    SolverSetting,
    StabilityNumber,
    State,
    invert_over_time,
    option,
)

MAX_EXPONENT = 300.0
"""ℓ beyond which e^{−ℓ} counts as zero: its square must not underflow in float64."""


class HeatParameters(Options):
    """Parameters of the heat equation."""

    diffusivity: float = option(gt=0, units="length² / time", description="D, thermal diffusivity")
    match_mean: bool = option(
        True,
        description="shift a predicted initial temperature to the mean of the target; diffusion conserves it exactly",
    )


@dataclass(frozen=True)
class Heat:
    """One exact time step in Fourier space."""

    grid: Grid
    diffusivity: float
    squared_wavenumber: Any
    """|k|² in FFT order, in 1 / length²."""

    def decay(self, dt: float, diffusivity: Any = None) -> Any:
        """ℓ(k) = D |k|² dt."""
        return self.squared_wavenumber * (dt * (self.diffusivity if diffusivity is None else diffusivity))

    def step(self, state: State, inputs: Inputs, t: Any, dt: float) -> dict[str, Any]:
        decay = self.decay(dt, inputs.parameter.get("diffusivity"))
        spectrum = math.fft(state["temperature"]) * math.exp(-decay)
        for heating in (inputs.force.get("temperature"), inputs.source.get("temperature")):
            if heating is not None:
                spectrum += dt * _phi(decay) * math.fft(heating)
        return {"temperature": math.real(math.ifft(spectrum))}


def _phi(decay: Any) -> Any:
    """(1 − e^{−ℓ}) / ℓ; below 1e-3 its series, whose next term ℓ⁴/120 is under rounding, where 1 − e^{−ℓ} cancels."""
    safe: Any = math.where(decay < 1e-3, 1.0, decay)
    series = 1 - decay / 2 + decay**2 / 6 - decay**3 / 24
    return math.where(decay < 1e-3, series, (1 - math.exp(-safe)) / safe)


def _build(grid: Grid | None, parameters: HeatParameters) -> Heat:
    assert grid is not None
    squared = sum(k**2 for k in grid.wavenumbers())
    return Heat(grid, parameters.diffusivity, math.wrap(np.asarray(squared), math.spatial(*grid.axes)))


# --- inverse -----------------------------------------------------------------------------------------------------


class DampedSpectralOptions(Options):
    """Noise model of the damped inverse."""

    relative_noise: float = option(1e-6, ge=0, description="standard deviation of the noise of y relative to |y* − y|")
    noise_floor: float = option(
        1e-8,
        ge=0,
        units="kelvin",
        description="absolute noise of y; without it iterating the inverse diverges",
    )
    confidence: float = option(0.68, ge=0.5, le=1, description="least probability of being signal that a mode needs")


class LeastHeatingOptions(Options):
    """How the work is shared."""

    state_weight: float = option(
        1.0,
        gt=0,
        units="time²",
        description="where the initial temperature is a control too: how much cheaper its change is than heating",
    )


def _least_heating(problem: InverseProblem, options: LeastHeatingOptions) -> InverseSolver:
    """The least heating ½Σ f² that makes a change of temperature, exact per Fourier mode.

    A step is ŝ' = a ŝ + b f̂ with a = e^{−ℓ}, b = dt φ(ℓ). Of a change Δ after step i, heating in this step takes
    Δf̂ = b Δ/W_{i+1} and the state before it Δŝ = a W_i Δ/W_{i+1}, where W_{i+1} = a² W_i + b² is what heating in the
    steps up to i can reach with unit effort: W_i = a^{2i} W_0 + i b² φ(2ℓi)/φ(2ℓ). W_0 = 0 unless the start is a
    control. Swept over all steps this is the minimum-norm solution, the discrete form of minimum-energy control.
    """
    heat = problem.pde
    assert isinstance(heat, Heat)
    start = options.state_weight if "initial.temperature" in problem.controls else 0.0

    def reach(steps: Any, decay: Any) -> Any:
        """W after some steps."""
        gained = steps * (problem.dt * _phi(decay)) ** 2 * _phi(2 * steps * decay) / _phi(2 * decay)
        return start * math.exp(-2 * steps * decay) + gained

    def invert_step(state: State, inputs: Inputs, after: State, target: State, step: Any) -> tuple[Any, Any]:
        decay = heat.decay(problem.dt, inputs.parameter.get("diffusivity"))
        wanted = math.fft(target["temperature"] - after["temperature"]) / reach(step + 1, decay)
        change = math.real(math.ifft(math.exp(-decay) * reach(step, decay) * wanted))
        heating = math.real(math.ifft(problem.dt * _phi(decay) * wanted))
        return {"temperature": state["temperature"] + change}, {"temperature": inputs.force["temperature"] + heating}

    return invert_over_time(problem, invert_step)


def _needs_heating(setting: SolverSetting) -> str | None:
    if "force.temperature" in setting.unknown:
        return None
    return "finds heating per step; give a control that acts on force.temperature, or use damped_spectral"


def damping_exponent(amplitude: Any, decay: Any, noise: Any, points: float, confidence: float) -> Any:
    """A(k) in [−1, 1], the trust in each mode: +1 inverts it fully, −1 diffuses it once more.

    Signal and noise have the expected amplitudes σ_s = N e^{−ℓ} (N² cells) and σ_n; with equal priors the
    probability of signal is p = logistic(½a²(1/σ_n² − 1/σ_s²)); A = 2p − 1 unless ½ < p < confidence, then 0.
    """
    bounded: Any = math.minimum(decay, MAX_EXPONENT)
    signal: Any = points * math.exp(-bounded)
    noise = math.maximum(noise, 1e-150)  # σ_n = 0 means: no noise at all
    # A vanishing amplitude says nothing: p = ½, whatever the (possibly infinite) precision.
    evidence: Any = 0.5 * ((amplitude / noise) ** 2 - (amplitude / signal) ** 2)
    trusted: Any = math.where(amplitude == 0, 0.0, evidence)
    p: Any = math.sigmoid(math.clip(trusted, -MAX_EXPONENT, MAX_EXPONENT))
    return math.where((p > 0.5) & (p < confidence), 0.0, 2 * p - 1)


def _damped_spectral(problem: InverseProblem, options: DampedSpectralOptions) -> InverseSolver:
    """x̂ = x₀ + Re F⁻¹[e^{ℓA} F(y_target − y₀)], the uncertainty kernel of the published code."""
    heat = problem.pde
    assert isinstance(heat, Heat)
    decay = heat.decay(problem.dt * problem.steps)
    points = float(np.sqrt(np.prod(heat.grid.shape)))

    def solve(x0: State, y0: State, y_target: State) -> dict[str, Any]:
        difference = y_target["final.temperature"] - y0["final.temperature"]
        deviation = options.relative_noise * abs(difference) + options.noise_floor
        noise = math.sqrt(math.sum(deviation**2, heat.grid.axes))
        spectrum = math.fft(difference)
        trust = damping_exponent(abs(spectrum), decay, noise, points, options.confidence)
        correction = math.real(math.ifft(spectrum * math.exp(decay * trust)))
        return {"initial.temperature": x0["initial.temperature"] + correction}

    return solve


def _check_diffusivity(setting: SolverSetting) -> str | None:
    words = "inverts one diffusivity, pde.diffusivity, but parameter.diffusivity differs per sample; take it out"
    return words if "parameter.diffusivity" in setting.acting else None


def _match_mean(parameters: HeatParameters, controls: State, targets: State, others: frozenset[str]) -> dict[str, Any]:
    """Predicted initial temperature shifted to the target's mean, which diffusion conserves and heating does not."""
    x, y = controls.get("initial.temperature"), targets.get("final.temperature")
    heated = any(key.startswith(("force.", "source.")) for key in (*controls, *others))
    if not parameters.match_mean or x is None or y is None or heated:
        return dict(controls)
    axes = x.shape.spatial
    return {**controls, "initial.temperature": x + (math.mean(y, axes) - math.mean(x, axes))}


# --- metrics -----------------------------------------------------------------------------------------------------


def _clipped_l1(parameters: HeatParameters, controls: State, targets: State, truth: State) -> Any:
    """Σ|max(x, 0) − x*| per sample, the published test metric of the networks; other controls are not clipped."""
    total: Any = 0.0
    for key, x in controls.items():
        clipped: Any = math.maximum(x, 0.0) if key == "initial.temperature" else x
        difference = abs(clipped - truth[key])
        total += math.sum(difference, difference.shape.without("sample"))
    return total


# --- plugin ------------------------------------------------------------------------------------------------------


def _mean_drift(initial: State, current: State) -> Any:
    """|mean u − mean u₀| / rms u₀ per sample."""
    before, after = initial["temperature"], current["temperature"]
    axes = before.shape.spatial
    scale = math.sqrt(math.mean(before**2, axes))
    return abs(math.mean(after, axes) - math.mean(before, axes)) / math.where(scale == 0, 1.0, scale)


def _diffusion_number(parameters: HeatParameters, grid: Grid | None, dt: float) -> StabilityNumber:
    """D dt Σ 1/dx²: how far heat spreads per step, in cells; without a limit, since the step is exact."""
    assert grid is not None
    value = parameters.diffusivity * dt * sum(1 / dx**2 for dx in grid.dx)
    return StabilityNumber("diffusion number", value, None, "time.dt")


PLUGIN = PDEPlugin(
    name="heat",
    summary="heat equation on a periodic box, exact in Fourier space; find the initial temperature",
    equation="∂u/∂t = D Δu + f",
    parameters=HeatParameters,
    fields=lambda parameters, grid: (FieldSpec("temperature", "temperature", units="K"),),
    build=_build,
    forces=("temperature",),
    sources=("temperature",),
    samplers=SAMPLERS,
    inverse_solvers={
        "damped_spectral": InverseSolverPlugin(
            name="damped_spectral",
            summary="inverse diffusion of the modes that stand out of the noise",
            build=_damped_spectral,
            options=DampedSpectralOptions,
            inverts=("heat",),
            control="initial.temperature",
            observation="final.temperature",
            physics_precision="float64",
            check=_check_diffusivity,
            references=("Holl et al. 2022, section 4",),
        ),
        "least_heating": InverseSolverPlugin(
            name="least_heating",
            summary="least heating, step by step, that makes a change of temperature; exact",
            build=_least_heating,
            options=LeastHeatingOptions,
            inverts=("heat",),
            control=("force.temperature", "initial.temperature"),
            observation=("final.temperature", "trajectory.temperature"),
            check=_needs_heating,
        ),
    },
    monitors=lambda parameters, grid: (
        # Rounding of one float32 FFT is about 1e-6 of the rms; 1e-4 is far above that, far below a real leak.
        Monitor(
            "mean_drift",
            "relative drift of the mean temperature",
            _mean_drift,
            1e-4,
            "run.precision",
            without=("force", "source"),
        ),
    ),
    control_metrics=(
        ControlMetric(
            "clipped_l1",
            "sum of |max(x, 0) - x*| over the initial temperature",
            _clipped_l1,
            units="K",
            needs_reference=True,
        ),
    ),
    parameter_controls=("diffusivity",),
    stability=lambda parameters, grid, dt: (_diffusion_number(parameters, grid, dt),),
    correct_controls=_match_mean,
    example={"diffusivity": 2.0},
    references=("Holl et al. 2022, section 4 and Fig. 6c",),
)
