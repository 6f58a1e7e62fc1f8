"""The Jacobian of a mini-batch by every way against one backward pass per row, and against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from jacobian_cases import DENSE, TEXTS, case_named, outputs, reference, scalar_of
from numeric_cases import Case, relative
from whole_runs import register

from toolkit.core.half_inverse import factored_gram
from toolkit.core.params import flatten as flat_view
from toolkit.training import batch_jacobian
from toolkit.training.batch_jacobian import BatchMap, Factors
from toolkit.training.half_inversion import HalfInverseRule

# Orders of float64 sums; the linear solve stops at 1e-12.
SAME, SOLVED = 1e-12, 1e-9


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    register(monkeypatch, "pdes", screened="jacobian_cases:SCREENED")


def tolerance(name: str) -> float:
    return SOLVED if name == "linear solve" else SAME


def batch_map(case: Case) -> BatchMap:
    x, _ = case.problem.predict(case.params, case.buffers, case.validation, training=True)
    rule = case.trainer.rule
    assert isinstance(rule, HalfInverseRule)
    return rule.observed(case.problem, case.buffers, case.validation, x)


def compiled(case: Case, function: Any) -> Any:
    """function(θ), one program on JAX."""
    b = case.problem.backend
    return b.compile(function, case.params)(case.params)


ON_JAX = ("force per step", "convolutions", "linear solve", "one network in the loop, one not", "one number per sample")
"""One of each kind: every program takes seconds to compile."""


@pytest.mark.parametrize(
    ("backend", "name"),
    [*(("torch", name) for name in TEXTS), *(("jax", name) for name in ON_JAX)],
    indirect=["backend"],
)
def test_jacobian_factors_and_products_are_those_of_one_pass_per_row(backend, name):
    case, (expected, _) = case_named(name, backend), reference(name)
    v = np.random.default_rng(3).standard_normal(len(expected))

    def found(params: Any) -> Any:
        of, q = batch_map(case), backend.array(v)
        y, product, pull = batch_jacobian.linearized(of, params)
        answers = [(y, product(q), pull(q))]
        if name in DENSE:
            y, f = batch_jacobian.factors(of, params, case.problem.network_inputs(case.validation))
            gram = factored_gram(backend, list(f.deltas), list(f.activations), [True] * len(f.layers))
            answers.append((y, gram, f.pull(backend, q)))
        return batch_jacobian.jacobian(of, params, 3), answers

    (y, j), answers = compiled(case, found)
    assert relative(backend.numpy(j), expected) < tolerance(name)
    assert relative(backend.numpy(y), backend.numpy(outputs(case, case.params))) < tolerance(name)
    # Nothing is zero by accident: every row counts, and most parameters.
    assert np.abs(expected).max(axis=1).min() > 0
    assert np.mean(np.abs(expected).max(axis=0) > 0) > 0.7
    for y_again, products, pulled in answers:
        wanted = expected @ expected.T if products.ndim == 2 else expected @ (expected.T @ v)
        assert relative(backend.numpy(products), wanted) < tolerance(name)
        assert set(pulled) == set(case.params)
        assert relative(backend.numpy(flat_view(pulled, backend)), v @ expected) < tolerance(name)
        assert relative(backend.numpy(y_again), backend.numpy(y)) < tolerance(name)


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
@pytest.mark.parametrize("name", TEXTS)
def test_one_pass_per_row_is_what_finite_differences_give(backend, name):
    case, (j, _) = case_named(name, backend), reference(name)
    rng, h = np.random.default_rng(1), 1e-5
    weighted, theta = scalar_of(case), backend.numpy(flat_view(case.params, backend))
    for _ in range(3):
        v, w = rng.standard_normal(j.shape[1]), rng.standard_normal(j.shape[0])
        ends = [float(weighted(backend.array(theta + sign * h * v), backend.array(w))[0]) for sign in (1, -1)]
        # h² of the cubic term and rounding over h, both some 1e-9; the solve's tolerance over h is 1e-7.
        wanted = 1e-5 if name == "linear solve" else 1e-6
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(w @ j @ v, rel=wanted, abs=wanted)


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
@pytest.mark.parametrize("name", ["convolutions", "two networks", "network at every step"])
def test_networks_with_parameters_per_sample_give_the_same_outputs(backend, name):
    case = case_named(name, backend)
    own, of = batch_jacobian.per_sample(case.problem), batch_map(case)
    copies = {k: backend.xp.broadcast_to(v[None], (3, *v.shape)) for k, v in case.params.items()}
    last = np.array([1.0, 1.0, 2.0])
    moved = {k: v * backend.array(last.reshape(-1, *[1] * (v.ndim - 1))) for k, v in copies.items()}
    y, changed = compiled(case, lambda params: (of._evaluate(own, copies), of._evaluate(own, moved)))
    assert relative(backend.numpy(y), backend.numpy(outputs(case, case.params))) < tolerance(name)
    # Each sample sees its own: a change for the last one moves the last row alone.
    change = np.abs(backend.numpy(changed - y)).max(axis=1)
    assert change[:2].max() < 1e-12
    assert change[2] > 1e-3


def test_precision_of_the_network_is_that_of_its_factors_and_q_that_of_the_product(backend):
    deltas, activations = np.ones((2, 1, 3)), np.ones((2, 4))
    f = Factors(("f/out",), [backend.array(deltas.astype("f4"))], [backend.array(activations.astype("f4"))])
    pulled = f.pull(backend, backend.array(np.array([1.0, 1e-12])))
    # In float32 the second sample would be lost.
    assert np.array_equal(backend.numpy(pulled["f/out.weight"]), np.full((3, 4), 1 + 1e-12))
    assert np.array_equal(backend.numpy(pulled["f/out.bias"]), np.full(3, 1 + 1e-12))


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
@pytest.mark.parametrize(
    ("name", "expected"), [("force per step", 4 + 3 + 6), ("convolutions", None), ("network at every step", None)]
)
def test_which_networks_have_factors(backend, name, expected):
    networks = case_named(name, backend).problem.networks
    assert batch_jacobian.factor_width([(use.architecture, use.every_step) for use in networks]) == expected
