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
