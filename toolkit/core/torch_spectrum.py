"""Half-inversion of torch tensors: LAPACK on shared memory for the CPU, torch.linalg on a GPU.

Nothing is differentiated through: the result is a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from toolkit.core import half_inverse_device as on_device
from toolkit.core import half_inverse_host as on_host
from toolkit.core.half_inverse_choice import ON_DEVICE, HalfInversion, Report
from toolkit.core.half_inverse_lanczos import lanczos
from toolkit.core.torch_namespace import TorchNamespace

Tensor = torch.Tensor
XP = TorchNamespace()


def known(array: Any) -> bool:
    """Whether the values are there to be looked at; always, torch is eager."""
    return True


def first_bad_row(jacobian: Tensor, gradient: Tensor) -> int | None:
    """The first row with a number that is not finite, in the Jacobian or the gradient."""
    bad = ~(torch.isfinite(jacobian).all(dim=1) & torch.isfinite(gradient))
    return int(torch.argmax(bad.to(torch.int8))) if bool(bad.any()) else None


def device(array: Tensor) -> str:
    """cpu or gpu."""
    return "cpu" if array.device.type == "cpu" else "gpu"


def half_invert(jacobian: Tensor, gradient: Tensor, options: HalfInversion, algorithm: str) -> tuple[Tensor, Report]:
    """u (P,) in J's precision and the report."""
    jacobian, gradient = jacobian.detach(), gradient.detach()
    if device(jacobian) == "cpu":
        u, report = on_host.half_invert(_host(jacobian), _host(gradient), options, algorithm)
        return torch.as_tensor(u, dtype=jacobian.dtype), report
    if algorithm in ON_DEVICE:
        dtype = str(jacobian.dtype).removeprefix("torch.")
        u, report = on_device.half_invert(XP, jacobian, gradient, options, algorithm, dtype)
        return u.to(jacobian.dtype), report
    gradient = gradient.double()
    gram = on_device.gram_matrix(XP, jacobian)
    if jacobian.shape[0] <= jacobian.shape[1]:
        q, report = half_invert_gram(gram, gradient, options, algorithm)
        u = on_device.transposed_product(XP, jacobian, q)
    else:
        rhs = on_device.transposed_product(XP, jacobian, gradient)
        u, report = half_invert_gram(gram, rhs, options, algorithm)
    if algorithm == "adaptive" and not report.resolved:
        u, report = on_device.half_invert(XP, jacobian, gradient, options, "svd64", "float64")
    return u.to(jacobian.dtype), report


def half_invert_gram(gram: Tensor, vector: Tensor, options: HalfInversion, algorithm: str) -> tuple[Tensor, Report]:
    """q = K^((κ-1)/2) v in float64 and the report."""
    gram, vector = gram.detach(), vector.detach()
    if algorithm == "lanczos" and device(gram) != "cpu":
        gram = gram.double()
        return half_invert_operator(lambda v: gram @ v, vector, options)
    if device(gram) != "cpu" and algorithm == "gram":
        return on_device.half_invert_gram(XP, gram.double(), vector.double(), options)
    q, report = on_host.half_invert_given_gram(_host(gram), _host(vector), options, algorithm)
    return torch.as_tensor(q, dtype=torch.float64, device=gram.device), report


def half_invert_operator(
    product: Callable[[Tensor], Tensor], vector: Tensor, options: HalfInversion
) -> tuple[Tensor, Report]:
    """q from products with K, by Lanczos in float64 on the vector's device."""
    vector = vector.detach().double()
    space = vector.new_empty((options.steps(len(vector)) + 1, len(vector)))
    basis, y, report = lanczos(lambda v: product(v).detach().double(), vector, options, space)
    return torch.as_tensor(y, device=vector.device) @ basis, report


def half_invert_streamed(
    block: Callable[[int], Tensor], count: int, gradient: Tensor, options: HalfInversion, algorithm: str
) -> tuple[Tensor, Report]:
    """u (count · c,) from column blocks J_i (n, c), each made twice and then forgotten."""
    if device(gradient) == "cpu":
        first = block(0)
        u, report = on_host.half_invert_streamed(lambda i: _host(block(i)), count, _host(gradient), options, algorithm)
        return torch.as_tensor(u, dtype=first.dtype), report
    gram: Any = 0.0
    for i in range(count):
        part = block(i).detach().double()
        gram = gram + part @ part.T
    q, report = half_invert_gram(gram, gradient.double(), options, algorithm)
    pieces = (block(i).detach() for i in range(count))
    return torch.cat([(q @ piece.double()).to(piece.dtype) for piece in pieces]), report


def factored_gram(deltas: list[Tensor], activations: list[Tensor], bias: list[bool]) -> Tensor:
    """See `toolkit.core.half_inverse.factored_gram`."""
    if device(deltas[0]) == "cpu":
        return torch.as_tensor(on_host.factored_gram([_host(d) for d in deltas], [_host(a) for a in activations], bias))
    detached = [delta.detach() for delta in deltas], [activation.detach() for activation in activations]
    return on_device.factored_gram(XP, *detached, bias)


def _host(array: Tensor) -> np.ndarray:
    return array.detach().cpu().numpy()
