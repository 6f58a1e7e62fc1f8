"""The contract of a plugin as one call: `check_plugin("heat")` raises AssertionError with the sentence it breaks.

A third party's test is `toolkit.testing.check_plugin("my_pde")`. The name is looked up in all groups of entry points;
everything is checked on both backends in float64, on grids that are not square with cells that are not 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from toolkit.core import registry
from toolkit.core.architecture import Architecture
from toolkit.core.backend import NAMES, using
from toolkit.core.errors import MissingError
from toolkit.core.streams import stream
from toolkit.networks.initialise import initialise
from toolkit.networks.plugin import NetworkPlugin, NetworkShape
from toolkit.physics.grid import Grid
from toolkit.physics.plugin import InverseSolverPlugin, PDEPlugin, Sampler, SolverSetting
from toolkit.plugin_cases import (
    SAMPLES,
    TIMING,
    Case,
    case_of,
    close,
    compare,
    require,
    small_grid,
    usable_samplers,
)
from toolkit.runs import monitors
from toolkit.scenario.build import build
from toolkit.scenario.load import scenario_from_text
from toolkit.training.problem import Batch, Control, Problem
from toolkit.training.rules.base import UpdateRulePlugin


def check_plugin(name: str) -> None:
    """Check everything registered under this name; MissingError if nothing is."""
    checks: Mapping[str, tuple[type, Callable[[Any], None]]] = {
        "pdes": (PDEPlugin, check_pde),
        "networks": (NetworkPlugin, check_network),
        "update_rules": (UpdateRulePlugin, check_rule),
        "inverse_solvers": (InverseSolverPlugin, check_solver),
    }
    found = False
    for group, (kind, check) in checks.items():
        if name in registry.available(group):
            found = True
            check(registry.load(group, name, kind))
    if not found:
        known = sorted({n for group in checks for n in registry.available(group)})
        raise MissingError(f"no plugin {name!r} in any group{registry.suggestion(name, known)}")


# --- PDEs ---------------------------------------------------------------------------------------------------------


def check_pde(plugin: PDEPlugin) -> None:
    """Fields, samplers, steps, gradients, monitors and inverse solvers of a PDE."""
    require(bool(plugin.summary and plugin.equation), plugin.name, "has no summary or equation")
    for name, solver in plugin.inverse_solvers.items():
        require(solver.name == name, plugin.name, f"calls its solver {solver.name!r} {name!r}")
        require(
            plugin.name in (solver.inverts or ()),
            plugin.name,
            f"its solver {name!r} does not say it inverts it",
        )
    for dimension in plugin.dimensions or (0,):
        grid = small_grid(dimension)
        _check_names(plugin, grid)
        for sampler in usable_samplers(plugin, grid):
            results = {name: _on_backend(name, plugin, grid, sampler) for name in NAMES}
            compare(results, f"{plugin.name} in {dimension} dimensions")


def _check_names(plugin: PDEPlugin, grid: Grid | None) -> None:
    """Forces and sources act on fields or actions, and no name means both."""
    parameters = plugin.parameters(**plugin.example)
    fields = {spec.name for spec in plugin.fields(parameters, grid)}
    actions = {spec.name for spec in plugin.actions(parameters, grid)}
    require(not fields & actions, plugin.name, f"calls an action like a field: {sorted(fields & actions)}")
    accepting = {*plugin.forces, *plugin.sources}
    unknown, idle = sorted(accepting - fields - actions), sorted(actions - accepting)
    require(not unknown, plugin.name, f"accepts forces or sources on {unknown}, no fields or actions")
    require(not idle, plugin.name, f"has actions that are neither force nor source: {idle}")


def _on_backend(name: str, plugin: PDEPlugin, grid: Grid | None, sampler: Sampler | None) -> dict[str, np.ndarray]:
    """All checks on one backend; arrays that must agree with the other one."""
    with using(name, "cpu", "float64", "float64") as backend:
        case = case_of(backend, plugin, grid, sampler)
        _check_traced(case)
        result = {key: backend.numpy(value) for key, value in _check_step(case).items()}
        result["gradient"] = _check_gradient(case)
        _check_acting(case)
        for solver in plugin.inverse_solvers.values():
            _check_inverse(case, solver)
        return result


def _check_step(case: Case) -> dict[str, Any]:
    """A step keeps shapes and finiteness, samples do not mix, monitors stay below their limits."""
    problem, b = case.problem, case.problem.backend
    final = problem.simulate(case.x, {}).final
    for name, value in final.items():
        expected = (SAMPLES, *problem.rollout.layouts[name].shape)
        require(tuple(value.shape) == expected, case.name, f"step turns {name} into shape {tuple(value.shape)}")
        require(bool(np.isfinite(b.numpy(value)).all()), case.name, f"step makes {name} non-finite")
    alone = problem.simulate({key: value[1:2] for key, value in case.x.items()}, {}).final
    for name, value in alone.items():
        close(b.numpy(final[name])[1:2], b.numpy(value), case.name, f"samples of {name} influence each other")
    initial = problem.initial_state(case.x, {})
    measured = monitors.measure(problem, initial, final)
    monitors.check(problem, {key: float(value) for key, value in measured.items()}, case.name)
    return final


def _check_traced(case: Case) -> None:
    """A step that was traced once, at zero, is the step itself wherever it is used."""
    if not case.plugin.traceable:
        return
    problem, b = case.problem, case.problem.backend
    traced = replace(problem, rollout=replace(problem.rollout, _traced={}))
    try:
        traced.prepare(Batch(targets=case.x))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0][:200]
        require(False, case.name, f"its step cannot be traced ({reason}); set `traceable=False`")
    expected = problem.simulate(case.x, {}).final
    for name, value in traced.simulate(case.x, {}).final.items():
        close(b.numpy(expected[name]), b.numpy(value), case.name, f"the traced step gives another {name}")


def _check_gradient(case: Case) -> np.ndarray:
    """The gradient is finite, not zero, and equals a central difference along a random direction."""
    problem, b = case.problem, case.problem.backend
    target = problem.observe({key: 0.5 * value for key, value in case.x.items()}, {})

    def loss(x: Any) -> tuple[Any, Any]:
        return b.xp.sum(problem.loss(problem.observe(x, {}), target)), ()

    _, _, gradient = b.value_and_gradient(loss, case.x)
    flat = np.concatenate([b.numpy(gradient[key]).ravel() for key in case.x])  # JAX sorts the keys
    require(bool(np.isfinite(flat).all()), case.name, "the gradient of a step is not finite")
    require(bool(np.any(flat != 0)), case.name, "the gradient of a step is zero: it is not differentiable")
    rng, h = stream(2, "check"), 1e-5
    direction = {key: b.array(rng.standard_normal(tuple(value.shape)), "physics") for key, value in case.x.items()}
    ends = [loss({key: case.x[key] + sign * h * direction[key] for key in case.x})[0] for sign in (1, -1)]
    numeric = (float(ends[0]) - float(ends[1])) / (2 * h)
    exact = sum(float(b.xp.sum(gradient[key] * direction[key])) for key in case.x)
    # Central differences at h = 1e-5 are good to h² plus rounding over h, both about 1e-9 of the loss's scale.
    scale = abs(exact) + float(ends[0]) + 1e-12
    require(
        abs(numeric - exact) < 1e-5 * scale,
        case.name,
        f"the gradient is {exact:g}, differences give {numeric:g}",
    )
    return flat


def _check_acting(case: Case) -> None:
    """Every declared force, source and parameter changes the state, differentiably."""
    problem, b, plugin = case.problem, case.problem.backend, case.plugin
    rng, values = stream(3, "check"), {}
    for kind, names in (("force", plugin.forces), ("source", plugin.sources)):
        for name in names:
            shape = {**problem.rollout.layouts, **problem.rollout.action_layouts}[name].shape
            values[f"{kind}.{name}"] = rng.standard_normal((SAMPLES, *((1,) if kind == "force" else ()), *shape))
    for name in plugin.parameter_controls:
        values[f"parameter.{name}"] = np.full(SAMPLES, float(getattr(problem.parameters, name)))
    for key, value in values.items():

        def size(control: Any, key: str = key) -> tuple[Any, Any]:
            final = problem.simulate({**case.x, key: control[key]}, {}).final
            return sum(b.xp.sum(state**2) for state in final.values()), ()

        _, _, gradient = b.value_and_gradient(size, {key: b.array(value, "physics")})
        flat = b.numpy(gradient[key])
        require(bool(np.isfinite(flat).all()), case.name, f"the gradient of {key} is not finite")
        require(bool(np.any(flat != 0)), case.name, f"{key} does not act on a step")


def _sought(case: Case, solver: InverseSolverPlugin) -> tuple[tuple[Control, ...], dict[str, Any], dict[str, Any]]:
    """(controls that the solver finds, their true values, what else acts): forces of a step where it names some."""
    problem, rng = case.problem, stream(4, "check")
    forces = [f"force.{name}" for name in case.plugin.forces]
    named = [key for key in forces if solver.control is not None and solver.finds(key)]
    if not named:
        controls = tuple(c for c in problem.controls if solver.finds(c.key))
        x_true = {c.key: case.x[c.key] for c in controls}
        return controls, x_true, {key: value for key, value in case.x.items() if key not in x_true}
    layouts = {**problem.rollout.layouts, **problem.rollout.action_layouts}
    steps = {key: replace(layouts[key.partition(".")[2]], steps=1) for key in named}
    controls = tuple(Control(key, key, layout) for key, layout in steps.items())
    drawn = {key: rng.standard_normal((SAMPLES, *layout.shape)) for key, layout in steps.items()}
    return controls, {key: problem.backend.array(value, "physics") for key, value in drawn.items()}, dict(case.x)


def _refuses(case: Case, solver: InverseSolverPlugin, unknown: Iterable[str], rest: Iterable[str]) -> bool:
    """Whether the solver would refuse this case in a scenario."""
    problem, controls, losses = case.problem, frozenset(unknown), (("l2", 1.0),)
    acting = controls | frozenset(rest)
    setting = SolverSetting(problem.grid, problem.parameters, solver.options(), TIMING, acting, losses, controls)
    return solver.check(setting) is not None


def _check_inverse(case: Case, solver: InverseSolverPlugin) -> None:
    """From half the solution, an inverse of the observation at least halves the residual in one call; a solver that
    steps on the loss, perhaps with a limited length, lowers it within a tenth of its step."""
    if not all(solver.inverts_observation(key) for key in case.problem.observations):
        return
    problem, b = case.problem, case.problem.backend
    controls, x_true, rest = _sought(case, solver)
    if not controls or _refuses(case, solver, x_true, rest):
        return
    problem = Problem(**{**problem.__dict__, "controls": controls, "solver": (solver, solver.options())})
    y_target = problem.observe(x_true, rest)
    start = {key: 0.5 * value for key, value in x_true.items()}
    y = problem.observe(start, rest)
    found = b.without_gradient(lambda x: problem.invert(x, y, y_target, rest), start)
    inverts = solver.works_on == "observation"
    share = 1.0 if inverts else 0.1
    reached = {key: start[key] + share * (found[key] - start[key]) for key in start}
    before = b.numpy(problem.loss(y, y_target))
    after = b.numpy(problem.loss(problem.observe(reached, rest), y_target))
    lowered = after <= 0.5 * before if inverts else after < before
    require(bool(np.all(lowered)), case.name, f"{solver.name} leaves a residual of {after} of {before}")


# --- other groups -------------------------------------------------------------------------------------------------


def check_network(plugin: NetworkPlugin) -> None:
    """A network with default options gives the same output for the same weights on both backends."""
    for dimension in plugin.dimensions:
        shape, architecture = _smallest(plugin, dimension)
        cells = shape.cells
        weights, buffers = initialise(architecture, stream(0, "check"))
        x = stream(1, "check").standard_normal((2, 2, *cells))
        outputs = {}
        for name in NAMES:
            with using(name, "cpu", "float64", "float64") as b:
                natives = [{k: b.array(v, "network") for k, v in group.items()} for group in (weights, buffers)]
                y, _ = b.network(architecture).apply(*natives, b.array(x, "network"), False)
                outputs[name] = {"output": b.numpy(y)}
        expected = (2, 3) if plugin.gives_vector else (2, 3, *cells)
        require(outputs["jax"]["output"].shape == expected, plugin.name, "its output has the wrong shape")
        compare(outputs, f"{plugin.name} in {dimension} dimensions")


def _smallest(plugin: NetworkPlugin, dimension: int) -> tuple[NetworkShape, Architecture]:
    """A network on the smallest of some grids that it accepts: one that coarsens needs cells, one that is dense has
    weights for every pair of them."""
    for cells in ((4, 8, 4), (8, 16, 8)):
        shape = NetworkShape(inputs=2, outputs=3, cells=cells[:dimension], periodic=bool(dimension))
        try:
            return shape, plugin.build(plugin.options(), shape)
        except ValueError:
            continue
    shape = NetworkShape(inputs=2, outputs=3, cells=(16, 32, 16)[:dimension], periodic=bool(dimension))
    return shape, plugin.build(plugin.options(), shape)


def check_rule(plugin: UpdateRulePlugin) -> None:
    """A rule gives a finite direction with the parameters' names and shapes, the same on both backends."""
    solver = ", inverse_solver: gradient" if "inverse_solver" in plugin.needs else ""
    loop = "every_step" in plugin.needs
    acts_on, data, more = (
        ("force", "{type: rectangle_pairs, half_size: [0, 2], validation: 2}", "state, every_step: true")
        if loop
        else ("initial", "{type: cosine, validation: 2}", "target")
    )
    text = f"""
name: check
grid: {{cells: {{x: 8}}, extent: {{x: 20}}}}
pde: {{type: heat, diffusivity: 1.0}}
time: {{steps: {3 if loop else 1}}}
controls: {{u: {{acts_on: {acts_on}.temperature}}}}
data: {data}
networks: {{f: {{type: mlp, layers: [4], input: {more}, output: u}}}}
loss: {{type: l2, on: final.temperature}}
update: {{type: {plugin.name}{solver}, optimizer: {{type: sgd, learning_rate: 1.0}}}}
"""
    sections = scenario_from_text(text).sections
    results = {}
    for name in NAMES:
        with using(name, "cpu", "float64", "float64") as backend:
            built = build(sections, backend, lambda path: {})
            assert built.trainer is not None
            assert built.validation is not None
            update = built.trainer.rule(built.problem, built.params, built.buffers, built.validation)
            require(set(update.direction) == set(built.params), plugin.name, "its direction lacks parameters")
            results[name] = {key: backend.numpy(value) for key, value in update.direction.items()}
            for key, value in results[name].items():
                require(
                    value.shape == tuple(built.params[key].shape),
                    plugin.name,
                    f"direction {key} has a wrong shape",
                )
                require(bool(np.isfinite(value).all()), plugin.name, f"direction {key} is not finite")
    compare(results, plugin.name)


def check_solver(plugin: InverseSolverPlugin) -> None:
    """A solver lowers the residual of the PDEs it inverts, the same on both backends (any PDE: of the parabola)."""
    for name in plugin.inverts or ("parabola",):
        pde = registry.load("pdes", name, PDEPlugin)
        grid = small_grid(min(pde.dimensions, default=0))
        results = {}
        for backend_name in NAMES:
            with using(backend_name, "cpu", "float64", "float64") as b:
                case = case_of(b, pde, grid, usable_samplers(pde, grid)[0])
                results[backend_name] = _lowered(case, plugin)
        compare(results, f"{plugin.name} on {name}")


def _lowered(case: Case, plugin: InverseSolverPlugin) -> dict[str, np.ndarray]:
    controls, x_true, rest = _sought(case, plugin)
    if plugin.control is None:
        controls = controls[:1]
        x_true = {controls[0].key: x_true[controls[0].key]}
        rest = {key: value for key, value in case.x.items() if key not in x_true}
    problem = Problem(**{**case.problem.__dict__, "controls": controls, "solver": (plugin, plugin.options())})
    b = problem.backend
    y_target = problem.observe(x_true, rest)
    start = {key: 0.9 * value for key, value in x_true.items()}
    y = problem.observe(start, rest)
    found = b.without_gradient(lambda x: problem.invert(x, y, y_target, rest), start)
    # A tenth of the step: solvers in x promise a direction of descent, not that its whole length descends.
    near = {key: start[key] + 0.1 * (found[key] - start[key]) for key in start}
    before, after = (b.numpy(problem.loss(value, y_target)) for value in (y, problem.observe(near, rest)))
    require(bool(np.all(after < before)), plugin.name, f"does not descend: {before} becomes {after}")
    return {key: b.numpy(value) for key, value in found.items()}
