r"""A regression with two outputs of which the physics scales one down: does an optimiser see the small direction?

    y = (x₁, λ x₂),     x = network(s),     y* = (sin 6s, cos 9s),     s in [−1, 1]

λ stands in the physics and the loss ½ Σ (y − y*)² is the plain one, so the Jacobian of y in the network's parameters
has one block of order 1 and one of order λ. Rules that invert it, wholly or half, see the difference; plain gradients
fit y₁ and leave y₂ near 0, at a loss of ½ ⟨cos² 9s⟩ = ¼ (1 + sin 18 / 18) = 0.2396. (With λ in the loss instead, the
Jacobian would know nothing of it.)

There is no time and no grid: one step maps x to y. The data give s as the start of the field `place`, which the network
sees (`input: initial.place`).
Source: Thuerey et al., Physics-based Deep Learning, chapter "Half-Inverse Gradients" (λ = 1 and 0.01).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from phiml import math

from toolkit import FieldSpec, Grid, Inputs, Options, PDEPlugin, Sampler, State, option

FREQUENCIES = (6.0, 9.0)


class ToyRegressionParameters(Options):
    """The conditioning of the map."""

    scale: float = option(0.01, gt=0, description="λ, factor of the second output")


@dataclass(frozen=True)
class ToyRegression:
    """y = (x₁, λ x₂), written into the state beside x and s."""

    scale: float

    def step(self, state: State, inputs: Inputs, t: Any, dt: float) -> dict[str, Any]:
        x = state["x"]
        y = [x.vector["x1"], self.scale * x.vector["x2"]]
        return {"place": state["place"], "x": x, "y": math.stack(y, math.channel(vector="y1,y2"))}


class PlacesOptions(Options):
    """Where the functions are sampled."""

    spacing: Literal["random", "even"] = option(
        "random", description="random: uniform in [−1, 1]; even: from −1 to 1 with equal distances"
    )


def _places(
    grid: Grid | None,
    parameters: ToyRegressionParameters,
    options: PlacesOptions,
    rng: np.random.Generator,
    count: int,
) -> dict[str, np.ndarray]:
    """s, x* = (sin 6s, cos 9s / λ) and y* = (sin 6s, cos 9s)."""
    s = rng.uniform(-1, 1, count) if options.spacing == "random" else np.linspace(-1, 1, count)
    first, second = np.sin(FREQUENCIES[0] * s), np.cos(FREQUENCIES[1] * s)
    return {
        "initial.place": s,
        "initial.x": np.stack([first, second / parameters.scale], axis=-1),
        "target.y": np.stack([first, second], axis=-1),
    }


PLUGIN = PDEPlugin(
    name="toy_regression",
    summary="regression of two functions through a badly scaled map; a toy of conditioning",
    equation="y = (x₁, λ x₂), y* = (sin 6s, cos 9s)",
    parameters=ToyRegressionParameters,
    fields=lambda parameters, grid: (
        FieldSpec("place", "place s of the sample", on_grid=False),
        FieldSpec("x", "output of the network", components=("x1", "x2"), on_grid=False),
        FieldSpec("y", "output after the map", components=("y1", "y2"), on_grid=False),
    ),
    build=lambda grid, parameters: ToyRegression(parameters.scale),
    dimensions=(),
    boundaries=frozenset(),
    samplers={"places": Sampler("places with the values of both functions", _places, PlacesOptions)},
    references=("Thuerey et al., Physics-based Deep Learning, chapter Half-Inverse Gradients",),
)
