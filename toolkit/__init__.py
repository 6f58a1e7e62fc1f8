"""phinverse: declarative, differentiable PhiFlow simulations and the improved gradients that solve them backwards.

Everything in `__all__` is public and stays; everything else may change. Names load on first use, so that
importing the package costs nothing and choosing a backend is left to the run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.core.architecture import (
        Activation,
        Add,
        Architecture,
        ArchitectureBuilder,
        BatchNorm,
        Concat,
        Conv,
        Dense,
        MaxPool,
        Reshape,
        Upsample,
    )
    from toolkit.core.compat import (
        implicit_diffusion,
        linear_solve,
        require_supported,
        residual_check,
        same_geometry,
        touch_geometry,
        with_boundary,
    )
    from toolkit.core.errors import DivergenceError, MissingError, PhinverseError, RunError, ScenarioError
    from toolkit.core.half_inverse import HalfInversion, half_inverse
    from toolkit.core.options import Options, option
    from toolkit.core.solves import linear_solution, relative_residual
    from toolkit.networks.plugin import NetworkPlugin, NetworkShape
    from toolkit.physics.drawing import Cross, Disc, Drawing, Line, Polygon
    from toolkit.physics.grid import Grid
    from toolkit.physics.plugin import (
        PDE,
        ControlMetric,
        FieldSpec,
        Inputs,
        InverseProblem,
        InverseSolver,
        InverseSolverPlugin,
        Loss,
        LossPlugin,
        Monitor,
        NoOptions,
        PDEPlugin,
        Sampler,
        SolverSetting,
        StabilityNumber,
        State,
        StepInverse,
        Timing,
    )
    from toolkit.physics.time_inverse import invert_over_time
    from toolkit.runs.compare_data import compare
    from toolkit.runs.execute import Run, run, run_sweep
    from toolkit.runs.open import open_run
    from toolkit.runs.phiflow_fields import from_phiflow, to_phiflow
    from toolkit.runs.predict import Prediction, predict
    from toolkit.runs.report.page import report
    from toolkit.runs.sweeps import open_sweep
    from toolkit.scenario.load import load_scenario
    from toolkit.training.half_inversion import HalfInverseRule
    from toolkit.training.rules.base import Update, UpdateRule, UpdateRulePlugin

_HOMES = {
    "toolkit.core.architecture": (
        "Activation",
        "Add",
        "Architecture",
        "ArchitectureBuilder",
        "BatchNorm",
        "Concat",
        "Conv",
        "Dense",
        "MaxPool",
        "Reshape",
        "Upsample",
    ),
    "toolkit.core.compat": (
        "implicit_diffusion",
        "linear_solve",
        "require_supported",
        "residual_check",
        "same_geometry",
        "touch_geometry",
        "with_boundary",
    ),
    "toolkit.core.errors": ("DivergenceError", "MissingError", "PhinverseError", "RunError", "ScenarioError"),
    "toolkit.core.half_inverse": ("HalfInversion", "half_inverse"),
    "toolkit.core.options": ("Options", "option"),
    "toolkit.core.solves": ("linear_solution", "relative_residual"),
    "toolkit.networks.plugin": ("NetworkPlugin", "NetworkShape"),
    "toolkit.physics.drawing": ("Cross", "Disc", "Drawing", "Line", "Polygon"),
    "toolkit.physics.grid": ("Grid",),
    "toolkit.physics.plugin": (
        "ControlMetric",
        "FieldSpec",
        "Inputs",
        "InverseProblem",
        "InverseSolver",
        "InverseSolverPlugin",
        "Loss",
        "LossPlugin",
        "Monitor",
        "NoOptions",
        "PDE",
        "PDEPlugin",
        "Sampler",
        "SolverSetting",
        "StabilityNumber",
        "State",
        "StepInverse",
        "Timing",
    ),
    "toolkit.physics.time_inverse": ("invert_over_time",),
    "toolkit.runs.compare_data": ("compare",),
    "toolkit.runs.execute": ("Run", "run", "run_sweep"),
    "toolkit.runs.open": ("open_run",),
    "toolkit.runs.phiflow_fields": ("from_phiflow", "to_phiflow"),
    "toolkit.runs.predict": ("Prediction", "predict"),
    "toolkit.runs.report.page": ("report",),
    "toolkit.runs.sweeps": ("open_sweep",),
    "toolkit.scenario.load": ("load_scenario",),
    "toolkit.training.half_inversion": ("HalfInverseRule",),
    "toolkit.training.rules.base": ("Update", "UpdateRule", "UpdateRulePlugin"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "PDE",
    "Activation",
    "Add",
    "Architecture",
    "ArchitectureBuilder",
    "BatchNorm",
    "Concat",
    "ControlMetric",
    "Conv",
    "Cross",
    "Dense",
    "Disc",
    "DivergenceError",
    "Drawing",
    "FieldSpec",
    "Grid",
    "HalfInverseRule",
    "HalfInversion",
    "Inputs",
    "InverseProblem",
    "InverseSolver",
    "InverseSolverPlugin",
    "Line",
    "Loss",
    "LossPlugin",
    "MaxPool",
    "MissingError",
    "Monitor",
    "NetworkPlugin",
    "NetworkShape",
    "NoOptions",
    "Options",
    "PDEPlugin",
    "PhinverseError",
    "Polygon",
    "Prediction",
    "Reshape",
    "Run",
    "RunError",
    "Sampler",
    "ScenarioError",
    "SolverSetting",
    "StabilityNumber",
    "State",
    "StepInverse",
    "Timing",
    "Update",
    "UpdateRule",
    "UpdateRulePlugin",
    "Upsample",
    "compare",
    "from_phiflow",
    "half_inverse",
    "implicit_diffusion",
    "invert_over_time",
    "linear_solution",
    "linear_solve",
    "load_scenario",
    "open_run",
    "open_sweep",
    "option",
    "predict",
    "relative_residual",
    "report",
    "require_supported",
    "residual_check",
    "run",
    "run_sweep",
    "same_geometry",
    "to_phiflow",
    "touch_geometry",
    "with_boundary",
]


def __getattr__(name: str) -> Any:
    if name == "testing":
        return importlib.import_module("toolkit.testing")
    if name not in _HOME:
        raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
