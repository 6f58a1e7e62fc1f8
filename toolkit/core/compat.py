"""What PhiFlow 3.4.0 on PhiML 1.16.1 needs to be relied upon: run-time fixes, and guards for PDE plugins.

`apply` repairs five faults of exactly these versions, in the running process and only where they bite:

* flat cell indices above 2³¹ - 1 wrap around (every matrix from 216² cells on) or are refused (JAX);
* a boundary value given as a float cannot be traced into the matrix of a linear solve;
* torch: sampling a one-dimensional grid fails, so there is no semi-Lagrangian advection in 1-D;
* torch: a failed `jit_compile` leaves the process believing that it still traces; later solves then skip
  their convergence check;
* JAX: tanh, sinh, cosh, arctan, … are NumPy's and can be neither differentiated nor compiled.

The guards are for what cannot be repaired from outside. Three faults never raise: fields of different
resolution are resampled, a sum of fields adds their boundary values, and a compiled solve does not say that
it did not converge. Hence `same_geometry`, `with_boundary` and `residual_check`.

Importing PhiML's JAX backend turns `jax_enable_x64` on for the whole process and makes the *last* device the
default; whoever applies the JAX fixes must select precision and device itself, as `backend.using` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from importlib import metadata
from typing import Any

import numpy as np
from phi.field import Field, divergence
from phi.physics import diffuse
from phiml import math
from phiml.backend import NUMPY
from phiml.math import Solve, Tensor
from phiml.math._lin_trace import LinTracer
from phiml.math._tensors import assemble_tensors, disassemble_tensors
from phiml.math._tree import assemble_tree, disassemble_tree, variable_attributes

from toolkit.core.errors import MissingError

PINS = {"phiflow": "3.4.0", "phiml": "1.16.1"}
"""The only versions that the fixes were checked with; both change private names between releases."""

ORIGINAL = "phinverse_original"
"""Attribute of a replaced method that holds PhiML's own one."""

JAX_FUNCTIONS = ("arctan", "arctan2", "sinh", "arcsinh", "cosh", "arccosh", "tanh", "arctanh")
"""Functions that PhiML's JAX backend takes from NumPy instead of `jax.numpy`."""


def apply(backend_name: str) -> None:
    """Check the versions and repair PhiML for one backend (`numpy`, `torch` or `jax`); again does nothing."""
    check_versions()
    _replace(type(NUMPY), "ravel_multi_index", _wide_indices)
    _replace(LinTracer, "__post_init__", _integer_indices)
    if backend_name == "torch":
        _apply_torch()
    elif backend_name == "jax":
        _apply_jax()
    elif backend_name != "numpy":
        raise ValueError(f"no fixes are known for backend {backend_name!r}; known: numpy, torch, jax")


def check_versions() -> None:
    """MissingError if PhiFlow and PhiML are not the pinned pair."""
    found = {name: metadata.version(name) for name in PINS}
    if found != PINS:
        have = " and ".join(f"{name} {version}" for name, version in found.items())
        install = " ".join(f"{name}=={version}" for name, version in PINS.items())
        raise MissingError(f"{have} are installed, which this package does not know; run: pip install {install}")


def _apply_torch() -> None:
    # Only here, so that a JAX run never loads torch.
    from phiml.backend.torch import _torch_backend

    _replace(_torch_backend.TorchBackend, "ravel_multi_index", _wide_indices)
    _replace(_torch_backend.TorchBackend, "grid_sample", _sample_1d_by_gathers)
    _replace(_torch_backend.JITFunction, "__call__", lambda call: _forget_failed_trace(call, _torch_backend))


def _apply_jax() -> None:
    from phiml.backend.jax import _jax_backend

    _replace(_jax_backend.JaxBackend, "ravel_multi_index", _wide_indices)
    for name in JAX_FUNCTIONS:
        setattr(_jax_backend.JaxBackend, name, staticmethod(getattr(_jax_backend.jnp, name)))


def _replace(owner: type, name: str, fix: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(owner, name)
    if not hasattr(original, ORIGINAL):
        replacement = wraps(original)(fix(original))
        setattr(replacement, ORIGINAL, original)
        setattr(owner, name, replacement)


def _wide_indices(original: Callable[..., Any]) -> Callable[..., Any]:
    def ravel_multi_index(self: Any, multi_index: Any, shape: Any, mode: str | int = "undefined") -> Any:
        # Python integers, because the product is what overflows. A traced shape stays PhiML's business.
        known = isinstance(shape, (tuple, list)) and all(isinstance(size, (int, np.integer)) for size in shape)
        if known and np.prod([int(size) for size in shape], dtype=object) > np.iinfo(np.int32).max:
            multi_index = self.to_int64(multi_index)
        return original(self, multi_index, shape, mode)

    return ravel_multi_index


def _integer_indices(original: Callable[..., Any]) -> Callable[..., Any]:
    def __post_init__(self: LinTracer) -> None:
        # Padding with a float constant promotes the source indices; the padded cells have weight zero.
        if self._indices.dtype.kind is float:
            object.__setattr__(self, "_indices", math.to_int64(self._indices))
        original(self)

    return __post_init__


def _sample_1d_by_gathers(original: Callable[..., Any]) -> Callable[..., Any]:
    def grid_sample(self: Any, grid: Any, coordinates: Any, extrapolation: str) -> Any:
        # torch samples in 2-D and 3-D only; on NotImplemented PhiML interpolates with gathers, as on JAX.
        if len(grid.shape) == 3:
            return NotImplemented
        return original(self, grid, coordinates, extrapolation)

    return grid_sample


def _forget_failed_trace(original: Callable[..., Any], torch_backend: Any) -> Callable[..., Any]:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        running = torch_backend.CURRENT_JIT_CALLS
        depth = len(running)
        try:
            return original(self, *args, **kwargs)
        except BaseException:
            del running[depth:]
            raise

    return __call__


def linear_solve(rel_tol: float, abs_tol: float, max_iterations: int = 1000, monitored: bool = False) -> Solve:
    """The one linear solver to use: conjugate gradients for symmetric operators, singular ones included.

    The residual ends below max(rel_tol ‖y‖, abs_tol). PhiFlow's default is a direct solve that fails in
    single precision on closed and periodic boxes and under compilation; its plain CG appends a Lagrange row
    there, which makes the matrix indefinite. With `rank_deficiency=0` CG stays in the range of the operator
    instead. That needs a right-hand side outside the null space (mean zero): pressure solves see to it.

    A solve that stops early raises, but not where it is compiled. `monitored`: it never raises, because a monitor
    judges what is left (`relative_residual`), with the same words on every backend.
    """
    if rel_tol < 0 or abs_tol < 0 or rel_tol + abs_tol == 0 or max_iterations < 1:
        raise ValueError(
            f"a solve needs rel_tol, abs_tol >= 0, not both 0, and max_iterations >= 1; "
            f"not {rel_tol}, {abs_tol}, {max_iterations}"
        )
    suppress = (math.NotConverged, math.Diverged) if monitored else ()
    return Solve("CG", rel_tol, abs_tol, max_iterations=max_iterations, suppress=suppress, rank_deficiency=0)


def with_boundary(field: Field, boundary: Any) -> Field:
    """The field with its boundary put back; to be called after every `+`, `-`, `*` of fields.

    Arithmetic acts on boundary values as on cells: an inflow of 1 becomes 2 in v + dt·f. Nothing shows with
    zero, periodic and zero-gradient boundaries.
    """
    return field.with_boundary(boundary)


def touch_geometry(field: Field) -> Field:
    """The same field, its sample points computed now, outside any compiled function.

    PhiFlow caches them on the geometry at first use. If that is inside `jax.jit`, a tracer is cached and the
    next call outside, or in another compiled function, raises UnexpectedTracerError.
    """
    _ = field.points
    return field


def implicit_diffusion(field: Field, diffusivity: Any, dt: Any, solve: Solve) -> Field:
    """Backward Euler step u - ν Δt Δu = u₀, each component of a centred or staggered vector on its own.

    PhiFlow's own step fails for staggered fields that are not periodic. At an open end (zero-gradient) of a
    staggered component the outermost faces are diffused like the others, while `diffuse.explicit` leaves
    them as they are. The diffusivity may differ per sample.
    """
    # The matrix of a batched diffusivity is batched: the unknown has to be, too.
    field = field.with_values(math.expand(field.values, math.batch(diffusivity)))
    if "vector" not in field.shape:
        return diffuse.implicit(field, diffusivity, dt, solve)
    dimension = field.values.shape.only("~vector" if field.is_staggered else "vector")
    components = math.unstack(field, "vector")
    parts = [diffuse.implicit(component, diffusivity, dt, solve).values for component in components]
    return field.with_values(math.stack(parts, dimension))


def heat_kernel(wavenumbers: Sequence[np.ndarray], amount: float) -> np.ndarray:
    """exp(-amount |k|²), amount = ν Δt in length²: the factor of exact periodic diffusion in Fourier space.

    `wavenumbers` are angular, one array per axis, broadcastable (`Grid.wavenumbers`); cells of any shape.
    Instead of PhiFlow's `diffuse.fourier`, which takes every cell to be of size 1.
    """
    return np.exp(-amount * sum(np.asarray(k) ** 2 for k in wavenumbers))


def require_supported(operator: str, field: Field, order: int = 2, implicit: Any = None) -> None:
    """ValueError if a PhiFlow operator is broken for this field; the message says what to use instead.

    `operator` is one of UNSUPPORTED, named as in PhiFlow: `diffuse.fourier`, `field.divergence`, ….
    """
    if operator not in UNSUPPORTED:
        raise ValueError(f"nothing is known about operator {operator!r}; known: {', '.join(UNSUPPORTED)}")
    if implicit is not None:
        raise ValueError(f"{operator}: `implicit=` derivatives fail on every backend; use order 2 or 4 without it")
    if order > 2 and field.is_staggered:
        raise ValueError(
            f"{operator}: order {order} on a staggered field fails, or drops cells at the boundary and is "
            "less accurate than order 2; use order 2, or a cell-centred field"
        )
    problem = UNSUPPORTED[operator](field)
    if problem:
        raise ValueError(f"{operator}: {problem}")


def _fourier_problem(field: Field) -> str | None:
    return (
        "takes every cell to be of size 1, so it is wrong by a factor 1/dx² in the diffusivity; multiply the "
        "Fourier transform by heat_kernel(grid.wavenumbers(), diffusivity * dt)"
    )


def _advection_problem(field: Field) -> str | None:
    if "vector" in field.shape:
        return None
    return "cannot advect a scalar; compute -(v·∇s) from field.spatial_gradient, or use semi_lagrangian"


def _projection_problem(field: Field) -> str | None:
    if field.is_staggered and field.spatial_rank == 1:
        return "has no staggered divergence in 1-D; a divergence-free velocity is constant there: use its mean"
    return None


UNSUPPORTED: dict[str, Callable[[Field], str | None]] = {
    "diffuse.fourier": _fourier_problem,
    "diffuse.explicit": lambda field: None,
    "advect.differential": _advection_problem,
    "fluid.make_incompressible": _projection_problem,
    "field.divergence": _projection_problem,
    "field.laplace": lambda field: None,
    "field.spatial_gradient": lambda field: None,
}
"""Operators with known faults: field -> a sentence that says why this field does not work, or None."""


def same_geometry(a: Field, b: Field) -> None:
    """ValueError unless two fields share cells, bounds and sampling points (centre or faces).

    Arithmetic between fields that do not is silently done on the first one's grid, the other resampled.
    """
    for what in ("geometry", "sampled_at"):
        one, other = getattr(a, what), getattr(b, what)
        if one != other:
            raise ValueError(
                f"fields on different grids cannot be combined: {what} {_describe(one)} and "
                f"{_describe(other)}; resample one with `.at(other)` where that is meant"
            )


def _describe(geometry: Any) -> str:
    if isinstance(geometry, str):
        return geometry
    return f"{geometry.resolution} on {geometry.bounds}"


def residual_check(velocity: Field) -> Tensor:
    """max |div v| over the cells, per sample, in 1/time: what a compiled pressure solve left over.

    Inside a compiled function a solve that stops at `max_iterations` raises nothing, so return this from the
    step and compare it with a limit outside.
    """
    require_supported("field.divergence", velocity)
    values = abs(divergence(velocity).values)
    return math.max(values, values.shape.non_batch)


def pack(obj: Any) -> tuple[tuple[Any, ...], Callable[[Sequence[Any]], Any]]:
    """(native arrays, unpack) of a tensor, field or (nested) dict of them; unpack(arrays) is it again.

    For loops and transforms written on native arrays. `unpack` holds what is constant (geometry, boundary,
    names) and takes arrays of other numbers too, traced ones included; the bits are kept.
    """
    tree, tensors = disassemble_tree(obj, cache=True, attr_type=variable_attributes)
    natives, _, specs = disassemble_tensors(tensors, expand=True)

    def unpack(arrays: Sequence[Any]) -> Any:
        if len(arrays) != len(natives):
            raise ValueError(f"unpack needs {len(natives)} arrays, as pack gave, not {len(arrays)}")
        return assemble_tree(tree, assemble_tensors(list(arrays), specs), attr_type=variable_attributes)

    return tuple(natives), unpack
