"""Finding, sorting and grouping series; geometry problems from edited headers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import SecondaryCaptureImageStorage

from concordct.errors import ConcordctError
from concordct.volumes.attributes import attribute
from concordct.volumes.find import find_series
from concordct.volumes.geometry import slice_normal, stack_step
from concordct.volumes.series import Series
from volumes_slices import disc_hu, enhanced_dataset, write_slice, write_stack

EVEN = [float(z) for z in range(0, 30, 3)]


def only(path: Path) -> Series:
    (series,) = find_series(path).series
    return series


def codes(series: Series) -> list[str]:
    return [problem.code for problem in series.problems]


def test_real_chest_series(shared_data: Path) -> None:
    series = only(shared_data / "chest_B40f")
    assert series.shape == (28, 512, 512)
    assert series.kernel == "B40f"
    assert series.problems == ()
    assert series.spacing_mm == pytest.approx((3, 0.8828125, 0.8828125))
    positions = [ref.position_mm for ref in series.slices]
    assert positions == sorted(positions)
    volume = series.read(10, 12)
    for index in (0, 1):
        dataset = pydicom.dcmread(series.slices[10 + index].path)
        expected = dataset.pixel_array * 1.0 - 1024
        assert volume.padding is not None
        image = ~volume.padding[index]
        assert np.array_equal(volume.hu[index][image], expected[image])
        assert np.all(expected[~image] == -1024)
    # Siemens leaves the corners outside the 500 mm circle at 0 stored without saying so.
    assert volume.padding[:, 0, 0].all()
    assert not volume.padding[:, 256].all()


def test_slabs_are_pieces_of_the_whole(shared_data: Path) -> None:
    series = only(shared_data / "chest_B40f")
    whole = series.read()
    for start, stop in [(0, 1), (1, 9), (9, 28)]:
        slab, piece = series.read(start, stop), whole.slab(start, stop)
        assert np.array_equal(slab.hu, piece.hu)
        assert np.array_equal(slab.padding, piece.padding)
        assert slab.affine == pytest.approx(piece.affine)
        assert slab.first_slice == piece.first_slice


def test_descending_files_and_useless_instance_numbers_are_sorted_by_position(tmp_path: Path) -> None:
    series = only(write_stack(tmp_path, EVEN))
    assert [ref.position_mm for ref in series.slices] == EVEN
    assert np.array_equal(series.read().hu[3], disc_hu(EVEN[3]).astype(np.float32))
    assert series.problems == ()


def test_affine_maps_indices_to_lps(tmp_path: Path) -> None:
    series = only(write_stack(tmp_path, EVEN))
    assert series.affine @ [2, 3, 4, 1] == pytest.approx([-10 + 4 * 0.7, -20 + 3 * 0.8, 6, 1])
    slab = series.read(2, 5)
    assert slab.affine @ [0, 3, 4, 1] == pytest.approx([-10 + 4 * 0.7, -20 + 3 * 0.8, 6, 1])
    assert slab.first_slice == 2


@pytest.mark.parametrize("orientation", [[0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1], [0.8, 0.6, 0, 0, 0, -1]])
def test_other_planes_are_fine_when_consistent(tmp_path: Path, orientation: list[float]) -> None:
    normal = np.cross(orientation[:3], orientation[3:])
    for index in range(4):
        position = [float(v) for v in 5 + normal * index * 2]
        write_slice(tmp_path / str(index), z=index, ImageOrientationPatient=orientation, ImagePositionPatient=position)
    series = only(tmp_path)
    assert series.problems == ()
    assert series.affine[:3, 0] == pytest.approx(normal * 2)
    assert series.affine[:3, 2] == pytest.approx(np.array(orientation[:3]) * 0.7)


def test_gap_is_refused_and_names_the_missing_position(tmp_path: Path) -> None:
    series = only(write_stack(tmp_path, [z for z in EVEN if z not in (9.0, 12.0, 21.0)]))
    assert codes(series) == ["gap"]
    assert series.problems[0].positions_mm == pytest.approx((9.0, 12.0, 21.0))
    with pytest.raises(ConcordctError, match=r"slices missing at 9, 12, 21 mm \(step 3 mm\)"):
        series.read()
    assert series.check({"gap"}) == series.problems
    assert series.read(allow={"gap"}).shape[0] == 7


def test_gap_in_a_real_series(shared_data: Path, tmp_path: Path) -> None:
    for file in sorted((shared_data / "chest_B40f").iterdir())[:8]:
        if file.name != "004.dcm":
            shutil.copy(file, tmp_path)
    series = only(tmp_path)
    assert codes(series) == ["gap"]
    assert series.problems[0].positions_mm == pytest.approx((-98.5,))


def test_uneven_spacing(tmp_path: Path) -> None:
    series = only(write_stack(tmp_path, [0, 3, 6, 9.4, 12, 15]))
    assert codes(series) == ["spacing"]
    assert 9.4 in series.problems[0].positions_mm
    assert codes(only(write_stack(tmp_path / "halves", [0, 3, 6, 9, 14, 19, 24]))) == ["spacing"]


@settings(max_examples=60, deadline=None)
@given(
    step=st.sampled_from([0.4, 0.625, 1.25, 2.5, 5.0]),
    count=st.integers(3, 60),
    start=st.floats(-900, 900),
    decimals=st.sampled_from([1, 2, 5]),
)
def test_positions_rounded_by_the_header_are_even(step: float, count: int, start: float, decimals: int) -> None:
    positions = np.round(start + step * np.arange(count), decimals)
    origins = np.stack([np.zeros(count), np.zeros(count), positions], axis=1)
    vector, problems = stack_step(origins, np.array([0.0, 0, 1]), thickness_mm=1)
    assert problems == ()
    assert vector[2] == pytest.approx(step, abs=0.11 / (count - 1))


@settings(max_examples=60, deadline=None)
@given(count=st.integers(5, 40), step=st.floats(0.5, 5), data=st.data())
def test_any_missing_slice_is_found(count: int, step: float, data: st.DataObject) -> None:
    missing = data.draw(st.integers(1, count - 2))
    positions = np.delete(np.arange(count) * step, missing)
    origins = np.stack([np.zeros(count - 1), np.zeros(count - 1), positions], axis=1)
    _, problems = stack_step(origins, np.array([0.0, 0, 1]), thickness_mm=1)
    assert [problem.code for problem in problems] == ["gap"]
    assert problems[0].positions_mm == pytest.approx((missing * step,))


def test_gantry_tilt_is_measured_from_geometry(tmp_path: Path) -> None:
    angle = np.radians(12)
    orientation = [1, 0, 0, 0, float(np.cos(angle)), float(np.sin(angle))]
    for index in range(6):
        position = [0.0, 0.0, 4.0 * index]
        write_slice(tmp_path / str(index), z=index, ImageOrientationPatient=orientation, ImagePositionPatient=position)
    series = only(tmp_path)
    assert codes(series) == ["tilt"]
    assert "12.0 degrees" in series.problems[0].message
    # What is let pass keeps its shear: index (1, 0, 0) is the next slice's first voxel.
    assert series.affine @ [1, 0, 0, 1] == pytest.approx([0, 0, 4, 1])


def test_jump_of_the_field_of_view_cannot_be_allowed(tmp_path: Path) -> None:
    write_stack(tmp_path, EVEN)
    write_slice(tmp_path / "000", z=30, ImagePositionPatient=[15.0, -20.0, 30.0])
    series = only(tmp_path)
    assert "shift" in codes(series)
    with pytest.raises(ConcordctError, match="cannot allow shift"):
        series.check({"shift"})


def test_duplicates_same_and_different(tmp_path: Path) -> None:
    write_stack(tmp_path, EVEN)
    shutil.copy(tmp_path / "003", tmp_path / "copy")
    series = only(tmp_path)
    assert codes(series) == ["duplicate"]
    assert series.read(allow={"duplicate"}).shape[0] == len(EVEN)
    write_slice(tmp_path / "other", z=6.0, hu=disc_hu(99))
    series = only(tmp_path)
    assert codes(series) == ["duplicate", "conflict"]
    with pytest.raises(ConcordctError, match="two different slices at one position, at 6 mm"):
        series.read(allow={"duplicate"})


def test_mixed_kernels_split_and_refuse(tmp_path: Path) -> None:
    write_stack(tmp_path / "a", EVEN)
    for z in EVEN:
        write_slice(tmp_path / "b" / str(z), z=z, ConvolutionKernel="B70f", SOPInstanceUID=f"1.9.{int(z)}")
    found = find_series(tmp_path)
    assert [series.kernel for series in found.series] == ["B30f", "B70f"]
    assert [series.key for series in found.series] == ["1.2.3.2#1", "1.2.3.2#2"]
    with pytest.raises(ConcordctError, match="kernel B30f and also B70f at 0, 3"):
        found.series[0].check()
    assert [problem.code for problem in found.series[0].check({"kernel"})] == ["kernel"]


def test_one_slice_of_another_size_is_named(tmp_path: Path) -> None:
    write_stack(tmp_path, EVEN)
    write_slice(tmp_path / "odd", z=40.0, hu=disc_hu(40, side=32))
    found = find_series(tmp_path)
    assert [codes(series) for series in found.series] == [["mixed"], ["mixed"]]
    with pytest.raises(ConcordctError, match="the rest at 40 mm"):
        next(series for series in found.series if series.shape[0] == len(EVEN)).read()


def test_each_slice_has_its_own_rescale(tmp_path: Path) -> None:
    for index, (slope, intercept) in enumerate([(1, -1024), (2, -1000), (0.5, 0)]):
        write_slice(tmp_path / str(index), z=index, hu=disc_hu(7), RescaleSlope=slope, RescaleIntercept=intercept)
    hu = only(tmp_path).read().hu
    assert np.array_equal(hu[0], hu[2])
    assert np.abs(hu[0] - hu[1]).max() == 1


def test_set_aside_with_reasons(tmp_path: Path) -> None:
    write_stack(tmp_path / "ct", EVEN[:3])
    write_slice(tmp_path / "scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SOPInstanceUID="1.7")
    write_slice(tmp_path / "capture", SOPClassUID=SecondaryCaptureImageStorage)
    write_slice(tmp_path / "dose", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.67")
    write_slice(tmp_path / "pet", Modality="PT")
    write_slice(tmp_path / "nowhere", ImagePositionPatient=None)
    write_slice(tmp_path / "skewed", ImageOrientationPatient=[1, 0, 0, 1, 0, 0])
    write_slice(tmp_path / "norescale", RescaleSlope=None, PixelData=b"\0" * 4608)
    write_slice(tmp_path / "electrons", RescaleType="ED")
    write_slice(tmp_path / "coarse", RescaleSlope=32.1)
    write_slice(tmp_path / "colour", PhotometricInterpretation="RGB", SamplesPerPixel=3)
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "index.html").write_text("<html>")
    (tmp_path / "a.json").write_text(json.dumps({}))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / ".hidden").write_text("ignored")
    (tmp_path / "cut").write_bytes((tmp_path / "ct" / "001").read_bytes()[:300])
    found = find_series(tmp_path)
    assert [series.shape[0] for series in found.series] == [3]
    reasons = {aside.path.name: aside.reason for aside in found.set_aside}
    assert ".hidden" not in reasons
    expected = {
        "scout": "localizer",
        "capture": "secondary capture (Secondary Capture Image Storage), not a CT image",
        "dose": "dose report (X-Ray Radiation Dose SR Storage), not a CT image",
        "pet": "modality PT, expected CT",
        "nowhere": "expected ImagePositionPatient of 3 numbers, found nothing",
        "skewed": "direction cosines are not orthogonal unit vectors",
        "norescale": "no RescaleSlope and RescaleIntercept, so no Hounsfield units",
        "electrons": "pixels rescale to ED, expected HU",
        "coarse": "stored in steps of 32.1 HU, expected at most 10 HU",
        "colour": "RGB with 3 samples per pixel, expected MONOCHROME with 1",
        **dict.fromkeys(("notes.txt", "index.html", "a.json", "empty"), "not a DICOM file"),
    }
    assert {name: reasons[name] for name in expected} == expected
    assert "cut" in reasons
    assert not any("SECRET" in reason for reason in reasons.values())


def test_rtstruct_is_set_aside(shared_data: Path) -> None:
    found = find_series(shared_data / "tumours_ct" / "pat_2")
    assert [series.shape for series in found.series] == [(41, 138, 141)]
    assert [aside.reason for aside in found.set_aside] == ["RT Structure Set Storage, not a CT image"]


def test_iterative_reconstruction_is_noted(shared_data: Path, tmp_path: Path) -> None:
    series = only(shared_data / "philips_head_phantom" / "UB_1mm")
    assert series.notes == ("iterative or network reconstruction (idose)",)
    assert only(shared_data / "philips_head_phantom" / "YA_1mm").notes == ()
    write_slice(tmp_path / "x", ConvolutionKernel=["Br40f", "3"])
    assert only(tmp_path).kernel == "Br40f\\3"
    assert "kernel Br40f\\3" in only(tmp_path).notes[0]


def test_missing_path_and_progress(tmp_path: Path) -> None:
    with pytest.raises(ConcordctError, match="no such file or folder"):
        find_series(tmp_path / "none")
    write_stack(tmp_path, EVEN[:3])
    seen: list[tuple[int, int]] = []
    find_series(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert find_series(tmp_path / "001").series[0].shape[0] == 1


def test_file_that_changed_is_refused(tmp_path: Path) -> None:
    series = only(write_stack(tmp_path, EVEN[:3]))
    write_slice(series.slices[1].path, z=77.0)
    with pytest.raises(ConcordctError, match="changed since the series was found"):
        series.read()


def test_a_slice_that_was_rewritten_under_the_same_uid_is_refused(tmp_path: Path) -> None:
    series = only(write_stack(tmp_path, EVEN[:3]))
    path = series.slices[1].path
    path.write_bytes(path.read_bytes()[:-64] + bytes(64))
    with pytest.raises(ConcordctError, match="changed since the series was found"):
        series.read()


def test_enhanced_multi_frame_ct_reads(tmp_path: Path) -> None:
    enhanced_dataset(5).save_as(tmp_path / "e", enforce_file_format=True)
    series = only(tmp_path)
    assert series.shape == (5, 48, 48)
    assert series.problems == ()
    assert [ref.frame for ref in series.slices] == [4, 3, 2, 1, 0]
    assert series.kernel == "B30f"
    assert series.slice_thickness_mm == 3
    assert "ITERATIVE" in series.notes[0]
    volume = series.read(1, 4)
    for index, frame in enumerate((3, 2, 1)):
        assert np.array_equal(volume.hu[index], disc_hu(3.0 * frame).astype(np.float32))
    assert volume.affine[:3, 3] == pytest.approx([-10, -20, -9])


def test_enhanced_perfusion_maps_are_set_aside(tmp_path: Path) -> None:
    kind = ("DERIVED", "PRIMARY", "PERFUSION", "RCBF")
    enhanced_dataset(2, kind).save_as(tmp_path / "e", enforce_file_format=True)
    found = find_series(tmp_path)
    assert not found.series
    assert "derived map" in found.set_aside[0].reason


def test_normal_refuses_what_is_no_orientation() -> None:
    assert slice_normal((1, 0, 0, 0, 1, 0)) == pytest.approx([0, 0, 1])
    for bad in [(1, 0, 0, 0, 0, 0), (2, 0, 0, 0, 1, 0), (1, 0, 0, 0.7, 0.7, 0), (float("nan"), 0, 0, 0, 1, 0)]:
        with pytest.raises(ValueError, match="direction cosines"):
            slice_normal(bad)


def test_an_attribute_is_what_its_own_bytes_say_in_their_own_character_set():
    def described(character_set: str, vr: str = "LO") -> Dataset:
        dataset = Dataset()
        dataset.set_original_encoding(is_implicit_vr=False, is_little_endian=True, character_encoding=[character_set])
        for tag, value in ((0x0008103E, b"Lunge f\xc3\xbcr"), (0x00280010, b"\x01\x02")):
            dataset[tag] = RawDataElement(
                BaseTag(tag), vr if tag < 0x28 << 16 else "US", len(value), value, 0, False, True
            )
        return dataset

    for _ in range(2):  # the second time from what is kept
        for character_set in ("utf8", "latin_1"):
            said = described(character_set)
            assert attribute(said, "SeriesDescription") == described(character_set).SeriesDescription
        assert attribute(described("utf8"), "SeriesDescription") == "Lunge für"
    turned = described("utf8")
    turned[0x00280010] = turned.get_item(0x00280010)._replace(is_little_endian=False)
    assert (attribute(described("utf8"), "Rows"), attribute(turned, "Rows")) == (0x0201, 0x0102)
    assert attribute(turned, "Columns") is None
    assert attribute(turned, "Columns", 7) == 7
