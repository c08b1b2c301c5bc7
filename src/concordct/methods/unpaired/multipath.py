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
from concordct.methods.network import NetworkStandardizer, Recipe, TrainingData, standardizer, to_unit
from concordct.methods.standardizer import Mode
from concordct.methods.translation import JUDGES, RESNET, Translation, phase, play, players, recipe
from concordct.nets.discriminators import Judge, PatchGAN, judge_loss, verdict_loss
from concordct.nets.translators import ResNet, Translator, published_start
from concordct.training.bundle import Bundle
from concordct.training.data import Patches, Together, strangers
from concordct.training.engine import Run
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
    """Encoders and decoders by kernel; called, it goes from source to target."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        given = config.generator
        self.fold, self.residual = given.fold, given.residual
        nets = {
            kernel: ResNet(given.fold**2, given.fold**2, given) for kernel in config.kernels
        }  # each a whole way in and out of its kernel
        self.encoders = nn.ModuleDict({kernel: published_start(net.encode) for kernel, net in nets.items()})
        self.decoders = nn.ModuleDict({kernel: published_start(net.decode) for kernel, net in nets.items()})
        self.divisor = given.fold * nets[config.kernels[0]].divisor
        if given.residual:
            for net in nets.values():
                for one in net.last.parameters():
                    nn.init.zeros_(one)

    def encode(self, kernel: str, image: Tensor) -> Tensor:
        """[b, 1, y, x] of a kernel to the common latent."""
        return self.encoders[kernel](functional.pixel_unshuffle(image, self.fold))

    def decode(self, kernel: str, latent: Tensor, image: Tensor) -> Tensor:
        """The latent to an image of a kernel; the image that it came from is added where the recipe says so."""
        made = functional.pixel_shuffle(self.decoders[kernel](latent), self.fold)
        return image + made if self.residual else torch.tanh(made)

    def forward(self, image: Tensor) -> Tensor:
        """[b, 1, y, x] from source to target."""
        return self.decode(TARGET, self.encode(SOURCE, image), image)


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
        made_b, made_a = paths.decode(TARGET, z_a, a), paths.decode(SOURCE, z_b, b)
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
        again_a = paths.decode(SOURCE, paths.encode(TARGET, made_b[half:]), made_b[half:])
        again_b = paths.decode(TARGET, paths.encode(SOURCE, made_a[half:]), made_a[half:])
        cycle = functional.l1_loss(again_a, a[half:]) + functional.l1_loss(again_b, b[half:])
        identity = functional.l1_loss(paths.decode(SOURCE, z_a, a), a)
        identity = identity + functional.l1_loss(paths.decode(TARGET, z_b, b), b)
        given = self.config
        total = fooled + given.l1 * distance + given.latent * agree + given.cycle * cycle + given.identity * identity
        parts = {"fooled": fooled, "l1": distance, "latent": agree, "cycle": cycle, "identity": identity}
        return {"loss": total, **parts}


def fit(data: TrainingData, recipe: Recipe, run: Run) -> Bundle:
    """Play from where the game stands."""
    config: Config = recipe.config
    batches = Together(
        Patches(data.pairs, recipe.patch, recipe.seed),
        strangers(data.pairs, recipe.patch, recipe.seed + 10),
    )
    return play(
        METHOD,
        data,
        recipe,
        run,
        lambda: Translation(Paths(config)),
        lambda system: Game(system, config, recipe.patch),
        batches,
    )


def build(config: Mapping[str, Any]) -> Translation:
    """The system of a stored configuration."""
    fields = {
        **config,
        "generator": Translator(**config["generator"]),
        "judge": Judge(**config["judge"]),
        "kernels": tuple(config["kernels"]),
    }
    return Translation(Paths(Config(**fields)))


def load(bundle: Bundle, mode: Mode) -> NetworkStandardizer:
    """A stored model as a Standardizer."""
    return standardizer(METHOD, bundle, mode, build)


ENTRY = Method("Multipath cycleGAN, an encoder and a decoder for each kernel", load, fit, RECIPES)
