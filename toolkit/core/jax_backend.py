"""The JAX backend: every training step is one compiled program, time loops are rolled (`lax.scan`).

Importing PhiML's JAX backend switches JAX to 64-bit for the whole process; dtypes are therefore always explicit here
and nothing relies on JAX's default.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from phiml import math
from phiml.backend.jax import JAX

from toolkit.core.backend import Device
from toolkit.core.jax_namespace import JaxNamespace
from toolkit.core.jax_networks import JaxNetwork
from toolkit.core.jax_optimizers import make_optimizer


def devices() -> tuple[Device, ...]:
    """CPU first, then every GPU."""
    found = [Device("cpu", "cpu", f"jax {jax.__version__}")]
    if jax.default_backend() == "gpu":
        for i, device in enumerate(jax.devices("gpu")):
            found.append(Device("gpu", f"gpu:{i}", device.device_kind))
    return tuple(found)


def create(device: Device, physics: str, network: str) -> JaxBackend:
    """The backend on one device."""
    return JaxBackend(device, physics, network)


@jax.custom_vjp
def _gate(value: jax.Array, factor: jax.Array) -> jax.Array:
    return value


def _gate_backward(factor: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Not 0 · cotangent, which is NaN where the path that is cut has overflowed.
    passed = jnp.where(factor == 0, 0, cotangent * factor.astype(cotangent.dtype))
    return passed, jnp.zeros_like(factor)


_gate.defvjp(lambda value, factor: (value, factor), _gate_backward)


class JaxBackend:
    """See `toolkit.core.backend.Backend`."""

    name = "jax"
    compiles = True

    def __init__(self, device: Device, physics: str, network: str):
        self.device = device.name
        self.physics_dtype, self.network_dtype = physics, network
        self.xp = JaxNamespace()
        self.trace_seconds = 0.0
        index = int(device.name.partition(":")[2] or 0)
        self._device = jax.devices(device.kind)[index]
        self._dtypes = {"physics": physics, "network": network}

    def array(self, values: np.ndarray, kind: str | None = None) -> jax.Array:
        # A copy: device_put may alias NumPy's memory, which the caller is free to change.
        return jax.device_put(np.array(values, dtype=self._dtypes.get(kind or "")), self._device)

    def zeros(self, shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros(shape, dtype=self._dtypes["physics"])

    def numpy(self, array: jax.Array) -> np.ndarray:
        return np.array(array)

    def cast(self, array: jax.Array, kind: str) -> jax.Array:
        return array.astype(self._dtypes[kind])

    def stop_gradient(self, tree: Any) -> Any:
        return jax.tree.map(jax.lax.stop_gradient, tree)

    def without_gradient(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.stop_gradient(function(*self.stop_gradient(args)))

    def value_and_gradient(
        self, function: Callable[[Any], tuple[Any, Any]], tree: Any, may_vanish: bool = False
    ) -> tuple[Any, Any, Any]:
        (value, aux), gradient = jax.value_and_grad(function, has_aux=True)(tree)
        return value, aux, gradient

    def gate(self, value: jax.Array, factor: jax.Array) -> jax.Array:
        return _gate(value, factor)

    def gated_gradients(
        self, function: Callable[[Any, Any], tuple[Any, Any]], tree: Any, gates: Any
    ) -> tuple[Any, Any, tuple[Any, ...]]:
        def one(gates: Any) -> tuple[Any, Any, Any]:
            (value, aux), gradient = jax.value_and_grad(function, has_aux=True)(tree, gates)
            return value, aux, gradient

        # Values do not depend on gates, so that mapping doubles the backward pass and nothing else.
        value, aux, gradients = jax.vmap(one, out_axes=(None, None, 0))(gates)
        count = len(jax.tree.leaves(gates)[0])
        return value, aux, tuple(jax.tree.map(lambda g, k=k: g[k], gradients) for k in range(count))

    def rematerialise(self, function: Callable[..., Any]) -> Callable[..., Any]:
        # A scan keeps common subexpressions apart by itself.
        return jax.checkpoint(function, prevent_cse=False)

    def linearize(self, function: Callable[[Any], Any], x: jax.Array) -> tuple[Any, Any, Any]:
        # Two reverse passes give J v: PhiML's linear solves are custom_vjp functions, which have neither forward mode
        # nor a transpose. The pullback is linear, so that its own pullback is J wherever it is taken.
        y, transposed = jax.vjp(function, x)
        _, push = jax.vjp(lambda w: transposed(w)[0], jnp.zeros_like(y))
        return y, lambda v: push(v)[0], lambda v: transposed(v)[0]

    def vmap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.vmap(function)

    def jacrev(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return jax.jacrev(function)

    def output_shape(self, function: Callable[[Any], Any], x: jax.Array) -> tuple[int, ...]:
        return tuple(jax.eval_shape(function, x).shape)

    def pushforwards(self, function: Callable[[Any], Any], x: jax.Array) -> jax.Array:
        _, push = jax.linearize(function, x)
        return jax.vmap(lambda v: push(jnp.broadcast_to(v, x.shape)))(jnp.eye(x.shape[1], dtype=x.dtype))

    def pullbacks(self, function: Callable[[Any], Any], x: jax.Array, mapped: bool) -> jax.Array:
        return self.value_and_pullbacks(function, x, mapped)[1]

    def value_and_pullbacks(
        self, function: Callable[[Any], Any], x: jax.Array, mapped: bool
    ) -> tuple[jax.Array, jax.Array]:
        y, pull = jax.vjp(function, x)
        basis = jnp.eye(y.shape[1], dtype=y.dtype)
        apply = jax.vmap if mapped else (lambda f: lambda xs: jax.lax.map(f, xs))
        return y, apply(lambda w: pull(jnp.broadcast_to(w, y.shape))[0])(basis)

    def gradient_and_hessian(self, function: Callable[..., Any], x: Any, *args: Any) -> tuple[Any, Any]:
        def one(x: Any, *args: Any) -> Any:
            return function(x[None], *jax.tree.map(lambda a: a[None], args))[0]

        def gradient(x: Any, *args: Any) -> tuple[Any, Any]:
            g = jax.grad(one)(x, *args)
            return g, g

        hessian, g = jax.vmap(jax.jacrev(gradient, has_aux=True))(x, *args)
        return g, hessian

    def compile(self, function: Callable[..., Any], *example: Any) -> Callable[..., Any]:
        start = time.perf_counter()
        compiled = jax.jit(function).lower(*example).compile()
        self.trace_seconds += time.perf_counter() - start
        return compiled

    def trace(self, function: Callable[..., Any], *example: Any) -> Callable[..., Any]:
        return function

    def scan(self, body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, length: int) -> tuple[Any, Any]:
        return jax.lax.scan(body, carry, xs, length)

    def isolated(self, function: Callable[..., Any]) -> Callable[..., Any]:
        barrier = jax.lax.optimization_barrier
        return lambda *args: barrier(function(*barrier(args)))

    def while_loop(self, condition: Callable[[Any], Any], body: Callable[[Any], Any], carry: Any) -> Any:
        return jax.lax.while_loop(condition, body, carry)

    def synchronize(self, tree: Any) -> None:
        jax.block_until_ready(tree)

    def network(self, architecture: Any) -> JaxNetwork:
        return JaxNetwork(architecture, lines_as_products=self._device.platform == "cpu")

    def optimizer(self, kind: str, options: Mapping[str, Any], learning_rate: Any) -> Any:
        return make_optimizer(kind, options, learning_rate)

    @contextmanager
    def active(self) -> Iterator[None]:
        before = JAX.get_default_device()
        # PhiML's JAX backend defaults to the *last* device.
        wanted = "CPU" if self._device.platform == "cpu" else "GPU"
        JAX.set_default_device(JAX.list_devices(wanted)[self._device.id if wanted == "GPU" else 0])
        # float32 means float32: XLA lets products round to fewer bits on recent GPUs unless told otherwise.
        exact = jax.default_matmul_precision("highest")
        precision = math.precision(64 if self.physics_dtype == "float64" else 32)
        try:
            with exact, jax.default_device(self._device), JAX, precision:
                yield
        finally:
            JAX.set_default_device(before)
