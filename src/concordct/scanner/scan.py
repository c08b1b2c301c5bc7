"""A scan from subject to images: one noisy raw data set, as many kernels and thicknesses as asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from concordct.scanner.acquisition import Acquisition, detect, project, to_parallel
from concordct.scanner.frame import Frame, Stack
from concordct.scanner.kernels import Kernel, kernel
from concordct.scanner.reconstruction import digitize, reconstruct
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

#: Detector rows that travel together through projector and back projector; any value gives the same bits.
LANES = 8
#: Pixels of the drawing per pixel of the image, along each axis.
OVERSAMPLING = 1.4
#: Detector rows thicker than this are drawn as several planes, mm.
PLANE_MM = 1.0


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
    """Scan a subject once and reconstruct the raw data with each kernel.

    Parameters
    ----------
    frame, stack : pixels and slices of the images.
    kernels : preset names or kernels.
    seed : with the subject's key, `scan` and the detector row it fixes the noise.
    scan : number of the raw data set; another number is a second scan of the same subject.

    Returns
    -------
    Volume by kernel name, whole HU.
    """
    chosen = tuple(kernel(item) if isinstance(item, str) else item for item in kernels)
    images = np.empty((len(chosen), stack.count, *frame.shape), dtype=np.float32)
    fine = drawing_frame(subject, frame)
    seeds = SliceSeeds(seed, f"{subject.key}/scan-{scan}")
    for start in range(0, stack.count, LANES):
        indices = range(start, min(start + LANES, stack.count))
        weights = [stack.row_weights(index, acquisition.row_mm) for index in indices]
        raw = _average_rows(subject, acquisition, fine, seeds, weights)
        images[:, start : start + len(indices)] = reconstruct(to_parallel(raw, acquisition), acquisition, frame, chosen)
    return {
        item.name: Volume(
            digitize(images[index]), stack.affine(frame), slice_thickness_mm=stack.thickness_mm, kernel=item.name
        )
        for index, item in enumerate(chosen)
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
