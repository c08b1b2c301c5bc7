"""Where to measure: grids of square ROIs inside a mask, and the papers' random ROIs in ranges of HU.

The random ROIs follow the LTDiff++ and DiffusionCT papers, which draw regions in four HU ranges; their sizes and
numbers are the caller's choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.volumes.volume import Volume

#: The papers' four ranges, HU: lung, soft tissue, soft tissue without fat, bone.
PAPER_RANGES_HU = ((-800.0, -300.0), (-100.0, 250.0), (10.0, 250.0), (300.0, 800.0))


@dataclass(frozen=True, eq=False)
class RandomRois:
    """ROIs drawn at random: labels [z, y, x] int32, and for label k the index of its HU range at place k - 1."""

    labels: NDArray[np.int32]
    of_range: tuple[int, ...]


def grid_rois(mask: NDArray[np.bool_], *, size: int, step: int | None = None) -> NDArray[np.int32]:
    """A grid of square ROIs, slice by slice, each wholly inside the mask.

    Parameters
    ----------
    mask : [z, y, x] bool, where ROIs may lie.
    size : edge of an ROI, pixels.
    step : distance between the corners of neighbours, pixels, at least `size`; `size` when None.

    Returns
    -------
    [z, y, x] int32 labels 1, 2, ... in the order of slices, rows and columns; 0 elsewhere.

    Raises
    ------
    ConcordctError : when no ROI fits, or `step` makes ROIs overlap.
    """
    stride = size if step is None else step
    if size < 1 or stride < size:
        raise ConcordctError(f"a grid needs a size of at least 1 and a step of at least the size, found {size}, {step}")
    depth, height, width = mask.shape
    # Integral image: an ROI lies inside where its sum of mask voxels is size^2.
    sums = np.zeros((depth, height + 1, width + 1), np.int64)
    sums[:, 1:, 1:] = mask.cumsum(axis=1).cumsum(axis=2)
    labels = np.zeros(mask.shape, np.int32)
    found = 0
    for z in range(depth):
        for y in range(0, height - size + 1, stride):
            for x in range(0, width - size + 1, stride):
                inside = sums[z, y + size, x + size] - sums[z, y, x + size] - sums[z, y + size, x] + sums[z, y, x]
                if inside == size * size:
                    found += 1
                    labels[z, y : y + size, x : x + size] = found
    if found == 0:
        raise ConcordctError(f"no ROI of {size} x {size} pixels fits into the mask of {int(mask.sum())} voxels")
    return labels


def random_rois(
    volume: Volume,
    *,
    ranges_hu: tuple[tuple[float, float], ...],
    count: int,
    size: int,
    least_share: float,
    generator: np.random.Generator,
    mask: NDArray[np.bool_] | None = None,
) -> RandomRois:
    """Square ROIs at random places whose voxels lie in given HU ranges, drawn by seed, without overlap.

    A place qualifies for a range when at least `least_share` of its pixels and its mean lie within the range. Ranges
    are served in turn, so that none takes the places of the others; where a range has too few places, fewer come back.

    Parameters
    ----------
    volume : HU and geometry.
    ranges_hu : lower and upper bound of each range, HU, both included; `PAPER_RANGES_HU` are the papers'.
    count : ROIs wanted in each range.
    size : edge, pixels; ROIs lie in one slice.
    least_share : 0 to 1, share of an ROI's pixels that must lie in the range.
    generator : randomness.
    mask : [z, y, x] bool, where ROIs may lie; everywhere when None.

    Returns
    -------
    RandomRois : labels [z, y, x] int32, and the range that each label was drawn for.

    Raises
    ------
    ConcordctError : when not one ROI is found in any range.
    """
    _, height, width = volume.shape
    if size < 1 or size > min(height, width):
        raise ConcordctError(f"an ROI of {size} pixels does not fit into slices of {height} x {width}")
    allowed = np.ones(volume.shape, bool) if mask is None else mask
    if allowed.shape != volume.shape:
        raise ConcordctError(f"a mask of shape {allowed.shape} does not fit a volume of {volume.shape}")
    means = _box_sums(volume.hu.astype(np.float64), size) / size**2
    whole = _box_sums(allowed.astype(np.float64), size) == size**2
    queues = []
    for low, high in ranges_hu:
        within = (volume.hu >= low) & (volume.hu <= high)
        share = _box_sums(within.astype(np.float64), size) / size**2
        fit = np.argwhere(whole & (share >= least_share) & (means >= low) & (means <= high))
        queues.append(iter(generator.permutation(fit)))
    labels = np.zeros(volume.shape, np.int32)
    of_range: list[int] = []
    for _ in range(count):
        for index, queue in enumerate(queues):
            for z, y, x in queue:
                place = labels[z, y : y + size, x : x + size]
                if not place.any():
                    of_range.append(index)
                    place[...] = len(of_range)
                    break
    if not of_range:
        raise ConcordctError(f"no ROI of {size} x {size} pixels lies in any of the ranges {ranges_hu} HU")
    return RandomRois(labels, tuple(of_range))


def _box_sums(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """[z, y - size + 1, x - size + 1] sums over size x size boxes, by the box's first corner."""
    windows: NDArray[Any] = np.lib.stride_tricks.sliding_window_view(values, (size,), axis=(1,)).sum(axis=-1)
    sums: NDArray[np.float64] = np.lib.stride_tricks.sliding_window_view(windows, (size,), axis=(2,)).sum(axis=-1)
    return sums
