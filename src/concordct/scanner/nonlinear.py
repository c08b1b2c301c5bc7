"""What iterative reconstruction does to an image, in one step: noise shrinks where it is weak, edges stay.

Not a reconstruction: the high-pass part of a filtered back projection is compared with its own local noise, and what
does not stand out is scaled down. Like the real thing it lowers noise, moves its spectrum to low frequencies, depends
on the neighbourhood and has no linear inverse.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

#: Width of the low-pass part and of the neighbourhood that noise is read from, mm.
DETAIL_MM, NEIGHBOURHOOD_MM = 0.9, 6.0
#: Share of the noise that the strongest setting takes away.
LARGEST_SHRINKAGE = 0.8
#: Details above this many standard deviations count as edges and pass.
EDGE = 2.5


def shrink_noise(hu: NDArray[np.floating[Any]], pixel_mm: float, strength: int) -> NDArray[np.float32]:
    """Apply the step to slices [..., y, x]; `strength` from 1 to 5."""
    out = np.empty(hu.shape, dtype=np.float32)
    for index in np.ndindex(hu.shape[:-2]):
        plane = np.asarray(hu[index], dtype=np.float32)
        smooth = gaussian_filter(plane, DETAIL_MM / pixel_mm)
        detail = plane - smooth
        # Clipping before averaging keeps edges from passing as noise.
        limit = 4.0 * np.median(np.abs(detail)) + 1.0
        noise = np.sqrt(gaussian_filter(np.clip(detail, -limit, limit) ** 2, NEIGHBOURHOOD_MM / pixel_mm) + 1.0)
        share = strength / 5.0 * LARGEST_SHRINKAGE * np.exp(-((detail / (EDGE * noise)) ** 2))
        out[index] = smooth + detail * (1.0 - share)
    return out
