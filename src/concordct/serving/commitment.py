"""Storage commitment as its user (PS3.4 annex J): ask a destination to vouch for what it was sent, wait for its word.

The word may come on the association that asked, or on one that the destination opens to our node later.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from concordct.volumes.arrived import references

#: The association that asked stays open so long for an answer on it.
ON_THE_SAME_S = 3.0
_REQUEST = 1
_SUCCESS, _NO_SUCH_ACTION = 0x0000, 0x0123


@dataclass
class _Transaction:
    asked: frozenset[str]
    done: threading.Event
    committed: frozenset[str] = frozenset()


class Commitments:
    """The transactions that wait for their report."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, _Transaction] = {}

    def reported(self, event: Any) -> tuple[int, None]:
        """Handler of N-EVENT-REPORT; a report on a transaction that nobody waits for is taken and forgotten."""
        if event.event_type not in (1, 2):
            return _NO_SUCH_ACTION, None
        said = event.event_information
        with self._lock:
            transaction = self._waiting.get(str(said.get("TransactionUID")))
        if transaction is not None:
            sequence = said.get("ReferencedSOPSequence") or ()
            transaction.committed = frozenset(str(item.ReferencedSOPInstanceUID) for item in sequence)
            transaction.done.set()
        return _SUCCESS, None

    def ask(self, association: Any, instances: Sequence[tuple[str, str]], transaction_uid: str) -> str | None:
        """Send the request. Returns why it was not accepted; None when it was, and `wait` may follow."""
        with self._lock:
            asked = frozenset(uid for _, uid in instances)
            self._waiting[transaction_uid] = _Transaction(asked, threading.Event())
        request = references(instances, transaction_uid=transaction_uid)
        status, _ = association.send_n_action(
            request, _REQUEST, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        if not status or status.Status != _SUCCESS:
            self._end(transaction_uid)
            return f"commitment refused ({status.Status:#06x})" if status else "no answer to the commitment request"
        self._waiting[transaction_uid].done.wait(ON_THE_SAME_S)
        return None

    def wait(self, transaction_uid: str, seconds: float) -> str | None:
        """Wait for the report. Returns what is wrong; None when everything is committed to."""
        transaction = self._waiting[transaction_uid]
        try:
            if not transaction.done.wait(seconds):
                return "no commitment report came in time"
            missing = len(transaction.asked - transaction.committed)
            return f"no commitment to {missing} of {len(transaction.asked)} objects" if missing else None
        finally:
            self._end(transaction_uid)

    def _end(self, transaction_uid: str) -> None:
        with self._lock:
            self._waiting.pop(transaction_uid, None)
