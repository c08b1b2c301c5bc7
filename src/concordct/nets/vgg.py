"""The first two blocks of VGG, frozen: features of natural images (Simonyan & Zisserman 2015, arXiv:1409.1556).

Weights come from a file that the user names. Without one they are random, which still tells textures apart
(Ustyuzhaninov et al. 2016, arXiv:1606.00021) but is not what the papers used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Channels of the two blocks as published.
WIDTHS = (64, 128)
#: torchvision's names of their convolutions, the same for VGG-16 and VGG-19.
_LAYERS = ("features.0", "features.2", "features.5", "features.7")
#: Mean and deviation of ImageNet's grey, to which [0, 1] is brought.
GREY_MEAN, GREY_SPREAD = 0.449, 0.226


class Vgg(nn.Module):
    """Two blocks of two convolutions; the second sees half the size."""

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        first, second = widths
        sizes = ((1, first), (first, first), (first, second), (second, second))
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in sizes)
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[b, 1, y, x] in [-1, 1] to the features of both blocks, at the full and half the size."""
        x = ((image + 1) / 2 - GREY_MEAN) / GREY_SPREAD
        first = functional.relu(self.layers[1](functional.relu(self.layers[0](x))))
        second = functional.relu(self.layers[3](functional.relu(self.layers[2](functional.max_pool2d(first, 2)))))
        return [first, second]

    def load_torchvision(self, tensors: Mapping[str, Tensor]) -> None:
        """Take torchvision's weights; the first layer's three colours are summed, since grey is all three.

        Raises
        ------
        ValueError : a tensor that is missing or of another shape.
        """
        for name, layer in zip(_LAYERS, self.layers, strict=True):
            for part in ("weight", "bias"):
                own, given = layer.get_parameter(part), tensors.get(f"{name}.{part}")
                if given is not None and given.ndim == 4 and own.shape[1] == 1:
                    given = given.sum(dim=1, keepdim=True)
                if given is None or given.shape != own.shape:
                    what = "none" if given is None else f"shape {tuple(given.shape)}"
                    raise ValueError(f"expected VGG's {name}.{part} of shape {tuple(own.shape)}, found {what}")
                with torch.no_grad():
                    own.copy_(given)


def gram(features: Tensor) -> Tensor:
    """How channels go together over the whole batch: [b, c, y, x] to [c, c] (Gatys et al. 2016)."""
    flat = features.transpose(0, 1).flatten(1)
    return flat @ flat.T / flat.shape[1]
