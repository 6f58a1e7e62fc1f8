"""Time per update of stable backpropagation through time on the cart-pole, beside programs written by hand in JAX.

    OMP_NUM_THREADS=1 python benchmarks/bptt_cost.py [--poles 1] [--repeats 200] [--no-torch]

One update: batch 8, 100 steps, a network of 100 and 100 units called at each of them, float32, Adam. The programs by
hand are what one writes in JAX for this one problem: a `lax.scan`, `value_and_grad`, Adam, in one jit; `two passes`
takes M and G from two of them. All programs take turns in one process, so that a busy machine slows all of them;
ratios are of medians and, in brackets, of the least times.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
from turns import Contender, take_turns

from toolkit import load_scenario
from toolkit.core.backend import Backend, using
from toolkit.scenario.build import Built, build

SCENARIO = Path(__file__).resolve().parents[1] / "scenarios" / "cart_pole.yaml"
FLOWS = ("full", "physics", "stopped", "combined")
RATE, BETA1, BETA2 = 1e-3, 0.9, 0.999


def built(backend: Backend, poles: int, flow: str) -> Built:
    """The scenario with this flow."""
    overrides = {"pde.poles": poles, "update.flow": flow, "run.backend": backend.name}
    return build(load_scenario(SCENARIO, overrides).sections, backend, lambda path: {})


def plain_step(state: Any, push: Any, dt: float) -> Any:
    """Semi-implicit Euler of the published equations."""
    cart, angle, rate = state
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    own = (push + 0.05 * sine * rate**2) / 1.1
    angular = (9.8 * sine - cosine * own) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
    total = (push + 0.05 * jnp.sum(sine * rate**2 - angular * cosine, axis=1, keepdims=True)) / 1.1
    velocity, rate = cart[:, 1:] + dt * total, rate + dt * angular
    return jnp.concatenate([cart[:, :1] + dt * velocity, velocity], axis=1), angle + dt * rate, rate


def plain_loss(theta: Any, start: Any, stop_input: bool) -> Any:
    """Mean loss of a batch after 100 steps."""

    def body(state: Any, _: Any) -> tuple[Any, None]:
        seen = jnp.concatenate(state, axis=1)
        seen = jax.lax.stop_gradient(seen) if stop_input else seen
        h = jnp.tanh(seen @ theta["controller/dense0.weight"].T + theta["controller/dense0.bias"])
        h = jnp.tanh(h @ theta["controller/dense1.weight"].T + theta["controller/dense1.bias"])
        push = h @ theta["controller/out.weight"].T + theta["controller/out.bias"]
        return plain_step(state, push, 0.01), None

    (_, angle, _), _ = jax.lax.scan(body, start, None, 100)
    return jnp.mean(1 - jnp.cos(angle))


def plain_update(combined: bool) -> Callable[..., Any]:
    """(θ, Adam's state, start) -> the same after one update, and the loss."""

    def update(theta: Any, moments: Any, start: Any) -> Any:
        loss, g = jax.value_and_grad(plain_loss)(theta, start, False)
        if combined:
            m = jax.grad(plain_loss)(theta, start, True)
            g = jax.tree.map(lambda m, g: jnp.where(jnp.sign(m) == jnp.sign(g), m, 0), m, g)
        first, second, t = moments
        t = t + 1
        first = jax.tree.map(lambda a, d: BETA1 * a + (1 - BETA1) * d, first, g)
        second = jax.tree.map(lambda a, d: BETA2 * a + (1 - BETA2) * d * d, second, g)
        scale = RATE * jnp.sqrt(1 - BETA2**t) / (1 - BETA1**t)
        theta = jax.tree.map(lambda p, a, v: p - scale * a / (jnp.sqrt(v) + 1e-7), theta, first, second)
        return theta, (first, second, t), loss

    return jax.jit(update)


def ours(backend: Backend, poles: int, flow: str) -> Contender:
    """Updates of the scenario, from state to state."""
    made = built(backend, poles, flow)
    trainer, batches = made.trainer, made.batches
    assert trainer is not None
    assert batches is not None
    state = [trainer.start(made.params, made.buffers)]
    batch = batches(0)

    def step() -> None:
        state[0], _ = trainer.step(state[0], batch)

    return Contender(step)


def by_hand(backend: Backend, poles: int, combined: bool) -> Contender:
    """Updates of the program written for this problem, on the same weights and batch."""
    made = built(backend, poles, "full")
    assert made.batches is not None
    context = made.batches(0).context
    start = tuple(context[f"initial.{name}"] for name in ("cart", "angle", "angular_velocity"))
    zeros = jax.tree.map(jnp.zeros_like, dict(made.params))
    state = [(dict(made.params), (zeros, zeros, jnp.zeros((), jnp.float32)))]
    update = plain_update(combined)

    def step() -> None:
        theta, moments, loss = jax.block_until_ready(update(*state[0], start))
        float(loss)
        state[0] = (theta, moments)

    return Contender(step)


def table(title: str, contenders: dict[str, Contender], repeats: int, against: str) -> None:
    """Take turns, then print a row for each."""
    take_turns(contenders.values(), repeats)
    reference = contenders[against].seconds
    print(f"\n{title}\n{'':24} |  first s | median ms | least ms | of {against} (least)")
    for name, contender in contenders.items():
        middle, least = median(contender.seconds), min(contender.seconds)
        ratio = f"{middle / median(reference):.2f} ({least / min(reference):.2f})"
        print(f"{name:24} | {contender.first:8.2f} | {1e3 * middle:9.2f} | {1e3 * least:8.2f} | {ratio}")


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--poles", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--no-torch", action="store_true")
    chosen = parser.parse_args()
    print(f"{chosen.poles} pole(s), batch 8, 100 steps, float32, jax {jax.__version__}")
    with using("jax", "cpu", "float32", "float32") as backend:
        contenders = {
            "by hand, full": by_hand(backend, chosen.poles, False),
            "by hand, two passes": by_hand(backend, chosen.poles, True),
        }
        contenders |= {flow: ours(backend, chosen.poles, flow) for flow in FLOWS}
        table("JAX", contenders, chosen.repeats, "by hand, full")
    if not chosen.no_torch:
        with using("torch", "cpu", "float32", "float32") as backend:
            contenders = {flow: ours(backend, chosen.poles, flow) for flow in FLOWS}
            table("torch", contenders, max(chosen.repeats // 10, 3), "full")


if __name__ == "__main__":
    main()
