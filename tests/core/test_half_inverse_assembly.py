"""Half-inversion without the whole Jacobian: streamed in column blocks, or factored through dense layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from toolkit.core import half_inverse_device, half_inverse_host
from toolkit.core.backend import Backend
from toolkit.core.half_inverse import factored_gram, half_inverse, half_invert_streamed
from toolkit.core.half_inverse_choice import HalfInversion


@pytest.mark.parametrize("algorithm", ["auto", "gram", "lanczos"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_streamed_is_whole(backend: Backend, algorithm: Any, dtype: str) -> None:
    n, width, count = 14, 5, 6
    rng = np.random.default_rng(0)
    j = rng.standard_normal((n, width * count)).astype(dtype)
    g, blocks = backend.array(rng.standard_normal(n)), backend.array(j.reshape(n, count, width).swapaxes(0, 1))
    options = HalfInversion(algorithm=algorithm, krylov_tolerance=0.0)
    whole = backend.numpy(half_inverse(backend.array(j), g))

    def run(blocks: Any, g: Any) -> Any:
        return half_invert_streamed(backend, lambda i: blocks[i], count, g, options)

    for f in (run, backend.compile(run, blocks, g)):
        u, report = f(blocks, g)
        assert str(u.dtype) == str(blocks.dtype)
        assert np.allclose(backend.numpy(u), whole, rtol=1e-6, atol=1e-6)  # float32 results
        assert report["kept_rank"] == n


def test_blocks_are_made_twice_and_not_kept(backend: Backend) -> None:
    made: list[int] = []

    def block(i: int) -> Any:
        made.append(i)
        return backend.array(np.eye(4)[:, i : i + 1] * (i + 1.0))

    u, _ = half_invert_streamed(backend, block, 4, backend.array(np.ones(4)), HalfInversion())
    assert np.allclose(backend.numpy(u), np.arange(1, 5.0) ** -0.5, rtol=1e-12)
    assert [i for i in made if i > 0] == [1, 2, 3, 1, 2, 3]


def test_streams_that_cannot_be(backend: Backend) -> None:
    g = backend.array(np.ones(4))
    with pytest.raises(ValueError, match="must be at least one"):
        half_invert_streamed(backend, lambda i: g[:, None], 0, g, HalfInversion())
    with pytest.raises(ValueError, match="svd64 needs the Jacobian itself"):
        half_invert_streamed(backend, lambda i: g[:, None], 1, g, HalfInversion(algorithm="svd64"))
    u, _ = half_invert_streamed(backend, lambda i: np.nan * g[:, None], 2, g, HalfInversion())
    assert np.isnan(backend.numpy(u)).all()


def layers(batch: int, outputs: int, bias: list[bool]) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Deltas, activations and the Jacobian they stand for, sample by sample and layer by layer."""
    rng, widths = np.random.default_rng(0), (3, 5, 2, 4)
    deltas = [rng.standard_normal((batch, outputs, h)) for h in widths[1:]]
    inputs = [rng.standard_normal((batch, a)) for a in widths[:-1]]
    rows = [
        np.concatenate(
            [
                np.concatenate([np.outer(d[b, o], a[b]).ravel(), d[b, o] if has else []])
                for d, a, has in zip(deltas, inputs, bias, strict=True)
            ]
        )
        for b in range(batch)
        for o in range(outputs)
    ]
    return deltas, inputs, np.stack(rows)


@pytest.mark.parametrize(("batch", "outputs"), [(1, 1), (7, 3), (5, 1)])
@pytest.mark.parametrize("tile", [(128, 1024), (4, 6), (1, 1)])
def test_dense_layers_give_their_gram_matrix(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, batch: int, outputs: int, tile: tuple[int, int]
) -> None:
    monkeypatch.setattr(half_inverse_host, "TILE", tile)
    bias = [True, False, True]
    deltas, inputs, j = layers(batch, outputs, bias)
    arrays = [backend.array(d) for d in deltas], [backend.array(a) for a in inputs]
    run = backend.compile(lambda d, a: factored_gram(backend, d, a, bias), *arrays)
    for found in (factored_gram(backend, *arrays, bias), run(*arrays)):
        assert np.allclose(backend.numpy(found), j @ j.T, rtol=1e-13, atol=1e-13)  # sums of a few products
    found = half_inverse_device.factored_gram(backend.xp, *arrays, bias)
    assert np.allclose(backend.numpy(found), j @ j.T, rtol=1e-13, atol=1e-13)


def test_factors_in_single_precision_are_multiplied_in_double(backend: Backend) -> None:
    deltas, inputs, _ = layers(6, 2, [True] * 3)
    single = [d.astype(np.float32) for d in deltas], [a.astype(np.float32) for a in inputs]
    double = [[x.astype(np.float64) for x in part] for part in single]
    found, expected = (
        backend.numpy(factored_gram(backend, *[[backend.array(x) for x in part] for part in parts], [True] * 3))
        for parts in (single, double)
    )
    assert found.dtype == np.float64
    assert np.array_equal(found, expected)


def test_layers_that_do_not_fit_are_named(backend: Backend) -> None:
    deltas, inputs, _ = layers(6, 2, [True] * 3)
    native = [backend.array(d) for d in deltas], [backend.array(a) for a in inputs]
    with pytest.raises(ValueError, match="got 3, 3 and 2 of them"):
        factored_gram(backend, *native, [True] * 2)
    native[1][1] = backend.array(inputs[1][:5])
    with pytest.raises(ValueError, match=r"layer 1: .* got \(6, 2, 2\) and \(5, 5\)"):
        factored_gram(backend, *native, [True] * 3)
