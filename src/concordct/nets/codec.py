"""UNet++ as a codec: image to latents and back, with the statistics that make latents unit-normal.

LTDiff++ replaces the deepest feature map by its standardized version while the skips carry the source past it. Here
each scale says what passes: a latent of so many channels (standardized like any other), nothing, or, as the paper
has it, the raw feature map (`leak`). `docs/equations.md`, trap 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from concordct.nets.blocks import ResidualBlock, convolution, copy_first
from concordct.nets.unetpp import UNetPlusPlus

#: Least spread of a latent channel: what a channel that says nothing is divided by.
LEAST_SPREAD = 1e-3


class LatentCodec(nn.Module):
    """Encoder and decoder with latents at chosen scales.

    Parameters
    ----------
    widths : of the UNet++.
    latents : channels of the latent at each scale, 0 for none.
    fold : each block of fold x fold pixels becomes the channels of one pixel before the first convolution, and is
        unfolded after the last: full-resolution skips at a sixteenth of the cost for 4.
    leak : scales without latent pass their raw features to the decoder, as the paper draws it.
    vector : the deepest latent runs through one-dimensional convolutions over its positions in raster order and is a
        sequence [b, c, positions]: the one-dimensional latent vector of the paper's text. Images must be square.
    residual, dense : of the UNet++.
    """

    def __init__(
        self,
        widths: Sequence[int],
        latents: Sequence[int],
        *,
        fold: int = 1,
        leak: bool = False,
        vector: bool = False,
        residual: bool = True,
        dense: bool = True,
    ) -> None:
        super().__init__()
        if len(latents) != len(widths) or latents[-1] == 0:
            raise ValueError(f"expected a latent at the deepest of {len(widths)} scales, found {tuple(latents)}")
        self.latents, self.fold, self.leak, self.vector = tuple(latents), fold, leak, vector
        self.net = UNetPlusPlus(fold**2, fold**2, widths, residual=residual, dense=dense)
        self.into = nn.ModuleDict()
        self.out_of = nn.ModuleDict()
        for i, channels in enumerate(latents):
            if channels:
                self.into[str(i)] = convolution(widths[i], channels, 1)
                self.out_of[str(i)] = convolution(channels, widths[i], 1)
                self.register_buffer(f"mean_{i}", torch.zeros(channels))
                self.register_buffer(f"spread_{i}", torch.ones(channels))
        if latents[0] >= fold**2 <= widths[0]:
            # The finest latent can hold the image, so it starts by holding it.
            copy_first(self.into["0"], fold**2)
            copy_first(self.out_of["0"], fold**2)
        if vector:
            self.before = ResidualBlock(latents[-1], latents[-1], dims=1)
            self.after = ResidualBlock(latents[-1], latents[-1], dims=1)

    @property
    def scales(self) -> tuple[int, ...]:
        """Scales with a latent, the finest first."""
        return tuple(i for i, channels in enumerate(self.latents) if channels)

    @property
    def divisor(self) -> int:
        """Image sizes must be multiples of this."""
        return self.fold * 2**self.net.depth

    def encode(self, image: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        """[b, 1, y, x] to unit-normal latents, the finest scale first, and what leaks at each scale."""
        features = self.net.encode(functional.pixel_unshuffle(image, self.fold))
        leaks: list[Tensor | None] = [
            feature if self.leak and not channels else None
            for feature, channels in zip(features, self.latents, strict=True)
        ]
        return [self._normal(raw, i) for raw, i in zip(self._raw(features), self.scales, strict=True)], leaks

    def decode(
        self, latents: Sequence[Tensor], leaks: Sequence[Tensor | None], *, depth: int | None = None
    ) -> list[Tensor]:
        """Latents (and leaks) to the outputs [b, 1, y, x] of the deep supervision, the deepest last."""
        raw = {i: self._physical(latent, i) for i, latent in zip(self.scales, latents, strict=True)}
        deepest = self.net.depth
        if self.vector:
            sequence = self.after(raw[deepest])
            side = math.isqrt(sequence.shape[2])
            raw[deepest] = sequence.reshape(*sequence.shape[:2], side, sequence.shape[2] // side)
        features: list[Tensor] = []
        for i in range((depth or deepest) + 1):
            leaked = leaks[i]
            if i in raw:
                features.append(self.out_of[str(i)](raw[i]))
            elif leaked is not None:
                features.append(leaked)
            else:
                # A scale without latent tells the decoder nothing: zeros of the right size.
                y, x = (length * 2 ** (deepest - i) for length in raw[deepest].shape[2:])
                features.append(raw[deepest].new_zeros(raw[deepest].shape[0], self.net.widths[i], y, x))
        return [functional.pixel_shuffle(one, self.fold) for one in self.net.decode(features)]

    def set_statistics(self, raw: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take (mean, standard deviation), each [c], of the raw latents at each scale."""
        for i, (mean, spread) in zip(self.scales, raw, strict=True):
            getattr(self, f"mean_{i}").copy_(mean)
            getattr(self, f"spread_{i}").copy_(spread.clamp_min(LEAST_SPREAD))

    def _raw(self, features: Sequence[Tensor]) -> list[Tensor]:
        raw = [self.into[str(i)](features[i]) for i in self.scales]
        if self.vector:
            raw[-1] = self.before(raw[-1].flatten(2))
        return raw

    def _normal(self, raw: Tensor, i: int) -> Tensor:
        shape = (1, -1, *([1] * (raw.ndim - 2)))
        return (raw - getattr(self, f"mean_{i}").reshape(shape)) / getattr(self, f"spread_{i}").reshape(shape)

    def _physical(self, latent: Tensor, i: int) -> Tensor:
        shape = (1, -1, *([1] * (latent.ndim - 2)))
        return latent * getattr(self, f"spread_{i}").reshape(shape) + getattr(self, f"mean_{i}").reshape(shape)


def latent_statistics(batches: Sequence[Sequence[Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """(mean, standard deviation), each [c], of each scale's latents over batches of [b, c, ...]."""
    found = []
    for scale in zip(*batches, strict=True):
        values = torch.cat([one.transpose(0, 1).flatten(1) for one in scale], dim=1).double()
        found.append((values.mean(dim=1).float(), values.std(dim=1).float()))
    return found
