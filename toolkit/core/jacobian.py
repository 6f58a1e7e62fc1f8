"""Per-sample Jacobians of a mini-batch through network and physics, ∂y/∂θ = (∂y/∂x)(∂x/∂θ), by the fastest route.

The product form never sends θ through the physics: with n_x controls, n_y observations and P parameters per sample,
∂x/∂θ (n_x × P) is one reverse sweep of the network per control, and ∂y/∂x (n_y × n_x) takes

    forward   one J·v per control, all at once,         if n_x ≤ n_y and the physics has a forward mode
    reverse   one Jᵀ·w per observation, all at once,    otherwise
    loop      one Jᵀ·w per observation, in turn         where the physics cannot be mapped (linear solves on torch)

Full-batch Jacobians would waste a factor B, since sample i of y depends on sample i of x alone. Figures:
`benchmarks/jacobian.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from toolkit.core.backend import Backend
from toolkit.core.params import count

Mode = Literal["auto", "forward", "reverse", "loop"]


def control_jacobian(backend: Backend, physics: Callable[[Any], Any], x: Any, mode: Mode = "auto") -> Any:
    """∂y/∂x (B, n_y, n_x) of physics: x (B, n_x) -> y (B, n_y), whose samples are independent.

    `auto` takes `forward` for few controls and `reverse` for few observations; give `loop` for physics whose
    derivatives cannot be mapped over a new axis, and `reverse` for those without a forward mode.
    """
    if mode == "auto":
        rows = backend.output_shape(physics, x)[1]
        mode = "forward" if x.shape[1] <= rows else "reverse"
    if mode == "forward":
        columns = backend.pushforwards(physics, x)
        return backend.xp.moveaxis(columns, 0, 2)
    rows_first = backend.pullbacks(physics, x, mapped=mode == "reverse")
    return backend.xp.moveaxis(rows_first, 0, 1)


def network_jacobian(
    backend: Backend, network: Callable[[Mapping[str, Any], Any], Any], params: Mapping[str, Any], inputs: Any
) -> Any:
    """∂x/∂θ (B, n_x, P) of network: (θ, input of one sample) -> x (n_x,), in the order of the flat view."""
    xp = backend.xp

    def one(sample: Any) -> Any:
        leaves = backend.jacrev(lambda theta: network(theta, sample))(dict(params))
        rows = next(iter(leaves.values())).shape[0]
        return xp.concatenate([xp.reshape(leaves[name], (rows, -1)) for name in sorted(params)], axis=1)

    return backend.vmap(one)(inputs)


def parameter_jacobian(
    backend: Backend,
    network: Callable[[Mapping[str, Any], Any], Any],
    physics: Callable[[Any, Any], Any],
    params: Mapping[str, Any],
    inputs: Any,
    context: Any = None,
    mode: Mode = "auto",
    memory: int = 2**30,
) -> Any:
    """∂y/∂θ (B, n_y, P): network (θ, input of one sample) -> x (n_x,), physics (x (B, n_x), context) -> (B, n_y).

    Assembled in chunks of samples so that ∂x/∂θ of one chunk stays within `memory` bytes; `context` is a tree of
    arrays (B, …) that the physics needs besides x, or None.
    """
    samples = int(inputs.shape[0])
    controls = int(network(params, inputs[0]).shape[0])
    size = max(1, min(samples, memory // max(1, 8 * controls * count(params))))
    parts = []
    for start in range(0, samples, size):
        part = inputs[start : start + size]
        chosen = _slice(context, start, start + size)
        inner = network_jacobian(backend, network, params, part)
        x = backend.vmap(lambda sample: network(params, sample))(part)
        outer = control_jacobian(backend, lambda x, chosen=chosen: physics(x, chosen), backend.cast(x, "physics"), mode)
        parts.append(backend.xp.matmul(backend.cast(outer, "network"), inner))
    return parts[0] if len(parts) == 1 else backend.xp.concatenate(parts, axis=0)


def _slice(tree: Any, start: int, stop: int) -> Any:
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        return {name: _slice(value, start, stop) for name, value in tree.items()}
    return tree[start:stop]
