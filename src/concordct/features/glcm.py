"""Grey level co-occurrence (IBSI LFYI; Haralick 1973, doi:10.1109/TSMC.1973.4309314): matrices and features, compiled.

Matrices are symmetric. Which of them are averaged and which merged is the caller's choice: features of each direction
averaged (PyRadiomics, IBSI's `avg`), or one matrix of all directions (`comb`).
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from concordct.features.definition import definitions

#: IBSI's 25 co-occurrence features in the order of its tables, then PyRadiomics' maximal correlation coefficient.
GLCM = definitions("""
cm_joint_max GYBY MaximumProbability
cm_joint_avg 60VM JointAverage
cm_joint_var UR99 SumSquares
cm_joint_entr TU9B JointEntropy
cm_diff_avg TF7R DifferenceAverage
cm_diff_var D3YU DifferenceVariance
cm_diff_entr NTRS DifferenceEntropy
cm_sum_avg ZGXS SumAverage
cm_sum_var OEEB -
cm_sum_entr P6QZ SumEntropy
cm_energy 8ZQL JointEnergy
cm_contrast ACUI Contrast
cm_dissimilarity 8S9J -
cm_inv_diff IB1Z Id
cm_inv_diff_norm NDRX Idn
cm_inv_diff_mom WF0Z Idm
cm_inv_diff_mom_norm 1QCO Idmn
cm_inv_var E8JP InverseVariance
cm_corr NI2N Correlation
cm_auto_corr QWB0 Autocorrelation
cm_clust_tend DG8W ClusterTendency
cm_clust_shade 7NFM ClusterShade
cm_clust_prom AE86 ClusterProminence
cm_info_corr1 R8DG Imc1
cm_info_corr2 JN9H Imc2
cm_mcc - MCC
""")

MCC = len(GLCM) - 1

#: Half of the 8 and of the 26 directions (z, y, x): the other half is the transpose.
DIRECTIONS_2D = np.array([(0, 0, 1), (0, 1, -1), (0, 1, 0), (0, 1, 1)])
DIRECTIONS_3D = np.array(
    [*DIRECTIONS_2D.tolist(), *([1, dy, dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1))], dtype=np.int64
)


@numba.njit(cache=True, nogil=True)
def count_pairs(levels, dz, dy, dx, matrix):  # type: ignore[no-untyped-def]
    """Add the pairs of neighbours at one offset, both ways, to `matrix` ([level, level]); returns how many."""
    depth, height, width = levels.shape
    pairs = 0
    for z in range(max(0, -dz), min(depth, depth - dz)):
        for y in range(max(0, -dy), min(height, height - dy)):
            for x in range(max(0, -dx), min(width, width - dx)):
                i = levels[z, y, x]
                if i > 0:
                    j = levels[z + dz, y + dy, x + dx]
                    if j > 0:
                        matrix[i - 1, j - 1] += 1.0
                        matrix[j - 1, i - 1] += 1.0
                        pairs += 1
    return pairs


@numba.njit(cache=True, nogil=True)
def matrix_features(matrix, total, out):  # type: ignore[no-untyped-def]
    """The features of one symmetric matrix of counts into `out` ([26]); the last, MCC, is left as it is.

    Equation numbers are the sections of IBSI's manual (3.6.1 to 3.6.25); p_ij = matrix / total.
    """
    n = matrix.shape[0]
    marginal = np.zeros(n)
    sums = np.zeros(2 * n - 1)
    differences = np.zeros(n)
    largest = 0.0
    entropy = 0.0
    energy = 0.0
    product = 0.0
    for i in range(n):
        for j in range(n):
            count = matrix[i, j]
            if count != 0.0:
                p = count / total
                marginal[i] += p
                sums[i + j] += p
                differences[abs(i - j)] += p
                largest = max(largest, p)
                entropy -= p * np.log2(p)
                energy += p * p
                product += p * (i + 1) * (j + 1)
    mean = 0.0
    marginal_entropy = 0.0
    for i in range(n):
        if marginal[i] > 0.0:
            mean += marginal[i] * (i + 1)
            marginal_entropy -= marginal[i] * np.log2(marginal[i])
    variance = 0.0
    for i in range(n):
        variance += marginal[i] * (i + 1 - mean) ** 2
    out[0] = largest  # 3.6.1 GYBY
    out[1] = mean  # 3.6.2 60VM
    out[2] = variance  # 3.6.3 UR99
    out[3] = entropy  # 3.6.4 TU9B

    diff_mean = 0.0
    diff_entropy = 0.0
    contrast = 0.0
    inv_diff = 0.0
    inv_diff_norm = 0.0
    inv_moment = 0.0
    inv_moment_norm = 0.0
    inv_variance = 0.0
    for k in range(n):
        p = differences[k]
        if p > 0.0:
            diff_mean += k * p
            diff_entropy -= p * np.log2(p)
            contrast += k * k * p
            inv_diff += p / (1.0 + k)
            inv_diff_norm += p / (1.0 + k / n)
            inv_moment += p / (1.0 + k * k)
            inv_moment_norm += p / (1.0 + (k / n) ** 2)
            if k > 0:
                inv_variance += p / (k * k)
    diff_variance = 0.0
    for k in range(n):
        diff_variance += differences[k] * (k - diff_mean) ** 2
    out[4] = diff_mean  # 3.6.5 TF7R
    out[5] = diff_variance  # 3.6.6 D3YU
    out[6] = diff_entropy  # 3.6.7 NTRS

    sum_mean = 0.0
    sum_entropy = 0.0
    for k in range(2 * n - 1):
        p = sums[k]
        if p > 0.0:
            sum_mean += (k + 2) * p
            sum_entropy -= p * np.log2(p)
    tendency = 0.0
    shade = 0.0
    prominence = 0.0
    for k in range(2 * n - 1):
        d = k + 2 - 2.0 * mean
        tendency += d * d * sums[k]
        shade += d * d * d * sums[k]
        prominence += d * d * d * d * sums[k]
    sum_variance = 0.0
    for k in range(2 * n - 1):
        sum_variance += sums[k] * (k + 2 - sum_mean) ** 2
    out[7] = sum_mean  # 3.6.8 ZGXS
    out[8] = sum_variance  # 3.6.9 OEEB
    out[9] = sum_entropy  # 3.6.10 P6QZ
    out[10] = energy  # 3.6.11 8ZQL
    out[11] = contrast  # 3.6.12 ACUI
    out[12] = diff_mean  # 3.6.13 8S9J
    out[13] = inv_diff  # 3.6.14 IB1Z
    out[14] = inv_diff_norm  # 3.6.15 NDRX
    out[15] = inv_moment  # 3.6.16 WF0Z
    out[16] = inv_moment_norm  # 3.6.17 1QCO
    out[17] = inv_variance  # 3.6.18 E8JP
    # 3.6.19 NI2N; one grey level correlates with itself
    out[18] = (product - mean * mean) / variance if variance > 0.0 else 1.0
    out[19] = product  # 3.6.20 QWB0
    out[20] = tendency  # 3.6.21 DG8W
    out[21] = shade  # 3.6.22 7NFM
    out[22] = prominence  # 3.6.23 AE86

    cross = 0.0
    for i in range(n):
        if marginal[i] > 0.0:
            for j in range(n):
                count = matrix[i, j]
                if count != 0.0:
                    cross -= count / total * np.log2(marginal[i] * marginal[j])
    independent = 2.0 * marginal_entropy
    # 3.6.24 R8DG
    out[23] = (entropy - cross) / marginal_entropy if marginal_entropy > 0.0 else 0.0
    # 3.6.25 JN9H
    out[24] = np.sqrt(1.0 - np.exp(-2.0 * (independent - entropy))) if independent > entropy else 0.0


@numba.njit(cache=True, nogil=True)
def _features(levels, n_levels, offsets, merged, with_mcc):  # type: ignore[no-untyped-def]
    width = 26
    totals = np.zeros(width)
    found = np.zeros(width)
    matrix = np.zeros((n_levels, n_levels))
    used = 0
    total = 0.0
    for k in range(offsets.shape[0]):
        if not merged:
            matrix[:] = 0.0
            total = 0.0
        total += 2.0 * count_pairs(levels, offsets[k, 0], offsets[k, 1], offsets[k, 2], matrix)
        if (not merged and total > 0.0) or (merged and k == offsets.shape[0] - 1 and total > 0.0):
            matrix_features(matrix, total, found)
            if with_mcc:
                found[25] = _mcc(matrix, total)
            totals += found
            used += 1
    return totals / used if used else np.full(width, np.nan)


@numba.njit(cache=True, nogil=True)
def _mcc(matrix, total):  # type: ignore[no-untyped-def]
    """Haralick's maximal correlation coefficient: the square root of the second largest eigenvalue of Q.

    Q(i,j) = sum_k p(i,k) p(j,k) / (p_x(i) p_y(k)) is similar to the symmetric S S^T with
    S(i,k) = p(i,k) / sqrt(p_x(i) p_y(k)), and S itself is symmetric here, so its eigenvalues squared are Q's.
    """
    marginal = matrix.sum(axis=1) / total
    present = np.nonzero(marginal > 0.0)[0]
    n = present.size
    if n < 2:
        return 1.0
    scaled = np.empty((n, n))
    for a in range(n):
        for b in range(n):
            i, j = present[a], present[b]
            scaled[a, b] = matrix[i, j] / total / np.sqrt(marginal[i] * marginal[j])
    size = np.sort(np.abs(np.linalg.eigvalsh(scaled)))
    return size[n - 2]


def glcm_features(
    levels: NDArray[np.int32],
    *,
    offsets: NDArray[np.int64],
    merged: bool,
    n_levels: int | None = None,
    with_mcc: bool = False,
) -> NDArray[np.float64]:
    """Co-occurrence features of one ROI.

    Parameters
    ----------
    levels : [z, y, x] int32 grey levels, 0 outside the ROI.
    offsets : [direction, 3] (z, y, x) steps to the neighbour, one of each opposite pair.
    merged : True for the features of the sum of all directions' matrices, False for the mean of each direction's
        features, over the directions that have a pair.
    n_levels : number of grey levels for the normalized features; the greatest level when None.
    with_mcc : compute the maximal correlation coefficient (an eigenvalue problem for each matrix); NaN otherwise.

    Returns
    -------
    [26] in the order of `GLCM`; NaN throughout when no two voxels of the ROI are neighbours.

    References
    ----------
    IBSI reference manual, arXiv:1612.07003, section 3.6.
    """
    count = int(levels.max()) if n_levels is None else n_levels
    if count < 1:
        return np.full(len(GLCM), np.nan)
    values = _features(np.ascontiguousarray(levels), count, offsets, merged, with_mcc)
    if not with_mcc:
        values[MCC] = np.nan
    return values
