"""Where to measure: a mask's ROIs, a grid over the body, or the papers' regions. The same for every stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.judging.case import HeldPair, Pair
from concordct.radiomics.regions.rois import PAPER_RANGES_HU, grid_rois, random_rois
from concordct.signal.body import body_mask
from concordct.volumes.volume import Volume

#: ROIs without a mask: squares of this many pixels, at most so many in each pair, on evenly spread slices.
ROI_PIXELS, MOST_ROIS = 28, 600
#: Smaller squares, tried in turn where the body holds none of that size.
SMALLER_ROIS = (24, 20, 16, 12, 8)
#: The papers' random ROIs: squares of this many pixels, at least this share inside the range of HU. The papers print
#: neither size nor number.
RANDOM_PIXELS, LEAST_SHARE = 16, 0.5
#: Whole slices measured in each pair, evenly spread.
WHOLE_SLICES = 3
TUMOURS, RANDOM, WHOLE = "tumour ROIs", "random ROIs", "whole slices"


def body_grid(
    pair: Pair | HeldPair,
) -> tuple[NDArray[np.bool_], NDArray[np.integer[Any]] | None, list[str]]:
    """Where HU are compared, the ROIs (None where none fits), and what the reader should know of them.

    Raises
    ------
    ConcordctError : no mask and no body.
    """
    source = pair.source
    if pair.labels is not None:
        return pair.labels > 0, pair.labels, []
    region = body_mask(source.hu if isinstance(source, Volume) else source)
    padding = source.padding
    if padding is not None:
        region &= ~padding
    if not region.any():
        raise ConcordctError("expected a body (a region above -500 HU) to compare in, found none; give a mask")
    rois, size, notes = _fitting_grid(region)
    if rois is None:
        return region, None, [f"features were not compared: not even {size} x {size} pixels fit into the body"]
    count = int(rois.max())
    if count > MOST_ROIS:
        keep = np.linspace(0, source.shape[0] - 1, max(1, source.shape[0] * MOST_ROIS // count)).round().astype(int)
        rois[np.setdiff1d(np.arange(len(rois)), keep)] = 0
    return region, rois.astype(np.min_scalar_type(count)), notes


def _fitting_grid(region: NDArray[np.bool_]) -> tuple[NDArray[np.int32] | None, int, list[str]]:
    """The grid of the largest squares that fit, their edge in pixels, and a note where they are smaller than usual."""
    for size in (ROI_PIXELS, *SMALLER_ROIS):
        try:
            rois = grid_rois(region, size=size)
        except ConcordctError:
            continue
        smaller = f"ROIs are {size} x {size} pixels, since none of {ROI_PIXELS} x {ROI_PIXELS} fits into the body"
        return rois, size, [smaller] if size != ROI_PIXELS else []
    return None, size, []


def roi_edge(labels: NDArray[np.integer[Any]]) -> int:
    """Edge of the square that label 1 of a grid covers, pixels."""
    first = next(plane for plane in labels if plane.any())
    return round(float(np.sqrt(np.count_nonzero(first == first[first > 0][0]))))


def paper_regions(pair: Pair, *, rois_per_range: int, seed: Sequence[int]) -> dict[str, NDArray[np.int32]]:
    """Labels 1 ... n of each region of LTDiff++'s tables.

    Tumours (the mask), random ROIs of four HU ranges together and apart, whole slices. Random ROIs are placed by the
    target's HU, as the papers do.
    """
    found: dict[str, NDArray[np.int32]] = {}
    labels = pair.labels
    if labels is not None:
        names = np.unique(labels[labels > 0])
        if len(names):
            found[TUMOURS] = np.where(labels > 0, np.searchsorted(names, labels) + 1, 0).astype(np.int32)
    drawn = random_rois(
        pair.target,
        ranges_hu=PAPER_RANGES_HU,
        count=rois_per_range,
        size=RANDOM_PIXELS,
        least_share=LEAST_SHARE,
        generator=np.random.default_rng(seed),
        mask=None,
    )
    found[RANDOM] = drawn.labels
    for index, (low, high) in enumerate(PAPER_RANGES_HU):
        own = [label for label, of in enumerate(drawn.of_range, start=1) if of == index]
        if own:
            table = np.zeros(len(drawn.of_range) + 1, np.int32)
            table[own] = np.arange(1, len(own) + 1)
            found[f"[{low:.0f}, {high:.0f}] HU"] = table[drawn.labels]
    whole = _whole_slices(pair.source)
    if whole.any():
        found[WHOLE] = whole
    return found


def _whole_slices(source: Volume) -> NDArray[np.int32]:
    body = body_mask(source.hu)
    whole = np.zeros(source.shape, np.int32)
    depths = np.unique(np.linspace(0, source.shape[0] - 1, WHOLE_SLICES + 2).round().astype(int)[1:-1])
    for number, z in enumerate((z for z in depths if body[z].any()), start=1):
        whole[z][body[z]] = number
    return whole


def middle_slice(labels: NDArray[np.int32]) -> int:
    """The slice that holds most of the labels."""
    return int((labels > 0).sum(axis=(1, 2)).argmax())


def centre_of_roi(labels: NDArray[np.int32]) -> tuple[int, int]:
    """(row, column) of one ROI on that slice, to be shown."""
    plane = labels[middle_slice(labels)]
    places = np.argwhere(plane > 0)
    own = np.argwhere(plane == plane[tuple(places[len(places) // 2])])
    y, x = own.mean(axis=0).round().astype(int)
    return int(y), int(x)
