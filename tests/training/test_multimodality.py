"""P(x) = x² has two inverses: SIP stays with the branch it starts on, supervised training averages them away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from phiml import math

from toolkit.core.options import Options
from toolkit.core.params import prefixed
from toolkit.networks import mlp
from toolkit.networks.initialise import initialise
from toolkit.networks.plugin import NetworkShape
from toolkit.physics.layout import Layout
from toolkit.physics.losses import L2
from toolkit.physics.plugin import FieldSpec, InverseSolverPlugin, NoOptions, PDEPlugin
from toolkit.physics.rollout import Rollout
from toolkit.training.loop import Trainer, train
from toolkit.training.problem import Batch, Control, LossTerm, NetworkUse, Problem
from toolkit.training.rules.scale_invariant import ScaleInvariantPhysics
from toolkit.training.rules.supervised import Supervised

BATCH, STEPS = 64, 500


class Square:
    """y = x²."""

    def step(self, state, inputs, t, dt):
        return {"x": state["x"], "y": state["x"] ** 2}


@dataclass(frozen=True)
class NearestRoot:
    """±√y with the sign of x0."""

    def __call__(self, x0: Any, y0: Any, y_target: Any) -> dict[str, Any]:
        root = math.sqrt(math.maximum(y_target["final.y"], 0.0))
        return {"initial.x": math.where(x0["initial.x"] < 0, -root, root)}


PLUGIN = PDEPlugin(
    name="square",
    summary="x²",
    equation="y = x²",
    parameters=Options,
    fields=lambda parameters, grid: tuple(FieldSpec(n, n, on_grid=False) for n in "xy"),
    build=lambda grid, parameters: Square(),
    dimensions=(),
)
SOLVER = InverseSolverPlugin("nearest", "root of the same sign", lambda problem, options: NearestRoot())


def learned(backend, rule: Any, bias: float) -> np.ndarray:
    """Predictions at TARGETS after training a small network that starts near `bias`."""
    architecture = mlp.PLUGIN.build(mlp.MlpOptions(layers=[16, 16], activation="tanh"), NetworkShape(1, 1))
    weights, _ = initialise(architecture, np.random.default_rng(0))
    weights["out.bias"] = np.array([bias])
    params = prefixed({k: backend.array(v, "network") for k, v in weights.items()}, "f")
    layouts, control = {"x": Layout(), "y": Layout()}, Control("x", "initial.x", Layout())
    problem = Problem(
        backend=backend,
        plugin=PLUGIN,
        parameters=Options(),
        grid=None,
        rollout=Rollout(backend, Square(), layouts, {}, 1, 1.0),
        controls=(control,),
        networks=(NetworkUse("f", backend.network(architecture).apply, (control,)),),
        terms=(LossTerm("final.y", L2),),
        observations={"final.y": Layout()},
        solver=(SOLVER, NoOptions()),
    )

    def batches(step: int) -> Batch:
        rng = np.random.default_rng([1, step])
        x = np.sqrt(rng.uniform(0, 1, BATCH)) * rng.choice([-1, 1], BATCH)
        return Batch({"final.y": backend.array(x**2)}, {"initial.x": backend.array(x)})

    trainer = Trainer(problem, rule, backend.optimizer("adam", {}, 1e-2))
    *_, (state, _) = train(trainer, trainer.start(params, {}), batches, STEPS)
    x, _ = problem.predict(state.params, {}, Batch({"final.y": backend.array(TARGETS)}), training=False)
    return backend.numpy(x["initial.x"])


TARGETS = np.linspace(0.05, 1, 40)


@pytest.mark.parametrize("sign", [1, -1])
def test_sip_learns_the_branch_it_starts_on(backend, sign):
    found = learned(backend, ScaleInvariantPhysics(), 0.7 * sign)
    # What 500 Adam steps reach; √y has an infinite slope at 0, where the smooth network is least good.
    assert np.max(np.abs(found - sign * np.sqrt(TARGETS))) < 0.08


def test_supervised_training_on_labels_of_random_sign_learns_their_mean(backend):
    found = learned(backend, Supervised(), 0.7)
    # The mean of ±√y is 0; 64 samples per step leave noise of 1/√64 per label, averaged over steps.
    assert np.max(np.abs(found)) < 0.3
    assert np.mean(np.abs(found)) < 0.15
