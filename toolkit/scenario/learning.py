"""The sections `loss` and `update`: terms, rule, inverse solver, optimizer and learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.core import schedules
from toolkit.core.optimizers import OPTIMIZERS
from toolkit.core.options import Options, option
from toolkit.physics.plugin import FieldSpec, PDEPlugin
from toolkit.scenario import kinds, schema
from toolkit.scenario.choose import choose, dump, load
from toolkit.scenario.problems import KeyPath
from toolkit.scenario.report import Report, listed
from toolkit.scenario.sections import (
    LossTerm,
    OptimizerChoice,
    RuleChoice,
    ScheduleChoice,
    SolverChoice,
    UpdateChoice,
)
from toolkit.scenario.validation import read
from toolkit.training.rules.base import UpdateRulePlugin

OPTIMIZER_PATH = ("update", "optimizer")
SCHEDULES: Mapping[str, type[Options]] = {
    "constant": schedules.Constant,
    "cosine": schedules.Cosine,
    "exponential": schedules.Exponential,
    "step": schedules.Step,
    "warmup_cosine": schedules.WarmupCosine,
}
DEFAULT_OPTIMIZER = "adam"


class _LearningRate(Options):
    learning_rate: float = option(description="learning rate", gt=0)


def resolve_loss(
    written: dict[str, Any],
    resolved: dict[str, Any],
    pde: PDEPlugin | None,
    fields: Mapping[str, FieldSpec],
    report: Report,
) -> tuple[LossTerm, ...]:
    """The terms of the loss."""
    section = written.get("loss")
    # Which losses there are is only known with the PDE, whose own findings come first.
    if section is None or pde is None:
        return ()
    entries = section if isinstance(section, list) else [section]
    terms, data = [], []
    for i, entry in enumerate(entries):
        path: KeyPath = ("loss", i) if isinstance(section, list) else ("loss",)
        term = _term(entry, path, pde, fields, report)
        if term is not None:
            terms.append(term)
            common = {"type": term.type, "on": term.on, "weight": term.weight}
            data.append({**common, **dump(term.options)})
    resolved["loss"] = data if isinstance(section, list) else data[0] if data else None
    return tuple(terms)


def _term(
    section: Any, path: KeyPath, pde: PDEPlugin, fields: Mapping[str, FieldSpec], report: Report
) -> LossTerm | None:
    losses = kinds.losses(pde)
    name = choose(section, path, losses, "loss", report)
    if name is None:
        return None
    plugin = losses[name]
    common, options = read((schema.LossOptions, plugin.options), section, path, report, also=("type",))
    if common is None or options is None:
        return None
    on = common.on
    if on is None:
        if not fields:
            return None  # the PDE's own findings come first
        if len(fields) != 1:
            message = f"required key is missing: final.<field> or trajectory.<field>; fields: {listed(fields)}"
            report.add((*path, "on"), message)
            return None
        on = f"final.{next(iter(fields))}"
    return LossTerm(name, on, common.weight, options, plugin)


def resolve_update(
    written: dict[str, Any], resolved: dict[str, Any], pde: PDEPlugin | None, report: Report
) -> UpdateChoice | None:
    """The update rule with its optimizer; None if the scenario only simulates."""
    section = written.get("update")
    if section is None:
        return None
    name = choose(section, ("update",), kinds.names("update rule"), "update rule", report)
    optimizer, optimizer_data = _optimizer(section, report)
    if name is None:
        return None
    plugin = load("update rule", name, ("update",), report)
    solver, section, known = _solver(section, plugin.needs, pde, report)
    network_rule, section, sound = _network_rule(section, plugin, report)
    known = known and sound
    also = ("type", "optimizer")
    common, options = read((schema.UpdateOptions, plugin.options), section, ("update",), report, also=also)
    if common is None or options is None or optimizer is None or not known:
        return None
    solver_data = {} if solver is None else {"inverse_solver": {"type": solver.type, **dump(solver.options)}}
    resolved["update"] = {
        "type": name,
        **dump(options),
        **solver_data,
        **dump(common),
        "optimizer": optimizer_data,
    }
    return UpdateChoice(name, optimizer, common.clip, options, plugin, solver, network_rule)


def _network_rule(
    section: Mapping[str, Any], rule: UpdateRulePlugin, report: Report
) -> tuple[RuleChoice | None, dict[str, Any], bool]:
    """(rule that minimises in θ, section with its options resolved, whether there was nothing to complain about)."""
    result, path = dict(section), ("update", "network_rule")
    wanted = section.get("network_rule")
    if wanted is None or "network_rule" not in rule.options.model_fields:
        return None, result, True
    offered = {n: p for n in kinds.names("update rule") if (p := kinds.working("update rule", n)) and p.network_rule}
    name = choose(wanted, path, offered, "network rule", report)
    if name is None:
        result["network_rule"] = None
        return None, result, False
    plugin = offered[name]
    (options,) = read((plugin.options,), wanted, path, report, also=("type",))
    result["network_rule"] = {"type": name, **dump(options)}
    return RuleChoice(name, options, plugin), result, options is not None


def _solver(
    section: Mapping[str, Any], needs: frozenset[str], pde: PDEPlugin | None, report: Report
) -> tuple[SolverChoice | None, dict[str, Any], bool]:
    """(inverse solver, section with its options resolved, whether there was nothing to complain about)."""
    result = dict(section)
    if "inverse_solver" not in needs:
        return None, result, True
    path = ("update", "inverse_solver")
    if pde is None:
        # Its name cannot be judged; any value keeps the rule from complaining about a missing key.
        result.setdefault("inverse_solver", "unknown")
        return None, result, False
    known = kinds.inverse_solvers(pde)
    if section.get("inverse_solver") is None:
        report.add(path, _missing_solver(str(section.get("type")), pde, known))
        result["inverse_solver"] = "unknown"
        return None, result, False
    wanted = section["inverse_solver"]
    if isinstance(wanted, Mapping) and wanted.get("type") in set(kinds.names("inverse solver")) - set(known):
        # Registered and yet not offered: broken, which this raises, or made for other PDEs.
        load("inverse solver", wanted["type"], path, report)
    name = choose(wanted, path, known, "inverse solver", report)
    if name is None:
        result["inverse_solver"] = "unknown"
        return None, result, False
    plugin = known[name]
    (options,) = read((plugin.options,), section["inverse_solver"], path, report, also=("type",))
    result["inverse_solver"] = {"type": name, **dump(options)}
    return SolverChoice(name, options, plugin), result, options is not None


def _missing_solver(rule: str, pde: PDEPlugin, known: Mapping[str, Any]) -> str:
    if known:
        return f"update rule {rule!r} needs an inverse_solver; for PDE {pde.name!r}: {listed(known)}"
    elsewhere = "; ".join(f"{name} ({listed(names)})" for name, names in kinds.solvers_elsewhere(pde).items())
    missing = f"update rule {rule!r} needs an inverse_solver and PDE {pde.name!r} has none"
    return f"{missing}; PDEs that do: {elsewhere or 'none'}"


def _optimizer(update: Any, report: Report) -> tuple[OptimizerChoice | None, dict[str, Any]]:
    section = update.get("optimizer") if isinstance(update, Mapping) else None
    section = {"type": DEFAULT_OPTIMIZER} if section is None else section
    name = choose(section, OPTIMIZER_PATH, OPTIMIZERS, "optimizer", report)
    if name is None:
        return None, {}
    model = OPTIMIZERS[name]
    default = model.model_fields.get("learning_rate")
    # A line search finds its own step: such an optimizer has no learning rate.
    also = ("type", "learning_rate") if default else ("type",)
    (options,) = read((model,), section, OPTIMIZER_PATH, report, also=also)
    value = section.get("learning_rate") if default else None
    rate, rate_data = _learning_rate(value, default.default if default else 1.0, report)
    if options is None or rate is None:
        return None, {}
    if getattr(options, "nesterov", False) and not getattr(options, "momentum", 0):
        report.add((*OPTIMIZER_PATH, "nesterov"), "needs momentum; set update.optimizer.momentum, usually 0.9")
    data = {"type": name, **dump(options)}
    return OptimizerChoice(name, rate, options), {**data, "learning_rate": rate_data} if default else data


def _learning_rate(value: Any, default: float, report: Report) -> tuple[float | ScheduleChoice | None, Any]:
    """A number, or a schedule; (None, None) with findings."""
    if value is None:
        return default, default
    path = (*OPTIMIZER_PATH, "learning_rate")
    if not isinstance(value, Mapping):
        (options,) = read((_LearningRate,), {"learning_rate": value}, OPTIMIZER_PATH, report)
        return (None, None) if options is None else (options.learning_rate, options.learning_rate)
    name = choose(value, path, SCHEDULES, "schedule", report)
    if name is None:
        return None, None
    (options,) = read((SCHEDULES[name],), value, path, report, also=("type",))
    return (None, None) if options is None else (ScheduleChoice(name, options), {"type": name, **dump(options)})
