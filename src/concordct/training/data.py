"""Patches for training: paired volumes in memory-mapped files, drawn by (seed, step, place in the batch).

What a batch holds follows from its step alone, so that a resumed run, two processes and one process see the same
patches. Augmentation keeps the physics: flips and quarter turns, the same for source and target; no zoom, which would
change the kernel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.volumes.place import atomic_file
from concordct.volumes.volume import BODY_ABOVE_HU, Volume

#: Slices read and copied at once.
SLAB = 16


class Readable(Protocol):
    """What is read of a scan."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x)."""

    @property
    def key(self) -> str:
        """Identity of the scan."""

    def read(self, start: int = 0, stop: int | None = None) -> Volume:
        """Slices [start, stop)."""


@dataclass(frozen=True, eq=False)
class Images:
    """One scan, or a source with its target, as int16 HU on disk.

    Attributes
    ----------
    name : of the pair; shown in errors.
    source : [z, y, x] int16, memory-mapped.
    target : the same of the target; None for an image without partner.
    boxes : [z, 4] first and last row and column of the body in each slice.
    """

    name: str
    source: NDArray[np.int16]
    target: NDArray[np.int16] | None
    boxes: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Batch:
    """Patches of one step.

    Attributes
    ----------
    source : [b, 1, y, x] float32, HU.
    target : the same; the source itself for an image without partner.
    seeds : one seed for each patch, for whatever else is random about it.
    places : where each patch lies, for errors.
    """

    source: NDArray[np.float32]
    target: NDArray[np.float32]
    seeds: tuple[int, ...]
    places: tuple[str, ...]


def store(folder: Path, name: str, source: Readable, target: Readable | None) -> Images:
    """Copy a scan (and its target) into memory-mapped files below `folder`, once.

    Raises
    ------
    ConcordctError : shapes that differ, or a place that cannot be written.
    """
    if target is not None and target.shape != source.shape:
        raise ConcordctError(f"pair {name}: expected a target of shape {source.shape}, found {target.shape}")
    mapped = _store(folder, source)
    boxes = np.stack([_box(image) for image in mapped])
    return Images(name, mapped, None if target is None else _store(folder, target), boxes)


def _store(folder: Path, scan: Readable) -> NDArray[np.int16]:
    path = folder / f"{hashlib.sha256(scan.key.encode()).hexdigest()[:24]}.npy"
    if not path.exists():
        # Written, not mapped: on a full disk a mapped page is a signal that kills, a write is an error in words.
        with atomic_file(path, overwrite=True) as aside, aside.open("wb") as file:
            shape = {"descr": "<i2", "fortran_order": False, "shape": scan.shape}
            np.lib.format.write_array_header_1_0(file, shape)
            for start in range(0, scan.shape[0], SLAB):
                slab = scan.read(start, min(start + SLAB, scan.shape[0]))
                file.write(np.clip(np.rint(slab.hu), -32768, 32767).astype("<i2").tobytes())
            file.flush()
    mapped: NDArray[np.int16] = np.load(path, mmap_mode="r")
    if mapped.shape != scan.shape:
        raise ConcordctError(f"{path}: expected voxels of shape {scan.shape}, found {mapped.shape}; remove the file")
    return mapped


def _box(image: NDArray[np.int16]) -> NDArray[np.int32]:
    # Patches are centred in the box around the body, not in the air beside it.
    body = image > BODY_ABOVE_HU
    rows, columns = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
    if not len(rows):
        return np.array([0, image.shape[0] - 1, 0, image.shape[1] - 1], np.int32)
    return np.array([rows[0], rows[-1], columns[0], columns[-1]], np.int32)


class Batches(Protocol):
    """Where a phase's batches come from."""

    @property
    def slices(self) -> int:
        """What an epoch visits once each."""

    def batch(self, step: int, places: Sequence[int]) -> Batch:
        """The batch of a step at these places of the global batch."""


@dataclass(frozen=True, eq=False)
class Patches:
    """Where batches come from.

    Attributes
    ----------
    images : what patches are cut from; each slice is as likely as any other.
    size : edge of a patch, pixels.
    seed : of every draw.
    either : also hand out targets as sources, with themselves as targets: every image, standard or not (phase 1).
    """

    images: Sequence[Images]
    size: int
    seed: int
    either: bool = False

    def __post_init__(self) -> None:
        if not self.images:
            raise ConcordctError("expected at least one scan to train on, found none")
        for one in self.images:
            if min(one.source.shape[1:]) < self.size:
                raise ConcordctError(
                    f"pair {one.name}: expected slices of at least {self.size} x {self.size}, "
                    f"found {one.source.shape[1]} x {one.source.shape[2]}"
                )

    @property
    def slices(self) -> int:
        """Slices that an epoch visits once each."""
        return sum(len(one.source) * (2 if self.either and one.target is not None else 1) for one in self.images)

    def batch(self, step: int, places: Sequence[int]) -> Batch:
        """The patches of a step at these places of the global batch."""
        drawn = [self._draw(step, place) for place in places]
        sources, targets, seeds, names = zip(*drawn, strict=True)
        return Batch(np.stack(sources)[:, None], np.stack(targets)[:, None], tuple(seeds), tuple(names))

    def _draw(self, step: int, place: int) -> tuple[NDArray[np.float32], NDArray[np.float32], int, str]:
        digest = hashlib.sha256(f"{self.seed}\0{step}\0{place}".encode()).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
        depths = np.array([len(one.source) for one in self.images])
        slot = int(generator.integers(depths.sum()))
        index = int(np.searchsorted(depths.cumsum(), slot, side="right"))
        one, z = self.images[index], slot - int(depths[:index].sum())
        top, bottom, left, right = (int(edge) for edge in one.boxes[z])
        rows, columns = one.source.shape[1:]
        y = int(np.clip(generator.integers(top, bottom + 1) - self.size // 2, 0, rows - self.size))
        x = int(np.clip(generator.integers(left, right + 1) - self.size // 2, 0, columns - self.size))
        source, target = one.source, one.source if one.target is None else one.target
        if self.either:
            source = target = target if generator.integers(2) else source
        turns, flip = int(generator.integers(4)), bool(generator.integers(2))

        def cut(volume: NDArray[np.int16]) -> NDArray[np.float32]:
            patch = np.rot90(volume[z, y : y + self.size, x : x + self.size], turns)
            return np.ascontiguousarray(patch[:, ::-1] if flip else patch, dtype=np.float32)

        return cut(source), cut(target), int(generator.integers(2**62)), f"{one.name} slice {z} at ({y}, {x})"


@dataclass(frozen=True, eq=False)
class Unpaired:
    """Sources of some scans beside targets of others.

    Attributes
    ----------
    sources : their sources are handed out. targets : their targets are, from places drawn by another seed.
    """

    sources: Patches
    targets: Patches

    @property
    def slices(self) -> int:
        """Slices of the larger side."""
        return max(self.sources.slices, self.targets.slices)

    def batch(self, step: int, places: Sequence[int]) -> Batch:
        """A source and a stranger's target at each place."""
        one, other = self.sources.batch(step, places), self.targets.batch(step, places)
        names = tuple(" | ".join(pair) for pair in zip(one.places, other.places, strict=True))
        return Batch(one.source, other.target, one.seeds, names)


@dataclass(frozen=True, eq=False)
class Together:
    """A pair in the first channel and strangers in the second, [b, 2, y, x] on either side."""

    pairs: Patches
    strangers: Unpaired

    @property
    def slices(self) -> int:
        """Slices of the pairs."""
        return self.pairs.slices

    def batch(self, step: int, places: Sequence[int]) -> Batch:
        """Both batches of the step."""
        one, other = self.pairs.batch(step, places), self.strangers.batch(step, places)
        names = tuple(" & ".join(pair) for pair in zip(one.places, other.places, strict=True))
        images = [np.concatenate(two, axis=1) for two in ((one.source, other.source), (one.target, other.target))]
        return Batch(images[0], images[1], one.seeds, names)


def strangers(pairs: Sequence[Images], size: int, seed: int, *, others: Sequence[Images] = ()) -> Unpaired:
    """Sources of every second pair (and other images) beside targets of the rest: no pair is seen from both sides.

    Raises
    ------
    ConcordctError : fewer than two pairs.
    """
    if len(pairs) < 2:
        raise ConcordctError(f"expected at least two pairs to take strangers from, found {len(pairs)}")
    return Unpaired(Patches([*pairs[::2], *others], size, seed), Patches(pairs[1::2], size, seed + 1))
