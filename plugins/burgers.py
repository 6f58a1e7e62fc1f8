r"""Viscous Burgers equation on a periodic line, in three discretisations, and its reversal in time.

    ∂u/∂t + u ∂u/∂x = ν ∂²u/∂x² + f

* `finite_difference`: du_i/dt = −(F_{i+½} − F_{i−½})/dx + ν (u_{i+1} − 2u_i + u_{i−1})/dx² + f_i with
  F_{i+½} = (u_i² + u_i u_{i+1} + u_{i+1}²)/6, which conserves momentum and, for ν = 0, energy; classical RK4.
  Order 2 in space, 4 in time. Jumps that viscosity does not spread over a few cells leave wiggles.
* `spectral`: Fourier pseudo-spectral, 2/3 rule, RK4 with integrating factor e^{−νk²t}. Spectral in space, order 4 in
  time; modes above two thirds of the highest take part in diffusion only.
* `semi_lagrangian`: v = u + ν dt Δu + dt f with the 3-point Laplacian, then u'(x) = v(x − dt v(x)) by linear
  interpolation. Order 1; never amplifies the largest velocity (if ν dt/dx² ≤ ½), does not conserve momentum.

References: Thuerey et al., Physics-based Deep Learning, chapters on Burgers (the semi-Lagrangian scheme and the control
problem); Canuto, Hussaini, Quarteroni, Zang 2006, Spectral Methods (2/3 rule, skew-symmetric form).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from phiml import math
from phiml.math import extrapolation, spatial

from plugins.burgers_samplers import SAMPLERS
from toolkit import (
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
    option,
)

CONTROL, OBSERVATION = "initial.velocity", "final.velocity"


class BurgersParameters(Options):
    """Parameters of the Burgers equation."""

    viscosity: float = option(ge=0, units="length² / time", description="ν, viscosity")
    scheme: Literal["finite_difference", "spectral", "semi_lagrangian"] = option(
        "finite_difference",
        description="discretisation: finite_difference (order 2), spectral, or semi_lagrangian (order 1)",
    )
    max_velocity: float = option(
        2.0,
        gt=0,
        units="length / time",
        description="largest |u| to be stable for: sets the CFL number; exceeding it fails a run of an explicit scheme",
    )
    max_slope: float | None = option(
        None,
        gt=0,
        units="1 / time",
        description="largest |∂u/∂x| allowed, above which a run fails; null: any. dt times this is checked to be <= 1 "
        "for semi_lagrangian: beyond, characteristics cross within a step and time_reversal does not exist",
    )


@dataclass(frozen=True)
class Burgers:
    """One time step of one of the schemes."""

    cells: int
    dx: float
    viscosity: float
    scheme: str
    wavenumber: np.ndarray
    """k in FFT order, in 1 / length."""

    def step(self, state: State, inputs: Inputs, t: Any, dt: float) -> dict[str, Any]:
        viscosity = inputs.parameter.get("viscosity", self.viscosity)
        acting = [part["velocity"] for part in (inputs.force, inputs.source) if "velocity" in part]
        force = sum(acting) if acting else None
        return {"velocity": SCHEMES[self.scheme](self, state["velocity"], viscosity, force, dt)}


def _build(grid: Grid | None, parameters: BurgersParameters) -> Burgers:
    assert grid is not None
    return Burgers(grid.cells["x"], grid.dx[0], parameters.viscosity, parameters.scheme, grid.wavenumbers()[0])


def _neighbours(u: Any) -> tuple[Any, Any]:
    """(u_{i−1}, u_{i+1}) on the periodic line."""
    left, right = math.shift(u, (-1, 1), "x", extrapolation.PERIODIC, None)
    return left, right


def laplacian(u: Any, dx: float) -> Any:
    """(u_{i−1} − 2u_i + u_{i+1})/dx² on the periodic line."""
    left, right = _neighbours(u)
    return (left - 2 * u + right) / dx**2


def _finite_difference(pde: Burgers, u: Any, viscosity: Any, force: Any, dt: float) -> Any:
    def tendency(u: Any) -> Any:
        left, right = _neighbours(u)
        # (F_{i+½} − F_{i−½})/dx, factored.
        transport = (right - left) * (left + u + right) / (6 * pde.dx)
        rate = viscosity * (left - 2 * u + right) / pde.dx**2 - transport
        return rate if force is None else rate + force

    a = tendency(u)
    b = tendency(u + 0.5 * dt * a)
    c = tendency(u + 0.5 * dt * b)
    d = tendency(u + dt * c)
    return u + dt / 6 * (a + 2 * (b + c) + d)


def _spectral(pde: Burgers, u: Any, viscosity: Any, force: Any, dt: float) -> Any:
    k, mode = pde.wavenumber, np.abs(np.fft.fftfreq(pde.cells, 1 / pde.cells))
    kept = mode < pde.cells / 3
    keep, derivative = (math.wrap(value, spatial("x")) for value in (kept * 1.0, np.where(kept, -0.5j * k, 0)))
    half = math.exp(math.wrap(-0.5 * dt * k**2, spatial("x")) * viscosity)
    forcing = None if force is None else math.fft(force)

    def nonlinear(spectrum: Any) -> Any:
        """−½ ∂(u²)/∂x + f of the kept modes."""
        rate = derivative * math.fft(math.real(math.ifft(spectrum * keep)) ** 2)
        return rate if forcing is None else rate + forcing

    start = math.fft(u)
    a = nonlinear(start)
    b = nonlinear(half * (start + 0.5 * dt * a))
    c = nonlinear(half * start + 0.5 * dt * b)
    d = nonlinear(half * (half * start + dt * c))
    end = half * (half * (start + dt / 6 * a) + dt / 3 * (b + c)) + dt / 6 * d
    return math.real(math.ifft(end))


def _semi_lagrangian(pde: Burgers, u: Any, viscosity: Any, force: Any, dt: float) -> Any:
    v = u + dt * viscosity * laplacian(u, pde.dx)
    if force is not None:
        v += dt * force
    return interpolate(v, -dt / pde.dx * v)


SCHEMES: dict[str, Callable[[Burgers, Any, Any, Any, float], Any]] = {
    "finite_difference": _finite_difference,
    "spectral": _spectral,
    "semi_lagrangian": _semi_lagrangian,
}
"""(pde, u, viscosity, force or None, dt) -> u after the step."""


def interpolate(values: Any, shift: Any) -> Any:
    """values(x + shift) at every cell by linear interpolation on the periodic line; shift in cells."""
    cells = values.shape.get_size("x")
    position = shift + math.wrap(np.arange(float(cells)), spatial("x"))
    below = math.floor(position)
    weight, index = position - below, math.to_int64(below) % cells
    return (1 - weight) * values.x[index] + weight * values.x[(index + 1) % cells]


# --- inverse -----------------------------------------------------------------------------------------------------


class TimeReversalOptions(Options):
    """Options of the reversal in time."""

    iterations: int = option(40, ge=1, description="fixed-point iterations per time step")
    tolerance: float = option(
        1e-5,
        gt=0,
        description="largest last change of the iteration, relative to max |u|; a sample above keeps its x0",
    )
    max_gain: float = option(
        1e3,
        ge=1,
        description="largest amplification of a Fourier mode by undoing the diffusion of all steps",
    )


def _time_reversal(problem: InverseProblem, options: TimeReversalOptions) -> InverseSolver:
    """x̂ = x₀ + R(y_target) − R(y₀): R undoes the steps one by one (own design, not from a paper).

    Advection u'(x) = v(x − dt v(x)) by v ← u'(x + dt v(x)), a contraction while dt |∂u'/∂x| < 1; then the
    explicit diffusion by û = v̂ / (1 − ν dt κ²), κ² = (4/dx²) sin²(k dx/2). R errs by the linear interpolation,
    which cancels to first order in the difference. A sample that steepens beyond, or does not converge, keeps x₀.
    """
    pde, b, dt = problem.pde, problem.backend, problem.dt
    assert isinstance(pde, Burgers)
    layout = problem.controls[CONTROL]
    symbol = 4 / pde.dx**2 * np.sin(0.5 * pde.wavenumber * pde.dx) ** 2
    undo = math.wrap(1 / (1 - pde.viscosity * dt * symbol), spatial("x"))

    def advected(v: Any, u: Any) -> Any:
        """u(x + dt v(x)); native, traced once: PhiML's overhead would be paid per iteration."""
        return layout.native(interpolate(layout.wrap(u), dt / pde.dx * layout.wrap(v)), u.shape[0])

    def reverse(u: Any) -> tuple[Any, Any]:
        iterate = b.trace(advected, u, u)

        def back(carry: Any, step: Any) -> tuple[Any, Any]:
            u, valid = carry["u"], carry["valid"]
            pair, _ = b.scan(
                lambda pair, i: ({"old": pair["new"], "new": iterate(pair["new"], u)}, {}),
                {"old": u, "new": u},
                b.array(np.arange(options.iterations)),
                options.iterations,
            )
            wrapped, new, old = (layout.wrap(value) for value in (u, pair["new"], pair["old"]))
            largest = math.max(abs(wrapped), "x")
            steep = dt / pde.dx * math.max(abs(_neighbours(wrapped)[1] - wrapped), "x")
            fits = (steep < 1) & (math.max(abs(new - old), "x") <= options.tolerance * largest)
            before = math.real(math.ifft(undo * math.fft(new)))
            still = math.expand(math.where(fits, 1.0, 0.0), spatial(x=pde.cells))
            samples = u.shape[0]
            return {"u": layout.native(before, samples), "valid": valid * layout.native(still, samples)}, {}

        start = {"u": u, "valid": b.xp.ones_like(u)}
        end, _ = b.scan(back, start, b.array(np.arange(problem.steps)), problem.steps)
        return end["u"], end["valid"]

    def solve(x0: State, y0: State, y_target: State) -> dict[str, Any]:
        start = x0[CONTROL]
        samples = start.shape.get_size("sample") if "sample" in start.shape else 1
        both = [layout.native(y[OBSERVATION], samples) for y in (y_target, y0)]
        found, valid = reverse(b.xp.concatenate(both, axis=0))
        possible = layout.wrap(valid[:samples] * valid[samples:]) > 0.5
        # where() and not a product: what failed may be infinite.
        correction = math.where(possible, layout.wrap(found[:samples] - found[samples:]), 0.0)
        return {CONTROL: start + correction}

    return solve


def _check_reversible(setting: SolverSetting) -> str | None:
    """Time reversal undoes semi-Lagrangian steps of free motion, and diffusion only as far as rounding allows."""
    parameters, grid, (steps, dt) = setting.parameters, setting.grid, (setting.timing.steps, setting.timing.dt)
    assert grid is not None
    if parameters.scheme != "semi_lagrangian":
        return f"undoes pde.scheme semi_lagrangian, not {parameters.scheme}; set pde.scheme: semi_lagrangian"
    acting = sorted(key for key in setting.acting if not key.startswith("initial."))
    if acting:
        return f"undoes free motion only, but {', '.join(acting)} acts on it; take it out of controls and data"
    damping = 1 - 4 * parameters.viscosity * dt / grid.dx[0] ** 2
    # In logarithms, because the product over all steps may overflow.
    digits = -steps * np.log10(damping) if damping > 0 else np.inf
    gain = 10**digits if digits < 300 else np.inf
    if gain > setting.options.max_gain:
        return (
            f"would amplify the finest waves by {gain:.3g} when it undoes the diffusion of {steps} steps, more than "
            f"its max_gain {setting.options.max_gain:g}; lower pde.viscosity, time.dt or time.steps"
        )
    return None


# --- plugin ------------------------------------------------------------------------------------------------------


def _stability(parameters: BurgersParameters, grid: Grid | None, dt: float) -> tuple[StabilityNumber, ...]:
    """Limits under which the linearised schemes are stable, both numbers at once.

    RK4 is stable for |1 + z + z²/2 + z³/6 + z⁴/24| ≤ 1. Differences have z = −iC sin θ − 2D(1 − cos θ), inside for all
    C ≤ 2, D ≤ ½ together; the 2/3 rule gives |z| ≤ 2πC/3 on the imaginary axis, which is left at 2.83.
    """
    assert grid is not None
    cfl = {"finite_difference": 2.0, "spectral": 1.35, "semi_lagrangian": None}[parameters.scheme]
    numbers = [StabilityNumber("CFL number", parameters.max_velocity * dt / grid.dx[0], cfl, "time.dt")]
    if parameters.scheme != "spectral":
        diffusion = parameters.viscosity * dt / grid.dx[0] ** 2
        numbers.append(StabilityNumber("diffusion number", diffusion, 0.5, "time.dt"))
    if parameters.scheme == "semi_lagrangian" and parameters.max_slope is not None:
        numbers.append(StabilityNumber("shock number dt max|∂u/∂x|", dt * parameters.max_slope, 1.0, "time.dt"))
    return tuple(numbers)


def _check_velocity(grid: Grid | None, parameters: BurgersParameters, sample: Mapping[str, np.ndarray]) -> str | None:
    """A start that would break a limit at once, and the steps of an explicit scheme with it."""
    velocity = sample.get(CONTROL)
    assert grid is not None
    if velocity is None:
        return None
    speed, slope = (float(np.max(abs(v))) for v in (velocity, (np.roll(velocity, -1) - np.roll(velocity, 1))))
    if parameters.scheme != "semi_lagrangian" and speed > parameters.max_velocity:
        return f"{CONTROL}: |u| reaches {speed:.4g}, more than pde.max_velocity {parameters.max_velocity:g}; raise it"
    slope /= grid.dx[0]
    if parameters.max_slope is not None and slope > parameters.max_slope:
        return f"{CONTROL}: |∂u/∂x| reaches {slope:.4g}, more than pde.max_slope {parameters.max_slope:g}; raise it"
    return None


def _monitors(parameters: BurgersParameters, grid: Grid | None) -> tuple[Monitor, ...]:
    assert grid is not None
    dx, explicit = grid.dx[0], parameters.scheme != "semi_lagrangian"

    def growth(initial: State, current: State) -> Any:
        before, after = (math.sum(state["velocity"] ** 2, "x") for state in (initial, current))
        gained: Any = math.maximum(after - before, 0.0)
        return gained / math.where(before == 0, 1.0, before)

    def speed(initial: State, current: State) -> Any:
        return math.max(abs(current["velocity"]), "x")

    def slope(initial: State, current: State) -> Any:
        u = current["velocity"]
        jump: Any = math.max(abs(_neighbours(u)[1] - u), "x")
        return jump / dx

    return (
        # Free motion only loses energy; 1e-4 is far above the rounding of float32, far below an instability.
        Monitor("energy_growth", "relative growth of the energy", growth, 1e-4, without=("force", "source")),
        Monitor(
            "max_velocity",
            "largest |u|",
            speed,
            parameters.max_velocity if explicit else None,
            "pde.max_velocity",
            units="m s-1",
        ),
        Monitor(
            "max_slope",
            "largest |∂u/∂x|",
            slope,
            parameters.max_slope,
            "time.steps",
            units="s-1",
        ),
    )


PLUGIN = PDEPlugin(
    name="burgers",
    summary="viscous Burgers equation on a periodic line; shocks, control, reversal in time",
    equation="∂u/∂t + u ∂u/∂x = ν ∂²u/∂x² + f",
    parameters=BurgersParameters,
    fields=lambda parameters, grid: (FieldSpec("velocity", "velocity", units="m s-1"),),
    build=_build,
    dimensions=(1,),
    forces=("velocity",),
    sources=("velocity",),
    samplers=SAMPLERS,
    inverse_solvers={
        "time_reversal": InverseSolverPlugin(
            name="time_reversal",
            summary="undoes semi-Lagrangian steps one by one as long as no shock has formed (own design)",
            build=_time_reversal,
            options=TimeReversalOptions,
            inverts=("burgers",),
            control=CONTROL,
            observation=OBSERVATION,
            check=_check_reversible,
        )
    },
    monitors=_monitors,
    check_sample=_check_velocity,
    stability=_stability,
    example={"viscosity": 0.05, "scheme": "semi_lagrangian"},
    references=("Thuerey et al., Physics-based Deep Learning", "Cole 1951", "Hopf 1950"),
)
