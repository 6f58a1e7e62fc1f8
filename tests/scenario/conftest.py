"""Fake plugins for every test here, and a scenario file to break."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit.core import registry

WARM = """\
name: warm
grid: {cells: {x: 16, y: 8}, extent: {x: 2*pi, y: 4}, boundary: periodic}
pde: {type: warm, diffusivity: 1/32}
time: {steps: 2, dt: 0.5}
controls:
  start: {acts_on: initial.u}
data: {type: bumps, train: infinite, validation: 4, seed: 1}
networks:
  estimator: {type: u_net, levels: 2, filters: 4, input: target, output: start}
loss: {type: l2, on: final.u}
update:
  type: sip
  inverse_solver: spectral
  optimizer: {type: adam, learning_rate: 1e-3}
train: {steps: 5, batch_size: 4}
"""

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _fake_plugins(monkeypatch):
    # Imported here, because PhiML warns on import and the filters hold only once pytest is configured.
    fakes = importlib.import_module("scenario_fakes")
    monkeypatch.setattr(registry, "available", fakes.available)


@pytest.fixture
def write(tmp_path) -> Write:
    """Writes the scenario with pieces of its text replaced; every piece has to be there."""

    def write(*changes: tuple[str, str], name: str = "warm.yaml", text: str = WARM) -> Path:
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write
