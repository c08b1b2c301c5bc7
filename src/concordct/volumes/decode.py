"""Pixels of one DICOM slice: stored values, Hounsfield units and padding; every refusal is one line.

Native pixels are read here, compressed ones by `codestreams`. Sizes are checked before anything is allocated. Source:
DICOM PS3.3 C.7.6.3, C.8.2.1, C.11.1, PS3.5 annex A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from concordct.errors import ConcordctError
from concordct.volumes.attributes import attribute
from concordct.volumes.codestreams import begin_codestream, codestream_size, extended_offsets, frame_codestream
from concordct.volumes.dicom_file import (
    MAX_HEADER_BYTES,
    defined,
    frame_bytes,
    known_uid,
    number_of_frames,
    open_dataset,
    plain,
    quiet_dicom,
)
from concordct.volumes.header_values import needed_numbers
from concordct.volumes.padding import find_padding
from concordct.volumes.volume import AIR_HU

__all__ = [
    "MAX_HEADER_BYTES",
    "StoredSlice",
    "codestream_size",
    "declared_padding",
    "frame_bytes",
    "frame_group",
    "number_of_frames",
    "open_dataset",
    "plain",
    "quiet_dicom",
    "rescale",
    "stored_range",
    "stored_slice",
]

#: Siemens' extended CT scale stores steps of 10 HU; coarser ones are screen captures and hide the texture to be kept.
MAX_STEP_HU = 10.0
#: Air and tissue lie further apart; images cut to a narrow window of tissue are no CT to work on.
LEAST_SPAN_HU = 100.0
#: What RescaleType may say (PS3.3 C.11.1.1.2 and vendors' spellings), folded to upper case.
_HU_NAMES = frozenset(("", "HU", "HOUNSFIELD", "HOUNSFIELD UNIT", "HOUNSFIELD UNITS"))
_UNSPECIFIED = "US"
_PIXELS = 0x7FE00010
_OTHER_UNITS = frozenset(("OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT", "PERCENT", "US", "IODINE", "WATER"))


@dataclass(frozen=True, eq=False)
class StoredSlice:
    """One slice as it is stored.

    Attributes
    ----------
    values : [y, x] whole numbers, stored values with the bits above BitsStored removed.
    slope, intercept : this slice's own rescale, HU = slope * value + intercept.
    padding : [y, x] bool, True where the scanner wrote padding.
    bounds : least and greatest value that can be stored.
    dtype : little-endian type that the values are stored in.
    """

    values: NDArray[np.signedinteger[Any]]
    slope: float
    intercept: float
    padding: NDArray[np.bool_]
    bounds: tuple[int, int]
    dtype: np.dtype[Any]

    def stored_hu(self) -> NDArray[np.float32]:
        """[y, x] HU of every voxel, padding included."""
        found = self.values * self.slope
        found += self.intercept
        return found.astype(np.float32)

    def hu(self) -> NDArray[np.float32]:
        """[y, x] HU with `AIR_HU` where there is padding."""
        found = self.stored_hu()
        found[self.padding] = AIR_HU
        return found


def able_to_reach(stored: StoredSlice, reach: tuple[float, float] | None) -> StoredSlice:
    """The slice with signed values of 16 bits where unsigned ones do not go as far down as the target kernel does.

    Parameters
    ----------
    reach : as in `Volume.reach_hu`.

    Returns
    -------
    The same slice where its values go that far, or where what it holds would not fit. Padding keeps its bits.
    """
    low = stored.bounds[0] * stored.slope + stored.intercept
    if reach is None or reach[0] >= low or stored.dtype != np.dtype("<u2"):
        return stored
    image = stored.values[~stored.padding]
    if image.size and image.max() >= 2**15:
        return stored
    values = np.where(stored.values < 2**15, stored.values, stored.values - 2**16)
    return replace(stored, values=values, bounds=(-(2**15), 2**15 - 1), dtype=np.dtype("<i2"))


def as_signed(dataset: Dataset) -> None:
    """The header of a slice whose values became signed; a declared padding value names the same bits as before."""
    declared = declared_padding(dataset)
    dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 1, 16, 15
    for name, value in zip(("PixelPaddingValue", "PixelPaddingRangeLimit"), declared or (), strict=False):
        if name in dataset:
            dataset.add_new(name, "SS", value if value < 2**15 else value - 2**16)


def stored_range(dataset: Dataset) -> tuple[int, int]:
    """Least and greatest value that BitsStored and PixelRepresentation can hold."""
    bits = int(dataset.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.get("PixelRepresentation", 0) else (0, 2**bits - 1)


def rescale(dataset: Dataset, frame: int, path: Path) -> tuple[float, float]:
    """Slope and intercept to HU of one frame, refused when absent, not HU or coarser than `MAX_STEP_HU`."""
    holder = frame_group(dataset, frame, "PixelValueTransformationSequence") or dataset
    if "RescaleSlope" not in holder or "RescaleIntercept" not in holder:
        raise ConcordctError(f"no RescaleSlope and RescaleIntercept, so no Hounsfield units: {path}")
    (slope,), (intercept,) = (needed_numbers(holder, name, 1, path) for name in ("RescaleSlope", "RescaleIntercept"))
    kind = str(attribute(holder, "RescaleType") or "").strip().upper()
    if kind not in _HU_NAMES and kind != _UNSPECIFIED:
        said = defined(kind, _OTHER_UNITS)
        raise ConcordctError(f"pixels rescale to {said if said != 'another' else 'another unit'}, expected HU: {path}")
    if slope <= 0:
        raise ConcordctError(f"RescaleSlope {slope:g} and intercept {intercept:g}, expected a positive slope: {path}")
    if slope > MAX_STEP_HU:
        raise ConcordctError(f"stored in steps of {slope:g} HU, expected at most {MAX_STEP_HU:g} HU: {path}")
    span = slope * 2.0 ** int(attribute(dataset, "BitsStored") or 0)
    if span < LEAST_SPAN_HU:
        said = f"RescaleSlope {slope:g}, with which all that can be stored spans {span:g} HU"
        raise ConcordctError(f"{said}, expected at least {LEAST_SPAN_HU:g} HU: {path}")
    return slope, intercept


def units_unspecified(dataset: Dataset, frame: int) -> bool:
    """Whether RescaleType says "US": unspecified, as ITK, SimpleITK and GDCM write it by default."""
    holder = frame_group(dataset, frame, "PixelValueTransformationSequence") or dataset
    return str(attribute(holder, "RescaleType") or "").strip().upper() == _UNSPECIFIED


def frame_group(dataset: Dataset, frame: int, name: str) -> Dataset | None:
    """First item of a functional group of one frame: its own, else the shared one, else None."""
    per_frame = attribute(dataset, "PerFrameFunctionalGroupsSequence")
    shared = attribute(dataset, "SharedFunctionalGroupsSequence")
    for groups in ([per_frame[frame]] if per_frame and frame < len(per_frame) else []) + list(shared or []):
        if groups.get(name):
            item: Dataset = groups[name][0]
            return item
    return None


def stored_slice(dataset: FileDataset, frame: int, path: Path) -> StoredSlice:
    """One frame of a dataset that was opened with its pixels, see `begin_slice`."""
    return begin_slice(dataset, frame, path)()


def begin_slice(dataset: FileDataset, frame: int, path: Path) -> Callable[[], StoredSlice]:
    """Begin to decode one frame of a dataset that was opened with its pixels; the call of what comes back ends it.

    Parameters
    ----------
    dataset : from `open_dataset(path, pixels=True)`.
    frame : index of the frame, 0 for single-frame objects.
    path : named in messages.

    Raises
    ------
    ConcordctError : no pixels, truncated or undecodable pixels, sizes that disagree, no rescale to HU; now or when
        called.
    """
    with _said_of(path):
        slope, intercept = rescale(dataset, frame, path)
        return partial(_stored, dataset, _begin(dataset, frame, path), (slope, intercept), path)


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """What goes wrong with a header in one line that names the file."""
    try:
        with quiet_dicom():
            yield
    except ConcordctError:
        raise
    except Exception as error:
        # pydicom converts values when they are asked for, and anything may hide in a broken one.
        raise ConcordctError(f"broken DICOM header ({type(error).__name__}): {path}") from None


def _stored(
    dataset: FileDataset, pixels: Callable[[], NDArray[Any]], to_hu: tuple[float, float], path: Path
) -> StoredSlice:
    """The slice of pixels that are being decoded."""
    slope, intercept = to_hu
    with _said_of(path):
        raw = pixels()
        declared = declared_padding(dataset)
        bounds = stored_range(dataset)
        dtype = np.dtype(f"<{'i' if bounds[0] < 0 else 'u'}{dataset.BitsAllocated // 8}")
        values: NDArray[Any] = _without_overlays(raw, bounds, int(dataset.BitsStored))
    hu_range = None
    if declared is not None:
        half = slope / 2
        hu_range = (declared[0] * slope + intercept - half, declared[1] * slope + intercept + half)
    if dtype.itemsize < 4:
        values = values.astype(np.int32, copy=False)
    hu = values * slope
    hu += intercept
    return StoredSlice(values, slope, intercept, find_padding(hu, declared_hu=hu_range), bounds, dtype)


def _without_overlays(raw: NDArray[Any], bounds: tuple[int, int], bits: int) -> NDArray[Any]:
    """Bits above BitsStored may hold overlays (retired): keep the low bits, then restore the sign."""
    values: NDArray[np.signedinteger[Any]] = raw.astype(np.int32 if raw.dtype.itemsize < 4 else np.int64)
    if bounds[0] < 0:
        above = 8 * values.itemsize - bits
        values <<= above
        values >>= above  # with the sign
    else:
        values &= 2**bits - 1
    return values


def _begin(dataset: FileDataset, frame: int, path: Path) -> Callable[[], NDArray[Any]]:
    """Begin to decode a frame; called, its [y, x] stored values."""
    if "PixelData" not in dataset:
        raise ConcordctError(f"no pixel data: {path}")
    # Headers are read up to the pixels: what stands behind them, an ID or an overlay, would be lost (PS3.5 7.1).
    for tag in reversed(list(dataset.keys())):
        if tag == _PIXELS:
            break
        if tag < _PIXELS:
            raise ConcordctError(f"elements behind the pixel data, expected them before it in ascending order: {path}")
    size, frames = frame_bytes(dataset, path), number_of_frames(dataset, path)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    syntax = UID(str(dataset.file_meta.get("TransferSyntaxUID", "")))
    if not syntax.is_transfer_syntax:
        raise ConcordctError(f"unknown transfer syntax {known_uid(syntax)} in the meta header: {path}")
    # Less is cut short; a whole frame more means that the header is wrong about frames, sizes or bits.
    if not syntax.is_compressed and not 0 <= len(dataset.PixelData) - size * frames < size:
        raise ConcordctError(f"{len(dataset.PixelData)} bytes of pixel data, expected {size * frames}: {path}")
    with _decoding(syntax, path):
        if not syntax.is_encapsulated:
            # MONOCHROME has one sample (PS3.3 C.7.6.3.1.2), also where the header leaves that out.
            one_sample: dict[str, Any] = {"samples_per_pixel": 1}
            array, _ = get_decoder(syntax).as_array(dataset, index=frame, raw=True, **one_sample)
            return partial(_of_shape, lambda: array, (rows, columns), syntax, path)
        extended = extended_offsets(dataset, path)
        data = frame_codestream(dataset.PixelData, frame, frames, path=path, extended=extended)
        options = {
            "rows": rows,
            "columns": columns,
            "number_of_frames": 1,
            "samples_per_pixel": 1,
            "photometric_interpretation": str(dataset.PhotometricInterpretation),
            "pixel_representation": int(dataset.get("PixelRepresentation", 0)),
            "bits_allocated": int(dataset.BitsAllocated),
            "bits_stored": int(dataset.BitsStored),
        }
        begun = begin_codestream(data, syntax=syntax, options=options, path=path)
        return partial(_of_shape, begun, (rows, columns), syntax, path)


def _of_shape(decoded: Callable[[], NDArray[Any]], shape: tuple[int, int], syntax: UID, path: Path) -> NDArray[Any]:
    with _decoding(syntax, path):
        array = decoded()
    if array.shape != shape:
        raise ConcordctError(f"decoded pixels of shape {array.shape}, expected {shape}: {path}")
    return array


@contextmanager
def _decoding(syntax: UID, path: Path) -> Iterator[None]:
    """What goes wrong with pixels in one line that names their transfer syntax."""
    try:
        yield
    except ConcordctError:
        raise
    except Exception as error:
        name = syntax.name if syntax.name != syntax else "unknown syntax"
        raise ConcordctError(f"cannot decode pixels in {name} ({syntax}), {type(error).__name__}: {path}") from None


def declared_padding(dataset: Dataset) -> tuple[int, int] | None:
    """Least and greatest stored value that the header declares as padding.

    The value may stand in the other VR than PixelRepresentation asks for, -2000 as an unsigned 63536 or the other way
    round, and in more bits than are stored: it comes back as the number that pixels hold.
    """
    signed, bits = bool(dataset.get("PixelRepresentation", 0)), int(dataset.BitsStored)
    values = []
    for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = _number(dataset, name)
        if value is None:
            break
        wrapped = value % 2**bits
        values.append(wrapped - 2**bits if signed and wrapped >= 2 ** (bits - 1) else wrapped)
    return (min(values), max(values)) if values else None


def _number(dataset: Dataset, name: str) -> int | None:
    """A whole number, whatever VR it came in; None for what is none."""
    value = dataset.get(name)
    if isinstance(value, bytes) and len(value) == 2:
        return int.from_bytes(value, "big" if dataset.original_encoding[1] is False else "little")
    try:
        return None if value is None or isinstance(value, bytes) else int(str(value))
    except ValueError:
        return None
