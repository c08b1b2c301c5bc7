"""Clinical classes: who changes class when an image is converted, and how two images agree on the class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from concordct.errors import ConcordctError

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ClassChange:
    """How classes of one image differ from those of another.

    Attributes
    ----------
    table : [class of the reference, class of the other] patients.
    changed : share of patients whose class differs; up, down : in which direction, seen from the reference.
    kappa : Cohen's kappa with linear weights (Cohen 1968, doi:10.1037/h0026256); NaN where all are of one class.
    """

    table: NDArray[np.int64]
    changed: float
    up: float
    down: float
    kappa: float

    @property
    def patients(self) -> int:
        """Patients with a value in both images."""
        return int(self.table.sum())


def class_of(values: ArrayLike, cuts: Sequence[float]) -> NDArray[np.int64]:
    """Class of each value: 0 up to and including the first cut, 1 above it, and so on; -1 where it is undefined.

    Raises
    ------
    ConcordctError : cuts that do not ascend.
    """
    if not cuts or any(low >= high for low, high in pairwise(cuts)):
        raise ConcordctError(f"expected ascending cut points, found {list(cuts)}")
    found = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(found), np.searchsorted(np.asarray(cuts), found, side="left"), -1)


def class_changes(values: ArrayLike, reference: ArrayLike, cuts: Sequence[float]) -> ClassChange:
    """Classes of an image against those of a reference, patient by patient.

    Parameters
    ----------
    values, reference : [patient]; patients with an undefined value are left out.
    cuts : ascending cut points.

    Raises
    ------
    ConcordctError : other lengths, or no patient with both values.
    """
    found, wanted = class_of(values, cuts), class_of(reference, cuts)
    if found.shape != wanted.shape:
        raise ConcordctError(f"expected as many values as references, found {found.shape} and {wanted.shape}")
    both = (found >= 0) & (wanted >= 0)
    if not both.any():
        raise ConcordctError("expected a patient with a value in both images, found none")
    size = len(cuts) + 1
    table = np.zeros((size, size), dtype=np.int64)
    np.add.at(table, (wanted[both], found[both]), 1)
    step = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    share = table / table.sum()
    chance = np.outer(share.sum(axis=1), share.sum(axis=0))
    # Cohen 1968: 1 - weighted disagreement seen / expected by chance
    expected = float((step * chance).sum())
    kappa = 1.0 - float((step * share).sum()) / expected if expected > 0 else float("nan")
    up, down = float(np.triu(share, 1).sum()), float(np.tril(share, -1).sum())
    return ClassChange(table, up + down, up, down, kappa)
