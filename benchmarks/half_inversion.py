"""Speed, accuracy and memory of half-inversion against the algebra it was published with.

    python benchmarks/half_inversion.py              512 x 2956, 448 x 9484, 512 x 24896; errors (3 min)
    python benchmarks/half_inversion.py --large      4096 x 24896 and 2048 x 100000 instead (half an hour)
    python benchmarks/half_inversion.py --memory     4096 x 1000000 in column blocks, in a process of its own (10 min)

Published algebra: a thin float32 SVD of J and the dense P x n half-inverse V s^-1/2 Uᵀ, times g. Times are CPU seconds
of this process on one core, best of several; 512 x 2956 is the oscillators' mini-batch of 128 (four outputs, dense
layers 4-20-20-20-96), 448 x 9484 the quantum dipole's of 16, n x 24896 a dense Poisson network's of 8 and 64.
Spectra decay log-linearly to 1e-6. `factored` starts from the deltas and activations of the layers, ends with the
gradients of their weights, and never has J. Its K, of random deltas and activations, is well conditioned: nothing is
cut off, and at 4096 rows `tridiagonal` takes a Krylov space of K and K⁻¹ in place of a decomposition.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import linalg

from toolkit.core.backend import Backend, using
from toolkit.core.half_inverse import (
    factored_gram,
    half_invert,
    half_invert_gram,
    half_invert_operator,
    half_invert_streamed,
)
from toolkit.core.half_inverse_choice import HalfInversion

ONE_CORE = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
OSCILLATORS, POISSON = (4, 20, 20, 20, 96), (64, 64, 128, 64, 64)
HIG = HalfInversion(exponent=-0.5, truncation=1e-6)


@dataclass(frozen=True)
class Case:
    """An n x p Jacobian; batch and layer widths where dense layers give it."""

    n: int
    p: int
    batch: int = 0
    widths: tuple[int, ...] = ()


SMALL = (Case(512, 2956, 128, OSCILLATORS), Case(448, 9484), Case(512, 24896, 8, POISSON))
LARGE = (Case(4096, 24896, 64, POISSON), Case(2048, 100000))


def best(function: Callable[[], Any], repeats: int = 5, limit: float = 20.0) -> float:
    """Least CPU time of a call in seconds, fewer calls once `limit` is spent."""
    times: list[float] = []
    while len(times) < repeats and sum(times) < limit:
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def gemm_rate(dtype: str) -> float:
    """Operations per second of a large matrix product."""
    a = np.ones((2048, 2048), dtype)
    b = a * 0.5
    return 2 * 2048**3 / best(lambda: a @ b)


def graded(case: Case, rng: np.random.Generator) -> np.ndarray:
    """A float32 Jacobian with singular values close to log-spaced from 1 to 1e-6."""
    rows = np.logspace(0, -6, case.n)[:, None] * rng.standard_normal((case.n, case.p)) / np.sqrt(case.p)
    # Two reflections turn the grading away from the rows without changing the spectrum.
    for _ in range(2):
        v = rng.standard_normal((case.n, 1))
        rows -= 2 * v @ (v.T @ rows) / float(np.sum(v**2))
    return rows.astype(np.float32)


def published_torch(torch: Any, jacobian: Any, gradient: Any) -> Any:
    """Thin SVD in float32, dense P x n half-inverse, product."""
    u, s, vh = torch.linalg.svd(jacobian, full_matrices=False)
    scale = torch.where(s > HIG.truncation * s[0], s, torch.inf) ** -0.5
    return ((vh.T * scale) @ u.T) @ gradient


def published_scipy(jacobian: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    u, s, vh = linalg.svd(jacobian, full_matrices=False, lapack_driver="gesdd", check_finite=False)
    scale = np.where(s > HIG.truncation * s[0], s, np.inf) ** -0.5
    return ((vh.T * scale.astype(s.dtype)) @ u.T) @ gradient


def weight_gradients(xp: Any, deltas: list[Any], activations: list[Any], q: Any) -> list[Any]:
    """Jᵀ q layer by layer; what a backward pass with q gives."""
    shape = deltas[0].shape[:2]
    q = xp.reshape(q, shape)
    pulled = [xp.einsum("bdh,bd->bh", xp.astype(d, "float64"), q) for d in deltas]
    return [(xp.einsum("bh,ba->ha", h, xp.astype(a, "float64")), h) for h, a in zip(pulled, activations, strict=True)]


def speed(backend: Backend, cases: tuple[Case, ...], large: bool, reference: dict[Case, dict[str, float]]) -> None:
    """The table of one backend; large references, minutes each, are taken from `reference` once they are there."""
    rate, single = gemm_rate("float64") / 1e9, gemm_rate("float32") / 1e9
    print(f"\n{backend.name}: CPU seconds; float64 GEMM here {rate:.0f} GF/s, float32 {single:.0f}")
    rng = np.random.default_rng(0)
    for case in cases:
        jacobian, g = graded(case, rng), rng.standard_normal(case.n).astype(np.float32)
        if case not in reference or not large:
            reference[case] = published(backend, jacobian, g, large)
        print(f"  {case.n} x {case.p}")
        for name, seconds in reference[case].items():
            print(f"    published algebra, {name:22s} {seconds:9.4f}")
        for name, seconds in ours(backend, case, jacobian, g, large):
            ratios = "  ".join(f"{name} / {t / seconds:6.1f}" for name, t in reference[case].items())
            floor = (case.n**2 * case.p + 4 / 3 * case.n**3) / (1e9 * rate)
            share = "" if name.startswith("factored") else f"   {100 * floor / seconds:3.0f} % of the GEMM rate"
            print(f"    {name:41s} {seconds:9.4f}   {ratios}{share}", flush=True)


def published(backend: Backend, jacobian: np.ndarray, g: np.ndarray, large: bool) -> dict[str, float]:
    """The published algebra by SciPy's gesdd and, unless large, by torch where it is the library at hand."""
    times = {"SciPy": best(lambda: published_scipy(jacobian, g), 1 if large else 3)}
    if backend.name == "torch" and not large:
        torch = sys.modules["torch"]
        native = backend.array(jacobian), backend.array(g)
        times["torch"] = best(lambda: published_torch(torch, *native), 3)
    return times


def ours(backend: Backend, case: Case, jacobian: np.ndarray, g: np.ndarray, large: bool) -> list[tuple[str, float]]:
    """(algorithm, seconds), from an explicit Jacobian and from factors."""
    j, gradient = backend.array(jacobian), backend.array(g)
    repeats, rows = (2 if large else 7), []

    def timed(name: str, function: Callable[..., Any], *args: Any) -> None:
        compiled = backend.compile(function, *args)

        def call() -> None:
            backend.synchronize(compiled(*args))

        rows.append((name, best(call, repeats)))

    names = ("tridiagonal", "gram", "lanczos") if large else ("tridiagonal", "gram", "lanczos", "svd64", "svd")
    for name in names:
        options = replace(HIG, algorithm=name)
        note = " (approximate)" if name == "lanczos" else ""
        timed(name + note, lambda j, g, options=options: half_invert(backend, j, g, options), j, gradient)
    if case.widths:
        rng, d = np.random.default_rng(1), case.n // case.batch
        deltas = [backend.array(rng.standard_normal((case.batch, d, h)).astype("f")) for h in case.widths[1:]]
        inputs = [backend.array(rng.standard_normal((case.batch, a)).astype("f")) for a in case.widths[:-1]]
        bias = [True] * len(deltas)
        timed("factored K alone", lambda d, a: factored_gram(backend, d, a, bias), deltas, inputs)
        for name in ("tridiagonal", "lanczos"):
            options = replace(HIG, algorithm=name)

            def whole(d: Any, a: Any, g: Any, options: HalfInversion = options) -> Any:
                q, report = half_invert_gram(backend, factored_gram(backend, d, a, bias), g, options)
                return weight_gradients(backend.xp, d, a, q), report

            timed(f"factored, {name}", whole, deltas, inputs, gradient)
    return rows


def errors(backend: Backend) -> None:
    """Relative errors of u and of J u against the truth by construction, n = 256, P = 768, cut in a gap."""
    n, p, rng = 256, 768, np.random.default_rng(0)
    u = np.linalg.qr(rng.standard_normal((n, n)))[0]
    v = np.linalg.qr(rng.standard_normal((p, n)))[0]
    g = rng.standard_normal(n)
    conditions = [10.0**k for k in range(2, 9)]
    for truncation in (1e-5, 1e-6, 1e-10):
        print(f"\n{backend.name}: truncation {truncation:g}, error of u | of J u; condition number of J:")
        print(" " * 26 + "".join(f"{c:^17.0e}" for c in conditions))
        for dtype in ("float32", "float64"):
            for name in ("svd", "svd64", "gram", "tridiagonal", "adaptive", "lanczos"):
                options = HalfInversion(-0.5, truncation, "relative", name, krylov_steps=n, krylov_tolerance=0.0)
                cells = []
                for condition in conditions:
                    s = np.logspace(0, -np.log10(condition), n)
                    cut = mid_gap(s, truncation)
                    truth = v @ (np.where(s > cut, s, np.inf) ** -0.5 * (u.T @ g))
                    j = ((u * s) @ v.T).astype(dtype)
                    found, _ = half_invert(
                        backend, backend.array(j), backend.array(g), replace(options, truncation=cut)
                    )
                    difference = backend.numpy(found).astype(np.float64) - truth
                    output = (u * s) @ (v.T @ difference), (u * s) @ (v.T @ truth)
                    cells.append(f"{relative(difference, truth):8.0e}|{relative(*output):<8.0e}")
                print(f"  {dtype:8s} {name:14s}" + "".join(cells))


def krylov(backend: Backend) -> None:
    """Errors and time of matrix-free Lanczos by its steps; white gradients are its worst case."""
    n, p, rng = 512, 2956, np.random.default_rng(0)
    u = np.linalg.qr(rng.standard_normal((n, n)))[0]
    v = np.linalg.qr(rng.standard_normal((p, n)))[0]
    s = np.logspace(0, -6, n)
    j = backend.array((u * s) @ v.T)
    for kind, g in (("white", rng.standard_normal(n)), ("decaying as s^1/2", s**0.5 * rng.standard_normal(n))):
        truth = s**-1.5 * g
        print(f"\n{backend.name}: Lanczos on products, 512 x 2956, s from 1 to 1e-6, gradient {kind}:")
        for steps in (10, 20, 50, 100, 200, 400):
            options = HalfInversion(-0.5, 1e-6, krylov_steps=steps, krylov_tolerance=0.0)

            def run(j: Any, g: Any, options: HalfInversion = options) -> Any:
                product = backend.xp.matmul
                return half_invert_operator(backend, lambda v: product(j, product(j.T, v)), g, options)

            native = backend.array(u @ g)
            compiled = backend.compile(run, j, native)
            q, report = compiled(j, native)
            difference = u.T @ backend.numpy(q) - truth
            seconds = best(lambda f=compiled, g=native: backend.synchronize(f(j, g)), 3)
            print(
                f"  {steps:4d} steps {1e3 * seconds:7.1f} ms   error of u {relative(s * difference, s * truth):.1e}, "
                f"of J u {relative(s**2 * difference, s**2 * truth):.1e}, reported {float(report['krylov_change']):.1e}"
            )


def mid_gap(s: np.ndarray, truncation: float) -> float:
    """A cut close to the truncation that no singular value is near."""
    kept, dropped = s[s > truncation], s[s <= truncation]
    return float(np.sqrt(kept[-1] * dropped[0])) if len(dropped) else truncation


def relative(difference: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(difference) / np.linalg.norm(truth))


def memory(n: int = 4096, width: int = 8000, count: int = 125) -> None:
    """Peak memory of a whole half-inversion of n x (width · count) in blocks."""
    with using("torch", "cpu") as backend:
        rng = np.random.default_rng(0)
        base = rng.standard_normal((n, width), dtype=np.float32)
        scales = np.logspace(0, -3, n, dtype=np.float32)[:, None]
        g = backend.array(rng.standard_normal(n))

        def block(i: int) -> Any:
            return backend.array(np.roll(base, i, axis=0) * scales)

        start = time.process_time()
        u, report = half_invert_streamed(backend, block, count, g, HIG)
        seconds = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        whole = 4 * n * width * count
    print(f"\nstreamed {n} x {width * count}: J {whole / 1e9:.1f} GB, peak memory of the process {peak / 1e9:.2f} GB,")
    print(f"  {seconds:.0f} CPU seconds, kept rank {report['kept_rank']:.0f}, |u| {float((u**2).sum() ** 0.5):.3g}")


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in ("--large", "--memory", "--in-process"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args()
    if not options.in_process:
        # Threads are counted when the libraries load.
        command = [sys.executable, *sys.argv, "--in-process"]
        sys.exit(subprocess.run(command, env={**os.environ, **ONE_CORE}, check=False).returncode)
    if options.memory:
        memory()
        return
    reference: dict[Case, dict[str, float]] = {}
    for name in ("torch", "jax"):
        with using(name, "cpu") as backend:
            speed(backend, LARGE if options.large else SMALL, options.large, reference)
            if not options.large:
                errors(backend)
                krylov(backend)


if __name__ == "__main__":
    main()
