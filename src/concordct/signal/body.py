"""Where the patient is: the body region of a slice, and the patches in it that show noise rather than anatomy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.signal.quality import Planes
from concordct.volumes.padding import touching_border
from concordct.volumes.volume import BODY_ABOVE_HU

#: Smallest thing that counts as material: an insert of a phantom, not the tubing on the table.
MATERIAL_MM2 = 100.0


def body_mask(hu: Planes) -> NDArray[np.bool_]:
    """The largest region above -500 HU of each slice, with its holes (lungs, bowel gas) filled.

    Parameters
    ----------
    hu : [z, y, x], HU.

    Returns
    -------
    [z, y, x] bool; a slice with nothing above the threshold comes out empty.
    """
    mask = np.zeros(hu.shape, dtype=bool)
    for index, image in enumerate(hu):
        # Filled before the largest is chosen: a skull is a thin ring whose area counts with what it encloses.
        filled = ~touching_border(~(image > BODY_ABOVE_HU))
        labels, count = ndimage.label(filled)
        if count:
            sizes = np.bincount(labels.ravel())
            sizes[0] = 0
            mask[index] = labels == sizes.argmax()
    return mask


def material_mask(hu: NDArray[np.float32], spacing_mm: tuple[float, float]) -> NDArray[np.bool_]:
    """Filled regions above -500 HU that cover at least 1 cm^2 of a slice: bodies, both legs, inserts of a phantom.

    Parameters
    ----------
    hu : [z, y, x], HU.
    spacing_mm : (y, x), mm.

    Returns
    -------
    [z, y, x] bool.
    """
    mask = np.zeros(hu.shape, dtype=bool)
    for index, image in enumerate(hu):
        labels, _ = ndimage.label(~touching_border(~(image > BODY_ABOVE_HU)))
        large = np.bincount(labels.ravel()) * spacing_mm[0] * spacing_mm[1] >= MATERIAL_MM2
        large[0] = False
        mask[index] = large[labels]
    return mask


def patch_corners(mask: NDArray[np.bool_], size: int) -> NDArray[np.intp]:
    """Top-left corners (row, column) of the non-overlapping size x size patches that lie wholly inside a mask.

    Parameters
    ----------
    mask : [y, x] bool.
    size : edge of a patch, pixels.

    Returns
    -------
    [n, 2] rows and columns, in reading order.
    """
    rows, columns = mask.shape[0] // size, mask.shape[1] // size
    blocks = mask[: rows * size, : columns * size].reshape(rows, size, columns, size).all(axis=(1, 3))
    return np.argwhere(blocks) * size
