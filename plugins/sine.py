r"""A sine of a badly scaled, rotated plane: two unknowns whose sensitivities differ by the factor ξ².

    h = M x,   M = diag(s/ξ, s·ξ) R(φ),   R(φ) = [[cos φ, −sin φ], [sin φ, cos φ]],   y = (sin h₁, h₂)

ξ sets the condition number (κ(∂y/∂x) = ξ² where cos h₁ = 1), φ how both unknowns mix, and the sine makes the inverse
multi-valued. This is the map of the published code, with s = 10, and of the published curves; the formula printed in
the paper has 1/ξ outside of the sine and s = 1: y = (sin(x̂₁)/ξ, ξ·x̂₂), x̂ = R x. There is no time and no grid.

Because h₁ and h₂ each depend on one of u = R x, the Hessian of L = ½|y − y*|² in x has the rows of R as eigenvectors:

    ∂L/∂x = Rᵀ g',  g' = D (e ∘ (cos h₁, 1)),     ∂²L/∂x² = Rᵀ diag(λ) R,  λ = D² a,     e = y − y*,
    D = (s/ξ, s·ξ),  a = (cos² h₁ − e₁ sin h₁, 1)

Source: Holl, Koltun, Thuerey: Scale-invariant Learning by Physics Inversion, NeurIPS 2022, Fig. 5.
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
    ScenarioError,
    SolverSetting,
    State,
    option,
)

X, Y = ("x0", "x1"), ("y0", "y1")
PERIOD = 2 * np.pi


class SineParameters(Options):
    """Parameters of the map."""

    xi: float = option(gt=0, description="ξ; the condition number of the Jacobian at the origin is ξ²")
    phi: float = option(0.0, units="degrees", description="φ, angle by which x is rotated before it is scaled")
    scale: float = option(10.0, gt=0, description="s, common factor of both sensitivities")


@dataclass(frozen=True)
class Frame:
    """M = diag(D) R(φ): from x to h and back."""

    first: Any
    """s/ξ."""
    second: Any
    """s·ξ."""
    cos: Any
    sin: Any

    def forward(self, x: Any) -> tuple[Any, Any]:
        """(h₁, h₂) = M x."""
        u0, u1 = self.rotate(x)
        return self.first * u0, self.second * u1

    def rotate(self, x: Any) -> tuple[Any, Any]:
        """(u₀, u₁) = R x."""
        x0, x1 = x.vector[X[0]], x.vector[X[1]]
        return self.cos * x0 - self.sin * x1, self.sin * x0 + self.cos * x1

    def rotate_back(self, u0: Any, u1: Any) -> Any:
        """Rᵀ u."""
        return _vector(self.cos * u0 + self.sin * u1, self.cos * u1 - self.sin * u0, X)


def frame(parameters: SineParameters, controlled: State | None = None) -> Frame:
    """The frame of these parameters, some of them replaced by tensors where they are controls."""
    given = {**parameters.model_dump(), **(controlled or {})}
    angle = np.pi / 180 * given["phi"]
    # PhiML's functions of plain numbers have single precision.
    library = math if isinstance(angle, math.Tensor) else np
    scale, xi = given["scale"], given["xi"]
    return Frame(scale / xi, scale * xi, library.cos(angle), library.sin(angle))


def _vector(a: Any, b: Any, names: tuple[str, str]) -> Any:
    return math.stack([a, b], math.channel(vector=",".join(names)))


@dataclass(frozen=True)
class Sine:
    """y = (sin h₁, h₂), written into the state beside x."""

    parameters: SineParameters

    def step(self, state: State, inputs: Inputs, t: Any, dt: float) -> dict[str, Any]:
        h1, h2 = frame(self.parameters, inputs.parameter).forward(state["x"])
        return {"x": state["x"], "y": _vector(math.sin(h1), h2, Y)}


# --- inverse -----------------------------------------------------------------------------------------------------


def nearest_arcsine(y: Any, h: Any) -> Any:
    """The solution of sin h' = y closest to h, among arcsin y and π − arcsin y plus multiples of 2π.

    y beyond [−1, 1] has no solution and is clipped to it.
    """
    principal = math.arcsin(math.clip(y, -1.0, 1.0))
    candidates = [c + PERIOD * math.round((h - c) / PERIOD) for c in (principal, np.pi - principal)]
    return math.where(abs(candidates[0] - h) <= abs(candidates[1] - h), *candidates)


def _closest_preimage(problem: InverseProblem, options: Any) -> InverseSolver:
    """x̂ = M⁻¹(h') with h' the preimage of y_target closest to h = M x0."""
    known = frame(problem.parameters)

    def solve(x0: State, y0: State, y_target: State) -> dict[str, Any]:
        y = y_target["final.y"]
        h1, _ = known.forward(x0["initial.x"])
        u0 = nearest_arcsine(y.vector[Y[0]], h1) / known.first
        return {"initial.x": known.rotate_back(u0, y.vector[Y[1]] / known.second)}

    return solve


class AnalyticNewtonOptions(Options):
    """Options of the saddle-free Newton step in closed form."""

    max_loss_change: float | None = option(
        0.2,
        gt=0,
        units="loss",
        description="δ: limit of the first-order loss change along flat or negative curvature; null: none",
    )


def _length(g: Any, curvature: Any, mean: Any, limit: float | None) -> Any:
    """|g/λ|, at most |δ/g| unless λ exceeds the mean magnitude; 0 where the divisor is 0."""
    newton = abs(math.safe_div(g, curvature))
    if limit is None:
        return newton
    bounded = math.minimum(newton, abs(math.safe_div(math.ones_like(g) * limit, g)))
    return math.where(curvature > mean, newton, bounded)


def _analytic_newton(problem: InverseProblem, options: AnalyticNewtonOptions) -> InverseSolver:
    """x̂ = x0 + Rᵀ s, s_i = −sign(g'_i) min(|g'_i/λ_i|, ℓ_i): the step of `newton` for the loss l2."""
    known = frame(problem.parameters)

    def solve(x0: State, y0: State, y_target: State) -> dict[str, Any]:
        x, y = x0["initial.x"], y_target["final.y"]
        h1, h2 = known.forward(x)
        e1, e2 = math.sin(h1) - y.vector[Y[0]], h2 - y.vector[Y[1]]
        gradient = known.first * e1 * math.cos(h1), known.second * e2
        curvature = known.first**2 * (math.cos(h1) ** 2 - e1 * math.sin(h1)), math.ones_like(e2) * known.second**2
        mean = math.sqrt(abs(curvature[0])) * known.second
        steps = [
            -math.sign(g) * _length(g, c, mean, options.max_loss_change)
            for g, c in zip(gradient, curvature, strict=True)
        ]
        return {"initial.x": x + known.rotate_back(*steps)}

    return solve


def _check_newton(setting: SolverSetting) -> str | None:
    """The closed form is that of ½|y − y*|², and its step limit is a change of this loss."""
    others = sorted({kind for kind, _ in setting.losses if kind != "l2"})
    if others:
        return f"has the derivatives of loss l2 only, not {', '.join(others)}; set loss: l2"
    if setting.options.max_loss_change is not None and any(weight != 1 for _, weight in setting.losses):
        return "limits the change of the loss l2 itself; set loss.weight: 1 or max_loss_change: null"
    return None


# --- data and metric ---------------------------------------------------------------------------------------------


class UniformOptions(Options):
    """Targets without any structure."""

    reference: bool = option(
        True,
        description="give the principal preimage of y* (|h₁| ≤ π/2) as the true control; "
        "false: no control is known, as in the published experiment",
    )


def _uniform(
    grid: Grid | None, parameters: SineParameters, options: UniformOptions, rng: np.random.Generator, count: int
) -> dict[str, np.ndarray]:
    """y* ~ U(−1, 1)²."""
    y = rng.uniform(-1.0, 1.0, (count, 2))
    if not options.reference:
        return {"target.y": y}
    angle = np.deg2rad(parameters.phi)
    u0 = np.arcsin(y[:, 0]) * parameters.xi / parameters.scale
    u1 = y[:, 1] / (parameters.scale * parameters.xi)
    x = [np.cos(angle) * u0 + np.sin(angle) * u1, np.cos(angle) * u1 - np.sin(angle) * u0]
    return {"initial.x": np.stack(x, axis=1), "target.y": y}


def _x_distance(parameters: SineParameters, controls: State, targets: State, references: State) -> Any:
    """|x − x'| with x' the preimage of y* closest to x; rotations keep distances, so u = R x serves."""
    if "initial.x" not in controls or "final.y" not in targets:
        raise ScenarioError(
            "pde: sine measures the distance of initial.x to the closest preimage of final.y; expected a control with "
            "acts_on: initial.x and a loss with on: final.y"
        )
    known, y = frame(parameters), targets["final.y"]
    h1, h2 = known.forward(controls["initial.x"])
    along = (h1 - nearest_arcsine(y.vector[Y[0]], h1)) / known.first
    across = (h2 - y.vector[Y[1]]) / known.second
    return math.sqrt(along**2 + across**2)


PLUGIN = PDEPlugin(
    name="sine",
    summary="two unknowns of very different sensitivity under a sine; find the nearest of many preimages",
    equation="y = (sin h₁, h₂),  h = diag(s/ξ, s·ξ) R(φ) x",
    parameters=SineParameters,
    fields=lambda parameters, grid: (
        FieldSpec("x", "argument of the map", components=X, on_grid=False),
        FieldSpec("y", "value of the map", components=Y, on_grid=False),
    ),
    build=lambda grid, parameters: Sine(parameters),
    dimensions=(),
    boundaries=frozenset(),
    samplers={"uniform": Sampler("targets uniform in (−1, 1)²", _uniform, UniformOptions)},
    inverse_solvers={
        "analytic_newton": InverseSolverPlugin(
            name="analytic_newton",
            summary="saddle-free Newton step on the l2 loss with derivatives in closed form and a step limit",
            build=_analytic_newton,
            options=AnalyticNewtonOptions,
            inverts=("sine",),
            control="initial.x",
            observation="final.y",
            works_on="loss",
            check=_check_newton,
            references=("Holl et al. 2022, appendix",),
        ),
        "closest_preimage": InverseSolverPlugin(
            name="closest_preimage",
            summary="the exact preimage closest to the current x",
            build=_closest_preimage,
            options=NoOptions,
            inverts=("sine",),
            control="initial.x",
            observation="final.y",
        ),
    },
    control_metrics=(ControlMetric("x_distance", "distance to the closest preimage of the target", _x_distance),),
    example={"xi": 32.0, "phi": 45.0},
    references=("Holl et al. 2022, Fig. 5",),
)
