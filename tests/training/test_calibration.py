"""Calibration: buffers hold the statistics of one batch; training never reads them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numeric_cases import built, heat, tree_relative, updated

from toolkit.training.calibration import calibrate
from toolkit.training.loop import evaluate

TEXT = heat(network="conv_net, layers: [2, 3], batch_norm: true")


def convolved(case, backend):
    """Output of the first convolution (B, C, x) on the periodic line, in NumPy."""
    y = backend.numpy(case.validation.targets["final.temperature"])
    weight = backend.numpy(case.params["f/conv0.weight"])
    neighbours = np.stack([np.roll(y, shift, axis=1) for shift in (1, 0, -1)], axis=0)
    return np.einsum("oik,kbx->box", weight, neighbours) + backend.numpy(case.params["f/conv0.bias"])[:, None]


def test_buffers_become_the_statistics_of_the_batch(backend):
    case = built(TEXT, backend)
    found = {
        k: backend.numpy(v) for k, v in calibrate(case.problem, case.params, case.buffers, case.validation).items()
    }
    assert set(found) == set(case.buffers)
    values = convolved(case, backend)
    mean = values.mean(axis=(0, 2))
    variance = values.var(axis=(0, 2), ddof=1)  # torch keeps the unbiased one
    assert np.allclose(found["f/norm0.running_mean"], mean, rtol=1e-12, atol=1e-15)
    assert np.allclose(found["f/norm0.running_var"], variance, rtol=1e-12)


def test_old_buffers_leave_no_trace(backend):
    case = built(TEXT, backend)
    odd = {name: 7 * backend.xp.ones_like(value) for name, value in case.buffers.items()}
    a, b = (calibrate(case.problem, case.params, old, case.validation) for old in (case.buffers, odd))
    for name in a:
        assert np.array_equal(backend.numpy(a[name]), backend.numpy(b[name]))


def test_prediction_with_calibrated_buffers_is_that_of_training(backend):
    """On the same batch both normalise with the same mean, and variances that differ by N / (N − 1)."""
    case = built(TEXT, backend)
    buffers = calibrate(case.problem, case.params, case.buffers, case.validation)
    fixed = evaluate(case.problem, case.params, buffers, case.validation).controls["initial.temperature"]
    trained, _ = case.problem.predict(case.params, case.buffers, case.validation, training=True)
    difference = backend.numpy(fixed - trained["initial.temperature"])
    # Two normalisations over N = 24 values; each scales by sqrt(23 / 24), 2 %.
    assert np.max(np.abs(difference)) < 0.05 * np.max(np.abs(backend.numpy(fixed)))


def test_training_does_not_read_the_buffers(backend):
    case = built(TEXT, backend)
    first = updated(case)
    odd = {name: 7 * backend.xp.ones_like(value) for name, value in case.buffers.items()}
    second = updated(replace(case, buffers=odd))
    assert tree_relative(first["direction"], second["direction"]) == 0
    assert first["loss"][""] == second["loss"][""]


def test_networks_without_statistics_have_nothing_to_calibrate(backend):
    case = built(heat(), backend)
    assert case.buffers == {}
    assert calibrate(case.problem, case.params, case.buffers, case.validation) == {}
