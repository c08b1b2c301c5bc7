"""SAGAN (SC-GAN): a 3D U-Net with spectral norms and self-attention, a rival of CIResDiff's Table 2.

Lan et al. 2021, doi:10.1016/j.neuroimage.2020.117594: attention at encoder 5, decoder 5 and the output; logarithmic
loss + 200 L1 + 200 root mean square inside the mask + 20 feature matching; Adam 1e-3 along a cosine. At the output keys
and values are pooled, since every voxel cannot look at every other (ours).
"""

from __future__ import annotations

from torch import nn

from concordct.nets.discriminators import Judge
from concordct.nets.unet_sagan import UNet3d
from concordct.progression.translation3d import Config, Losses, Recipe, entry, recipes
from concordct.training.engine import Phase

METHOD = "sagan"

LOSSES = Losses("log", 200.0, rmse=200.0, features=20.0)
RECIPES: dict[str, Recipe] = recipes(
    Config({"widths": (32, 64, 128, 256, 256), "spectral": True, "attention": True}, Judge(64, 3, "INSTANCE"), LOSSES),
    Phase(epochs=200, batch=4, learning_rate=1e-3, final_rate=0.0, warmup=0, clip=1e9, ema=0.0),
    Config(
        {"widths": (32, 64, 128, 256), "normed": False, "spectral": True, "attention": True, "residual": True},
        Judge(32, 3, "INSTANCE"),
        LOSSES,
    ),
    Config(
        {"widths": (12, 24, 48), "normed": False, "spectral": True, "attention": True, "residual": True},
        Judge(8, 2, "INSTANCE"),
        LOSSES,
    ),
)


def build(config: Config, patch: int) -> nn.Module:
    """The network of a configuration."""
    return UNet3d(**config.net)


ENTRY = entry("SAGAN (SC-GAN)", METHOD, build, RECIPES)
