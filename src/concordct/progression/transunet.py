"""TransUNet with a head for images, a rival of CIResDiff's Table 2, slice by slice.

Chen et al. 2021, arXiv:2102.04306: a residual encoder, a ViT-B at its deepest scale, cascaded upsampling. It was made
to segment; head (one channel, the difference to the source) and loss (least-squares game + 100 L1, as ResViT has) are
ours.
"""

from __future__ import annotations

from torch import nn

from concordct.nets.discriminators import Judge
from concordct.nets.transformers2d import TransUNet
from concordct.progression.translation3d import Config, Losses, Recipe, entry, recipes
from concordct.training.engine import Phase

METHOD = "transunet"

LOSSES = Losses("squares", 100.0)
RECIPES: dict[str, Recipe] = recipes(
    Config(
        {"widths": (64, 128, 256, 512, 1024), "width": 768, "depth": 12, "heads": 12},
        Judge(64, 3, "INSTANCE"),
        LOSSES,
        flat=True,
    ),
    Phase(epochs=200, batch=4, learning_rate=2e-4, warmup=0, clip=1e9, ema=0.0),
    Config(
        {"widths": (32, 64, 128, 256), "width": 256, "depth": 6, "heads": 8},
        Judge(32, 3, "INSTANCE"),
        LOSSES,
        flat=True,
    ),
    Config({"widths": (16, 32, 64), "width": 64, "depth": 2, "heads": 4}, Judge(8, 2, "INSTANCE"), LOSSES, flat=True),
)


def build(config: Config, patch: int) -> nn.Module:
    """The network of a configuration."""
    return TransUNet(size=patch, **config.net)


ENTRY = entry("TransUNet, slice by slice", METHOD, build, RECIPES)
