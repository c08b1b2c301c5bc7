"""UNet++: an encoder and a decoder joined by nested, dense skip pathways, with deep supervision.

Zhou et al. 2018, arXiv:1807.10165; used by LTDiff++ (arXiv:2410.04000). Node X(i, j) stands at scale i, j steps to the
right of the encoder; the outputs X(0, 1) ... X(0, L) have a head each. LTDiff++ prints the bracket of X(i, j) with
X(i, j-1) alone; here it holds every X(i, k), k < j, as in the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from concordct.nets.blocks import ChannelNorm, ResidualBlock, convolution, copy_first, orthogonal

Resampling = Literal["pool", "learned"]


class Plain(nn.Module):
    """H of the paper: convolution and activation, twice."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            convolution(inputs, outputs),
            ChannelNorm(outputs),
            nn.SiLU(),
            convolution(outputs, outputs),
            ChannelNorm(outputs),
            nn.SiLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[b, inputs, y, x] to [b, outputs, y, x]."""
        return self.layers(x)


class UNetPlusPlus(nn.Module):
    """UNet++ of depth `len(widths) - 1`.

    Parameters
    ----------
    inputs, outputs : channels of the images.
    widths : channels at each scale, the full resolution first; each scale halves the size.
    residual : blocks with shortcuts (LTDiff++'s "residual-based" encoder-decoder) instead of plain ones.
    dense : False leaves every X(i, k) out of the brackets: an encoder-decoder without skips.
    resampling : "pool" halves by averaging and doubles by nearest neighbours; "learned" does both by convolutions of
        2 x 2 positions, which can carry texture to a coarser scale and back where averages cannot.
    identity : start so that every untrained output is the input; needs `residual`, `dense`, as many outputs as inputs
        and a first width that holds them.

    Raises
    ------
    ValueError : fewer than two scales, or a depth that the network does not have.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        widths: Sequence[int],
        *,
        residual: bool = True,
        dense: bool = True,
        resampling: Resampling = "pool",
        identity: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"UNet++ needs at least two scales, found {len(widths)}")
        self.inputs, self.outputs, self.widths = inputs, outputs, tuple(widths)
        self.residual, self.dense, self.depth, self.resampling = residual, dense, len(widths) - 1, resampling
        self.down, self.up = nn.ModuleDict(), nn.ModuleDict()
        block = ResidualBlock if residual else Plain
        self.stem = convolution(inputs, widths[0])
        self.nodes = nn.ModuleDict()
        for i, width in enumerate(widths):
            self.nodes[f"{i}_0"] = block(widths[max(i - 1, 0)], width)
            for j in range(1, self.depth - i + 1):
                self.nodes[f"{i}_{j}"] = block((j * width if dense else 0) + widths[i + 1], width)
                if resampling == "learned":
                    self.up[f"{i}_{j}"] = orthogonal(nn.ConvTranspose2d(widths[i + 1], widths[i + 1], 2, stride=2))
            if i and resampling == "learned":
                self.down[str(i)] = orthogonal(nn.Conv2d(widths[i - 1], widths[i - 1], 2, stride=2))
        self.heads = nn.ModuleList(convolution(widths[0], outputs, 1) for _ in range(self.depth))
        if identity:
            if not (residual and dense and inputs == outputs <= widths[0]):
                raise ValueError(
                    "UNet++ starts as the identity only with residual blocks, skips and room for its input"
                )
            # X(0, 0) runs through the shortcuts of X(0, j).
            copy_first(self.stem, inputs)
            for j in range(1, self.depth + 1):
                copy_first(self.nodes[f"0_{j}"].get_submodule("shortcut"), widths[0])
                copy_first(self.heads[j - 1], outputs)

    def encode(self, x: Tensor, *, depth: int | None = None, beside: Sequence[Tensor] | None = None) -> list[Tensor]:
        """[b, inputs, y, x] to X(0, 0) ... X(depth, 0), each half the size of the one before.

        Parameters
        ----------
        beside : what is added to the features that enter scale 1, 2, ..., [b, width of the scale above, y, x] each.
        """
        features = [self.nodes["0_0"](self.stem(x))]
        for i in range(1, self._depth(depth) + 1):
            # Zhou 2018, eq. 1, j = 0: X(i, 0) = H(X(i-1, 0)), after halving the size.
            down = (
                functional.avg_pool2d(features[-1], 2) if self.resampling == "pool" else self.down[str(i)](features[-1])
            )
            features.append(self.nodes[f"{i}_0"](down if beside is None else down + beside[i - 1]))
        return features

    def decode(self, features: Sequence[Tensor]) -> list[Tensor]:
        """X(0, 0) ... X(d, 0) to the d outputs, the deepest last; only the nodes with i + j <= d are computed."""
        depth = self._depth(len(features) - 1)
        grid = {(i, 0): feature for i, feature in enumerate(features)}
        for j in range(1, depth + 1):
            for i in range(depth - j + 1):
                # Zhou 2018, eq. 1, j > 0: X(i, j) = H([[X(i, k)] for k < j, U(X(i+1, j-1))])
                below = grid[i + 1, j - 1]
                if self.resampling == "pool":
                    up = functional.interpolate(below, scale_factor=2.0, mode="nearest")
                else:
                    up = self.up[f"{i}_{j}"](below)
                before = [grid[i, k] for k in range(j)] if self.dense else []
                grid[i, j] = self.nodes[f"{i}_{j}"](torch.cat([*before, up], dim=1))
        return [self.heads[j - 1](grid[0, j]) for j in range(1, depth + 1)]

    def forward(self, x: Tensor, *, depth: int | None = None) -> list[Tensor]:
        """[b, inputs, y, x], sizes divisible by 2^depth, to `depth` outputs of [b, outputs, y, x]."""
        return self.decode(self.encode(x, depth=depth))

    def pruned(self, depth: int) -> UNetPlusPlus:
        """The sub-network of that depth as a network of its own, with these weights."""
        small = UNetPlusPlus(
            self.inputs,
            self.outputs,
            self.widths[: self._depth(depth) + 1],
            residual=self.residual,
            dense=self.dense,
            resampling=self.resampling,
        )
        own = self.state_dict()
        small.load_state_dict({name: own[name] for name in small.state_dict()})
        return small

    def _depth(self, depth: int | None) -> int:
        if depth is not None and not 1 <= depth <= self.depth:
            raise ValueError(f"UNet++ of depth {self.depth} has no depth {depth}")
        return self.depth if depth is None else depth


def shallow_first(depth: int) -> tuple[float, ...]:
    """Equal weights w_j of the deep supervision, as in Zhou 2018; LTDiff++ prints no values."""
    return (1.0 / depth,) * depth
