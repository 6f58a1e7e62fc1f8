"""Half-inverse gradients of networks without biases, whose Jacobian has no factors."""

from __future__ import annotations

import numpy as np
import pytest
from numeric_cases import built, relative, updated

from toolkit.training.batch_jacobian import factor_width

TEXT = """
name: case
pde: {type: oscillators, number: 1, cubic_coupling: 0.0}
time: {steps: 3, dt: 0.4}
controls: {drive: {acts_on: force.drive}}
data: {type: uniform, train: 4, validation: 4}
networks: {f: {type: NETWORK, input: target, output: drive}}
loss: {type: l2, on: final.state}
update: {type: hig, truncation: 1e-9, optimizer: {type: sgd, learning_rate: 1.0}}
train: {steps: 1, batch_size: 4}
run: {precision: float64}
"""


MLP = "mlp, layers: [3], activation: tanh, bias: false"


@pytest.mark.parametrize(
    ("backend", "network"), [("torch", MLP), ("jax", MLP), ("torch", "linear")], indirect=["backend"]
)
def test_half_inverse_without_biases_is_that_of_the_whole_jacobian(backend, network):
    case = built(TEXT.replace("NETWORK", network), backend)
    problem, batch, b = case.problem, case.validation, backend
    (use,) = problem.networks
    assert factor_width([(use.architecture, use.every_step)]) is None
    names = sorted(case.params)

    def ends(params):
        x, _ = problem.predict(params, case.buffers, batch, training=True)
        return b.xp.reshape(problem.observe(x, batch.context)["final.state"], (-1,))

    def found_rows(params):
        return ends(params), [b.value_and_gradient(lambda p, i=i: (ends(p)[i], ()), params)[2] for i in range(8)]

    y, gradients = b.compile(found_rows, case.params)(case.params)
    rows = [np.concatenate([b.numpy(row[name]).ravel() for name in names]) for row in gradients]
    u, s, vt = np.linalg.svd(np.array(rows), full_matrices=False)
    inverse = np.where(s > 1e-9 * s[0], np.where(s > 0, s, 1.0) ** -0.5, 0.0)
    expected = vt.T @ (inverse * (u.T @ (b.numpy(y) - b.numpy(batch.targets["final.state"]).ravel())))
    direction = updated(case)["direction"]
    found = np.concatenate([direction[name].ravel() for name in names])
    # Two decompositions of 8 rows; the roots of what is left of small singular values.
    assert relative(found, expected) < 1e-9
