"""Zones of one grey level: their sizes (GLSZM, IBSI 9SAK) and their distances to the ROI's border (GLDZM, IBSI VMDZ).

Sources: Thibault et al. 2014, doi:10.1109/TBME.2013.2284600; IBSI reference manual, arXiv:1612.07003, sections 3.8
and 3.9.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.radiomics.definitions.definition import definitions
from concordct.radiomics.matrices.sizes import COUNT, kind_features, listed_features
from concordct.signal.compiled import compiled

#: The size-zone features in the order of IBSI's tables.
GLSZM = definitions("""
szm_sze 5QRC SmallAreaEmphasis
szm_lze 48P8 LargeAreaEmphasis
szm_lgze XMSY LowGrayLevelZoneEmphasis
szm_hgze 5GN9 HighGrayLevelZoneEmphasis
szm_szlge 5RAI SmallAreaLowGrayLevelEmphasis
szm_szhge HW1V SmallAreaHighGrayLevelEmphasis
szm_lzlge YH51 LargeAreaLowGrayLevelEmphasis
szm_lzhge J17V LargeAreaHighGrayLevelEmphasis
szm_glnu JNSA GrayLevelNonUniformity
szm_glnu_norm Y1RO GrayLevelNonUniformityNormalized
szm_zsnu 4JP3 SizeZoneNonUniformity
szm_zsnu_norm VB3A SizeZoneNonUniformityNormalized
szm_z_perc P30P ZonePercentage
szm_gl_var BYLV GrayLevelVariance
szm_zs_var 3NSA ZoneVariance
szm_zs_entr GU8N ZoneEntropy
""")

#: The distance-zone features in the order of IBSI's tables; PyRadiomics has none.
GLDZM = definitions("""
dzm_sde 0GBI -
dzm_lde MB4I -
dzm_lgze S1RA -
dzm_hgze K26C -
dzm_sdlge RUVG -
dzm_sdhge DKNJ -
dzm_ldlge A7WM -
dzm_ldhge KLTH -
dzm_glnu VFT7 -
dzm_glnu_norm 7HP3 -
dzm_zdnu V294 -
dzm_zdnu_norm IATH -
dzm_z_perc VIWW -
dzm_gl_var QK93 -
dzm_zd_var 7WT1 -
dzm_zd_entr GBDU -
""")


@compiled
def find_zones(levels, distances, planar, counts):  # type: ignore[no-untyped-def]
    """Connected voxels of one level: their levels, sizes and least distances, [zone] each.

    Zones smaller than the second side of `counts` ([level, size]) are counted there and are not in the lists.

    Neighbours are the 26 around a voxel, or the 8 in its slice when `planar`. `distances` has the shape of `levels`,
    or no element when nobody asks for distances.
    """
    depth, height, width = levels.shape
    seen = np.zeros(levels.shape, np.uint8)
    # The rim of a zone while it grows, a ring: first come, first grown from, so that it stays short.
    rim = np.empty(64, np.int64)
    zone_levels = np.empty(64, np.int32)
    zone_sizes = np.empty(64, np.int32)
    zone_distances = np.empty(64, np.int64)
    reach = 0 if planar else 1
    zones = 0
    for z0 in range(depth):
        for y0 in range(height):
            for x0 in range(width):
                level = levels[z0, y0, x0]
                if level == 0 or seen[z0, y0, x0]:
                    continue
                seen[z0, y0, x0] = 1
                rim[0] = (z0 * height + y0) * width + x0
                first = 0
                waiting = 1
                size = 0
                nearest = np.int64(1) << 40
                while waiting > 0:
                    place = rim[first]
                    first = (first + 1) & (rim.size - 1)
                    waiting -= 1
                    if waiting + 26 > rim.size:
                        wider = np.empty(2 * rim.size, np.int64)
                        for k in range(waiting):
                            wider[k] = rim[(first + k) & (rim.size - 1)]
                        rim = wider
                        first = 0
                    x = place % width
                    y = (place // width) % height
                    z = place // (width * height)
                    size += 1
                    if distances.size:
                        nearest = min(nearest, np.int64(distances[z, y, x]))
                    for nz in range(max(0, z - reach), min(depth, z + reach + 1)):
                        for ny in range(max(0, y - 1), min(height, y + 2)):
                            for nx in range(max(0, x - 1), min(width, x + 2)):
                                if levels[nz, ny, nx] == level and not seen[nz, ny, nx]:
                                    seen[nz, ny, nx] = 1
                                    rim[(first + waiting) & (rim.size - 1)] = (nz * height + ny) * width + nx
                                    waiting += 1
                if size < counts.shape[1]:
                    counts[level - 1, size] += 1
                    continue
                if zones == zone_sizes.size:
                    zone_levels = np.concatenate((zone_levels, np.empty_like(zone_levels)))
                    zone_sizes = np.concatenate((zone_sizes, np.empty_like(zone_sizes)))
                    if distances.size:
                        zone_distances = np.concatenate((zone_distances, np.empty_like(zone_distances)))
                zone_levels[zones] = level
                zone_sizes[zones] = size
                if distances.size:
                    zone_distances[zones] = nearest
                zones += 1
    asked = zones if distances.size else 0
    return zone_levels[:zones].copy(), zone_sizes[:zones].copy(), zone_distances[:asked].copy()


NO_DISTANCES, NO_COUNTS = np.empty((0, 0, 0), np.int32), np.empty((0, 0), np.int64)
#: Of an ROI of more voxels the zones below that size, which are nearly all, are counted instead of listed.
LARGE, SMALL_ZONE = 1 << 22, 64


def glszm_features(levels: NDArray[np.int32], *, planar: bool) -> NDArray[np.float64]:
    """Size-zone features of one ROI.

    Parameters
    ----------
    levels : [z, y, x] int32 grey levels, 0 outside the ROI.
    planar : zones within slices (8 neighbours) instead of across them (26).

    Returns
    -------
    [16] in the order of `GLSZM`; NaN throughout for an empty ROI.
    """
    found = np.empty(COUNT)
    if levels.size > LARGE:
        counts = np.zeros((int(levels.max()), SMALL_ZONE), np.int64)
        zone_levels, zone_sizes, _ = find_zones(np.ascontiguousarray(levels), NO_DISTANCES, planar, counts)
        larger, of = np.unique(np.stack([zone_levels, zone_sizes]), axis=1, return_counts=True)
        small_levels, small_sizes = np.nonzero(counts)
        own_levels = np.concatenate([small_levels + 1, larger[0].astype(np.int64)])
        own_sizes = np.concatenate([small_sizes, larger[1].astype(np.int64)])
        own_counts = np.concatenate([counts[small_levels, small_sizes], of]).astype(np.float64)
        kind_features(own_levels, own_sizes, own_counts, max(float(own_sizes @ own_counts), 1.0), found)
        return found[: len(GLSZM)]
    zone_levels, zone_sizes, _ = find_zones(np.ascontiguousarray(levels), NO_DISTANCES, planar, NO_COUNTS)
    listed_features(zone_levels, zone_sizes, float(max(zone_sizes.sum(), 1)), found)
    return found[: len(GLSZM)]


def gldzm_features(levels: NDArray[np.int32], mask: NDArray[np.bool_], *, planar: bool) -> NDArray[np.float64]:
    """Distance-zone features of one ROI.

    Parameters
    ----------
    levels : [z, y, x] int32 grey levels, 0 outside the (intensity) mask.
    mask : [z, y, x] bool, the morphological mask, from whose border distances are counted.
    planar : zones and distances within slices.

    Returns
    -------
    [16] in the order of `GLDZM`; NaN throughout for an empty ROI.
    """
    zone_levels, zone_sizes, zone_distances = find_zones(
        np.ascontiguousarray(levels), border_distances(mask, planar=planar), planar, NO_COUNTS
    )
    found = np.empty(COUNT)
    listed_features(zone_levels, zone_distances, float(max(zone_sizes.sum(), 1)), found)
    return found[: len(GLDZM)]


def border_distances(mask: NDArray[np.bool_], *, planar: bool) -> NDArray[np.int32]:
    """[z, y, x] int32 steps over faces from a voxel out of the mask, 1 at its rim; within the slice when `planar`."""
    padded = np.pad(mask, 1)
    if planar:
        slices = [ndimage.distance_transform_cdt(one, metric="taxicab") for one in padded]
        return np.ascontiguousarray(np.stack(slices)[1:-1, 1:-1, 1:-1], dtype=np.int32)
    whole = ndimage.distance_transform_cdt(padded, metric="taxicab")
    return np.ascontiguousarray(whole[1:-1, 1:-1, 1:-1], dtype=np.int32)
