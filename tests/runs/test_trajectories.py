"""Pictures of what a network in the loop does before and after training."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from matplotlib.image import imread
from whole_runs import execute, write_scenario

from toolkit.runs import trajectories as module
from toolkit.runs.plots import simulation_frames
from toolkit.runs.trajectories import before_and_after, in_space, in_time, trajectories

RNG = np.random.default_rng(0)
SWING = """\
name: swing
pde: {type: cart_pole}
time: {steps: 2, dt: 0.1}
controls: {push: {acts_on: force.push}}
data: {type: hanging, train: 4, validation: 2, seed: 2}
networks: {f: {type: mlp, layers: [3], activation: tanh, every_step: true, input: state, output: push}}
loss: {type: upright, on: final.angle}
update: {type: dp, optimizer: {type: sgd, learning_rate: 5.0}}
train: {steps: 1, batch_size: 2}
run: {backend: torch, precision: float64}
"""


def loop(space=(), components=2, samples=3):
    """A Dataset as a network in the loop leaves it."""
    sizes = {"sample": samples, "t": 4, **dict.fromkeys(space, 5), "component": components}
    labels = [f"c_{i}" for i in range(components)]
    coordinates = {"t": np.arange(4) / 2, "component": labels, **{axis: np.arange(5) + 0.5 for axis in space}}
    data = {}
    for name, dims in (("u", ("sample", "t", *space, "component")), ("push", ("sample", "t"))):
        for suffix in ("", "_untrained"):
            values = RNG.normal(size=[sizes[d] for d in dims])
            data[name + suffix] = (dims, values, {"long_name": f"long {name}", "units": "m s-1"})
    data["u_target"] = (("sample", "component"), RNG.normal(size=(samples, components)))
    return xr.Dataset(data, coordinates, {"title": "loop"})


def test_every_component_is_drawn_before_dashed_and_after_solid():
    ds = loop()
    figure = trajectories(ds)
    figure.draw_without_rendering()
    assert [axes.get_title() for axes in figure.axes] == [
        "u: c 0 [m s$^{-1}$]",
        "u: c 1 [m s$^{-1}$]",
        "push [m s$^{-1}$]",
    ]
    for k, axes in enumerate(figure.axes[:2]):
        for suffix, style in (("_untrained", "--"), ("", "-")):
            lines = [line for line in axes.lines if line.get_linestyle() == style]
            thick = [line for line in lines if line.get_linewidth() > 1]
            assert (len(lines), len(thick)) == (3, 1)
            np.testing.assert_array_equal(thick[0].get_ydata(), ds["u" + suffix][0, :, k])
            np.testing.assert_array_equal(thick[0].get_xdata(), ds.t)
            others = {tuple(np.asarray(line.get_ydata())) for line in lines if line is not thick[0]}
            assert others == {tuple(ds["u" + suffix].values[i, :, k]) for i in (1, 2)}
            # Above the others, so that nothing hides it.
            assert thick[0].get_zorder() > max(line.get_zorder() for line in lines if line is not thick[0])
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["before training", "after training", "thin: other samples"]


@pytest.mark.parametrize("components", [1, 4, 5])
def test_the_grid_of_panels_has_no_empty_frame(components):
    figure = trajectories(loop(components=components, samples=1))
    figure.draw_without_rendering()
    seen = [axes for axes in figure.axes if axes.get_visible()]
    assert len(seen) == components + 1
    assert all(axes.lines for axes in seen)
    assert "thin" not in " ".join(text.get_text() for text in figure.legends[0].get_texts())
    lowest = {axes.get_subplotspec().colspan.start: axes for axes in seen}  # type: ignore[union-attr]
    assert all(axes.get_xlabel() == "$t$" for axes in lowest.values())
    assert all(axes.xaxis.get_tick_params()["labelbottom"] for axes in lowest.values())


def test_what_there_is_no_room_for_is_counted(monkeypatch):
    monkeypatch.setattr(module, "MAX_PANELS", 3)
    figure = trajectories(loop(components=6))
    assert len([axes for axes in figure.axes if axes.get_visible()]) == 3
    assert figure.legends[0].get_texts()[-1].get_text() == "4 more components not shown"


def test_complex_numbers_are_shown_by_their_modulus():
    ds = loop(components=1)
    for name in ("push", "push_untrained"):
        ds[name] = (ds[name] * (3 + 4j)).assign_attrs(ds[name].attrs)
    axes = trajectories(ds).axes[1]
    (before, after) = [line for line in axes.lines if line.get_linewidth() > 1]
    np.testing.assert_allclose(np.asarray(after.get_ydata()), abs(ds.push[0]))
    np.testing.assert_allclose(np.asarray(before.get_ydata()), abs(ds.push_untrained[0]))


@pytest.mark.parametrize("space", [("x",), ("x", "y"), ("x", "y", "z")])
def test_on_a_grid_both_are_images_with_common_colours(space):
    ds = loop(space)
    assert (in_time(ds), in_space(ds)) == (["push"], ["u"])
    figure = before_and_after(ds)
    figure.draw_without_rendering()
    before, after = (axes.get_images()[0] for axes in figure.axes[:2])
    assert before.norm.vmin == after.norm.vmin
    assert before.norm.vmax == after.norm.vmax
    assert [axes.get_title() for axes in figure.axes[:2]] == ["before training", "after training"]
    expected = (ds.u_untrained[0] ** 2).sum("component") ** 0.5
    if len(space) > 1:
        expected = expected.isel(t=-1)
    if len(space) > 2:
        expected = expected.isel(z=2)
    vertical, horizontal = ("x", "t") if len(space) == 1 else ("y", "x")
    np.testing.assert_allclose(np.asarray(before.get_array()), expected.transpose(vertical, horizontal))


def test_without_a_pair_there_is_nothing_to_draw():
    ds = loop()
    assert in_time(ds.drop_vars(["u_untrained", "push_untrained"])) == []
    assert in_time(ds.drop_vars(["u", "push"])) == []


def test_frames_of_a_simulation_leave_out_what_was_before_training():
    assert len(simulation_frames(loop()).axes) == 2


def test_a_run_draws_it(tmp_path):
    run = execute(write_scenario(tmp_path, SWING), tmp_path)
    run.stored.close()
    names = {path.name for path in (run.path / "plots").iterdir()}
    assert names == {"learning_curves.png", "comparison_push.png", "trajectories.png"}
    assert imread(run.path / "plots" / "trajectories.png").std() > 0.01
