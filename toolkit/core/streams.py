"""Named random streams from one seed: data, initial weights and batches never share random numbers.

A stream is identified by the seed, a name and counters (a batch number), not by how much was drawn before. So a
resumed run draws what the uninterrupted run would have drawn, without storing any random state, and both backends
see the same numbers because all of them come from NumPy.
"""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, name: str, *counters: int) -> np.random.Generator:
    """The generator of this seed, name and counters; equal arguments give equal numbers."""
    # crc32 is stable across processes, which hash() is not.
    entropy = [seed, zlib.crc32(name.encode())]
    # Appended to the entropy, a counter of 0 would give the stream without counters: NumPy pads with zeros.
    return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=counters))
