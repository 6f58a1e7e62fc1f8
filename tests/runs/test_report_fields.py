"""Fields on a page: each pixel and each point is a value of the file, whatever the shape of the field."""

from __future__ import annotations

import json
import tracemalloc

import netCDF4
import numpy as np
import pytest
import xarray as xr
from report_cases import moving, pixels, values_of

from toolkit.core.errors import StorageError
from toolkit.runs.datasets import open_dataset
from toolkit.runs.report import frames, viewer
from toolkit.runs.report.pictures import scale_of, shrunk
from toolkit.runs.report.plot import BOX, Axis, Curve, draw, number
from toolkit.runs.report.viewer import content


def only(fields: xr.Dataset) -> viewer.Shown:
    """What is shown of a file with one family of fields."""
    found = content(fields)
    assert found is not None
    assert len(found.shown) == 1
    return found.shown[0]


# --- pictures -----------------------------------------------------------------------------------------------------


def test_a_pixel_is_the_value_of_its_cell_at_its_time_and_sample():
    array = moving(("sample", "t", "x", "y"), sample=2, x=5, y=3)
    found = content(xr.Dataset({"u": array}))
    assert found is not None
    [image] = found.data["images"].values()
    scale = scale_of([array.values])
    step = (scale.high - scale.low) / 254
    for sample in range(2):
        for t in range(6):
            shown = values_of(image["src"][sample][t], scale.low, scale.high, scale.colours)
            # x runs to the right, y upwards, rows begin at the top.
            wanted = array.values[sample, t].T[::-1]
            np.testing.assert_allclose(shown, wanted, atol=0.51 * step)  # half a level of colour
            least, most = wanted.min(), wanted.max()
            assert image["text"][sample][t].startswith(f"{number(least, 3)} to {number(most, 3)}, mean ")
    assert found.data["stops"] == ["0", "1", "2", "3", "4", "5"]
    assert found.data["word"] == "t"
    [block] = found.shown[0].pictures
    assert block.across == ("x", "0", "5")
    assert block.up == ("y", "0", "3")
    assert block.ratio == pytest.approx(5 / 3)


def test_roles_share_their_colours_and_the_error_has_its_own():
    control, truth = moving(("sample", "x", "y"), 1, sample=2), moving(("sample", "x", "y"), 2, sample=2)
    shown = only(xr.Dataset({"c": control, "c_reference": truth, "c_untrained": 0 * truth}))
    together, error = shown.pictures
    assert [panel.title for panel in together.panels] == ["prediction", "true control", "before training"]
    assert [panel.title for panel in error.panels] == ["prediction − true control"]
    difference = (control - truth).values
    scale = scale_of([difference], difference=True)
    assert scale.low == -scale.high
    picture = error.panels[0].source.partition(",")[2]
    shown_values = values_of(picture, scale.low, scale.high, scale.colours)
    np.testing.assert_allclose(shown_values, difference[0].T[::-1], atol=0.51 * scale.high * 2 / 254)


def test_a_target_of_the_end_is_compared_with_the_end():
    course, target = moving(("sample", "t", "x", "y")), moving(("sample", "x", "y"), 1)
    found = content(xr.Dataset({"u": course, "u_target": target}))
    assert found is not None
    assert [panel.title for panel in found.shown[0].pictures[1].panels] == ["prediction − target, at the end"]
    counts = sorted(len(image["src"][0]) for image in found.data["images"].values())
    assert counts == [1, 1, 6]


def test_holes_have_no_colour_and_are_counted():
    array = moving(("x", "y"))
    array[0, 0], array[1, 1] = np.nan, np.inf
    [block] = only(xr.Dataset({"u": array})).pictures
    assert (pixels(block.panels[0].source.partition(",")[2]) == -1).sum() == 2
    assert "5.6 % without value" in block.panels[0].text
    [block] = only(xr.Dataset({"u": array * np.nan})).pictures
    assert block.panels[0].text == "without value"


def test_a_constant_field_is_of_one_colour():
    [block] = only(xr.Dataset({"u": 0 * moving(("x", "y")) + 3.0})).pictures
    assert len(np.unique(pixels(block.panels[0].source.partition(",")[2]))) == 1
    assert block.panels[0].text == "3 to 3, mean 3"


def test_of_a_volume_the_middle_plane_is_shown():
    array = moving(("t", "x", "y", "z"), z=5)
    shown = only(xr.Dataset({"u": array}))
    assert shown.notes == ["the plane z = 2.5"]
    assert shown.pictures[0].panels[0].text.startswith(number(float(array[-1, :, :, 2].min()), 3))


def test_vectors_are_shown_by_their_magnitude_and_complex_numbers_by_their_modulus():
    vector = moving(("x", "y", "component"), component=2)
    shown = only(xr.Dataset({"v": vector}))
    length = np.sqrt((vector.values**2).sum(axis=-1))
    assert shown.notes == ["magnitude of the vector"]
    assert f"to {number(length.max(), 3)}" in shown.pictures[0].panels[0].text
    wave = moving(("x", "y")) + 1j * moving(("x", "y"), 1)
    shown = only(xr.Dataset({"psi": wave}))
    assert shown.notes == ["modulus of the complex number"]
    assert f"to {number(float(np.abs(wave).max()), 3)}" in shown.pictures[0].panels[0].text


def test_a_staggered_velocity_lies_on_its_faces():
    faces = moving(("t", "x_face", "y"), x_face=7)
    shown = only(xr.Dataset({"velocity_x": faces}))
    assert shown.pictures[0].across == ("x (faces)", "0", "6")
    assert shown.pictures[0].up == ("y", "0", "6")


def test_many_cells_are_averaged_without_their_holes():
    values = np.arange(16.0).reshape(4, 4)
    values[0, 0] = np.nan
    np.testing.assert_array_equal(shrunk(values, [2, 2]), [[(1 + 4 + 5) / 3, (2 + 3 + 6 + 7) / 4], [10.5, 12.5]])
    assert np.isnan(shrunk(np.full((4, 4), np.nan), [2, 2])).all()
    # Cells that are left over make a smaller block.
    np.testing.assert_array_equal(shrunk(np.arange(5.0), [3]), [0.5, 2.5, 4.0])


# --- curves -------------------------------------------------------------------------------------------------------


def test_profiles_follow_the_slider_and_stand_beside_pictures_over_time():
    array = moving(("sample", "t", "x"), sample=2, t=9, x=7)
    found = content(xr.Dataset({"u": array, "u_target": array / 4}))
    assert found is not None
    [shown] = found.shown
    [plot] = shown.plots
    assert [curve.title for curve in plot.curves] == ["target", "prediction"]
    up = Axis(np.concatenate([array.values.ravel(), (array / 4).values.ravel()]), margin=0.05)
    heights = np.array(found.data["curves"][plot.curves[1].id]["y"], float)
    assert heights.shape == (2, 9, 7)
    value = up.start + (BOX - heights) / BOX * (up.end - up.start)
    np.testing.assert_allclose(value, array.values, atol=0.51 * (up.end - up.start) / BOX)  # half a unit of the box
    [block] = shown.pictures
    assert [panel.cursor for panel in block.panels] == [True, True]
    assert block.across == ("t", "0", "8")
    first = found.data["images"][block.panels[1].id]["src"][1][0]
    scale = scale_of([array.values, (array / 4).values])
    seen = values_of(first, scale.low, scale.high, scale.colours)
    np.testing.assert_allclose(seen, array.values[1].T[::-1], atol=0.51 * (scale.high - scale.low) / 254)


def test_a_complex_line_has_three_plots():
    wave = moving(("t", "x")) + 1j * moving(("t", "x"), 1)
    shown = only(xr.Dataset({"psi": wave}))
    assert [plot.plot.title for plot in shown.plots] == ["modulus", "real part", "imaginary part"]
    assert len(shown.pictures) == 1


def test_a_system_without_space_has_a_curve_per_component_with_a_cursor():
    state = moving(("sample", "t", "component"), sample=2, component=2).assign_coords(component=["place", "speed"])
    target = moving(("sample", "component"), 3, sample=2, component=2).assign_coords(component=["place", "speed"])
    found = content(xr.Dataset({"s": state, "s_target": target, "s_untrained": -state}))
    assert found is not None
    [shown] = found.shown
    assert [plot.plot.title for plot in shown.plots] == ["place", "speed"]
    assert set(found.data["cursors"]) == {plot.id for plot in shown.plots}
    # The target is a level.
    level = found.data["curves"][shown.plots[0].curves[0].id]["y"]
    assert len(set(level[1][0])) == 1
    assert level[0][0][0] != level[1][0][0]
    assert found.data["places"] == [0, 0.2, 0.4, 0.6, 0.8, 1]


def test_a_force_along_time_follows_the_updates_of_a_direct_optimisation():
    force = moving(("step", "t"), step=4, t=9)
    force[:, -1] = np.nan
    found = content(xr.Dataset({"f": force, "x": moving(("step",), step=4)}))
    assert found is not None
    assert found.data["word"] == "update"
    along_time, along_steps = found.shown[0].plots[0], found.shown[1].plots[0]
    heights = found.data["curves"][along_time.curves[0].id]["y"]
    assert np.shape(heights) == (1, 4, 9)
    assert heights[0][0][-1] is None
    assert (along_time.cursor, along_steps.cursor) == (False, True)


def test_numbers_per_sample_are_points_against_the_truth():
    control, truth = moving(("sample",), 1), moving(("sample",), 2)
    [plot] = only(xr.Dataset({"x": control, "x_reference": truth})).points
    assert plot.x_label == "true control"
    assert [line.label for line in plot.lines] == ["prediction", "as it should be"]
    assert plot.lines[0].path == ""
    assert plot.lines[0].dots.count("M") == 6
    [plot] = only(xr.Dataset({"x": control})).points
    assert plot.x_label == "sample"


def test_what_is_no_number_is_left_out():
    words = xr.DataArray(["a", "b"], dims="sample")
    found = content(xr.Dataset({"name": words, "u": moving(("x", "y"))}))
    assert found is not None
    assert [shown.name for shown in found.shown] == ["u"]
    assert content(xr.Dataset({"name": words})) is None


# --- size ---------------------------------------------------------------------------------------------------------


def test_a_large_file_is_read_frame_by_frame_and_makes_a_small_page(tmp_path):
    path = tmp_path / "fields.nc"
    columns = frames.even(2000, frames.COLUMNS)
    wanted = [columns[k] for k in frames.even(len(columns), frames.FRAMES)]
    noise = np.random.default_rng(0).normal(size=(4, 256, 256)).astype(np.float32)
    with netCDF4.Dataset(path, "w") as file:
        for name, size in (("t", None), ("x", 256), ("y", 256)):
            file.createDimension(name, size)
        variable = file.createVariable("u", "f4", ("t", "x", "y"), chunksizes=(1, 256, 256), fill_value=np.nan)
        file.createVariable("t", "f8", ("t",))[:] = np.arange(2000.0)
        # Chunks that are not written take no space.
        for k in wanted:
            variable[k] = noise[k % 4]
    with open_dataset(path) as fields:
        whole = fields["u"].nbytes
        tracemalloc.start()
        found = content(fields)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert found is not None
    assert whole > 5e8
    assert peak < 6e7
    assert len(json.dumps(found.data)) < viewer.MAX_BYTES
    assert found.notes == ["60 of 2000 frames"]
    assert found.data["stops"][0] == "0"
    assert found.data["stops"][-1] == "1999"
    [image] = found.data["images"].values()
    assert all("without" not in text for text in image["text"][0])
    assert found.shown[0].notes == ["each pixel is the mean of 2 × 2 cells"]


def test_what_does_not_fit_is_left_out_in_turn(monkeypatch):
    fields = xr.Dataset({"u": moving(("sample", "t", "x", "y"), sample=4, t=60, x=64, y=64)})
    whole = content(fields)
    assert whole is not None
    size = len(json.dumps(whole.data))
    for share in (2, 40):
        monkeypatch.setattr(viewer, "MAX_BYTES", size // share)
        found = content(fields)
        assert found is not None
        assert len(json.dumps(found.data)) <= size // share
        assert (found.data["stops"][0], found.data["stops"][-1]) == ("0", "59")
    assert found.data["samples"] == 1
    monkeypatch.setattr(viewer, "MAX_BYTES", 10)
    with pytest.raises(StorageError, match="do not fit"):
        content(fields)


# --- plots --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-1.5, "−1.5"), (1e-6, "10⁻⁶"), (-2.5e12, "−2.5·10¹²"), (float("inf"), "∞"), (None, "–")],
)
def test_numbers_are_for_people(value, text):
    assert number(value) == text


def test_a_curve_far_apart_is_logarithmic_and_its_ticks_are_where_they_say():
    x, y = np.arange(5.0), np.array([100.0, 10.0, 1.0, np.nan, 0.01])
    plot = draw("loss", [Curve("it", x, y)], "updates", "loss", whole=True)
    assert plot is not None
    assert plot.y_label == "loss (log)"
    axis = Axis(y[np.isfinite(y)], log=True, margin=0.05)
    places = {tick.text: BOX - tick.at for tick in plot.y_ticks}
    assert places["1"] == pytest.approx(axis.places(np.array([1.0]))[0], abs=0.1)  # a tick is rounded to 0.1
    # The hole interrupts the line.
    assert plot.lines[0].path.count("M") == 2
    assert "it from 100 to 0.01" in plot.alt
    assert draw("loss", [Curve("it", x, 0 * x - 1)], "updates", "loss").y_label == "loss"  # type: ignore[union-attr]
    assert draw("loss", [Curve("it", x, x * np.nan)], "updates", "loss") is None


def test_a_long_curve_keeps_its_extremes():
    y = np.zeros(100_000)
    y[31_415] = 1.0
    plot = draw("spike", [Curve("it", np.arange(len(y)), y)], "x", "y")
    assert plot is not None
    assert plot.lines[0].path.count("L") < 700
    heights = [float(point.split(",")[1]) for point in plot.lines[0].path[1:].split("L")]
    assert min(heights) < 100 < max(heights)
