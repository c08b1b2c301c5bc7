"""How well the texture of one image agrees with another's: CCC of features over a grid of square ROIs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from concordct.agreement.concordance import ccc_per_feature, mean_by_class
from concordct.errors import ConcordctError
from concordct.radiomics.regions.rois import grid_rois
from concordct.volumes.volume import Volume

if TYPE_CHECKING:  # a plain installation, without numba, calibrates linear pairs
    from concordct.radiomics.extract import Settings

Hu = NDArray[np.float32]

#: Edge of the squares, pixels.
ROI = 28


class Texture:
    """Texture of one image, to compare others of the same place with.

    Parameters
    ----------
    volume : whose geometry all have.
    target : [z, y, x] HU to agree with.
    rois : [z, y, x] labels 1, 2, ...; `of` makes a grid of them.
    settings : which features.

    Attributes
    ----------
    target : [roi, feature]. classes : of each feature.
    """

    def __init__(self, volume: Volume, target: Hu, rois: NDArray[np.integer[Any]], settings: Settings) -> None:
        self._affine, self._rois, self._settings = volume.affine, rois, settings
        self.target = self.features(target)

    @staticmethod
    def of(
        volume: Volume, target: Hu, mask: NDArray[np.bool_], settings: Settings, *, fewest: int = 1
    ) -> Texture | None:
        """Over a grid inside a mask; None where fewer ROIs fit."""
        try:
            rois = grid_rois(mask, size=ROI)
        except ConcordctError:
            return None
        return Texture(volume, target, rois, settings) if rois.max() >= fewest else None

    def features(self, hu: Hu) -> NDArray[np.float64]:
        """[roi, feature] of an image."""
        from concordct.radiomics.extract import extract

        table = extract(Volume(hu, self._affine), self._rois, self._settings)
        self.classes = table.classes
        return table.values

    def agreement(self, one: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, float]:
        """Mean CCC per feature of two results of `features`, by class."""
        return {name: each.mean for name, each in mean_by_class(ccc_per_feature(one, other), self.classes).items()}

    def ccc(self, hu: Hu) -> dict[str, float]:
        """Mean CCC per feature of an image with the target, by class."""
        return self.agreement(self.features(hu), self.target)
