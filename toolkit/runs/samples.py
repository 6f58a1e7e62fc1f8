"""Samples from a netCDF file, for `data: {type: file}`.

The file holds `<field>_target` (the observation, along `sample`) and, where known, the true controls under the keys
they act on: `initial.<field>`, `force.<field>`, `source.<field>` written as `initial_<field>`, … Any run's `fields.nc`
with targets of these names will do.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import StorageError
from toolkit.runs import datasets, names
from toolkit.training.data import file_key


def read_samples(path: Path) -> dict[str, np.ndarray]:
    """Arrays by `target.<field>` and `<kind>.<field>`, laid out (sample, [t], *cells, [components])."""
    result: dict[str, np.ndarray] = {}
    with datasets.open_dataset(path) as dataset:
        for name, variable in dataset.data_vars.items():
            text = str(name)
            key = file_key(text, variable.attrs.get(names.ROLE, ""))
            if names.SAMPLE not in variable.dims or key is None:
                continue
            if text.endswith(names.TARGET) and names.TIME in variable.dims:
                # A target along t begins after the first step; the frame at the start is empty.
                variable = variable.isel({names.TIME: slice(1, None)})
            if not np.isfinite(variable.values).all():
                raise StorageError(f"{path}: {text} holds values that are not finite")
            values: Any = variable.transpose(*_order(variable.dims)).values
            # Complex fields are two real numbers to physics and networks.
            result[key] = np.stack([values.real, values.imag], axis=-1) if np.iscomplexobj(values) else values
    if not result:
        raise StorageError(f"{path} holds no samples: no variable `<field>_target` along `{names.SAMPLE}`")
    return result


def _order(dims: Sequence[Hashable]) -> list[str]:
    """The layout of the toolkit, whatever the order in the file: sample, t, x, y, z, components."""
    known = [names.SAMPLE, names.TIME, *names.SPACE]
    return sorted(map(str, dims), key=lambda dim: known.index(dim) if dim in known else len(known))
