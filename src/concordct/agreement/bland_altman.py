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
    found = _three(x, y)
    drawn = np.empty((0, 3))
    if who.size > 1:
        rows = [np.flatnonzero(index == k) for k in range(who.size)]
        draws = generator.integers(0, who.size, (repeats, who.size))
        drawn = np.array(
            [_three(x[chosen], y[chosen]) for chosen in (np.concatenate([rows[k] for k in d]) for d in draws)]
        )
    bias, ccc, icc = (_interval(drawn[:, k]) for k in range(3))
    return Agreement(
        found[0], float(limits.low[0]), float(limits.high[0]), found[1], found[2], bias, ccc, icc, len(x), int(who.size)
    )  # fmt: skip


def _three(x: Array, y: Array) -> tuple[float, float, float]:
    """Bias, CCC and ICC of [image, 1] values."""
    return float((x - y).mean()), float(ccc_per_feature(x, y)[0]), float(icc_2_1(x, y)[0])


def _interval(drawn: Array) -> tuple[float, float]:
    known = drawn[np.isfinite(drawn)]
    if not known.size:
        return NOTHING
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)
