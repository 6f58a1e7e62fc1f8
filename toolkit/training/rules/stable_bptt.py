"""Stable backpropagation through time: for networks that act at every step of a long rollout.

With A_i = ∂S/∂x, B_i = ∂S/∂c of the physics x_{i+1} = S(x_i, c_i), K_i = ∂N/∂x of the controller c_i = N(x_i; θ), the
direct terms ℓ_i and r_i of the loss on x_i and c_i, and two gates α, β,

    μ_i = B_iᵀ λ_{i+1} + ∇r_i
    λ_i = ∇ℓ_i + β A_iᵀ λ_{i+1} + α K_iᵀ μ_i
    V(α, β) = Σ_i (∂N/∂θ at x_i)ᵀ μ_i

G = V(1, 1) is the gradient (`full`). Its products of A + BK explode or vanish, because networks, unlike solvers, do not
come with well-scaled input Jacobians. M = V(0, 1) (`physics`) leaves them out, at the price of being no gradient: with
rotation in it, an optimizer may circle around a minimum. `combined` takes a component of M where G has its sign,

    C_j = M_j if sign M_j = sign G_j, else 0,

so that ⟨G, C⟩ ≥ max(0, ⟨G, M⟩): a step along −C never climbs. V(0, 0) (`stopped`) sees the next state alone, V(1, 0)
(`network`) is there for comparison. The vote is taken over sums of the batch and before clipping. Minima without a
residual are zeros of all of them. Schnell, Thuerey: Stabilizing Backpropagation Through Time to Learn Complex Physics,
ICLR 2024, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from toolkit.core.backend import Backend
from toolkit.core.optimizers import euclidean_norm
from toolkit.core.options import Options, option
from toolkit.physics.plugin import Timing
from toolkit.physics.rollout import GradientFlow
from toolkit.training.problem import Batch, Natives, Problem
from toolkit.training.rules.base import Update, UpdateRulePlugin

Word = Literal["physics", "full", "stopped", "network"]
GATES: dict[str, tuple[float, float]] = {
    "full": (1.0, 1.0),
    "physics": (0.0, 1.0),
    "stopped": (0.0, 0.0),
    "network": (1.0, 0.0),
}
"""(α, β) by flow."""
VOTE = ("physics", "full")
"""Whose components `combined` takes, and who has to agree with their sign."""
METRICS = {
    "physics_norm": ("norm of M, the direction without the path through the controller's input", "1"),
    "full_norm": ("norm of G, the gradient", "1"),
    "cosine": ("cosine of the angle between M and G", "1"),
    "kept_share": ("share of the components of M that are kept and not zero", "1"),
}
OVERFLOW = (
    "The rollout is too long or too unstable to be differentiated whole. Set update.truncate, shorten time.steps, "
    "or set run.precision to float64"
)


class StableBpttOptions(Options):
    """Options of stable backpropagation through time."""

    flow: Literal["combined", "physics", "full", "stopped", "network"] | list[Word] = option(
        "combined",
        description="paths that gradients take: full (state and controller input), physics (state alone), network "
        "(controller input alone), stopped (none), a list with one of these per step, or combined (physics, where "
        "full agrees with the sign)",
    )
    truncate: int | None = option(
        None, ge=1, units="steps", description="cut both paths before every so many steps; left out: nowhere"
    )


@dataclass(frozen=True)
class StableBptt:
    """The rule; `combined` evaluates the rollout once and goes back through it twice."""

    flow: str | tuple[str, ...] = "combined"
    truncate: int | None = None

    remedies: ClassVar[Mapping[str, str]] = {"physics_norm": OVERFLOW, "full_norm": OVERFLOW}
    """What to do where a metric is not finite, by metric."""

    def __call__(self, problem: Problem, params: Natives, buffers: Natives, batch: Batch) -> Update:
        b = problem.backend

        def objective(params: Natives, flow: GradientFlow) -> tuple[Any, Any]:
            x, after = problem.predict(params, buffers, batch, training=True)
            y = problem.observe(x, batch.context, problem.policy(params, buffers, batch.targets), flow)
            return b.xp.sum(problem.loss(y, batch.targets)), (x, after)

        if self.flow != "combined":
            flow = GradientFlow(*self._gates(problem, self.flow))
            # With all paths cut, nothing may be left: explicit Euler moves what is judged a step later.
            value, (x, after), direction = b.value_and_gradient(
                lambda params: objective(params, flow), params, may_vanish=self.flow != "full"
            )
            return Update(direction, value, buffers=after, controls=x)
        (alpha, beta), (agreeing, _) = (self._gates(problem, word) for word in VOTE)
        gates = {"alpha": b.array(np.array([alpha, agreeing], float), "physics")}
        value, (x, after), (modified, full) = b.gated_gradients(
            lambda params, gates: objective(params, GradientFlow(gates["alpha"], beta)), params, gates
        )
        direction = agreement(b, modified, full)
        return Update(direction, value, buffers=after, controls=x, metrics=vote(b, modified, full, direction))

    def _gates(self, problem: Problem, flow: str | tuple[str, ...]) -> tuple[Any, Any]:
        """(α, β), numbers or one per step."""
        steps = problem.rollout.steps
        # The start is no result of the loop: where it is unknown, the way back to it through the physics stays open.
        open_start = any(control.key.startswith("initial.") for control in problem.controls)
        if isinstance(flow, str) and self.truncate is None and (not open_start or GATES[flow][1]):
            return GATES[flow]
        words = [flow] * steps if isinstance(flow, str) else flow
        cut = [self.truncate is not None and i > 0 and i % self.truncate == 0 for i in range(steps)]
        pairs = [GATES["stopped"] if stop else GATES[word] for word, stop in zip(words, cut, strict=True)]
        alpha, beta = ([float(pair[edge]) for pair in pairs] for edge in (0, 1))
        beta[0] = 1.0
        return alpha, beta


def agreement(backend: Backend, modified: Natives, full: Natives) -> dict[str, Any]:
    """C_j = M_j where sign M_j = sign G_j, else 0, by parameter; signs are −1, 0 and 1."""
    xp = backend.xp
    return {name: xp.where(xp.sign(m) == xp.sign(full[name]), m, xp.zeros_like(m)) for name, m in modified.items()}


def vote(backend: Backend, modified: Natives, full: Natives, combined: Natives) -> dict[str, Any]:
    """|M|, |G|, cos(M, G) (0 where one of them is 0) and the share of components that are kept and not 0."""
    xp = backend.xp
    norms = {"physics_norm": euclidean_norm(modified, xp), "full_norm": euclidean_norm(full, xp)}
    # Each scaled first: products of what nearly overflows would.
    units = [_scaled(xp, tree, norm) for tree, norm in zip((modified, full), norms.values(), strict=True)]
    cosine = sum(xp.sum(units[0][name] * units[1][name]) for name in modified)
    kept = sum(xp.sum(backend.cast(value != 0, "network")) for value in combined.values())
    return {**norms, "cosine": cosine, "kept_share": kept / sum(_size(value) for value in combined.values())}


def _scaled(xp: Any, tree: Natives, norm: Any) -> dict[str, Any]:
    safe = xp.where(norm > 0, norm, xp.ones_like(norm))
    return {name: value / safe for name, value in tree.items()}


def _size(array: Any) -> int:
    return int(np.prod(array.shape))


def _check(options: Any, timing: Timing) -> str | None:
    if isinstance(options.flow, Sequence) and not isinstance(options.flow, str) and len(options.flow) != timing.steps:
        return f"flow: expected a word or one word for each of time.steps = {timing.steps}, got {len(options.flow)}"
    if options.truncate is not None and options.truncate > timing.steps:
        return f"truncate: expected at most time.steps = {timing.steps}, got {options.truncate}; leave it out"
    return None


def _build(options: StableBpttOptions) -> StableBptt:
    flow = options.flow if isinstance(options.flow, str) else tuple(options.flow)
    return StableBptt(flow, options.truncate)


RULE = UpdateRulePlugin(
    name="stable_bptt",
    summary="backpropagation through long closed loops without the path through the network's input, checked by a vote",
    options=StableBpttOptions,
    build=_build,
    needs=frozenset({"network", "every_step"}),
    potential=lambda options: options.flow == "full" and options.truncate is None,
    check=_check,
    metrics=METRICS,
    references=("Schnell & Thuerey 2024, sections 3 and 4",),
    formula="G = V(1, 1), M = V(0, 1), V(α, β): gradient with the network's input path times α, the state's times β\n"
    "direction_j = M_j if sign M_j = sign G_j, else 0 (flow: combined)",
)
