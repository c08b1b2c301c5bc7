"""How well features agree between two images of the same ROIs.

The headline is Lin's concordance of each feature across ROIs (`ccc_per_feature`), averaged by class. The papers'
number is another one, concordance across the features of a class within one ROI (`ccc_per_class`), which the features
of the largest magnitude dominate. Constant and undefined features are counted and listed (`status`), never dropped.

Sources: Lin 1989, doi:10.2307/2532051; Shrout & Fleiss 1979, doi:10.1037/0033-2909.86.2.420; Bland & Altman 1986,
doi:10.1016/S0140-6736(86)90837-8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from concordct.agreement.bootstrap import Draws, draw_subjects, percentiles
from concordct.errors import ConcordctError

Array = NDArray[np.float64]

#: A feature needs this many ROIs defined in both images: with two, any measure of agreement is chance.
LEAST_ROIS = 3
#: Spread below this share of the magnitude is rounding: the feature is constant.
CONSTANT_SPREAD = 1e-10
#: Limits of agreement hold 95% of normal differences (Bland & Altman 1986).
NORMAL_95 = 1.96
#: DiffusionCT's and LTDiff++'s threshold of a reproducible feature.
REPRODUCIBLE = 0.15


@dataclass(frozen=True, eq=False)
class Moments:
    """First and second moments over the ROIs that are defined in both images, each [feature]."""

    count: Array
    mean_x: Array
    mean_y: Array
    var_x: Array
    var_y: Array
    cov: Array
    constant_x: NDArray[np.bool_]
    constant_y: NDArray[np.bool_]


def ccc_per_feature(source: Array, target: Array) -> Array:
    """Lin's concordance correlation coefficient of each feature across ROIs.

    Parameters
    ----------
    source, target : [roi, feature] the same ROIs in the same order; NaN where undefined.

    Returns
    -------
    [feature] in [-1, 1], over the ROIs that are defined in both; NaN for a feature that is constant in both images or
    has fewer than `LEAST_ROIS` such ROIs. A feature that is constant in one image only has 0.

    References
    ----------
    Lin 1989, doi:10.2307/2532051; moments over n.
    """
    m = _moments(source, target)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Lin 1989: rho_c = 2 s_xy / (s_x^2 + s_y^2 + (mean_x - mean_y)^2)
        ccc = 2 * m.cov / (m.var_x + m.var_y + (m.mean_x - m.mean_y) ** 2)
    ccc[m.constant_x | m.constant_y] = 0.0
    ccc[(m.constant_x & m.constant_y) | (m.count < LEAST_ROIS)] = np.nan
    return ccc


def status(source: Array, target: Array) -> tuple[str, ...]:
    """What can be said of each feature.

    Returns
    -------
    [feature] `"ok"`; `"constant"` (one value in all ROIs of both images); `"constant in source"`, `"constant in
    target"`; `"undefined"` (fewer than `LEAST_ROIS` ROIs defined in both); `"partial"` (some ROIs undefined).
    """
    m = _moments(source, target)
    found = np.full(source.shape[1], "ok", dtype=object)
    found[m.count < len(source)] = "partial"
    found[m.constant_x] = "constant in source"
    found[m.constant_y] = "constant in target"
    found[m.constant_x & m.constant_y] = "constant"
    found[m.count < LEAST_ROIS] = "undefined"
    return tuple(found)


def ccc_per_class(source: Array, target: Array, classes: Sequence[str]) -> dict[str, Array]:
    """The papers' definition: concordance across the features of a class, within each ROI.

    Parameters
    ----------
    source, target : [roi, feature].
    classes : [feature].

    Returns
    -------
    class -> [roi]; NaN where a class has fewer than `LEAST_ROIS` features defined in both, or only constants.
    """
    _check_pair(source, target)
    if len(classes) != source.shape[1]:
        raise ConcordctError(f"{len(classes)} classes do not fit {source.shape[1]} features")
    names = np.array(classes)
    return {
        name: ccc_per_feature(source[:, names == name].T, target[:, names == name].T) for name in dict.fromkeys(classes)
    }


def mean_by_class(values: Array, classes: Sequence[str]) -> dict[str, ClassSummary]:
    """Mean and spread of one number for each feature, class by class; undefined features are counted beside."""
    names = np.array(classes)
    summaries = {}
    for name in dict.fromkeys(classes):
        inside = values[names == name]
        known = inside[np.isfinite(inside)]
        summaries[name] = ClassSummary(
            mean=float(known.mean()) if known.size else float("nan"),
            sd=float(known.std(ddof=1)) if known.size > 1 else float("nan"),
            defined=int(known.size),
            undefined=int(inside.size - known.size),
        )
    return summaries


@dataclass(frozen=True)
class ClassSummary:
    """Mean and standard deviation (n - 1) over the features of a class that are defined, and how many are not."""

    mean: float
    sd: float
    defined: int
    undefined: int


def relative_error(source: Array, target: Array) -> Array:
    """|f_s - f_t| / |f_t| of every feature in every ROI.

    Returns
    -------
    [roi, feature]; 0 where both are 0, infinity where only the target is 0, NaN where either is undefined.
    """
    _check_pair(source, target)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.abs(source - target) / np.abs(target)
    error[(source == 0) & (target == 0)] = 0.0
    return error


@dataclass(frozen=True)
class Reproducible:
    """Shares under a threshold of relative error, counted in two ways.

    Attributes
    ----------
    of_features : share of the features whose median relative error over ROIs lies under the threshold.
    of_values : share of all (feature, ROI) values under it.
    undefined_features, undefined_values : how many have no relative error at all; they are in neither share.
    """

    threshold: float
    of_features: float
    of_values: float
    undefined_features: int
    undefined_values: int


def reproducible(errors: Array, *, threshold: float) -> Reproducible:
    """The share of reproducible features, from `relative_error` ([roi, feature])."""
    known = ~np.isnan(errors)
    median = median_error(errors)
    defined = ~np.isnan(median)
    return Reproducible(
        threshold=threshold,
        of_features=float((median[defined] < threshold).mean()) if defined.any() else float("nan"),
        of_values=float((errors[known] < threshold).mean()) if known.any() else float("nan"),
        undefined_features=int((~defined).sum()),
        undefined_values=int((~known).sum()),
    )


def reproducibility_curve(errors: Array, thresholds: Array) -> Array:
    """DiffusionCT's Fig. 4: share of features ([threshold]) whose median relative error lies under each threshold."""
    median = median_error(errors)
    median = np.sort(median[~np.isnan(median)])
    if median.size == 0:
        return np.full(len(thresholds), np.nan)
    return np.searchsorted(median, thresholds, side="left") / median.size


def median_error(errors: Array) -> Array:
    """[feature] the median relative error over the ROIs where it is defined, infinity included; NaN for none."""
    ordered = np.sort(errors, axis=0)  # NaN last
    count = (~np.isnan(errors)).sum(axis=0)
    columns = np.arange(errors.shape[1])
    low = ordered[np.maximum((count - 1) // 2, 0), columns]
    high = ordered[np.minimum(count // 2, len(errors) - 1), columns]
    with np.errstate(invalid="ignore"):
        median = np.where(low == high, low, (low + high) / 2)
    return np.where(count == 0, np.nan, median)


def icc_2_1(source: Array, target: Array) -> Array:
    """[feature] ICC(2,1): two-way random effects, absolute agreement, one measurement (Shrout & Fleiss 1979)."""
    rows, raters, residual, count = _mean_squares(source, target)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Shrout & Fleiss 1979: (BMS - EMS) / (BMS + (k-1) EMS + k (JMS - EMS) / n), k = 2
        return (rows - residual) / (rows + residual + 2 * (raters - residual) / count)


def icc_3_1(source: Array, target: Array) -> Array:
    """[feature] ICC(3,1): two-way mixed effects, consistency, one measurement (Shrout & Fleiss 1979)."""
    rows, _, residual, _ = _mean_squares(source, target)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Shrout & Fleiss 1979: (BMS - EMS) / (BMS + (k-1) EMS), k = 2
        return (rows - residual) / (rows + residual)


@dataclass(frozen=True, eq=False)
class BlandAltman:
    """Mean difference source - target and its 95% limits of agreement, each [feature], in the feature's unit."""

    bias: Array
    low: Array
    high: Array


def bland_altman(source: Array, target: Array) -> BlandAltman:
    """Bias and limits of agreement of each feature (Bland & Altman 1986); NaN with fewer than `LEAST_ROIS` ROIs."""
    m = _moments(source, target)
    bias = m.mean_x - m.mean_y
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = (m.var_x + m.var_y - 2 * m.cov) * m.count / (m.count - 1)
    half = NORMAL_95 * np.sqrt(np.maximum(variance, 0.0))
    few = m.count < LEAST_ROIS
    return BlandAltman(*(np.where(few, np.nan, edge) for edge in (bias, bias - half, bias + half)))


@dataclass(frozen=True)
class Interval:
    """A bootstrap percentile interval of a class's mean CCC."""

    low: float
    high: float
    level: float
    repeats: int
    subjects: int


def bootstrap_by_subject(
    source: Array,
    target: Array,
    classes: Sequence[str],
    subjects: Sequence[str],
    *,
    generator: np.random.Generator,
    repeats: int = 1000,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Percentile intervals of the mean CCC of each class, resampling whole subjects.

    ROIs of one patient are not independent, so it is patients that are drawn; one subject alone gives NaN limits.

    Parameters
    ----------
    source, target : [roi, feature].
    classes : [feature].
    subjects : [roi] whom each ROI belongs to.
    generator : randomness.
    repeats : bootstrap samples.
    level : coverage of the interval.
    """
    drawn = draw_subjects(subjects, repeats=repeats, generator=generator)
    means = drawn_means_by_class(source, target, classes, drawn)
    if drawn.subjects < 2:
        return dict.fromkeys(means, Interval(float("nan"), float("nan"), level, 0, drawn.subjects))
    return {
        name: Interval(*percentiles(values, level=level), level, repeats, drawn.subjects)
        for name, values in means.items()
    }


def drawn_means_by_class(source: Array, target: Array, classes: Sequence[str], drawn: Draws) -> dict[str, Array]:
    """Mean CCC of each class in every sample of subjects, [repeat]; the same draws for two methods pair them.

    Parameters
    ----------
    source, target : [roi, feature]. classes : [feature]. drawn : samples of the ROIs' subjects.
    """
    _check_pair(source, target)
    if len(drawn.index) != len(source):
        raise ConcordctError(f"expected a subject for each of {len(source)} ROIs, found {len(drawn.index)}")
    names = np.array(classes)
    m = _moments(source, target)
    use = np.isfinite(source) & np.isfinite(target)
    x = np.where(use, source - m.mean_x, 0.0)  # centred once: sums of raw squares would lose digits
    y = np.where(use, target - m.mean_y, 0.0)
    terms = np.stack([use.astype(np.float64), x, y, x * x, y * y, x * y], axis=1)  # [roi, 6, feature]
    shift = m.mean_x - m.mean_y
    means: dict[str, list[float]] = {name: [] for name in dict.fromkeys(classes)}
    for n, sx, sy, sxx, syy, sxy in drawn.sums(terms):
        with np.errstate(invalid="ignore", divide="ignore"):
            mx, my = sx / n, sy / n
            var_x, var_y, cov = sxx / n - mx**2, syy / n - my**2, sxy / n - mx * my
            ccc = 2 * cov / (var_x + var_y + (mx - my + shift) ** 2)
        ccc[(n < LEAST_ROIS) | (m.constant_x & m.constant_y)] = np.nan
        for name, found in means.items():
            inside = ccc[names == name]
            inside = inside[np.isfinite(inside)]
            found.append(float(inside.mean()) if inside.size else float("nan"))
    return {name: np.array(found) for name, found in means.items()}


def _check_pair(source: Array, target: Array) -> None:
    if source.ndim != 2 or source.shape != target.shape:
        raise ConcordctError(f"agreement needs two [roi, feature] arrays of one shape, {source.shape}, {target.shape}")


def _moments(source: Array, target: Array) -> Moments:
    _check_pair(source, target)
    use = np.isfinite(source) & np.isfinite(target)
    count = use.sum(axis=0).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_x = np.where(use, source, 0.0).sum(axis=0) / count
        mean_y = np.where(use, target, 0.0).sum(axis=0) / count
        dx = np.where(use, source - mean_x, 0.0)
        dy = np.where(use, target - mean_y, 0.0)
        var_x, var_y, cov = (dx * dx).sum(axis=0) / count, (dy * dy).sum(axis=0) / count, (dx * dy).sum(axis=0) / count
    scale = CONSTANT_SPREAD * np.maximum(np.abs(mean_x), np.abs(mean_y))
    some = count > 0
    constant_x = some & (np.abs(dx).max(axis=0, initial=0.0) <= scale)
    constant_y = some & (np.abs(dy).max(axis=0, initial=0.0) <= scale)
    return Moments(count, mean_x, mean_y, var_x, var_y, cov, constant_x, constant_y)


def _mean_squares(source: Array, target: Array) -> tuple[Array, Array, Array, Array]:
    """Between ROIs, between images, residual mean squares of the two-way table, and the ROIs, each [feature]."""
    m = _moments(source, target)
    n = m.count
    with np.errstate(invalid="ignore", divide="ignore"):
        # With k = 2 images: row means (x + y) / 2, image means mean_x and mean_y, residual (d - mean d) / 2
        rows = n * (m.var_x + m.var_y + 2 * m.cov) / 2 / (n - 1)
        raters = n * (m.mean_x - m.mean_y) ** 2 / 2
        residual = n * (m.var_x + m.var_y - 2 * m.cov) / 2 / (n - 1)
    unknown = (n < LEAST_ROIS) | (m.constant_x & m.constant_y)
    return tuple(np.where(unknown, np.nan, part) for part in (rows, raters, residual, n))  # type: ignore[return-value]
