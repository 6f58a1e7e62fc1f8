"""Films of a run: one image per frame, of whatever the run has along time or steps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from whole_runs import DIRECT, HEAT, WAVE, execute, write_scenario

from toolkit.core.errors import StorageError
from toolkit.runs import film
from toolkit.runs.film import write_film

LINE = ("cells: {x: 8, y: 8}, extent: {x: 64, y: 64}", "cells: {x: 8}, extent: {x: 64}")


def frames(path) -> list[np.ndarray]:
    with Image.open(path) as image:
        assert image.format == "GIF"
        found = []
        count = image.n_frames  # type: ignore[attr-defined]
        for i in range(count):
            image.seek(i)
            found.append(np.asarray(image.convert("L"), float))
        return found


@pytest.mark.parametrize("changes", [(), (LINE,)], ids=["plane", "line"])
def test_a_film_shows_every_frame_of_a_simulation(tmp_path, changes):
    run = execute(write_scenario(tmp_path, WAVE, *changes), tmp_path)
    run.stored.close()

    path = write_film(run.path)

    assert path == run.path / "plots" / "film.gif"
    found = frames(path)
    assert len(found) == 7
    # The wave decays, so no two frames are the same picture.
    assert all((a != b).any() for a, b in pairwise(found))


def test_a_film_shows_an_optimisation_along_its_steps(tmp_path):
    run = execute(write_scenario(tmp_path, DIRECT), tmp_path)
    run.stored.close()
    assert len(frames(write_film(run.path))) == 5


def test_vectors_without_a_grid_are_drawn_as_points(tmp_path):
    run = execute("scenarios/parabola_newton.yaml", tmp_path, {"output.plots": False})
    run.stored.close()
    assert len(frames(write_film(run.path))) == 11


def test_long_runs_are_thinned(tmp_path, monkeypatch):
    monkeypatch.setattr(film, "MAX_FRAMES", 3)
    run = execute(write_scenario(tmp_path, WAVE), tmp_path)
    run.stored.close()
    assert len(frames(write_film(run.path))) == 3


def test_a_run_in_which_nothing_moves_is_refused_and_leaves_no_file(tmp_path):
    overrides = {"train.steps": 1, "output.fields": ["initial_temperature"]}
    run = execute(write_scenario(tmp_path, HEAT), tmp_path, overrides)
    run.stored.close()
    with pytest.raises(StorageError, match="nothing to animate"):
        write_film(run.path)
    assert not (run.path / "plots").exists()


LOOP = """
name: loop
{physics}
controls: {{push: {{acts_on: force.{force}}}}}
networks: {{f: {{type: mlp, layers: [3], input: state, every_step: true, output: push}}}}
update: {{type: stable_bptt, optimizer: adam}}
train: {{steps: 1, batch_size: 2}}
output: {{fields: {fields}, plots: false}}
"""
CART = """pde: {type: cart_pole}
time: {steps: 3, dt: 0.01}
data: {type: hanging, validation: 2}
loss: {type: upright, on: final.angle}"""
FLOW = """grid: {cells: {x: 8}, extent: {x: 2}}
pde: {type: burgers, viscosity: 0.01, scheme: semi_lagrangian}
time: {steps: 3, dt: 0.01}
data: {type: wave_pairs, modes: 1, validation: 2}
loss: {type: l2, on: final.velocity}"""


@pytest.mark.parametrize(
    ("physics", "force", "fields"), [(CART, "push", "[push]"), (FLOW, "velocity", "[push]")], ids=["number", "line"]
)
def test_a_control_alone_is_shown_as_a_field_though_it_ends_a_frame_early(tmp_path, physics, force, fields):
    """A force has no value at the last frame, and a plugin's drawing has no state to show."""
    text = LOOP.format(physics=physics, force=force, fields=fields)
    path = tmp_path / "loop.yaml"
    path.write_text(text)
    run = execute(path, tmp_path)
    run.stored.close()
    told = []
    assert len(frames(write_film(run.path, say=told.append))) == 4
    assert bool(told) == (physics is CART)
