"""The loop: descent, resuming to the bit, limits, and divergence that says what to change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numeric_cases import built, heat, tree_relative, updated

from toolkit.core.errors import DivergenceError
from toolkit.training.loop import TrainState, evaluate, train

ADAM = "dp, optimizer: {type: adam, learning_rate: 0.01}"


def numpy(backend, tree):
    return {name: backend.numpy(value) for name, value in tree.items()}


def run(case, state, steps, **limits):
    """(last state, all records)."""
    done = list(train(case.trainer, state, case.batches, steps, **limits))
    return (done[-1][0] if done else state), [record for _, record in done]


def start(case):
    return case.trainer.start(case.params, case.buffers)


def test_a_step_is_the_optimizer_along_the_direction(backend):
    case = built(heat(update="dp, optimizer: {type: sgd, learning_rate: 0.25}"), backend)
    state, measured = case.trainer.step(start(case), case.validation)
    update = updated(case)
    moved = {name: backend.numpy(case.params[name] - state.params[name]) for name in case.params}
    assert tree_relative(moved, {k: 0.25 * v for k, v in update["direction"].items()}) < 1e-12
    # Losses of records are means, directions belong to sums.
    assert measured["train_loss"] == pytest.approx(update["loss"][""] / 3, rel=1e-13)
    norm = np.sqrt(sum(np.sum(v**2) for v in update["direction"].values()))
    assert measured["direction_norm"] == pytest.approx(norm, rel=1e-12)
    error = update["controls"]["initial.temperature"] - backend.numpy(case.validation.references["initial.temperature"])
    assert measured["train_control_error"] == pytest.approx(0.5 * np.sum(error**2) / 3, rel=1e-12)
    assert state.step == 1


def test_clipping_shortens_the_direction(backend):
    case = built(heat(update="dp, clip: {norm: 0.01}, optimizer: {type: sgd, learning_rate: 1.0}"), backend)
    state, measured = case.trainer.step(start(case), case.validation)
    length = np.sqrt(sum(np.sum(backend.numpy(case.params[k] - state.params[k]) ** 2) for k in case.params))
    assert length == pytest.approx(0.01, rel=1e-10)
    assert measured["direction_norm"] > 0.02  # what is reported is the unclipped one


def test_training_descends_and_numbers_its_steps(backend):
    case = built(heat(update=ADAM), backend, data__train=3)
    state, records = run(case, start(case), 40)
    assert state.step == len(records) == 40
    assert records[-1]["train_loss"] < 0.5 * records[0]["train_loss"]
    seconds = [record["wall_seconds"] for record in records]
    assert seconds == sorted(seconds)
    assert seconds[-1] == state.seconds
    assert all(0 < record["step_seconds"] <= record["wall_seconds"] for record in records)


def test_step_k_sees_batch_k(backend):
    case, seen = built(heat(), backend), []

    def batches(step):
        seen.append(step)
        return case.batches(step)

    list(train(case.trainer, replace(start(case), step=2), batches, 5))
    assert seen == [2, 3, 4]


@pytest.mark.parametrize("train_samples", ["infinite", 6])
def test_going_on_from_a_state_gives_the_uninterrupted_run_to_the_bit(backend, train_samples):
    text = heat(network="conv_net, layers: [2], batch_norm: true", update=ADAM)
    whole, halves = (built(text, backend, data__train=train_samples) for _ in range(2))
    expected, records = run(whole, start(whole), 6)
    middle, first = run(halves, start(halves), 3)
    # Only plain numbers survive an interruption; everything else is built anew.
    saved = TrainState(
        *(
            {k: backend.array(v) for k, v in numpy(backend, tree).items()}
            for tree in (middle.params, middle.buffers, middle.optimizer)
        ),
        step=middle.step,
        seconds=middle.seconds,
    )
    again = built(text, backend, data__train=train_samples)
    resumed, second = run(again, saved, 6)
    assert resumed.step == 6
    for found, wanted in zip(
        (resumed.params, resumed.buffers, resumed.optimizer),
        (expected.params, expected.buffers, expected.optimizer),
        strict=True,
    ):
        assert set(found) == set(wanted)
        for name in wanted:
            assert np.array_equal(backend.numpy(found[name]), backend.numpy(wanted[name])), name
    losses = [[r["train_loss"] for r in rs] for rs in (first + second, records)]
    assert losses[0] == losses[1]


def test_divergence_says_which_keys_to_change(backend):
    case = built(heat(network="mlp, layers: [5]", update="dp, optimizer: {type: sgd, learning_rate: 1e200}"), backend)
    with pytest.raises(DivergenceError) as caught:
        run(case, start(case), 5)
    message = str(caught.value)
    assert message.startswith("step 2: ")
    for key in ("update.optimizer.learning_rate", "update.step_size", "update.clip", "run.precision"):
        assert key in message


def test_a_time_limit_stops_training(backend):
    case = built(heat(), backend)
    state, records = run(case, start(case), None, time_limit=0.05)
    assert state.seconds >= 0.05
    # It stops at the first record past the limit, and compilation did not count.
    assert all(record["wall_seconds"] < 0.05 for record in records[:-1])
    assert run(case, state, None, time_limit=0.05)[1] == []
    assert run(case, replace(state, seconds=0.0), state.step, time_limit=10.0)[1] == []


def test_evaluation_uses_fixed_statistics_and_reports_per_sample(backend):
    case = built(heat(network="conv_net, layers: [2], batch_norm: true"), backend)
    result = evaluate(case.problem, case.params, case.buffers, case.validation, record=True)
    x = backend.numpy(result.controls["initial.temperature"])
    truth = backend.numpy(case.validation.references["initial.temperature"])
    assert np.allclose(backend.numpy(result.control_error), 0.5 * np.sum((x - truth) ** 2, axis=1), rtol=1e-12)
    y, target = backend.numpy(result.final["temperature"]), backend.numpy(case.validation.targets["final.temperature"])
    assert np.allclose(backend.numpy(result.loss), 0.5 * np.sum((y - target) ** 2, axis=1), rtol=1e-12)
    assert np.array_equal(backend.numpy(result.initial["temperature"]), x)
    assert np.array_equal(backend.numpy(result.states["temperature"])[:, -1], y)
    # One sample alone gives the same: no statistics of the batch are involved.
    one = case.validation.tree()
    first = {group: {k: v[:1] for k, v in arrays.items()} for group, arrays in one.items()}
    alone = evaluate(case.problem, case.params, case.buffers, type(case.validation)(**first))
    assert np.allclose(backend.numpy(alone.loss), backend.numpy(result.loss)[:1], rtol=1e-12)


@pytest.mark.parametrize(
    ("rule", "value"),
    # The first two explode: the square overflows.
    [("dp", 1e308), ("hig, algorithm: svd", 1e308), ("hig", np.nan), ("hig, algorithm: lanczos", np.nan)],
)
def test_divergence_names_the_sample(backend, rule, value):
    case = built(heat(update=rule, cells="{x: 4}"), backend)
    target = backend.numpy(case.validation.targets["final.temperature"])
    target[2] = value
    batch = replace(case.validation, targets={"final.temperature": backend.array(target)})
    with pytest.raises(
        DivergenceError, match=r"step 1: .* (is nan|is inf): .* of sample 2 of the batch, counted from 0"
    ):
        case.trainer.step(start(case), batch)


def test_divergence_of_a_direction_alone_says_so(backend):
    case = built(heat(), backend)

    def broken(*args):
        update = case.trainer.rule(*args)
        nothing = {name: value * float("nan") for name, value in update.direction.items()}
        return replace(update, direction=nothing)

    trainer = replace(case.trainer, rule=broken, _compiled={})
    with pytest.raises(DivergenceError, match=r"direction_norm is nan: loss .* finite .* direction is not"):
        trainer.step(start(case), case.validation)
