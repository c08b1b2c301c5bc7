"""Open a DICOM file of any origin: with its header or without, deflated, damaged, or no DICOM at all.

Nothing is parsed before its structure was walked (`elements`), a deflated file may not inflate beyond what its header
declares, and a file of another kind is named by its first bytes. Source: DICOM PS3.10 7.1, PS3.5 annex A.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from concordct.errors import ConcordctError
from concordct.volumes.attributes import attribute
from concordct.volumes.elements import start_of_dataset, structure_fault

#: No CT scanner writes larger slices; what claims more is a mistake or an attack.
MAX_SLICE_PIXELS = 4096 * 4096
#: No CT object has more frames; bounds what a multi-frame header may make us allocate.
MAX_FRAMES = 20_000
#: What a deflated file may hold beyond its pixels: private headers of real CT stay below 1 MB.
MAX_HEADER_BYTES = 16 * 2**20

_META_BYTES = 4096  # the meta header of a Part 10 file fits
_WHOLE_BYTES = 2**26  # files up to this are read at once
_DEFLATED = "1.2.840.10008.1.2.1.99"
# fmt: off
_PHOTOMETRIC = frozenset((
    "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT",
    "YBR_PARTIAL_422", "YBR_RCT", "XYB", "HSV", "ARGB", "CMYK",
))
# fmt: on
#: (offset, first bytes, what it is); the extension promised something else.
_KINDS = (
    (0, b"NRRD", "NRRD data"),
    (344, b"n+1\0", "NIfTI data"),
    (344, b"ni1\0", "the header of a NIfTI pair (expected header and voxels in one .nii file)"),
    (4, b"n+2\0", "NIfTI-2 data"),
    (4, b"ni2\0", "the header of a NIfTI-2 pair (expected header and voxels in one .nii file)"),
    (0, b"ObjectType", "a MetaImage header"),
    (0, b"NDims", "a MetaImage header"),
    (0, b"\x1f\x8b", "gzip data"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"\x89HDF", "an HDF5 file"),
)


#: Size and time of change of a file.
Stamp = tuple[int, int]


@contextmanager
def quiet_dicom() -> Iterator[None]:
    """Hold back pydicom's warnings: they quote header values, and a header value may name a patient."""
    if getattr(_QUIET, "holds", False):  # outside already: to set a level takes as long as to read an element
        yield
        return
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    _QUIET.holds = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _QUIET.holds = False
        logger.setLevel(level)


#: Of each thread: whether it is quiet.
_QUIET = threading.local()


def plain(value: object, length: int = 64) -> str:
    """A header value as one short printable line: broken headers hold line ends and worse."""
    return "".join(c if c.isprintable() else "?" for c in str(value).strip())[:length]


def defined(value: object, terms: frozenset[str] | tuple[str, ...]) -> str:
    """A header value where it is one of the terms that the standard defines, else "another".

    What stands in a coded attribute of a broken header may be a piece of its neighbour, and that may name a patient.
    """
    text = str(value).strip()
    return text if text in terms else "another"


def known_uid(value: object) -> str:
    """A UID where it looks like one, else "none"; for the same reason as `defined`."""
    text = str(value).strip("\0 ")
    return text if re.fullmatch(r"[0-2](\.\d{1,20}){3,20}", text) else "none"


def open_dataset(path: Path, *, tags: Sequence[str] | None = None, pixels: bool = False) -> FileDataset:
    """Read a DICOM file; one without file header is read as the implicit or explicit VR that it begins with.

    Parameters
    ----------
    path : the file.
    tags : keywords to read; None reads all.
    pixels : whether the pixel data is read too.

    Returns
    -------
    The dataset. Without a file header its `preamble` is None, and the meta header holds the transfer syntax found.

    Raises
    ------
    ConcordctError : the file is not DICOM, cannot be read, nests too deep, or inflates beyond what it declares.
    """
    try:
        with quiet_dicom(), open(path, "rb", opener=_no_wait) as file:
            return _open(file, path, None if tags is None else tuple(tags), pixels)
    except ConcordctError:
        raise
    except InvalidDicomError:
        raise ConcordctError(f"{_kind_of(path)}: {path}") from None
    except OSError as error:
        raise ConcordctError(f"cannot read {path}: {error.strerror or 'input/output error'}") from None
    except Exception as error:
        raise ConcordctError(f"broken DICOM header ({type(error).__name__}): {path}") from None


def file_stamp(path: Path) -> Stamp | None:
    """Size and time of change of a file, by which a rewritten one is told; None where it cannot be asked."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def _no_wait(path: str, flags: int) -> int:
    """A named pipe that nobody writes into would keep `open` waiting for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _open(file: BinaryIO, path: Path, tags: tuple[str, ...] | None, pixels: bool) -> FileDataset:
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise ConcordctError(f"not a regular file: {path}")
    head = file.read(_META_BYTES)
    start, syntax = start_of_dataset(head)
    if start >= 132 and syntax == _DEFLATED:
        return _inflate(file, start, path, pixels=pixels)
    bare = head[128:132] != b"DICM"
    if bare and head[:2] not in (b"\x08\0", b"\x02\0", b"\0\x08"):
        raise InvalidDicomError
    source: BinaryIO = file
    if pixels and state.st_size <= _WHOLE_BYTES:
        file.seek(0)
        source = BytesIO(file.read())
    source.seek(start)
    _refuse_structure(source, state.st_size, path, big_endian=_big_endian(head, start, syntax))
    source.seek(0)
    only = None if tags is None else list(_numbers(tags))
    dataset = pydicom.dcmread(source, stop_before_pixels=not pixels, specific_tags=only, force=bare)
    if bare:
        if "SOPClassUID" not in dataset and "Modality" not in dataset and (tags is None or "Modality" in tags):
            raise InvalidDicomError
        if not dataset.file_meta.get("TransferSyntaxUID"):
            dataset.file_meta.TransferSyntaxUID = _native(*dataset.original_encoding)
    # A file that ends within an element comes back without any.
    if tags is None and len(dataset) == 0:
        raise ConcordctError(f"truncated DICOM file: {path}")
    return dataset


@lru_cache(maxsize=16)
def _numbers(keywords: tuple[str, ...]) -> tuple[BaseTag | int, ...]:
    """Keywords as tags: to look them up takes as long as to read the elements."""
    return tuple(map(Tag, keywords))


def _big_endian(head: bytes, start: int, syntax: str) -> bool:
    return syntax == ExplicitVRBigEndian if syntax else head[start : start + 2] == b"\0\x08"


def _native(implicit: bool | None, little: bool | None) -> UID:
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little in (True, None) else ExplicitVRBigEndian


def _refuse_structure(file: BinaryIO, size: int, path: Path, *, big_endian: bool = False) -> None:
    fault = structure_fault(file, size, big_endian=big_endian)
    if fault is not None:
        raise ConcordctError(f"{fault}, expected a header that can be read: {path}")


def _kind_of(path: Path) -> str:
    """What a file is that is no DICOM, by its first bytes."""
    with open(path, "rb") as file:
        head = file.read(512)
    kind = next((kind for at, magic, kind in _KINDS if head[at : at + len(magic)] == magic), None)
    return "not a DICOM file" if kind is None else f"not a DICOM file but {kind}"


def _inflate(file: BinaryIO, meta_end: int, path: Path, *, pixels: bool) -> FileDataset:
    """Read a deflated dataset without ever holding more than its own header allows."""
    file.seek(0)
    meta: FileMetaDataset = pydicom.dcmread(BytesIO(file.read(meta_end))).file_meta
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(file.read(), MAX_HEADER_BYTES)
    except zlib.error:
        raise ConcordctError(f"deflated data that do not inflate, expected them as in RFC 1951: {path}") from None
    _refuse_structure(BytesIO(data), len(data), path)
    if not inflater.eof:
        header = read_dataset(BytesIO(data), False, True, stop_when=_at_pixels)
        limit = MAX_HEADER_BYTES + frame_bytes(header, path) * number_of_frames(header, path)
        data += inflater.decompress(inflater.unconsumed_tail, limit - len(data))
        if not inflater.eof and inflater.unconsumed_tail:
            raise ConcordctError(f"deflated data inflate beyond the {limit} bytes that the header allows: {path}")
    if not inflater.eof:
        raise ConcordctError(f"truncated DICOM file, its deflated data do not end: {path}")
    dataset = read_dataset(BytesIO(data), False, True, stop_when=None if pixels else _at_pixels)
    result = FileDataset(
        str(path), dataset, preamble=b"\0" * 128, file_meta=meta, is_implicit_VR=False, is_little_endian=True
    )
    result.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return result


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag == 0x7FE00010


def number_of_frames(dataset: Dataset, path: Path) -> int:
    """NumberOfFrames, 1 when absent; refused outside 1 to `MAX_FRAMES`."""
    frames = int(attribute(dataset, "NumberOfFrames") or 1)
    if not 1 <= frames <= MAX_FRAMES:
        raise ConcordctError(f"{frames} frames, expected 1 to {MAX_FRAMES}: {path}")
    return frames


def frame_bytes(dataset: Dataset, path: Path) -> int:
    """Bytes of one decoded frame by the header, after every header value that decoding relies on was checked."""
    rows, columns = int(attribute(dataset, "Rows") or 0), int(attribute(dataset, "Columns") or 0)
    if rows < 1 or columns < 1 or rows * columns > MAX_SLICE_PIXELS:
        raise ConcordctError(f"{rows} x {columns} pixels, expected 1 to {MAX_SLICE_PIXELS} in all: {path}")
    samples = int(attribute(dataset, "SamplesPerPixel", 1) or 1)
    photometric = defined(attribute(dataset, "PhotometricInterpretation", "none"), _PHOTOMETRIC)
    if samples != 1 or not photometric.startswith("MONOCHROME"):
        said = "a photometric interpretation of no known name" if photometric == "another" else photometric
        raise ConcordctError(f"{said} with {samples} samples per pixel, expected MONOCHROME with 1: {path}")
    allocated, stored = int(attribute(dataset, "BitsAllocated") or 0), int(attribute(dataset, "BitsStored") or 0)
    high = int(attribute(dataset, "HighBit", stored - 1))
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or high != stored - 1:
        raise ConcordctError(
            f"bits allocated {allocated}, stored {stored}, high bit {high}; expected 8, 16 or 32 with the high bit "
            f"one below the bits stored: {path}"
        )
    sign = attribute(dataset, "PixelRepresentation", 0)
    if sign not in (0, 1, None):
        raise ConcordctError(f"PixelRepresentation {plain(sign)}, expected 0 or 1: {path}")
    return rows * columns * allocated // 8
