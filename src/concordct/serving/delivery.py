"""Sending what was made: C-STORE with storage commitment, or STOW-RS; one thread a destination, patient with each.

An object goes out with the bytes that lie on disk, so that sending it again changes nothing at the destination.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynetdicom import AE, _config, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

from concordct.errors import reason_of
from concordct.serving.commitment import Commitments
from concordct.serving.config import DicomDestination, WebDestination
from concordct.serving.ledger import Delivery, Entry
from concordct.serving.log import say
from concordct.serving.node import PDU_BYTES, client_context
from concordct.serving.queue import Queue
from concordct.volumes.decode import open_dataset
from concordct.volumes.uids import uid_of

#: A STOW-RS request holds so many bytes of objects, or one object.
BATCH_BYTES = 32 * 10**6
#: Successes and warnings of C-STORE: the object is stored (PS3.4 B.2.3).
_STORED = (0x0000, 0xB000, 0xB006, 0xB007)
#: Wait between two looks whether anything is due, s.
_LOOK_S = 0.5


@dataclass(frozen=True)
class Outgoing:
    """One object to be sent."""

    path: Path
    sop_class: str
    uid: str
    syntax: str


class Undelivered(Exception):
    """Why a destination does not have it all; words of ours."""


class Courier(threading.Thread):
    """Brings to one destination whatever is owed to it.

    Parameters
    ----------
    title : the title under which we call.
    objects : what a series' delivery consists of.
    outcome : called with (destination, whether it was delivered).
    """

    def __init__(
        self,
        destination: DicomDestination | WebDestination,
        queue: Queue,
        commitments: Commitments,
        *,
        title: str,
        objects: Callable[[Entry], Sequence[Outgoing]],
        outcome: Callable[[str, bool], None],
    ) -> None:
        super().__init__(name=f"courier {destination.name}", daemon=True)
        self._destination, self._queue, self._commitments = destination, queue, commitments
        self._title, self._objects, self._outcome = title, objects, outcome
        # What the destination has of a delivery that broke off; another service, or a commitment refused, sends it all.
        self._stored: dict[tuple[str, int], set[str]] = {}
        self.ending = threading.Event()

    def run(self) -> None:
        while not self.ending.is_set():
            owed = self._queue.owed(self._destination.name)
            if owed is None:
                with self._queue.changes:
                    self._queue.changes.wait(_LOOK_S)
                continue
            self._bring(*owed)

    def _bring(self, delivery: Delivery, entry: Entry) -> None:
        name, destination = self._destination.name, self._destination
        try:
            objects = self._objects(entry)
            stored = self._stored.setdefault((entry.id, entry.generation), set())
            if isinstance(destination, DicomDestination):
                self._store(destination, objects, delivery, stored)
            else:
                send_to_web(destination, objects, stored)
        except Undelivered as error:
            reason = str(error)
        except Exception as error:
            reason = reason_of(error)
        else:
            self._stored.pop((entry.id, entry.generation), None)
            last = self._queue.delivered(entry, name)
            self._outcome(name, True)
            say("series delivered", series=entry.id, destination=name, objects=len(objects))
            if last:
                say("series sent", series=entry.id, state="sent")
            return
        wait = min(destination.retry_s * 2 ** min(delivery.tries, 30), destination.retry_max_s)
        over = self._queue.undelivered(
            entry, delivery, reason, wait_s=wait, give_up_s=destination.give_up_after_h * 3600
        )
        if over:
            self._stored.pop((entry.id, entry.generation), None)
        self._outcome(name, False)
        say("delivery failed", level="error" if over else "warning", series=entry.id, destination=name, reason=reason,
            tries=delivery.tries + 1, wait_s=None if over else wait)  # fmt: skip

    def _store(
        self, destination: DicomDestination, objects: Sequence[Outgoing], delivery: Delivery, stored: set[str]
    ) -> None:
        transaction = uid_of("commitment", delivery.series, destination.name, delivery.first_at, delivery.tries)
        association = self._associate(destination, objects)
        try:
            for index, one in enumerate(objects):
                if self.ending.is_set():
                    raise Undelivered("the service ends")
                if one.uid in stored:
                    continue
                try:
                    status = association.send_c_store(one.path)
                except (ValueError, RuntimeError, AttributeError):
                    raise Undelivered(f"object {index + 1} of {len(objects)}: not accepted or cut off") from None
                except OSError as error:
                    raise Undelivered(f"object {index + 1} cannot be read: {error.strerror}") from None
                if not status or status.Status not in _STORED:
                    said = f"{status.Status:#06x}" if status else "no answer"
                    raise Undelivered(f"object {index + 1} of {len(objects)}: {said}")
                stored.add(one.uid)
            if destination.commitment:
                refused = self._commitments.ask(association, [(one.sop_class, one.uid) for one in objects], transaction)
                if refused:
                    raise Undelivered(refused)
        finally:
            if association.is_established:
                association.release()
        if destination.commitment:
            wrong = self._commitments.wait(transaction, destination.commitment_wait_s)
            if wrong:
                stored.clear()
                raise Undelivered(wrong)

    def _associate(self, destination: DicomDestination, objects: Sequence[Outgoing]) -> Any:
        # Bytes go out as they lie on disk, in pieces.
        _config.STORE_SEND_CHUNKED_DATASET = True
        ae = AE(ae_title=self._title)
        ae.network_timeout = ae.acse_timeout = ae.dimse_timeout = ae.connection_timeout = destination.timeout_s
        ae.maximum_pdu_size = PDU_BYTES
        pairs = sorted({(one.sop_class, one.syntax) for one in objects})
        contexts = [build_context(sop_class, [syntax]) for sop_class, syntax in pairs]
        if destination.commitment:
            contexts.append(build_context(StorageCommitmentPushModel))
        handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, self._commitments.reported)]
        tls = None if destination.tls is None else (client_context(destination.tls), destination.host)
        association = ae.associate(
            destination.host, destination.port, contexts, ae_title=destination.ae_title, tls_args=tls,
            evt_handlers=handlers,
        )  # fmt: skip
        if association.is_established:
            return association
        if association.is_rejected:
            raise Undelivered("association rejected")
        raise Undelivered("no connection, or association aborted")


def send_to_web(destination: WebDestination, objects: Sequence[Outgoing], stored: set[str]) -> None:
    """STOW-RS in batches, of what is not `stored` yet.

    Raises
    ------
    Undelivered : not reached, refused, or not all objects stored.
    """
    import requests
    from dicomweb_client.web import DICOMwebClient

    session = requests.Session()
    session.verify = True if destination.authority is None else str(destination.authority)
    if destination.file is not None:
        session.headers["Authorization"] = f"Bearer {destination.file.read_text().strip()}"
    client = DICOMwebClient(destination.url, session=session, timeout=destination.timeout_s)
    client.set_http_retry_params(retry=False)
    for batch in _batches([one for one in objects if one.uid not in stored]):
        datasets = [open_dataset(one.path, pixels=True) for one in batch]
        try:
            answer = client.store_instances(datasets)
        except requests.HTTPError as error:
            code = "?" if error.response is None else error.response.status_code
            raise Undelivered(f"STOW-RS answered {code}") from None
        except requests.RequestException as error:
            raise Undelivered(f"STOW-RS: {type(error).__name__}") from None
        failed = len(answer.get("FailedSOPSequence") or ())
        if failed:
            raise Undelivered(f"STOW-RS: {failed} of {len(batch)} objects not stored")
        stored.update(one.uid for one in batch)


def _batches(objects: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    batch: list[Outgoing] = []
    size = 0
    for one in objects:
        own = one.path.stat().st_size
        if batch and size + own > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += own
    if batch:
        yield batch
