"""The stored voxels of a volume file: plane by plane from anywhere, never more in memory than is asked for.

A deflated stream is inflated here, no further than its header declares, and counts only when its checksum does. On the
way marks are kept (a copy of the inflater every few MB), from which later reads go on without starting over.
"""

from __future__ import annotations

import bisect
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.volumes.formats.layout import MOST_INFLATED, Layout, open_regular

#: Bytes handled at once; marks stand this far apart too.
PIECE = 2**21
_FED = 2**14  # small, for what is left of it unread is read again at a mark
_WINDOW = 47  # zlib or gzip by the stream's own header, zlib.h inflateInit2
#: Blocked gzip has a member every 64 kB; members of a few bytes would keep us busy for ever.
_MEMBERS = 2**17
#: Bytes that may follow the voxels of a raw file; more means that the header is wrong about the sizes.
_SPARE = 2**12
#: Files whose whole stream is known to be good; a mark takes 40 kB, a scan of 300 slices has 80 of them.
_KEPT = 4


@dataclass(frozen=True, eq=False)
class _Mark:
    """The state of an inflater after `at` inflated bytes; its next byte of input lies at `place`."""

    at: int
    place: int
    inflater: Any


def planes(layout: Layout, start: int, stop: int) -> NDArray[Any]:
    """[k, j, i] stored values of the planes [start, stop) along the file's slowest axis.

    Raises
    ------
    ConcordctError : the file changed, ends too early, or its deflated stream is damaged anywhere.
    """
    count = layout.size[0] * layout.size[1]
    size = count * layout.dtype.itemsize
    with _opened(layout) as file:
        if layout.encoding == "raw":
            file.seek(layout.start + start * size)
            raw = file.read((stop - start) * size)
        else:
            marks = _checked(layout)
            at = layout.skip + start * size
            mark = marks[bisect.bisect_right([mark.at for mark in marks], at) - 1]
            raw = b"".join(_inflated(layout, file, mark, at, at + (stop - start) * size))
    if len(raw) < (stop - start) * size:
        raise _cut(layout, layout.voxel_bytes, stop * size)
    return np.frombuffer(raw, layout.dtype).reshape(stop - start, layout.size[1], layout.size[0])


def stored_crc(layout: Layout) -> int:
    """CRC-32 of all voxels as stored, inflated; the whole stream is gone through."""
    crc = 0
    step = max(1, PIECE // (layout.voxel_bytes // layout.size[2]))
    for start in range(0, layout.size[2], step):
        crc = zlib.crc32(planes(layout, start, min(start + step, layout.size[2])).tobytes(), crc)
    return crc


@contextmanager
def _opened(layout: Layout) -> Iterator[BinaryIO]:
    """The data file of a layout, refused when it is another than the one whose header was read."""
    with open_regular(layout.data) as (file, stamp):
        if stamp != layout.stamp:
            raise ConcordctError(f"the file changed since its header was read: {layout.data}")
        yield file


@lru_cache(maxsize=_KEPT)
def _checked(layout: Layout) -> tuple[_Mark, ...]:
    """Go through a deflated stream to its end and checksum; the marks on the way."""
    end = layout.skip + layout.voxel_bytes
    room = layout.stamp[2] - layout.start
    if layout.stored_bytes is not None and layout.stored_bytes > room:
        raise ConcordctError(
            f"truncated: {room} bytes of deflated voxels, expected {layout.stored_bytes}: {layout.data}"
        )
    if room * MOST_INFLATED < end:
        raise _cut(layout, room * MOST_INFLATED - layout.skip, layout.voxel_bytes)
    marks: list[_Mark] = []
    with _opened(layout) as file:
        first = _Mark(0, layout.start, zlib.decompressobj(_WINDOW))
        found = sum(len(piece) for piece in _inflated(layout, file, first, 0, None, marks))
        used = file.tell() - layout.start
    if found < end:
        raise _cut(layout, found - layout.skip, layout.voxel_bytes)
    if layout.stored_bytes not in (None, used):
        raise ConcordctError(f"{used} bytes of deflated voxels, expected {layout.stored_bytes}: {layout.data}")
    return tuple(marks)


def _inflated(
    layout: Layout, file: BinaryIO, mark: _Mark, start: int, stop: int | None, marks: list[_Mark] | None = None
) -> Iterator[bytes]:
    """The inflated bytes [start, stop) from a mark on; to the checked end of the stream where `stop` is None."""
    at, inflater, end = mark.at, mark.inflater.copy(), layout.skip + layout.voxel_bytes
    file.seek(mark.place)
    due, members = at, 0
    while stop is None or at < stop:
        if marks is not None and at >= due:
            marks.append(_Mark(at, file.tell(), inflater.copy()))
            due = at + PIECE
        fed = file.read(_FED)
        if not fed:
            if inflater.eof:
                return
            raise _cut(layout, max(at - layout.skip, 0), layout.voxel_bytes)
        if inflater.eof:  # after the end of a stream only another gzip member may follow, or padding with zeros
            if layout.encoding != "gzip" or not fed.strip(b"\0"):
                file.seek(-len(fed), 1)
                return
            if fed[:2] != b"\x1f\x8b":
                raise ConcordctError(f"bytes that are no gzip member after the deflated voxels: {layout.data}")
            inflater, members = zlib.decompressobj(31), members + 1
            if members > _MEMBERS:
                raise ConcordctError(f"more than {_MEMBERS} gzip members: {layout.data}")
        try:
            piece = inflater.decompress(fed, PIECE)
        except zlib.error:
            raise ConcordctError(
                f"the deflated voxels are damaged, expected a stream that inflates to its checksum: {layout.data}"
            ) from None
        rest = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
        file.seek(-len(rest), 1)
        if at + len(piece) > end:
            raise ConcordctError(f"inflates beyond the {end} bytes that its header declares: {layout.data}")
        given = piece[max(start - at, 0) : None if stop is None else max(stop - at, 0)]
        at += len(piece)
        if given:
            yield given


def _cut(layout: Layout, found: int, expected: int) -> ConcordctError:
    before = layout.start if layout.encoding == "raw" else layout.skip
    return ConcordctError(f"truncated: {before + found} bytes, expected {before + expected}: {layout.data}")


def check_length(layout: Layout) -> Layout:
    """Refuse a raw file that is not as long as its header says, before anything is allocated for it."""
    if layout.encoding == "raw":
        found = max(layout.stamp[2] - layout.start, 0)
        if found < layout.voxel_bytes:
            raise _cut(layout, found, layout.voxel_bytes)
        if found > layout.voxel_bytes + _SPARE:
            raise ConcordctError(f"{found} bytes of voxels, expected {layout.voxel_bytes} by the header: {layout.data}")
    return layout
