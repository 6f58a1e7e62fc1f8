import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from matplotlib.image import imread

from toolkit.core.errors import StorageError
from toolkit.physics.grid import Grid
from toolkit.runs import atomic, layout, panels, record
from toolkit.runs.comparison import controls_of, field_comparison
from toolkit.runs.directory import create
from toolkit.runs.fields import write_fields
from toolkit.runs.layout import Variable
from toolkit.runs.metrics import to_dataset, write_metrics_nc
from toolkit.runs.plots import learning_curves, simulation_frames, write_plots
from toolkit.runs.provenance import collect

RNG = np.random.default_rng(0)
CURVES = [{"step": s, "train_loss": 2.0**-s, "validation_loss": 3.0**-s, "control_error": 1.0} for s in range(5)]


def array(dims, sizes, long_name="temperature", units="K", **attributes):
    values = RNG.normal(size=[sizes[d] for d in dims])
    return (dims, values, {"long_name": long_name, "units": units, **attributes})


def solved(space, control=("sample",), reference=True):
    """A Dataset as a trained network leaves it, on a grid with these axes."""
    sizes = {"sample": 6, "t": 3, "component": 2, "step": 4, **dict.fromkeys(space, 8)}
    dims = (*control, *space)
    data = {
        "u": array(("sample", "t", *space), sizes),
        "u_target": array(("sample", *space), sizes),
        "x0": array(dims, sizes, "initial temperature", role="control"),
    }
    if reference:
        data["x0_reference"] = array(tuple(d for d in dims if d != "step"), sizes, "true initial temperature")
    coordinates = {axis: np.arange(8) + 0.5 for axis in space} | {"t": [0.0, 0.5, 1.0]}
    return xr.Dataset(data, coordinates, {"title": "heat_sip"})


def titles(figure):
    return [axes.get_title().split("\n")[0] for axes in figure.axes if axes.get_title()]


def images(figure):
    return [image for axes in figure.axes for image in axes.get_images()]


def test_learning_curves_show_every_loss_on_a_logarithmic_axis():
    figure = learning_curves(to_dataset(CURVES))
    losses, error = figure.axes
    assert [len(axes.lines) for axes in figure.axes] == [2, 1]
    np.testing.assert_array_equal(losses.lines[1].get_ydata(), [r["validation_loss"] for r in CURVES])
    assert losses.get_yscale() == error.get_yscale() == "log"


def test_losses_that_are_not_positive_are_not_hidden_by_a_logarithm():
    figure = learning_curves(to_dataset([{"step": 0, "train_loss": 1.0}, {"step": 1, "train_loss": -1.0}]))
    assert figure.axes[0].get_yscale() == "linear"
    with pytest.raises(StorageError, match="nothing to plot"):
        learning_curves(to_dataset([{"step": 0}]))


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_planes_are_compared_in_four_columns_with_common_colours(scale):
    fields = solved(("x", "y"))
    fields.x0[:] = fields.x0 * scale
    figure = field_comparison(fields)
    assert titles(figure) == [
        "target $y^*$",
        "predicted control $x$",
        "true control $x^*$",
        "error $x - x^*$",
    ]
    shown = images(figure)
    assert len(shown) == 16
    assert shown[1].get_clim() == shown[2].get_clim()
    np.testing.assert_array_equal(shown[1].get_array(), fields.x0[0].transpose("y", "x"))
    np.testing.assert_allclose(shown[3].get_array(), (fields.x0 - fields.x0_reference)[0].transpose("y", "x"))
    assert tuple(shown[1].get_extent()) == (0.0, 8.0, 0.0, 8.0)


def test_without_a_true_control_the_result_is_compared_with_the_target():
    fields = solved(("x", "y"), reference=False)
    figure = field_comparison(fields, samples=2)
    assert titles(figure) == [
        "target $y^*$",
        "result $P(x)$",
        "residual $P(x) - y^*$",
        "predicted control $x$",
    ]
    np.testing.assert_array_equal(images(figure)[1].get_array(), fields.u[0, -1].transpose("y", "x"))


def test_lines_show_prediction_and_truth_in_one_panel():
    fields = solved(("x",))
    figure = field_comparison(fields)
    assert titles(figure) == ["observation $y$", "control", "error $x - x^*$"]
    middle = figure.axes[1]
    np.testing.assert_array_equal(middle.lines[0].get_ydata(), fields.x0_reference[0])
    np.testing.assert_array_equal(middle.lines[1].get_ydata(), fields.x0[0])


def test_volumes_are_cut_in_the_middle():
    fields = solved(("x", "y", "z"))
    figure = field_comparison(fields, samples=1)
    np.testing.assert_array_equal(images(figure)[1].get_array(), fields.x0[0, :, :, 4].transpose("y", "x"))


def test_vectors_are_shown_by_their_magnitude():
    fields = solved(("x", "y"), control=("sample", "component"))
    shown = panels.section(fields.x0.isel(sample=0))
    np.testing.assert_allclose(shown, np.linalg.norm(fields.x0[0], axis=0))
    assert panels.label(shown) == "magnitude of initial temperature [K]"


def test_a_few_numbers_are_drawn_against_the_truth_over_all_samples():
    figure = field_comparison(solved((), control=("sample", "component")))
    assert len(figure.axes) == 2
    assert figure.axes[0].lines[-1].get_xydata().shape == (6, 2)


@pytest.mark.parametrize("dims", [("step", "component"), ("sample", "step", "component"), ("step",)])
def test_a_directly_optimised_control_is_drawn_along_its_updates(dims):
    figure = field_comparison(solved((), control=dims, reference="component" in dims))
    assert len(figure.axes) == (4 if "sample" in dims else 1)
    assert figure.axes[-1].get_xlabel() == "updates"
    assert len(figure.axes[0].lines[0].get_xdata()) == 4


def test_a_directly_optimised_field_shows_its_last_update():
    fields = solved(("x", "y"), control=("sample", "step"))
    figure = field_comparison(fields, samples=1)
    np.testing.assert_array_equal(images(figure)[1].get_array(), fields.x0[0, -1].transpose("y", "x"))


def test_a_force_per_time_step_is_a_picture_of_space_and_time():
    fields = solved(("x",), control=("sample", "t"))
    figure = field_comparison(fields, samples=1)
    first = images(figure)[0]
    np.testing.assert_array_equal(first.get_array(), fields.x0[0].transpose("x", "t"))
    assert first.axes.get_xlabel() == "$t$"


def test_controls_are_found_by_role_or_reference():
    assert controls_of(solved(("x",))) == ["x0"]
    assert controls_of(solved(("x",), reference=False)) == ["x0"]
    with pytest.raises(StorageError, match="no control"):
        field_comparison(solved(("x",)).drop_vars(["x0", "x0_reference"]))


@pytest.mark.parametrize(("space", "expected"), [(("x", "y"), 3), (("x",), 1), ((), 0)])
def test_simulations_are_shown_over_time(space, expected):
    fields = solved(space)[["u"]]
    assert len(images(simulation_frames(fields))) == expected
    with pytest.raises(StorageError, match="no variable along t"):
        simulation_frames(fields.isel(t=0))


def test_units_are_typeset():
    assert panels.bracketed("m s-1") == " [m s$^{-1}$]"
    assert panels.bracketed("1") == ""


def test_noise_around_zero_does_not_turn_the_colours_over():
    one_signed = xr.DataArray([-0.01, 1.0])
    assert panels.norm_of([one_signed])[1] == panels.SEQUENTIAL
    norm, cmap = panels.norm_of([xr.DataArray([-0.5, 1.0])])
    assert (cmap, norm.vmin, norm.vmax) == (panels.DIVERGING, -1.0, 1.0)
    assert panels.norm_of([xr.DataArray([np.nan])])[0].vmin == 0.0


def test_plots_of_a_run_are_written_into_its_folder(tmp_path):
    directory = create(tmp_path, "heat", "abc", "mine")
    atomic.write_text(directory.scenario, "name: heat\n")
    record.write(directory.record, record.begin("heat", "abc", collect(["phinverse"], tmp_path)))
    record.update(directory.record, status="done")
    assert write_plots(directory.path) == []
    grid = Grid({"x": 8}, {"x": 1.0})
    control = Variable("x0", ("sample", "x"), "control", role="control")
    coordinates = [layout.sample_coordinate(2), *layout.spatial_coordinates(grid)]
    write_fields(directory.fields, [(control, RNG.normal(size=(2, 8)))], coordinates, {"title": "heat"}, grid)
    write_metrics_nc(directory.metrics, CURVES, {"title": "heat"})
    before = dict(mpl.rcParams)
    paths = write_plots(directory.path)
    assert [path.name for path in paths] == ["learning_curves.png", "comparison_x0.png"]
    assert sorted(directory.plots.iterdir()) == sorted(paths)
    assert dict(mpl.rcParams) == before
    for path in paths:
        assert imread(path).std() > 0.01
