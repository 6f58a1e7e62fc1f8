"""Screened diffusion by conjugate gradients: a PDE of the tests whose solve may stop before it has converged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from phiml import math

from toolkit import (
    FieldSpec,
    Grid,
    Monitor,
    Options,
    PDEPlugin,
    Sampler,
    linear_solution,
    linear_solve,
    option,
    relative_residual,
)

TOLERANCE = 1e-8
LIMIT = 10 * TOLERANCE


class ImplicitParameters(Options):
    iterations: int = option(200, ge=1, description="most iterations of the solve")


@dataclass(frozen=True)
class Implicit:
    """(1 − dt Δ) u' = u by conjugate gradients."""

    grid: Grid
    iterations: int
    monitored: bool = True

    def step(self, state: Any, inputs: Any, t: Any, dt: float) -> dict[str, Any]:
        @math.jit_compile_linear
        def operator(u: Any) -> Any:
            axes = zip(self.grid.axes, self.grid.dx, strict=True)
            return u - dt * sum(math.laplace(u, dx, self.grid.phi_boundary, axis) for axis, dx in axes)

        before = state["u"]
        solve = linear_solve(TOLERANCE, 0.0, self.iterations, self.monitored)
        after = linear_solution(operator, before, solve)
        left = relative_residual(operator(after), before)
        # What is below the tolerance is rounding, in which backends differ.
        failed = math.where(left > LIMIT, left, 0.0)
        return {"u": after, "residual": math.maximum(state["residual"], failed)}


def _noise(grid: Any, parameters: Any, options: Any, rng: Any, count: int) -> dict[str, np.ndarray]:
    return {"initial.u": rng.standard_normal((count, *grid.shape))}


PLUGIN = PDEPlugin(
    name="implicit",
    summary="implicit diffusion",
    equation="∂u/∂t = Δu",
    parameters=ImplicitParameters,
    fields=lambda parameters, grid: (
        # The checks of the contract differentiate the last field.
        FieldSpec("residual", "largest relative residual so far, 0 where all solves converged", on_grid=False),
        FieldSpec("u", "what diffuses"),
    ),
    build=lambda grid, parameters: Implicit(grid, parameters.iterations),
    dimensions=(1,),
    samplers={"noise": Sampler("noise", _noise)},
    monitors=lambda parameters, grid: (
        Monitor(
            "residual",
            "largest relative residual of the solve",
            lambda initial, current: current["residual"],
            LIMIT,
            "pde.iterations",
        ),
    ),
    traceable=False,
)
UNMONITORED = replace(
    PLUGIN,
    name="unmonitored",
    build=lambda grid, parameters: Implicit(grid, parameters.iterations, monitored=False),
    monitors=lambda parameters, grid: (),
)
TRACED = replace(PLUGIN, name="traced", traceable=True)
