"""GANai: Pix2Pix's generator against two judges in alternating phases with rules when to stop.

Liang et al. 2018, bioRxiv 460188. One PatchGAN sees pairs, the other images alone, of scans that are not paired here.
The judges play until made images seem real with less than 0.05 and real ones with more than 0.95; then the generator,
until both judges give it more than 0.95 and the judges of before more than 0.9. Of the images that a judge sees, 30 %
are by older generators. A phase that cannot reach its rule ends after `longest` moves (ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from concordct.methods.method import Method
from concordct.methods.network import Recipe, loader, to_unit
from concordct.methods.translation import JUDGES, UNET, beside_strangers, build, fitted, phase, players, recipe
from concordct.nets.discriminators import Judge, PatchGAN, judge_loss, verdict_loss
from concordct.nets.translators import Translator
from concordct.training.game import Copies, seeded_by

METHOD = "ganai"


@dataclass(frozen=True)
class Config:
    """Networks, weight of L1, and the rules of the phases.

    Attributes
    ----------
    made_below, real_above : verdicts that end the judges' phase.
    fooled_above, old_above : of both judges and of their older selves, which end the generator's.
    replay : share of images by older generators; older : how many of these are kept.
    longest : moves of a phase at most.
    """

    generator: Translator
    judge: Judge
    l1: float = 100.0
    made_below: float = 0.05
    real_above: float = 0.95
    fooled_above: float = 0.95
    old_above: float = 0.9
    replay: float = 0.3
    older: int = 3
    longest: int = 50


RECIPES: dict[str, Recipe] = {
    name: recipe(name, Config(UNET[name], JUDGES[name]), phase(name)) for name in ("paper", "gpu", "small")
}


class Judges(nn.Module):
    """One verdict on pairs, one on images alone."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.paired, self.alone = PatchGAN(2, judge), PatchGAN(1, judge)

    def forward(self, pair: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """[b, 2, y, x] and [b, 1, y, x] to logits."""
        return self.paired(pair), self.alone(image)


class Game(nn.Module):
    """Whose turn it is, who played before, and the losses. The generator begins (ours)."""

    players = players("judges")

    def __init__(self, system: nn.Module, config: Config) -> None:
        super().__init__()
        self.system, self.config = system, config
        self.judges = Judges(config.judge)
        self.before = Copies(self.judges, 1)
        self.older = Copies(system, config.older)
        self.judging: Tensor
        self.moves: Tensor
        self.register_buffer("judging", torch.zeros((), dtype=torch.bool))
        self.register_buffer("moves", torch.zeros((), dtype=torch.long))

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int], player: str) -> dict[str, Tensor]:
        """A pair and strangers, [b, 2, y, x] HU, to the losses of whoever has the turn; nothing for who has not."""
        if bool(self.judging) != (player == "judges"):
            return {}
        source, target = to_unit(source), to_unit(target)
        a, b, stranger = source[:, :1], target[:, :1], target[:, 1:]
        with seeded_by(seeds) as random:
            made, other = self.system(a), self.system(source[:, 1:])
            if player == "judges" and float(torch.rand((), generator=random)) < self.config.replay and self.older.held:
                place = -1 - int(torch.randint(int(self.older.held), (), generator=random))
                with torch.no_grad():
                    made, other = self.older(place, a), self.older(place, source[:, 1:])
        self.moves += 1
        if player == "judges":
            return self._judge(a, b, stranger, made.detach(), other.detach())
        pair = torch.cat([a, made], dim=1)
        paired, alone = self.judges(pair, other)
        fooled = 0.5 * (verdict_loss(paired, True, "log") + verdict_loss(alone, True, "log"))
        distance = functional.l1_loss(made, b)
        with torch.no_grad():
            now = min(belief(paired), belief(alone))
            past = min(belief(one) for one in self.before(-1, pair, other)) if self.before.held else 1.0
        if (now > self.config.fooled_above and past > self.config.old_above) or self.moves >= self.config.longest:
            self.older.keep()
            self.before.keep()
            self.judging.fill_(True)
            self.moves.zero_()
        return {"loss": fooled + self.config.l1 * distance, "fooled": fooled, "l1": distance}

    def _judge(self, a: Tensor, b: Tensor, stranger: Tensor, made: Tensor, other: Tensor) -> dict[str, Tensor]:
        real = self.judges(torch.cat([a, b], dim=1), stranger)
        fake = self.judges(torch.cat([a, made], dim=1), other)
        losses = [judge_loss(one, two, "log") for one, two in zip(real, fake, strict=True)]
        worst_real, worst_fake = min(belief(one) for one in real), max(belief(one) for one in fake)
        told = worst_real > self.config.real_above and worst_fake < self.config.made_below
        if told or self.moves >= self.config.longest:
            self.judging.fill_(False)
            self.moves.zero_()
        return {"loss": losses[0] + losses[1], "paired": losses[0], "alone": losses[1]}


def belief(logits: Tensor) -> float:
    """Mean probability of being real."""
    return float(logits.detach().sigmoid().mean())


fit = fitted(METHOD, lambda system, recipe: Game(system, recipe.config), batches=beside_strangers)

ENTRY = Method("GANai, a conditional GAN in alternating phases", loader(METHOD, build), fit, RECIPES)
