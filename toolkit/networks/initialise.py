"""Initial weights, drawn with NumPy so that a seed means the same network on every backend.

Weights of dense and convolutional layers are uniform in ±1/√fan_in, fan_in = inputs times kernel cells:
torch's default (Kaiming with a = √5), which PhiML uses on torch too; or, where the architecture says
`glorot_uniform`, in ±√(6 / (fan_in + fan_out)), fan_out = outputs times kernel cells: Keras' default, after Glorot and
Bengio 2010, which keeps the variance of activations and gradients alike. A dense layer may start at zero or at given
weights instead. Biases are zero. Batch normalisation
starts as the identity: weight 1, bias 0, running mean 0, running variance 1. Real and imaginary parts of the
weights of a spectral convolution are uniform in [0, 1) / (inputs · outputs), as in the published Fourier
neural operator (Li et al. 2021).
"""

from __future__ import annotations

import math

import numpy as np

from toolkit.core.architecture import (
    Architecture,
    BatchNorm,
    Dense,
    Initialisation,
    Layer,
    SpectralConv,
    buffer_shapes,
    parameter_shapes,
)

Arrays = dict[str, np.ndarray]


def initialise(architecture: Architecture, generator: np.random.Generator) -> tuple[Arrays, Arrays]:
    """(params, buffers) as float64, by layer path, in the order of `parameter_shapes` and `buffer_shapes`."""
    layers = {node.name: node.layer for node in architecture.nodes}
    params = {}
    for path, shape in parameter_shapes(architecture).items():
        layer, _, name = path.rpartition(".")
        if name == "bias":
            params[path] = np.zeros(shape)
        else:
            params[path] = _weight(layers[layer], shape, architecture.initialisation, generator)
    buffers = {
        path: np.ones(shape) if path.endswith(".running_var") else np.zeros(shape)
        for path, shape in buffer_shapes(architecture).items()
    }
    return params, buffers


def _weight(
    layer: Layer, shape: tuple[int, ...], initialisation: Initialisation, generator: np.random.Generator
) -> np.ndarray:
    """The weight of a layer before training."""
    match layer:
        case BatchNorm():
            return np.ones(shape)
        case SpectralConv():
            return generator.random(shape) / math.prod(shape[:2])
        case Dense(start="zero"):
            return np.zeros(shape)
        case Dense(start=tuple(rows)):
            return np.reshape(np.array(rows, float), shape)
    bound = _bound(shape, initialisation)
    return generator.uniform(-bound, bound, shape)


def _bound(shape: tuple[int, ...], initialisation: Initialisation) -> float:
    """Largest magnitude of weights (out, in, *kernel)."""
    fan_in, fan_out = math.prod(shape[1:]), shape[0] * math.prod(shape[2:])
    return math.sqrt(6 / (fan_in + fan_out)) if initialisation == "glorot_uniform" else 1 / math.sqrt(fan_in)
