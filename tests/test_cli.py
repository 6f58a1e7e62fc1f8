"""The command line as people and scripts use it: what goes where, and how it ends."""

from __future__ import annotations

import io
import json
import sys

import pytest
from whole_runs import HEAT, WAVE, cli, files, status, write_scenario

from toolkit.commands import console
from toolkit.commands.locate import shipped

COMMANDS = (
    "run",
    "batch",
    "resume",
    "validate",
    "diagnose",
    "compare",
    "predict",
    "list",
    "schema",
    "devices",
    "new",
    "plot",
    "report",
)
SWEEP = (
    "output: {",
    "sweep: {run.seed: [0, 1], rule: {sip: {}, adam: {update: {type: dp}}}}\noutput: {",
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- run ----------------------------------------------------------------------------------------------------------


def test_the_result_is_on_stdout_and_everything_else_on_stderr(here):
    path = write_scenario(here, HEAT)
    result = cli("run", path.name, "--set", "output.plots=true")
    assert result.exit_code == 0
    run = here / result.stdout.strip()
    assert run.parent == here / "runs" / "heat"
    assert status(run)["status"] == "done"
    lines = result.stderr.splitlines()
    assert lines[0].startswith("phinverse 0.")
    for word in ("phiflow", "torch", "cpu", "physics float64, network float64"):
        assert word in lines[0]
    assert any(line.startswith("step 4 of 4  train_loss") for line in lines)
    assert f"fields: {run.relative_to(here) / 'fields.nc'}" in lines
    assert f"picture: {run.relative_to(here) / 'plots' / 'learning_curves.png'}" in lines
    assert lines[-1] == f"next: phinverse plot {run.relative_to(here)}"


def test_quiet_leaves_the_run_directory_and_what_to_do_next(here):
    result = cli("run", write_scenario(here, WAVE), "--quiet", "--name", "a")
    assert result.exit_code == 0
    assert result.stdout == "runs/wave/a\n"
    assert "step" not in result.stderr
    assert "phiflow" not in result.stderr


def test_a_dry_run_says_what_would_be_and_writes_nothing(here):
    path = write_scenario(here, HEAT, SWEEP)
    result = cli("run", path, "--dry-run", "--out", here / "out")
    assert result.exit_code == 0
    for text in ("8 x 8 cells", "conv_net, 34 parameters", "sip with damped_spectral", "4 cells", "seed=1"):
        assert text in result.stdout
    assert files(here) == {"heat.yaml"}
    assert not (here / "out").exists()


def test_a_name_is_given_once(here):
    path = write_scenario(here, WAVE)
    assert cli("run", path, "--name", "a").exit_code == 0
    before = files(here)
    result = cli("run", path, "--name", "a")
    assert result.exit_code == 2
    assert "runs/wave/a exists already; choose another name" in result.stderr
    assert "resume" in result.stderr
    assert cli("run", path, "--name", "../b").exit_code == 2
    assert files(here) == before


def test_short_options_stand_for_keys_of_the_scenario(here):
    path = write_scenario(here, HEAT)
    short = ("--backend", "torch", "--device", "cpu", "--precision", "float64", "--seed", 7, "--steps", 1)
    assert cli("run", path, *short, "--name", "a", "--set", "data.seed=3").exit_code == 0
    record = status(here / "runs" / "heat" / "a")
    assert record["seeds"] == {"run": 7, "data": 3}
    assert record["command"] is not None
    assert (here / "runs/heat/a/metrics.jsonl").read_text().count("\n") == 2
    stored = (here / "runs/heat/a/scenario.yaml").read_text()
    assert "seed: 7" in stored


def test_steps_are_time_steps_of_a_plain_simulation(here):
    assert cli("run", write_scenario(here, WAVE), "--steps", 2, "--name", "a").exit_code == 0
    assert (here / "runs/wave/a/metrics.jsonl").read_text().count("\n") == 3


def test_a_sweep_runs_all_its_cells(here):
    path = write_scenario(here, HEAT, SWEEP)
    result = cli("run", path, "--name", "s", "--steps", 1)
    assert result.exit_code == 0
    sweep = here / "runs" / "heat" / "s"
    assert result.stdout.strip() == "runs/heat/s"
    cells = json.loads((sweep / "sweep.json").read_text())["cells"]
    assert len(cells) == 4
    assert [status(sweep / cell)["status"] for cell in cells] == ["done"] * 4
    assert {tuple(labels.values()) for labels in cells.values()} == {
        (seed, rule) for seed in (0, 1) for rule in ("sip", "adam")
    }
    assert "cell 4 of 4" in result.stderr
    assert "4 of 4 cells done" in result.stderr


def test_a_sweep_goes_on_past_a_member_that_fails(here):
    diverging = "{update: {type: dp, optimizer: {type: sgd, learning_rate: 1e30}}}"
    sweep = ("output: {", "sweep: {rule: {wild: " + diverging + ", sip: {}}}\noutput: {")
    path = write_scenario(here, HEAT, sweep, ("precision: float64", "precision: {network: float32}"))
    result = cli("run", path, "--name", "s")
    assert result.exit_code == 3
    assert result.stdout.strip() == "runs/heat/s"
    cells = json.loads((here / "runs/heat/s/sweep.json").read_text())["cells"]
    found = {labels["rule"]: status(here / "runs/heat/s" / cell)["status"] for cell, labels in cells.items()}
    assert found == {"wild": "failed", "sip": "done"}
    assert "1 of 2 cells done" in result.stderr


def test_a_terminal_gets_a_bar_and_messages_as_they_are(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with console.progress(quiet=False) as events:
        path = "heat in [/red] runs/" + "long" * 30
        events.message(path)
        for _ in range(2):
            for step in (1, 2):
                events.progress(step, 2, {"train_loss": 0.5 * step})
    written = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert path in written
    assert "2/2" in written
    assert "train_loss 1" in written


# --- the other commands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    result = cli(command, "--help")
    assert result.exit_code == 0
    assert command in result.stdout
    assert "Options" in result.stdout


def test_validate_says_what_will_be_built(here):
    result = cli("validate", write_scenario(here, HEAT), write_scenario(here, WAVE))
    assert result.exit_code == 0
    for text in ("heat: ok", "wave: ok", "none: a plain simulation", "Jacobian", "initial_temperature (8 x 8)"):
        assert text in result.stdout
    assert result.stderr.startswith("next: phinverse run ")
    assert files(here) == {"heat.yaml", "wave.yaml"}


def test_validate_explains_where_each_value_is_from(here):
    path = write_scenario(here, WAVE)
    result = cli("validate", path, "--explain", "--set", "time.dt=1/8")
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert "0.125" in lines["time.dt"]
    assert lines["time.dt"].endswith("--set time.dt=1/8")
    assert lines["time.steps"].endswith(f"{path}:5")
    assert lines["run.seed"].endswith("default")


def test_validate_answers_in_json(here):
    good, bad = write_scenario(here, WAVE), write_scenario(here, HEAT, ("layers", "layer"))
    result = cli("validate", good, bad, "--json", "--explain")
    assert result.exit_code == 2
    answers = json.loads(result.stdout)
    assert [answer["valid"] for answer in answers] == [True, False]
    assert {"key": "time.dt", "value": 0.5, "origin": f"{good}:5"} in answers[0]["values"]
    assert "did you mean 'layers'?" in answers[1]["problems"][0]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("pdes", {"heat", "parabola"}),
        ("rules", {"supervised", "dp", "sip"}),
        ("solvers", {"newton", "lbfgs", "gradient", "damped_spectral", "analytic"}),
        ("networks", {"mlp", "conv_net", "res_net", "u_net"}),
        ("losses", {"l1", "l2", "squared_norm"}),
        ("samplers", {"hot_rectangles", "cosine"}),
        ("scenarios", {"heat_sip", "heat_forward", "parabola_newton"}),
    ],
)
def test_list_shows_what_is_installed(here, kind, expected):
    entries = json.loads(cli("list", kind, "--json").stdout)
    assert expected <= {entry["name"] for entry in entries}
    assert all(entry["summary"] and "BROKEN" not in entry["summary"] for entry in entries)
    text = cli("list", kind).stdout
    assert all(name in text for name in expected)


def test_list_shows_one_thing_with_its_options(here):
    text = cli("list", "pdes", "heat").stdout
    for word in ("∂u/∂t = D Δu + f", "periodic", "hot_rectangles", "damped_spectral", "diffusivity", "length² / time"):
        assert word in text
    result = cli("list", "networks", "unet")
    assert result.exit_code == 2
    assert "did you mean 'u_net'?" in result.stderr
    assert cli("list", "pde").exit_code == 2
    assert "pdes" in cli("list").stdout


def test_list_shows_runs_with_their_status(here):
    assert json.loads(cli("list", "runs", "--json").stdout) == []
    cli("run", write_scenario(here, WAVE), "--name", "a")
    cli("run", write_scenario(here, HEAT), "--name", "b", "--set", "update.optimizer={type: sgd, learning_rate: 1e200}")
    text = cli("list", "runs").stdout
    assert [line.split()[:3] for line in text.splitlines()] == [["a", "wave", "done"], ["b", "heat", "failed:"]]


def test_schema_is_a_json_schema_whose_references_lead_somewhere():
    schema = json.loads(cli("schema").stdout)
    assert schema["$schema"].startswith("http://json-schema.org/")
    assert schema["type"] == "object"
    assert {"name", "pde"} <= set(schema["else"]["required"])
    assert schema["additionalProperties"] is False
    references = []

    def walk(value):
        if isinstance(value, dict):
            references.extend([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
            for child in value.values():
                walk(child)
        elif isinstance(value, list):
            for child in value:
                walk(child)

    walk(schema)
    assert references
    for reference in references:
        target = schema
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]


def test_devices_says_what_can_compute():
    found = json.loads(cli("devices", "--json").stdout)
    assert {(entry["backend"], entry["device"]) for entry in found} >= {("torch", "cpu"), ("jax", "cpu")}
    assert "torch" in cli("devices").stdout


@pytest.mark.parametrize("template", ["heat_sip", "heat_adam", "parabola_newton", "heat_forward"])
def test_a_new_scenario_is_valid_and_its_name_its_own(here, template):
    result = cli("new", "mine", "--from", template)
    assert result.exit_code == 0
    assert result.stdout.strip() == "mine.yaml"
    assert result.stderr.strip() == "next: phinverse validate mine.yaml"
    checked = cli("validate", "mine.yaml")
    assert checked.exit_code == 0
    assert "mine: ok" in checked.stdout
    original = cli("validate", template).stdout
    assert checked.stdout.split("\n", 1)[1] == original.split("\n", 1)[1]


def test_new_never_overwrites_and_takes_no_paths(here):
    (here / "mine.yaml").write_text("precious")
    result = cli("new", "mine")
    assert result.exit_code == 2
    assert "mine.yaml exists already" in result.stderr
    assert (here / "mine.yaml").read_text() == "precious"
    assert cli("new", "../mine").exit_code == 2
    result = cli("new", "other", "--from", "heat_spi")
    assert result.exit_code == 2
    assert "did you mean 'heat_sip'?" in result.stderr
    assert files(here) == {"mine.yaml"}


def test_plot_draws_the_newest_run_and_a_film(here):
    cli("run", write_scenario(here, HEAT), "--name", "a", "--steps", 1)
    cli("run", write_scenario(here, WAVE), "--name", "b", "--steps", 2)
    result = cli("plot", "last", "--film")
    assert result.exit_code == 0
    assert result.stdout.split() == ["runs/wave/b/plots/simulation.png", "runs/wave/b/plots/film.gif"]
    assert "toolkit.open_run('runs/wave/b')" in result.stderr
    assert cli("plot", "a").stdout.split()[0] == "runs/heat/a/plots/learning_curves.png"
    result = cli("plot", "c")
    assert result.exit_code == 2
    assert "phinverse list runs" in result.stderr


def test_every_shipped_scenario_is_found_by_name():
    assert set(shipped()) >= {"heat_sip", "parabola_newton"}
    assert cli("validate", *shipped()).exit_code == 0
