"""Where the voxels of a volume file lie and what they mean, as its header says; checked before a voxel is touched."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError

#: 4 GiB of stored voxels; photon-counting CT of two metres (1024 x 1024 x 2000 in 16 bits) just fits.
MAX_BYTES = 2**32
#: Deflate makes at most 1,032 bytes of one (RFC 1951: 258 bytes a bit pair); what claims more is cut short.
MOST_INFLATED = 1032
#: Spacing and origin beyond these (mm) belong to no patient.
LEAST_SPACING_MM, MOST_SPACING_MM, MOST_ORIGIN_MM = 1e-3, 1e3, 1e6

Encoding = Literal["raw", "gzip", "zlib"]
#: What tells one state of a file from another: device, inode, size and time of change.
Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class Layout:
    """A volume file as its header describes it.

    Attributes
    ----------
    path : the file that holds the header.
    data : the file that holds the voxels, the same or one beside or below it.
    stamp : state of `data` when the header was read.
    encoding : "raw", or what the voxels are deflated with.
    start : where their (deflated) bytes begin in `data`.
    skip : inflated bytes before the first voxel.
    dtype : of one voxel, with its byte order.
    size : voxels along the file's axes, the fastest first.
    slope, inter : HU = slope * stored + inter.
    stored_bytes : bytes of the deflated stream where the header says so.
    affine : [4, 4] index along the file's axes (fastest first, 1) to LPS mm.
    notes : what a reader should know.
    nifti : the geometry fields of a NIfTI header as they stand there, for writing them back; None for other formats.
    """

    path: Path
    data: Path
    stamp: Stamp
    encoding: Encoding
    start: int
    skip: int
    dtype: np.dtype[Any]
    size: tuple[int, int, int]
    slope: float = 1.0
    inter: float = 0.0
    stored_bytes: int | None = None
    affine: NDArray[np.float64] = field(default_factory=lambda: np.eye(4), compare=False)
    notes: tuple[str, ...] = ()
    nifti: dict[str, tuple[float, ...]] | None = field(default=None, compare=False)

    @property
    def voxel_bytes(self) -> int:
        """Bytes of all voxels, inflated."""
        return math.prod(self.size) * self.dtype.itemsize


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, Stamp]]:
    """Open a regular file for reading; a pipe or a device, which would hang or never end, is refused.

    Raises
    ------
    ConcordctError : missing, unreadable, no regular file; also for errors of reading inside the block.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            state = os.fstat(handle)
            if not stat.S_ISREG(state.st_mode):
                raise ConcordctError(f"{path}: expected a regular file, found {_kind(state.st_mode)}")
            yield file, (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
    except FileNotFoundError:
        raise ConcordctError(f"no such file: {path}") from None
    except OSError as error:
        raise ConcordctError(f"cannot read {path}: {error.strerror or 'input/output error'}") from None


def checked_size(sizes: Sequence[int], dtype: np.dtype[Any], path: Path) -> tuple[int, int, int]:
    """Three sizes, trailing ones of 1 dropped; refused when there are others, or more bytes than `MAX_BYTES`."""
    found = list(sizes)
    while len(found) > 3 and found[-1] == 1:
        found.pop()
    said = " x ".join(map(str, found[:8]))
    if len(found) != 3:
        raise ConcordctError(f"{len(found)} dimensions of {said}, expected 3: {path}")
    if min(found) < 1 or math.prod(found) * dtype.itemsize > MAX_BYTES:
        most = MAX_BYTES // dtype.itemsize
        raise ConcordctError(f"{said} voxels, expected 1 to {most} in all: {path}")
    return found[0], found[1], found[2]


def checked_affine(affine: NDArray[np.float64], path: Path) -> NDArray[np.float64]:
    """An affine whose axes span space at sizes that scans have."""
    if not np.all(np.abs(affine) < 1e12):  # NaN included; squares of larger ones overflow
        raise ConcordctError(f"the geometry holds values that are no distances: {path}")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < LEAST_SPACING_MM or spacing.max() > MOST_SPACING_MM:
        said = " x ".join(f"{mm:.4g}" for mm in spacing)
        raise ConcordctError(f"voxels of {said} mm, expected {LEAST_SPACING_MM:g} to {MOST_SPACING_MM:g} mm: {path}")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
        raise ConcordctError(f"the axes of the volume span no space: {path}")
    if np.abs(affine[:3, 3]).max() > MOST_ORIGIN_MM:
        raise ConcordctError(f"origin {np.abs(affine[:3, 3]).max():.4g} mm away, expected {MOST_ORIGIN_MM:g}: {path}")
    return affine


def beside(path: Path, name: str) -> Path:
    """The data file that a header names; only one beside or below the header is taken.

    Raises
    ------
    ConcordctError : a name that leads elsewhere, by itself or by a link, or to nothing.
    """
    shown = "".join(c if c.isprintable() else "?" for c in name)[:100]
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name.replace("\\", "/")).parts:
        raise ConcordctError(f"{path}: expected voxels beside or below the header, found {shown or 'no file name'}")
    place = path.parent / name
    if not place.resolve().is_relative_to(path.parent.resolve()):
        raise ConcordctError(f"{path}: expected voxels beside or below the header, {shown} leads elsewhere")
    if not os.path.lexists(place):
        raise ConcordctError(f"{path}: no file {shown} beside it, which its header names for the voxels")
    return place


def extent_mm(one: NDArray[np.float64], other: NDArray[np.float64], size: Sequence[int]) -> float:
    """Greatest distance of a corner voxel's place by two affines, mm."""
    if not (np.all(np.abs(one) < 1e12) and np.all(np.abs(other) < 1e12)):
        return float("inf")
    corners = np.array([[a, b, c, 1.0] for a in (0, size[0] - 1) for b in (0, size[1] - 1) for c in (0, size[2] - 1)])
    return float(np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1).max())


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a device or socket"
