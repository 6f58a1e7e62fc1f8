"""Scenarios whose mini-batch Jacobians the tests take, and the plain way to them: one backward pass per row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from iterative_pde import UNMONITORED
from numeric_cases import Case, built
from phiml import math

from toolkit import FieldSpec, Grid, Sampler, linear_solution, linear_solve
from toolkit.core.backend import Backend, using
from toolkit.core.params import flatten as flat_view
from toolkit.core.params import unflatten
from toolkit.physics.inverse import flatten
from toolkit.physics.inverse import unflatten as unflatten_controls

TAIL = """
update: {type: hig, optimizer: {type: sgd, learning_rate: 0.1}}
train: {steps: 2, batch_size: 3}
"""
CHAIN = (
    """
name: case
pde: {type: oscillators, cubic_coupling: 1.0}
time: {steps: 6, dt: 0.2}
data: {type: uniform, validation: 3}
loss: {type: l2, on: final.state}
"""
    + TAIL
)
HEAT = (
    """
name: case
grid: {cells: {x: 6}, extent: {x: 6}}
pde: {type: heat, diffusivity: 0.05}
data: {type: hot_rectangles, half_size: [0, 2], validation: 3}
loss: {type: l2, on: final.temperature}
"""
    + TAIL
)
SOLVE = (
    """
name: case
grid: {cells: {x: 6}, extent: {x: 3}}
pde: screened
time: {steps: 2, dt: 0.1}
data: {type: pairs, validation: 3}
loss: {type: l2, on: final.u}
controls: {u0: {acts_on: initial.u}}
networks: {f: {type: mlp, layers: [3], activation: tanh, output: u0}}
"""
    + TAIL
)
SOLVE_IN_LOOP = (
    """
name: case
grid: {cells: {x: 4}, extent: {x: 2}}
pde: screened
time: {steps: 3, dt: 0.2}
data: {type: starts, validation: 3}
loss: {type: l2, on: final.u}
controls: {push: {acts_on: force.u}}
networks: {f: {type: mlp, layers: [3], activation: tanh, every_step: true, input: [state, target], output: push}}
"""
    + TAIL
)
WELL = (
    """
name: case
grid: {cells: {x: 4}, extent: {x: 1.6}, boundary: zero}
pde: schroedinger
time: {steps: 5, dt: 0.2}
data: {type: superposition, validation: 3}
loss: {type: fidelity, on: final.psi}
controls: {field: {acts_on: force.dipole}}
networks: {f: {type: mlp, layers: [3], activation: tanh, output: field}}
"""
    + TAIL
)
PACKET = (
    """
name: case
grid: {cells: {x: 8}, extent: {x: 16}, boundary: zero}
pde: {type: wave_packet, omega: 0.8, width: 3.0}
data: {type: arrivals, region: [0.3, 0.7], noise: 0.1, validation: 3}
loss: {type: l2, on: final.signal}
"""
    + TAIL
)


def network(layers: str = "[4]", more: str = "", kind: str = "mlp", output: str = "drive") -> str:
    """A `networks` entry."""
    return f"{{type: {kind}, layers: {layers}, activation: tanh, output: {output}{more}}}"


DRIVE = "controls: {drive: {acts_on: force.drive}}\n"
TEMPERATURE = "controls: {u0: {acts_on: initial.temperature}}\n"
TEXTS: dict[str, str] = {
    "force per step": CHAIN + DRIVE + f"networks: {{f: {network('[4, 3]')}}}",
    "initial state, mean corrected": HEAT + TEMPERATURE + f"networks: {{f: {network(output='u0')}}}",
    "convolutions": HEAT + TEMPERATURE + f"networks: {{f: {network('[2]', kind='conv_net', output='u0')}}}",
    "network at every step": CHAIN
    + DRIVE
    + f"networks: {{f: {network(more=', every_step: true, input: [state, target]')}}}",
    "linear solve": SOLVE,
    "linear solve in the loop": SOLVE_IN_LOOP,
    "complex state": WELL,
    "two networks": CHAIN
    + "controls: {drive: {acts_on: force.drive}, start: {acts_on: initial.state}}\n"
    + f"networks: {{g: {network()}, f: {network('[3]', output='start')}}}",
    "one network in the loop, one not": CHAIN
    + "controls: {drive: {acts_on: force.drive}, start: {acts_on: initial.state}}\n"
    + f"networks: {{g: {network(more=', every_step: true, input: state')}, f: {network('[3]', output='start')}}}",
    "one number per sample": PACKET
    + "controls: {w: {acts_on: parameter.omega}}\n"
    + f"networks: {{f: {network(output='w')}}}",
}
DENSE = ["force per step", "initial state, mean corrected", "linear solve", "complex state", "two networks"]
"""Those whose Jacobian has factors."""
DENSE = [*DENSE, "one number per sample"]


@dataclass(frozen=True)
class Screened:
    """(1 − dt Δ) u' = u³ + dt f by conjugate gradients, which converge below what the tests tolerate."""

    grid: Grid

    def step(self, state: Any, inputs: Any, t: Any, dt: float) -> dict[str, Any]:
        @math.jit_compile_linear
        def operator(u: Any) -> Any:
            return u - dt * math.laplace(u, self.grid.dx[0], self.grid.phi_boundary)

        right = state["u"] ** 3 + dt * inputs.force.get("u", 0.0)
        return {"u": linear_solution(operator, right, linear_solve(1e-12, 1e-14, 200))}


def _pairs(grid: Any, parameters: Any, options: Any, rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    return {"target.u": rng.standard_normal((count, *grid.shape))}


def _starts(grid: Any, parameters: Any, options: Any, rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    return {f"{part}.u": rng.standard_normal((count, *grid.shape)) for part in ("initial", "target")}


SCREENED = replace(
    UNMONITORED,
    name="screened",
    fields=lambda parameters, grid: (FieldSpec("u", "what diffuses"),),
    build=lambda grid, parameters: Screened(grid),
    forces=("u",),
    samplers={"pairs": Sampler("targets alone", _pairs), "starts": Sampler("targets and where to begin", _starts)},
)


def outputs(case: Case, params: Any, batch: Any = None) -> Any:
    """y (B, d) of the plain problem."""
    problem, batch = case.problem, batch or case.validation
    x, _ = problem.predict(params, case.buffers, batch, training=True)
    policy = problem.policy(params, case.buffers, batch.targets)
    return flatten(problem.observe(x, batch.context, policy), problem.observations, problem.backend)


def scalar_of(case: Case) -> Callable[[Any, Any], Any]:
    """(θ flat, weights (B·d,)) -> (Σ weights · y, its gradient in θ), one program on JAX."""
    b = case.problem.backend

    def weighted(theta: Any, weights: Any) -> tuple[Any, Any]:
        def value(theta: Any) -> tuple[Any, Any]:
            y = outputs(case, unflatten(theta, case.params, b))
            return b.xp.sum(b.xp.reshape(y, (-1,)) * weights), ()

        found, _, gradient = b.value_and_gradient(value, theta)
        return found, gradient

    theta = flat_view(case.params, b)
    example = b.zeros(outputs(case, case.params).shape).reshape(-1)
    return b.compile(weighted, theta, example)


def row_by_row(case: Case) -> np.ndarray:
    """J (B·d, P), one backward pass per row."""
    b, weighted = case.problem.backend, scalar_of(case)
    theta, n = flat_view(case.params, b), int(np.prod(outputs(case, case.params).shape))
    return np.stack([b.numpy(weighted(theta, b.array(row))[1]) for row in np.eye(n)])


@cache
def reference(name: str, library: str = "torch") -> tuple[np.ndarray, np.ndarray]:
    """(J (B·d, P) one backward pass per row, ∂L/∂y (B·d,)) of a case."""
    with using(library, "cpu", "float64", "float64") as backend:
        case = case_named(name, backend)
        return row_by_row(case), gradient_in_y(case)


def gradient_in_y(case: Case) -> np.ndarray:
    """∂L/∂y (B·d,) of the summed loss."""
    b, layouts = case.problem.backend, case.problem.observations

    def summed(y: Any) -> tuple[Any, Any]:
        return b.xp.sum(case.problem.loss(unflatten_controls(y, layouts, b), case.validation.targets)), ()

    return b.numpy(b.value_and_gradient(summed, outputs(case, case.params))[2]).reshape(-1)


def case_named(name: str, backend: Backend, **overrides: Any) -> Case:
    """The case of TEXTS with parameters away from zero, biases too."""
    case = built(TEXTS[name], backend, **overrides)
    rng = np.random.default_rng(5)
    moved = {k: v + backend.array(0.2 * rng.standard_normal(v.shape), "network") for k, v in case.params.items()}
    return replace(case, params=moved)
