"""Monitors: what a traced solver cannot report is measured, and a broken limit fails the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from toolkit.core.errors import DivergenceError
from toolkit.physics.inverse import tensors
from toolkit.physics.layout import Layout
from toolkit.training.diagnosis import BOUNDED, activations
from toolkit.training.problem import Natives, Problem

SMALLER = "lower time.dt, or start from smaller values"


def measure(problem: Problem, initial: Natives, current: Natives) -> dict[str, Any]:
    """The largest value over the samples of each monitor, native scalars by name; non-finite values pass through."""
    xp, layouts = problem.backend.xp, problem.rollout.layouts
    samples = next(iter(current.values())).shape[0]
    result: dict[str, Any] = {}
    for monitor in problem.monitors:
        value = monitor.measure(tensors(initial, layouts), tensors(current, layouts))
        result[monitor.name] = xp.max(Layout().native(value, samples))
    for name, value in current.items():
        # 0 where all is finite, 1 otherwise: a field may be non-finite where no monitor looks.
        result[f"nonfinite_{name}"] = xp.sum(xp.where(xp.isfinite(value), xp.zeros_like(value), xp.ones_like(value)))
    return result


def check(problem: Problem, measured: Mapping[str, float], where: str, advice: str = SMALLER) -> dict[str, float]:
    """The plugin's monitors as numbers; DivergenceError names the monitor, its limit and the key to change, or
    gives the `advice` where a field is not finite."""
    for name in problem.rollout.layouts:
        count = float(measured[f"nonfinite_{name}"])
        if count:
            raise DivergenceError(f"{where}: {count:.0f} values of {name} are not finite; {advice}")
    result = {monitor.name: float(measured[monitor.name]) for monitor in problem.monitors}
    for monitor in problem.monitors:
        value = result[monitor.name]
        if not math.isfinite(value) or (monitor.limit is not None and value > monitor.limit):
            raise DivergenceError(
                f"{where}: {monitor.long_name} is {value:.3g}, the limit is {monitor.limit:g}; change {monitor.key}"
            )
    return result


def descriptions(problem: Problem) -> dict[str, tuple[str, str]]:
    """Long name and units of each monitor, metric of the plugin and saturation, for `metrics.nc`."""
    described = {monitor.name: (monitor.long_name, monitor.units) for monitor in problem.monitors}
    for metric in problem.plugin.control_metrics:
        described[metric.name] = (f"{metric.long_name}, mean over validation samples", metric.units)
        described[f"train_{metric.name}"] = (f"{metric.long_name}, mean over the batch", metric.units)
    for label, kind in activations(problem):
        what = "saturated entries" if kind in BOUNDED else "units dead on all of them"
        described[saturation_metric(label)] = (f"share of {what}, {kind} {label}, validation samples", "1")
    return described


def saturation_metric(label: str) -> str:
    """Name in `metrics.nc` for the activation `<network>/<layer>`."""
    return f"saturation_{label.replace('/', '_')}"
