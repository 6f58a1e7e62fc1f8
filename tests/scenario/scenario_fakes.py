"""Small plugins for tests of the scenario layer: a PDE on a grid with an inverse solver, an ODE without."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import numpy as np

from toolkit.core.options import Options, option
from toolkit.physics.plugin import (
    FieldSpec,
    InverseSolverPlugin,
    Loss,
    LossPlugin,
    NoOptions,
    PDEPlugin,
    Sampler,
    StabilityNumber,
)
from toolkit.training.rules.base import UpdateRulePlugin


def _never(*args: Any) -> Any:
    raise AssertionError("the scenario layer must not build anything that runs")


class WarmParameters(Options):
    diffusivity: float = option(description="diffusivity", units="length² / time", gt=0)
    coupling: tuple[float, float] = option((0.0, 1.0), description="two numbers")


class BumpsOptions(Options):
    width: float = option(1.0, description="width of a bump", units="length", gt=0)


class SpectralOptions(Options):
    noise: float = option(1e-6, description="noise", ge=0)


class SipOptions(Options):
    inverse_solver: str | dict[str, Any] = option(description="local inverse")
    step_size: float = option(1.0, description="η", gt=0)


def _bumps(grid: Any, parameters: Any, options: Any, generator: Any, count: int) -> dict[str, np.ndarray]:
    return {"initial.u": generator.random((count, *grid.shape))}


def _targets(grid: Any, parameters: Any, options: Any, generator: Any, count: int) -> dict[str, np.ndarray]:
    return {"target.u": generator.random((count, *grid.shape))}


def _fits(grid: Any, parameters: Any, options: Any) -> str | None:
    return "data.width: a bump is wider than the grid" if options.width > grid.extent["x"] else None


def _stability(parameters: Any, grid: Any, dt: float) -> tuple[StabilityNumber, ...]:
    number = parameters.diffusivity * dt / min(grid.dx) ** 2
    return (StabilityNumber("diffusion number", number, 100.0, "time.dt"),)


WARM = PDEPlugin(
    name="warm",
    summary="diffusion",
    equation="∂u/∂t = D Δu",
    parameters=WarmParameters,
    fields=lambda parameters, grid: (FieldSpec("u", "temperature", "K"),),
    build=_never,
    dimensions=(1, 2),
    boundaries=frozenset({"periodic", "zero"}),
    forces=("u", "knob"),
    actions=lambda parameters, grid: (FieldSpec("knob", "position of the knob", "V", on_grid=False),),
    parameter_controls=("coupling", "diffusivity"),
    samplers={
        "bumps": Sampler("bumps", _bumps, BumpsOptions, _fits),
        "targets": Sampler("targets without controls", _targets),
    },
    losses={"mean": LossPlugin("mean of y", lambda o: Loss(_never), NoOptions, needs_target=False)},
    inverse_solvers={
        "spectral": InverseSolverPlugin(
            name="spectral",
            summary="spectral inverse",
            build=_never,
            options=SpectralOptions,
            control="initial.u",
            observation="final.u",
            boundaries=frozenset({"periodic"}),
            physics_precision="float64",
        )
    },
    stability=_stability,
)

COLD = PDEPlugin(
    name="cold",
    summary="two numbers",
    equation="dp/dt = 0",
    parameters=NoOptions,
    fields=lambda parameters, grid: (
        FieldSpec("p", "point", components=("a", "b"), on_grid=False),
        FieldSpec("q", "other point", components=("a", "b"), on_grid=False),
    ),
    build=_never,
    dimensions=(),
    boundaries=frozenset(),
    losses={"mean": LossPlugin("mean of y", lambda o: Loss(_never), NoOptions, needs_target=False)},
)

DP = UpdateRulePlugin("dp", "gradient", NoOptions, _never)
SIP = UpdateRulePlugin("sip", "inverse", SipOptions, _never, frozenset({"inverse_solver"}), potential=False)
SUPERVISED = UpdateRulePlugin("supervised", "x*", NoOptions, _never, frozenset({"control_reference", "network"}))
LOOP = UpdateRulePlugin("loop", "closed loop", NoOptions, _never, frozenset({"network", "every_step"}))
DESCENT = InverseSolverPlugin("descent", "steps down the loss", _never, works_on="loss")
ELSEWHERE = InverseSolverPlugin("elsewhere", "another PDE's", _never, inverts=("other",))

POINTS = {
    "pdes": {"broken": "scenario_no_such_module:PLUGIN", "cold": "COLD", "warm": "WARM"},
    "update_rules": {"dp": "DP", "loop": "LOOP", "sip": "SIP", "supervised": "SUPERVISED"},
    "inverse_solvers": {"descent": "DESCENT", "elsewhere": "ELSEWHERE"},
    "networks": {"mlp": "toolkit.networks.mlp:PLUGIN", "u_net": "toolkit.networks.u_net:PLUGIN"},
}


def available(group: str) -> dict[str, EntryPoint]:
    """Stands in for `registry.available`."""
    return {
        name: EntryPoint(name, value if ":" in value else f"{__name__}:{value}", f"phinverse.{group}")
        for name, value in POINTS[group].items()
    }
