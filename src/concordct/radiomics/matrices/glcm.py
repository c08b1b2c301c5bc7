"""Grey level co-occurrence (IBSI LFYI; Haralick 1973, doi:10.1109/TSMC.1973.4309314): matrices and features, compiled.

Which matrices are averaged and which merged is the caller's choice: features of each direction averaged (PyRadiomics,
IBSI's `avg`), or one matrix of all directions (`comb`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from concordct.radiomics.definitions.definition import definitions
from concordct.signal.compiled import compiled

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


@compiled
def count_pairs(levels, dz, dy, dx, weight, symmetric, matrix):  # type: ignore[no-untyped-def]
    """Add the pairs of neighbours at one offset to `matrix` ([level, level]); returns the sum that was added."""
    depth, height, width = levels.shape
    pairs = 0
    for z in range(max(0, -dz), min(depth, depth - dz)):
        for y in range(max(0, -dy), min(height, height - dy)):
            for x in range(max(0, -dx), min(width, width - dx)):
                i = levels[z, y, x]
                if i > 0:
                    j = levels[z + dz, y + dy, x + dx]
                    if j > 0:
                        matrix[i - 1, j - 1] += weight
                        if symmetric:
                            matrix[j - 1, i - 1] += weight
                        pairs += 1
    return pairs * weight * (2.0 if symmetric else 1.0)


@compiled
def matrix_features(matrix, total, out):  # type: ignore[no-untyped-def]
    """The features of one matrix of counts into `out` ([26]); the last, MCC, is left as it is.

    Section numbers are those of IBSI's manual (3.6.1 to 3.6.25); p_ij = matrix / total, and the two marginals are kept
    apart, which only an asymmetric matrix needs.
    """
    n = matrix.shape[0]
    rows = np.zeros(n)
    columns = np.zeros(n)
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
                rows[i] += p
                columns[j] += p
                sums[i + j] += p
                differences[abs(i - j)] += p
                largest = max(largest, p)
                entropy -= p * np.log2(p)
                energy += p * p
                product += p * (i + 1) * (j + 1)
    mean_x, variance_x, entropy_x = _marginal(rows)
    mean_y, variance_y, entropy_y = _marginal(columns)
    out[0] = largest  # 3.6.1 GYBY
    out[1] = mean_x  # 3.6.2 60VM
    out[2] = variance_x  # 3.6.3 UR99
    out[3] = entropy  # 3.6.4 TU9B
    _differences(differences, out)
    _sums(sums, mean_x + mean_y, out)
    out[10] = energy  # 3.6.11 8ZQL
    # 3.6.19 NI2N; one grey level correlates with itself
    spread = np.sqrt(variance_x * variance_y)
    out[18] = (product - mean_x * mean_y) / spread if spread > 0.0 else 1.0
    out[19] = product  # 3.6.20 QWB0
    cross = 0.0
    for i in range(n):
        for j in range(n):
            count = matrix[i, j]
            if count != 0.0:
                cross -= count / total * np.log2(rows[i] * columns[j])
    larger = max(entropy_x, entropy_y)
    # 3.6.24 R8DG: (HXY - HXY1) / max(HX, HY)
    out[23] = (entropy - cross) / larger if larger > 0.0 else 0.0
    # 3.6.25 JN9H: sqrt(1 - exp(-2 (HXY2 - HXY))), where HXY2 = HX + HY
    independent = entropy_x + entropy_y
    out[24] = np.sqrt(1.0 - np.exp(-2.0 * (independent - entropy))) if independent > entropy else 0.0


@compiled
def _marginal(shares):  # type: ignore[no-untyped-def]
    """Mean, variance and entropy of one marginal distribution of levels."""
    mean = 0.0
    entropy = 0.0
    for i in range(shares.size):
        if shares[i] > 0.0:
            mean += shares[i] * (i + 1)
            entropy -= shares[i] * np.log2(shares[i])
    variance = 0.0
    for i in range(shares.size):
        variance += shares[i] * (i + 1 - mean) ** 2
    return mean, variance, entropy


@compiled
def _differences(shares, out):  # type: ignore[no-untyped-def]
    """What follows from the distribution of |i - j|."""
    n = shares.size
    mean = 0.0
    entropy = 0.0
    for k in (11, 13, 14, 15, 16, 17):
        out[k] = 0.0
    for k in range(n):
        p = shares[k]
        if p > 0.0:
            mean += k * p
            entropy -= p * np.log2(p)
            out[11] += k * k * p  # 3.6.12 ACUI
            out[13] += p / (1.0 + k)  # 3.6.14 IB1Z
            out[14] += p / (1.0 + k / n)  # 3.6.15 NDRX
            out[15] += p / (1.0 + k * k)  # 3.6.16 WF0Z
            out[16] += p / (1.0 + (k / n) ** 2)  # 3.6.17 1QCO
            if k > 0:
                out[17] += p / (k * k)  # 3.6.18 E8JP
    variance = 0.0
    for k in range(n):
        variance += shares[k] * (k - mean) ** 2
    out[4] = mean  # 3.6.5 TF7R
    out[5] = variance  # 3.6.6 D3YU
    out[6] = entropy  # 3.6.7 NTRS
    out[12] = mean  # 3.6.13 8S9J


@compiled
def _sums(shares, centre, out):  # type: ignore[no-untyped-def]
    """What follows from the distribution of i + j."""
    mean = 0.0
    entropy = 0.0
    for k in (8, 20, 21, 22):
        out[k] = 0.0
    for k in range(shares.size):
        p = shares[k]
        if p > 0.0:
            mean += (k + 2) * p
            entropy -= p * np.log2(p)
            d = k + 2 - centre
            out[20] += d * d * p  # 3.6.21 DG8W
            out[21] += d * d * d * p  # 3.6.22 7NFM
            out[22] += d * d * d * d * p  # 3.6.23 AE86
    for k in range(shares.size):
        out[8] += shares[k] * (k + 2 - mean) ** 2  # 3.6.9 OEEB
    out[7] = mean  # 3.6.8 ZGXS
    out[9] = entropy  # 3.6.10 P6QZ


@compiled
def _features(levels, n_levels, offsets, weights, merged, symmetric, out):  # type: ignore[no-untyped-def]
    """Means of the features over the matrices that hold a pair, into `out` ([26]); NaN when none does."""
    totals = np.zeros(26)
    found = np.zeros(26)
    last = offsets.shape[0] - 1
    matrix = np.zeros((n_levels, n_levels))
    total = 0.0
    used = 0
    for k in range(offsets.shape[0]):
        if not merged:
            matrix[:] = 0.0
            total = 0.0
        total += count_pairs(levels, offsets[k, 0], offsets[k, 1], offsets[k, 2], weights[k], symmetric, matrix)
        if total > 0.0 and (not merged or k == last):
            matrix_features(matrix, total, found)
            totals += found
            used += 1
    for k in range(26):
        out[k] = totals[k] / used if used else np.nan


def _mcc(
    levels: NDArray[np.int32],
    count: int,
    offsets: NDArray[np.int64],
    weights: NDArray[np.float64],
    *,
    merged: bool,
    symmetric: bool,
) -> float:
    """Haralick's maximal correlation coefficient: the square root of the second largest eigenvalue of Q.

    Q(i,j) = sum_k p(i,k) p(j,k) / (p_x(i) p_y(k)) is similar to S S^T with S(i,k) = p(i,k) / sqrt(p_x(i) p_y(k)), so
    its eigenvalues are the squared singular values of S.
    """
    found = []
    highest = levels.max()
    flat = all(np.all((plane == 0) | (plane == highest)) for plane in levels)
    matrix = np.zeros((count, count))
    total = 0.0
    for k, (dz, dy, dx) in enumerate(offsets):
        if not merged:
            matrix[:] = 0.0
            total = 0.0
        total += count_pairs(levels, dz, dy, dx, weights[k], symmetric, matrix)
        if total == 0.0 or (merged and k < len(offsets) - 1):
            continue
        p = matrix / total
        rows, columns = p.sum(axis=1), p.sum(axis=0)
        p = p[np.ix_(rows > 0, columns > 0)] / np.sqrt(np.outer(rows[rows > 0], columns[columns > 0]))
        values = np.sort(np.abs(np.linalg.eigvalsh(p)))[::-1] if symmetric else np.linalg.svd(p, compute_uv=False)
        found.append(1.0 if flat else float(values[1]) if values.size > 1 else 0.0)
    return float(np.mean(found)) if found else float("nan")


def glcm_features(
    levels: NDArray[np.int32],
    *,
    offsets: NDArray[np.int64],
    merged: bool,
    weights: NDArray[np.float64] | None = None,
    symmetric: bool = True,
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
    weights : [direction] factors of the matrices in that sum; 1 when None.
    symmetric : count each pair both ways (IBSI), or only along the offset.
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
    values = np.full(len(GLCM), np.nan)
    if count < 1 or len(offsets) == 0:
        return values
    dense = np.ascontiguousarray(levels)
    factors = np.ones(len(offsets)) if weights is None else weights
    _features(dense, count, offsets, factors, merged, symmetric, values)
    values[MCC] = _mcc(dense, count, offsets, factors, merged=merged, symmetric=symmetric) if with_mcc else np.nan
    return values
