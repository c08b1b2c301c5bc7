"""DICOM headers that are trusted, doubted or refused rightly: what public bug reports and the standard ask for."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

from concordct.errors import ConcordctError
from concordct.volumes.derivation import Derivation
from concordct.volumes.derived import write_derived_series
from concordct.volumes.find import find_series
from concordct.volumes.padding import find_padding
from concordct.volumes.pairing import check_pair
from concordct.volumes.series import Series
from volumes_slices import disc_hu, enhanced_dataset, slice_dataset, write_slice, write_stack

EVEN = [0.0, 3.0, 6.0, 9.0]
DERIVATION = Derivation("none", "0" * 64, None)


def only(path: Path) -> Series:
    found = find_series(path)
    assert len(found.series) == 1, found
    return found.series[0]


def reason(path: Path) -> str:
    found = find_series(path)
    assert not found.series
    return found.set_aside[0].reason


def derived(series: Series) -> bytes:
    """The first object of a derived series, written apart from its source."""
    with tempfile.TemporaryDirectory() as place:
        return write_derived_series(series, [series.read()], Path(place) / "out", DERIVATION).paths[0].read_bytes()


# Text.


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 192", "Müller^Jörg".encode("latin-1")),
        ("ISO_IR 192", "张^伟强".encode("gbk")),
        ("ISO 2022 IR 87", "山田^太郎".encode("shift_jis")),
        ("ISO_IR 100", "Müller^Jörg".encode()),
        ("UTF-8", "Müller^Jörg".encode("latin-1")),
        ("", b"M\xfc\x81ller^J"),
    ],
)
def test_text_keeps_its_bytes_whatever_character_set_is_stated(tmp_path: Path, charset: str, name: bytes) -> None:
    name += b" " * (len(name) % 2)
    dataset = slice_dataset(SpecificCharacterSet="ISO_IR 100", PatientName="N" * len(name), PatientID="I" * len(name))
    item = Dataset()
    item.RequestingPhysician = "P" * len(name)
    dataset.RequestAttributesSequence = Sequence([item])
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    content = buffer.getvalue()
    for letter in (b"N", b"I", b"P"):
        content = content.replace(letter * len(name), name)
    stated = charset.encode() + b" " * (len(charset) % 2)
    old = b"\x08\0\x05\0CS\x0a\0ISO_IR 100"
    content = content.replace(old, b"\x08\0\x05\0CS" + len(stated).to_bytes(2, "little") + stated)
    (tmp_path / "a").write_bytes(content)
    written = derived(only(tmp_path / "a"))
    assert b"\xef\xbf\xbd" not in written
    assert written.count(name) == 3
    assert b"\x08\0\x05\0CS" + len(stated).to_bytes(2, "little") + stated in written


def test_broken_text_in_the_series_description_costs_question_marks_only(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a", SpecificCharacterSet="ISO_IR 192", SeriesDescription="Thorax xx")
    path.write_bytes(path.read_bytes().replace(b"Thorax xx", b"Thorax \xfcx"))
    written = pydicom.dcmread(io.BytesIO(derived(only(path))))
    assert written.SeriesDescription == "Thorax ?x [concordct]"


# Units.


@pytest.mark.parametrize("kind", ["US", "hu", "HOUNSFIELD", "", None])
def test_unspecified_units_and_other_spellings_are_hu(tmp_path: Path, kind: str | None) -> None:
    series = only(write_stack(tmp_path / "in", EVEN, RescaleType=kind))
    assert np.array_equal(series.read().hu[0], disc_hu(0).astype(np.float32))
    assert ("RescaleType US (unspecified), read as HU" in series.notes) == (kind == "US")


@pytest.mark.parametrize("kind", ["MGML", "HU_MOD", "Z_EFF", "ED", "PCT"])
def test_other_units_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    assert reason(write_slice(tmp_path / "a", RescaleType=kind)) == f"pixels rescale to {kind}, expected HU"


def test_rescale_of_each_frame(tmp_path: Path) -> None:
    dataset = enhanced_dataset(3)
    del dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    for frame, item in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        values = Dataset()
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, -1000 + 10 * frame, "US"
        item.PixelValueTransformationSequence = Sequence([values])
    dataset.save_as(tmp_path / "a", enforce_file_format=True)
    hu = only(tmp_path / "a").read().hu
    for index, frame in enumerate((2, 1, 0)):
        assert np.array_equal(hu[index], (disc_hu(3.0 * frame) + 10 * frame).astype(np.float32))


# Padding.


def ring(side: int = 96) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return np.hypot(y, x) > 0.48 * side, np.rint(40 + 10 * np.sin(y))


@pytest.mark.parametrize(
    ("stored", "bits", "signed", "declared", "vr"),
    [
        (4095, 12, 0, 4095, "US"),
        (65535, 16, 0, 65535, "US"),
        (63536, 16, 0, 63536, "US"),
        (63536, 16, 0, -2000, "SS"),
        (-2000, 16, 1, 63536, "US"),
        (32767, 16, 1, 32767, "SS"),
        (1024, 12, 0, 1024, "US"),
        (63536, 12, 0, -2000, "SS"),
    ],
)
def test_declared_padding_is_honoured_whatever_its_value(
    tmp_path: Path, stored: int, bits: int, signed: int, declared: int, vr: str
) -> None:
    blank, hu = ring()
    kind = "<i2" if signed else "<u2"
    pixels = np.where(blank, stored, hu + 1024).astype(kind)
    dataset = slice_dataset(
        hu=hu, PixelData=pixels.tobytes(), BitsStored=bits, HighBit=bits - 1, PixelRepresentation=signed
    )
    dataset.add_new("PixelPaddingValue", vr, declared)
    dataset.save_as(tmp_path / "a", enforce_file_format=True)
    series = only(tmp_path / "a")
    volume = series.read()
    assert volume.padding is not None
    assert np.array_equal(volume.padding[0], blank)
    assert np.array_equal(volume.hu[0], np.where(blank, -1000, hu).astype(np.float32))
    written_bytes = derived(series)
    written = pydicom.dcmread(io.BytesIO(written_bytes))
    mask = 2**bits - 1
    assert np.array_equal(
        np.frombuffer(written.PixelData, kind).reshape(pixels.shape).astype(int) & mask, pixels.astype(int) & mask
    )
    (tmp_path / "again").write_bytes(written_bytes)
    assert np.array_equal(only(tmp_path / "again").read().hu, volume.hu)


def test_clipped_metal_of_the_declared_value_inside_is_image() -> None:
    blank, hu = ring()
    hu = np.where(blank, 3071.0, hu)
    hu[40:60, 40:60] = 3071
    assert np.array_equal(find_padding(hu, declared_hu=(3070.5, 3071.5)), blank)


def test_padding_of_no_number_declares_nothing_and_is_dropped(tmp_path: Path) -> None:
    dataset = slice_dataset()
    dataset.add_new("PixelPaddingValue", "OB", b"\x01\x02\x03\x04")
    dataset.save_as(tmp_path / "a", enforce_file_format=True)
    written = pydicom.dcmread(io.BytesIO(derived(only(tmp_path / "a"))))
    assert "PixelPaddingValue" not in written


# Acquisitions, phases, energies.


def two(folder: Path, shift: float, first: dict, second: dict) -> list[Series]:
    write_stack(folder / "a", EVEN, **first)
    for index, z in enumerate(EVEN):
        uid = f"1.9.{index}"
        write_slice(folder / "b" / str(index), z=z + shift, hu=disc_hu(z + 50), SOPInstanceUID=uid, **second)
    return list(find_series(folder).series)


@pytest.mark.parametrize("shift", [0.0, 1.5])
@pytest.mark.parametrize("name", ["AcquisitionNumber", "TemporalPositionIdentifier"])
def test_two_acquisitions_of_one_series_are_two_stacks(tmp_path: Path, name: str, shift: float) -> None:
    found = two(tmp_path, shift, {name: 2}, {name: 9})
    assert [series.shape[0] for series in found] == [4, 4]
    assert [round(series.spacing_mm[0], 6) for series in found] == [3, 3]
    with pytest.raises(ConcordctError, match=rf"2 acquisitions \({name} 2, 9\).*\[acquisition\]"):
        found[0].check()
    assert np.array_equal(found[1].read(allow={"acquisition"}).hu[0], disc_hu(50).astype(np.float32))


def test_cardiac_phases_at_the_same_positions_are_parted_by_time(tmp_path: Path) -> None:
    first, second = {"AcquisitionTime": "120000.5"}, {"AcquisitionTime": "121500.5"}
    found = two(tmp_path, 0.0, first, second)
    assert [series.shape[0] for series in found] == [4, 4]


def test_rotations_of_one_step_and_shoot_scan_stay_together(tmp_path: Path) -> None:
    for index in range(8):
        write_slice(
            tmp_path / str(index), z=3.0 * index, AcquisitionNumber=index // 2 + 1, AcquisitionTime=f"12000{index}"
        )
    series = only(tmp_path)
    assert (series.shape[0], series.problems) == (8, ())


def test_slices_that_nothing_tells_apart_stay_a_conflict(tmp_path: Path) -> None:
    found = two(tmp_path, 0.0, {"AcquisitionNumber": 2}, {"AcquisitionNumber": 2})
    assert [problem.code for problem in found[0].problems] == ["conflict"]


@pytest.mark.parametrize(
    ("tags", "energy"),
    [
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "VMI"], "MonoenergeticEnergyEquivalent": 40.0}, "40 keV"),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "CT_SOM7 SPP", "MONO_70KEV"]}, "70 keV"),
        ({"SeriesDescription": "MonoE 55keV Thorax"}, "55 keV"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "MAT_REMOVED"]}, "material removed"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"]}, None),
        ({"SeriesDescription": "Thorax 120kV"}, None),
    ],
)
def test_virtual_energies_are_no_part_of_the_plain_stack(tmp_path: Path, tags: dict, energy: str | None) -> None:
    found = two(tmp_path, 1.5, tags if energy is None else {}, tags)
    if energy is None:
        assert [(series.energy, series.shape[0]) for series in found] == [(None, 8)]
        return
    assert [(series.energy, series.shape[0]) for series in found] == [(None, 4), (energy, 4)]
    assert {problem.code for series in found for problem in series.problems} == {"energy"}
    assert any(energy in note for note in found[1].notes)


def test_other_energies_make_no_pair(tmp_path: Path) -> None:
    write_stack(tmp_path / "a", EVEN)
    write_stack(tmp_path / "b", EVEN, SeriesInstanceUID="1.9", SeriesDescription="MonoE 40keV")
    with pytest.raises(ConcordctError, match="the pair shows the plain image and 40 keV, expected one energy"):
        check_pair(only(tmp_path / "a"), only(tmp_path / "b"))


@pytest.mark.parametrize("kind", ["MAT_SPECIFIC", "EFF_ATOMIC_NUM", "ELECTRON_DENSITY", "MAT_FRACTIONAL"])
def test_maps_of_materials_are_no_ct_in_hu(tmp_path: Path, kind: str) -> None:
    path = write_slice(tmp_path / "a", ImageType=["DERIVED", "PRIMARY", "AXIAL", kind])
    assert "derived map" in reason(path)


def test_temporal_positions_and_stacks_of_an_enhanced_ct(tmp_path: Path) -> None:
    dataset = enhanced_dataset(6)
    for frame, item in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        content = Dataset()
        content.TemporalPositionIndex, content.StackID = frame // 3 + 1, "1"
        item.FrameContentSequence = Sequence([content])
        item.PlanePositionSequence[0].ImagePositionPatient = [-10.0, -20.0, -3.0 * (frame % 3)]
    dataset.save_as(tmp_path / "a", enforce_file_format=True)
    found = find_series(tmp_path).series
    assert [series.shape[0] for series in found] == [3, 3]
    assert {problem.code for series in found for problem in series.problems} == {"acquisition"}
    assert [ref.frame for ref in found[1].slices] == [5, 4, 3]


@pytest.mark.parametrize("place", ["shared", "frame"])
def test_kernel_of_a_legacy_converted_ct(tmp_path: Path, place: str) -> None:
    dataset = enhanced_dataset(3)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2.2")
    del dataset.SharedFunctionalGroupsSequence[0].CTReconstructionSequence
    unassigned = Dataset()
    unassigned.ConvolutionKernel = "B70f"
    if place == "shared":
        shared = dataset.SharedFunctionalGroupsSequence[0]
        shared.UnassignedSharedConvertedAttributesSequence = Sequence([unassigned])
    else:
        for item in dataset.PerFrameFunctionalGroupsSequence:
            item.UnassignedPerFrameConvertedAttributesSequence = Sequence([unassigned])
    dataset.save_as(tmp_path / "a", enforce_file_format=True)
    series = only(tmp_path / "a")
    assert series.kernel == "B70f"
    written = pydicom.dcmread(io.BytesIO(derived(series)))
    assert "Reconstruction kernel B70f converted" in written.DerivationDescription


# Files.


@pytest.mark.parametrize("implicit", [True, False])
def test_a_bare_dataset_is_read(tmp_path: Path, implicit: bool) -> None:
    for index, z in enumerate(EVEN):
        dataset = slice_dataset(z=z)
        bare = Dataset(dataset)
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, implicit
        write_dataset(buffer, bare)
        (tmp_path / f"{index}.dcm").write_bytes(buffer.getvalue())
    series = only(tmp_path)
    assert np.array_equal(series.read().hu[0], disc_hu(0).astype(np.float32))
    assert any("no DICOM file header" in note for note in series.notes)
    written = pydicom.dcmread(io.BytesIO(derived(series)))
    assert written.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"


@pytest.mark.parametrize("content", [b"\x08\0" + os.urandom(400), b"\x02\0\0\0", b"\0\x08\0\x05" * 40])
def test_bytes_that_begin_like_a_dataset_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    found = find_series(tmp_path / "a")
    assert not found.series
    assert "\n" not in found.set_aside[0].reason


@pytest.mark.parametrize("digits", [1, 2, 4])
def test_one_object_exported_twice_with_other_rounding(tmp_path: Path, digits: int) -> None:
    place = {"ImagePositionPatient": [-10.04321, -20.04321, 3.04321], "PixelSpacing": [0.8828125, 0.8828125]}
    write_slice(tmp_path / "a", z=3.0, **place)
    write_slice(
        tmp_path / "b",
        z=3.0,
        ImagePositionPatient=[round(v, digits) for v in place["ImagePositionPatient"]],
        PixelSpacing=[round(v, 3) for v in place["PixelSpacing"]],
    )
    write_slice(
        tmp_path / "c", z=6.0, ImagePositionPatient=[-10.04321, -20.04321, 6.04321], PixelSpacing=place["PixelSpacing"]
    )
    series = only(tmp_path)
    assert [problem.code for problem in series.problems] == ["duplicate"]
    assert series.read(allow={"duplicate"}).shape[0] == 2


def test_large_matrices_of_photon_counting_scanners(tmp_path: Path) -> None:
    series = only(write_stack(tmp_path, [0.0, 0.2, 0.4], hu=disc_hu(0, side=1024), PixelSpacing=[0.15, 0.15]))
    assert series.shape == (3, 1024, 1024)
    assert not series.problems


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"NRRD0005\n", "not a DICOM file but NRRD data"),
        (b"\x5c\x01\0\0" + bytes(340) + b"n+1\0", "not a DICOM file but NIfTI data"),
        (b"\x1c\x02\0\0n+2\0" + bytes(532), "not a DICOM file but NIfTI-2 data"),
        (b"%PDF-1.4", "not a DICOM file but a PDF document"),
        (b"something else", "not a DICOM file"),
    ],
)
def test_other_files_are_named_by_what_they_are(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    assert reason(tmp_path / "a.bin") == said


def test_directories_and_doses_are_named_rightly(tmp_path: Path) -> None:
    dataset = slice_dataset()
    dataset.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.1.3.10")
    del dataset.SOPClassUID
    for name in ("DICOMDIR", "DIRFILE"):
        pydicom.dcmwrite(tmp_path / name, dataset)
        assert reason(tmp_path / name) == "DICOMDIR, a directory of files and not an image"
    write_slice(tmp_path / "dose", SOPClassUID=UID("1.2.840.10008.5.1.4.1.1.481.2"), Modality="RTDOSE")
    assert reason(tmp_path / "dose") == "RT Dose Storage, not a CT image"


@pytest.mark.parametrize(
    "syntax",
    ["1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.102", "1.2.840.10008.1.2.4.55"],
)
def test_undecodable_syntaxes_are_said_before_decoding(tmp_path: Path, syntax: str) -> None:
    dataset = slice_dataset()
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.201")
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "a", enforce_file_format=True)
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content.replace(b"1.2.840.10008.1.2.4.201\0", syntax.encode().ljust(24, b"\0")))
    (problem,) = only(tmp_path / "a").problems
    assert problem.code == "syntax"
    assert syntax in problem.message
    assert problem.message.startswith("cannot decode pixels in ")


def test_misaligned_values_are_not_quoted(tmp_path: Path) -> None:
    for name, tags in (
        ("modality", {"Modality": "DOE^JANE"}),
        ("photometric", {"PhotometricInterpretation": "DOE^JANE"}),
        ("units", {"RescaleType": "DOE^JANE"}),
        ("kind", {"SOPClassUID": "DOE^JANE"}),
    ):
        said = reason(write_slice(tmp_path / name, **tags))
        assert "DOE" not in said, said


def test_pipes_and_dead_links_are_named_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    said = {item.path.name: item.reason for item in find_series(tmp_path).set_aside}
    assert said == {"link": "a link to nothing", "pipe": "not a regular file (a pipe, a socket, a device)"}
    with pytest.raises(ConcordctError, match="not a regular file"):
        find_series(tmp_path / "pipe")


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/fol\xffder"))
    write_stack(folder, EVEN)
    series = only(folder)
    assert derived(series)
    shutil.rmtree(folder)
