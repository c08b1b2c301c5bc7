"""ROIs drawn by rule onto an image and written as a label volume, so that every reconstruction is measured alike."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from concordct.errors import ConcordctError
from concordct.radiomics.regions.rois import PAPER_RANGES_HU, grid_rois, random_rois
from concordct.signal.body import body_mask
from concordct.volumes.masks import read_regions, write_labels
from concordct.volumes.scans import frame_of_reference, one_scan

#: Share of an ROI's pixels that must lie in the HU range it is drawn for.
LEAST_SHARE = 0.5


@dataclass(frozen=True)
class DrawnRois:
    """How many ROIs were drawn, for random ones how many in each HU range, and what the caller should know."""

    rois: int
    per_range: tuple[int, ...]
    warnings: tuple[str, ...] = ()


def draw_rois(
    image: Path,
    output: Path,
    *,
    size: int,
    per_range: int | None = None,
    step: int | None = None,
    mask: Path | None = None,
    everywhere: bool = False,
    seed: int = 0,
    allow: Collection[str] = frozenset(),
    overwrite: bool = False,
) -> DrawnRois:
    """Draw square ROIs and write their labels on the image's grid.

    Parameters
    ----------
    image : a series folder or a volume file.
    output : the labels, NIfTI, NRRD or MetaImage by its ending.
    size : edge of an ROI, pixels.
    per_range : so many random ROIs in each of the papers' HU ranges; None for a grid over the mask.
    step : of the grid, pixels; `size` when None.
    mask : where ROIs may lie (any ROI file); in the body when None.
    everywhere : in the air around the body, too.
    seed : of the random ROIs.

    Raises
    ------
    ConcordctError : no ROI fits, an unknown ending, an output that exists.
    """
    if not output.name.lower().endswith((".nii", ".nii.gz", ".nrrd", ".mha")):
        raise ConcordctError(f"labels are written as .nii, .nii.gz, .nrrd or .mha, found {output.name}")
    scan = one_scan(image)
    volume = scan.read(allow=allow)
    inside = np.ones(volume.shape, bool) if everywhere else body_mask(volume.hu)
    if volume.padding is not None:
        inside &= ~volume.padding
    if mask is not None:
        inside = np.zeros(volume.shape, bool)
        frame = frame_of_reference(scan)
        for region in read_regions(mask, affine=volume.affine, shape=volume.shape, frame_of_reference_uid=frame):
            inside[region.box] |= region.inside
    if not inside.any():
        raise ConcordctError(f"{image}: expected a body (a region above -500 HU) or a mask to draw in, found none")
    counts: tuple[int, ...] = ()
    if per_range is None:
        labels = grid_rois(inside, size=size, step=step)
    else:
        drawn = random_rois(
            volume,
            ranges_hu=PAPER_RANGES_HU,
            count=per_range,
            size=size,
            least_share=LEAST_SHARE,
            generator=np.random.default_rng(seed),
            mask=inside,
        )
        labels = drawn.labels
        counts = tuple(drawn.of_range.count(index) for index in range(len(PAPER_RANGES_HU)))
    fewer = tuple(
        f"{count} of {per_range} ROIs fit where HU are {low:g} to {high:g}"
        for count, (low, high) in zip(counts, PAPER_RANGES_HU, strict=False)
        if count < (per_range or 0)
    )
    write_labels(output, labels, volume.affine, overwrite=overwrite)
    return DrawnRois(int(labels.max()), counts, fewer)
