"""What has arrived, what became of it and what is still owed to whom: every change is on disk when its method returns.

A series goes received, complete, running, made, sent. It ends as sent, failed or dropped, each with its reason;
whatever arrives for a series after it was complete makes a new generation of it and starts it over. Nothing here knows
DICOM.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from concordct.serving.ledger import ENDED, Delivery, Entry, Ledger, State, Stored

#: A series that was running each time that the service died is set aside after so many times its tries.
DEATHS_PER_TRY = 5


class Queue(Ledger):
    """The ledger with all that changes it; every method is one transaction."""

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield self._base
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")
            self.version += 1
            self.changes.notify_all()

    # ---- arrival ---------------------------------------------------------------------------------------------------

    def arrive(self, series: str, series_uid: str, stored: Stored, *, stated: int | None) -> str | None:
        """Note an object that is on disk; the same content again changes nothing but the time.

        Returns
        -------
        The file that it replaces, which nobody needs any more.
        """
        now = time.time()
        with self._change() as base:
            row = base.execute("SELECT state, removed FROM series WHERE id=?", (series,)).fetchone()
            if row is None:
                base.execute(
                    "INSERT INTO series (id, uid, state, first_at, last_at) VALUES (?,?,'received',?,?)",
                    (series, series_uid, now, now),
                )
            before = base.execute(
                "SELECT file, sha256 FROM objects WHERE series=? AND uid=?", (series, stored.uid)
            ).fetchone()
            if before is not None and before["sha256"] == stored.sha256:
                base.execute("UPDATE series SET last_at=? WHERE id=? AND state='received'", (now, series))
                return stored.file if stored.file != before["file"] else None
            base.execute(
                "INSERT OR REPLACE INTO objects VALUES (?,?,?,?,?,?,?)",
                (series, stored.uid, stored.sop_class, stored.syntax, stored.file, stored.sha256, stored.bytes),
            )
            base.execute(
                "UPDATE series SET last_at=?, stated=COALESCE(?, stated), removed=0 WHERE id=?", (now, stated, series)
            )
            if row is not None and row["state"] == "running":
                base.execute("UPDATE series SET changed=1 WHERE id=?", (series,))
            elif row is not None and row["state"] != "received":
                self._restart(base, series, now)
            return None if before is None or before["file"] == stored.file else str(before["file"])

    @staticmethod
    def _restart(base: sqlite3.Connection, series: str, now: float) -> None:
        base.execute(
            "UPDATE series SET state='received', generation=generation+1, changed=0, tries=0, deaths=0, reason=NULL, "
            "rule=NULL, ended_at=NULL, next_at=0, last_at=?, made='{}', made_bytes=0 WHERE id=?",
            (now, series),
        )
        base.execute("DELETE FROM deliveries WHERE series=?", (series,))

    def settle(self, quiet_s: float) -> list[str]:
        """Series for which nothing came for so long are complete."""
        with self._lock:
            ids = [
                row["id"]
                for row in self._base.execute(
                    "SELECT id FROM series WHERE state='received' AND last_at<=?", (time.time() - quiet_s,)
                )
            ]
            if ids:
                with self._change() as base:
                    base.executemany("UPDATE series SET state='complete' WHERE id=?", [(each,) for each in ids])
        return ids

    def association_ended(self, series: Iterable[str], *, whole: bool) -> list[str]:
        """An association was released: what it brought is complete where the sender promises so, or where the objects
        say how many there are and all have come."""
        done: list[str] = []
        brought = list(series)
        if not brought:
            return done
        with self._change() as base:
            for each in brought:
                row = base.execute(
                    "SELECT state, stated, (SELECT COUNT(*) FROM objects WHERE series=id) AS objects "
                    "FROM series WHERE id=?",
                    (each,),
                ).fetchone()
                counted = row is not None and row["stated"] is not None and row["objects"] >= row["stated"]
                if row is not None and row["state"] == "received" and (whole or counted):
                    base.execute("UPDATE series SET state='complete' WHERE id=?", (each,))
                    done.append(each)
        return done

    # ---- work ------------------------------------------------------------------------------------------------------

    def claim(self) -> Entry | None:
        """The complete series that waited longest, now running; None when none waits. One that made trouble before
        waits behind all others."""
        if not self.counts()["complete"]:
            return None
        with self._change() as base:
            row = base.execute(
                "SELECT id FROM series WHERE state='complete' AND next_at<=? ORDER BY deaths, tries, last_at LIMIT 1",
                (time.time(),),
            ).fetchone()
            if row is None:
                return None
            base.execute("UPDATE series SET state='running', changed=0 WHERE id=?", (row["id"],))
            return self.entry(row["id"])

    def finish(
        self,
        entry: Entry,
        state: State,
        *,
        rule: str | None = None,
        reason: str | None = None,
        facts: Mapping[str, Any] | None = None,
        made: Mapping[str, Any] | None = None,
        made_bytes: int = 0,
        seconds: float | None = None,
        owed: Sequence[str] = (),
    ) -> bool:
        """What became of a claimed series, with the destinations that it is owed to.

        Returns
        -------
        False when the series changed while it ran: then it is received again, and nothing else is noted.
        """
        now = time.time()
        with self._change() as base:
            row = base.execute("SELECT state, generation, changed FROM series WHERE id=?", (entry.id,)).fetchone()
            if row is None or row["generation"] != entry.generation or row["state"] != "running":
                return False
            if row["changed"]:
                self._restart(base, entry.id, now)
                return False
            base.execute(
                "UPDATE series SET state=?, rule=?, reason=?, facts=?, made=?, made_bytes=?, seconds=?, ended_at=? "
                "WHERE id=?",
                (state, rule, reason, json.dumps(dict(facts or {})), json.dumps(dict(made or {})), made_bytes, seconds,
                 now if state in ENDED else None, entry.id),
            )  # fmt: skip
            base.execute("DELETE FROM deliveries WHERE series=?", (entry.id,))
            base.executemany(
                "INSERT INTO deliveries (series, destination, state, first_at, next_at) VALUES (?,?,'waiting',?,?)",
                [(entry.id, destination, now, now) for destination in owed],
            )
        return True

    def put_back(self, entry: Entry) -> None:
        """A claimed series that the service ends before: it waits for the next one, and nothing is held against it."""
        with self._change() as base:
            base.execute(
                "UPDATE series SET state='complete' WHERE id=? AND state='running' AND changed=0 AND generation=?",
                (entry.id, entry.generation),
            )

    def stumble(self, entry: Entry, reason: str, *, tries: int, retry_s: float, rule: str | None) -> bool:
        """A run of a series ended badly: it waits, twice as long each time, or is set aside after so many tries.

        Returns
        -------
        Whether it is set aside.
        """
        with self._change() as base:
            row = base.execute("SELECT changed, generation FROM series WHERE id=?", (entry.id,)).fetchone()
            if row["changed"] or row["generation"] != entry.generation:
                self._restart(base, entry.id, time.time())
                return False
            tried = entry.tries + 1
            failed = tried >= tries
            base.execute(
                "UPDATE series SET state=?, tries=?, reason=?, rule=?, next_at=?, ended_at=? WHERE id=?",
                ("failed" if failed else "complete", tried, reason, rule, time.time() + retry_s * 2 ** (tried - 1),
                 time.time() if failed else None, entry.id),
            )  # fmt: skip
            return failed

    def recover(self, tries: int) -> None:
        """After a start: what was running runs again, what was arriving waits for its sender anew."""
        now = time.time()
        with self._change() as base:
            base.execute("UPDATE series SET last_at=? WHERE state='received'", (now,))
            for row in base.execute("SELECT id, changed, deaths FROM series WHERE state='running'").fetchall():
                if row["changed"]:
                    self._restart(base, row["id"], now)
                elif row["deaths"] + 1 >= DEATHS_PER_TRY * tries:
                    base.execute(
                        "UPDATE series SET state='failed', ended_at=?, reason=? WHERE id=?",
                        (now, f"was running each of the {row['deaths'] + 1} times that the service died", row["id"]),
                    )
                else:
                    base.execute("UPDATE series SET state='complete', deaths=deaths+1 WHERE id=?", (row["id"],))
            base.execute("UPDATE deliveries SET next_at=MIN(next_at, ?) WHERE state='waiting'", (now,))

    # ---- delivery --------------------------------------------------------------------------------------------------

    def delivered(self, entry: Entry, destination: str) -> bool:
        """A destination has all of a series. Returns whether it was the last, so that the series is sent."""
        with self._change() as base:
            if not self._still(base, entry):
                return False
            base.execute(
                "UPDATE deliveries SET state='sent', reason=NULL WHERE series=? AND destination=?",
                (entry.id, destination),
            )
            left = base.execute(
                "SELECT COUNT(*) FROM deliveries WHERE series=? AND state!='sent'", (entry.id,)
            ).fetchone()[0]
            if left == 0:
                base.execute("UPDATE series SET state='sent', ended_at=? WHERE id=?", (time.time(), entry.id))
            return bool(left == 0)

    def undelivered(self, entry: Entry, delivery: Delivery, reason: str, *, wait_s: float, give_up_s: float) -> bool:
        """A delivery failed: it waits, or the series fails when it has waited long enough. Returns whether it did."""
        now = time.time()
        with self._change() as base:
            if not self._still(base, entry):
                return False
            over = now - delivery.first_at >= give_up_s
            base.execute(
                "UPDATE deliveries SET state=?, tries=tries+1, reason=?, next_at=? WHERE series=? AND destination=?",
                ("failed" if over else "waiting", reason, now + wait_s, entry.id, delivery.destination),
            )
            if over:
                said = f"{delivery.destination}: {reason}"
                base.execute("UPDATE series SET state='failed', reason=?, ended_at=? WHERE id=?", (said, now, entry.id))
            return over

    @staticmethod
    def _still(base: sqlite3.Connection, entry: Entry) -> bool:
        row = base.execute("SELECT generation FROM series WHERE id=?", (entry.id,)).fetchone()
        return row is not None and row["generation"] == entry.generation

    # ---- what people ask -------------------------------------------------------------------------------------------

    def requeue(self, series: str) -> bool:
        """Run a series again that has ended, or hurry one that waits. Returns whether there was anything to do."""
        with self._change() as base:
            row = base.execute("SELECT state, removed FROM series WHERE id=?", (series,)).fetchone()
            if row is None or row["removed"] or row["state"] == "running":
                return False
            if row["state"] == "made":
                base.execute("UPDATE deliveries SET next_at=0, tries=0 WHERE series=? AND state='waiting'", (series,))
                return True
            self._restart(base, series, time.time())
            base.execute("UPDATE series SET state='complete' WHERE id=?", (series,))
            return True

    def remove(self, series: str) -> None:
        """Forget the objects of an ended series; the series itself stays, with what became of it."""
        with self._change() as base:
            base.execute("DELETE FROM objects WHERE series=?", (series,))
            base.execute("UPDATE series SET removed=1, made_bytes=0 WHERE id=?", (series,))
