"""Brushes for drawing bodies: tubes as chains of tapering capsules, noise that is the same from every side, soft edges.

Everything is a function of the position in millimetres, so that planes can be drawn in any order and at any height and
still belong to one body.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.signal.compiled import compiled

Floats = NDArray[np.floating[Any]]
#: A scalar or an array: planes are drawn at one height, points lie at many.
Numbers = Floats | np.floating[Any] | float

#: Columns of a segment: z, y, x of the start, z, y, x of the end, radius at the start and at the end (mm).
SEGMENT_COLUMNS = 8


@compiled
def _touched(az, ay, ax, dz, dy, dx, margin, y0, x0, pixel, ny, nx):  # type: ignore[no-untyped-def]
    """Rows and columns that the part of a segment near the plane can reach."""
    t0, t1 = 0.0, 1.0
    if abs(dz) > 1e-6:
        ta, tb = (-margin - az) / dz, (margin - az) / dz
        t0, t1 = max(0.0, min(ta, tb)), min(1.0, max(ta, tb))
        if t0 > t1:
            return 0, -1, 0, -1
    ya, yb = ay + t0 * dy, ay + t1 * dy
    xa, xb = ax + t0 * dx, ax + t1 * dx
    i0 = max(0, int(np.floor((min(ya, yb) - margin - y0) / pixel)))
    i1 = min(ny - 1, int(np.ceil((max(ya, yb) + margin - y0) / pixel)))
    j0 = max(0, int(np.floor((min(xa, xb) - margin - x0) / pixel)))
    j1 = min(nx - 1, int(np.ceil((max(xa, xb) + margin - x0) / pixel)))
    return i0, i1, j0, j1


@compiled
def _paint_distance(segments, z, stretch, y0, x0, pixel, reach, distance):  # type: ignore[no-untyped-def]
    ny, nx = distance.shape
    for s in range(segments.shape[0]):
        az, ay, ax = (segments[s, 0] - z) / stretch, segments[s, 1], segments[s, 2]
        bz, by, bx = (segments[s, 3] - z) / stretch, segments[s, 4], segments[s, 5]
        ra, rb = segments[s, 6], segments[s, 7]
        margin = max(ra, rb) + reach
        if min(az, bz) > margin or max(az, bz) < -margin:
            continue
        dz, dy, dx = bz - az, by - ay, bx - ax
        length2 = max(dz * dz + dy * dy + dx * dx, 1e-9)
        i0, i1, j0, j1 = _touched(az, ay, ax, dz, dy, dx, margin, y0, x0, pixel, ny, nx)
        for i in range(i0, i1 + 1):
            py = y0 + i * pixel - ay
            for j in range(j0, j1 + 1):
                px = x0 + j * pixel - ax
                t = (py * dy + px * dx - az * dz) / length2
                t = min(1.0, max(0.0, t))
                ez, ey, ex = -az - t * dz, py - t * dy, px - t * dx
                d = np.sqrt(ez * ez + ey * ey + ex * ex) - (ra + t * (rb - ra))
                if d < distance[i, j]:
                    distance[i, j] = d


def _near(segments: Floats, z_mm: float, reach_mm: float, stretch: float) -> Floats:
    """The segments that come within reach of a plane."""
    low = np.minimum(segments[:, 0], segments[:, 3]) - z_mm
    high = np.maximum(segments[:, 0], segments[:, 3]) - z_mm
    margin = (np.maximum(segments[:, 6], segments[:, 7]) + reach_mm) * stretch
    return segments[(low <= margin) & (high >= -margin)]


def tube_plane(
    segments: Floats, z_mm: float, y_mm: Floats, x_mm: Floats, *, reach_mm: float, stretch: float = 1.0
) -> NDArray[np.float32]:
    """Signed distance of a plane's pixels to the nearest tube, up to `reach_mm` outside; `reach_mm` beyond.

    Parameters
    ----------
    segments : [segment, 8] see `SEGMENT_COLUMNS`.
    stretch : tubes are this much taller along z than they are wide (ribs).
    """
    distance = np.full((y_mm.size, x_mm.size), reach_mm, dtype=np.float32)
    near = _near(segments, z_mm, reach_mm, stretch)
    if near.size:
        pixel = float(x_mm[1] - x_mm[0])
        _paint_distance(near, float(z_mm), float(stretch), float(y_mm[0]), float(x_mm[0]), pixel, reach_mm, distance)
    return distance


@compiled
def _paint_coverage(segments, z, y0, x0, pixel, coverage):  # type: ignore[no-untyped-def]
    ny, nx = coverage.shape
    for s in range(segments.shape[0]):
        az, ay, ax = segments[s, 0] - z, segments[s, 1], segments[s, 2]
        bz, by, bx = segments[s, 3] - z, segments[s, 4], segments[s, 5]
        ra, rb = segments[s, 6], segments[s, 7]
        margin = max(ra, rb) + pixel / 2
        dz, dy, dx = bz - az, by - ay, bx - ax
        length2 = max(dz * dz + dy * dy + dx * dx, 1e-9)
        i0, i1, j0, j1 = _touched(az, ay, ax, dz, dy, dx, margin, y0, x0, pixel, ny, nx)
        for i in range(i0, i1 + 1):
            py = y0 + i * pixel - ay
            for j in range(j0, j1 + 1):
                px = x0 + j * pixel - ax
                t = (py * dy + px * dx - az * dz) / length2
                t = min(1.0, max(0.0, t))
                ez, ey, ex = -az - t * dz, py - t * dy, px - t * dx
                r = ra + t * (rb - ra)
                d = np.sqrt(ez * ez + ey * ey + ex * ex)
                w = (r - d) / pixel + 0.5
                if w <= 0.0:
                    continue
                w = min(w, 1.0)
                # A soft-edged disc holds more than pi r^2; a vessel thinner than a pixel must not look thicker.
                if r < pixel / 2:
                    w *= 3.0 * pixel * r * r / (r + pixel / 2) ** 3
                else:
                    w *= r * r / (r * r + pixel * pixel / 12.0)
                if w > coverage[i, j]:
                    coverage[i, j] = w


def tube_coverage(segments: Floats, z_mm: float, y_mm: Floats, x_mm: Floats) -> NDArray[np.float32]:
    """[y, x] share of each pixel that lies within a tube, right in the sum for tubes thinner than a pixel."""
    coverage = np.zeros((y_mm.size, x_mm.size), dtype=np.float32)
    pixel = float(x_mm[1] - x_mm[0])
    near = _near(segments, z_mm, pixel, 1.0)
    if near.size:
        _paint_coverage(near, float(z_mm), float(y_mm[0]), float(x_mm[0]), pixel, coverage)
    return coverage


@compiled
def _points_distance(segments, points, distance):  # type: ignore[no-untyped-def]
    for k in range(points.shape[0]):
        best = 1e9
        for s in range(segments.shape[0]):
            dz, dy, dx = (
                segments[s, 3] - segments[s, 0],
                segments[s, 4] - segments[s, 1],
                segments[s, 5] - segments[s, 2],
            )
            ez, ey, ex = points[k, 0] - segments[s, 0], points[k, 1] - segments[s, 1], points[k, 2] - segments[s, 2]
            t = (ez * dz + ey * dy + ex * dx) / max(dz * dz + dy * dy + dx * dx, 1e-9)
            t = min(1.0, max(0.0, t))
            ez, ey, ex = ez - t * dz, ey - t * dy, ex - t * dx
            d = np.sqrt(ez * ez + ey * ey + ex * ex) - (segments[s, 6] + t * (segments[s, 7] - segments[s, 6]))
            best = min(best, d)
        distance[k] = best


def tube_points(segments: Floats, points: Floats) -> NDArray[np.float64]:
    """[point] signed distance of points [point, (z, y, x)] to the nearest tube, mm."""
    distance = np.empty(len(points))
    _points_distance(segments, np.ascontiguousarray(points, dtype=np.float64), distance)
    return distance


def chain(points: Floats, radii: Floats | float) -> NDArray[np.float64]:
    """A polyline [n, (z, y, x)] with radii [n] as [n - 1, 8] segments."""
    points = np.asarray(points, dtype=np.float64)
    r = np.broadcast_to(np.asarray(radii, dtype=np.float64), len(points))
    return np.column_stack([points[:-1], points[1:], r[:-1], r[1:]])


def cover(distance: Floats, pixel_mm: float) -> NDArray[np.float32]:
    """Share of each pixel inside a surface, from the signed distance (negative inside), mm."""
    return np.clip(0.5 - distance / pixel_mm, 0.0, 1.0).astype(np.float32)


def blend(hu: NDArray[np.float32], share: Floats, value: Floats | float) -> None:
    """Paint `value` over `hu` in place where `share` says."""
    hu += share.astype(np.float32) * (np.asarray(value, dtype=np.float32) - hu)


def smooth_union(distances: Sequence[Floats], softness_mm: float) -> Floats:
    """Union of shapes with fillets: -k log sum exp(-d / k)."""
    stacked = np.stack(distances)
    least = stacked.min(axis=0)
    return least - softness_mm * np.log(np.exp(-(stacked - least) / softness_mm).sum(axis=0))


@compiled
def _mixed(h):  # type: ignore[no-untyped-def]
    """A value in [-1, 1) from a lattice point's number (splitmix64's finalizer)."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    h ^= h >> np.uint64(31)
    return np.float32(h >> np.uint64(40)) / np.float32(8388608.0) - np.float32(1.0)


@compiled
def _layer(ys, xs, below, above, rest, part, layer):  # type: ignore[no-untyped-def]
    """Lattice values of the planes below and above, as far as each counts, at the rows and columns given."""
    for i in range(ys.size):
        row = np.uint64(ys[i]) * np.uint64(0x9E3779B97F4A7C15)
        for j in range(xs.size):
            h = row ^ np.uint64(xs[j]) * np.uint64(0xC2B2AE3D27D4EB4F)
            layer[i, j] = rest * _mixed(h ^ below) + part * _mixed(h ^ above)


def _key(z: int, seed: int) -> np.uint64:
    return np.uint64((z * 0x165667B19E3779F9 + seed * 0x27D4EB2F165667C5) & 0xFFFFFFFFFFFFFFFF)


def _between(
    nodes: NDArray[np.float32], known: NDArray[np.int64], low: NDArray[np.int64], position: Floats, axis: int
) -> NDArray[np.float32]:
    """Nodes, of which those named are known, read at positions along one axis, smoothly (Hermite's smoothstep)."""
    u = position - low
    u = (u * u * (3.0 - 2.0 * u)).astype(np.float32)
    u = u[:, None] if axis == 0 else u[None]
    near, far = (np.take(nodes, np.searchsorted(known, at), axis) for at in (low, low + 1))
    return np.asarray(near + u * (far - near), dtype=np.float32)


def lattice_noise(z_mm: float, y_mm: Floats, x_mm: Floats, *, cell_mm: float, seed: int) -> NDArray[np.float32]:
    """[y, x] smooth random field of about unit variance whose grains are `cell_mm` wide, the same for any frame."""
    cz, cy, cx = z_mm / cell_mm, y_mm / cell_mm, x_mm / cell_mm
    z0 = int(np.floor(cz))
    u = cz - z0
    u = u * u * (3.0 - 2.0 * u)
    lows = [np.floor(c).astype(np.int64) for c in (cy, cx)]
    # Only the nodes beside a pixel: where the grains are finer than the pixels most of the lattice lies between them.
    ys, xs = (np.unique(np.concatenate([low, low + 1])) for low in lows)
    layer = np.empty((ys.size, xs.size), dtype=np.float32)
    _layer(ys, xs, _key(z0, seed), _key(z0 + 1, seed), np.float32(1.0 - u), np.float32(u), layer)
    # A uniform value has variance 1/3; each of the three interpolations leaves 0.74 of it.
    return _between(_between(layer, ys, lows[0], cy, 0), xs, lows[1], cx, 1) * np.float32(2.7)
