"""Emphysema: share and volume of low attenuation, the 15th percentile, and how the low-attenuation clusters are sized.

LAA-950 is the share of lung voxels below -950 HU (Gevenois 1996, doi:10.1164/ajrccm.154.1.8680679), LAA-910 and
LAA-856 the same below -910 HU (mild, low dose) and -856 HU (gas trapping in expiration). Perc15 is the HU below which
15 % of lung voxels lie (Dirksen 1999, doi:10.1164/ajrccm.160.5.9901055); adjusted to a lung volume by the sponge
model, in which density times volume stays (Staring 2014, Med Phys 41, 021905). Clusters: the number of connected
regions not smaller than V falls as V to the -D (Mishima 1999, doi:10.1073/pnas.96.16.8829, in slices; here in three
dimensions, voxels joined by their faces).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.endpoints.endpoint import Column, Endpoint, needed, voxel_ml
from concordct.endpoints.regions import PARTS, LungVoxels
from concordct.volumes.volume import Volume

THRESHOLDS_HU = (-950.0, -910.0, -856.0)
#: Cut point of LAA-950 above which emphysema is called present, %.
EMPHYSEMA_PERCENT = 5.0
PERCENTILE = 15.0
#: Lung volume that the adjusted percentile refers to, ml: a full inspiration of an adult. Ratios between two scans of
#: one patient do not depend on it.
REFERENCE_ML = 6000.0
#: Sizes from so many up make a slope.
FEWEST_SIZES = 4


def measure(volume: Volume, mask: NDArray[np.uint8] | None) -> dict[str, float]:
    """Emphysema under lung labels; NaN for a part that the image does not show.

    Raises
    ------
    ConcordctError : no mask, an empty one, or one of another shape.
    """
    mask = needed(mask, volume, "emphysema")
    lungs, ml = LungVoxels(volume, mask), voxel_ml(volume)
    found: dict[str, float] = {}
    for part in PARTS:
        hu = lungs.of(part)
        for threshold in THRESHOLDS_HU:
            low = int(np.count_nonzero(hu < threshold))
            found[f"laa{-threshold:.0f}_{part}_percent"] = 100.0 * low / hu.size if hu.size else float("nan")
            if part == "lungs":
                found[f"laa{-threshold:.0f}_{part}_ml"] = low * ml
        percentile = float(np.percentile(hu, PERCENTILE)) if hu.size else float("nan")
        found[f"perc15_{part}_hu"] = percentile
        if part == "lungs":
            # Staring 2014: density in g/l times volume stays the same while a lung is inflated
            found["perc15_adjusted_lungs_g_l"] = (percentile + 1000.0) * hu.size * ml / REFERENCE_ML
    # Cropped to the lungs: labels take four bytes a voxel.
    box = ndimage.find_objects((mask > 0).view(np.uint8))[0]
    return {**found, **clusters((volume.hu[box] < THRESHOLDS_HU[0]) & (mask[box] > 0), voxel_ml=ml)}


def clusters(low: NDArray[np.bool_], *, voxel_ml: float) -> dict[str, float]:
    """Number, largest and size exponent of connected low-attenuation regions.

    Parameters
    ----------
    low : [z, y, x] voxels of low attenuation.
    voxel_ml : ml.

    Returns
    -------
    `clusters_count`, `clusters_largest_ml` and `clusters_slope_d`, which is NaN with fewer than `FEWEST_SIZES` sizes.
    """
    labels, count = ndimage.label(low)
    voxels = np.sort(np.bincount(labels[low], minlength=1)[1:])
    slope = float("nan")
    sizes, first = np.unique(voxels, return_index=True)
    if len(sizes) >= FEWEST_SIZES:
        # Mishima 1999, eq. 1: log Y(V) = log K - D log V, Y(V) the number of clusters not smaller than V
        slope = -float(np.polyfit(np.log10(sizes), np.log10(count - first), 1)[0])
    largest = float(voxels[-1]) * voxel_ml if count else 0.0
    return {"clusters_count": float(count), "clusters_largest_ml": largest, "clusters_slope_d": slope}


def _columns() -> tuple[Column, ...]:
    found = []
    for part in PARTS:
        whole = part == "lungs"
        for threshold in THRESHOLDS_HU:
            name = f"{-threshold:.0f}"
            first = whole and threshold == THRESHOLDS_HU[0]
            cuts = (EMPHYSEMA_PERCENT,) if first else ()
            title = f"LAA-{name}, {part}"
            found.append(Column(f"laa{name}_{part}_percent", "%", title, cuts, first))
            if whole:
                found.append(Column(f"laa{name}_{part}_ml", "ml", title))
        found.append(Column(f"perc15_{part}_hu", "HU", f"Perc15, {part}", headline=whole))
        if whole:
            found.append(Column("perc15_adjusted_lungs_g_l", "g/l", "Perc15 adjusted to 6 l"))
    return (
        *found,
        Column("clusters_count", "", "low-attenuation clusters"),
        Column("clusters_largest_ml", "ml", "largest cluster"),
        Column("clusters_slope_d", "", "slope D of cluster sizes", headline=True),
    )


ENDPOINT = Endpoint("emphysema", "Emphysema", "lungs", _columns(), measure)
