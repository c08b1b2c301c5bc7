"""IBEX's six classes, as the papers name them: GOH, GLCM, GLRLM, ID, IH and NID; 1,401 features, a reconstruction.

Sources: Zhang et al. 2015, doi:10.1118/1.4908210 (IBEX), for the classes and their members; LTDiff++ and DiffusionCT
for the count, and for GLCM and GLRLM being almost half of it (here 693 of 1,401). Directions, offsets, windows and
percentiles are this project's choice, since neither paper prints them; `docs/features.md` lists them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.radiomics.filters.local_maps import local_deviation, local_entropy, local_range
from concordct.radiomics.matrices import glcm, glrlm, neighbours
from concordct.radiomics.regions import discretize
from concordct.radiomics.table import FeatureTable
from concordct.volumes.volume import Volume

Array = NDArray[np.float64]

#: IBEX's 22 co-occurrence features -> tags of ours.
GLCM = {
    "AutoCorrelation": "cm_auto_corr",
    "ClusterProminence": "cm_clust_prom",
    "ClusterShade": "cm_clust_shade",
    "ClusterTendency": "cm_clust_tend",
    "Contrast": "cm_contrast",
    "Correlation": "cm_corr",
    "DifferenceEntropy": "cm_diff_entr",
    "Dissimilarity": "cm_dissimilarity",
    "Energy": "cm_energy",
    "Entropy": "cm_joint_entr",
    "Homogeneity": "cm_inv_diff",
    "Homogeneity2": "cm_inv_diff_mom",
    "InformationMeasureCorr1": "cm_info_corr1",
    "InformationMeasureCorr2": "cm_info_corr2",
    "InverseDiffMomentNorm": "cm_inv_diff_mom_norm",
    "InverseDiffNorm": "cm_inv_diff_norm",
    "InverseVariance": "cm_inv_var",
    "MaxProbability": "cm_joint_max",
    "SumAverage": "cm_sum_avg",
    "SumEntropy": "cm_sum_entr",
    "SumVariance": "cm_sum_var",
    "Variance": "cm_joint_var",
}

#: IBEX's 11 run-length features -> tags of ours.
GLRLM = {
    "GrayLevelNonuniformity": "rlm_glnu",
    "HighGrayLevelRunEmphasis": "rlm_hgre",
    "LongRunEmphasis": "rlm_lre",
    "LongRunHighGrayLevelEmphasis": "rlm_lrhge",
    "LongRunLowGrayLevelEmphasis": "rlm_lrlge",
    "LowGrayLevelRunEmphasis": "rlm_lgre",
    "RunLengthNonuniformity": "rlm_rlnu",
    "RunPercentage": "rlm_r_perc",
    "ShortRunEmphasis": "rlm_sre",
    "ShortRunHighGrayLevelEmphasis": "rlm_srhge",
    "ShortRunLowGrayLevelEmphasis": "rlm_srlge",
}

#: In-plane directions by angle (degrees, from x towards -y), in the order of `glcm.DIRECTIONS_2D`.
ANGLES = (0, 45, 90, 135)
PLANAR = np.array([(0, 0, 1), (0, -1, 1), (0, 1, 0), (0, 1, 1)])
OFFSETS_25D = (1, 4, 7)
WINDOWS = (3, 5, 7, 9, 11)
PERCENTS = tuple(range(1, 100))
QUANTILES = (0.005, 0.025, 0.975, 0.995)
NID_RADII = (1, 2, 3)
MAPS = ("Entropy", "Range", "Std")
MAP_STATISTICS = ("Max", "Mean", "Median", "Min", "Std")
SPREADS = ("InterQuartileRange", "Kurtosis", "MeanAbsoluteDeviation", "MedianAbsoluteDeviation", "Range", "Skewness")
GLOBAL = (
    "CoefficientOfVariation",
    "Energy",
    "GlobalEntropy",
    "GlobalUniformity",
    "Max",
    "Mean",
    "Median",
    "Min",
    "RootMeanSquare",
    "Std",
    "Variance",
)
NID = ("Coarseness", "Contrast", "Busyness", "Complexity", "TextureStrength")


@dataclass(frozen=True)
class Ibex:
    """Settings of an extraction of IBEX's classes.

    Attributes
    ----------
    bin_width : width of a grey level, HU, edges at multiples of it.
    """

    bin_width: float

    def __post_init__(self) -> None:
        if not self.bin_width > 0:
            raise ConcordctError(f"a bin width must be above 0, found {self.bin_width:g}")


def extract_ibex(volume: Volume, labels: NDArray[np.integer[Any]], settings: Ibex) -> FeatureTable:
    """The 1,401 features of every label above 0; see `extract.extract` for shapes and errors."""
    from scipy import ndimage

    columns = names()
    rows = []
    rois = []
    for place, box in enumerate(ndimage.find_objects(labels)):
        if box is None:
            continue
        reach = max(WINDOWS) // 2
        wide = tuple(
            slice(max(0, b.start - reach), min(n, b.stop + reach)) for b, n in zip(box, volume.shape, strict=True)
        )
        inner = tuple(slice(b.start - w.start, b.stop - w.start) for b, w in zip(box, wide, strict=True))
        rois.append(place + 1)
        image = volume.hu[wide].astype(np.float64)
        rows.append(_roi_features(image, labels[box] == place + 1, inner, volume.spacing_mm, settings))
    return FeatureTable(columns, tuple(name.split("_")[0] for name in columns), tuple(rois), np.array(rows))


def names() -> tuple[str, ...]:
    """The 1,401 columns, `CLASS_how_Feature`."""
    found = []
    orientation = ["all", *(str(angle) for angle in ANGLES)]
    solid = ["all", *("".join(f"{step:+d}" for step in way) for way in glcm.DIRECTIONS_3D)]
    found += [f"GLCM_25D-{way}-{offset}_{name}" for offset in OFFSETS_25D for way in orientation for name in GLCM]
    found += [f"GLCM_3D-{way}-1_{name}" for way in solid for name in GLCM]
    found += [f"GLRLM_25D-{way}_{name}" for way in orientation for name in GLRLM]
    found += [f"GOH_orientation_{name}" for name in _distribution_names()]
    found += [f"ID_global_{name}" for name in (*GLOBAL, *SPREADS)]
    found += [f"ID_global_Percentile{p}" for p in PERCENTS]
    found += [f"ID_global_Quantile{q}" for q in QUANTILES]
    found += [
        f"ID_local-{dimension}-{window}_Local{kind}{name}"
        for dimension in ("2D", "3D")
        for window in WINDOWS
        for kind in MAPS
        for name in MAP_STATISTICS
    ]
    found += [f"IH_levels_{name}" for name in _distribution_names()]
    found += [f"NID_{how}-{radius}_{name}" for how in ("25D", "3D") for radius in NID_RADII for name in NID]
    return tuple(found)


def _distribution_names() -> list[str]:
    return [*SPREADS, *(f"Percentile{p}" for p in PERCENTS), *(f"PercentileArea{p}" for p in PERCENTS)]


def _roi_features(
    image: Array,
    mask: NDArray[np.bool_],
    inner: tuple[slice, ...],
    spacing_mm: tuple[float, float, float],
    settings: Ibex,
) -> Array:
    """[1401] the features of one ROI; `image` reaches beyond its box `inner`, on which `mask` lies."""
    values = image[inner][mask]
    levels = np.zeros(mask.shape, np.int32)
    levels[mask] = discretize.by_width_from_zero(values, settings.bin_width)
    around = np.floor(image / settings.bin_width).astype(np.int32)
    around -= around.min()
    parts = [_co_occurrence(levels), _runs(levels)]
    parts.append(_distribution(_orientation(image, spacing_mm)[inner][mask]))
    parts.append(_direct(values, levels[mask]))
    for solid in (False, True):
        for side in WINDOWS:
            window = (side if solid else 1, side, side)
            for found in (local_entropy(around, window), local_range(image, window), local_deviation(image, window)):
                inside = found[inner][mask]
                parts.append(np.array([inside.max(), inside.mean(), np.median(inside), inside.min(), inside.std()]))
    parts.append(_distribution(levels[mask].astype(np.float64)))
    for planar in (True, False):
        for radius in NID_RADII:
            offsets = neighbours.neighbourhood(tuple(range(1, radius + 1)), planar=planar)
            parts.append(neighbours.ngtdm_features(levels, offsets=offsets))
    return np.concatenate(parts)


def _co_occurrence(levels: NDArray[np.int32]) -> Array:
    tags = [one.tag for one in glcm.GLCM]
    places = [tags.index(tag) for tag in GLCM.values()]
    parts = []
    for directions in (*(PLANAR * offset for offset in OFFSETS_25D), glcm.DIRECTIONS_3D):
        parts.append(glcm.glcm_features(levels, offsets=directions, merged=True)[places])
        parts += [glcm.glcm_features(levels, offsets=one[None], merged=True)[places] for one in directions]
    return np.concatenate(parts)


def _runs(levels: NDArray[np.int32]) -> Array:
    tags = [one.tag for one in glrlm.GLRLM]
    places = [tags.index(tag) for tag in GLRLM.values()]
    parts = [glrlm.glrlm_features(levels, offsets=PLANAR, merged=True)[places]]
    parts += [glrlm.glrlm_features(levels, offsets=one[None], merged=True)[places] for one in PLANAR]
    return np.concatenate(parts)


def _orientation(image: Array, spacing_mm: tuple[float, float, float]) -> Array:
    """[z, y, x] direction of the in-plane gradient, degrees in [0, 360)."""
    gy, gx = (np.gradient(image, mm, axis=axis) for axis, mm in ((1, spacing_mm[1]), (2, spacing_mm[2])))
    return np.asarray(np.degrees(np.arctan2(gy, gx)) % 360, dtype=np.float64)


def _spreads(values: Array) -> list[float]:
    centred = values - values.mean()
    m2 = (centred**2).mean()
    low, high = np.percentile(values, (25, 75))
    return [
        high - low,
        (centred**4).mean() / m2**2 if m2 else 0.0,
        np.abs(centred).mean(),
        float(np.median(np.abs(values - np.median(values)))),
        np.ptp(values),
        (centred**3).mean() / m2**1.5 if m2 else 0.0,
    ]


def _distribution(values: Array) -> Array:
    """Spreads, percentiles, and the share of voxels under each percent of the range."""
    edges = values.min() + np.array(PERCENTS) / 100 * np.ptp(values)
    area = np.searchsorted(np.sort(values), edges, side="right") / values.size
    return np.concatenate([_spreads(values), np.percentile(values, PERCENTS), area])


def _direct(values: Array, levels: NDArray[np.int32]) -> Array:
    share = np.bincount(levels) / levels.size
    share = share[share > 0]
    energy = float((values**2).sum())
    mean, std = values.mean(), values.std()
    stats = [
        std / mean if mean else np.nan,
        energy,
        -(share * np.log2(share)).sum(),
        (share**2).sum(),
        values.max(),
        mean,
        np.median(values),
        values.min(),
        np.sqrt(energy / values.size),
        std,
        std**2,
    ]
    tail = [*np.percentile(values, PERCENTS), *np.quantile(values, QUANTILES)]
    return np.array([*stats, *_spreads(values), *tail])
