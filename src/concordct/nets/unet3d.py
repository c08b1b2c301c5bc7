"""The attention U-Net in three dimensions, with a place for text.

Oktay et al. 2018 (arXiv:1804.03999) for the gates on the skips, which is what CIResDiff (arXiv:2408.00938) cites as its
f_theta; its eq. 5 for the text. No part looks at more of the volume than its kernel (`nets/blocks.py`), so overlapping
patches agree away from their borders; attention over voxels would break that, and eq. 5 does not have it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from concordct.nets.blocks import ChannelNorm, ResidualBlock, TimeEmbedding, convolution, zeroed

#: Where the query of the cross-attention comes from; "none" leaves the text out.
Query = Literal["none", "text", "image"]

#: Started so that a gate lets nearly everything pass: sigmoid(2) = 0.88.
GATE_BIAS = 2.0
#: Spread of a query's and a key's components for text features of unit spread: logits of about 1, which the softmax
#: turns into weights that differ from patient to patient from the first step on.
QUERY_SPREAD = 1.0
#: Mixed channels enter the last convolution so much enlarged: an optimizer of Adam's kind moves every weight alike, and
#: the text has few of them against the image's hundred thousands.
MIXED_GAIN = 4.0
#: Numbers that the whole network takes from a sentence.
READ = 2


def fold(x: Tensor, factor: int) -> Tensor:
    """Blocks of factor^3 voxels become channels: [b, c, z, y, x] to [b, c factor^3, z / factor, ...]."""
    b, c, z, y, x_ = x.shape
    f = factor
    parts = x.reshape(b, c, z // f, f, y // f, f, x_ // f, f)
    return parts.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * f**3, z // f, y // f, x_ // f)


def unfold(x: Tensor, factor: int) -> Tensor:
    """The inverse of `fold`."""
    b, c, z, y, x_ = x.shape
    f = factor
    parts = x.reshape(b, c // f**3, f, f, f, z, y, x_)
    return parts.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, c // f**3, z * f, y * f, x_ * f)


class SkipGate(nn.Module):
    """Oktay et al. 2018, eqs. 1 and 2: each voxel of a skip is weighted by what the coarser scale makes of it."""

    def __init__(self, skip: int, gating: int) -> None:
        super().__init__()
        inner = max(skip // 2, 1)
        self.of_skip = convolution(skip, inner, 1, dims=3)
        self.of_gating = convolution(gating, inner, 1, dims=3)
        self.weight = zeroed(convolution(inner, 1, 1, dims=3))
        nn.init.constant_(self.weight.get_parameter("bias"), GATE_BIAS)

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        """[b, skip, z, y, x], [b, gating, z/2, y/2, x/2] to the shape of the skip."""
        at_skip = functional.interpolate(self.of_gating(gating), scale_factor=2.0, mode="nearest")
        return skip * torch.sigmoid(self.weight(functional.relu(self.of_skip(skip) + at_skip)))


class TextQueryAttention(nn.Module):
    """CIResDiff, eq. 5, as printed: softmax(Q_text K_text' / sqrt(d) + B) V_CT.

    Query and key come from the text alone, so the weights are [L, L] for its L rows, and V must have L rows as well.
    The CT's voxels cannot be these rows: their number is another in every volume, and a text laid over all of them
    would have equal logits everywhere, which the softmax cancels. Here the rows are L groups of channels: Conv_Q and
    Conv_K make L vectors each of the sentence's feature, Conv_V gives L m channels of the CT, and the text decides
    which groups are mixed into which. B is [L, L]. Voxels are never compared, so a patch and the volume give the same.

    One row for each of the 77 words instead drowns the sentence: a word that tells two patients apart moves the softmax
    over all words by some per cent, and the network never learned to read it (docs/decisions.md).

    Parameters
    ----------
    channels : of the CT's features. text : of the sentence's. groups : L. heads : each mixes its own share of m.
    """

    def __init__(self, channels: int, text: int, *, groups: int = 16, heads: int = 2, depth: int = 8) -> None:
        super().__init__()
        self.groups, self.heads, self.depth = groups, heads, depth
        rows = heads * groups
        each = max(1, round(channels / rows))
        self.norm = ChannelNorm(channels)
        self.query = nn.Linear(text, rows * depth)
        self.key = nn.Linear(text, rows * depth)
        for layer in (self.query, self.key):
            nn.init.normal_(layer.weight, std=QUERY_SPREAD / math.sqrt(text))
            # Without a bias the logits are even in the text: twice the mean and none of it would be the same.
            nn.init.normal_(layer.bias, std=QUERY_SPREAD)
        self.value = convolution(channels, rows * each, 1, dims=3)
        self.bias = nn.Parameter(torch.zeros(heads, groups, groups))
        self.mixed = ChannelNorm(rows * each)
        nn.init.constant_(self.mixed.gain, MIXED_GAIN)
        self.out = zeroed(convolution(rows * each, channels, 1, dims=3))

    def forward(self, x: Tensor, words: Tensor, there: Tensor) -> Tensor:
        """[b, channels, z, y, x], [b, 1, text] the sentence's features, [b, 1] to the shape of x."""
        b = words.shape[0]
        q = self.query(words[:, 0]).reshape(b, self.heads, self.groups, self.depth)
        k = self.key(words[:, 0]).reshape(b, self.heads, self.groups, self.depth)
        # eq. 5
        weights = (q @ k.transpose(-1, -2) / math.sqrt(self.depth) + self.bias).softmax(dim=-1)  # [b, heads, L, L]
        v = self.value(self.norm(x))
        rows = v.reshape(b, self.heads, self.groups, -1)  # [b, heads, L, m z y x]
        return x + self.out(self.mixed((weights @ rows).reshape(v.shape)))


class ImageQueryAttention(nn.Module):
    """The usual cross-attention: each voxel asks, the words answer; B is a bias for each position of the sentence."""

    def __init__(self, channels: int, text: int, length: int, *, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.depth = heads, max(text // heads, 1)
        inner = heads * self.depth
        self.norm = ChannelNorm(channels)
        self.query = convolution(channels, inner, 1, dims=3)
        self.key = nn.Linear(text, inner)
        self.value = nn.Linear(text, inner)
        self.bias = nn.Parameter(torch.zeros(heads, 1, length))
        self.out = zeroed(convolution(inner, channels, 1, dims=3))

    def forward(self, x: Tensor, words: Tensor, there: Tensor) -> Tensor:
        """[b, channels, z, y, x], [b, L, text], [b, L] bool to the shape of x."""
        b, length = words.shape[:2]
        q = self.query(self.norm(x)).flatten(2).reshape(b, self.heads, self.depth, -1).transpose(2, 3)
        k = self.key(words).reshape(b, length, self.heads, self.depth).transpose(1, 2)
        v = self.value(words).reshape(b, length, self.heads, self.depth).transpose(1, 2)
        logits = q @ k.transpose(-1, -2) / math.sqrt(self.depth) + self.bias  # [b, heads, voxels, L]
        weights = logits.masked_fill(~there[:, None, None], -torch.inf).softmax(dim=-1)
        found = (weights @ v).transpose(2, 3).reshape(b, -1, *x.shape[2:])
        return x + self.out(found)


class AttentionUNet3d(nn.Module):
    """f_theta(x_t, y_0, t, text): what is to be added to y_0.

    Parameters
    ----------
    inputs : channels of state and condition together.
    widths : channels at each scale, the finest first; each scale halves the size.
    fold : blocks of fold^3 voxels become channels inside; 1 works at full resolution.
    query : see `Query`. text, length : channels and positions of the text.
    attend : scales that the text enters, 0 the finest.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        *,
        fold: int = 1,
        query: Query = "none",
        text: int = 0,
        length: int = 0,
        attend: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.fold, self.query = fold, query
        self.divisor = fold * 2 ** (len(widths) - 1)
        embedding = 4 * widths[0]
        self.time = TimeEmbedding(embedding)
        self.stem = convolution(inputs * fold**3, widths[0], dims=3)

        def block(i: int) -> nn.Module:
            return ResidualBlock(widths[i], widths[i], embedding=embedding, dims=3)

        scales = range(len(widths))
        self.down = nn.ModuleList(block(i) for i in scales)
        self.between = nn.ModuleList(convolution(widths[i], widths[i + 1], 1, dims=3) for i in scales[:-1])
        self.gates = nn.ModuleList(SkipGate(widths[i], widths[i + 1]) for i in scales[:-1])
        self.join = nn.ModuleList(convolution(widths[i] + widths[i + 1], widths[i], 1, dims=3) for i in scales[:-1])
        self.up = nn.ModuleList(block(i) for i in scales)
        # Few numbers: with more the network knows every training patient by heart, and reads nothing of a new one.
        self.reading = nn.Linear(text, READ, bias=False) if query == "text" else None
        if self.reading is not None:
            nn.init.normal_(self.reading.weight, std=1 / math.sqrt(text))
        self.attention = nn.ModuleDict()
        for i in attend if query != "none" else ():
            by_text = query == "text"
            self.attention[str(i)] = (
                TextQueryAttention(widths[i], READ) if by_text else ImageQueryAttention(widths[i], text, length)
            )
        self.head = nn.Sequential(ChannelNorm(widths[0]), nn.SiLU(), zeroed(convolution(widths[0], fold**3, dims=3)))

    @torch.no_grad()
    def start_reading(self, direction: Tensor) -> None:
        """Let the first number that is read of a text start as its part along a direction, [text]."""
        assert self.reading is not None
        self.reading.weight[0] = direction

    def forward(self, x: Tensor, time: Tensor, words: Tensor | None = None, there: Tensor | None = None) -> Tensor:
        """[b, inputs, z, y, x], [b] in [0, 1], [b, L, text], [b, L] bool to [b, 1, z, y, x].

        Sizes must be multiples of `divisor`.
        """
        embedding = self.time(time)
        if self.reading is not None and words is not None:
            words = self.reading(words)
        y = self.stem(fold(x, self.fold))
        skips: list[Tensor] = []
        for i, stage in enumerate(self.down):
            y = stage(y if i == 0 else self.between[i - 1](functional.avg_pool3d(y, 2)), embedding)
            skips.append(y)
        for i in reversed(range(len(self.up))):
            if i + 1 < len(self.up):
                gated = self.gates[i](skips[i], y)
                y = self.join[i](torch.cat([gated, functional.interpolate(y, scale_factor=2.0, mode="nearest")], dim=1))
            if str(i) in self.attention and words is not None and there is not None:
                y = self.attention[str(i)](y, words, there)
            y = self.up[i](y, embedding)
        return unfold(self.head(y), self.fold)
