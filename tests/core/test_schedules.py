"""Learning-rate schedules: values at known steps, and the same values traced."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import phiml.backend.jax  # noqa: F401  (switches JAX to 64 bit, as the JAX backend does)
import pytest
from pydantic import TypeAdapter, ValidationError

from toolkit.core.schedules import Schedule, rate_at

CASES = [
    ({"type": "constant", "value": 0.3}, {0: 0.3, 9: 0.3}),
    (
        {"type": "exponential", "initial": 2.0, "decay": 0.5, "steps": 2},
        {0: 2.0, 2: 1.0, 3: math.sqrt(0.5), 4: 0.5},
    ),
    ({"type": "step", "initial": 1.0, "factor": 0.1, "every": 3}, {0: 1.0, 2: 1.0, 3: 0.1, 6: 0.01}),
    ({"type": "cosine", "initial": 1.0, "final": 0.2, "steps": 4}, {0: 1.0, 2: 0.6, 4: 0.2, 99: 0.2}),
    (
        {"type": "warmup_cosine", "peak": 1.0, "warmup": 4, "steps": 10},
        {0: 0.25, 3: 1.0, 4: 1.0, 9: 0.5, 14: 0.0, 99: 0.0},
    ),
]


@pytest.mark.parametrize(("options", "expected"), CASES, ids=[case[0]["type"] for case in CASES])
def test_values_at_known_steps(options, expected):
    schedule = TypeAdapter(Schedule).validate_python(options)
    traced = jax.jit(lambda step: jnp.asarray(rate_at(schedule, step, jnp)))
    for step, value in expected.items():
        # One power or cosine; 1e-16 absolute because cos(π) leaves that.
        assert float(schedule(step)) == pytest.approx(value, rel=1e-14, abs=1e-16)
        assert float(traced(jnp.float64(step))) == pytest.approx(value, rel=1e-14, abs=1e-16)


def test_rates_may_be_numbers_or_functions():
    assert rate_at(0.5, 3, np) == 0.5
    assert rate_at(lambda step: 0.5 / (1 + step), 1, np) == 0.25


def test_wrong_options_are_refused():
    with pytest.raises(ValidationError, match="greater than 0"):
        TypeAdapter(Schedule).validate_python({"type": "cosine", "initial": -1.0, "steps": 4})
    with pytest.raises(ValidationError, match="warmup_cosine"):
        TypeAdapter(Schedule).validate_python({"type": "linear"})
