"""The surface of a mask by marching cubes, without ever building the mesh.

Every vertex lies halfway along an edge, so that a cube of eight voxels adds one of 256 pieces: the pieces are
tabulated once, and area, volume and diameters follow from how often and where each occurs. Source: Lorensen & Cline
1987, doi:10.1145/37402.37422, with the triangles of scikit-image's table; ambiguous cubes are resolved as PyRadiomics
resolves them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from concordct.signal.compiled import compiled


@lru_cache(maxsize=1)
def cube_triangles() -> tuple[NDArray[np.float64], ...]:
    """The triangles ([n, 3 vertices, 3 coordinates] in units of a cube's edge) of each of the 256 cubes.

    Bit k of a cube's number is the voxel at (z, y, x) = (k >> 2 & 1, k >> 1 & 1, k & 1). The triangles are turned
    outwards. Where the voxel (1, 1, 0) is inside, those of the complement are taken: PyRadiomics' table is half as
    long and reads a cube with that voxel inside as its complement, which decides the ambiguous ones.
    """
    from skimage.measure import marching_cubes

    found: list[NDArray[np.float64]] = []
    for case in range(256):
        bits = np.array([case >> k & 1 for k in range(8)], dtype=bool).reshape(2, 2, 2)
        if bits.all() or not bits.any():
            found.append(np.zeros((0, 3, 3)))
            continue
        swapped = bool(bits[1, 1, 0])
        vertices, faces, _, _ = marching_cubes(
            np.asarray(bits ^ swapped, np.float64), 0.5, method="lorensen", allow_degenerate=False
        )
        triangles = vertices[faces].astype(np.float64)
        found.append(triangles if swapped else triangles[:, ::-1])
    return tuple(found)


@compiled
def count_cubes(mask):  # type: ignore[no-untyped-def]
    """How often each of the 256 cubes occurs in a mask with a free border, and the sums of their corners (z, y, x)."""
    depth, height, width = mask.shape
    counts = np.zeros(256)
    places = np.zeros((256, 3))
    for z in range(depth - 1):
        for y in range(height - 1):
            for x in range(width - 1):
                case = 0
                for k in range(8):
                    if mask[z + (k >> 2 & 1), y + (k >> 1 & 1), x + (k & 1)]:
                        case |= 1 << k
                if 0 < case < 255:
                    counts[case] += 1.0
                    places[case, 0] += z
                    places[case, 1] += y
                    places[case, 2] += x
    return counts, places


@dataclass(frozen=True)
class Surface:
    """Area (mm^2) and enclosed volume (mm^3) of a mask's mesh."""

    area_mm2: float
    volume_mm3: float


def surface(mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> Surface:
    """Area and volume of the mesh of a mask ([z, y, x] bool, no free border needed)."""
    counts, places = count_cubes(np.pad(mask, 1))
    spacing = np.array(spacing_mm)
    area = volume = 0.0
    for case in np.flatnonzero(counts):
        a, b, c = (cube_triangles()[case][:, k] * spacing for k in range(3))
        normals = np.cross(b - a, c - a) / 2
        area += counts[case] * np.linalg.norm(normals, axis=1).sum()
        # Divergence theorem: V = sum over triangles of det(a, b, c) / 6, moved by the place of each cube
        volume += counts[case] * np.einsum("ij,ij->", a, np.cross(b, c)) / 6
        volume += (places[case] * spacing) @ normals.sum(axis=0) / 3
    return Surface(float(area), float(volume))


@compiled
def _extremes(mask):  # type: ignore[no-untyped-def]
    """Least and greatest vertex of each row, in half voxels: along x by (z, y), and along z by (y, x); -1 for none."""
    depth, height, width = mask.shape
    along_x = np.full((2 * depth, 2 * height, 2), -1, np.int64)
    along_z = np.full((2 * height, 2 * width, 2), -1, np.int64)
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                here = mask[z, y, x]
                for axis in range(3):
                    nz, ny, nx = z + (axis == 0), y + (axis == 1), x + (axis == 2)
                    if nz < depth and ny < height and nx < width and mask[nz, ny, nx] != here:
                        vz, vy, vx = z + nz, y + ny, x + nx
                        if along_x[vz, vy, 0] < 0 or vx < along_x[vz, vy, 0]:
                            along_x[vz, vy, 0] = vx
                        along_x[vz, vy, 1] = max(along_x[vz, vy, 1], vx)
                        if along_z[vy, vx, 0] < 0 or vz < along_z[vy, vx, 0]:
                            along_z[vy, vx, 0] = vz
                        along_z[vy, vx, 1] = max(along_z[vy, vx, 1], vz)
    return along_x, along_z


@compiled
def _widest(rows, step_row, step_along):  # type: ignore[no-untyped-def]
    """The greatest squared distance within one plane, from the ends of its rows ([row, 2], -1 for none)."""
    best = 0.0
    for a in range(rows.shape[0]):
        if rows[a, 0] < 0:
            continue
        for b in range(a, rows.shape[0]):
            if rows[b, 0] < 0:
                continue
            reach = max(abs(rows[a, 1] - rows[b, 0]), abs(rows[b, 1] - rows[a, 0]))
            best = max(best, ((b - a) * step_row) ** 2 + (reach * step_along) ** 2)
    return best


@compiled
def _planes(along_x, along_z, sz, sy, sx):  # type: ignore[no-untyped-def]
    """Greatest squared distances within planes of equal z, of equal y and of equal x."""
    best = np.zeros(3)
    for z in range(along_x.shape[0]):
        best[0] = max(best[0], _widest(along_x[z], sy, sx))
    for y in range(along_x.shape[1]):
        best[1] = max(best[1], _widest(along_x[:, y], sz, sx))
    for x in range(along_z.shape[1]):
        best[2] = max(best[2], _widest(along_z[:, x], sy, sz))
    return best


@compiled
def _farthest(points):  # type: ignore[no-untyped-def]
    best = 0.0
    for a in range(points.shape[0]):
        for b in range(a):
            d = 0.0
            for k in range(points.shape[1]):
                d += (points[a, k] - points[b, k]) ** 2
            best = max(best, d)
    return best


#: Above this many points a convex hull is faster than all pairs.
HULL_FROM = 400


@dataclass(frozen=True, eq=False)
class Diameters:
    """Greatest distances between vertices of a mask's mesh, mm: within a slice (equal z), within planes of equal y
    ("column") and of equal x ("row"), and over all; and the outermost vertices ([vertex, (z, y, x)] mm)."""

    slice_mm: float
    column_mm: float
    row_mm: float
    whole_mm: float
    points_mm: NDArray[np.float64]


def diameters(mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> Diameters:
    """Diameters of the mesh of a mask ([z, y, x] bool).

    For any direction the farthest vertices are ends of rows along x, so those alone are compared.
    """
    half = np.array(spacing_mm) / 2
    along_x, along_z = _extremes(np.pad(mask, 1))
    in_slice, in_column, in_row = (float(d) for d in np.sqrt(_planes(along_x, along_z, *half)))
    z, y = np.nonzero(along_x[..., 0] >= 0)
    ends = along_x[z, y]
    points = np.concatenate([np.stack([z, y, ends[:, k]], axis=1) for k in (0, 1)]) * half
    outer = _hull_points(points) if len(points) > HULL_FROM else points
    return Diameters(in_slice, in_column, in_row, float(np.sqrt(_farthest(outer))), points)


def _hull_points(points: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.spatial import ConvexHull

    hull: NDArray[np.float64] = points[ConvexHull(points).vertices]
    return hull
