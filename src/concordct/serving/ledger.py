"""The service's memory, read: one SQLite file that holds every series, its objects and its deliveries.

`queue.py` writes it.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["received", "complete", "running", "made", "sent", "failed", "dropped"]
STATES: tuple[State, ...] = ("received", "complete", "running", "made", "sent", "failed", "dropped")
#: Nothing more happens to these by itself.
ENDED: tuple[State, ...] = ("sent", "failed", "dropped")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS series (
  id TEXT PRIMARY KEY, uid TEXT NOT NULL, state TEXT NOT NULL, generation INTEGER NOT NULL DEFAULT 1,
  changed INTEGER NOT NULL DEFAULT 0, reason TEXT, rule TEXT, stated INTEGER,
  first_at REAL NOT NULL, last_at REAL NOT NULL, ended_at REAL, next_at REAL NOT NULL DEFAULT 0,
  tries INTEGER NOT NULL DEFAULT 0, deaths INTEGER NOT NULL DEFAULT 0, seconds REAL,
  facts TEXT NOT NULL DEFAULT '{}', made TEXT NOT NULL DEFAULT '{}', made_bytes INTEGER NOT NULL DEFAULT 0,
  removed INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS objects (
  series TEXT NOT NULL, uid TEXT NOT NULL, sop_class TEXT NOT NULL, syntax TEXT NOT NULL, file TEXT NOT NULL,
  sha256 TEXT NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY (series, uid));
CREATE TABLE IF NOT EXISTS deliveries (
  series TEXT NOT NULL, destination TEXT NOT NULL, state TEXT NOT NULL, tries INTEGER NOT NULL DEFAULT 0,
  first_at REAL NOT NULL, next_at REAL NOT NULL, reason TEXT, PRIMARY KEY (series, destination));
CREATE INDEX IF NOT EXISTS by_state ON series (state);
"""


@dataclass(frozen=True)
class Entry:
    """One series. `made` is what the run said of its results; `facts` what its header said, without free text."""

    id: str
    uid: str
    state: State
    generation: int
    reason: str | None
    rule: str | None
    stated: int | None
    first_at: float
    last_at: float
    ended_at: float | None
    tries: int
    deaths: int
    seconds: float | None
    facts: Mapping[str, Any]
    made: Mapping[str, Any]
    removed: bool
    objects: int
    bytes: int


@dataclass(frozen=True)
class Stored:
    """One arrived object."""

    uid: str
    sop_class: str
    syntax: str
    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Delivery:
    """A series owed to a destination."""

    series: str
    destination: str
    state: Literal["waiting", "sent", "failed"]
    tries: int
    first_at: float
    next_at: float
    reason: str | None


class Ledger:
    """The file, its lock and what can be asked of it."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._base.row_factory = sqlite3.Row
        self._base.execute("PRAGMA journal_mode=WAL")
        # In WAL mode NORMAL may lose the last commits with the power; FULL does not.
        self._base.execute("PRAGMA synchronous=FULL")
        self._base.executescript(_SCHEMA)
        self.changes = threading.Condition(self._lock)
        self.version = 0

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._base.close()

    def known(self, series: str, uid: str) -> Stored | None:
        """The object of that UID, if it has arrived."""
        with self._lock:
            row = self._base.execute("SELECT * FROM objects WHERE series=? AND uid=?", (series, uid)).fetchone()
        return None if row is None else _stored(row)

    def owed(self, destination: str) -> tuple[Delivery, Entry] | None:
        """The delivery to that destination which is due and has waited longest."""
        with self._lock:
            row = self._base.execute(
                "SELECT * FROM deliveries WHERE destination=? AND state='waiting' AND next_at<=? ORDER BY next_at "
                "LIMIT 1",
                (destination, time.time()),
            ).fetchone()
            if row is None:
                return None
            entry = self.entry(row["series"])
            return None if entry is None else (Delivery(**dict(row)), entry)

    def entry(self, series: str) -> Entry | None:
        """One series."""
        found = self._entries("WHERE id=?", (series,))
        return found[0] if found else None

    def entries(self, *, state: State | None = None, limit: int = 500) -> list[Entry]:
        """Series, the latest first."""
        where, values = ("WHERE state=?", (state,)) if state else ("", ())
        return self._entries(f"{where} ORDER BY last_at DESC LIMIT {int(limit)}", values)

    def overdue(self, now: float) -> list[Entry]:
        """Ended series whose files are still there, the oldest first."""
        return self._entries("WHERE removed=0 AND ended_at IS NOT NULL AND ended_at<=? ORDER BY ended_at", (now,))

    def _entries(self, tail: str, values: tuple[Any, ...]) -> list[Entry]:
        with self._lock:
            rows = self._base.execute(
                "SELECT id, uid, state, generation, reason, rule, stated, first_at, last_at, ended_at, tries, deaths, "
                "seconds, facts, made, removed, (SELECT COUNT(*) FROM objects WHERE series=id) AS objects, "
                f"(SELECT COALESCE(SUM(bytes), 0) FROM objects WHERE series=id) AS bytes FROM series {tail}",
                values,
            ).fetchall()
        return [
            Entry(**{
                **dict(row), "facts": json.loads(row["facts"]), "made": json.loads(row["made"]),
                "removed": bool(row["removed"]),
            })
            for row in rows
        ]  # fmt: skip

    def objects(self, series: str) -> list[Stored]:
        """The arrived objects of a series, in order of UID."""
        with self._lock:
            rows = self._base.execute("SELECT * FROM objects WHERE series=? ORDER BY uid", (series,)).fetchall()
        return [_stored(row) for row in rows]

    def deliveries(self, series: str) -> list[Delivery]:
        """What of a series is owed to whom, and what was sent."""
        with self._lock:
            rows = self._base.execute("SELECT * FROM deliveries WHERE series=? ORDER BY destination", (series,))
            return [Delivery(**dict(row)) for row in rows.fetchall()]

    def counts(self) -> dict[State, int]:
        """How many series there are in each state."""
        with self._lock:
            rows = self._base.execute("SELECT state, COUNT(*) FROM series GROUP BY state").fetchall()
        found = {row[0]: row[1] for row in rows}
        return {state: found.get(state, 0) for state in STATES}

    def bytes_used(self) -> int:
        """What lies on disk, and what the results of series not yet made will take: as much as their source."""
        with self._lock:
            arrived, pending, made = self._base.execute(
                "SELECT (SELECT COALESCE(SUM(bytes), 0) FROM objects),"
                " (SELECT COALESCE(SUM(bytes), 0) FROM objects JOIN series ON id=series"
                "  WHERE state IN ('received', 'complete', 'running')),"
                " (SELECT COALESCE(SUM(made_bytes), 0) FROM series)"
            ).fetchone()
        return int(arrived + pending + made)


def _stored(row: sqlite3.Row) -> Stored:
    return Stored(row["uid"], row["sop_class"], row["syntax"], row["file"], row["sha256"], row["bytes"])
