"""Multi-frame objects that are parts of a larger one: DICOM's concatenations (PS3.3 C.7.6.16, C.7.6.16.2.2.4).

Enhanced CT too long for one file is cut into objects of one series. Their frames are one stack once all are there; a
part that is missing at an end leaves an even rest that no position betrays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from concordct.errors import ConcordctError
from concordct.volumes.attributes import attribute
from concordct.volumes.geometry import NAMED_POSITIONS, Problem
from concordct.volumes.header_values import whole

#: A number of parts or an offset beyond this is none: `InConcatenationNumber` has 16 bits, a scan no million frames.
_MOST_PARTS, _MOST_FRAMES = 2**16, 10**6


@dataclass(frozen=True)
class Part:
    """What an object says of its place in a concatenation.

    Attributes
    ----------
    uid : ConcatenationUID.
    number, total : InConcatenationNumber, from 1, and InConcatenationTotalNumber, which need not be stated.
    offset, frames : ConcatenationFrameOffsetNumber, the frames before this part, and its own.
    """

    uid: str
    number: int
    total: int | None
    offset: int
    frames: int

    def to_json(self) -> dict[str, Any]:
        """Its attributes."""
        return asdict(self)


def part_of(dataset: Dataset, frames: int, path: Path) -> Part | None:
    """The part that a multi-frame object is; None for one that is whole by itself.

    Raises
    ------
    ConcordctError : a ConcatenationUID without numbers that say which part this is.
    """
    uid = str(attribute(dataset, "ConcatenationUID") or "").strip()
    if not uid:
        return None
    number, offset = (whole(dataset, f"{name}Number") for name in ("InConcatenation", "ConcatenationFrameOffset"))
    total = whole(dataset, "InConcatenationTotalNumber")
    if number is None or not 1 <= number < _MOST_PARTS or offset is None or not 0 <= offset < _MOST_FRAMES:
        raise ConcordctError(
            f"part of a concatenation, expected its number from 1 and its frame offset, found neither or one: {path}"
        )
    if total is not None and not number <= total < _MOST_PARTS:
        raise ConcordctError(f"part {number} of a concatenation of {total} parts, expected at least as many: {path}")
    return Part(uid, number, total, offset, frames)


def missing_parts(parts: Iterable[Part]) -> Problem | None:
    """What is missing of one concatenation, a gap also where it leaves even slices; None where nothing is known to be.

    Parameters
    ----------
    parts : of one UID, in any order; the same one may stand twice.
    """
    by_number = {part.number: part for part in parts}
    total = max((part.total for part in by_number.values() if part.total is not None), default=max(by_number))
    total = max(total, max(by_number))
    missing = [number for number in range(1, total + 1) if number not in by_number]
    if missing:
        shown = ", ".join(map(str, missing[:NAMED_POSITIONS]))
        shown += "" if len(missing) <= NAMED_POSITIONS else f", ... ({len(missing)} in all)"
        return Problem("gap", f"part {shown} missing of a concatenation of {total} objects")
    following = 0
    for number in range(1, total + 1):
        part = by_number[number]
        if part.offset != following:
            text = f"part {number} of a concatenation begins after {part.offset} frames, expected {following}"
            return Problem("gap", f"{text} by the parts before it: are frames missing?")
        following += part.frames
    return None
