"""The HU that a CT image holds, whatever a filter makes of them.

A sharp kernel undershoots beside metal and in air. Scanners cut that off at -1024 HU, where 12 bits end, and at 3071 HU
unless they keep an extended range; so is everything that is written here. A source that goes beyond keeps its own ends.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: 12 bits from -1024 HU.
CT_HU = (-1024.0, 3071.0)


def ct_range(source_hu: NDArray[np.floating[Any]], padding: NDArray[np.bool_] | None) -> tuple[float, float]:
    """The ends of what may be written for a slice: 12 bits of HU, widened to what the source itself reached.

    Parameters
    ----------
    source_hu : [y, x] of the source slice, HU.
    padding : [y, x] bool, not looked at; None when there is none.

    Returns
    -------
    (least, greatest) HU.
    """
    image = source_hu if padding is None else source_hu[~padding]
    if not image.size:
        return CT_HU
    return min(CT_HU[0], float(image.min())), max(CT_HU[1], float(image.max()))
