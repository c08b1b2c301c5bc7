"""Three-dimensional patches of registered pairs of scans. Everything about a patch follows from its seed, and the seed
from (seed of the run, step, place in the batch), so that a resumed run and several processes see the same patches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.training.data import Batch


@dataclass(frozen=True, eq=False)
class Followup:
    """One subject, registered: both scans on the grid of the initial one.

    Attributes
    ----------
    name : of the subject; shown in errors.
    initial, followup : [z, y, x] int16, HU; may be memory-mapped.
    region : [z, y, x] bool, where the two are compared: the dilated lungs.
    lungs : [z, y, x] bool, the initial scan's lungs.
    sentence : the lung-function tests and the weeks between the scans, in words.
    """

    name: str
    initial: NDArray[np.int16]
    followup: NDArray[np.int16]
    region: NDArray[np.bool_]
    lungs: NDArray[np.bool_]
    sentence: str


@dataclass(frozen=True, eq=False)
class Patches3d:
    """Where batches come from; each subject is as likely as any other, each place in its region's box as well.

    Attributes
    ----------
    subjects : what patches are cut from.
    size : edge of a patch, voxels.
    seed : of every draw.
    """

    subjects: Sequence[Followup]
    size: int
    seed: int

    def __post_init__(self) -> None:
        if not self.subjects:
            raise ConcordctError("expected at least one pair of scans to train on, found none")
        for one in self.subjects:
            shapes = {one.initial.shape, one.followup.shape, one.region.shape, one.lungs.shape}
            if len(shapes) > 1 or min(one.initial.shape) < self.size:
                raise ConcordctError(
                    f"subject {one.name}: expected volumes of one shape and at least {self.size} voxels each way, "
                    f"found {' and '.join(str(shape) for shape in sorted(shapes))}"
                )
            if not one.region.any():
                raise ConcordctError(f"subject {one.name}: expected a region to compare in, found none")

    @property
    def slices(self) -> int:
        """Patches that cover every region's box once."""
        counts = [np.prod(np.ceil((high - low) / self.size)) for low, high in self._boxes]
        return int(sum(counts))

    @cached_property
    def _boxes(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        return [region_box(one.region) for one in self.subjects]

    def subject(self, seed: int) -> int:
        """Which subject a patch of this seed is cut from."""
        return int(_generator(seed).integers(len(self.subjects)))

    def batch(self, step: int, places: Sequence[int]) -> Batch:
        """The patches of a step: source [b, 2, z, y, x] (initial HU, region), target [b, 1, z, y, x] (follow-up HU)."""
        seeds = tuple(patch_seed(self.seed, step, place) for place in places)
        sources, targets, names = zip(*(self._cut(seed) for seed in seeds), strict=True)
        return Batch(np.stack(sources), np.stack(targets), seeds, tuple(names))

    def _cut(self, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32], str]:
        generator = _generator(seed)
        index = int(generator.integers(len(self.subjects)))
        one, (low, high) = self.subjects[index], self._boxes[index]
        centre = generator.integers(low, high)
        corner = np.clip(centre - self.size // 2, 0, np.array(one.initial.shape) - self.size)
        mirrored = bool(generator.integers(2))  # a lung's texture has no side; up and down, front and back do
        where = tuple(slice(int(start), int(start) + self.size) for start in corner)

        def cut(volume: NDArray[np.int16] | NDArray[np.bool_]) -> NDArray[np.float32]:
            patch = volume[where]
            return np.ascontiguousarray(patch[..., ::-1] if mirrored else patch, dtype=np.float32)

        place = ", ".join(str(int(start)) for start in corner)
        return np.stack([cut(one.initial), cut(one.region)]), cut(one.followup)[None], f"{one.name} at ({place})"


def region_box(region: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and behind the last index, (z, y, x), of a mask that is not empty."""
    spans = [np.flatnonzero(region.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return np.array([span[0] for span in spans]), np.array([span[-1] + 1 for span in spans])


def cube(values: NDArray[Any], region: NDArray[np.bool_], *, size: int, factor: float) -> NDArray[np.float32]:
    """A coarse view of what lies in a region, 0 elsewhere: a mean over voxels, centred on the region's box.

    Parameters
    ----------
    values, region : [z, y, x]. size : voxels of the cube, each way. factor : their spacing in voxels of the values.

    Returns
    -------
    [size, size, size]
    """
    low, high = region_box(region)
    kept = np.where(region, values, 0.0).astype(np.float32)
    smooth = ndimage.uniform_filter(kept, max(1, round(factor)), mode="constant")
    at = (np.arange(size) - (size - 1) / 2) * factor
    places = np.meshgrid(*(at + middle for middle in (low + high - 1) / 2), indexing="ij")
    return ndimage.map_coordinates(smooth, places, order=1, mode="constant").astype(np.float32)


def patch_seed(seed: int, step: int, place: int) -> int:
    """The seed of a patch, below 2^62."""
    digest = hashlib.sha256(f"{seed}\0{step}\0{place}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 2


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))
