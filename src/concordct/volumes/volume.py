"""A CT volume in memory: Hounsfield units, an affine and what the scanner left blank.

A Volume is an array plus geometry and is not a DICOM object (after highdicom). Axes are (z, y, x); world coordinates
are LPS in millimetres; `docs/conventions.md` says more.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError

#: What stands in for padding inside a Volume, so that no filter ever meets the scanner's out-of-range marker.
AIR_HU = -1000.0
#: Body begins here, between air and fat; lung lies inside and is filled in.
BODY_ABOVE_HU = -500.0


def spacing_of(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """(z, y, x) distance between voxel centres, mm, by the [4, 4] affine of an index (z, y, x, 1)."""
    z, y, x = (float(np.linalg.norm(affine[:3, axis])) for axis in range(3))
    return z, y, x


@dataclass(frozen=True, eq=False)
class Volume:
    """One CT volume, or a slab of one.

    Attributes
    ----------
    hu : [z, y, x] float32, Hounsfield units. Padding voxels hold `AIR_HU`.
    affine : [4, 4] float64, maps the index (z, y, x, 1) to LPS millimetres.
    padding : [z, y, x] bool, True where the scanner wrote padding; None when there is none.
    slice_thickness_mm : nominal slice thickness; None when the file does not say.
    kernel : reconstruction kernel as the file names it ("Br40f\\3"), None when it does not say.
    first_slice : index of `hu[0]` in the whole series. Randomness is keyed by it, so that slabs change nothing.
    reach_hu : (least, greatest) HU that images of this kernel reach, as a standardizer says of its results; None where
        they stay inside the range of a CT image. `ct_range` writes by it.
    """

    hu: NDArray[np.float32]
    affine: NDArray[np.float64]
    padding: NDArray[np.bool_] | None = None
    slice_thickness_mm: float | None = None
    kernel: str | None = None
    first_slice: int = 0
    reach_hu: tuple[float, float] | None = None
    _spacing: tuple[float, float, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.hu.ndim != 3 or self.hu.size == 0:
            raise ConcordctError(f"a volume needs three non-empty axes (z, y, x), found shape {self.hu.shape}")
        if self.hu.dtype != np.float32:
            raise ConcordctError(f"a volume holds float32 Hounsfield units, found {self.hu.dtype}")
        if self.affine.shape != (4, 4):
            raise ConcordctError(f"a volume needs a 4 x 4 affine, found shape {self.affine.shape}")
        if self.padding is not None and self.padding.shape != self.hu.shape:
            raise ConcordctError(f"padding of shape {self.padding.shape} does not fit a volume of {self.hu.shape}")
        object.__setattr__(self, "_spacing", spacing_of(self.affine))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x) voxels."""
        z, y, x = self.hu.shape
        return z, y, x

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(z, y, x) distance between voxel centres, mm."""
        return self._spacing

    def with_hu(self, hu: NDArray[np.floating[Any]]) -> Volume:
        """The same geometry with other HU values of the same shape; padding stays and holds `AIR_HU` again."""
        if hu.shape != self.hu.shape:
            raise ConcordctError(f"expected HU of shape {self.hu.shape}, found {hu.shape}")
        values = np.asarray(hu, dtype=np.float32)
        if self.padding is not None and self.padding.any():
            values = np.where(self.padding, np.float32(AIR_HU), values)
        return replace(self, hu=values)

    def slab(self, start: int, stop: int) -> Volume:
        """Slices [start, stop) as a Volume that knows where it lies."""
        affine = self.affine.copy()
        affine[:3, 3] += start * affine[:3, 0]
        padding = None if self.padding is None else self.padding[start:stop]
        return replace(
            self, hu=self.hu[start:stop], affine=affine, padding=padding, first_slice=self.first_slice + start
        )
