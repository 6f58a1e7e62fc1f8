"""Half-inversion against closed forms, symmetries and a float64 SVD; its cuts, its refusals and its choice."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import toolkit
from toolkit.core import half_inverse_device
from toolkit.core.backend import Backend
from toolkit.core.half_inverse import first_bad_row, half_inverse, half_invert, half_invert_gram
from toolkit.core.half_inverse_choice import HalfInversion, choose

EXACT = ("auto", "adaptive", "tridiagonal", "gram", "svd64", "svd")
SHAPES = ((5, 9), (9, 5), (6, 6), (1, 1), (1, 4), (4, 1), (2, 7), (40, 130), (130, 40))
SAME = 1e-9
"""For condition numbers up to 100: a float64 Gram matrix loses about 1e4 of 1e-16, and some operations."""


def relative(found: Any, truth: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(found, dtype=np.float64) - truth) / np.linalg.norm(truth))


def matrix(n: int, p: int, s: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(U, V, g) of a random Jacobian U diag(s) Vᵀ and a gradient."""
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.standard_normal((n, len(s))))[0]
    v = np.linalg.qr(rng.standard_normal((p, len(s))))[0]
    return u, v, rng.standard_normal(n)


def power(symmetric: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(symmetric)
    return (vectors * values**exponent) @ vectors.T


def inverted(backend: Backend, j: np.ndarray, g: np.ndarray, *args: Any, **options: Any) -> np.ndarray:
    return backend.numpy(half_inverse(backend.array(j), backend.array(g), *args, **options))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("algorithm", EXACT)
def test_exponents_have_their_closed_forms(backend: Backend, algorithm: Any, shape: tuple[int, int]) -> None:
    n, p = shape
    s = np.linspace(1, 0.01, min(n, p))
    u, v, g = matrix(n, p, s)
    j = (u * s) @ v.T
    half = j.T @ power(j @ j.T, -0.75) @ g if n <= p else power(j.T @ j, -0.75) @ j.T @ g
    expected = {1.0: j.T @ g, 0.0: v @ (u.T @ g), -0.5: half, -1.0: np.linalg.pinv(j) @ g}
    for exponent, direction in expected.items():
        assert relative(inverted(backend, j, g, exponent, 1e-4, algorithm=algorithm), direction) < SAME


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
def test_half_inverse_is_half_an_inverse(backend: Backend, shape: tuple[int, int]) -> None:
    s = np.array([3.0, 1.0, 0.3, 0.1])
    u, v, _ = matrix(*shape, s)
    j = (u * s) @ v.T
    h = np.stack([inverted(backend, j, e) for e in np.eye(shape[0])], axis=1)
    assert relative(h @ j @ h, v @ u.T) < SAME


@pytest.mark.parametrize("algorithm", EXACT)
def test_scales_and_permutations_pass_through(backend: Backend, algorithm: Any) -> None:
    s = np.logspace(0, -2, 6)
    u, v, g = matrix(6, 10, s, seed=3)
    j, rng = (u * s) @ v.T, np.random.default_rng(4)
    rows, columns = rng.permutation(6), rng.permutation(10)
    found = inverted(backend, j, g, algorithm=algorithm)
    assert relative(inverted(backend, 1e-9 * j, g, algorithm=algorithm), 1e-9**-0.5 * found) < SAME
    assert relative(inverted(backend, j, 1e-9 * g, algorithm=algorithm), 1e-9 * found) < SAME
    moved = inverted(backend, j[rows][:, columns], g[rows], algorithm=algorithm)
    assert relative(moved, found[columns]) < SAME


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_the_layout_in_memory_does_not_matter(backend: Backend, dtype: str, shape: tuple[int, int]) -> None:
    j, g = np.random.default_rng(0).standard_normal(shape).astype(dtype), backend.array(np.ones(shape[0]))
    turned = backend.array(np.ascontiguousarray(j.T)).T
    expected = backend.numpy(half_inverse(backend.array(j), g))
    for algorithm in (*EXACT, "lanczos"):
        found = half_inverse(turned, g, algorithm=algorithm)  # type: ignore[arg-type]
        assert relative(backend.numpy(found), expected) < (1e-5 if dtype == "float32" else SAME)


def test_many_at_once_on_jax() -> None:
    from toolkit.core.backend import using

    with using("jax", "cpu") as backend:
        js, gs = np.random.default_rng(0).standard_normal((3, 4, 6)), np.ones((3, 4))
        mapped = backend.vmap(half_inverse)(backend.array(js), backend.array(gs))
        one_by_one = [inverted(backend, j, g) for j, g in zip(js, gs, strict=True)]
        assert relative(mapped, np.stack(one_by_one)) < SAME


@pytest.mark.parametrize("algorithm", EXACT)
@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
def test_rank_deficient_directions_contribute_nothing(backend: Backend, algorithm: Any, shape: tuple[int, int]) -> None:
    s = np.array([2.0, 1.0, 0.5])
    u, v, g = matrix(*shape, s)
    for truncation in (1e-5, 1e-12):  # zeros come as 1e-16 from an SVD, but as 1e-8 from a Gram matrix
        found = inverted(backend, (u * s) @ v.T, g, truncation=truncation, algorithm=algorithm)
        assert relative(found, v @ (s**-0.5 * (u.T @ g))) < SAME


@pytest.mark.parametrize("algorithm", [*EXACT, "lanczos"])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (1, 1)])
def test_zero_has_a_zero_half_inverse(backend: Backend, algorithm: Any, shape: tuple[int, int]) -> None:
    u, report = half_invert(
        backend, backend.zeros(shape), backend.array(np.ones(shape[0])), HalfInversion(algorithm=algorithm)
    )
    assert np.array_equal(backend.numpy(u), np.zeros(shape[1]))
    assert (report["kept_rank"], report["largest_singular_value"]) == (0, 0)


@pytest.mark.parametrize("algorithm", EXACT)
def test_the_cut_is_strict_relative_and_absolute(backend: Backend, algorithm: Any) -> None:
    # Powers of two: their squares are exact, and so is the comparison with the cut.
    j = 4.0 * np.diag([1.0, 0.5, 0.25])
    for truncation, mode, kept in ((0.5, "relative", 1), (0.49, "relative", 2), (2.0, "absolute", 1)):
        options = HalfInversion(-0.5, truncation, mode, algorithm)  # type: ignore[arg-type]
        u, report = half_invert(backend, backend.array(j), backend.array(np.ones(3)), options)
        expected = np.where(np.arange(3) < kept, [0.5, 2**-0.5, 1.0], 0.0)
        assert np.allclose(backend.numpy(u), expected, rtol=1e-12, atol=1e-12)  # a few roundings
        assert report["kept_rank"] == kept
        assert report["smallest_kept"] == pytest.approx(4.0 if kept == 1 else 2.0)
        assert report["relative_cut"] == pytest.approx(0.5 if kept == 1 else 0.49)


# Errors of the table in benchmarks/half_inversion.py, times about five: of u, and of J u, which the loss sees.
PROMISED = {
    ("float64", "svd64"): (5e-10, 1e-12),
    ("float64", "svd"): (5e-10, 1e-12),
    ("float64", "tridiagonal"): (1e-4, 5e-7),
    ("float64", "gram"): (1e-4, 5e-7),
    ("float64", "lanczos"): (1e-4, 5e-7),
    ("float32", "svd64"): (1e-2, 2e-5),
    ("float32", "tridiagonal"): (1e-2, 2e-5),
    ("float32", "gram"): (1e-2, 2e-5),
    ("float32", "lanczos"): (1e-2, 2e-5),
    ("float32", "svd"): (1.0, 1e-3),
}


@pytest.mark.parametrize("shape", [(160, 400), (400, 160)])
@pytest.mark.parametrize(("dtype", "algorithm"), PROMISED)
def test_log_spaced_spectra_are_inverted_as_promised(
    backend: Backend, dtype: str, algorithm: Any, shape: tuple[int, int]
) -> None:
    s = np.logspace(0, -8, 160)
    cut = float(np.sqrt(s[119] * s[120]))  # 1e-6, in the middle of a gap
    u, v, g = matrix(*shape, s)
    truth = v @ (np.where(s > cut, s, np.inf) ** -0.5 * (u.T @ g))
    options = HalfInversion(-0.5, cut, "relative", algorithm, krylov_steps=160, krylov_tolerance=0.0)
    j = ((u * s) @ v.T).astype(dtype)
    found, report = half_invert(backend, backend.array(j), backend.array(g), options)
    error = backend.numpy(found).astype(np.float64) - truth
    assert str(found.dtype).endswith(dtype)
    if (dtype, algorithm) != ("float32", "svd"):
        assert report["kept_rank"] == 120
    assert np.linalg.norm(error) < PROMISED[dtype, algorithm][0] * np.linalg.norm(truth)
    assert np.linalg.norm(s * (v.T @ error)) < PROMISED[dtype, algorithm][1] * np.linalg.norm(s * (v.T @ truth))


@pytest.mark.parametrize("truncation", [1e-6, 1e-5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_auto_is_the_float64_svd_of_the_same_jacobian_to_a_thousandth(
    backend: Backend, dtype: str, truncation: float
) -> None:
    s = np.logspace(0, -7, 141)
    cut = truncation * 10**0.025  # between two of twenty values per decade
    u, v, g = matrix(141, 300, s, seed=5)
    j = ((u * s) @ v.T).astype(dtype)
    truth = inverted(backend, j, g, truncation=cut, algorithm="svd64")
    assert relative(inverted(backend, j, g, truncation=cut), truth) < 1e-3


def test_adaptive_goes_to_the_svd_where_the_gram_matrix_ends(backend: Backend) -> None:
    for condition, resolved in ((1e4, True), (1e9, False)):
        s = np.geomspace(1, 1 / condition, 30)
        u, v, g = matrix(30, 50, s)
        j, truth = (u * s) @ v.T, v @ (s**-0.5 * (u.T @ g))
        arrays = backend.array(j), backend.array(g)
        found, report = half_invert(backend, *arrays, HalfInversion(truncation=1e-12))
        # An SVD loses the condition number times 1e-16; K loses its square, 1e8, times 1e-16.
        assert relative(backend.numpy(found), truth) < 1e-6
        assert report["resolved"] == 1
        assert report["kept_rank"] == 30
        _, report = half_invert(backend, *arrays, HalfInversion(truncation=1e-12, algorithm="tridiagonal"))
        assert report["resolved"] == float(resolved)
        assert report["kept_rank"] == 30 if resolved else report["kept_rank"] < 30


def test_a_gram_matrix_gives_what_the_jacobian_gives(backend: Backend) -> None:
    s = np.logspace(0, -3, 12)
    u, v, g = matrix(12, 20, s)
    j = (u * s) @ v.T
    truth = u @ (s**-1.5 * (u.T @ g))
    gram = backend.array(j @ j.T)
    for algorithm in ("auto", "adaptive", "tridiagonal", "gram", "lanczos"):
        q, report = half_invert_gram(backend, gram, backend.array(g), HalfInversion(algorithm=algorithm))
        assert relative(backend.numpy(q), truth) < 1e-6  # condition number squared, 1e6, times some roundings
        assert report["kept_rank"] == 12
    assert relative(backend.numpy(gram), j @ j.T) < 1e-15  # solvers overwrite a copy


def test_compiled_programs_give_the_same() -> None:
    from toolkit.core.backend import using

    s = np.logspace(0, -4, 20)
    for n, p in ((20, 33), (33, 20)):
        u, v, g = matrix(n, p, s)
        with using("jax", "cpu") as backend:
            j, g = backend.array((u * s) @ v.T), backend.array(g)
            for algorithm in (*EXACT, "lanczos"):
                options = HalfInversion(algorithm=algorithm)  # type: ignore[arg-type]

                def run(j: Any, g: Any, options: HalfInversion = options) -> Any:
                    return half_invert(backend, j, g, options)

                now, report = run(j, g)
                compiled, compiled_report = backend.compile(run, j, g)(j, g)
                # The same host routine; only the memory its arguments lie in differs.
                assert relative(compiled, np.asarray(now)) < 1e-13
                assert {k: float(v) for k, v in compiled_report.items()} == pytest.approx(report)


@pytest.mark.parametrize("algorithm", ["gram", "svd64"])
@pytest.mark.parametrize("shape", [(10, 25), (25, 10)])
def test_the_gpu_path_gives_the_same(backend: Backend, algorithm: Any, shape: tuple[int, int]) -> None:
    s = np.logspace(0, -3, min(shape))
    u, v, g = matrix(*shape, s)
    arrays = backend.array((u * s) @ v.T), backend.array(g)
    options = HalfInversion(truncation=0.01234, algorithm=algorithm)
    expected, report = half_invert(backend, *arrays, options)
    found, found_report = half_inverse_device.half_invert(backend.xp, *arrays, options, algorithm, "float64")
    assert relative(backend.numpy(found), backend.numpy(expected)) < SAME
    assert {k: float(v) for k, v in found_report.named(algorithm).items()} == pytest.approx(report)
    bad = backend.array(np.full(shape, np.nan))
    found, _ = half_inverse_device.half_invert(backend.xp, bad, arrays[1], options, algorithm, "float64")
    assert np.isnan(backend.numpy(found)).all()
    found, found_report = half_inverse_device.half_invert(
        backend.xp, 0 * arrays[0], arrays[1], options, algorithm, "float64"
    )
    assert np.array_equal(backend.numpy(found), np.zeros(shape[1]))
    assert float(found_report.smallest_kept) == 0


BARE = """
import sys
import numpy as np
from toolkit import half_inverse
library = sys.argv[1]
rng = np.random.default_rng(0)
u = np.linalg.qr(rng.standard_normal((40, 40)))[0]
v = np.linalg.qr(rng.standard_normal((90, 40)))[0]
s, g = np.logspace(0, -4, 40), rng.standard_normal(40).astype("f")
j = ((u * s) @ v.T).astype("f")
w, t, x = np.linalg.svd(j.astype(float), full_matrices=False)
truth = x.T @ (t**-0.5 * (w.T @ g))
if library == "torch":
    import torch
    found = [half_inverse(torch.tensor(j), torch.tensor(g))]
else:
    import jax, jax.numpy as jnp
    assert not jax.config.jax_enable_x64
    found = [f(jnp.asarray(j), jnp.asarray(g)) for f in (half_inverse, jax.jit(half_inverse))]
    gram = jax.jit(lambda j, g: half_inverse(j, g, algorithm="gram"))
    found.append(gram(jnp.asarray(j), jnp.asarray(g)))
for f in found:
    assert str(f.dtype).endswith("float32")
    # The rounding of float32 results; a Gram matrix in float32 would be wrong by 100 %.
    assert np.linalg.norm(np.asarray(f) - truth) < 1e-6 * np.linalg.norm(truth)
print({"torch", "jax", "phiml"} & set(sys.modules) - {library})
"""


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_works_by_itself_in_single_precision(library: str) -> None:
    result = subprocess.run([sys.executable, "-c", BARE, library], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "set()"


def test_is_public() -> None:
    assert toolkit.half_inverse is half_inverse


@pytest.mark.parametrize("algorithm", [*EXACT, "lanczos"])
@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_by_row(
    backend: Backend, algorithm: Any, shape: tuple[int, int], value: float
) -> None:
    j, g = np.random.default_rng(0).standard_normal(shape), np.ones(shape[0])
    for broken in ("jacobian", "gradient"):
        bad_j, bad_g = j.copy(), g.copy()
        (bad_j[3, 2:], bad_g[3:])[broken == "gradient"][0] = value
        arrays = backend.array(bad_j), backend.array(bad_g)
        with pytest.raises(ValueError, match="row 3 of the Jacobian or the gradient is not finite"):
            half_inverse(*arrays, algorithm=algorithm)
        assert first_bad_row(backend, *arrays) == 3
        u, report = half_invert(backend, *arrays, HalfInversion(algorithm=algorithm))
        assert np.isnan(backend.numpy(u)).all()
        assert np.isnan(report["kept_rank"])
        if backend.name == "jax":
            u = backend.compile(lambda j, g: half_inverse(j, g, algorithm=algorithm), *arrays)(*arrays)
            assert np.isnan(backend.numpy(u)).all()
    assert first_bad_row(backend, backend.array(j), backend.array(g)) is None


def test_bad_numbers_off_the_diagonal_of_a_gram_matrix_are_seen(backend: Backend) -> None:
    for algorithm in ("tridiagonal", "gram", "lanczos"):
        for entry in ((0, 2), (2, 0)):
            gram = np.eye(3)
            gram[entry] = np.nan
            options = HalfInversion(algorithm=algorithm)
            q, _ = half_invert_gram(backend, backend.array(gram), backend.array(np.ones(3)), options)
            assert np.isnan(backend.numpy(q)).all()


def test_numbers_whose_squares_vanish_are_refused(backend: Backend) -> None:
    for scale in (1e-200, 1e200):
        with pytest.raises(ValueError, match="too large or too small to be squared"):
            inverted(backend, scale * np.eye(3), np.ones(3))
        assert (
            relative(inverted(backend, scale * np.eye(3), np.ones(3), algorithm="svd64"), scale**-0.5 * np.ones(3))
            < 1e-12
        )


def test_results_are_constants_to_differentiation(backend: Backend) -> None:
    j, g = backend.array(np.diag([2.0, 1.0])), backend.array(np.ones(2))

    def loss(j: Any) -> Any:
        return backend.xp.sum(half_inverse(j, g)) + backend.xp.sum(j), None

    assert np.array_equal(backend.numpy(backend.value_and_gradient(loss, j)[2]), np.ones((2, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exponent": np.nan}, "exponent must be a finite number"),
        ({"truncation": -1e-5}, "truncation must be a finite number, not negative"),
        ({"truncation": 1.0}, "drops everything"),
        ({"truncation_mode": "median"}, "relative or absolute, not 'median'"),
        ({"algorithm": "qr"}, "no algorithm 'qr'; known: auto, adaptive"),
    ],
)
def test_impossible_options_are_refused(backend: Backend, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inverted(backend, np.eye(2), np.ones(2), **options)


def test_impossible_arrays_are_refused(backend: Backend) -> None:
    j, g = backend.array(np.eye(2)), backend.array(np.ones(2))
    with pytest.raises(ValueError, match=r"got shapes \(2, 2\) and \(3,\)"):
        half_inverse(j, backend.array(np.ones(3)))
    with pytest.raises(ValueError, match="got shapes"):
        half_inverse(backend.array(np.ones((0, 2))), backend.array(np.ones(0)))
    with pytest.raises(ValueError, match="int64; half-inversion knows float32 and float64"):
        half_inverse(backend.array(np.eye(2, dtype=int)), g)
    with pytest.raises(ValueError, match=f"arrays of torch or of JAX; got {backend.name}.* and numpy"):
        half_inverse(j, np.ones(2))
    with pytest.raises(ValueError, match="is square"):
        half_invert_gram(backend, backend.array(np.ones((2, 3))), g, HalfInversion())
    with pytest.raises(ValueError, match="algorithm svd needs the Jacobian itself"):
        half_invert_gram(backend, j, g, HalfInversion(algorithm="svd"))


def test_a_single_precision_gram_matrix_is_refused_unless_coarse(backend: Backend) -> None:
    gram, g = backend.array(np.eye(2, dtype=np.float32)), backend.array(np.ones(2))
    for options in (HalfInversion(truncation=1e-3), HalfInversion(truncation=0.1, truncation_mode="absolute")):
        with pytest.raises(ValueError, match="a Gram matrix in float32 cannot resolve"):
            half_invert_gram(backend, gram, g, options)
    q, _ = half_invert_gram(backend, gram, g, HalfInversion(truncation=1e-2))
    assert np.allclose(backend.numpy(q), 1.0, rtol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        ((512, 2956, "float32", 1e-6), "tridiagonal"),
        ((512, 2956, "float64", 1e-5), "tridiagonal"),
        ((4096, 2956, "float32", 5e-7), "tridiagonal"),
        ((512, 2956, "float32", 4e-7), "adaptive"),
        ((512, 2956, "float32", 1e-3, "absolute"), "adaptive"),
        ((512, 2956, "float32", 1e-6, "relative", "gpu:0"), "gram"),
        ((512, 2956, "float32", 1e-8, "relative", "gpu:0"), "svd64"),
        ((512, 2956, "float32", 1e-3, "absolute", "gpu"), "svd64"),
        ((20000, 10**6, "float32", 1e-6, "relative", "cpu", 10**9), "lanczos"),
        ((20000, 500, "float32", 1e-6, "relative", "cpu", 10**9), "tridiagonal"),
    ],
)
def test_the_choice_follows_the_rule(arguments: tuple[Any, ...], chosen: str) -> None:
    assert choose(*arguments) == chosen


def test_the_choice_needs_a_known_precision() -> None:
    with pytest.raises(ValueError, match="float16"):
        choose(4, 4, "float16", 1e-3)
