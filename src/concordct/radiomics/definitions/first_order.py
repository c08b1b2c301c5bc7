"""Statistics of the intensities in an ROI, as IBSI defines them (statistics, UHIW) and as PyRadiomics does.

Both come from one sorted copy of the voxels. Sources: IBSI reference manual, arXiv:1612.07003, section 3.3;
PyRadiomics 3.0.1, `firstorder.py`, whose deviations are stated beside each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from concordct.radiomics.definitions.definition import definitions

Floating = TypeVar("Floating", bound=np.floating[Any])

#: The statistics of IBSI, in the order of its tables.
IBSI = definitions("""
stat_mean Q4LE Mean
stat_var ECT3 Variance
stat_skew KE2A Skewness
stat_kurt IPH6 -
stat_median Y12H Median
stat_min 1GSF Minimum
stat_p10 QG58 10Percentile
stat_p90 8DWT 90Percentile
stat_max 84IY Maximum
stat_iqr SALO InterquartileRange
stat_range 2OJQ Range
stat_mad 4FUA MeanAbsoluteDeviation
stat_rmad 1128 RobustMeanAbsoluteDeviation
stat_medad N72L -
stat_cov 7TET -
stat_qcod 9S40 -
stat_energy N8CA Energy
stat_rms 5ZWQ RootMeanSquared
""")

#: PyRadiomics' first-order class, in the order of its columns. Kurtosis is IBSI's plus 3; percentiles interpolate;
#: Entropy and Uniformity are IBSI's intensity-histogram ones (TLU2, BJ5W); TotalEnergy has no IBSI counterpart.
PYRADIOMICS = (
    "10Percentile",
    "90Percentile",
    "Energy",
    "Entropy",
    "InterquartileRange",
    "Kurtosis",
    "Maximum",
    "MeanAbsoluteDeviation",
    "Mean",
    "Median",
    "Minimum",
    "Range",
    "RobustMeanAbsoluteDeviation",
    "RootMeanSquared",
    "Skewness",
    "TotalEnergy",
    "Uniformity",
    "Variance",
)


#: Voxels worked on at once: an ROI of more is measured in parts, which changes no bit but in the energy, where the sum
#: of fewer is BLAS's.
BLOCK = 1 << 20


def pyradiomics_first_order(
    values: NDArray[np.floating[Any]],
    level_counts: NDArray[np.int64],
    *,
    voxel_volume_mm3: float,
    shift: float = 0.0,
) -> NDArray[np.float64]:
    """PyRadiomics' 18 first-order features of one ROI.

    Parameters
    ----------
    values : [voxel] intensities, float32 or float64; sorted in place.
    level_counts : [level] voxels of each grey level (for entropy and uniformity).
    voxel_volume_mm3 : volume of one voxel, mm^3 (for the total energy).
    shift : added to the intensities before squaring (PyRadiomics' `voxelArrayShift`).

    Returns
    -------
    [18] in the order of `PYRADIOMICS`; NaN throughout for no voxel. Skewness and kurtosis of one intensity are 0.
    """
    if values.size == 0:
        return np.full(len(PYRADIOMICS), np.nan)
    count = values.size
    mean = _total(values, lambda v: v) / count
    m2 = _total(values, lambda v: np.square(v - mean)) / count
    m3 = _total(values, lambda v: np.square(v - mean) * (v - mean)) / count
    m4 = _total(values, lambda v: np.square(np.square(v - mean))) / count
    spread = _total(values, lambda v: np.abs(v - mean)) / count
    energy = _energy(values, shift)
    values.sort()
    ordered = values
    p10, p25, p50, p75, p90 = _linear_percentiles(ordered, (10, 25, 50, 75, 90))
    middle = between(ordered, p10, p90)
    robust = np.nan
    if middle.size:
        centre = _total(middle, lambda v: v) / middle.size
        robust = _total(middle, lambda v: np.abs(v - centre)) / middle.size
    share = level_counts.astype(np.float64) / count
    share = share[share > 0]
    return np.array(
        [
            p10,
            p90,
            energy,
            -(share * np.log2(share + np.spacing(1))).sum(),
            p75 - p25,
            m4 / m2**2 if m2 else 0.0,
            float(ordered[-1]),
            spread,
            mean,
            p50,
            float(ordered[0]),
            float(ordered[-1]) - float(ordered[0]),
            robust,
            np.sqrt(energy / count),
            m3 / m2**1.5 if m2 else 0.0,
            energy * voxel_volume_mm3,
            (share * share).sum(),
            m2,
        ]
    )


def _total(values: NDArray[np.floating[Any]], of: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> float:
    """Sum of a function of the voxels, halved as numpy's pairwise sum halves them: parts change no bit."""
    if values.size <= BLOCK:
        return float(of(np.asarray(values, np.float64)).sum())
    half = values.size // 2
    half -= half % 8
    return _total(values[:half], of) + _total(values[half:], of)


def _energy(values: NDArray[np.floating[Any]], shift: float) -> float:
    if values.size > BLOCK:
        return _total(values, lambda v: np.square(v + shift))
    shifted = np.asarray(values, np.float64) + shift
    return float(np.dot(shifted, shifted))


def ibsi_statistics(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """IBSI's 18 statistics of one ROI.

    Parameters
    ----------
    values : [voxel] intensities.

    Returns
    -------
    [18] in the order of `IBSI`; NaN throughout for no voxel. Skewness and excess kurtosis of one intensity are 0,
    ratios to a mean or a quartile sum of 0 are NaN.
    """
    if values.size == 0:
        return np.full(len(IBSI), np.nan)
    ordered = np.sort(values)
    p10, p25, p50, p75, p90 = (float(ordered[_ranked(ordered.size, q)]) for q in (10, 25, 50, 75, 90))
    p50 = float(np.median(ordered))
    mean = values.mean()
    centred = values - mean
    squares = centred * centred
    m2 = squares.mean()
    middle = between(ordered, p10, p90)
    energy = float(np.dot(values, values))
    return np.array(
        [
            mean,
            m2,
            (squares * centred).mean() / m2**1.5 if m2 else 0.0,  # IBSI KE2A
            (squares * squares).mean() / m2**2 - 3 if m2 else 0.0,  # IBSI IPH6
            p50,
            ordered[0],
            p10,
            p90,
            ordered[-1],
            p75 - p25,
            ordered[-1] - ordered[0],
            np.abs(centred).mean(),
            np.abs(middle - middle.mean()).mean() if middle.size else np.nan,  # IBSI 1128
            np.abs(values - p50).mean(),  # IBSI N72L: mean, not median, distance from the median
            np.sqrt(m2) / mean if mean else np.nan,
            (p75 - p25) / (p75 + p25) if p75 + p25 else np.nan,
            energy,
            np.sqrt(energy / values.size),
        ]
    )


def between(ordered: NDArray[Floating], low: float, high: float) -> NDArray[Floating]:
    """Voxels from `low` to `high`, both included."""
    # In the type of the voxels: a bound of another would have numpy copy them all.
    first, last = ordered.dtype.type(low), ordered.dtype.type(high)
    start = np.searchsorted(ordered, first, "right" if float(first) < low else "left")
    return ordered[start : np.searchsorted(ordered, last, "left" if float(last) > high else "right")]


def _ranked(count: int, percent: int) -> int:
    """IBSI's percentile is the least value that at least `percent` of the voxels do not exceed."""
    return max(-(-percent * count // 100) - 1, 0)


def _linear_percentiles(ordered: NDArray[np.floating[Any]], percents: tuple[int, ...]) -> list[float]:
    """numpy's linear percentiles of voxels already sorted."""
    found = []
    for percent in percents:
        place = percent / 100 * (ordered.size - 1)
        below = int(place)
        above = min(below + 1, ordered.size - 1)
        low, high = float(ordered[below]), float(ordered[above])
        share = place - below
        found.append(high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share)
    return found
