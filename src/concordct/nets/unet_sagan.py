"""U-Nets of three dimensions for translation: Pix2Pix's, and SAGAN's with spectral norms and self-attention.

Isola et al. 2017, arXiv:1611.07004, with every convolution in 3D; Lan et al. 2021 (SC-GAN),
doi:10.1016/j.neuroimage.2020.117594: attention after the fifth encoder, before the fifth decoder and before the output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from concordct.nets.blocks import ChannelNorm
from concordct.nets.translators import LEAK, SelfAttention, published_start

#: Size of the features before the output where there are no norms inside: each voxel's are brought to it, so that
#: patches agree, and a step of Adam moves the output by some HU.
LAST_GAIN = 0.1


class UNet3d(nn.Module):
    """Convolutions of 4^3 with stride 2 and back, joined level by level.

    Parameters
    ----------
    widths : channels of each level, the finest first.
    normed : instance norms inside; spectral : every weight divided by its largest singular value.
    attention : self-attention in the deepest level on the way in and out, and before the output.
    residual : the source is added to the output, which starts at nothing (ours); else the output ends in tanh.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        normed: bool = True,
        spectral: bool = False,
        attention: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.residual, self.divisor = residual, 2 ** len(widths)
        depth = len(widths)

        def layer(kind: type[nn.Module], inputs: int, outputs: int) -> nn.Module:
            made: nn.Module = kind(inputs, outputs, 4, 2, 1)
            made = published_start(made) if normed else made
            return parametrizations.spectral_norm(made) if spectral else made

        def norm(channels: int) -> list[nn.Module]:
            return [nn.InstanceNorm3d(channels)] if normed else []

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            layers: list[nn.Module] = [] if level == 0 else [nn.LeakyReLU(LEAK)]
            layers.append(layer(nn.Conv3d, 1 if level == 0 else widths[level - 1], width))
            if 0 < level < depth - 1:
                layers += norm(width)
            if attention and level == depth - 1:
                layers.append(SelfAttention(width, dims=3))
            self.down.append(nn.Sequential(*layers))
        for level in reversed(range(depth)):
            deepest = level == depth - 1
            layers = [SelfAttention(widths[level], dims=3)] if attention and deepest else []
            layers += [nn.ReLU()]
            outputs = widths[0] if level == 0 else widths[level - 1]
            layers.append(layer(nn.ConvTranspose3d, widths[level] * (1 if deepest else 2), outputs))
            self.up.append(nn.Sequential(*layers, *(norm(outputs) if level else [])))
        # Without norms inside the published start lets the features fade to hundredths, and the output hardly learns.
        self.last = nn.Identity() if normed else ChannelNorm(widths[0])
        if not normed:
            nn.init.constant_(self.last.get_parameter("gain"), LAST_GAIN)
        # At the full size keys and values are pooled: every voxel cannot look at every other.
        self.look = SelfAttention(widths[0], dims=3, pool=2 ** min(depth, 3)) if attention else nn.Identity()
        self.out = nn.Conv3d(widths[0], 1, 3, padding=1)
        if residual:
            for one in self.out.parameters():
                nn.init.zeros_(one)

    def forward(self, image: Tensor) -> Tensor:
        """[b, 1, z, y, x] in [-1, 1], sizes multiples of `divisor`, to the same shape."""
        states, x = [], image
        for layer in self.down:
            x = layer(x)
            states.append(x)
        for index, layer in enumerate(self.up):
            x = layer(x if index == 0 else torch.cat([x, states[-1 - index]], dim=1))
        x = self.out(self.last(self.look(torch.relu(x))))
        return image + x if self.residual else torch.tanh(x)
