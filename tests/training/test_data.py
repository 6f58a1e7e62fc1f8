"""Batches are functions of a seed and a step number; targets come from the problem's own physics."""

from __future__ import annotations

import numpy as np
import pytest
from numeric_cases import built, heat

from toolkit.core.errors import ScenarioError
from toolkit.scenario.load import scenario_from_text
from toolkit.training.data import Assembler, FiniteBatches, FixedBatch, InfiniteBatches, training_samples
from toolkit.training.problem import batch_from_tree

INITIAL, FINAL = "initial.temperature", "final.temperature"


def case(backend, train: str | int = "infinite", seed=1, run_seed=0):
    return built(heat(), backend, data__train=train, data__seed=seed, run__seed=run_seed)


def references(backend, batch):
    return backend.numpy(batch.references[INITIAL])


def test_a_batch_of_an_infinite_source_is_a_function_of_seed_and_step(backend):
    one, other, shifted = case(backend), case(backend), case(backend, seed=2)
    assert isinstance(one.batches.batches, InfiniteBatches)
    other.batches(0)  # what was drawn before does not matter
    fourth = references(backend, one.batches(4))
    assert np.array_equal(fourth, references(backend, other.batches(4)))
    assert not np.array_equal(fourth, references(backend, one.batches(5)))
    assert not np.array_equal(fourth, references(backend, shifted.batches(4)))


@pytest.mark.parametrize("train", ["infinite", 3])
def test_training_and_validation_share_no_sample(backend, train):
    """Also where both draw as many, so that one stream would give the same numbers."""
    c = case(backend, train=train)
    assert len(references(backend, c.validation)) == len(references(backend, c.batches(0))) == 3
    seen = {u.tobytes() for u in references(backend, c.batches(0))}
    assert not seen & {u.tobytes() for u in references(backend, c.validation)}


def test_a_finite_source_shows_every_sample_once_per_epoch_in_a_new_order(backend):
    c = case(backend, train=6)
    assert isinstance(c.batches.batches, FiniteBatches)
    epochs = [np.concatenate([references(backend, c.batches(2 * e + k)) for k in range(2)]) for e in range(3)]
    rows = [[u.tobytes() for u in epoch] for epoch in epochs]
    assert len(set(rows[0])) == 6
    assert set(rows[0]) == set(rows[1]) == set(rows[2])
    assert not rows[0] == rows[1] == rows[2]


def test_a_finite_batch_is_a_function_of_seed_and_step(backend):
    one, other, shuffled = case(backend, train=6), case(backend, train=6), case(backend, train=6, run_seed=1)
    for k in range(5):
        one.batches(k)
    # Epoch 1 again, after epoch 2 has been asked for, and in another object from nothing.
    assert np.array_equal(references(backend, one.batches(3)), references(backend, other.batches(3)))
    orders = [[references(backend, c.batches(k)).tobytes() for k in range(4)] for c in (other, shuffled)]
    assert orders[0] != orders[1]


def test_a_ragged_rest_is_left_out(backend):
    c = case(backend, train=7)
    sizes = {len(references(backend, c.batches(k))) for k in range(6)}
    assert sizes == {3}
    # Batch 2 begins epoch 1.
    first = {u.tobytes() for k in range(2) for u in references(backend, c.batches(k))}
    assert len(first) == 6


def test_without_shuffling_every_epoch_has_the_order_drawn(backend):
    """Fixed batches; the shuffled run sees the same samples elsewhere."""
    c = built(heat(), backend, data__train=6, data__seed=1, data__shuffle=False, run__seed=5)
    drawn = training_samples(case(backend).batches.batches.source, 6)[INITIAL]
    for epoch in range(3):
        shown = np.concatenate([references(backend, c.batches(2 * epoch + k)) for k in range(2)])
        assert np.array_equal(shown, drawn)
    assert not np.array_equal(references(backend, case(backend, train=6, run_seed=5).batches(0)), drawn[:3])


def test_a_fixed_order_leaves_no_sample_out_for_ever():
    with pytest.raises(ScenarioError, match=r"data.shuffle: in a fixed order the last 1 of 7 samples would never be"):
        scenario_from_text(heat(), {"data.train": 7, "data.shuffle": False})


def test_an_infinite_source_has_no_order_to_keep():
    with pytest.raises(ScenarioError, match=r"data.shuffle: every batch of an infinite .* set data.train to a number"):
        scenario_from_text(heat(), {"data.shuffle": False})


def test_targets_are_the_physics_of_the_references(backend):
    c = case(backend)
    batch = c.batches(0)
    expected = c.problem.observe({INITIAL: batch.references[INITIAL]}, {})[FINAL]
    assert np.allclose(backend.numpy(batch.targets[FINAL]), backend.numpy(expected), atol=1e-15)
    assert not batch.context


def test_given_targets_are_taken_as_they_are(backend):
    c, y = case(backend), np.random.default_rng(0).standard_normal((2, 8))
    batch = Assembler(c.problem)({"target.temperature": y})
    assert np.array_equal(backend.numpy(batch.targets[FINAL]), y)
    assert not batch.references
    both = Assembler(c.problem)({"target.temperature": y, INITIAL: y + 1})
    assert np.array_equal(backend.numpy(both.targets[FINAL]), y)
    assert np.array_equal(references(backend, both), y + 1)


def test_what_is_not_unknown_is_context(backend):
    c, f = case(backend), np.ones((2, 8))
    batch = Assembler(c.problem)({INITIAL: 0 * f, "source.temperature": f})
    assert set(batch.context) == {"source.temperature"}
    # The source enters the target: the mean of u grows by the duration.
    assert np.allclose(backend.numpy(batch.targets[FINAL]), 1.0, atol=1e-14)


def test_a_direct_optimisation_always_sees_all_samples(backend):
    text = heat(more="").replace(
        "networks: {f: {type: mlp, layers: [5], activation: tanh, input: target, output: u0}}", ""
    )
    text = text.replace("{u0: {acts_on: initial.temperature}}", "{u0: {acts_on: initial.temperature, initial: 0.5}}")
    c = built(text, backend)
    assert isinstance(c.batches, FixedBatch)
    assert c.batches(0) is c.batches(9) is c.validation
    assert np.array_equal(backend.numpy(c.params["control/u0"]), np.full((3, 8), 0.5))


def test_a_batch_survives_its_tree(backend):
    batch = case(backend).batches(0)
    assert batch_from_tree(batch.tree()) == batch


@pytest.mark.parametrize("count", [1, 4])
def test_training_samples_are_as_many_as_asked_for(backend, count):
    source = case(backend).batches.batches.source
    assert training_samples(source, count)[INITIAL].shape == (count, 8)


def test_the_last_batch_is_kept(backend):
    """Validation looks at the last training batch again; it is not drawn and simulated a second time."""
    c = case(backend)
    first = c.batches(3)
    assert c.batches(3) is first
    assert c.batches(4) is not first
    assert np.array_equal(references(backend, c.batches(3)), references(backend, first))
