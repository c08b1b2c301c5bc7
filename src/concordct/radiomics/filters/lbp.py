"""Local binary patterns on a sphere, as PyRadiomics 3.0.1 has them.

Source: Banerjee et al. 2013, doi:10.1007/978-3-642-37410-4_3.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

Array = NDArray[np.float64]

#: Voxels handled together, so that the samples on the sphere stay below a few hundred megabytes.
CHUNK = 200_000


def lbp_3d(
    image: Array, box: tuple[slice, slice, slice], *, levels: int, radius: float, subdivision: int
) -> Iterator[tuple[str, Array]]:
    """Images of the pattern's energy in each degree of spherical harmonics, and of the samples' kurtosis.

    Parameters
    ----------
    image : [z, y, x] float64.
    box : where values are wanted.
    levels : number of degrees, from 0.
    radius : of the sphere of samples, voxels.
    subdivision : how often the icosahedron's triangles are divided (1: 42 samples).

    Yields
    ------
    (column prefix, [z, y, x] inside the box): `lbp-3D-m1`, `lbp-3D-m2`, ..., then `lbp-3D-k`.
    """
    sphere = icosphere(subdivision) * radius
    theta = np.arccos(np.clip(sphere[:, 2] / radius, -1, 1))
    phi = np.arctan2(sphere[:, 1], sphere[:, 0])
    # PyRadiomics hands (m, n, theta, phi) to SciPy's former sph_harm, whose third argument was the azimuth
    harmonics = [
        np.stack([special.sph_harm_y(n, m, phi, theta) for m in range(-n, n + 1)], axis=1) for n in range(levels)
    ]
    shape = tuple(side.stop - side.start for side in box)
    places = np.stack(np.meshgrid(*(np.arange(s.start, s.stop) for s in box), indexing="ij")).reshape(3, -1)
    spline = ndimage.spline_filter(image, order=3, mode="constant")
    energy = np.empty((levels, places.shape[1]))
    kurtosis = np.empty(places.shape[1])
    for start in range(0, places.shape[1], CHUNK // len(sphere) + 1):
        part = places[:, start : start + CHUNK // len(sphere) + 1]
        samples = ndimage.map_coordinates(
            spline, part[:, :, None] + sphere.T[:, None, :], order=3, prefilter=False, mode="constant"
        )
        centred = samples - samples.mean(axis=1, keepdims=True)
        m2, m4 = (centred**2).mean(axis=1), (centred**4).mean(axis=1)
        kurtosis[start : start + len(m2)] = np.divide(m4, m2**2, out=np.full_like(m2, np.nan), where=m2 > 0) - 3
        signs = (samples >= image[tuple(part)][:, None]).astype(np.float64)
        for n, basis in enumerate(harmonics):
            # Sum over orders m of c_mn Y_mn at each sample, then its length over the sphere
            back = (signs @ basis) @ basis.T
            energy[n, start : start + len(m2)] = np.real(np.sqrt((back**2).sum(axis=1)))
    for n in range(levels):
        yield f"lbp-3D-m{n + 1}", energy[n].reshape(shape)
    yield "lbp-3D-k", kurtosis.reshape(shape)


def icosphere(subdivision: int) -> Array:
    """[vertex, 3] unit vectors of an icosahedron whose triangles are divided in four, `subdivision` times."""
    golden = (1 + 5**0.5) / 2
    points = [(-1.0, golden, 0.0), (1.0, golden, 0.0), (-1.0, -golden, 0.0), (1.0, -golden, 0.0)]
    points += [(z, x, y) for x, y, z in points] + [(y, z, x) for x, y, z in points]
    vertices = np.array(points, float) / np.hypot(1, golden)
    for _ in range(subdivision):
        gaps = np.linalg.norm(vertices[:, None] - vertices[None], axis=2)
        edge = gaps[gaps > 1e-9].min()
        # Edges of one division differ in length by less than 20%, the next distance is 40% longer
        pairs = np.argwhere(np.triu((gaps > 1e-9) & (gaps < 1.3 * edge)))
        middles = (vertices[pairs[:, 0]] + vertices[pairs[:, 1]]) / 2
        vertices = np.concatenate([vertices, middles / np.linalg.norm(middles, axis=1, keepdims=True)])
    return vertices
