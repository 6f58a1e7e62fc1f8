"""How native arrays and PhiML tensors of one field correspond: the only place that knows the order of dimensions.

A native array is laid out (*leading, *cells, components); leading is `sample`, with `t` after it for anything that
has one entry per time step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from phiml import math
from phiml.math import Tensor, batch, channel, spatial

from toolkit.physics.grid import Grid
from toolkit.physics.plugin import FieldSpec

SAMPLE, TIME, COMPONENT = "sample", "t", "vector"


@dataclass(frozen=True)
class Layout:
    """Dimensions of one field, control or observation."""

    components: tuple[str, ...] = ()
    """Names along `vector`; empty for a scalar."""
    cells: Mapping[str, int] | None = None
    """Cells per axis; None off the grid."""
    steps: int | None = None
    """Length of `t`; None without that dimension."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Native shape of one sample."""
        time = () if self.steps is None else (self.steps,)
        vector = (len(self.components),) if self.components else ()
        return (*time, *(self.cells or {}).values(), *vector)

    @property
    def size(self) -> int:
        """Scalars per sample."""
        result = 1
        for extent in self.shape:
            result *= extent
        return result

    def wrap(self, native: Any) -> Tensor:
        """PhiML tensor around a native array (sample, …); no copy, no cast."""
        dims = [batch(SAMPLE)]
        if self.steps is not None:
            dims.append(batch(TIME))
        dims += [spatial(axis) for axis in self.cells or {}]
        if self.components:
            dims.append(channel(**{COMPONENT: ",".join(self.components)}))
        return math.reshaped_tensor(native, dims, convert=False)

    def native(self, tensor: Tensor, samples: int) -> Any:
        """Native array (sample, …) of a tensor; dimensions that it lacks are expanded."""
        groups = [batch(**{SAMPLE: samples})]
        if self.steps is not None:
            groups.append(batch(**{TIME: self.steps}))
        groups += [spatial(**{axis: n}) for axis, n in (self.cells or {}).items()]
        if self.components:
            groups.append(channel(**{COMPONENT: ",".join(self.components)}))
        return tensor.native(groups, force_expand=True)


def field_layout(spec: FieldSpec, grid: Grid | None, steps: int | None = None) -> Layout:
    """Layout of a state field, or with `steps` of one such field per time step."""
    cells = dict(grid.cells) if grid is not None and spec.on_grid else None
    return Layout(spec.components, cells, steps)


def mixed(layouts: Iterable[Layout]) -> bool:
    """Whether some lie on a grid and some do not; a network then sees and gives all of them as one vector."""
    return len({layout.cells is not None for layout in layouts}) > 1
