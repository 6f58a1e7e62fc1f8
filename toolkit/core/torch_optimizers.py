"""Optimizers on torch: the functional forms of torch.optim, on copies, with the state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch.optim.adadelta import adadelta
from torch.optim.adagrad import adagrad
from torch.optim.adam import adam
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from toolkit.core.lbfgs import LbfgsOptimizer
from toolkit.core.optimizers import (
    Adadelta,
    Adagrad,
    Adam,
    AdamW,
    Lbfgs,
    LineSearchOptimizer,
    Optimizer,
    RmsProp,
    Sgd,
    adam_epsilon,
    initial_state,
    parse,
    slots,
)
from toolkit.core.schedules import LearningRate, rate_at
from toolkit.core.torch_namespace import TorchNamespace

Tensors = dict[str, torch.Tensor]


def make_optimizer(
    kind: str, options: Mapping[str, Any], learning_rate: LearningRate | None = None
) -> Optimizer | LineSearchOptimizer:
    """The optimizer of this kind; without an explicit learning rate the one in options holds."""
    parsed, rate = parse(kind, options, learning_rate)
    if isinstance(parsed, Lbfgs):
        return LbfgsOptimizer(TorchNamespace(), parsed.history, parsed.trials)
    return TorchOptimizer(parsed, rate)


class TorchOptimizer:
    """See `toolkit.core.optimizers.Optimizer`."""

    needs_objective: ClassVar[bool] = False

    def __init__(self, options: Any, learning_rate: LearningRate):
        self._options = options
        self._learning_rate = learning_rate

    def init(self, params: Mapping[str, torch.Tensor]) -> Tensors:
        detached = {name: p.detach() for name, p in params.items()}
        # On the host: reading a counter on the GPU would wait for it at each step.
        return initial_state(self._options, detached, torch.zeros((), dtype=torch.int64), torch)

    @torch.no_grad()
    def update(
        self, direction: Mapping[str, torch.Tensor], state: Tensors, params: Mapping[str, torch.Tensor]
    ) -> tuple[Tensors, Tensors]:
        step = int(state["step"])
        new = {name: p.detach().clone() for name, p in params.items()}
        state = {name: s.detach().clone() for name, s in state.items()}
        memory = {slot: [state[f"{slot}/{name}"] for name in params] for slot in slots(self._options)}
        gradients = [direction[name].detach() for name in params]
        rate = float(rate_at(self._learning_rate, step, np))
        _step(self._options, list(new.values()), gradients, memory, step, rate)
        state["step"] = torch.tensor(step + 1, dtype=torch.int64)
        return new, state


def _step(
    options: Any,
    params: list[torch.Tensor],
    gradients: list[torch.Tensor],
    memory: dict[str, list[torch.Tensor]],
    step: int,
    rate: float,
) -> None:
    """One step of torch.optim, in place on params and memory."""
    # torch counts in floats, one counter per parameter, and adds 1 itself.
    steps = [torch.tensor(float(step), dtype=torch.float64) for _ in params]
    common: dict[str, Any] = {"lr": rate, "weight_decay": options.weight_decay, "maximize": False}
    match options:
        case Sgd(momentum=momentum, nesterov=nesterov):
            buffers: list[torch.Tensor | None] = list(memory.get("momentum", [None] * len(params)))
            sgd(params, gradients, buffers, momentum=momentum, nesterov=nesterov, dampening=0.0, **common)
        case Adam():
            adam(
                params,
                gradients,
                memory["first_moment"],
                memory["second_moment"],
                [],
                steps,
                amsgrad=False,
                beta1=options.beta1,
                beta2=options.beta2,
                eps=adam_epsilon(options, step + 1, np),
                decoupled_weight_decay=isinstance(options, AdamW),
                **common,
            )
        case Adagrad():
            adagrad(params, gradients, memory["square_sum"], steps, lr_decay=0.0, eps=options.epsilon, **common)
        case Adadelta():
            averages = memory["square_average"], memory["delta_average"]
            adadelta(params, gradients, *averages, steps, rho=options.rho, eps=options.epsilon, **common)
        case RmsProp():
            rmsprop(
                params,
                gradients,
                memory["square_average"],
                memory.get("average", []),
                memory.get("momentum", []),
                steps,
                alpha=options.alpha,
                eps=options.epsilon,
                momentum=options.momentum,
                centered=options.centered,
                **common,
            )
