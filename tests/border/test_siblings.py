"""Small inputs after public bug reports, each with the answer that the standard gives: what shares a UID and is no
stack, frames that their offsets confuse, numbers that are none, ROIs of other frames, members of gzip."""

from __future__ import annotations

import gzip
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import JPEGLSLossless

from concordct.errors import ConcordctError
from concordct.volumes.files import open_volume_file
from concordct.volumes.find import find_series
from concordct.volumes.given import read_json, read_yaml
from concordct.volumes.masks import read_regions
from concordct.volumes.series import Series
from volumes_rois import square, structures
from volumes_slices import disc_hu, enhanced_dataset, slice_dataset, write_slice, write_stack

EVEN = [0.0, 3.0, 6.0, 9.0]
BETWEEN = [z + 1.5 for z in EVEN]


def only(path: Path) -> Series:
    found = find_series(path)
    assert len(found.series) == 1, found
    return found.series[0]


# One SeriesInstanceUID, and yet no stack (PS3.3 C.7.1 to C.7.3: patient, study and series number are one for a series).


@pytest.mark.parametrize("tags", [{"PatientID": "OTHER"}, {"StudyInstanceUID": "1.2.3.9"}, {"SeriesNumber": 4}])
@pytest.mark.parametrize("positions", [BETWEEN, [12.0, 15.0, 18.0]])
def test_patients_and_studies_under_one_uid_are_never_one_stack(tmp_path: Path, tags: dict, positions: list) -> None:
    write_stack(tmp_path / "a", EVEN)
    write_stack(tmp_path / "b", positions, **tags)
    found = find_series(tmp_path).series
    assert [series.shape[0] for series in found] == [4, len(positions)]
    with pytest.raises(ConcordctError, match=r"slices of another patient, study or series number, at .*\[mixed\]"):
        found[0].check()


@pytest.mark.parametrize(("number", "stacks"), [("", 1), ("03", 1), ("4", 2)])
def test_a_series_number_may_be_left_out_or_spelled_otherwise(tmp_path: Path, number: str, stacks: int) -> None:
    write_stack(tmp_path / "a", EVEN, SeriesNumber="3")
    write_stack(tmp_path / "b", BETWEEN, SeriesNumber=number)
    found = find_series(tmp_path).series
    assert [series.shape[0] for series in found] == [8 // stacks] * stacks
    if stacks == 1:
        found[0].check()


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("SliceThickness", 3, 5),
        ("KVP", 80, 140),
        ("AcquisitionTime", "101010", "101110"),
        ("SeriesTime", "101010", "101110"),
        ("IrradiationEventUID", "1.2.3.77", "1.2.3.78"),
        ("SeriesDescription", "inspiration", "expiration"),
    ],
)
def test_reconstructions_between_each_others_slices_are_parted(tmp_path: Path, name: str, one: Any, other: Any) -> None:
    write_stack(tmp_path / "a", EVEN, **{name: one})
    write_stack(tmp_path / "b", BETWEEN, **{name: other})
    found = find_series(tmp_path).series
    assert [(series.shape[0], round(series.spacing_mm[0], 6)) for series in found] == [(4, 3), (4, 3)]
    with pytest.raises(ConcordctError, match=rf"2 acquisitions \({name}.*\[acquisition\]"):
        found[0].check()
    assert "inspiration" not in str(found[0].problems)


def test_two_roundings_of_one_thickness_part_nothing(tmp_path: Path) -> None:
    write_stack(tmp_path / "a", EVEN, SliceThickness=0.62)
    write_stack(tmp_path / "b", BETWEEN, SliceThickness=0.625)
    assert only(tmp_path).shape[0] == 8


def test_a_thickness_that_changes_once_parts_nothing(tmp_path: Path) -> None:
    write_stack(tmp_path / "a", EVEN[:2], SliceThickness=3)
    write_stack(tmp_path / "b", EVEN[2:], SliceThickness=5)
    assert only(tmp_path).shape[0] == 4


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"SpacingBetweenSlices": 3}, "slices 6 mm apart, 3 mm by SpacingBetweenSlices: were some lost?"),
        ({"SpacingBetweenSlices": 6}, None),
        ({"SpacingBetweenSlices": -6}, None),
    ],
)
def test_an_even_rest_of_a_series_is_noted(tmp_path: Path, tags: dict, said: str | None) -> None:
    series = only(write_stack(tmp_path, [0.0, 6.0, 12.0], **tags))
    assert list(series.notes) == ([] if said is None else [said])


def test_instance_numbers_tell_of_lost_slices(tmp_path: Path) -> None:
    for place, z in enumerate((0.0, 6.0, 12.0)):
        write_slice(tmp_path / str(place), z=z, InstanceNumber=9 - 2 * place)
    assert only(tmp_path).notes == ("instance numbers in steps of 2: were the slices between them lost?",)


def test_a_stated_tilt_that_the_positions_do_not_show_is_noted(tmp_path: Path) -> None:
    assert "GantryDetectorTilt of 15 degrees" in only(write_stack(tmp_path, EVEN, GantryDetectorTilt=15)).notes[0]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("SCOUT", "localizer"),
        ("SCANOSCOPE", "localizer"),
        ("SCREEN SAVE", "picture of a screen"),
        ("CT_SOM5 MIP", "MIP"),
        ("SUBTRACTION", "SUBTRACTION"),
        ("LUNG_PBV", "PBV"),
        ("IODINE_MAP", "IODINE"),
        ("WATER_NO_IODINE", None),
        ("RCBV", "RCBV"),
        ("TMIP", "TMIP"),
        ("VRT", "VRT"),
        ("MPR", None),
    ],
)
def test_what_the_image_type_calls_no_reconstruction(tmp_path: Path, word: str, said: str | None) -> None:
    found = find_series(write_stack(tmp_path, EVEN, ImageType=["DERIVED", "SECONDARY", "AXIAL", word]))
    assert len(found.series) == (said is None)
    assert said is None or said in found.set_aside[0].reason


# Numbers of a header.


def _element(tag: int, value: bytes) -> bytes:
    value += b" " * (len(value) % 2)
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, b"DS", len(value)) + value


@pytest.mark.parametrize(
    ("tag", "old", "new", "said"),
    [
        (0x00280030, b"0.8\\0.7", b"0.8", "expected PixelSpacing of 2 numbers, found 1 number"),
        (0x00280030, b"0.8\\0.7", b"0,8\\0,7", "expected PixelSpacing of 2 numbers, found no numbers"),
        (0x00280030, b"0.8\\0.7", b"0.8\\0.7\\3", "expected PixelSpacing of 2 numbers, found 3 numbers"),
        (0x00281053, b"1.0", b"1,0", "expected RescaleSlope of 1 number, found no numbers"),
        (0x00281053, b"1.0", b"", "expected RescaleSlope of 1 number, found nothing"),
        (0x00281053, b"1.0", b"1\\1", "expected RescaleSlope of 1 number, found 2 numbers"),
        (0x00180050, b"3.0", b"3mm", None),
    ],
)
def test_numbers_are_named_that_are_none(tmp_path: Path, tag: int, old: bytes, new: bytes, said: str | None) -> None:
    path = write_slice(tmp_path / "a")
    content = path.read_bytes()
    assert content.count(_element(tag, old)) == 1
    path.write_bytes(content.replace(_element(tag, old), _element(tag, new)))
    found = find_series(path)
    assert [one.reason for one in found.set_aside] == ([] if said is None else [said])
    assert said or found.series[0].slice_thickness_mm is None


@pytest.mark.parametrize("factor", [2, 3])
def test_pixels_of_more_frames_than_stated_are_refused(tmp_path: Path, factor: int) -> None:
    dataset = slice_dataset()
    dataset.PixelData *= factor
    dataset.save_as(tmp_path / "a", enforce_file_format=True)
    with pytest.raises(ConcordctError, match=f"{4608 * factor} bytes of pixel data, expected 4608"):
        only(tmp_path).read()


def test_what_stands_behind_the_pixels_is_not_lost_in_silence(tmp_path: Path) -> None:
    data = write_slice(tmp_path / "a").read_bytes()
    start = data.index(b"\x10\0\x20\0LO")
    length = 8 + int.from_bytes(data[start + 6 : start + 8], "little")
    (tmp_path / "a").write_bytes(data[:start] + data[start + length :] + data[start : start + length])
    with pytest.raises(ConcordctError, match="elements behind the pixel data, expected them before it"):
        only(tmp_path).read()
    (tmp_path / "a").write_bytes(data + b"\xfc\xff\xfc\xffOB\0\0" + struct.pack("<I", 4) + bytes(4))
    assert only(tmp_path).read().hu.shape == (1, 48, 48)


# Compressed frames (PS3.5 A.4).


def _item(data: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(data)) + data


def _encapsulated(dataset: Dataset, table: bytes, frames: list[bytes]) -> None:
    dataset.PixelData = _item(table) + b"".join(map(_item, frames)) + b"\xfe\xff\xdd\xe0\0\0\0\0"
    dataset["PixelData"].is_undefined_length = True


@pytest.mark.parametrize(
    ("order", "right"), [((0, 1, 2), True), ((1, 0, 2), False), ((0, 0, 2), False), ((0, 1, 9), False)]
)
def test_offsets_lead_to_the_frames_in_their_order_or_nowhere(tmp_path: Path, order: tuple, right: bool) -> None:
    dataset = enhanced_dataset(3)
    dataset.compress(JPEGLSLossless, generate_instance_uid=False)
    frames = [one + b"\0" * (len(one) % 2) for one in generate_frames(dataset.PixelData, number_of_frames=3)]
    starts = dict(enumerate(np.cumsum([0, *(8 + len(one) for one in frames[:2])]).tolist())) | {9: 10**6}
    _encapsulated(dataset, struct.pack("<3I", *(starts[one] for one in order)), frames)
    dataset.save_as(tmp_path / "a", enforce_file_format=True)
    series = only(tmp_path / "a")
    if right:
        expected = np.stack([disc_hu(3.0 * k) for k in (2, 1, 0)]).astype(np.float32)
        assert np.array_equal(series.read().hu, expected)
        return
    with pytest.raises(ConcordctError, match="offsets of compressed frames that do not lead to them in their order"):
        series.read()


@pytest.mark.parametrize(
    ("table", "said"), [(struct.pack("<I", 4), None), (b"\0\0\0", None), (struct.pack("<2I", 0, 8), "2 frames by")]
)
def test_the_one_frame_is_all_that_follows_its_table(tmp_path: Path, table: bytes, said: str | None) -> None:
    dataset = slice_dataset(z=3.0)
    dataset.compress(JPEGLSLossless, generate_instance_uid=False)
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    _encapsulated(dataset, table, [frame[:100], b"", frame[100:] + b"\0" * (len(frame) % 2)])
    dataset.save_as(tmp_path / "a", enforce_file_format=True)
    if said is None:
        assert np.array_equal(only(tmp_path).read().hu[0], disc_hu(3.0).astype(np.float32))
        return
    with pytest.raises(ConcordctError, match=said):
        only(tmp_path).read()


def test_frames_and_functional_groups_are_as_many(tmp_path: Path) -> None:
    dataset = enhanced_dataset(3)
    dataset.NumberOfFrames = 2
    dataset.save_as(tmp_path / "a", enforce_file_format=True)
    assert find_series(tmp_path).set_aside[0].reason == "2 frames with functional groups for 3, expected one each"


# ROIs.


def _voxels(tmp_path: Path, contours: list[list[tuple[str, list[float]]]], **of_rois: list[Any]) -> list[int]:
    series = only(write_stack(tmp_path / "ct", EVEN))
    path = structures(tmp_path / "rt.dcm", contours, **of_rois)
    found = read_regions(path, affine=series.affine, shape=series.shape, frame_of_reference_uid="1.2.3.3")
    return [int(one.inside.sum()) for one in found]


WHOLE, OVER, WITHIN = square(9.5, 29.5), square(19.5, 39.5), square(14.5, 20.5)


@pytest.mark.parametrize(
    ("kind", "outlines", "voxels"),
    [
        ("CLOSED_PLANAR", [WHOLE, WITHIN], 400 - 36),
        ("CLOSED_PLANAR", [WITHIN, WHOLE], 400 - 36),
        ("CLOSED_PLANAR", [WHOLE, WHOLE], 400),
        ("CLOSED_PLANAR", [WHOLE, OVER], 700),
        ("CLOSED_PLANAR", [WHOLE, WITHIN, square(16.5, 18.5)], 400 - 36 + 4),
        ("CLOSEDPLANAR_XOR", [WHOLE, OVER], 600),
        ("CLOSED_PLANAR", [WHOLE, WHOLE[:6]], 400),
    ],
)
def test_contours_of_one_slice(tmp_path: Path, kind: str, outlines: list[list[float]], voxels: int) -> None:
    assert _voxels(tmp_path, [[(kind, one) for one in outlines]]) == [voxels]


def test_an_roi_of_another_frame_beside_one_of_the_image_is_refused(tmp_path: Path) -> None:
    one = [("CLOSED_PLANAR", WHOLE)]
    with pytest.raises(ConcordctError, match="ROI roi 2 is of another frame of reference than the image"):
        _voxels(tmp_path, [one, one], ReferencedFrameOfReferenceUID=["1.2.3.3", "1.9"])


@pytest.mark.parametrize(("heights", "right"), [((0, 2, 4), False), ((0, 2), True), ((0, 1, 2, 4), True)])
def test_contours_on_every_second_slice_are_no_roi(tmp_path: Path, heights: tuple[int, ...], right: bool) -> None:
    series = only(write_stack(tmp_path / "ct", [3.0 * z for z in range(6)]))
    outlines = [("CLOSED_PLANAR", square(9.5, 29.5, 3.0 * z)) for z in heights]
    path = structures(tmp_path / "rt.dcm", [outlines])
    if right:
        (found,) = read_regions(path, affine=series.affine, shape=series.shape)
        assert found.inside.sum() == 400 * len(heights)
        return
    with pytest.raises(ConcordctError, match="contours of ROI roi 1 on every 2 slices alone"):
        read_regions(path, affine=series.affine, shape=series.shape)


def test_one_number_for_two_rois_is_refused(tmp_path: Path) -> None:
    one = [("CLOSED_PLANAR", WHOLE)]
    with pytest.raises(ConcordctError, match="ROINumber 1 stands twice"):
        _voxels(tmp_path, [one, one], ROINumber=[1, 1])


# Volume files.


def _nifti(**fields: Any) -> bytes:
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5) - 1000, np.diag([0.8, 0.8, 3.0, 1.0]))
    header = image.header
    header["magic"], header["vox_offset"], header["scl_slope"], header["scl_inter"] = b"n+1", 352, 1, 0
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + b"\0\0\0\0" + np.asarray(image.dataobj).tobytes(order="F")


@pytest.mark.parametrize("cuts", [(100, 352), (348,), (0,), (400,)])
def test_members_of_gzip_are_one_stream(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    data, path = _nifti(), tmp_path / "a.nii.gz"
    ends = [0, *cuts, len(data)]
    path.write_bytes(b"".join(gzip.compress(data[a:b]) for a, b in pairwise(ends)))
    hu = open_volume_file(path).stored_hu(0, 5)
    assert np.array_equal(hu, np.asarray(nibabel.Nifti1Image.from_bytes(data).dataobj).T)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ConcordctError, match="truncated: the deflated voxels end before their checksum"):
        open_volume_file(path).stored_hu(0, 5)


@pytest.mark.parametrize("spacing", [(-0.8, 0.8, 3.0), (0.0, 0.8, 3.0)])
def test_without_forms_pixdim_has_to_be_positive(tmp_path: Path, spacing: tuple[float, ...]) -> None:
    (tmp_path / "a.nii").write_bytes(_nifti(sform_code=0, qform_code=0, pixdim=(1, *spacing, 0, 0, 0, 0)))
    with pytest.raises(ConcordctError, match="neither a coded sform nor qform, and pixdim that is not positive"):
        open_volume_file(tmp_path / "a.nii")


NRRD = ("type: Short", "dimension: 3", "space: LPS", "sizes: 3 4 5", "space directions: (1,0,0) (0,1,0) (0,0,3)",
        "endian: Little", "encoding: raw", "space origin: (0,0,0)")  # fmt: skip


def _nrrd(path: Path, *more: str, voxels: bytes = bytes(120)) -> Path:
    path.write_bytes("\n".join(["NRRD0004", *NRRD, *more]).encode() + b"\n\n" + voxels)
    return path


def test_names_of_nrrd_are_the_same_in_capitals(tmp_path: Path) -> None:
    assert open_volume_file(_nrrd(tmp_path / "a.nrrd", "kinds: domain space ???")).shape == (5, 4, 3)


def test_an_axis_of_colours_is_no_axis_of_space(tmp_path: Path) -> None:
    with pytest.raises(ConcordctError, match="expected axes of kind domain or space, found RGB-color"):
        open_volume_file(_nrrd(tmp_path / "a.nrrd", "kinds: RGB-color domain domain"))


@pytest.mark.parametrize(("more", "right"), [((), False), (("byte skip: 6",), True), (("byte skip: -1",), True)])
def test_a_header_before_detached_voxels_has_to_be_stated(tmp_path: Path, more: tuple[str, ...], right: bool) -> None:
    values = np.arange(60, dtype="<i2") - 900
    (tmp_path / "a.raw").write_bytes(b"ABCDEF" + values.tobytes())
    path = _nrrd(tmp_path / "a.nhdr", "data file: a.raw", *more, voxels=b"")
    if right:
        assert np.array_equal(open_volume_file(path).stored_hu(0, 5).ravel(), values)
        return
    with pytest.raises(ConcordctError, match="126 bytes of voxels, expected 120 by the header"):
        open_volume_file(path).stored_hu(0, 5)


def test_a_negative_element_size_is_refused_in_words(tmp_path: Path) -> None:
    lines = ("NDims = 3", "Offset = 0 0 0", "ElementSize = 1 1 -1", "DimSize = 3 4 5", "ElementType = MET_SHORT",
             "ElementDataFile = LOCAL")  # fmt: skip
    (tmp_path / "a.mha").write_bytes("\n".join(lines).encode() + b"\n" + bytes(120))
    with pytest.raises(ConcordctError, match="expected a positive ElementSpacing, found 1 1 -1"):
        open_volume_file(tmp_path / "a.mha")


# Text.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("setting:\n  binWidth: 25\n  binWidth: 5\n", "'binWidth' again in line 3"),
        ("a: [{b: 1, b: 2}]\n", "'b' again in line 1"),
        (f"a: 0x{'f' * 5000}\n", "numbers of at most 256 bits"),
    ],
)
def test_yaml_that_says_a_thing_twice_or_counts_beyond_all(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConcordctError, match=said):
        read_yaml(tmp_path / "a.yaml")


def test_json_that_says_a_thing_twice(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": {"b": 1, "b": 2}}')
    with pytest.raises(ConcordctError, match="expected each name once in an object, found 'b' twice"):
        read_json(tmp_path / "a.json")
