"""NRRD headers (http://teem.sourceforge.net/nrrd/format.html), attached or detached, raw or gzipped.

Geometry has to be stated: the space, the directions of the axes and the origin. Nothing of it is assumed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.volumes.formats.layout import Encoding, Layout, beside, checked_affine, checked_size, open_regular
from concordct.volumes.formats.text_header import needed, next_line, numbers, shown, whole_numbers

_NAMES = {
    "i1": "signed char, int8, int8_t",
    "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t",
    "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float",
    "f8": "double",
}
_TYPES = {name: kind for kind, names in _NAMES.items() for name in names.split(", ")}
_WRITTEN = {"i1": "int8", "u1": "uint8", "i2": "int16", "u2": "uint16", "i4": "int32", "u4": "uint32", "f4": "float"}
_TO_LPS = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}
#: Kinds of axes that run through space, or of which nothing is said.
_SPATIAL = frozenset(("domain", "space", "???", "none"))
_ENCODINGS: dict[str, Encoding] = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}
_SYNONYMS = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip", "axismins": "axis mins",
             "axismaxs": "axis maxs", "oldmin": "old min", "oldmax": "old max"}  # fmt: skip
#: What an axis may not have beside its direction, and what says that the voxels are another range quantized.
_BESIDE_DIRECTIONS, _QUANTIZED = ("spacings", "axis mins", "axis maxs", "units"), ("old min", "old max")
_UNSAID = frozenset(("nan", "none", "???", ""))


def read_nrrd(path: Path) -> Layout:
    """The layout of a .nrrd or .nhdr file.

    Raises
    ------
    ConcordctError : no NRRD, a field that is missing, given twice or wrong, an encoding other than raw or gzip, voxels
        elsewhere than in, beside or below the header, or a geometry that is not stated.
    """
    with open_regular(path) as (file, stamp):
        fields = _fields(file, path)
        start = file.tell()
    data = path
    if "data file" in fields:
        name = fields["data file"]
        if name.split()[:1] == ["LIST"] or "%" in name:
            raise ConcordctError(f"{path}: expected voxels in one file, found a list of files")
        data, start = beside(path, name), 0
        with open_regular(data) as (_, stamp):
            pass
    kind = needed(fields, ("type",), path).lower()
    if kind not in _TYPES:
        raise ConcordctError(f"{path}: expected an integer or float type, found {shown(kind)}")
    dtype = np.dtype(_TYPES[kind])
    if dtype.itemsize > 1:
        order = needed(fields, ("endian",), path).lower()
        if order not in ("little", "big"):
            raise ConcordctError(f"{path}: expected endian little or big, found {shown(order)}")
        dtype = dtype.newbyteorder("<" if order == "little" else ">")
    (dimensions,) = whole_numbers(needed(fields, ("dimension",), path), 1, "dimension", path)
    if not 1 <= dimensions <= 16:
        raise ConcordctError(f"{dimensions} dimensions, expected 3: {path}")
    size = checked_size(whole_numbers(needed(fields, ("sizes",), path), dimensions, "sizes", path), dtype, path)
    encoding = needed(fields, ("encoding",), path).lower()
    if encoding not in _ENCODINGS:
        raise ConcordctError(f"{path}: expected encoding raw or gzip, found {shown(encoding)}")
    if whole_numbers(fields.get("line skip", "0"), 1, "line skip", path) != [0]:
        raise ConcordctError(f"{path}: expected no line skip, found {shown(fields['line skip'])}")
    (skip,) = whole_numbers(fields.get("byte skip", "0"), 1, "byte skip", path)
    voxel_bytes = int(np.prod(size, dtype=object)) * dtype.itemsize
    raw = _ENCODINGS[encoding] == "raw"
    if skip == -1 and raw:  # the voxels are what the file ends with
        start, skip = max(stamp[2] - voxel_bytes, start), 0
    elif not 0 <= skip <= 2**24:
        raise ConcordctError(f"{path}: expected a byte skip of 0 to {2**24}, found {skip}")
    return Layout(
        path=path,
        data=data,
        stamp=stamp,
        encoding=_ENCODINGS[encoding],
        start=start + (skip if raw else 0),
        skip=0 if raw else skip,
        dtype=dtype,
        size=size,
        affine=checked_affine(_affine(fields, path), path),
    )


def _fields(file: BinaryIO, path: Path) -> dict[str, str]:
    """The fields of a header, by their names in small letters; key/value pairs (":=") and comments left out."""
    magic = next_line(file, path) or ""
    if not re.fullmatch(r"NRRD000[1-6]", magic):
        raise ConcordctError(f"cannot read {path}: no NRRD magic in its first line")
    fields: dict[str, str] = {}
    while (line := next_line(file, path)) is not None and line != "":
        if line.startswith("#") or ":=" in line:
            continue
        name, colon, value = line.partition(":")
        name = _SYNONYMS.get(name.strip().lower(), name.strip().lower())
        if not colon:
            raise ConcordctError(f"{path}: expected 'field: value' in every header line, found {shown(line)}")
        if name in fields:
            raise ConcordctError(f"{path}: header field {shown(name)} stands twice")
        fields[name] = value.strip()
    if line is None and "data file" not in fields:
        raise ConcordctError(f"{path}: the header does not end, expected an empty line and voxels after it")
    return fields


def _affine(fields: dict[str, str], path: Path) -> NDArray[np.float64]:
    space = needed(fields, ("space",), path)
    if space.lower() not in _TO_LPS:
        raise ConcordctError(f"{path}: expected space left-posterior-superior, RAS or LAS, found {shown(space)}")
    if not _words(fields.get("space units", "")) <= _UNSAID | {"mm"}:
        raise ConcordctError(f"{path}: expected space units mm, found {shown(fields['space units'])}")
    kinds = [kind for kind in fields.get("kinds", "").split() if kind.lower() not in _SPATIAL]
    if kinds and "none" not in fields.get("space directions", ""):
        raise ConcordctError(f"{path}: expected axes of kind domain or space, found {shown(kinds[0])}")
    text = needed(fields, ("space directions",), path)
    for name in (*_BESIDE_DIRECTIONS, *_QUANTIZED):
        if not _words(fields.get(name, "")) <= _UNSAID | ({"mm"} if name == "units" else set()):
            raise ConcordctError(f"{path}: expected no {name} for voxels in HU along directions in mm, found some")
    vectors = re.findall(r"\(([^()]*)\)", text)
    # Axes beyond the third have one sample each (`checked_size`), and no direction.
    if not re.fullmatch(r"(\s*\([^()]*\)){3}(\s+none)*\s*", text):
        raise ConcordctError(f"{path}: expected three vectors in space directions, found {shown(text)}")
    affine = np.eye(4)
    for axis, vector in enumerate(vectors):
        affine[:3, axis] = numbers(vector.replace(",", " "), 3, "space directions", path)
    origin = needed(fields, ("space origin",), path)
    affine[:3, 3] = numbers(re.sub(r"[(),]", " ", origin), 3, "space origin", path)
    return np.diag([*_TO_LPS[space.lower()], 1.0]) @ affine


def _words(value: str) -> set[str]:
    """The words of a field, quoted or not."""
    return {quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|([^\s"]+)', value)}


def nrrd_header(
    size: tuple[int, int, int], dtype: np.dtype[Any], affine: NDArray[np.float64], *, note: str = ""
) -> bytes:
    """The header of a gzipped .nrrd with its empty line; affine: index (fastest first) to LPS mm."""

    def vector(values: NDArray[np.float64]) -> str:
        return "(" + ",".join(f"{value:.17g}" for value in values) + ")"

    lines = [
        "NRRD0004",
        f"type: {_WRITTEN[dtype.str[1:]]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, size))}",
        f"space directions: {' '.join(vector(affine[:3, axis]) for axis in range(3))}",
        "kinds: domain domain domain",
        *(["endian: little"] if dtype.itemsize > 1 else []),
        "encoding: gzip",
        f"space origin: {vector(affine[:3, 3])}",
        *([f"ITK_FileNotes:={note}"] if note else []),
    ]
    return ("\n".join(lines) + "\n\n").encode("ascii", "replace")
