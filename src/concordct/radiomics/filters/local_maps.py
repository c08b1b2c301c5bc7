"""Local entropy, range and standard deviation: each voxel against a window around it.

Windows are cut at the border of the image, not at that of an ROI.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.signal.compiled import compiled

Array = NDArray[np.float64]


def local_range(image: Array, window: tuple[int, int, int]) -> Array:
    """[z, y, x] greatest minus least intensity in the window (z, y, x voxels, odd)."""
    high = ndimage.maximum_filter(image, size=window, mode="nearest")
    return np.asarray(high - ndimage.minimum_filter(image, size=window, mode="nearest"), dtype=np.float64)


def local_deviation(image: Array, window: tuple[int, int, int]) -> Array:
    """[z, y, x] standard deviation (over n) of the intensities in the window."""
    centred = image - image.mean()
    weight = ndimage.uniform_filter(np.ones(image.shape), size=window, mode="constant")
    mean = ndimage.uniform_filter(centred, size=window, mode="constant") / weight
    square = ndimage.uniform_filter(centred**2, size=window, mode="constant") / weight
    return np.asarray(np.sqrt(np.maximum(square - mean**2, 0.0)), dtype=np.float64)


def local_entropy(levels: NDArray[np.int32], window: tuple[int, int, int]) -> Array:
    """[z, y, x] entropy, bits, of the grey levels (0 and above) in the window."""
    rz, ry, rx = (side // 2 for side in window)
    found: Array = _entropy(np.ascontiguousarray(levels), rz, ry, rx, int(levels.max()) + 1)
    return found


@compiled
def _entropy(levels, rz, ry, rx, n_levels):  # type: ignore[no-untyped-def]
    """Slides the window along x: c log2 c of one level changes at a time."""
    depth, height, width = levels.shape
    out = np.empty(levels.shape)
    most = (2 * rz + 1) * (2 * ry + 1) * (2 * rx + 1)
    weighted = np.zeros(most + 1)
    for c in range(2, most + 1):
        weighted[c] = c * np.log2(c)
    for z in range(depth):
        z0, z1 = max(0, z - rz), min(depth, z + rz + 1)
        for y in range(height):
            y0, y1 = max(0, y - ry), min(height, y + ry + 1)
            counts = np.zeros(n_levels, np.int64)
            total = 0
            for x in range(-rx, width):
                ahead = x + rx
                if ahead < width:
                    for a in range(z0, z1):
                        for b in range(y0, y1):
                            counts[levels[a, b, ahead]] += 1
                            total += 1
                behind = x - rx - 1
                if behind >= 0:
                    for a in range(z0, z1):
                        for b in range(y0, y1):
                            counts[levels[a, b, behind]] -= 1
                            total -= 1
                if x >= 0:
                    summed = 0.0
                    for level in range(n_levels):
                        summed += weighted[counts[level]]
                    out[z, y, x] = max(np.log2(total) - summed / total, 0.0)
    return out
