"""A closed loop of three steps whose physics gradient turns around the minimum: dropping a path adds a rotation.

The controller is linear, c_i = θ·o_i with two weights and no bias, and sees the observation o alone. A step of number i
keeps what the controller gave and shows it the next observation:

    o₀ = (1, 0):       m₁ = c₀ = θ₁
    o₁ = (0, 1):       m₂ = c₁ = θ₂
    o₂ = (m₂, −m₁):    d  = k c₂ = k (θ₁ θ₂ − θ₂ θ₁) = 0

    L = ½ (m₁² + m₂²) + d = ½ |θ|²,     ∂L/∂θ = θ

d is zero whatever θ is, and so is its derivative. With the gradient stopped at the controller's input o₂ is a constant,
and the update is θ + k (θ₂, −θ₁): its second part has no potential, it turns around the minimum at 0, and an optimizer
with momentum is carried outwards. The published figure shows |θ|² = 2 L, start (2, 4).

Schnell, Thuerey 2024, Stabilizing Backpropagation Through Time to Learn Complex Physics, figure 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from phiml import math

from toolkit import (
    FieldSpec,
    Grid,
    Inputs,
    Loss,
    LossPlugin,
    NoOptions,
    Options,
    PDEPlugin,
    Sampler,
    State,
    option,
)

COMMAND = "command"
"""The control, `force.command`."""


class RotationParameters(Options):
    """How strongly the update turns."""

    strength: float = option(2.0, description="k, factor of the last control")


@dataclass(frozen=True)
class Rotation:
    """Step number t / dt; from number 3 on the memory stays as it is."""

    strength: float

    def step(self, state: State, inputs: Inputs, t: Any, dt: float) -> dict[str, Any]:
        c, number = inputs.force.get(COMMAND, 0.0), math.round(math.wrap(t) / dt)
        memory, o = state["memory"].vector, state["observation"].vector
        m1: Any = math.where(number == 0, c, memory["m1"])
        m2: Any = math.where(number == 1, c, memory["m2"])
        d = math.where(number == 2, self.strength * c, memory["d"])
        # A quarter turn takes (1, 0) to (0, 1).
        seen = [math.where(number == 1, m2, -o["second"]), math.where(number == 1, -m1, o["first"])]
        return {
            "memory": math.stack([m1, m2, d], math.channel(vector="m1,m2,d")),
            "observation": math.stack(seen, math.channel(vector="first,second")),
        }


def _start(
    grid: Grid | None, parameters: RotationParameters, options: NoOptions, rng: np.random.Generator, count: int
) -> dict[str, np.ndarray]:
    """o₀ = (1, 0); the memory is empty."""
    return {"initial.observation": np.tile([1.0, 0.0], (count, 1))}


def _potential() -> Loss:
    """L = ½ (m₁² + m₂²) + d."""

    def value(y: Any, target: Any) -> Any:
        return 0.5 * (y.vector["m1"] ** 2 + y.vector["m2"] ** 2) + y.vector["d"]

    return Loss(value)


PLUGIN = PDEPlugin(
    name="rotation",
    summary="three steps of linear feedback whose gradient without the controller's input turns around the minimum",
    equation="m₁ = c₀, m₂ = c₁, d = k c₂, o = (1, 0), (0, 1), (m₂, −m₁)",
    parameters=RotationParameters,
    fields=lambda parameters, grid: (
        FieldSpec("memory", "what the controller gave", components=("m1", "m2", "d"), on_grid=False),
        FieldSpec("observation", "what the controller sees", components=("first", "second"), on_grid=False),
    ),
    build=lambda grid, parameters: Rotation(parameters.strength),
    dimensions=(),
    boundaries=frozenset(),
    forces=(COMMAND,),
    actions=lambda parameters, grid: (FieldSpec(COMMAND, "c, what the controller gives", on_grid=False),),
    samplers={"start": Sampler("the first observation", _start)},
    losses={
        "potential": LossPlugin(
            "½ (m₁² + m₂²) + d of the final memory, ½ |θ|² of the weights",
            lambda o: _potential(),
            needs_target=False,
            judges=("final.memory",),
        )
    },
    references=("Schnell, Thuerey: Stabilizing Backpropagation Through Time to Learn Complex Physics, ICLR 2024",),
)
