"""Singular values of the Jacobians of an inverse problem, on a batch at given parameters.

    ∂x/∂θ (B·n, P)  networks, whole batch          ∂y/∂x (B, d, n)  physics, sample by sample
    ∂y/∂θ (B·d, P)  both, whole batch

A plain gradient progresses along a singular direction at the rate s², so directions that differ by κ need κ² times as
many steps. Where networks act at every step, x are the forces that they gave, taken as given.
Schnell, Holl, Thuerey: Half-Inverse Gradients for Physical Deep Learning, ICLR 2022, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.core import params as flat
from toolkit.core.errors import DivergenceError
from toolkit.core.jacobian import control_jacobian
from toolkit.physics.inverse import flatten, unflatten
from toolkit.training import batch_jacobian
from toolkit.training.batch_jacobian import BatchMap
from toolkit.training.problem import CONTROL, Batch, Natives, Problem, batch_from_tree

KEPT = 1e-6
"""Singular values up to this fraction of the largest do not count as rank."""


@dataclass(frozen=True)
class Spectrum:
    """Singular values, descending: (k,) of a batch, or (B, k) sample by sample; numbers are medians over samples."""

    values: np.ndarray
    rows: int
    columns: int

    @property
    def rank(self) -> int:
        """Singular values above KEPT of the largest."""
        return int(np.median(self._kept().sum(axis=-1)))

    @property
    def condition(self) -> float:
        """Largest singular value over the smallest kept; NaN where all are zero."""
        least = np.where(self._kept(), self.values, np.inf).min(axis=-1)
        largest = self.values[..., 0]
        with np.errstate(invalid="ignore"):
            return float(np.median(np.where(largest > 0, largest / least, np.nan)))

    @property
    def decades(self) -> float:
        """log10 of largest over smallest singular value above the rounding error of the largest."""
        least = np.where(self.values > self._rounding(), self.values, np.inf).min(axis=-1)
        largest = self.values[..., 0]
        ratio = np.where(largest > 0, largest, 1.0) / np.where(largest > 0, least, 1.0)
        return float(np.median(np.log10(ratio)))

    @property
    def typical(self) -> float:
        """Largest over median singular value, as rounding resolves it: half of the directions are weaker by more.

        NaN where all are zero.
        """
        middle, largest = np.median(self.values, axis=-1), self.values[..., 0]
        with np.errstate(invalid="ignore"):
            return float(np.median(largest / np.maximum(middle, self._rounding()[..., 0])))

    @property
    def full(self) -> bool:
        """Whether the rank is as large as the shape allows."""
        return self.rank == min(self.rows, self.columns)

    def _rounding(self) -> np.ndarray:
        return np.finfo(float).eps * max(self.rows, self.columns) * self.values[..., :1]

    def _kept(self) -> np.ndarray:
        return self.values > KEPT * self.values[..., :1]


@dataclass(frozen=True)
class Spectra:
    """Of the parts of y(θ); None where a part does not exist or was too large."""

    network: Spectrum | None
    physics: Spectrum | None
    total: Spectrum | None


@dataclass(frozen=True)
class Sizes:
    """Scalars: controls and outputs per sample, trained parameters of the networks."""

    controls: int
    outputs: int
    parameters: int
    loop: bool


MEMORY = 2**30
"""Bytes that one Jacobian may take."""
WORK = 1e10
"""Multiplications of one decomposition, the shorter side squared times the longer: five to ten seconds on one core."""
PATIENCE = 10
"""A single sample may take this many times the work."""


def sizes(problem: Problem, params: Natives) -> Sizes:
    """What the Jacobians of this problem measure."""
    return Sizes(
        controls=sum(control.layout.size for control in problem.controls),
        outputs=sum(layout.size for layout in problem.judged.values()),
        parameters=flat.count(_of_networks(params)),
        loop=bool(problem.loop),
    )


def samples_that_fit(rows: int, columns: int, available: int, stacked: bool = True) -> int:
    """Samples whose Jacobians (rows, columns), stacked or one by one, can be held and decomposed; 0: not even one."""
    if rows * columns * 8 > MEMORY or _work(rows, columns) > PATIENCE * WORK:
        return 0
    count = max(1, min(available, MEMORY // (8 * rows * columns)))
    while count > 1 and (_work(count * rows, columns) if stacked else count * _work(rows, columns)) > WORK:
        count = max(1, int(0.75 * count))
    return count


def _work(rows: int, columns: int) -> float:
    return float(min(rows, columns)) ** 2 * max(rows, columns)


def spectra(problem: Problem, params: Natives, buffers: Natives, batch: Batch, samples: int | None = None) -> Spectra:
    """Singular values of as many samples as fit, `samples` at most; the backend should be in float64."""
    size, most = sizes(problem, params), min(count(batch), samples or count(batch))
    each = samples_that_fit(size.outputs, size.controls, most, stacked=False)
    physics = _evaluated(_physics, problem, params, buffers, batch, each)
    by_sample = None if physics is None else Spectrum(_values(physics), *physics.shape[1:])
    if not size.parameters:
        return Spectra(None, by_sample, None)
    whole = samples_that_fit(size.outputs, size.parameters, most)
    if size.loop:
        return Spectra(None, by_sample, _stacked(_evaluated(_closed_loop, problem, params, buffers, batch, whole)))
    own = samples_that_fit(size.controls, size.parameters, most)
    network = _evaluated(_network, problem, params, buffers, batch, own)
    if physics is not None and network is not None and min(whole, each) <= own:
        # The chain rule saves the sweeps through everything.
        total = physics[:whole] @ network.reshape(own, size.controls, -1)[: min(whole, each)]
    else:
        total = _evaluated(_open_loop, problem, params, buffers, batch, whole)
    return Spectra(_stacked(network), by_sample, _stacked(total))


def _evaluated(part: Any, problem: Problem, params: Natives, buffers: Natives, batch: Batch, samples: int) -> Any:
    """A Jacobian of the first samples as a NumPy array; None for no samples."""
    if samples == 0:
        return None
    b, (batch, params) = problem.backend, first(batch, params, samples)
    problem.prepare(batch)

    def function(params: Any, buffers: Any, tree: Any) -> Any:
        return part(problem, params, buffers, batch_from_tree(tree))

    arguments = (dict(params), dict(buffers), batch.tree())
    jacobian = b.numpy(b.compile(function, *arguments)(*arguments)).astype(float)
    if not np.all(np.isfinite(jacobian)):
        raise DivergenceError(
            "the Jacobian at the initial parameters is not finite: lower time.dt or time.steps, or begin with smaller "
            "controls (the scale of the data, controls.<name>.initial)"
        )
    return jacobian


def _stacked(jacobian: np.ndarray | None) -> Spectrum | None:
    if jacobian is None:
        return None
    matrix = jacobian.reshape(-1, jacobian.shape[-1])
    return Spectrum(_values(matrix), *matrix.shape)


def _values(jacobian: np.ndarray) -> np.ndarray:
    return np.linalg.svd(jacobian, compute_uv=False)


def _physics(problem: Problem, params: Natives, buffers: Natives, batch: Batch) -> Any:
    """∂y/∂x (B, d, n) at the controls of the batch, forces of networks in the loop taken as given."""
    b, x = problem.backend, controls_met(problem, params, buffers, batch)
    layouts = {key: problem.control_layouts[key] for key in x}

    def observe(x: Any) -> Any:
        return flatten(problem.observe(unflatten(x, layouts, b), batch.context), problem.judged, b)

    at = b.stop_gradient(flatten(x, layouts, b))
    return control_jacobian(b, observe, at, "auto" if problem.plugin.traceable else "loop")


def _network(problem: Problem, params: Natives, buffers: Natives, batch: Batch) -> Any:
    """∂x/∂θ (B·n, P)."""

    def controls(problem: Problem, params: Natives, fixed: Natives) -> Any:
        x = problem.predict({**fixed, **params}, buffers, batch, training=False)[0]
        return flatten(x, {key: problem.control_layouts[key] for key in x}, problem.backend)

    return _by_parameters(problem, controls, params, batch)


def _open_loop(problem: Problem, params: Natives, buffers: Natives, batch: Batch) -> Any:
    """∂y/∂θ (B·d, P) through networks and physics."""

    def outputs(problem: Problem, params: Natives, fixed: Natives) -> Any:
        x, _ = problem.predict({**fixed, **params}, buffers, batch, training=False)
        return flatten(problem.observe(x, batch.context), problem.judged, problem.backend)

    return _by_parameters(problem, outputs, params, batch)


def _closed_loop(problem: Problem, params: Natives, buffers: Natives, batch: Batch) -> Any:
    """∂y/∂θ (B·d, P) through all steps."""

    def outputs(problem: Problem, params: Natives, fixed: Natives) -> Any:
        every = {**fixed, **params}
        x, _ = problem.predict(every, buffers, batch, training=False)
        y = problem.observe(x, batch.context, problem.policy(every, buffers, batch.targets))
        return flatten(y, problem.judged, problem.backend)

    return _by_parameters(problem, outputs, params, batch)


def _by_parameters(problem: Problem, function: Any, params: Natives, batch: Batch) -> Any:
    """Jacobian of function(problem, parameters of networks, controls) (B, m) with respect to the former, (B·m, P)."""
    fixed = _of_controls(params)
    batch_map = BatchMap(problem, lambda problem, params: function(problem, params, fixed))
    return batch_jacobian.jacobian(batch_map, _of_networks(params), count(batch))[1]


def controls_met(problem: Problem, params: Natives, buffers: Natives, batch: Batch) -> dict[str, Any]:
    """x of the batch by key, with the forces of networks in the loop."""
    x, _ = problem.predict(params, buffers, batch, training=False)
    policy = problem.policy(params, buffers, batch.targets)
    if policy is not None:
        forces = problem.simulate(x, batch.context, policy).forces
        x = {**x, **{c.key: forces[c.target] for use in problem.loop for c in use.controls}}
    return x


def _of_networks(params: Natives) -> dict[str, Any]:
    return {name: value for name, value in params.items() if not name.startswith(f"{CONTROL}/")}


def _of_controls(params: Natives) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name.startswith(f"{CONTROL}/")}


def count(batch: Batch) -> int:
    """Samples of a batch."""
    return next((int(value.shape[0]) for group in batch.tree().values() for value in group.values()), 1)


def first(batch: Batch, params: Natives, samples: int) -> tuple[Batch, dict[str, Any]]:
    """The first samples of a batch, with the controls that belong to them."""
    tree = {group: {key: value[:samples] for key, value in values.items()} for group, values in batch.tree().items()}
    own = {name: value[:samples] for name, value in _of_controls(params).items()}
    return batch_from_tree(tree), {**params, **own}
