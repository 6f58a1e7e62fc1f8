"""Learning rates that change with the step: pure functions of the number of optimizer steps done before.

All take a Python int or a traced number, so that on JAX the rate is computed inside the compiled step from
the saved counter, and a resumed run goes on at the rate where it stopped. `xp` is numpy or jax.numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from toolkit.core.options import Options, option


class Constant(Options):
    """The same rate at every step."""

    type: Literal["constant"] = "constant"
    value: float = option(description="Learning rate.", gt=0)

    def __call__(self, step: Any, xp: Any = np) -> Any:
        """The learning rate after `step` updates."""
        return self.value


class Exponential(Options):
    """initial · decay^(step / steps)."""

    type: Literal["exponential"] = "exponential"
    initial: float = option(description="Learning rate at step 0.", gt=0)
    decay: float = option(description="Factor on the rate every `steps` steps.", gt=0)
    steps: int = option(1, description="Steps over which the rate changes by `decay`.", units="steps", gt=0)

    def __call__(self, step: Any, xp: Any = np) -> Any:
        """The learning rate after `step` updates."""
        return self.initial * self.decay ** (step / self.steps)


class Step(Options):
    """initial · factor^⌊step / every⌋."""

    type: Literal["step"] = "step"
    initial: float = option(description="Learning rate at step 0.", gt=0)
    factor: float = option(0.5, description="Factor on the rate at each drop.", gt=0)
    every: int = option(description="Steps between drops.", units="steps", gt=0)

    def __call__(self, step: Any, xp: Any = np) -> Any:
        """The learning rate after `step` updates."""
        return self.initial * self.factor ** (step // self.every * 1.0)


class Cosine(Options):
    """final + ½ (initial - final) (1 + cos(π min(step / steps, 1))). Loshchilov & Hutter 2017."""

    type: Literal["cosine"] = "cosine"
    initial: float = option(description="Learning rate at step 0.", gt=0)
    final: float = option(0.0, description="Learning rate from step `steps` on.", ge=0)
    steps: int = option(description="Steps from initial to final rate.", units="steps", gt=0)

    def __call__(self, step: Any, xp: Any = np) -> Any:
        """The learning rate after `step` updates."""
        done = xp.minimum(step / self.steps, 1.0)
        return self.final + 0.5 * (self.initial - self.final) * (1 + xp.cos(np.pi * done))


class WarmupCosine(Options):
    """Linear from 0 to `peak` during `warmup` steps (step 0 gets peak / warmup), then cosine to `final`."""

    type: Literal["warmup_cosine"] = "warmup_cosine"
    peak: float = option(description="Largest learning rate.", gt=0)
    warmup: int = option(description="Steps of the linear rise.", units="steps", gt=0)
    final: float = option(0.0, description="Learning rate after warmup + steps.", ge=0)
    steps: int = option(description="Steps from peak to final rate, after the warm-up.", units="steps", gt=0)

    def __call__(self, step: Any, xp: Any = np) -> Any:
        """The learning rate after `step` updates."""
        done = xp.clip((step - self.warmup) / self.steps, 0.0, 1.0)
        fall = self.final + 0.5 * (self.peak - self.final) * (1 + xp.cos(np.pi * done))
        return xp.where(step < self.warmup, self.peak * (step + 1) / self.warmup, fall)


Schedule = Annotated[Constant | Exponential | Step | Cosine | WarmupCosine, Field(discriminator="type")]
"""A schedule as a section of a scenario, chosen by `type`."""

LearningRate = float | Callable[[Any], Any]
"""A constant, a schedule, or any function of the step that traces where the backend compiles."""


def rate_at(learning_rate: LearningRate, step: Any, xp: Any) -> Any:
    """The learning rate after `step` updates, with the mathematics of `xp`."""
    if isinstance(learning_rate, Constant | Exponential | Step | Cosine | WarmupCosine):
        return learning_rate(step, xp)
    return learning_rate(step) if callable(learning_rate) else learning_rate
