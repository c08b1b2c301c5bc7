"""CVH-CT: vendors without pairs; CycleGAN with self-attention in its generators and a loss on textures.

Selim et al. 2021, arXiv:2110.09693. The domain loss compares VGG's features of what was made with those of the target's
domain; unpaired images agree in how channels go together, so Gram matrices over the batch are compared (ours). Weights
of VGG come from a file that the user names; without it they are random, and the row says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from concordct.methods.method import Method
from concordct.methods.network import Recipe, TrainingData, loader
from concordct.methods.translation import JUDGES, PATCH, RESNET, build, make, phase, play, recipe, unpaired
from concordct.methods.unpaired.cyclegan import Cycle
from concordct.nets.discriminators import Judge
from concordct.nets.translators import Translator
from concordct.nets.vgg import WIDTHS, Vgg, gram
from concordct.training.bundle import Bundle
from concordct.training.engine import Run
from concordct.training.weights import read_tensors

METHOD = "cvh-ct"


@dataclass(frozen=True)
class Config:
    """CycleGAN's, widths of VGG's two blocks, weight of the domain loss, edge of a tile at work (attention must see as
    much as in training)."""

    generator: Translator
    judge: Judge
    tile: int
    vgg: tuple[int, int] = WIDTHS
    cycle: float = 10.0
    identity: float = 5.0
    domain: float = 1.0


def _attentive(name: str) -> Config:
    # Attention over more places than these costs more than the rest of the network.
    halvings = {"paper": 2, "gpu": 2, "small": 0}[name]
    generator = replace(RESNET[name], attention=True, halvings=halvings)
    return Config(generator, JUDGES[name], PATCH[name], (16, 32) if name == "small" else WIDTHS)


RECIPES: dict[str, Recipe] = {
    name: recipe(name, _attentive(name), phase(name, linear=True)) for name in ("paper", "gpu", "small")
}


class Game(Cycle):
    """CycleGAN's game with the domain loss."""

    def __init__(self, system: nn.Module, back: nn.Module, config: Config, vgg: Vgg, patch: int) -> None:
        super().__init__(system, back, config, patch)
        self.vgg = vgg

    def more(self, made: Tensor, target: Tensor) -> dict[str, Tensor]:
        """How far textures of the made images lie from the target domain's."""
        pairs = zip(self.vgg(made), self.vgg(target), strict=True)
        distances = [functional.l1_loss(gram(one), gram(other).detach()) for one, other in pairs]
        return {"domain": distances[0] + distances[1]}


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

    def game(system: nn.Module) -> Game:
        vgg = Vgg(config.vgg)
        if imagenet is not None:
            read_tensors(imagenet, "VGG", vgg.load_torchvision)
        return Game(system, make(config), config, vgg, recipe.patch)

    found = play(METHOD, data, recipe, run, lambda: make(config), game, unpaired(data, recipe))
    info = {**found.metadata["info"], "vgg": "published weights" if imagenet else "random weights"}
    return Bundle(found.tensors, {**found.metadata, "info": info})


ENTRY = Method(
    "CVH-CT, CycleGAN with self-attention and a loss on textures",
    loader(METHOD, build),
    fit,
    RECIPES,
    pretrained="VGG-16 or VGG-19, ImageNet, safetensors",
)
