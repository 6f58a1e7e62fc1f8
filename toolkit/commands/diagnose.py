"""`phinverse diagnose`: how a problem is conditioned before training, and which update rules suit it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.commands import console
from toolkit.commands.locate import scenario_path
from toolkit.scenario.load import load_scenario

PARTS = {"network": "network ∂x/∂θ", "physics": "physics ∂y/∂x", "total": "both ∂y/∂θ"}


def diagnose(
    path: str, overrides: list[str], short: Mapping[str, Any], samples: int | None, out: Path, as_json: bool
) -> int:
    """Exit code 0; what goes wrong is raised."""
    given = [*overrides, *(f"{key}={value}" for key, value in short.items() if value is not None)]
    scenario = load_scenario(scenario_path(path), given)
    # Imported here: the runs layer loads xarray and matplotlib, which a refused scenario does not need.
    from toolkit.runs import diagnose as runs

    with console.progress(False) as events:
        done = runs.diagnose(scenario, out, samples, events)
    about = runs.plain(done)
    if as_json:
        console.print_json(about)
    else:
        console.result(report(about))
        console.result(str(done.path))
    console.say(f"picture: {done.path / 'plots' / 'spectrum.png'}")
    console.hint(next_command(path, about, done.own))
    return 0


def report(about: Mapping[str, Any]) -> str:
    """Tables and sentences of a diagnosis, given as plain data."""
    blocks = [_spectra(about), "\n".join(about["remarks"]), _rules(about)]
    if about["refused"]:
        rows = [("not usable", "why")] + [(_name(r), _short(r["reason"])) for r in about["refused"]]
        blocks.append(console.table(rows))
    return "\n\n".join(blocks)


def _spectra(about: Mapping[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [("Jacobian", "shape", "samples", "rank", "κ", "max / median", "decades")]
    for part, words in PARTS.items():
        spectrum = about["spectra"][part]
        if spectrum is None:
            rows.append((words, _missing(about, part)))
            continue
        samples = f"{spectrum['samples']} of {about['batch']}"
        numbers = (f"{spectrum['condition']:.3g}", f"{spectrum['typical']:.3g}", f"{spectrum['decades']:.1f}")
        shape = f"{spectrum['rows']} x {spectrum['columns']}"
        rows.append((words, shape, samples, str(spectrum["rank"]), *numbers))
    head = f"{about['scenario']}" + (f", sweep cell {about['cell']}" if about["cell"] else "")
    return f"{head}: first batch, initial parameters, physics by sample (medians)\n{console.table(rows)}"


def _missing(about: Mapping[str, Any], part: str) -> str:
    sizes = about["sizes"]
    if part != "physics" and not sizes["parameters"]:
        return "no network"
    if part == "network" and sizes["loop"]:
        return "acts at every step: see both"
    return "too large, even for one sample"


def _rules(about: Mapping[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [("rule", "", "cost", "why")]
    rows += [(_name(rule), rule["grade"], _cost(rule["cost"]), rule["reason"]) for rule in about["rules"]]
    counted = [(_name(r), r["cost"]["reason"]) for r in about["rules"] if r["cost"] and r["cost"]["seconds"] is None]
    text = console.table(rows) + "\ncost: of an update, in updates of dp; t: timed, ~: counted from"
    return text + "".join(f"\n  {name}: {reason}" for name, reason in counted)


def _cost(cost: Mapping[str, Any] | None) -> str:
    if cost is None:
        return "?"
    if cost["seconds"] is None:
        return f"~{cost['ratio']:.3g}"
    return f"{cost['ratio']:.3g} t ({1e3 * cost['seconds']:.3g} ms)"


def _name(rule: Mapping[str, Any]) -> str:
    return rule["rule"] if rule["solver"] is None else f"{rule['rule']} with {rule['solver']}"


def _short(reason: str) -> str:
    """Without the list of what else there is."""
    return reason.partition("; others:")[0]


def next_command(path: str, about: Mapping[str, Any], own: str) -> str:
    """The run with the best rule; as it is where no rule has a better grade than the scenario's own."""
    best = about["rules"][0] if about["rules"] else None
    run = f"phinverse run {path}"
    grades = {_name(rule): rule["grade"] for rule in about["rules"]}
    if best is None or best["grade"] == "poor" or grades.get(own) == best["grade"]:
        return run
    change = f" --set update.type={best['rule']}"
    return run + change + (f" --set update.inverse_solver={best['solver']}" if best["solver"] else "")
