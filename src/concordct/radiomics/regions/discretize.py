"""Grey levels from intensities: fixed bin size and fixed bin number, as IBSI and as PyRadiomics define them.

Levels begin at 1; 0 is left to mean "outside the ROI". Sources: IBSI reference manual, arXiv:1612.07003, section 2.7;
PyRadiomics 3.0.1, `imageoperations.getBinEdges`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError

#: More levels than this make co-occurrence matrices of gigabytes; the bin width was meant for other intensities.
MAX_LEVELS = 20_000


def by_width(values: NDArray[np.float64], width: float, *, lowest: float) -> NDArray[np.int32]:
    """Fixed bin size (IBSI Q3RU): bins of `width` from `lowest` upwards.

    Parameters
    ----------
    values : [voxel] intensities, HU for a CT.
    width : bin width, in the unit of the intensities.
    lowest : lower edge of the first bin; IBSI: the lower bound of the resegmentation range, or the ROI's minimum.

    Returns
    -------
    [voxel] int32 levels >= 1.
    """
    _check_width(values, width)
    # IBSI 2.7.2: X_d = floor((X - X_min) / w) + 1
    levels = np.floor((values - lowest) / width).astype(np.int32) + 1
    if levels.size and levels.min() < 1:
        raise ConcordctError(f"intensity {values.min():g} lies below the first bin, which begins at {lowest:g}")
    return levels


def by_count(values: NDArray[np.float64], count: int) -> NDArray[np.int32]:
    """Fixed bin number (IBSI K15C): `count` bins between the least and the greatest intensity of the ROI.

    An ROI of one intensity has one level.
    """
    _check_count(count)
    if values.size == 0 or values.min() == values.max():
        return np.ones(values.shape, np.int32)
    low, high = values.min(), values.max()
    # IBSI 2.7.1: X_d = floor(N (X - X_min) / (X_max - X_min)) + 1, and N for X = X_max
    levels = np.floor(count * (values - low) / (high - low)).astype(np.int32) + 1
    return np.minimum(levels, np.int32(count))


def by_width_from_zero(
    values: NDArray[np.float64], width: float, *, ends: tuple[float, float] | None = None
) -> NDArray[np.int32]:
    """PyRadiomics' fixed bin width: edges at multiples of `width` (from zero, not from the ROI's minimum).

    `ends` are least and greatest intensity of the ROI where the values are a part of it.
    """
    if values.size == 0:
        return np.ones(values.shape, np.int32)
    low, high = ends or (float(values.min()), float(values.max()))
    _check_width(np.array([low, high]), width)
    edges = np.arange(low - low % width, high + 2 * width, width)
    # Not floor(values / width): the edges carry their own rounding, and a voxel on an edge must fall as in PyRadiomics.
    guess = ((values - edges[0]) / width).astype(np.int32)
    np.clip(guess, 0, edges.size - 2, out=guess)
    guess += values >= edges[guess + 1]
    guess -= values < edges[guess]
    return guess + np.int32(1)


def by_count_closed(
    values: NDArray[np.float64], count: int, *, ends: tuple[float, float] | None = None
) -> NDArray[np.int32]:
    """PyRadiomics' fixed bin count: numpy's histogram edges, the last bin closed; `ends` as in `by_width_from_zero`."""
    _check_count(count)
    edges = np.histogram_bin_edges(values, count, range=ends)
    edges[-1] += 1
    return np.digitize(values, edges).astype(np.int32)


def _check_width(values: NDArray[np.float64], width: float) -> None:
    if not width > 0:
        raise ConcordctError(f"a bin width must be above 0, found {width:g}")
    if values.size and (values.max() - values.min()) / width > MAX_LEVELS:
        raise ConcordctError(
            f"a bin width of {width:g} cuts intensities {values.min():g} to {values.max():g} into more than "
            f"{MAX_LEVELS} levels"
        )


def _check_count(count: int) -> None:
    if not 1 <= count <= MAX_LEVELS:
        raise ConcordctError(f"a bin count must lie between 1 and {MAX_LEVELS}, found {count}")
