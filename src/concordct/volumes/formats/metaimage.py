"""MetaImage headers (.mha, .mhd; https://itk.org/Wiki/MetaIO/Documentation), raw or deflated with zlib.

The spacing and the offset have to be stated; a matrix that is not is the identity, as MetaIO documents it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.volumes.formats.layout import Layout, beside, checked_affine, checked_size, open_regular
from concordct.volumes.formats.text_header import needed, next_line, numbers, shown, whole_numbers

_TYPES = {"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
          "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8",
          "MET_FLOAT": "f4", "MET_DOUBLE": "f8"}  # fmt: skip
_WRITTEN = {"i1": "MET_CHAR", "u1": "MET_UCHAR", "i2": "MET_SHORT", "u2": "MET_USHORT", "i4": "MET_INT",
            "u4": "MET_UINT", "f4": "MET_FLOAT"}  # fmt: skip
_MATRIX = ("TransformMatrix", "Rotation", "Orientation")
_OFFSET = ("Offset", "Position", "Origin")
_ORDER = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
_SYNONYMS = {name: names[0] for names in (_MATRIX, _OFFSET, _ORDER) for name in names}
_LAST = "ElementDataFile"


def read_metaimage(path: Path) -> Layout:
    """The layout of a .mha or .mhd file.

    Raises
    ------
    ConcordctError : no MetaImage, a field that is missing, given twice or wrong, voxels as text or in several files or
        elsewhere than in, beside or below the header.
    """
    with open_regular(path) as (file, stamp):
        fields = _fields(file, path)
        start = file.tell()
    kind = fields.get("ObjectType", "Image")
    if kind != "Image":
        raise ConcordctError(f"{path}: expected ObjectType Image, found {shown(kind)}")
    if fields.get("NDims") != "3":
        raise ConcordctError(f"{shown(fields.get('NDims') or 'no')} dimensions, expected 3: {path}")
    (channels,) = whole_numbers(fields.get("ElementNumberOfChannels", "1"), 1, "ElementNumberOfChannels", path)
    if channels != 1:
        raise ConcordctError(f"{channels} numbers per voxel, expected one: {path}")
    element = needed(fields, ("ElementType",), path)
    if element not in _TYPES:
        raise ConcordctError(f"{path}: expected one integer or float as ElementType, found {shown(element)}")
    for name, right in (
        ("DistanceUnits", ("mm", "?")),
        ("Modality", ("MET_MOD_CT", "MET_MOD_OTHER", "MET_MOD_UNKNOWN")),
    ):
        if fields.get(name, right[0]) not in right:
            raise ConcordctError(f"{path}: expected {name} {right[0]}, found {shown(fields[name])}")
    if not _truth(fields, "BinaryData", path, otherwise=True):
        raise ConcordctError(f"{path}: expected binary voxels, found text")
    for name, neutral in (("ElementToIntensityFunctionSlope", 1), ("ElementToIntensityFunctionOffset", 0)):
        if name in fields and numbers(fields[name], 1, name, path) != [neutral]:
            raise ConcordctError(f"{path}: expected {name} {neutral}, found {shown(fields[name])}")
    dtype = np.dtype(_TYPES[element]).newbyteorder(">" if _truth(fields, _ORDER[0], path) else "<")
    size = checked_size(whole_numbers(needed(fields, ("DimSize",), path), 3, "DimSize", path), dtype, path)
    compressed = _truth(fields, "CompressedData", path)
    stored = None
    if compressed and "CompressedDataSize" in fields:
        (stored,) = whole_numbers(fields["CompressedDataSize"], 1, "CompressedDataSize", path)
    if "CenterOfRotation" in fields:
        numbers(fields["CenterOfRotation"], 3, "CenterOfRotation", path)
    data, name = path, fields[_LAST]
    (header_size,) = whole_numbers(fields.get("HeaderSize", "0"), 1, "HeaderSize", path)
    if name.upper() != "LOCAL":
        if name.split()[:1] == ["LIST"] or "%" in name:
            raise ConcordctError(f"{path}: expected voxels in one file, found a list of files")
        data, start = beside(path, name), 0
        with open_regular(data) as (_, stamp):
            pass
        voxel_bytes = int(np.prod(size, dtype=object)) * dtype.itemsize
        if header_size == -1 and not compressed:  # the voxels are what the file ends with
            start = max(stamp[2] - voxel_bytes, 0)
        elif header_size >= 0:
            start = header_size
        else:
            raise ConcordctError(f"{path}: expected HeaderSize of 0 or more, found {header_size}")
    elif compressed and stored is None:
        raise ConcordctError(f"{path}: expected CompressedDataSize where deflated voxels follow, found none")
    elif header_size not in (0, -1):
        raise ConcordctError(f"{path}: expected no HeaderSize where the voxels follow, found {header_size}")
    notes = () if _MATRIX[0] in fields else ("MetaImage without TransformMatrix: its axes are taken as the patient's",)
    return Layout(
        path=path,
        data=data,
        stamp=stamp,
        encoding="zlib" if compressed else "raw",
        start=start,
        skip=0,
        dtype=dtype,
        size=size,
        stored_bytes=stored,
        affine=checked_affine(_affine(fields, path), path),
        notes=notes,
    )


def _fields(file: BinaryIO, path: Path) -> dict[str, str]:
    """The fields of a header up to the name of the data file, which ends it."""
    fields: dict[str, str] = {}
    while (line := next_line(file, path)) is not None:
        name, equals, value = line.partition("=")
        name = _SYNONYMS.get(name.strip(), name.strip())
        if not equals:
            if not line.strip():
                continue
            raise ConcordctError(f"cannot read {path}: expected 'field = value' lines, found other bytes")
        if name in fields:
            raise ConcordctError(f"{path}: header field {shown(name)} stands twice")
        if not value.strip():
            raise ConcordctError(f"{path}: header field {shown(name)} is empty")
        fields[name] = value.strip()
        if name == _LAST:
            return fields
    raise ConcordctError(f"cannot read {path}: no {_LAST} in its header")


def _truth(fields: dict[str, str], name: str, path: Path, *, otherwise: bool = False) -> bool:
    if name not in fields:
        return otherwise
    if fields[name].lower() not in ("true", "false", "1", "0", "t", "f"):
        raise ConcordctError(f"{path}: expected True or False in {name}, found {shown(fields[name])}")
    return fields[name].lower() in ("true", "1", "t")


def _affine(fields: dict[str, str], path: Path) -> NDArray[np.float64]:
    # MetaIO: the voxel's own size stands in for the distance of voxels where that is not given.
    stated = needed(fields, ("ElementSpacing", "ElementSize"), path)
    spacing = numbers(stated, 3, "ElementSpacing", path)
    origin = numbers(needed(fields, (_OFFSET[0],), path), 3, _OFFSET[0], path)
    if min(spacing) <= 0:
        raise ConcordctError(f"{path}: expected a positive ElementSpacing, found {shown(stated)}")
    affine = np.eye(4)
    if _MATRIX[0] in fields:
        # Its rows are the directions of the axes.
        affine[:3, :3] = np.reshape(numbers(fields[_MATRIX[0]], 9, _MATRIX[0], path), (3, 3)).T
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(lengths - 1).max() > 1e-3:
        raise ConcordctError(f"{path}: expected unit vectors in {_MATRIX[0]}, found one of length {lengths.max():.4g}")
    affine[:3, :3] *= spacing
    affine[:3, 3] = origin
    return affine


def metaimage_header(
    size: tuple[int, int, int],
    dtype: np.dtype[Any],
    affine: NDArray[np.float64],
    *,
    stored_bytes: int,
    data: str = "LOCAL",
    note: str = "",
) -> bytes:
    """The header of a deflated MetaImage; affine: index (fastest first) to LPS mm, `stored_bytes` those deflated."""

    def row(values: Any) -> str:
        return " ".join(f"{float(value):.17g}" for value in np.ravel(values))

    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        *([f"Comment = {note}"] if note else []),
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {stored_bytes}",
        f"TransformMatrix = {row((affine[:3, :3] / spacing).T)}",
        f"Offset = {row(affine[:3, 3])}",
        "CenterOfRotation = 0 0 0",
        "AnatomicalOrientation = RAI",
        f"ElementSpacing = {row(spacing)}",
        f"DimSize = {' '.join(map(str, size))}",
        f"ElementType = {_WRITTEN[dtype.str[1:]]}",
        f"ElementDataFile = {data}",
    ]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")
