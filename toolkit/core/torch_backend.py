"""The torch backend: eager, with ATen graphs (`make_fx`) where the Python overhead of PhiML would rule.

Measured by the committed benchmark: PhiML operators cost 25 µs to 10 ms of Python each on torch; a traced step
removes that and stays differentiable, mappable and exact. TorchScript is deprecated and `torch.compile` needs seconds
to minutes, so neither is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from phiml import math
from phiml.backend.torch import TORCH
from torch.autograd.function import once_differentiable
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from toolkit.core.backend import Device
from toolkit.core.torch_namespace import TorchNamespace
from toolkit.core.torch_networks import TorchNetwork
from toolkit.core.torch_optimizers import make_optimizer


def devices() -> tuple[Device, ...]:
    """CPU first, then every CUDA device."""
    found = [Device("cpu", "cpu", f"torch {torch.__version__}, {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            found.append(Device("gpu", f"gpu:{i}", torch.cuda.get_device_name(i)))
    return tuple(found)


def create(device: Device, physics: str, network: str) -> TorchBackend:
    """The backend on one device."""
    return TorchBackend(device, physics, network)


class _Gate(torch.autograd.Function):
    """The identity, whose backward pass multiplies by what the factor is *then*: one graph serves several settings."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        # Not saved for backward, which would refuse a factor that has changed since.
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        (gradient,) = gradients
        # Not 0 · gradient, which is NaN where the path that is cut has overflowed.
        factor = float(ctx.factor)
        return (gradient if factor == 1 else gradient * factor if factor else None), None


class _Rematerialised(torch.autograd.Function):
    """A function of tensors, computed without a graph; its backward pass computes it again with one.

    torch's own checkpoints keep the graph and drop what it saves, so that memory still grows with every operation.
    """

    @staticmethod
    def forward(ctx: Any, flat: Callable[..., list[torch.Tensor]], *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Not saved for backward: gates among them change between two backward passes.
        ctx.flat, ctx.leaves = flat, leaves
        ctx.set_materialize_grads(False)
        with torch.no_grad():
            return tuple(flat(leaves))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        leaves = [leaf.detach().requires_grad_(need) for leaf, need in zip(ctx.leaves, wanted, strict=True)]
        with torch.enable_grad():
            results = ctx.flat(leaves)
        pairs = [(y, g) for y, g in zip(results, gradients, strict=True) if g is not None and y.requires_grad]
        inputs = [leaf for leaf, need in zip(leaves, wanted, strict=True) if need]
        if not pairs or not inputs:
            return (None,) * (len(leaves) + 1)
        outputs, given = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outputs, inputs, given, allow_unused=True))
        return (None, *(next(found) if need else None for need in wanted))


def _gradients(value: torch.Tensor, leaves: list[Any], retain_graph: bool = False) -> list[torch.Tensor]:
    """∂value/∂leaf of each, zero where it does not depend on it; RuntimeError where it depends on none."""
    gradients = torch.autograd.grad(value, leaves, retain_graph=retain_graph, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True)]


class TorchBackend:
    """See `toolkit.core.backend.Backend`."""

    name = "torch"
    compiles = False

    def __init__(self, device: Device, physics: str, network: str):
        self.device = device.name
        self.physics_dtype, self.network_dtype = physics, network
        self.xp = TorchNamespace()
        self.trace_seconds = 0.0
        self._device = torch.device("cpu" if device.kind == "cpu" else device.name.replace("gpu", "cuda"))
        self._dtypes = {"physics": getattr(torch, physics), "network": getattr(torch, network)}

    def array(self, values: np.ndarray, kind: str | None = None) -> torch.Tensor:
        return torch.as_tensor(np.array(values), device=self._device, dtype=self._dtypes.get(kind or ""))

    def zeros(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros(shape, device=self._device, dtype=self._dtypes["physics"])

    def numpy(self, array: torch.Tensor) -> np.ndarray:
        return array.detach().cpu().numpy().copy()

    def cast(self, array: torch.Tensor, kind: str) -> torch.Tensor:
        return array.to(self._dtypes[kind])

    def stop_gradient(self, tree: Any) -> Any:
        return pytree.tree_map_only(torch.Tensor, lambda a: a.detach(), tree)

    def without_gradient(self, function: Callable[..., Any], *args: Any) -> Any:
        with torch.no_grad():
            return self.stop_gradient(function(*self.stop_gradient(args)))

    def value_and_gradient(
        self, function: Callable[[Any], tuple[Any, Any]], tree: Any, may_vanish: bool = False
    ) -> tuple[Any, Any, Any]:
        leaves, structure = pytree.tree_flatten(tree)
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        with torch.enable_grad():
            value, aux = function(pytree.tree_unflatten(leaves, structure))
            vanishes = may_vanish and not value.requires_grad
            gradients = [torch.zeros_like(leaf) for leaf in leaves] if vanishes else _gradients(value, leaves)
        return value.detach(), self.stop_gradient(aux), pytree.tree_unflatten(gradients, structure)

    def gate(self, value: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return _Gate.apply(value, factor)

    def gated_gradients(
        self, function: Callable[[Any, Any], tuple[Any, Any]], tree: Any, gates: Any
    ) -> tuple[Any, Any, tuple[Any, ...]]:
        leaves, structure = pytree.tree_flatten(tree)
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        settings, factors_structure = pytree.tree_flatten(gates)
        # On the host, where reading them costs no synchronisation.
        settings = [setting.cpu() for setting in settings]
        factors = [setting[0].clone() for setting in settings]
        with torch.enable_grad():
            value, aux = function(
                pytree.tree_unflatten(leaves, structure), pytree.tree_unflatten(factors, factors_structure)
            )
        found = []
        for k in range(len(settings[0])):
            for factor, setting in zip(factors, settings, strict=True):
                factor.copy_(setting[k])
            last = k == len(settings[0]) - 1
            found.append(pytree.tree_unflatten(_gradients(value, leaves, retain_graph=not last), structure))
        return value.detach(), self.stop_gradient(aux), tuple(found)

    def rematerialise(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def rematerialised(*args: Any) -> Any:
            leaves, structure = pytree.tree_flatten(args)
            found: list[Any] = []

            def flat(leaves: Sequence[Any]) -> list[torch.Tensor]:
                result, spec = pytree.tree_flatten(function(*pytree.tree_unflatten(list(leaves), structure)))
                found[:] = [spec]
                return result

            return pytree.tree_unflatten(list(_Rematerialised.apply(flat, *leaves)), found[0])

        return rematerialised

    def linearize(self, function: Callable[[Any], Any], x: torch.Tensor) -> tuple[Any, Any, Any]:
        # Two reverse passes give J v: PhiML's linear solves have no forward mode on torch.
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            y = function(x)
            dual = torch.zeros_like(y, requires_grad=True)
            pulled = torch.autograd.grad(y, x, dual, create_graph=True)[0]

        def push(v: torch.Tensor) -> torch.Tensor:
            return torch.autograd.grad(pulled, dual, v, retain_graph=True)[0]

        def pull(v: torch.Tensor) -> torch.Tensor:
            return torch.autograd.grad(y, x, v, retain_graph=True)[0]

        return y.detach(), push, pull

    def vmap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.func.vmap(function)

    def jacrev(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return torch.func.jacrev(function)

    def output_shape(self, function: Callable[[Any], Any], x: torch.Tensor) -> tuple[int, ...]:
        with torch.no_grad():
            return tuple(function(x).shape)

    def pushforwards(self, function: Callable[[Any], Any], x: torch.Tensor) -> torch.Tensor:
        basis = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)

        def push(v: torch.Tensor) -> torch.Tensor:
            return torch.func.jvp(function, (x,), (v.expand_as(x),))[1]

        return torch.func.vmap(push)(basis)

    def pullbacks(self, function: Callable[[Any], Any], x: torch.Tensor, mapped: bool) -> torch.Tensor:
        return self.value_and_pullbacks(function, x, mapped)[1]

    def value_and_pullbacks(
        self, function: Callable[[Any], Any], x: torch.Tensor, mapped: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            y = function(x)
        basis = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)[:, None, :].expand(-1, *y.shape)
        if mapped:
            return y.detach(), torch.autograd.grad(y, x, basis, is_grads_batched=True)[0]
        # In turn: PhiML's linear solves have no batching rule.
        return y.detach(), torch.stack([torch.autograd.grad(y, x, w, retain_graph=True)[0] for w in basis])

    def gradient_and_hessian(self, function: Callable[..., Any], x: Any, *args: Any) -> tuple[Any, Any]:
        def one(x: Any, *args: Any) -> Any:
            return function(x[None], *pytree.tree_map(lambda a: a[None], args))[0]

        def gradient(x: Any, *args: Any) -> tuple[Any, Any]:
            g = torch.func.grad(one)(x, *args)
            return g, g

        # Reverse over reverse: forward mode lacks rules for some physics (grid sampling).
        hessian, g = torch.func.vmap(torch.func.jacrev(gradient, has_aux=True))(x, *args)
        return g, hessian

    def compile(self, function: Callable[..., Any], *example: Any) -> Callable[..., Any]:
        return function

    def trace(self, function: Callable[..., Any], *example: Any) -> Callable[..., Any]:
        start = time.perf_counter()
        leaves, structure = pytree.tree_flatten(example)
        result_structure: list[Any] = []

        def flat(*leaves: Any) -> list[Any]:
            result, spec = pytree.tree_flatten(function(*pytree.tree_unflatten(leaves, structure)))
            result_structure[:] = [spec]
            return result

        with torch.no_grad():
            graph = make_fx(flat, tracing_mode="real")(*[leaf.detach() for leaf in leaves])
        self.trace_seconds += time.perf_counter() - start

        def traced(*args: Any) -> Any:
            return pytree.tree_unflatten(graph(*pytree.tree_leaves(args)), result_structure[0])

        return traced

    def scan(self, body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, length: int) -> tuple[Any, Any]:
        collected = []
        for i in range(length):
            carry, y = body(carry, pytree.tree_map(lambda a, i=i: a[i], xs))
            collected.append(y)
        leaves = [pytree.tree_leaves(y) for y in collected]
        stacked = [torch.stack(list(column)) for column in zip(*leaves, strict=True)]
        return carry, pytree.tree_unflatten(stacked, pytree.tree_structure(collected[0]))

    def isolated(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def while_loop(self, condition: Callable[[Any], Any], body: Callable[[Any], Any], carry: Any) -> Any:
        while bool(condition(carry)):
            carry = body(carry)
        return carry

    def synchronize(self, tree: Any) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def network(self, architecture: Any) -> TorchNetwork:
        return TorchNetwork(architecture)

    def optimizer(self, kind: str, options: Mapping[str, Any], learning_rate: Any) -> Any:
        return make_optimizer(kind, options, learning_rate)

    @contextmanager
    def active(self) -> Iterator[None]:
        before = TORCH.get_default_device()
        # PhiML's torch backend defaults to the first GPU whatever the run asked for.
        wanted = "CPU" if self._device.type == "cpu" else "GPU"
        TORCH.set_default_device(TORCH.list_devices(wanted)[self._device.index or 0])
        # float32 means float32: torch lets convolutions round to 10 bits on recent GPUs unless told otherwise.
        tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
        try:
            with TORCH, math.precision(64 if self.physics_dtype == "float64" else 32):
                yield
        finally:
            torch.backends.cudnn.allow_tf32 = tf32
            TORCH.set_default_device(before)
