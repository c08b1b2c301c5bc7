"""Line integrals and back projection on the CPU, many slices at a time.

Rays follow Joseph (1982), doi:10.1109/TMI.1982.4307572: along the axis that a ray crosses fastest, one linear
interpolation a row or column. The slice is the last and fastest axis ("lanes"): a ray's geometry is worked out once for
all slices and the innermost loop is a vector instruction, several times faster than one slice at a time. Lanes never
mix, so the number of slices in a call changes no bit of any of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.signal.compiled import compiled

#: Rays that are followed together; any value gives the same bits.
RAY_BLOCK = 128


@compiled
def _joseph(
    image: NDArray[np.float32],
    offset: NDArray[np.floating[Any]],
    slope: NDArray[np.floating[Any]],
    sums: NDArray[np.float32],
) -> None:
    # image is [main, cross, lane] with one pixel of zeros before and after on the cross axis; `offset` counts them.
    # Neighbouring rays walk side by side in blocks, so that they share the rows in the cache.
    n_main, n_cross, lanes = image.shape
    flat = image.reshape(-1)
    totals = sums.reshape(-1)
    for block in range(0, offset.size, RAY_BLOCK):
        end = min(block + RAY_BLOCK, offset.size)
        for main in range(n_main):
            row = main * n_cross
            for ray in range(block, end):
                cross = offset[ray] + slope[ray] * main
                if cross < 0.0 or cross >= n_cross - 1:
                    continue
                low = int(cross)
                upper = np.float32(cross - low)
                lower = np.float32(1.0) - upper
                near = np.uint64((row + low) * lanes)
                far = near + np.uint64(lanes)
                here = np.uint64(ray * lanes)
                for lane in range(np.uint64(lanes)):
                    totals[here + lane] += lower * flat[near + lane] + upper * flat[far + lane]


def line_integrals(
    image: NDArray[np.float32],
    pixel_mm: float,
    centre_mm: tuple[float, float],
    origin_mm: tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]],
    direction: tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]],
) -> NDArray[np.float32]:
    """Integrals of an image along infinite straight lines.

    Parameters
    ----------
    image : [y, x, lane] values per mm.
    pixel_mm, centre_mm : the image's lattice (`Frame`).
    origin_mm : (y, x) of a point on each ray, mm, each [ray].
    direction : (y, x) unit vectors, each [ray].

    Returns
    -------
    [ray, lane] float32, dimensionless.
    """
    ny, nx, lanes = image.shape
    py = (np.ravel(origin_mm[0]) - centre_mm[0]) / pixel_mm + (ny - 1) / 2
    px = (np.ravel(origin_mm[1]) - centre_mm[1]) / pixel_mm + (nx - 1) / 2
    dy, dx = np.ravel(direction[0]), np.ravel(direction[1])
    steep = np.abs(dy) >= np.abs(dx)
    sums = np.zeros((py.size, lanes), dtype=np.float32)
    for chosen, main, cross, d_main, d_cross, axes in (
        (steep, py, px, dy, dx, (0, 1, 2)),
        (~steep, px, py, dx, dy, (1, 0, 2)),
    ):
        slope = d_cross[chosen] / d_main[chosen]
        offset = cross[chosen] - slope * main[chosen] + 1.0
        padded = np.ascontiguousarray(np.pad(image.transpose(axes), ((0, 0), (1, 1), (0, 0))))
        part = np.zeros((slope.size, lanes), dtype=np.float32)
        _joseph(padded, offset, slope, part)
        sums[chosen] = part * np.float32(pixel_mm) * np.sqrt(1.0 + slope * slope).astype(np.float32)[:, None]
    return sums


@compiled
def _backproject(
    filtered: NDArray[np.float32],
    sine: NDArray[np.floating[Any]],
    cosine: NDArray[np.floating[Any]],
    first_mm: float,
    pitch_mm: float,
    y_mm: NDArray[np.floating[Any]],
    x_mm: NDArray[np.floating[Any]],
    image: NDArray[np.float32],
) -> None:
    views, bins, lanes = filtered.shape
    for iy in range(y_mm.size):
        for view in range(views):
            t = (x_mm[0] * cosine[view] + y_mm[iy] * sine[view] - first_mm) / pitch_mm
            dt = (x_mm[1] - x_mm[0]) * cosine[view] / pitch_mm
            for ix in range(x_mm.size):
                position = t + dt * ix
                low = int(position)
                if position < 0.0 or low + 1 >= bins:
                    continue
                upper = np.float32(position - low)
                for lane in range(lanes):
                    a = filtered[view, low, lane]
                    image[iy, ix, lane] += a + upper * (filtered[view, low + 1, lane] - a)


def add_backprojection(
    image: NDArray[np.float32],
    filtered: NDArray[np.float32],
    angles: NDArray[np.floating[Any]],
    first_mm: float,
    pitch_mm: float,
    y_mm: NDArray[np.floating[Any]],
    x_mm: NDArray[np.floating[Any]],
) -> None:
    """Smear filtered parallel projections back over the pixels of `image`, linear between detector bins, in place.

    Parameters
    ----------
    image : [y, x, lane] float32, to which the plain sum over views is added.
    filtered : [view, bin, lane]; bin b lies at first_mm + b * pitch_mm, where t = x cos(angle) + y sin(angle).
    angles : [view], radians.
    y_mm, x_mm : pixel centres, mm, equally spaced.
    """
    _backproject(
        np.ascontiguousarray(filtered),
        np.sin(angles),
        np.cos(angles),
        float(first_mm),
        float(pitch_mm),
        y_mm,
        x_mm,
        image,
    )
