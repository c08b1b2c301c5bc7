"""One DICOM object that has just arrived: written so that a power cut cannot take it, and looked at before it is
promised to anybody.

    write_arrived(path, data, meta=meta)      # a PS3.10 file, on disk when this returns
    arrived = look_at(path)                   # raises for what is cut short or no CT
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_file_meta_info
from pydicom.filewriter import write_file_meta_info
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from concordct.errors import ConcordctError
from concordct.volumes.classic import MULTI_FRAME
from concordct.volumes.decode import (
    codestream_size,
    frame_bytes,
    frame_group,
    number_of_frames,
    open_dataset,
    plain,
    quiet_dicom,
)
from concordct.volumes.headers import slice_headers

#: SOP classes whose objects can be standardized.
CT_CLASSES: tuple[UID, ...] = (CTImageStorage, *MULTI_FRAME)
#: What `decode` reads, best first: 12-bit lossy JPEG and HTJ2K have no decoder here.
TRANSFER_SYNTAXES: tuple[UID, ...] = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLossless,
    RLELossless,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEGLSNearLossless,
    JPEG2000,
    JPEGBaseline8Bit,
)


@dataclass(frozen=True)
class Arrived:
    """What the service must know of one object.

    Attributes
    ----------
    sop_class_uid, sop_instance_uid, series_uid, study_uid, transfer_syntax_uid : as DICOM names them.
    stated : how many objects the series holds, where the object says so (NumberOfSeriesRelatedInstances).
    """

    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str
    study_uid: str
    transfer_syntax_uid: str
    stated: int | None


@dataclass(frozen=True)
class Facts:
    """What rules match a series on; None where its header does not say. `description` is free text that may hold
    more than it should: it is matched and never kept."""

    kernel: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    body_part: str | None = None
    description: str | None = None
    thickness_mm: float | None = None


def write_arrived(path: Path, data: bytes | memoryview, *, meta: FileMetaDataset | None = None) -> None:
    """Write an object and wait until it is on disk; the caller syncs the folder after its last rename.

    Parameters
    ----------
    data : the data set as it came; a whole PS3.10 file where there is no `meta`.
    meta : its meta header.

    Raises
    ------
    OSError : no place to write.
    """
    with open(path, "wb") as file:
        if meta is not None:
            head = BytesIO()
            write_file_meta_info(head, meta)  # type: ignore[arg-type]
            file.write(b"\0" * 128 + b"DICM" + head.getvalue())
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def dataset_offset(data: bytes | memoryview) -> int:
    """Where the data set begins in the bytes of a PS3.10 file; 0 where they are none."""
    if bytes(data[128:136]) != b"DICM\x02\x00\x00\x00":
        return 0
    return 144 + int.from_bytes(data[140:144], "little")  # PS3.10 7.1: the group's length comes first


def look_at(path: Path) -> Arrived:
    """What one file holds.

    Raises
    ------
    ConcordctError : not DICOM, not CT, no UIDs, or pixels that end early. What is wrong with the geometry is no matter
        here: a localizer belongs to its series and is set aside there.
    """
    dataset = open_dataset(path, pixels=True)
    with quiet_dicom():
        try:
            return _look_at(dataset, path)
        except ConcordctError:
            raise
        except Exception as error:
            # Anything may hide in a broken header, and pydicom decodes values when they are asked for.
            raise ConcordctError(f"broken DICOM header ({type(error).__name__}): {path}") from None


def _look_at(dataset: FileDataset, path: Path) -> Arrived:
    uids = []
    for name in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        uid = UID(plain(dataset.get(name) or ""))
        if not uid.is_valid:
            raise ConcordctError(f"no valid {name}: {path}")
        uids.append(str(uid))
    if uids[0] not in CT_CLASSES:
        raise ConcordctError(f"expected a CT image, found SOP class {uids[0]}: {path}")
    _check_pixels(dataset, path)
    stated = dataset.get("NumberOfSeriesRelatedInstances")
    sop_class, sop_instance, series, study = uids
    return Arrived(sop_class, sop_instance, series, study, _declared_syntax(path), int(stated) if stated else None)


def _declared_syntax(path: Path) -> str:
    """As the file says it: `open_dataset` gives what it inflated under another name."""
    return str(read_file_meta_info(path).TransferSyntaxUID)


def _check_pixels(dataset: FileDataset, path: Path) -> None:
    if "PixelData" not in dataset:
        raise ConcordctError(f"no pixel data, or a data set that ends before it: {path}")
    size, frames = frame_bytes(dataset, path), number_of_frames(dataset, path)
    data, syntax = dataset.PixelData, UID(dataset.file_meta.TransferSyntaxUID)
    if not syntax.is_encapsulated:
        if len(data) < size * frames:
            raise ConcordctError(f"{len(data)} bytes of pixel data, expected {size * frames}: {path}")
        return
    found = 0
    for stream in generate_frames(data, number_of_frames=frames):
        found += 1
        if codestream_size(stream) is not None and not stream.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
            raise ConcordctError(f"compressed pixels are cut short, no end marker: {path}")
    if found != frames:
        raise ConcordctError(f"{found} compressed frames, expected {frames}: {path}")


def series_facts(paths: Iterable[Path]) -> Facts:
    """What the first file that holds a slice says; nothing where none does."""
    for path in paths:
        try:
            header = slice_headers(path)[0]
            dataset = open_dataset(path)
        except (ConcordctError, IndexError):
            continue
        with quiet_dicom():
            said = {
                name: plain(dataset.get(keyword) or "") or None
                for name, keyword in (
                    ("manufacturer", "Manufacturer"),
                    ("model", "ManufacturerModelName"),
                    ("body_part", "BodyPartExamined"),
                )
            }
            if said["body_part"] is None and dataset.SOPClassUID in MULTI_FRAME:
                anatomy = frame_group(dataset, 0, "FrameAnatomySequence")
                regions = anatomy.get("AnatomicRegionSequence") if anatomy is not None else None
                said["body_part"] = plain(regions[0].get("CodeMeaning") or "") or None if regions else None
        description = header.description or None
        return Facts(header.kernel, description=description, thickness_mm=header.thickness, **said)
    return Facts()


def references(instances: Iterable[tuple[str, str]], *, transaction_uid: str) -> Dataset:
    """The data set of a storage commitment request (PS3.4 J.3.2): (SOP class, SOP instance) of each object."""
    items = []
    for sop_class, sop_instance in instances:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
        items.append(item)
    request = Dataset()
    request.TransactionUID = transaction_uid
    request.ReferencedSOPSequence = Sequence(items)
    return request
