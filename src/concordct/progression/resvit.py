"""ResViT: residual convolutions and one shared transformer, a rival of CIResDiff's Table 2, slice by slice.

Dalmaz et al. 2022, doi:10.1109/TMI.2022.3167808: stem, two halvings, nine aggregated blocks of 256 channels, a ViT-B/16
shared by blocks 1 and 6, least-squares game + 100 L1. Its two-stage training, first without the transformer, is left
out, and the source is added to the output (both ours).
"""

from __future__ import annotations

from functools import partial

from torch import nn

from concordct.nets.discriminators import Judge
from concordct.nets.transformers2d import ResViT
from concordct.progression.method import FollowupMethod
from concordct.progression.translation3d import Config, Losses, Recipe, fit, load
from concordct.training.engine import Phase

METHOD = "resvit"

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        Config(
            {"width": 64, "blocks": 9, "attend": (0, 5), "words": 768, "depth": 12, "heads": 12},
            Judge(64, 3, "INSTANCE"),
            Losses("squares", 100.0),
            flat=True,
        ),
        spacing_mm=1.0,
        patch=96,
        overlap=32,
        game=Phase(epochs=100, batch=4, learning_rate=2e-4, warmup=0, clip=1e9, ema=0.0, falls="linear", hold=0.5),
    ),
    "small": Recipe(
        Config(
            {"width": 8, "blocks": 4, "attend": (0, 2), "words": 64, "depth": 2, "heads": 4},
            Judge(8, 2, "INSTANCE"),
            Losses("squares", 100.0),
            flat=True,
        ),
        spacing_mm=3.0,
        patch=32,
        overlap=8,
        game=Phase(steps=800, batch=2, learning_rate=1e-3, final_rate=0.05, warmup=50, every=200),
    ),
}


def build(config: Config, patch: int) -> nn.Module:
    """The network of a configuration."""
    return ResViT(size=patch, **config.net)


ENTRY = FollowupMethod("ResViT, slice by slice", partial(load, METHOD, build), partial(fit, METHOD, build), RECIPES)
