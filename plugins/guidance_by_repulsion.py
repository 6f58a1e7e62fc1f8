r"""Guidance by repulsion: drivers herd evaders that flee from them, in the plane.

With d(r) = s + |r|, the centre c = Σ_e x_e and w_j = x_j − c, a driver j and an evader e feel

    ẍ_j = a_j w_j + b_j w_j^⊥ − γ_d ẋ_j + k_d Σ_{k≠j} (x_j − x_k) / d²,     w^⊥ = (−w_y, w_x)
    ẍ_e = k_e Σ_j (x_e − x_j) / d² − γ_e ẋ_e + k_f Σ_{i≠e} p(d) (x_i − x_e),     p(d) = (δ / d − 1) / d

and the two numbers a_j, b_j per driver are the control. A step is explicit Euler, positions with the old velocities: a
control moves an evader four steps later at the earliest.

Two things are as in the published code though they look like slips, and can be chosen otherwise: c is the sum of the
evaders' positions (`centre: mean` for their centroid), and p draws evaders nearer than δ − s together and drives more
distant ones apart (`flocking: intended` reverses the sign). The published force of the flock on drivers has the factor
0 and is left out.

Schnell, Thuerey 2024, section "Guidance by repulsion" (2 drivers, 4 evaders, 60 steps of 1/15); the model is that of
Escobedo, Ibañez, Zuazua 2016.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from phiml import math

from toolkit import (
    Cross,
    Disc,
    Drawing,
    FieldSpec,
    Grid,
    Inputs,
    Loss,
    LossPlugin,
    Options,
    PDEPlugin,
    Sampler,
    StabilityNumber,
    State,
    option,
)

DRIVE = "drive"
"""The control, `force.drive`."""
AXES = "x,y"


class GuidanceParameters(Options):
    """Drivers, evaders and their forces; the defaults are the published ones."""

    drivers: int = option(2, ge=1, description="drivers")
    evaders: int = option(4, ge=1, description="evaders")
    driver_friction: float = option(1.0, ge=0, units="1 / time", description="γ_d")
    evader_friction: float = option(4.0, ge=0, units="1 / time", description="γ_e")
    driver_repulsion: float = option(0.2, units="length² / time²", description="k_d, of drivers by each other")
    evader_repulsion: float = option(15.0, units="length² / time²", description="k_e, of evaders by drivers")
    flocking_strength: float = option(0.2, units="length / time²", description="k_f, between evaders")
    flocking_distance: float = option(0.5, gt=0, units="length", description="δ, of d at which evaders rest")
    softening: float = option(0.1, gt=0, units="length", description="s, added to every distance")
    centre: Literal["sum", "mean"] = option(
        "sum", description="what drivers are moved around: the sum of the evaders' positions (published) or their mean"
    )
    flocking: Literal["published", "intended"] = option(
        "published",
        description="published: near evaders attract, distant ones repel each other; intended: the other way round",
    )


def components(first: str, second: str, number: int) -> tuple[str, ...]:
    """a_1, b_1, a_2, … for `a` and `b`."""
    return tuple(f"{name}_{i + 1}" for i in range(number) for name in (first, second))


def coordinates(number: int) -> tuple[str, ...]:
    """x_1, y_1, x_2, …"""
    return components("x", "y", number)


def split(value: Any, name: str) -> Any:
    """`vector` (x_1, y_1, …) as two dimensions: `name` and `axis`."""
    number = value.shape.get_size("vector") // 2
    return math.unpack_dim(value, "vector", math.channel(**{name: number}), math.channel(axis=AXES))


def joined(value: Any, name: str) -> Any:
    """The inverse of `split`."""
    names = coordinates(value.shape.get_size(name))
    return math.pack_dims(value, (name, "axis"), math.channel(vector=",".join(names)))


@dataclass(frozen=True)
class GuidanceByRepulsion:
    """One step of explicit Euler."""

    parameters: GuidanceParameters

    def distance(self, difference: Any) -> Any:
        """d = s + |r|; the derivative of |r| at 0 is taken as 0, for pairs of one with itself and coinciding ones."""
        squared = math.sum(difference * difference, "axis")
        apart = squared > 0
        # The root of 0 has no derivative, and a `where` behind it would multiply infinity by 0.
        length: Any = math.where(apart, math.sqrt(math.where(apart, squared, 1.0)), 0.0)
        return self.parameters.softening + length

    def driver_acceleration(self, x: Any, v: Any, evaders: Any, drive: Any | None) -> Any:
        """Along `driver` and `axis`, as is `drive` with a as its x and b as its y."""
        p = self.parameters
        between = x - math.rename_dims(x, "driver", math.channel("other"))
        d = self.distance(between)
        repulsion = p.driver_repulsion * math.sum(between / (d * d), "other")
        free = repulsion - p.driver_friction * v
        if drive is None:
            return free
        centre = math.sum(evaders, "evader") if p.centre == "sum" else math.mean(evaders, "evader")
        w = x - centre
        across = math.stack([-w.axis["y"], w.axis["x"]], math.channel(axis=AXES))
        return drive.axis["x"] * w + drive.axis["y"] * across + free

    def evader_acceleration(self, x: Any, v: Any, drivers: Any) -> Any:
        """Along `evader` and `axis`."""
        p = self.parameters
        away = x - drivers
        d = self.distance(away)
        repulsion = p.evader_repulsion * math.sum(away / (d * d), "driver")
        towards = math.rename_dims(x, "evader", math.channel("other")) - x
        d = self.distance(towards)
        sign = 1 if p.flocking == "published" else -1
        flocking = sign * p.flocking_strength * math.sum((p.flocking_distance / d - 1) / d * towards, "other")
        return repulsion - p.evader_friction * v + flocking

    def step(self, state: State, inputs: Inputs, t: Any, dt: float) -> dict[str, Any]:
        drivers, driver_v = split(state["drivers"], "driver"), split(state["driver_velocities"], "driver")
        evaders, evader_v = split(state["evaders"], "evader"), split(state["evader_velocities"], "evader")
        drive = split(inputs.force[DRIVE], "driver") if DRIVE in inputs.force else None
        driver_a = self.driver_acceleration(drivers, driver_v, evaders, drive)
        evader_a = self.evader_acceleration(evaders, evader_v, drivers)
        return {
            "drivers": state["drivers"] + dt * state["driver_velocities"],
            "driver_velocities": joined(driver_v + dt * driver_a, "driver"),
            "evaders": state["evaders"] + dt * state["evader_velocities"],
            "evader_velocities": joined(evader_v + dt * evader_a, "evader"),
        }


# --- loss and sampler --------------------------------------------------------------------------------------------


class GatheredOptions(Options):
    """Where the evaders shall be."""

    target: tuple[float, float] = option((0.0, 0.0), units="length", description="(x, y) of the place")


def _gathered(options: GatheredOptions) -> Loss:
    """L = mean (x − target)² over evaders, both coordinates and (of a trajectory) states."""

    def value(y: Any, target: Any) -> Any:
        names = tuple(str(name) for name in y.shape.get_labels("vector"))
        wanted = math.tensor(list(options.target) * (len(names) // 2), math.channel(vector=",".join(names)))
        return math.mean((y - wanted) ** 2, y.shape.without("sample"))

    return Loss(value)


Range = tuple[float, float]


class ScatteredOptions(Options):
    """Drivers outside, a flock of evaders nearer to the origin; all at rest."""

    driver_radius: Range = option((3.0, 4.0), units="length", description="distance of drivers to the origin, from, to")
    flock_radius: Range = option(
        (1.0, 2.0), units="length", description="distance of the flock's centre to the origin, from, to"
    )
    spread: float = option(0.5, ge=0, units="length", description="of evaders about that centre, ± along each axis")


def _scattered(
    grid: Grid | None,
    parameters: GuidanceParameters,
    options: ScatteredOptions,
    rng: np.random.Generator,
    count: int,
) -> dict[str, np.ndarray]:
    """Angles and radii are uniform (so not the area), evaders in a square; drawn one object after the other, as
    published: each driver's angles and radii, those of the flock's centre, then each evader's x and y."""

    def polar(radius: Range, number: int) -> np.ndarray:
        drawn = rng.random((number, 2, count)).T
        angle, r = 2 * np.pi * drawn[:, 0], radius[0] + (radius[1] - radius[0]) * drawn[:, 1]
        return np.stack([r * np.cos(angle), r * np.sin(angle)], axis=2)

    drivers = polar(options.driver_radius, parameters.drivers)
    centre = polar(options.flock_radius, 1)
    offset = rng.random((parameters.evaders, 2, count)).transpose(2, 0, 1)
    evaders = centre + options.spread * (2 * offset - 1)
    placed = {"drivers": drivers.reshape(count, -1), "evaders": evaders.reshape(count, -1)}
    return {
        "initial.drivers": placed["drivers"],
        "initial.driver_velocities": np.zeros_like(placed["drivers"]),
        "initial.evaders": placed["evaders"],
        "initial.evader_velocities": np.zeros_like(placed["evaders"]),
    }


def _check_scattered(grid: Grid | None, parameters: GuidanceParameters, options: ScatteredOptions) -> str | None:
    for name in ("driver_radius", "flock_radius"):
        low, high = getattr(options, name)
        if not 0 <= low <= high:
            return f"data.{name}: expected [from, to] with 0 ≤ from ≤ to, got [{low:g}, {high:g}]"
    return None


# --- plugin ------------------------------------------------------------------------------------------------------


def _fields(parameters: GuidanceParameters, grid: Grid | None) -> tuple[FieldSpec, ...]:
    drivers, evaders = (coordinates(number) for number in (parameters.drivers, parameters.evaders))
    return (
        FieldSpec("drivers", "positions of the drivers", components=drivers, on_grid=False),
        FieldSpec("driver_velocities", "velocities of the drivers", components=drivers, on_grid=False),
        FieldSpec("evaders", "positions of the evaders", components=evaders, on_grid=False),
        FieldSpec("evader_velocities", "velocities of the evaders", components=evaders, on_grid=False),
    )


def _actions(parameters: GuidanceParameters, grid: Grid | None) -> tuple[FieldSpec, ...]:
    names = components("a", "b", parameters.drivers)
    return (FieldSpec(DRIVE, "drive of each driver along and across w", components=names, on_grid=False),)


def _stability(parameters: GuidanceParameters, grid: Grid | None, dt: float) -> tuple[StabilityNumber, ...]:
    """γ dt; explicit Euler overshoots rest above 1 and leaves it above 2."""
    friction = max(parameters.driver_friction, parameters.evader_friction)
    return (StabilityNumber("friction per step", friction * dt, 2.0, "time.dt"),)


def _drawing(parameters: GuidanceParameters, state: Any) -> Drawing:
    """Drivers and evaders as discs, the origin as a cross."""

    def discs(name: str, radius: float, label: str) -> list[Disc]:
        return [Disc((float(x), float(y)), radius, label) for x, y in np.reshape(state[name], (-1, 2))]

    shapes = [Cross((0.0, 0.0), "origin"), *discs("evaders", 0.1, "evader"), *discs("drivers", 0.15, "driver")]
    return Drawing.around(shapes, 0.5)


PLUGIN = PDEPlugin(
    name="guidance_by_repulsion",
    summary="drivers herd evaders that flee from them, in the plane, explicit Euler; gather the flock at a place",
    equation="ẍ_j = a_j w_j + b_j w_j^⊥ − γ_d ẋ_j + k_d Σ_k (x_j − x_k)/d², "
    "ẍ_e = k_e Σ_j (x_e − x_j)/d² − γ_e ẋ_e + k_f Σ_i (δ/d − 1)/d (x_i − x_e), w_j = x_j − Σ_e x_e, d = s + |r|",
    parameters=GuidanceParameters,
    fields=_fields,
    build=lambda grid, parameters: GuidanceByRepulsion(parameters),
    dimensions=(),
    boundaries=frozenset(),
    forces=(DRIVE,),
    actions=_actions,
    samplers={
        "scattered": Sampler(
            "drivers around the origin, a flock of evaders nearer to it, all at rest",
            _scattered,
            ScatteredOptions,
            _check_scattered,
        )
    },
    losses={
        "gathered": LossPlugin(
            "mean (x − target)² over evaders, coordinates and states, per sample",
            _gathered,
            GatheredOptions,
            needs_target=False,
            judges=("final.evaders", "trajectory.evaders"),
        )
    },
    stability=_stability,
    drawing=_drawing,
    references=(
        "Schnell, Thuerey: Stabilizing Backpropagation Through Time to Learn Complex Physics, ICLR 2024",
        "Escobedo, Ibañez, Zuazua 2016: Optimal strategies for driving a mobile agent in a guidance by repulsion model",
    ),
)
