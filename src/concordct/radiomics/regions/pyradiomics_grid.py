"""The grids that PyRadiomics measures on: the image as it is, cropped about an ROI, or resampled about it.

Source: PyRadiomics 3.0.1, `imageoperations.py`. Its resampling keeps the corner of the image (IBSI keeps the centre),
takes masks by nearest neighbour, and gives back the pixel type that it got: whole numbers stay whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError

Box = tuple[slice, ...]
Array = NDArray[np.float64]

#: Voxels around the resampled part that a cubic spline feels: its weights fall as 0.27^n, 1e-18 at 32.
SPLINE_REACH = 32


@dataclass(frozen=True, eq=False)
class GridFrame:
    """An image with the ROIs measured in it.

    Attributes
    ----------
    image : [z, y, x], float32 as read or float64.
    spacing_mm : (z, y, x).
    rois : label -> (mask [z, y, x] bool within its box, the box).
    """

    image: NDArray[np.floating[Any]]
    spacing_mm: tuple[float, float, float]
    rois: dict[int, tuple[NDArray[np.bool_], Box]]


def normalized(image: Array, *, scale: float, outliers: float | None) -> Array:
    """The image with mean 0 and standard deviation 1 (n - 1), clipped at +/- `outliers`, times `scale`."""
    spread = image.std(ddof=1)
    if spread == 0:
        raise ConcordctError("normalize needs an image of more than one intensity")
    found = (image - image.mean()) / spread
    if outliers is not None:
        found = np.clip(found, -outliers, outliers)
    return found * scale


def crop_frame(frame: GridFrame, label: int, pad: int) -> GridFrame:
    """The ROI's box with `pad` voxels around it, where the image goes on."""
    mask, box = frame.rois[label]
    wide = tuple(
        slice(max(0, b.start - pad), min(n, b.stop + pad)) for b, n in zip(box, frame.image.shape, strict=True)
    )
    inner = tuple(slice(b.start - w.start, b.stop - w.start) for b, w in zip(box, wide, strict=True))
    return GridFrame(frame.image[wide], frame.spacing_mm, {label: (mask, inner)})


#: A chest of half a metre in voxels of 0.5 mm; finer grids hold no more and fill the memory.
MOST_VOXELS = 2**30


def resampled_frame(
    frame: GridFrame,
    label: int,
    spacing_mm: tuple[float, float, float],
    interpolator: str,
    pad: int,
    *,
    pixel_type: type[np.int16] | type[np.float32],
) -> GridFrame:
    """The ROI's surroundings on PyRadiomics' grid of another spacing.

    Parameters
    ----------
    spacing_mm : (z, y, x) wanted; 0 keeps an axis, and so does an axis along which the ROI is one voxel.
    interpolator : SimpleITK's name, for the image; the mask goes by nearest neighbour.
    pad : voxels of the new grid kept around the ROI.
    pixel_type : what the image is stored as, from `pixel_type`; the result is rounded to it, as ITK does.

    Raises
    ------
    ConcordctError : when SimpleITK has no such interpolator, or the new grid more than `MOST_VOXELS`.
    """
    import SimpleITK as sitk

    kind = getattr(sitk, interpolator, None)
    if kind is None:
        raise ConcordctError(f"SimpleITK has no interpolator {interpolator}")
    mask, box = frame.rois[label]
    old = np.array(frame.spacing_mm)
    size = np.array(frame.image.shape)
    start, stop = np.array([b.start for b in box]), np.array([b.stop for b in box])
    new = np.where(np.array(spacing_mm) == 0, old, spacing_mm)
    new = np.where(stop - start == 1, old, new)
    if np.allclose(old, new):
        return crop_frame(frame, label, pad)
    ratio = old / new
    first = np.maximum(np.floor((start - 0.5) * ratio - pad), 0)
    last = np.minimum(np.ceil((stop - 0.5) * ratio + pad), np.ceil(size * ratio) - 1)
    if (last - first + 1).prod() > MOST_VOXELS:
        said = " x ".join(f"{side:.4g}" for side in last - first + 1)
        raise ConcordctError(f"an ROI resampled to {said} voxels (z, y, x), expected {MOST_VOXELS} at most in all")
    shape = (last - first + 1).astype(int)
    # The corner of the first voxel stays where it was: centre at half the difference of the spacings
    origin = (0.5 * (new - old) / old + first / ratio) * old

    # A spline is fitted to the whole image, but feels nothing beyond SPLINE_REACH
    corner = np.maximum(np.floor(origin / old).astype(int) - SPLINE_REACH, 0)
    end = np.ceil((origin + (shape - 1) * new) / old).astype(int) + 1 + SPLINE_REACH
    part = tuple(slice(low, high) for low, high in zip(corner, np.minimum(end, size), strict=True))

    def run(values: NDArray[Any], how: int) -> NDArray[Any]:
        image = sitk.GetImageFromArray(values)
        image.SetSpacing(old[::-1].tolist())
        image.SetOrigin((corner * old)[::-1].tolist())
        job = sitk.ResampleImageFilter()
        job.SetOutputSpacing(new[::-1].tolist())
        job.SetSize(shape[::-1].tolist())
        job.SetOutputOrigin(origin[::-1].tolist())
        job.SetOutputPixelType(image.GetPixelID())
        job.SetInterpolator(how)
        found: NDArray[Any] = sitk.GetArrayFromImage(job.Execute(image))
        return found

    whole = np.zeros(frame.image.shape, np.uint8)
    whole[box] = mask
    moved = run(whole[part], sitk.sitkNearestNeighbor) > 0
    image = run(frame.image[part].astype(pixel_type), kind).astype(np.float64)
    # An ROI between the new voxels' centres vanishes: an empty mask, which has no features
    ends = [(int(k.min()), int(k.max()) + 1) for k in np.nonzero(moved)] if moved.any() else [(0, 1)] * 3
    inner = tuple(slice(low, high) for low, high in ends)
    return GridFrame(image, (float(new[0]), float(new[1]), float(new[2])), {label: (moved[inner], inner)})


def pixel_type(image: NDArray[np.floating[Any]]) -> type[np.int16] | type[np.float32]:
    """int16 for whole HU, as CT is stored and PyRadiomics would read it; float32 for anything else."""
    limits = np.iinfo(np.int16)
    if limits.min <= image.min() and image.max() <= limits.max and np.equal(image, np.round(image)).all():
        return np.int16
    return np.float32
