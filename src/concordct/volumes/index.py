"""What was read of each file of a tree, kept in one SQLite file: any tree in flat memory, the second look fast.

    with Index.opened(None) as index:              # None: a temporary one
        index.look(Path("archive"))                # reads the headers of files that are new or changed
        for group in index.groups(Path("archive")): ...

The index holds UIDs, geometry and series descriptions, and no name, number or date of a patient; only its owner may
read it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from concordct import __version__
from concordct.errors import ConcordctError
from concordct.volumes.find import Progress, SetAside, walk
from concordct.volumes.headers import SliceHeader, header_from_json, header_to_json, slice_headers

#: In the head of the file: "cct" and the schema.
_SCHEMA_NUMBER = 0x63637404
_SCHEMA = """
create table files (path blob primary key, size integer, changed integer, look integer, reason text, uid text,
                    headers text) without rowid;
create index of_series on files (uid, path);
create table said (uid text, root blob, digest text, scans text, primary key (uid, root)) without rowid;
create table looks (number integer primary key);
"""
#: Files between two commits: a look that is stopped goes on from the last.
_COMMIT = 1_000


@dataclass(frozen=True)
class Group:
    """The files of one SeriesInstanceUID.

    Attributes
    ----------
    digest : changes when one of the files does, or this software.
    paths : of its files.
    """

    uid: str
    digest: str
    paths: tuple[Path, ...]


@contextmanager
def _place(path: Path | None) -> Iterator[Path | None]:
    """The file of an index; without a path one that goes at the end, None (memory) where no place for it is found."""
    if path is not None:
        yield path
        return
    try:
        aside = tempfile.TemporaryDirectory(prefix="concordct-index-")
    except FileNotFoundError:  # a read-only container
        yield None
        return
    with aside as folder:
        yield Path(folder) / "index"


class Index:
    """An open index; see the module."""

    def __init__(self, base: sqlite3.Connection) -> None:
        self._base = base

    @staticmethod
    @contextmanager
    def opened(path: Path | None) -> Iterator[Index]:
        """An index in a file, new where there is none; None for one that goes at the end.

        Raises
        ------
        ConcordctError : the file is something else, or cannot be written.
        """
        with _place(path) as place:
            try:
                fresh = place is None or not place.exists() or place.stat().st_size == 0
                if place is not None:
                    os.close(os.open(place, os.O_RDWR | os.O_CREAT, 0o600))
                base = sqlite3.connect(place or ":memory:", timeout=60)
                try:
                    if fresh:
                        base.executescript(f"{_SCHEMA}; pragma user_version = {_SCHEMA_NUMBER};")
                    elif base.execute("pragma user_version").fetchone()[0] != _SCHEMA_NUMBER:
                        raise ConcordctError(f"{place}: expected an index of this version, found something else")
                    base.execute("pragma cache_size = -16000")
                    yield Index(base)
                    base.commit()
                finally:
                    base.close()
            except (sqlite3.Error, OSError) as error:
                raise ConcordctError(f"{place}: expected an index that can be written, found {error}") from None

    def look(self, root: Path, *, progress: Progress | None = None) -> None:
        """Read the headers of every file under a path that is new or changed, and forget files that have gone.

        Raises
        ------
        ConcordctError : the path does not exist or cannot be read.
        """
        base = self._base
        total = sum(1 for _ in walk(root)) if progress is not None else 0
        number = base.execute("insert into looks default values").lastrowid
        for done, one in enumerate(walk(root), start=1):
            if isinstance(one, SetAside):
                self._keep(one.path, (0, 0), number, one.reason, None, None)
            else:
                self._read(one, number)
            if done % _COMMIT == 0:
                base.commit()
            if progress is not None:
                progress(done, total)
        below = self._below(root)
        base.execute(f"delete from files where look != ? and {below[0]}", (number, *below[1]))
        base.commit()

    def _read(self, path: Path, number: int | None) -> None:
        state = path.stat()
        facts = (state.st_size, state.st_mtime_ns)
        key = os.fsencode(os.path.abspath(path))
        before = self._base.execute("select size, changed from files where path = ?", (key,)).fetchone()
        if before == facts:
            self._base.execute("update files set look = ? where path = ?", (number, key))
            return
        try:
            headers = slice_headers(path)
        except ConcordctError as error:
            self._keep(path, facts, number, str(error).removesuffix(f": {path}"), None, None)
            return
        told = [header_to_json(one) for one in headers]
        self._keep(path, facts, number, None, headers[0].series_uid, json.dumps(told))

    def _keep(
        self,
        path: Path,
        facts: tuple[int, int],
        number: int | None,
        reason: str | None,
        uid: str | None,
        headers: str | None,
    ) -> None:
        key = os.fsencode(os.path.abspath(path))
        row = (key, *facts, number, reason, uid, headers)
        self._base.execute("insert or replace into files values (?, ?, ?, ?, ?, ?, ?)", row)

    @staticmethod
    def _below(root: Path) -> tuple[str, tuple[bytes, ...]]:
        """A condition on paths: the root itself or below it."""
        key = os.fsencode(os.path.abspath(root))
        inside = key if key.endswith(b"/") else key + b"/"
        return "(path = ? or (path > ? and path < ?))", (key, inside, inside[:-1] + b"0")

    def set_aside(self, root: Path) -> Iterator[SetAside]:
        """Files that hold no CT slice, with the reason, in order of path."""
        below = self._below(root)
        rows = self._base.execute(
            f"select path, reason from files where reason is not null and {below[0]} order by path", below[1]
        )
        for key, reason in rows:
            yield SetAside(_path(key), reason)

    def groups(self, root: Path) -> Iterator[Group]:
        """The files of every series under a path, a series at a time."""
        below = self._below(root)
        rows = self._base.execute(
            f"select uid, path, size, changed from files where uid is not null and {below[0]} order by uid, path",
            below[1],
        )
        for uid, files in groupby(rows, key=lambda row: row[0]):
            digest, paths = hashlib.sha256(__version__.encode()), []
            for _, key, size, changed in files:
                digest.update(key + f" {size} {changed}\n".encode())
                paths.append(_path(key))
            yield Group(uid, digest.hexdigest(), tuple(paths))

    def headers(self, group: Group) -> list[SliceHeader]:
        """The slices of a series."""
        found = []
        for path in group.paths:
            told, size, changed = self._base.execute(
                "select headers, size, changed from files where path = ?", (os.fsencode(path),)
            ).fetchone()
            found += [header_from_json(path, (size, changed), one) for one in json.loads(told)]
        return found

    def said(self, group: Group, root: Path) -> list[Any] | None:
        """What was made of a series at an earlier look; None where its files have changed since."""
        row = self._base.execute(
            "select scans from said where uid = ? and root = ? and digest = ?",
            (group.uid, os.fsencode(os.path.abspath(root)), group.digest),
        ).fetchone()
        return None if row is None else list(json.loads(row[0]))

    def say(self, group: Group, root: Path, scans: list[Any]) -> None:
        """Keep what was made of a series, JSON values."""
        key = os.fsencode(os.path.abspath(root))
        self._base.execute(
            "insert or replace into said values (?, ?, ?, ?)", (group.uid, key, group.digest, json.dumps(scans))
        )


def _path(key: bytes) -> Path:
    return Path(os.fsdecode(key))
