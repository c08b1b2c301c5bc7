"""Bootstrap over subjects: ROIs of one patient are not independent, so it is patients that are drawn.

Efron & Tibshirani 1993, An Introduction to the Bootstrap, doi:10.1201/9780429246593: percentile intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Draws:
    """Samples of subjects, drawn with replacement.

    Attributes
    ----------
    index : [row] whose each row is, 0 ... subjects - 1. counts : [repeat, subject] how often each was drawn.
    """

    index: NDArray[np.intp]
    counts: Array

    @property
    def subjects(self) -> int:
        """How many there are."""
        return self.counts.shape[1]

    def sums(self, values: Array) -> Array:
        """[repeat, ...] sums of [row, ...] values over the rows of the subjects drawn."""
        by_subject = np.zeros((self.subjects, *values.shape[1:]))
        np.add.at(by_subject, self.index, values)
        return np.tensordot(self.counts, by_subject, axes=1)


def draw_subjects(subjects: Sequence[str], *, repeats: int, generator: np.random.Generator) -> Draws:
    """Draw as many subjects as there are, again and again.

    Parameters
    ----------
    subjects : [row].
    repeats : how often; none with a single subject, of whom no interval can be given.
    """
    who, index = np.unique(np.array(subjects), return_inverse=True)
    count = 0 if who.size < 2 else repeats
    drawn = [np.bincount(generator.integers(0, who.size, who.size), minlength=who.size) for _ in range(count)]
    return Draws(index, np.array(drawn, dtype=np.float64).reshape(count, who.size))


def percentiles(samples: Array, *, level: float = 0.95) -> tuple[float, float]:
    """The interval that holds `level` of the finite samples; NaN with fewer than two."""
    known = samples[np.isfinite(samples)]
    if known.size < 2:
        return float("nan"), float("nan")
    low, high = np.quantile(known, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
