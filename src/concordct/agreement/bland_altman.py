"""One number per patient in two images: bias, limits of agreement, CCC and ICC, with intervals over patients.

Sources: Bland & Altman 1986, doi:10.1016/S0140-6736(86)90837-8; Lin 1989, doi:10.2307/2532051; Shrout & Fleiss 1979,
doi:10.1037/0033-2909.86.2.420. Intervals are bootstrap percentiles, whole patients being drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from concordct.agreement.concordance import bland_altman, ccc_per_feature, icc_2_1
from concordct.errors import ConcordctError

Array = NDArray[np.float64]

NOTHING = (float("nan"), float("nan"))
#: Values that are drawn together: 8 MB an array.
MOST_AT_ONCE = 2**20


@dataclass(frozen=True, eq=False)
class Agreement:
    """How one endpoint agrees in two images.

    Attributes
    ----------
    bias : mean of value - reference, in the endpoint's unit; low, high : 95 % limits of agreement.
    ccc, icc : Lin's concordance and ICC(2,1).
    bias_interval, ccc_interval, icc_interval : 95 % bootstrap intervals over patients; NaN with one patient.
    count, patients : pairs of values that are defined in both images, and whose they are.
    """

    bias: float
    low: float
    high: float
    ccc: float
    icc: float
    bias_interval: tuple[float, float]
    ccc_interval: tuple[float, float]
    icc_interval: tuple[float, float]
    count: int
    patients: int


def agreement_of(
    values: ArrayLike,
    reference: ArrayLike,
    subjects: Sequence[str],
    *,
    generator: np.random.Generator,
    repeats: int = 1000,
) -> Agreement:
    """Agreement of one endpoint with a reference.

    Parameters
    ----------
    values, reference : [image]; images with an undefined value are left out.
    subjects : [image] whose each is.
    generator, repeats : of the bootstrap.

    Raises
    ------
    ConcordctError : other lengths, or no image with both values.
    """
    x, y = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if not x.shape == y.shape == (len(subjects),):
        raise ConcordctError(f"expected {len(subjects)} values and references, found {x.shape} and {y.shape}")
    both = np.isfinite(x) & np.isfinite(y)
    if not both.any():
        raise ConcordctError("expected an image with both values, found none")
    x, y = x[both, None], y[both, None]
    who, index = np.unique(np.array(subjects)[both], return_inverse=True)
    limits = bland_altman(x, y)
    own = [float(one) for one in _three(x, y)[:, 0]]
    drawn = np.empty((3, 0))
    if who.size > 1:
        draws = generator.integers(0, who.size, (repeats, who.size))
        drawn = _resampled(x[:, 0], y[:, 0], index, draws)
    bias, ccc, icc = (_interval(one) for one in drawn)
    return Agreement(
        own[0], float(limits.low[0]), float(limits.high[0]), own[1], own[2], bias, ccc, icc, len(x), int(who.size)
    )  # fmt: skip


def _resampled(x: Array, y: Array, index: NDArray[np.intp], draws: NDArray[np.int64]) -> Array:
    """[3, draw] bias, CCC and ICC of [image] values of the subjects [draw, place] that were drawn, all at once."""
    counts = np.bincount(index)
    # Images of each subject; where it has fewer than another, one more that is undefined.
    images = np.full((counts.size, counts.max()), x.size)
    images[np.arange(counts.max()) < counts[:, None]] = np.argsort(index, kind="stable")
    x, y = np.append(x, np.nan), np.append(y, np.nan)
    step = max(1, MOST_AT_ONCE // images.size)
    chosen = [images[draws[k : k + step]].reshape(-1, images.size).T for k in range(0, len(draws), step)]
    return np.concatenate([_three(x[one], y[one]) for one in chosen], axis=1)


def _three(x: Array, y: Array) -> Array:
    """[3, column] bias, CCC and ICC of [image, column] values; undefined ones do not count."""
    return np.stack([np.nanmean(x - y, axis=0), ccc_per_feature(x, y), icc_2_1(x, y)])


def _interval(drawn: Array) -> tuple[float, float]:
    known = drawn[np.isfinite(drawn)]
    if not known.size:
        return NOTHING
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)
