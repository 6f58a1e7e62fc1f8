r"""A chain of coupled oscillators, driven at its last one: control them by one number per time step.

    x_i'' = −x_i + f(x_{i+1} − x_i) − f(x_i − x_{i−1}) + c u δ_{in},     f(d) = a d + b d³,     i = 1 … n

with unit masses and free ends, where the term of the missing neighbour is absent. Without control the energy

    H = Σ ½ (x_i² + v_i²) + Σ (½ a d_i² + ¼ b d_i⁴),     d_i = x_{i+1} − x_i

is conserved. One time step is the classical Runge–Kutta method of fourth order with u constant in all four stages.

Schnell, Holl, Thuerey 2022, section 4 "Control of nonlinear oscillators" (n = 2, a = 0, b = 1, c = 3); the chain of
Physics-based Deep Learning, chapter "Half-Inverse Gradients", is linear (a = 0.2, b = 0, c = 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from phiml import math

from toolkit import FieldSpec, Grid, Inputs, Monitor, Options, PDEPlugin, Sampler, State, option

DRIVE = "drive"
"""The control, `force.drive`."""


class OscillatorsParameters(Options):
    """The chain; the defaults are the published nonlinear one."""

    number: int = option(2, ge=1, le=64, description="n, oscillators in the chain")
    linear_coupling: float = option(0.0, units="1 / time²", description="a, stiffness between neighbours")
    cubic_coupling: float = option(1.0, units="1 / (length² time²)", description="b, of the cube of their distance")
    control_strength: float = option(
        3.0, units="length / (time² control)", description="c, push of the drive on the last"
    )


def components(parameters: OscillatorsParameters) -> tuple[str, ...]:
    """x1 … xn, v1 … vn."""
    return tuple(f"{name}{i + 1}" for name in "xv" for i in range(parameters.number))


@dataclass(frozen=True)
class Oscillators:
    """One Runge–Kutta step; the oscillators are tensors of their own, which costs less than slicing a vector."""

    parameters: OscillatorsParameters

    def rate(self, state: Sequence[Any], push: Any) -> list[Any]:
        """(x', v') of (x, v), as lists of 2n; `push` acts on the last velocity."""
        n = self.parameters.number
        x, v = state[:n], state[n:]
        force = [-at for at in x]
        for i in range(n - 1):
            pull = self._coupling(x[i + 1] - x[i])
            force[i], force[i + 1] = force[i] + pull, force[i + 1] - pull
        force[-1] = force[-1] + push
        return [*v, *force]

    def _coupling(self, distance: Any) -> Any:
        """f(d) = a d + b d³."""
        a, b = self.parameters.linear_coupling, self.parameters.cubic_coupling
        if b == 0:
            return a * distance
        return distance * (a + b * distance * distance)

    def step(self, state: State, inputs: Inputs, t: Any, dt: float) -> dict[str, Any]:
        names = components(self.parameters)
        s = [state["state"].vector[name] for name in names]
        push = self.parameters.control_strength * inputs.force.get(DRIVE, 0.0)

        def rate_after(step: float, k: Sequence[Any]) -> list[Any]:
            return self.rate([at + step * change for at, change in zip(s, k, strict=True)], push)

        k1 = self.rate(s, push)
        k2 = rate_after(dt / 2, k1)
        k3 = rate_after(dt / 2, k2)
        k4 = rate_after(dt, k3)
        stages = zip(s, k1, k2, k3, k4, strict=True)
        new = [at + dt / 6 * (a + 2 * (b + c) + d) for at, a, b, c, d in stages]
        return {"state": math.stack(new, math.channel(vector=",".join(names)))}

    def energy(self, state: State) -> Any:
        """H per sample, without the control."""
        n = self.parameters.number
        s = [state["state"].vector[name] for name in components(self.parameters)]
        a, b = self.parameters.linear_coupling, self.parameters.cubic_coupling
        squared = [(s[i + 1] - s[i]) ** 2 for i in range(n - 1)]
        return sum(0.5 * value**2 for value in s) + sum(0.5 * a * d + 0.25 * b * d**2 for d in squared)


# --- sampler -----------------------------------------------------------------------------------------------------


class UniformOptions(Options):
    """Positions and velocities at the start, each drawn alone."""

    range: tuple[float, float] = option((0.0, 1.0), units="length and length / time", description="of every value")


def _uniform(
    grid: Grid | None,
    parameters: OscillatorsParameters,
    options: UniformOptions,
    rng: np.random.Generator,
    count: int,
) -> dict[str, np.ndarray]:
    """Uniform s₀, and y* = s₀: come back to the start."""
    start = rng.uniform(*options.range, (count, 2 * parameters.number))
    return {"initial.state": start, "target.state": start}


def _check_uniform(grid: Grid | None, parameters: OscillatorsParameters, options: UniformOptions) -> str | None:
    low, high = options.range
    if not low < high:
        return f"data.range: expected first < second, got [{low:g}, {high:g}]"
    return None


# --- plugin ------------------------------------------------------------------------------------------------------


def _monitors(parameters: OscillatorsParameters, grid: Grid | None) -> tuple[Monitor, ...]:
    chain = Oscillators(parameters)

    def drift(initial: State, current: State) -> Any:
        """|H − H₀| / H₀ per sample; 0 at rest."""
        before = chain.energy(initial)
        return abs(chain.energy(current) - before) / math.where(before == 0, 1.0, before)

    # The published steps lose at most 3e-4 (nonlinear, 1/8) and 1e-2 (linear, 1/2); a tenth is another motion.
    return (Monitor("energy_drift", "relative drift of the energy", drift, 0.1, without=("force",)),)


PLUGIN = PDEPlugin(
    name="oscillators",
    summary="chain of linearly or cubically coupled oscillators, driven at the last one; bring it to a target state",
    equation="x_i'' = −x_i + f(x_{i+1} − x_i) − f(x_i − x_{i−1}) + c u δ_{in}, f(d) = a d + b d³",
    parameters=OscillatorsParameters,
    fields=lambda parameters, grid: (
        FieldSpec("state", "positions and velocities", components=components(parameters), on_grid=False),
    ),
    build=lambda grid, parameters: Oscillators(parameters),
    dimensions=(),
    boundaries=frozenset(),
    forces=(DRIVE,),
    actions=lambda parameters, grid: (FieldSpec(DRIVE, "drive of the last oscillator", on_grid=False),),
    samplers={
        "uniform": Sampler(
            "uniform positions and velocities, to which the chain shall return",
            _uniform,
            UniformOptions,
            _check_uniform,
        )
    },
    monitors=_monitors,
    references=(
        "Schnell, Holl, Thuerey: Half-Inverse Gradients for Physical Deep Learning, ICLR 2022",
        "Thuerey et al., Physics-based Deep Learning, chapter Half-Inverse Gradients",
    ),
)
