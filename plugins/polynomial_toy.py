"""A scalar system under polynomial feedback: the smallest closed loop whose exact gradient explodes.

    x_{i+1} = x_i + c_i,     c_i = θ₁ x_i² + θ₂ x_i,     L = ½ (x_n − y)²

The powers (x², x) are a field of the state beside x, and the controller is a `linear` network without bias that sees
`state.powers`: its weight is (θ₁, θ₂). A step reads the position alone, so that the only way from the powers to the
next state leads through the controller. Published: x₀ = −0.3, y = 2, n = 4; ∂L/∂θ grows as the product of
1 + 2θ₁ x_i + θ₂, while the path through the physics alone has slope 1.

Schnell, Thuerey 2024, Stabilizing Backpropagation Through Time to Learn Complex Physics, figure 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from phiml import math

from toolkit import FieldSpec, Grid, Inputs, NoOptions, Options, PDEPlugin, Sampler, State, option

PUSH = "push"
"""The control, `force.push`."""


@dataclass(frozen=True)
class PolynomialToy:
    """x ← x + c, with the powers of the new x."""

    def step(self, state: State, inputs: Inputs, t: Any, dt: float) -> dict[str, Any]:
        x = state["position"] + inputs.force.get(PUSH, 0.0)
        return {"position": x, "powers": math.stack([x**2, x], math.channel(vector="square,value"))}


class PointOptions(Options):
    """One start and one target for all samples."""

    start: float = option(-0.3, units="length", description="x₀")
    target: float = option(2.0, units="length", description="y")


def _point(
    grid: Grid | None, parameters: NoOptions, options: PointOptions, rng: np.random.Generator, count: int
) -> dict[str, np.ndarray]:
    """x₀ with its powers, and y."""
    start = np.full(count, options.start)
    return {
        "initial.position": start,
        "initial.powers": np.stack([start**2, start], axis=-1),
        "target.position": np.full(count, options.target),
    }


def _check_sample(grid: Grid | None, parameters: NoOptions, sample: Mapping[str, np.ndarray]) -> str | None:
    """The controller sees the powers of the start."""
    if "initial.position" not in sample:
        return None
    x = float(sample["initial.position"])
    powers = np.asarray(sample.get("initial.powers", np.zeros(2)))
    if not np.allclose(powers, [x**2, x], rtol=1e-6):
        return f"initial.powers: expected x² and x of initial.position, [{x**2:g}, {x:g}], got {powers.tolist()}"
    return None


PLUGIN = PDEPlugin(
    name="polynomial_toy",
    summary="a number moved by feedback of its powers; the smallest closed loop with exploding gradients",
    equation="x' = x + c",
    parameters=NoOptions,
    fields=lambda parameters, grid: (
        FieldSpec("powers", "x² and x, which the controller sees", components=("square", "value"), on_grid=False),
        FieldSpec("position", "x", on_grid=False),
    ),
    build=lambda grid, parameters: PolynomialToy(),
    dimensions=(),
    boundaries=frozenset(),
    forces=(PUSH,),
    actions=lambda parameters, grid: (FieldSpec(PUSH, "c, added to x", on_grid=False),),
    samplers={"point": Sampler("one start and one target", _point, PointOptions)},
    check_sample=_check_sample,
    references=("Schnell, Thuerey: Stabilizing Backpropagation Through Time to Learn Complex Physics, ICLR 2024",),
)
