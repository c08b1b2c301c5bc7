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


_MARKS: dict[Layout, tuple[_Mark, ...]] = {}
#: What was read last, of a source and its target: the writer asks for the slab that was just worked on.
_LAST: dict[Layout, tuple[int, int, NDArray[Any] | None]] = {}
_LAST_BYTES = 2**26


def planes(layout: Layout, start: int, stop: int) -> NDArray[Any]:
    """[k, j, i] stored values of the planes [start, stop) along the file's slowest axis, not to be written to.

    Raises
    ------
    ConcordctError : the file changed, ends too early, or its deflated stream is damaged anywhere.
    """
    first, last, kept = _LAST.get(layout, (0, 0, None))
    if kept is not None and first <= start and stop <= last:
        return kept[start - first : stop - first]
    size = layout.size[0] * layout.size[1] * layout.dtype.itemsize
    if layout.encoding != "raw":
        marks = _checked(layout)
    with _opened(layout) as file:
        if layout.encoding == "raw":
            file.seek(layout.start + start * size)
            raw = file.read((stop - start) * size)
        else:
            at = layout.skip + start * size
            mark = marks[bisect.bisect_right([mark.at for mark in marks], at) - 1]
            raw = b"".join(_inflated(layout, file, mark, at, at + (stop - start) * size))
    if len(raw) < (stop - start) * size:
        raise _cut(layout, layout.voxel_bytes, stop * size)
    found = _shaped(raw, layout)
    if found.nbytes <= _LAST_BYTES:
        _remember(_LAST, layout, (start, stop, found), 2)
    return found


def all_planes(layout: Layout, step: int) -> Iterator[NDArray[Any]]:
    """Every plane in order, `step` at a time; the first such pass through a deflated stream is what checks it.

    Raises
    ------
    ConcordctError : as `planes`, at the latest when the last planes are asked for; until then nothing may be used.
    """
    if layout.encoding == "raw" or layout in _MARKS:
        for start in range(0, layout.size[2], step):
            yield planes(layout, start, min(start + step, layout.size[2]))
        return
    _refuse_cut(layout)
    plane = layout.size[0] * layout.size[1] * layout.dtype.itemsize
    marks: list[_Mark] = []
    waiting, found = bytearray(), 0
    with _opened(layout) as file:
        first = _Mark(0, layout.start, zlib.decompressobj(_WINDOW))
        for piece in _inflated(layout, file, first, layout.skip, None, marks):
            waiting += piece
            found += len(piece)
            while len(waiting) >= step * plane:
                yield _shaped(bytes(waiting[: step * plane]), layout)
                del waiting[: step * plane]
        used = file.tell() - layout.start
    if found < layout.voxel_bytes:
        raise _cut(layout, found, layout.voxel_bytes)
    if layout.stored_bytes not in (None, used):
        raise ConcordctError(f"{used} bytes of deflated voxels, expected {layout.stored_bytes}: {layout.data}")
    _remember(_MARKS, layout, tuple(marks), _KEPT)
    if waiting:
        yield _shaped(bytes(waiting), layout)


def _shaped(raw: bytes, layout: Layout) -> NDArray[Any]:
    return np.frombuffer(raw, layout.dtype).reshape(-1, layout.size[1], layout.size[0])


def _remember(kept: dict[Layout, Any], layout: Layout, value: Any, most: int) -> None:
    kept.pop(layout, None)
    while len(kept) >= most:
        kept.pop(next(iter(kept)), None)
    kept[layout] = value


def stored_crc(layout: Layout) -> int:
    """CRC-32 of all voxels as stored, inflated; the whole stream is gone through."""
    crc = 0
    for piece in all_planes(layout, max(1, PIECE // (layout.voxel_bytes // layout.size[2]))):
        crc = zlib.crc32(piece.tobytes(), crc)
    return crc


@contextmanager
def _opened(layout: Layout) -> Iterator[BinaryIO]:
    """The data file of a layout, refused when it is another than the one whose header was read."""
    with open_regular(layout.data) as (file, stamp):
        if stamp != layout.stamp:
            raise ConcordctError(f"the file changed since its header was read: {layout.data}")
        yield file


def _checked(layout: Layout) -> tuple[_Mark, ...]:
    """The marks of a deflated stream that was gone through to its end and checksum."""
    if layout not in _MARKS:
        for _ in all_planes(layout, max(1, PIECE // (layout.voxel_bytes // layout.size[2]))):
            pass
    return _MARKS[layout]


def _refuse_cut(layout: Layout) -> None:
    """Refuse a deflated stream that is too short for what its header says, before it is looked at."""
    room = layout.stamp[2] - layout.start
    if layout.stored_bytes is not None and layout.stored_bytes > room:
        raise ConcordctError(
            f"truncated: {room} bytes of deflated voxels, expected {layout.stored_bytes}: {layout.data}"
        )
    if room * MOST_INFLATED < layout.skip + layout.voxel_bytes:
        raise _cut(layout, room * MOST_INFLATED - layout.skip, layout.voxel_bytes)


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
            if at >= end:
                raise ConcordctError(f"truncated: the deflated voxels end before their checksum: {layout.data}")
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
        # In a file of their own nothing says on which side of the voxels the surplus lies.
        spare = _SPARE if layout.data == layout.path or layout.start else 0
        if found > layout.voxel_bytes + spare:
            raise ConcordctError(f"{found} bytes of voxels, expected {layout.voxel_bytes} by the header: {layout.data}")
    return layout
