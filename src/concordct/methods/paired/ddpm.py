"""Conditional DDPM in image space: the papers' rival without a latent.

Ho et al. 2020, arXiv:2006.11239; the source is concatenated to the noisy target as in Saharia et al. 2022
(arXiv:2104.07636). Neither DiffusionCT nor LTDiff++ describes the network of its DDPM row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from concordct.methods.method import Method
from concordct.methods.network import (
    Draw,
    Recipe,
    TrainingData,
    loader,
    sample_picture,
    seeded,
    to_bundle,
    to_unit,
)
from concordct.methods.paired.conditional import (
    SAMPLING,
    Chain,
    ConditionalDiffusion,
    Sampling,
    detail_window,
    residual_spread,
)
from concordct.nets.denoisers import ScalesUNet
from concordct.training.bundle import Bundle
from concordct.training.data import Patches
from concordct.training.engine import Phase, Run, train_phase

METHOD = "ddpm"

#: Batches that the spread of target - source is taken over.
STATISTICS_BATCHES = 16


@dataclass(frozen=True)
class Config:
    """The network and the chain; `fold`: blocks of fold x fold pixels become the channels of one."""

    widths: tuple[int, ...]
    chain: Chain
    blocks: int = 1
    fold: int = 1


RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        config=Config(widths=(64, 128, 256, 512), chain=Chain(1000, "linear", "noise"), blocks=2),
        patch=256,
        phases=(("diffusion", Phase(epochs=400, batch=16)),),
        sampling=Sampling(steps=1000, sampler="ddpm"),
    ),
    "small": Recipe(
        config=Config(widths=(64, 96, 128), chain=Chain(200, "cosine", "residual"), fold=4),
        patch=64,
        phases=(("diffusion", Phase(steps=2000, batch=8, learning_rate=1e-3, final_rate=0.05, every=250)),),
        sampling=Sampling(steps=6),
    ),
    "common": Recipe(
        config=Config(widths=(64, 96, 128), chain=Chain(200, "cosine", "residual"), fold=4),
        patch=64,
        phases=(("diffusion", Phase(steps=1300, batch=8, learning_rate=1e-3, final_rate=0.05, every=250)),),
        sampling=Sampling(steps=6),
    ),
    "gpu": Recipe(
        config=Config(widths=(128, 192, 256), chain=Chain(1000, "cosine", "residual"), blocks=2, fold=2),
        patch=128,
        phases=(("diffusion", Phase(steps=20000, batch=32, learning_rate=5e-4, final_rate=0.05)),),
        sampling=Sampling(steps=8),
    ),
}


class ImageDDPM(nn.Module):
    """The diffusion of the target's pixels given the source's."""

    tile = None

    def __init__(self, config: Config) -> None:
        super().__init__()
        detail = detail_window(1) if config.chain.predicts == "residual" else 0
        net = ScalesUNet((1,), config.widths, blocks=config.blocks, fold=config.fold, shown=2 if detail else 1)
        self.diffusion = ConditionalDiffusion(net, config.chain, [1], detail=detail)
        self.divisor, self.chain = config.fold * 2 ** (len(config.widths) - 1), config.chain

    def translate(self, image: Tensor, sampling: Sampling, draw: Draw, *, mean: bool) -> Tensor:
        """A' drawn given A."""
        found = self.diffusion.mean([image]) if mean else self.diffusion.sample([image], sampling, draw)
        return found[0]


class _Diffusion(nn.Module):
    def __init__(self, system: ImageDDPM) -> None:
        super().__init__()
        self.system = system

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Patches in HU to losses."""
        return self.system.diffusion.loss([to_unit(source)], [to_unit(target)], seeds)[0]


def fit(data: TrainingData, recipe: Recipe, run: Run) -> Bundle:
    """Train the diffusion from where it stands."""
    system = seeded(lambda: ImageDDPM(recipe.config), recipe.seed)
    assert isinstance(system, ImageDDPM)
    pairs = Patches(data.pairs, recipe.patch, recipe.seed + 1)
    if recipe.config.chain.predicts == "residual":
        states = []
        for step in range(STATISTICS_BATCHES):
            batch = pairs.batch(step, range(8))
            a, b = (to_unit(torch.from_numpy(one)) for one in (batch.source, batch.target))
            states.append(([a], [b]))
        system.diffusion.set_spread(residual_spread(states))
    phase = recipe.phase("diffusion")
    picture = sample_picture(system, pairs, recipe.sampling)
    train_phase("diffusion", _Diffusion(system), pairs, phase, run, picture=picture)
    return to_bundle(METHOD, system, recipe, data.info)


def build(config: Mapping[str, Any]) -> ImageDDPM:
    """The system of a stored configuration."""
    fields = {**config, "chain": Chain(**config["chain"]), "widths": tuple(config["widths"])}
    return ImageDDPM(Config(**fields))


load = loader(METHOD, build)

ENTRY = Method("DDPM in image space", load, fit, RECIPES, sampling=SAMPLING)
