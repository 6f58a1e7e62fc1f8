"""Distances between two sets of native arrays by key, per sample: what proxies and control errors are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.core.backend import Backend

Natives = Mapping[str, Any]


def half_squared_distance(backend: Backend, a: Natives, b: Natives) -> Any:
    """½ Σ (a − b)² per sample over all entries of two sets of native arrays, (sample,)."""
    total = None
    for key in a:
        difference = backend.xp.reshape(a[key] - b[key], (a[key].shape[0], -1))
        part = 0.5 * backend.xp.sum(difference**2, axis=1)
        total = part if total is None else total + part
    return total


def absolute_distance(backend: Backend, a: Natives, b: Natives) -> Any:
    """Σ |a − b| per sample over all entries of two sets of native arrays, (sample,)."""
    total = None
    for key in a:
        part = backend.xp.sum(backend.xp.abs(backend.xp.reshape(a[key] - b[key], (a[key].shape[0], -1))), axis=1)
        total = part if total is None else total + part
    return total
