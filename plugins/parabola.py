"""The two-parameter toy of Physics-based Deep Learning: y = (x₀, x₁²), L = |y|².

Its two directions differ in scale and curvature, so gradient descent, Newton's method and the inverse of the map
take visibly different ways from (3, 3) to the minimum at 0. There is no time and no grid: one step maps x to y.
Source: Thuerey et al., Physics-based Deep Learning, chapter "Scale-Invariance and Inversion".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from phiml import math

from toolkit import (
    FieldSpec,
    Inputs,
    InverseProblem,
    InverseSolver,
    InverseSolverPlugin,
    Loss,
    LossPlugin,
    Options,
    PDEPlugin,
    State,
)

COMPONENTS = ("x0", "x1")


class ParabolaParameters(Options):
    """The map has no parameters."""


@dataclass(frozen=True)
class Parabola:
    """y = (x₀, x₁²), written into the state beside x."""

    def step(self, state: State, inputs: Inputs, t: Any, dt: float) -> dict[str, Any]:
        x = state["x"]
        x0, x1 = x.vector["x0"], x.vector["x1"]
        return {"x": x, "y": math.stack([x0, x1**2], math.channel(vector="x0,x1"))}


def _analytic(problem: InverseProblem, options: Any) -> InverseSolver:
    """x = (y₀, ±√y₁) with the sign of x₁ kept: the preimage closest to x0."""

    def solve(x0: State, y0: State, y_target: State) -> dict[str, Any]:
        y, x = y_target["final.y"], x0["initial.x"]
        root = math.sqrt(math.maximum(y.vector["x1"], 0.0))
        signed = math.where(x.vector["x1"] < 0, -root, root)
        return {"initial.x": math.stack([y.vector["x0"], signed], math.channel(vector="x0,x1"))}

    return solve


def _squared_norm() -> Loss:
    """L = Σ y²; its Hessian is 2I, so the Newton step is −y."""
    return Loss(
        value=lambda y, target: math.sum(y**2, y.shape.without("sample")),
        newton_step=lambda y, target: -y,
    )


PLUGIN = PDEPlugin(
    name="parabola",
    summary="toy map y = (x0, x1²) for direct optimisation",
    equation="y = (x₀, x₁²)",
    parameters=ParabolaParameters,
    fields=lambda parameters, grid: (
        FieldSpec("x", "argument of the map", components=COMPONENTS, on_grid=False),
        FieldSpec("y", "value of the map", components=COMPONENTS, on_grid=False),
    ),
    build=lambda grid, parameters: Parabola(),
    dimensions=(),
    boundaries=frozenset(),
    losses={
        "squared_norm": LossPlugin("sum of squares of y, Σy² per sample", lambda o: _squared_norm(), needs_target=False)
    },
    inverse_solvers={
        "analytic": InverseSolverPlugin(
            name="analytic",
            summary="exact inverse with the sign of x1 kept",
            build=_analytic,
            inverts=("parabola",),
            control="initial.x",
            observation="final.y",
        )
    },
    references=("Thuerey et al., Physics-based Deep Learning",),
)
