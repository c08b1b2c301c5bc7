"""Pix2Pix in three dimensions, a rival of CIResDiff's Table 2.

Isola et al. 2017, arXiv:1611.07004, with convolutions of 4^3: U-Net, conditional PatchGAN, logarithmic loss + 100 L1,
Adam 2e-4 with beta_1 = 0.5. Five levels, since a patch of 96 has no more (ours).
"""

from __future__ import annotations

from torch import nn

from concordct.nets.discriminators import Judge
from concordct.nets.unet_sagan import UNet3d
from concordct.progression.translation3d import Config, Losses, Recipe, entry, recipes
from concordct.training.engine import Phase

METHOD = "pix2pix3d"

RECIPES: dict[str, Recipe] = recipes(
    Config({"widths": (64, 128, 256, 512, 512)}, Judge(64, 3, "INSTANCE"), Losses("log", 100.0)),
    Phase(epochs=200, batch=1, learning_rate=2e-4, warmup=0, clip=1e9, ema=0.0),
    Config(
        {"widths": (32, 64, 128, 256), "normed": False, "residual": True},
        Judge(32, 3, "INSTANCE"),
        Losses("log", 100.0),
    ),
    Config({"widths": (12, 24, 48), "normed": False, "residual": True}, Judge(8, 2, "INSTANCE"), Losses("log", 100.0)),
)


def build(config: Config, patch: int) -> nn.Module:
    """The network of a configuration."""
    return UNet3d(**config.net)


ENTRY = entry("Pix2Pix in 3D", METHOD, build, RECIPES)
