"""Damped inverses, the filter s / (s² + λ s_max²), against NumPy's dense solve and against their limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from toolkit.core.backend import Backend
from toolkit.core.half_inverse import half_invert, half_invert_gram, half_invert_operator
from toolkit.core.half_inverse_choice import HalfInversion
from toolkit.core.half_inverse_lanczos import largest_eigenvalue

ALGORITHMS = ("auto", "cholesky", "tridiagonal", "gram", "adaptive", "svd64", "svd", "lanczos")


def matrix(n: int, p: int, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(J with these singular values, g)."""
    rng = np.random.default_rng(1)
    u = np.linalg.qr(rng.standard_normal((n, len(s))))[0]
    v = np.linalg.qr(rng.standard_normal((p, len(s))))[0]
    return (u * s) @ v.T, rng.standard_normal(n)


def relative(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def damped(backend: Backend, j: np.ndarray, g: np.ndarray, **options: Any) -> tuple[np.ndarray, Any]:
    inversion = HalfInversion(-1.0, 0.0, **options)
    u, report = half_invert(backend, backend.array(j), backend.array(g), inversion)
    return backend.numpy(u), report


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (1, 4), (4, 1), (3, 3)])
def test_damped_inverse_is_that_of_a_dense_solve(backend: Backend, algorithm: str, shape: tuple[int, int]) -> None:
    s = np.logspace(0.5, -2, min(shape))
    j, g = matrix(shape[0], shape[1], s)
    for damping in (1e-5, 1e-2, 3.0):
        system = j.T @ j + damping * s[0] ** 2 * np.eye(shape[1])
        found, report = damped(backend, j, g, damping=damping, algorithm=algorithm)
        # The condition number, 1e5, times rounding; a recursion that has all dimensions loses some more.
        assert relative(found, np.linalg.solve(system, j.T @ g)) < (1e-7 if algorithm == "lanczos" else 1e-10)
        assert report["largest_singular_value"] == pytest.approx(s[0], rel=1e-8)


def test_without_damping_it_is_the_pseudo_inverse_and_with_much_the_gradient(backend):
    s = np.linspace(2.0, 1.0, 9)
    j, g = matrix(9, 20, s)
    # (s / s_max)⁻² λ at most.
    assert relative(damped(backend, j, g, damping=1e-9)[0], np.linalg.pinv(j) @ g) < 4.1e-9
    much = damped(backend, j, g, damping=1e9)[0]
    # s² / (λ s_max²) at most.
    assert relative(much * 1e9 * s[0] ** 2, j.T @ g) < 1e-8


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 1.0])
@pytest.mark.parametrize("algorithm", ["auto", "gram", "svd64"])
def test_other_exponents_are_damped_alike(backend, exponent, algorithm):
    s, damping = np.logspace(0, -3, 8), 1e-4
    j, g = matrix(8, 15, s)
    u, values, vt = np.linalg.svd(j, full_matrices=False)
    expected = vt.T @ (values * (values**2 + damping * values[0] ** 2) ** ((exponent - 1) / 2) * (u.T @ g))
    options = HalfInversion(exponent, 0.0, algorithm=algorithm, damping=damping)
    found, _ = half_invert(backend, backend.array(j), backend.array(g), options)
    assert relative(backend.numpy(found), expected) < 1e-10  # rounding times 1e4


@pytest.mark.parametrize("algorithm", ["auto", "cholesky", "gram", "lanczos"])
def test_from_a_gram_matrix_and_from_products(backend, algorithm):
    s = np.logspace(0, -2, 10)
    j, g = matrix(10, 14, s)
    gram, options = j @ j.T, HalfInversion(-1.0, 0.0, algorithm=algorithm, damping=1e-3)
    expected = np.linalg.solve(gram + 1e-3 * np.eye(10), g)
    q, _ = half_invert_gram(backend, backend.array(gram), backend.array(g), options)
    assert relative(backend.numpy(q), expected) < 1e-7  # of the recursion, others 1e-12
    k = backend.array(gram)
    q, _ = half_invert_operator(backend, lambda v: backend.xp.matmul(k, v), backend.array(g), options)
    assert relative(backend.numpy(q), expected) < 1e-7


@pytest.mark.parametrize("algorithm", ["auto", "cholesky", "gram", "svd64"])
def test_zero_and_not_finite(backend, algorithm):
    zero, report = damped(backend, np.zeros((3, 5)), np.ones(3), damping=1e-3, algorithm=algorithm)
    assert np.array_equal(zero, np.zeros(5))
    assert report["largest_singular_value"] == 0
    bad = np.ones((3, 5))
    bad[1, 2] = np.nan
    assert np.isnan(damped(backend, bad, np.ones(3), damping=1e-3, algorithm=algorithm)[0]).all()
    assert np.isnan(damped(backend, np.ones((3, 5)), np.full(3, np.inf), damping=1e-3, algorithm=algorithm)[0]).all()


def test_rank_deficiency_does_no_harm_down_to_the_least_damping(backend):
    s = np.array([3.0, 1.0, 0.3])
    j, g = matrix(40, 60, s)
    expected = np.linalg.pinv(j, rcond=1e-6) @ g
    found, _ = damped(backend, j, g, damping=1e-10, algorithm="cholesky")
    # Rounding over damping, 1e-6, in what J then removes; λ s_max² / s² is 1e-8.
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize(
    "values", [np.logspace(0, -12, 90), np.ones(50), 1 - 1e-3 * np.arange(80) / 80, np.array([2.0]), np.zeros(7)]
)
def test_largest_eigenvalue(values):
    q = np.linalg.qr(np.random.default_rng(2).standard_normal((len(values), len(values))))[0]
    k = (q * values) @ q.T
    # The residual at which the recursion ends.
    assert largest_eigenvalue(lambda v: k @ v, len(values)) == pytest.approx(values.max(), rel=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": -1.0}, "damping must be"),
        ({"damping": float("nan")}, "damping must be"),
        ({"algorithm": "cholesky"}, "a damping of at least 1e-10, not -0.5, 1e-05 and 0.0"),
        ({"algorithm": "cholesky", "exponent": -1.0, "damping": 1e-3}, "truncation 0"),
        ({"algorithm": "cholesky", "exponent": -1.0, "truncation": 0.0, "damping": 1e-12}, "at least 1e-10"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        HalfInversion(**options)


def test_auto_factors_on_a_cpu_and_decomposes_on_a_gpu():
    lm = HalfInversion(-1.0, 0.0, damping=1e-6)
    assert lm.algorithm_for(512, 3000, "float64", "cpu") == "cholesky"
    assert lm.algorithm_for(512, 3000, "float64", "gpu") == "gram"
    half = HalfInversion(-0.5, 0.0, damping=1e-6)
    assert half.algorithm_for(512, 3000, "float64", "cpu") == "tridiagonal"
    assert HalfInversion(-1.0, 0.0, memory=1000, damping=1e-6).algorithm_for(512, 3000, "float64") == "lanczos"


@pytest.mark.parametrize("algorithm", ["gram", "tridiagonal", "cholesky"])
def test_what_rounds_to_zero_is_damped_too(backend, algorithm):
    """Singular values whose squares lie below rounding count with 1 / (λ s_max²), not with 0."""
    s = np.logspace(0, -12, 20)
    j, g = matrix(20, 30, s)
    truth = j.T @ np.linalg.solve(j @ j.T + 1e-6 * np.eye(20), g)
    # Rounding of K over the damping is 1e-10.
    assert relative(damped(backend, j, g, damping=1e-6, algorithm=algorithm)[0], truth) < 1e-9
