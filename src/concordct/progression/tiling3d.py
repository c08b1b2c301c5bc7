"""A network for patches as a function of a whole volume: overlapping patches, blended where they meet.

Only what the network estimates is blended. The noise of a sampler is drawn for the whole volume, so that no two samples
are ever averaged and nothing is too smooth where patches meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Patches that go through the network together: a constant, so that it changes no byte.
AT_ONCE = 2


def starts(length: int, size: int, overlap: int, divisor: int) -> tuple[int, ...]:
    """First voxels of patches along an axis, all multiples of `divisor`; the last patch ends with the axis.

    Parameters
    ----------
    length : of the axis, a multiple of `divisor`, at least `size`.
    size : edge of a patch. overlap : of neighbours, at least; both multiples of `divisor`.
    """
    found = list(range(0, max(length - size, 0) + 1, size - overlap))
    if found[-1] + size < length:
        found.append(length - size)
    if any(start % divisor for start in found):
        raise ValueError(
            f"patches of {size} overlapping by {overlap} in {length} do not start at multiples of {divisor}"
        )
    return tuple(found)


def window(size: int, overlap: int) -> Tensor:
    """[size, size, size] weight of each voxel of a patch: 1 inside, falling to nearly 0 at the border.

    Squared sines of neighbours add up to 1; at the border, where a network saw no neighbours, they hardly count.
    """
    distance = torch.arange(size, dtype=torch.float32)
    share = ((torch.minimum(distance, size - 1 - distance) + 0.5) / max(overlap, 1)).clamp(max=1.0)
    ramp = torch.sin(0.5 * math.pi * share) ** 2
    return ramp[:, None, None] * ramp[None, :, None] * ramp[None, None]


def blended(
    estimate: Callable[[Sequence[Tensor]], Tensor],
    volumes: Sequence[Tensor],
    inside: NDArray[np.bool_],
    *,
    size: int,
    overlap: int,
    divisor: int,
    device: torch.device,
) -> Tensor:
    """What `estimate` makes of patches, as one volume.

    Parameters
    ----------
    estimate : patches of each volume, [b, 1, size, size, size], to [b, 1, size, size, size].
    volumes : each [z, y, x], multiples of `divisor`, at least `size`.
    inside : [z, y, x] bool; a patch without any of it is left out.

    Returns
    -------
    [z, y, x]; 0 where no patch was.
    """
    shape = volumes[0].shape
    axes = [starts(length, size, overlap, divisor) for length in shape]
    corners = [
        (z, y, x)
        for z in axes[0]
        for y in axes[1]
        for x in axes[2]
        if inside[z : z + size, y : y + size, x : x + size].any()
    ]
    weight = window(size, overlap)
    total, weights = torch.zeros(shape), torch.zeros(shape)
    for first in range(0, len(corners), AT_ONCE):
        group = corners[first : first + AT_ONCE]
        cut = [
            torch.stack([one[z : z + size, y : y + size, x : x + size] for z, y, x in group])[:, None].to(device)
            for one in volumes
        ]
        found = estimate(cut)[:, 0].float().cpu()
        for (z, y, x), one in zip(group, found, strict=True):
            where = (slice(z, z + size), slice(y, y + size), slice(x, x + size))
            total[where] += weight * one
            weights[where] += weight
    return torch.where(weights > 0, total / weights.clamp(min=1e-12), 0.0)
