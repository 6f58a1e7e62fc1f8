"""Gauss–Newton, conjugate gradients, L-BFGS and the two gradient solvers, against NumPy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from numeric_cases import inverse_problem, relative, solved

from toolkit.physics.solvers.gauss_newton import GAUSS_NEWTON, conjugate_gradients
from toolkit.physics.solvers.gradient import ACCUMULATED_GRADIENT, GRADIENT
from toolkit.physics.solvers.lbfgs import LBFGS

CONVERGED = {"damping": 0.0, "tolerance": 1e-13, "max_iterations": 50}


def linear(backend, matrix):
    """P(x) = M x as an inverse problem."""
    native = backend.array(matrix, "physics")
    m, n = matrix.shape
    return inverse_problem(backend, lambda x: backend.xp.einsum("ij,bj->bi", native, x), n, m)


def parabola(backend):
    """P(x) = (x0, x1²)."""
    xp = backend.xp
    return inverse_problem(backend, lambda x: xp.stack([x[:, 0], x[:, 1] ** 2], axis=1), 2, 2)


def parabola_gradient(x, y_target):
    """∂L/∂x of ½|P(x) − y*|²."""
    r = np.stack([x[:, 0], x[:, 1] ** 2], axis=1) - y_target
    return np.stack([r[:, 0], 2 * x[:, 1] * r[:, 1]], axis=1)


@pytest.mark.parametrize("n", [1, 7])
def test_conjugate_gradients_solve(backend, n):
    rng = np.random.default_rng(n)
    a = rng.standard_normal((4, n, n))
    a, rhs = a @ np.swapaxes(a, 1, 2) + np.eye(n), rng.standard_normal((4, n))
    rhs[2] = 0  # nothing to do for this sample

    def solve(a, rhs):
        return conjugate_gradients(backend, lambda v: backend.xp.einsum("bij,bj->bi", a, v), rhs, 4 * n, 1e-12)

    arguments = (backend.array(a, "physics"), backend.array(rhs, "physics"))
    found = backend.numpy(backend.compile(solve, *arguments)(*arguments))
    # Tolerance 1e-12 of the residual, times condition numbers below 1e2.
    assert relative(found, np.linalg.solve(a, rhs[..., None])[..., 0]) < 1e-10
    assert np.all(found[2] == 0)


def test_conjugate_gradients_stop_at_the_iteration_limit(backend):
    diagonal = backend.array(np.array([[1.0, 2.0, 3.0]]), "physics")
    b = backend.array(np.ones((1, 3)), "physics")
    found = backend.numpy(conjugate_gradients(backend, lambda v: diagonal * v, b, 1, 1e-12))
    # One step of steepest descent: α = bᵀb / bᵀAb.
    assert np.allclose(found, 3 / 6, rtol=1e-15)


def test_gauss_newton_inverts_a_regular_square_jacobian(backend):
    rng = np.random.default_rng(0)
    matrix, x, goal = rng.standard_normal((4, 4)), rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
    matrix += 3 * np.eye(4)
    found = solved(linear(backend, matrix), GAUSS_NEWTON, x, goal, **CONVERGED)
    # The normal equations square the condition number, here about 10.
    assert relative(found, np.linalg.solve(matrix, goal.T).T) < 1e-9


def test_gauss_newton_takes_the_jacobian_where_it_starts(backend):
    x, goal = np.array([[3.0, 3.0], [1.0, -2.0]]), np.array([[1.0, 4.0], [2.0, 5.0]])
    found = solved(parabola(backend), GAUSS_NEWTON, x, goal, **CONVERGED)
    expected = np.stack([goal[:, 0], x[:, 1] + (goal[:, 1] - x[:, 1] ** 2) / (2 * x[:, 1])], axis=1)
    assert relative(found, expected) < 1e-12


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_gauss_newton_is_least_squares_for_a_tall_map(backend, damping):
    rng = np.random.default_rng(1)
    matrix, x, goal = rng.standard_normal((6, 3)), rng.standard_normal((2, 3)), rng.standard_normal((2, 6))
    found = solved(linear(backend, matrix), GAUSS_NEWTON, x, goal, **{**CONVERGED, "damping": damping})
    tall = np.concatenate([matrix, np.sqrt(damping) * np.eye(3)])
    residual = np.concatenate([goal - x @ matrix.T, np.zeros((2, 3))], axis=1)
    expected = x + np.linalg.lstsq(tall, residual.T, rcond=None)[0].T
    assert relative(found, expected) < 1e-10


def test_gauss_newton_gives_the_shortest_step_for_a_wide_map(backend):
    rng = np.random.default_rng(2)
    matrix, x, goal = rng.standard_normal((2, 5)), rng.standard_normal((2, 5)), rng.standard_normal((2, 2))
    found = solved(linear(backend, matrix), GAUSS_NEWTON, x, goal, **CONVERGED)
    expected = x + (goal - x @ matrix.T) @ np.linalg.pinv(matrix).T
    assert relative(found, expected) < 1e-10


def test_gradient_takes_one_step_of_length_one(backend):
    x, goal = np.array([[3.0, 3.0], [1.0, -2.0]]), np.array([[1.0, 4.0], [2.0, 5.0]])
    expected = x - parabola_gradient(x, goal)
    assert relative(solved(parabola(backend), GRADIENT, x, goal), expected) < 1e-14


def test_accumulated_gradient_has_the_direction_of_all_steps_and_the_length_of_one(backend):
    x, goal = np.array([[3.0, 3.0], [1.0, -2.0]]), np.array([[1.0, 4.0], [2.0, 5.0]])
    found = solved(parabola(backend), ACCUMULATED_GRADIENT, x, goal, iterations=8, step=1e-2)
    end = x
    for _ in range(8):
        end = end - 1e-2 * parabola_gradient(end, goal)
    first = np.linalg.norm(parabola_gradient(x, goal), axis=1, keepdims=True)
    unit = (end - x) / np.linalg.norm(end - x, axis=1, keepdims=True)
    assert np.allclose(np.linalg.norm(found - x, axis=1, keepdims=True), first, rtol=1e-13)
    assert relative(found - x, first * unit) < 1e-13
    one = solved(parabola(backend), ACCUMULATED_GRADIENT, x, goal, iterations=1)
    assert relative(one, solved(parabola(backend), GRADIENT, x, goal)) < 1e-14


def test_accumulated_gradient_stands_still_at_the_solution(backend):
    x = np.array([[1.0, 2.0]])
    assert np.array_equal(solved(parabola(backend), ACCUMULATED_GRADIENT, x, np.array([[1.0, 4.0]])), x)


def test_lbfgs_finds_the_preimage_near_the_start(backend):
    x, goal = np.array([[3.0, 3.0], [3.0, -3.0], [2.0, 1.0]]), np.array([[2.0, 2.0]] * 3)
    found = solved(parabola(backend), LBFGS, x, goal, max_iterations=60, tolerance=1e-10)
    root = np.sqrt(2.0)
    # A gradient below 1e-10 with curvatures of 1 and 8.
    assert np.allclose(found, [[2, root], [2, -root], [2, root]], atol=1e-9)


def test_lbfgs_returns_its_best_point_when_it_runs_out_of_iterations(backend):
    x, goal = np.array([[3.0, 3.0]]), np.array([[2.0, 2.0]])
    few = solved(parabola(backend), LBFGS, x, goal, max_iterations=2, tolerance=1e-10)
    before, after = ((p[0, 0] - 2) ** 2 + (p[0, 1] ** 2 - 2) ** 2 for p in (x, few))
    assert after < before
    assert np.max(np.abs(few - [[2, np.sqrt(2)]])) > 1e-6
