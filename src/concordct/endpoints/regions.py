"""Parts of the lungs that endpoints are given for: both, each side, and thirds from apex to base."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from concordct.radiomics.regions.lungs import LUNGS
from concordct.volumes.volume import Volume

#: Thirds of the lungs' height, from the head down.
THIRDS = ("upper", "middle", "lower")
PARTS = ("lungs", *LUNGS, *THIRDS)


class LungVoxels:
    """HU of the voxels inside the lungs, gathered once, with what part of the lungs each lies in.

    Parameters
    ----------
    volume : the image.
    mask : [z, y, x] 1 right, 2 left; other labels count as lung of no side.
    """

    def __init__(self, volume: Volume, mask: NDArray[np.uint8]) -> None:
        inside = mask > 0
        self.hu = volume.hu[inside]  # [voxel]
        self._side = mask[inside]
        slices = np.flatnonzero(inside.any(axis=(1, 2)))
        counts = inside.sum(axis=(1, 2))
        first, last = int(slices[0]), int(slices[-1])
        # Slice z of 0 .. n-1 belongs to third floor(3 z / n), counted from the head.
        third = np.clip(3 * (np.arange(mask.shape[0]) - first) // (last - first + 1), 0, 2)
        if volume.affine[2, 0] > 0:
            third = 2 - third
        self._third = np.repeat(third.astype(np.uint8), counts)

    def of(self, part: str) -> NDArray[np.float32]:
        """[voxel] HU inside one of `PARTS`; empty where the image does not show it."""
        if part == "lungs":
            return self.hu
        chosen = self._side == LUNGS[part] if part in LUNGS else self._third == THIRDS.index(part)
        return np.asarray(self.hu[chosen])
