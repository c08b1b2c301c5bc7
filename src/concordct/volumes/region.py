"""One ROI on the grid of an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

#: A mask's voxel may lie this far from the image's, in voxels: writers round spacing and origin.
GRID_TOLERANCE = 0.05


@dataclass(frozen=True, eq=False)
class Region:
    """One ROI on the image's grid. It keeps its box alone, so that thousands of ROIs take no more memory than a few.

    Attributes
    ----------
    number, name : in the file; the name is one printable line.
    box : where it lies in the image, a slice for each axis.
    inside : [z, y, x] bool of the box.
    shape : (z, y, x) of the image.
    """

    number: int
    name: str
    box: tuple[slice, slice, slice]
    inside: NDArray[np.bool_]
    shape: tuple[int, int, int]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """[z, y, x] bool of the image, made anew at every call."""
        mask = np.zeros(self.shape, bool)
        mask[self.box] = self.inside
        return mask


def whole_image(shape: tuple[int, int, int], *, number: int = 1, name: str = "image") -> Region:
    """The whole image as one region."""
    z, y, x = (slice(0, size) for size in shape)
    return Region(number, name, (z, y, x), np.broadcast_to(np.True_, shape), shape)


def region(number: int, name: str, mask: NDArray[np.bool_]) -> Region:
    """An ROI from a mask [z, y, x] of the whole image with at least one voxel."""
    (box,) = ndimage.find_objects(mask.view(np.uint8), max_label=1)
    return Region(number, name, box, mask[box].copy(), (mask.shape[0], mask.shape[1], mask.shape[2]))
