"""One frame of an enhanced multi-frame CT as the header of a classic single-frame CT object.

Only what both objects know in one meaning is carried over (DICOM PS3.3 A.38 and C.7.6.16 to A.3 and C.8.2.1); exposure
and geometry details that enhanced CT encodes otherwise stay in the source, which the result references by frame.
"""

from __future__ import annotations

import copy
from pathlib import Path

from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from concordct.volumes.decode import frame_group
from concordct.volumes.header_values import whole

MULTI_FRAME = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)

# fmt: off
_CARRIED = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation"),
    "CTReconstructionSequence": ("ConvolutionKernel", "ReconstructionDiameter"),
    "CTXRayDetailsSequence": ("KVP", "FocalSpots", "FilterType"),
    "CTTableDynamicsSequence": ("SpiralPitchFactor",),
    "IrradiationEventIdentificationSequence": ("IrradiationEventUID",),
}
_OF_MULTI_FRAME = (
    "NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "DimensionOrganizationSequence", "DimensionIndexSequence", "DimensionOrganizationType", "ConcatenationUID",
    "SOPInstanceUIDOfConcatenationSource", "InConcatenationNumber", "InConcatenationTotalNumber",
    "ConcatenationFrameOffsetNumber", "RepresentativeFrameNumber", "PixelPresentation", "VolumetricProperties",
    "VolumeBasedCalculationTechnique", "ContentQualification", "PresentationLUTShape", "AcquisitionContextSequence",
    "ReferencedImageEvidenceSequence", "SourceImageEvidenceSequence", "ConversionSourceAttributesSequence",
    "FrameOfInterestDescription", "PixelData",
)
_CONVERTED = (
    "ConvolutionKernel", "SliceThickness", "KVP", "AcquisitionNumber", "AcquisitionDate", "AcquisitionTime",
    "ReconstructionDiameter", "FilterType", "XRayTubeCurrent", "Exposure", "ExposureTime", "GantryDetectorTilt",
    "DataCollectionDiameter", "PatientPosition", "BodyPartExamined", "ScanOptions",
)
# fmt: on


def converted_attributes(dataset: Dataset, frame: int) -> Dataset:
    """What a legacy converted CT could not assign to a functional group, of one frame and shared (C.7.6.16.2.25).

    A dataset of its own for the caller to change: the shared attributes, then those of the frame over them.
    """
    found = Dataset()
    per_frame, shared = dataset.get("PerFrameFunctionalGroupsSequence"), dataset.get("SharedFunctionalGroupsSequence")
    for groups in list(shared or [])[:1] + ([per_frame[frame]] if per_frame and frame < len(per_frame) else []):
        for name in ("UnassignedSharedConvertedAttributesSequence", "UnassignedPerFrameConvertedAttributesSequence"):
            if groups.get(name):
                found.update(groups[name][0])
    return found


def classic_frame(dataset: FileDataset, frame: int, path: Path) -> FileDataset:
    """A classic header for one frame; the dataset stays as it is.

    Parameters
    ----------
    dataset : the whole header of an enhanced CT.
    frame : index of the frame.
    path : of the file, kept as the result's name.

    Returns
    -------
    A CT Image Storage header that still holds the source's UIDs.
    """
    plain = Dataset()
    for tag in dataset.keys():  # noqa: SIM118 - iterating a Dataset converts every element
        plain[tag] = dataset.get_item(tag)
    for name in _OF_MULTI_FRAME:
        if name in plain:
            delattr(plain, name)
    result = FileDataset(str(path), copy.deepcopy(plain), file_meta=dataset.file_meta)
    result.set_original_encoding(*dataset.original_encoding)
    for group, names in _CARRIED.items():
        item = frame_group(dataset, frame, group)
        for name in names:
            if item is not None and item.get(name) is not None:
                setattr(result, name, item[name].value)
    converted = converted_attributes(dataset, frame)
    for name in _CONVERTED:
        if result.get(name) in (None, "") and converted.get(name) is not None:
            setattr(result, name, converted[name].value)
    result.SOPClassUID = CTImageStorage
    # Type 2 in classic CT: present, empty when unknown.
    for name in ("KVP", "AcquisitionNumber", "PositionReferenceIndicator", "SliceThickness"):
        if name not in result:
            setattr(result, name, None if name != "PositionReferenceIndicator" else "")
    offset = whole(dataset, "ConcatenationFrameOffsetNumber")  # of a part of a larger object
    result.InstanceNumber = frame + 1 + (offset if offset is not None and 0 <= offset < 10**6 else 0)
    return result
