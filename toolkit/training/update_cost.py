"""What an update of a rule costs compared with one of `dp`, counted, and how long an update takes, timed.

One update of dp is a forward and a backward pass through networks and physics, the unit below. n controls, d outputs,
K iterations of a solver; a half-inversion also decomposes the Jacobian of the batch.

    supervised        1, less the backward pass of the physics
    sip               1       with a solver of the PDE (the inverse for the backward pass), or with `gradient`
                      1 + n   with Newton's method, for the Hessian
                      1 + K   with gauss_newton (J v and Jᵀ w per iteration), lbfgs; K with accumulated_gradient
    hig, gauss_newton, levenberg_marquardt
                      1 + d   pullbacks, and the decomposition; 1 + 2K products with Lanczos

Passes that run at once for all samples and outputs share their overhead, so counts are upper estimates on small
problems; decompositions take their multiplications at the rate of a matrix product on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.core.half_inverse_choice import HalfInversion
from toolkit.training.inversion_plan import JacobianSize, plan
from toolkit.training.loop import Trainer
from toolkit.training.problem import Batch
from toolkit.training.spectra import Sizes

TIMED = 8
"""Updates that are timed at most, after one that is not; the fastest counts, since others share the machine."""
SECONDS = 3.0


@dataclass(frozen=True)
class Cost:
    """Of one update."""

    ratio: float
    """To one update of dp."""
    reason: str
    """`timed`, or what was counted."""
    seconds: float | None = None
    """Where it was timed."""


def seconds_per_update(trainer: Trainer, params: Mapping[str, Any], buffers: Mapping[str, Any], batch: Batch) -> float:
    """Shortest duration of a few updates on one batch, compilation not counted."""
    state, taken = trainer.step(trainer.start(params, buffers), batch)[0], []
    while len(taken) < TIMED and sum(taken) < SECONDS:
        state, measured = trainer.step(state, batch)
        taken.append(measured["step_seconds"])
    return min(taken)


def multiplications_per_second(size: int = 512) -> float:
    """Rate of a float64 matrix product on this machine, best of three."""
    a = np.random.default_rng(0).standard_normal((size, size))
    best = min(_timed(a) for _ in range(3))
    return size**3 / best


def _timed(a: np.ndarray) -> float:
    start = time.perf_counter()
    np.matmul(a, a)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Setting:
    """What counts rest on."""

    sizes: Sizes
    samples: int
    """Batch size."""
    unit: float
    """Seconds of an update of dp."""
    rate: float
    """Multiplications per second."""


def count_cost(rule: str, solver: str | None, options: Any, setting: Setting) -> Cost | None:
    """The counted cost of a rule by name; `options` are those of its solver, or its own. None: nothing is known."""
    match rule:
        case "dp":
            return Cost(1.0, "the unit")
        case "supervised":
            return Cost(1.0, "at most: no backward pass through the physics")
        case "sip" if solver is not None:
            return _of_solver(solver, options, setting.sizes.controls)
        case "hig" | "gauss_newton" | "levenberg_marquardt":
            return _of_half_inversion(options, setting)
    return None


def _of_solver(name: str, options: Any, controls: int) -> Cost:
    iterations = int(getattr(options, "max_iterations", None) or getattr(options, "iterations", None) or 1)
    match name:
        case "newton" | "damped_newton":
            return Cost(1.0 + controls, f"a Hessian of {controls} columns and its eigenvectors per sample")
        case "gauss_newton":
            return Cost(1.0 + iterations, f"at most {iterations} products with J and Jᵀ")
        case "lbfgs":
            return Cost(1.0 + iterations, f"about {iterations} gradients of the physics, more for line searches")
        case "gradient":
            return Cost(1.0, "the gradient of the physics")
        case "accumulated_gradient":
            return Cost(float(iterations), f"{iterations} gradients of the physics")
    return Cost(1.0, "the inverse takes the place of the backward pass; more if it iterates")


def _of_half_inversion(options: Any, setting: Setting) -> Cost:
    """By the plan of the rule, without the factors of dense layers, which may make it cheaper."""
    size = setting.sizes
    jacobian = JacobianSize(
        samples=setting.samples,
        outputs=size.outputs,
        columns=size.parameters or size.controls,
        dtype="float64",
        controls=min(size.controls, size.outputs),
        direct=not size.parameters,
    )
    algorithm = "auto" if options.algorithm == "factored" else options.algorithm
    if isinstance(damping := getattr(options, "damping", None), float):
        inversion = HalfInversion(-1.0, 0.0, algorithm=algorithm, damping=damping)
    else:
        inversion = HalfInversion(options.exponent, options.truncation, options.truncation_mode, algorithm)
    met = plan(jacobian, inversion, False, int(options.memory * 2**30), "cpu")
    work = met.operations / (setting.rate * setting.unit)
    what = "per sample" if jacobian.direct else f"of {jacobian.rows} x {jacobian.columns}"
    return Cost(1 + met.sweeps + work, f"at most: {met.sweeps} sweeps, {met.algorithm} {what}")
