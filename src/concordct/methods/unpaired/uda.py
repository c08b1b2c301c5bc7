"""`uda`: pairs where there are some, strangers for the rest, one standard domain for every source.

Ours, after the abstract of UDA-CT (Selim et al., IEEE BIBM 2022): its networks and weights could not be found in
public, so this row is the idea and not that system. One generator: on pairs a conditional GAN with L1; on sources
without a partner it has to fool a judge that has seen the standard domain alone, and to leave what is standard as it
is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from concordct.methods.method import Method
from concordct.methods.network import Recipe, loader, to_unit
from concordct.methods.translation import JUDGES, RESNET, beside_strangers, build, fitted, phase, players, recipe
from concordct.nets.discriminators import Judge, PatchGAN, judge_loss, verdict_loss
from concordct.nets.translators import Translator
from concordct.training.game import seeded_by

METHOD = "uda"


@dataclass(frozen=True)
class Config:
    """Networks and weights: L1 on pairs, the game on strangers, the identity on the standard domain."""

    generator: Translator
    judge: Judge
    l1: float = 100.0
    unpaired: float = 1.0
    identity: float = 5.0


RECIPES: dict[str, Recipe] = {
    name: recipe(name, Config(RESNET[name], JUDGES[name]), phase(name)) for name in ("paper", "gpu", "small")
}


class Game(nn.Module):
    """One generator, a judge of pairs and a judge of the standard domain."""

    players = players("judges")

    def __init__(self, system: nn.Module, config: Config) -> None:
        super().__init__()
        self.system, self.config = system, config
        self.judges = nn.ModuleDict({"paired": PatchGAN(2, config.judge), "standard": PatchGAN(1, config.judge)})

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int], player: str) -> dict[str, Tensor]:
        """A pair and strangers, [b, 2, y, x] HU, to the losses of whoever moves."""
        source, target = to_unit(source), to_unit(target)
        a, b, standard = source[:, :1], target[:, :1], target[:, 1:]
        with seeded_by(seeds):
            made, other = self.system(torch.cat([a, source[:, 1:]])).chunk(2)
        if player == "judges":
            made, other = made.detach(), other.detach()
            paired = judge_loss(self.judges["paired"](a, b), self.judges["paired"](a, made), "squares")
            alone = judge_loss(self.judges["standard"](standard), self.judges["standard"](other), "squares")
            return {"loss": paired + alone, "paired": paired, "standard": alone}
        distance = functional.l1_loss(made, b)
        same = functional.l1_loss(self.system(standard), standard)
        fooled = verdict_loss(self.judges["paired"](a, made), True, "squares")
        alone = verdict_loss(self.judges["standard"](other), True, "squares")
        given = self.config
        total = fooled + given.l1 * distance + given.unpaired * alone + given.identity * same
        return {"loss": total, "fooled": fooled, "l1": distance, "standard": alone, "identity": same}


fit = fitted(METHOD, lambda system, recipe: Game(system, recipe.config), batches=beside_strangers)

ENTRY = Method(
    "uda, pairs and strangers into one standard domain (ours, after UDA-CT's abstract)",
    loader(METHOD, build),
    fit,
    RECIPES,
)
