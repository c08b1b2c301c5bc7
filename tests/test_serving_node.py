"""The door: who may come in, what is taken, and what everybody else gets."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="concordct[serve] is not installed")

import pydicom
from pydicom.uid import JPEGLSLossless, RLELossless

from concordct.serving import log
from concordct.serving.config import Store
from concordct.serving.inbox import MISMATCH, NO_ROOM, NOT_UNDERSTOOD, SUCCESS, Inbox
from concordct.serving.node import same_host
from concordct.serving.queue import Queue
from concordct.serving.service import Service
from serving_parts import SECRETS, changed, dcmtk, send, series, serving, settings, until, write_settings

RULES = [{"name": "keep", "action": "drop"}]


@pytest.fixture(scope="module")
def lines() -> Iterator[io.StringIO]:
    """Everything the service logs in this file."""
    stream = io.StringIO()
    log.write_to(stream)
    yield stream
    log.write_to(None)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, lines: io.StringIO) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("node")
    given = settings(folder, folder / "none", rules=RULES)
    given["node"] |= {"idle_s": 0.8, "object_mb": 1, "complete_after_s": 60}
    given["node"]["peers"] = [
        {"ae_title": "SCANNER", "address": "127.0.0.1"},
        {"ae_title": "ELSEWHERE", "address": "10.9.8.7"},
    ]
    with serving(folder, given) as running:
        yield running


def port(service: Service) -> int:
    return service.config.node.port


def test_a_listed_peer_is_heard(service: Service) -> None:
    slices = series(seed=1)
    assert send(port(service), slices) == [SUCCESS] * 6
    (entry,) = [one for one in service.queue.entries() if one.uid == slices[0].SeriesInstanceUID]
    assert (entry.state, entry.objects) == ("received", 6)
    kept = sorted(service.inbox.folder(entry.id).iterdir())
    assert {pydicom.dcmread(path).SOPInstanceUID for path in kept} == {one.SOPInstanceUID for one in slices}


@pytest.mark.parametrize(("title", "called"), [("STRANGER", "CONCORDCT"), ("ELSEWHERE", "CONCORDCT"),
                                               ("SCANNER", "SOMEBODY")])  # fmt: skip
def test_everybody_else_is_rejected(service: Service, title: str, called: str) -> None:
    before = service.queue.counts()
    assert send(port(service), series(seed=2), title=title, called=called) == []
    assert service.queue.counts() == before


def test_an_address_that_nobody_has_is_hung_up_on(service: Service) -> None:
    if not Path("/proc/net").exists():
        pytest.skip("127.0.0.2 is an address of this machine on Linux")
    before = service.node.refused
    with socket.create_connection(("127.0.0.1", port(service)), timeout=5, source_address=("127.0.0.2", 0)) as line:
        line.settimeout(1)
        with contextlib.suppress(ConnectionError):
            assert line.recv(10) == b""
    assert service.node.refused == before + 1


def test_an_object_sent_again_is_noted_once(service: Service) -> None:
    slices = series(seed=3, slices=3)
    assert send(port(service), slices + slices) == [SUCCESS] * 6
    entry = next(one for one in service.queue.entries() if one.uid == slices[0].SeriesInstanceUID)
    assert entry.objects == 3
    assert len(list(service.inbox.folder(entry.id).iterdir())) == 3


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_objects_are_kept_as_they_come(service: Service, syntax: pydicom.uid.UID) -> None:
    slices = series(seed=4 if syntax == RLELossless else 5, slices=2)
    for one in slices:
        one.compress(syntax, generate_instance_uid=False)
    assert send(port(service), slices) == [SUCCESS] * 2
    entry = next(one for one in service.queue.entries() if one.uid == slices[0].SeriesInstanceUID)
    assert {stored.syntax for stored in service.queue.objects(entry.id)} == {str(syntax)}


def test_every_transfer_syntax_that_is_read_is_taken(service: Service, shared_data: Path) -> None:
    folder = shared_data / "hostile" / "cornerstone_testImages"
    names = [path for path in sorted(folder.glob("CTImage.dcm_*.dcm"))
             if not any(code in path.name for code in ("4.51", "4.53", "4.55"))]  # fmt: skip
    assert len(names) >= 11
    for path in names:
        dataset = pydicom.dcmread(path)
        dataset.file_meta = pydicom.filereader.read_file_meta_info(path)
        if "PatientName" in dataset and dataset.file_meta.TransferSyntaxUID.is_deflated:
            continue  # pydicom inflates while it reads; the next test sends the file's own bytes
        assert send(port(service), [dataset]) == [SUCCESS], path.name


def test_a_tool_of_another_house_is_heard(service: Service, tmp_path: Path) -> None:
    storescu, echoscu = dcmtk("storescu"), dcmtk("echoscu")
    if storescu is None or echoscu is None:
        pytest.skip("dcmtk is not installed")
    slices = series(seed=6, slices=3)
    for index, one in enumerate(slices):
        one.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    command = [storescu, "-aet", "SCANNER", "-aec", "CONCORDCT", "+sd", "127.0.0.1", str(port(service)), tmp_path]
    subprocess.run(command, check=True, timeout=20)
    entry = next(one for one in service.queue.entries() if one.uid == slices[0].SeriesInstanceUID)
    assert entry.objects == 3
    echo = [echoscu, "-aet", "SCANNER", "-aec", "CONCORDCT", "127.0.0.1", str(port(service))]
    subprocess.run(echo, check=True, timeout=20)


def _answers(service: Service) -> bool:
    return send(port(service), series(seed=1, slices=1)) == [SUCCESS]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">BBI", 1, 0, 2**31) + b"\0" * 64,
        struct.pack(">BBI", 1, 0, 68) + b"\xff" * 68,
        struct.pack(">BBI", 4, 0, 10) + b"\0" * 10,
        b"\0" * 3,
    ],
    ids=["http", "too long", "nonsense", "data without association", "cut short"],
)
def test_a_malformed_pdu_ends_its_own_connection_alone(service: Service, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port(service)), timeout=5) as line:
        line.sendall(data)
        line.settimeout(4)
        answer = b""
        try:
            while piece := line.recv(4096):
                answer += piece
        except ConnectionError:
            pass
    assert not answer or answer[0] in (3, 7)  # A-ASSOCIATE-RJ or A-ABORT
    assert _answers(service)


def test_an_association_that_hangs_is_ended_and_disturbs_nobody(service: Service) -> None:
    from pynetdicom import AE

    ae = AE(ae_title="SCANNER")
    ae.add_requested_context("1.2.840.10008.5.1.4.1.1.2")
    hanging = ae.associate("127.0.0.1", port(service), ae_title="CONCORDCT")
    assert hanging.is_established
    assert _answers(service)
    until(lambda: not hanging.is_established, 6)


def test_an_object_too_large_ends_its_association(service: Service) -> None:
    slices = series(seed=7, slices=1)
    huge = changed(slices[0], PixelData=b"\0" * 3_000_000)
    assert send(port(service), [huge]) == [-1]
    assert _answers(service)


@pytest.mark.parametrize(
    ("tags", "status"),
    [
        ({"PixelData": b"\0" * 1000}, NOT_UNDERSTOOD),
        ({"Rows": 0}, NOT_UNDERSTOOD),
        ({"SeriesInstanceUID": "no uid"}, NOT_UNDERSTOOD),
    ],
    ids=["truncated pixels", "no rows", "no uid"],
)
def test_a_broken_object_is_refused_and_leaves_nothing(service: Service, tags: dict[str, object], status: int) -> None:
    before = service.queue.counts()
    one = series(seed=8, slices=1)[0]
    with pydicom.config.disable_value_validation():
        for name, value in tags.items():
            setattr(one, name, value)
    assert send(port(service), [one]) == [status]
    assert service.queue.counts() == before
    assert list((service.config.store.folder / "aside").iterdir()) == []


# ---- the store itself ------------------------------------------------------------------------------------------------


def inbox(folder: Path, **store: float) -> tuple[Inbox, Queue]:
    folder.mkdir(parents=True, exist_ok=True)
    queue = Queue(folder / "queue.sqlite")
    return Inbox(Store(folder=folder, **store), queue), queue


def data(one: pydicom.FileDataset) -> bytes:
    buffer = io.BytesIO()
    one.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_data_set_is_refused(tmp_path: Path, share: float) -> None:
    box, queue = inbox(tmp_path)
    whole = data(series(slices=1)[0])
    assert box.take(whole[: int(share * len(whole))]).status == NOT_UNDERSTOOD
    assert box.take(whole).status == SUCCESS
    assert sum(queue.counts().values()) == 1


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_a_truncated_codestream_is_refused(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    box, _ = inbox(tmp_path)
    one = series(slices=1)[0]
    one.compress(syntax, generate_instance_uid=False)
    whole = data(one)
    assert box.take(whole[:-600]).status == NOT_UNDERSTOOD
    assert box.take(whole).status == SUCCESS


def test_an_object_of_other_uids_than_announced_is_refused(tmp_path: Path) -> None:
    box, _ = inbox(tmp_path)
    one = series(slices=1)[0]
    assert box.take(data(one), expected=(str(one.SOPClassUID), "1.2.3")).status == MISMATCH


def test_the_quota_refuses_before_the_disk_is_full(tmp_path: Path) -> None:
    slices = series(slices=6)
    size = len(data(slices[0]))
    # Three objects and as many results fit, no fourth.
    box, queue = inbox(tmp_path, quota_gb=7 * size / 1e9, keep_free_gb=0)
    assert [box.take(data(one)).status for one in slices] == [SUCCESS] * 3 + [NO_ROOM] * 3
    assert queue.entries()[0].objects == 3
    assert box.take(data(slices[0])).status == NO_ROOM


def test_what_has_to_stay_free_stays_free(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    box, _ = inbox(tmp_path, keep_free_gb=free / 1e9 + 1)
    assert box.take(data(series(slices=1)[0])).status == NO_ROOM


_FULL = """
import sys, io
sys.path[:0] = [{tests!r}, {source!r}]
from pathlib import Path
from test_serving_node import data, inbox
from serving_parts import series
folder = Path({folder!r})
box, queue = inbox(folder, quota_gb=1, keep_free_gb=0)
box.room_for = lambda size: True
statuses = [box.take(data(one)).status for one in series(slices=40)]
print(statuses.count(0), statuses.count(0xA700), queue.entries()[0].objects,
      sum(1 for _ in (folder / "aside").iterdir()))
"""


@pytest.mark.slow
def test_a_disk_that_is_full_is_answered_with_no_room(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    program = _FULL.format(
        tests=str(Path(__file__).parent), source=str(Path(__file__).parents[1] / "src"), folder=str(tmp_path / "disk")
    )
    (tmp_path / "disk").mkdir()
    script = f"mount -t tmpfs -o size=500k none {tmp_path}/disk || exit 77; {sys.executable} - <<'END'\n{program}\nEND"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no small disk can be mounted here")
    assert done.returncode == 0, done.stderr
    stored, refused, noted, aside = map(int, done.stdout.split())
    assert stored > 0
    assert refused > 0
    assert stored + refused == 40
    assert (noted, aside) == (stored, 0)


def test_files_that_nobody_was_promised_are_cleared(tmp_path: Path) -> None:
    box, queue = inbox(tmp_path)
    one, other = series(slices=2)
    answer = box.take(data(one))
    (box.folder(str(answer.series)) / "left.dcm").write_bytes(data(other))
    (tmp_path / "aside" / "left.dcm").write_bytes(b"x")
    box.clear_leftovers()
    assert len(list(box.folder(str(answer.series)).iterdir())) == 1
    assert list((tmp_path / "aside").iterdir()) == []
    assert queue.entries()[0].objects == 1


def test_hosts_are_addresses_networks_or_names() -> None:
    assert same_host("10.0.0.0/24", "10.0.0.9")
    assert not same_host("10.0.0.0/24", "10.0.1.9")
    assert same_host("localhost", "127.0.0.1")
    assert not same_host("127.0.0.1", "127.0.0.2")
    assert not same_host("no.such.host.invalid", "127.0.0.1")


def test_one_service_holds_a_store(service: Service) -> None:
    from concordct.errors import ConcordctError
    from concordct.serving.service import hold

    with pytest.raises(ConcordctError, match="found one in use"):
        hold(service.config.store.folder / "lock", wait_s=0.2)


def test_the_log_says_what_happened_and_nobodys_name(service: Service, lines: io.StringIO) -> None:
    written = lines.getvalue()
    events = [json.loads(line)["event"] for line in written.splitlines()]
    assert {"listening", "association refused", "object refused"} <= set(events)
    assert not [secret for secret in SECRETS if secret in written]
    assert "STRANGER" not in written
    with pytest.raises(ValueError, match="patient"):
        log.say("x", patient="y")


def test_without_the_extra_the_command_says_what_is_missing(tmp_path: Path) -> None:
    write_settings(tmp_path, settings(tmp_path, tmp_path))
    code = (
        "import sys; sys.modules['pynetdicom'] = None\n"
        "sys.argv = ['concordct', 'serve', sys.argv[1]]\n"
        "from concordct.cli import main\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "service.yaml")], capture_output=True, text=True)
    assert done.returncode == 2
    assert "expected concordct[serve], found no module pynetdicom" in done.stderr


def test_the_plain_tool_imports_nothing_of_the_service() -> None:
    heavy = ("pynetdicom", "starlette", "uvicorn", "prometheus_client", "dicomweb_client", "highdicom", "sqlite3")
    code = f"import sys, concordct.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def certificate(folder: Path, name: str, issuer: Path | None = None) -> Path:
    """A key and certificate by openssl, in one PEM; signed by itself without an issuer."""
    key, pem = folder / f"{name}.key", folder / f"{name}.pem"
    subject = ["-newkey", "rsa:2048", "-nodes", "-keyout", key, "-subj", f"/CN={name}", "-days", "2"]
    subject += ["-addext", "subjectAltName=IP:127.0.0.1"]
    signed = [] if issuer is None else ["-CA", issuer, "-CAkey", issuer.with_suffix(".key")]
    subprocess.run(["openssl", "req", "-x509", *subject, *signed, "-out", pem], check=True, capture_output=True)
    return pem


def test_tls_asks_for_the_peers_certificate_and_waits_for_nobody(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    from pynetdicom import AE

    from concordct.serving.config import Tls
    from concordct.serving.node import client_context

    authority, stranger = certificate(tmp_path, "authority"), certificate(tmp_path, "stranger")
    given = settings(tmp_path, tmp_path, rules=RULES)
    given["node"]["tls"] = {"certificate": "authority.pem", "key": "authority.key", "authority": "authority.pem"}
    with serving(tmp_path, given) as service:
        ae = AE(ae_title="SCANNER")
        ae.add_requested_context("1.2.840.10008.1.1")

        def established(own: Path | None) -> bool:
            tls = None
            if own is not None:
                context = client_context(Tls(certificate=own, key=own.with_suffix(".key"), authority=authority))
                tls = (context, "127.0.0.1")
            association = ae.associate("127.0.0.1", port(service), ae_title="CONCORDCT", tls_args=tls)
            found = association.is_established
            if found:
                association.release()
            return bool(found)

        # One that never says hello does not keep the others waiting.
        with socket.create_connection(("127.0.0.1", port(service))):
            assert established(authority)
        assert not established(stranger)
        assert not established(None)
