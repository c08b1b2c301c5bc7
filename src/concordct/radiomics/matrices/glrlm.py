"""Grey level run lengths (IBSI TP0I; Galloway 1975, doi:10.1016/S0146-664X(75)80008-6): matrices and features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from concordct.radiomics.definitions.definition import definitions
from concordct.radiomics.matrices.sizes import COUNT, size_features
from concordct.signal.compiled import compiled

#: The run-length features in the order of IBSI's tables.
GLRLM = definitions("""
rlm_sre 22OV ShortRunEmphasis
rlm_lre W4KF LongRunEmphasis
rlm_lgre V3SW LowGrayLevelRunEmphasis
rlm_hgre G3QZ HighGrayLevelRunEmphasis
rlm_srlge HTZT ShortRunLowGrayLevelEmphasis
rlm_srhge GD3A ShortRunHighGrayLevelEmphasis
rlm_lrlge IVPO LongRunLowGrayLevelEmphasis
rlm_lrhge 3KUM LongRunHighGrayLevelEmphasis
rlm_glnu R5YN GrayLevelNonUniformity
rlm_glnu_norm OVBL GrayLevelNonUniformityNormalized
rlm_rlnu W92Y RunLengthNonUniformity
rlm_rlnu_norm IC23 RunLengthNonUniformityNormalized
rlm_r_perc 9ZK5 RunPercentage
rlm_gl_var 8CE5 GrayLevelVariance
rlm_rl_var SXLW RunVariance
rlm_rl_entr HJ9O RunEntropy
""")


@compiled
def count_runs(levels, dz, dy, dx, weight, matrix):  # type: ignore[no-untyped-def]
    """Add the runs along one direction to `matrix` ([level, length]); returns the (weighted) voxels that they hold."""
    depth, height, width = levels.shape
    voxels = 0
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                level = levels[z, y, x]
                if level == 0:
                    continue
                pz, py, px = z - dz, y - dy, x - dx
                if 0 <= pz < depth and 0 <= py < height and 0 <= px < width and levels[pz, py, px] == level:
                    continue  # it began before
                length = 1
                nz, ny, nx = z + dz, y + dy, x + dx
                while 0 <= nz < depth and 0 <= ny < height and 0 <= nx < width and levels[nz, ny, nx] == level:
                    length += 1
                    nz += dz
                    ny += dy
                    nx += dx
                matrix[level - 1, length - 1] += weight
                voxels += length
    return voxels * weight


@compiled
def _features(levels, n_levels, offsets, weights, merged):  # type: ignore[no-untyped-def]
    totals = np.zeros(COUNT)
    found = np.zeros(COUNT)
    matrix = np.zeros((n_levels, max(levels.shape)))
    voxels = 0.0
    last = offsets.shape[0] - 1
    used = 0
    for k in range(offsets.shape[0]):
        if not merged:
            matrix[:] = 0.0
            voxels = 0.0
        voxels += count_runs(levels, offsets[k, 0], offsets[k, 1], offsets[k, 2], weights[k], matrix)
        if not merged or k == last:
            size_features(matrix, voxels, found)
            totals += found
            used += 1
    return totals / used if used else np.full(COUNT, np.nan)


def glrlm_features(
    levels: NDArray[np.int32],
    *,
    offsets: NDArray[np.int64],
    merged: bool,
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Run-length features of one ROI.

    Parameters
    ----------
    levels : [z, y, x] int32 grey levels, 0 outside the ROI.
    offsets : [direction, 3] (z, y, x) directions of the runs, one of each opposite pair.
    merged : True for the features of the sum of all directions' matrices, False for the mean over directions.
    weights : [direction] factors of the matrices in that sum; 1 when None.

    Returns
    -------
    [16] in the order of `GLRLM`; NaN throughout for an empty ROI or no direction.

    References
    ----------
    IBSI reference manual, arXiv:1612.07003, section 3.7.
    """
    count = int(levels.max())
    if count < 1 or len(offsets) == 0:
        return np.full(len(GLRLM), np.nan)
    factors = np.ones(len(offsets)) if weights is None else weights
    found: NDArray[np.float64] = _features(np.ascontiguousarray(levels), count, offsets, factors, merged)
    return found[: len(GLRLM)]
