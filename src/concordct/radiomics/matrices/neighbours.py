"""A voxel against its neighbours: dependence (NGLDM, PyRadiomics' GLDM) and grey tone difference (NGTDM).

Sources: Sun & Wee 1983, doi:10.1016/0734-189X(83)90032-4; Amadasun & King 1989, doi:10.1109/21.44046; IBSI reference
manual, arXiv:1612.07003, sections 3.10 and 3.11.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from concordct.radiomics.definitions.definition import definitions
from concordct.radiomics.matrices.sizes import COUNT, size_features
from concordct.signal.compiled import compiled

#: The dependence features in the order of IBSI's tables.
NGLDM = definitions("""
ngl_lde SODN SmallDependenceEmphasis
ngl_hde IMOQ LargeDependenceEmphasis
ngl_lgce TL9H LowGrayLevelEmphasis
ngl_hgce OAE7 HighGrayLevelEmphasis
ngl_ldlge EQ3F SmallDependenceLowGrayLevelEmphasis
ngl_ldhge JA6D SmallDependenceHighGrayLevelEmphasis
ngl_hdlge NBZI LargeDependenceLowGrayLevelEmphasis
ngl_hdhge 9QMG LargeDependenceHighGrayLevelEmphasis
ngl_glnu FP8K GrayLevelNonUniformity
ngl_glnu_norm 5SPA -
ngl_dcnu Z87G DependenceNonUniformity
ngl_dcnu_norm OKJI DependenceNonUniformityNormalized
ngl_dc_perc 6XV8 -
ngl_gl_var 1PFV GrayLevelVariance
ngl_dc_var DNX2 DependenceVariance
ngl_dc_entr FCBV DependenceEntropy
ngl_dc_energy CAS9 -
""")

#: The grey tone difference features in the order of IBSI's tables.
NGTDM = definitions("""
ngt_coarseness QCDE Coarseness
ngt_contrast 65HE Contrast
ngt_busyness NQ30 Busyness
ngt_complexity HDEZ Complexity
ngt_strength 1X9X Strength
""")

#: IBSI 3.10.1 and PyRadiomics: the coarseness of a region without any grey tone difference.
FLAT_COARSENESS = 1e6


@compiled
def count_dependences(levels, offsets, alpha, n_levels):  # type: ignore[no-untyped-def]
    """[level, dependence] voxels by level and by how many neighbours, itself included, differ by at most alpha."""
    depth, height, width = levels.shape
    matrix = np.zeros((n_levels, offsets.shape[0] + 1))
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                level = levels[z, y, x]
                if level == 0:
                    continue
                like = 0
                for k in range(offsets.shape[0]):
                    nz, ny, nx = z + offsets[k, 0], y + offsets[k, 1], x + offsets[k, 2]
                    if 0 <= nz < depth and 0 <= ny < height and 0 <= nx < width:
                        other = levels[nz, ny, nx]
                        if other > 0 and abs(other - level) <= alpha:
                            like += 1
                matrix[level - 1, like] += 1.0
    return matrix


@compiled
def count_differences(levels, offsets, n_levels, count_isolated):  # type: ignore[no-untyped-def]
    """[level] voxels that have a neighbour in the ROI (or all), and the sums of |level - mean of the neighbours|."""
    depth, height, width = levels.shape
    counts = np.zeros(n_levels)
    differences = np.zeros(n_levels)
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                level = levels[z, y, x]
                if level == 0:
                    continue
                total = 0
                found = 0
                for k in range(offsets.shape[0]):
                    nz, ny, nx = z + offsets[k, 0], y + offsets[k, 1], x + offsets[k, 2]
                    if 0 <= nz < depth and 0 <= ny < height and 0 <= nx < width:
                        other = levels[nz, ny, nx]
                        if other > 0:
                            total += other
                            found += 1
                if found > 0 or count_isolated:
                    counts[level - 1] += 1.0
                if found > 0:
                    differences[level - 1] += abs(level - total / found)
    return counts, differences


@compiled
def _tone_features(counts, differences, out):  # type: ignore[no-untyped-def]
    n = counts.sum()
    present = np.nonzero(counts > 0.0)[0]
    total = differences.sum()
    weighted = 0.0
    for a in present:
        weighted += counts[a] / n * differences[a]
    spread = 0.0
    tones = 0.0
    complexity = 0.0
    strength = 0.0
    for a in present:
        pa = counts[a] / n
        for b in present:
            pb = counts[b] / n
            step = float(a - b)
            spread += pa * pb * step * step
            tones += abs((a + 1) * pa - (b + 1) * pb)
            complexity += abs(step) * (pa * differences[a] + pb * differences[b]) / (pa + pb)
            strength += (pa + pb) * step * step
    levels = present.size
    out[0] = 1.0 / weighted if weighted > 0.0 else FLAT_COARSENESS  # 3.10.1 QCDE
    out[1] = spread / (levels * (levels - 1)) * total / n if levels > 1 else 0.0  # 3.10.2 65HE
    out[2] = weighted / tones if tones > 0.0 else 0.0  # 3.10.3 NQ30
    out[3] = complexity / n  # 3.10.4 HDEZ
    out[4] = strength / total if total > 0.0 else 0.0  # 3.10.5 1X9X


def neighbourhood(distances: tuple[int, ...], *, planar: bool) -> NDArray[np.int64]:
    """[neighbour, 3] (z, y, x) offsets at the given Chebyshev distances, voxels; within the slice when `planar`."""
    reach = max(distances)
    steps = range(-reach, reach + 1)
    found = [
        (z, y, x)
        for z in ((0,) if planar else steps)
        for y in steps
        for x in steps
        if max(abs(z), abs(y), abs(x)) in distances
    ]
    return np.array(found, dtype=np.int64)


def ngldm_features(levels: NDArray[np.int32], *, offsets: NDArray[np.int64], alpha: int = 0) -> NDArray[np.float64]:
    """Dependence features of one ROI.

    Parameters
    ----------
    levels : [z, y, x] int32 grey levels, 0 outside the ROI.
    offsets : [neighbour, 3] (z, y, x) all neighbours, as `neighbourhood` gives them.
    alpha : largest difference of grey levels that still counts as dependent (IBSI VXRR).

    Returns
    -------
    [17] in the order of `NGLDM`; NaN throughout for an empty ROI.
    """
    count = int(levels.max())
    found = np.empty(COUNT)
    if count < 1:
        return np.full(len(NGLDM), np.nan)
    matrix = count_dependences(np.ascontiguousarray(levels), offsets, alpha, count)
    size_features(matrix, float(matrix.sum()), found)
    return found


def ngtdm_features(
    levels: NDArray[np.int32], *, offsets: NDArray[np.int64], count_isolated: bool = False
) -> NDArray[np.float64]:
    """Grey tone difference features of one ROI.

    Parameters
    ----------
    levels : [z, y, x] int32 grey levels, 0 outside the ROI.
    offsets : [neighbour, 3] (z, y, x) all neighbours, as `neighbourhood` gives them.
    count_isolated : let voxels without a neighbour in the ROI count, with a difference of 0, as PyRadiomics does;
        IBSI leaves them out.

    Returns
    -------
    [5] in the order of `NGTDM`; NaN throughout where no voxel has a neighbour.
    """
    count = int(levels.max())
    found = np.full(len(NGTDM), np.nan)
    if count < 1:
        return found
    counts, differences = count_differences(np.ascontiguousarray(levels), offsets, count, count_isolated)
    if counts.any():
        _tone_features(counts, differences, found)
    return found
