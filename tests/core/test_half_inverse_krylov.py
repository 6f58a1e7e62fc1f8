"""Lanczos' recursion: exact when complete, honest before, on products alone, rolled inside compiled programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.sparse.linalg import lsqr

from toolkit.core.backend import Backend
from toolkit.core.half_inverse import half_invert, half_invert_gram, half_invert_operator
from toolkit.core.half_inverse_choice import HalfInversion

EVERY_STEP = {"krylov_tolerance": 0.0, "truncation": 1e-8}


def graded(n: int, smallest: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(U, s, g): eigenvectors of K = U diag(s²) Uᵀ, singular values, a gradient."""
    rng = np.random.default_rng(seed)
    return np.linalg.qr(rng.standard_normal((n, n)))[0], np.geomspace(1, smallest, n), rng.standard_normal(n)


def ways(backend: Backend) -> list[Callable[..., Any]]:
    """Callers of half_invert_operator(v -> K v, g): as it is and, on JAX, compiled."""

    def run(gram: Any, g: Any, options: HalfInversion) -> Any:
        return half_invert_operator(backend, lambda v: backend.xp.matmul(gram, v), g, options)

    programs: dict[Any, Callable[..., Any]] = {}

    def compiled(gram: Any, g: Any, options: HalfInversion) -> Any:
        key = options, gram.shape
        if key not in programs:
            programs[key] = backend.compile(lambda gram, g: run(gram, g, options), gram, g)
        return programs[key](gram, g)

    return [run, compiled] if backend.name == "jax" else [run]


def relative(found: Any, truth: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(found) - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("exponent", [-0.5, -1.0, 1.0])
def test_the_complete_space_is_exact(backend: Backend, exponent: float) -> None:
    u, s, g = graded(30, 1e-2)
    gram = backend.array((u * s**2) @ u.T)
    truth = u @ (s ** (exponent - 1) * (u.T @ g))
    for run in ways(backend):
        q, report = run(gram, backend.array(g), HalfInversion(exponent, **EVERY_STEP))
        assert relative(backend.numpy(q), truth) < 1e-9  # condition of K, 1e4, times some 1e-15
        assert float(report["largest_singular_value"]) == pytest.approx(1.0)


def test_the_reported_change_is_an_upper_estimate_of_the_error(backend: Backend) -> None:
    # A white gradient on a slowly decaying spectrum: the worst case.
    u, s, g = graded(200, 1e-4)
    gram = backend.array((u * s**2) @ u.T)
    steps = []
    for exponent, tolerance in ((-0.5, 0.3), (-0.5, 0.1), (-1.0, 0.0)):
        options = HalfInversion(exponent, 1e-6, krylov_steps=120, krylov_tolerance=tolerance)
        q, report = ways(backend)[0](gram, backend.array(g), options)
        error = relative(s**2 * (u.T @ backend.numpy(q)), s ** (exponent + 1) * (u.T @ g))
        assert error < float(report["krylov_change"])
        assert float(report["krylov_change"]) < tolerance or tolerance == 0
        steps.append(float(report["krylov_steps"]))
    assert steps[0] < steps[1] < steps[2] == 120


def test_output_changes_are_close_long_before_updates(backend: Backend) -> None:
    u, s, g = graded(300, 1e-6)
    gram, native = backend.array((u * s**2) @ u.T), backend.array(g)
    options = HalfInversion(truncation=1e-6, krylov_steps=30, krylov_tolerance=0.0, algorithm="lanczos")
    q = u.T @ backend.numpy(half_invert_gram(backend, gram, native, options)[0])
    truth = s**-1.5 * (u.T @ g)
    assert relative(s * q, s * truth) > 0.9
    # The plain function of the tridiagonal matrix has an error of several hundred per cent here.
    assert relative(s**2 * q, s**2 * truth) < 0.2


def test_gauss_newton_is_lsqr(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    j, g = rng.standard_normal((40, 60)), rng.standard_normal(40)
    options = HalfInversion(-1.0, 1e-6, algorithm="lanczos", krylov_steps=7)
    found, _ = half_invert(backend, backend.array(j), backend.array(g), options)
    expected = lsqr(j, g, iter_lim=7, atol=0, btol=0, conlim=0)[0]
    assert relative(backend.numpy(found), expected) < 1e-10  # a well conditioned matrix, seven steps


def test_all_ways_take_the_same_steps(backend: Backend) -> None:
    u, s, g = graded(80, 1e-3, seed=2)
    gram = backend.array((u * s**2) @ u.T)
    options = HalfInversion(algorithm="lanczos", krylov_steps=35)
    results = [run(gram, backend.array(g), options) for run in ways(backend)]
    results.append(half_invert_gram(backend, gram, backend.array(g), options))
    for q, report in results:
        assert float(report["krylov_steps"]) == 35
        # Reorthogonalised, the recursion is reproducible to rounding times the condition of what it resolves.
        assert relative(backend.numpy(q), backend.numpy(results[0][0])) < 1e-8


def test_an_explicit_jacobian_too_large_for_its_gram_matrix(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    for shape in ((20, 50), (50, 20)):
        j, g = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape[0])
        u, s, vh = np.linalg.svd(j.astype(float), full_matrices=False)
        truth = vh.T @ (s**-0.5 * (u.T @ g))
        for memory in (None, 100):
            options = HalfInversion(algorithm="lanczos", memory=memory, krylov_tolerance=0.0)
            found, report = half_invert(backend, backend.array(j), backend.array(g), options)
            assert relative(backend.numpy(found), truth) < 1e-6  # float32 result
            assert report["krylov_steps"] <= 50
    _, report = half_invert(backend, backend.array(j), backend.array(g), HalfInversion(memory=100))
    assert "krylov_steps" in report


def test_a_small_invariant_space_ends_the_recursion(backend: Backend) -> None:
    # Three distinct eigenvalues: three steps span all that g reaches.
    u, _, g = graded(40, 1.0)
    s = np.repeat([1.0, 0.5, 0.1], [10, 15, 15])
    gram = backend.array((u * s**2) @ u.T)
    for run in ways(backend):
        q, report = run(gram, backend.array(g), HalfInversion())
        assert relative(backend.numpy(q), u @ (s**-1.5 * (u.T @ g))) < 1e-9
        assert float(report["kept_rank"]) == 3


def test_zero_and_not_finite_products(backend: Backend) -> None:
    zero, identity = backend.array(np.zeros((12, 12))), backend.array(np.eye(12))
    ones = backend.array(np.ones(12))
    for run in ways(backend):
        for gram, g in ((zero, ones), (identity, 0 * ones)):
            q, report = run(gram, g, HalfInversion())
            assert np.array_equal(backend.numpy(q), np.zeros(12))
            assert float(report["kept_rank"]) == 0
        for gram, g in ((zero * np.nan, ones), (identity, ones * np.nan)):
            q, report = run(gram, g, HalfInversion())
            assert np.isnan(backend.numpy(q)).all()
            assert np.isnan(float(report["kept_rank"]))


def test_single_precision_products_are_taken(backend: Backend) -> None:
    u, s, g = graded(16, 0.1)
    gram = backend.array(((u * s**2) @ u.T).astype(np.float32))

    def product(v: Any) -> Any:
        return backend.xp.matmul(gram, backend.xp.astype(v, "float32"))

    q, _ = half_invert_operator(backend, product, backend.array(g.astype(np.float32)), HalfInversion(**EVERY_STEP))
    assert str(q.dtype).endswith("float64")
    assert relative(backend.numpy(q), u @ (s**-1.5 * (u.T @ g))) < 1e-4  # condition of K, 100, times 6e-8, times some


def test_the_space_is_bounded() -> None:
    assert [HalfInversion().steps(side) for side in (30, 512, 1000, 10000)] == [30, 102, 200, 400]
    assert HalfInversion(krylov_steps=17).steps(512) == 17
    for wrong in ({"krylov_steps": 0}, {"krylov_tolerance": -1.0}, {"krylov_tolerance": float("nan")}):
        with pytest.raises(ValueError, match="krylov"):
            HalfInversion(**wrong)
