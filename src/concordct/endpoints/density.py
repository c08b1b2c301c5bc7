"""Volume, mean density and mass of the lungs, whole, by side and by thirds of their height.

Mass follows from density as (HU + 1000) / 1000 g/ml: lung is taken for a mixture of air and water.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from concordct.endpoints.endpoint import Column, Endpoint, needed, voxel_ml
from concordct.endpoints.regions import PARTS, LungVoxels
from concordct.volumes.volume import Volume


def measure(volume: Volume, mask: NDArray[np.uint8] | None) -> dict[str, float]:
    """Volume, mean density and mass under lung labels; NaN for a part that the image does not show.

    Raises
    ------
    ConcordctError : no mask, an empty one, or one of another shape.
    """
    lungs = LungVoxels(volume, needed(mask, volume, "density of the lungs"))
    found: dict[str, float] = {}
    for part in PARTS:
        hu = lungs.of(part)
        ml = hu.size * voxel_ml(volume)
        mean = float(np.mean(hu, dtype=np.float64)) if hu.size else float("nan")
        found[f"volume_{part}_ml"] = ml if hu.size else float("nan")
        found[f"density_{part}_hu"] = mean
        found[f"mass_{part}_g"] = ml * (mean + 1000.0) / 1000.0
    return found


def _columns() -> tuple[Column, ...]:
    found = []
    for part in PARTS:
        whole = part == "lungs"
        found += [
            Column(f"volume_{part}_ml", "ml", f"volume, {part}", headline=whole),
            Column(f"density_{part}_hu", "HU", f"mean density, {part}", headline=whole),
            Column(f"mass_{part}_g", "g", f"mass, {part}"),
        ]
    return tuple(found)


ENDPOINT = Endpoint("density", "Lung volume and density", "lungs", _columns(), measure)
