"""The published experiments of half-inverse gradients: first epochs, both backends, families of scenarios.

References: Schnell, Holl, Thuerey 2022 and its published code (one run each, so factors of two to three are chance);
the linear chain's losses are printed in Physics-based Deep Learning, chapter "Half-Inverse Gradients".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import toolkit
from toolkit.commands.locate import shipped
from toolkit.core.backend import using
from toolkit.scenario.build import Built, build
from toolkit.scenario.sweep import expand
from toolkit.training.data import FiniteBatches, Remembered
from toolkit.training.loop import TrainState, evaluate
from toolkit.training.problem import batch_from_tree

EXPERIMENTS = ("oscillators_linear", "oscillators", "quantum_dipole", "toy_regression", "poisson_hig")
RIVALS = ("_adam", "_gauss_newton")
SENSITIVITY = shipped()["oscillators_linear_sensitivity"]


def training_losses(name: str, updates: Iterable[int], backend: str = "jax", **overrides: Any) -> list[float]:
    """Mean losses over the whole training set after these numbers of updates."""
    changed = {key.replace("__", "."): value for key, value in overrides.items()}
    sections = toolkit.load_scenario(shipped()[name], {"run.backend": backend, **changed}).sections
    with using(backend, "cpu", "float64", "float64") as active:
        built = build(sections, active, lambda path: {})
        assert built.trainer is not None
        assert isinstance(built.batches, Remembered)
        assert isinstance(built.batches.batches, FiniteBatches)
        everything = built.batches.batches.assemble(built.batches.batches.samples).tree()

        def mean_loss(params: Any, buffers: Any, tree: Any) -> Any:
            return active.xp.mean(evaluate(built.problem, params, buffers, batch_from_tree(tree)).loss)

        state = built.trainer.start(built.params, built.buffers)
        measure = active.compile(mean_loss, state.params, state.buffers, everything)
        losses = []
        for last in updates:
            state = trained(built, state, last)
            losses.append(float(active.without_gradient(measure, state.params, state.buffers, everything)))
    return losses


def trained(built: Built, state: TrainState, last: int) -> TrainState:
    """The state after `last` updates."""
    assert built.trainer is not None
    assert built.batches is not None
    while state.step < last:
        state, _ = built.trainer.step(state, built.batches(state.step))
    return state


def test_four_epochs_of_the_linear_chain_give_the_printed_losses():
    losses = training_losses("oscillators_linear", (128, 256, 384, 512))
    printed = (5.44e-5, 1.06e-5, 3.16e-6, 1.19e-6)
    # One run of the notebook, whose seed is unknown, in single precision; over seeds of weights and data ours vary by
    # 10 % after the first epoch and 40 % after the fourth.
    assert np.all(np.abs(np.log2(np.divide(losses, printed))) < 1), losses


def test_torch_follows_the_same_way_for_a_dozen_updates():
    on_torch, on_jax = (
        training_losses("oscillators_linear", (12,), backend=backend, data__train=512) for backend in ("torch", "jax")
    )
    # From 2.5 at the start.
    assert on_jax[0] < 0.1
    # Condition numbers up to 1e5 amplify rounding from update to update; measured 1e-11.
    np.testing.assert_allclose(on_torch, on_jax, rtol=1e-6)


def test_an_epoch_of_the_nonlinear_oscillators():
    # 0.128 and 0.106 after one epoch of two other implementations; before it, the losses scatter from 0.6 to 0.9.
    before, after = training_losses("oscillators", (0, 32))
    assert 0.5 < before < 1.2
    assert 0.12 / 2.5 < after < 0.12 * 2.5


def test_an_epoch_of_the_quantum_dipole():
    # Near no overlap the gradient vanishes, so the overlap, 0.058 in another implementation, has only begun to grow.
    (after,) = training_losses("quantum_dipole", (64,))
    assert 0.058 / 4 < 1 - after < 0.058 * 4


SMALL = {
    "quantum_dipole": {"train.batch_size": 4, "time.steps": 12},
    # By eigenvalues of JᵀJ, rounding in directions of s near 1e-6 s_max would show as 1e-4.
    "toy_regression": {"train.batch_size": 16, "update.algorithm": "svd64"},
}


@pytest.mark.parametrize("name", SMALL)
def test_three_updates_are_the_same_on_both_backends(name):
    states = []
    for backend in ("torch", "jax"):
        overrides = {"run.backend": backend, "data.validation": 4, "data.train": 64, **SMALL[name]}
        sections = toolkit.load_scenario(shipped()[name], overrides).sections
        with using(backend, "cpu", "float64", "float64") as active:
            built = build(sections, active, lambda path: {})
            assert built.trainer is not None
            state = trained(built, built.trainer.start(built.params, built.buffers), 3)
            states.append({key: active.numpy(value) for key, value in state.params.items()})
    for key, value in states[0].items():
        # Kept singular values reach down to 1e-5 of the largest, rounding comes back multiplied.
        np.testing.assert_allclose(value, states[1][key], rtol=0, atol=1e-6 * np.abs(value).max(), err_msg=key)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_rules_of_an_experiment_face_the_same_problem(name):
    family = {suffix: toolkit.load_scenario(shipped()[name + suffix]).sections for suffix in ("", *RIVALS)}
    for key in ("grid", "pde", "time", "controls", "data", "networks", "loss", "output"):
        values = [getattr(sections, key) for sections in family.values()]
        assert all(value == values[0] for value in values), key
    assert [s.update.type for s in family.values() if s.update] == ["hig", "dp", "gauss_newton"]
    assert len({s.train.time_limit for s in family.values()}) == 1


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_sweep_of_an_experiment_repeats_its_scenarios(name):
    cells = expand(toolkit.load_scenario(shipped()[f"{name}_sweep"]))
    assert [tuple(cell.labels.values()) for cell in cells] == [
        (seed, rule) for seed in (0, 1, 2) for rule in ("hig", "adam", "gauss_newton", "levenberg_marquardt")
    ]
    for cell, suffix in zip(cells[:3], ("", *RIVALS), strict=True):
        alone = toolkit.load_scenario(shipped()[name + suffix]).sections
        assert cell.scenario.sections.update == alone.update or name == "poisson_hig"
        assert cell.scenario.sections.network_precision == alone.network_precision
        assert cell.scenario.sections.train.time_limit == alone.train.time_limit or name == "poisson_hig"


def test_the_sensitivity_sweep_changes_one_number_at_a_time():
    cells = {c.labels["variant"]: c.scenario.sections for c in expand(toolkit.load_scenario(SENSITIVITY))}
    default = cells.pop("default")
    assert default.update is not None
    assert default.train.steps == 768
    for name, cell in cells.items():
        assert cell.update is not None
        assert cell.train.steps is not None
        # Six epochs of 4096 samples, whatever the batch.
        assert cell.train.steps * cell.train.batch_size == 6 * 4096, name
        rate = cell.update.optimizer.learning_rate
        assert isinstance(rate, float)
        kept = [
            cell.update.options == default.update.options,
            rate * cell.train.batch_size == 1.0,
            cell.train.batch_size == 32,
        ]
        assert kept.count(False) == 1, name
