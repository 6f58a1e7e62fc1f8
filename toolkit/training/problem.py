"""A learning problem: networks, controls, physics and loss joined into x = f(y*; θ), y = P(x), L(y, y*).

Everything here is a pure function of native arrays, so that one compiled program can hold a whole training step.
Controls are keyed by where they act (`initial.temperature`), observations by where they are read
(`final.temperature`), parameters by `<network>/<layer>.<parameter>` or `control/<name>`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toolkit.core.backend import Backend
from toolkit.core.params import subtree
from toolkit.physics.grid import Grid
from toolkit.physics.inverse import tensors
from toolkit.physics.layout import Layout, mixed
from toolkit.physics.plugin import InverseProblem, InverseSolverPlugin, Monitor, PDEPlugin, State
from toolkit.physics.rollout import FULL, Controls, GradientFlow, NamedPolicy, Policy, Rollout, Trajectory
from toolkit.training.channels import split, to_channels
from toolkit.training.parts import Control, LossTerm, NetworkUse

Natives = Mapping[str, Any]
CONTROL = "control"
"""Prefix of parameters that are controls themselves."""


@dataclass(frozen=True)
class Batch:
    """Samples of the problem as native arrays (sample, …) by key."""

    targets: Natives = field(default_factory=dict)
    """y* by observation."""
    references: Natives = field(default_factory=dict)
    """x* by control, where known; for metrics and supervised training only."""
    context: Natives = field(default_factory=dict)
    """Initial states and sources that are neither unknown nor target, by key."""

    def tree(self) -> dict[str, dict[str, Any]]:
        """As nested dicts, which every backend can compile over."""
        return {
            "targets": dict(self.targets),
            "references": dict(self.references),
            "context": dict(self.context),
        }


def batch_from_tree(tree: Mapping[str, Natives]) -> Batch:
    """The batch of `Batch.tree()`."""
    return Batch(tree["targets"], tree["references"], tree["context"])


@dataclass(frozen=True)
class Problem:
    """Everything fixed during a run; see the module's docstring for the keys."""

    backend: Backend
    plugin: PDEPlugin
    parameters: Any
    grid: Grid | None
    rollout: Rollout
    controls: tuple[Control, ...]
    networks: tuple[NetworkUse, ...]
    terms: tuple[LossTerm, ...]
    observations: Mapping[str, Layout]
    """Layout of every observation that a loss term reads."""
    solver: tuple[InverseSolverPlugin, Any] | None = None
    """The inverse solver and its options, for rules that need one."""
    monitors: tuple[Monitor, ...] = ()
    _traced: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def control_layouts(self) -> dict[str, Layout]:
        """Layouts by control key."""
        return {control.key: control.layout for control in self.controls}

    @property
    def target_keys(self) -> tuple[str, ...]:
        """The observations that are compared with a target, each once: what networks see."""
        return tuple(dict.fromkeys(term.key for term in self.terms if term.needs_target))

    @property
    def judged(self) -> dict[str, Layout]:
        """Layouts of what the physics gives and the loss looks at; a penalty on a control looks at the control."""
        return {k: v for k, v in self.observations.items() if k.startswith(("final.", "trajectory."))}

    @property
    def row_scales(self) -> np.ndarray | None:
        """√(w / largest w) of each scalar of the observations by the weights w of the loss; None where all are 1.

        Rules that invert ∂y/∂θ count outputs in these units: one that hardly counts in the loss hardly counts there.
        """
        weights = {key: sum(term.weight for term in self.terms if term.key == key) for key in self.observations}
        if len(set(weights.values())) < 2:
            return None
        rows = [np.full(layout.size, weights[key]) for key, layout in self.observations.items()]
        return np.sqrt(np.concatenate(rows) / max(weights.values()))

    # --- x = f(y*; θ) ---------------------------------------------------------------------------------------------

    def predict(
        self, params: Natives, buffers: Natives, batch: Batch, training: bool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(controls by key, buffers): from the networks that look at the target, or the parameters themselves."""
        b = self.backend
        x: dict[str, Any] = {}
        new_buffers = dict(buffers)
        for use in self.networks:
            if use.every_step:
                continue
            y = self.network_input(use, batch)
            out, after = use.apply(subtree(params, use.name), subtree(buffers, use.name), y, training)
            new_buffers.update({f"{use.name}/{name}": value for name, value in after.items()})
            layouts = {control.key: control.layout for control in use.controls}
            x.update(split(b, b.cast(out, "physics"), layouts, use.gives_vector or self._as_vector(use)))
        if x and self.plugin.correct_controls is not None:
            corrected = self.plugin.correct_controls(
                self.parameters,
                tensors(x, {key: self.control_layouts[key] for key in x}),
                tensors(batch.targets, {key: self.observations[key] for key in batch.targets}),
                frozenset({*batch.context, *(control.key for control in self.controls)} - set(x)),
            )
            samples = next(iter(x.values())).shape[0]
            x = {key: self.control_layouts[key].native(corrected[key], samples) for key in x}
        for control in self.controls:
            name = f"{CONTROL}/{control.name}"
            if name in params:
                x[control.key] = params[name]
        return x, new_buffers

    def network_input(self, use: NetworkUse, batch: Batch) -> Any:
        """What a network in open loop sees, (B, channels, *cells)."""
        return self._network_input(use, {**batch.context, **batch.targets})

    def network_inputs(self, batch: Batch) -> dict[str, Any]:
        """What each network in open loop sees, by name."""
        return {use.name: self.network_input(use, batch) for use in self.networks if not use.every_step}

    def _network_input(self, use: NetworkUse, targets: Natives, state: Natives | None = None, step: Any = 0) -> Any:
        """(B, channels, *cells) of what a network sees, in network precision; `step` is a number or (B,)."""
        b, parts, flat = self.backend, [], self._as_vector(use) and not use.gives_vector
        known = {**targets, **{f"state.{name}": value for name, value in (state or {}).items()}}
        for source in use.inputs:
            if source == "target":
                parts += [to_channels(b, targets[key], self.observations[key], flat) for key in self.target_keys]
            elif source == "state":
                fields = self.rollout.layouts.items()
                parts += [to_channels(b, known[f"state.{name}"], layout, flat) for name, layout in fields]
            elif source != "time":
                parts.append(to_channels(b, known[source], self.rollout.layouts[source.partition(".")[2]], flat))
        if "time" in use.inputs:
            like = b.xp.zeros_like(parts[0][:, :1])
            passed = b.cast(step, "physics") / self.rollout.steps
            parts.append(like + b.xp.reshape(passed, (-1,) + (1,) * (like.ndim - 1)))
        joined = parts[0] if len(parts) == 1 else b.xp.concatenate(parts, axis=1)
        return b.cast(joined, "network")

    def _as_vector(self, use: NetworkUse) -> bool:
        """Whether a network sees and gives one vector, because only a part of that lies on the grid."""
        sees = {
            "target": [self.observations[key] for key in self.target_keys],
            "state": list(self.rollout.layouts.values()),
            **{f"{kind}.{n}": [v] for kind in ("initial", "state") for n, v in self.rollout.layouts.items()},
        }
        layouts = [layout for source in use.inputs for layout in sees.get(source, ())]
        return mixed([*layouts, *(control.layout for control in use.controls)])

    @property
    def loop(self) -> tuple[NetworkUse, ...]:
        """The networks that are called at every step."""
        return tuple(use for use in self.networks if use.every_step)

    def policy(self, params: Natives, buffers: Natives, targets: Natives | None = None) -> Policy | None:
        """What the networks that are called at every step do, given the targets if they see them; None in open loop."""
        if not self.loop:
            return None

        def act(arrays: Any, state: Natives, step: Any) -> dict[str, Any]:
            params, buffers, targets = arrays
            forces = self._act(params, buffers, targets, state, step)
            return {key.partition(".")[2]: value for key, value in forces.items()}

        return NamedPolicy((params, buffers, targets or {}), act)

    def _act(self, params: Natives, buffers: Natives, targets: Natives, state: Natives, step: Any) -> dict[str, Any]:
        """Forces of one step by key, (B, …), from the networks in the loop."""
        b, forces = self.backend, {}
        for use in self.loop:
            x = self._network_input(use, targets, state, step)
            out, _ = use.apply(subtree(params, use.name), subtree(buffers, use.name), x, False)
            per_step = {c.key: Layout(c.layout.components, c.layout.cells) for c in use.controls}
            forces.update(split(b, b.cast(out, "physics"), per_step, use.gives_vector or self._as_vector(use)))
        return forces

    def replay(self, params: Natives, buffers: Natives, targets: Natives, met: Natives) -> dict[str, Any]:
        """Forces (B, T, …) by key that the networks in the loop give in states they met, s_0 … s_{T−1} (B, T, …).

        All steps are one large batch, and nothing but the networks is differentiated.
        """
        if not self.loop:
            return {}
        b, steps = self.backend, self.rollout.steps
        samples = next(iter(met.values())).shape[0]
        state = {name: b.xp.reshape(v, (samples * steps, *v.shape[2:])) for name, v in met.items()}
        which, when = np.divmod(np.arange(samples * steps), steps)
        repeated = {key: value[which] for key, value in targets.items()}
        forces = self._act(params, buffers, repeated, state, b.array(when))
        return {key: b.xp.reshape(v, (samples, steps, *v.shape[1:])) for key, v in forces.items()}

    def states_met(self, trajectory: Trajectory, x: Natives, context: Natives) -> dict[str, Any]:
        """s_0 … s_{T−1} (B, T, …) by field of a recorded trajectory."""
        return {name: value[:, :-1] for name, value in self._whole(trajectory, x, context).items()}

    def _whole(self, trajectory: Trajectory, x: Natives, context: Natives) -> dict[str, Any]:
        start = self.initial_state(x, context)
        join = self.backend.xp.concatenate
        return {name: join([start[name][:, None], value], axis=1) for name, value in trajectory.states.items()}

    # --- y = P(x) -------------------------------------------------------------------------------------------------

    def simulate(
        self,
        x: Natives,
        context: Natives,
        policy: Policy | None = None,
        flow: GradientFlow = FULL,
        record: bool = False,
        offsets: Natives | None = None,
    ) -> Trajectory:
        """Trajectory of the physics under controls x; states that nothing sets are zero (`offsets`: see `Rollout`)."""
        acting = {**context, **x}
        initial = self.initial_state(x, context)
        groups = {kind: _under(acting, kind) for kind in ("force", "source", "parameter")}
        return self.rollout(initial, Controls(**groups), policy, flow, record, offsets=offsets)

    def initial_state(self, x: Natives, context: Natives) -> dict[str, Any]:
        """The state at t = 0 by field: a control, given by the data, or zero."""
        acting = {**context, **x}
        samples = next(iter(acting.values())).shape[0]
        return {
            name: acting.get(f"initial.{name}", self.backend.zeros((samples, *layout.shape)))
            for name, layout in self.rollout.layouts.items()
        }

    def read(self, trajectory: Trajectory, x: Natives) -> dict[str, Any]:
        """The observations of a trajectory under controls x, by key; controls themselves may be judged."""
        result = {}
        for key in self.observations:
            kind, _, name = key.partition(".")
            if kind in ("final", "trajectory"):
                result[key] = trajectory.final[name] if kind == "final" else trajectory.states[name]
            else:
                result[key] = trajectory.forces[name] if kind == "force" and name in trajectory.forces else x[key]
        return result

    @property
    def records(self) -> bool:
        """Whether an observation needs all states."""
        return any(key.startswith("trajectory.") for key in self.observations)

    def observe(
        self, x: Natives, context: Natives, policy: Policy | None = None, flow: GradientFlow = FULL
    ) -> dict[str, Any]:
        """P: controls -> observations by key."""
        return self.read(self.simulate(x, context, policy, flow, self.records), x)

    def prepare(self, batch: Batch) -> None:
        """Trace the physics for batches of this shape where that pays (see `Rollout.prepare`)."""
        if not self.plugin.traceable:
            return
        samples = next((int(v.shape[0]) for g in batch.tree().values() for v in g.values()), 1)
        zeros = {c.key: self.backend.zeros((samples, *c.layout.shape)) for c in self.controls}
        acting = {**batch.context, **zeros}
        groups = {kind: _under(acting, kind) for kind in ("force", "source", "parameter")}
        self.rollout.prepare(self.initial_state(zeros, batch.context), Controls(**groups))

    # --- L(y, y*) -------------------------------------------------------------------------------------------------

    def loss(self, y: Natives, targets: Natives) -> Any:
        """L(y, y*) per sample, native (sample,); terms without a target judge y alone."""
        samples = next(iter(y.values())).shape[0]
        total = None
        for term in self.terms:
            layout = self.observations[term.key]
            target = _target(term, y, targets)
            value = term.weight * term.loss.value(layout.wrap(y[term.key]), layout.wrap(target))
            native = Layout().native(value, samples)
            total = native if total is None else total + native
        return total

    def control_metrics(self, x: Natives, batch: Batch) -> dict[str, Any]:
        """The plugin's metrics of these controls per sample, native (sample,), by name."""
        known = bool(x) and set(x) <= set(batch.references)
        metrics = [m for m in self.plugin.control_metrics if known or not m.needs_reference]
        if not x or not metrics:
            return {}
        samples = next(iter(x.values())).shape[0]
        layouts = {key: self.control_layouts[key] for key in x}
        controls = tensors(x, layouts)
        targets = tensors(batch.targets, {key: self.observations[key] for key in batch.targets})
        truth = tensors(batch.references, layouts) if known else {}
        return {m.name: Layout().native(m.measure(self.parameters, controls, targets, truth), samples) for m in metrics}

    def newton_target(self, y: Natives, targets: Natives, step_size: float) -> dict[str, Any]:
        """y + η Δy per observation, Δy the Newton step of the loss in y (its weight cancels)."""
        samples = next(iter(y.values())).shape[0]
        result = {}
        for term in self.terms:
            layout = self.observations[term.key]
            value, target = layout.wrap(y[term.key]), layout.wrap(_target(term, y, targets))
            if term.loss.newton_step is None:
                raise ValueError(f"the loss on {term.key} has no Newton step")
            result[term.key] = layout.native(value + step_size * term.loss.newton_step(value, target), samples)
        return result

    def inverse_problem(self, context: Natives) -> InverseProblem:
        """What an inverse solver may use, for one batch."""
        return InverseProblem(
            backend=self.backend,
            pde=self.rollout.pde,
            grid=self.grid,
            parameters=self.parameters,
            dt=self.rollout.dt,
            steps=self.rollout.steps,
            controls=self.control_layouts,
            observations=self.observations,
            context=context,
            observe=self.observe,
            loss=lambda x, targets, context: self.loss(self.observe(x, context), targets),
            states=self.rollout.layouts,
            trajectory=lambda x, context: self._whole(self.simulate(x, context, record=True), x, context),
            traced=self._trace,
        )

    def _trace(self, name: str, function: Callable[..., Any], *example: Any) -> Callable[..., Any]:
        """The function traced for arguments like these, once per name and shapes."""
        solver = self.solver and (self.solver[0].name, repr(self.solver[1]))
        key = (name, solver, tree_shapes(example))
        if self.plugin.traceable and key not in self._traced:
            self._traced[key] = self.backend.trace(function, *example)
        return self._traced.get(key, function)

    def invert(self, x: Natives, y: Natives, y_target: Natives, context: Natives) -> dict[str, Any]:
        """x̂ of the inverse solver near (x, y), as native arrays."""
        assert self.solver is not None
        plugin, options = self.solver
        solve = plugin.build(self.inverse_problem(context), options)
        layouts = self.control_layouts
        found: State = solve(tensors(x, layouts), tensors(y, self.observations), tensors(y_target, self.observations))
        samples = next(iter(x.values())).shape[0]
        return {key: layouts[key].native(found[key], samples) for key in x}


def _target(term: LossTerm, y: Natives, targets: Natives) -> Any:
    """The target of a term; y itself for a loss that looks at no target."""
    if term.needs_target and term.key not in targets:
        raise ValueError(f"the loss on {term.key} needs a target, the batch has none")
    return targets.get(term.key, y[term.key])


def tree_shapes(tree: Any) -> Any:
    """Shapes and types of a tree of arrays, hashable."""
    if isinstance(tree, Mapping):
        return tuple((name, tree_shapes(value)) for name, value in tree.items())
    if isinstance(tree, tuple):
        return tuple(tree_shapes(value) for value in tree)
    return (tuple(tree.shape), str(tree.dtype))


def _under(arrays: Natives, kind: str) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in arrays.items() if key.startswith(kind + ".")}
