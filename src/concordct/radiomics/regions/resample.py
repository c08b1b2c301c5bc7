"""Resampling of an image and its masks to another spacing, as IBSI defines it (grids aligned by their centres).

Source: IBSI reference manual, arXiv:1612.07003, section 2.4.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError

#: A voxel belongs to a resampled mask from half coverage on (IBSI 2.4, partial volume fraction 0.5); interpolation
#: weights that add up to a half may fall short of it by rounding.
HALF = 0.5 - 1e-9


def grid(length: int, spacing: float, new_spacing: float) -> NDArray[np.float64]:
    """Places of the new voxels along one axis, in old voxels: IBSI's ceil(n s / s') voxels about the same centre."""
    if not new_spacing > 0:
        raise ConcordctError(f"a spacing must be above 0 mm, found {new_spacing:g}")
    # 1e-9: 60 voxels of 3 mm are 90 of 2 mm, whatever the spacing's last digit
    count = int(np.ceil(length * spacing / new_spacing - 1e-9))
    first = 0.5 * ((length - 1) * spacing - (count - 1) * new_spacing)
    return np.asarray((first + np.arange(count) * new_spacing) / spacing, dtype=np.float64)


def resample(
    values: NDArray[np.float64],
    spacing_mm: tuple[float, float, float],
    new_spacing_mm: tuple[float, float, float],
    *,
    order: int,
) -> NDArray[np.float64]:
    """An image on another grid.

    Parameters
    ----------
    values : [z, y, x] float64.
    spacing_mm, new_spacing_mm : (z, y, x); an axis of the same spacing is left alone.
    order : 1 linear, 3 cubic spline (SciPy's, border values continued).

    Returns
    -------
    [z', y', x'] float64.
    """
    axes = [
        grid(n, old, new) if old != new else np.arange(n, dtype=np.float64)
        for n, old, new in zip(values.shape, spacing_mm, new_spacing_mm, strict=True)
    ]
    source = ndimage.spline_filter(values, order=order, mode="nearest") if order > 1 else values
    out = np.empty(tuple(len(axis) for axis in axes))
    for z, place in enumerate(axes[0]):  # slice by slice: the coordinates of a whole volume are three more volumes
        where = np.meshgrid([place], axes[1], axes[2], indexing="ij")
        out[z] = ndimage.map_coordinates(source, where, order=order, prefilter=False, mode="nearest")[0]
    return out


def resample_mask(
    mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float], new_spacing_mm: tuple[float, float, float]
) -> NDArray[np.bool_]:
    """A mask on another grid: linear, from half coverage on."""
    return resample(mask.astype(np.float64), spacing_mm, new_spacing_mm, order=1) >= HALF
