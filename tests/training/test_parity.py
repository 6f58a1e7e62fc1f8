"""The same scenario, weights and batch give the same numbers on torch and JAX, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numeric_cases import built, heat, relative, tree_relative

from toolkit.core.backend import NAMES, using
from toolkit.training.problem import batch_from_tree

GRID = "{x: 16, y: 12}"
NETWORKS = {"mlp": "mlp, layers: [6], activation: tanh", "u_net": "u_net, levels: 2, filters: 4"}
RULES = {"supervised": "supervised", "dp": "dp", "sip": "sip, inverse_solver: damped_spectral"}
ADAM = ", optimizer: {type: adam, learning_rate: 1e-3}"


def text(network: str, rule: str) -> str:
    return heat(network=NETWORKS[network], update=RULES[rule] + ADAM, cells=GRID)


def directions(name: str, network: str) -> dict[str, Any]:
    """(loss, direction) of every rule on one backend, as one program."""
    with using(name, device="cpu") as b:
        cases = {rule: built(text(network, rule), b) for rule in RULES}
        case = cases["dp"]

        def function(params: Any, buffers: Any, tree: Any) -> Any:
            batch, result = batch_from_tree(tree), {}
            for rule, c in cases.items():
                update = c.trainer.rule(c.problem, params, buffers, batch)
                result[rule] = {"loss": update.loss, **update.direction}
            return result

        arguments = (case.params, case.buffers, case.validation.tree())
        result = b.compile(function, *arguments)(*arguments)
        return {rule: {k: b.numpy(v) for k, v in tree.items()} for rule, tree in result.items()}


@pytest.mark.parametrize("network", NETWORKS)
def test_losses_and_directions_agree(network):
    first, second = (directions(name, network) for name in NAMES)
    for rule in RULES:
        assert relative(first[rule].pop("loss"), second[rule].pop("loss")) < 1e-11
        # Convolutions and FFTs sum in another order; batch normalisation enlarges it.
        assert tree_relative(first[rule], second[rule]) < 1e-9
        # Not trivially: the rules point somewhere, and elsewhere than each other.
        assert max(np.max(np.abs(v)) for v in first[rule].values()) > 1e-6
    assert tree_relative(first["dp"], first["supervised"]) > 1e-3


@pytest.mark.parametrize("rule", RULES)
def test_ten_adam_steps_agree(rule):
    ends, start = [], {}
    for name in NAMES:
        with using(name, device="cpu") as b:
            case = built(text("mlp", rule), b, train__steps=10)
            state = case.trainer.start(case.params, case.buffers)
            for k in range(10):
                state, _ = case.trainer.step(state, case.batches(k))
            ends.append({key: b.numpy(value) for key, value in state.params.items()})
            start = {key: b.numpy(value) for key, value in case.params.items()}
    # Adam's first steps divide by tiny |g|: a relative error of 1e-12 there may grow to 1e-8.
    assert tree_relative(*ends) < 1e-7
    assert tree_relative(ends[0], start) > 1e-3


def test_u_net_under_sip_agrees_after_ten_adam_steps():
    ends, losses = [], []
    for name in NAMES:
        with using(name, device="cpu") as b:
            case = built(text("u_net", "sip"), b, train__steps=10)
            state, measured = case.trainer.start(case.params, case.buffers), {}
            for k in range(10):
                state, measured = case.trainer.step(state, case.batches(k))
            ends.append({k: b.numpy(v) for k, v in {**state.params, **state.buffers}.items()})
            losses.append(measured["train_loss"])
    assert tree_relative(*ends) < 1e-7
    assert losses[0] == pytest.approx(losses[1], rel=1e-7)
