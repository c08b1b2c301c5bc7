"""Features that runs, zones and dependences share: they all count grey levels i against a size j.

GLRLM, GLSZM, GLDZM and NGLDM differ in what j counts (run length, zone size, distance to the border, dependence); the
sums are the same. Source: IBSI reference manual, arXiv:1612.07003, sections 3.7 to 3.9 and 3.11.
"""

from __future__ import annotations

import numpy as np

from concordct.signal.compiled import compiled

#: How many features `size_features` computes.
COUNT = 17


@compiled
def size_features(matrix, voxels, out):  # type: ignore[no-untyped-def]
    """The features of one dense matrix of counts ([level, size], both from 1) into `out` ([17]).

    `voxels` is what the number of runs or zones is divided by for the percentage. The order is IBSI's: emphasis of
    small and of large sizes, of low and of high grey levels, of their four pairs, grey level non-uniformity and
    normalized, size non-uniformity and normalized, percentage, variance of grey levels and of sizes, entropy, energy.
    """
    n_levels, n_sizes = matrix.shape
    by_size = np.zeros(n_sizes)
    by_level = np.zeros(n_levels)
    total = 0.0
    entropy = 0.0
    energy = 0.0
    out[:] = 0.0
    for a in range(n_levels):
        i2 = (a + 1.0) ** 2
        for b in range(n_sizes):
            count = matrix[a, b]
            if count != 0.0:
                j2 = (b + 1.0) ** 2
                total += count
                by_level[a] += count
                by_size[b] += count
                out[4] += count / (i2 * j2)
                out[5] += count * i2 / j2
                out[6] += count * j2 / i2
                out[7] += count * i2 * j2
    if total == 0.0:
        out[:] = np.nan
        return
    for a in range(n_levels):
        for b in range(n_sizes):
            if matrix[a, b] != 0.0:
                p = matrix[a, b] / total
                entropy -= p * np.log2(p)
                energy += p * p
    _margins(by_level, np.arange(1, n_sizes + 1), by_size, total, out)
    out[12] = total / voxels
    out[15] = entropy
    out[16] = energy


@compiled
def _margins(by_level, sizes, by_size, total, out):  # type: ignore[no-untyped-def]
    """Everything that needs only the sums over levels or over sizes; divides the joint emphases by the total.

    `sizes` ascend; `by_size` says how often each occurs.
    """
    mean_size = 0.0
    for b in range(by_size.size):
        count = by_size[b]
        if count != 0.0:
            j = float(sizes[b])
            out[0] += count / (j * j)
            out[1] += count * j * j
            out[10] += count * count
            mean_size += count * j
    mean_level = 0.0
    for a in range(by_level.size):
        count = by_level[a]
        if count != 0.0:
            i = a + 1.0
            out[2] += count / (i * i)
            out[3] += count * i * i
            out[8] += count * count
            mean_level += count * i
    mean_size /= total
    mean_level /= total
    for a in range(by_level.size):
        out[13] += by_level[a] / total * (a + 1.0 - mean_level) ** 2
    for b in range(by_size.size):
        out[14] += by_size[b] / total * (sizes[b] - mean_size) ** 2
    for k in range(8):
        out[k] /= total
    out[9] = out[8] / total**2
    out[8] /= total
    out[11] = out[10] / total**2
    out[10] /= total


@compiled
def kind_features(levels, sizes, counts, voxels, out):  # type: ignore[no-untyped-def]
    """`size_features` from the pairs of level and size that occur, each once, and how often each does."""
    out[:] = 0.0
    kinds = levels.size
    if kinds == 0:
        out[:] = np.nan
        return
    by_level = np.zeros(levels.max())
    total = 0.0
    for k in range(kinds):
        i2 = float(levels[k]) ** 2
        j2 = float(sizes[k]) ** 2
        total += counts[k]
        by_level[levels[k] - 1] += counts[k]
        out[4] += counts[k] / (i2 * j2)
        out[5] += counts[k] * i2 / j2
        out[6] += counts[k] * j2 / i2
        out[7] += counts[k] * i2 * j2
    entropy = 0.0
    energy = 0.0
    for k in range(kinds):
        p = counts[k] / total
        entropy -= p * np.log2(p)
        energy += p * p
    order = np.argsort(sizes)
    found = np.empty(kinds, np.int64)
    by_size = np.zeros(kinds)
    last = 0
    for k in range(kinds):
        size = sizes[order[k]]
        if k > 0 and size != found[last]:
            last += 1
        found[last] = size
        by_size[last] += counts[order[k]]
    _margins(by_level, found[: last + 1], by_size[: last + 1], total, out)
    out[12] = total / voxels
    out[15] = entropy
    out[16] = energy


@compiled
def listed_features(levels, sizes, voxels, out):  # type: ignore[no-untyped-def]
    """`size_features` from a list of zones (level, size), for sizes that would make a dense matrix of gigabytes."""
    n_zones = levels.size
    keys = np.empty(n_zones, np.int64)
    wide = np.int64(sizes.max()) + 1 if n_zones else np.int64(1)
    for k in range(n_zones):
        keys[k] = np.int64(levels[k]) * wide + sizes[k]
    keys.sort()
    # Few pairs of level and size occur among millions of zones.
    kinds = min(n_zones, 1)
    for k in range(1, n_zones):
        if keys[k] != keys[k - 1]:
            kinds += 1
    own_levels = np.empty(kinds, np.int64)
    own_sizes = np.empty(kinds, np.int64)
    own_counts = np.empty(kinds)
    start = 0
    kind = 0
    for k in range(1, n_zones + 1):
        if k == n_zones or keys[k] != keys[start]:
            own_levels[kind] = keys[start] // wide
            own_sizes[kind] = keys[start] % wide
            own_counts[kind] = k - start
            kind += 1
            start = k
    kind_features(own_levels, own_sizes, own_counts, voxels, out)
