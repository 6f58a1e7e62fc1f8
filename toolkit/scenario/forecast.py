"""What an update that inverts a Jacobian will do and hold, and whether it can: told before the run, in numbers."""

from __future__ import annotations

from typing import Any

from toolkit.core.architecture import count_parameters
from toolkit.scenario.extremes import machine_memory
from toolkit.scenario.layouts import control_layout, network_shape, observation_layout
from toolkit.scenario.problems import KeyPath, dotted
from toolkit.scenario.report import Report
from toolkit.scenario.sections import Sections
from toolkit.training.batch_jacobian import factor_width
from toolkit.training.inversion_plan import JacobianSize, Plan
from toolkit.training.rules.base import InvertingRule


def batch_size(sections: Sections) -> int:
    """Samples per step: without networks those of the validation set, each with its own control."""
    if sections.networks and sections.update:
        return sections.train.batch_size
    return max(sections.data.validation, 1) if sections.data and sections.update else 1


def forecast(sections: Sections) -> Plan | None:
    """The plan of the rule, or of the rule that it leaves the networks to; None if neither inverts a Jacobian."""
    found = _inverting(sections)
    return None if found is None else found[0].plan(_size(sections), _device(sections))


def check_inversion(sections: Sections, report: Report) -> None:
    """The Jacobian fits what the rule may take of memory, and this machine."""
    found = _inverting(sections)
    if found is None:
        return
    rule, path = found
    refused = rule.objection(_size(sections), _device(sections), machine_memory())
    if refused:
        key, _, message = refused.partition(": ")
        section, _, name = key.partition(".")
        own = (*path, name) if section == "update" else (section, name)
        report.add(own, message.replace("update.", f"{dotted(path)}."))


def _inverting(sections: Sections) -> tuple[InvertingRule, KeyPath] | None:
    """The rule that inverts a Jacobian, and where its options are."""
    update = sections.update
    if update is None:
        return None
    choices: list[tuple[Any, KeyPath]] = [(update, ("update",))]
    if update.network_rule is not None:
        choices.append((update.network_rule, ("update", "network_rule")))
    for choice, path in reversed(choices):
        if not choice.plugin.network_rule:
            continue  # only rules that minimise whatever they are given invert Jacobians, and only those are made here
        rule = choice.plugin.build(choice.options)
        if isinstance(rule, InvertingRule):
            return rule, path
    return None


def _device(sections: Sections) -> str:
    """`auto` is judged as a CPU: which devices there are is only known to the backend."""
    return "gpu" if sections.run.device.startswith("gpu") else "cpu"


def _size(sections: Sections) -> JacobianSize:
    assert sections.update is not None
    controls = sum(control_layout(sections, control).size for control in sections.controls.values())
    observed = dict.fromkeys(term.on for term in sections.loss)
    outputs = sum(observation_layout(sections, key).size for key in observed)
    if sections.update.network_rule is not None:
        # The proxy loss compares controls.
        outputs = controls
    built = [
        (choice.plugin.build(choice.options, network_shape(sections, choice)), choice.every_step)
        for choice in sections.networks.values()
    ]
    split = not any(every_step for _, every_step in built)
    return JacobianSize(
        samples=batch_size(sections),
        outputs=outputs,
        columns=sum(count_parameters(architecture) for architecture, _ in built) or controls,
        dtype=sections.network_precision if built else sections.physics_precision,
        controls=controls if split and controls < outputs else outputs,
        factor_width=factor_width(built),
        direct=not built,
    )
