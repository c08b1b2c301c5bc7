"""Choe et al. 2019: a small convolutional network that learns the difference between two kernels from pairs.

Radiology 292:365, doi:10.1148/radiol.2019181960: six layers, residual, kernels converted before radiomic features are
measured. Layer widths and optimizer follow the deep CT networks that it cites (64 channels, 3 x 3, Adam).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from concordct.methods.method import Method
from concordct.methods.network import Recipe, loader, to_unit
from concordct.methods.translation import NO_CLIP, Translation, fitted, recipe
from concordct.training.engine import Phase

METHOD = "choe"


@dataclass(frozen=True)
class Config:
    """`layers` convolutions of `width` channels; `fold` x `fold` pixels become channels (ours, for speed); `square`
    False for the mean absolute error."""

    width: int
    layers: int = 6
    fold: int = 1
    square: bool = True


RECIPES: dict[str, Recipe] = {
    "paper": recipe("paper", Config(64), Phase(epochs=200, batch=16, warmup=0, clip=NO_CLIP, ema=0.0)),
    "gpu": recipe("gpu", Config(64, fold=2), Phase(steps=16000, batch=32, learning_rate=5e-4, final_rate=0.05)),
    "small": recipe(
        "small", Config(32, fold=2), Phase(steps=2000, batch=8, learning_rate=1e-3, final_rate=0.05, every=250)
    ),
}


class SixLayers(nn.Module):
    """The network; its last layer starts silent, so that the source comes through."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.fold, self.divisor = config.fold, config.fold
        widths = [config.fold**2, *[config.width] * (config.layers - 1), config.fold**2]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect"), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        for one in self.layers[-1].parameters():
            nn.init.zeros_(one)

    def forward(self, image: Tensor) -> Tensor:
        """[b, 1, y, x] to the same shape."""
        return image + functional.pixel_shuffle(self.layers(functional.pixel_unshuffle(image, self.fold)), self.fold)


class Regression(nn.Module):
    """The loss on pairs."""

    def __init__(self, system: nn.Module, config: Config) -> None:
        super().__init__()
        self.system, self.config = system, config

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Patches in HU to the loss."""
        error = self.system(to_unit(source)) - to_unit(target)
        return {"loss": error.square().mean() if self.config.square else error.abs().mean()}


def make(config: Config) -> Translation:
    """The system of a configuration."""
    return Translation(SixLayers(config))


def build(config: Mapping[str, Any]) -> Translation:
    """The system of a stored configuration."""
    return make(Config(**config))


fit = fitted(METHOD, lambda system, recipe: Regression(system, recipe.config), make=make)

ENTRY = Method("Choe 2019, a convolutional network of six layers", loader(METHOD, build), fit, RECIPES)
