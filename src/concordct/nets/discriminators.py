"""PatchGAN (Isola et al. 2017, arXiv:1611.07004; MONAI's) and the losses of the game, least squares or logarithmic.

Three layers see 70 x 70 pixels. Discriminators are trained on patches and thrown away, so the statistics of their norms
do no harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Kind = Literal["log", "squares"]


@dataclass(frozen=True)
class Judge:
    """A PatchGAN's size.

    Attributes
    ----------
    width : channels of the first layer. layers : halvings; 3 see 70 pixels, 2 see 34, 1 sees 16.
    norm : of its channels, over the batch or the image.
    """

    width: int
    layers: int
    norm: Literal["BATCH", "INSTANCE"] = "BATCH"


class PatchGAN(nn.Module):
    """One verdict for each patch of an image.

    Parameters
    ----------
    inputs : channels; a conditional one sees source and image together.
    """

    def __init__(self, inputs: int, given: Judge, *, dims: int = 2) -> None:
        super().__init__()
        from monai.networks.nets import PatchDiscriminator

        self.net: Any = PatchDiscriminator(dims, given.width, inputs, num_layers_d=given.layers, norm=given.norm)

    def features(self, *images: Tensor) -> list[Tensor]:
        """The states of every layer, the verdict last."""
        return self.net(torch.cat(images, dim=1))

    def forward(self, *images: Tensor) -> Tensor:
        """Images [b, c, ...] to verdicts as logits [b, 1, ...]."""
        return self.features(*images)[-1]


def verdict_loss(logits: Tensor, real: bool, kind: Kind) -> Tensor:
    """How far verdicts are from "real" or "made": cross entropy of the logits, or their squared distance to 1 or 0."""
    wanted = torch.full_like(logits, float(real))
    if kind == "log":
        return functional.binary_cross_entropy_with_logits(logits, wanted)
    return functional.mse_loss(logits, wanted)


def judge_loss(real: Tensor, made: Tensor, kind: Kind) -> Tensor:
    """A discriminator's loss: half of each side."""
    return 0.5 * (verdict_loss(real, True, kind) + verdict_loss(made, False, kind))
