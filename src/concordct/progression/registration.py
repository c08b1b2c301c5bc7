"""Target-region pre-registration (CIResDiff, Sec. 2.1): each lung by itself, then both in one volume.

The follow-up scan moves, the initial one stays: a prediction starts from the initial scan and has no other grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from concordct.volumes.volume import Volume


@dataclass(frozen=True, eq=False)
class Registered:
    """A follow-up scan on the grid of the initial one, and what the registration did to it.

    Attributes
    ----------
    volume : the moved scan on the fixed grid; padding where the moving scan has nothing.
    lungs : [z, y, x] labels of the moved scan's lungs on the fixed grid: 1 right, 2 left.
    fixed_lungs : [z, y, x] labels of the fixed scan's lungs.
    region : [z, y, x] bool, the fixed lungs dilated: the target region, where the result is meant to be used.
    transforms : by lung ("right", "left"), [4, 4], LPS mm of the fixed scan -> LPS mm of the moving one.
    determinants : by lung, of the transform: volume of the moving lung per volume of the fixed one, as far as the
        affine map explains it; below 1 the lung has shrunk.
    volumes_ml : by lung, (fixed, moving, moved) lung volume, ml.
    dice_before, dice_after : by lung and for "both", of the masks in LPS before and after.
    detail_correlation : of the two scans inside both lungs, below a few mm of detail; near 0 for two patients.
    backend : "ants" or "simpleitk".
    seconds : wall time of the registration proper.
    """

    volume: Volume
    lungs: NDArray[np.uint8]
    fixed_lungs: NDArray[np.uint8]
    region: NDArray[np.bool_]
    transforms: dict[str, NDArray[np.float64]]
    determinants: dict[str, float]
    volumes_ml: dict[str, tuple[float, float, float]]
    dice_before: dict[str, float]
    dice_after: dict[str, float]
    detail_correlation: float
    backend: str
    seconds: float


def pre_register(
    moving: Volume,
    fixed: Volume,
    *,
    moving_lungs: NDArray[np.uint8] | None = None,
    fixed_lungs: NDArray[np.uint8] | None = None,
    backend: str | None = None,
    check_same_patient: bool = True,
) -> Registered:
    """Bring the follow-up scan (moving) onto the initial one (fixed), lung by lung."""
    raise NotImplementedError
