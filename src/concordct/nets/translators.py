"""Generators that turn one image into another: the U-Net of Pix2Pix and the residual network of CycleGAN.

Isola et al. 2017, arXiv:1611.07004; Zhu et al. 2017, arXiv:1703.10593; self-attention as in Zhang et al. 2019,
arXiv:1805.08318. `norm` says what a channel is divided by: "batch" and "instance" are the published ones. Statistics of
an instance are those of a patch in training and of a slice at work, which are not the same; "pixel" and
"none" have none. A pixel divided by its own size has lost how strong its texture was, so with "pixel" the stem is
spared.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from concordct.nets.blocks import ChannelNorm, convolution

Norm = Literal["batch", "instance", "pixel", "none"]
#: Deviation of published initial weights.
SPREAD = 0.02
#: Slope of LeakyReLU in encoders and discriminators.
LEAK = 0.2


@dataclass(frozen=True)
class Translator:
    """A generator.

    Attributes
    ----------
    kind : "unet" or "resnet".
    width : channels at the full size; they double at each halving up to 8 times as many.
    depth : levels of the U-Net, or residual blocks.
    norm : of every channel.
    halvings : of the residual network before its blocks.
    fold : so many pixels squared become channels first. Ours, for speed.
    residual : the source is added to the output, which starts at nothing. Ours; published ones end in tanh.
    dropout : in the three deepest levels of the U-Net's decoder.
    attention : self-attention in the middle of the residual network. outer : kernel of its first and last layer.
    """

    kind: Literal["unet", "resnet"]
    width: int
    depth: int
    norm: Norm
    halvings: int = 2
    fold: int = 1
    residual: bool = False
    dropout: float = 0.0
    attention: bool = False
    outer: int = 7


def normalization(kind: Norm, channels: int) -> nn.Module:
    """The norm of a layer of two dimensions."""
    if kind == "none":
        return nn.Identity()
    if kind == "pixel":
        return ChannelNorm(channels)
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.InstanceNorm2d(channels)


def published_start(net: nn.Module) -> nn.Module:
    """Weights of convolutions from N(0, 0.02), biases 0."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Conv3d | nn.ConvTranspose3d):
            nn.init.normal_(layer.weight, 0.0, SPREAD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return net


class SelfAttention(nn.Module):
    """Every place looks at every other; it starts silent (gamma = 0). Keys and values may be pooled by `pool`, so that
    finer scales can be paid for.
    """

    def __init__(self, channels: int, *, dims: int = 2, pool: int = 1) -> None:
        super().__init__()
        inner = max(channels // 8, 1)
        self.pool = pool
        self.query, self.key = (convolution(channels, inner, 1, dims=dims) for _ in range(2))
        self.value = convolution(channels, channels, 1, dims=dims)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, ...] to the same shape."""
        seen = x
        if self.pool > 1:
            seen = functional.avg_pool2d(x, self.pool) if x.ndim == 4 else functional.avg_pool3d(x, self.pool)
        asked = zip((self.query, self.key, self.value), (x, seen, seen), strict=True)
        q, k, v = (layer(given).flatten(2).transpose(1, 2) for layer, given in asked)  # [b, places, c]
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=1.0)
        return x + self.gamma * mixed.transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """Levels of convolutions 4 x 4 with stride 2 and back, joined level by level."""

    def __init__(self, inputs: int, outputs: int, given: Translator) -> None:
        super().__init__()
        widths = [given.width * min(2**level, 8) for level in range(given.depth)]
        self.divisor = 2**given.depth
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            below = inputs if level == 0 else widths[level - 1]
            layers: list[nn.Module] = [] if level == 0 else [nn.LeakyReLU(LEAK)]
            layers.append(nn.Conv2d(below, width, 4, 2, 1))
            # The innermost may hold one pixel, which statistics over the image would turn to nothing.
            if 0 < level < given.depth - 1:
                layers.append(normalization(given.norm, width))
            self.down.append(nn.Sequential(*layers))
        for level in reversed(range(given.depth)):
            deepest = level == given.depth - 1
            above = widths[level] if deepest else 2 * widths[level]
            layers = [nn.ReLU(), nn.ConvTranspose2d(above, outputs if level == 0 else widths[level - 1], 4, 2, 1)]
            if level > 0:
                layers.append(normalization(given.norm, widths[level - 1]))
                if given.dropout and given.depth - 5 < level < given.depth - 1:
                    layers.append(nn.Dropout(given.dropout))
            self.up.append(nn.Sequential(*layers))

    @property
    def last(self) -> nn.Module:
        """The layer that makes the image."""
        return self.up[-1][-1]  # type: ignore[index]

    def encode(self, x: Tensor) -> list[Tensor]:
        """The states on the way down, the deepest last."""
        states = []
        for layer in self.down:
            x = layer(x)
            states.append(x)
        return states

    def forward(self, x: Tensor) -> Tensor:
        """[b, inputs, y, x] to [b, outputs, y, x]."""
        *states, x = self.encode(x)
        for index, layer in enumerate(self.up):
            x = layer(x)
            if index < len(states):
                x = torch.cat([x, states[-1 - index]], dim=1)
        return x


class Residual(nn.Module):
    """Two reflecting convolutions around a shortcut."""

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect"),
            normalization(norm, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect"),
            normalization(norm, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[b, width, y, x] to the same shape."""
        return x + self.layers(x)


def halving(inputs: int, outputs: int, norm: Norm) -> nn.Module:
    """Half the size."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), normalization(norm, outputs), nn.ReLU())


def doubling(inputs: int, outputs: int, norm: Norm) -> nn.Module:
    """Twice the size."""
    layer = nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, output_padding=1)
    return nn.Sequential(layer, normalization(norm, outputs), nn.ReLU())


def wide(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """The outer convolution, reflecting."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, padding_mode="reflect")


class ResNet(nn.Module):
    """Convolution, halvings, residual blocks, doublings, convolution; `encode` and `decode` meet after the blocks."""

    def __init__(self, inputs: int, outputs: int, given: Translator) -> None:
        super().__init__()
        self.divisor = 2**given.halvings
        widths = [given.width * 2**level for level in range(given.halvings + 1)]
        stem: Norm = "none" if given.norm == "pixel" else given.norm
        steps: list[nn.Module] = [wide(inputs, widths[0], given.outer), normalization(stem, widths[0]), nn.ReLU()]
        steps += [halving(a, b, given.norm) for a, b in pairwise(widths)]
        blocks: list[nn.Module] = [Residual(widths[-1], given.norm) for _ in range(given.depth)]
        if given.attention:
            blocks.insert(given.depth // 2, SelfAttention(widths[-1]))
        self.encode = nn.Sequential(*steps, *blocks)
        back = [doubling(b, a, given.norm) for a, b in reversed(list(pairwise(widths)))]
        self.decode = nn.Sequential(*back, wide(widths[0], outputs, given.outer))

    @property
    def last(self) -> nn.Module:
        """The layer that makes the image."""
        return self.decode[-1]

    def forward(self, x: Tensor) -> Tensor:
        """[b, inputs, y, x] to [b, outputs, y, x]."""
        return self.decode(self.encode(x))


class Generator(nn.Module):
    """A translator of images in [-1, 1] with one channel."""

    def __init__(self, given: Translator) -> None:
        super().__init__()
        self.fold, self.residual = given.fold, given.residual
        channels = given.fold**2
        net = (UNet if given.kind == "unet" else ResNet)(channels, channels, given)
        self.net = net if given.norm == "pixel" and given.kind == "resnet" else published_start(net)
        self.divisor = given.fold * self.net.divisor  # type: ignore[operator]
        if given.residual:
            for one in self.net.last.parameters():  # type: ignore[union-attr]
                nn.init.zeros_(one)

    def encode(self, image: Tensor) -> Tensor:
        """[b, 1, y, x] to the deepest state of a U-Net, or the state after the residual blocks."""
        found = self.net.encode(functional.pixel_unshuffle(image, self.fold))  # type: ignore[operator]
        return found[-1] if isinstance(found, list) else found

    def forward(self, image: Tensor) -> Tensor:
        """[b, 1, y, x] to the same shape."""
        made = functional.pixel_shuffle(self.net(functional.pixel_unshuffle(image, self.fold)), self.fold)
        return image + made if self.residual else torch.tanh(made)
