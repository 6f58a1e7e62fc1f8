"""Fields in two axes of space (volumes: their middle plane): pictures side by side, and of the error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from toolkit.runs.report import frames
from toolkit.runs.report.content import Arrays, Collector, Shown, ends, span
from toolkit.runs.report.pictures import block, shrunk


def images(collector: Collector, shown: Shown, arrays: Arrays, space: Sequence[str]) -> None:
    """Add the pictures of a family of arrays."""
    main = frames.main(arrays)
    pick, what = frames.magnitude(main)
    cells = [main.sizes[axis] for axis in space]
    sides = _sides(cells, collector.selection.side)
    read = {
        collector.title(role): collector.read(array, lambda values: shrunk(pick(values), sides))
        for role, array in arrays.items()
    }
    if what:
        shown.notes.append(what)
    averaged = [block(count, side) for count, side in zip(cells, sides, strict=True)]
    if max(averaged) > 1:
        shown.notes.append(f"each pixel is the mean of {averaged[0]} × {averaged[1]} cells")
    axes = (ends(main, space[0]), ends(main, space[1]))
    ratio = span(main, space)
    shown.pictures.append(collector.pictures(shown, read, ratio, axes))
    error = _error(read)
    if error:
        shown.pictures.append(collector.pictures(shown, error, ratio, axes, difference=True))


def _sides(cells: Sequence[int], side: int) -> tuple[int, int]:
    """Pixels along both axes, in proportion."""
    longest = max(cells)
    if longest <= side:
        return cells[0], cells[1]
    return max(1, cells[0] * side // longest), max(1, cells[1] * side // longest)


def _error(read: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The prediction without what it should be; at the end where only the end should be something."""
    wanted = next((role for role in ("true control", "target") if role in read), None)
    if wanted is None or frames.PREDICTION not in read:
        return {}
    predicted, known = read[frames.PREDICTION], read[wanted]
    if known.shape[2:] != predicted.shape[2:]:
        return {}
    if known.shape[1] == predicted.shape[1]:
        return {f"prediction − {wanted}": predicted - known}
    if known.shape[1] == 1:
        return {f"prediction − {wanted}, at the end": predicted[:, -1:] - known}
    return {}
