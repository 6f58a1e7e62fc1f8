"""Half-inversion in a Krylov space of K and K⁻¹ against the eigenvectors of K, and where it gives no answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from toolkit.core import half_inverse_host, half_inverse_smooth
from toolkit.core.half_inverse import half_inverse
from toolkit.core.half_inverse_choice import HalfInversion
from toolkit.core.half_inverse_smooth import by_extended_krylov

N = 240
OPTIONS = HalfInversion(truncation=1e-6)


@pytest.fixture(autouse=True)
def _for_small_matrices(monkeypatch):
    monkeypatch.setattr(half_inverse_smooth, "SMALLEST", 50)
    monkeypatch.setattr(half_inverse_smooth, "SHARE", 1)


def matrix(s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(K = Q diag(s²) Qᵀ in Fortran's order, Q, v)."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((len(s), len(s))))[0]
    return np.asfortranarray((q * s**2) @ q.T), q, rng.standard_normal(len(s))


@pytest.mark.parametrize("condition", [1.5, 10.0, 60.0])
@pytest.mark.parametrize("power", [-0.75, -1.0, -0.5, 0.0])
def test_result_is_that_of_all_eigenvectors(condition, power):
    s = 7.0 * np.logspace(0, -np.log10(condition), N)
    k, q, v = matrix(s)
    before = k.copy()
    found = by_extended_krylov(k, v, OPTIONS, power)
    assert found is not None
    expected = q @ (s ** (2 * power) * (q.T @ v))
    # The change at which it ends.
    assert np.linalg.norm(found[0] - expected) < 1e-6 * np.linalg.norm(expected)
    assert np.array_equal(k, before)
    report = found[1]
    assert report.kept_rank == N
    assert report.largest_singular_value == pytest.approx(7.0, rel=1e-7)
    assert report.relative_cut == pytest.approx(1e-6)
    assert report.smallest_kept == pytest.approx(7.0 / condition, rel=1e-2)  # a Ritz value


def test_a_space_that_is_complete_ends_it():
    k, q, v = matrix(np.repeat([2.0, 1.0, 0.5], N // 3))
    found = by_extended_krylov(k, v, OPTIONS, -0.75)
    assert found is not None
    expected = q @ (np.repeat([2.0, 1.0, 0.5], N // 3) ** -1.5 * (q.T @ v))
    assert np.linalg.norm(found[0] - expected) < 1e-12 * np.linalg.norm(expected)


def test_nothing_is_answered_where_something_is_cut_off():
    s = np.linspace(2.0, 1.0, N)
    k, _, v = matrix(s)
    one_below = HalfInversion(truncation=0.5 * (1.0 + s[-2]) / 2.0)
    assert by_extended_krylov(k, v, one_below, -0.75) is None
    none_below = HalfInversion(truncation=0.999, truncation_mode="absolute")
    assert by_extended_krylov(k, v, none_below, -0.75) is not None
    assert by_extended_krylov(k, v, HalfInversion(truncation=1.001, truncation_mode="absolute"), -0.75) is None


@pytest.mark.parametrize(
    ("s", "v", "options"),
    [
        (np.logspace(0, -5, N), None, OPTIONS),  # would take more vectors than rows
        (np.linspace(2, 1, 49), None, OPTIONS),  # too small to pay
        (np.linspace(2, 1, N), np.zeros(N), OPTIONS),
        (np.append(np.linspace(2, 1, N - 1), 0.0), None, OPTIONS),
        (np.zeros(N), None, OPTIONS),
        (np.linspace(2, 1, N), None, HalfInversion(truncation=1e-6, damping=1e-3)),
    ],
)
def test_nothing_is_answered(s, v, options):
    k, _, white = matrix(s)
    assert by_extended_krylov(k, white if v is None else v, options, -0.75) is None


def test_a_space_that_grows_too_large_gives_no_answer(monkeypatch):
    k, _, v = matrix(np.logspace(0, -1.7, N))
    assert by_extended_krylov(k, v, OPTIONS, -0.75) is not None
    monkeypatch.setattr(half_inverse_smooth, "expected", lambda largest, smallest: 0.0)
    monkeypatch.setattr(half_inverse_smooth, "SHARE", 12)
    assert by_extended_krylov(k, v, OPTIONS, -0.75) is None


def test_the_tridiagonal_algorithm_takes_it(backend, monkeypatch):
    rng = np.random.default_rng(1)
    j, g = rng.standard_normal((80, 400)), rng.standard_normal(80)
    expected = j.T @ by_eigenvectors(j @ j.T, g)

    def refuse(*args: Any) -> None:
        raise AssertionError("K was decomposed")

    monkeypatch.setattr(half_inverse_host, "by_tridiagonal", refuse)
    found = backend.numpy(half_inverse(backend.array(j), backend.array(g), truncation=1e-6))
    assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)  # where the space ends


def by_eigenvectors(k: np.ndarray, v: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(k)
    return vectors @ (values**-0.75 * (vectors.T @ v))
