"""Clients of three kinds for the service's benchmark, and the archive that its results go to.

Each client sends a whole series and returns whether every object was answered with success.

    python -m benchmarks.service_clients PORT FILE      # the archive: a line for each object that comes
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import requests
from dicomweb_client.web import DICOMwebClient
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage, EnhancedSRStorage


@dataclass(frozen=True)
class Client:
    """Where the service listens."""

    port: int
    url: str
    token: str


def storescu(client: Client, folder: Path) -> bool:
    """DCMTK's tool, where it is installed; pynetdicom in its place where it is not."""
    tool = shutil.which("storescu", path="/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if tool is None:
        return pynetdicom(client, folder)
    command = [tool, "-aet", "CLIENT", "-aec", "CONCORDCT", "-to", "5", "+sd", "127.0.0.1", str(client.port), folder]
    return subprocess.run(command, capture_output=True).returncode == 0


def pynetdicom(client: Client, folder: Path) -> bool:
    """pynetdicom's own SCU."""
    ae = AE(ae_title="CLIENT")
    ae.add_requested_context(CTImageStorage, pydicom.uid.ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", client.port, ae_title="CONCORDCT")
    if not association.is_established:
        return False
    try:
        for path in sorted(folder.iterdir()):
            status = association.send_c_store(path)
            if not status or status.Status != 0:
                return False
        return True
    except (RuntimeError, ValueError, OSError):
        return False
    finally:
        if association.is_established:
            association.release()


def dicomweb(client: Client, folder: Path) -> bool:
    """dicomweb-client, ten objects a request."""
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {client.token}"
    web = DICOMwebClient(client.url, session=session, timeout=60)
    web.set_http_retry_params(retry=False)
    paths = sorted(folder.iterdir())
    try:
        for start in range(0, len(paths), 10):
            batch = [pydicom.dcmread(path) for path in paths[start : start + 10]]
            answer = web.store_instances(batch)
            if len(answer.get("ReferencedSOPSequence") or ()) != len(batch):
                return False
    except requests.RequestException:
        return False
    return True


def archive(port: int, path: Path) -> None:
    """Take everything, and note UID and digest of each object once it is on disk; until terminated."""
    lock = threading.Lock()
    with open(path, "a") as file:

        def store(event: Any) -> int:
            digest = hashlib.sha256(event.request.DataSet.getbuffer()).hexdigest()
            with lock:
                file.write(json.dumps([str(event.request.AffectedSOPInstanceUID), digest]) + "\n")
                file.flush()
            return 0x0000

        ae = AE(ae_title="PACS")
        for sop_class in (CTImageStorage, EnhancedSRStorage):
            ae.add_supported_context(sop_class, pydicom.uid.ExplicitVRLittleEndian)
        ae.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, store)])


if __name__ == "__main__":
    archive(int(sys.argv[1]), Path(sys.argv[2]))
