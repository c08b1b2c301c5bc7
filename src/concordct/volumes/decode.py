"""Pixels of one DICOM slice: stored values, Hounsfield units and padding; every refusal is one line.

Compressed syntaxes go through pydicom with python-gdcm and pyjpegls. Sizes are checked before anything is inflated or
allocated: the header must fit the named maximum, a deflated file may not inflate beyond what its header declares, and
a codestream must be as large as Rows and Columns say. Source: DICOM PS3.3 C.7.6.3, C.8.2.1, PS3.5 annex A.
"""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.pixels import get_decoder
from pydicom.tag import BaseTag
from pydicom.uid import UID, ExplicitVRLittleEndian

from concordct.errors import ConcordctError
from concordct.volumes.padding import find_padding
from concordct.volumes.volume import AIR_HU

#: No CT scanner writes larger slices; what claims more is a mistake or an attack.
MAX_SLICE_PIXELS = 4096 * 4096
#: No CT object has more frames; bounds what a multi-frame header may make us allocate.
MAX_FRAMES = 20_000
#: What a deflated file may hold beyond its pixels: private headers of real CT stay below 1 MB.
MAX_HEADER_BYTES = 16 * 2**20
#: Siemens' extended CT scale stores steps of 10 HU; coarser ones are screen captures and hide the texture to be kept.
MAX_STEP_HU = 10.0

_META_BYTES = 4096  # the meta header of a Part 10 file fits
_DEFLATED = b"1.2.840.10008.1.2.1.99"


@dataclass(frozen=True, eq=False)
class StoredSlice:
    """One slice as it is stored.

    Attributes
    ----------
    values : [y, x] int32, stored values with the bits above BitsStored removed.
    slope, intercept : this slice's own rescale, HU = slope * value + intercept.
    padding : [y, x] bool, True where the scanner wrote padding.
    bounds : least and greatest value that can be stored.
    dtype : little-endian type that the values are stored in.
    """

    values: NDArray[np.int32]
    slope: float
    intercept: float
    padding: NDArray[np.bool_]
    bounds: tuple[int, int]
    dtype: np.dtype[Any]

    def stored_hu(self) -> NDArray[np.float32]:
        """[y, x] HU of every voxel, padding included."""
        return (self.values * self.slope + self.intercept).astype(np.float32)

    def hu(self) -> NDArray[np.float32]:
        """[y, x] HU with `AIR_HU` where there is padding."""
        return np.where(self.padding, np.float32(AIR_HU), self.stored_hu())


@contextmanager
def quiet_dicom() -> Iterator[None]:
    """Hold back pydicom's warnings: they quote header values, and a header value may name a patient."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def plain(value: object, length: int = 64) -> str:
    """A header value as one short printable line: broken headers hold line ends and worse."""
    return "".join(c if c.isprintable() else "?" for c in str(value).strip())[:length]


def open_dataset(path: Path, *, tags: Sequence[str] | None = None, pixels: bool = False) -> FileDataset:
    """Read a DICOM file; a deflated one is inflated within the bounds of its own header.

    Parameters
    ----------
    path : the file.
    tags : keywords to read; None reads all.
    pixels : whether the pixel data is read too.

    Raises
    ------
    ConcordctError : the file is not DICOM, cannot be read, or inflates beyond what it declares.
    """
    try:
        with quiet_dicom(), open(path, "rb") as file:
            head = file.read(_META_BYTES)
            meta_end = 144 + int.from_bytes(head[140:144], "little")  # PS3.10 7.1: group length comes first
            if head[128:136] == b"DICM\x02\x00\x00\x00" and _DEFLATED in head[:meta_end]:
                return _inflate(file, meta_end, path, pixels=pixels)
            file.seek(0)
            dataset = pydicom.dcmread(
                file, stop_before_pixels=not pixels, specific_tags=None if tags is None else list(tags)
            )
            # A file that ends within an element comes back without any.
            if tags is None and len(dataset) == 0:
                raise ConcordctError(f"truncated DICOM file: {path}")
            return dataset
    except ConcordctError:
        raise
    except InvalidDicomError:
        raise ConcordctError(f"not a DICOM file: {path}") from None
    except OSError as error:
        raise ConcordctError(f"cannot read {path}: {error.strerror or 'input/output error'}") from None
    except Exception as error:
        raise ConcordctError(f"broken DICOM header ({type(error).__name__}): {path}") from None


def _inflate(file: BinaryIO, meta_end: int, path: Path, *, pixels: bool) -> FileDataset:
    """Read a deflated dataset without ever holding more than its own header allows."""
    file.seek(0)
    meta = pydicom.dcmread(BytesIO(file.read(meta_end))).file_meta
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(file.read(), MAX_HEADER_BYTES)
    if not inflater.eof:
        header = read_dataset(BytesIO(data), False, True, stop_when=_at_pixels)
        limit = MAX_HEADER_BYTES + frame_bytes(header, path) * number_of_frames(header, path)
        data += inflater.decompress(inflater.unconsumed_tail, limit - len(data))
        if not inflater.eof and inflater.unconsumed_tail:
            raise ConcordctError(f"deflated data inflate beyond the {limit} bytes that the header allows: {path}")
    dataset = read_dataset(BytesIO(data), False, True, stop_when=None if pixels else _at_pixels)
    result = FileDataset(str(path), dataset, file_meta=meta, is_implicit_VR=False, is_little_endian=True)
    result.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return result


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag == 0x7FE00010


def number_of_frames(dataset: Dataset, path: Path) -> int:
    """NumberOfFrames, 1 when absent; refused outside 1 to `MAX_FRAMES`."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    if not 1 <= frames <= MAX_FRAMES:
        raise ConcordctError(f"{frames} frames, expected 1 to {MAX_FRAMES}: {path}")
    return frames


def frame_bytes(dataset: Dataset, path: Path) -> int:
    """Bytes of one decoded frame by the header, after every header value that decoding relies on was checked."""
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    if rows < 1 or columns < 1 or rows * columns > MAX_SLICE_PIXELS:
        raise ConcordctError(f"{rows} x {columns} pixels, expected 1 to {MAX_SLICE_PIXELS} in all: {path}")
    samples = plain(dataset.get("SamplesPerPixel", 1))
    photometric = plain(dataset.get("PhotometricInterpretation", "absent"))
    if samples != "1" or not photometric.startswith("MONOCHROME"):
        raise ConcordctError(f"{photometric} with {samples} samples per pixel, expected MONOCHROME with 1: {path}")
    allocated, stored = int(dataset.get("BitsAllocated") or 0), int(dataset.get("BitsStored") or 0)
    high = int(dataset.get("HighBit", stored - 1))
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or high != stored - 1:
        raise ConcordctError(
            f"bits allocated {allocated}, stored {stored}, high bit {high}; expected 8, 16 or 32 with the high bit "
            f"one below the bits stored: {path}"
        )
    return rows * columns * allocated // 8


def stored_range(dataset: Dataset) -> tuple[int, int]:
    """Least and greatest value that BitsStored and PixelRepresentation can hold."""
    bits = int(dataset.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.get("PixelRepresentation", 0) else (0, 2**bits - 1)


def rescale(dataset: Dataset, frame: int, path: Path) -> tuple[float, float]:
    """Slope and intercept to HU of one frame, refused when absent, not HU or coarser than `MAX_STEP_HU`."""
    holder = frame_group(dataset, frame, "PixelValueTransformationSequence") or dataset
    if "RescaleSlope" not in holder or "RescaleIntercept" not in holder:
        raise ConcordctError(f"no RescaleSlope and RescaleIntercept, so no Hounsfield units: {path}")
    slope, intercept = float(holder.RescaleSlope), float(holder.RescaleIntercept)
    kind = plain(holder.get("RescaleType") or "HU")
    if kind != "HU":
        raise ConcordctError(f"pixels rescale to {kind}, expected HU: {path}")
    if not (np.isfinite(slope) and np.isfinite(intercept)) or slope <= 0:
        raise ConcordctError(f"RescaleSlope {slope:g} and intercept {intercept:g}, expected a positive slope: {path}")
    if slope > MAX_STEP_HU:
        raise ConcordctError(f"stored in steps of {slope:g} HU, expected at most {MAX_STEP_HU:g} HU: {path}")
    return slope, intercept


def frame_group(dataset: Dataset, frame: int, name: str) -> Dataset | None:
    """First item of a functional group of one frame: its own, else the shared one, else None."""
    per_frame, shared = dataset.get("PerFrameFunctionalGroupsSequence"), dataset.get("SharedFunctionalGroupsSequence")
    for groups in ([per_frame[frame]] if per_frame and frame < len(per_frame) else []) + list(shared or []):
        if groups.get(name):
            item: Dataset = groups[name][0]
            return item
    return None


def stored_slice(dataset: FileDataset, frame: int, path: Path) -> StoredSlice:
    """Decode one frame of a dataset that was opened with its pixels.

    Parameters
    ----------
    dataset : from `open_dataset(path, pixels=True)`.
    frame : index of the frame, 0 for single-frame objects.
    path : named in messages.

    Raises
    ------
    ConcordctError : no pixels, truncated or undecodable pixels, sizes that disagree, no rescale to HU.
    """
    try:
        with quiet_dicom():
            slope, intercept = rescale(dataset, frame, path)
            values = _decode(dataset, frame, path)
            declared = declared_padding(dataset)
            bounds = stored_range(dataset)
            dtype = np.dtype(f"<{'i' if bounds[0] < 0 else 'u'}{dataset.BitsAllocated // 8}")
    except ConcordctError:
        raise
    except Exception as error:
        # pydicom converts values when they are asked for, and anything may hide in a broken one.
        raise ConcordctError(f"broken DICOM header ({type(error).__name__}): {path}") from None
    hu_range = None
    if declared is not None:
        half = slope / 2
        hu_range = (declared[0] * slope + intercept - half, declared[1] * slope + intercept + half)
    padding = find_padding(values * slope + intercept, declared_hu=hu_range)
    return StoredSlice(values, slope, intercept, padding, bounds, dtype)


def _decode(dataset: FileDataset, frame: int, path: Path) -> NDArray[np.int32]:
    if "PixelData" not in dataset:
        raise ConcordctError(f"no pixel data: {path}")
    size, frames = frame_bytes(dataset, path), number_of_frames(dataset, path)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    syntax = UID(dataset.file_meta.get("TransferSyntaxUID", ""))
    if not syntax.is_transfer_syntax:
        raise ConcordctError(f"unknown transfer syntax {plain(syntax) or 'absent'} in the meta header: {path}")
    if not syntax.is_compressed and len(dataset.PixelData) < size * frames:
        raise ConcordctError(f"{len(dataset.PixelData)} bytes of pixel data, expected {size * frames}: {path}")
    try:
        decoder = get_decoder(syntax)
        if syntax.is_encapsulated:
            data = get_frame(dataset.PixelData, frame, number_of_frames=frames)
            found = codestream_size(data)
            # Decoders fill what is missing with whatever they like; T.81 and 15444-1 end with the same marker.
            if found is not None and not data.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
                raise ConcordctError(f"compressed pixels are cut short, no end marker: {path}")
            if found is not None and found != (rows, columns):
                raise ConcordctError(f"compressed pixels of {found[0]} x {found[1]}, header {rows} x {columns}: {path}")
        array, _ = decoder.as_array(dataset, index=frame, raw=True)
    except ConcordctError:
        raise
    except Exception as error:
        name = syntax.name if syntax.name != syntax else "unknown syntax"
        raise ConcordctError(f"cannot decode pixels in {name} ({syntax}), {type(error).__name__}: {path}") from None
    if array.shape != (rows, columns):
        raise ConcordctError(f"decoded pixels of shape {array.shape}, expected ({rows}, {columns}): {path}")
    low, high = stored_range(dataset)
    # Bits above BitsStored may hold overlays (retired): keep the low bits, then restore the sign.
    values = array.astype(np.int64) & (2 ** int(dataset.BitsStored) - 1)
    return np.where(values > high, values + 2 * low, values).astype(np.int32) if low < 0 else values.astype(np.int32)


def codestream_size(data: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 codestream declares; None for anything else."""
    if data[:4] == b"\xff\x4f\xff\x51" and len(data) >= 24:  # JPEG 2000 part 1, A.5.1: SOC, SIZ
        xsiz, ysiz, xosiz, yosiz = (int.from_bytes(data[8 + 4 * i : 12 + 4 * i], "big") for i in range(4))
        return ysiz - yosiz, xsiz - xosiz
    if data[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:  # ITU-T T.81 B.1.1: marker segments
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xFF:
            position += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = (int.from_bytes(data[position + i : position + i + 2], "big") for i in (5, 7))
            return rows, columns
        position += 2 + length
    return None


def declared_padding(dataset: Dataset) -> tuple[int, int] | None:
    """Least and greatest stored value that the header declares as padding."""
    if dataset.get("PixelPaddingValue") is None:
        return None
    found = [dataset.PixelPaddingValue, dataset.get("PixelPaddingRangeLimit")]
    low, high = stored_range(dataset)
    values = []
    for value in found:
        if isinstance(value, int):
            # Some writers store a signed value as unsigned: -2000 as 63536.
            values.append(value - 2**16 if low < 0 and value > high else value)
    return (min(values), max(values)) if values else None
