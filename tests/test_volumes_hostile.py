"""Every file of the hostile collection is read rightly or refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from concordct.errors import ConcordctError
from concordct.volumes.derivation import Derivation
from concordct.volumes.derived import write_derived_series
from concordct.volumes.find import find_series

CORNERSTONE, NEMA = "cornerstone_testImages", "nema_wg04"

# (folder, file, reference, greatest difference in HU inside the field of view); 0 means lossless. Near-lossless
# JPEG-LS bounds its own error (1 and 4 grey values); lossy JPEG 2000 at 3.8:1 was measured once at 5 HU.
READ = [
    (CORNERSTONE, "CTImage.dcm", "CTImage.dcm", 0),
    (CORNERSTONE, "CTImage.dcm_BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2.dcm", "CTImage.dcm", 0),
    (
        CORNERSTONE,
        "CTImage.dcm_DeflatedExplicitVRLittleEndianTransferSyntax_1.2.840.10008.1.2.1.99.dcm",
        "CTImage.dcm",
        0,
    ),
    (CORNERSTONE, "CTImage.dcm_JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90.dcm", "CTImage.dcm", 0),
    (CORNERSTONE, "CTImage.dcm_JPEG2000TransferSyntax_1.2.840.10008.1.2.4.91.dcm", "CTImage.dcm", 5),
    (CORNERSTONE, "CTImage.dcm_JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80.dcm", "CTImage.dcm", 0),
    (CORNERSTONE, "CTImage.dcm_JPEGLSLossyTransferSyntax_1.2.840.10008.1.2.4.81.dcm", "CTImage.dcm", 1),
    (CORNERSTONE, "CTImage.dcm_JPEGProcess14SV1TransferSyntax_1.2.840.10008.1.2.4.70.dcm", "CTImage.dcm", 0),
    (CORNERSTONE, "CTImage.dcm_JPEGProcess14TransferSyntax_1.2.840.10008.1.2.4.57.dcm", "CTImage.dcm", 0),
    (CORNERSTONE, "CTImage.dcm_LittleEndianExplicitTransferSyntax_1.2.840.10008.1.2.1.dcm", "CTImage.dcm", 0),
    (CORNERSTONE, "CTImage.dcm_LittleEndianImplicitTransferSyntax_1.2.840.10008.1.2.dcm", "CTImage.dcm", 0),
    (CORNERSTONE, "CTImage.dcm_RLELosslessTransferSyntax_1.2.840.10008.1.2.5.dcm", "CTImage.dcm", 0),
    (CORNERSTONE, "CT1_J2KR", "CT1_UNC", 0),
    (CORNERSTONE, "CT2_J2KR", "CT2_UNC", 0),
    (NEMA, "CT1_UNC", "CT1_UNC", 0),
    (NEMA, "CT1_J2KR", "CT1_UNC", 0),
    (NEMA, "CT1_JLSL", "CT1_UNC", 0),
    (NEMA, "CT1_JPLL", "CT1_UNC", 0),
    (NEMA, "CT1_RLE", "CT1_UNC", 0),
    (NEMA, "CT1_JLSN", "CT1_UNC", 4),
    (NEMA, "CT2_UNC", "CT2_UNC", 0),
    (NEMA, "CT2_J2KR", "CT2_UNC", 0),
    (NEMA, "CT2_JLSL", "CT2_UNC", 0),
    (NEMA, "CT2_JPLL", "CT2_UNC", 0),
    (NEMA, "CT2_RLE", "CT2_UNC", 0),
    (NEMA, "CT2_JLSN", "CT2_UNC", 4),
]
# (file, what the line says): set aside when found, or refused when read.
SET_ASIDE = [
    ("CT0012.fragmented_no_bot_jpeg_baseline.51.dcm", "frames of a derived map (RCBF), expected HU"),
    (
        "CTImage.dcm_JPEGProcess1TransferSyntax_1.2.840.10008.1.2.4.50.dcm",
        "steps of 32.1216 HU, expected at most 10 HU",
    ),
]
TOO_LOSSY = [("CT1_J2KI", "lossy compression 69:1, expected at most 15:1"), ("CT2_J2KI", "lossy compression 106:1")]
UNDECODABLE = [
    ("CTImage.dcm_JPEGProcess10_12TransferSyntax_1.2.840.10008.1.2.4.55.dcm", "1.2.840.10008.1.2.4.55"),
    ("CTImage.dcm_JPEGProcess2_4TransferSyntax_1.2.840.10008.1.2.4.51.dcm", "1.2.840.10008.1.2.4.51"),
    ("CTImage.dcm_JPEGProcess6_8TransferSyntax_1.2.840.10008.1.2.4.53.dcm", "1.2.840.10008.1.2.4.53"),
]


@pytest.fixture(scope="module")
def hostile(shared_data: Path) -> Path:
    return shared_data / "hostile"


def _reference(hostile: Path, name: str) -> np.ndarray:
    folder = CORNERSTONE if name.startswith("CTImage") else NEMA
    dataset = pydicom.dcmread(hostile / folder / name)
    return dataset.pixel_array.astype(float) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)


def test_the_table_names_every_file(hostile: Path) -> None:
    named = {(folder, name) for folder, name, _, _ in READ}
    named |= {(NEMA, name) for name, _ in TOO_LOSSY}
    named |= {(CORNERSTONE, name) for name, _ in SET_ASIDE + UNDECODABLE}
    for path in sorted(path for path in hostile.rglob("*") if path.is_file()):
        if path.suffix in (".ts", ".dat"):
            found = find_series(path)
            assert not found.series
            assert [aside.reason for aside in found.set_aside] == ["not a DICOM file"]
        else:
            assert (path.parent.name, path.name) in named


@pytest.mark.parametrize(("folder", "name", "reference", "bound"), READ)
def test_read_equals_its_reference(hostile: Path, folder: str, name: str, reference: str, bound: float) -> None:
    (series,) = find_series(hostile / folder / name).series
    volume = series.read()
    expected = _reference(hostile, reference)
    blank = expected < -1500
    assert volume.padding is not None
    assert np.array_equal(volume.padding[0], blank)
    assert np.abs(volume.hu[0] - expected)[~blank].max() <= bound
    assert np.all(volume.hu[volume.padding] == -1000)


@pytest.mark.parametrize(("folder", "name", "reference", "bound"), READ)
def test_derived_series_of_an_unchanged_volume_holds_the_same_values(
    hostile: Path, tmp_path: Path, folder: str, name: str, reference: str, bound: float
) -> None:
    (series,) = find_series(hostile / folder / name).series
    written = write_derived_series(series, [series.read()], tmp_path / "out", Derivation("none", "0" * 64, None))
    (again,) = find_series(written.directory).series
    assert np.array_equal(again.stored_hu(0, 1), series.stored_hu(0, 1))
    header = pydicom.dcmread(written.paths[0])
    assert header.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    source = pydicom.dcmread(hostile / folder / name, stop_before_pixels=True)
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod", "PatientID"):
        assert header.get(keyword) == source.get(keyword)


@pytest.mark.parametrize(("name", "says"), SET_ASIDE)
def test_set_aside(hostile: Path, name: str, says: str) -> None:
    found = find_series(hostile / CORNERSTONE / name)
    assert not found.series
    assert says in found.set_aside[0].reason


@pytest.mark.parametrize(("name", "says"), TOO_LOSSY)
def test_too_lossy_is_refused_unless_allowed(hostile: Path, name: str, says: str) -> None:
    (series,) = find_series(hostile / NEMA / name).series
    with pytest.raises(ConcordctError, match=says):
        series.read()
    volume = series.read(allow={"lossy"})
    assert volume.padding is not None
    assert np.array_equal(volume.padding[0], _reference(hostile, f"{name[:3]}_UNC") < -1500)


@pytest.mark.parametrize(("name", "says"), UNDECODABLE)
def test_undecodable_is_one_line(hostile: Path, name: str, says: str) -> None:
    (series,) = find_series(hostile / CORNERSTONE / name).series
    with pytest.raises(ConcordctError, match="cannot decode pixels in JPEG") as caught:
        series.read()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_at_once_refuses_what_contradicts(hostile: Path) -> None:
    found = find_series(hostile)
    for series in found.series:
        if len({problem.code for problem in series.problems}) > 1:
            with pytest.raises(ConcordctError, match="two different slices at one position"):
                series.read(allow={"duplicate"})
