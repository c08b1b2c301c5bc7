"""Parts that the networks share. No part looks at more of the image than its kernel: a whole slice and a patch of it
give the same values away from the border, which normalization over the image (batch, group, instance) would break.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Added to the mean square of the channels, so that a pixel of zeros stays one.
NORM_FLOOR = 1e-6


class ChannelNorm(nn.Module):
    """Divides each pixel's vector of channels by its root mean square, then scales each channel (RMSNorm per pixel).

    Zhang & Sennrich 2019, arXiv:1910.07467.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, ...] to the same shape."""
        scale = torch.rsqrt(x.square().mean(dim=1, keepdim=True) + NORM_FLOOR)
        return x * scale * self.gain.reshape(1, -1, *([1] * (x.ndim - 2)))


def convolution(inputs: int, outputs: int, kernel: int = 3, *, dims: int = 2, stride: int = 1) -> nn.Module:
    """A convolution in one, two or three dimensions that keeps the size (times 1 / stride)."""
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return kind(inputs, outputs, kernel, stride=stride, padding=kernel // 2)


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with weights of zero, so that a residual branch or a head starts silent."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def orthogonal(layer: nn.Module) -> nn.Module:
    """The layer with random orthogonal weights (Saxe et al. 2014, arXiv:1312.6120): no direction of its input fades."""
    nn.init.orthogonal_(layer.get_parameter("weight"))
    nn.init.zeros_(layer.get_parameter("bias"))
    return layer


def customary(net: nn.Module) -> nn.Module:
    """The network with every layer's customary random weights (torch's own), whatever it was built to start as."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d):
            layer.reset_parameters()
    return net


@torch.no_grad()
def copy_first(layer: nn.Module, count: int) -> None:
    """Make a convolution's first `count` outputs its first `count` inputs, alone; the other outputs keep their weights.

    Along a path of such layers the image arrives whole before anything is learned. A chain of random layers learns each
    component of the image at a speed in proportion to its variance, and texture has a hundredth of the anatomy's.
    """
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    middle = tuple(size // 2 for size in weight.shape[2:])
    weight[:count] = 0
    bias[:count] = 0
    for channel in range(count):
        weight[(channel, channel, *middle)] = 1


class ResidualBlock(nn.Module):
    """Two convolutions around a shortcut; the embedding of the time, where there is one, scales and shifts between.

    Parameters
    ----------
    embedding : channels of the embedding, 0 for none.
    dims : 1, 2 or 3.
    """

    def __init__(self, inputs: int, outputs: int, *, embedding: int = 0, dims: int = 2) -> None:
        super().__init__()
        self.norm_in = ChannelNorm(inputs)
        self.first = convolution(inputs, outputs, dims=dims)
        self.norm = ChannelNorm(outputs)
        self.second = zeroed(convolution(outputs, outputs, dims=dims))
        self.shortcut = nn.Identity() if inputs == outputs else convolution(inputs, outputs, 1, dims=dims)
        self.modulate = nn.Linear(embedding, 2 * outputs) if embedding else None

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """[b, inputs, ...] and [b, embedding] to [b, outputs, ...]."""
        y = self.norm(self.first(functional.silu(self.norm_in(x))))
        if self.modulate is not None and embedding is not None:
            scale, shift = self.modulate(embedding).reshape(x.shape[0], -1, *([1] * (x.ndim - 2))).chunk(2, dim=1)
            y = y * (1 + scale) + shift
        return self.shortcut(x) + self.second(functional.silu(y))


class TimeEmbedding(nn.Module):
    """Sines and cosines of a time in [0, 1], then two layers (Vaswani et al. 2017; Ho et al. 2020, appendix B)."""

    def __init__(self, channels: int, *, waves: int = 32) -> None:
        super().__init__()
        self.waves = waves
        self.layers = nn.Sequential(nn.Linear(2 * waves, channels), nn.SiLU(), nn.Linear(channels, channels), nn.SiLU())

    def forward(self, time: Tensor) -> Tensor:
        """[b] to [b, channels]."""
        rate = torch.exp(torch.arange(self.waves, device=time.device) * (math.log(1000.0) / (self.waves - 1)))
        angle = time.to(torch.float32)[:, None] * rate[None]
        return self.layers(torch.cat([angle.sin(), angle.cos()], dim=1))
