r"""A wave packet on a time axis: find when a signal of known shape arrived, from a noisy record of it.

    y(t) = A exp(−½ ((t − t₀) / w)²) sin(ω (t − t₀)),     unknown: t₀ (and A, w, ω where a scenario makes them controls)

The squared error is multimodal in t₀: with E = ½Σy² and δ = t₀ − t₀* it is L ≈ 2E (1 − C(δ)) with

    C(δ) = exp(−δ²/4w²) cos ωδ

(sums over cells taken as integrals, ωw large), so it has a minimum near every multiple of the period 2π/ω, all but
δ = 0 with a residual. A Gauss–Newton step is δ ← δ + C'(δ) / (ω² + 1/2w²), for a wide packet δ − sin(ωδ)/ω: from any
start between two maxima of L it goes to the minimum between them and never past it. That is what a *local* inverse
should do, choose the nearest of several solutions, and why SIP does not average over them.

The grid's only axis, `x`, is the time of the record (units of time), its cells are the moments of sampling. One time
step of the simulation writes the record; `time` has no other meaning here, nor has the boundary, beyond which nothing
is looked up. The experiment is our own: Holl et al. 2022 mention a wave-packet fit but publish no definition of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from phiml import math

from toolkit import (
    ControlMetric,
    FieldSpec,
    Grid,
    Inputs,
    Options,
    PDEPlugin,
    Sampler,
    StabilityNumber,
    State,
    option,
)

ARRIVAL = "initial.t0"


class WavePacketParameters(Options):
    """Shape of the packet; each of them may be a control, as `parameter.omega`."""

    omega: float = option(gt=0, units="1 / time", description="ω, angular frequency")
    width: float = option(gt=0, units="time", description="w, standard deviation of the envelope")
    amplitude: float = option(1.0, description="A, height of the envelope")


def packet(t: Any, t0: Any, omega: Any, width: Any, amplitude: Any, functions: Any) -> Any:
    """y(t); `functions` holds exp and sin for what t is made of, `phiml.math` or NumPy."""
    age = t - t0
    return amplitude * functions.exp(-0.5 * (age / width) ** 2) * functions.sin(omega * age)


@dataclass(frozen=True)
class WavePacket:
    """Writes the record of a packet that arrives at t0."""

    times: Any
    """Moments of sampling along `x`."""
    parameters: WavePacketParameters

    def step(self, state: State, inputs: Inputs, t: Any, dt: float) -> dict[str, Any]:
        given, t0 = inputs.parameter, state["t0"]
        omega, width, amplitude = (
            given.get(name, getattr(self.parameters, name)) for name in ("omega", "width", "amplitude")
        )
        return {"t0": t0, "signal": packet(self.times, t0, omega, width, amplitude, math)}


def _build(grid: Grid | None, parameters: WavePacketParameters) -> WavePacket:
    assert grid is not None
    return WavePacket(math.wrap(grid.coordinates("x"), math.spatial("x")), parameters)


# --- sampler -----------------------------------------------------------------------------------------------------


class ArrivalsOptions(Options):
    """Packets that arrive at random times, recorded with noise."""

    region: tuple[float, float] = option(
        (0.3, 0.7),
        description="range of arrivals as fractions of the record; one of zero length gives the same arrival always",
    )
    noise: float = option(0.0, ge=0, units="signal", description="standard deviation of the noise of every value")


def _arrivals(
    grid: Grid | None,
    parameters: WavePacketParameters,
    options: ArrivalsOptions,
    rng: np.random.Generator,
    count: int,
) -> dict[str, np.ndarray]:
    """Uniform t₀, and y(t; t₀) with the parameters of the PDE plus white noise as the target."""
    assert grid is not None
    t0 = grid.extent["x"] * rng.uniform(*options.region, count)
    shape = (parameters.omega, parameters.width, parameters.amplitude)
    signal = packet(grid.coordinates("x"), t0[:, None], *shape, functions=np)
    return {ARRIVAL: t0, "target.signal": signal + options.noise * rng.standard_normal(signal.shape)}


def _check_arrivals(grid: Grid | None, parameters: WavePacketParameters, options: ArrivalsOptions) -> str | None:
    low, high = options.region
    if not 0 <= low <= high <= 1:
        return f"data.region: expected 0 <= first <= second <= 1, got [{low:g}, {high:g}]"
    return None


# --- plugin ------------------------------------------------------------------------------------------------------


def _phase(parameters: WavePacketParameters, controls: State, truth: State) -> Any:
    """ω (t₀ − t₀*), with the true frequency."""
    if ARRIVAL not in controls:
        return math.zeros(next(iter(controls.values())).shape.batch)
    return truth.get("parameter.omega", parameters.omega) * (controls[ARRIVAL] - truth[ARRIVAL])


def _phase_error(parameters: WavePacketParameters, controls: State, targets: State, truth: State) -> Any:
    """Distance of the phase to the nearest multiple of 2π: small in every minimum, not in the right one alone."""
    phase = _phase(parameters, controls, truth)
    return abs(phase - 2 * np.pi * math.round(phase / (2 * np.pi)))


def _periods_off(parameters: WavePacketParameters, controls: State, targets: State, truth: State) -> Any:
    """Which minimum: whole periods between it and the true arrival; 0 is the right one."""
    return abs(math.round(_phase(parameters, controls, truth) / (2 * np.pi)))


def _samples_per_period(parameters: WavePacketParameters, grid: Grid | None, dt: float) -> tuple[StabilityNumber, ...]:
    """Nyquist: a period needs two samples."""
    assert grid is not None
    return (StabilityNumber("omega dx / pi (Nyquist)", parameters.omega * grid.dx[0] / np.pi, 1.0, "grid.cells"),)


PLUGIN = PDEPlugin(
    name="wave_packet",
    summary="record of a wave packet on a time axis x; find its arrival, one of many local solutions",
    equation="y(t) = A exp(−½((t − t₀)/w)²) sin(ω(t − t₀))",
    parameters=WavePacketParameters,
    fields=lambda parameters, grid: (
        FieldSpec("t0", "time of arrival", on_grid=False),
        FieldSpec("signal", "recorded signal"),
    ),
    build=_build,
    dimensions=(1,),
    boundaries=frozenset({"periodic", "zero", "zero_gradient"}),
    samplers={
        "arrivals": Sampler("packets with random arrivals, with noise", _arrivals, ArrivalsOptions, _check_arrivals)
    },
    control_metrics=(
        ControlMetric(
            "phase_error",
            "distance of the phase of the arrival to the nearest solution",
            _phase_error,
            units="radian",
            needs_reference=True,
        ),
        ControlMetric(
            "periods_off",
            "whole periods between the found and the true arrival",
            _periods_off,
            needs_reference=True,
        ),
    ),
    parameter_controls=("omega", "width", "amplitude"),
    stability=_samples_per_period,
    example={"omega": 0.5, "width": 6.0},
    references=("Holl et al. 2022, appendix (an experiment of this name; this definition is our own)",),
)
