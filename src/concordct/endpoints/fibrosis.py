"""Fibrosis-like lung: shares of the lung in two ranges of HU, and the histogram's shape.

High attenuation, -600 to -250 HU, after Lederer 2009, doi:10.1164/rccm.200812-1966OC; ground glass, -700 to -500 HU.
The ranges overlap, and vessels and partial volume lie in them as well, so that a healthy lung has some of both: they
compare scans and diagnose nothing. Mean, skewness and kurtosis of the lung's histogram follow fibrosis and function
(Best 2003, doi:10.1148/radiol.2282020274); kurtosis is 0 for a normal distribution.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from concordct.endpoints.endpoint import Column, Endpoint, needed, voxel_ml
from concordct.volumes.volume import Volume

HIGH_ATTENUATION_HU = (-600.0, -250.0)
GROUND_GLASS_HU = (-700.0, -500.0)


def measure(volume: Volume, mask: NDArray[np.uint8] | None) -> dict[str, float]:
    """Dense lung under lung labels.

    Raises
    ------
    ConcordctError : no mask, an empty one, or one of another shape.
    """
    hu = volume.hu[needed(mask, volume, "fibrosis") > 0]
    found: dict[str, float] = {}
    for name, (low, high) in (("high_attenuation", HIGH_ATTENUATION_HU), ("ground_glass", GROUND_GLASS_HU)):
        count = int(np.count_nonzero((hu >= low) & (hu < high)))
        found[f"{name}_percent"] = 100.0 * count / hu.size
        found[f"{name}_ml"] = count * voxel_ml(volume)
    mean = float(np.mean(hu, dtype=np.float64))
    centred = hu - np.float32(mean)
    square = centred * centred
    variance = float(np.mean(square, dtype=np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        third = np.float64(np.mean(square * centred, dtype=np.float64))
        fourth = np.float64(np.mean(square * square, dtype=np.float64))
        found["lung_sd_hu"] = float(np.sqrt(variance))
        found["lung_skewness"] = float(third / np.float64(variance) ** 1.5)
        found["lung_kurtosis"] = float(fourth / np.float64(variance) ** 2 - 3.0)
    return found


COLUMNS = (
    Column("high_attenuation_percent", "%", "high attenuation (-600 to -250 HU)", headline=True),
    Column("high_attenuation_ml", "ml", "high attenuation (-600 to -250 HU)"),
    Column("ground_glass_percent", "%", "ground glass (-700 to -500 HU)", headline=True),
    Column("ground_glass_ml", "ml", "ground glass (-700 to -500 HU)"),
    Column("lung_sd_hu", "HU", "standard deviation of the lung"),
    Column("lung_skewness", "", "skewness of the lung"),
    Column("lung_kurtosis", "", "kurtosis of the lung", headline=True),
)
ENDPOINT = Endpoint("fibrosis", "Dense lung", "lungs", COLUMNS, measure)
