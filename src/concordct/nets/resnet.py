"""DiffusionCT's autoencoder: a ResNet-18 encoder in its blocks, a one-dimensional latent, five up-sampling blocks.

He et al. 2016, arXiv:1512.03385; parameter names are torchvision's, so that its ImageNet weights load from a
file of the user's. DiffusionCT (arXiv:2301.08815): no skip passes beside the one-dimensional convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from concordct.nets.blocks import ResidualBlock, convolution, orthogonal
from concordct.nets.codec import DETAIL_PIXELS
from concordct.nets.unetpp import Resampling

#: Channels of ResNet-18's first layer and of its four stages.
WIDTHS = (64, 64, 128, 256, 512)


class FrozenBatchNorm(nn.Module):
    """Batch normalization with the statistics it was trained with: patches, slices and processes cannot change them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, y, x] to the same shape."""
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return functional.batch_norm(x, mean, var, self.weight, self.bias, training=False)


class BasicBlock(nn.Module):
    """ResNet's block of two 3 x 3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = FrozenBatchNorm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = FrozenBatchNorm(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), FrozenBatchNorm(outputs))
            if stride != 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """[b, inputs, y, x] to [b, outputs, y / stride, x / stride]."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18Encoder(nn.Module):
    """ResNet-18 for one channel without its classifier, in five blocks: the stem and the four stages.

    Parameters
    ----------
    widths : channels of stem and stages; `WIDTHS` are ResNet-18's, others are for small studies.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, widths[0], 7, 2, 3, bias=False)
        self.bn1 = FrozenBatchNorm(widths[0])
        stages = []
        for index in range(1, 5):
            stride = 1 if index == 1 else 2
            first = BasicBlock(widths[index - 1], widths[index], stride)
            stages.append(nn.Sequential(first, BasicBlock(widths[index], widths[index], 1)))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(part, BasicBlock):
                nn.init.zeros_(part.bn2.weight)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[b, 1, y, x] to the five blocks' features, 1/2 to 1/32 of the size."""
        features = [functional.relu(self.bn1(self.conv1(x)))]
        x = functional.max_pool2d(features[0], 3, 2, 1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features

    def load_torchvision(self, tensors: dict[str, Any]) -> None:
        """Take ImageNet weights: torchvision's names; the three colours of the first layer are summed.

        Raises
        ------
        ValueError : a tensor that is missing or of another shape.
        """
        own = self.state_dict()
        found = {}
        for name, tensor in own.items():
            given = tensors.get(name)
            if given is not None and name == "conv1.weight" and given.shape[1] == 3:
                given = given.sum(dim=1, keepdim=True)
            if given is None or given.shape != tensor.shape:
                what = "none" if given is None else f"shape {tuple(given.shape)}"
                raise ValueError(f"expected ResNet-18's {name} of shape {tuple(tensor.shape)}, found {what}")
            found[name] = given.to(tensor.dtype)
        self.load_state_dict(found)


class UpBlock(nn.Module):
    """Twice the size by nearest neighbours, or by a convolution of its own, then a residual block."""

    def __init__(self, inputs: int, skip: int, outputs: int, *, learned: bool = False) -> None:
        super().__init__()
        self.enlarge = orthogonal(nn.ConvTranspose2d(inputs, inputs, 2, stride=2)) if learned else None
        self.block = ResidualBlock(inputs + skip, outputs)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """[b, inputs, y, x] and [b, skip, 2y, 2x] to [b, outputs, 2y, 2x]."""
        up = functional.interpolate(x, scale_factor=2.0, mode="nearest") if self.enlarge is None else self.enlarge(x)
        return self.block(up if skip is None else torch.cat([up, skip], dim=1))


class ResNetAutoencoder(nn.Module):
    """Square image to a latent sequence [b, channels, positions] and back.

    Parameters
    ----------
    channels : of the latent; its length is (size / 32)^2 positions in raster order.
    widths : of the encoder, mirrored in the decoder.
    skips : pass the encoder's features around the latent, the other reading of the paper's "U-Net structured"; they
        carry the source's texture past it.
    resampling : of the decoder, "pool" repeats positions, "learned" convolves, see `UNetPlusPlus`; its fifth block is
        then a sub-pixel convolution (Shi et al. 2016, arXiv:1609.05158), the full size being the dearest, and with
        skips it sees the image's pixels as the last of them.
    detail : above 0, the decoder says detail in units of this beside the image, see `LatentCodec`.
    """

    divisor = 32

    def __init__(
        self,
        channels: int,
        *,
        widths: Sequence[int] = WIDTHS,
        skips: bool = False,
        resampling: Resampling = "pool",
        detail: float = 0.0,
    ) -> None:
        super().__init__()
        self.skips, self.detail = skips, detail
        self.encoder = ResNet18Encoder(widths)
        self.to_latent = nn.Sequential(
            convolution(widths[4], channels, 1, dims=1), ResidualBlock(channels, channels, dims=1)
        )
        self.from_latent = nn.Sequential(
            ResidualBlock(channels, channels, dims=1),
            ResidualBlock(channels, channels, dims=1),
            convolution(channels, widths[4], 1, dims=1),
        )
        inputs = (widths[4], widths[3], widths[2], widths[1], widths[0])
        outputs = (widths[3], widths[2], widths[1], widths[0], max(widths[0] // 2, 8))
        skipped = (widths[3], widths[2], widths[1], widths[0], 0) if skips else (0,) * 5
        learned = resampling == "learned"
        self.finest = 2 if learned else 1
        sizes = list(zip(inputs, skipped, outputs, strict=True))[: 4 if learned else 5]
        self.up = nn.ModuleList(UpBlock(below, skip, out, learned=learned) for below, skip, out in sizes)
        self.pixels = skips and learned
        # Image and detail, 2 x 2 pixels folded into channels.
        beside = (2 if detail else 1) * self.finest**2 if self.pixels else 0
        self.head = convolution(sizes[-1][2] + beside, (2 if detail else 1) * self.finest**2)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels))

    def encode(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """[b, 1, y, x] to the unit-normal latent [b, c, positions] and, with skips, what passes beside it."""
        features = self.encoder(image)
        raw = self.to_latent(features[-1].flatten(2))
        mean, spread = self.get_buffer("mean"), self.get_buffer("spread")
        leaks = features[:4] if self.skips else []
        return [(raw - mean[:, None]) / spread[:, None]], [*leaks, self._folded(image)] if self.pixels else leaks

    def decode(self, latents: Sequence[Tensor], leaks: Sequence[Tensor]) -> list[Tensor]:
        """The latent (and skips, None where nothing passes) to the image [b, 1, y, x], in a list of one."""
        raw = latents[0] * self.get_buffer("spread")[:, None] + self.get_buffer("mean")[:, None]
        x = self.from_latent(raw)
        side = math.isqrt(x.shape[2])
        x = x.reshape(*x.shape[:2], side, side)
        for index, block in enumerate(self.up):
            x = block(x, leaks[3 - index] if self.skips and index < 4 else None)
        if self.pixels:
            x = torch.cat([x, leaks[4]], dim=1)
        said = functional.pixel_shuffle(self.head(x), self.finest)
        return [said[:, :1] + self.detail * said[:, 1:] if self.detail else said]

    def _folded(self, image: Tensor) -> Tensor:
        """[b, 1, y, x] and its detail to channels of half the size."""
        if self.detail:
            around = functional.avg_pool2d(image, DETAIL_PIXELS, 1, DETAIL_PIXELS // 2, count_include_pad=False)
            image = torch.cat([image, (image - around) / self.detail], dim=1)
        return functional.pixel_unshuffle(image, self.finest)

    def set_statistics(self, raw: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take (mean, standard deviation), each [c], of the raw latent."""
        self.get_buffer("mean").copy_(raw[0][0])
        self.get_buffer("spread").copy_(raw[0][1].clamp_min(1e-3))
