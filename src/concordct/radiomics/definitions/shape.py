"""The form of an ROI (morphology, IBSI HCUG) from its mask alone, and PyRadiomics' shape classes.

Source: IBSI reference manual, arXiv:1612.07003, section 3.1; PyRadiomics 3.0.1, `shape.py` and `shape2D.py`. What IBSI
counts as morphology but needs intensities (centre of mass shift, Moran, Geary) is in `morphology.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from concordct.radiomics.definitions.mesh import diameters, surface
from concordct.signal.compiled import compiled

#: PyRadiomics' 14 shape features, in the order of its columns.
SHAPE = (
    "Elongation",
    "Flatness",
    "LeastAxisLength",
    "MajorAxisLength",
    "Maximum2DDiameterColumn",
    "Maximum2DDiameterRow",
    "Maximum2DDiameterSlice",
    "Maximum3DDiameter",
    "MeshVolume",
    "MinorAxisLength",
    "Sphericity",
    "SurfaceArea",
    "SurfaceVolumeRatio",
    "VoxelVolume",
)

#: PyRadiomics' 9 shape features of a single slice, in the order of its columns.
SHAPE_2D = (
    "Elongation",
    "MajorAxisLength",
    "MaximumDiameter",
    "MeshSurface",
    "MinorAxisLength",
    "Perimeter",
    "PerimeterSurfaceRatio",
    "PixelSurface",
    "Sphericity",
)


@compiled
def _moments(mask):  # type: ignore[no-untyped-def]
    """Number of voxels, and the sums of their places and of the products of their places ([3], [3, 3])."""
    depth, height, width = mask.shape
    count = 0
    sums = np.zeros(3)
    products = np.zeros((3, 3))
    for z in range(depth):
        for y in range(height):
            inside = 0
            along = 0
            square = 0
            for x in range(width):
                if mask[z, y, x]:
                    inside += 1
                    along += x
                    square += x * x
            count += inside
            sums[0] += z * inside
            sums[1] += y * inside
            sums[2] += along
            products[0, 0] += z * z * inside
            products[0, 1] += z * y * inside
            products[0, 2] += z * along
            products[1, 1] += y * y * inside
            products[1, 2] += y * along
            products[2, 2] += square
    products[1, 0], products[2, 0], products[2, 1] = products[0, 1], products[0, 2], products[1, 2]
    return count, sums, products


def _spacing_3d(spacing_mm: tuple[float, ...]) -> NDArray[np.float64]:
    return np.array((1.0,) * (3 - len(spacing_mm)) + tuple(spacing_mm))


def axis_lengths(mask: NDArray[np.bool_], spacing_mm: tuple[float, ...], *, ddof: int) -> NDArray[np.float64]:
    """4 sqrt(lambda) of the voxel centres' covariance, mm, greatest first (IBSI TDIC, P9VJ, 7J51).

    The covariance is over n - `ddof`: IBSI's reference values follow from 1, PyRadiomics' from 0.
    """
    solid = mask if mask.ndim == 3 else mask[None]
    count, sums, products = _moments(solid)
    # Whole numbers below 2^53: the sums are exact, and so is what is left after centring up to one rounding
    spacing = _spacing_3d(spacing_mm)
    scatter = (products - np.outer(sums, sums) / count) * np.outer(spacing, spacing)
    values = np.linalg.eigvalsh((scatter / max(count - ddof, 1))[3 - mask.ndim :, 3 - mask.ndim :])[::-1]
    axes: NDArray[np.float64] = 4 * np.sqrt(np.maximum(values, 0.0))  # a flat ROI's least one rounds below 0
    return axes


def shape_features(mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """PyRadiomics' shape features of one ROI.

    Parameters
    ----------
    mask : [z, y, x] bool.
    spacing_mm : (z, y, x) voxel spacing.

    Returns
    -------
    [14] in the order of `SHAPE`; NaN throughout for an empty mask, elongation and flatness NaN for one voxel.
    """
    if not mask.any():
        return np.full(len(SHAPE), np.nan)
    major, minor, least = axis_lengths(mask, spacing_mm, ddof=0)
    mesh = surface(mask, spacing_mm)
    reach = diameters(mask, spacing_mm)
    return np.array(
        [
            minor / major if major else np.nan,
            least / major if major else np.nan,
            least,
            major,
            reach.column_mm,
            reach.row_mm,
            reach.slice_mm,
            reach.whole_mm,
            mesh.volume_mm3,
            minor,
            (36 * np.pi * mesh.volume_mm3**2) ** (1 / 3) / mesh.area_mm2,
            mesh.area_mm2,
            mesh.area_mm2 / mesh.volume_mm3,
            int(mask.sum()) * float(np.prod(spacing_mm)),
        ]
    )


def shape_2d_features(mask: NDArray[np.bool_], spacing_mm: tuple[float, float]) -> NDArray[np.float64]:
    """PyRadiomics' shape features of an ROI in one slice.

    Parameters
    ----------
    mask : [y, x] bool.
    spacing_mm : (y, x) pixel spacing.

    Returns
    -------
    [9] in the order of `SHAPE_2D`; NaN throughout for an empty mask.
    """
    if not mask.any():
        return np.full(len(SHAPE_2D), np.nan)
    major, minor = axis_lengths(mask, spacing_mm, ddof=0)
    perimeter, area = _outline(mask, spacing_mm)
    reach = diameters(mask[None], (0.0, *spacing_mm))
    return np.array(
        [
            minor / major if major else np.nan,
            major,
            reach.whole_mm,
            area,
            minor,
            perimeter,
            perimeter / area,
            int(mask.sum()) * float(np.prod(spacing_mm)),
            2 * np.sqrt(np.pi * area) / perimeter,
        ]
    )


def _outline(mask: NDArray[np.bool_], spacing_mm: tuple[float, float]) -> tuple[float, float]:
    """Perimeter (mm) and area (mm^2) by marching squares with vertices halfway between pixels."""
    padded = np.pad(mask, 1).astype(np.int64)
    corners = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    inside = corners[0] + corners[1] + corners[2] + corners[3]
    dy, dx = spacing_mm
    slant = np.hypot(dy, dx) / 2
    diagonal = (inside == 2) & (corners[0] == corners[3])
    level = (inside == 2) & (corners[0] == corners[1])
    upright = (inside == 2) & (corners[0] == corners[2])
    single, triple = (inside == 1).sum(), (inside == 3).sum()
    perimeter = slant * (single + triple + 2 * diagonal.sum()) + dx * level.sum() + dy * upright.sum()
    # In units of a pixel: a corner is 1/8, half a square 1/2, all but a corner 7/8; two opposite corners 1/4
    squares = single / 8 + level.sum() / 2 + upright.sum() / 2 + triple * 7 / 8 + (inside == 4).sum()
    return float(perimeter), float((squares + diagonal.sum() / 4) * dy * dx)
