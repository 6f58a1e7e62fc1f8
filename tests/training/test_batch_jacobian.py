"""The Jacobian of a mini-batch by every way against one backward pass per row, and against finite differences."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from jacobian_cases import DENSE, TEXTS, case_named, outputs, reference
from numeric_cases import Case, relative
from whole_runs import register

from toolkit.core.backend import using
from toolkit.core.half_inverse import factored_gram
from toolkit.core.params import flatten as flat_view
from toolkit.core.params import unflatten
from toolkit.training import batch_jacobian
from toolkit.training.batch_jacobian import BatchMap, Factors
from toolkit.training.half_inversion import HalfInverseRule

# Orders of float64 sums; the linear solve stops at 1e-12.
SAME, SOLVED = 1e-12, 1e-9


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    register(monkeypatch, "pdes", screened="jacobian_cases:SCREENED")


def tolerance(name: str) -> float:
    return SOLVED if "linear solve" in name else SAME


def batch_map(case: Case) -> BatchMap:
    x, _ = case.problem.predict(case.params, case.buffers, case.validation, training=True)
    rule = case.trainer.rule
    assert isinstance(rule, HalfInverseRule)
    return rule.observed(case.problem, case.buffers, case.validation, x)


def compiled(case: Case, function: Any) -> Any:
    """function(θ), one program on JAX."""
    b = case.problem.backend
    return b.compile(function, case.params)(case.params)


@dataclass(frozen=True)
class Found:
    """What the batched Jacobian gives for q = v of `random(n)`, each with its own y."""

    y: np.ndarray
    jacobian: np.ndarray
    products: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]
    """(y, J Jᵀ or J Jᵀ v, Jᵀ v): of `linearized`, and of `factors` where there are some."""


def random(size: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(size)


@cache
def batched(name: str, library: str) -> Found:
    with using(library, "cpu", "float64", "float64") as backend:
        case = case_named(name, backend)
        v = random(int(np.prod(outputs(case, case.params).shape)))

        def found(params: Any) -> Any:
            of, q = batch_map(case), backend.array(v)
            y, product, pull = batch_jacobian.linearized(of, params)
            answers = [(y, product(q), flat_view(pull(q), backend))]
            if name in DENSE:
                y, f = batch_jacobian.factors(of, params, case.problem.network_inputs(case.validation))
                gram = factored_gram(backend, list(f.deltas), list(f.activations), [True] * len(f.layers))
                answers.append((y, gram, flat_view(f.pull(backend, q), backend)))
            return batch_jacobian.jacobian(of, params, 3), answers

        (y, j), answers = compiled(case, found)
        numbers = tuple((backend.numpy(a), backend.numpy(b), backend.numpy(c)) for a, b, c in answers)
        return Found(backend.numpy(y), backend.numpy(j), numbers)


@pytest.mark.parametrize("name", TEXTS)
def test_jacobian_factors_and_products_are_those_of_one_pass_per_row(backend, name):
    found, (expected, _) = batched(name, backend.name), reference(name, backend.name)
    v = random(len(expected))
    assert relative(found.jacobian, expected) < tolerance(name)
    # Nothing is zero by accident: every row counts, and most parameters.
    assert np.abs(expected).max(axis=1).min() > 0
    assert np.mean(np.abs(expected).max(axis=0) > 0) > 0.7
    assert len(found.products) == 1 + (name in DENSE)
    for y, products, pulled in found.products:
        wanted = expected @ expected.T if products.ndim == 2 else expected @ (expected.T @ v)
        assert relative(products, wanted) < tolerance(name)
        assert relative(pulled, v @ expected) < tolerance(name)
        assert relative(y, found.y) < tolerance(name)


@pytest.mark.parametrize("name", TEXTS)
def test_both_libraries_give_one_jacobian(name):
    # As far as rounding goes, and the solve's tolerance.
    assert relative(batched(name, "jax").jacobian, batched(name, "torch").jacobian) < 10 * tolerance(name)


@pytest.mark.parametrize("name", TEXTS)
def test_jacobian_and_its_transpose_are_what_finite_differences_give(backend, name):
    case, found = case_named(name, backend), batched(name, backend.name)
    theta = flat_view(case.params, backend)
    at = backend.compile(lambda theta: outputs(case, unflatten(theta, case.params, backend)), theta)
    start, rng = backend.numpy(theta), np.random.default_rng(1)
    assert relative(backend.numpy(at(theta)), found.y) < tolerance(name)
    # Central differences are wrong by h² times a third derivative and by rounding, or the solve's tolerance, over h:
    # some 1e-10 and 1e-11 for h = 1e-5, or 1e-8 each for h = 1e-4 and the solve.
    h, wanted = (1e-4, 1e-6) if "linear solve" in name else (1e-5, 1e-8)
    w, transposed = random(found.jacobian.shape[0]), found.products[0][2]
    for _ in range(3):
        v = rng.standard_normal(len(start))
        v /= np.linalg.norm(v)
        ends = [backend.numpy(at(backend.array(start + sign * h * v))).reshape(-1) for sign in (1, -1)]
        difference = (ends[0] - ends[1]) / (2 * h)
        assert relative(found.jacobian @ v, difference) < wanted
        scale = np.linalg.norm(w) * np.linalg.norm(difference)
        assert abs(transposed @ v - w @ difference) < wanted * scale


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
