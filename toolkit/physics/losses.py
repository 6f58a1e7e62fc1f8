"""Losses that suit any PDE: ½ the sum of squares (`l2`) and the sum of absolute values (`l1`), per sample; and the
mean of squares (`mean_square`), which looks at no target and keeps controls small.

l2: L = ½ Σ (y − y*)², its Hessian in y is the identity, so the Newton step in y is y* − y.
l1: L = Σ |y − y*|, whose Newton step is undefined.
mean_square: L = 1/n Σ y² over the n entries, whose Newton step in y is −y.
"""

from __future__ import annotations

from collections.abc import Mapping

from phiml import math
from phiml.math import Tensor

from toolkit.physics.layout import SAMPLE
from toolkit.physics.plugin import Loss, LossPlugin


def half_squared(difference: Tensor) -> Tensor:
    """½ Σ d² over all but `sample`; shape (sample,)."""
    return 0.5 * math.sum(difference**2, difference.shape.without(SAMPLE))


def absolute(difference: Tensor) -> Tensor:
    """Σ |d| over all but `sample`; shape (sample,)."""
    return math.sum(abs(difference), difference.shape.without(SAMPLE))


def mean_square(y: Tensor) -> Tensor:
    """Mean of y² over all but `sample`; shape (sample,)."""
    return math.mean(y**2, y.shape.without(SAMPLE))


L2 = Loss(value=lambda y, target: half_squared(y - target), newton_step=lambda y, target: target - y)
L1 = Loss(value=lambda y, target: absolute(y - target))

MEAN_SQUARE = Loss(value=lambda y, target: mean_square(y), newton_step=lambda y, target: -y)

LOSSES: Mapping[str, LossPlugin] = {
    "l1": LossPlugin("sum of absolute differences, Σ|y − y*| per sample", lambda options: L1),
    "l2": LossPlugin("half the sum of squared differences, ½Σ(y − y*)² per sample", lambda options: L2),
    "mean_square": LossPlugin(
        "mean of y² over all entries, without a target; on a control (`on: force.<name>`) it keeps that small",
        lambda options: MEAN_SQUARE,
        needs_target=False,
    ),
}
