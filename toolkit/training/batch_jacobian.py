"""The Jacobian J = ∂y/∂θ of a whole mini-batch through networks and physics: itself, its factors, its products.

Rows are ordered by sample, then output: n = B·d. Sample i of y depends on sample i of the inputs alone, so every sample
gets its own copy of θ (a view) and d pullbacks serve the whole batch; a Jacobian of the whole batch at once would waste
a factor B. Where the physics takes fewer numbers than it gives, J = (∂y/∂x)(∂x/∂θ) needs fewer sweeps.

For networks of dense layers the pullbacks to the biases of the samples (the deltas D_l) and the layers' inputs a_l are
all of J, which is never formed (`factors`):

    J_l = D_l ⊗ [a_l, 1],     J Jᵀ = Σ_l (D_l D_lᵀ) ∘ ((A_l A_lᵀ + 1) ⊗ 1 1ᵀ),     Jᵀq = (Σ_k q_k D_lk)ᵀ [A_l, 1]

`linearized` gives v -> J Jᵀ v and q -> Jᵀ q for what fits in no other way. All of them give y as well, so that one
forward pass serves the loss and the Jacobian.

y stands for anything computed from θ, batch by batch: observations of the physics, or the controls themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolkit.core import params as flat
from toolkit.core.architecture import Activation, Architecture, Dense, Reshape
from toolkit.core.jacobian import control_jacobian
from toolkit.training.problem import CONTROL, NetworkUse, Problem

Natives = Mapping[str, Any]


@dataclass(frozen=True)
class BatchMap:
    """y = outer(inner(θ)) of one batch, in flat arrays (B, n_x) and (B, d)."""

    problem: Problem
    inner: Callable[[Problem, Natives], Any]
    """(problem, θ) -> x (B, n_x); called with problems whose networks take a θ per sample, too."""
    outer: Callable[[Any], Any] | None = None
    """x (B, n_x) -> y (B, d); None: y = x."""
    narrow: bool = False
    """Whether n_x < d."""
    outer_rows: Callable[[Any], tuple[Any, Any]] | None = None
    """x -> (y, ∂y/∂x (B, d, n_x)) where that has a faster way than pullbacks through `outer`."""

    def __call__(self, params: Natives) -> Any:
        """y (B, d)."""
        return self._evaluate(self.problem, params)

    def _evaluate(self, problem: Problem, params: Natives) -> Any:
        x = self.inner(problem, params)
        return x if self.outer is None else self.outer(x)

    def rows(self, function: Callable[[Any], tuple[Problem, Natives]], at: Any) -> tuple[Any, Any]:
        """(y, ∂y/∂e (B, d, m)) for e (B, m) with (problem, θ) = function(e), samples independent."""
        b, mapped = self.problem.backend, self.problem.plugin.traceable
        if self.outer_rows is not None:
            y, outer = self.outer_rows(b.without_gradient(lambda e: self.inner(*function(e)), at))

            def weighted(e: Any) -> Any:
                x = b.cast(self.inner(*function(e)), "physics")
                return b.xp.matmul(outer, x[:, :, None])[:, :, 0]

            return y, b.xp.moveaxis(b.value_and_pullbacks(weighted, at, True)[1], 0, 1)
        if self.outer is not None and self.narrow:
            x, inner = b.value_and_pullbacks(lambda e: self.inner(*function(e)), at, True)
            x = b.stop_gradient(x)
            outer = control_jacobian(b, self.outer, x, "forward" if mapped else "loop")
            rows = b.xp.matmul(outer, b.cast(b.xp.moveaxis(inner, 0, 1), "physics"))
            return b.without_gradient(self.outer, x), rows
        y, pulled = b.value_and_pullbacks(lambda e: self._evaluate(*function(e)), at, mapped)
        return y, b.xp.moveaxis(pulled, 0, 1)


def jacobian(batch_map: BatchMap, params: Natives, samples: int) -> tuple[Any, Any]:
    """(y (B, d), J (B·d, P)) in the order of the flat view of θ."""
    b, problem = batch_map.problem.backend, per_sample(batch_map.problem)
    copies = {name: b.xp.broadcast_to(value[None], (samples, *value.shape)) for name, value in params.items()}
    at = _flatten_samples(b, copies)
    y, rows = batch_map.rows(lambda e: (problem, unflatten_samples(b, e, params)), at)
    return y, b.xp.reshape(rows, (rows.shape[0] * rows.shape[1], rows.shape[2]))


def control_blocks(batch_map: BatchMap, params: Natives) -> tuple[Any, Any]:
    """(y (B, d), ∂y_i/∂x_i (B, d, n)) where the parameters are controls themselves, sample by sample."""
    b = batch_map.problem.backend
    at = _flatten_samples(b, params)
    like = {name: value[0] for name, value in params.items()}
    return batch_map.rows(lambda e: (batch_map.problem, unflatten_samples(b, e, like)), at)


@dataclass(frozen=True)
class Factors:
    """J of dense layers, layer by layer: J_l = D_l ⊗ [a_l, 1]."""

    layers: tuple[str, ...]
    """`<network>/<layer>`."""
    deltas: Sequence[Any]
    """∂y/∂z_l (B, d, h_l), z_l what the layer gives."""
    activations: Sequence[Any]
    """a_l (B, a_l), what the layer sees."""

    def pull(self, backend: Any, q: Any) -> dict[str, Any]:
        """Jᵀ q as a tree, in the precision of q; q (B·d,) in the order of the rows."""
        xp, result = backend.xp, {}
        dtype = str(q.dtype).removeprefix("torch.")
        for layer, deltas, activations in zip(self.layers, self.deltas, self.activations, strict=True):
            weighted = xp.reshape(q, (deltas.shape[0], 1, deltas.shape[1]))
            delta = xp.matmul(weighted, xp.astype(deltas, dtype))[:, 0]
            result[f"{layer}.weight"] = xp.matmul(delta.T, xp.astype(activations, dtype))
            result[f"{layer}.bias"] = xp.sum(delta, axis=0)
        return result


def factors(batch_map: BatchMap, params: Natives, inputs: Mapping[str, Any]) -> tuple[Any, Factors]:
    """(y (B, d), factors of J) of networks of dense layers; `inputs` are what each network sees (B, …)."""
    problem, b = batch_map.problem, batch_map.problem.backend
    layers = [(use, layer) for use in problem.networks for layer in _layers(use)]
    activations = [_layer_input(b, use, layer, params, inputs[use.name]) for use, layer in layers]
    paths = tuple(f"{use.name}/{_nodes(use)[layer].name}" for use, layer in layers)
    names = [f"{path}.bias" for path in paths]
    samples = activations[0].shape[0]
    copies = {name: b.xp.broadcast_to(params[name][None], (samples, *params[name].shape)) for name in names}
    shared = {name: value for name, value in params.items() if name not in copies}
    own = per_sample(problem, frozenset(copies))
    like = {name: params[name] for name in names}

    def with_biases(e: Any) -> tuple[Problem, Natives]:
        return own, {**shared, **unflatten_samples(b, e, like)}

    y, rows = batch_map.rows(with_biases, _flatten_samples(b, copies))
    deltas, start = {}, 0
    for name in sorted(names):
        size = int(params[name].shape[0])
        deltas[name] = rows[:, :, start : start + size]
        start += size
    return y, Factors(paths, [deltas[name] for name in names], activations)


def linearized(
    batch_map: BatchMap, params: Natives
) -> tuple[Any, Callable[[Any], Any], Callable[[Any], dict[str, Any]]]:
    """(y (B, d), v -> J Jᵀ v, q -> Jᵀ q as a tree) from one forward pass; v and q (B·d,) in the order of the rows."""
    b, names, shape = batch_map.problem.backend, dict(params), []

    def outputs(theta: Any) -> Any:
        y = batch_map(flat.unflatten(theta, names, b))
        shape[:] = y.shape
        return b.xp.reshape(y, (-1,))

    y, push, pulled = b.linearize(outputs, flat.flatten(names, b))
    dtype = str(y.dtype).removeprefix("torch.")

    def pull(q: Any) -> dict[str, Any]:
        return flat.unflatten(pulled(b.xp.astype(q, dtype)), names, b)

    return b.xp.reshape(y, tuple(shape)), lambda v: push(pulled(b.xp.astype(v, dtype))), pull


def per_sample(problem: Problem, names: frozenset[str] | None = None) -> Problem:
    """The problem with networks that take parameters (B, …), one per sample: all of them, or those named."""
    return replace(
        problem, networks=tuple(_with_own_parameters(problem.backend, use, names) for use in problem.networks)
    )


def _with_own_parameters(backend: Any, use: NetworkUse, names: frozenset[str] | None) -> NetworkUse:
    def apply(params: Natives, buffers: Natives, x: Any, training: bool) -> tuple[Any, dict[str, Any]]:
        own = {name: v for name, v in params.items() if names is None or f"{use.name}/{name}" in names}
        shared = {name: value for name, value in params.items() if name not in own}
        samples = next(iter(own.values())).shape[0]
        # Several calls of one sample, as in a loop that is replayed, lie next to each other.
        grouped = backend.xp.reshape(x, (samples, x.shape[0] // samples, *x.shape[1:]))
        out = backend.vmap(lambda p, x: use.apply({**shared, **p}, buffers, x, False)[0])(own, grouped)
        return backend.xp.reshape(out, (x.shape[0], *out.shape[2:])), dict(buffers)

    return replace(use, apply=apply)


# --- dense layers -------------------------------------------------------------------------------------------------


def is_dense_chain(architecture: Architecture) -> bool:
    """Whether all parameters belong to dense layers with a bias, each applied once to the result of the node before."""
    before = "input"
    for node in architecture.nodes:
        if not isinstance(node.layer, Dense | Activation | Reshape) or node.inputs != (before,):
            return False
        # Factors are rows with respect to the biases.
        if isinstance(node.layer, Dense) and not node.layer.bias:
            return False
        before = node.name
    return True


def factor_width(networks: Sequence[tuple[Architecture | None, bool]]) -> int | None:
    """Σ h_l over all dense layers, which the cost of J Jᵀ from factors grows with in place of P; None where J has no
    such factors. Of every network: its architecture, and whether it is called at every step."""
    if not networks:
        return None
    total = 0
    for architecture, every_step in networks:
        if every_step or architecture is None or not is_dense_chain(architecture):
            return None
        total += sum(node.layer.outputs for node in architecture.nodes if isinstance(node.layer, Dense))
    return total


def _nodes(use: NetworkUse) -> tuple[Any, ...]:
    assert use.architecture is not None
    return use.architecture.nodes


def _layers(use: NetworkUse) -> list[int]:
    return [i for i, node in enumerate(_nodes(use)) if isinstance(node.layer, Dense)]


def _layer_input(backend: Any, use: NetworkUse, layer: int, params: Natives, x: Any) -> Any:
    """What a dense layer sees, (B, a): the result of the layers before it."""
    if layer == 0:
        return x
    assert use.architecture is not None
    before = Architecture(use.architecture.input_shape, use.architecture.nodes[:layer])
    kept = {node.name for node in before.nodes}
    own = flat.subtree(params, use.name)
    some = {name: value for name, value in own.items() if name.rpartition(".")[0] in kept}
    return backend.network(before).apply(some, {}, x, False)[0]


# --- flat views per sample ----------------------------------------------------------------------------------------


def _flatten_samples(backend: Any, tree: Natives) -> Any:
    """(B, P) of a tree of (B, …), in the order of the flat view."""
    parts = [backend.xp.reshape(tree[name], (tree[name].shape[0], -1)) for name in sorted(tree)]
    return parts[0] if len(parts) == 1 else backend.xp.concatenate(parts, axis=1)


def unflatten_samples(backend: Any, e: Any, like: Natives) -> dict[str, Any]:
    """The tree of (B, …) whose flat view is e; `like` has the shapes of one sample."""
    result, start = {}, 0
    for name in sorted(like):
        size = flat.count({name: like[name]})
        result[name] = backend.xp.reshape(e[:, start : start + size], (e.shape[0], *like[name].shape))
        start += size
    return result


def only_controls(params: Natives) -> bool:
    """Whether the parameters are controls themselves, one set per sample."""
    return all(name.startswith(f"{CONTROL}/") for name in params)
