"""Where pixels lie: the square lattice that subjects are drawn and images reconstructed on, and stacks of slices.

Patient coordinates are LPS millimetres with the origin in the scanner's isocentre (x to the left, y to the back); z
runs to the head and starts at 0 at the subject's lowest plane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError

#: Rounding noise of a length in mm that came through a command line or a JSON file.
LENGTH_TOLERANCE_MM = 1e-6


@dataclass(frozen=True)
class Frame:
    """A rectangle of square pixels in the transaxial plane.

    Attributes
    ----------
    shape : (y, x) pixels.
    pixel_mm : pixel width, mm.
    centre_mm : (y, x) of the middle of the rectangle, mm.
    """

    shape: tuple[int, int]
    pixel_mm: float
    centre_mm: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if min(self.shape) < 2:
            raise ConcordctError(f"an image needs at least 2 x 2 pixels, found {self.shape[0]} x {self.shape[1]}")
        if not 0.01 <= self.pixel_mm <= 20:
            raise ConcordctError(f"pixel width {self.pixel_mm} mm lies outside the allowed 0.01 to 20 mm")

    @property
    def y_mm(self) -> NDArray[np.floating[Any]]:
        """[y] pixel centres, mm."""
        return (np.arange(self.shape[0]) - (self.shape[0] - 1) / 2) * self.pixel_mm + self.centre_mm[0]

    @property
    def x_mm(self) -> NDArray[np.floating[Any]]:
        """[x] pixel centres, mm."""
        return (np.arange(self.shape[1]) - (self.shape[1] - 1) / 2) * self.pixel_mm + self.centre_mm[1]

    @property
    def nyquist_lp_cm(self) -> float:
        """Highest frequency that the pixels carry, line pairs per cm."""
        return 5.0 / self.pixel_mm


@dataclass(frozen=True)
class Stack:
    """The slices to reconstruct.

    Attributes
    ----------
    count : slices.
    increment_mm : distance between slice centres, mm.
    thickness_mm : slice thickness, mm; the raw rows within it are averaged.
    start_mm : z of the first slice's centre, mm. None places it half a thickness above the subject's lowest plane.
    """

    count: int
    increment_mm: float
    thickness_mm: float
    start_mm: float | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConcordctError(f"a stack needs at least 1 slice, found {self.count}")
        if self.increment_mm <= 0:
            raise ConcordctError(f"slice increment {self.increment_mm} mm: it must be above 0 mm")
        if self.thickness_mm <= 0:
            raise ConcordctError(f"slice thickness {self.thickness_mm} mm: it must be above 0 mm")

    @property
    def z_mm(self) -> NDArray[np.floating[Any]]:
        """[z] slice centres, mm above the subject's lowest plane."""
        start = self.thickness_mm / 2 if self.start_mm is None else self.start_mm
        return start + np.arange(self.count) * self.increment_mm

    def row_weights(self, slice_index: int, row_mm: float) -> dict[int, float]:
        """Detector rows that a slice averages, and their shares (sum 1). Row k covers [k, k + 1] * row_mm."""
        centre = float(self.z_mm[slice_index])
        low, high = centre - self.thickness_mm / 2, centre + self.thickness_mm / 2
        first = math.floor((low + LENGTH_TOLERANCE_MM) / row_mm)
        last = math.ceil((high - LENGTH_TOLERANCE_MM) / row_mm)
        overlap = {k: min(high, (k + 1) * row_mm) - max(low, k * row_mm) for k in range(first, last)}
        return {k: share / self.thickness_mm for k, share in overlap.items()}

    def affine(self, frame: Frame) -> NDArray[np.float64]:
        """[4, 4] index (z, y, x) -> LPS mm."""
        affine = np.eye(4)
        affine[:3, :3] = 0.0
        affine[2, 0] = self.increment_mm
        affine[1, 1] = affine[0, 2] = frame.pixel_mm
        affine[:3, 3] = (frame.x_mm[0], frame.y_mm[0], self.z_mm[0])
        return affine
