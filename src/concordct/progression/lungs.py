"""Right and left lung of a CT, without weights, and through TotalSegmentator or lungmask where they are installed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from concordct.volumes.volume import Volume

RIGHT, LEFT = 1, 2
LUNGS = {"right": RIGHT, "left": LEFT}


class OneLungWarning(UserWarning):
    """Only one lung was found."""


def lung_masks(volume: Volume, *, backend: str = "threshold", require_both: bool = False) -> NDArray[np.uint8]:
    """[z, y, x] labels: 0 none, 1 right lung, 2 left lung."""
    raise NotImplementedError
