"""The HU that a CT image holds, whatever a filter makes of them.

A sharp kernel undershoots beside metal and in air. Scanners cut that off at -1024 HU, where 12 bits end, and at 3071 HU
unless they keep an extended range; so is everything that is written here. A source that goes beyond keeps its own ends,
and a target kernel that was calibrated on images which go beyond gives its results theirs: noise in the air of an
iterative sharp kernel reaches 400 HU below air, and texture that is cut off there agrees with nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.volumes.padding import FAR_BELOW_AIR_HU

#: 12 bits from -1024 HU.
CT_HU = (-1024.0, 3071.0)


#: HU that images of a kernel reach, where they go beyond `CT_HU`.
Reach = tuple[float, float]


def reached(image_hu: NDArray[np.floating[Any]], before: Reach | None = None) -> Reach | None:
    """What images of one kernel reach beyond `CT_HU`, one image after the other; None while they do not.

    Nothing reaches below `FAR_BELOW_AIR_HU`: there padding is told by its value.
    """
    ends = [*(CT_HU if before is None else before), float(image_hu.min()), float(image_hu.max())]
    found = max(min(ends), FAR_BELOW_AIR_HU), max(ends)
    return None if found == CT_HU else found


def ct_range(
    source_hu: NDArray[np.floating[Any]], padding: NDArray[np.bool_] | None, reach: Reach | None = None
) -> tuple[float, float]:
    """The ends of what may be written for a slice: 12 bits of HU, widened to what source and target kernel reach.

    Parameters
    ----------
    source_hu : [y, x] of the source slice, HU.
    padding : [y, x] bool, not looked at; None when there is none.
    reach : of the target kernel, see `Volume.reach_hu`.

    Returns
    -------
    (least, greatest) HU.
    """
    image = source_hu if padding is None else source_hu[~padding]
    ends = [*CT_HU, *(reach or ())]
    if image.size:
        ends += [float(image.min()), float(image.max())]
    return min(ends), max(ends)
