"""Walls of irregular cells that fill space (Worley 1996, doi:10.1145/237170.237267), the same from every side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from concordct.scanner.shapes import Floats
from concordct.signal.compiled import compiled


@compiled
def _jitter(z, y, x, seed, axis):  # type: ignore[no-untyped-def]
    """A value in [0, 1) that depends on the lattice point, the seed and the axis alone (splitmix64's finalizer)."""
    h = np.uint64(z) * np.uint64(0x165667B19E3779F9) ^ np.uint64(y) * np.uint64(0x9E3779B97F4A7C15)
    h ^= np.uint64(x) * np.uint64(0xC2B2AE3D27D4EB4F) ^ np.uint64(seed * 3 + axis) * np.uint64(0x27D4EB2F165667C5)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    h ^= h >> np.uint64(31)
    return np.float64(h >> np.uint64(11)) / np.float64(2**53)


@compiled
def _walls(z, y_mm, x_mm, inside, cell, seed, distance):  # type: ignore[no-untyped-def]
    points = np.empty((27, 3))
    for i in range(y_mm.size):
        for j in range(x_mm.size):
            if not inside[i, j]:
                continue
            pz, py, px = z / cell, y_mm[i] / cell, x_mm[j] / cell
            z0, y0, x0 = int(np.floor(pz)), int(np.floor(py)), int(np.floor(px))
            nearest, least, k = 0, 1e9, 0
            for a in range(z0 - 1, z0 + 2):
                for b in range(y0 - 1, y0 + 2):
                    for c in range(x0 - 1, x0 + 2):
                        points[k, 0] = a + _jitter(a, b, c, seed, 0) - pz
                        points[k, 1] = b + _jitter(a, b, c, seed, 1) - py
                        points[k, 2] = c + _jitter(a, b, c, seed, 2) - px
                        d = points[k, 0] ** 2 + points[k, 1] ** 2 + points[k, 2] ** 2
                        if d < least:
                            nearest, least = k, d
                        k += 1
            best = 1e9
            for k in range(27):
                if k == nearest:
                    continue
                gap, middle = 0.0, 0.0
                for axis in range(3):
                    step = points[k, axis] - points[nearest, axis]
                    gap += step * step
                    middle += 0.5 * (points[k, axis] + points[nearest, axis]) * step
                best = min(best, middle / np.sqrt(max(gap, 1e-12)))
            distance[i, j] = best * cell


def wall_distance(
    z_mm: float, y_mm: Floats, x_mm: Floats, inside: NDArray[np.bool_], *, cell_mm: float, seed: int
) -> NDArray[np.float32]:
    """[y, x] distance to the nearest wall between cells about `cell_mm` wide; `cell_mm` outside of `inside`.

    Parameters
    ----------
    inside : [y, x], the pixels that are asked for.
    """
    distance = np.full(inside.shape, cell_mm, dtype=np.float32)
    if inside.any():
        y, x = np.asarray(y_mm, dtype=np.float64), np.asarray(x_mm, dtype=np.float64)
        _walls(float(z_mm), y, x, inside, float(cell_mm), int(seed), distance)
    return distance


def sheet_cover(distance: Floats, thickness_mm: float, pixel_mm: float) -> NDArray[np.float32]:
    """Share of each pixel that a sheet fills, from the distance to its middle; right in the sum for thin sheets."""
    half, edge = thickness_mm / 2, pixel_mm / 2
    overlap = np.minimum(distance + edge, half) - np.maximum(distance - edge, -half)
    return np.clip(overlap / pixel_mm, 0.0, 1.0).astype(np.float32)
