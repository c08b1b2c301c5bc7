"""The service's whole way, and every way in which it may go wrong: nothing is lost, nothing stops the others."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="concordct[serve] is not installed")

import pydicom

from concordct.serving.ledger import Entry
from concordct.serving.service import Service
from serving_parts import (
    Archive,
    changed,
    free_port,
    send,
    series,
    serving,
    settings,
    until,
    write_model,
    write_settings,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def archive() -> Iterator[Archive]:
    with Archive() as listening:
        yield listening


@pytest.fixture(scope="module")
def service(model: Path, archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for many tests, with two archives: "pacs" listens, "late" does not yet."""
    folder = tmp_path_factory.mktemp("service")
    given = settings(folder, model, archive)
    late = {**given["destinations"][0], "name": "late", "ae_title": "LATE", "port": free_port(), "commitment": True}
    given["destinations"].append({**late, "commitment_wait_s": 2})
    rule = given["rules"][0]
    given["rules"] = [
        {"name": "kept", "match": {"body_part": ["NECK"]}, "dry_run": True, **{k: rule[k] for k in ("model", "mode")},
         "destinations": ["pacs"]},
        {"name": "passed on", "match": {"body_part": ["HEAD"]}, "action": "forward", "destinations": ["pacs"]},
        {"name": "not wanted", "match": {"body_part": ["FOOT"]}, "action": "drop", "retention": {"sent_h": 0}},
        {"name": "late", "match": {"body_part": ["ABDOMEN"]}, "model": rule["model"], "mode": "mean",
         "destinations": ["late"], "structured_report": False},
        {**rule, "match": {"body_part": ["CHEST"]}},
    ]  # fmt: skip
    with serving(folder, given) as running:
        yield running


def ended(service: Service, slices: list[Any], *states: str, seconds: float = 30) -> Entry:
    """The series, once it is in one of the states."""
    uid = slices[0].SeriesInstanceUID

    def look() -> Entry | None:
        return next((one for one in service.queue.entries() if one.uid == uid and one.state in states), None)

    return until(look, seconds)


def result_of(archive: Archive, slices: list[Any]) -> list[pydicom.Dataset]:
    """What the archive holds in the study of a series."""
    return [one for one in archive.datasets.values() if one.StudyInstanceUID == slices[0].StudyInstanceUID]


def test_a_series_comes_back_standardized_with_its_report(service: Service, archive: Archive) -> None:
    slices = series(seed=1)
    assert send(service.config.node.port, slices) == [0] * 6
    entry = ended(service, slices, "sent")
    found = result_of(archive, slices)
    images = [one for one in found if one.Modality == "CT"]
    reports = [one for one in found if one.Modality == "SR"]
    assert len(images) == 6
    assert len(reports) == 1
    assert {one.PatientID for one in found} == {slices[0].PatientID}
    assert {one.FrameOfReferenceUID for one in images} == {slices[0].FrameOfReferenceUID}
    assert {next(iter(one.ConvolutionKernel)) for one in images} == {"CONCORDCT"}
    assert entry.made["self_check"]["failed"] is False
    assert all(len(archive.received[one.SOPInstanceUID]) == 1 for one in found)
    # What went out is what lies on disk, byte for byte behind the meta header.
    for file, _, uid in entry.made["objects"]:
        data = (service.inbox.results / entry.id / file).read_bytes()
        assert data.endswith(archive.received[uid][0])


@pytest.mark.parametrize(
    ("part", "state", "reason", "sent"),
    [
        ("HEAD", "sent", None, 3),
        ("FOOT", "dropped", "rule", 0),
        ("NECK", "made", "dry run", 0),
        ("ARM", "failed", "no rule matches", 0),
    ],
)
def test_a_rule_decides(
    service: Service, archive: Archive, part: str, state: str, reason: str | None, sent: int
) -> None:
    seed = {"HEAD": 11, "FOOT": 12, "NECK": 13, "ARM": 14}[part]
    slices = series(seed=seed, slices=3, BodyPartExamined=part)
    send(service.config.node.port, slices)
    entry = ended(service, slices, state)
    assert (reason is None and entry.reason is None) or (reason or "") in str(entry.reason)
    found = result_of(archive, slices)
    assert len(found) == sent
    assert {one.SOPInstanceUID for one in found} <= {one.SOPInstanceUID for one in slices}


def test_retention_removes_the_files_and_keeps_the_memory(service: Service) -> None:
    slices = series(seed=12, slices=3, BodyPartExamined="FOOT")
    send(service.config.node.port, slices)
    entry = ended(service, slices, "dropped")
    assert service.inbox.folder(entry.id).exists()
    service.clean()
    assert not service.inbox.folder(entry.id).exists()
    kept = service.queue.entry(entry.id)
    assert kept is not None
    assert kept.removed
    # Nobody loses what failed.
    failed = service.queue.entries(state="failed")
    assert not any(one.removed for one in failed)


def test_a_destination_that_is_down_gets_its_series_when_it_is_back(service: Service) -> None:
    slices = series(seed=21, slices=3, BodyPartExamined="ABDOMEN")
    send(service.config.node.port, slices)
    entry = ended(service, slices, "made")
    delivery = until(lambda: next((one for one in service.queue.deliveries(entry.id) if one.tries >= 2), None))
    assert delivery.reason == "no connection, or association aborted"
    late = next(one for one in service.config.destinations if one.name == "late")
    with Archive(title="LATE", port=late.port, report_to=service.config.node.port) as archive:
        archive.answer = 0xA700
        until(lambda: "0xa700" in str(service.queue.deliveries(entry.id)[0].reason))
        archive.answer, archive.commits = 0, False
        until(lambda: "no commitment to 3 of 3" in str(service.queue.deliveries(entry.id)[0].reason))
        archive.commits = True
        ended(service, slices, "sent")
        assert len(archive.asked) == len(set(archive.asked)) >= 2
        # Sent again, the bytes are the same.
        assert {len(set(copies)) for copies in archive.received.values()} == {1}
        assert max(len(copies) for copies in archive.received.values()) >= 2


def test_a_delivery_that_broke_off_goes_on_where_it_was(service: Service, archive: Archive) -> None:
    slices = series(seed=22, slices=4)
    archive.room = len(archive.received) + 2
    send(service.config.node.port, slices)
    entry = ended(service, slices, "made")
    until(lambda: "object 3 of 5: 0xa700" in str(service.queue.deliveries(entry.id)[0].reason))
    archive.room = 10**6
    ended(service, slices, "sent")
    assert [len(archive.received[one.SOPInstanceUID]) for one in result_of(archive, slices)] == [1] * 5


def test_a_series_that_cannot_be_standardized_is_set_aside_and_stops_nobody(service: Service, archive: Archive) -> None:
    broken = [one for one in series(seed=31) if one.InstanceNumber != 3]
    good = series(seed=32, slices=3)
    send(service.config.node.port, broken)
    send(service.config.node.port, good)
    entry = ended(service, broken, "failed")
    assert entry.tries == service.config.tries
    assert "slices missing" in str(entry.reason)
    assert str(service.config.store.folder) not in str(entry.reason)
    ended(service, good, "sent")
    # The missing slice comes: the series starts over by itself.
    send(service.config.node.port, [one for one in series(seed=31) if one.InstanceNumber == 3])
    assert ended(service, broken, "sent").generation == 2


def test_a_worker_that_is_killed_is_replaced(service: Service) -> None:
    slices = series(seed=33, slices=6)
    worker = service.workers[0]
    pid = worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    send(service.config.node.port, slices)
    ended(service, slices, "sent")
    assert worker.pid != pid


def test_a_series_that_changes_after_it_was_sent_is_made_again(service: Service, archive: Archive) -> None:
    slices = series(seed=41, slices=4)
    send(service.config.node.port, slices[:3])
    first = ended(service, slices, "sent")
    send(service.config.node.port, slices)
    until(lambda: service.queue.entry(first.id).generation == 2)  # type: ignore[union-attr]
    second = ended(service, slices, "sent")
    assert (second.objects, second.made["slices"]) == (4, 4)
    assert not (service.inbox.results / first.id / "1").exists()
    # The same objects once more change nothing.
    send(service.config.node.port, slices)
    assert service.queue.entry(first.id) == second


def test_a_series_that_changes_while_it_runs_is_made_again(service: Service) -> None:
    slices = series(seed=42, slices=4)
    worker = service.workers[0]
    run = worker.run

    def slow(job: Any) -> Any:
        made = run(job)
        if "late" not in said:
            said.append("late")
            assert send(service.config.node.port, slices[3:]) == [0]
        return made

    said: list[str] = []
    worker.run = slow  # type: ignore[method-assign]
    try:
        send(service.config.node.port, slices[:3])
        entry = ended(service, slices, "sent")
    finally:
        worker.run = run  # type: ignore[method-assign]
    assert said == ["late"]
    assert (entry.generation, entry.made["slices"]) == (2, 4)


def test_another_content_under_the_same_uid_is_made_anew(service: Service, archive: Archive) -> None:
    slices = series(seed=43, slices=3)
    send(service.config.node.port, slices)
    first = ended(service, slices, "sent")
    other = changed(slices[1], PixelData=bytes(reversed(slices[1].PixelData)))
    send(service.config.node.port, [other])
    until(lambda: service.queue.entry(first.id).generation == 2)  # type: ignore[union-attr]
    second = ended(service, slices, "sent")
    uids = [{uid for _, _, uid in entry.made["objects"]} for entry in (first, second)]
    assert not uids[0] & uids[1]
    assert len(list(service.inbox.folder(first.id).iterdir())) == 3


def test_a_counted_series_is_complete_when_all_have_come(model: Path, archive: Archive, tmp_path: Path) -> None:
    given = settings(tmp_path, model, rules=[{"name": "drop", "action": "drop"}])
    given["node"] |= {"complete_after_s": 600}
    given["node"]["peers"] = [{"ae_title": "SCANNER", "address": "127.0.0.1"}]
    with serving(tmp_path, given) as service:
        slices = series(seed=51, slices=4, NumberOfSeriesRelatedInstances=4)
        send(service.config.node.port, slices[:3])
        time.sleep(0.3)
        assert service.queue.entries()[0].state == "received"
        send(service.config.node.port, slices[3:])
        ended(service, slices, "dropped", seconds=5)


@pytest.mark.slow
def test_a_service_that_is_ended_leaves_its_work_to_the_next(model: Path, archive: Archive, tmp_path: Path) -> None:
    given = settings(tmp_path, model, archive)
    slices = series(seed=52, slices=3)
    with serving(tmp_path, given) as service:
        send(service.config.node.port, slices)
        until(lambda: service.queue.counts()["running"])
    with serving(tmp_path, given) as service:
        entry = ended(service, slices, "sent")
        assert (entry.deaths, entry.tries, entry.generation) == (0, 0, 1)


# ---- killed ----------------------------------------------------------------------------------------------------------


class Process:
    """The service as the command runs it, to be killed."""

    def __init__(self, folder: Path, given: dict[str, Any]) -> None:
        self.port, self.page = given["node"]["port"], given["page"]["port"]
        self._path = write_settings(folder, given)
        self.log = open(folder / "log", "ab")  # noqa: SIM115
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "concordct.cli", "serve", str(self._path)]
        self._process = subprocess.Popen(command, stderr=self.log, stdout=self.log)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)


def send_until_stored(port: int, slices: list[Any]) -> None:
    """As a scanner does: what was not answered with success is sent again."""

    def stored() -> bool:
        try:
            return send(port, slices) == [0] * len(slices)
        except (RuntimeError, OSError):
            return False

    until(stored, 60)


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_objects(
    service: Service, archive: Archive, model: Path, tmp_path: Path
) -> None:
    everything = [series(seed=60 + index, slices=4) for index in range(1)]
    for slices in everything:
        send(service.config.node.port, slices)
        ended(service, slices, "sent")
    undisturbed = {one.SOPInstanceUID: set(archive.received[one.SOPInstanceUID])
                   for slices in everything for one in result_of(archive, slices)}  # fmt: skip
    dice = random.Random(5)
    with Archive() as other:
        given = settings(tmp_path, model, other)
        given["node"]["complete_after_s"] = 30
        process = Process(tmp_path, given)
        try:
            for slices in everything:
                send_until_stored(process.port, slices)
                time.sleep(dice.uniform(0, 1.5))
                process.kill()
                process.start()
                send_until_stored(process.port, slices)
            until(lambda: set(undisturbed) <= set(other.received), 60)
        finally:
            process.end()
    assert {uid: set(copies) for uid, copies in other.received.items()} == undisturbed
    log = (tmp_path / "log").read_text()
    assert all(json.loads(line) for line in log.splitlines())
