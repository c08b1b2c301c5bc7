"""The service's log: one JSON object a line, made of words that we wrote and of fields that cannot name a patient.

Free text of a header, of a request or of a foreign exception never gets here; a series goes by the digest of its UID.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from typing import IO, Literal

from concordct.volumes.decode import plain

#: All fields that a line may hold.
FIELDS = frozenset({
    "series", "generation", "state", "rule", "destination", "reason", "status", "peer", "address", "objects", "slices",
    "seconds", "bytes", "tries", "wait_s", "port", "host", "worker", "role", "workers", "folder", "signal",
})  # fmt: skip

Level = Literal["info", "warning", "error"]
_lock = threading.Lock()
_stream: IO[str] | None = None


def write_to(stream: IO[str] | None) -> None:
    """Where lines go; None for standard error."""
    global _stream
    _stream = stream


def silence_libraries() -> None:
    """pynetdicom and its like quote data sets and addresses in their logs: they say nothing, we say what happened."""
    for name in ("pynetdicom", "pydicom", "dicomweb_client", "urllib3", "uvicorn", "uvicorn.access", "uvicorn.error",
                 "asyncio", "highdicom"):  # fmt: skip
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL + 1)
        logger.propagate = False


def say(event: str, *, level: Level = "info", **fields: str | float | bool | None) -> None:
    """One line.

    Raises
    ------
    ValueError : a field that is not of `FIELDS`.
    """
    unknown = sorted(set(fields) - FIELDS)
    if unknown:
        raise ValueError(f"expected fields of the log, found {', '.join(unknown)}")
    line: dict[str, object] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level}
    line["event"] = event
    for name, value in fields.items():
        if value is not None:
            line[name] = plain(value, 400) if isinstance(value, str) else value
    with _lock:
        print(json.dumps(line), file=_stream or sys.stderr, flush=True)
