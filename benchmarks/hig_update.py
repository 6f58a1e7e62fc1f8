"""Time of a whole update with half-inverse gradients against a plain JAX program of the same update.

    OMP_NUM_THREADS=1 python benchmarks/hig_update.py [--repeats 40] [--no-torch]

Case: the nonlinear oscillators (batch 128, 96 Runge–Kutta steps, dense layers 4-20-20-20-96), a Jacobian of 512 x 2956
in float64. The plain program is what one writes in JAX by hand: vmap(jacrev) through a `lax.scan`, J Jᵀ, eigh, in one
jit. All programs take turns in one process, so that a busy machine slows all of them; ratios are of medians and of the
least times. The last column is the difference of the direction u from the plain program's, and of J u, which the loss
sees; Lanczos stops where J u has converged, long before u.
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
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from turns import Contender, take_turns

from toolkit import load_scenario
from toolkit.core.backend import Backend, using
from toolkit.scenario.build import Built, build

SCENARIO = Path(__file__).resolve().parents[1] / "scenarios" / "oscillators_adam.yaml"
BATCH, STEPS, DT, TRUNCATION = 128, 96, 0.125, 1e-6
HIG = {
    "update.type": "hig",
    "update.truncation": TRUNCATION,
    "update.optimizer.type": "sgd",
    "update.optimizer.learning_rate": 1 / BATCH,
}
RULES: dict[str, dict[str, Any]] = {
    "hig": HIG,
    "hig explicit": {**HIG, "update.algorithm": "adaptive"},
    "hig lanczos": {**HIG, "update.algorithm": "lanczos", "update.krylov_steps": 100},
    "hig products": {**HIG, "update.memory": 1e-3, "update.krylov_steps": 20},
    "adam": {},
}


def built(backend: Backend, overrides: dict[str, Any]) -> Built:
    """The scenario with this rule, in float64."""
    common = {"train.batch_size": BATCH, "run.precision": "float64", "run.backend": backend.name, "data.train": BATCH}
    return build(load_scenario(SCENARIO, {**common, **overrides}).sections, backend, lambda path: {})


def plain_update(names: list[str], with_jacobian: bool = False) -> Callable[[Any, Any], Any]:
    """The update by hand: (θ, y* (B, 4)) -> (θ', direction, J if asked for)."""

    def rate(s: Any, u: Any) -> Any:
        x1, x2, v1, v2 = s
        pull = (x2 - x1) ** 3
        return jnp.stack([v1, v2, -x1 + pull, -x2 - pull + 3.0 * u])

    def step(s: Any, u: Any) -> tuple[Any, None]:
        k1 = rate(s, u)
        k2 = rate(s + DT / 2 * k1, u)
        k3 = rate(s + DT / 2 * k2, u)
        k4 = rate(s + DT * k3, u)
        return s + DT / 6 * (k1 + 2 * (k2 + k3) + k4), None

    def one(theta: Any, target: Any) -> Any:
        h = target
        for i, layer in enumerate(names):
            h = theta[f"{layer}.weight"] @ h + theta[f"{layer}.bias"]
            h = jax.nn.relu(h) if i < len(names) - 1 else h
        return jax.lax.scan(step, target, h)[0]

    def update(theta: Any, targets: Any) -> tuple[Any, Any, Any]:
        flat, unravel = jax.flatten_util.ravel_pytree(theta)
        y = jax.vmap(lambda t: one(theta, t))(targets)
        g = (2.0 * (y - targets)).reshape(-1)
        j = jax.vmap(lambda t: jax.jacrev(lambda p: one(unravel(p), t))(flat))(targets)
        j = j.reshape(g.size, flat.size)
        values, vectors = jnp.linalg.eigh(j @ j.T)
        kept = values > TRUNCATION**2 * values[-1]
        weights = jnp.where(kept, jnp.where(kept, values, 1.0) ** -0.75, 0.0)
        u = (vectors @ (weights * (vectors.T @ g))) @ j
        return unravel(flat - u / BATCH), unravel(u), j if with_jacobian else None

    return jax.jit(update)


def contender(backend: Backend, made: Built) -> Contender:
    """Updates of a scenario."""
    trainer, batches = made.trainer, made.batches
    assert trainer is not None
    assert batches is not None
    state, batch = trainer.start(made.params, made.buffers), batches(0)
    return Contender(lambda: trainer.step(state, batch))


def plain(made: Built) -> tuple[Contender, Any, Any]:
    """The program by hand on the same batch and weights, its direction and Jacobian."""
    assert made.batches is not None
    assert made.trainer is not None
    layers = sorted({name.rpartition(".")[0] for name in made.params}, key=lambda n: (n.endswith("out"), n))
    targets, update = made.batches(0).targets["final.state"], plain_update(layers)
    theta = dict(made.params)
    _, direction, j = plain_update(layers, with_jacobian=True)(theta, targets)
    return Contender(lambda: jax.block_until_ready(update(theta, targets))), direction, np.asarray(j)


def difference(made: Built, expected: Any, j: np.ndarray) -> str:
    """Of u and J u of one update with SGD from the plain one, relative."""
    assert made.trainer is not None
    assert made.batches is not None
    state = made.trainer.start(made.params, made.buffers)
    moved, _ = made.trainer.step(state, made.batches(0))
    b = made.problem.backend
    found = np.concatenate([BATCH * b.numpy(made.params[n] - moved.params[n]).ravel() for n in sorted(made.params)])
    wanted = np.concatenate([np.asarray(expected[n]).ravel() for n in sorted(made.params)])
    both = ((found, wanted), (j @ found, j @ wanted))
    return ", ".join(f"{np.linalg.norm(a - b) / np.linalg.norm(b):.0e}" for a, b in both)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--no-torch", action="store_true")
    options = parser.parse_args()
    with using("jax", "cpu", "float64", "float64") as backend:
        programs: dict[str, Contender] = {}
        differences: dict[str, str] = {}
        reference = built(backend, RULES["hig"])
        programs["plain JAX"], expected, j = plain(reference)
        for name, overrides in RULES.items():
            made = built(backend, overrides)
            programs[name] = contender(backend, made)
            if name != "adam":
                differences[name] = difference(made, expected, j)
        take_turns(programs.values(), options.repeats)
        _table(programs, differences)
    if not options.no_torch:
        with using("torch", "cpu", "float64", "float64") as backend:
            slow = {f"torch {name}": contender(backend, built(backend, RULES[name])) for name in ("hig", "adam")}
            take_turns((*slow.values(), programs["hig"]), max(3, options.repeats // 8))
            _table({**slow, "plain JAX": programs["plain JAX"]}, {})


def _table(programs: dict[str, Contender], differences: dict[str, str]) -> None:
    base = programs["plain JAX"].seconds
    print(f"{'program':13s} | median ms | least ms | of plain JAX (median, least) | first call s | u, J u")
    for name, program in programs.items():
        found = program.seconds
        ratios = f"{median(found) / median(base):6.2f} {min(found) / min(base):6.2f}"
        times = f"{1e3 * median(found):9.1f} | {1e3 * min(found):8.1f}"
        told = f"{ratios:>28s} | {program.first:12.1f} | {differences.get(name, '')}"
        print(f"{name:13s} | {times} | {told}", flush=True)


if __name__ == "__main__":
    main()
