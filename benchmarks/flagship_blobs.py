"""A plain detector of 4 mm balls: local maxima of the scale-normalized Laplacian of Gaussian, in the lungs.

Vessels that cross a slice are found as well; what counts is whether an image shows blobs that its target does not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

#: Radius looked for, mm; a ball answers most at sigma = r / sqrt(3).
RADIUS_MM = 2.0
#: HU are cut here first, so that bone and metal beyond the lungs' edge answer no more than soft tissue.
HIGHEST_HU = 200.0
#: Blobs lie at least this far inside the lungs, in the slice, mm.
MARGIN_MM = 3.0
#: Responses under this are not kept, HU.
FLOOR_HU = 50.0
#: Two blobs nearer than this are one, mm.
SAME_MM = 3.0


def blobs(
    hu: NDArray[np.float32], lungs: NDArray[np.bool_], spacing_mm: tuple[float, float, float]
) -> NDArray[np.float64]:
    """[blob, (z, y, x, response)], mm from the first voxel, and HU; in order of response, the strongest first."""
    answer = response(hu, spacing_mm)
    far = np.stack([ndimage.distance_transform_edt(one) for one in lungs]) * spacing_mm[1] >= MARGIN_MM
    reach = tuple(2 * round(RADIUS_MM / d) + 1 for d in spacing_mm)
    peak = (answer == ndimage.maximum_filter(answer, reach)) & far & (answer > FLOOR_HU)
    places = np.argwhere(peak)
    order = np.argsort(-answer[peak], kind="stable")
    return np.column_stack([places * np.array(spacing_mm), answer[peak]])[order].reshape(-1, 4)


def response(hu: NDArray[np.float32], spacing_mm: tuple[float, float, float]) -> NDArray[np.float32]:
    """[z, y, x] scale-normalized negative Laplacian of Gaussian, HU (Lindeberg 1998, doi:10.1023/A:1008045108935)."""
    sigma_mm = RADIUS_MM / np.sqrt(3)
    image = np.minimum(hu, np.float32(HIGHEST_HU))
    found = np.zeros_like(image)
    for axis, step in enumerate(spacing_mm):
        order = [2 if one == axis else 0 for one in range(3)]
        sigmas = [sigma_mm / d for d in spacing_mm]
        found -= ndimage.gaussian_filter(image, sigmas, order=order, mode="nearest") * np.float32(
            (sigma_mm / step) ** 2
        )
    return found


def unmatched(one: NDArray[np.float64], other: NDArray[np.float64], threshold: float, within: float) -> int:
    """Blobs over a threshold that the other image does not show near by.

    Parameters
    ----------
    within : share of the threshold that the other's blob must reach: near the threshold noise alone decides.
    """
    strong, partners = one[one[:, 3] > threshold], other[other[:, 3] > within * threshold]
    if not len(strong) or not len(partners):
        return len(strong)
    away = np.linalg.norm(strong[:, None, :3] - partners[None, :, :3], axis=-1).min(axis=1)
    return int((away > SAME_MM).sum())
