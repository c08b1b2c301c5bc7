"""The structure of a DICOM dataset, walked before any library parses it.

Parsers recurse into sequences and answer a broken value deep inside with an exception in an exception for every level,
each with the text of all below it: 16 kB of nested items take gigabytes. The walk follows tags and lengths alone
(PS3.5, 7.1 and 7.5), keeps its own stack and ends at the pixel data.
"""

from __future__ import annotations

import re
import struct
from typing import BinaryIO

#: CT headers nest five levels (protocol codes, derivations); each level doubles what an exception below it takes.
MAX_DEPTH = 12
#: An enhanced CT of 20,000 frames has as many.
MAX_ELEMENTS = 1_000_000

#: Values with a length of four bytes in explicit VR (PS3.5 7.1.2).
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xE000, 0xE00D, 0xE0DD


def start_of_dataset(head: bytes) -> tuple[int, str]:
    """Where the dataset of a file begins, and its transfer syntax as the meta header names it ("" for none).

    Parameters
    ----------
    head : the first few kilobytes. A meta header may stand without preamble, or be missing altogether (offset 0).
    """
    position = 132 if head[128:132] == b"DICM" else 0
    syntax = ""
    while head[position : position + 2] == b"\x02\0" and len(head) >= position + 12:
        vr = head[position + 4 : position + 6]
        start = position + (12 if vr in _LONG else 8)
        length = int.from_bytes(head[position + 8 : start] if vr in _LONG else head[position + 6 : start], "little")
        if head[position + 2 : position + 4] == b"\x10\0":
            syntax = head[start : start + length].rstrip(b"\0 ").decode("ascii", "replace")
        position = start + length
    return position, syntax


def structure_fault(file: BinaryIO, size: int, *, big_endian: bool = False, whole: bool = False) -> str | None:
    """What is wrong with the structure of a dataset, in words; None when a parser may have it.

    Parameters
    ----------
    file : stands at the first element.
    size : bytes of the file in all; elements that claim to be longer end the walk.
    big_endian : of the whole dataset.
    whole : whether a file that ends inside an element is a fault too; parsers take it as complete.
    """
    cut = "the file is cut short, it ends inside an element" if whole else None
    order = ">" if big_endian else "<"
    tag_of, long_of = struct.Struct(f"{order}HH").unpack_from, struct.Struct(f"{order}L").unpack_from
    short_of = struct.Struct(f"{order}H").unpack_from
    peek = file.read(8)
    file.seek(-len(peek), 1)
    explicit = re.match(rb"[A-Z]{2}", peek[4:6]) is not None
    # (is a sequence, end or None where a delimiter ends it); items and sequences in turn.
    stack: list[tuple[bool, int | None]] = []
    position, depth = file.tell(), 0
    seen: dict[tuple[int, int], tuple[int, int]] = {}  # where the values of the standard's elements lie
    for _ in range(MAX_ELEMENTS):
        while stack and stack[-1][1] is not None and position >= stack[-1][1]:
            depth -= stack.pop()[0]
        head = file.read(8)
        if len(head) < 8:
            return cut if head or stack else None
        group, element = tag_of(head)
        position += 8
        if group == 0xFFFE:
            length = long_of(head, 4)[0]
            if element == _ITEM:
                stack.append((False, None if length == _UNDEFINED else position + length))
            elif element in (_ITEM_END, _SEQUENCE_END) and stack:
                # A sequence may end with its last item open: items that broken writers left without a delimiter.
                while stack and stack[-1][0] != (element == _SEQUENCE_END):
                    depth -= stack.pop()[0]
                if stack:
                    depth -= stack.pop()[0]
            continue
        if group == 0x7FE0 and element in (0x0008, 0x0009, 0x0010) and not stack:
            return None
        vr = head[4:6]
        if explicit and b"AA" <= vr <= b"ZZ":
            length = short_of(head, 6)[0]
            if vr in _LONG:
                length = long_of(file.read(4).ljust(4, b"\0"))[0]
                position += 4
        else:
            vr, length = b"", long_of(head, 4)[0]
        holds = length == _UNDEFINED and vr in (b"", b"SQ", b"UN")
        if not holds and length >= 8 and vr in (b"", b"SQ", b"UN"):
            # In implicit VR, and in private elements, a sequence is known by the item that it begins with.
            begins = file.read(4)
            file.seek(position)
            holds = len(begins) == 4 and tag_of(begins) == (0xFFFE, _ITEM)
        if not stack and not group & 1 and seen.setdefault((group, element), (position, length)) != (position, length):
            if holds or not _same_bytes(file, seen[group, element], (position, length)):
                return f"element ({group:04x},{element:04x}) stands twice, each time with another value"
            file.seek(position)
        if holds:
            stack.append((True, None if length == _UNDEFINED else position + length))
            depth += 1
            if depth > MAX_DEPTH:
                return f"sequences nested more than {MAX_DEPTH} deep"
        elif length == _UNDEFINED:
            return None  # fragments elsewhere than in the pixel data: they hold no elements
        else:
            if position + length > size:
                return cut if length < size else f"an element of {length} bytes in a file of {size}"
            position += length
            file.seek(position)
    return f"more than {MAX_ELEMENTS} elements in one header"


def _same_bytes(file: BinaryIO, one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two values, each a place and a length, hold the same; parsers take the one or the other (PS3.5 7.1)."""
    if one[1] != other[1]:
        return False
    values = []
    for position, length in (one, other):
        file.seek(position)
        values.append(file.read(length))
    return values[0] == values[1]
