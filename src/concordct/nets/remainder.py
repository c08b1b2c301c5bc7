"""The flagship's network: a small U-Net on folded pixels, told by a vector which kernel pair it serves.

Every block is modulated by what calibration knows (curves of transfer, coherence and noise, noise level, pixel size,
slice thickness) and by the place in the process. It knows no HU and no file; its head starts at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from concordct.nets.blocks import ChannelNorm, ResidualBlock, convolution, zeroed

#: The place in the process, 0 to 1, is given to the network as these harmonics.
HARMONICS = 4


@dataclass(frozen=True)
class RemainderConfig:
    """Size of the network.

    Attributes
    ----------
    maps : channels beside the state. condition : length of the vector.
    widths : channels at each scale. blocks : residual blocks at each scale, down and up.
    fold : blocks of fold x fold pixels become channels, without loss.
    """

    maps: int
    condition: int
    widths: tuple[int, ...] = (32, 64, 96)
    blocks: int = 1
    fold: int = 2
    embedding: int = 96


class RemainderUNet(nn.Module):
    """State, maps, condition and place in the process to a velocity."""

    def __init__(self, config: RemainderConfig) -> None:
        super().__init__()
        widths, size = config.widths, config.embedding
        self.config = config
        self.condition = nn.Sequential(
            nn.Linear(config.condition + 2 * HARMONICS, size), nn.SiLU(), nn.Linear(size, size), nn.SiLU()
        )
        self.stem = convolution((1 + config.maps) * config.fold**2, widths[0])
        self.down = nn.ModuleList(_stage(width, config.blocks, size) for width in widths)
        self.between = nn.ModuleList(convolution(a, b, 1) for a, b in pairwise(widths))
        self.join = nn.ModuleList(convolution(a + b, a, 1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_stage(width, config.blocks, size) for width in widths[:-1])
        self.head = nn.Sequential(ChannelNorm(widths[0]), nn.SiLU(), zeroed(convolution(widths[0], config.fold**2)))

    @property
    def divisor(self) -> int:
        """Images must have edges that this divides."""
        return int(self.config.fold * 2 ** (len(self.config.widths) - 1))

    def forward(self, x: Tensor, maps: Tensor, condition: Tensor, shift: Tensor) -> Tensor:
        """[b, 1, y, x], [b, maps, y, x], [b, condition] and [b] to [b, 1, y, x]."""
        order = torch.arange(1, HARMONICS + 1, device=x.device)
        turned = shift[:, None] * order * (torch.pi / 2)
        embedding = self.condition(torch.cat([condition, turned.sin(), turned.cos()], dim=1))
        y = self.stem(functional.pixel_unshuffle(torch.cat([x, maps], dim=1), self.config.fold))
        skips: list[Tensor] = []
        for index, stage in enumerate(self.down):
            if index:
                y = self.between[index - 1](functional.avg_pool2d(y, 2))
            y = _through(stage, y, embedding)
            skips.append(y)
        for index in reversed(range(len(self.up))):
            y = functional.interpolate(y, scale_factor=2.0, mode="nearest")
            y = _through(self.up[index], self.join[index](torch.cat([skips[index], y], dim=1)), embedding)
        return functional.pixel_shuffle(self.head(y), self.config.fold)


def _stage(width: int, blocks: int, embedding: int) -> nn.ModuleList:
    return nn.ModuleList(ResidualBlock(width, width, embedding=embedding) for _ in range(blocks))


def _through(stage: Sequence[nn.Module] | nn.Module, y: Tensor, embedding: Tensor) -> Tensor:
    assert isinstance(stage, nn.ModuleList)
    for block in stage:
        y = block(y, embedding)
    return y
