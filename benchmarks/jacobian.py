"""Time of ∂y/∂θ for a mini-batch by every route, on both backends.

    OMP_NUM_THREADS=1 python benchmarks/jacobian.py

Case: explicit Burgers on 32 points, 16 steps, an MLP with 2192 parameters, batch 64: a Jacobian of 2048 × 2192 in
float32. Routes are timed in turn, best of several; `row by row` is what a loop over scalar losses costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from phiml import math

from toolkit import Grid, Inputs, NetworkShape, State
from toolkit.core.backend import Backend, using
from toolkit.core.jacobian import parameter_jacobian
from toolkit.core.params import count
from toolkit.networks.initialise import initialise
from toolkit.networks.mlp import PLUGIN as MLP
from toolkit.physics.layout import Layout
from toolkit.physics.rollout import Rollout

BATCH, POINTS, STEPS, REPEATS = 64, 32, 16, 7


@dataclass(frozen=True)
class Burgers:
    """u_t = −u u_x + ν u_xx by central differences and explicit Euler, periodic."""

    dx: float
    viscosity: float = 0.05

    def step(self, state: State, inputs: Inputs, t: Any, dt: float) -> dict[str, Any]:
        u = state["u"]
        left, right = math.shift(u, (-1, 1), dims="x", padding=math.extrapolation.PERIODIC, stack_dim=None)
        slope, curvature = (right - left) / (2 * self.dx), (right - 2 * u + left) / self.dx**2
        return {"u": u + dt * (self.viscosity * curvature - u * slope)}


def best(function: Callable[[], Any], backend: Backend, repeats: int = REPEATS) -> float:
    """Least time of a call in seconds, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        backend.synchronize(function())
        times.append(time.perf_counter() - start)
    return min(times[1:])


def measure(backend: Backend) -> None:
    """Print the table of one backend."""
    grid = Grid({"x": POINTS}, {"x": 8.0})
    rollout = Rollout(backend, Burgers(grid.dx[0]), {"u": Layout((), {"x": POINTS})}, {}, STEPS, 0.02)
    architecture = MLP.build(MLP.options(layers=[24, 24]), NetworkShape(POINTS, POINTS))
    weights, _ = initialise(architecture, np.random.default_rng(0))
    params = {name: backend.array(value, "network") for name, value in weights.items()}
    network = backend.network(architecture)
    targets = backend.array(np.random.default_rng(1).standard_normal((BATCH, POINTS)), "network")

    def control(theta: Any, y: Any) -> Any:
        return network.apply(theta, {}, y[None], False)[0][0]

    def physics(x: Any, context: Any) -> Any:
        return rollout({"u": x}).final["u"]

    def jacobian(mode: Any) -> Callable[[Any, Any], Any]:
        return lambda theta, y: parameter_jacobian(backend, control, physics, theta, y, None, mode)

    def row(theta: Any, y: Any) -> Any:
        def one(theta: Any) -> tuple[Any, Any]:
            return physics(network.apply(theta, {}, y, False)[0], None)[0, 0], ()

        return backend.value_and_gradient(one, theta)[2]

    rows = BATCH * POINTS
    print(f"{backend.name}: {rows} x {count(params)}")
    traced = (False, True) if backend.name == "torch" else (True,)
    for tracing in traced:
        if tracing:
            rollout.prepare({"u": targets})
        label = {("torch", False): "eager", ("torch", True): "traced"}.get((backend.name, tracing), "compiled")
        single = backend.compile(row, params, targets)
        once = best(lambda single=single: single(params, targets), backend, 3)
        print(f"  {label:9s} row by row (one row x {rows}) {1e3 * once * rows:10.1f} ms")
        for mode in ("forward", "reverse", "loop"):
            function = backend.compile(jacobian(mode), params, targets)
            seconds = best(lambda function=function: function(params, targets), backend)
            print(f"  {label:9s} product, {mode:8s}              {1e3 * seconds:10.1f} ms")
    print(f"  tracing and compiling all routes              {1e3 * backend.trace_seconds:10.1f} ms")


def main() -> None:
    for name in ("torch", "jax"):
        with using(name, "cpu", "float32", "float32") as backend:
            measure(backend)


if __name__ == "__main__":
    main()
