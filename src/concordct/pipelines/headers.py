"""Headers of a tree, read by the workers of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from concordct.pipelines.engines import HERE, Engine, in_order, within_of
from concordct.volumes.find import HeadersRead, Reader, SetAside, read_headers


def headers_on(engine: Engine) -> Reader | None:
    """Who reads headers for `find_scans`; None where the caller does all alone."""
    if within_of(engine) == HERE:
        return None
    return lambda lists: in_order(read_headers, lists, _unread, engine=engine)


def _unread(files: Sequence[Path], reason: str) -> HeadersRead:
    return HeadersRead((), tuple(SetAside(file, reason) for file in files))
