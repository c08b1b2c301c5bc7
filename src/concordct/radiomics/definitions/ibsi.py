"""Features under IBSI's definitions and names, from the image to every family of its reference tables.

Source: Zwanenburg et al. 2020, doi:10.1148/radiol.2020191145; IBSI reference manual, arXiv:1612.07003. A column is
named as in IBSI's tables: `cm_contrast_3D_avg` is the feature, then how its matrices were put together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.radiomics.definitions import first_order, histogram, morphology
from concordct.radiomics.definitions.definition import Definition
from concordct.radiomics.matrices import glcm, glrlm, neighbours, zones
from concordct.radiomics.regions import discretize
from concordct.radiomics.regions.resample import resample, resample_mask
from concordct.radiomics.table import FeatureTable
from concordct.volumes.volume import Volume

Array = NDArray[np.float64]

#: Families in the order of IBSI's tables, with their members.
FAMILIES: dict[str, tuple[Definition, ...]] = {
    "morph": morphology.MORPHOLOGY,
    "loc": morphology.LOCAL_INTENSITY,
    "stat": first_order.IBSI,
    "ih": histogram.HISTOGRAM,
    "ivh": histogram.VOLUME_HISTOGRAM,
    "cm": glcm.GLCM[: glcm.MCC],
    "rlm": glrlm.GLRLM,
    "szm": zones.GLSZM,
    "dzm": zones.GLDZM,
    "ngt": neighbours.NGTDM,
    "ngl": neighbours.NGLDM,
}

#: How matrices are put together: by slice, over slices, in the volume; features averaged or matrices merged.
AGGREGATIONS = ("2D_avg", "2D_comb", "2_5D_avg", "2_5D_comb", "3D_avg", "3D_comb")


@dataclass(frozen=True)
class Ibsi:
    """Settings of an extraction under IBSI's definitions.

    Attributes
    ----------
    families : which of `FAMILIES`.
    aggregations : which of `AGGREGATIONS`; zones and neighbourhoods know only 2D, 2_5D and 3D.
    bin_width, bin_count : fixed bin size from the lower bound of `range_hu` (or the ROI's minimum), or fixed number.
    resampled_spacing_mm : (z, y, x), 0 keeps an axis; None resamples nothing.
    order : of the interpolation, 1 or 3.
    round_intensities : to whole HU after resampling, as IBSI asks for CT.
    range_hu : resegmentation range, both ends included.
    outlier_sigma : resegmentation to the mean +/- so many standard deviations.
    ivh_bin_width, ivh_bin_count : discretization for the intensity-volume histogram; whole intensities when both None.
    """

    families: tuple[str, ...]
    aggregations: tuple[str, ...]
    bin_width: float | None = None
    bin_count: int | None = None
    resampled_spacing_mm: tuple[float, float, float] | None = None
    order: int = 1
    round_intensities: bool = True
    range_hu: tuple[float, float] | None = None
    outlier_sigma: float | None = None
    ivh_bin_width: float | None = None
    ivh_bin_count: int | None = None

    def __post_init__(self) -> None:
        if (self.bin_width is None) == (self.bin_count is None):
            raise ConcordctError(
                f"name either a bin width or a bin count, found width {self.bin_width} and count {self.bin_count}"
            )
        for kind, given, known in (
            ("family", self.families, tuple(FAMILIES)),
            ("aggregation", self.aggregations, AGGREGATIONS),
        ):
            unknown = next((one for one in given if one not in known), None)
            if unknown is not None:
                raise ConcordctError(f"no {kind} {unknown}; known: {', '.join(known)}")
        if self.order not in (1, 3):
            raise ConcordctError(f"interpolation of order 1 or 3, found {self.order}")


@dataclass(frozen=True, eq=False)
class IbsiRoi:
    """One ROI ready to be measured: image with surroundings, both masks, levels ([z, y, x] each), and their spacing."""

    image: Array
    mask: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    levels: NDArray[np.int32]
    spacing_mm: tuple[float, float, float]


def extract_ibsi(volume: Volume, labels: NDArray[np.integer[Any]], settings: Ibsi) -> FeatureTable:
    """Features of every label above 0; see `extract.extract` for shapes and errors."""
    spacing = new = volume.spacing_mm
    image = volume.hu.astype(np.float64)
    if settings.resampled_spacing_mm is not None:
        z, y, x = (want or old for want, old in zip(settings.resampled_spacing_mm, spacing, strict=True))
        new = (z, y, x)
        image = resample(image, spacing, new, order=settings.order)
        if settings.round_intensities:
            image = np.round(image)
    found = [int(label) for label in np.unique(labels) if label > 0]
    rows = []
    for label in found:
        mask = labels == label
        if new != spacing:
            mask = resample_mask(mask, spacing, new)
        rows.append(_features(prepare(image, mask, new, settings), settings))
    columns = names(settings)
    return FeatureTable(
        names=tuple(columns),
        classes=tuple(name.split("_")[0] for name in columns),
        rois=tuple(found),
        values=np.array(rows),
    )


def names(settings: Ibsi) -> list[str]:
    """Column names, in order."""
    found = []
    for family in settings.families:
        for suffix, _ in _variants(family, settings):
            found += [f"{one.tag}{suffix}" for one in FAMILIES[family]]
    return found


def prepare(image: Array, mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float], settings: Ibsi) -> IbsiRoi:
    """Resegmentation and discretization of one ROI on the grid that it is measured on."""
    inside = mask.copy()
    if settings.range_hu is not None:
        low, high = settings.range_hu
        inside &= (image >= low) & (image <= high)
    if settings.outlier_sigma is not None and inside.any():
        # IBSI 2.5: mean and spread of what the range has left
        values = image[inside]
        half = settings.outlier_sigma * values.std()
        inside &= (image >= values.mean() - half) & (image <= values.mean() + half)
    values = image[inside]
    levels = np.zeros(image.shape, np.int32)
    if values.size:
        if settings.bin_width is not None:
            lowest = settings.range_hu[0] if settings.range_hu is not None else float(values.min())
            levels[inside] = discretize.by_width(values, settings.bin_width, lowest=lowest)
        else:
            levels[inside] = discretize.by_count(values, settings.bin_count or 1)
    return IbsiRoi(image, mask, inside, levels, spacing_mm)


def _features(roi: IbsiRoi, settings: Ibsi) -> Array:
    parts = []
    box = _box(roi.mask)
    mask, inside, levels = roi.mask[box], roi.inside[box], roi.levels[box]
    # FBN has its bins whether or not a voxel lies in each; FBS has as many as the greatest level
    n_levels = settings.bin_count or int(levels.max(initial=0))
    for family in settings.families:
        for suffix, _ in _variants(family, settings):
            if family == "morph":
                parts.append(morphology.morphology_features(mask, inside, roi.image[box], roi.spacing_mm))
            elif family == "loc":
                parts.append(morphology.local_intensity_features(roi.image, roi.inside, roi.spacing_mm))
            elif family == "stat":
                parts.append(first_order.ibsi_statistics(roi.image[roi.inside]))
            elif family == "ih":
                parts.append(histogram.histogram_features(levels[inside], n_levels=n_levels))
            elif family == "ivh":
                parts.append(_volume_histogram(roi.image[roi.inside], settings))
            else:
                parts.append(_matrix_family(family, suffix.lstrip("_"), levels, mask, n_levels))
    return np.concatenate(parts)


def _variants(family: str, settings: Ibsi) -> list[tuple[str, str]]:
    """(column suffix, aggregation) of a family, in order, without repeats."""
    if family in ("cm", "rlm"):
        return [(f"_{how}", how) for how in settings.aggregations]
    if family in ("szm", "dzm", "ngt", "ngl"):
        return [(f"_{how}", how) for how in dict.fromkeys(how.rsplit("_", 1)[0] for how in settings.aggregations)]
    return [("", "")]


def _matrix_family(family: str, how: str, levels: NDArray[np.int32], mask: NDArray[np.bool_], n_levels: int) -> Array:
    """One texture family under one aggregation."""
    planar = not how.startswith("3D")
    merged = how.endswith("comb")
    half = glcm.DIRECTIONS_2D if planar else glcm.DIRECTIONS_3D
    around = neighbours.neighbourhood((1,), planar=planar)
    compute: dict[str, Callable[[NDArray[np.int32], NDArray[np.bool_]], Array]] = {
        "cm": lambda one, _: glcm.glcm_features(one, offsets=half, merged=merged, n_levels=n_levels)[: glcm.MCC],
        "rlm": lambda one, _: glrlm.glrlm_features(one, offsets=half, merged=merged),
        "szm": lambda one, _: zones.glszm_features(one, planar=planar),
        "dzm": lambda one, whole: zones.gldzm_features(one, whole, planar=planar),
        "ngt": lambda one, _: neighbours.ngtdm_features(one, offsets=around),
        "ngl": lambda one, _: neighbours.ngldm_features(one, offsets=around),
    }
    if not how.startswith("2D"):
        return compute[family](levels, mask)
    slices = [compute[family](levels[z : z + 1], mask[z : z + 1]) for z in range(len(levels)) if levels[z].any()]
    if not slices:
        return np.full(len(FAMILIES[family]), np.nan)
    stacked = np.array(slices)
    defined = ~np.isnan(stacked).all(axis=1)
    return stacked[defined].mean(axis=0) if defined.any() else stacked[0]


def _volume_histogram(values: Array, settings: Ibsi) -> Array:
    if values.size == 0:
        return np.full(len(histogram.VOLUME_HISTOGRAM), np.nan)
    low, high = settings.range_hu or (float(values.min()), float(values.max()))
    if settings.ivh_bin_width is not None:
        # IBSI 3.5: bins stand for their centres
        width = settings.ivh_bin_width
        centres = np.asarray(low + (discretize.by_width(values, width, lowest=low) - 0.5) * width, dtype=np.float64)
        last = low + (np.floor((high - low) / width - 1e-9) + 0.5) * width
        return histogram.volume_histogram_features(centres, lowest=low + width / 2, highest=float(last), step=width)
    if settings.ivh_bin_count is not None:
        levels = discretize.by_count(values, settings.ivh_bin_count).astype(np.float64)
        return histogram.volume_histogram_features(levels, lowest=1, highest=settings.ivh_bin_count, step=1)
    return histogram.volume_histogram_features(values, lowest=low, highest=high, step=1)


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    if not mask.any():
        return tuple(slice(0, 1) for _ in range(3))
    return tuple(slice(int(k.min()), int(k.max()) + 1) for k in np.nonzero(mask))
