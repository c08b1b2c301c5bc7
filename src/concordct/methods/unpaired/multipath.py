"""Multipath cycleGAN: one encoder and one decoder for each kernel, one latent space for all.

Krishnan et al. 2025, arXiv:2505.22568 (7 kernels, 42 conversions, one model). An image goes in by its kernel's encoder
and out by any kernel's decoder; a judge for each kernel. Pairs teach directly (mean absolute error both ways),
strangers through the cycle. Here two kernels are trained, source and target of the manifest; the system holds as many
as its configuration names. The loss that makes latents of a pair agree is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from concordct.methods.method import Method
from concordct.methods.network import Recipe, TrainingData, loader, to_unit
from concordct.methods.translation import JUDGES, RESNET, Translation, fitted, phase, players, recipe
from concordct.nets.discriminators import Judge, PatchGAN, judge_loss, verdict_loss
from concordct.nets.translators import ResNet, Translator, published_start
from concordct.training.data import Patches, Together, strangers
from concordct.training.game import Replay, seeded_by

METHOD = "multipath"
#: The two sides of a manifest.
SOURCE, TARGET = "source", "target"
REPLAYED = 50


@dataclass(frozen=True)
class Config:
    """Kernels, networks, and weights: L1 of pairs, of their latents, of the cycle, of the identity."""

    generator: Translator
    judge: Judge
    kernels: tuple[str, ...] = (SOURCE, TARGET)
    l1: float = 10.0
    latent: float = 1.0
    cycle: float = 10.0
    identity: float = 5.0


RECIPES: dict[str, Recipe] = {
    name: recipe(name, Config(RESNET[name], JUDGES[name]), phase(name, linear=True))
    for name in ("paper", "gpu", "small")
}


class Paths(nn.Module):
    """Encoders and decoders by kernel; called, it goes from source to target.

    Published ones make the whole image from the latent. With `residual` (ours) the latent also holds the image itself,
    corrected by its encoder, and a decoder adds to that: a common latent and the image of one kernel beside it would
    contradict each other, since what a decoder adds would have to be nothing for its own kernel and not for the other.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        given = config.generator
        self.fold, self.residual = given.fold, given.residual
        nets = {
            kernel: ResNet(given.fold**2, given.fold**2, given) for kernel in config.kernels
        }  # each a whole way in and out of its kernel
        if not given.residual:
            for net in nets.values():
                published_start(net)
        self.encoders = nn.ModuleDict({kernel: net.encode for kernel, net in nets.items()})
        self.decoders = nn.ModuleDict({kernel: net.decode for kernel, net in nets.items()})
        self.divisor = given.fold * nets[config.kernels[0]].divisor
        self.corrections = nn.ModuleDict()
        if given.residual:
            width = given.width * 2**given.halvings
            for kernel, net in nets.items():
                correction = nn.Conv2d(width, (given.fold * 2**given.halvings) ** 2, 1)
                self.corrections[kernel] = correction
                for one in (*net.last.parameters(), *correction.parameters()):
                    nn.init.zeros_(one)

    def encode(self, kernel: str, image: Tensor) -> Tensor:
        """[b, 1, y, x] of a kernel to the common latent [b, c, y / divisor, x / divisor]."""
        features = self.encoders[kernel](functional.pixel_unshuffle(image, self.fold))
        if not self.residual:
            return features
        folded = functional.pixel_unshuffle(image, self.divisor) + self.corrections[kernel](features)
        return torch.cat([features, folded], dim=1)

    def decode(self, kernel: str, latent: Tensor) -> Tensor:
        """The latent to an image of a kernel."""
        if not self.residual:
            return torch.tanh(functional.pixel_shuffle(self.decoders[kernel](latent), self.fold))
        features, folded = latent.split([latent.shape[1] - self.divisor**2, self.divisor**2], dim=1)
        made = functional.pixel_shuffle(self.decoders[kernel](features), self.fold)
        return functional.pixel_shuffle(folded, self.divisor) + made

    def forward(self, image: Tensor) -> Tensor:
        """[b, 1, y, x] from source to target."""
        return self.decode(TARGET, self.encode(SOURCE, image))


class Game(nn.Module):
    """All paths between two kernels, and a judge for each."""

    players = players("judges")

    def __init__(self, system: nn.Module, config: Config, patch: int) -> None:
        super().__init__()
        self.system, self.config = system, config
        self.judges = nn.ModuleDict({side: PatchGAN(1, config.judge) for side in (SOURCE, TARGET)})
        self.replay = nn.ModuleDict({side: Replay(REPLAYED, (1, patch, patch)) for side in (SOURCE, TARGET)})

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int], player: str) -> dict[str, Tensor]:
        """A pair and strangers, [b, 2, y, x] HU, to the losses of whoever moves."""
        source, target = to_unit(source), to_unit(target)
        a, b = torch.cat([source[:, :1], source[:, 1:]]), torch.cat([target[:, :1], target[:, 1:]])
        paths: Paths = self.system.generator  # type: ignore[assignment]
        z_a, z_b = paths.encode(SOURCE, a), paths.encode(TARGET, b)
        made_b, made_a = paths.decode(TARGET, z_a), paths.decode(SOURCE, z_b)
        if player == "judges":
            with seeded_by(seeds) as random:
                shown_a = self.replay[SOURCE].exchange(made_a, random)  # type: ignore[operator]
                shown_b = self.replay[TARGET].exchange(made_b, random)  # type: ignore[operator]
            losses = [
                judge_loss(self.judges[SOURCE](a), self.judges[SOURCE](shown_a), "squares"),
                judge_loss(self.judges[TARGET](b), self.judges[TARGET](shown_b), "squares"),
            ]
            return {"loss": losses[0] + losses[1], "source": losses[0], "target": losses[1]}
        half = len(source)  # the pairs come first
        fooled = verdict_loss(self.judges[SOURCE](made_a), True, "squares")
        fooled = fooled + verdict_loss(self.judges[TARGET](made_b), True, "squares")
        distance = functional.l1_loss(made_b[:half], b[:half]) + functional.l1_loss(made_a[:half], a[:half])
        agree = functional.l1_loss(z_a[:half], z_b[:half])
        again_a = paths.decode(SOURCE, paths.encode(TARGET, made_b[half:]))
        again_b = paths.decode(TARGET, paths.encode(SOURCE, made_a[half:]))
        cycle = functional.l1_loss(again_a, a[half:]) + functional.l1_loss(again_b, b[half:])
        identity = functional.l1_loss(paths.decode(SOURCE, z_a), a)
        identity = identity + functional.l1_loss(paths.decode(TARGET, z_b), b)
        given = self.config
        total = fooled + given.l1 * distance + given.latent * agree + given.cycle * cycle + given.identity * identity
        parts = {"fooled": fooled, "l1": distance, "latent": agree, "cycle": cycle, "identity": identity}
        return {"loss": total, **parts}


def make(config: Config) -> Translation:
    """The system of a configuration."""
    return Translation(Paths(config))


def _batches(data: TrainingData, recipe: Recipe) -> Together:
    pairs = Patches(data.pairs, recipe.patch, recipe.seed)
    return Together(pairs, strangers(data.pairs, recipe.patch, recipe.seed + 10))


def build(config: Mapping[str, Any]) -> Translation:
    """The system of a stored configuration."""
    fields = {
        **config,
        "generator": Translator(**config["generator"]),
        "judge": Judge(**config["judge"]),
        "kernels": tuple(config["kernels"]),
    }
    return make(Config(**fields))


fit = fitted(METHOD, lambda system, recipe: Game(system, recipe.config, recipe.patch), batches=_batches, make=make)

ENTRY = Method("Multipath cycleGAN, an encoder and a decoder for each kernel", loader(METHOD, build), fit, RECIPES)
