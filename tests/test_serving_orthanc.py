"""The example beside Orthanc, with Debian's Orthanc and DCMTK: in by storescu, out and back by Lua and C-STORE."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pynetdicom", reason="concordct[serve] is not installed")

import pydicom
import requests
import yaml
from pydicom.sequence import Sequence

from concordct.serving.config import load_config
from concordct.serving.service import Service
from concordct.volumes.find import find_series
from concordct.volumes.masks import read_regions
from serving_parts import TOKEN, dcmtk, free_port, series, until, write_model

EXAMPLE = Path(__file__).parents[1] / "examples" / "orthanc"
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


class Orthanc:
    """The example's Orthanc, at ports of its own."""

    def __init__(self, folder: Path, node: int) -> None:
        shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
        given = json.loads((folder / "orthanc.json").read_text())
        self.dicom, self.web = free_port(), free_port()
        given |= {"DicomPort": self.dicom, "HttpPort": self.web, "StableAge": 1}
        given["StorageDirectory"] = given["IndexDirectory"] = str(folder / "storage")
        given["LuaScripts"] = [str(folder / "concordct.lua")]
        given["DicomModalities"]["concordct"]["Port"] = node
        (folder / "orthanc.json").write_text(json.dumps(given))
        self._log = open(folder / "log", "wb")  # noqa: SIM115 - as long as Orthanc
        self._process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=self._log, stderr=self._log)
        until(self._answers, 20)

    def _answers(self) -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{self.web}/system", timeout=2).ok
        except requests.RequestException:
            return False

    def get(self, path: str, **query: str) -> Any:
        answer = requests.get(f"http://127.0.0.1:{self.web}{path}", params=query, timeout=10)
        answer.raise_for_status()
        return answer

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        self._log.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Orthanc, Service]]:
    """Orthanc and the service of the example, each knowing the other."""
    if shutil.which("Orthanc") is None or not DICOMWEB.exists() or dcmtk("storescu") is None:
        pytest.skip("Orthanc, its DICOMweb plugin or dcmtk is not installed")
    folder = tmp_path / "service"
    folder.mkdir()
    write_model(folder)
    (folder / "token").write_text(TOKEN)
    given = yaml.safe_load((EXAMPLE / "service.yaml").read_text())
    node, page = free_port(), free_port()
    orthanc = Orthanc(tmp_path / "orthanc", node)
    given["node"]["port"], given["page"]["port"] = node, page
    given["destinations"][0] |= {"port": orthanc.dicom, "retry_s": 0.5}
    (folder / "service.yaml").write_text(yaml.safe_dump(given))
    service = Service(load_config(folder / "service.yaml"))
    try:
        service.start()
        yield orthanc, service
    finally:
        service.stop()
        orthanc.end()


def structure_set(slices: list[pydicom.FileDataset]) -> pydicom.FileDataset:
    """An RTSTRUCT of a square on every slice of a series."""
    first = slices[0]
    dataset = pydicom.Dataset()
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
                 "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):  # fmt: skip
        setattr(dataset, name, first.get(name))
    dataset.SOPClassUID = pydicom.uid.RTStructureSetStorage
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID = "1.2.826.0.1.9.1", "1.2.826.0.1.9.2"
    dataset.Modality, dataset.FrameOfReferenceUID = "RTSTRUCT", first.FrameOfReferenceUID
    roi, contours = pydicom.Dataset(), pydicom.Dataset()
    roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = 1, "square", first.FrameOfReferenceUID
    dataset.StructureSetROISequence = Sequence([roi])
    contours.ReferencedROINumber, contours.ContourSequence = 1, Sequence()
    for one in slices:
        z = float(one.ImagePositionPatient[2])
        contour = pydicom.Dataset()
        contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", 4
        contour.ContourData = [20, 20, z, 44, 20, z, 44, 44, z, 20, 44, z]
        contours.ContourSequence.append(contour)
    dataset.ROIContourSequence = Sequence([contours])
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    made = pydicom.FileDataset("", dataset, file_meta=meta, preamble=b"\0" * 128)
    made.set_original_encoding(False, True)
    return made


@pytest.mark.slow
def test_a_series_comes_back_into_its_study(pair: tuple[Orthanc, Service], tmp_path: Path) -> None:
    orthanc, service = pair
    slices = series(seed=77, slices=4)
    (tmp_path / "out").mkdir()
    for index, one in enumerate([*slices, structure_set(slices)]):
        one.save_as(tmp_path / "out" / f"{index}.dcm", enforce_file_format=True)
    command = [
        dcmtk("storescu"),
        "-aet",
        "SCANNER1",
        "-aec",
        "ORTHANC",
        "+sd",
        "127.0.0.1",
        str(orthanc.dicom),
        tmp_path / "out",
    ]
    subprocess.run(command, check=True, timeout=30)
    until(lambda: service.queue.counts()["sent"], 60)

    # Over DICOMweb: one study with source, structure set, derived series and its report.
    study = slices[0].StudyInstanceUID
    found = orthanc.get(f"/dicom-web/studies/{study}/series").json()
    uids = {one["00080060"]["Value"][0]: [] for one in found}
    for one in found:
        uids[one["00080060"]["Value"][0]].append(one["0020000E"]["Value"][0])
    assert {modality: len(each) for modality, each in uids.items()} == {"CT": 2, "RTSTRUCT": 1, "SR": 1}
    assert len(orthanc.get("/studies").json()) == 1
    (derived,) = [uid for uid in uids["CT"] if uid != slices[0].SeriesInstanceUID]

    # Orthanc committed to what it got, and the derived series did not come to the service again.
    (entry,) = service.queue.entries()
    assert entry.uid == slices[0].SeriesInstanceUID
    assert service.queue.deliveries(entry.id)[0].tries == 0

    # The structure set lies on the derived series as it lay on the source.
    for uid, name in ((derived, "derived"), (slices[0].SeriesInstanceUID, "source")):
        (tmp_path / name).mkdir()
        instances = orthanc.get(f"/dicom-web/studies/{study}/series/{uid}/instances").json()
        for one in instances:
            sop = one["00080018"]["Value"][0]
            (found_at,) = requests.post(
                f"http://127.0.0.1:{orthanc.web}/tools/lookup", data=sop, timeout=5
            ).json()  # fmt: skip
            (tmp_path / name / f"{sop}.dcm").write_bytes(orthanc.get(found_at["Path"] + "/file").content)
    masks = []
    for name in ("source", "derived"):
        (stack,) = find_series(tmp_path / name).series
        (region,) = read_regions(tmp_path / "out" / "4.dcm", affine=stack.affine, shape=stack.shape)
        masks.append(region.mask)
        volume = stack.read()
        if name == "source":
            source_hu = volume.hu
        else:
            assert not np.array_equal(volume.hu, source_hu)
    assert np.array_equal(*masks)
    assert masks[0].sum() > 1000
