"""Run directories and pages for tests of reports: written by hand, so that nothing has to be computed for them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image
from whole_runs import HEAT

from toolkit.runs import record
from toolkit.runs.datasets import write_dataset
from toolkit.runs.metrics import to_dataset
from toolkit.runs.provenance import Provenance

EVIL = "<script>alert('x')</script> & \"quoted\""
LOSSES = (3.0, 1.0, 0.5, 0.25)


def make_run(
    folder: Path,
    scenario: str = HEAT,
    fields: xr.Dataset | None = None,
    losses: tuple[float, ...] = LOSSES,
    status: str = "done",
    reason: str | None = None,
) -> Path:
    """The directory of a run that has ended."""
    folder.mkdir(parents=True)
    (folder / "scenario.yaml").write_text(scenario, encoding="utf-8")
    provenance = Provenance({"phinverse": "0.1.0"}, "3.11", "some system", "a host", ("phinverse", "run", "x"), "abc")
    path = folder / "run.json"
    record.write(path, record.begin("heat", "1234", provenance, backend="torch", device="cpu", seeds={"run": 0}))
    record.update(path, status=status, reason=reason, details={"peak_memory_bytes": 5_000_000})
    rows = [
        {"step": k, "train_loss": v, "validation_loss": 2 * v, "wall_seconds": 0.5 * k, "step_seconds": 0.5}
        for k, v in enumerate(losses)
    ]
    if rows:
        write_dataset(folder / "metrics.nc", to_dataset(rows, {"compile_seconds": 1.5}))
    if fields is not None:
        write_dataset(folder / "fields.nc", fields)
    return folder


def make_sweep(folder: Path, cells: Mapping[str, Mapping[str, Any]], scenario: str = HEAT) -> Path:
    """The directory of a sweep without its members."""
    folder.mkdir(parents=True)
    (folder / "scenario.yaml").write_text(scenario, encoding="utf-8")
    (folder / "sweep.json").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    return folder


def moving(dims: tuple[str, ...], seed: int = 0, **sizes: int) -> xr.DataArray:
    """Random values along dimensions of size 6, or of other sizes, with coordinates."""
    lengths = [sizes.get(dim, 6) for dim in dims]
    values = np.random.default_rng(seed).normal(size=lengths)
    starts = [0.5 if dim in "xyz" else 0 for dim in dims]
    coordinates = {dim: start + np.arange(n) for dim, start, n in zip(dims, starts, lengths, strict=True)}
    return xr.DataArray(values, dims=dims, coords=coordinates, attrs={"long_name": "something", "units": "m s-1"})


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.source = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside = ""
        self.data: dict[str, Any] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = "data" if dict(attrs).get("id") == "frames" else tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "data":
            self.data = json.loads(data)
        elif self._inside not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        """What a reader sees, with one blank between words and elements."""
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def read_page(path: Path) -> Page:
    """A page from its file."""
    return Page(path.read_text(encoding="utf-8"))


def pixels(source: str) -> np.ndarray:
    """Levels of an encoded picture (rows from the top), 255 where it has no colour."""
    image = Image.open(io.BytesIO(base64.b64decode(source)))
    rgba = np.asarray(image.convert("RGBA")).astype(int)
    return np.where(rgba[..., 3] == 0, -1, rgba[..., 0] * 65536 + rgba[..., 1] * 256 + rgba[..., 2])


def values_of(source: str, low: float, high: float, colours: str) -> np.ndarray:
    """Values that a picture shows, NaN where it has no colour; its scale has distinct colours."""
    import matplotlib as mpl

    table = np.round(255 * mpl.colormaps[colours](np.linspace(0, 1, 255))[:, :3]).astype(int)
    codes = table[:, 0] * 65536 + table[:, 1] * 256 + table[:, 2]
    found = pixels(source)
    nearest = np.abs(found[..., None] - codes).argmin(axis=-1)
    return np.where(found < 0, np.nan, low + nearest / 254 * (high - low))
