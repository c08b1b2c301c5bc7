"""Where HU are true: inside the body, some way from its rim.

Air of a noisy sharp scan is cut off at -1024 HU and no filter leads from one cut image to another, but the rim of the
body is most of what a whole slice shows. A transfer fitted to slices that fade to air inside the rim serves the inside,
the one of whole slices the rim.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.signal.body import material_mask
from concordct.volumes.volume import AIR_HU, Volume

#: Width of the fade inside the rim, mm: 25 mm served no pair better (`make bench-window`).
FADE_MM = 10.0


def inside(hu: NDArray[np.float32], spacing_mm: tuple[float, float]) -> NDArray[np.float32]:
    """[y, x] weight of the inside of a slice: 0 outside the body and at its rim, 1 from `FADE_MM` on."""
    body = material_mask(hu[None], spacing_mm)[0]
    if not body.any():
        return np.zeros(hu.shape, np.float32)
    # What is nearest to the body lies at most one pixel beside its box: the rest of the slice need not be looked at.
    rows, columns = (np.flatnonzero(body.any(axis=axis)) for axis in (1, 0))
    box = np.s_[max(0, rows[0] - 1) : rows[-1] + 2, max(0, columns[0] - 1) : columns[-1] + 2]
    away_mm = ndimage.distance_transform_edt(body[box], sampling=spacing_mm)
    weight = np.zeros(hu.shape, np.float32)
    weight[box] = 0.5 - 0.5 * np.cos(np.pi * np.minimum(away_mm / FADE_MM, 1))
    return weight


def faded(source: Volume, target: Volume) -> tuple[Volume, Volume]:
    """Both volumes, faded to air at the rim of the source's body."""
    weight = np.stack([inside(image, source.spacing_mm[1:]) for image in source.hu])
    one, other = (volume.with_hu((volume.hu - AIR_HU) * weight + AIR_HU) for volume in (source, target))
    return one, other
