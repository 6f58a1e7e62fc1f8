"""The toy against the trajectories printed in Physics-based Deep Learning, and its exact inverse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numeric_cases import case_of, updated
from phiml import math
from phiml.math import batch, channel

from plugins.parabola import PLUGIN
from toolkit.core.backend import using
from toolkit.scenario.load import load_scenario

SCENARIOS = Path(__file__).parents[2] / "scenarios"
# After 1, 2, 3, 5 and 10 iterations, as printed in the book's notebook.
PRINTED = {
    "parabola_gradient": {
        1: (2.94, 1.9200),
        2: (2.8812, 1.6369),
        3: (2.8236, 1.4615),
        5: (2.7118, 1.2411),
        10: (2.4512184, 0.9617115),
    },
    "parabola_newton": {
        1: (2.0, 2.6667),
        2: (1.3333, 2.3704),
        3: (0.8889, 2.1070),
        5: (0.3951, 1.6648),
        10: (0.0520246, 0.9238383),
    },
    "parabola_inverse": {
        1: (2.1, 2.5100),
        2: (1.4700, 2.1000),
        3: (1.0290, 1.7570),
        5: (0.5042, 1.2299),
        10: (0.0847426, 0.5042100),
    },
}
ALIGNMENTS = {"parabola_gradient": 1.053930, "parabola_newton": 1.264911, "parabola_inverse": 1.356443}


@pytest.mark.parametrize("name", PRINTED)
def test_ten_iterations_from_3_3(backend, name):
    case = case_of(load_scenario(SCENARIOS / f"{name}.yaml").sections, backend)
    state = case.trainer.start(case.params, case.buffers)
    for k in range(10):
        state, _ = case.trainer.step(state, case.batches(k))
        if k + 1 in PRINTED[name]:
            # Four printed decimals.
            assert np.allclose(backend.numpy(state.params["control/x"])[0], PRINTED[name][k + 1], atol=6e-5)


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_alignment_of_the_first_update_with_the_diagonal(name):
    """Sum of the components of the unit vector along the update; √2 is straight towards the minimum."""
    with using("torch", device="cpu") as backend:
        case = case_of(load_scenario(SCENARIOS / f"{name}.yaml").sections, backend)
        direction = updated(case)["direction"]["control/x"][0]
    assert np.sum(direction) / np.linalg.norm(direction) == pytest.approx(ALIGNMENTS[name], abs=1e-6)


def test_inverse_keeps_the_sign_and_ends_at_zero_for_what_has_no_preimage():
    unused: Any = None
    solve = PLUGIN.inverse_solvers["analytic"].build(unused, unused)
    vector = channel(vector="x0,x1")
    x = math.tensor([[1.0, 3.0], [1.0, -3.0], [1.0, 2.0]], batch("sample"), vector)
    y = math.tensor([[5.0, 4.0], [5.0, 4.0], [5.0, -1.0]], batch("sample"), vector)
    found = solve({"initial.x": x}, {}, {"final.y": y})["initial.x"].numpy("sample,vector")
    assert np.array_equal(found, [[5, 2], [5, -2], [5, 0]])


def test_newton_step_of_the_loss_goes_all_the_way():
    loss = PLUGIN.losses["squared_norm"].build(None)
    y = math.tensor([[3.0, 9.0]], batch("sample"), channel(vector="x0,x1"))
    assert loss.newton_step is not None
    assert loss.value(y, y).numpy("sample") == pytest.approx(90)
    assert np.array_equal(loss.newton_step(y, y).numpy("sample,vector"), [[-3, -9]])
