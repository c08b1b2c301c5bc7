"""Noise and sharpness as the image itself shows them: level, peak of the noise spectrum, MTF50 and MTF10.

Noise is read in quiet patches of tissue, the edge response across the skin (`signal/signature.py`). What comes
out is the whole chain's MTF in the plane, aperture and focal spot included, as far as surfaces of a patient tell.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from concordct.endpoints.endpoint import Column, Endpoint
from concordct.signal.signature import EDGE_LP_CM, RING_LP_CM, SignatureMeter, ring_centres_lp_cm
from concordct.signal.spectra import MM_PER_CM
from concordct.volumes.volume import Volume

#: Slices that are looked at, evenly over the scan: more cost time and change nothing.
MOST_SLICES = 24


def measure(volume: Volume, mask: NDArray[np.uint8] | None) -> dict[str, float]:
    """Noise and sharpness of the image; the mask is not used. NaN where no quiet tissue or no surface was found."""
    meter = SignatureMeter()
    depth = volume.shape[0]
    for z in np.unique(np.linspace(0, depth - 1, min(depth, MOST_SLICES)).round().astype(int)):
        meter.add(volume.hu[z], spacing_mm=volume.spacing_mm[1:])
    signature = meter.signature()
    found = {column.name: math.nan for column in COLUMNS}
    if signature.noise_hu2_mm2 is not None:
        power, f = np.nan_to_num(signature.noise_hu2_mm2), ring_centres_lp_cm()
        # The variance is the integral of the spectrum over the plane of frequencies.
        found["noise_level_hu"] = math.sqrt(float(np.sum(2 * np.pi * f * RING_LP_CM * power)) / MM_PER_CM**2)
        found["noise_peak_lp_cm"] = float(f[int(power.argmax())])
    if signature.edge is not None:
        found["mtf50_lp_cm"] = falls_below(signature.edge, 0.5)
        found["mtf10_lp_cm"] = falls_below(signature.edge, 0.1)
    return found


def falls_below(response: NDArray[np.float64], level: float) -> float:
    """Frequency at which an edge response ([EDGE_LP_CM]) first falls below a level, lp/cm; NaN if it never does."""
    below = np.flatnonzero(response < level)
    if not len(below) or below[0] == 0:
        return math.nan
    k = int(below[0])
    share = (response[k - 1] - level) / (response[k - 1] - response[k])
    return float(EDGE_LP_CM[k - 1] + share * (EDGE_LP_CM[k] - EDGE_LP_CM[k - 1]))


COLUMNS = (
    Column("noise_level_hu", "HU", "noise in quiet tissue", headline=True),
    Column("noise_peak_lp_cm", "lp/cm", "peak of the noise spectrum"),
    Column("mtf50_lp_cm", "lp/cm", "MTF50", headline=True),
    Column("mtf10_lp_cm", "lp/cm", "MTF10"),
)
ENDPOINT = Endpoint("noise", "Noise and sharpness", "nothing", COLUMNS, measure)
