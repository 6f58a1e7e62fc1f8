"""Newton steps: closed forms, descent, invariances, and the step limit, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from numeric_cases import inverse_problem, relative, solved

from toolkit.core.errors import ScenarioError
from toolkit.physics.solvers.newton import (
    DAMPED_NEWTON,
    MAX_UNKNOWNS,
    NEWTON,
    NewtonOptions,
    damped_step,
    saddle_free_step,
)

ROUNDING = 1e-11
"""Of an eigendecomposition of matrices with condition numbers up to 1e3, in float64."""


def symmetric(rng, count, n):
    a = rng.standard_normal((count, n, n))
    return a + np.swapaxes(a, 1, 2)


def positive_definite(rng, count, n):
    a = rng.standard_normal((count, n, n))
    return a @ np.swapaxes(a, 1, 2) + np.eye(n)


def step(backend, g, h, **options):
    g, h = np.atleast_2d(g), np.asarray(h, float)
    h = h[None] if h.ndim == 2 else h
    arguments = (backend.array(g, "physics"), backend.array(h, "physics"))
    compiled = backend.compile(lambda g, h: saddle_free_step(backend.xp, g, h, **options), *arguments)
    return backend.numpy(compiled(*arguments))


def reference_step(g, h, delta=None):
    """One sample, written component by component as the rule is stated."""
    eigenvalues, v = np.linalg.eigh(h)
    mean = np.abs(np.prod(eigenvalues)) ** (1 / len(g))
    s = np.zeros(len(g))
    for i, (projected, curvature) in enumerate(zip(v.T @ g, eigenvalues, strict=True)):
        length = abs(projected / curvature)
        if delta is not None and not curvature > mean:
            length = min(length, abs(delta / projected))
        s[i] = -np.sign(projected) * length
    return v @ s


@pytest.mark.parametrize("n", [2, 3, 8])
def test_positive_definite_hessian_gives_the_newton_step(backend, n):
    rng = np.random.default_rng(n)
    g, h = rng.standard_normal((5, n)), positive_definite(rng, 5, n)
    assert relative(step(backend, g, h), -np.linalg.solve(h, g[..., None])[..., 0]) < ROUNDING


def test_published_values(backend):
    g, definite, indefinite = np.array([1.0, 2.0]), [[2.0, 0.5], [0.5, 1.0]], [[2.0, 1.0], [1.0, -3.0]]
    assert np.allclose(step(backend, g, definite), [[0, -2]], atol=1e-14)
    # The published numbers have six digits.
    assert np.allclose(step(backend, g, indefinite), [[-0.504030, -0.663198]], atol=5e-7)


@pytest.mark.parametrize("delta", [None, 0.2])
def test_directions_that_the_loss_does_not_feel_stay(backend, delta):
    # JᵀJ of a wide J, as of forces of many steps that are judged at the end: rounding leaves 1e-18 where 0 is meant.
    rng = np.random.default_rng(4)
    j, residual = rng.standard_normal((3, 4, 12)), rng.standard_normal((3, 4))
    g, h = np.einsum("bij,bi->bj", j, residual), np.einsum("bij,bik->bjk", j, j)
    shortest = -np.stack([np.linalg.lstsq(a, r)[0] for a, r in zip(j, residual, strict=True)])
    assert relative(step(backend, g, h, max_loss_change=delta), shortest) < ROUNDING
    arguments = (backend.array(g, "physics"), backend.array(h, "physics"))
    found = backend.numpy(damped_step(backend.xp, *arguments, damping=0.0))
    assert relative(found, shortest) < ROUNDING


@pytest.mark.parametrize("delta", [None, 0.2, 5.0])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_random_symmetric_hessians_always_descend_by_the_stated_lengths(backend, n, delta):
    rng = np.random.default_rng(10 + n)
    g, h = rng.standard_normal((20, n)), symmetric(rng, 20, n)
    found = step(backend, g, h, max_loss_change=delta)
    assert np.all(np.sum(g * found, axis=1) <= 0)
    for i in range(20):
        assert relative(found[i], reference_step(g[i], h[i], delta)) < 1e-9  # condition numbers up to 1e5


def test_eigenvectors_enter_in_the_right_order(backend):
    """V s(Vᵀg), not Vᵀ s(V g): the two differ as soon as V is not symmetric."""
    rng = np.random.default_rng(3)
    g, h = rng.standard_normal(3), positive_definite(rng, 1, 3)[0]
    eigenvalues, v = np.linalg.eigh(h)
    assert np.max(np.abs(v - v.T)) > 0.1
    swapped = v.T @ (-(v @ g) / eigenvalues)
    found = step(backend, g, h)[0]
    assert relative(found, -np.linalg.solve(h, g)) < ROUNDING
    assert relative(found, swapped) > 0.1


def test_scale_of_the_loss_does_not_matter(backend):
    rng = np.random.default_rng(4)
    g, h = rng.standard_normal((6, 3)), symmetric(rng, 6, 3)
    free, limited = step(backend, g, h), step(backend, g, h, max_loss_change=0.2)
    assert relative(step(backend, 1e3 * g, 1e3 * h), free) < ROUNDING
    assert relative(step(backend, 1e3 * g, 1e3 * h, max_loss_change=200.0), limited) < ROUNDING
    # δ has the units of the loss: unscaled it binds differently.
    assert relative(step(backend, 1e3 * g, 1e3 * h, max_loss_change=0.2), limited) > 1e-2


def test_reparametrisation_is_covariant_where_the_hessian_is_positive_definite(backend):
    rng = np.random.default_rng(5)
    a, g = rng.standard_normal((3, 3)) + 2 * np.eye(3), rng.standard_normal((4, 3))
    for h, covariant in ((positive_definite(rng, 4, 3), True), (symmetric(rng, 4, 3), False)):
        original = step(backend, g, h)
        moved = step(backend, g @ a, a.T @ h @ a) @ a.T
        assert (relative(moved, original) < 1e-9) == covariant


def test_vanishing_curvature_and_gradient_give_no_step(backend):
    h, g = np.diag([2.0, 0.0, 1.0]), np.array([1.0, 1.0, 0.0])
    for delta in (None, 0.2):
        found = step(backend, g, h, max_loss_change=delta)
        assert np.allclose(found, [[-0.5, 0, 0]], atol=1e-15)


@pytest.mark.parametrize("delta", [None, 0.3])
def test_damped_step_has_its_closed_form(backend, delta):
    rng = np.random.default_rng(6)
    g, h, mu = rng.standard_normal((8, 3)), symmetric(rng, 8, 3), 0.1
    arguments = (backend.array(g, "physics"), backend.array(h, "physics"))
    function = backend.compile(lambda g, h: damped_step(backend.xp, g, h, mu, delta), *arguments)
    found = backend.numpy(function(*arguments))
    for i in range(8):
        _, v = np.linalg.eigh(h[i])
        projected = v.T @ g[i]
        length = np.abs(v.T @ np.linalg.solve(h[i] + mu * np.eye(3), g[i]))
        if delta is not None:
            length = np.minimum(length, np.abs(delta / projected))
        assert relative(found[i], -v @ (np.sign(projected) * length)) < ROUNDING


@pytest.mark.parametrize("plugin", [NEWTON, DAMPED_NEWTON], ids=lambda p: p.name)
def test_solver_takes_the_step_of_the_problems_own_derivatives(backend, plugin):
    """For y = (x0, x1²), L = ½|y|² the gradient (x0, 2x1³) and Hessian diag(1, 6x1²) are known."""
    xp = backend.xp
    problem = inverse_problem(backend, lambda x: xp.stack([x[:, 0], x[:, 1] ** 2], axis=1), 2, 2)
    x = np.array([[3.0, 3.0], [-1.0, 0.5]])
    mu = 0.1 if plugin is DAMPED_NEWTON else 0.0
    expected = x - np.stack([x[:, 0] / (1 + mu), 2 * x[:, 1] ** 3 / (6 * x[:, 1] ** 2 + mu)], axis=1)
    assert relative(solved(problem, plugin, x, np.zeros((2, 2))), expected) < 1e-13


def test_too_many_unknowns_are_refused_before_any_work(backend):
    problem = inverse_problem(backend, lambda x: x, MAX_UNKNOWNS + 1, 1)
    with pytest.raises(ScenarioError, match=r"update\.inverse_solver.*gauss_newton or lbfgs"):
        NEWTON.build(problem, NewtonOptions())
