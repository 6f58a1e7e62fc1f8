"""Half-inverse gradients of a mini-batch: networks and physics inverted together, by a truncated decomposition of J.

    direction = V diag(s^κ [s > τ s_max]) Uᵀ g,   J = ∂y/∂θ = U diag(s) Vᵀ of the whole batch,   g = ∂L/∂y

κ = −1/2 gives half-inverse gradients, −1 Gauss–Newton, +1 the plain gradient; with a damping λ in place of the
truncation, κ = −1 is Levenberg–Marquardt, whose filter is s / (s² + λ s_max²). L enters by its gradient in y, so any
loss will do. L is summed over the batch: published learning rates, which hold for means, are to be divided by B for a
loss whose gradient is linear, as the direction is linear in g. Schnell, Holl, Thuerey: Half-Inverse Gradients for
Physical Deep Learning, ICLR 2022, Eq. 5.

How J is met, `inversion_plan` decides. Without networks the parameters are controls, one set per sample, and each
sample is inverted by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from toolkit.core import params as flat
from toolkit.core.half_inverse import HalfInversion, factored_gram, half_invert, half_invert_gram, half_invert_operator
from toolkit.core.half_inverse_choice import RESOLVED, Algorithm
from toolkit.physics.inverse import flatten, unflatten
from toolkit.physics.inverse import size as scalars
from toolkit.training import batch_jacobian, inversion_plan, step_jacobians
from toolkit.training.batch_jacobian import BatchMap
from toolkit.training.inversion_plan import JacobianSize, Plan
from toolkit.training.problem import Batch, Natives, Problem
from toolkit.training.rules.base import Update

LossAt = Callable[[Any], tuple[Any, Any]]
"""y (B, d) -> (loss, ∂L/∂y (B, d))."""


@dataclass(frozen=True)
class HalfInverseRule:
    """The rule for θ of networks, for controls themselves, and for the proxy loss of another rule."""

    inversion: HalfInversion
    factored: bool = False
    """Whether the factors of dense layers were asked for; they are also used where they pay."""
    memory: int = 4 * 2**30
    """Bytes that J may take, and J Jᵀ with its eigenvectors."""

    def plan(self, size: JacobianSize, device: str = "cpu") -> Plan:
        """How a Jacobian of this size will be met."""
        return inversion_plan.plan(size, self.inversion, self.factored, self.memory, device)

    def objection(self, size: JacobianSize, device: str, machine: float) -> str | None:
        """Why a Jacobian of this size cannot be met with `machine` bytes of memory, begun with the key; or None."""
        return inversion_plan.objection(self.plan(size, device), size, self.inversion, self.memory, machine)

    def __call__(self, problem: Problem, params: Natives, buffers: Natives, batch: Batch) -> Update:
        b, layouts = problem.backend, problem.observations
        x, after = problem.predict(params, buffers, batch, training=True)
        batch_map = self.observed(problem, buffers, batch, x)
        given = next(value for group in (x, *batch.tree().values()) for value in group.values())
        shape = int(given.shape[0]), scalars(layouts)

        scales = _scales(problem)

        def loss_at(y: Any) -> tuple[Any, Any]:
            def summed(y: Any) -> tuple[Any, Any]:
                y = y if scales is None else y / scales
                return b.xp.sum(problem.loss(unflatten(y, layouts, b), batch.targets)), ()

            value, _, gradient = b.value_and_gradient(summed, y)
            return value, gradient

        value, direction, report = self._invert(batch_map, params, loss_at, shape, problem.network_inputs(batch))
        return Update(direction, value, buffers=after, controls=x, metrics=report)

    def direction(
        self, batch_map: BatchMap, params: Natives, gradient: Any, inputs: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(direction by parameter, what was met) for y(θ) of one batch and ∂L/∂y (B, d)."""
        shape = int(gradient.shape[0]), int(gradient.shape[1])
        return self._invert(batch_map, params, lambda y: (None, gradient), shape, inputs)[1:]

    def _invert(
        self, batch_map: BatchMap, params: Natives, loss_at: LossAt, shape: tuple[int, int], inputs: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """(loss, direction, report and the algorithm), with y from the forward pass of the Jacobian."""
        met = self.plan(_size(batch_map, params, shape), batch_map.problem.backend.device)
        value, direction, report = self._as_planned(met, batch_map, params, loss_at, shape, inputs)
        # Numbers are all that metrics hold: the name says which it was.
        return value, direction, {**report, f"algorithm_{met.way}_{met.algorithm}": 1.0}

    def _as_planned(
        self,
        met: Plan,
        batch_map: BatchMap,
        params: Natives,
        loss_at: LossAt,
        shape: tuple[int, int],
        inputs: Mapping[str, Any],
    ) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        b = batch_map.problem.backend
        options = replace(self.inversion, algorithm=cast("Algorithm", met.algorithm), memory=self.memory)
        if met.way == "samples":
            y, blocks = batch_jacobian.control_blocks(batch_map, params)
            value, gradient = loss_at(y)
            u, report = invert_samples(b.xp, blocks, gradient, options)
            like = {name: value[0] for name, value in params.items()}
            return value, batch_jacobian.unflatten_samples(b, b.cast(u, "physics"), like), report
        if met.way == "explicit":
            y, j = batch_jacobian.jacobian(batch_map, params, shape[0])
            value, gradient = loss_at(y)
            g = b.xp.astype(b.xp.reshape(gradient, (-1,)), str(j.dtype).removeprefix("torch."))
            u, report = half_invert(b, j, g, options)
            return value, flat.unflatten(b.cast(u, "network"), params, b), report
        if met.way == "factored":
            y, factors = batch_jacobian.factors(batch_map, params, inputs)
            value, gradient = loss_at(y)
            gram = factored_gram(b, list(factors.deltas), list(factors.activations), [True] * len(factors.layers))
            q, report = half_invert_gram(b, gram, b.xp.reshape(gradient, (-1,)), options)
            u = factors.pull(b, q)
        else:
            y, product, pull = batch_jacobian.linearized(batch_map, params)
            value, gradient = loss_at(y)
            q, report = half_invert_operator(b, product, b.xp.reshape(gradient, (-1,)), options)
            u = pull(q)
        return value, {name: b.cast(u[name], "network") for name in params}, report

    def observed(self, problem: Problem, buffers: Natives, batch: Batch, x: Natives) -> BatchMap:
        """y(θ) in units of the loss: split at the controls in open loop, whole where networks act at every step."""
        b, scales = problem.backend, _scales(problem)

        def rows(y: Natives) -> Any:
            flattened = flatten(y, problem.observations, b)
            return flattened if scales is None else flattened * scales

        if problem.loop:

            def simulate(problem: Problem, params: Natives) -> Any:
                x, _ = problem.predict(params, buffers, batch, training=True)
                y = problem.observe(x, batch.context, problem.policy(params, buffers, batch.targets))
                return rows(y)

            return BatchMap(problem, simulate)
        layouts = {key: problem.control_layouts[key] for key in x}

        def control(problem: Problem, params: Natives) -> Any:
            return flatten(problem.predict(params, buffers, batch, training=True)[0], layouts, b)

        def observe(x: Any) -> Any:
            return rows(problem.observe(unflatten(x, layouts, b), batch.context))

        narrow = scalars(layouts) < scalars(problem.observations)
        samples = next((int(value.shape[0]) for value in x.values()), 1)
        if narrow or scales is not None or not step_jacobians.applies(problem, tuple(layouts), samples):
            return BatchMap(problem, control, observe, narrow)
        # What maps the steps is a traced step.
        problem.prepare(batch)

        def by_steps(x: Any) -> tuple[Any, Any]:
            return step_jacobians.value_and_jacobian(problem, x, layouts, batch.context)

        return BatchMap(problem, control, observe, outer_rows=by_steps)


def _scales(problem: Problem) -> Any | None:
    scales = problem.row_scales
    return None if scales is None else problem.backend.array(scales, "physics")


def _size(batch_map: BatchMap, params: Natives, shape: tuple[int, int]) -> JacobianSize:
    problem, direct = batch_map.problem, batch_jacobian.only_controls(params)
    return JacobianSize(
        samples=shape[0],
        outputs=shape[1],
        columns=flat.count(params) // (shape[0] if direct else 1),
        dtype=problem.backend.physics_dtype if direct else problem.backend.network_dtype,
        controls=scalars(problem.control_layouts) if batch_map.narrow else shape[1],
        factor_width=batch_jacobian.factor_width([(use.architecture, use.every_step) for use in problem.networks]),
        direct=direct,
    )


def invert_samples(xp: Any, j: Any, gradient: Any, options: HalfInversion) -> tuple[Any, dict[str, Any]]:
    """(u (B, n), report) for J (B, d, n) and g (B, d), in float64: each sample with its own cut.

    algorithm: gram, by the eigenvectors of the smaller of J Jᵀ and JᵀJ; or svd64. NaN for anything not finite.
    """
    j, gradient = xp.astype(j, "float64"), xp.astype(gradient, "float64")
    # Solvers may loop for ever, or raise, on NaN: they get zeros and the result NaN.
    finite = xp.logical_and(xp.all(xp.isfinite(j)), xp.all(xp.isfinite(gradient)))
    j = xp.where(finite, j, xp.zeros_like(j))
    wide = j.shape[1] <= j.shape[2]
    relative = options.truncation_mode == "relative"
    if options.algorithm == "svd64":
        left, s, right = xp.svd(j)
        cut = options.truncation * (xp.max(s, axis=1)[:, None] if relative else xp.ones_like(s))
        kept = xp.logical_and(s > cut, s > 0)
        if options.damping:
            damped = s**2 + options.damping * (xp.max(s, axis=1)[:, None] * xp.ones_like(s)) ** 2
            weights = s * _powers(xp, damped, kept, (options.exponent - 1) / 2)
        else:
            weights = _powers(xp, s, kept, options.exponent)
        u = xp.einsum("bkj,bk->bj", right, weights * xp.einsum("bik,bi->bk", left, gradient))
    else:
        gram = xp.einsum("bij,bkj->bik", j, j) if wide else xp.einsum("bji,bjk->bik", j, j)
        values, vectors = xp.eigh(gram)
        largest = xp.max(values, axis=1)[:, None] * xp.ones_like(values)
        floor = 0.0 if options.damping >= RESOLVED**2 else RESOLVED**2
        cut = xp.maximum(options.truncation**2 * (largest if relative else xp.ones_like(largest)), floor * largest)
        kept = xp.logical_and(values > cut, values > 0)
        if options.damping and not options.truncation and not floor:
            # Damped ones count even where they round to zero or below.
            kept, values = largest > 0, xp.maximum(values, xp.zeros_like(values))
        weights = _powers(xp, values + options.damping * largest, kept, (options.exponent - 1) / 2)
        side = gradient if wide else xp.einsum("bij,bi->bj", j, gradient)
        inner = xp.einsum("bij,bj->bi", vectors, weights * xp.einsum("bij,bi->bj", vectors, side))
        u = xp.einsum("bij,bi->bj", j, inner) if wide else inner
        s = xp.sqrt(xp.maximum(values, xp.zeros_like(values)))
    nothing = xp.full_like(u, float("nan"))
    report = {
        "kept_rank": xp.mean(xp.sum(xp.where(kept, xp.ones_like(s), xp.zeros_like(s)), axis=1)),
        "largest_singular_value": xp.max(s),
    }
    return xp.where(finite, u, nothing), report


def _powers(xp: Any, values: Any, kept: Any, exponent: float) -> Any:
    """value^exponent where kept, else 0."""
    return xp.where(kept, xp.where(kept, values, xp.ones_like(values)) ** exponent, xp.zeros_like(values))
