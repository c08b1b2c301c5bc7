"""How far one image is from another: HU error, PSNR, SSIM, bias by HU range.

SSIM is scikit-image's (Wang et al. 2004, doi:10.1109/TIP.2003.819861) with the data range that the caller names.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from concordct.errors import ConcordctError

#: Ranges in which bias is reported: lung, between, fat, soft tissue and contrast, bone and beyond.
BIAS_RANGES_HU = ((-1100.0, -500.0), (-500.0, -150.0), (-150.0, -20.0), (-20.0, 150.0), (150.0, 300.0), (300.0, 3072.0))


@dataclass(frozen=True)
class Quality:
    """Agreement of an image with a target inside a mask.

    Attributes
    ----------
    rmse_hu, mae_hu, bias_hu : root mean square error, mean absolute error, mean error (image - target), HU.
    psnr_db : 20 log10(data range / RMSE).
    ssim : mean over the mask of the slices' SSIM maps; NaN for slices smaller than its 7 x 7 window.
    data_range_hu : what PSNR and SSIM refer to.
    voxels : inside the mask.
    """

    rmse_hu: float
    mae_hu: float
    bias_hu: float
    psnr_db: float
    ssim: float
    data_range_hu: float
    voxels: int


def compare_images(
    image: NDArray[np.float32], target: NDArray[np.float32], mask: NDArray[np.bool_], *, data_range_hu: float
) -> Quality:
    """Compare two volumes inside a mask.

    Parameters
    ----------
    image, target : [z, y, x], HU.
    mask : [z, y, x] bool.
    data_range_hu : span of HU for PSNR and SSIM; never the images' own.

    Raises
    ------
    ConcordctError : shapes differ, or the mask is empty.
    """
    if image.shape != target.shape or mask.shape != target.shape:
        raise ConcordctError(f"expected shapes {target.shape}, found image {image.shape} and mask {mask.shape}")
    if not mask.any():
        raise ConcordctError("expected a mask with voxels in it, found an empty one")
    error = (image - target)[mask].astype(np.float64)
    rmse = float(np.sqrt(np.mean(error**2)))
    ssim_sum = 0.0
    for one, other, inside in zip(image, target, mask, strict=True):
        if min(one.shape) < 7 or not inside.any():
            continue
        _, similarity = structural_similarity(one, other, data_range=data_range_hu, full=True)
        ssim_sum += float(similarity[inside].sum(dtype=np.float64))
    return Quality(
        rmse_hu=rmse,
        mae_hu=float(np.mean(np.abs(error))),
        bias_hu=float(np.mean(error)),
        psnr_db=float(20 * np.log10(data_range_hu / rmse)) if rmse > 0 else float("inf"),
        ssim=ssim_sum / error.size if min(image.shape[1:]) >= 7 else float("nan"),
        data_range_hu=data_range_hu,
        voxels=int(error.size),
    )


def bias_by_range(
    image: NDArray[np.float32],
    target: NDArray[np.float32],
    mask: NDArray[np.bool_],
    *,
    ranges_hu: tuple[tuple[float, float], ...] = BIAS_RANGES_HU,
) -> list[tuple[tuple[float, float], float, int]]:
    """Mean error where the target lies in each HU range [low, high).

    Returns
    -------
    (range, mean of image - target in HU, voxels) for each range; NaN where it has no voxel.
    """
    found = []
    for low, high in ranges_hu:
        inside = mask & (target >= low) & (target < high)
        count = int(inside.sum())
        bias = float(np.mean((image - target)[inside], dtype=np.float64)) if count else float("nan")
        found.append(((low, high), bias, count))
    return found
