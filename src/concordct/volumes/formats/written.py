"""Writes one volume file whole: header and voxels aside, read back by the reader, then moved into place.

The voxels wait in an unnamed file on the output's own disk, so memory stays flat whatever their number, and their type
may still widen when a later slab asks for it.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.volumes.formats.layout import Layout, extent_mm
from concordct.volumes.formats.metaimage import metaimage_header, read_metaimage
from concordct.volumes.formats.nifti import nifti_geometry, nifti_header, read_nifti
from concordct.volumes.formats.nrrd import nrrd_header, read_nrrd
from concordct.volumes.formats.stream import PIECE, check_length, stored_crc
from concordct.volumes.place import atomic_file, writing

#: Endings that are written, and those that are read: .nhdr would need a file of its own for its voxels.
ENDINGS = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
READ_ENDINGS = (*ENDINGS, ".nhdr")
#: zlib's; beyond it CT gets smaller by 1% and slower by half.
_LEVEL = 2
#: A header read back may place a corner this far (mm) from what was written: float32 in NIfTI.
_READ_BACK_MM = 1e-2


def read_layout(path: Path) -> Layout:
    """The layout of a volume file by its ending.

    Raises
    ------
    ConcordctError : an unknown ending, or what the format's own reader refuses.
    """
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        layout = read_nifti(path)
    elif name.endswith((".nrrd", ".nhdr")):
        layout = read_nrrd(path)
    elif name.endswith((".mha", ".mhd")):
        layout = read_metaimage(path)
    else:
        raise ConcordctError(f"unknown file ending, expected one of {', '.join(READ_ENDINGS)}: {path}")
    return check_length(layout)


def write_planes(
    path: Path,
    slabs: Iterable[NDArray[Any]],
    affine: NDArray[np.float64],
    *,
    order: tuple[int, int, int] = (2, 1, 0),
    nifti: dict[str, tuple[float, ...]] | None = None,
    note: str = "",
    overwrite: bool = False,
) -> None:
    """Write slabs [z, y, x] of one type, or of int16 until some are float32, to a volume file.

    Parameters
    ----------
    affine : [4, 4] index (z, y, x, 1) to LPS mm.
    order : the file's axes (0 the fastest) that hold z, y and x.
    nifti : geometry fields to be written as they are, which must say the same as `affine`; None makes them.
    note : at most 79 characters for the header.
    overwrite : whether an existing file is replaced.

    Raises
    ------
    ConcordctError : no slab, an ending that is not written, no place to write, or a file that reads back otherwise.
    """
    if not path.name.lower().endswith(ENDINGS):
        raise ConcordctError(f"unknown file ending, expected one of {', '.join(ENDINGS)}: {path}")
    with atomic_file(path, overwrite=overwrite) as aside, writing(path), _spooled(slabs, aside.parent, path) as stored:
        in_file = stored.transpose(*(order.index(axis) for axis in (2, 1, 0)))  # [k, j, i]
        size = in_file.shape[2], in_file.shape[1], in_file.shape[0]
        own = affine.copy()
        own[:3, :3] = affine[:3, [order.index(axis) for axis in range(3)]]
        before: list[Path] = []
        if path.suffix.lower() == ".mhd":
            crc, before = _detached(aside, path, in_file, size, own, note)
        elif path.suffix.lower() in (".mha", ".nrrd"):
            crc = _attached(aside, in_file, size, own, note)
        else:
            header = nifti_header(size, stored.dtype, nifti or nifti_geometry(own, size), note=note)
            with open(aside, "wb") as file:
                crc = _deflate(in_file, file, 31 if aside.suffix.lower() == ".gz" else None, header)
        if path.suffix.lower() != ".mhd":
            _read_back(aside, path, crc, own)
    if path.suffix.lower() == ".mhd":
        _read_back(path, path, crc, own)
    for old in before:
        old.unlink(missing_ok=True)


@contextmanager
def _spooled(slabs: Iterable[NDArray[Any]], folder: Path, path: Path) -> Iterator[NDArray[Any]]:
    """[z, y, x] of all slabs, on disk; the file has no name and goes with the block."""
    spool: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed below, whichever it then is
    try:
        count, dtype, plane = 0, np.dtype("i1"), (0, 0)
        for slab in slabs:
            wide = slab.dtype if count == 0 else np.promote_types(dtype, slab.dtype)
            if count and wide != dtype:
                spool = _widened(spool, dtype, wide, folder)
            dtype, plane, count = wide, slab.shape[1:], count + len(slab)
            spool.write(np.ascontiguousarray(slab, dtype.newbyteorder("<")).data)
        if not count:
            raise ConcordctError(f"no slices to write: {path}")
        spool.flush()
        yield np.memmap(spool, dtype.newbyteorder("<"), "r", shape=(count, *plane))
    finally:
        spool.close()


def _widened(spool: BinaryIO, dtype: np.dtype[Any], wide: np.dtype[Any], folder: Path) -> Any:
    wider: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - handed on open
    spool.seek(0)
    while raw := spool.read(PIECE):
        wider.write(np.frombuffer(raw, dtype.newbyteorder("<")).astype(wide.newbyteorder("<")).data)
    spool.close()
    return wider


def _deflate(in_file: NDArray[Any], file: BinaryIO, window: int | None, header: bytes = b"") -> int:
    """The header and the voxels into a file, deflated unless `window` is None; CRC-32 of the voxels."""
    deflater = None if window is None else zlib.compressobj(_LEVEL, zlib.DEFLATED, window)
    file.write(header if deflater is None else deflater.compress(header))
    crc = 0
    for plane in in_file:
        raw = np.ascontiguousarray(plane).tobytes()
        crc = zlib.crc32(raw, crc)
        file.write(raw if deflater is None else deflater.compress(raw))
    if deflater is not None:
        file.write(deflater.flush())
    file.flush()
    return crc


def _attached(
    aside: Path, in_file: NDArray[Any], size: tuple[int, int, int], own: NDArray[np.float64], note: str
) -> int:
    """A .mha or .nrrd: the deflated voxels come first, for a MetaImage header states their size."""
    meta = aside.suffix.lower() == ".mha"
    with tempfile.TemporaryFile(dir=aside.parent) as voxels:
        crc = _deflate(in_file, voxels, 15 if meta else 31)
        if meta:
            header = metaimage_header(size, in_file.dtype, own, stored_bytes=voxels.tell(), note=note)
        else:
            header = nrrd_header(size, in_file.dtype, own, note=note)
        voxels.seek(0)
        with open(aside, "wb") as file:
            file.write(header)
            shutil.copyfileobj(voxels, file, PIECE)
    return crc


def _detached(
    aside: Path, path: Path, in_file: NDArray[Any], size: tuple[int, int, int], own: NDArray[np.float64], note: str
) -> tuple[int, list[Path]]:
    """A .mhd and its voxels: their CRC, and the voxels of earlier headers, which go last.

    Two files cannot be moved as one. The voxels are named by their content and placed first, so that a header, old or
    new, always finds its own.
    """
    voxels = aside.with_suffix(".zraw")
    with open(voxels, "wb") as file:
        crc = _deflate(in_file, file, 15)
        stored = file.tell()
    with open(voxels, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    placed = path.with_name(f"{path.stem}.{digest[:12]}.zraw")
    header = metaimage_header(size, in_file.dtype, own, stored_bytes=stored, data=placed.name, note=note)
    aside.write_bytes(header)
    before = sorted(path.parent.glob(f"{glob.escape(path.stem)}.{'[0-9a-f]' * 12}.zraw"))
    with atomic_file(placed, overwrite=True) as aside_voxels:
        os.replace(voxels, aside_voxels)
    return crc, [old for old in before if old.name != placed.name]


def _read_back(written: Path, path: Path, crc: int, own: NDArray[np.float64]) -> None:
    """A full disk is not always an error of writing; so what was written is read once."""
    try:
        layout = read_layout(written)
        right = stored_crc(layout) == crc and extent_mm(layout.affine, own, layout.size) <= _READ_BACK_MM
    except ConcordctError:
        right = False
    if not right:
        raise ConcordctError(f"cannot write {path}: the file came out incomplete, is the disk full?")
