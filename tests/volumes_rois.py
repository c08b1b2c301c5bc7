"""Small structure sets and segmentations for tests, on the grid of `volumes_slices.write_stack`."""

from __future__ import annotations

from collections.abc import Sequence as Some
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, SegmentationStorage

from volumes_slices import slice_dataset


def square(low: float, high: float, z: float = 3.0) -> list[float]:
    """Outer edges of the voxels from `low` to `high` in rows and columns of `write_stack`'s grid."""
    places = ((low, low), (high, low), (high, high), (low, high))
    return [value for x, y in places for value in (-10 + 0.7 * x, -20 + 0.8 * y, z)]


def structures(path: Path, contours: list[list[tuple[str, list[float]]]], **of_rois: list[Any]) -> Path:
    """An RTSTRUCT; `of_rois` gives an attribute of each item of StructureSetROISequence."""
    dataset = slice_dataset(SOPClassUID=RTStructureSetStorage, Modality="RTSTRUCT", FrameOfReferenceUID=None)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    frame = Dataset()
    frame.FrameOfReferenceUID = "1.2.3.3"
    dataset.ReferencedFrameOfReferenceSequence = Sequence([frame])
    known, drawn = [], []
    for place, outlines in enumerate(contours):
        roi, item = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = place + 1, f"roi {place + 1}"
        for name, values in of_rois.items():
            setattr(roi, name, values[place])
        item.ReferencedROINumber = place + 1
        closed = []
        for kind, points in outlines:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points) // 3
            contour.ContourData = [f"{value:.6g}" for value in points]
            closed.append(contour)
        item.ContourSequence = Sequence(closed)
        known.append(roi)
        drawn.append(item)
    dataset.StructureSetROISequence, dataset.ROIContourSequence = Sequence(known), Sequence(drawn)
    dataset.save_as(path, enforce_file_format=True)
    return path


def segmentation(
    frames: Some[np.ndarray], heights: Some[float], *, kind: str = "BINARY", bits: int = 1, numbers: Some[int] = (1,)
) -> FileDataset:
    """A SEG of frames [y, x] at heights (mm), all of the first of the segments `numbers`."""
    dataset = slice_dataset(
        SOPClassUID=SegmentationStorage,
        Modality="SEG",
        SegmentationType=kind,
        NumberOfFrames=len(frames),
        BitsAllocated=bits,
        BitsStored=bits,
        HighBit=bits - 1,
        PixelRepresentation=0,
        PixelData=b"",
        **dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")),
        **dict.fromkeys(("RescaleSlope", "RescaleIntercept")),
    )

    def group(name: str, **values: object) -> Dataset:
        item, holder = Dataset(), Dataset()
        for one, value in values.items():
            setattr(item, one, value)
        setattr(holder, name, Sequence([item]))
        return holder

    shared = group("PixelMeasuresSequence", PixelSpacing=[0.8, 0.7], SliceThickness=3)
    shared.update(group("PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 1, 0]))
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.SegmentSequence = Sequence([])
    for number in numbers:
        segment = Dataset()
        segment.SegmentNumber, segment.SegmentLabel = number, f"segment {number}"
        dataset.SegmentSequence.append(segment)
    dataset.PerFrameFunctionalGroupsSequence = Sequence([])
    for z in heights:
        item = group("PlanePositionSequence", ImagePositionPatient=[-10, -20, z])
        if kind != "LABELMAP":
            item.update(group("SegmentIdentificationSequence", ReferencedSegmentNumber=numbers[0]))
        dataset.PerFrameFunctionalGroupsSequence.append(item)
    values = np.stack(frames)
    packed = np.packbits(values.astype(bool), axis=None, bitorder="little")
    dataset.PixelData = (packed if bits == 1 else values.astype(f"<u{bits // 8}")).tobytes()
    dataset["PixelData"].VR = "OB" if bits <= 8 else "OW"
    return dataset
