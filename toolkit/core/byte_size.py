"""Bytes for people."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes with three digits and a decimal unit, as `1.26 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
