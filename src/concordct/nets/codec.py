"""UNet++ as a codec: image to latents and back, with the statistics that make latents unit-normal.

LTDiff++ replaces the deepest feature map by its standardized version while the skips carry the source past it. Here
each scale says what passes: a latent of so many channels (standardized like any other), nothing, or, as the paper
has it, the raw feature map (`leak`). `docs/equations.md`, trap 1. Pruned to a depth, the codec encodes and decodes the
scales down to it and no other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from concordct.nets.blocks import ResidualBlock, convolution, orthogonal, zeroed
from concordct.nets.unetpp import Resampling, UNetPlusPlus

#: Least spread of a latent channel: what a channel that says nothing is divided by.
LEAST_SPREAD = 1e-3
#: What differs from its surroundings of this many pixels is the image's detail.
DETAIL_PIXELS = 13


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
    residual, dense, resampling : of the UNet++.
    detail : above 0, the encoder also sees what differs from the mean of `DETAIL_PIXELS` around in units of this, its
        coarser scales the image averaged to their size, and the decoder says such detail beside the image: texture, a
        few hundredths of the anatomy, then has its size. A chain of layers learns each component at a speed in
        proportion to its variance.
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
        resampling: Resampling = "pool",
        detail: float = 0.0,
        straight: bool = False,
    ) -> None:
        super().__init__()
        if len(latents) != len(widths) or latents[-1] == 0:
            raise ValueError(f"expected a latent at the deepest of {len(widths)} scales, found {tuple(latents)}")
        self.latents, self.fold, self.leak, self.vector, self.detail = tuple(latents), fold, leak, vector, detail
        said = (2 if detail else 1) * fold**2
        self.net = UNetPlusPlus(said, said, widths, residual=residual, dense=dense, resampling=resampling)
        self.enter = nn.ModuleList(convolution(1, width) for width in (widths[:-1] if detail else ()))
        self.into = nn.ModuleDict()
        self.out_of = nn.ModuleDict()
        for i, count in enumerate(latents):
            if count:
                self.into[str(i)] = convolution(widths[i], count, 1)
                self.out_of[str(i)] = convolution(count, widths[i], 1)
                self.register_buffer(f"mean_{i}", torch.zeros(count))
                self.register_buffer(f"spread_{i}", torch.ones(count))
        self.see, self.say = nn.ModuleDict(), nn.ModuleDict()
        for i, count in enumerate(latents if straight and detail else ()):
            if count:
                pixels = self._edge(i) ** 2
                self.see[str(i)] = orthogonal(nn.Conv2d(pixels, count, 1))
                self.say[str(i)] = zeroed(nn.Conv2d(count, pixels, 1))
        if vector:
            self.before = ResidualBlock(latents[-1], latents[-1], dims=1)
            self.after = ResidualBlock(latents[-1], latents[-1], dims=1)

    @property
    def scales(self) -> tuple[int, ...]:
        """Scales with a latent, the finest first."""
        return self.scales_to(self.net.depth)

    def scales_to(self, depth: int) -> tuple[int, ...]:
        """Scales with a latent that a codec pruned to this depth has."""
        return tuple(i for i, channels in enumerate(self.latents[: depth + 1]) if channels)

    @property
    def divisor(self) -> int:
        """Image sizes must be multiples of this."""
        return self.fold * 2**self.net.depth

    @property
    def compression(self) -> float:
        """Latent numbers for each pixel."""
        return sum(count / (self.fold * 2**i) ** 2 for i, count in enumerate(self.latents))

    def encode(self, image: Tensor, *, depth: int | None = None) -> tuple[list[Tensor], list[Tensor | None]]:
        """[b, 1, y, x] to unit-normal latents, the finest scale first, and what leaks at each scale."""
        shown, beside, detail = image, None, image
        if self.detail:
            around = functional.avg_pool2d(image, DETAIL_PIXELS, 1, DETAIL_PIXELS // 2, count_include_pad=False)
            detail = (image - around) / self.detail
            shown = torch.cat([image, detail], dim=1)
            beside = [
                layer(functional.avg_pool2d(image, self.fold * 2**i)) for i, layer in enumerate(self.enter, start=1)
            ]
        features = self.net.encode(functional.pixel_unshuffle(shown, self.fold), depth=depth, beside=beside)
        leaks: list[Tensor | None] = [
            feature if self.leak and not channels else None
            for feature, channels in zip(features, self.latents, strict=False)
        ]
        scales = self.scales_to(len(features) - 1)
        raw = {i: self.into[str(i)](features[i]) for i in scales}
        if self.see:
            blocks = {i: functional.pixel_unshuffle(detail, self._edge(i)) for i in scales}
            raw = {i: one + self.see[str(i)](blocks[i]) for i, one in raw.items()}
        if self.vector and self.net.depth in raw:
            raw[self.net.depth] = self.before(raw[self.net.depth].flatten(2))
        return [self._normal(raw[i], i) for i in scales], leaks

    def decode(
        self, latents: Sequence[Tensor], leaks: Sequence[Tensor | None], *, depth: int | None = None
    ) -> list[Tensor]:
        """Latents (and leaks) to the outputs [b, 1, y, x] of the deep supervision, the deepest last."""
        deepest = depth or self.net.depth
        scales = self.scales_to(deepest)
        raw = {i: self._physical(latent, i) for i, latent in zip(scales, latents, strict=False)}
        if self.vector and self.net.depth in raw:
            sequence = self.after(raw[self.net.depth])
            side = math.isqrt(sequence.shape[2])
            raw[self.net.depth] = sequence.reshape(*sequence.shape[:2], side, sequence.shape[2] // side)
        features: list[Tensor] = []
        for i in range(deepest + 1):
            leaked = leaks[i]
            if i in raw:
                features.append(self.out_of[str(i)](raw[i]))
            elif leaked is not None:
                features.append(leaked)
            else:
                # A scale without latent tells the decoder nothing: zeros of the right size.
                known = next(iter(raw))
                y, x = (int(length * 2.0 ** (known - i)) for length in raw[known].shape[2:])
                features.append(raw[known].new_zeros(raw[known].shape[0], self.net.widths[i], y, x))
        outputs = [self._unfolded(one) for one in self.net.decode(features)]
        if not self.say:
            return outputs
        said = {
            i: self.detail * functional.pixel_shuffle(self.say[str(i)](one), self._edge(i)) for i, one in raw.items()
        }
        # The output of depth d knows the scales down to d.
        return [sum((said[i] for i in self.scales_to(d)), one) for d, one in enumerate(outputs, start=1)]

    def set_statistics(self, raw: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take (mean, standard deviation), each [c], of the raw latents at each scale."""
        for i, (mean, spread) in zip(self.scales, raw, strict=True):
            getattr(self, f"mean_{i}").copy_(mean)
            getattr(self, f"spread_{i}").copy_(spread.clamp_min(LEAST_SPREAD))

    def _edge(self, i: int) -> int:
        """Pixels along the edge of what one position of scale i stands for."""
        return self.fold * 2**i

    def _unfolded(self, said: Tensor) -> Tensor:
        image = functional.pixel_shuffle(said, self.fold)
        return image[:, :1] + self.detail * image[:, 1:] if self.detail else image

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
