"""SEG and RTSTRUCT that leave open what they mean, or say what a quick reader leaves out (PS3.3 C.8.20, C.8.8.6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian

from concordct.errors import ConcordctError
from concordct.volumes.find import find_series
from concordct.volumes.masks import read_regions
from concordct.volumes.region import Region
from concordct.volumes.series import Series
from volumes_rois import segmentation, square, structures
from volumes_slices import write_stack

HEIGHTS = [0.0, 3.0, 6.0, 9.0]
INSIDE = np.zeros((48, 48), int)
INSIDE[10:20, 10:30] = 1


def read(mask: Path, heights: list[float] | None = None) -> tuple[Series, tuple[Region, ...]]:
    (series,) = find_series(write_stack(mask.parent / "ct", heights or HEIGHTS)).series
    return series, read_regions(mask, affine=series.affine, shape=series.shape, frame_of_reference_uid="1.2.3.3")


def saved(tmp_path: Path, dataset: Dataset) -> Path:
    dataset.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    return tmp_path / "seg.dcm"


@pytest.mark.parametrize(("total", "right"), [(1, True), (2, False), (None, False)])
def test_a_part_of_a_segmentation_is_no_roi(tmp_path: Path, total: int | None, right: bool) -> None:
    dataset = segmentation([INSIDE] * 2, HEIGHTS[:2])
    dataset.ConcatenationUID, dataset.InConcatenationNumber, dataset.ConcatenationFrameOffsetNumber = "1.2.9", 1, 0
    if total is not None:
        dataset.InConcatenationTotalNumber = total
    path = saved(tmp_path, dataset)
    if right:
        assert read(path)[1][0].inside.sum() == 400
        return
    with pytest.raises(ConcordctError, match="part 1 of a concatenation, expected a whole segmentation in one file"):
        read(path)


@pytest.mark.parametrize(("heights", "right"), [((0, 9, 18, 27), False), ((0, 3, 9, 27), True), ((6, 9, 12), True)])
def test_a_segmentation_of_thicker_slices_is_none_of_these(tmp_path: Path, heights: tuple, right: bool) -> None:
    path = saved(tmp_path, segmentation([INSIDE] * len(heights), heights))
    thin = [3.0 * k for k in range(12)]
    if right:
        assert read(path, thin)[1][0].inside.sum() == 200 * len(heights)
        return
    with pytest.raises(ConcordctError, match="pixels of segment segment 1 on every 3 slices alone"):
        read(path, thin)


@pytest.mark.parametrize(
    ("kind", "value", "most", "said"),
    [
        ("FRACTIONAL", 3, None, "without MaximumFractionalValue"),
        ("FRACTIONAL", 200, 100, "pixels of 200 in a segmentation, expected at most 100"),
        ("FRACTIONAL", 128, 255, None),
        ("BINARY", 7, None, "pixels of 7 in a segmentation, expected at most 1"),
        ("LABELMAP", 5, None, "a frame of segment 5, which is not among the segments"),
    ],
)
def test_values_that_a_segmentation_cannot_hold(
    tmp_path: Path, kind: str, value: int, most: int | None, said: str | None
) -> None:
    dataset = segmentation([INSIDE * value] * 4, HEIGHTS, kind=kind, bits=8)
    if most is not None:
        dataset.MaximumFractionalValue = most
    path = saved(tmp_path, dataset)
    if said is None:
        assert read(path)[1][0].inside.sum() == 800
        return
    with pytest.raises(ConcordctError, match=said):
        read(path)


@pytest.mark.parametrize(("padding", "labels"), [(None, [1]), (0, [1]), (1, [0])])
def test_the_background_of_a_label_map_is_no_roi(tmp_path: Path, padding: int | None, labels: list[int]) -> None:
    dataset = segmentation([INSIDE] * 4, HEIGHTS, kind="LABELMAP", bits=8, numbers=(0, 1))
    if padding is not None:
        dataset.add_new("PixelPaddingValue", "US", padding)
    assert [region.number for region in read(saved(tmp_path, dataset))[1]] == labels


def test_pixels_of_more_frames_than_stated_are_refused(tmp_path: Path) -> None:
    dataset = segmentation([INSIDE] * 4, HEIGHTS)
    dataset.PixelData *= 2
    with pytest.raises(ConcordctError, match="2304 bytes of pixel data, expected 1152"):
        read(saved(tmp_path, dataset))


def test_bits_in_words_of_big_endian(tmp_path: Path) -> None:
    dataset = segmentation([INSIDE] * 4, HEIGHTS)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    dataset["PixelData"].VR = "OW"
    path = tmp_path / "seg.dcm"
    pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=False, enforce_file_format=True)
    series, (region,) = read(path)
    mask = np.zeros(series.shape, bool)
    mask[region.box] = region.inside
    assert np.array_equal(mask, np.stack([INSIDE] * 4) > 0)


WHOLE, WITHIN = square(9.5, 29.5), square(14.5, 20.5)


@pytest.mark.parametrize(
    ("contours", "said"),
    [
        ([("CLOSED_PLANAR", WHOLE), ("CLOSEDPLANAR_XOR", WITHIN)], "contours of CLOSEDPLANAR_XOR and CLOSED_PLANAR"),
        ([("CLOSED_PLANAR", WHOLE), ("OPEN_PLANAR", square(9.5, 29.5, 6.0))], "CLOSED_PLANAR and OPEN_PLANAR"),
        ([("CLOSED_PLANAR", WHOLE), ("CLOSED", WITHIN)], "a contour of ROI roi 1 of unknown type"),
        ([("CLOSED_PLANAR", WHOLE), ("POINT", WITHIN[:3])], None),
        ([("closed_planar", WHOLE)], None),
    ],
)
def test_contours_of_other_types(tmp_path: Path, contours: list[tuple[str, list[float]]], said: str | None) -> None:
    path = structures(tmp_path / "rt.dcm", [contours])
    if said is None:
        assert read(path)[1][0].inside.sum() == 400
        return
    with pytest.raises(ConcordctError, match=said):
        read(path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ContourOffsetVector", [0, 0, 3], "with a ContourOffsetVector, expected none"),
        ("ContourOffsetVector", [0, 0, 0], None),
        ("ContourData", None, "expected numbers for its points"),
        ("NumberOfContourPoints", 3, "12 numbers for 3 points"),
    ],
)
def test_points_that_lie_elsewhere_or_are_none(tmp_path: Path, name: str, value: Any, said: str | None) -> None:
    path = structures(tmp_path / "rt.dcm", [[("CLOSED_PLANAR", WHOLE)]])
    dataset = pydicom.dcmread(path)
    setattr(dataset.ROIContourSequence[0].ContourSequence[0], name, value)
    dataset.save_as(path)
    if said is None:
        assert read(path)[1][0].inside.sum() == 400
        return
    with pytest.raises(ConcordctError, match=said):
        read(path)


def test_a_keyhole_leaves_its_hole(tmp_path: Path) -> None:
    """One contour that runs in to the hole and back out along one line, through voxel centres."""
    corners = ((9.5, 15), (9.5, 29.5), (29.5, 29.5), (29.5, 9.5), (9.5, 9.5), (9.5, 15), (14.5, 15))
    corners += ((14.5, 14.5), (20.5, 14.5), (20.5, 20.5), (14.5, 20.5), (14.5, 15))
    outline = [value for x, y in corners for value in (-10 + 0.7 * x, -20 + 0.8 * y, 3.0)]
    path = structures(tmp_path / "rt.dcm", [[("CLOSED_PLANAR", outline)]])
    assert read(path)[1][0].inside.sum() == 400 - 36
