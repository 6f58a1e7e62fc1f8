"""Reports: what a page says of a run and of a sweep, that it is safe, and that it stands alone."""

from __future__ import annotations

import base64
import itertools
import json
import tomllib
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path

import pytest
import xarray as xr
from report_cases import EVIL, LOSSES, Page, make_run, make_sweep, moving, read_page
from whole_runs import HEAT, WAVE, cli, execute, write_scenario

import toolkit
from toolkit.core.errors import ScenarioError, StorageError

FIELDS = xr.Dataset(
    {
        "temperature": moving(("sample", "t", "x", "y"), 0, sample=3, t=2),
        "temperature_target": moving(("sample", "x", "y"), 1, sample=3),
    }
)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    """A real simulation."""
    folder = tmp_path_factory.mktemp("simulated")
    return execute(write_scenario(folder, WAVE), folder / "runs").path


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Page:
    """The page of a training."""
    run = make_run(tmp_path_factory.mktemp("learned") / "heat" / "it", fields=FIELDS)
    return read_page(toolkit.report(run))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """A sweep over a rule and a seed: one member failed, one has not begun."""
    cells = {f"{rule}-{seed}": {"rule": rule, "run.seed": seed} for rule in ("sip", "<b>dp</b>") for seed in (0, 1)}
    names = {name: name.replace("<b>", "b-").replace("</b>", "") for name in cells}
    folder = make_sweep(tmp_path_factory.mktemp("sweep") / "heat" / "s", {names[n]: c for n, c in cells.items()})
    for k, (name, labels) in enumerate(cells.items()):
        text = HEAT.replace("precision: float64", f"precision: float64, seed: {labels['run.seed']}")
        if labels["rule"] != "sip":
            text = text.replace("type: sip\n  inverse_solver: damped_spectral", "type: dp")
        if k < 2:
            make_run(folder / names[name], text, losses=tuple((k + 1) * v for v in LOSSES))
        elif k == 2:
            make_run(folder / names[name], text, losses=(1.0, 100.0), status="failed", reason=f"diverged {EVIL}")
    toolkit.report(folder / "sip-0")
    return folder


def assert_stands_alone(page: Page) -> None:
    """Nothing is loaded from elsewhere, and the page forbids it."""
    [policy] = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none'; img-src data:;")
    assert "http" not in str(policy)
    for tag, attributes in page.elements:
        assert not set(attributes) & {"srcset", "action", "background"}, tag
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        if tag != "a":
            assert all(str(attributes[name]).startswith("data:") for name in ("src", "href") if name in attributes), tag
        elif not str(attributes["href"]).startswith(("#", "data:text/yaml")):
            assert ":" not in str(attributes["href"])
    assert not {"iframe", "object", "embed", "form", "base", "style-src"} & {tag for tag, _ in page.elements}
    style = page.source.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def assert_can_be_read(page: Page) -> None:
    """What programs that read pages aloud need."""
    assert [tag for tag, _ in page.elements].count("h1") == 1
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(image.get("alt") for image in page.all("img"))
    assert all(s.get("aria-label") for s in page.all("svg") if s.get("role") == "img")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [str(a["href"])[1:] for a in page.all("a") if str(a.get("href")).startswith("#")]
    assert targets
    assert set(targets) <= set(ids)
    assert page.all("html")[0]["lang"] == "en"


# --- runs ---------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_page_and_names_it(simulated):
    out = simulated.parents[1]
    result = cli("report", "last", "--out", out)
    assert result.exit_code == 0
    assert result.stdout == f"{simulated / 'report.html'}\n"
    assert result.stderr == f"next: phinverse plot {simulated} --film\n"
    assert [p.name for p in simulated.glob("*.html")] == ["report.html"]


def test_a_simulation_shows_its_fields_its_monitors_and_how_to_repeat_it(simulated):
    page = read_page(toolkit.report(simulated))
    for text in (
        "wave done A cosine that decays at a known rate.",
        "∂u/∂t = D Δu + f",
        "diffusivity = 8 length² / time (D, thermal diffusivity)",
        "8 × 8 cells on 64 × 64; boundary: periodic",
        "6 steps of dt = 0.5",
        "phinverse run scenario.yaml",
        "physics = float64, network = float64",
        "fields.nc",
        "Monitors",
    ):
        assert text in page.text
    assert page.data["stops"] == ["0", "0.5", "1", "1.5", "2", "2.5", "3"]
    assert page.data["samples"] == 2
    [image] = page.data["images"].values()
    assert len(set(image["src"][1])) == 7
    [link] = [str(a["href"]) for a in page.all("a") if a.get("download")]
    stored = (simulated / "scenario.yaml").read_text(encoding="utf-8")
    assert base64.b64decode(link.partition("base64,")[2]).decode() == stored
    assert "".join(stored.split()) in "".join(page.text.split())
    assert_stands_alone(page)
    assert_can_be_read(page)


def test_a_training_shows_numbers_curves_and_method(learned):
    for text in (
        "validation loss 0.5 best 0.5 at step 3",
        "training loss 0.25 best 0.25 at step 3",
        "steps 3",
        "time per step 0.5 s median",
        "compiling 1.5 s",
        "peak memory 5 MB",
        "unknown initial_temperature: the initial state of temperature, given by the network estimator",
        "hot_rectangles: sums of hot boxes",
        "l2 of final.temperature: half the sum of squared differences",
        "direction = ∂/∂θ Σ ½ |f(y*; θ) − x̃|²",
        "inverse solver damped_spectral",
        "optimizer adam, learning rate 0.001",
        "4 updates on batches of 2 samples",
        "something [m s-1]",
        "prediction − target, at the end",
    ):
        assert text in learned.text
    labels = [str(svg.get("aria-label")) for svg in learned.all("svg") if svg.get("role") == "img"]
    assert "training loss from 3 to 0.25; validation loss from 6 to 0.5; along updates" in labels[0]
    assert "along training time [s]" in labels[1]
    assert learned.data["word"] == "t"
    assert_stands_alone(learned)
    assert_can_be_read(learned)


def test_texts_are_never_markup(tmp_path):
    scenario = HEAT.replace("description: A small", f"description: {json.dumps(EVIL)} # {EVIL} A small")
    named = moving(("x", "y")).assign_attrs(long_name=EVIL)
    run = make_run(tmp_path / "r", scenario, xr.Dataset({"u": named}), status="failed", reason=EVIL)
    page = read_page(toolkit.report(run))
    assert len(page.all("script")) == 2
    assert page.source.count("<script") == 2
    assert page.text.count("<script>alert('x')</script>") >= 4
    assert EVIL in page.data["images"]["v1"]["alt"]


def test_a_page_stays_small_whatever_the_scenario(tmp_path):
    text = HEAT + "# " + "a comment without an end " * 14_000 + "\n"
    page = read_page(toolkit.report(make_run(tmp_path / "r", text, losses=(1.0,) * 2_000)))
    assert len(page.source) < 400_000
    assert "The rest is in the file." in page.text
    assert [a["href"] for a in page.all("a") if a.get("download")] == ["scenario.yaml"]


@pytest.mark.parametrize(("status", "hint"), [("failed", "plot"), ("interrupted", "resume")])
def test_a_run_that_did_not_end_well_says_why(tmp_path, status, hint):
    run = make_run(tmp_path / "heat" / "it", losses=(), status=status, reason="the loss is not finite at step 3")
    result = cli("report", run, "--out", tmp_path)
    assert result.exit_code == 0
    assert result.stderr == f"next: phinverse {hint} {run}\n"
    page = read_page(run / "report.html")
    assert f"heat {status}" in page.text
    assert f"{status} the loss is not finite at step 3" in page.text
    assert {"Learning curves", "Fields"}.isdisjoint(page.words)
    assert_can_be_read(page)


def test_what_cannot_be_read_is_said_and_the_rest_is_shown(tmp_path):
    run = make_run(tmp_path / "r", HEAT.replace("type: heat", "type: lost_plugin"))
    (run / "fields.nc").write_bytes(b"no netCDF")
    page = read_page(toolkit.report(run))
    assert "the fields cannot be read" in page.text
    assert "the scenario is shown without explanation" in page.text
    assert "lost_plugin" in page.text
    assert "validation loss 0.5" in page.text
    assert_can_be_read(page)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match=r"neither a run nor a sweep"):
        toolkit.report(tmp_path)
    result = cli("report", tmp_path / "x", "--out", tmp_path)
    assert result.exit_code == 2
    assert "phinverse list runs" in result.stderr
    run = make_run(tmp_path / "r")
    (run / "run.json").write_text("{")
    with pytest.raises(StorageError, match=r"run\.json"):
        toolkit.report(run)
    assert cli("report", run).exit_code == 1
    assert not (run / "report.html").exists()


# --- sweeps -------------------------------------------------------------------------------------------------------


def test_a_sweep_shows_axes_members_medians_and_reasons(sweep):
    result = cli("report", sweep)
    assert result.exit_code == 0
    assert result.stderr == f"next: phinverse compare {sweep}\n"
    page = read_page(sweep / "report.html")
    for text in (
        "2 done 1 failed 1 not begun",
        "rule sip, <b>dp</b>",
        "run.seed 0, 1",
        "sip 0 done 0.5 0.5 3 1.5 5 MB sip-0",
        "sip 1 done 1 1 3 1.5 5 MB sip-1",
        "<b>dp</b> 0 failed 200 2 1",
        "b-dp-0 : failed",
        "diverged <script>alert('x')</script>",
        "b-dp-1 : not begun",
        "sip 2 of 2 0.75 (0.5 to 1)",
        "<b>dp</b> 0 of 1 –",
        "rule = sip (n = 2)",
    ):
        assert text in page.text
    links = [str(a["href"]) for a in page.all("a") if str(a["href"]).endswith("report.html")]
    assert links == ["sip-0/report.html"]
    assert "the whole sweep" in read_page(toolkit.report(sweep / "sip-0")).text
    assert len(page.all("script")) == 1
    assert_stands_alone(page)
    assert_can_be_read(page)


def test_a_sweep_shows_its_pictures_and_its_axes_one_by_one(tmp_path):
    cells = {
        f"{rule}-{rate}": {"rule": rule, "update.optimizer.learning_rate": rate} for rule in "ab" for rate in (1, 2)
    }
    sweep = make_sweep(tmp_path / "s", cells)
    for k, (name, labels) in enumerate(cells.items()):
        text = HEAT.replace("learning_rate: 1e-3", f"learning_rate: {labels['update.optimizer.learning_rate']}")
        make_run(sweep / name, text.replace("batch_size: 2", f"batch_size: {2 + k // 2}"), losses=(1.0, 0.1 * (k + 1)))
    (sweep / "plots").mkdir()
    (sweep / "plots" / "sweep.png").write_bytes(b"\x89PNG")
    page = read_page(toolkit.report(sweep))
    assert "a (n = 2)" in page.text
    assert "learning_rate = 2" in page.text
    assert "Repetitions" not in page.text
    assert [i["src"] for i in page.all("img")] == ["data:image/png;base64,iVBORw=="]


# --- the package --------------------------------------------------------------------------------------------------


def test_templates_are_installed_with_the_package():
    root = Path(toolkit.__file__).parent.parent
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    found = [f"templates/{p.name}" for p in (files("toolkit.runs.report") / "templates").iterdir()]
    assert len(found) >= 6
    assert all(any(fnmatch(name, pattern) for pattern in patterns["toolkit.runs.report"]) for name in found)
