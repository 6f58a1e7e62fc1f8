"""The exponential function as an inverse problem: y = eˣ, whose gradient vanishes where x is very negative.

    P(x) = eˣ,   L = ½(ŷ − y*)²,   ∂L/∂x = (ŷ − y*) ŷ,   ∂²L/∂x² = ŷ (2ŷ − y*)

Gradient descent learns only what is near x = 0. The Newton step (ŷ − y*)/(2ŷ − y*) has no scale: it tends to +1 for
ŷ ≪ y* and to −½ for ŷ ≫ y*, but it has a pole at ŷ = y*/2, so its length is limited. The map is one number per sample,
without time and grid.
Source: Holl, Koltun, Thuerey: Scale-invariant Learning by Physics Inversion, NeurIPS 2022, Fig. 2.
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
    InverseProblem,
    InverseSolver,
    InverseSolverPlugin,
    NoOptions,
    Options,
    PDEPlugin,
    Sampler,
    SolverSetting,
    State,
    option,
)


class ExponentialParameters(Options):
    """The map has no parameters."""


@dataclass(frozen=True)
class Exponential:
    """y = eˣ, written into the state beside x."""

    def step(self, state: State, inputs: Inputs, t: Any, dt: float) -> dict[str, Any]:
        return {"x": state["x"], "y": math.exp(state["x"])}


# --- inverse -----------------------------------------------------------------------------------------------------


class ClippedNewtonOptions(Options):
    """Options of the Newton step with limited length."""

    max_step: float = option(
        0.1, gt=0, description="largest |Δx|; cuts off the pole at y = y*/2, where plain Newton diverges"
    )


class SignOptions(Options):
    """Options of the step of fixed length."""

    length: float = option(1.0, gt=0, description="|Δx|")


def _clipped_newton(problem: InverseProblem, options: ClippedNewtonOptions) -> InverseSolver:
    """Δx = −sign(g) min(|g/h|, max_step) with g = ∂L/∂x, h = ∂²L/∂x² of the loss l2.

    g/h = (ŷ − y*)/(2ŷ − y*) is formed without the common factor ŷ, which underflows for very negative x.
    """

    def solve(x0: State, y0: State, y_target: State) -> dict[str, Any]:
        y, target = y0["final.y"], y_target["final.y"]
        error, curvature = y - target, 2 * y - target
        pole: Any = curvature == 0
        newton = abs(error / math.where(pole, 1.0, curvature))
        length = math.where(pole, options.max_step, math.minimum(newton, options.max_step))
        return {"initial.x": x0["initial.x"] - math.sign(error) * length}

    return solve


def _check_newton(setting: SolverSetting) -> str | None:
    """The closed form is that of ½(y − y*)²; a factor cancels."""
    others = sorted({kind for kind, _ in setting.losses if kind != "l2"})
    return f"has the derivatives of loss l2 only, not {', '.join(others)}; set loss: l2" if others else None


def _sign(problem: InverseProblem, options: SignOptions) -> InverseSolver:
    """Δx = length · sign(y_target − y0); eˣ is increasing, so this is the sign of x* − x."""

    def solve(x0: State, y0: State, y_target: State) -> dict[str, Any]:
        direction = math.sign(y_target["final.y"] - y0["final.y"])
        return {"initial.x": x0["initial.x"] + options.length * direction}

    return solve


def _logarithm(problem: InverseProblem, options: Any) -> InverseSolver:
    """x̂ = log y_target; x0 where y_target ≤ 0, which has no preimage."""

    def solve(x0: State, y0: State, y_target: State) -> dict[str, Any]:
        y, x = y_target["final.y"], x0["initial.x"]
        exists: Any = y > 0
        return {"initial.x": math.where(exists, math.log(math.where(exists, y, 1.0)), x)}

    return solve


def _solver(name: str, summary: str, build: Any, options: type[Options], works_on: str) -> InverseSolverPlugin:
    return InverseSolverPlugin(
        name=name,
        summary=summary,
        build=build,
        options=options,
        inverts=("exponential",),
        control="initial.x",
        observation="final.y",
        works_on=works_on,
        check=_check_newton if build is _clipped_newton else lambda setting: None,
        references=("Holl et al. 2022, Fig. 2",),
    )


SOLVERS = (
    _solver(
        "clipped_newton", "Newton step on the l2 loss, limited in length", _clipped_newton, ClippedNewtonOptions, "loss"
    ),
    _solver("sign", "a step of fixed length in the right direction", _sign, SignOptions, "loss"),
    _solver("logarithm", "the exact inverse", _logarithm, NoOptions, "observation"),
)


# --- data and metric ---------------------------------------------------------------------------------------------


class UniformOptions(Options):
    """Arguments without any structure."""

    interval: tuple[float, float] = option((-12.0, 0.0), description="range of x")


def _uniform(
    grid: Grid | None, parameters: Any, options: UniformOptions, rng: np.random.Generator, count: int
) -> dict[str, np.ndarray]:
    """x* uniform in the interval."""
    low, high = options.interval
    return {"initial.x": rng.uniform(low, high, count)}


def _check_uniform(grid: Grid | None, parameters: Any, options: UniformOptions) -> str | None:
    low, high = options.interval
    if low >= high:
        return f"data.interval: the first of [{low:g}, {high:g}] must be smaller than the second"
    return None


def _absolute_error(parameters: Any, controls: State, targets: State, references: State) -> Any:
    return abs(controls["initial.x"] - references["initial.x"])


PLUGIN = PDEPlugin(
    name="exponential",
    summary="y = exp(x), whose gradients vanish; find x",
    equation="y = eˣ",
    parameters=ExponentialParameters,
    fields=lambda parameters, grid: (
        FieldSpec("x", "argument of the exponential function", on_grid=False),
        FieldSpec("y", "value of the exponential function", on_grid=False),
    ),
    build=lambda grid, parameters: Exponential(),
    dimensions=(),
    boundaries=frozenset(),
    samplers={"uniform": Sampler("arguments uniform in an interval", _uniform, UniformOptions, _check_uniform)},
    inverse_solvers={solver.name: solver for solver in SOLVERS},
    control_metrics=(
        ControlMetric("absolute_error", "absolute error of the predicted x", _absolute_error, needs_reference=True),
    ),
    references=("Holl et al. 2022, Fig. 2",),
)
