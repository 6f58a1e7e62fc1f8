"""Small problems and helpers that the numerical tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.core.backend import Backend
from toolkit.physics.inverse import tensors
from toolkit.physics.layout import Layout, field_layout
from toolkit.physics.plugin import InverseProblem, InverseSolverPlugin, PDEPlugin
from toolkit.physics.rollout import Rollout
from toolkit.scenario.build import build
from toolkit.scenario.load import scenario_from_text
from toolkit.scenario.sections import Sections
from toolkit.training.loop import Trainer
from toolkit.training.problem import Batch, Problem, batch_from_tree

CONTROL, OBSERVATION = "initial.x", "final.y"


def no_file(path: Any) -> Any:
    """Stands in for reading a data file where none is declared."""
    raise AssertionError(f"nothing should read {path}")


@dataclass(frozen=True)
class Case:
    """A scenario that learns, ready to run."""

    problem: Problem
    params: dict[str, Any]
    buffers: dict[str, Any]
    trainer: Trainer
    batches: Any
    validation: Batch


def case_of(sections: Sections, backend: Backend) -> Case:
    """The objects of a scenario's sections."""
    made = build(sections, backend, no_file)
    assert made.trainer is not None
    assert made.batches is not None
    assert made.validation is not None
    return Case(made.problem, made.params, made.buffers, made.trainer, made.batches, made.validation)


def built(text: str, backend: Backend, **overrides: Any) -> Case:
    """The objects of a scenario given as YAML text; overrides as `update__step_size=0.5`."""
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    return case_of(scenario_from_text(text, keys).sections, backend)


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


def updated(case: Case) -> dict[str, Any]:
    """Direction, loss, x̃ and x of the case's rule on its validation batch, as NumPy arrays; one program on JAX."""
    return updating(case)(case.params)


def updating(case: Case) -> Callable[[Any], dict[str, Any]]:
    """`updated` for any parameters, by one program on JAX."""
    rule, b = case.trainer.rule, case.problem.backend

    def function(params: Any, buffers: Any, tree: Any) -> Any:
        update = rule(case.problem, params, buffers, batch_from_tree(tree))
        return {
            "direction": dict(update.direction),
            "loss": {"": update.loss},
            "frozen": dict(update.frozen),
            "controls": dict(update.controls),
            "buffers": dict(update.buffers),
        }

    others = (case.buffers, case.validation.tree())
    program = b.compile(function, case.params, *others)

    def update(params: Any) -> dict[str, Any]:
        result = program(params, *others)
        return {kind: {name: b.numpy(value) for name, value in tree.items()} for kind, tree in result.items()}

    return update


def ode_rollout(backend: Backend, plugin: PDEPlugin, parameters: Any, steps: int, dt: float) -> Rollout:
    """Time steps of a PDE without a grid."""
    fields = {spec.name: field_layout(spec, None) for spec in plugin.fields(parameters, None)}
    actions = {spec.name: field_layout(spec, None) for spec in plugin.actions(parameters, None)}
    return Rollout(backend, plugin.build(None, parameters), fields, {}, steps, dt, actions)


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
        states={},
        trajectory=lambda x, context: {},
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
