"""CT volumes in NIfTI, NRRD and MetaImage files, in and out, with their geometry kept as it is.

Nothing is resampled. The first axis of a Volume is the file's slowest axis; `VolumeFile.axial` puts axes that are
stored in another order into that of axial slices, and they go back in what is written. Integers come out when whole HU
fit. Headers and voxels are read by `concordct.volumes.formats`; no other library sees the bytes.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.volumes.ct_range import ct_range
from concordct.volumes.formats.layout import Layout, extent_mm
from concordct.volumes.formats.stream import PIECE, all_planes, planes
from concordct.volumes.formats.written import ENDINGS, READ_ENDINGS, read_layout, write_planes
from concordct.volumes.geometry import (
    POSITION_TOLERANCE_MM,
    TILT_TOLERANCE_DEG,
    Problem,
    units_problem,
)
from concordct.volumes.padding import find_padding
from concordct.volumes.place import refuse_overlap
from concordct.volumes.series import Series
from concordct.volumes.volume import AIR_HU, Volume, spacing_of

__all__ = [
    "ENDINGS",
    "READ_ENDINGS",
    "VolumeFile",
    "is_volume_file",
    "open_volume_file",
    "refuse_uneven",
    "write_volume_file",
]

#: Pixels are square within this ratio: only then another order of the axes makes axial slices.
SQUARE = 1e-2
#: An affine within this (mm at a corner) of a source's is the source's.
SAME_GRID_MM = 1e-6
#: Orders of a file's axes (0 the fastest) for z, y and x; the first is how most files are stored.
_AS_STORED = (2, 1, 0)
#: Volumes that were turned are kept whole in their stored type, a source and its target.
_KEPT = 2


@dataclass(frozen=True, eq=False)
class VolumeFile:
    """A CT volume in one file, with the surface of a `Series`.

    Attributes
    ----------
    path : the file.
    shape : (z, y, x) voxels.
    affine : [4, 4] index (z, y, x, 1) to LPS mm.
    layout : where its voxels lie.
    order : the file's axes (0 the fastest) that hold z, y and x.
    notes : what a reader should know.
    problems : what `check` refuses by the header alone ("tilt").
    """

    path: Path
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    layout: Layout
    order: tuple[int, int, int] = _AS_STORED
    notes: tuple[str, ...] = ()
    kernel: str | None = None
    slice_thickness_mm: float | None = None
    description: str = ""
    problems: tuple[Problem, ...] = ()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(z, y, x) distance between voxel centres, mm."""
        return spacing_of(self.affine)

    @property
    def folder(self) -> Path:
        """The folder that the file lies in."""
        return self.path.parent

    @property
    def key(self) -> str:
        """SHA-256 of the shape and the voxels' HU, whatever format they came in."""
        return _survey(self.layout, self.order).key

    def axial(self) -> VolumeFile:
        """The same volume with its axes in the order of axial slices, where the file stores them in another.

        That order is memory layout: nothing is resampled or flipped. A reformat in another plane, whose axial slices
        would not have square pixels, stays as it is stored.
        """
        order = _order(self.layout.affine)
        return self if order == self.order else _opened(self.layout, order)

    def check(self, allow: Collection[str] = frozenset()) -> tuple[Problem, ...]:
        """Refuse axes that are not at right angles, and voxels that cannot be HU; a file says nothing of its unit.

        Parameters
        ----------
        allow : "tilt" and "units" let them pass.

        Returns
        -------
        What was let pass; the caller records it.

        Raises
        ------
        ConcordctError : the same with what was measured, or voxels that cannot be read.
        """
        self._check_geometry(allow)
        found = _survey(self.layout, self.order)
        units = units_problem(np.array([found.low, found.high]))
        problems = (*self.problems, *([] if units is None else [units]))
        for problem in problems:
            if problem.code not in allow:
                raise ConcordctError(f"{problem.message} [{problem.code}]: {self.path}")
        return problems

    def read(self, start: int = 0, stop: int | None = None, *, allow: Collection[str] = frozenset()) -> Volume:
        """Slices [start, stop) as a Volume; padding is found as in DICOM without a declared padding value.

        Parameters
        ----------
        allow : "tilt" lets axes pass that are not at right angles.
        """
        self._check_geometry(allow)
        stop = self.shape[0] if stop is None else stop
        hu = self.stored_hu(start, stop)
        padding = np.stack([find_padding(plane) for plane in hu])
        affine = self.affine.copy()
        affine[:3, 3] += start * affine[:3, 0]
        if padding.any():
            hu[padding] = AIR_HU
        return Volume(
            hu=hu,
            affine=affine,
            padding=padding if padding.any() else None,
            slice_thickness_mm=self.slice_thickness_mm,
            kernel=self.kernel,
            first_slice=start,
        )

    def stored_hu(self, start: int, stop: int) -> NDArray[np.float32]:
        """[z, y, x] HU of slices [start, stop) as the file holds them, padding included."""
        if not 0 <= start < stop <= self.shape[0]:
            raise ConcordctError(f"slices {start} to {stop} asked of a volume of {self.shape[0]}: {self.path}")
        _survey(self.layout, self.order)
        return _hu(self.layout, self.order, start, stop)

    def _check_geometry(self, allow: Collection[str]) -> None:
        for problem in self.problems:
            if problem.code not in allow:
                raise ConcordctError(f"{problem.message} [{problem.code}]: {self.path}")


def is_volume_file(path: str | Path) -> bool:
    """Whether the name has an ending of `READ_ENDINGS`."""
    return Path(path).name.lower().endswith(READ_ENDINGS)


def open_volume_file(path: str | Path) -> VolumeFile:
    """Open a NIfTI, NRRD or MetaImage file; its header is checked, its voxels are read when they are asked for.

    Raises
    ------
    ConcordctError : missing, unreadable, not three-dimensional, not one number per voxel, without geometry, or larger
        than any scan.
    """
    path = Path(path)
    return _opened(read_layout(path), _AS_STORED)


def _opened(layout: Layout, order: tuple[int, int, int]) -> VolumeFile:
    affine = layout.affine.copy()
    affine[:3, :3] = layout.affine[:3, list(order)]
    z, y, x = (layout.size[axis] for axis in order)
    notes = list(layout.notes)
    if order != _AS_STORED:
        notes.append("stored with another axis slowest than head to foot: put in order for the work, and back")
    elif int(np.argmax(np.abs(affine[:3, 0]))) != 2:
        notes.append("slices are not axial: the slowest axis of the file does not run head to foot")
    problem = _shear(affine, z)
    return VolumeFile(
        path=layout.path,
        shape=(z, y, x),
        affine=affine,
        layout=layout,
        order=order,
        notes=tuple(notes),
        problems=() if problem is None else (problem,),
    )


def write_volume_file(
    path: str | Path,
    volumes: Volume | Iterable[Volume],
    *,
    source: VolumeFile | Series | None = None,
    whole_hu: bool = True,
    note: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a Volume, or its slabs in order, to one NIfTI, NRRD or MetaImage file, and read it back.

    Parameters
    ----------
    path : ending one of `ENDINGS`. A MetaImage header (.mhd) gets its voxels beside it, named by their content.
    volumes : one Volume or consecutive slabs, the first at slice 0 of what is written.
    source : where the volume came from; its padding values come back where the Volume has padding, HU are held to
        `ct_range`, and the axes come out in the source's order. Without it padding is written as `AIR_HU`.
    whole_hu : round to whole HU, as CT scanners store them; then int16 when all fit, else float32. False writes
        float32 unrounded.
    note : what the header says of the file, at most 79 characters; in NIfTI `descrip`.
    overwrite : whether an existing file is replaced.

    Returns
    -------
    The path.

    Raises
    ------
    ConcordctError : a source with a gap or uneven steps, slabs that do not follow each other, HU that are not finite,
        no place to write, or a file that reads back otherwise.
    """
    path = Path(path)
    if source is not None:
        refuse_overlap(path, [source.path] if isinstance(source, VolumeFile) else [], folder=False)
        refuse_uneven(source, path)
    slabs = iter([volumes] if isinstance(volumes, Volume) else volumes)
    first = next(slabs, None)
    if first is None:
        raise ConcordctError(f"no slices to write: {path}")
    own = source if isinstance(source, VolumeFile) else None
    nifti = None
    if own is not None and own.layout.nifti is not None and first.shape[1:] == own.shape[1:]:
        same = extent_mm(own.affine, first.affine, own.shape) <= SAME_GRID_MM
        nifti = own.layout.nifti if same else None
    write_planes(
        path,
        _stored(itertools.chain([first], slabs), source, whole_hu, path),
        first.affine,
        order=_AS_STORED if own is None else own.order,
        nifti=nifti,
        note=note or "",
        overwrite=overwrite,
    )
    return path


def refuse_uneven(source: VolumeFile | Series, path: Path) -> None:
    """A volume file has one even grid; slices with a gap or uneven steps would come to lie where they are not.

    Raises
    ------
    ConcordctError : the source has such slices.
    """
    for problem in source.problems:
        if problem.code in {"gap", "spacing"}:
            raise ConcordctError(
                f"{path}: a volume file holds one even grid of slices, expected that or an output in DICOM, "
                f"found {problem.message} [{problem.code}]"
            )


def _stored(
    slabs: Iterable[Volume], source: VolumeFile | Series | None, whole_hu: bool, path: Path
) -> Iterator[NDArray[Any]]:
    """What is written of each slab: int16 where whole HU fit, else float32."""
    first: Volume | None = None
    following = 0
    for slab in slabs:
        if first is None:
            first, following = slab, slab.first_slice
        if slab.first_slice != following or slab.shape[1:] != first.shape[1:]:
            raise ConcordctError(
                f"slab at slice {slab.first_slice} of {slab.shape[1:]}, expected slice {following} of {first.shape[1:]}"
            )
        following += slab.shape[0]
        hu = _written_hu(slab, source, whole_hu, path)
        fits = whole_hu and hu.min() >= -(2**15) and hu.max() < 2**15
        yield hu.astype(np.int16 if fits else np.float32)


def _written_hu(
    slab: Volume, source: VolumeFile | Series | None, whole_hu: bool, path: Path
) -> NDArray[np.floating[Any]]:
    if not np.isfinite(slab.hu).all():
        raise ConcordctError(f"HU that are not finite at slice {slab.first_slice} and after, nothing written: {path}")
    hu = np.rint(slab.hu) if whole_hu else slab.hu
    if source is None:
        return hu
    original = source.stored_hu(slab.first_slice, slab.first_slice + slab.shape[0])
    padding = np.zeros(hu.shape, bool) if slab.padding is None else slab.padding
    limits = [ct_range(plane, blank, slab.reach_hu) for plane, blank in zip(original, padding, strict=True)]
    clipped = [np.clip(plane, *ends) for plane, ends in zip(hu, limits, strict=True)]
    return np.where(padding, original, np.stack(clipped))


def _order(affine: NDArray[np.float64]) -> tuple[int, int, int]:
    """Which of a file's axes hold z, y and x: as stored, unless another than the slowest runs head to foot and the
    slices across it have square pixels (else it is a reformat in another plane, and no order makes it axial)."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    along = np.abs(affine[:3, :3] / spacing)  # [world (x, y, z), axis]
    if int(np.argmax(along[2])) == 2:
        return _AS_STORED
    z, y, x = max(
        itertools.permutations(range(3)), key=lambda axes: sum(along[2 - n, axis] for n, axis in enumerate(axes))
    )
    return (z, y, x) if abs(spacing[y] / spacing[x] - 1) < SQUARE else _AS_STORED


def _shear(affine: NDArray[np.float64], slices: int) -> Problem | None:
    """Axes that are not at right angles by more than rounding makes of them."""
    z, y, x = (affine[:3, axis] / np.linalg.norm(affine[:3, axis]) for axis in range(3))
    normal = np.cross(x, y)
    in_plane = float(np.degrees(abs(np.arcsin(np.clip(x @ y, -1, 1)))))
    tilt = float(np.degrees(np.arccos(np.clip(abs(z @ normal) / np.linalg.norm(normal), -1, 1))))
    drift = np.sin(np.radians(tilt)) * np.linalg.norm(affine[:3, 0]) * (slices - 1)
    if in_plane > TILT_TOLERANCE_DEG:
        return Problem("tilt", f"rows and columns meet at {90 - in_plane:.1f} degrees, expected 90")
    if tilt > TILT_TOLERANCE_DEG and drift > 2 * POSITION_TOLERANCE_MM:
        return Problem("tilt", f"gantry tilt of {tilt:.1f} degrees between stacking direction and slice normal")
    return None


@dataclass(frozen=True)
class _Survey:
    """What one pass through all voxels says of them: least and greatest HU, and their digest."""

    low: float
    high: float
    key: str


@lru_cache(maxsize=8)
def _survey(layout: Layout, order: tuple[int, int, int]) -> _Survey:
    """Go through all voxels once.

    Raises
    ------
    ConcordctError : damaged, or HU that are not finite.
    """
    z, y, x = (layout.size[axis] for axis in order)
    digest = hashlib.sha256(repr((z, y, x)).encode())
    low, high, wrong = np.inf, -np.inf, 0
    step = max(1, PIECE // (4 * y * x))
    if order == _AS_STORED:
        pieces = all_planes(layout, step)
    else:
        turned = _turned(layout, order)
        pieces = (turned[start : start + step] for start in range(0, z, step))
    for piece in pieces:
        hu = _in_hu(layout, piece)
        digest.update(np.ascontiguousarray(hu, dtype="<f4").data)
        with np.errstate(invalid="ignore"):
            ends = float(hu.min()), float(hu.max())
        if not np.isfinite(ends).all():
            wrong += int(hu.size - np.count_nonzero(np.isfinite(hu)))
        low, high = min(low, ends[0]), max(high, ends[1])
    if wrong:
        raise ConcordctError(f"{wrong} voxels are NaN or infinite, expected HU: {layout.path}")
    return _Survey(low, high, digest.hexdigest())


def _hu(layout: Layout, order: tuple[int, int, int], start: int, stop: int) -> NDArray[np.float32]:
    return _in_hu(layout, planes(layout, start, stop) if order == _AS_STORED else _turned(layout, order)[start:stop])


def _in_hu(layout: Layout, values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what float32 cannot hold is no HU and is found as infinite
        if (layout.slope, layout.inter) == (1.0, 0.0):
            return values.astype(np.float32)
        return (values * layout.slope + layout.inter).astype(np.float32)


@lru_cache(maxsize=_KEPT)
def _turned(layout: Layout, order: tuple[int, int, int]) -> NDArray[Any]:
    """[z, y, x] stored values of a file whose axes stand in another order."""
    stored = planes(layout, 0, layout.size[2])  # [k, j, i]
    return np.ascontiguousarray(stored.transpose(*(2 - axis for axis in order)))
