"""The page: nothing without a token, nothing changed by a reader or from elsewhere, nobody's name anywhere."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="concordct[serve] is not installed")

import requests
from dicomweb_client.web import DICOMwebClient

from chromium import chromium, find_chromium
from concordct.serving import access, log
from concordct.serving.access import Access
from concordct.serving.config import Page, Token
from concordct.serving.service import Service
from serving_parts import (
    LOOK,
    SECRETS,
    SEND,
    TOKEN,
    send,
    series,
    serving,
    settings,
    until,
    write_model,
)

GONE = series(seed=2, slices=3, BodyPartExamined="ARM")


@pytest.fixture(scope="module")
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    log.write_to(stream)
    yield stream
    log.write_to(None)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, lines: io.StringIO) -> Iterator[Service]:
    """A service with one series sent over DICOMweb to another service, and one that failed."""
    root = tmp_path_factory.mktemp("page")
    model = write_model(root / "model")
    other = settings(root / "other", model, rules=[{"name": "keep", "action": "drop"}])
    given = settings(root / "one", model)
    (root / "one" / "sender").write_text(SEND)
    url = f"http://127.0.0.1:{other['page']['port']}/dicom-web"
    given["destinations"] = [{"name": "archive", "kind": "dicomweb", "url": url, "file": "sender", "retry_s": 0.2}]
    given["rules"][0] |= {"destinations": ["archive"], "match": {"body_part": ["CHEST"]}, "structured_report": False}
    with serving(root / "other", other) as archive, serving(root / "one", given) as running:
        send(running.config.node.port, series(seed=1))
        send(running.config.node.port, GONE)
        until(lambda: running.queue.counts()["sent"] == running.queue.counts()["failed"] == 1)
        assert sum(one.objects for one in archive.queue.entries()) == 6
        yield running


def address(service: Service, path: str = "/") -> str:
    assert service.config.page is not None
    return f"http://127.0.0.1:{service.config.page.port}{path}"


def logged_in(service: Service, token: str) -> tuple[requests.Session, str]:
    """A session of the page and its secret."""
    session = requests.Session()
    origin = {"Origin": address(service).rstrip("/")}
    answer = session.post(address(service, "/login"), data={"token": token}, headers=origin, timeout=5)
    assert answer.status_code == 200
    found = re.search(r'data-secret="([^"]+)"', answer.text)
    assert found is not None
    return session, found.group(1)


def of(service: Service, state: str) -> str:
    return next(one.id for one in service.queue.entries() if one.state == state)


def test_results_go_out_over_dicomweb(service: Service) -> None:
    entry = service.queue.entry(of(service, "sent"))
    assert entry is not None
    assert [one.state for one in service.queue.deliveries(entry.id)] == ["sent"]


@pytest.mark.parametrize("path", ["/", "/events", "/metrics", "/series/{}/view", "/nowhere", "/assets/../page.py",
                                  "/assets/page.html.j2", "/docs", "/openapi.json"])  # fmt: skip
def test_without_a_token_there_is_nothing(service: Service, path: str) -> None:
    answer = requests.get(address(service, path.format(of(service, "sent"))), timeout=5)
    for entry in service.queue.entries():
        assert entry.id not in answer.text
        assert entry.uid not in answer.text
    assert "chest" not in answer.text
    assert path == "/" or answer.status_code in (401, 403, 404)


@pytest.mark.parametrize("path", ["/series/{}/requeue", "/dicom-web/studies", "/logout"])
def test_without_a_token_nothing_changes(service: Service, path: str) -> None:
    series_id = of(service, "failed")
    answer = requests.post(address(service, path.format(series_id)), timeout=5)
    assert answer.status_code in (401, 403)
    entry = service.queue.entry(series_id)
    assert entry is not None
    assert (entry.state, entry.generation) == ("failed", 1)


def test_a_wrong_token_opens_nothing(service: Service) -> None:
    origin = {"Origin": address(service).rstrip("/")}
    for token in ("", "wrong", TOKEN[:-1], SEND):
        answer = requests.post(address(service, "/login"), data={"token": token}, headers=origin, timeout=5)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers


def test_tokens_cannot_be_tried_without_end(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    guarded = Access(Page(tokens=(Token(name="a", role="reader", file=tmp_path / "token"),)))
    assert guarded.role_of(TOKEN) == ("a", "reader")
    assert all(guarded.role_of(f"guess {index}") is None for index in range(access.TRIES))
    assert guarded.role_of(TOKEN) is None


def test_a_reader_looks_and_changes_nothing(service: Service) -> None:
    session, secret = logged_in(service, LOOK)
    assert of(service, "sent") in session.get(address(service), timeout=5).text
    headers = {"Origin": address(service).rstrip("/")}
    url = address(service, f"/series/{of(service, 'failed')}/requeue")
    assert session.post(url, data={"secret": secret}, headers=headers, timeout=5).status_code == 403


def test_a_request_from_elsewhere_changes_nothing(service: Service) -> None:
    session, secret = logged_in(service, TOKEN)
    ours = address(service).rstrip("/")
    url = address(service, f"/series/{of(service, 'failed')}/requeue")
    for origin, given in ((None, secret), ("http://evil.example", secret), (ours, ""), (ours, secret[:-1]),
                          ("null", secret)):  # fmt: skip
        headers = {} if origin is None else {"Origin": origin}
        assert session.post(url, data={"secret": given}, headers=headers, timeout=5).status_code == 403
    cookie = next(iter(session.cookies))
    assert cookie.name == access.COOKIE
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite") == "strict"


def test_an_operator_runs_a_series_again(service: Service) -> None:
    session, secret = logged_in(service, TOKEN)
    series_id = of(service, "failed")
    headers = {"Origin": address(service).rstrip("/")}
    url = address(service, f"/series/{series_id}/requeue")
    assert session.post(url, data={"secret": secret}, headers=headers, timeout=5).status_code == 200
    entry = until(lambda: next((one for one in service.queue.entries(state="failed") if one.generation == 2), None))
    assert entry.id == series_id
    session.post(address(service, "/logout"), data={"secret": secret}, headers=headers, timeout=5)
    assert session.get(address(service, "/events"), timeout=5).status_code == 403


def test_every_answer_forbids_what_is_not_ours(service: Service) -> None:
    session, _ = logged_in(service, LOOK)
    for path in ("/", "/assets/service.js", "/healthz", "/nowhere", f"/series/{of(service, 'sent')}/view"):
        answer = session.get(address(service, path), timeout=20)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_metrics_and_health_are_for_machines(service: Service) -> None:
    text = requests.get(address(service, "/metrics"), headers={"Authorization": f"Bearer {LOOK}"}, timeout=5).text
    assert 'concordct_series{state="sent"} 1.0' in text
    assert 'concordct_objects_total{status="0x0000"} 9.0' in text
    assert 'concordct_deliveries_total{destination="archive",outcome="delivered"} 1.0' in text
    assert "concordct_standardize_seconds_count 1.0" in text
    health = requests.get(address(service, "/healthz"), timeout=5)
    assert (health.status_code, health.json()) == (200, {"healthy": True})


def test_news_come_as_they_happen(service: Service) -> None:
    session, _ = logged_in(service, LOOK)
    with session.get(address(service, "/events"), stream=True, timeout=10) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        news = (line for line in answer.iter_lines(decode_unicode=True) if line.startswith("data: "))
        before = json.loads(next(news).removeprefix("data: "))
        send(service.config.node.port, series(seed=9, slices=1, BodyPartExamined="ARM"))
        after = json.loads(next(news).removeprefix("data: "))
    assert len(after["series"]) == len(before["series"]) + 1


# ---- the door for DICOMweb -------------------------------------------------------------------------------------------


def test_a_web_client_stores_and_is_told(service: Service) -> None:
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {SEND}"
    client = DICOMwebClient(address(service, "/dicom-web"), session=session)
    slices = series(seed=3, slices=3, BodyPartExamined="ARM")
    answer = client.store_instances(slices)
    stored = {item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence}
    assert stored == {one.SOPInstanceUID for one in slices}
    entry = next(one for one in service.queue.entries() if one.uid == slices[0].SeriesInstanceUID)
    # The same objects over C-STORE are the same objects.
    send(service.config.node.port, slices)
    again = service.queue.entry(entry.id)
    assert again is not None
    assert (again.objects, again.generation) == (3, entry.generation)


def _post(service: Service, body: bytes, kind: str, token: str = SEND) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
    return requests.post(address(service, "/dicom-web/studies"), data=body, headers=headers, timeout=5)


def test_what_is_no_object_is_refused_by_item(service: Service) -> None:
    kind = 'multipart/related; type="application/dicom"; boundary=b'
    buffer = io.BytesIO()
    series(seed=3, slices=1, BodyPartExamined="ARM")[0].save_as(buffer, enforce_file_format=True)

    def parts(*bodies: bytes) -> bytes:
        head = b"--b\r\nContent-Type: application/dicom\r\n\r\n"
        return b"".join(head + body + b"\r\n" for body in bodies) + b"--b--\r\n"

    assert _post(service, parts(buffer.getvalue()), kind).status_code == 200
    mixed = _post(service, parts(buffer.getvalue(), b"no dicom"), kind)
    assert mixed.status_code == 202
    assert mixed.json()["00081198"]["Value"][0]["00081197"]["Value"] == [0xC000]
    assert _post(service, parts(b"no dicom"), kind).status_code == 409
    assert _post(service, b"x", kind).status_code == 400
    assert _post(service, b"x", "application/dicom").status_code == 415
    assert _post(service, parts(buffer.getvalue()), kind, token=LOOK).status_code == 401


# ---- in a browser ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_operator_watches_looks_and_requeues(service: Service, lines: io.StringIO, tmp_path: Path) -> None:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium found")
    with chromium(executable) as page:
        page.call("Page.navigate", url=address(service))
        page.wait("document.getElementById('token') !== null")
        assert page.run("document.title") == "Log in"
        page.run(f"document.getElementById('token').value = '{TOKEN}'; document.forms[0].submit(); true")
        page.wait("document.getElementById('live') && document.getElementById('live').textContent === 'live'")
        shown = page.run("document.querySelectorAll('#series tr').length")
        assert shown == len(service.queue.entries())
        page.run("document.querySelector('[data-filter=\"sent\"]').click(); true")
        assert page.run("document.querySelectorAll('#series tr').length") == 1
        # A series that comes in appears by itself.
        page.run("document.querySelector('[data-filter=\"all\"]').click(); true")
        send(service.config.node.port, series(seed=8, slices=1, BodyPartExamined="ARM"))
        page.wait(f"document.querySelectorAll('#series tr').length === {shown} + 1")
        failed = next(one for one in service.queue.entries(state="failed") if one.uid == GONE[0].SeriesInstanceUID)
        page.run(f"document.querySelector('[data-series=\"{failed.id}\"] form button').click(); true")
        until(lambda: service.queue.entry(failed.id).generation > failed.generation)  # type: ignore[union-attr]
        page.call("Page.navigate", url=address(service, f"/series/{of(service, 'sent')}/view"))
        page.wait("document.querySelectorAll('.pane canvas').length >= 3")
        page.wait("document.getElementById('where').textContent !== ''")
        pixels = "document.querySelector('.pane canvas').getContext('2d').getImageData(40, 40, 9, 9).data"
        assert page.run(f"new Promise((done) => setTimeout(() => done({pixels}.some(v => v)), 500))")
        assert not [secret for secret in SECRETS if secret in page.run("document.documentElement.outerHTML")]
        assert not [secret for secret in SECRETS if secret in page.run("document.title")]
        assert not page.messages
        ours = address(service)
        assert all(url.startswith((ours, "about:", "data:", "blob:")) for url in page.requests)


def test_nobodys_name_was_said(service: Service, lines: io.StringIO) -> None:
    session, _ = logged_in(service, LOOK)
    bearer = {"Authorization": f"Bearer {LOOK}"}
    said = lines.getvalue() + session.get(address(service), timeout=5).text
    said += session.get(address(service, f"/series/{of(service, 'sent')}/view"), timeout=20).text
    said += requests.get(address(service, "/metrics"), headers=bearer, timeout=5).text
    assert not [secret for secret in SECRETS if secret in said]
    assert "series sent" in said
