"""STAN-CT: a conditional GAN on patches whose losses compare features, not only pixels.

Selim et al. 2020, AMIA, PMC8075475. The generator has a loss in latent space: its own encoder should see in what it
made what it sees in the target. The discriminator has one in its feature space: what it sees in real and made pairs
should lie apart. Their exact form is ours: mean absolute differences, the second up to a margin of 1. Patches in
training and whole slices at work, as in its pipeline.
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
from concordct.nets.translators import Generator, Translator
from concordct.training.game import seeded_by

METHOD = "stan-ct"
#: Features of real and made pairs need lie no further apart.
MARGIN = 1.0


@dataclass(frozen=True)
class Config:
    """Networks and weights: of the latent loss, of L1, of the discriminator's feature loss."""

    generator: Translator
    judge: Judge
    latent: float = 1.0
    l1: float = 100.0
    feature: float = 1.0


RECIPES: dict[str, Recipe] = {
    name: recipe(name, Config(UNET[name], JUDGES[name]), phase(name)) for name in ("paper", "gpu", "small")
}


class Game(nn.Module):
    """Generator against one conditional judge, both with a loss on features."""

    players = players("judge")

    def __init__(self, system: nn.Module, config: Config) -> None:
        super().__init__()
        self.system, self.config, self.judge = system, config, PatchGAN(2, config.judge)

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int], player: str) -> dict[str, Tensor]:
        """Patches in HU to the losses of whoever moves."""
        a, b = to_unit(source), to_unit(target)
        generator: Generator = self.system.generator  # type: ignore[assignment]
        with seeded_by(seeds):
            made = self.system(a)
            if player == "generator":
                latent = functional.l1_loss(generator.encode(made), generator.encode(b).detach())
        if player == "judge":
            real, fake = self.judge.features(a, b), self.judge.features(a, made.detach())
            apart = feature_loss(real[:-1], fake[:-1])
            told = judge_loss(real[-1], fake[-1], "log")
            return {"loss": told + self.config.feature * apart, "told": told, "apart": apart}
        fooled = verdict_loss(self.judge(a, made), True, "log")
        distance = functional.l1_loss(made, b)
        total = fooled + self.config.latent * latent + self.config.l1 * distance
        return {"loss": total, "fooled": fooled, "latent": latent, "l1": distance}


def feature_loss(real: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """How much nearer than the margin the features of real and made pairs lie, mean over layers."""
    near = [(MARGIN - (one - other).abs().mean()).clamp_min(0) for one, other in zip(real, made, strict=True)]
    return sum(near[1:], near[0]) / len(near)


fit = fitted(METHOD, lambda system, recipe: Game(system, recipe.config))

ENTRY = Method("STAN-CT, a conditional GAN with losses on features", loader(METHOD, build), fit, RECIPES)
