"""Morphology (IBSI HCUG) and local intensity (IBSI 9ST6) of an ROI.

Source: IBSI reference manual, arXiv:1612.07003, sections 3.1 and 3.2. Moran's I and Geary's C are sums over all pairs
of voxels that depend on a pair's distance only, so they are correlations, computed by FFT in full.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from concordct.radiomics.definitions.definition import definitions
from concordct.radiomics.definitions.mesh import diameters, surface
from concordct.radiomics.definitions.shape import axis_lengths

#: The morphological features that IBSI gives reference values for, in the order of its tables.
MORPHOLOGY = definitions("""
morph_volume RNU0 MeshVolume
morph_vol_approx YEKZ VoxelVolume
morph_area_mesh C0JK SurfaceArea
morph_av 2PR5 SurfaceVolumeRatio
morph_comp_1 SKGS -
morph_comp_2 BQWJ -
morph_sph_dispr KRCK -
morph_sphericity QCFX Sphericity
morph_asphericity 25C7 -
morph_com KLMA -
morph_diam L0JK Maximum3DDiameter
morph_pca_maj_axis TDIC MajorAxisLength
morph_pca_min_axis P9VJ MinorAxisLength
morph_pca_least_axis 7J51 LeastAxisLength
morph_pca_elongation Q3CK Elongation
morph_pca_flatness N17B Flatness
morph_vol_dens_aabb PBX1 -
morph_area_dens_aabb R59B -
morph_vol_dens_aee 6BDE -
morph_area_dens_aee RDD2 -
morph_vol_dens_conv_hull R3ER -
morph_area_dens_conv_hull 7T7F -
morph_integ_int 99N0 -
morph_moran_i N365 -
morph_geary_c NPT7 -
""")

#: The two local intensity features, in the order of IBSI's tables.
LOCAL_INTENSITY = definitions("""
loc_peak_loc VJGA -
loc_peak_glob 0F91 -
""")

#: Radius of a sphere of 1 cm^3 (IBSI VJGA), mm.
PEAK_RADIUS_MM = 10 * (3 / (4 * np.pi)) ** (1 / 3)
#: Legendre terms of an ellipsoid's area (IBSI RDD2).
ELLIPSOID_TERMS = 21

Array = NDArray[np.float64]


def morphology_features(
    mask: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    intensities: Array,
    spacing_mm: tuple[float, float, float],
) -> Array:
    """Morphological features of one ROI.

    Parameters
    ----------
    mask : [z, y, x] bool, the morphological mask.
    inside : [z, y, x] bool, the intensity mask (after resegmentation), a part of it.
    intensities : [z, y, x] float64.
    spacing_mm : (z, y, x).

    Returns
    -------
    [25] in the order of `MORPHOLOGY`; NaN throughout when either mask is empty.
    """
    if not mask.any() or not inside.any():
        return np.full(len(MORPHOLOGY), np.nan)
    from scipy.spatial import ConvexHull

    spacing = np.array(spacing_mm)
    mesh = surface(mask, spacing_mm)
    volume, area = mesh.volume_mm3, mesh.area_mm2
    reach = diameters(mask, spacing_mm)
    major, minor, least = axis_lengths(mask, spacing_mm, ddof=1)
    hull = ConvexHull(reach.points_mm)
    box = np.ptp(reach.points_mm, axis=0)
    values = intensities[inside]
    places = np.argwhere(inside)
    weighted = (places * values[:, None]).sum(axis=0) / values.sum() if values.sum() else np.full(3, np.nan)
    shift = float(np.linalg.norm((np.argwhere(mask).mean(axis=0) - weighted) * spacing))
    moran, geary = autocorrelation(inside, intensities, spacing_mm)
    compact = 36 * np.pi * volume**2
    ellipsoid = np.pi / 6 * major * minor * least
    return np.array(
        [
            volume,
            int(mask.sum()) * float(spacing.prod()),
            area,
            area / volume,
            volume / (np.sqrt(np.pi) * area**1.5),  # SKGS
            compact / area**3,  # BQWJ
            area / compact ** (1 / 3),  # KRCK
            compact ** (1 / 3) / area,  # QCFX
            (area**3 / compact) ** (1 / 3) - 1,  # 25C7
            shift,
            reach.whole_mm,
            major,
            minor,
            least,
            minor / major if major else np.nan,
            least / major if major else np.nan,
            volume / box.prod(),
            area / (2 * (box[0] * box[1] + box[0] * box[2] + box[1] * box[2])),
            volume / ellipsoid if ellipsoid else np.nan,
            area / ellipsoid_area(major / 2, minor / 2, least / 2) if minor else np.nan,
            volume / hull.volume,
            area / hull.area,
            values.mean() * volume,  # 99N0
            moran,
            geary,
        ]
    )


def ellipsoid_area(a: float, b: float, c: float) -> float:
    """Area of an ellipsoid of semi-axes a >= b >= c, by Legendre polynomials (IBSI RDD2; Maas 1994)."""
    if c == 0:
        return 2 * np.pi * a * b
    alpha, beta = np.sqrt(1 - (b / a) ** 2), np.sqrt(1 - (c / a) ** 2)
    if alpha == 0 or beta == 0:
        # The series divides by alpha beta; its limit for alpha -> 0 is the first term alone in each power of beta
        alpha, beta = max(alpha, 1e-6), max(beta, 1e-6)
    nu = np.arange(ELLIPSOID_TERMS)
    at = (alpha**2 + beta**2) / (2 * alpha * beta)
    legendre = np.array([np.polynomial.legendre.legval(at, np.eye(ELLIPSOID_TERMS)[n]) for n in nu])
    return float(4 * np.pi * a * b * ((alpha * beta) ** nu / (1 - 4.0 * nu**2) * legendre).sum())


def autocorrelation(
    inside: NDArray[np.bool_], intensities: Array, spacing_mm: tuple[float, float, float]
) -> tuple[float, float]:
    """Moran's I and Geary's C with weights of 1 / distance over all pairs of voxels of the mask (IBSI N365, NPT7)."""
    count = int(inside.sum())
    if count < 2:
        return float("nan"), float("nan")
    mean = intensities[inside].mean()
    centred = np.where(inside, intensities - mean, 0.0)
    spread = float((centred**2).sum())
    if spread == 0:
        return float("nan"), float("nan")
    shape = [fft.next_fast_len(2 * n - 1, real=True) for n in inside.shape]
    lags = [np.minimum(np.arange(n), n - np.arange(n)) * mm for n, mm in zip(shape, spacing_mm, strict=True)]
    distance = np.sqrt(lags[0][:, None, None] ** 2 + lags[1][:, None] ** 2 + lags[2] ** 2)
    weights = np.divide(1.0, distance, out=np.zeros_like(distance), where=distance > 0)
    spectrum = fft.rfftn(weights)

    def around(values: Array) -> Array:
        """At every voxel, the sum of the others' values over their distances."""
        found = fft.irfftn(fft.rfftn(values, shape) * spectrum, shape)
        return np.asarray(found[tuple(slice(0, n) for n in inside.shape)])

    mask = inside.astype(np.float64)
    of_mask = around(mask)
    total = float((mask * of_mask).sum())
    cross = float((centred * around(centred)).sum())
    # sum_ij w_ij (x_i - x_j)^2 = 2 (sum_i x_i^2 sum_j w_ij - sum_ij w_ij x_i x_j)
    squares = 2 * (float((centred**2 * of_mask).sum()) - cross)
    return count / total * cross / spread, (count - 1) / (2 * total) * squares / spread


def local_intensity_features(image: Array, inside: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> Array:
    """Local and global intensity peak: means over spheres of 1 cm^3, which may reach out of the ROI.

    Parameters
    ----------
    image : [z, y, x] float64, with the ROI's surroundings.
    inside : [z, y, x] bool, the intensity mask.
    spacing_mm : (z, y, x).

    Returns
    -------
    [2] in the order of `LOCAL_INTENSITY`; NaN for an empty mask.
    """
    if not inside.any():
        return np.full(len(LOCAL_INTENSITY), np.nan)
    from scipy import signal  # half a second to import

    reach = [int(PEAK_RADIUS_MM // mm) for mm in spacing_mm]
    ends = [(int(k.min()), int(k.max()) + 1) for k in np.nonzero(inside)]
    part = tuple(
        slice(max(0, low - r), min(n, high + r)) for (low, high), r, n in zip(ends, reach, image.shape, strict=True)
    )
    steps = np.meshgrid(*(np.arange(-r, r + 1) * mm for r, mm in zip(reach, spacing_mm, strict=True)), indexing="ij")
    ball = (sum(step**2 for step in steps) <= PEAK_RADIUS_MM**2).astype(np.float64)
    values = image[part]
    voxels = np.round(signal.fftconvolve(np.ones(values.shape), ball, mode="same"))
    means = signal.fftconvolve(values, ball, mode="same") / voxels
    here = inside[part]
    brightest = here & (values == values[here].max())
    return np.array([means[brightest].max(), means[here].max()])
