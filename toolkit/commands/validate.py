"""`phinverse validate`: check without running, and say what will be built."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from toolkit.commands import console
from toolkit.commands.locate import scenario_path
from toolkit.core.byte_size import size
from toolkit.core.errors import ScenarioError
from toolkit.scenario.describe import Description, FieldSummary, describe, explain
from toolkit.scenario.load import load_scenario
from toolkit.scenario.scenario import Scenario
from toolkit.training.inversion_plan import Plan


def validate(paths: list[str], overrides: list[str], with_origins: bool, as_json: bool) -> int:
    """Exit code 0; the findings of all files together are raised."""
    problems: list[str] = []
    answers: list[dict[str, Any]] = []
    for text in paths:
        try:
            scenario = load_scenario(scenario_path(text), overrides)
        except ScenarioError as error:
            problems += error.problems
            answers.append({"scenario": text, "valid": False, "problems": list(error.problems)})
            continue
        answers.append({"scenario": text, "valid": True, **asdict(describe(scenario))})
        if with_origins:
            answers[-1]["values"] = [asdict(value) for value in explain(scenario)]
        if not as_json:
            console.result(description(scenario))
            if with_origins:
                console.result(origins(scenario))
    if as_json:
        console.print_json(answers)
    if problems:
        raise ScenarioError(*problems)
    console.hint(f"phinverse run {paths[0]}")
    return 0


def description(scenario: Scenario) -> str:
    """What the scenario will build, as text."""
    about = describe(scenario)
    rows: list[tuple[str, ...]] = [("scenario", f"{about.name}: ok")]
    if about.cells:
        cells = " x ".join(map(str, about.cells))
        rows.append(("grid", f"{cells} cells of {' x '.join(f'{dx:g}' for dx in about.dx)}"))
    time = scenario.sections.time
    rows.append(("time", f"{time.steps} steps of {time.dt:g}"))
    for word, group in (
        ("field", about.fields),
        ("control", about.controls),
        ("observation", about.observations),
    ):
        rows += [(word, f"{item.name} {_shape(item)}") for item in group]
    for network in about.networks:
        rows.append(("network", f"{network.name}: {network.type}, {network.parameters:,} parameters"))
    rows += _learning(scenario, about)
    for number in about.stability:
        limit = "" if number.limit is None else f" (limit {number.limit:g}, {number.key})"
        rows.append(("stability", f"{number.name} {number.value:.3g}{limit}"))
    if about.sweep_cells > 1:
        rows.append(("sweep", f"{about.sweep_cells} cells"))
    return console.table(rows)


def _learning(scenario: Scenario, about: Description) -> list[tuple[str, ...]]:
    update = scenario.sections.update
    if update is None:
        return [("update", "none: a plain simulation")]
    solver = f" with {update.inverse_solver.type}" if update.inverse_solver else ""
    rows: list[tuple[str, ...]] = [("update", f"{update.type}{solver}, {update.optimizer.type}")]
    if about.jacobian is not None:
        j = about.jacobian
        rows.append(("Jacobian", f"{j.rows:,} x {j.columns:,}, {size(j.bytes)} if it were formed"))
    if about.inversion is not None:
        rows.append(("inversion", _inversion(about.inversion)))
    rows.append(("memory", f"about {size(about.memory)} per update"))
    return rows


WAYS = {
    "factored": "from the factors of dense layers",
    "explicit": "of the whole Jacobian",
    "products": "from products with the Jacobian",
    "samples": "of each sample by itself",
}


def _inversion(plan: Plan) -> str:
    """The way, the algorithm, and what an update takes."""
    parts = {
        "Jacobian": plan.jacobian_bytes,
        "decomposition": plan.gram_bytes,
        "Krylov space": plan.krylov_bytes,
    }
    holds = ", ".join(f"{what} {size(held)}" for what, held in parts.items() if held)
    cost = f"{plan.sweeps} derivatives of the batch and {plan.operations:.1e} operations"
    return f"{plan.algorithm}, {WAYS[plan.way]}: {holds}; about {cost} per update"


def _shape(item: FieldSummary) -> str:
    shape = " x ".join(map(str, item.shape)) or "scalar"
    return f"({shape})" if item.units == "1" else f"({shape}) in {item.units}"


def origins(scenario: Scenario) -> str:
    """Every value with its origin."""
    return console.table([(value.key, str(value.value), value.origin) for value in explain(scenario)])
