"""The header of a derived CT object: what is kept, what is dropped, what is ours (DICOM PS3.3 A.3, C.7.6.1, C.7.5.1).

Kept: patient, study, frame of reference, plane, acquisition, rescale, padding, lossy history. Dropped: whatever was
true of the source's bytes or its creation only. Nothing here reads the clock: outputs are promised byte-identical.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import pydicom
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian

from concordct import __version__
from concordct.volumes.classic import MULTI_FRAME
from concordct.volumes.decode import declared_padding, plain, quiet_dicom
from concordct.volumes.derivation import Derivation
from concordct.volumes.rewriting import prepare, text_of
from concordct.volumes.series import Problem, SliceRef
from concordct.volumes.uids import uid_of

#: SeriesNumber of a derived series is this plus the source's, so that it sorts behind everything a scanner numbers.
SERIES_NUMBER_OFFSET = 90_000
#: How derived objects are encoded.
TRANSFER_SYNTAX = str(ExplicitVRLittleEndian)
#: Greatest value of VR IS (PS3.5 6.2).
_IS_MAX = 2**31 - 1
_LO_LENGTH, _ST_LENGTH = 64, 1024

#: True of the source's bytes, files, signatures or making, hence untrue of the result.
# fmt: off
DROPPED = (
    # when and by whom the source object was made; ours may hold no clock
    "InstanceCreationDate", "InstanceCreationTime", "InstanceCreatorUID", "ContentDate", "ContentTime",
    "SeriesDate", "SeriesTime",
    # signatures and certificates of the source's bytes
    "DigitalSignaturesSequence", "MACParametersSequence", "EncryptedAttributesSequence", "SOPInstanceStatus",
    "SOPAuthorizationDateTime", "SOPAuthorizationComment", "AuthorizationEquipmentCertificationNumber",
    # pictures and statistics of the source's pixels
    "IconImageSequence", "SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries", "SmallestValidPixelValue", "LargestValidPixelValue",
    "SmallestImagePixelValueInPlane",
    "LargestImagePixelValueInPlane",
    # the source's encoding
    "PixelData", "FloatPixelData", "DoubleFloatPixelData", "PixelDataProviderURL", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", "DataSetTrailingPadding", "LengthToEnd",
    # names of the source's kernel and series that are no longer true
    "ConvolutionKernelGroup", "SeriesDescriptionCodeSequence",
)
# fmt: on

#: Dates of a synthetic image: those of the study, which all its objects share and archives file it under, and of the
#: patient. Any other could be taken for the day of a scan.
_STUDY_DATES = ("StudyDate", "StudyTime")
_PATIENT_GROUP = 0x0010


def hashed_uid(*parts: str) -> str:
    """The UID of a derived object; our name goes first, so that no other program's parts give the same."""
    return uid_of("concordct", *parts)


#: How the meta header of what we write names us.
IMPLEMENTATION_CLASS_UID = hashed_uid("implementation")
IMPLEMENTATION_VERSION = f"CONCORDCT_{__version__}"[:16]


def derived_dataset(
    source: FileDataset,
    pixels: bytes,
    ref: SliceRef,
    source_class: str,
    *,
    series_uid: str,
    sop_instance_uid: str,
    derivation: Derivation,
    index: int,
    allowed: tuple[Problem, ...] = (),
) -> FileDataset:
    """The derived object of one source slice.

    Parameters
    ----------
    source : the whole header of the source slice, single-frame; it is changed in place and returned.
    pixels : stored values, little endian, as many as Rows and Columns say.
    ref : the source slice.
    source_class : SOP class of the object that holds it.
    series_uid, sop_instance_uid : the new UIDs.
    derivation : what was done.
    index : of the slice along the normal; stands in for a missing InstanceNumber.
    allowed : problems of the source that were let pass.
    """
    with quiet_dicom():
        source_series, reference = str(source.SeriesInstanceUID), reference_to(ref, source_class)
        kernel = source.get("ConvolutionKernel")
        kernels = [kernel] if isinstance(kernel, str) else list(kernel or [])
        source_kernel = "\\".join(str(k) for k in kernels) or None
        padding = declared_padding(source)
        _drop(source)
        prepare(source, big_endian=source.original_encoding[1] is False)
        if derivation.synthetic is not None:
            _drop_dates(source)
            if "IrradiationEventUID" in source:
                del source.IrradiationEventUID
            source.SyntheticData = "YES"
            source.ImageComments = _ascii(f"Synthetic, not for diagnosis: {derivation.synthetic}", _ST_LENGTH)

        source.SOPInstanceUID, source.SeriesInstanceUID = sop_instance_uid, series_uid
        source.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        if not re.fullmatch(r"[+-]?\d{1,11}", text_of(source, "InstanceNumber").strip()):
            source.InstanceNumber = index + 1
        number = text_of(source, "SeriesNumber").strip()
        known = int(number) if re.fullmatch(r"\+?\d{1,11}", number) else 0
        source.SeriesNumber = min(known + SERIES_NUMBER_OFFSET, _IS_MAX)
        source.SeriesDescription = _series_description(text_of(source, "SeriesDescription"), derivation)
        # SH, 16 characters a value. The name of the model, never that of a vendor's kernel.
        source.ConvolutionKernel = ["CONCORDCT", derivation.model_sha256[:12]]
        if text_of(source, "FilterType").strip() in kernels and "FilterType" in source:
            del source.FilterType  # Philips names the kernel here, too
        source.DerivationDescription = _description(source, source_kernel, derivation, allowed)
        codes = list(source.get("DerivationCodeSequence") or [])
        source.DerivationCodeSequence = Sequence(codes + _derivation_codes(derivation))
        source.SourceImageSequence = Sequence([source_image(reference)])
        source.ReferencedSeriesSequence = Sequence([_referenced_series(source_series, reference)])
        equipment = list(source.get("ContributingEquipmentSequence") or [])
        source.ContributingEquipmentSequence = Sequence([*equipment, _equipment(derivation)])
        if derivation.window_hu is not None:
            source.WindowCenter, source.WindowWidth = derivation.window_hu
            for name in ("WindowCenterWidthExplanation", "VOILUTFunction", "VOILUTSequence"):
                if name in source:
                    delattr(source, name)
        if padding is not None and all(-(2**15) <= value < 2**16 for value in padding):
            # Some writers store a signed value as unsigned; explicit VR needs what PixelRepresentation says.
            vr = "SS" if source.get("PixelRepresentation", 0) else "US"
            source.add_new("PixelPaddingValue", vr, padding[0])
            if "PixelPaddingRangeLimit" in source:
                source.add_new("PixelPaddingRangeLimit", vr, padding[1])
        else:
            for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
                if name in source:
                    delattr(source, name)  # no number: it declared nothing
        source.add_new("PixelData", "OW" if source.BitsAllocated > 8 else "OB", pixels + b"\0" * (len(pixels) % 2))
    return source


def save(dataset: FileDataset, path: Path) -> None:
    """Write one derived object as Explicit VR Little Endian with our own meta header."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(dataset.SOPClassUID)
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION
    with quiet_dicom():
        result = FileDataset(str(path), dataset, preamble=b"\0" * 128, file_meta=meta)
        result.set_original_encoding(*dataset.original_encoding)
        # Not save_as: it refuses to turn big endian into little endian.
        pydicom.dcmwrite(path, result, enforce_file_format=True)


def _drop(dataset: Dataset) -> None:
    for name in DROPPED:
        if name in dataset:
            delattr(dataset, name)


def _drop_dates(dataset: Dataset) -> None:
    """No date or time at any depth but the study's and the patient's."""
    for tag in list(dataset.keys()):
        element = dataset.get_item(tag)
        if element.VR == "SQ":
            for item in dataset[tag].value:
                _drop_dates(item)
        kept = keyword_for_tag(tag) in _STUDY_DATES or tag.group == _PATIENT_GROUP
        if element.VR in ("DA", "DT", "TM") and not kept:
            del dataset[tag]


def _series_description(source: str, derivation: Derivation) -> str:
    # LO holds no backslash: that would part two values.
    said = (
        "[synthetic, not for diagnosis]"
        if derivation.synthetic
        else f"[concordct{_toward(derivation)}{_slices(derivation)}{_shows(derivation)}]"
    )
    ours = _ascii(said, _LO_LENGTH).replace("\\", "/")
    room = _LO_LENGTH - len(ours) - 1
    return f"{source.strip()[:room].rstrip()} {ours}".strip() if room > 0 else ours


def _description(
    dataset: Dataset, source_kernel: str | None, derivation: Derivation, allowed: tuple[Problem, ...]
) -> str:
    """One text, at most 1024 characters; an earlier description goes first and is cut before ours is."""
    ours = f"Reconstruction kernel {source_kernel or 'unknown'} converted{_toward(derivation)}{_shows(derivation)}"
    if derivation.synthetic:
        ours = f"Synthetic, not a scan and not for diagnosis: {derivation.synthetic}, computed"
    ours += f" by concordct {__version__}"
    ours += f" ({derivation.method}, model sha256 {derivation.model_sha256})."
    ours += " ConvolutionKernel of the source is no longer true of these pixels."
    if derivation.slices:
        ours += f" Slices are new: {derivation.slices}."
    settings = ", ".join(f"{key}={value}" for key, value in sorted(derivation.settings.items()))
    if settings:
        ours += f" Settings: {settings}."
    if allowed:
        ours += f" Let pass: {', '.join(sorted({problem.code for problem in allowed}))}."
    earlier = text_of(dataset, "DerivationDescription").strip()
    ours = _ascii(ours, _ST_LENGTH)
    room = _ST_LENGTH - len(ours) - 2
    return f"{earlier[:room]}; {ours}" if earlier and room > 0 else ours


def _toward(derivation: Derivation) -> str:
    return f" toward {derivation.target_kernel}" if derivation.target_kernel else ""


def _shows(derivation: Derivation) -> str:
    return f", {derivation.shows}" if derivation.shows else ""


def _slices(derivation: Derivation) -> str:
    """The start of what was done to slices: as much as a description holds."""
    return f", {' '.join(derivation.slices.split()[:4])}" if derivation.slices else ""


def _ascii(text: str, length: int) -> str:
    """Our own text must be writable in whatever character set the source declares."""
    return plain(text, length).encode("ascii", "replace").decode()


@lru_cache(maxsize=64)
def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _derivation_codes(derivation: Derivation) -> list[Dataset]:
    """Our own code, and the nearest of CID 7203, which has none for a change of kernel."""
    if derivation.synthetic:
        return [_code("SYNTHETIC", "99CONCORDCT", "Synthetic image, not for diagnosis")]
    codes = [_code("KERNEL", "99CONCORDCT", "Reconstruction kernel standardization")]
    if derivation.sharpens is not None:
        sharper, smoother = ("113086", "DCM", "Edge enhancement"), ("113087", "DCM", "Smoothing")
        codes.append(_code(*(sharper if derivation.sharpens else smoother)))
    if derivation.slices:
        codes.append(_code("113085", "DCM", "Spatial resampling"))
    return codes


def reference_to(ref: SliceRef, source_class: str) -> Dataset:
    """The items that name a source slice."""
    item = Dataset()
    item.ReferencedSOPClassUID = source_class
    item.ReferencedSOPInstanceUID = ref.sop_instance_uid
    if source_class in MULTI_FRAME:
        item.ReferencedFrameNumber = ref.frame + 1
    return item


def source_image(reference: Dataset, *, same_places: bool = True) -> Dataset:
    """An item of SourceImageSequence."""
    item = Dataset()
    for element in reference:
        item[element.tag] = element
    item.SpatialLocationsPreserved = "YES" if same_places else "NO"
    # CID 7202
    purpose = _code("121322", "DCM", "Source image for image processing operation")
    item.PurposeOfReferenceCodeSequence = Sequence([purpose])
    return item


def _referenced_series(series_uid: str, reference: Dataset) -> Dataset:
    item = Dataset()
    item.SeriesInstanceUID = series_uid
    item.ReferencedInstanceSequence = Sequence([reference])
    return item


def _equipment(derivation: Derivation) -> Dataset:
    item = Dataset()
    item.Manufacturer = "concordct"
    item.ManufacturerModelName = "concordct"
    # LO, 64 characters a value: the digest fits exactly.
    item.SoftwareVersions = [__version__, derivation.model_sha256]
    what = "Synthetic image" if derivation.synthetic else "Kernel standardization"
    said = f"{what}, method {derivation.method}; second version: model sha256"
    item.ContributionDescription = _ascii(said, _ST_LENGTH)
    item.PurposeOfReferenceCodeSequence = Sequence([_code("109102", "DCM", "Processing Equipment")])  # CID 7005
    return item
