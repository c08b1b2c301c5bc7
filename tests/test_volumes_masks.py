"""ROIs from volume files, DICOM SEG and RTSTRUCT, synthetic and real."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from concordct.errors import ConcordctError
from concordct.volumes.masks import read_regions, to_labels

SHAPE = (5, 20, 30)
#: index (z, y, x) -> LPS mm: 2.5 mm slices, 0.8 x 0.6 mm pixels, turned 10 degrees about z
TURN = np.deg2rad(10)
AFFINE = np.eye(4)
AFFINE[:3, 0] = (0, 0, 2.5)
AFFINE[:3, 1] = (-0.8 * np.sin(TURN), 0.8 * np.cos(TURN), 0)
AFFINE[:3, 2] = (0.6 * np.cos(TURN), 0.6 * np.sin(TURN), 0)
AFFINE[:3, 3] = (-11.0, 7.0, 100.0)


def _lps(index):
    return np.asarray(index, float) @ AFFINE[:3, :3].T + AFFINE[:3, 3]


def _save(dataset, path, uid):
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = uid
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    dataset.save_as(path, enforce_file_format=True)
    return path


def _item(**values):
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, Sequence(value) if isinstance(value, list) and isinstance(value[0], Dataset) else value)
    return item


def _structure(contours, path):
    """RTSTRUCT with {name: [contour [point, (z, y, x)] in indices]}."""
    dataset = _item(Modality="RTSTRUCT")
    dataset.StructureSetROISequence = Sequence(
        [_item(ROINumber=n, ROIName=name) for n, name in enumerate(contours, start=1)]
    )
    dataset.ROIContourSequence = Sequence(
        [
            _item(
                ReferencedROINumber=n,
                ContourSequence=[
                    _item(
                        ContourGeometricType="CLOSED_PLANAR",
                        NumberOfContourPoints=len(points),
                        ContourData=[f"{value:.4f}" for value in _lps(points).ravel()],
                    )
                    for points in found
                ],
            )
            for n, found in enumerate(contours.values(), start=1)
        ]
    )
    return _save(dataset, path, "1.2.840.10008.5.1.4.1.1.481.3")


def _rectangle(z, y0, y1, x0, x1):
    return [(z, y0, x0), (z, y0, x1), (z, y1, x1), (z, y1, x0)]


def test_structure_sets_are_filled_and_rings_keep_their_hole(tmp_path):
    path = _structure(
        {
            "tumour": [_rectangle(1, 3.5, 9.5, 4.5, 12.5), _rectangle(2, 3.5, 9.5, 4.5, 12.5)],
            "ring": [_rectangle(3, 1.5, 15.5, 1.5, 20.5), _rectangle(3, 5.5, 8.5, 6.5, 10.5)],
        },
        tmp_path / "structures.dcm",
    )
    tumour, ring = read_regions(path, affine=AFFINE, shape=SHAPE)
    assert (tumour.name, ring.name) == ("tumour", "ring")
    expected = np.zeros(SHAPE, bool)
    expected[1:3, 4:10, 5:13] = True
    assert np.array_equal(tumour.mask, expected)
    expected = np.zeros(SHAPE, bool)
    expected[3, 2:16, 2:21] = True
    expected[3, 6:9, 7:11] = False
    assert np.array_equal(ring.mask, expected)
    assert to_labels((tumour, ring)).max() == 2
    with pytest.raises(ConcordctError, match="overlap in 96"):
        to_labels((tumour, tumour))


def test_contours_between_or_beyond_slices_are_refused(tmp_path):
    for z, message in ((1.4, "0.40 slices"), (7, "outside the image")):
        path = _structure({"a": [_rectangle(z, 3, 9, 4, 12)]}, tmp_path / "structures.dcm")
        with pytest.raises(ConcordctError, match=message):
            read_regions(path, affine=AFFINE, shape=SHAPE)


def test_real_structure_sets_cover_the_area_of_their_contours(shared_data):
    for patient in ("pat_2", "pat_3"):
        folder = shared_data / "tumours_ct" / patient
        slices = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(folder.glob("*IMG*.dcm"))]
        slices.sort(key=lambda one: float(one.ImagePositionPatient[2]))
        step = float(slices[1].ImagePositionPatient[2]) - float(slices[0].ImagePositionPatient[2])
        rows, columns = (float(mm) for mm in slices[0].PixelSpacing)
        affine = np.eye(4)
        affine[:3, :3] = [[0, 0, columns], [0, rows, 0], [step, 0, 0]]
        affine[:3, 3] = [float(mm) for mm in slices[0].ImagePositionPatient]
        path = next(folder.glob("*RS*.dcm"))
        shape = (len(slices), int(slices[0].Rows), int(slices[0].Columns))
        (region,) = read_regions(path, affine=affine, shape=shape)
        assert region.name == "GTV-1"
        area = 0.0
        for contour in pydicom.dcmread(path).ROIContourSequence[0].ContourSequence:
            x, y = np.array(contour.ContourData, float).reshape(-1, 3)[:, :2].T
            area += abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2
        assert region.mask.sum() * rows * columns == pytest.approx(area, rel=0.05)


def _segmentation(mask, path, *, kind="BINARY"):
    """SEG with one segment, its frames last slice first and columns mirrored against the image."""
    frames = [z for z in range(SHAPE[0] - 1, -1, -1) if mask[z].any()]
    dataset = _item(Modality="SEG", SegmentationType=kind, Rows=SHAPE[1], Columns=SHAPE[2], NumberOfFrames=len(frames))
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    bits = np.stack([mask[z, :, ::-1] for z in frames])
    if kind == "BINARY":
        dataset.BitsAllocated = dataset.BitsStored = 1
        dataset.HighBit = 0
        packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    else:
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.MaximumFractionalValue = 7, 200
        packed = (bits * 150 + ~bits * 40).astype(np.uint8).tobytes()
    dataset.PixelData = packed + b"\0" * (len(packed) % 2)
    dataset.SegmentSequence = Sequence([_item(SegmentNumber=1, SegmentLabel="lesion")])
    along = [*(-AFFINE[:3, 2] / 0.6), *(AFFINE[:3, 1] / 0.8)]
    dataset.SharedFunctionalGroupsSequence = Sequence(
        [
            _item(
                PlaneOrientationSequence=[_item(ImageOrientationPatient=[f"{value:.9f}" for value in along])],
                PixelMeasuresSequence=[_item(PixelSpacing=[0.8, 0.6], SliceThickness=2.5)],
            )
        ]
    )
    dataset.PerFrameFunctionalGroupsSequence = Sequence(
        [
            _item(
                PlanePositionSequence=[
                    _item(ImagePositionPatient=[f"{value:.6f}" for value in _lps((z, 0, SHAPE[2] - 1))])
                ],
                SegmentIdentificationSequence=[_item(ReferencedSegmentNumber=1)],
            )
            for z in frames
        ]
    )
    return _save(dataset, path, "1.2.840.10008.5.1.4.1.1.66.4")


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
def test_segmentations_land_on_the_grid_whatever_their_order(tmp_path, kind):
    mask = np.zeros(SHAPE, bool)
    mask[1:4, 4:9, 3:17] = np.random.default_rng(0).random((3, 5, 14)) > 0.4
    (region,) = read_regions(_segmentation(mask, tmp_path / "seg.dcm", kind=kind), affine=AFFINE, shape=SHAPE)
    assert region.name == "lesion"
    assert np.array_equal(region.mask, mask)
    with pytest.raises(ConcordctError, match="outside the image"):
        read_regions(tmp_path / "seg.dcm", affine=AFFINE, shape=(3, 20, 30))
    shifted = AFFINE.copy()
    shifted[0, 3] += 0.2
    with pytest.raises(ConcordctError, match="another geometry"):
        read_regions(tmp_path / "seg.dcm", affine=shifted, shape=SHAPE)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_volume_files_may_be_flipped_or_cropped(tmp_path, ending):
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:4, 4:9, 3:17] = 1
    labels[4, 10:12, 20:22] = 5
    # The same voxels stored upside down, and only the rows from the third on
    stored = labels[::-1, 3:]
    image = sitk.GetImageFromArray(np.ascontiguousarray(stored))
    image.SetSpacing((0.6, 0.8, 2.5))
    turned = np.stack([AFFINE[:3, 2] / 0.6, AFFINE[:3, 1] / 0.8, -AFFINE[:3, 0] / 2.5], axis=1)
    image.SetDirection(turned.ravel().tolist())
    image.SetOrigin(_lps((SHAPE[0] - 1, 3, 0)).tolist())
    path = tmp_path / f"mask{ending}"
    sitk.WriteImage(image, str(path))
    one, five = read_regions(path, affine=AFFINE, shape=SHAPE)
    assert (one.number, five.number) == (1, 5)
    assert np.array_equal(one.mask, labels == 1)
    assert np.array_equal(five.mask, labels == 5)


def test_what_holds_no_roi_is_refused(tmp_path):
    (tmp_path / "text.dcm").write_text("no DICOM")
    empty = sitk.GetImageFromArray(np.zeros(SHAPE, np.uint8))
    sitk.WriteImage(empty, str(tmp_path / "empty.nii.gz"))
    half = sitk.GetImageFromArray(np.full(SHAPE, 0.5, np.float32))
    sitk.WriteImage(half, str(tmp_path / "half.nii.gz"))
    _save(_item(Modality="CT"), tmp_path / "ct.dcm", "1.2.840.10008.5.1.4.1.1.2")
    for name, message in (
        ("missing.nii", "no mask file"),
        ("text.dcm", "neither a volume file nor DICOM"),
        ("empty.nii.gz", "mask is empty"),
        ("half.nii.gz", "whole labels"),
        ("ct.dcm", "modality CT"),
    ):
        with pytest.raises(ConcordctError, match=message):
            read_regions(tmp_path / name, affine=AFFINE, shape=SHAPE)
