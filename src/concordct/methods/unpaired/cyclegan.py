"""CycleGAN: two domains without pairs.

Zhu et al. 2017, arXiv:1703.10593: two generators of nine residual blocks, least-squares PatchGANs of 70 pixels, cycle
10, identity 5, a replay of 50 images, 100 epochs at 2e-4 and 100 more while it falls to 0. Sources come from every
second training pair and targets from the others, so that no scan is seen in both kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from concordct.methods.method import Method
from concordct.methods.network import Recipe, loader, to_unit
from concordct.methods.translation import JUDGES, RESNET, build, fitted, make, phase, players, recipe, unpaired
from concordct.nets.discriminators import Judge, PatchGAN, judge_loss, verdict_loss
from concordct.nets.translators import Translator
from concordct.training.game import Replay, seeded_by

METHOD = "cyclegan"
#: Made images that are kept for the judges.
REPLAYED = 50


@dataclass(frozen=True)
class Config:
    """Networks (a generator for each direction), weights of the cycle and of the identity."""

    generator: Translator
    judge: Judge
    cycle: float = 10.0
    identity: float = 5.0


RECIPES: dict[str, Recipe] = {
    name: recipe(name, Config(RESNET[name], JUDGES[name]), phase(name, linear=True))
    for name in ("paper", "gpu", "small")
}


class Cycle(nn.Module):
    """Both directions and both judges; what is kept of it is `system`, source to target."""

    players = players("judges")

    def __init__(self, system: nn.Module, back: nn.Module, config: Any, patch: int) -> None:
        super().__init__()
        self.system = nn.ModuleDict({"there": system, "back": back})
        self.config = config
        self.judges = nn.ModuleDict({"source": PatchGAN(1, config.judge), "target": PatchGAN(1, config.judge)})
        self.replay = nn.ModuleDict({side: Replay(REPLAYED, (1, patch, patch)) for side in ("source", "target")})

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int], player: str) -> dict[str, Tensor]:
        """Strangers in HU to the losses of whoever moves."""
        a, b = to_unit(source), to_unit(target)
        if player == "judges":
            return self._judge(a, b, seeds)
        with seeded_by(seeds):
            made_b, made_a = self.system["there"](a), self.system["back"](b)
            again_a, again_b = self.system["back"](made_b), self.system["there"](made_a)
            same_a, same_b = self.system["back"](a), self.system["there"](b)
        fooled = verdict_loss(self.judges["target"](made_b), True, "squares")
        fooled = fooled + verdict_loss(self.judges["source"](made_a), True, "squares")
        cycle = functional.l1_loss(again_a, a) + functional.l1_loss(again_b, b)
        identity = functional.l1_loss(same_a, a) + functional.l1_loss(same_b, b)
        losses = {"fooled": fooled, "cycle": cycle, "identity": identity, **self.more(made_b, b)}
        total = fooled + self.config.cycle * cycle + self.config.identity * identity
        if "domain" in losses:
            total = total + self.config.domain * losses["domain"]
        return {"loss": total, **losses}

    def more(self, made: Tensor, target: Tensor) -> dict[str, Tensor]:
        """A further loss, "domain", of whoever builds on this game."""
        return {}

    def _judge(self, a: Tensor, b: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        with seeded_by(seeds) as random, torch.no_grad():
            made = {"target": self.system["there"](a), "source": self.system["back"](b)}
            shown = {side: self.replay[side].exchange(one, random) for side, one in made.items()}  # type: ignore[operator]
        real = {"source": a, "target": b}
        losses = {
            side: judge_loss(judge(real[side]), judge(shown[side]), "squares") for side, judge in self.judges.items()
        }
        return {"loss": losses["source"] + losses["target"], **losses}


def _game(system: nn.Module, recipe: Recipe) -> Cycle:
    return Cycle(system, make(recipe.config), recipe.config, recipe.patch)


fit = fitted(METHOD, _game, batches=unpaired)

ENTRY = Method("CycleGAN, two domains without pairs", loader(METHOD, build), fit, RECIPES)
