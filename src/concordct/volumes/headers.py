"""What one DICOM header says about its CT slices, or why the file holds none.

Classic CT gives one slice, enhanced multi-frame CT one for each frame (DICOM PS3.3 A.38), as does its legacy converted
kin (A.70). Everything else is set aside with its reason; values of broken headers are never quoted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    MediaStorageDirectoryStorage,
)

from concordct.errors import ConcordctError
from concordct.volumes.attributes import attribute
from concordct.volumes.classic import MULTI_FRAME, converted_attributes
from concordct.volumes.codestreams import decoder_missing
from concordct.volumes.concatenation import Part, part_of
from concordct.volumes.decode import frame_group, rescale, units_unspecified
from concordct.volumes.dicom_file import (
    Stamp,
    defined,
    file_stamp,
    frame_bytes,
    known_uid,
    number_of_frames,
    open_dataset,
    plain,
    quiet_dicom,
)
from concordct.volumes.energies import energy_of, refuse_maps
from concordct.volumes.geometry import slice_normal
from concordct.volumes.header_values import greatest, joined, needed_numbers, one_number, positive, whole

# fmt: off
_TAGS = (
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesDescription",
    "ProtocolName", "SliceThickness", "SpacingBetweenSlices", "ConvolutionKernel", "ReconstructionAlgorithm",
    "SeriesInstanceUID", "FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient",
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "PixelSpacing",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleIntercept", "RescaleSlope",
    "RescaleType", "ModalityLUTSequence", "LossyImageCompression", "LossyImageCompressionRatio",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "VolumetricProperties",
    "Manufacturer", "AcquisitionNumber", "AcquisitionTime", "AcquisitionDateTime", "TemporalPositionIdentifier",
    "NominalPercentageOfCardiacPhase", "TriggerTime", "MultienergyCTProcessingSequence",
    "MonoenergeticEnergyEquivalent", "PatientID", "StudyInstanceUID", "SeriesNumber", "InstanceNumber", "KVP",
    "SeriesDate", "SeriesTime", "IrradiationEventUID", "GantryDetectorTilt", "BurnedInAnnotation", "ConcatenationUID",
    "InConcatenationNumber", "InConcatenationTotalNumber", "ConcatenationFrameOffsetNumber",
)
_MODALITIES = frozenset((
    "AR", "AU", "BI", "CR", "CT", "DG", "DOC", "DX", "ECG", "ES", "FID", "GM", "HC", "IO", "IVUS", "KER", "KO", "LS",
    "M3D", "MG", "MR", "NM", "OAM", "OCT", "OP", "OPT", "OT", "PR", "PT", "PX", "REG", "RF", "RG", "RTDOSE", "RTIMAGE",
    "RTPLAN", "RTRECORD", "RTSTRUCT", "RWV", "SEG", "SM", "SMR", "SR", "SRF", "ST", "TG", "US", "XA", "XC", "none",
))
#: Of the standard, and unknown to pydicom.
_NEWER_SYNTAXES = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
}
_ALGORITHMS = ("ITERATIVE", "FILTER_BACK_PROJ", "DEEP_LEARNING")
# fmt: on

#: Words of ImageType for projections and for pages, the standard's and vendors' own.
_LOCALIZERS = frozenset(("LOCALIZER", "SCOUT", "SCANO", "SCANOSCOPE", "SCANOGRAM", "TOPOGRAM", "SURVIEW"))
_CAPTURES = frozenset(("SCREEN SAVE", "SCREENSAVE", "SCREEN_SAVE", "SCREENSHOT", "DOSE_INFO", "PATIENT PROTOCOL"))
#: Names under which vendors sell iterative and network reconstruction; a linear kernel model is less sure there.
_NON_LINEAR = re.compile(
    r"iDose|\bIMR\b|ASIR|\bVEO\b|SAFIRE|ADMIRE|\bQIR\b|\bIRIS\b|AIDR|\bFIRST\b|AiCE|PIQE|True ?Fidelity|DLIR|"
    r"Precise Image|iterative|deep learning",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class SliceHeader:
    """What grouping and geometry need of one slice; names follow DICOM, lengths are mm.

    Attributes
    ----------
    energy : what the voxels show where that is not the plain image of the scan ("40 keV", "material removed").
    owner : short digest of the patient and study that the object states; no name can be read from it.
    series_number : digest of SeriesNumber, "" where the object states none.
    number : InstanceNumber, where it is a whole number.
    tilt : GantryDetectorTilt in degrees, where it is a number.
    times : values by attribute that tell acquisitions, phases and stacks of one series apart.
    undecodable : the transfer syntax, where no decoder is here for it.
    part : of a concatenation, where the object is one.
    stamp : of the file before it was read.
    """

    path: Path
    frame: int
    sop_instance_uid: str
    series_uid: str
    owner: str
    series_number: str
    number: int | None
    tilt: float | None
    frame_of_reference_uid: str | None
    description: str
    kernel: str | None
    energy: str | None
    orientation: tuple[float, ...]
    origin: tuple[float, float, float]
    pixel_spacing: tuple[float, float]
    rows: int
    columns: int
    thickness: float | None
    nominal_spacing: float | None
    lossy: bool
    lossy_ratio: float | None
    times: tuple[tuple[str, str], ...]
    undecodable: str | None
    notes: tuple[str, ...]
    part: Part | None = None
    stamp: Stamp | None = field(default=None, compare=False)


def header_to_json(header: SliceHeader) -> dict[str, Any]:
    """All but path and stamp, which name the file, in values of JSON."""
    told = {name: value for name, value in vars(header).items() if name not in ("path", "stamp")}
    return told | {"part": None if header.part is None else header.part.to_json()}


def header_from_json(path: Path, stamp: Stamp | None, told: Mapping[str, Any]) -> SliceHeader:
    """A header from what `header_to_json` said of it."""
    tuples = ("orientation", "origin", "pixel_spacing", "notes")
    values: dict[str, Any] = {name: tuple(value) if name in tuples else value for name, value in told.items()}
    values["times"] = tuple((name, value) for name, value in told["times"])
    values["part"] = None if told["part"] is None else Part(**told["part"])
    return SliceHeader(**values, path=path, stamp=stamp)


#: Attributes that part a series, first the surest. The times come last: scanners may write one for each slice.
_TIMES = (
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "StackID",
    "SOPInstanceUID",
    "IrradiationEventUID",
    "NominalPercentageOfCardiacPhase",
    "TriggerTime",
    "KVP",
    "SliceThickness",
    "SeriesDescription",
    "ImageType",
    "SeriesDate",
    "SeriesTime",
    "AcquisitionDateTime",
    "AcquisitionTime",
)


def slice_headers(path: Path) -> tuple[SliceHeader, ...]:
    """The CT slices that one file holds.

    Raises
    ------
    ConcordctError : the file holds none; the message is the reason why it is set aside.
    """
    stamp = file_stamp(path)
    with quiet_dicom():
        dataset = open_dataset(path, tags=_TAGS)
        try:
            return _headers(dataset, path, stamp)
        except ConcordctError:
            raise
        except Exception as error:
            # pydicom decodes values when they are asked for, and anything may hide in a broken one.
            raise ConcordctError(f"broken DICOM header ({type(error).__name__}): {path}") from None


def _headers(dataset: Dataset, path: Path, stamp: Stamp | None) -> tuple[SliceHeader, ...]:
    sop_class = UID(str(attribute(dataset, "SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or ""))
    if sop_class == MediaStorageDirectoryStorage:
        raise ConcordctError(f"DICOMDIR, a directory of files and not an image: {path}")
    if len(dataset) == 0:
        raise ConcordctError(f"truncated or empty DICOM header: {path}")
    if "SOPClassUID" not in dataset:
        raise ConcordctError(f"no SOP class UID: {path}")
    if sop_class not in (CTImageStorage, *MULTI_FRAME):
        raise ConcordctError(f"{_kind(sop_class)}, not a CT image: {path}")
    modality = defined(attribute(dataset, "Modality") or "none", _MODALITIES)
    if modality != "CT":
        said = "of no known name" if modality == "another" else modality
        raise ConcordctError(f"modality {said}, expected CT: {path}")
    if not attribute(dataset, "SeriesInstanceUID") or not attribute(dataset, "SOPInstanceUID"):
        raise ConcordctError(f"no series or SOP instance UID: {path}")
    if not all(isinstance(attribute(dataset, name), str) for name in ("SeriesInstanceUID", "SOPInstanceUID")):
        raise ConcordctError(f"several series or SOP instance UIDs, expected one of each: {path}")
    if attribute(dataset, "ModalityLUTSequence"):
        raise ConcordctError(f"pixels map to HU through a lookup table, expected slope and intercept: {path}")
    frame_bytes(dataset, path)
    count = number_of_frames(dataset, path)
    if sop_class == CTImageStorage:
        if count != 1:
            raise ConcordctError(f"single-frame CT object with {count} frames, expected 1: {path}")
        return (_slice(dataset, dataset, 0, attribute(dataset, "ImageType"), path, stamp),)
    groups = len(attribute(dataset, "PerFrameFunctionalGroupsSequence") or ())
    if groups != count:  # PS3.3 C.7.6.16: one item for each frame
        raise ConcordctError(f"{count} frames with functional groups for {groups}, expected one each: {path}")
    _refuse_several(dataset, path)
    part = part_of(dataset, count, path)
    return tuple(replace(_enhanced(dataset, frame, path, stamp), part=part) for frame in range(count))


#: Functional groups whose attributes a classic header holds itself.
_GROUPS = (
    "FrameContentSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "CTReconstructionSequence",
    "CTImageFrameTypeSequence",
    "CardiacSynchronizationSequence",
    "TemporalPositionSequence",
    "MultienergyCTProcessingSequence",
)


#: Functional groups of one item (PS3.3 C.7.6.16.2); of several nobody knows which counts.
_SINGLE = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence",
           "PixelValueTransformationSequence")  # fmt: skip


def _refuse_several(dataset: Dataset, path: Path) -> None:
    shared = list(attribute(dataset, "SharedFunctionalGroupsSequence") or ())
    if len(shared) > 1:
        raise ConcordctError(f"SharedFunctionalGroupsSequence of {len(shared)} items, expected one: {path}")
    for groups in (*shared, *attribute(dataset, "PerFrameFunctionalGroupsSequence")):
        for name in _SINGLE:
            if len(groups.get(name) or ()) > 1:
                raise ConcordctError(f"{name} of {len(groups[name].value)} items for a frame, expected one: {path}")


def _enhanced(dataset: Dataset, frame: int, path: Path, stamp: Stamp | None) -> SliceHeader:
    """One frame of an enhanced CT: its functional groups, laid out as a classic header (PS3.3 C.7.6.16)."""
    flat = converted_attributes(dataset, frame)
    for group in _GROUPS:
        item = frame_group(dataset, frame, group)
        if item is not None:
            flat.update(item)
    for name in ("ConvolutionKernel", "SliceThickness", "AcquisitionNumber", "AcquisitionDateTime"):
        if attribute(flat, name) in (None, "") and name in dataset:
            flat[name] = dataset[name]
    if attribute(flat, "FrameAcquisitionNumber") is not None:
        flat.AcquisitionNumber = str(flat.FrameAcquisitionNumber)
    frame_type = attribute(flat, "FrameType") or attribute(dataset, "ImageType")
    properties = attribute(flat, "VolumetricProperties", attribute(dataset, "VolumetricProperties", "VOLUME"))
    if properties not in ("VOLUME", "SAMPLED"):
        raise ConcordctError(f"frames of a projection or a mixture, expected a volume: {path}")
    return _slice(dataset, flat, frame, frame_type, path, stamp)


def _slice(
    dataset: Dataset, flat: Dataset, frame: int, image_type: object, path: Path, stamp: Stamp | None
) -> SliceHeader:
    kinds = [str(value).strip().upper() for value in (image_type or ())]  # type: ignore[attr-defined]
    if _LOCALIZERS.intersection(kinds):
        raise ConcordctError(f"localizer: {path}")
    if _CAPTURES.intersection(kinds):
        raise ConcordctError(f"a picture of a screen or a protocol, expected a CT slice: {path}")
    refuse_maps(kinds, path, enhanced=flat is not dataset)
    x, y, z = needed_numbers(flat, "ImagePositionPatient", 3, path)
    cosines = needed_numbers(flat, "ImageOrientationPatient", 6, path)
    between_rows, between_columns = needed_numbers(flat, "PixelSpacing", 2, path)
    try:
        slice_normal(cosines)
    except ValueError as error:
        raise ConcordctError(f"{error}: {path}") from None
    finite = abs(x) + abs(y) + abs(z) + between_rows + between_columns < float("inf")
    if not (between_rows > 0 and between_columns > 0 and finite):
        raise ConcordctError(f"impossible position or pixel spacing {between_rows:g} x {between_columns:g} mm: {path}")
    rescale(dataset, frame, path)
    return SliceHeader(
        path=path,
        frame=frame,
        sop_instance_uid=str(dataset.SOPInstanceUID),
        series_uid=str(dataset.SeriesInstanceUID),
        owner=_digest(*(str(attribute(dataset, name) or "").strip() for name in ("StudyInstanceUID", "PatientID"))),
        series_number=_series_number(dataset),
        number=whole(flat, "InstanceNumber"),
        tilt=one_number(flat, "GantryDetectorTilt"),
        frame_of_reference_uid=str(attribute(dataset, "FrameOfReferenceUID") or "") or None,
        description=plain(attribute(dataset, "SeriesDescription") or ""),
        kernel=joined(attribute(flat, "ConvolutionKernel")),
        energy=energy_of(kinds, flat, str(attribute(dataset, "SeriesDescription") or "")),
        orientation=cosines,
        origin=(x, y, z),
        pixel_spacing=(between_rows, between_columns),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        thickness=positive(flat, "SliceThickness"),
        nominal_spacing=positive(flat, "SpacingBetweenSlices"),
        lossy=str(attribute(dataset, "LossyImageCompression") or "00") == "01",
        lossy_ratio=greatest(dataset, "LossyImageCompressionRatio"),
        times=_times(flat, dataset),
        undecodable=_undecodable(dataset),
        notes=_notes(dataset, flat, frame),
        stamp=stamp,
    )


def _digest(*said: str) -> str:
    return hashlib.sha256("\0".join(said).encode("utf-8", "replace")).hexdigest()[:16]


def _series_number(dataset: Dataset) -> str:
    """4 and 04 are one number; what is none is compared as it stands."""
    number = whole(dataset, "SeriesNumber")
    said = str(attribute(dataset, "SeriesNumber") or "").strip() if number is None else str(number)
    return _digest(said) if said else ""


def _times(flat: Dataset, dataset: Dataset) -> tuple[tuple[str, str], ...]:
    """What tells acquisitions apart; of numbers what they count, of words a digest, for they may name a patient."""
    found = []
    for name in _TIMES:
        if name in ("KVP", "SliceThickness"):
            number = positive(flat, name)
            # Two digits of a thickness: 0.62 and 0.625 mm are one in two roundings.
            said = "" if number is None else f"{number:.3g}" if name == "KVP" else f"{number:.2g}"
        elif name == "SOPInstanceUID":
            # Of multi-frame objects alone; the parts of a concatenation are one.
            whole_object = attribute(dataset, "ConcatenationUID") or dataset.SOPInstanceUID
            said = str(whole_object) if flat is not dataset else ""
        else:
            said = joined(attribute(flat, name) if name in flat else attribute(dataset, name)) or ""
            if name in ("SeriesDescription", "ImageType") and said:
                said = _digest(said)
        if said:
            found.append((name, said))
    return tuple(found)


def _undecodable(dataset: Dataset) -> str | None:
    """The transfer syntax by name and UID, where its pixels cannot be decoded here."""
    syntax = UID(str(dataset.file_meta.get("TransferSyntaxUID", "")))
    if not syntax.is_transfer_syntax:
        return f"{_NEWER_SYNTAXES.get(str(syntax), 'unknown transfer syntax')} {known_uid(syntax)}"
    if not syntax.is_encapsulated or not decoder_missing(syntax, int(dataset.BitsStored)):
        return None
    return f"{syntax.name} ({syntax})"


def _notes(dataset: Dataset, flat: Dataset, frame: int) -> tuple[str, ...]:
    """Signs of iterative or network reconstruction, and what the header leaves unsaid."""
    notes = []
    kernel = joined(attribute(flat, "ConvolutionKernel")) or ""
    said = (
        " ".join(str(attribute(dataset, name) or "") for name in ("SeriesDescription", "ProtocolName")) + " " + kernel
    )
    words = sorted({found.group(0).lower() for found in _NON_LINEAR.finditer(said)})
    algorithm = str(attribute(flat, "ReconstructionAlgorithm") or "").strip().upper()
    if "ITERATIVE" in algorithm:
        words.append(defined(algorithm, _ALGORITHMS))
    # Siemens: a leading I (I31f) or a second value (Br40f\3) is the strength of SAFIRE or ADMIRE.
    if re.match(r"(I\d\d|[A-Z][a-z]\d\d[a-z]?\\[1-5])", kernel):
        words.append(f"kernel {kernel}")
    if words:
        notes.append(f"iterative or network reconstruction ({', '.join(words)})")
    if units_unspecified(dataset, frame):
        notes.append("RescaleType US (unspecified), read as HU")
    if str(attribute(dataset, "BurnedInAnnotation") or "").strip().upper() == "YES":
        notes.append("BurnedInAnnotation YES: text may stand in the pixels, and is filtered as image")
    if getattr(dataset, "preamble", b"") is None:
        notes.append("no DICOM file header, read as the bare dataset that it is")
    return tuple(notes)


def _kind(sop_class: UID) -> str:
    name = plain(sop_class.name) if sop_class else "no SOP class"
    if "Secondary Capture" in name:
        return f"secondary capture ({name})"
    if "Dose SR" in name:
        return f"dose report ({name})"
    if name != sop_class:
        return name
    # What is no UID may be a piece of the next attribute, and that may name a patient.
    return f"unknown SOP class {name if re.fullmatch(r'[0-9.]+', name) else ''}".strip()
