"""TransUNet with a head for images, a rival of CIResDiff's Table 2, slice by slice.

Chen et al. 2021, arXiv:2102.04306: a residual encoder, a ViT-B at its deepest scale, cascaded upsampling. It was made
to segment; head (one channel, the difference to the source) and loss (least-squares game + 100 L1, as ResViT has) are
ours.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from concordct.nets.discriminators import Judge
from concordct.nets.transformers2d import TransUNet
from concordct.progression.method import FollowupMethod
from concordct.progression.translation3d import Config, Losses, Recipe, fit, load
from concordct.training.engine import Phase

METHOD = "transunet"

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        Config(
            {"widths": (64, 128, 256, 512, 1024), "width": 768, "depth": 12, "heads": 12},
            Judge(64, 3, "INSTANCE"),
            Losses("squares", 100.0),
            flat=True,
        ),
        spacing_mm=1.0,
        patch=96,
        overlap=32,
        game=Phase(epochs=200, batch=4, learning_rate=2e-4, warmup=0, clip=1e9, ema=0.0),
    ),
    "small": Recipe(
        Config(
            {"widths": (16, 32, 64), "width": 64, "depth": 2, "heads": 4},
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
    return TransUNet(size=patch, **config.net)


ENTRY = FollowupMethod("TransUNet, slice by slice", partial(load, METHOD, build), partial(fit, METHOD, build), RECIPES)
