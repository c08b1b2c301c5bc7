"""Voxels small enough to travel inside one HTML file.

A slice is rounded to int16 HU, predicted by the median edge detector of LOCO-I (Weinberger et al. 2000,
doi:10.1109/83.855427), its residuals folded to unsigned, split into a low and a high byte plane, and deflated. The
browser undoes this with its own DecompressionStream (`assets/voxels.js`), so no decoder travels along. On real chest
CT this takes three quarters of what a plain deflate of horizontal differences takes.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.volumes.volume import BODY_ABOVE_HU

#: Air kept around the body, so that its rim can be judged, voxels.
CROP_MARGIN = 8

#: Slices measured to predict the size of all of them.
_PROBES = 6


@dataclass(frozen=True)
class KeptVoxels:
    """What of the volumes a report holds.

    Attributes
    ----------
    slices : indices along z, ascending; empty when not even one slice fits.
    rows, columns : half-open ranges in the full slice.
    shape : (z, y, x) of the volumes before anything was left out.
    """

    slices: tuple[int, ...]
    rows: tuple[int, int]
    columns: tuple[int, int]
    shape: tuple[int, int, int]

    @property
    def cropped(self) -> bool:
        """True when rows or columns were left out."""
        return self.rows != (0, self.shape[1]) or self.columns != (0, self.shape[2])


def to_int16(hu: NDArray[Any]) -> NDArray[np.int16]:
    """HU rounded to whole numbers and held within int16; the same shape."""
    limits = np.iinfo(np.int16)
    if hu.dtype == np.int16:
        return hu
    return np.clip(np.rint(hu), limits.min, limits.max).astype(np.int16)


def encode_slice(hu: NDArray[np.int16]) -> str:
    """One slice as base64 text.

    Parameters
    ----------
    hu : [y, x] int16, Hounsfield units.
    """
    values = hu.astype(np.int32)  # [y, x]
    west, north, corner = (np.zeros_like(values) for _ in range(3))
    west[:, 1:] = values[:, :-1]
    north[1:] = values[:-1]
    corner[1:, 1:] = values[:-1, :-1]
    west[1:, 0] = north[1:, 0]
    corner[1:, 0] = north[1:, 0]
    north[0] = corner[0] = west[0]
    # Weinberger 2000, eq. (1)
    low, high = np.minimum(west, north), np.maximum(west, north)
    predicted = np.where(corner >= high, low, np.where(corner <= low, high, west + north - corner))
    residual = (values - predicted).astype(np.int16)
    folded = ((residual << 1) ^ (residual >> 15)).astype("<u2")
    planes = folded.view(np.uint8).reshape(-1, 2).T.tobytes()
    # Noise holds no repeats worth a search: run lengths and Huffman codes alone are smaller and six times faster.
    deflate = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    return base64.b64encode(deflate.compress(planes) + deflate.flush()).decode("ascii")


def body_box(volumes: Sequence[NDArray[Any]]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns (half-open) that hold every voxel above `BODY_ABOVE_HU` of any volume, with `CROP_MARGIN`.

    Parameters
    ----------
    volumes : each [z, y, x], HU, all of one shape. Without any body the whole slice is returned.
    """
    _, height, width = volumes[0].shape
    flat = np.zeros((height, width), dtype=bool)
    for volume in volumes:
        for plane in volume:
            flat |= plane > BODY_ABOVE_HU
    if not flat.any():
        return (0, height), (0, width)

    def span(line: NDArray[np.bool_]) -> tuple[int, int]:
        inside = np.flatnonzero(line)
        return max(0, int(inside[0]) - CROP_MARGIN), min(line.size, int(inside[-1]) + 1 + CROP_MARGIN)

    return span(np.asarray(flat.any(axis=1))), span(np.asarray(flat.any(axis=0)))


def evenly(count: int, total: int) -> tuple[int, ...]:
    """`count` of `total` indices, evenly spaced, ends included; the middle one when `count` is 1."""
    if count >= total:
        return tuple(range(total))
    if count == 1:
        return (total // 2,)
    return tuple(int(i) for i in np.rint(np.linspace(0, total - 1, count)))


def pack(volumes: Sequence[NDArray[Any]], *, max_bytes: int) -> tuple[KeptVoxels, list[list[str]]]:
    """As much of the volumes as `max_bytes` holds: everything, else the body, else the body of evenly spaced slices.

    Parameters
    ----------
    volumes : each [z, y, x], HU, all of one shape.
    max_bytes : for the text of all volumes together.

    Returns
    -------
    What was kept, and for every volume the text of every kept slice.
    """
    depth, height, width = volumes[0].shape
    shape = (depth, height, width)

    def encode(index: int, rows: tuple[int, int], columns: tuple[int, int]) -> list[str]:
        return [encode_slice(to_int16(v[index, slice(*rows), slice(*columns)])) for v in volumes]

    def size(texts: list[str]) -> int:
        return sum(len(text) + 1 for text in texts)

    def mean_size(rows: tuple[int, int], columns: tuple[int, int]) -> float:
        return float(np.mean([size(encode(i, rows, columns)) for i in evenly(min(_PROBES, depth), depth)]))

    rows, columns = (0, height), (0, width)
    per_slice = mean_size(rows, columns)
    if per_slice * depth > max_bytes:
        rows, columns = body_box(volumes)
        per_slice = mean_size(rows, columns)
    count = min(depth, int(max_bytes / per_slice))
    while count > 0:
        slices = evenly(count, depth)
        texts = [encode(i, rows, columns) for i in slices]  # [slice][volume]
        total = sum(size(t) for t in texts)
        if total <= max_bytes:
            return KeptVoxels(slices, rows, columns, shape), [list(t) for t in zip(*texts, strict=True)]
        count = min(count - 1, int(count * max_bytes / total))
    return KeptVoxels((), rows, columns, shape), [[] for _ in volumes]
