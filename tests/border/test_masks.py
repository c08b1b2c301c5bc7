"""Masks that are damaged, cut, foreign or made to mislead: refused in one line, never a smaller ROI."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from concordct.errors import ConcordctError
from concordct.volumes.masks import read_regions, write_labels

SHAPE = (6, 24, 30)
AFFINE = np.array([[0, 0, 0.6, -11], [0, 0.8, 0, 7], [2.5, 0, 0, 100], [0, 0, 0, 1.0]])
LABELS = np.zeros(SHAPE, np.uint8)
LABELS[1:5, 4:16, 5:25] = np.random.default_rng(2).integers(0, 3, (4, 12, 20))
FRAME = "1.2.826.0.1.9"


def items(*found: dict) -> Sequence:
    out = []
    for one in found:
        item = Dataset()
        for name, value in one.items():
            setattr(item, name, value)
        out.append(item)
    return Sequence(out)


def saved(dataset: Dataset, path: Path, uid: str) -> Path:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = uid
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.826.0.1.5"
    dataset.save_as(path, enforce_file_format=True)
    return path


def structures(path: Path, *, name: str = "tumour", frame: str = FRAME, x: float = 0.0, points: int = 4) -> Path:
    dataset = Dataset()
    dataset.Modality = "RTSTRUCT"
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "4711"
    dataset.StructureSetROISequence = items(
        {"ROINumber": 1, "ROIName": name, "ReferencedFrameOfReferenceUID": frame},
        {"ROINumber": 2, "ROIName": "other", "ReferencedFrameOfReferenceUID": frame},
    )
    contours = []
    for z in (1, 2, 3):
        corners = np.array([[z, 3.5, 4.5, 1], [z, 3.5, 12.5, 1], [z, 9.5, 12.5, 1], [z, 9.5, 4.5, 1]])
        values = (corners @ AFFINE.T)[:, :3] + [x, 0, 0]
        contours.append(
            {
                "ContourGeometricType": "CLOSED_PLANAR",
                "NumberOfContourPoints": points,
                "ContourData": [f"{value:.3f}" for value in values.ravel()],
            }
        )
    dataset.ROIContourSequence = items(
        {"ReferencedROINumber": 1, "ContourSequence": items(*contours)},
        {"ReferencedROINumber": 2, "ContourSequence": items(*contours)},
    )
    return saved(dataset, path, "1.2.840.10008.5.1.4.1.1.481.3")


def segmentation(path: Path, *, frame: str = FRAME, **changes: object) -> Path:
    dataset = Dataset()
    dataset.Modality, dataset.SegmentationType, dataset.FrameOfReferenceUID = "SEG", "BINARY", frame
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = SHAPE[1], SHAPE[2], SHAPE[0]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated = dataset.BitsStored = 1
    dataset.HighBit = 0
    dataset.add_new(0x7FE00010, "OB", np.packbits((LABELS == 1).ravel(), bitorder="little").tobytes())
    dataset.SegmentSequence = items({"SegmentNumber": 1, "SegmentLabel": "lesion"})
    dataset.SharedFunctionalGroupsSequence = items(
        {
            "PlaneOrientationSequence": items({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}),
            "PixelMeasuresSequence": items({"PixelSpacing": [0.8, 0.6], "SliceThickness": 2.5}),
            "SegmentIdentificationSequence": items({"ReferencedSegmentNumber": 1}),
        }
    )
    dataset.PerFrameFunctionalGroupsSequence = items(
        *({"PlanePositionSequence": items({"ImagePositionPatient": [-11, 7, 100 + 2.5 * z]})} for z in range(SHAPE[0]))
    )
    for name, value in changes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return saved(dataset, path, "1.2.840.10008.5.1.4.1.1.66.4")


def regions(path: Path, frame: str | None = FRAME):  # type: ignore[no-untyped-def]
    return read_regions(path, affine=AFFINE, shape=SHAPE, frame_of_reference_uid=frame)


def refused(path: Path, match: str, frame: str | None = FRAME) -> None:
    with pytest.raises(ConcordctError, match=match) as caught:
        regions(path, frame)
    said = str(caught.value)
    assert "\n" not in said
    assert "Doe" not in said
    assert said.isprintable()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_cut_mask_is_never_a_smaller_roi(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"m{ending}"
    write_labels(path, LABELS, AFFINE)
    whole = path.read_bytes()
    assert [int(one.inside.sum()) for one in regions(path)] == [int((n == LABELS).sum()) for n in (1, 2)]
    for end in np.linspace(0, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:end])
        with pytest.raises(ConcordctError):
            regions(path)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_a_flipped_bit_in_a_deflated_mask_is_refused_or_changes_nothing(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"m{ending}"
    write_labels(path, LABELS, AFFINE)
    whole = bytearray(path.read_bytes())
    random, refusals = np.random.default_rng(0), 0
    start = 20 if ending == ".nii.gz" else whole.index(b"\n\n" if ending == ".nrrd" else b"LOCAL\n") + 12
    for at in random.integers(start, len(whole), 60):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            found = regions(path)
        except ConcordctError:
            refusals += 1
            continue
        assert [np.array_equal(one.mask, n == LABELS) for n, one in enumerate(found, start=1)] == [True, True]
    assert refusals > 50


def test_cut_structure_sets_and_segmentations_are_refused(tmp_path: Path) -> None:
    for make in (structures, segmentation):
        path = make(tmp_path / "a.dcm")
        whole = path.read_bytes()
        assert regions(path)
        for end in range(1, len(whole), max(1, len(whole) // 60)):
            path.write_bytes(whole[:end])
            refused(path, "cut short|truncated|neither a volume file nor DICOM|bytes of pixel data|no pixel data")


def test_another_frame_of_reference_is_refused(tmp_path: Path) -> None:
    for make in (structures, segmentation):
        refused(make(tmp_path / "a.dcm", frame="1.2.3"), "another frame of reference")
        assert regions(tmp_path / "a.dcm", frame=None)


@pytest.mark.parametrize(("spacing", "along"), [([2.4, 1.8], [1, 0, 0, 0, 1, 0]), ([0.8, 0.6], [0, 1, 0, 1, 0, 0])])
def test_larger_pixels_on_the_same_grid_are_not_taken_for_its_voxels(
    tmp_path: Path, spacing: list[float], along: list[int]
) -> None:
    shared = items(
        {
            "PlaneOrientationSequence": items({"ImageOrientationPatient": along}),
            "PixelMeasuresSequence": items({"PixelSpacing": spacing, "SliceThickness": 2.5}),
            "SegmentIdentificationSequence": items({"ReferencedSegmentNumber": 1}),
        }
    )
    refused(
        segmentation(tmp_path / "a.dcm", SharedFunctionalGroupsSequence=shared), "another geometry than the image: its"
    )


def test_broken_segmentations_say_what_is_missing(tmp_path: Path) -> None:
    for changes, says in (
        ({"SegmentSequence": None}, "no segments, expected SegmentSequence"),
        ({"SegmentSequence": Sequence()}, "no segments"),
        ({"PerFrameFunctionalGroupsSequence": None}, "no frames"),
        ({"NumberOfFrames": 3}, "3 frames with positions for 6"),
        ({"Rows": 60000, "Columns": 60000}, "pixels, expected 1 to"),
        ({"Rows": 48}, "bytes of pixel data, expected"),
        ({"SegmentationType": "DOE^JANE"}, "of unknown type"),
        ({"SharedFunctionalGroupsSequence": None}, "a frame without PlaneOrientationSequence"),
        ({"PixelData": None}, "no pixel data"),
    ):
        refused(segmentation(tmp_path / "a.dcm", **changes), says)


def test_structures_that_lie_beside_or_beyond_are_refused_and_names_are_printable(tmp_path: Path) -> None:
    refused(structures(tmp_path / "a.dcm", x=-9.0), r"ROI tumour reaches \d+\.\d voxels outside")
    refused(structures(tmp_path / "a.dcm", points=9), "has 12 numbers for 9 points")
    (one, _) = regions(structures(tmp_path / "a.dcm", name="a\x1b[31mb"))
    assert one.name == "a?[31mb"


def test_masks_that_are_no_labels(tmp_path: Path) -> None:
    for values, says in (
        (np.full(SHAPE, -1, np.int16), "whole labels"),
        (np.full(SHAPE, 0.5, np.float32), "whole labels"),
        (np.full(SHAPE, np.nan, np.float32), "whole labels"),
        (np.full(SHAPE, 1e20), "whole labels"),
    ):
        image = nibabel.Nifti1Image(values.T, np.diag([-0.6, -0.8, 2.5, 1]))
        nibabel.save(image, tmp_path / "a.nii")
        refused(tmp_path / "a.nii", says)


def test_a_pipe_and_a_fifo_of_a_mask_do_not_hang(tmp_path: Path) -> None:
    for name in ("m.nii.gz", "m.dcm"):
        os.mkfifo(tmp_path / name)
        refused(tmp_path / name, "regular file|named pipe")


def test_a_mask_of_one_slice_lies_where_it_says(tmp_path: Path) -> None:
    labels = np.zeros((1, *SHAPE[1:]), np.uint8)
    labels[0, 3, 4:9] = 1
    own = AFFINE.copy()
    own[:3, 3] += 2 * AFFINE[:3, 0]
    own[:3, 0] *= 2  # the distance to a slice that is not there
    write_labels(tmp_path / "m.nii.gz", labels, own)
    (one,) = regions(tmp_path / "m.nii.gz")
    assert np.argwhere(one.mask).tolist() == [[2, 3, x] for x in range(4, 9)]


def test_a_full_disk_leaves_no_mask(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("64k")
    labels = np.random.default_rng(0).integers(0, 200, (8, 128, 128)).astype(np.int32)
    with pytest.raises(ConcordctError, match="cannot write"):
        write_labels(disk / "m.nii.gz", labels, AFFINE)
    assert list(disk.iterdir()) == []


def test_gzip_members_one_after_the_other_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "m.nii.gz"
    write_labels(tmp_path / "m.nii", LABELS, AFFINE)
    raw = (tmp_path / "m.nii").read_bytes()
    path.write_bytes(b"".join(gzip.compress(raw[at : at + 700]) for at in range(0, len(raw), 700)))
    assert np.array_equal(regions(path)[0].mask, LABELS == 1)
