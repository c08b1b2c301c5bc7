"""RadiomicGAN: features of natural images beside trained ones, and a window that grows to the CT range.

Selim et al. 2021, arXiv:2107.01337. Frozen blocks of VGG stand beside trainable ones of the same sizes in the
generator's encoder; training begins in a window as narrow as a natural image's 256 grey levels and widens to CT's.
Weights of VGG come from a file that the user names; without it they are random, and the row says so. Where the window
lies and how it grows is ours: around the batch's median, in a straight line over the first half of the steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from concordct.methods.method import Method
from concordct.methods.network import (
    HIGH_HU,
    LOW_HU,
    Recipe,
    TrainingData,
    loader,
    to_unit,
)
from concordct.methods.translation import GAME, JUDGES, Translation, phase, play, players, recipe
from concordct.nets.discriminators import Judge, PatchGAN, judge_loss, verdict_loss
from concordct.nets.translators import Norm, normalization
from concordct.nets.vgg import WIDTHS, Vgg
from concordct.training.bundle import Bundle
from concordct.training.engine import Run
from concordct.training.game import seeded_by
from concordct.training.weights import read_tensors

METHOD = "radiomicgan"
#: Half of the window in which training begins: 256 grey levels of 1 HU, on the networks' scale.
NARROW = 128 * 2 / (HIGH_HU - LOW_HU)
#: Half of everything.
WHOLE = 2.0


@dataclass(frozen=True)
class Config:
    """Widths of both frozen blocks (64 and 128 for published weights), norm of the trainable ones, the judge, weight of
    L1, share of the steps in which the window grows, whether the source is added to the output."""

    vgg: tuple[int, int]
    norm: Norm
    judge: Judge
    residual: bool
    l1: float = 100.0
    grows: float = 0.5


RECIPES: dict[str, Recipe] = {
    "paper": recipe("paper", Config(WIDTHS, "batch", JUDGES["paper"], False), phase("paper")),
    "gpu": recipe("gpu", Config(WIDTHS, "none", JUDGES["gpu"], True), phase("gpu")),
    "small": recipe("small", Config((8, 16), "none", JUDGES["small"], True), phase("small")),
}


class Twofold(nn.Module):
    """An encoder of frozen and trainable blocks side by side, and a decoder that sees both at either size."""

    divisor = 4

    def __init__(self, config: Config) -> None:
        super().__init__()
        first, second = config.vgg
        self.vgg = Vgg(config.vgg)
        self.residual = config.residual

        def block(inputs: int, outputs: int) -> nn.Module:
            layers: list[nn.Module] = []
            for count in (inputs, outputs):
                layers += [nn.Conv2d(count, outputs, 3, padding=1), normalization(config.norm, outputs), nn.ReLU()]
            return nn.Sequential(*layers)

        self.own = nn.ModuleList([block(1, first), block(first, second)])
        self.deep = block(2 * second, 2 * second)
        self.up = block(2 * second + 2 * second, second)
        self.out = nn.Sequential(block(second + 2 * first, first), nn.Conv2d(first, 1, 3, padding=1))
        if config.residual:
            for one in self.out[-1].parameters():
                nn.init.zeros_(one)

    def forward(self, image: Tensor) -> Tensor:
        """[b, 1, y, x] to the same shape."""
        frozen = self.vgg(image)
        one = self.own[0](image)
        two = self.own[1](functional.max_pool2d(one, 2))
        whole, half = torch.cat([one, frozen[0]], dim=1), torch.cat([two, frozen[1]], dim=1)
        deep = self.deep(functional.max_pool2d(half, 2))
        x = self.up(torch.cat([functional.interpolate(deep, scale_factor=2.0), half], dim=1))
        x = self.out(torch.cat([functional.interpolate(x, scale_factor=2.0), whole], dim=1))
        return image + x if self.residual else torch.tanh(x)


class Game(nn.Module):
    """Generator against one conditional judge, inside a window that grows."""

    players = players("judge")

    def __init__(self, system: nn.Module, config: Config, steps: int) -> None:
        super().__init__()
        self.system, self.judge, self.l1 = system, PatchGAN(2, config.judge), config.l1
        self.growing = max(1.0, config.grows * steps)
        self.step: Tensor
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    @property
    def reach(self) -> float:
        """Half of the window at this step."""
        return NARROW + (WHOLE - NARROW) * min(1.0, int(self.step) / self.growing)

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int], player: str) -> dict[str, Tensor]:
        """Patches in HU to the losses of whoever moves."""
        a, b = to_unit(source), to_unit(target)
        middle = b.median()
        a, b = windowed(a, middle, self.reach), windowed(b, middle, self.reach)
        with seeded_by(seeds):
            made = self.system(a)
        if player == "judge":
            self.step += 1  # the judge moves last
            return {"loss": judge_loss(self.judge(a, b), self.judge(a, made.detach()), "log")}
        fooled = verdict_loss(self.judge(a, made), True, "log")
        distance = functional.l1_loss(made, b)
        return {"loss": fooled + self.l1 * distance, "fooled": fooled, "l1": distance}


def windowed(unit: Tensor, middle: Tensor, half: float) -> Tensor:
    """Cut at half a window to either side of its middle."""
    return torch.minimum(torch.maximum(unit, middle - half), middle + half)


def fit(data: TrainingData, recipe: Recipe, run: Run, *, imagenet: Path | None = None) -> Bundle:
    """Play from where the game stands.

    Parameters
    ----------
    imagenet : torchvision's VGG-16 or VGG-19 weights as safetensors; random ones without.

    Raises
    ------
    ConcordctError : a file that does not hold them.
    """
    config: Config = recipe.config

    def make() -> Translation:
        net = Twofold(config)
        if imagenet is not None:
            read_tensors(imagenet, "VGG", net.vgg.load_torchvision)
        return Translation(net)

    slices = sum(len(one.source) for one in data.pairs)
    steps = recipe.phase(GAME).length(slices)
    found = play(METHOD, data, recipe, run, make, lambda system: Game(system, config, steps))
    info = {**found.metadata["info"], "vgg": "published weights" if imagenet else "random weights"}
    return Bundle(found.tensors, {**found.metadata, "info": info})


def build(config: Mapping[str, Any]) -> Translation:
    """The system of a stored configuration."""
    fields = {**config, "vgg": tuple(config["vgg"]), "judge": Judge(**config["judge"])}
    return Translation(Twofold(Config(**fields)))


ENTRY = Method(
    "RadiomicGAN, a conditional GAN beside frozen VGG features",
    loader(METHOD, build),
    fit,
    RECIPES,
    pretrained="VGG-16 or VGG-19, ImageNet, safetensors",
)
