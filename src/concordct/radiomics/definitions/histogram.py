"""Intensity histogram (IBSI ZVCW) and intensity-volume histogram (IBSI P88C) of an ROI.

Source: IBSI reference manual, arXiv:1612.07003, sections 3.4 and 3.5.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from concordct.radiomics.definitions.definition import definitions
from concordct.radiomics.definitions.first_order import ibsi_statistics

#: The histogram features in the order of IBSI's tables.
HISTOGRAM = definitions("""
ih_mean X6K6 -
ih_var CH89 -
ih_skew 88K1 -
ih_kurt C3I7 -
ih_median WIFQ -
ih_min 1PR8 -
ih_p10 GPMT -
ih_p90 OZ0C -
ih_max 3NCY -
ih_mode AMMC -
ih_iqr WR0O -
ih_range 5Z3W -
ih_mad D2ZX -
ih_rmad WRZB -
ih_medad 4RNL -
ih_cov CWYJ -
ih_qcod SLWD -
ih_entropy TLU2 Entropy
ih_uniformity BJ5W Uniformity
ih_max_grad 12CE -
ih_max_grad_g 8E6O -
ih_min_grad VQB3 -
ih_min_grad_g RHQZ -
""")

#: The intensity-volume features that IBSI gives reference values for.
VOLUME_HISTOGRAM = definitions("""
ivh_v10 BC2M -
ivh_v90 BC2M -
ivh_i10 GBPN -
ivh_i90 GBPN -
ivh_diff_v10_v90 DDTU -
ivh_diff_i10_i90 CNV2 -
""")


def histogram_features(levels: NDArray[np.int32], *, n_levels: int) -> NDArray[np.float64]:
    """Histogram features of one ROI.

    Parameters
    ----------
    levels : [voxel] int32 grey levels from 1.
    n_levels : number of bins that the histogram has, empty ones included.

    Returns
    -------
    [23] in the order of `HISTOGRAM`; NaN throughout for no voxel, gradients NaN for one bin.
    """
    if levels.size == 0:
        return np.full(len(HISTOGRAM), np.nan)
    stats = ibsi_statistics(levels.astype(np.float64))
    counts = np.bincount(levels, minlength=n_levels + 1)[1:].astype(np.float64)
    share = counts[counts > 0] / levels.size
    modes = np.flatnonzero(counts == counts.max()) + 1
    mode = float(modes[np.argmin(np.abs(modes - stats[0]))])  # IBSI AMMC: of several, the one nearest to the mean
    # IBSI 12CE: central differences, one-sided at both ends
    slope = np.gradient(counts) if counts.size > 1 else np.array([np.nan])
    gradients = [slope.max(), slope.argmax() + 1.0, slope.min(), slope.argmin() + 1.0]
    return np.array([*stats[:9], mode, *stats[9:16], -(share * np.log2(share)).sum(), (share**2).sum(), *gradients])


def volume_histogram_features(
    values: NDArray[np.float64], *, lowest: float, highest: float, step: float
) -> NDArray[np.float64]:
    """Intensity-volume features of one ROI.

    Parameters
    ----------
    values : [voxel] intensities on the grid lowest, lowest + step, ...
    lowest, highest : ends of the intensity axis: the resegmentation range, or the ROI's own.
    step : between intensities of the axis: 1 for whole HU, or the width of the bins whose centres `values` are.

    Returns
    -------
    [6] in the order of `VOLUME_HISTOGRAM`; NaN throughout for no voxel or one intensity.
    """
    if values.size == 0 or highest <= lowest:
        return np.full(len(VOLUME_HISTOGRAM), np.nan)
    axis = lowest + step * np.arange(round((highest - lowest) / step) + 1)
    ordered = np.sort(values)
    # IBSI 3.5: nu_i = 1 - (voxels below i) / N, gamma_i = (i - min) / (max - min)
    volume = 1 - np.searchsorted(ordered, axis - step / 2) / values.size
    fraction = (axis - lowest) / (highest - lowest)

    def volume_at(share: float) -> float:
        return float(volume[fraction >= share - 1e-12][0])

    def intensity_at(share: float) -> float:
        under = volume <= share
        return float(axis[under][0]) if under.any() else float(highest + step)

    v10, v90, i10, i90 = volume_at(0.1), volume_at(0.9), intensity_at(0.1), intensity_at(0.9)
    return np.array([v10, v90, i10, i90, v10 - v90, i10 - i90])
