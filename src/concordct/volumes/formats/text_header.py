"""What NRRD and MetaImage headers share: lines of bounded length, each field once, exact counts of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from concordct.errors import ConcordctError

#: Headers of real files are a few kB; those of segmentations with their history reach 100 kB in all.
MAX_LINE, MAX_HEADER = 2**16, 2**20


def next_line(file: BinaryIO, path: Path) -> str | None:
    """The next line without its end, None at the end of the file; bytes beyond ASCII become "?"."""
    line = file.readline(MAX_LINE + 1)
    if not line:
        return None
    if len(line) > MAX_LINE:
        raise ConcordctError(f"a header line of more than {MAX_LINE} bytes: {path}")
    if file.tell() > MAX_HEADER:
        raise ConcordctError(f"a header of more than {MAX_HEADER} bytes: {path}")
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in line.rstrip(b"\r\n").decode("ascii", "replace"))


def shown(value: str) -> str:
    """A header value for a message."""
    return value[:60] or "nothing"


def numbers(value: str, count: int | None, name: str, path: Path) -> list[float]:
    """The finite numbers of a field, as many as expected."""
    words = value.split()
    try:
        found = [float(word) for word in words if "_" not in word]  # Python reads 1_0 as 10
    except ValueError:
        found = []
    if not found or len(found) != len(words) or count not in (None, len(found)) or not all(map(math.isfinite, found)):
        expected = "a finite number" if count == 1 else f"{count} finite numbers" if count else "finite numbers"
        raise ConcordctError(f"{path}: expected {expected} in {name}, found {shown(value)}")
    return found


def whole_numbers(value: str, count: int | None, name: str, path: Path) -> list[int]:
    """The whole numbers of a field, written as such (no fraction, no exponent), as many as expected."""
    words = value.split()
    right = words and all(word.lstrip("+-").isdecimal() and len(word) <= 12 for word in words)
    if not right or count not in (None, len(words)):
        expected = "a whole number" if count == 1 else f"{count} whole numbers" if count else "whole numbers"
        raise ConcordctError(f"{path}: expected {expected} in {name}, found {shown(value)}")
    return [int(word) for word in words]


def needed(fields: dict[str, str], names: Sequence[str], path: Path) -> str:
    """The value of the field that goes by one of the names."""
    for name in names:
        if name in fields:
            return fields[name]
    raise ConcordctError(f"{path}: expected {names[0]} in the header, found none")
