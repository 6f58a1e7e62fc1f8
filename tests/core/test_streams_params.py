"""Random streams by name and number, and parameters as named trees with a flat view."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from toolkit.core.params import count, flatten, map_tree, prefixed, subtree, unflatten
from toolkit.core.streams import stream


def numbers(*key):
    return stream(*key).standard_normal(4).tolist()


def test_equal_keys_give_equal_numbers():
    assert numbers(3, "train", 7) == numbers(3, "train", 7)
    used = stream(3, "train", 7)
    used.standard_normal(100)
    assert stream(3, "train", 7).standard_normal(4).tolist() == numbers(3, "train", 7)


def test_any_other_key_gives_other_numbers():
    keys = [(0, "train"), (1, "train"), (0, "validation"), (0, "train", 0), (0, "train", 1), (0, "init/f")]
    keys += [(0, "train", 0, 0), (0, "train", 0, 1), (0, "train", 1, 0)]
    assert len({tuple(numbers(*key)) for key in keys}) == len(keys)


def test_streams_are_the_same_in_every_process():
    """hash() of a text is not; a resumed run must draw what the first one would have drawn."""
    code = "from toolkit.core.streams import stream; print(stream(5, 'batches', 2).integers(2**40))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {f"{stream(5, 'batches', 2).integers(2**40)}\n"}


def test_streams_of_successive_numbers_are_independent():
    drawn = np.array([stream(0, "train", k).standard_normal(2000) for k in range(4)])
    # Correlations of 2000 independent pairs have a standard error of 0.022; 5 of them.
    assert np.max(np.abs(np.corrcoef(drawn) - np.eye(4))) < 0.11


TREE = {"f/out.weight": (2, 3), "f/out.bias": (2,), "control/x": (1, 2, 2), "g/scale": ()}


@pytest.fixture
def tree(backend):
    rng = np.random.default_rng(0)
    return {name: backend.array(rng.standard_normal(shape)) for name, shape in TREE.items()}


def test_flat_view_is_in_alphabetical_order(backend, tree):
    flat = backend.numpy(flatten(tree, backend))
    assert flat.shape == (count(tree),) == (13,)
    assert np.array_equal(flat, np.concatenate([backend.numpy(v).ravel() for _, v in sorted(tree.items())]))
    back = unflatten(flatten(tree, backend), tree, backend)
    assert list(back) == list(tree)
    for name in tree:
        assert np.array_equal(backend.numpy(back[name]), backend.numpy(tree[name]))


def test_prefixes_come_off_as_they_went_on(backend, tree):
    inner = subtree(tree, "f")
    assert list(inner) == ["out.weight", "out.bias"]
    assert list(prefixed(inner, "f")) == ["f/out.weight", "f/out.bias"]
    assert subtree({"ff/a": 1, "f": 2, "f/a/b": 3}, "f") == {"a/b": 3}


def test_functions_map_over_trees():
    assert map_tree(lambda v: v + 1, {"a": 1, "b": 2}) == {"a": 2, "b": 3}


def test_a_tree_without_entries_counts_nothing():
    assert count({}) == 0
