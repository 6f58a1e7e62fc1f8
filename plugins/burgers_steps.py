r"""One semi-Lagrangian Burgers step undone: which force, and which state before it, lead to another state after it.

A step is v = u + dt (ν Δu + f), u'(x) = A(v)(x) = v(x − dt v(x)). For another target u' + δ

    v ← v + (u' + δ − A(v)) ∘ (x + dt v)            from the v that led to u', a fixed point where A(v) = u' + δ
    Δu = w Δv,    Δf = (Δv − Δu)/dt − ν ΔΔu,    w = W_i / (W_i + dt²),    W_i = W_0 + i dt²

so that the step, taken again, leads to the target as well as the fixed point converged. Few iterations leave out waves
of a few cells, which interpolation damps and an exact inverse would amplify in every step (a filter, as in Landweber's
method). The weight w leaves to earlier steps what they can do with equal effort; nothing at the first step, whose state
is given (W_0 = 0) unless it is a control. Contracts while dt |∂u/∂x| < 1. Own design: the published scale-invariant
training has no Burgers experiment.
"""

from __future__ import annotations

from typing import Any

from phiml import math

from plugins.burgers import Burgers, interpolate, laplacian
from toolkit import (
    Inputs,
    InverseProblem,
    InverseSolver,
    InverseSolverPlugin,
    Options,
    SolverSetting,
    State,
    invert_over_time,
    option,
)


class StepReversalOptions(Options):
    """Options of the reversal of single steps."""

    iterations: int = option(
        2,
        ge=1,
        description="fixed-point iterations per time step; more reach a single target better, but amplify waves of a "
        "few cells, which the interpolation damps, from step to step",
    )
    state_weight: float = option(
        1.0,
        gt=0,
        units="time²",
        description="where the initial velocity is a control too: how much cheaper its change is than a force",
    )


def _step_reversal(problem: InverseProblem, options: StepReversalOptions) -> InverseSolver:
    pde, dt = problem.pde, problem.dt
    assert isinstance(pde, Burgers)
    start = options.state_weight if "initial.velocity" in problem.controls else 0.0

    def advect(v: Any) -> Any:
        return interpolate(v, -dt / pde.dx * v)

    def invert_step(state: State, inputs: Inputs, after: State, target: State, step: Any) -> tuple[Any, Any]:
        viscosity = inputs.parameter.get("viscosity", pde.viscosity)
        acting = [group["velocity"] for group in (inputs.force, inputs.source) if "velocity" in group]
        u, goal = state["velocity"], target["velocity"]
        v0: Any = u + dt * (viscosity * laplacian(u, pde.dx) + sum(acting))
        v = v0
        for _ in range(options.iterations):
            v = v + interpolate(goal - advect(v), dt / pde.dx * v)
        # A sample whose characteristics cross has no preimage nearby: it keeps its force.
        before, left = (math.max(abs(goal - image), "x") for image in (after["velocity"], advect(v)))
        change: Any = math.where(left < before, v - v0, 0.0)
        reach = start + step * dt**2
        du = reach / (reach + dt**2) * change
        force = inputs.force["velocity"] + (change - du) / dt - viscosity * laplacian(du, pde.dx)
        return {"velocity": u + du}, {"velocity": force}

    return invert_over_time(problem, invert_step)


def _objection(setting: SolverSetting) -> str | None:
    if "force.velocity" not in setting.unknown:
        return "finds a force per step; give a control that acts on force.velocity, or use time_reversal"
    if setting.parameters.scheme != "semi_lagrangian":
        return (
            f"undoes pde.scheme semi_lagrangian, not {setting.parameters.scheme}; set pde.scheme: "
            "semi_lagrangian, or choose a generic solver such as gauss_newton"
        )
    return None


PLUGIN = InverseSolverPlugin(
    name="step_reversal",
    summary="forces of every step by undoing semi-Lagrangian steps one by one (own design)",
    build=_step_reversal,
    options=StepReversalOptions,
    inverts=("burgers",),
    control=("force.velocity", "initial.velocity"),
    observation=("final.velocity", "trajectory.velocity"),
    check=_objection,
)
