"""Linear solves that stop before they have converged: how far they are off, and what a run says about it.

A solve inside a compiled function (all of JAX) cannot raise: it returns what it has. Outside (torch) PhiML raises. The
number that both can be judged by is the relative residual |A y − x| / |x|, to be watched by a `Monitor`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from phiml import math
from phiml.math import Solve, Tensor

from toolkit.core.errors import DivergenceError, RunError


def linear_solution(operator: Any, right: Tensor, solve: Solve) -> Tensor:
    """y with A y = x from the start 0, A being symmetric (`operator`); differentiable in x, on JAX in loops, too.

    The start of the solve and of that of its gradient is a constant: PhiML keeps it outside of what JAX knows of, so
    that the gradient of a loop (`lax.scan`) with any other one ends in an UnexpectedTracerError.
    """
    shape = right.shape.non_batch
    dtype = np.float64 if math.get_precision() == 64 else np.float32
    zero = math.wrap(np.zeros(shape.sizes, dtype), shape)
    backward = math.copy_with(solve, x0=zero, suppress=())
    result: Any = math.solve_linear(operator, right, math.copy_with(solve, x0=zero, _gradient_solve=backward))
    return result


def relative_residual(left: Tensor, right: Tensor) -> Tensor:
    """|left − right| / |right| per sample, L2 norms over all but `sample`; 0 where both sides are 0.

    For a solve of A y = x: `relative_residual(A(y), x)`. Not differentiated.
    """
    stop: Any = math.stop_gradient  # its annotation speaks of trees, it gives what it takes
    left, right = stop(left), stop(right)
    dims = (left.shape & right.shape).without("sample")
    scale = math.max(abs(right), dims)
    # Scaled first, so that squares neither overflow nor vanish.
    scale = math.where(scale == 0, 1.0, scale)
    size = math.sqrt(math.sum((right / scale) ** 2, dims))
    return math.sqrt(math.sum(((left - right) / scale) ** 2, dims)) / math.where(size == 0, 1.0, size)


@contextmanager
def run_errors(pde: str) -> Iterator[None]:
    """What a run says instead of PhiML's exception for a solve that did not converge, and when memory ends."""
    try:
        yield
    except math.ConvergenceException as error:
        # One sentence per sample, all alike.
        first = str(error).strip("[(").split(".)")[0].split("', ")[0].strip("'\" ])")
        message = f"a linear solve of pde {pde} failed: {first}"
        raise DivergenceError(
            f"{message}; give it more iterations or a larger tolerance (its keys in `pde`), or lower time.dt"
        ) from error
    except MemoryError as error:
        message = "not enough memory: use fewer cells, time steps or samples (train.batch_size, data.validation)"
        raise RunError(f"{message}; {error}") from error
