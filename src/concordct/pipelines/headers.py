"""Headers of a tree, read by the workers of an engine, and by all shares of an array together.

Shares need not know of each other, and each has to know every series. What one has read it leaves beside the output for
the others; each begins at its own place, so that those that run at once read a part each.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from concordct.errors import ConcordctError
from concordct.pipelines.engines import HERE, Engine, Share, in_order, within_of
from concordct.pipelines.parts import file_facts, part_name
from concordct.volumes.find import HeadersRead, Reader, SetAside, read_headers
from concordct.volumes.given import read_json
from concordct.volumes.headers import header_from_json, header_to_json
from concordct.volumes.place import atomic_file

#: Lists of files whose headers are left in one file.
TOGETHER = 4


def headers_on(engine: Engine, *, output: Path | None = None) -> Reader | None:
    """Who reads headers for `find_scans`; None where the caller does all alone.

    Parameters
    ----------
    output : of all shares, who then leave each other what they read; `forget_headers` removes it.
    """
    if isinstance(engine, Share) and output is not None:
        return partial(_read_by_shares, share=engine, place=_place(output))
    if within_of(engine) == HERE:
        return None
    return partial(_read, engine=engine)


def forget_headers(output: Path) -> None:
    """Remove what shares left each other."""
    shutil.rmtree(_place(output), ignore_errors=True)


def _place(output: Path) -> Path:
    whole = Path(os.path.abspath(output))  # "." has no name
    return whole.parent / f".{whole.name}.headers"


def _read(lists: Sequence[Sequence[Path]], *, engine: Engine) -> list[HeadersRead]:
    return in_order(read_headers, lists, _unread, engine=engine)


def _unread(files: Sequence[Path], reason: str) -> HeadersRead:
    return HeadersRead((), tuple(SetAside(file, reason) for file in files))


def _read_by_shares(lists: Sequence[Sequence[Path]], *, share: Share, place: Path) -> Iterator[HeadersRead]:
    groups = [lists[start : start + TOGETHER] for start in range(0, len(lists), TOGETHER)]
    if len(groups) < 2:
        yield from _read(lists, engine=share)
        return
    first = (share.index - 1) * len(groups) // share.count
    found: dict[int, list[HeadersRead]] = {}
    for index in (*range(first, len(groups)), *range(first)):
        group = groups[index]
        try:
            kept = place / f"{part_name(file_facts([path for files in group for path in files]))}.json"
            read = _kept(kept, group)
        except OSError:  # a file has gone meanwhile; whoever reads the others says so
            found[index] = _read(group, engine=share)
            continue
        if read is None:
            read = _read(group, engine=share)
            with suppress(ConcordctError, OSError):  # no place to leave it: the others read these, too
                _keep(kept, group, read)
        found[index] = read
    for index in range(len(groups)):
        yield from found[index]


def _keep(kept: Path, group: Sequence[Sequence[Path]], read: Sequence[HeadersRead]) -> None:
    """By the places of files in their lists: names need not be UTF-8."""
    told = []
    for files, one in zip(group, read, strict=True):
        places = {path: number for number, path in enumerate(files)}
        told.append(
            {
                "headers": [[places[header.path], header.stamp, header_to_json(header)] for header in one.headers],
                "set_aside": [[places[item.path], item.reason] for item in one.set_aside],
            }
        )
    kept.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(kept, overwrite=True) as aside:
        aside.write_text(json.dumps(told), encoding="utf-8")


def _kept(kept: Path, group: Sequence[Sequence[Path]]) -> list[HeadersRead] | None:
    """What another share read of these files, as they are now; None where none did."""
    if not kept.is_file():
        return None
    try:
        return [
            HeadersRead(
                tuple(header_from_json(files[at], tuple(stamp), told) for at, stamp, told in one["headers"]),
                tuple(SetAside(files[at], str(reason)) for at, reason in one["set_aside"]),
            )
            for files, one in zip(group, read_json(kept), strict=True)
        ]
    except (ConcordctError, LookupError, TypeError, ValueError, OSError):
        return None
