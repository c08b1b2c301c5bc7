"""Networks of slices with a transformer in their middle: TransUNet and ResViT, both with a head for images.

Chen et al. 2021, arXiv:2102.04306; Dalmaz et al. 2022, doi:10.1109/TMI.2022.3167808. Positions are learned, so a
network works on patches of the size that it was made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from concordct.nets.translators import Residual, doubling, halving, wide


class Transformer(nn.Module):
    """A vision transformer on a state: patches to words, blocks, and back to the state's size.

    Parameters
    ----------
    channels, size : of the state. patch : pixels of a word. width, depth, heads : of the transformer.
    """

    def __init__(self, channels: int, size: int, *, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"expected a state of a multiple of {patch} pixels, found {size}")
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.places = nn.Parameter(torch.zeros(1, (size // patch) ** 2, width))
        nn.init.trunc_normal_(self.places, std=0.02)
        blocks = (
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.back = nn.ConvTranspose2d(width, channels, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """[b, channels, size, size] to the same shape."""
        words = self.embed(x)
        seen = self.norm(self.blocks(words.flatten(2).transpose(1, 2) + self.places))
        return self.back(seen.transpose(1, 2).reshape(words.shape))


class TransUNet(nn.Module):
    """Residual encoder, transformer at its deepest scale, cascaded upsampling with the encoder's states beside it.

    The published encoder is ResNet-50 and the head a segmentation's; here residual stages and a head of one channel,
    the difference to the source (ours).

    Parameters
    ----------
    widths : channels of the scales, the finest first. size : edge of a patch.
    """

    def __init__(self, widths: Sequence[int], size: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.divisor = 2 ** (len(widths) - 1)
        self.stem = nn.Sequential(wide(1, widths[0], 3), nn.InstanceNorm2d(widths[0]), nn.ReLU())
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for fine, coarse in pairwise(widths):
            self.down.append(nn.Sequential(halving(fine, coarse, "instance"), Residual(coarse, "instance")))
        self.middle = Transformer(
            widths[-1], size // self.divisor, patch=1, width=width, depth=depth, heads=heads
        )  # words are pixels of the deepest state
        for fine, coarse in reversed(list(pairwise(widths))):
            joined = nn.Conv2d(coarse + fine, fine, 3, padding=1)
            self.up.append(nn.Sequential(joined, nn.InstanceNorm2d(fine), nn.ReLU()))
        self.head = nn.Conv2d(widths[0], 1, 3, padding=1)
        for one in self.head.parameters():
            nn.init.zeros_(one)

    def forward(self, image: Tensor) -> Tensor:
        """[b, 1, size, size] to the same shape."""
        states = [self.stem(image)]
        for layer in self.down:
            states.append(layer(states[-1]))
        x = states.pop()
        x = x + self.middle(x)
        for layer, state in zip(self.up, reversed(states), strict=True):
            up = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = layer(torch.cat([up, state], dim=1))
        return image + self.head(x)


class ResViT(nn.Module):
    """A stem, two halvings, nine blocks that aggregate residual convolutions and a transformer, two doublings.

    The transformer is one, shared by the blocks that have it; its words come from the state at a quarter of its size.

    Parameters
    ----------
    width : channels of the stem, four times as many in the blocks. blocks : of which `attend` hold the transformer.
    """

    def __init__(
        self, width: int, size: int, *, blocks: int, attend: Sequence[int], words: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.divisor, self.attend = 4, tuple(attend)
        inner = 4 * width
        stem = [wide(1, width, 7), nn.InstanceNorm2d(width), nn.ReLU()]
        self.encode = nn.Sequential(*stem, halving(width, 2 * width, "instance"), halving(2 * width, inner, "instance"))
        patch = min(4, size // 4)
        self.shared = Transformer(inner, size // 4, patch=patch, width=words, depth=depth, heads=heads)
        self.joins = nn.ModuleDict({str(one): nn.Conv2d(2 * inner, inner, 1) for one in self.attend})
        self.blocks = nn.ModuleList(Residual(inner, "instance") for _ in range(blocks))
        self.decode = nn.Sequential(
            doubling(inner, 2 * width, "instance"), doubling(2 * width, width, "instance"), wide(width, 1, 7)
        )
        for one in self.decode[-1].parameters():
            nn.init.zeros_(one)

    def forward(self, image: Tensor) -> Tensor:
        """[b, 1, size, size] to the same shape."""
        x = self.encode(image)
        for index, block in enumerate(self.blocks):
            if index in self.attend:
                # Aggregated residual transformer block: context beside convolution, compressed, then convolved.
                x = self.joins[str(index)](torch.cat([x, self.shared(x)], dim=1))
            x = block(x)
        return image + self.decode(x)
