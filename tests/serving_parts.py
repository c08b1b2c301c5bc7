"""What the service's tests share: a small model, series with names that must never be seen, an archive that listens."""

from __future__ import annotations

import contextlib
import copy
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import yaml
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import CTImageStorage, StorageCommitmentPushModel, Verification

from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_paths
from concordct.serving.config import load_config
from concordct.serving.service import Service
from concordct.volumes.arrived import TRANSFER_SYNTAXES
from concordct.volumes.new_series import SimulatedScan, write_new_series
from synthetic import pair, volume

#: What a header says of a patient; none of it may be seen outside the objects.
CANARY = {
    "PatientName": "CANARY^ZZNAME",
    "PatientID": "ZZID-4711",
    "PatientBirthDate": "19331224",
    "AccessionNumber": "ZZACC-0815",
    "ReferringPhysicianName": "CANARY^ZZDOCTOR",
    "StudyDescription": "zzstudy of CANARY",
    "SeriesDescription": "zzseries of CANARY",
}
SECRETS = ("CANARY", "ZZNAME", "ZZID-4711", "19331224", "ZZACC", "ZZDOCTOR", "zzstudy", "zzseries")
TOKEN, LOOK, SEND = "operator-token-0123456789", "reader-token-0123456789ab", "sender-token-0123456789ab"


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def dcmtk(name: str) -> str | None:
    """A tool of DCMTK; pynetdicom brings others of the same names into the environment."""
    return shutil.which(name, path="/usr/bin:/usr/local/bin:/opt/homebrew/bin")


def write_model(root: Path) -> Path:
    """A spectral model from Br40 to Bl64, calibrated on six small slices."""
    for kernel, hu in zip(("Br40", "Bl64"), pair(seed=3, size=96), strict=True):
        scan = SimulatedScan("Nobody", "scan", f"Chest {kernel}", 1, 120.0, 100.0)
        write_new_series(volume(hu, kernel=kernel), root / kernel, scan)
    calibrate_pairs(pairs_of_paths(root / "Br40", root / "Bl64"), root / "br40-to-bl64", method="spectral")
    return root / "br40-to-bl64"


def series(*, seed: int = 1, slices: int = 6, kernel: str = "Br40", **tags: Any) -> list[pydicom.FileDataset]:
    """A CT series of its own study, with the canary in its headers."""
    hu = pair(seed=seed, size=96, slices=slices)[0]
    made = []
    for index in range(slices):
        dataset = pydicom.Dataset()
        dataset.update(_header(hu[index], index, seed, kernel))
        for name, value in {**CANARY, **tags}.items():
            setattr(dataset, name, value)
        made.append(_file(dataset))
    return made


def _header(hu: np.ndarray, index: int, seed: int, kernel: str) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": f"1.2.826.0.1.{seed}.3.{index + 1}",
        "StudyInstanceUID": f"1.2.826.0.1.{seed}.1", "SeriesInstanceUID": f"1.2.826.0.1.{seed}.2",
        "FrameOfReferenceUID": f"1.2.826.0.1.{seed}.4", "StudyDate": "20200101", "StudyTime": "101010", "StudyID": "1",
        "Modality": "CT", "Manufacturer": "SIEMENS", "ManufacturerModelName": "SOMATOM", "PatientSex": "O",
        "BodyPartExamined": "CHEST", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "SeriesNumber": 2, "KVP": 120,
        "InstanceNumber": index + 1, "AcquisitionNumber": 1, "ConvolutionKernel": kernel, "SliceThickness": 3,
        "ImagePositionPatient": [0, 0, 3.0 * index], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PositionReferenceIndicator": "", "PatientPosition": "HFS", "PixelSpacing": [0.8, 0.8],
        "Rows": hu.shape[0], "Columns": hu.shape[1], "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1, "RescaleIntercept": 0,
        "RescaleSlope": 1, "RescaleType": "HU", "PixelData": np.rint(hu).astype("<i2").tobytes(),
    }  # fmt: skip
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def _file(dataset: pydicom.Dataset) -> pydicom.FileDataset:
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    made = pydicom.FileDataset("", dataset, file_meta=meta, preamble=b"\0" * 128)
    made.set_original_encoding(False, True)
    return made


def changed(dataset: pydicom.FileDataset, **tags: Any) -> pydicom.FileDataset:
    """A copy with other values."""
    other = copy.deepcopy(dataset)
    for name, value in tags.items():
        setattr(other, name, value)
    return other


class Archive:
    """A DICOM node that takes everything, with storage commitment; `answer` is what it says to C-STORE.

    `received` holds the bytes of every object that came, as often as it came, by SOP Instance UID.
    """

    def __init__(self, *, title: str = "PACS", port: int | None = None, report_to: int | None = None) -> None:
        self.title, self.port = title, port or free_port()
        self.received: dict[str, list[bytes]] = {}
        self.datasets: dict[str, pydicom.Dataset] = {}
        self.answer, self.commits = 0x0000, True
        self.room = 10**6  # objects that it takes before it says that it is full
        self.asked: list[str] = []
        self._report_to = report_to
        self._server: Any = None

    def start(self) -> Archive:
        ae = AE(ae_title=self.title)
        ae.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(context.abstract_syntax, list(TRANSFER_SYNTAXES))
        ae.add_supported_context(StorageCommitmentPushModel)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._commit)]
        self._server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def __enter__(self) -> Archive:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _store(self, event: Any) -> int:
        if len(self.received) >= self.room:
            return 0xA700
        if self.answer == 0x0000:
            uid = str(event.request.AffectedSOPInstanceUID)
            self.received.setdefault(uid, []).append(event.request.DataSet.getvalue())
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            self.datasets[uid] = dataset
        return self.answer

    def _commit(self, event: Any) -> tuple[int, None]:
        asked = event.action_information
        self.asked.append(str(asked.TransactionUID))
        threading.Thread(target=self._report, args=(asked,), daemon=True).start()
        return 0x0000, None

    def _report(self, asked: pydicom.Dataset) -> None:
        """The report on an association of its own, in which the archive is the SCP."""
        from pynetdicom import build_role

        known = [item for item in asked.ReferencedSOPSequence if item.ReferencedSOPInstanceUID in self.received]
        said = pydicom.Dataset()
        said.TransactionUID = asked.TransactionUID
        said.ReferencedSOPSequence = known if self.commits else []
        ae = AE(ae_title=self.title)
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        association = ae.associate(
            "127.0.0.1", self._report_to, [build_context(StorageCommitmentPushModel)], ae_title="CONCORDCT",
            ext_neg=[role],
        )  # fmt: skip
        if association.is_established:
            association.send_n_event_report(
                said, 1 if self.commits else 2, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1"
            )
            association.release()


def settings(folder: Path, model: Path, archive: Archive | None = None, **more: Any) -> dict[str, Any]:
    """A configuration as YAML holds it: one model, one peer, one archive, one rule."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = []
    for name, role, token in (("op", "operator", TOKEN), ("look", "reader", LOOK), ("send", "sender", SEND)):
        (folder / f"token-{name}").write_text(token)
        tokens.append({"name": name, "role": role, "file": f"token-{name}"})
    given: dict[str, Any] = {
        "node": {
            "port": free_port(), "complete_after_s": 0.4, "idle_s": 3,
            "peers": [{"ae_title": "SCANNER", "address": "127.0.0.1", "whole_series": True}],
        },
        "store": {"folder": "store", "keep_free_gb": 0.1, "quota_gb": 1},
        "page": {"port": free_port(), "tokens": tokens},
        "retry_s": 0.1,
        "destinations": [],
        "rules": [{"name": "chest", "model": str(model), "mode": "mean"}],
    }  # fmt: skip
    if archive is not None:
        given["destinations"].append(
            {"name": "pacs", "kind": "dicom", "ae_title": archive.title, "host": "127.0.0.1", "port": archive.port,
             "retry_s": 0.2, "timeout_s": 5}
        )  # fmt: skip
        given["rules"][0]["destinations"] = ["pacs"]
    return given | more


def write_settings(folder: Path, given: dict[str, Any]) -> Path:
    """The YAML file."""
    path = folder / "service.yaml"
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    return path


@contextlib.contextmanager
def serving(folder: Path, given: dict[str, Any]) -> Iterator[Service]:
    """The service at work in this process."""
    service = Service(load_config(write_settings(folder, given)))
    try:
        service.start()
        yield service
    finally:
        service.stop()


def send(
    port: int, datasets: Sequence[pydicom.FileDataset], *, title: str = "SCANNER", called: str = "CONCORDCT"
) -> list[int]:
    """C-STORE of each; the statuses, empty when the association is refused, -1 where no answer came."""
    ae = AE(ae_title=title)
    syntaxes = sorted({str(dataset.file_meta.TransferSyntaxUID) for dataset in datasets})
    classes = sorted({str(dataset.SOPClassUID) for dataset in datasets})
    contexts = [build_context(sop_class, [syntax]) for sop_class in classes for syntax in syntaxes]
    association = ae.associate("127.0.0.1", port, contexts, ae_title=called)
    if not association.is_established:
        return []
    found = []
    for dataset in datasets:
        status = association.send_c_store(dataset)
        found.append(int(status.Status) if status else -1)
    association.release()
    return found


def until(holds: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait until something holds; what it returned."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = holds()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"did not come to hold within {seconds} s")
