"""The self-check as a DICOM SR: what it says, whose it is, always the same bytes, and clean to the judge."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pydicom
import pytest

pytest.importorskip("highdicom", reason="concordct[serve] is not installed")

from concordct.errors import ConcordctError
from concordct.volumes.derivation import Derivation
from concordct.volumes.derived import RECORD, write_derived_series
from concordct.volumes.find import find_series
from concordct.volumes.structured_report import MEASURED, write_self_check_report
from volumes_slices import write_stack

DERIVATION = Derivation("spectral", "ab" * 32, "Bl64")
CHECK: dict[str, Any] = {
    "failed": True,
    "lines": [], "problems": [],
    "kernel": {"status": "failed", "distance": 4.2, "distance_allowed": 3.5, "sharpness": 1.3, "noise_deviation": None,
               "tail_difference": -0.01},
    "returned": {"status": "passed", "band_lp_cm": 4.9, "difference_hu": 3.1, "ratio_to_noise": 0.4,
                 "ratio_allowed": 1.0, "slices": [{"slice": 2}]},
}  # fmt: skip


def derived(folder: Path, check: dict[str, Any] | None) -> Path:
    dates = {"StudyDate": "20200203", "StudyTime": "111213", "AccessionNumber": "", "StudyID": "1"}
    people = {"PatientBirthDate": "", "PatientSex": "O", "ReferringPhysicianName": ""}
    (series,) = find_series(write_stack(folder / "in", [0, 3, 6, 9], **dates, **people)).series
    write_derived_series(series, [series.read()], folder / "out", DERIVATION, also={"self_check": check})
    return folder / "out"


def items(dataset: pydicom.Dataset) -> list[pydicom.Dataset]:
    """All content items, at any depth."""
    found = []
    for item in dataset.get("ContentSequence") or ():
        found += [item, *items(item)]
    return found


def test_it_says_every_number_and_the_verdict(tmp_path: Path) -> None:
    folder = derived(tmp_path, CHECK)
    sop_class, uid = write_self_check_report(folder, tmp_path / "sr.dcm")
    report = pydicom.dcmread(tmp_path / "sr.dcm")
    assert (report.SOPClassUID, report.SOPInstanceUID, report.Modality) == (sop_class, uid, "SR")
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    numbers = {
        item.ConceptNameCodeSequence[0].CodeValue: float(item.MeasuredValueSequence[0].NumericValue)
        for item in items(report)
        if item.ValueType == "NUM"
    }
    expected = {
        value: CHECK[section][key]
        for (section, key), (value, _, _) in MEASURED.items()
        if CHECK[section].get(key) is not None
    }
    assert numbers == expected
    codes = {
        item.ConceptNameCodeSequence[0].CodeValue: item.ConceptCodeSequence[0].CodeValue
        for item in items(report)
        if item.ValueType == "CODE"
    }
    assert (codes["VERDICT"], codes["KERNELCHECK"], codes["RETURNCHECK"]) == ("FAILED", "FAILED", "PASSED")
    texts = [item.TextValue for item in items(report) if item.ValueType == "TEXT"]
    assert f"model sha256 {'ab' * 32}" in texts


def test_it_belongs_to_the_study_and_names_the_images(tmp_path: Path) -> None:
    folder = derived(tmp_path, CHECK)
    write_self_check_report(folder, tmp_path / "sr.dcm")
    report = pydicom.dcmread(tmp_path / "sr.dcm")
    image = pydicom.dcmread(folder / "0002.dcm")
    assert report.StudyInstanceUID == image.StudyInstanceUID
    assert report.PatientID == image.PatientID
    assert report.SeriesInstanceUID != image.SeriesInstanceUID
    named = [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in items(report)
             if item.ValueType == "IMAGE"]  # fmt: skip
    assert named == [image.SOPInstanceUID]


def test_it_is_the_same_on_any_day_and_another_for_another_finding(tmp_path: Path) -> None:
    folder = derived(tmp_path, CHECK)
    _, uid = write_self_check_report(folder, tmp_path / "sr.dcm")
    first = (tmp_path / "sr.dcm").read_bytes()
    assert write_self_check_report(folder, tmp_path / "sr.dcm")[1] == uid
    assert (tmp_path / "sr.dcm").read_bytes() == first
    record = json.loads((folder / RECORD).read_text())
    record["self_check"]["failed"] = False
    (folder / RECORD).write_text(json.dumps(record))
    assert write_self_check_report(folder, tmp_path / "other.dcm")[1] != uid
    report = pydicom.dcmread(tmp_path / "sr.dcm")
    assert (report.ContentDate, report.ContentTime) == ("20200203", "111213")


@pytest.mark.parametrize("check", [CHECK, None], ids=["checked", "not checked"])
def test_the_judge_finds_no_error(tmp_path: Path, check: dict[str, Any] | None) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    write_self_check_report(derived(tmp_path, check), tmp_path / "sr.dcm")
    done = subprocess.run(["dciodvfy", str(tmp_path / "sr.dcm")], capture_output=True, text=True)
    wrong = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    # The judge knows no coding schemes but the standard's.
    warned = [line for line in done.stderr.splitlines() if line.startswith("Warning") and "99CONCORDCT" not in line]
    assert (wrong, warned) == ([], [])


def test_a_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConcordctError, match="expected a derived series"):
        write_self_check_report(tmp_path, tmp_path / "sr.dcm")
