"""The contract of a plugin as one call: `check_plugin("heat")` raises AssertionError with the sentence it breaks.

A third party's test is `toolkit.testing.check_plugin("my_pde")`. The name is looked up in all groups of entry points;
everything is checked on both backends in float64, on grids that are not square with cells that are not 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toolkit.core import registry
from toolkit.core.backend import NAMES, Backend, using
from toolkit.core.errors import MissingError
from toolkit.core.streams import stream
from toolkit.networks.initialise import initialise
from toolkit.networks.plugin import NetworkPlugin, NetworkShape
from toolkit.physics.grid import Grid
from toolkit.physics.layout import Layout, field_layout
from toolkit.physics.losses import L2
from toolkit.physics.plugin import InverseSolverPlugin, PDEPlugin, Sampler, SolverSetting, Timing
from toolkit.physics.rollout import Rollout
from toolkit.physics.sampling import draw, objection
from toolkit.runs import monitors
from toolkit.scenario.build import build
from toolkit.scenario.load import scenario_from_text
from toolkit.training.problem import Batch, Control, LossTerm, Problem
from toolkit.training.rules.base import UpdateRulePlugin

SAMPLES = 3
DT = 0.05
TIMING = Timing(steps=1, dt=DT)
CELLS = {"x": 12, "y": 10, "z": 8}
EXTENT = {"x": 30.0, "y": 26.0, "z": 22.0}
PARITY = 1e-9
"""Largest relative difference between backends: float64 rounding over a few dozen operations, with room."""


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
    _require(bool(plugin.summary and plugin.equation), plugin.name, "has no summary or equation")
    for name, solver in plugin.inverse_solvers.items():
        _require(solver.name == name, plugin.name, f"calls its solver {solver.name!r} {name!r}")
        _require(
            plugin.name in (solver.inverts or ()),
            plugin.name,
            f"its solver {name!r} does not say it inverts it",
        )
    for dimension in plugin.dimensions or (0,):
        grid = _grid(dimension)
        _check_names(plugin, grid)
        for sampler in _usable_samplers(plugin, grid):
            results = {name: _on_backend(name, plugin, grid, sampler) for name in NAMES}
            _compare(results, f"{plugin.name} in {dimension} dimensions")


def _check_names(plugin: PDEPlugin, grid: Grid | None) -> None:
    """Forces and sources act on fields or actions, and no name means both."""
    parameters = plugin.parameters(**plugin.example)
    fields = {spec.name for spec in plugin.fields(parameters, grid)}
    actions = {spec.name for spec in plugin.actions(parameters, grid)}
    _require(not fields & actions, plugin.name, f"calls an action like a field: {sorted(fields & actions)}")
    accepting = {*plugin.forces, *plugin.sources}
    unknown, idle = sorted(accepting - fields - actions), sorted(actions - accepting)
    _require(not unknown, plugin.name, f"accepts forces or sources on {unknown}, no fields or actions")
    _require(not idle, plugin.name, f"has actions that are neither force nor source: {idle}")


def _grid(dimension: int) -> Grid | None:
    axes = list(CELLS)[:dimension]
    return Grid({a: CELLS[a] for a in axes}, {a: EXTENT[a] for a in axes}) if dimension else None


def _usable_samplers(plugin: PDEPlugin, grid: Grid | None) -> list[Sampler | None]:
    """Samplers whose default options fit the grid; [None] where the PDE has none."""
    parameters = plugin.parameters(**plugin.example)
    usable: list[Sampler | None] = []
    for sampler in plugin.samplers.values():
        required = any(f.is_required() for f in sampler.options.model_fields.values())
        if required or objection(sampler, grid, parameters, sampler.options(), TIMING) is not None:
            continue
        drawn = draw(sampler, grid, parameters, sampler.options(), TIMING, stream(0, "check"), 1)
        if any(key.startswith("initial.") for key in drawn):  # a sampler of targets alone starts no simulation
            usable.append(sampler)
    return usable or [None]


@dataclass(frozen=True)
class _Case:
    """A PDE on a grid with samples of it."""

    plugin: PDEPlugin
    problem: Problem
    x: dict[str, Any]
    """Native initial states and other controls, by key."""

    @property
    def name(self) -> str:
        return f"{self.plugin.name} on {self.problem.backend.name}"


def _case(backend: Backend, plugin: PDEPlugin, grid: Grid | None, sampler: Sampler | None) -> _Case:
    parameters = plugin.parameters(**plugin.example)
    specs = plugin.fields(parameters, grid)
    layouts = {spec.name: field_layout(spec, grid) for spec in specs}
    tunable = {name: Layout() for name in plugin.parameter_controls}
    actions = {spec.name: field_layout(spec, grid) for spec in plugin.actions(parameters, grid)}
    rollout = Rollout(backend, plugin.build(grid, parameters), layouts, tunable, 1, DT, actions)
    if sampler is None:
        rng = stream(0, "check")
        drawn = {f"initial.{n}": rng.uniform(0.5, 1.5, (SAMPLES, *layout.shape)) for n, layout in layouts.items()}
    else:
        drawn = dict(_draw(plugin, grid, parameters, sampler))
    x = {key: backend.array(value, "physics") for key, value in drawn.items() if key.startswith("initial.")}
    last = f"final.{specs[-1].name}"
    problem = Problem(
        backend=backend,
        plugin=plugin,
        parameters=parameters,
        grid=grid,
        rollout=rollout,
        controls=tuple(Control(key, key, layouts[key.partition(".")[2]]) for key in x),
        networks=(),
        terms=(LossTerm(last, L2),),
        observations={last: layouts[specs[-1].name]},
        monitors=plugin.monitors(parameters, grid),
    )
    return _Case(plugin, problem, x)


def _draw(plugin: PDEPlugin, grid: Grid | None, parameters: Any, sampler: Sampler) -> Mapping[str, np.ndarray]:
    options = sampler.options()
    first, second = (draw(sampler, grid, parameters, options, TIMING, stream(1, "check"), SAMPLES) for _ in range(2))
    specs = {spec.name: spec for spec in (*plugin.fields(parameters, grid), *plugin.actions(parameters, grid))}
    for key, value in first.items():
        _require(np.array_equal(value, second[key]), plugin.name, f"samples of {key} differ for one seed")
        _require(value.shape[0] == SAMPLES, plugin.name, f"samples of {key} do not lie along the first axis")
        role, _, name = key.partition(".")
        if role in ("initial", "force", "source") and name in specs:
            expected = field_layout(specs[name], grid, TIMING.steps if role == "force" else None).shape
            sentence = f"samples of {key} have the shape {value.shape[1:]}, expected {expected}"
            _require(value.shape[1:] == expected, plugin.name, sentence)
        _require(bool(np.isfinite(value).all()), plugin.name, f"samples of {key} are not finite")
    return first


def _on_backend(name: str, plugin: PDEPlugin, grid: Grid | None, sampler: Sampler | None) -> dict[str, np.ndarray]:
    """All checks on one backend; arrays that must agree with the other one."""
    with using(name, "cpu", "float64", "float64") as backend:
        case = _case(backend, plugin, grid, sampler)
        _check_traced(case)
        result = {key: backend.numpy(value) for key, value in _check_step(case).items()}
        result["gradient"] = _check_gradient(case)
        _check_acting(case)
        for solver in plugin.inverse_solvers.values():
            _check_inverse(case, solver)
        return result


def _check_step(case: _Case) -> dict[str, Any]:
    """A step keeps shapes and finiteness, samples do not mix, monitors stay below their limits."""
    problem, b = case.problem, case.problem.backend
    final = problem.simulate(case.x, {}).final
    for name, value in final.items():
        expected = (SAMPLES, *problem.rollout.layouts[name].shape)
        _require(tuple(value.shape) == expected, case.name, f"step turns {name} into shape {tuple(value.shape)}")
        _require(bool(np.isfinite(b.numpy(value)).all()), case.name, f"step makes {name} non-finite")
    alone = problem.simulate({key: value[1:2] for key, value in case.x.items()}, {}).final
    for name, value in alone.items():
        _close(b.numpy(final[name])[1:2], b.numpy(value), case.name, f"samples of {name} influence each other")
    initial = problem.initial_state(case.x, {})
    measured = monitors.measure(problem, initial, final)
    monitors.check(problem, {key: float(value) for key, value in measured.items()}, case.name)
    return final


def _check_traced(case: _Case) -> None:
    """A step that was traced once, at zero, is the step itself wherever it is used."""
    if not case.plugin.traceable:
        return
    problem, b = case.problem, case.problem.backend
    traced = replace(problem, rollout=replace(problem.rollout, _traced={}))
    try:
        traced.prepare(Batch(targets=case.x))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0][:200]
        _require(False, case.name, f"its step cannot be traced ({reason}); set `traceable=False`")
    expected = problem.simulate(case.x, {}).final
    for name, value in traced.simulate(case.x, {}).final.items():
        _close(b.numpy(expected[name]), b.numpy(value), case.name, f"the traced step gives another {name}")


def _check_gradient(case: _Case) -> np.ndarray:
    """The gradient is finite, not zero, and equals a central difference along a random direction."""
    problem, b = case.problem, case.problem.backend
    target = problem.observe({key: 0.5 * value for key, value in case.x.items()}, {})

    def loss(x: Any) -> tuple[Any, Any]:
        return b.xp.sum(problem.loss(problem.observe(x, {}), target)), ()

    _, _, gradient = b.value_and_gradient(loss, case.x)
    flat = np.concatenate([b.numpy(value).ravel() for value in gradient.values()])
    _require(bool(np.isfinite(flat).all()), case.name, "the gradient of a step is not finite")
    _require(bool(np.any(flat != 0)), case.name, "the gradient of a step is zero: it is not differentiable")
    rng, h = stream(2, "check"), 1e-5
    direction = {key: b.array(rng.standard_normal(tuple(value.shape)), "physics") for key, value in case.x.items()}
    ends = [loss({key: case.x[key] + sign * h * direction[key] for key in case.x})[0] for sign in (1, -1)]
    numeric = (float(ends[0]) - float(ends[1])) / (2 * h)
    exact = sum(float(b.xp.sum(gradient[key] * direction[key])) for key in case.x)
    # Central differences at h = 1e-5 are good to h² plus rounding over h, both about 1e-9 of the loss's scale.
    scale = abs(exact) + float(ends[0]) + 1e-12
    _require(
        abs(numeric - exact) < 1e-5 * scale,
        case.name,
        f"the gradient is {exact:g}, differences give {numeric:g}",
    )
    return flat


def _check_acting(case: _Case) -> None:
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
        _require(bool(np.isfinite(flat).all()), case.name, f"the gradient of {key} is not finite")
        _require(bool(np.any(flat != 0)), case.name, f"{key} does not act on a step")


def _sought(case: _Case, solver: InverseSolverPlugin) -> tuple[tuple[Control, ...], dict[str, Any], dict[str, Any]]:
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


def _refuses(case: _Case, solver: InverseSolverPlugin, acting: set[str]) -> bool:
    """Whether the solver would refuse this case in a scenario."""
    problem, losses = case.problem, (("l2", 1.0),)
    setting = SolverSetting(problem.grid, problem.parameters, solver.options(), TIMING, frozenset(acting), losses)
    return solver.check(setting) is not None


def _check_inverse(case: _Case, solver: InverseSolverPlugin) -> None:
    """From half the solution, an inverse of the observation at least halves the residual in one call; a solver that
    steps on the loss, perhaps with a limited length, lowers it within a tenth of its step."""
    if not all(solver.inverts_observation(key) for key in case.problem.observations):
        return
    problem, b = case.problem, case.problem.backend
    controls, x_true, rest = _sought(case, solver)
    if not controls or _refuses(case, solver, {*x_true, *rest}):
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
    _require(bool(np.all(lowered)), case.name, f"{solver.name} leaves a residual of {after} of {before}")


# --- other groups -------------------------------------------------------------------------------------------------


def check_network(plugin: NetworkPlugin) -> None:
    """A network with default options gives the same output for the same weights on both backends."""
    for dimension in plugin.dimensions:
        cells = (16, 32, 16)[:dimension]
        shape = NetworkShape(inputs=2, outputs=3, cells=cells, periodic=bool(dimension))
        architecture = plugin.build(plugin.options(), shape)
        weights, buffers = initialise(architecture, stream(0, "check"))
        x = stream(1, "check").standard_normal((2, 2, *cells))
        outputs = {}
        for name in NAMES:
            with using(name, "cpu", "float64", "float64") as b:
                natives = [{k: b.array(v, "network") for k, v in group.items()} for group in (weights, buffers)]
                y, _ = b.network(architecture).apply(*natives, b.array(x, "network"), False)
                outputs[name] = {"output": b.numpy(y)}
        _require(outputs["jax"]["output"].shape == (2, 3, *cells), plugin.name, "its output has the wrong shape")
        _compare(outputs, f"{plugin.name} in {dimension} dimensions")


def check_rule(plugin: UpdateRulePlugin) -> None:
    """A rule gives a finite direction with the parameters' names and shapes, the same on both backends."""
    solver = ", inverse_solver: gradient" if "inverse_solver" in plugin.needs else ""
    text = f"""
name: check
grid: {{cells: {{x: 8}}, extent: {{x: 20}}}}
pde: {{type: heat, diffusivity: 1.0}}
controls: {{u0: {{acts_on: initial.temperature}}}}
data: {{type: cosine, validation: 2}}
networks: {{f: {{type: mlp, layers: [4], input: target, output: u0}}}}
loss: l2
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
            _require(set(update.direction) == set(built.params), plugin.name, "its direction lacks parameters")
            results[name] = {key: backend.numpy(value) for key, value in update.direction.items()}
            for key, value in results[name].items():
                _require(
                    value.shape == tuple(built.params[key].shape),
                    plugin.name,
                    f"direction {key} has a wrong shape",
                )
                _require(bool(np.isfinite(value).all()), plugin.name, f"direction {key} is not finite")
    _compare(results, plugin.name)


def check_solver(plugin: InverseSolverPlugin) -> None:
    """A solver lowers the residual of the PDEs it inverts, the same on both backends (any PDE: of the parabola)."""
    for name in plugin.inverts or ("parabola",):
        pde = registry.load("pdes", name, PDEPlugin)
        grid = _grid(min(pde.dimensions, default=0))
        results = {}
        for backend_name in NAMES:
            with using(backend_name, "cpu", "float64", "float64") as b:
                case = _case(b, pde, grid, _usable_samplers(pde, grid)[0])
                results[backend_name] = _lowered(case, plugin)
        _compare(results, f"{plugin.name} on {name}")


def _lowered(case: _Case, plugin: InverseSolverPlugin) -> dict[str, np.ndarray]:
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
    _require(bool(np.all(after < before)), plugin.name, f"does not descend: {before} becomes {after}")
    return {key: b.numpy(value) for key, value in found.items()}


def _compare(results: Mapping[str, Mapping[str, np.ndarray]], what: str) -> None:
    first, second = (results[name] for name in NAMES)
    for key in first:
        _close(first[key], second[key], what, f"{' and '.join(NAMES)} disagree on {key}")


def _close(a: np.ndarray, b: np.ndarray, what: str, sentence: str) -> None:
    scale = float(np.max(np.abs(a), initial=0.0)) or 1.0
    difference = float(np.max(np.abs(a - b), initial=0.0)) / scale
    _require(difference < PARITY, what, f"{sentence}: relative difference {difference:.2g}")


def _require(condition: bool, what: str, sentence: str) -> None:
    if not condition:
        raise AssertionError(f"{what}: {sentence}")
