"""A small perceptron in NumPy, so that calibrating and standardizing need no torch: two hidden layers, trained by Adam.

Adam is Kingma and Ba, arXiv:1412.6980, with a rate that falls to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

#: Decay of Adam's averages, and what keeps its division safe.
FIRST, SECOND, SAFE = 0.9, 0.99, 1e-8
#: Steps over which the rate rises from nothing.
WARMUP = 100


@dataclass(frozen=True, eq=False)
class Perceptron:
    """Layers of weights [in, out] and offsets [out]; rectified in between, linear at the end."""

    weights: tuple[Array, ...]
    offsets: tuple[Array, ...]

    def __call__(self, inputs: Array) -> Array:
        """[n, in] to [n, out]."""
        return self.layers(inputs)[-1]

    def to_tensors(self) -> dict[str, NDArray[np.float64]]:
        """Arrays by name."""
        found = {f"weight_{i}": one.astype(np.float64) for i, one in enumerate(self.weights)}
        return found | {f"offset_{i}": one.astype(np.float64) for i, one in enumerate(self.offsets)}

    @staticmethod
    def from_tensors(tensors: Mapping[str, NDArray[np.float64]]) -> Perceptron:
        """The inverse of `to_tensors` for two hidden layers; KeyError where one lacks."""
        weights, offsets = (
            tuple(tensors[f"{name}_{i}"].astype(np.float32) for i in range(3)) for name in ("weight", "offset")
        )
        return Perceptron(weights, offsets)

    def fits(self, inputs: int, outputs: int) -> bool:
        """Whether the layers follow on each other from so many inputs to so many outputs."""
        sizes = [inputs, *(len(offset) for offset in self.offsets)]
        return sizes[-1] == outputs and all(
            weight.shape == pair for weight, pair in zip(self.weights, pairwise(sizes), strict=True)
        )

    def layers(self, inputs: Array) -> list[Array]:
        """What enters each layer, and what leaves the last."""
        found = [inputs]
        for index, (weight, offset) in enumerate(zip(self.weights, self.offsets, strict=True)):
            out = found[-1] @ weight + offset
            found.append(out if index == len(self.weights) - 1 else np.maximum(out, 0))
        return found

    def gradients(self, layers: list[Array], last: Array) -> tuple[list[Array], list[Array]]:
        """Of a loss whose derivative by the output is `last`, [n, out], for weights and offsets."""
        weights, offsets = [], []
        for index in reversed(range(len(self.weights))):
            weights.append(layers[index].T @ last)
            offsets.append(last.sum(axis=0))
            if index:
                last = (last @ self.weights[index].T) * (layers[index] > 0)
        return weights[::-1], offsets[::-1]


def begun(sizes: tuple[int, ...], last_offset: Array, generator: np.random.Generator) -> Perceptron:
    """Random weights (He et al., arXiv:1502.01852), those of the last layer a tenth as large."""
    weights = []
    for index, (width, height) in enumerate(pairwise(sizes)):
        scale = np.sqrt(2 / width) * (0.1 if index == len(sizes) - 2 else 1.0)
        weights.append((generator.standard_normal((width, height)) * scale).astype(np.float32))
    offsets = [np.zeros(size, np.float32) for size in sizes[1:-1]]
    return Perceptron(tuple(weights), (*offsets, last_offset.astype(np.float32)))


def trained(
    network: Perceptron,
    inputs: Array,
    slope: Callable[[NDArray[np.intp], Array], Array],
    *,
    steps: int,
    batch: int,
    rate: float,
    generator: np.random.Generator,
) -> Perceptron:
    """The network after so many steps; the one that is given is changed.

    Parameters
    ----------
    inputs : [n, in], of mean 0 and deviation 1.
    slope : (which rows, output) to the derivative of their mean loss by the output, [batch, out].
    """
    held = [*network.weights, *network.offsets]
    first, second = ([np.zeros_like(one) for one in held] for _ in range(2))
    for step in range(1, steps + 1):
        rows = generator.integers(0, len(inputs), batch)
        layers = network.layers(inputs[rows])
        found = network.gradients(layers, slope(rows, layers[-1]))
        now = rate * min(1.0, step / WARMUP) * (1 - (step - 1) / steps)
        for one, change, m, v in zip(held, [*found[0], *found[1]], first, second, strict=True):
            m += np.float32(1 - FIRST) * (change - m)
            v += np.float32(1 - SECOND) * (change * change - v)
            one -= np.float32(now / (1 - FIRST**step)) * m / (np.sqrt(v / np.float32(1 - SECOND**step)) + SAFE)
    return network
