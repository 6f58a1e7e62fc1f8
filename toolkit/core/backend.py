"""The one place that chooses backend, device and precision; everything above sees only this interface.

`using("jax", device="auto", physics="float64", network="float32")` yields the active `Backend` and puts the
process back as it was. PhiML's default backend, device and precision follow it inside the block. Native arrays
(torch.Tensor, jax.Array) are opaque above `core`; trees of them are (nested) dicts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from toolkit.core import compat
from toolkit.core.errors import MissingError

NAMES = ("torch", "jax")
Array = Any
Tree = Mapping[str, Any]


@dataclass(frozen=True)
class Device:
    """Something that can compute: `kind` is cpu or gpu, `name` is what `run.device` accepts."""

    kind: str
    name: str
    description: str


class Backend(Protocol):
    """What a run needs from an array library; implemented once for torch and once for JAX."""

    name: str
    device: str
    physics_dtype: str
    network_dtype: str
    xp: Any
    """The few array functions used above and in solvers, with NumPy's names and `axis` arguments."""
    compiles: bool
    """Whether calls cost nothing beside their arithmetic, because `compile` makes one program of them."""
    trace_seconds: float
    """Time spent tracing or compiling so far, in seconds."""

    def array(self, values: np.ndarray, kind: str | None = None) -> Array:
        """Native array on the device; kind `physics` or `network` casts to that precision."""
        ...

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Zeros in the precision of the physics."""
        ...

    def numpy(self, array: Array) -> np.ndarray:
        """A NumPy copy, detached from any graph."""
        ...

    def cast(self, array: Array, kind: str) -> Array:
        """In the precision of `physics` or `network`; differentiable."""
        ...

    def stop_gradient(self, tree: Any) -> Any:
        """The same values; nothing flows back through them."""
        ...

    def without_gradient(self, function: Callable[..., Any], *args: Any) -> Any:
        """function(*args) with neither arguments nor result attached to a graph."""
        ...

    def value_and_gradient(
        self, function: Callable[[Any], tuple[Array, Any]], tree: Any, may_vanish: bool = False
    ) -> tuple[Any, Any, Any]:
        """(value, aux, gradient) of function(tree) -> (scalar, aux); gradient has the tree's structure.

        A value that depends on nothing of the tree is an error where the library sees it (torch), because something
        has cut the gradient, unless it `may_vanish`.
        """
        ...

    def gate(self, value: Array, factor: Array) -> Array:
        """`value`, whose derivative is multiplied by the number `factor` on its way back."""
        ...

    def gated_gradients(
        self, function: Callable[[Any, Tree], tuple[Array, Any]], tree: Any, gates: Tree
    ) -> tuple[Any, Any, tuple[Any, ...]]:
        """(value, aux, gradients) of function(tree, factors) -> (scalar, aux), one gradient per setting of the gates.

        The leading axis of `gates` counts the settings; `function` passes its `factors`, one setting's, to `gate`. It
        is evaluated once, whatever their number: gates do not change values.
        """
        ...

    def rematerialise(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, of which a backward pass keeps the arguments alone and computes the rest again; in a `scan`.

        It depends on nothing but its arguments that anything is differentiated with respect to. Reverse mode, once.
        """
        ...

    def linearize(
        self, function: Callable[[Array], Array], x: Array
    ) -> tuple[Array, Callable[[Array], Array], Callable[[Array], Array]]:
        """(f(x), v -> J v, w -> Jᵀ w) without running f again."""
        ...

    def vmap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """function mapped over the leading axis of every argument and result."""
        ...

    def jacrev(self, function: Callable[[Any], Array]) -> Callable[[Any], Any]:
        """Jacobian of an array with respect to a tree, one backward pass per output."""
        ...

    def output_shape(self, function: Callable[[Array], Array], x: Array) -> tuple[int, ...]:
        """Shape of function(x); not computed where the backend can tell without."""
        ...

    def pushforwards(self, function: Callable[[Array], Array], x: Array) -> Array:
        """∂f/∂x_j (n, B, m) for each of the n columns of x (B, n), with independent samples; forward mode."""
        ...

    def pullbacks(self, function: Callable[[Array], Array], x: Array, mapped: bool) -> Array:
        """∂f_i/∂x (m, B, n) for each of the m outputs of f(x) (B, m), with independent samples; reverse mode,
        all outputs at once (`mapped`) or in turn."""
        ...

    def value_and_pullbacks(self, function: Callable[[Array], Array], x: Array, mapped: bool) -> tuple[Array, Array]:
        """(f(x), `pullbacks`) from one forward pass."""
        ...

    def gradient_and_hessian(self, function: Callable[..., Array], x: Array, *args: Array) -> tuple[Array, Array]:
        """Per-sample gradient (B, n) and Hessian (B, n, n) of function(x (B, n), *args) -> (B,), where sample
        i of the result depends on sample i of the arguments alone."""
        ...

    def compile(self, function: Callable[..., Any], *example: Any) -> Callable[..., Any]:
        """The function compiled for arguments like these (JAX); as it is on torch. Adds to `trace_seconds`."""
        ...

    def trace(self, function: Callable[..., Any], *example: Any) -> Callable[..., Any]:
        """The function with its Python overhead removed for arguments like these: an ATen graph on torch;
        as it is on JAX, where the enclosing compilation does so. Adds to `trace_seconds`."""
        ...

    def scan(self, body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, length: int) -> tuple[Any, Any]:
        """body(carry, x) -> (carry, y) over the leading axis of xs; ys stacked. A rolled loop on JAX."""
        ...

    def isolated(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as it is compiled by itself, wherever it stands: nothing is fused across its boundary."""
        ...

    def while_loop(self, condition: Callable[[Any], Array], body: Callable[[Any], Any], carry: Any) -> Any:
        """body repeated while condition holds; a rolled loop on JAX. Not for reverse mode."""
        ...

    def synchronize(self, tree: Any) -> None:
        """Wait until these arrays are computed."""
        ...

    def network(self, architecture: Any) -> Any:
        """The pure network of a `toolkit.core.architecture.Architecture`."""
        ...

    def optimizer(self, kind: str, options: Mapping[str, Any], learning_rate: Any) -> Any:
        """An optimizer of the contract's names with torch's formulas."""
        ...

    def active(self) -> Any:
        """Context in which PhiML uses this backend, device and the physics precision."""
        ...


def implementation(name: str) -> Any:
    """The module that implements a backend, imported now; MissingError says what to install."""
    if name not in NAMES:
        raise MissingError(f"no backend {name!r}; known: {', '.join(NAMES)}")
    try:
        return importlib.import_module(f"toolkit.core.{name}_backend")
    except ImportError as error:
        raise MissingError(
            f"backend {name!r} is not installed ({error}); install it with: pip install {name}"
        ) from error


def devices(name: str) -> tuple[Device, ...]:
    """What a backend can compute on."""
    return implementation(name).devices()


def choose_device(wanted: str, present: tuple[Device, ...], backend: str) -> Device:
    """The device that `auto`, `cpu`, `gpu` or `gpu:N` means; MissingError if it is not there."""
    if wanted == "auto":
        return next((d for d in present if d.kind == "gpu"), present[0])
    name = "gpu:0" if wanted == "gpu" else wanted
    for device in present:
        if name in (device.name, device.kind):
            return device
    raise MissingError(
        f"run.device: no device {wanted!r} on {backend}; present: {', '.join(d.name for d in present)}"
        + (
            f". GPU builds come with the extra gpu-{backend}: pip install -e '.[gpu-{backend}]'"
            if name.startswith("gpu")
            else ""
        )
    )


@contextmanager
def using(name: str, device: str = "auto", physics: str = "float64", network: str = "float64") -> Iterator[Backend]:
    """The active backend inside the block; PhiML's defaults are restored after it."""
    module = implementation(name)
    compat.apply(name)
    chosen = choose_device(device, module.devices(), name)
    backend: Backend = module.create(chosen, physics, network)
    with backend.active():
        yield backend
