"""What arrives, by whatever door, put on disk and noted before anybody is told that it was stored.

    answer = inbox.take(data, meta=meta)     # answer.status is a C-STORE status (PS3.4 B.2.3)

An object is written aside, looked at, moved to its name, synced, then noted in the queue; a service that dies in
between leaves a file that nobody was promised, and the next start clears it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concordct.errors import ConcordctError
from concordct.serving.config import Store
from concordct.serving.ledger import Stored
from concordct.serving.log import say
from concordct.serving.queue import Queue
from concordct.volumes.arrived import Arrived, dataset_offset, look_at, write_arrived
from concordct.volumes.place import sync_folder

SUCCESS, NO_ROOM, MISMATCH, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
#: What is used is counted anew so often; in between it is added up.
_COUNT_EVERY_S = 5.0


def series_id(uid: str) -> str:
    """The name of a series in folders, logs and addresses."""
    return hashlib.sha256(uid.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Answer:
    """What the sender is told: a status, and the words behind it."""

    status: int
    text: str = ""
    series: str | None = None
    sop_class_uid: str = ""
    sop_instance_uid: str = ""


class Inbox:
    """The folders of the store and what goes into them."""

    def __init__(self, store: Store, queue: Queue) -> None:
        self._store, self._queue = store, queue
        self._aside, self._kept = store.folder / "aside", store.folder / "arrived"
        self.results, self.views = store.folder / "results", store.folder / "views"
        for folder in (self._aside, self._kept, self.results, self.views):
            folder.mkdir(parents=True, exist_ok=True)
        self._number = itertools.count()
        self._locks = [threading.Lock() for _ in range(64)]
        self._used, self._counted_at = 0, 0.0
        self.on_answer: Callable[[Answer], None] = lambda answer: None

    def folder(self, series: str) -> Path:
        """Where the arrived objects of a series lie."""
        return self._kept / series

    def result(self, series: str, generation: int) -> Path:
        """Where the results of one generation of a series lie."""
        return self.results / series / str(generation)

    def room_for(self, size: int) -> bool:
        """Whether an object and the result made of it fit, within the quota and beside what has to stay free."""
        now = time.monotonic()
        if now - self._counted_at > _COUNT_EVERY_S:
            self._used, self._counted_at = self._queue.bytes_used(), now
        free = shutil.disk_usage(self._store.folder).free
        return self._used + 2 * size <= self._store.quota_bytes and free - 2 * size >= self._store.keep_free_bytes

    def take(self, data: bytes | memoryview, *, meta: Any = None, expected: tuple[str, str] | None = None) -> Answer:
        """Store one object.

        Parameters
        ----------
        data : the data set with its `meta` header apart, or a whole file.
        expected : SOP class and instance UID that the sender announced.
        """
        answer = self._take(data, meta, expected)
        self.on_answer(answer)
        if answer.status != SUCCESS:
            say("object refused", level="warning", series=answer.series, status=f"{answer.status:#06x}",
                reason=answer.text)  # fmt: skip
        return answer

    def _take(self, data: bytes | memoryview, meta: Any, expected: tuple[str, str] | None) -> Answer:
        size = len(data)
        if not self.room_for(size):
            return Answer(NO_ROOM, "no room left within the quota")
        aside = self._aside / f"{os.getpid()}-{next(self._number)}.dcm"
        try:
            write_arrived(aside, data, meta=meta)
            try:
                arrived = look_at(aside)
            except ConcordctError as error:
                return Answer(NOT_UNDERSTOOD, str(error).removesuffix(f": {aside}"))
            uids = (arrived.sop_class_uid, arrived.sop_instance_uid)
            series = series_id(arrived.series_uid)
            if expected is not None and uids != expected:
                return Answer(MISMATCH, "the object holds other UIDs than were announced", series)
            digest = hashlib.sha256(arrived.transfer_syntax_uid.encode())
            # Without its meta header: the same object is the same by whatever door it came.
            digest.update(memoryview(data)[0 if meta is not None else dataset_offset(data) :])
            with self._locks[int(series[:4], 16) % len(self._locks)]:
                self._keep(aside, series, arrived, digest.hexdigest())
            self._used += 2 * size
            return Answer(SUCCESS, "", series, *uids)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                return Answer(NO_ROOM, "no room left on the disk")
            return Answer(NO_ROOM, f"the store cannot be written ({errno.errorcode.get(error.errno or 0, 'error')})")
        except sqlite3.Error:
            return Answer(NO_ROOM, "the queue cannot be written")
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)

    def _keep(self, aside: Path, series: str, arrived: Arrived, digest: str) -> None:
        known = self._queue.known(series, arrived.sop_instance_uid)
        folder = self.folder(series)
        if known is not None and known.sha256 == digest and (folder / known.file).is_file():
            self._queue.arrive(series, arrived.series_uid, known, stated=arrived.stated)
            return
        folder.mkdir(exist_ok=True)
        # The name holds the content, so that a run under way never finds another content under a name it read.
        name = hashlib.sha256(f"{arrived.sop_instance_uid}\0{digest}".encode()).hexdigest()[:32] + ".dcm"
        size = aside.stat().st_size
        os.replace(aside, folder / name)
        sync_folder(folder)
        sync_folder(self._kept)
        stored = Stored(
            arrived.sop_instance_uid, arrived.sop_class_uid, arrived.transfer_syntax_uid, name, digest, size
        )
        try:
            replaced = self._queue.arrive(series, arrived.series_uid, stored, stated=arrived.stated)
        except sqlite3.Error:
            (folder / name).unlink()
            raise
        if replaced is not None and replaced != name:
            (folder / replaced).unlink(missing_ok=True)

    def counted(self, series: Iterable[str], *, whole: bool = False) -> None:
        """A sender is done with its request or association: what it brought is complete where it promises `whole`
        series, or where the objects say how many there are."""
        for each in self._queue.association_ended(series, whole=whole):
            say("series complete", series=each, reason="its sender is done" if whole else "all have come")

    def clear_leftovers(self) -> None:
        """Files of which a service that died told nobody, and results of generations that are over."""
        for path in self._aside.iterdir():
            path.unlink()
        for folder in self._kept.iterdir():
            noted = {stored.file for stored in self._queue.objects(folder.name)}
            for path in folder.iterdir():
                if path.name not in noted:
                    path.unlink()
            if not noted:
                folder.rmdir()

    def forget(self, series: str) -> None:
        """Remove a series' files, for good."""
        self._queue.remove(series)
        for folder in (self.folder(series), self.results / series):
            shutil.rmtree(folder, ignore_errors=True)
        (self.views / f"{series}.html").unlink(missing_ok=True)
        self._counted_at = 0.0
