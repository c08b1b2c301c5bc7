"""A scan from subject to images: one noisy raw data set, as many kernels and thicknesses as asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.scanner.acquisition import Acquisition, detect, project, to_parallel
from concordct.scanner.frame import LENGTH_TOLERANCE_MM, Frame, Stack
from concordct.scanner.kernels import Kernel, kernel
from concordct.scanner.reconstruction import check_kernel, digitize, reconstruct
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

#: Detector rows that travel together through projector and back projector; any value gives the same bits.
LANES = 8
#: Pixels of the drawing per pixel of the image, along each axis.
OVERSAMPLING = 1.4
#: Detector rows thicker than this are drawn as several planes, mm.
PLANE_MM = 0.5


class Subject(Protocol):
    """What can be scanned: a body that can be drawn at any height."""

    @property
    def key(self) -> str:
        """Identity, e.g. "phantom" or "patient-0007"; noise is keyed by it."""

    @property
    def height_mm(self) -> float:
        """Extent along z, mm; z runs from 0 to it."""

    @property
    def reach_mm(self) -> tuple[float, float]:
        """(y, x) half extents around the isocentre that hold everything but air, mm."""

    def draw(self, z_mm: NDArray[np.float64], frame: Frame) -> NDArray[np.float32]:
        """[z, y, x] HU on planes at the heights given."""

    def masks(self, z_mm: NDArray[np.float64], frame: Frame) -> dict[str, NDArray[np.bool_]]:
        """Named masks, each [z, y, x]."""


def drawing_frame(subject: Subject, image: Frame) -> Frame:
    """The lattice that a subject is drawn on: finer than the image's pixels, as wide as the subject."""
    pixel = image.pixel_mm / OVERSAMPLING
    return Frame((2 * math.ceil(subject.reach_mm[0] / pixel), 2 * math.ceil(subject.reach_mm[1] / pixel)), pixel)


def scan_slabs(
    subject: Subject,
    acquisition: Acquisition,
    *,
    frame: Frame,
    stack: Stack,
    kernels: Sequence[str | Kernel],
    seed: int,
    scan: int = 0,
) -> Iterator[dict[str, Volume]]:
    """Scan a subject once and reconstruct the raw data with each kernel, a few slices at a time.

    Parameters
    ----------
    frame, stack : pixels and slices of the images.
    kernels : preset names or kernels.
    seed : with the subject's key, `scan` and the detector row it fixes the noise, whatever the slices asked for.
    scan : number of the raw data set; another number is a second scan of the same subject.

    Yields
    ------
    Slabs by kernel name, whole HU, in slice order.

    Raises
    ------
    ConcordctError : an unknown kernel, one that the detector cannot serve, a slice thinner than a detector row.
    """
    chosen = tuple(kernel(item) if isinstance(item, str) else item for item in kernels)
    for item in chosen:
        check_kernel(item, acquisition)
    if stack.thickness_mm < acquisition.row_mm - LENGTH_TOLERANCE_MM:
        raise ConcordctError(
            f"slice thickness {stack.thickness_mm} mm lies under the detector row; "
            f"at least {acquisition.row_mm} mm is allowed"
        )
    fine = drawing_frame(subject, frame)
    seeds = SliceSeeds(seed, f"{subject.key}/scan-{scan}")
    affine = stack.affine(frame)
    for start in range(0, stack.count, LANES):
        indices = range(start, min(start + LANES, stack.count))
        weights = [stack.row_weights(index, acquisition.row_mm) for index in indices]
        raw = _average_rows(subject, acquisition, fine, seeds, weights)
        images = reconstruct(to_parallel(raw, acquisition), acquisition, frame, chosen)
        placed = affine.copy()
        placed[:3, 3] += start * affine[:3, 0]
        yield {
            item.name: Volume(
                digitize(image),
                placed,
                slice_thickness_mm=stack.thickness_mm,
                kernel=item.name,
                first_slice=start,
            )
            for item, image in zip(chosen, images, strict=True)
        }


def simulate_pair(
    subject: Subject,
    acquisition: Acquisition,
    *,
    frame: Frame,
    stack: Stack,
    kernels: Sequence[str | Kernel],
    seed: int,
    scan: int = 0,
) -> dict[str, Volume]:
    """`scan_slabs` as whole volumes by kernel name."""
    slabs = list(scan_slabs(subject, acquisition, frame=frame, stack=stack, kernels=kernels, seed=seed, scan=scan))
    return {
        name: dataclasses.replace(first, hu=np.concatenate([slab[name].hu for slab in slabs]))
        for name, first in slabs[0].items()
    }


def _average_rows(
    subject: Subject,
    acquisition: Acquisition,
    fine: Frame,
    seeds: SliceSeeds,
    weights: list[dict[int, float]],
) -> NDArray[np.float32]:
    """[view, channel, slice] raw data, each slice the weighted mean of its detector rows."""
    rows = sorted({row for of_slice in weights for row in of_slice})
    averaged: NDArray[np.float32] | None = None
    for start in range(0, len(rows), LANES):
        group = rows[start : start + LANES]
        planes = math.ceil(acquisition.row_mm / PLANE_MM)
        z_mm = (np.array(group)[:, None] + (np.arange(planes) + 0.5) / planes) * acquisition.row_mm
        hu = np.stack([subject.draw(z, fine).mean(axis=0) for z in z_mm])
        raw = detect(project(hu, fine, acquisition), acquisition, [seeds.at(k) for k in group])
        if averaged is None:
            averaged = np.zeros((*raw.shape[:2], len(weights)), dtype=np.float32)
        for lane, row in enumerate(group):
            for index, of_slice in enumerate(weights):
                if row in of_slice:
                    averaged[..., index] += np.float32(of_slice[row]) * raw[..., lane]
    assert averaged is not None
    return averaged
