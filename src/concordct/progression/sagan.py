"""SAGAN (SC-GAN): a 3D U-Net with spectral norms and self-attention, a rival of CIResDiff's Table 2.

Lan et al. 2021, doi:10.1016/j.neuroimage.2020.117594: attention at encoder 5, decoder 5 and the output; logarithmic
loss + 200 L1 + 200 root mean square inside the mask + 20 feature matching; Adam 1e-3 along a cosine. At the output keys
and values are pooled, since every voxel cannot look at every other (ours).
"""

from __future__ import annotations

from functools import partial

from torch import nn

from concordct.nets.discriminators import Judge
from concordct.nets.unet_sagan import UNet3d
from concordct.progression.method import FollowupMethod
from concordct.progression.translation3d import Config, Losses, Recipe, fit, load
from concordct.training.engine import Phase

METHOD = "sagan"

LOSSES = Losses("log", 200.0, rmse=200.0, features=20.0)
RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        Config(
            {"widths": (32, 64, 128, 256, 256), "spectral": True, "attention": True}, Judge(64, 3, "INSTANCE"), LOSSES
        ),
        spacing_mm=1.0,
        patch=96,
        overlap=32,
        game=Phase(epochs=200, batch=4, learning_rate=1e-3, final_rate=0.0, warmup=0, clip=1e9, ema=0.0),
    ),
    "small": Recipe(
        Config(
            {
                "widths": (12, 24, 48),
                "normed": False,
                "spectral": True,
                "attention": True,
                "residual": True,
            },
            Judge(8, 2, "INSTANCE"),
            LOSSES,
        ),
        spacing_mm=3.0,
        patch=32,
        overlap=8,
        game=Phase(steps=800, batch=2, learning_rate=1e-3, final_rate=0.05, warmup=50, every=200),
    ),
}


def build(config: Config, patch: int) -> nn.Module:
    """The network of a configuration."""
    return UNet3d(**config.net)


ENTRY = FollowupMethod("SAGAN (SC-GAN)", partial(load, METHOD, build), partial(fit, METHOD, build), RECIPES)
