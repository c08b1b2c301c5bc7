"""ResViT: residual convolutions and one shared transformer, a rival of CIResDiff's Table 2, slice by slice.

Dalmaz et al. 2022, doi:10.1109/TMI.2022.3167808: stem, two halvings, nine aggregated blocks of 256 channels, a ViT-B/16
shared by blocks 1 and 6, least-squares game + 100 L1. Its two-stage training, first without the transformer, is left
out, and the source is added to the output (both ours).
"""

from __future__ import annotations

from torch import nn

from concordct.nets.discriminators import Judge
from concordct.nets.transformers2d import ResViT
from concordct.progression.translation3d import Config, Losses, Recipe, entry, recipes
from concordct.training.engine import Phase

METHOD = "resvit"

LOSSES = Losses("squares", 100.0)
RECIPES: dict[str, Recipe] = recipes(
    Config(
        {"width": 64, "blocks": 9, "attend": (0, 5), "words": 768, "depth": 12, "heads": 12},
        Judge(64, 3, "INSTANCE"),
        LOSSES,
        flat=True,
    ),
    Phase(epochs=100, batch=4, learning_rate=2e-4, warmup=0, clip=1e9, ema=0.0, falls="linear", hold=0.5),
    Config(
        {"width": 32, "blocks": 9, "attend": (0, 5), "words": 256, "depth": 6, "heads": 8},
        Judge(32, 3, "INSTANCE"),
        LOSSES,
        flat=True,
    ),
    Config(
        {"width": 8, "blocks": 4, "attend": (0, 2), "words": 64, "depth": 2, "heads": 4},
        Judge(8, 2, "INSTANCE"),
        LOSSES,
        flat=True,
    ),
)


def build(config: Config, patch: int) -> nn.Module:
    """The network of a configuration."""
    return ResViT(size=patch, **config.net)


ENTRY = entry("ResViT, slice by slice", METHOD, build, RECIPES)
