"""Calcium in the heart region: Agatston score, volume and mass at 130 HU.

Agatston 1990, doi:10.1016/0735-1097(90)90282-T: in every slice of 3 mm the area of each lesion of at least 130 HU and
1 mm^2, times 1 to 4 by its highest HU. Mass after McCollough 2007, doi:10.1148/radiol.2432050808: volume times mean
HU times a calibration factor.

Slice thickness. The score is defined on contiguous slices of 3 mm: more noise in thinner ones reads as calcium,
thicker ones dilute it. Slices are therefore averaged in groups to the thickness nearest to 3 mm, and the score is
scaled by (distance of the averaged slices) / 3 mm. Where that thickness lies outside `THICKNESS_MM`, or the slices
themselves are thicker, score, volume and mass are not defined and come out as NaN.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.endpoints.endpoint import Column, Endpoint, needed
from concordct.volumes.volume import Volume

THRESHOLD_HU = 130.0
#: Highest HU of a lesion in a slice from which the weights 2, 3 and 4 count.
WEIGHT_HU = (200.0, 300.0, 400.0)
LEAST_AREA_MM2 = 1.0
REFERENCE_MM = 3.0
#: Averaged thicknesses on which the score is still the score; scanners for it use 2.5 and 3 mm.
THICKNESS_MM = (2.2, 3.6)
#: mg of hydroxyapatite per ml and HU at 120 kVp: McCollough 2007 measured 0.74 to 0.85 over scanners and patient sizes.
MG_PER_ML_HU = 0.8
#: Upper ends of the usual categories 0, 1 to 10, 11 to 100, 101 to 400, above 400 (Rumberger 1999).
CATEGORIES = (0.0, 10.0, 100.0, 400.0)


def group_of_slices(volume: Volume) -> int | None:
    """How many neighbouring slices are averaged before scoring; None where the score is not defined."""
    increment = volume.spacing_mm[0]
    thickness = max(volume.slice_thickness_mm or increment, increment)
    if thickness > THICKNESS_MM[1]:
        return None
    group = max(1, round((REFERENCE_MM - thickness) / increment) + 1)
    low, high = THICKNESS_MM
    return group if low <= thickness + (group - 1) * increment <= high else None


def measure(volume: Volume, mask: NDArray[np.uint8] | None) -> dict[str, float]:
    """Calcium inside a mask (any label): the heart's region, or the coronary arteries'.

    Raises
    ------
    ConcordctError : no mask, an empty one, or one of another shape.
    """
    inside = needed(mask, volume, "calcium") > 0
    group = group_of_slices(volume)
    if group is None:
        return dict.fromkeys((column.name for column in COLUMNS), math.nan)
    increment = volume.spacing_mm[0]
    pixel_mm2 = volume.spacing_mm[1] * volume.spacing_mm[2]
    score = mm3 = hu_mm3 = 0.0
    lesions = 0
    for first in range(0, volume.shape[0] - group + 1, group):
        within = inside[first : first + group].any(axis=0)
        if not within.any():
            continue
        image = volume.hu[first : first + group].mean(axis=0)
        labels, count = ndimage.label((image >= THRESHOLD_HU) & within)
        if not count:
            continue
        area = np.bincount(labels.ravel(), minlength=count + 1)[1:] * pixel_mm2
        peak = np.asarray(ndimage.maximum(image, labels, np.arange(1, count + 1)))
        kept = area >= LEAST_AREA_MM2
        # Agatston 1990: area times weight, slice by slice
        weight = 1 + np.digitize(peak, WEIGHT_HU)
        score += float((area * weight)[kept].sum()) * group * increment / REFERENCE_MM
        lesion = kept[labels - 1] & (labels > 0)
        mm3 += float(np.count_nonzero(lesion)) * pixel_mm2 * group * increment
        hu_mm3 += float(image[lesion].sum(dtype=np.float64)) * pixel_mm2 * group * increment
        lesions += int(kept.sum())
    return {
        "agatston": score,
        "calcium_volume_ml": mm3 / 1000.0,
        # McCollough 2007: mass = factor x volume x mean HU
        "calcium_mass_mg": MG_PER_ML_HU * hu_mm3 / 1000.0,
        "calcium_lesions": float(lesions),
    }


COLUMNS = (
    Column("agatston", "", "Agatston score", CATEGORIES, True),
    Column("calcium_volume_ml", "ml", "calcium volume"),
    Column("calcium_mass_mg", "mg", "calcium mass", headline=True),
    Column("calcium_lesions", "", "lesions, slice by slice"),
)
ENDPOINT = Endpoint("calcium", "Calcium of the heart region", "mediastinum", COLUMNS, measure, mode="mean")
