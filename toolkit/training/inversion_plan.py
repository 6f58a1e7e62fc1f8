"""How a half-inversion will meet the Jacobian of a mini-batch, told by numbers alone: before a run and in it.

    factored  J Jᵀ and Jᵀq from the factors of dense layers, J never formed
    explicit  J itself
    products  Lanczos with v -> J Jᵀ v, neither J nor J Jᵀ formed
    samples   J of each sample by itself, where the parameters are controls

`auto` is exact where that fits into `memory`: factored for networks of dense layers where that takes fewer operations
and J Jᵀ resolves the truncation, or where J does not fit; else explicit; products where nothing else fits. An algorithm
that was asked for by name is taken, whatever it needs (`objection` says what would be too much).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from toolkit.core.half_inverse_choice import ON_GRAM, HalfInversion

Way = Literal["factored", "explicit", "products", "samples"]
GIB = 2**30


@dataclass(frozen=True)
class JacobianSize:
    """∂y/∂θ of one batch."""

    samples: int
    outputs: int
    """d, scalars of y per sample."""
    columns: int
    """P, scalars of θ; those of one sample where the parameters are controls."""
    dtype: str
    """float32 or float64."""
    controls: int
    """n_x, scalars of x per sample between networks and physics; d if the two cannot be told apart."""
    factor_width: int | None = None
    """Σ h_l of networks of dense layers; None: J has no factors."""
    direct: bool = False
    """Whether the parameters are controls themselves, one set per sample."""

    @property
    def rows(self) -> int:
        """n = B·d."""
        return self.samples * self.outputs

    @property
    def bytes(self) -> int:
        """Of J if it were formed, without the zeros between samples."""
        return self.rows * self.columns * (4 if self.dtype == "float32" else 8)

    @property
    def gram_bytes(self) -> int:
        """Of the smaller of J Jᵀ and JᵀJ, or those of all samples, with the eigenvectors, in float64."""
        side, count = (min(self.outputs, self.columns), self.samples) if self.direct else (self._side, 1)
        return 24 * side**2 * count

    @property
    def _side(self) -> int:
        return min(self.rows, self.columns)


@dataclass(frozen=True)
class Plan:
    """What an update will do and hold."""

    way: Way
    algorithm: str
    jacobian_bytes: int
    """0 where J is not formed."""
    gram_bytes: int
    """Of J Jᵀ, with its factor or eigenvectors where they are found; 0 where it is not formed."""
    krylov_bytes: int
    """Of the basis of a Krylov space."""
    sweeps: int
    """Derivatives of the whole batch through networks and physics, forward or backward."""
    operations: float
    """Of the linear algebra, roughly."""


def plan(size: JacobianSize, inversion: HalfInversion, factored: bool, memory: int, device: str = "cpu") -> Plan:
    """The way and the algorithm for this Jacobian; `factored`: asked for by name; memory in bytes, of J or of J Jᵀ."""
    if size.direct:
        return _by_samples(size, inversion)
    way = _way(size, inversion, factored, memory)
    n, p = (size.rows, size.rows) if way == "factored" else (size.rows, size.columns)
    algorithm = replace(inversion, memory=memory).algorithm_for(n, p, size.dtype, device)
    if way == "products":
        algorithm = "lanczos"
    elif way == "factored" and algorithm not in ON_GRAM:
        algorithm = "gram"
    return _costs(size, way, algorithm, inversion.steps(size.rows))


def _way(size: JacobianSize, inversion: HalfInversion, factored: bool, memory: int) -> Way:
    asked = inversion.algorithm
    usable = size.factor_width is not None and asked not in ("svd", "svd64")
    fits = size.bytes <= memory
    if factored:
        return "factored"
    if asked == "lanczos":
        # One product with J Jᵀ costs less than two sweeps.
        return "factored" if usable and 8 * size.rows**2 <= memory else "products"
    if usable and 24 * size.rows**2 <= memory:
        exact = asked != "adaptive" and inversion.resolved
        solver = "cholesky" if inversion.solvable else "tridiagonal"
        costs = [_costs(size, way, solver, 0).operations for way in ("factored", "explicit")]
        if not fits or (exact and costs[0] < costs[1]):
            return "factored"
    return "explicit" if fits or asked != "auto" else "products"


def _by_samples(size: JacobianSize, inversion: HalfInversion) -> Plan:
    """Eigenvectors of the Gram matrices of all samples where they resolve the truncation, else a thin SVD of each."""
    named = {"svd": "svd64", "svd64": "svd64", "adaptive": "svd64", "auto": ""}.get(inversion.algorithm, "gram")
    algorithm = named or ("gram" if inversion.resolved else "svd64")
    side, other = sorted((size.outputs, size.columns))
    work = size.samples * (side**2 * other + 9 * side**3) * (1.0 if algorithm == "gram" else 4.0)
    return Plan("samples", algorithm, size.bytes, size.gram_bytes, 0, min(size.outputs, size.controls), work)


def _costs(size: JacobianSize, way: Way, algorithm: str, steps: int) -> Plan:
    n, p = size.rows, size.columns
    side = n if way == "factored" else min(n, p)
    sweeps = min(size.outputs, size.controls)
    if algorithm in ("svd", "svd64"):
        return Plan(way, algorithm, size.bytes, 8 * side * (n + p), 0, sweeps, 4.0 * side * n * p + 22.0 * side**3)
    assembly = float(n) ** 2 * (size.factor_width or 0) if way == "factored" else float(side) ** 2 * max(n, p)
    held = size.bytes if way == "explicit" else 0
    if algorithm == "lanczos":
        krylov, gram = 8 * (steps + 1) * n, 0 if way == "products" else 8 * side**2
        assembly = 0.0 if way == "products" else assembly + 2.0 * steps * side**2
        sweeps = 2 * steps if way == "products" else sweeps
        return Plan(way, algorithm, held, gram, krylov, sweeps, assembly + 4.0 * steps**2 * n)
    solve = {"cholesky": 1.0 / 3.0, "tridiagonal": 3.0, "adaptive": 3.0}.get(algorithm, 9.0) * side**3
    matrices = 2 if algorithm == "cholesky" else 3
    return Plan(way, algorithm, held, 8 * matrices * side**2, 0, sweeps, assembly + solve)


def objection(plan: Plan, size: JacobianSize, inversion: HalfInversion, memory: int, machine: float) -> str | None:
    """Why an update cannot go as planned, begun with the key of `update` or `train` to blame; None if it can.

    machine: bytes of memory there are.
    """
    if size.direct and inversion.algorithm == "lanczos":
        return "update.algorithm: 'lanczos' would mix samples, whose controls are inverted one by one; use 'auto'"
    if plan.way == "factored" and size.factor_width is None:
        return (
            "update.algorithm: 'factored' needs networks in open loop that are chains of dense layers (mlp); use 'auto'"
        )
    lower = "train.batch_size" if not size.direct else "data.validation"
    matrices = {"the Jacobian": plan.jacobian_bytes, "what is decomposed, with its vectors,": plan.gram_bytes}
    for what, needed in matrices.items():
        if needed > memory:
            message = f"{_described(size)} {what} takes {_size(needed)}, update.memory allows {_size(memory)}"
            return f"update.algorithm: {message}; use 'auto', lower {lower}, or raise update.memory"
    total = plan.jacobian_bytes + plan.gram_bytes + plan.krylov_bytes
    if total > machine:
        message = f"{_described(size)} an update holds {_size(total)}, this machine has {_size(machine)}"
        return f"{lower}: {message}; lower {lower} or update.memory"
    return None


def _described(size: JacobianSize) -> str:
    return f"{size.rows:,} x {size.columns:,}:"


def _size(count: float) -> str:
    return f"{count / GIB:.3g} GiB"
