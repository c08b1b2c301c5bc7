"""Where to measure: grids of square ROIs inside a mask, and the papers' random ROIs in ranges of HU.

The random ROIs follow the LTDiff++ and DiffusionCT papers, which draw regions in four HU ranges; their sizes and
numbers are the caller's choice.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    labels = np.zeros(mask.shape, np.int32)
    found = 0
    for z in range(depth):
        whole = _box_sums(mask[z].astype(np.float64), size) == size * size
        for y in range(0, height - size + 1, stride):
            for x in range(0, width - size + 1, stride):
                if whole[y, x]:
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
    places: list[list[NDArray[np.int64]]] = [[] for _ in ranges_hu]
    for z, (slice_hu, inside) in enumerate(zip(volume.hu, allowed, strict=True)):
        means = _box_sums(slice_hu.astype(np.float64), size) / size**2
        whole = _box_sums(inside.astype(np.float64), size) == size**2
        for index, (low, high) in enumerate(ranges_hu):
            within = ((slice_hu >= low) & (slice_hu <= high)).astype(np.float64)
            fit = whole & (_box_sums(within, size) >= least_share * size**2) & (means >= low) & (means <= high)
            corners = np.argwhere(fit)
            places[index].append(np.insert(corners, 0, z, axis=1))
    queues = [iter(generator.permutation(np.concatenate(found))) for found in places]
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
    """[y - size + 1, x - size + 1] sums of one slice over size x size boxes, by the box's first corner."""
    sums = np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    return np.asarray(sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size])
