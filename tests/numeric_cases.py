"""Small problems and helpers that the numerical tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from toolkit.core.backend import Backend
from toolkit.physics.inverse import tensors
from toolkit.physics.layout import Layout
from toolkit.physics.plugin import InverseProblem, InverseSolverPlugin
from toolkit.scenario.build import Built, build
from toolkit.scenario.load import scenario_from_text
from toolkit.training.problem import Batch, batch_from_tree

CONTROL, OBSERVATION = "initial.x", "final.y"


def no_file(path: Any) -> Any:
    """Stands in for reading a data file where none is declared."""
    raise AssertionError(f"nothing should read {path}")


def built(text: str, backend: Backend, **overrides: Any) -> Built:
    """The objects of a scenario given as YAML text; overrides as `update__step_size=0.5`."""
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    return build(scenario_from_text(text, keys).sections, backend, no_file)


def heat(
    *, network: str = "mlp, layers: [5], activation: tanh", update: str = "dp", cells: str = "{x: 8}", more: str = ""
) -> str:
    """A heat problem as YAML; a strength of the diffusion at which even the highest mode survives."""
    options = "" if "optimizer" in update else ", optimizer: {type: sgd, learning_rate: 0.1}"
    return f"""
name: case
grid: {{cells: {cells}, extent: {cells}}}
pde: {{type: heat, diffusivity: 0.05}}
controls: {{u0: {{acts_on: initial.temperature}}}}
data: {{type: hot_rectangles, half_size: [0, 2], validation: 3}}
networks: {{f: {{type: {network}, input: target, output: u0}}}}
loss: l2
update: {{type: {update}{options}}}
train: {{steps: 2, batch_size: 3}}
{more}
"""


def updated(case: Built, batch: Batch | None = None, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Direction, loss, x̃ and x of the case's rule on one batch, as NumPy arrays; compiled once on JAX."""
    assert case.trainer is not None
    batch = batch or case.validation
    assert batch is not None
    params, rule, b = params or case.params, case.trainer.rule, case.problem.backend

    def function(params: Any, buffers: Any, tree: Any) -> Any:
        update = rule(case.problem, params, buffers, batch_from_tree(tree))
        return {
            "direction": dict(update.direction),
            "loss": {"": update.loss},
            "frozen": dict(update.frozen),
            "controls": dict(update.controls),
            "buffers": dict(update.buffers),
        }

    arguments = (params, case.buffers, batch.tree())
    result = b.compile(function, *arguments)(*arguments)
    return {kind: {name: b.numpy(value) for name, value in tree.items()} for kind, tree in result.items()}


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference relative to the largest entry of b."""
    return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))


def tree_relative(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    """`relative` over all entries of two trees at once."""
    assert set(a) == set(b)
    return relative(*(np.concatenate([tree[name].ravel() for name in sorted(a)]) for tree in (a, b)))


def inverse_problem(
    backend: Backend, observe: Callable[[Any], Any], n: int, m: int, scale: float = 1.0
) -> InverseProblem:
    """An inverse problem y = P(x), L = ½ scale |y − y*|² for P: (B, n) -> (B, m), without any PDE."""
    controls = {CONTROL: Layout(tuple(f"x{i}" for i in range(n)))}
    observations = {OBSERVATION: Layout(tuple(f"y{i}" for i in range(m)))}

    def loss(x: Any, targets: Any, context: Any) -> Any:
        return 0.5 * scale * backend.xp.sum((observe(x[CONTROL]) - targets[OBSERVATION]) ** 2, axis=1)

    return InverseProblem(
        backend=backend,
        pde=None,  # type: ignore[arg-type]
        grid=None,
        parameters=None,
        dt=1.0,
        steps=1,
        controls=controls,
        observations=observations,
        context={},
        observe=lambda x, context: {OBSERVATION: observe(x[CONTROL])},
        loss=loss,
    )


def solved(
    problem: InverseProblem, plugin: InverseSolverPlugin, x: np.ndarray, y_target: np.ndarray, **options: Any
) -> np.ndarray:
    """x̂ of a solver from x (B, n) towards y_target (B, m), compiled on JAX."""
    b = problem.backend
    solve = plugin.build(problem, plugin.options(**options))

    def function(x: Any, y_target: Any) -> Any:
        y = problem.observe({CONTROL: x}, {})
        found = solve(
            tensors({CONTROL: x}, problem.controls),
            tensors(y, problem.observations),
            tensors({OBSERVATION: y_target}, problem.observations),
        )
        return problem.controls[CONTROL].native(found[CONTROL], x.shape[0])

    arguments = (b.array(x, "physics"), b.array(y_target, "physics"))
    return b.numpy(b.compile(function, *arguments)(*arguments))
