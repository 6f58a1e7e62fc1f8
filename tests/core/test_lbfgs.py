"""Batched L-BFGS: known minima, samples that do not mix, safety, one path on both backends."""

import numpy as np
import pytest
from scipy.optimize import minimize

from toolkit.core.lbfgs import minimise


def solver(backend, objective, x0, tolerance=1e-10):
    """(x0, max_iterations) -> Minimum of NumPy arrays, compiled once for the shape of x0."""

    def value_and_gradient(x):
        def total(x):
            values = objective(backend, x)
            return values.sum(), values

        _, values, gradient = backend.value_and_gradient(total, x)
        return values, gradient

    def run(x0, max_iterations):
        return minimise(
            value_and_gradient, x0, max_iterations, tolerance, 6, xp=backend.xp, while_loop=backend.while_loop
        )

    def native(x0, max_iterations):
        return backend.array(np.asarray(x0, float)), backend.array(np.asarray(max_iterations))

    compiled = backend.compile(run, *native(x0, 0))

    def call(x0, max_iterations):
        result = compiled(*native(x0, max_iterations))
        return type(result)(*map(backend.numpy, result))

    return call


def solve(backend, objective, x0):
    """The minimum found from x0 within 200 iterations."""
    return solver(backend, objective, x0)(x0, 200)


def rosenbrock(backend, x):
    return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(-1)


STARTS = np.array([[-1.2, 1.0], [0.0, 0.0], [3.0, -2.0], [1.0, 1.0]])


def test_rosenbrock(backend):
    result = solve(backend, rosenbrock, STARTS)
    # Gradient 1e-10 and smallest curvature 0.4 leave an error below 1e-8.
    np.testing.assert_allclose(result.x, 1.0, atol=1e-8)
    assert result.converged.all()
    assert result.iterations[-1] == 0
    assert (result.iterations[:-1] < 60).all()


def test_random_quadratics_as_scipy_finds_them(backend):
    rng = np.random.default_rng(3)
    n, batch = 12, 5
    roots = rng.standard_normal((batch, n, n))
    matrices, rights = roots @ roots.transpose(0, 2, 1) + np.eye(n), rng.standard_normal((batch, n))

    def quadratic(backend, x):
        a, b = backend.array(matrices), backend.array(rights)
        return 0.5 * (backend.xp.einsum("bij,bj->bi", a, x) * x).sum(-1) - (b * x).sum(-1)

    result = solve(backend, quadratic, np.zeros((batch, n)))
    assert result.converged.all()
    for a, b, x, value in zip(matrices, rights, result.x, result.values, strict=True):
        # Curvature is at least 1, so the error is at most √n times the tolerance on the gradient.
        np.testing.assert_allclose(x, np.linalg.solve(a, b), atol=1e-9)
        theirs = minimize(
            lambda x, a=a, b=b: (0.5 * x @ a @ x - b @ x, a @ x - b),
            np.zeros(n),
            jac=True,
            method="L-BFGS-B",
            options={"ftol": 1e-15, "gtol": 1e-9},
        )
        # The value is flat at the minimum: scipy's gradient of 1e-9 is round-off in it.
        assert value == pytest.approx(theirs.fun, rel=1e-12)


def test_samples_do_not_mix(backend):
    together = solver(backend, rosenbrock, STARTS)(STARTS, 15)
    single = solver(backend, rosenbrock, STARTS[:1])
    for i, start in enumerate(STARTS):
        alone = single(start[None], 15)
        # Round-off of sums over other batch sizes, amplified along the path.
        np.testing.assert_allclose(together.x[i], alone.x[0], atol=1e-10)
        assert together.iterations[i] == alone.iterations[0]


def test_both_backends_walk_one_path(backend):
    walk = solver(backend, rosenbrock, STARTS)
    for iterations in (1, 5, 12):
        path = walk(STARTS, iterations)
        expected = in_numpy(STARTS, iterations)
        # The first dozen iterations in the curved valley amplify round-off by less than 1e7.
        np.testing.assert_allclose(path.x, expected, rtol=1e-9, atol=1e-9)


def in_numpy(x0, iterations):
    """The same method for one sample at a time with the inverse Hessian as a matrix product of pairs."""
    results = []
    for x in np.array(x0, float):

        def f(x):
            return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2

        def df(x):
            r = x[1] - x[0] ** 2
            return np.array([-400 * x[0] * r - 2 * (1 - x[0]), 200 * r])

        pairs = []
        for _ in range(iterations):
            g = df(x)
            if np.abs(g).max() <= 1e-10:
                break
            h = np.eye(2) if not pairs else np.eye(2) * (pairs[-1][0] @ pairs[-1][1]) / (pairs[-1][1] @ pairs[-1][1])
            for s, y in pairs:
                v = np.eye(2) - np.outer(y, s) / (s @ y)
                h = v.T @ h @ v + np.outer(s, s) / (s @ y)
            d = -h @ g
            t, low, high = 1.0 if pairs else 1 / max(1, np.linalg.norm(d)), 0.0, np.inf
            for _ in range(30):
                if f(x + t * d) > f(x) + 1e-4 * t * (g @ d):
                    high = t
                elif df(x + t * d) @ d < 0.9 * (g @ d):
                    low = t
                else:
                    low = t
                    break
                t = (low + high) / 2 if np.isfinite(high) else 2 * low
            new = x + low * d
            pairs = [*pairs, (new - x, df(new) - g)][-6:]
            x = new
        results.append(x)
    return np.array(results)


def test_values_that_are_not_finite_are_backed_away_from(backend):
    def barrier(backend, x):
        return (x - backend.xp.log(x)).sum(-1)

    result = solve(backend, barrier, [[0.01, 5.0], [50.0, 0.5]])
    # Curvature 1 at the minimum (1, 1).
    np.testing.assert_allclose(result.x, 1.0, atol=1e-9)

    hopeless = solve(backend, barrier, [[-1.0, 1.0], [2.0, 2.0]])
    assert hopeless.x[0].tolist() == [-1.0, 1.0]
    assert hopeless.converged.tolist() == [False, True]


def test_the_value_never_rises(backend):
    def kinked(backend, x):
        return (backend.xp.abs(x - 0.3) * backend.array(np.array([1.0, 30.0]))).sum(-1)

    x0 = np.array([[2.0, -1.0], [0.3, 0.3], [1e8, 1e-8]])
    before = (np.abs(x0 - 0.3) * [1.0, 30.0]).sum(-1)
    last = before
    walk = solver(backend, kinked, x0)
    for iterations in (0, 1, 2, 5, 40):
        result = walk(x0, iterations)
        assert (result.values <= last).all()
        assert np.isfinite(result.x).all()
        last = result.values
    assert last[0] < 0.1 * before[0]


def test_as_an_optimizer_it_minimises_and_resumes(backend):
    optimizer = backend.optimizer("lbfgs", {"history": 5}, None)
    assert optimizer.needs_objective

    def value_and_direction(params):
        def value(p):
            a, b = p["a"].reshape(-1), p["b"]
            return (100 * (b - a**2) ** 2 + (1 - a) ** 2).sum(), {}

        result, _, gradient = backend.value_and_gradient(value, params)
        return result, gradient

    start = {"a": backend.array(np.array([[-1.2], [0.5]])), "b": backend.array(np.array([1.0, 2.0]))}
    compiled = backend.compile(
        lambda state, params: optimizer.update_with(value_and_direction, state, params),
        optimizer.init(start),
        start,
    )

    def walk(params, state, steps):
        for _ in range(steps):
            params, state = compiled(state, params)
        return params, state

    end, state = walk(start, optimizer.init(start), 80)
    # Quadratic convergence is long over; curvature 0.4.
    assert np.abs(np.concatenate([backend.numpy(v).ravel() for v in end.values()]) - 1).max() < 1e-8
    assert int(state["step"]) == 80

    half, state = walk(start, optimizer.init(start), 9)
    saved = [{k: backend.array(backend.numpy(v)) for k, v in tree.items()} for tree in (half, state)]
    resumed, _ = walk(*saved, 8)
    whole, _ = walk(start, optimizer.init(start), 17)
    for name in start:
        np.testing.assert_array_equal(backend.numpy(resumed[name]), backend.numpy(whole[name]))


def test_a_rise_within_round_off_is_taken_back(backend):
    def objective(x):
        # Rounding makes the minimum at 0 look one machine epsilon higher than the start.
        rounded = backend.xp.where(x < 0.5, 1 + 2.3e-16 * backend.xp.ones_like(x), backend.xp.ones_like(x))
        return rounded[:, 0], x

    start = backend.array(np.array([[1.0]]))
    result = minimise(objective, start, 10, 1e-10, xp=backend.xp, while_loop=backend.while_loop)
    assert float(result.values[0]) == 1.0
    assert float(result.x[0, 0]) == 1.0
