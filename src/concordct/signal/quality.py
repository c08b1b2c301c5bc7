"""How far one image is from another: HU error, PSNR, SSIM, bias by HU range.

SSIM is scikit-image's (Wang et al. 2004, doi:10.1109/TIP.2003.819861) with the data range that the caller names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError

#: Ranges in which bias is reported: lung, between, fat, soft tissue and contrast, bone and beyond.
BIAS_RANGES_HU = ((-1100.0, -500.0), (-500.0, -150.0), (-150.0, -20.0), (-20.0, 150.0), (150.0, 300.0), (300.0, 3072.0))


class Planes(Protocol):
    """A volume gone through slice by slice, [y, x] float32 HU: an array [z, y, x], or what makes slices as asked."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __iter__(self) -> Iterator[NDArray[np.float32]]: ...


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


def compare_images(image: Planes, target: Planes, mask: NDArray[np.bool_], *, data_range_hu: float) -> Quality:
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
    # Here, not above: what standardizes needs this module and no scikit-image.
    from skimage.metrics import structural_similarity

    if image.shape != target.shape or mask.shape != target.shape:
        raise ConcordctError(f"expected shapes {target.shape}, found image {image.shape} and mask {mask.shape}")
    if not mask.any():
        raise ConcordctError("expected a mask with voxels in it, found an empty one")
    sums, ssim_sum, count = np.zeros(3), 0.0, int(mask.sum())
    for one, other, inside in zip(image, target, mask, strict=True):
        if not inside.any():
            continue
        error = (one - other)[inside].astype(np.float64)
        sums += np.square(error).sum(), np.abs(error).sum(), error.sum()
        if min(one.shape) < 7:
            continue
        _, similarity = structural_similarity(one, other, data_range=data_range_hu, full=True)
        ssim_sum += float(similarity[inside].sum(dtype=np.float64))
    square, mae, bias = (float(value) for value in sums / count)
    rmse = math.sqrt(square)
    return Quality(
        rmse_hu=rmse,
        mae_hu=mae,
        bias_hu=bias,
        psnr_db=float(20 * np.log10(data_range_hu / rmse)) if rmse > 0 else float("inf"),
        ssim=ssim_sum / count if min(image.shape[1:]) >= 7 else float("nan"),
        data_range_hu=data_range_hu,
        voxels=count,
    )


def bias_by_range(
    image: Planes,
    target: Planes,
    mask: NDArray[np.bool_],
    *,
    ranges_hu: tuple[tuple[float, float], ...] = BIAS_RANGES_HU,
) -> list[tuple[tuple[float, float], float, int]]:
    """Mean error where the target lies in each HU range [low, high).

    Returns
    -------
    (range, mean of image - target in HU, voxels) for each range; NaN where it has no voxel.
    """
    sums, counts = np.zeros(len(ranges_hu)), np.zeros(len(ranges_hu), int)
    for one, other, body in zip(image, target, mask, strict=True):
        for index, (low, high) in enumerate(ranges_hu):
            inside = body & (other >= low) & (other < high)
            sums[index] += (one - other)[inside].sum(dtype=np.float64)
            counts[index] += np.count_nonzero(inside)
    return [
        (bounds, float(total / count) if count else float("nan"), int(count))
        for bounds, total, count in zip(ranges_hu, sums, counts, strict=True)
    ]
