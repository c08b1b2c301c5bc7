"""A volume in two bytes a voxel, as CT is stored, so that source, standardized and target fit into memory together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.volumes.volume import Volume


@dataclass(frozen=True, eq=False)
class Held:
    """A volume whose HU come back as they were: whole ones are held as int16, all others as float32.

    Attributes
    ----------
    values : [z, y, x] int16 or float32, HU.
    first : the first slice, which says what is known besides: geometry, kernel, thickness.
    padded : the bits of the padding mask; None when there is none.
    """

    values: NDArray[Any]
    first: Volume
    padded: NDArray[np.uint8] | None

    @classmethod
    def of(cls, volume: Volume) -> Held:
        """Hold a volume; the caller lets go of it."""
        limits = np.iinfo(np.int16)
        whole = all(
            limits.min <= plane.min() and plane.max() <= limits.max and np.array_equal(plane, np.rint(plane))
            for plane in volume.hu
        )
        first = volume.slab(0, 1)
        return cls(
            volume.hu.astype(np.int16) if whole else volume.hu,
            replace(first, hu=first.hu.copy(), padding=None),
            None if volume.padding is None else np.packbits(volume.padding),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x) voxels."""
        z, y, x = self.values.shape
        return z, y, x

    @property
    def affine(self) -> NDArray[np.float64]:
        """[4, 4] index (z, y, x, 1) to LPS mm."""
        return self.first.affine

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(z, y, x) distance between voxel centres, mm."""
        return self.first.spacing_mm

    @property
    def padding(self) -> NDArray[np.bool_] | None:
        """[z, y, x], made anew at every call; None when there is none."""
        if self.padded is None:
            return None
        return np.unpackbits(self.padded, count=self.values.size).reshape(self.shape).view(bool)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """Slices [y, x], HU."""
        return (plane.astype(np.float32) for plane in self.values)

    def volume(self) -> Volume:
        """The whole volume, made anew at every call; without its padding mask."""
        return replace(self.first, hu=self.values.astype(np.float32))

    def whole_hu(self) -> NDArray[np.int16]:
        """[z, y, x] HU rounded to whole ones."""
        return self.values if self.values.dtype == np.int16 else np.rint(self.values).astype(np.int16)
