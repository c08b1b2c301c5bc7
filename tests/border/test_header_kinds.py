"""Headers that say a thing twice, or numbers that only a quick reader takes for some: DICOM, NRRD and NIfTI."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless

from concordct.errors import ConcordctError
from concordct.volumes.elements import start_of_dataset
from concordct.volumes.files import open_volume_file
from concordct.volumes.find import find_series
from volumes_slices import disc_hu, enhanced_dataset, slice_dataset, write_slice, write_stack


def reason(path: Path) -> str:
    found = find_series(path)
    return found.set_aside[0].reason if found.set_aside else ""


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    value += b" " * (len(value) % 2)
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


INTERCEPT = element(0x00281052, b"DS", b"-1024.0")


@pytest.mark.parametrize(
    ("before", "again", "said"),
    [
        (INTERCEPT, element(0x00281052, b"DS", b"0"), "element (0028,1052) stands twice, each time with another value"),
        (INTERCEPT, element(0x00281052, b"DS", b"-1000.0"), "element (0028,1052) stands twice"),
        (INTERCEPT, INTERCEPT, ""),
        (element(0x00100020, b"LO", b"SECRET-ID"), element(0x00100020, b"LO", b"OTHER"), "element (0010,0020) stands"),
        (INTERCEPT, element(0x00291052, b"DS", b"1") + element(0x00291052, b"DS", b"2"), ""),
    ],
)
def test_an_element_that_stands_twice(tmp_path: Path, before: bytes, again: bytes, said: str) -> None:
    path = write_slice(tmp_path / "a")
    content = path.read_bytes()
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, before + again))
    assert reason(path).startswith(said)
    assert (reason(path) == "") == (said == "")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("RescaleSlope", "1e-30", "RescaleSlope 1e-30, with which all that can be stored spans 6.5536e-26 HU"),
        ("SeriesInstanceUID", ["1.2.3.2", "1.2.3.4"], "several series or SOP instance UIDs, expected one of each"),
    ],
)
def test_values_that_no_scan_has(tmp_path: Path, name: str, value: Any, said: str) -> None:
    assert reason(write_slice(tmp_path / "a", **{name: value}, PixelData=bytes(4608))).startswith(said)


def test_digits_in_groups_are_no_number(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a")
    spacing = element(0x00280030, b"DS", b"0.8\\0.7")
    path.write_bytes(path.read_bytes().replace(spacing, element(0x00280030, b"DS", b"1_0\\0.7")))
    assert reason(path) == "expected PixelSpacing of 2 numbers, found no numbers"


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation YES"),
        ({"BurnedInAnnotation": "NO"}, None),
        ({"SOPInstanceUID": "1.2.3.4.5"}, "3 slices under 1 SOP instance UIDs, expected one each"),
    ],
)
def test_what_is_noted(tmp_path: Path, tags: dict[str, str], said: str | None) -> None:
    (series,) = find_series(write_stack(tmp_path, [0.0, 3.0, 6.0], **tags)).series
    assert [note.startswith(said or "-") for note in series.notes] == ([] if said is None else [True])


def test_a_deflated_file_of_another_making_is_refused_in_words(tmp_path: Path) -> None:
    dataset = slice_dataset()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "a", enforce_file_format=True)
    content = (tmp_path / "a").read_bytes()
    start, _ = start_of_dataset(content[:4096])
    (tmp_path / "a").write_bytes(content[:start] + zlib.compress(zlib.decompress(content[start:], -15)))
    assert reason(tmp_path) == "deflated data that do not inflate, expected them as in RFC 1951"


def _again(dataset: Dataset, name: str) -> None:
    sequence = dataset[name].value
    sequence.append(sequence[0])


@pytest.mark.parametrize("name", ["PixelValueTransformationSequence", "PixelMeasuresSequence", None])
def test_a_functional_group_of_two_items(tmp_path: Path, name: str | None) -> None:
    dataset = enhanced_dataset(2)
    _again(*((dataset, "SharedFunctionalGroupsSequence") if name is None else
             (dataset.SharedFunctionalGroupsSequence[0], name)))  # fmt: skip
    dataset.save_as(tmp_path / "a", enforce_file_format=True)
    assert reason(tmp_path).startswith(f"{name or 'SharedFunctionalGroupsSequence'} of 2 items")


@pytest.mark.parametrize(
    ("order", "pieces", "right"),
    [((0, 1, 2), 1, True), ((0, 1, 2), 2, True), ((1, 0, 2), 1, False), ((0, 1), 1, False)],
)
def test_extended_offsets_lead_to_the_frames_or_nowhere(
    tmp_path: Path, order: tuple[int, ...], pieces: int, right: bool
) -> None:
    dataset = enhanced_dataset(3)
    dataset.compress(JPEGLSLossless, generate_instance_uid=False)
    data, starts, lengths = b"", [], []
    for frame in generate_frames(dataset.PixelData, number_of_frames=3):
        whole = frame + b"\0" * (len(frame) % 2)
        starts.append(len(data))
        lengths.append(len(whole))
        cut = len(whole) // 4 * 2 if pieces == 2 else len(whole)
        for piece in filter(None, (whole[:cut], whole[cut:])):
            data += b"\xfe\xff\x00\xe0" + struct.pack("<I", len(piece)) + piece
    dataset.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0" + data + b"\xfe\xff\xdd\xe0\0\0\0\0"
    dataset["PixelData"].is_undefined_length = True
    dataset.ExtendedOffsetTable = struct.pack(f"<{len(order)}Q", *(starts[one] for one in order))
    dataset.ExtendedOffsetTableLengths = struct.pack(f"<{len(order)}Q", *(lengths[one] for one in order))
    dataset.save_as(tmp_path / "a", enforce_file_format=True)
    (series,) = find_series(tmp_path).series
    if right:
        assert np.array_equal(series.read().hu, np.stack([disc_hu(3.0 * k) for k in (2, 1, 0)]).astype(np.float32))
        return
    with pytest.raises(ConcordctError, match=r"offsets of compressed frames|of 2 frames by their offsets"):
        series.read()


# Volume files.

NRRD = ("NRRD0005", "type: short", "space: LPS", "endian: little", "encoding: raw", "space origin: (0,0,0)")
THREE = ("dimension: 3", "sizes: 3 4 5", "space directions: (1,0,0) (0,1,0) (0,0,3)")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ((*THREE, 'space units: "mm" "mm" "mm"'), None),
        ((*THREE, "space units: cm cm cm"), "expected space units mm, found cm cm cm"),
        ((*THREE, 'units: "cm" "cm" "cm"'), "expected no units"),
        ((*THREE, "spacings: 2 2 2"), "expected no spacings"),
        ((*THREE, "spacings: nan nan nan"), None),
        ((*THREE, "axismins: 0 0 0"), "expected no axis mins"),
        ((*THREE, "old min: -1024", "old max: 3071"), "expected no old min"),
        (("dimension: 4", "sizes: 3 4 5 1", "space directions: (1,0,0) (0,1,0) (0,0,3) none"), None),
        (("dimension: 4", "sizes: 5 3 4 1", "space directions: none (1,0,0) (0,1,0) (0,0,3)"), "three vectors"),
        (("dimension: 3", "sizes: 3 4 5", "space directions: (1_0,0,0) (0,1,0) (0,0,3)"), "3 finite numbers"),
    ],
)
def test_what_an_nrrd_says_beside_its_directions(tmp_path: Path, lines: tuple[str, ...], said: str | None) -> None:
    voxels = np.arange(60, dtype="<i2") - 1000
    (tmp_path / "a.nrrd").write_bytes("\n".join((*NRRD, *lines)).encode() + b"\n\n" + voxels.tobytes())
    if said is None:
        assert open_volume_file(tmp_path / "a.nrrd").shape == (5, 4, 3)
        return
    with pytest.raises(ConcordctError, match=said):
        open_volume_file(tmp_path / "a.nrrd")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sform_code": 99}, "sform_code 99, expected 0 to 5"),
        ({"qform_code": 1, "sform_code": 0, "pixdim": (-0.3, 1, 1, 3, 0, 0, 0, 0)}, r"pixdim\[0\] of -0.3"),
        ({"qform_code": 1, "sform_code": 0, "pixdim": (0, 1, 1, 3, 0, 0, 0, 0)}, None),
        ({"qform_code": 0, "sform_code": 5, "pixdim": (-0.3, 1, 1, 3, 0, 0, 0, 0)}, None),
    ],
)
def test_forms_that_readers_take_differently(tmp_path: Path, fields: dict[str, Any], said: str | None) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16) - 900, np.diag([1.0, 1.0, 3.0, 1.0]))
    nibabel.save(image, tmp_path / "a.nii")
    header, content = image.header.copy(), (tmp_path / "a.nii").read_bytes()
    header["magic"], header["vox_offset"] = b"n+1", 352
    for name, value in fields.items():
        header[name] = value
    (tmp_path / "a.nii").write_bytes(header.binaryblock + content[348:])
    if said is None:
        assert np.allclose(open_volume_file(tmp_path / "a.nii").spacing_mm, (3, 1, 1))
        return
    with pytest.raises(ConcordctError, match=said):
        open_volume_file(tmp_path / "a.nii")
