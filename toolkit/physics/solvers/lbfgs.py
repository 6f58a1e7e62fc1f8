"""L-BFGS as an inverse solver: minimise the loss from the prediction, per sample and batched.

    x̂ = argmin_x L(P(x), y*), started at x₀

Slow but general: it needs only the gradient of the physics. Samples that have converged stand still; one that does
not converge within `max_iterations` returns its best point, as in Holl et al. 2022 (fluid experiment, 16 iterations).
"""

from __future__ import annotations

from typing import Any

from toolkit.core.lbfgs import minimise
from toolkit.core.options import Options, option
from toolkit.physics.inverse import flat_value_and_gradient, from_flat, natives, to_flat
from toolkit.physics.plugin import InverseProblem, InverseSolver, InverseSolverPlugin, State


class LbfgsOptions(Options):
    """Options of the minimisation."""

    max_iterations: int = option(16, ge=1, description="iterations per call and sample")
    tolerance: float = option(1e-5, gt=0, units="loss / control", description="largest gradient component at the end")
    history: int = option(10, ge=1, description="pairs of steps and gradient differences kept")


def _build(problem: InverseProblem, options: LbfgsOptions) -> InverseSolver:
    b = problem.backend

    def solve(x0: State, y0: State, y_target: State) -> dict[str, Any]:
        evaluate = flat_value_and_gradient(problem, natives(y_target, problem.observations))
        found = minimise(
            evaluate,
            to_flat(problem, x0),
            options.max_iterations,
            options.tolerance,
            options.history,
            xp=b.xp,
            while_loop=b.while_loop,
        )
        return from_flat(problem, found.x)

    return solve


LBFGS = InverseSolverPlugin(
    name="lbfgs",
    summary="minimisation of the loss from the prediction by limited-memory BFGS",
    build=_build,
    options=LbfgsOptions,
    works_on="loss",
    references=("Holl et al. 2022, section 4 (fluid)",),
)
