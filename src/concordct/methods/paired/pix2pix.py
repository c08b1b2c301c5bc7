"""Pix2Pix, the conditional GAN of the papers' tables.

Isola et al. 2017, arXiv:1611.07004: a U-Net of eight levels against a PatchGAN of 70 pixels that sees source and image
together; logarithmic loss + 100 L1; Adam 2e-4 with beta_1 = 0.5. STAN-CT, GANai and RadiomicGAN build on its game.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from concordct.methods.method import Method
from concordct.methods.network import Recipe, loader, to_unit
from concordct.methods.translation import JUDGES, UNET, build, fitted, phase, players, recipe
from concordct.nets.discriminators import Judge, PatchGAN, judge_loss, verdict_loss
from concordct.nets.translators import Translator
from concordct.training.game import seeded_by

METHOD = "pix2pix"


@dataclass(frozen=True)
class Config:
    """Both networks, and the weight of the L1 term."""

    generator: Translator
    judge: Judge
    l1: float = 100.0


RECIPES: dict[str, Recipe] = {
    name: recipe(name, Config(UNET[name], JUDGES[name]), phase(name)) for name in ("paper", "gpu", "small")
}


class Game(nn.Module):
    """Generator against one conditional judge."""

    players = players("judge")

    def __init__(self, system: nn.Module, config: Config) -> None:
        super().__init__()
        self.system, self.judge, self.l1 = system, PatchGAN(2, config.judge), config.l1

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int], player: str) -> dict[str, Tensor]:
        """Patches in HU to the losses of whoever moves."""
        a, b = to_unit(source), to_unit(target)
        with seeded_by(seeds):
            made = self.system(a)
        if player == "judge":
            return {"loss": judge_loss(self.judge(a, b), self.judge(a, made.detach()), "log")}
        fooled = verdict_loss(self.judge(a, made), True, "log")
        distance = functional.l1_loss(made, b)
        return {"loss": fooled + self.l1 * distance, "fooled": fooled, "l1": distance}


fit = fitted(METHOD, lambda system, recipe: Game(system, recipe.config))

ENTRY = Method("Pix2Pix, a conditional GAN", loader(METHOD, build), fit, RECIPES)
