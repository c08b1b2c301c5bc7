"""Test-retest: how far two scans of one patient differ when nothing has changed, and what is better than that.

Sources: Bland & Altman 1999, doi:10.1177/096228029900800204; Raunig 2015 (QIBA), doi:10.1177/0962280214537344.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from concordct.agreement.concordance import NORMAL_95
from concordct.errors import ConcordctError

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Repeatability:
    """Repeatability of features, each [feature].

    Attributes
    ----------
    within_sd : within-subject standard deviation, in the feature's unit; its 95 % interval is within_low, within_high.
    coefficient : repeatability coefficient, 2.77 within_sd: two repeats differ by less in 95 of 100 subjects.
    relative : within_sd as a share of the mean's magnitude.
    degrees : of freedom behind within_sd; repeats less subjects.
    """

    within_sd: Array
    within_low: Array
    within_high: Array
    coefficient: Array
    relative: Array
    degrees: NDArray[np.int64]


def repeatability(values: Array, subjects: NDArray[np.str_] | list[str]) -> Repeatability:
    """Repeatability from two or more scans of each subject.

    Parameters
    ----------
    values : [scan, feature]; NaN where undefined.
    subjects : [scan] whose each is; a subject (or an ROI of one) that appears once counts for nothing.

    Raises
    ------
    ConcordctError : shapes that do not fit, or nobody was scanned twice.
    """
    if values.ndim != 2 or len(subjects) != len(values):
        raise ConcordctError(f"repeatability takes [scan, feature] and a subject each, found {values.shape}")
    _, index = np.unique(np.asarray(subjects), return_inverse=True)
    squares, degrees = np.zeros(values.shape[1]), np.zeros(values.shape[1], dtype=np.int64)
    for subject in range(int(index.max()) + 1):
        own = values[index == subject]
        known = np.isfinite(own)
        count = known.sum(axis=0)
        mean = np.where(known, own, 0.0).sum(axis=0) / np.maximum(count, 1)
        squares += (np.where(known, own - mean, 0.0) ** 2).sum(axis=0)
        degrees += np.maximum(count - 1, 0)
    if not degrees.any():
        raise ConcordctError("expected subjects that were scanned twice, found none")
    with np.errstate(invalid="ignore", divide="ignore"):
        # Raunig 2015: wSD^2 is the pooled variance within subjects; wSD^2 df follows chi^2 with df degrees
        within = np.sqrt(np.where(degrees > 0, squares / degrees, np.nan))
        low = within * np.sqrt(degrees / chi2.ppf(0.975, degrees))
        high = within * np.sqrt(degrees / chi2.ppf(0.025, degrees))
        relative = within / np.abs(np.nanmean(values, axis=0))
    # Bland & Altman 1999: the difference of two repeats has sqrt(2) times their deviation
    return Repeatability(within, low, high, NORMAL_95 * np.sqrt(2.0) * within, relative, degrees)


def within_repeat(values: Array, reference: Array, repeat: Repeatability) -> Array:
    """[feature] share of rows whose difference to the reference is no larger than the repeatability coefficient.

    A method that is as close to the target as a repeat of the target would be has 0.95.

    Parameters
    ----------
    values, reference : [row, feature] of the same rows.
    """
    if values.shape != reference.shape or values.shape[1:] != repeat.coefficient.shape:
        raise ConcordctError(
            f"expected [row, {repeat.coefficient.size}] twice, found {values.shape} and {reference.shape}"
        )
    difference = np.abs(values - reference)
    known = np.isfinite(difference)
    count = known.sum(axis=0)
    inside = (known & (np.nan_to_num(difference) <= repeat.coefficient)).sum(axis=0)
    with np.errstate(invalid="ignore"):
        share: Array = np.where((count > 0) & np.isfinite(repeat.coefficient), inside / np.maximum(count, 1), np.nan)
    return share
