"""Films of what a plugin draws: shapes, colours, limits, and which states of a run are shown."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.patches import Polygon as Area
from PIL import Image
from whole_runs import HEAT, cli, execute, write_scenario

from toolkit.core.errors import ScenarioError
from toolkit.physics.drawing import Cross, Disc, Drawing, Line, Polygon
from toolkit.runs import film, panels
from toolkit.runs.open import open_run
from toolkit.runs.scenes import Scene, decimals, labels, scene_drawer, union
from toolkit.scenario.load import load_scenario

SWING = """\
name: swing
description: One pole on a cart, pushed by a small network.
pde: {type: cart_pole}
time: {steps: 4, dt: 0.1}
controls: {push: {acts_on: force.push}}
data: {type: hanging, train: 4, validation: 2, seed: 2}
networks: {f: {type: mlp, layers: [3], activation: tanh, every_step: true, input: state, output: push}}
loss: {type: upright, on: final.angle}
update: {type: dp, optimizer: {type: sgd, learning_rate: 5.0}}
train: {steps: 1, batch_size: 2}
run: {backend: torch, precision: float64, seed: 3}
output: {plots: false}
"""
TRIANGLE = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))


def at(x: float, reach: float = 1.0) -> Drawing:
    shapes = (
        Cross((0.0, 0.0), "goal"),
        Polygon(TRIANGLE, "body"),
        Line(((0.0, 0.0), (x, 1.0)), "arm"),
        Disc((x, 1.0), 0.1, "arm"),
        Disc((x, -1.0), 0.2),
    )
    return Drawing(shapes, ((x - reach, x + reach), (-2.0, 2.0)))


@pytest.fixture
def drawn():
    scenes = [Scene("before", tuple(at(x) for x in (0.0, 0.5, 1.0))), Scene("after", (at(0), at(2), at(3, 2.0)))]
    figure = Figure(layout="constrained")
    return figure, scene_drawer(figure, scenes, ["one", "two", "three"]), scenes


def test_all_panels_show_the_union_at_one_scale(drawn):
    figure, _, scenes = drawn
    assert union(scenes) == ((-1.0, 5.0), (-2.0, 2.0))
    for axes in figure.axes:
        assert (axes.get_xlim(), axes.get_ylim()) == ((-1.0, 5.0), (-2.0, 2.0))
        assert axes.get_aspect() == 1.0
    assert [axes.get_title() for axes in figure.axes] == ["before", "after"]


def test_a_frame_shows_its_shapes_and_nothing_of_the_one_before(drawn):
    figure, draw, _ = drawn
    for i, x in ((0, 0.0), (2, 3.0), (1, 2.0)):
        draw(i)
        (area, arm, other) = figure.axes[1].patches
        assert isinstance(area, Area)
        np.testing.assert_array_equal(area.get_xy()[:3], TRIANGLE)
        assert isinstance(arm, Circle)
        assert (arm.get_center(), arm.get_radius()) == ((x, 1.0), 0.1)
        assert isinstance(other, Circle)
        assert (other.get_center(), other.get_radius()) == ((x, -1.0), 0.2)
        # Two trails, the cross and the arm.
        assert len(figure.axes[1].lines) == 4
        assert figure.get_suptitle() == ["one", "two", "three"][i]
    trail = next(line for line in figure.axes[1].lines if len(line.get_xdata()) == 2 and line.get_alpha())
    np.testing.assert_array_equal(trail.get_xdata(), [0.0, 2.0])


def test_later_shapes_are_above_earlier_ones_and_trails_below(drawn):
    figure, draw, _ = drawn
    draw(1)
    axes = figure.axes[0]
    trails = [line.get_zorder() for line in axes.lines if line.get_alpha()]
    cross, arm = (line.get_zorder() for line in axes.lines if not line.get_alpha())
    area, disc, _ = (patch.get_zorder() for patch in axes.patches)
    assert max(trails) < cross < area < arm < disc


def test_labels_have_a_colour_and_an_entry_each(drawn):
    figure, draw, scenes = drawn
    assert list(labels(scenes)) == ["goal", "body", "arm"]
    draw(0)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["goal", "body", "arm"]
    colors = [handle.get_color() for handle in legend.get_lines()]
    assert colors == [panels.INK, panels.COLORS[0], panels.COLORS[1]]
    for axes in figure.axes:
        area, disc, _ = axes.patches
        cross, arm = [line for line in axes.lines if not line.get_alpha()]
        assert [cross.get_color(), arm.get_color()] == [panels.INK, panels.COLORS[1]]
        np.testing.assert_allclose(area.get_facecolor(), rgba(panels.COLORS[0]))
        np.testing.assert_allclose(disc.get_facecolor(), rgba(panels.COLORS[1]))


def rgba(color: str) -> tuple[float, ...]:
    return (*(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)), 1.0)


@pytest.mark.parametrize(("right", "stacked"), [(9.0, False), (11.0, True)])
def test_wide_panels_stand_below_each_other(right, stacked):
    wide = Drawing((Cross((0.0, 0.0)),), ((0.0, right), (-2.0, 2.0)))
    figure = Figure(layout="constrained")
    scene_drawer(figure, [Scene("a", (wide,)), Scene("b", (wide,))], [""])
    first, second = (axes.get_position() for axes in figure.axes)
    assert bool(first.x0 == second.x0) is stacked
    assert bool(first.y0 == second.y0) is not stacked


def test_nothing_is_cut_off_or_overlaps(drawn):
    figure, draw, _ = drawn
    draw(1)
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    heading = next(text for text in figure.texts).get_window_extent()
    legend = figure.legends[0].get_window_extent()
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box is not None
        assert box.x0 >= 0
        assert box.x1 <= width
        assert legend.y1 <= box.y0
        assert box.y1 <= heading.y0
    assert legend.y0 >= 0
    assert heading.y1 <= height


def test_times_are_told_apart():
    assert decimals([0.0, 0.01, 0.02]) == 2
    assert decimals(np.linspace(0, 4, 61)) == 2
    assert decimals([0.0, 5.0]) == 0
    assert decimals([0.0, 0.36, 0.35 + 0.02]) == 2
    assert decimals([1.0]) == 0


# --- films of runs -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swing")
    run = execute(write_scenario(folder, SWING), folder)
    run.stored.close()
    return run


@pytest.fixture
def shown(monkeypatch):
    """The scenes and headings of the films that are written."""
    seen = []

    def drawer(figure, scenes, titles):
        seen.append((scenes, titles))
        return scene_drawer(figure, scenes, titles)

    monkeypatch.setattr(film, "scene_drawer", drawer)
    return seen


def frames(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """Frames of a GIF in grey, and how long each is shown."""
    found, durations = [], []
    with Image.open(path) as image:
        for i in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(i)
            found.append(np.asarray(image.convert("L"), float))
            durations.append(float(image.info["duration"]))
    return found, durations


@pytest.mark.parametrize("sample", [0, 1])
def test_a_closed_loop_is_drawn_before_and_after_training(swing, shown, sample):
    said: list[str] = []
    path = film.write_film(swing.path, sample, said.append)

    assert said == []
    ((before, after), titles) = shown[0]
    assert (before.title, after.title) == ("before training", "after training")
    pde = load_scenario(swing.path / "scenario.yaml").sections.pde
    assert pde.plugin.drawing is not None
    with open_run(swing.path) as stored:
        ds = stored.fields.isel(sample=sample).load()
    for suffix, scene in (("_untrained", before), ("", after)):
        for i in range(5):
            at = {n: ds[n + suffix].isel(t=i).values for n in ("cart", "angle")}
            assert scene.frames[i] == pde.plugin.drawing(pde.options, at)
    assert before.frames != after.frames
    assert titles == [f"swing · sample {sample} · $t$ = {t}" for t in ("0.0", "0.1", "0.2", "0.3", "0.4")]
    found, durations = frames(path)
    assert len(found) == 5
    assert all((a != b).any() for a, b in pairwise(found))
    # A GIF begins again at once: the last frame stands still for a while.
    assert durations[-1] > 5 * durations[0]


def test_long_films_are_thinned(swing, shown, monkeypatch):
    monkeypatch.setattr(film, "MAX_FRAMES", 3)
    assert len(frames(film.write_film(swing.path))[0]) == 3
    assert shown[0][1][1].endswith("0.2")


def test_a_simulation_has_one_scene(tmp_path, shown):
    text = SWING[: SWING.index("controls:")] + "data: {type: hanging, validation: 2}\noutput: {plots: false}\n"
    run = execute(write_scenario(tmp_path, text), tmp_path, {"run.backend": "torch"})
    run.stored.close()
    film.write_film(run.path)
    assert [scene.title for scene in shown[0][0]] == [""]


def test_what_cannot_be_drawn_is_said_and_shown_as_a_field(tmp_path, shown, swing):
    run = execute(write_scenario(tmp_path, SWING), tmp_path, {"output.fields": ["cart", "push"]})
    run.stored.close()
    said: list[str] = []
    assert len(frames(film.write_film(run.path, 0, said.append))[0]) == 5
    assert "angle is not in the field file; add it to output.fields" in said[0]
    assert shown == []

    scenario = run.path / "scenario.yaml"
    scenario.write_text(scenario.read_text().replace("type: cart_pole", "type: cart_of_others"))
    result = cli("plot", run.path, "--film")
    assert result.exit_code == 0
    assert "the film shows a field, not the drawing of the plugin: " in result.stderr
    assert "cart_of_others" in result.stderr
    assert result.stdout.splitlines()[-1].endswith("film.gif")
    assert shown == []


def test_states_that_are_not_finite_are_said_and_shown_as_a_field(tmp_path, shown):
    import netCDF4

    run = execute(write_scenario(tmp_path, SWING), tmp_path)
    run.stored.close()
    with netCDF4.Dataset(run.path / "fields.nc", "a") as dataset:
        dataset["angle_untrained"][0, 2] = np.nan
    said: list[str] = []
    film.write_film(run.path, 0, said.append)
    assert said == [
        "the film shows a field, not the drawing of the plugin: angle_untrained holds values that are not finite"
    ]
    assert shown == []
    film.write_film(run.path, 1, said.append)
    assert len(shown) == len(said) == 1


def test_a_plugin_without_drawing_is_shown_as_before(tmp_path, shown):
    run = execute(write_scenario(tmp_path, HEAT), tmp_path, {"train.steps": 1})
    run.stored.close()
    said: list[str] = []
    film.write_film(run.path, 0, said.append)
    assert said == []
    assert shown == []


def test_the_command_takes_a_sample_and_refuses_one_that_is_not_there(swing):
    result = cli("plot", swing.path, "--film", "--sample", 2)
    assert result.exit_code == 2, result.stderr
    assert "--sample 2: the run has written 2, counted from 0" in result.stderr
    with pytest.raises(ScenarioError, match="--sample -1"):
        film.write_film(swing.path, -1)
