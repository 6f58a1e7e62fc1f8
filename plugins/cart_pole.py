r"""Poles on a cart that is pushed: swing them up by one force per time step.

    A_k = (F + m l sinθ_k θ̇_k²) / M
    θ̈_k = (g sinθ_k − cosθ_k A_k) / (l (4/3 − m cos²θ_k / M))
    ẍ   = (F + m l Σ_k (sinθ_k θ̇_k² − θ̈_k cosθ_k)) / M

θ = 0 is upright, θ > 0 leans towards +x, l is half of a pole, which has its mass m along its whole length. A step is
semi-implicit Euler: the new velocities, then the new positions with these.

One pole is the cart-pole of Barto, Sutton, Anderson 1983 (without friction), whose energy

    E = ½ M ẋ² + m l cosθ ẋ θ̇ + ⅔ m l² θ̇² + m g l cosθ

is conserved without a force. Several poles are the published extension and not the exact mechanics: A_k holds only the
pole's own motion, not that of the others, and M is one number for any count. They are kept as published, so that
results can be compared.

Schnell, Thuerey 2024, section "Cart-pole" (1 to 4 poles, dt = 0.01 for one second; the loss is `upright`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from phiml import math
from pydantic import model_validator

from toolkit import (
    Disc,
    Drawing,
    FieldSpec,
    Grid,
    Inputs,
    Line,
    Loss,
    LossPlugin,
    Monitor,
    NoOptions,
    Options,
    PDEPlugin,
    Polygon,
    Sampler,
    StabilityNumber,
    State,
    option,
)

PUSH = "push"
"""The control, `force.push`."""
CART = ("position", "velocity")
CART_SIZE = (0.4, 0.2)
"""Width and height of the drawn cart, in lengths of a pole."""


class CartPoleParameters(Options):
    """Cart and poles; the defaults are the published ones."""

    poles: int = option(1, ge=1, description="poles on the cart, all alike")
    gravity: float = option(9.8, gt=0, units="m / s²", description="g")
    pole_mass: float = option(0.1, gt=0, units="kg", description="m, of each pole")
    total_mass: float = option(
        1.1, gt=0, units="kg", description="M, of the cart with one pole, for any number of them"
    )
    half_length: float = option(0.5, gt=0, units="m", description="l, half of each pole")

    @model_validator(mode="after")
    def _carries_its_pole(self) -> CartPoleParameters:
        if self.total_mass <= self.pole_mass:
            raise ValueError(
                f"the cart weighs total_mass − pole_mass = {self.total_mass - self.pole_mass:g} kg; "
                "expected total_mass > pole_mass"
            )
        return self


def components(parameters: CartPoleParameters) -> tuple[str, ...]:
    """pole_1 … pole_p."""
    return tuple(f"pole_{i + 1}" for i in range(parameters.poles))


@dataclass(frozen=True)
class CartPole:
    """One step of semi-implicit Euler."""

    parameters: CartPoleParameters

    def accelerations(self, angle: Any, rate: Any, push: Any) -> tuple[Any, Any]:
        """(ẍ, θ̈ along `vector`)."""
        p = self.parameters
        moment = p.pole_mass * p.half_length
        sine, cosine = math.sin(angle), math.cos(angle)
        outward = sine * rate * rate
        own = (push + moment * outward) / p.total_mass
        inertia = p.half_length * (4 / 3 - p.pole_mass / p.total_mass * cosine * cosine)
        angular = (p.gravity * sine - cosine * own) / inertia
        return (push + moment * math.sum(outward - angular * cosine, "vector")) / p.total_mass, angular

    def step(self, state: State, inputs: Inputs, t: Any, dt: float) -> dict[str, Any]:
        cart, angle, rate = state["cart"], state["angle"], state["angular_velocity"]
        acceleration, angular = self.accelerations(angle, rate, inputs.force.get(PUSH, 0.0))
        velocity = cart.vector["velocity"] + dt * acceleration
        rate = rate + dt * angular
        cart = math.stack([cart.vector["position"] + dt * velocity, velocity], math.channel(vector=",".join(CART)))
        return {"cart": cart, "angle": angle + dt * rate, "angular_velocity": rate}

    def energy(self, state: State) -> Any:
        """E per sample, for one pole."""
        p = self.parameters
        velocity = state["cart"].vector["velocity"]
        angle, rate = state["angle"].vector["pole_1"], state["angular_velocity"].vector["pole_1"]
        moment = p.pole_mass * p.half_length
        kinetic = 0.5 * p.total_mass * velocity**2 + 2 / 3 * moment * p.half_length * rate**2
        return kinetic + moment * math.cos(angle) * (velocity * rate + p.gravity)


# --- loss and sampler --------------------------------------------------------------------------------------------


def _upright(options: NoOptions) -> Loss:
    """L = 1 − mean cosθ over poles (and states of a trajectory): 0 upright, 2 hanging."""

    def value(y: Any, target: Any) -> Any:
        return 1 - math.mean(math.cos(y), y.shape.without("sample"))

    return Loss(value)


Range = tuple[float, float]


class HangingOptions(Options):
    """Everything uniform and drawn alone."""

    position: Range = option((-1.0, 1.0), units="m", description="of the cart, from and to")
    velocity: Range = option((-1.0, 1.0), units="m / s", description="of the cart, from and to")
    deviation: Range = option((-np.pi / 6, np.pi / 6), units="rad", description="from hanging down, from and to")
    angular_velocity: Range = option((-1.0, 1.0), units="rad / s", description="of each pole, from and to")


def _hanging(
    grid: Grid | None,
    parameters: CartPoleParameters,
    options: HangingOptions,
    rng: np.random.Generator,
    count: int,
) -> dict[str, np.ndarray]:
    """Cart (x, ẋ) and poles (π + deviation, θ̇), drawn object by object."""
    drawn = rng.random((count, 1 + parameters.poles, 2))

    def between(limits: Range, values: np.ndarray) -> np.ndarray:
        return limits[0] + (limits[1] - limits[0]) * values

    cart = [between(options.position, drawn[:, 0, 0]), between(options.velocity, drawn[:, 0, 1])]
    return {
        "initial.cart": np.stack(cart, axis=1),
        "initial.angle": np.pi + between(options.deviation, drawn[:, 1:, 0]),
        "initial.angular_velocity": between(options.angular_velocity, drawn[:, 1:, 1]),
    }


def _check_hanging(grid: Grid | None, parameters: CartPoleParameters, options: HangingOptions) -> str | None:
    for name in HangingOptions.model_fields:
        low, high = getattr(options, name)
        if low > high:
            return f"data.{name}: expected [from, to] with from ≤ to, got [{low:g}, {high:g}]"
    return None


# --- plugin ------------------------------------------------------------------------------------------------------


def _fields(parameters: CartPoleParameters, grid: Grid | None) -> tuple[FieldSpec, ...]:
    poles = components(parameters)
    return (
        FieldSpec("cart", "position (m) and velocity (m / s) of the cart", components=CART, on_grid=False),
        FieldSpec("angle", "angles of the poles, 0 upright", "rad", poles, on_grid=False),
        FieldSpec("angular_velocity", "angular velocities of the poles", "rad / s", poles, on_grid=False),
    )


def _monitors(parameters: CartPoleParameters, grid: Grid | None) -> tuple[Monitor, ...]:
    if parameters.poles > 1:
        return ()
    system = CartPole(parameters)
    scale = parameters.pole_mass * parameters.gravity * parameters.half_length

    def drift(initial: State, current: State) -> Any:
        """|E − E₀| / (|E₀| + m g l) per sample."""
        before = system.energy(initial)
        return abs(system.energy(current) - before) / (abs(before) + scale)

    return (Monitor("energy_drift", "relative drift of the energy", drift, 0.1, without=("force",)),)


def _stability(parameters: CartPoleParameters, grid: Grid | None, dt: float) -> tuple[StabilityNumber, ...]:
    """ω dt of small swings about hanging, ω² = g / (l (4/3 − m / M)); semi-implicit Euler swings up to ω dt = 2."""
    ratio = parameters.pole_mass / parameters.total_mass
    squared = parameters.gravity / (parameters.half_length * (4 / 3 - ratio))
    return (StabilityNumber("phase of a small swing per step", squared**0.5 * dt, 2.0, "time.dt"),)


def _drawing(parameters: CartPoleParameters, state: Any) -> Drawing:
    """The cart as a box, each pole as a line with a bob at its tip."""
    x, length = float(state["cart"][0]), 2 * parameters.half_length
    width, height = (size * length for size in CART_SIZE)
    corners = tuple((x + i * width / 2, j * height / 2) for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1)))
    angles = [float(angle) for angle in state["angle"]]
    tips = [(x + length * np.sin(angle), length * np.cos(angle)) for angle in angles]
    tips = [(float(i), float(j)) for i, j in tips]
    poles = [Line(((x, 0.0), tip), "pole") for tip in tips]
    bobs = [Disc(tip, 0.05 * length, "pole") for tip in tips]
    reach = 1.2 * length
    return Drawing((Polygon(corners, "cart"), *poles, *bobs), ((x - reach, x + reach), (-reach, reach)))


PLUGIN = PDEPlugin(
    name="cart_pole",
    summary="poles on a cart, semi-implicit Euler; swing them up by pushing the cart",
    equation="θ̈_k = (g sinθ_k − cosθ_k A_k) / (l (4/3 − m cos²θ_k/M)), A_k = (F + m l sinθ_k θ̇_k²)/M, "
    "ẍ = (F + m l Σ_k (sinθ_k θ̇_k² − θ̈_k cosθ_k))/M",
    parameters=CartPoleParameters,
    fields=_fields,
    build=lambda grid, parameters: CartPole(parameters),
    dimensions=(),
    boundaries=frozenset(),
    forces=(PUSH,),
    actions=lambda parameters, grid: (FieldSpec(PUSH, "force on the cart", "N", on_grid=False),),
    samplers={
        "hanging": Sampler(
            "poles near hanging down and a cart near the middle, all in motion",
            _hanging,
            HangingOptions,
            _check_hanging,
        )
    },
    losses={
        "upright": LossPlugin(
            "1 − mean cosθ per sample, in [0, 2]",
            _upright,
            needs_target=False,
            judges=("final.angle", "trajectory.angle"),
        )
    },
    monitors=_monitors,
    stability=_stability,
    drawing=_drawing,
    references=(
        "Schnell, Thuerey: Stabilizing Backpropagation Through Time to Learn Complex Physics, ICLR 2024",
        "Barto, Sutton, Anderson 1983: Neuronlike adaptive elements that can solve difficult learning control problems",
    ),
)
