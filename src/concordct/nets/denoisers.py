"""Conditional networks that see a noisy state beside what it is conditioned on, and the time.

`LatentUNet1d` for a latent sequence (DiffusionCT, Fig. 3), `ScalesUNet` for latent maps at several scales, of which an
image is the case of one scale. Both take and give lists, one tensor for each scale.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from concordct.nets.blocks import ChannelNorm, ResidualBlock, TimeEmbedding, convolution, zeroed
from concordct.nets.unetpp import Resampling


class _Blocks(nn.Module):
    """Residual blocks of one width in a row."""

    def __init__(self, width: int, count: int, embedding: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ResidualBlock(width, width, embedding=embedding) for _ in range(count))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, embedding)
        return x


class Straight(nn.Module):
    """One convolution from what a network sees to what it says, each input times a gain that follows the time.

    Most of a kernel's change is linear, and the noise in Z_B is nearly (Z_B,t - sqrt(ab_t) Z_A) / sqrt(1 - ab_t):
    blocks that normalize their input can say neither. Starts silent.
    """

    def __init__(self, inputs: int, outputs: int, embedding: int, *, kernel: int, dims: int) -> None:
        super().__init__()
        self.gain = zeroed(nn.Linear(embedding, inputs))
        self.layer = zeroed(convolution(inputs, outputs, kernel, dims=dims))

    def forward(self, given: Tensor, embedding: Tensor) -> Tensor:
        """[b, inputs, ...] and [b, embedding] to [b, outputs, ...]."""
        gain = 1 + self.gain(embedding)
        return self.layer(given * gain.reshape(*gain.shape, *([1] * (given.ndim - 2))))


class LatentUNet1d(nn.Module):
    """A U-Net along the positions of a latent sequence.

    Parameters
    ----------
    channels : of the latent.
    widths : channels at each scale; each halves the length, rounded up.
    straight : a `Straight` path beside it.
    """

    def __init__(self, channels: int, widths: Sequence[int], *, straight: bool = True) -> None:
        super().__init__()
        embedding = 4 * widths[0]
        self.time = TimeEmbedding(embedding)
        self.stem = convolution(2 * channels, widths[0], dims=1)
        self.down = nn.ModuleList(
            ResidualBlock(widths[max(i - 1, 0)], width, embedding=embedding, dims=1) for i, width in enumerate(widths)
        )
        self.middle = ResidualBlock(widths[-1], widths[-1], embedding=embedding, dims=1)
        self.up = nn.ModuleList(
            ResidualBlock(width + (widths[i + 1] if i + 1 < len(widths) else width), width, embedding=embedding, dims=1)
            for i, width in enumerate(widths)
        )
        self.head = nn.Sequential(
            ChannelNorm(widths[0]), nn.SiLU(), zeroed(convolution(widths[0], channels, 1, dims=1))
        )
        self.straight = Straight(2 * channels, channels, embedding, kernel=1, dims=1) if straight else None

    def forward(self, x: Sequence[Tensor], time: Tensor, condition: Sequence[Tensor]) -> list[Tensor]:
        """[b, c, length] twice and [b] in [0, 1] to [b, c, length], in lists of one."""
        embedding = self.time(time)
        given = torch.cat([x[0], condition[0]], dim=1)
        y = self.stem(given)
        skips = []
        for index, block in enumerate(self.down):
            y = block(y if index == 0 else functional.avg_pool1d(y, 2, ceil_mode=True), embedding)
            skips.append(y)
        y = self.middle(y, embedding)
        for index in reversed(range(len(self.up))):
            if index + 1 < len(self.up):
                y = functional.interpolate(y, scale_factor=2.0, mode="nearest")[..., : skips[index].shape[-1]]
            y = self.up[index](torch.cat([y, skips[index]], dim=1), embedding)
        said = self.head(y)
        return [said if self.straight is None else said + self.straight(given, embedding)]


class ScalesUNet(nn.Module):
    """A U-Net over maps at several scales; each enters, and leaves, at its own, with a `Straight` path beside it.

    Parameters
    ----------
    channels : of the state at each scale, the finest first, 0 where there is none; each scale halves the size.
    widths : channels of the network at each scale, at least as many.
    blocks : residual blocks at each scale on the way down, and on the way up.
    fold : a single finest map whose blocks of fold x fold pixels become channels inside (for images).
    shown : channels of the condition for each of the state's.
    resampling : "pool" averages and repeats between scales; "learned" convolves 2 x 2 positions, see `UNetPlusPlus`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        widths: Sequence[int],
        *,
        blocks: int = 1,
        fold: int = 1,
        shown: int = 1,
        resampling: Resampling = "pool",
    ) -> None:
        super().__init__()
        if len(channels) > len(widths) or not any(channels):
            raise ValueError(f"{len(channels)} scales of {tuple(channels)} channels do not fit {len(widths)} widths")
        self.fold = fold
        folded = [*(count * fold**2 for count in channels), *([0] * (len(widths) - len(channels)))]
        self.scales = tuple(i for i, count in enumerate(folded) if count)
        embedding = 4 * widths[0]
        self.time = TimeEmbedding(embedding)
        self.enter = nn.ModuleDict({str(i): convolution((1 + shown) * folded[i], widths[i]) for i in self.scales})
        pairs = list(itertools.pairwise(widths))
        self.learned = resampling == "learned"
        if self.learned:
            self.between = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
            self.back = nn.ModuleList(nn.ConvTranspose2d(coarse, coarse, 2, stride=2) for _, coarse in pairs)
        else:
            self.between = nn.ModuleList(convolution(fine, coarse, 1) for fine, coarse in pairs)
        self.down = nn.ModuleList(_Blocks(width, blocks, embedding) for width in widths)
        self.join = nn.ModuleList(convolution(widths[i] + widths[i + 1], widths[i], 1) for i in range(len(widths) - 1))
        self.up = nn.ModuleList(_Blocks(width, blocks, embedding) for width in widths)
        self.leave = nn.ModuleDict(
            {
                str(i): nn.Sequential(ChannelNorm(widths[i]), nn.SiLU(), zeroed(convolution(widths[i], folded[i])))
                for i in self.scales
            }
        )
        self.straight = nn.ModuleDict(
            {str(i): Straight((1 + shown) * folded[i], folded[i], embedding, kernel=3, dims=2) for i in self.scales}
        )

    def forward(self, x: Sequence[Tensor], time: Tensor, condition: Sequence[Tensor]) -> list[Tensor]:
        """[b, c, y, x] and [b, shown c, y, x] for each scale, and [b] in [0, 1], to [b, c, y, x] for each scale.

        Given its first scales alone, the network is pruned to them: nothing coarser is computed.
        """
        embedding = self.time(time)
        scales = self.scales[: len(x)]
        depth = len(self.down) if len(x) == len(self.scales) else scales[-1] + 1
        given = {
            i: functional.pixel_unshuffle(torch.cat([one, other], dim=1), self.fold)
            for i, one, other in zip(scales, x, condition, strict=True)
        }
        skips: list[Tensor] = []
        for i, stage in enumerate(list(self.down)[:depth]):
            entering = self.enter[str(i)](given[i]) if i in given else None
            if i == 0:
                if entering is None:
                    raise ValueError("the finest scale needs a state")
                y = entering
            else:
                y = self.between[i - 1](skips[-1] if self.learned else functional.avg_pool2d(skips[-1], 2))
                y = y if entering is None else y + entering
            y = stage(y, embedding)
            skips.append(y)
        left: dict[int, Tensor] = {}
        y = skips[-1]
        for i in reversed(range(depth)):
            if i + 1 < depth:
                y = self.back[i](y) if self.learned else functional.interpolate(y, scale_factor=2.0, mode="nearest")
                y = self.join[i](torch.cat([skips[i], y], dim=1))
            y = self.up[i](y, embedding)
            if i in scales:
                said = self.leave[str(i)](y) + self.straight[str(i)](given[i], embedding)
                left[i] = functional.pixel_shuffle(said, self.fold)
        return [left[i] for i in scales]
