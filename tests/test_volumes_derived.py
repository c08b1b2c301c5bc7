"""Derived CT series: honest headers, deterministic bytes, whole or not at all; judged by dciodvfy."""

from __future__ import annotations

import json
import shutil
import subprocess
import tracemalloc
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID
from scipy import ndimage
from skimage.draw import polygon2mask

from concordct import __version__
from concordct.errors import ConcordctError
from concordct.volumes.decode import able_to_reach
from concordct.volumes.derivation import Derivation
from concordct.volumes.derived import Written, write_derived_series
from concordct.volumes.derived_header import hashed_uid
from concordct.volumes.series import Series
from volumes_derived import DERIVATION, EVEN, only, same_files, sharpened
from volumes_slices import disc_hu, enhanced_dataset, write_slice, write_stack

#: Errors of dciodvfy that a derived object may have although its source has not. None is needed.
ALLOWED_ERRORS: frozenset[str] = frozenset()


@pytest.fixture(scope="module")
def chest(shared_data: Path) -> Series:
    return only(shared_data / "chest_B40f")


@pytest.fixture(scope="module")
def chest_written(chest: Series, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_derived_series(chest, sharpened(chest), tmp_path_factory.mktemp("w") / "out", DERIVATION)


def test_slab_size_and_repetition_change_no_byte(chest: Series, chest_written: Written, tmp_path: Path) -> None:
    again = write_derived_series(chest, sharpened(chest, 28), tmp_path / "elsewhere", DERIVATION)
    assert same_files(chest_written.directory, again.directory)
    assert sorted(path.suffix for path in again.directory.iterdir()) == [".dcm"] * 28 + [".json"]


def test_pixels_are_rounded_padding_is_the_sources(chest: Series, chest_written: Written) -> None:
    series = only(chest_written.directory)
    expected = np.concatenate([slab.hu for slab in sharpened(chest)])
    padding = chest.read().padding
    assert padding is not None
    found = series.stored_hu(0, 28)
    assert np.array_equal(found[padding], chest.stored_hu(0, 28)[padding])
    inside = np.clip(np.rint(expected), -1024, 3071)
    assert np.array_equal(found[~padding], inside[~padding])
    below = int(np.count_nonzero(np.rint(expected[~padding]) < -1024))
    assert (chest_written.clipped_low, chest_written.clipped_high) == (below, 0)
    assert chest_written.clipped_voxels == below > 0
    assert series.affine == pytest.approx(chest.affine)
    assert series.frame_of_reference_uid == chest.frame_of_reference_uid
    again = series.read().padding
    assert again is not None
    assert np.array_equal(again[:, :20, :20], padding[:, :20, :20])


def test_header_says_what_it_is(chest: Series, chest_written: Written) -> None:
    source = pydicom.dcmread(chest.slices[4].path)
    derived = pydicom.dcmread(chest_written.paths[4])
    assert list(derived.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
    assert derived.SeriesInstanceUID == chest_written.series_uid != source.SeriesInstanceUID
    assert derived.SOPInstanceUID == derived.file_meta.MediaStorageSOPInstanceUID != source.SOPInstanceUID
    assert derived.SeriesNumber == 90_000 + source.SeriesNumber
    assert derived.SeriesDescription == f"{source.SeriesDescription} [concordct toward Bl64]"
    assert list(derived.ConvolutionKernel) == ["CONCORDCT", "5e" * 6]
    for text in ("B40f converted toward Bl64", __version__, "5e" * 32, "mode=sample, seed=7"):
        assert text in derived.DerivationDescription
    assert [code.CodeValue for code in derived.DerivationCodeSequence] == ["KERNEL", "113086"]
    (image,) = derived.SourceImageSequence
    assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert image.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    (referenced,) = derived.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    equipment = derived.ContributingEquipmentSequence[-1]
    assert list(equipment.SoftwareVersions) == [__version__, "5e" * 32]
    assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    kept = (
        "PatientName PatientID PatientSex StudyInstanceUID StudyDate FrameOfReferenceUID ImagePositionPatient "
        "ImageOrientationPatient PixelSpacing SliceThickness RescaleSlope RescaleIntercept BitsStored KVP Manufacturer "
        "AcquisitionDate AcquisitionTime InstanceNumber"
    )
    for keyword in kept.split():
        assert derived[keyword].value == source[keyword].value
    for keyword in ("ContentDate", "SeriesTime", "InstanceCreationDate", "LargestImagePixelValue"):
        assert keyword not in derived
    assert not any(element.tag.is_private for element in derived.iterall())


def test_record_maps_each_slice_and_names_nobody(chest: Series, chest_written: Written) -> None:
    text = (chest_written.directory / "derivation.json").read_text()
    record = json.loads(text)
    assert "C3N" not in text
    assert record["series_uid"] == chest_written.series_uid
    for instance, ref in zip(record["instances"], chest.slices, strict=True):
        derived = pydicom.dcmread(chest_written.directory / instance["file"], stop_before_pixels=True)
        assert instance["source_sop_instance_uid"] == ref.sop_instance_uid
        assert instance["sop_instance_uid"] == derived.SOPInstanceUID
        assert list(derived.ImagePositionPatient) == pytest.approx(ref.origin_lps_mm)


def test_uids_are_uuids_and_depend_on_everything(tmp_path: Path) -> None:
    series = only(write_stack(tmp_path / "in", EVEN))
    other = only(write_stack(tmp_path / "in2", EVEN, SeriesInstanceUID="1.2.3.99"))

    def uids(source: Series, derivation: Derivation, change: float = 0.0) -> set[str]:
        slab = source.read()
        name = hashed_uid(repr(derivation), source.key, str(change))
        written = write_derived_series(source, [slab.with_hu(slab.hu + change)], tmp_path / name, derivation)
        sops = {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in written.paths}
        return sops | {written.series_uid}

    groups = [
        uids(series, DERIVATION),
        uids(other, DERIVATION),
        uids(series, replace(DERIVATION, model_sha256="6f" * 32)),
        uids(series, replace(DERIVATION, settings={"mode": "mean", "seed": 7})),
        uids(series, replace(DERIVATION, method="other")),
        uids(series, DERIVATION, change=1.0),
    ]
    assert len(set().union(*groups)) == len(groups) * (len(EVEN) + 1)
    for uid in groups[0]:
        assert UID(uid).is_valid
        number = uuid.UUID(int=int(uid.removeprefix("2.25.")))
        assert (number.variant, number.version) == (uuid.RFC_4122, 8)


def test_each_slice_keeps_its_own_rescale(tmp_path: Path) -> None:
    for index, (slope, intercept) in enumerate([(1, -1024), (2, -1000), (0.5, 0)]):
        write_slice(tmp_path / "in" / str(index), z=index, RescaleSlope=slope, RescaleIntercept=intercept)
    series = only(tmp_path / "in")
    written = write_derived_series(series, sharpened(series, 1), tmp_path / "out", DERIVATION)
    found = only(written.directory).stored_hu(0, 3)
    for index, slab in enumerate(sharpened(series, 1)):
        expected = np.clip(slab.hu[0], -1024, None)  # what CT images hold, see ct_range
        assert np.abs(found[index] - expected).max() <= (0.5, 1.0, 0.25)[index]


@pytest.mark.parametrize("declared", [-2000, 63536, None])
def test_far_padding_comes_back_and_declaration_stays_readable(tmp_path: Path, declared: int | None) -> None:
    for z in EVEN:
        hu = disc_hu(z)
        hu[:5] = -3024
        path = write_slice(tmp_path / "in" / str(z), z=z, hu=hu)
        dataset = pydicom.dcmread(path)
        if declared is not None:
            dataset.add_new("PixelPaddingValue", "US" if declared > 0 else "SS", declared)
        dataset.save_as(path)
    series = only(tmp_path / "in")
    written = write_derived_series(series, sharpened(series), tmp_path / "out", DERIVATION)
    assert np.all(only(written.directory).stored_hu(0, len(EVEN))[:, :5] == -3024)
    derived = pydicom.dcmread(written.paths[0])
    assert derived.get("PixelPaddingValue") == (None if declared is None else -2000)


def test_clipping_is_counted_at_both_ends(tmp_path: Path) -> None:
    tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0}
    series = only(write_stack(tmp_path / "in", EVEN, **tags))
    slab = series.read()
    hu = slab.hu.copy()
    hu[0, 20, 20:23], hu[1, 20, 20:25] = 5000, -1100
    written = write_derived_series(series, [slab.with_hu(hu)], tmp_path / "out", DERIVATION)
    assert (written.clipped_low, written.clipped_high) == (5, 3)
    found = only(written.directory).stored_hu(0, 2)
    assert found[0, 20, 20] == 3071
    assert found[1, 20, 20] == -1024


@pytest.mark.parametrize("bits", [12, 16])
def test_air_goes_as_far_down_as_the_target_kernel_does(tmp_path: Path, bits: int) -> None:
    tags = {"BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": 0}
    for z in EVEN:
        hu = disc_hu(z)
        hu[:12] = -1024
        path = write_slice(tmp_path / "in" / str(z), z=z, hu=hu, **tags)
        dataset = pydicom.dcmread(path)
        dataset.add_new("PixelPaddingValue", "US", 0)
        dataset.save_as(path)
    series = only(tmp_path / "in")
    slab = replace(series.read(), reach_hu=(-1400.0, 3071.0))
    hu = slab.hu.copy()
    hu[0, 20, 20:24] = -1100, -1399, -1500, 5000
    written = write_derived_series(series, [slab.with_hu(hu)], tmp_path / "out", DERIVATION)
    found = only(written.directory)
    assert found.stored_hu(0, 1)[0, 20, 20:24].tolist() == [-1100, -1399, -1400, 3071]
    assert (written.clipped_low, written.clipped_high) == (1, 1)
    # Padding is where it was, and holds what it held.
    padding = slab.padding
    assert padding is not None
    assert padding.any()
    assert np.array_equal(found.read().padding, padding)
    assert np.all(found.stored_hu(0, len(EVEN))[padding] == -1024)
    header = pydicom.dcmread(written.paths[0])
    assert (header.PixelRepresentation, header.BitsStored, header.HighBit) == (1, 16, 15)
    assert header["PixelPaddingValue"].VR == "SS"
    # Values that signed 16 bits do not hold stay as they were, and air is cut off.
    stored = next(series.stored(0, 1))
    values = stored.values.copy()
    values[20, 20] = 40_000
    assert able_to_reach(replace(stored, values=values, bounds=(0, 65535)), (-1400.0, 3071.0)).bounds == (0, 65535)


def test_what_is_no_longer_true_is_dropped(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "in" / "a")
    dataset = pydicom.dcmread(path)
    dataset.private_block(0x0009, "VENDOR", create=True).add_new(1, "LO", "secret sauce")
    item = Dataset()
    item.private_block(0x0011, "VENDOR", create=True).add_new(1, "LO", "nested")
    item.CodeMeaning = "kept"
    dataset.ProcedureCodeSequence = Sequence([item])
    dataset.IconImageSequence = Sequence([Dataset()])
    dataset.DigitalSignaturesSequence = Sequence([Dataset()])
    dataset.add_new(0x60000010, "US", 48)
    dataset.add_new(0x60003000, "OW", b"\0" * 288)
    dataset.add_new("SmallestImagePixelValue", "SS", 1)
    dataset.LossyImageCompression, dataset.LossyImageCompressionRatio = "01", 4.5
    dataset.LossyImageCompressionMethod = "ISO_14495_1"
    dataset.DerivationDescription = "An earlier step"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "113040", "DCM", "Lossy Compression"
    dataset.DerivationCodeSequence = Sequence([code])
    dataset.SeriesDescription = "x" * 64
    dataset.InstanceNumber = None
    dataset.file_meta.SourceApplicationEntityTitle = "SOMEWHERE"
    dataset.save_as(path)
    series = only(tmp_path / "in")
    written = write_derived_series(series, [series.read()], tmp_path / "out", replace(DERIVATION, sharpens=False))
    derived = pydicom.dcmread(written.paths[0])
    assert not any(element.tag.is_private for element in derived.iterall())
    for keyword in ("IconImageSequence", "DigitalSignaturesSequence", "SmallestImagePixelValue"):
        assert keyword not in derived
    assert 0x60000010 not in derived
    assert 0x60003000 not in derived
    assert derived.ProcedureCodeSequence[0].CodeMeaning == "kept"
    assert (derived.LossyImageCompression, derived.LossyImageCompressionRatio) == ("01", 4.5)
    assert derived.DerivationDescription.startswith("An earlier step; Reconstruction kernel B30f converted")
    assert [item.CodeValue for item in derived.DerivationCodeSequence] == ["113040", "KERNEL", "113087"]
    assert len(derived.SeriesDescription) == 64
    assert derived.SeriesDescription.endswith("x [concordct toward Bl64]")
    assert derived.InstanceNumber == 1
    assert "SourceApplicationEntityTitle" not in derived.file_meta


def test_derived_of_derived_keeps_the_whole_history(shared_data: Path, tmp_path: Path) -> None:
    source = only(shared_data / "philips_head_phantom" / "UB_1mm")
    odd = replace(DERIVATION, target_kernel="Bé64\\3\nx", settings={"name": "ü" * 2000})
    first = write_derived_series(source, sharpened(source), tmp_path / "first", odd)
    middle = only(first.directory)
    second = write_derived_series(middle, sharpened(middle), tmp_path / "second", DERIVATION)
    dataset = pydicom.dcmread(second.paths[0])
    assert [image.ReferencedSOPInstanceUID for image in dataset.SourceImageSequence] == [
        pydicom.dcmread(first.paths[0], stop_before_pixels=True).SOPInstanceUID
    ]
    assert len(dataset.ContributingEquipmentSequence) == 2
    assert [code.CodeValue for code in dataset.DerivationCodeSequence] == ["KERNEL", "113086"] * 2
    assert dataset.SeriesNumber == 202 + 2 * 90_000
    assert dataset.SeriesDescription.count("concordct toward") == 2
    assert len(dataset.SeriesDescription) <= 64
    assert len(dataset.DerivationDescription) <= 1024
    assert "mode=sample, seed=7" in dataset.DerivationDescription
    if shutil.which("dciodvfy") is not None:
        assert _errors(second.paths[0]) <= _errors(source.slices[0].path)


def test_allowed_problems_are_recorded(tmp_path: Path) -> None:
    series = only(write_stack(tmp_path / "in", [0, 3, 9, 12]))
    with pytest.raises(ConcordctError, match="slices missing at 6 mm"):
        write_derived_series(series, [], tmp_path / "out", DERIVATION)
    slab = series.read(allow={"gap"})
    written = write_derived_series(series, [slab], tmp_path / "out", DERIVATION, allow={"gap"})
    assert [problem.code for problem in written.allowed] == ["gap"]
    assert "Let pass: gap." in pydicom.dcmread(written.paths[0]).DerivationDescription
    assert json.loads((written.directory / "derivation.json").read_text())["allowed"][0]["code"] == "gap"
    assert only(written.directory).problems == series.problems


def test_big_endian_and_implicit_sources_give_the_same_object(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "hostile" / "cornerstone_testImages"
    names = [
        "CTImage.dcm",
        "CTImage.dcm_BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2.dcm",
        "CTImage.dcm_DeflatedExplicitVRLittleEndianTransferSyntax_1.2.840.10008.1.2.1.99.dcm",
        "CTImage.dcm_LittleEndianExplicitTransferSyntax_1.2.840.10008.1.2.1.dcm",
        "CTImage.dcm_RLELosslessTransferSyntax_1.2.840.10008.1.2.5.dcm",
    ]
    written = []
    for index, name in enumerate(names):
        series = only(folder / name)
        result = write_derived_series(series, sharpened(series), tmp_path / str(index), DERIVATION)
        written.append(pydicom.dcmread(result.paths[0]))
    assert all(dataset == written[0] for dataset in written[1:])


@pytest.mark.parametrize("patient", ["pat_2", "pat_3"])
def test_rtstruct_of_the_source_lies_right_on_the_result(shared_data: Path, tmp_path: Path, patient: str) -> None:
    folder = shared_data / "tumours_ct" / patient
    source = only(folder)
    structure = pydicom.dcmread(next(folder.glob("DCM_RS*")))
    written = write_derived_series(source, sharpened(source), tmp_path / "out", DERIVATION)
    derived = only(written.directory)

    frame = structure.StructureSetROISequence[0].ReferencedFrameOfReferenceUID
    assert derived.frame_of_reference_uid == source.frame_of_reference_uid == frame
    masks = [_contour_mask(structure, series) for series in (source, derived)]
    assert masks[0].sum() > 500
    assert np.array_equal(masks[0], masks[1])
    # The tumour stands out from the lung around it in both, so the contour is neither shifted nor mirrored.
    around = ndimage.binary_dilation(masks[0], np.ones((1, 9, 9), bool)) & ~masks[0]
    for series in (source, derived):
        hu = series.read().hu
        assert hu[masks[0]].mean() > hu[around].mean() + 200

    # The contours name the source's objects; the record leads from each to its derived object.
    record = json.loads((written.directory / "derivation.json").read_text())
    mapping = {row["source_sop_instance_uid"]: row["sop_instance_uid"] for row in record["instances"]}
    named = {
        str(image.ReferencedSOPInstanceUID)
        for contour in structure.ROIContourSequence[0].ContourSequence
        for image in contour.get("ContourImageSequence", [])
    }
    assert named <= set(mapping)
    assert len(set(mapping.values())) == len(source.slices)


def _contour_mask(structure: Dataset, series: Series) -> np.ndarray:
    mask = np.zeros(series.shape, dtype=bool)
    to_index = np.linalg.inv(series.affine)
    for contour in structure.ROIContourSequence[0].ContourSequence:
        points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
        index = (to_index @ np.column_stack([points, np.ones(len(points))]).T).T
        plane = round(float(index[0, 0]))
        assert np.abs(index[:, 0] - plane).max() < 0.05
        mask[plane] ^= polygon2mask(series.shape[1:], index[:, 1:3])
    return mask


def test_memory_does_not_grow_with_the_series(tmp_path: Path) -> None:
    peaks = []
    for count in (10, 40):
        positions = [3.0 * k for k in range(count)]
        for z in positions:
            write_slice(tmp_path / str(count) / str(z), z=z, hu=disc_hu(z, side=192))
        series = only(tmp_path / str(count))
        tracemalloc.start()
        write_derived_series(series, sharpened(series, 5), tmp_path / f"out{count}", DERIVATION)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.15 * peaks[0]


def test_enhanced_source_becomes_single_frame_objects(tmp_path: Path) -> None:
    source = enhanced_dataset(4)
    (tmp_path / "in").mkdir()
    source.save_as(tmp_path / "in" / "e", enforce_file_format=True)
    series = only(tmp_path / "in")
    written = write_derived_series(series, sharpened(series, 2), tmp_path / "out", DERIVATION)
    derived = only(written.directory)
    assert derived.affine == pytest.approx(series.affine)
    expected = np.concatenate([np.clip(np.rint(slab.hu), -1024, None) for slab in sharpened(series)])
    assert np.array_equal(derived.stored_hu(0, 4), expected)
    for ref, path in zip(series.slices, written.paths, strict=True):
        dataset = pydicom.dcmread(path)
        assert dataset.SOPClassUID == dataset.file_meta.MediaStorageSOPClassUID == pydicom.uid.CTImageStorage
        assert (dataset.SourceImageSequence[0].ReferencedFrameNumber, dataset.InstanceNumber) == (ref.frame + 1,) * 2
        assert dataset.SourceImageSequence[0].ReferencedSOPClassUID == source.SOPClassUID
        assert (dataset.RescaleIntercept, dataset.SliceThickness) == (-1000, 3)
        for keyword in ("NumberOfFrames", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
            assert keyword not in dataset
    again = write_derived_series(series, sharpened(series, 4), tmp_path / "again", DERIVATION)
    assert same_files(written.directory, again.directory)
    if shutil.which("dciodvfy") is not None:
        # The little that a test slice says is not a whole IOD; the conversion adds no error to that.
        write_slice(tmp_path / "classic")
        assert _errors(written.paths[0]) <= _errors(tmp_path / "classic") | _errors(tmp_path / "in" / "e")


def _errors(path: Path) -> set[str]:
    run = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace")
    return {line for line in run.stderr.splitlines() if "Error" in line.split("-")[0] or " - Error - " in line}


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian: dicom3tools) is not installed")
@pytest.mark.parametrize(
    "where",
    [
        "chest_B40f",
        "philips_head_phantom/UB_1mm",
        "philips_head_phantom/YA_1mm",
        "tumours_ct/pat_2",
        "hostile/nema_wg04/CT1_UNC",
        "hostile/nema_wg04/CT1_JLSN",
        "hostile/nema_wg04/CT2_RLE",
        "hostile/cornerstone_testImages/CTImage.dcm",
        "hostile/cornerstone_testImages/CTImage.dcm_JPEG2000TransferSyntax_1.2.840.10008.1.2.4.91.dcm",
        "hostile/cornerstone_testImages/CTImage.dcm_BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2.dcm",
    ],
)
def test_dciodvfy_finds_no_error_beyond_the_sources(shared_data: Path, tmp_path: Path, where: str) -> None:
    series = only(shared_data / where)
    written = write_derived_series(series, sharpened(series), tmp_path / "out", DERIVATION)
    for ref, path in list(zip(series.slices, written.paths, strict=True))[:: max(1, len(series.slices) // 3)]:
        assert _errors(path) - _errors(ref.path) <= ALLOWED_ERRORS


def test_what_a_filter_makes_of_metal_and_air_stays_a_ct_image(tmp_path: Path) -> None:
    """16 bits would hold more, and -2000 would be read back as padding."""
    for z in EVEN:
        write_slice(tmp_path / "in" / str(z), z=z, RescaleIntercept=-8192)
    series = only(tmp_path / "in")
    source = series.read()
    wild = source.hu.copy()
    wild[:, 20, 20], wild[:, 21, 21] = -2000, 9000
    written = write_derived_series(series, [source.with_hu(wild)], tmp_path / "out", DERIVATION)
    assert (written.clipped_low, written.clipped_high) == (len(EVEN), len(EVEN))
    again = only(written.directory).stored_hu(0, len(EVEN))
    assert np.all(again[:, 20, 20] == -1024)
    assert np.all(again[:, 21, 21] == 3071)
