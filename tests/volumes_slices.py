"""Small CT slices for tests: a disc of water in air, written as classic CT objects with any header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

SIDE = 48


def disc_hu(z: float, side: int = SIDE) -> np.ndarray:
    """[y, x] whole HU: water with a little noise in air; other z, other noise."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    noise = np.random.default_rng(int(abs(z) * 1000) + 7).normal(0, 12, (side, side))
    return np.rint(np.where(np.hypot(y, x) < side / 3, 40.0, -980.0) + noise)


def slice_dataset(*, z: float = 0.0, hu: np.ndarray | None = None, **tags: Any) -> FileDataset:
    """One CT slice; `tags` overrides any attribute by keyword, None removes it."""
    hu = disc_hu(z) if hu is None else hu
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    dataset = FileDataset("slice", {}, file_meta=meta, preamble=b"\0" * 128)
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": f"1.2.3.4.{round((z + 5000) * 1000)}",
        "StudyInstanceUID": "1.2.3.1",
        "SeriesInstanceUID": "1.2.3.2",
        "FrameOfReferenceUID": "1.2.3.3",
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PatientName": "SECRET^PATIENT",
        "PatientID": "SECRET-ID",
        "SeriesNumber": 3,
        "SeriesDescription": "Thorax",
        "InstanceNumber": 1,
        "ConvolutionKernel": "B30f",
        "SliceThickness": 3,
        "ImagePositionPatient": [-10.0, -20.0, z],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.8, 0.7],
        "Rows": hu.shape[0],
        "Columns": hu.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleIntercept": -1024,
        "RescaleSlope": 1,
    } | tags
    for name, value in values.items():
        if value is not None:
            setattr(dataset, name, value)
    meta.MediaStorageSOPInstanceUID = values["SOPInstanceUID"] or "1.2"
    if "PixelData" not in tags:
        slope, intercept = float(values["RescaleSlope"] or 1), float(values["RescaleIntercept"] or 0)
        kind = "<i2" if values["PixelRepresentation"] else "<u2"
        dataset.PixelData = np.rint((hu - intercept) / slope).astype(kind).tobytes()
    return dataset


def write_slice(path: Path, *, z: float = 0.0, hu: np.ndarray | None = None, **tags: Any) -> Path:
    """Write `slice_dataset` to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    slice_dataset(z=z, hu=hu, **tags).save_as(path, enforce_file_format=True)
    return path


def write_stack(folder: Path, positions: list[float], **tags: Any) -> Path:
    """Write one slice for each position, named and numbered against their order on purpose."""
    for index, z in enumerate(positions):
        number = len(positions) - index
        write_slice(folder / f"{number:03d}", z=z, **({"InstanceNumber": 7} | tags))
    return folder


def enhanced_dataset(
    frames: int, frame_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "VOLUME", "NONE")
) -> FileDataset:
    """An enhanced multi-frame CT with the slices of `disc_hu` 3 mm apart, stored head first."""
    hu = np.stack([disc_hu(3.0 * k) for k in range(frames)])
    dataset = slice_dataset(
        hu=hu[0],
        SOPClassUID=EnhancedCTImageStorage,
        NumberOfFrames=frames,
        PixelData=(hu + 1000).astype("<i2").tobytes(),
        **dict.fromkeys(
            ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "ConvolutionKernel")
        ),
        **dict.fromkeys(("RescaleSlope", "RescaleIntercept")),
    )

    def group(**values: object) -> Sequence:
        item = Dataset()
        for name, value in values.items():
            setattr(item, name, value)
        return Sequence([item])

    shared = Dataset()
    shared.PixelMeasuresSequence = group(PixelSpacing=[0.8, 0.7], SliceThickness=3)
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.CTReconstructionSequence = group(ConvolutionKernel="B30f", ReconstructionAlgorithm="ITERATIVE")
    shared.CTImageFrameTypeSequence = group(FrameType=list(frame_type), VolumetricProperties="VOLUME")
    shared.PixelValueTransformationSequence = group(RescaleSlope=1, RescaleIntercept=-1000, RescaleType="HU")
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    items = []
    for k in range(frames):
        item = Dataset()
        item.PlanePositionSequence = group(ImagePositionPatient=[-10.0, -20.0, -3.0 * k])
        items.append(item)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(items)
    return dataset
