"""What a rollout and its networks do to gradients before anything is learned, on a batch at given parameters.

    |∂L/∂s_t|, t = 0 … T, and |∂L/∂c_t|, t = 0 … T−1     adjoints along the rollout, from zero offsets of both
    saturation                                           share of an activation whose slope is below SATURATED

The slope counts relative to the largest that the function has. Singular values are in `spectra`.
Schnell, Thuerey: Stabilizing Backpropagation Through Time to Learn Complex Physics, ICLR 2024, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import erf, expit

from toolkit.core import params as flat
from toolkit.core.architecture import INPUT, Activation, Architecture
from toolkit.core.errors import DivergenceError
from toolkit.training.problem import Batch, Natives, NetworkUse, Policy, Problem, batch_from_tree

SATURATED = 1e-3
BOUNDED = ("tanh", "sigmoid")
"""Activations that saturate on both sides, entry by entry; a unit of the others is dead where all entries are."""


@dataclass(frozen=True)
class StepGradients:
    """Root mean square over samples of the norms of ∂L/∂s_t, t = 0 … T, and ∂L/∂c_t, t = 0 … T−1."""

    state: np.ndarray
    control: np.ndarray | None
    """None where no force is unknown."""
    trajectory: bool = False
    """Whether the loss judges every state, so that adjoints add up over the steps."""

    @property
    def growth(self) -> float:
        """|∂L/∂s_0| / |∂L/∂s_T| per step: above 1 gradients explode backward in time, below they vanish.

        A fit of a line to the logarithms over all steps; NaN where the adjoint is zero at all or all but one.
        """
        at = np.flatnonzero(self.state > 0)
        if at.size < 2:
            return math.nan
        return float(np.exp(-np.polyfit(at, np.log(self.state[at]), 1)[0]))

    @property
    def total(self) -> float:
        """The growth over all steps."""
        return self.growth ** (len(self.state) - 1)


@dataclass(frozen=True)
class Saturation:
    """One activation of one network on the batch."""

    network: str
    layer: str
    kind: str
    share: float
    """Saturated entries (tanh, sigmoid) or units that are dead for the whole batch (the others), of all."""


# --- gradients per step -------------------------------------------------------------------------------------------


def step_gradients(problem: Problem, params: Natives, buffers: Natives, batch: Batch) -> StepGradients | None:
    """Norms of the adjoints along the rollout; None for a single step."""
    b, steps = problem.backend, problem.rollout.steps
    if steps == 1:
        return None
    problem.prepare(batch)
    forces = [control for control in problem.controls if control.key.startswith("force.")]

    def function(params: Any, buffers: Any, tree: Any) -> dict[str, Any]:
        batch = batch_from_tree(tree)
        x, _ = problem.predict(params, buffers, batch, training=False)
        samples = next(iter({**batch.context, **batch.targets, **x}.values())).shape[0]
        probes = {
            "state": {n: b.zeros((samples, steps + 1, *v.shape)) for n, v in problem.rollout.layouts.items()},
            "force": {c.key: b.zeros((samples, *c.layout.shape)) for c in forces},
        }

        def loss(probes: Any) -> tuple[Any, Any]:
            acting = {
                key: value + probes["force"][key] if key in probes["force"] else value for key, value in x.items()
            }
            policy = _shifted(problem.policy(params, buffers, batch.targets), probes["force"])
            simulated = problem.simulate(acting, batch.context, policy, record=problem.records, offsets=probes["state"])
            return b.xp.sum(problem.loss(problem.read(simulated, acting), batch.targets)), ()

        gradients = b.value_and_gradient(loss, probes)[2]
        squares = {kind: [_squares(b, value) for value in tree.values()] for kind, tree in gradients.items()}
        return {
            kind: b.xp.sqrt(b.xp.mean(sum(parts[1:], parts[0]), axis=0)) for kind, parts in squares.items() if parts
        }

    arguments = (dict(params), dict(buffers), batch.tree())
    norms = {kind: b.numpy(value) for kind, value in b.compile(function, *arguments)(*arguments).items()}
    if not all(np.all(np.isfinite(values)) for values in norms.values()):
        raise DivergenceError("the gradients per time step are not finite: lower time.dt or time.steps")
    return StepGradients(norms["state"], norms.get("force"), problem.records)


def _squares(backend: Any, gradient: Any) -> Any:
    """Sums of squares (B, T) of (B, T, …)."""
    return backend.xp.sum(backend.xp.reshape(gradient, (*gradient.shape[:2], -1)) ** 2, axis=2)


def _shifted(policy: Policy | None, offsets: Mapping[str, Any]) -> Policy | None:
    """A policy whose forces are shifted by offsets (B, T, …), by key."""
    if policy is None:
        return None

    def act(state: Natives, step: Any) -> dict[str, Any]:
        return {name: value + offsets[f"force.{name}"][:, step] for name, value in policy(state, step).items()}

    return act


# --- saturation ---------------------------------------------------------------------------------------------------


def saturation(problem: Problem, params: Natives, buffers: Natives, batch: Batch) -> tuple[Saturation, ...]:
    """Every activation of every network on what the networks see, in the order of evaluation."""
    met = activation_inputs(problem, params, buffers, batch)
    shares = {label: saturated_share(kind, problem.backend.numpy(met[label])) for label, kind in activations(problem)}
    return tuple(
        Saturation(network, layer, kind, shares[label])
        for label, kind in activations(problem)
        for network, _, layer in (label.partition("/"),)
    )


def activations(problem: Problem) -> list[tuple[str, str]]:
    """(`<network>/<layer>`, kind) of every activation, in the order of evaluation."""
    nodes = [(use.name, node) for use in problem.networks if use.architecture for node in use.architecture.nodes]
    return [(f"{name}/{node.name}", node.layer.kind) for name, node in nodes if isinstance(node.layer, Activation)]


def activation_inputs(problem: Problem, params: Natives, buffers: Natives, batch: Batch) -> dict[str, Any]:
    """z (B, units, *cells), native, by `<network>/<layer>`: what every activation is applied to."""
    seen = _inputs_seen(problem, params, buffers, batch)
    return {
        f"{use.name}/{node.name}": _before(problem, use, i, params, buffers, seen)
        for use in problem.networks
        for i, node in enumerate(use.architecture.nodes if use.architecture else ())
        if isinstance(node.layer, Activation)
    }


def saturated_share(kind: str, z: np.ndarray) -> float:
    """Of an activation at z (B, units, *cells): entries (tanh, sigmoid), or units dead everywhere (the others)."""
    count = SaturationCount(kind)
    count.add(z)
    return count.share


class SaturationCount:
    """`saturated_share` of one activation over batches that are met one after another."""

    def __init__(self, kind: str):
        self._kind = kind
        self._flat: Any = 0
        self._entries = 0

    def add(self, z: np.ndarray) -> None:
        """One more batch, z (B, units, *cells)."""
        flat_slopes = np.abs(slope(self._kind, z)) < SATURATED * (0.25 if self._kind == "sigmoid" else 1.0)
        self._flat = self._flat + flat_slopes.sum(axis=(0, *range(2, z.ndim)))
        self._entries += flat_slopes[:, 0].size

    @property
    def share(self) -> float:
        """Saturated entries, or dead units, of all so far."""
        shares = self._flat / self._entries
        return float(shares.mean() if self._kind in BOUNDED else (shares == 1.0).mean())


def slope(kind: str, z: np.ndarray) -> np.ndarray:
    """f′(z) of an activation."""
    match kind:
        case "tanh":
            return 1 - np.tanh(z) ** 2
        case "sigmoid":
            return expit(z) * expit(-z)
        case "relu":
            return (z > 0).astype(float)
        case "leaky_relu":
            return np.where(z > 0, 1.0, 0.01)
        case "elu":
            return np.exp(np.minimum(z, 0.0))
        case "silu":
            return expit(z) * (1 + z * expit(-z))
        case "gelu":
            return 0.5 * (1 + erf(z / math.sqrt(2))) + z * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    raise ValueError(f"the slope of activation {kind!r} is not known")


def _inputs_seen(problem: Problem, params: Natives, buffers: Natives, batch: Batch) -> dict[str, Any]:
    """What each network sees on the batch, all steps of a loop together."""
    seen: dict[str, Any] = {}

    def watched(use: NetworkUse) -> NetworkUse:
        def apply(params: Natives, buffers: Natives, x: Any, training: bool) -> Any:
            seen[use.name] = x
            return use.apply(params, buffers, x, training)

        return replace(use, apply=apply)

    observed = replace(problem, networks=tuple(watched(use) for use in problem.networks))

    def run() -> Any:
        x, _ = observed.predict(params, buffers, batch, training=False)
        policy = problem.policy(params, buffers, batch.targets)
        if policy is None:
            return {}
        trajectory = problem.simulate(x, batch.context, policy, record=True)
        met = problem.states_met(trajectory, x, batch.context)
        return observed.replay(params, buffers, batch.targets, met)

    problem.backend.without_gradient(run)
    return seen


def _before(
    problem: Problem, use: NetworkUse, index: int, params: Natives, buffers: Natives, seen: Mapping[str, Any]
) -> Any:
    """What node `index` of a network is applied to, native."""
    b, architecture = problem.backend, use.architecture
    assert architecture is not None
    name = architecture.nodes[index].inputs[0]
    if name == INPUT:
        return seen[use.name]
    last = next(i for i, node in enumerate(architecture.nodes) if node.name == name)
    part = Architecture(architecture.input_shape, architecture.nodes[: last + 1])
    kept = {node.name for node in part.nodes}
    own, statistics = (
        {key: value for key, value in flat.subtree(tree, use.name).items() if key.rpartition(".")[0] in kept}
        for tree in (params, buffers)
    )
    network = b.network(part)
    return b.without_gradient(lambda: network.apply(own, statistics, seen[use.name], False)[0])
