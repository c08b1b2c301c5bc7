"""NIfTI-1 and NIfTI-2 headers, read and written field by field.

Sources: nifti1.h and nifti2.h (https://nifti.nimh.nih.gov). A coded sform is the geometry, else a coded qform; with
neither the format leaves the orientation open, and a note says so. NIfTI counts RAS, everything here LPS.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.volumes.formats.layout import (
    Encoding,
    Layout,
    checked_affine,
    checked_size,
    extent_mm,
    open_regular,
)

#: sform and qform that place a corner this far apart (mm) are two answers; the note names the distance.
SAME_FORM_MM = 0.1
#: A qform is written only where it holds the geometry this exactly (mm); float32 itself costs a tenth of it.
QFORM_MM = 1e-2
#: nifti1.h and nifti2.h: unknown, scanner, aligned, Talairach, MNI, another template.
MOST_FORM_CODE = 5
#: How far from 1 a sign may be stored.
QFAC_ROUNDING = 1e-3
#: Header extensions of real files stay below; bounds what is inflated before the first voxel.
MAX_OFFSET = 2**24

_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MILLIMETRES = 2
_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_CODES = {name: code for code, name in _TYPES.items()}
_NOT_ONE_NUMBER = {32: "2 numbers per voxel (complex)", 1792: "2 numbers per voxel (complex)",
                   2048: "2 numbers per voxel (complex)", 128: "3 numbers per voxel (RGB)",
                   2304: "4 numbers per voxel (RGBA)"}  # fmt: skip
_VERSION_1 = [("sizeof_hdr", "i4"), ("unused", "S35"), ("dim_info", "u1"), ("dim", "i2", 8), ("intent_p", "f4", 3),
              ("intent_code", "i2"), ("datatype", "i2"), ("bitpix", "i2"), ("slice_start", "i2"), ("pixdim", "f4", 8),
              ("vox_offset", "f4"), ("scl_slope", "f4"), ("scl_inter", "f4"), ("slice_end", "i2"),
              ("slice_code", "u1"), ("xyzt_units", "u1"), ("cal", "f4", 2), ("slice_duration", "f4"),
              ("toffset", "f4"), ("glmax", "i4", 2), ("descrip", "S80"), ("aux_file", "S24"), ("qform_code", "i2"),
              ("sform_code", "i2"), ("quatern", "f4", 3), ("qoffset", "f4", 3), ("srow", "f4", (3, 4)),
              ("intent_name", "S16"), ("magic", "V4")]  # fmt: skip
_VERSION_2 = [("sizeof_hdr", "i4"), ("magic", "V8"), ("datatype", "i2"), ("bitpix", "i2"), ("dim", "i8", 8),
              ("intent_p", "f8", 3), ("pixdim", "f8", 8), ("vox_offset", "i8"), ("scl_slope", "f8"),
              ("scl_inter", "f8"), ("cal", "f8", 2), ("slice_duration", "f8"), ("toffset", "f8"),
              ("slice_start", "i8"), ("slice_end", "i8"), ("descrip", "S80"), ("aux_file", "S24"),
              ("qform_code", "i4"), ("sform_code", "i4"), ("quatern", "f8", 3), ("qoffset", "f8", 3),
              ("srow", "f8", (3, 4)), ("slice_code", "i4"), ("xyzt_units", "i4"), ("intent_code", "i4"),
              ("intent_name", "S16"), ("dim_info", "u1"), ("unused", "S15")]  # fmt: skip
_SIZES = {348: _VERSION_1, 540: _VERSION_2}
_GEOMETRY = ("qform_code", "sform_code", "quatern", "qoffset", "srow")


def read_nifti(path: Path) -> Layout:
    """The layout of a single-file NIfTI, plain or gzipped.

    Raises
    ------
    ConcordctError : no NIfTI, a pair of files, other than one real number for each of three-dimensional voxels, a unit
        other than mm, an offset inside the header, or a geometry that spans no space.
    """
    encoding: Encoding = "gzip" if path.name.lower().endswith(".gz") else "raw"
    with open_regular(path) as (file, stamp):
        raw = _head(file, encoding, path)
    header = _fields(raw, path)
    code = int(header["datatype"])
    if code in _NOT_ONE_NUMBER:
        raise ConcordctError(f"{_NOT_ONE_NUMBER[code]}, expected one: {path}")
    if code not in _TYPES:
        raise ConcordctError(f"NIfTI data type {code}, expected an integer or float type up to 64 bits: {path}")
    dtype = np.dtype(_TYPES[code])
    if header.dtype["datatype"].byteorder == ">":
        dtype = dtype.newbyteorder(">")
    if int(header["bitpix"]) != 8 * dtype.itemsize:
        raise ConcordctError(f"{int(header['bitpix'])} bits per voxel, expected {8 * dtype.itemsize}: {path}")
    dimensions = int(header["dim"][0])
    if not 1 <= dimensions <= 7:
        raise ConcordctError(f"{dimensions} dimensions, expected 3: {path}")
    sizes = [int(n) for n in header["dim"][1 : 1 + dimensions]]
    if dimensions > 4 and sizes[3] == 1 and sizes[4] > 1:  # nifti1.h: the fifth dimension holds vectors
        raise ConcordctError(f"{sizes[4]} numbers per voxel, expected one: {path}")
    size = checked_size(sizes, dtype, path)
    if int(header["xyzt_units"]) & 7 not in (0, _MILLIMETRES):
        raise ConcordctError(f"spatial unit {int(header['xyzt_units']) & 7}, expected 2 (mm): {path}")
    offset = float(header["vox_offset"])
    least = 352 if header.dtype.itemsize == 348 else 544
    if not least <= offset <= MAX_OFFSET or offset != int(offset):
        raise ConcordctError(f"voxels at byte {offset:g}, expected {least} to {MAX_OFFSET}: {path}")
    # nifti1.h: scl_slope of 0 means that neither is used.
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not math.isfinite(slope) or slope == 0:
        slope, inter = 1.0, 0.0
    if not math.isfinite(inter):
        raise ConcordctError(f"scl_inter is not finite: {path}")
    with np.errstate(all="ignore"):  # what overflows is refused below
        affine, notes = _geometry(header, size, path)
        affine = _TO_LPS @ affine
    whole = encoding == "gzip"
    return Layout(
        path=path,
        data=path,
        stamp=stamp,
        encoding=encoding,
        start=0 if whole else int(offset),
        skip=int(offset) if whole else 0,
        dtype=dtype,
        size=size,
        slope=slope,
        inter=inter,
        affine=checked_affine(affine, path),
        notes=notes,
        nifti={
            "pixdim": tuple(header["pixdim"][:4].tolist()),
            **{name: tuple(np.ravel(header[name]).tolist()) for name in _GEOMETRY},
            "quatern": tuple((header["quatern"] / max(1.0, float(np.linalg.norm(header["quatern"])))).tolist()),
        },
    )


def _head(file: BinaryIO, encoding: Encoding, path: Path) -> bytes:
    raw = file.read(2**14)
    if encoding == "gzip":
        found, rest = b"", raw
        try:
            while len(found) < 540 and rest:  # members follow each other, RFC 1952 2.2
                inflater = zlib.decompressobj(31)
                found += inflater.decompress(rest, 540)
                rest = inflater.unused_data.lstrip(b"\0")
        except zlib.error:
            if not found:
                raise ConcordctError(f"cannot read {path}: its name ends in .gz but it is not gzipped") from None
        raw = found
    return raw[:540]


def _fields(raw: bytes, path: Path) -> Any:
    orders: tuple[Literal["<"], Literal[">"]] = ("<", ">")
    for order in orders:
        length = int.from_bytes(raw[:4], "little" if order == "<" else "big")
        if length in _SIZES and len(raw) >= length:
            header = np.frombuffer(raw[:length], np.dtype(_SIZES[length]).newbyteorder(order))[0]
            magic = bytes(header["magic"])[:4]
            if magic in (b"ni1\0", b"ni2\0"):
                raise ConcordctError(f"the header of a NIfTI pair, expected header and voxels in one file: {path}")
            if magic != (b"n+1\0" if length == 348 else b"n+2\0"):
                raise ConcordctError(f"cannot read {path}: no NIfTI magic in its header (Analyze 7.5 is not read)")
            return header
    if raw[:2] == b"\x1f\x8b":
        raise ConcordctError(f"cannot read {path}: it is gzipped, expected a name that ends in .nii.gz")
    raise ConcordctError(f"cannot read {path}: no NIfTI header ({len(raw)} bytes looked at)")


def _geometry(header: Any, size: tuple[int, int, int], path: Path) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """[4, 4] index to RAS mm, and notes."""
    sform = qform = None
    for name in ("sform_code", "qform_code"):
        if int(header[name]) > MOST_FORM_CODE:  # readers differ: the form counts, or does not
            raise ConcordctError(f"{name} {int(header[name])}, expected 0 to {MOST_FORM_CODE}: {path}")
    if int(header["sform_code"]) > 0:
        sform = np.vstack([header["srow"].astype(np.float64), [0, 0, 0, 1]])
    if int(header["qform_code"]) > 0:
        qform = _from_quaternion(header, path, needed=sform is None)
    if sform is not None:
        apart = extent_mm(sform, qform, size) if qform is not None else 0.0
        note = f"sform and qform place voxels up to {apart:.3g} mm apart: the sform counts"
        return sform, (note,) if apart > SAME_FORM_MM else ()
    if qform is not None:
        return qform, ()
    spacing = header["pixdim"][1:4].astype(np.float64)
    if not spacing.min() > 0:
        raise ConcordctError(f"neither a coded sform nor qform, and pixdim that is not positive: {path}")
    note = "NIfTI without qform and sform: its orientation is a guess of the format"
    return _TO_LPS @ np.diag([*spacing, 1.0]), (note,)


#: A half turn has a = 0, which float32 cannot leave to b, c and d: what is below its rounding counts as 0.
HALF_TURN = 3 * float(np.finfo(np.float32).eps)


#: b, c and d of a half turn, each rounded to four digits, may be longer than 1 by this (squared); nifti1_io.c, too,
#: makes them a unit vector.
QUATERNION_ROUNDING = 1e-3


def _from_quaternion(header: Any, path: Path, *, needed: bool) -> NDArray[np.float64] | None:
    """[4, 4] by nifti1.h METHOD 2; one that is broken is refused where it is needed, else None."""
    b, c, d = (float(value) for value in header["quatern"])
    spacing = header["pixdim"][1:4].astype(np.float64)
    rest = 1.0 - (b * b + c * c + d * d)
    handedness = float(header["pixdim"][0])
    if needed and abs(abs(handedness) - 1.0) > QFAC_ROUNDING and handedness != 0:  # nifti1.h: 0 counts as 1
        raise ConcordctError(f"pixdim[0] of {handedness:g}, which turns the qform, expected -1 or 1: {path}")
    if not rest > -QUATERNION_ROUNDING or not spacing.min() > 0 or not np.isfinite(header["qoffset"]).all():
        if needed:
            raise ConcordctError(f"the qform is no rotation with positive pixdim: {path}")
        return None
    a = math.sqrt(max(rest, 0.0))
    if rest < HALF_TURN:
        scale = 1 / math.sqrt(b * b + c * c + d * d)
        a, b, c, d = 0.0, b * scale, c * scale, d * scale
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    if handedness < 0:
        turn[:, 2] *= -1
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = header["qoffset"]
    return affine


def nifti_geometry(affine: NDArray[np.float64], size: tuple[int, int, int]) -> dict[str, tuple[float, ...]]:
    """The geometry fields for an affine (index to LPS mm): in the sform, and in the qform where it can hold it."""
    from scipy.spatial.transform import Rotation

    ras = _TO_LPS @ affine
    spacing = np.linalg.norm(ras[:3, :3], axis=0)
    left, _, right = np.linalg.svd(ras[:3, :3] / spacing)
    turn = left @ right  # the orthogonal matrix that is nearest
    sign = 1.0 if np.linalg.det(turn) > 0 else -1.0
    turn[:, 2] *= sign
    x, y, z, w = Rotation.from_matrix(turn).as_quat()
    quaternion = np.array([x, y, z]) * (1.0 if w >= 0 else -1.0)
    fields = {
        "pixdim": (sign, *spacing),
        "qform_code": (1,),
        "sform_code": (1,),
        "quatern": tuple(quaternion),
        "qoffset": tuple(ras[:3, 3]),
        "srow": tuple(ras[:3].ravel()),
    }
    header = _filled(_VERSION_1, fields)[0]
    held = _from_quaternion(header, Path(), needed=False)
    if held is None or extent_mm(held, ras, size) > QFORM_MM:
        fields["qform_code"] = (0,)
    return {name: tuple(float(value) for value in values) for name, values in fields.items()}


def nifti_header(
    size: tuple[int, int, int], dtype: np.dtype[Any], geometry: dict[str, tuple[float, ...]], *, note: str = ""
) -> bytes:
    """The header of a NIfTI-1 file, up to its first voxel.

    Parameters
    ----------
    size : along the file's axes, fastest first, each below 32768.
    geometry : from `nifti_geometry`, or that of a source of the same grid.
    note : at most 79 characters, in `descrip`.
    """
    fields: dict[str, Any] = {
        **geometry,
        "sizeof_hdr": 348,
        "dim": (3, *size, 1, 1, 1, 1),
        "datatype": _CODES[dtype.str[1:]],
        "bitpix": 8 * dtype.itemsize,
        "vox_offset": 352,
        "scl_slope": 1,
        "xyzt_units": _MILLIMETRES,
        "descrip": note.encode("ascii", "replace")[:79],
        "magic": b"n+1\0",
        "pixdim": (*geometry["pixdim"], 1, 0, 0, 0),
    }
    return _filled(_VERSION_1, fields).tobytes() + bytes(4)


def _filled(version: list[Any], fields: dict[str, Any]) -> NDArray[Any]:
    header = np.zeros(1, np.dtype(version).newbyteorder("<"))
    for name, value in fields.items():
        place = header[name]
        if name == "pixdim":
            place[0, : len(value)] = value
        elif name == "magic":
            place[0] = np.void(value)
        elif isinstance(value, tuple):
            place[0] = np.reshape(value, place.shape[1:]) if place.ndim > 1 else value[0]
        else:
            place[0] = value
    return header
