"""Regression from source to target: the papers' "encoder-decoder" row and LTDiff++'s "UNet++" row.

One network with or without UNet++'s nested skips, trained by mean square error on pairs; what it cannot know it
averages away. Zhou et al. 2018, arXiv:1807.10165.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

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
from concordct.methods.paired.conditional import Sampling
from concordct.nets.unetpp import UNetPlusPlus, shallow_first
from concordct.training.bundle import Bundle
from concordct.training.data import Patches
from concordct.training.engine import Phase, Run, train_phase

METHOD = "encoder-decoder"


@dataclass(frozen=True)
class Config:
    """The network: `dense` False leaves out every skip; `fold` x `fold` pixels become channels; `identity` starts as
    the source itself (needs `dense`)."""

    widths: tuple[int, ...]
    dense: bool
    fold: int = 1
    residual: bool = True
    identity: bool = False


def _recipes(dense: bool) -> dict[str, Recipe]:
    return {
        "paper": Recipe(
            config=Config(widths=(32, 64, 128, 256, 512), dense=dense),
            patch=256,
            phases=(("regression", Phase(epochs=400, batch=16)),),
            sampling=Sampling(steps=1),
        ),
        "small": Recipe(
            config=Config(widths=(48, 64, 96), dense=dense, fold=4, identity=dense),
            patch=64,
            phases=(("regression", Phase(steps=2000, batch=8, learning_rate=1e-3, final_rate=0.05, every=250)),),
            sampling=Sampling(steps=1),
        ),
        "common": Recipe(
            config=Config(widths=(48, 64, 96), dense=dense, fold=4, identity=dense),
            patch=64,
            phases=(("regression", Phase(steps=1650, batch=8, learning_rate=1e-3, final_rate=0.05, every=250)),),
            sampling=Sampling(steps=1),
        ),
        "gpu": Recipe(
            config=Config(widths=(64, 96, 128, 192), dense=dense, fold=2, identity=dense),
            patch=128,
            phases=(("regression", Phase(steps=16000, batch=32, learning_rate=5e-4, final_rate=0.05)),),
            sampling=Sampling(steps=1),
        ),
    }


#: Without skips: the "encoder-decoder" of the tables; with them: "UNet++".
RECIPES: dict[str, Recipe] = _recipes(dense=False)
UNETPP_RECIPES: dict[str, Recipe] = _recipes(dense=True)


class Regressor(nn.Module):
    """UNet++ with or without its skips, from source to target."""

    tile = None

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.fold = config.fold
        self.net = UNetPlusPlus(
            config.fold**2,
            config.fold**2,
            config.widths,
            residual=config.residual,
            dense=config.dense,
            identity=config.identity,
        )
        self.divisor, self.deepest = config.fold * 2**self.net.depth, self.net.depth

    def outputs(self, image: Tensor, depth: int | None = None) -> list[Tensor]:
        """[b, 1, y, x] to the output of every depth."""
        return [
            functional.pixel_shuffle(one, self.fold)
            for one in self.net(functional.pixel_unshuffle(image, self.fold), depth=depth)
        ]

    def translate(self, image: Tensor, sampling: Sampling, draw: Draw, *, mean: bool) -> Tensor:
        """The estimate of B; nothing is drawn."""
        return self.outputs(image, sampling.depth or None)[-1]


class _Regression(nn.Module):
    def __init__(self, system: Regressor) -> None:
        super().__init__()
        self.system = system

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Patches in HU to the deeply supervised mean square."""
        wanted = to_unit(target)
        squares = [(one - wanted).square().mean() for one in self.system.outputs(to_unit(source))]
        weights = shallow_first(len(squares))
        total = wanted.new_zeros(())
        for weight, square in zip(weights, squares, strict=True):
            total = total + weight * square
        return {"loss": total, "square": squares[-1]}


def fit(data: TrainingData, recipe: Recipe, run: Run) -> Bundle:
    """Train the regression from where it stands."""
    system = seeded(lambda: Regressor(recipe.config), recipe.seed)
    assert isinstance(system, Regressor)
    pairs = Patches(data.pairs, recipe.patch, recipe.seed)
    phase = recipe.phase("regression")
    picture = sample_picture(system, pairs, recipe.sampling)
    train_phase("regression", _Regression(system), pairs, phase, run, picture=picture)
    return to_bundle(METHOD, system, recipe, data.info)


def build(config: Mapping[str, Any]) -> Regressor:
    """The system of a stored configuration."""
    return Regressor(replace(Config(**config), widths=tuple(config["widths"])))


load = loader(METHOD, build)

ENTRY = Method("Encoder-decoder, regression from source to target", load, fit, RECIPES, sampling=frozenset({"depth"}))
