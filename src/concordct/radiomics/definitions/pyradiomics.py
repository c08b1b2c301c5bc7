"""Features under PyRadiomics' definitions and names, computed for all ROIs of a volume together.

Source: van Griethuysen et al. 2017, doi:10.1158/0008-5472.CAN-17-0339; PyRadiomics 3.0.1. Where its definitions leave
IBSI's, `docs/features.md` says how. Filtered images are made once for the volume, not once for each ROI, except where
the settings tie the image to the ROI (`resampled_spacing_mm`, `pre_crop`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.radiomics.definitions import first_order, shape
from concordct.radiomics.definitions.definition import Definition
from concordct.radiomics.filters.image_types import IMAGE_TYPES, FilterSettings, filtered
from concordct.radiomics.matrices import glcm, glrlm, neighbours, zones
from concordct.radiomics.regions import discretize
from concordct.radiomics.regions.pyradiomics_grid import GridFrame, crop_frame, normalized, pixel_type, resampled_frame
from concordct.radiomics.table import FeatureTable
from concordct.volumes.volume import Volume

Array = NDArray[np.float64]


def _named(members: tuple[Definition, ...]) -> dict[str, int]:
    """PyRadiomics' names with their places among the computed values, in the order of its columns."""
    places = {one.pyradiomics: place for place, one in enumerate(members) if one.pyradiomics}
    return dict(sorted(places.items(), key=lambda item: f"get{item[0]}FeatureValue"))


#: Every class with its names in the order of PyRadiomics' columns, and where each stands among the computed values.
CLASSES: dict[str, dict[str, int]] = {
    "firstorder": {name: place for place, name in enumerate(first_order.PYRADIOMICS)},
    "glcm": _named(glcm.GLCM),
    "gldm": _named(neighbours.NGLDM),
    "glrlm": _named(glrlm.GLRLM),
    "glszm": _named(zones.GLSZM),
    "ngtdm": _named(neighbours.NGTDM),
    "shape": {name: place for place, name in enumerate(shape.SHAPE)},
    "shape2D": {name: place for place, name in enumerate(shape.SHAPE_2D)},
}

#: How PyRadiomics weighs a direction: by the length of its step (z, y, x in mm) under a norm.
WEIGHTINGS = ("infinity", "euclidean", "manhattan", "no_weighting")


@dataclass(frozen=True)
class PyRadiomics:
    """Settings of an extraction, named after those of a PyRadiomics parameter file.

    Attributes
    ----------
    classes : class -> names to compute, an empty tuple for all of them; in column order.
    bin_width : width of a grey level, in the unit of the image (HU for CT); exactly one of this and `bin_count`.
    bin_count : number of grey levels in each ROI.
    image_types : image type -> settings that hold for it alone, as (attribute, value) of this class or of its filters.
    filters : parameters of the filters.
    force_2d, force_2d_axis : neighbours only within slices, which lie across this axis (0 for axial).
    distances : Chebyshev distances of neighbours for GLCM, GLDM and NGTDM, voxels.
    gldm_alpha : largest difference of levels that counts as dependent.
    symmetric_glcm : count each pair both ways.
    weighting : one of `WEIGHTINGS` to merge directions by their length, None to average features over directions.
    voxel_array_shift : added before squaring in the energies.
    normalize, normalize_scale, remove_outliers : image to mean 0 and spread 1, clipped at so many spreads, scaled.
    resampled_spacing_mm : (z, y, x), 0 keeps an axis; None resamples nothing.
    interpolator : SimpleITK's name.
    pad_distance : voxels kept around an ROI when resampling or cropping first.
    pre_crop : filter the ROI's surroundings only.
    resegment_range, resegment_mode, resegment_shape : keep voxels inside a range, "absolute", "relative" (to the
        maximum) or "sigma" (about the mean); whether shape sees that too.
    least_dimensions, least_voxels : smaller ROIs get NaN throughout.
    """

    classes: Mapping[str, tuple[str, ...]]
    bin_width: float | None = None
    bin_count: int | None = None
    image_types: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"Original": {}})
    filters: FilterSettings = field(default_factory=FilterSettings)
    force_2d: bool = False
    force_2d_axis: int = 0
    distances: tuple[int, ...] = (1,)
    gldm_alpha: int = 0
    symmetric_glcm: bool = True
    weighting: str | None = None
    voxel_array_shift: float = 0.0
    normalize: bool = False
    normalize_scale: float = 1.0
    remove_outliers: float | None = None
    resampled_spacing_mm: tuple[float, float, float] | None = None
    interpolator: str = "sitkBSpline"
    pad_distance: int = 5
    pre_crop: bool = False
    resegment_range: tuple[float, ...] | None = None
    resegment_mode: str = "absolute"
    resegment_shape: bool = False
    least_dimensions: int = 0
    least_voxels: int = 1

    def __post_init__(self) -> None:
        if (self.bin_width is None) == (self.bin_count is None):
            raise ConcordctError(
                f"name either a bin width or a bin count, found width {self.bin_width} and count {self.bin_count}"
            )
        for name, members in self.classes.items():
            if name not in CLASSES:
                raise ConcordctError(f"no feature class {name}; known: {', '.join(CLASSES)}")
            unknown = next((member for member in members if member not in CLASSES[name]), None)
            if unknown is not None:
                raise ConcordctError(
                    f"no feature {unknown} in class {name} (those that PyRadiomics deprecates are gone)"
                )
        for name in self.image_types:
            if name not in IMAGE_TYPES:
                raise ConcordctError(f"no image type {name}; known: {', '.join(IMAGE_TYPES)}")
        if self.weighting is not None and self.weighting not in WEIGHTINGS:
            raise ConcordctError(f"no weighting {self.weighting}; known: {', '.join(WEIGHTINGS)}")
        if not self.distances or min(self.distances) < 1:
            raise ConcordctError(f"distances are whole voxels from 1, found {self.distances}")

    def for_image(self, name: str) -> PyRadiomics:
        """These settings with what one image type overrides."""
        own = dict(self.image_types[name])
        filters = {key: own.pop(key) for key in list(own) if key in FilterSettings.__dataclass_fields__}
        if "bin_width" in own:
            own.setdefault("bin_count", None)
        elif "bin_count" in own:
            own.setdefault("bin_width", None)
        planar = self.force_2d_axis if self.force_2d else None
        return replace(self, filters=replace(self.filters, **filters, planar_axis=planar), **own)


def extract_pyradiomics(volume: Volume, labels: NDArray[np.integer[Any]], settings: PyRadiomics) -> FeatureTable:
    """Features of every label above 0; see `extract.extract` for shapes and errors."""
    from scipy import ndimage

    boxes = ndimage.find_objects(labels)
    rois = {place + 1: box for place, box in enumerate(boxes) if box is not None}
    image: NDArray[np.floating[Any]] = volume.hu
    if settings.normalize:
        image = normalized(image.astype(np.float64), scale=settings.normalize_scale, outliers=settings.remove_outliers)
    whole = GridFrame(image, volume.spacing_mm, {label: (labels[box] == label, box) for label, box in rois.items()})
    frames: Iterator[GridFrame]
    if settings.resampled_spacing_mm is not None:
        spacing, stored = settings.resampled_spacing_mm, pixel_type(image)
        frames = (
            resampled_frame(whole, label, spacing, settings.interpolator, settings.pad_distance, pixel_type=stored)
            for label in rois
        )
    elif settings.pre_crop:
        frames = (crop_frame(whole, label, settings.pad_distance) for label in rois)
    else:
        frames = iter((whole,))
    rows: dict[int, Array] = {}
    names: list[tuple[str, str]] = []
    for frame in frames:
        found, names = _frame_features(frame, settings)
        rows.update(found)
    return FeatureTable(
        names=tuple(name for name, _ in names),
        classes=tuple(of for _, of in names),
        rois=tuple(rois),
        values=np.array([rows[label] for label in rois]),
    )


def _frame_features(frame: GridFrame, settings: PyRadiomics) -> tuple[dict[int, Array], list[tuple[str, str]]]:
    """label -> [feature], and (name, class) of each feature."""
    names: list[tuple[str, str]] = []
    parts: dict[int, list[Array]] = {label: [] for label in frame.rois}
    used = {label: _resegmented(frame, label, settings) for label in frame.rois}
    for kind in ("shape", "shape2D"):
        if kind in settings.classes:
            members = settings.classes[kind] or tuple(CLASSES[kind])
            names += [(f"original_{kind}_{member}", kind) for member in members]
            for label in frame.rois:
                mask = used[label][0] if settings.resegment_shape else frame.rois[label][0]
                parts[label].append(_shape(mask, frame.spacing_mm, settings, kind)[[CLASSES[kind][m] for m in members]])
    texture = {name: members for name, members in settings.classes.items() if not name.startswith("shape")}
    box = _union([place for _, place in used.values()])
    for kind in settings.image_types:
        own = settings.for_image(kind)
        for image_name, image in filtered(frame.image, frame.spacing_mm, box, kind, own.filters):
            for name, members in texture.items():
                names += [(f"{image_name}_{name}_{member}", name) for member in members or CLASSES[name]]
            for label, (mask, place) in used.items():
                inside = tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(place, box, strict=True))
                only = kind != "Original" and len(used) == 1
                handed = [image[inside]]
                if only:
                    del image  # a filtered image as large as the scan: gone once its grey levels are there
                parts[label].append(_texture(handed, mask, frame.spacing_mm, own, texture, may_sort=only))
    return {label: np.concatenate(found) for label, found in parts.items()}, names


def _resegmented(frame: GridFrame, label: int, settings: PyRadiomics) -> tuple[NDArray[np.bool_], tuple[slice, ...]]:
    """The mask of an ROI after resegmentation, cut to its box; empty when too small to be measured."""
    mask, box = frame.rois[label]
    if settings.resegment_range is not None and mask.any():
        values = frame.image[box]
        inside = values[mask].astype(np.float64)
        bounds = np.sort(np.array(settings.resegment_range, np.float64))
        if settings.resegment_mode == "relative":
            bounds = bounds * inside.max()
        elif settings.resegment_mode == "sigma":
            bounds = inside.mean() + bounds * inside.std()
        elif settings.resegment_mode != "absolute":
            raise ConcordctError(f"no resegmentation mode {settings.resegment_mode}: absolute, relative or sigma")
        mask = mask & (values >= bounds[0])
        if len(bounds) == 2:
            mask = mask & (values <= bounds[1])
        mask, box = _tight(mask, box)
    wide = sum(side > 1 for side in mask.shape)
    if mask.sum() < settings.least_voxels or wide < settings.least_dimensions:
        return np.zeros_like(mask), box
    return mask, box


def _tight(mask: NDArray[np.bool_], box: tuple[slice, ...]) -> tuple[NDArray[np.bool_], tuple[slice, ...]]:
    if not mask.any():
        return mask, box
    ends = [(int(k.min()), int(k.max()) + 1) for k in np.nonzero(mask)]
    inner = tuple(slice(low, high) for low, high in ends)
    return mask[inner], tuple(slice(b.start + low, b.start + high) for b, (low, high) in zip(box, ends, strict=True))


def _union(boxes: list[tuple[slice, ...]]) -> tuple[slice, slice, slice]:
    z, y, x = (slice(min(b[k].start for b in boxes), max(b[k].stop for b in boxes)) for k in range(3))
    return z, y, x


def _shape(mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float], settings: PyRadiomics, kind: str) -> Array:
    if kind == "shape":
        return shape.shape_features(mask, spacing_mm)
    axis = settings.force_2d_axis
    if not settings.force_2d or mask.shape[axis] > 1:
        raise ConcordctError(
            f"shape2D needs force2D and an ROI of one slice, found force2D {settings.force_2d} and "
            f"{mask.shape[axis]} slices"
        )
    y, x = (mm for k, mm in enumerate(spacing_mm) if k != axis)
    return shape.shape_2d_features(np.moveaxis(mask, axis, 0)[0], (y, x))


def _texture(
    handed: list[NDArray[np.floating[Any]]],
    mask: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
    settings: PyRadiomics,
    classes: Mapping[str, tuple[str, ...]],
    *,
    may_sort: bool = False,
) -> Array:
    """[feature] all but shape of one ROI in one image; NaN throughout for an empty mask.

    `handed`: the intensities alone, taken out of the list and let go before the matrices are counted. `may_sort`: they
    are nobody else's, so that a whole image need not be copied to be sorted.
    """
    intensities = handed.pop()
    if not mask.any():
        return np.full(sum(len(members or CLASSES[name]) for name, members in classes.items()), np.nan)
    levels, counts = _levels(intensities, mask, settings)
    spacing = np.array(spacing_mm)
    if settings.force_2d and settings.force_2d_axis:
        levels = np.ascontiguousarray(np.moveaxis(levels, settings.force_2d_axis, 0))
        spacing = spacing[[settings.force_2d_axis, *(k for k in range(3) if k != settings.force_2d_axis)]]
    found = {}
    if "firstorder" in classes:
        whole = may_sort and intensities.flags.c_contiguous and mask.all()
        found["firstorder"] = first_order.pyradiomics_first_order(
            intensities.reshape(-1) if whole else intensities[mask],
            counts,
            voxel_volume_mm3=float(spacing.prod()),
            shift=settings.voxel_array_shift,
        )
    del intensities
    parts = []
    for name, members in classes.items():
        places = CLASSES[name]
        wanted = members or tuple(places)
        if name not in found:
            found[name] = _matrix_class(name, levels, spacing, settings, with_mcc="MCC" in wanted)
        parts.append(found[name][[places[member] for member in wanted]])
    return np.concatenate(parts)


def _levels(
    intensities: NDArray[np.floating[Any]], mask: NDArray[np.bool_], settings: PyRadiomics
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """[z, y, x] grey levels, 0 outside, and [level] how many voxels have each; slab by slab."""
    step = max(1, first_order.BLOCK // mask[0].size)
    slabs = [slice(start, start + step) for start in range(0, len(mask), step) if mask[start : start + step].any()]
    extremes = [(float(v.min()), float(v.max())) for v in (intensities[slab][mask[slab]] for slab in slabs)]
    ends = min(low for low, _ in extremes), max(high for _, high in extremes)
    levels = np.zeros(mask.shape, np.int32)
    counts = np.zeros(0, np.int64)
    for slab in slabs:
        values = intensities[slab][mask[slab]].astype(np.float64)
        if settings.bin_width is not None:
            inside = discretize.by_width_from_zero(values, settings.bin_width, ends=ends)
        else:
            inside = discretize.by_count_closed(values, settings.bin_count or 1, ends=ends)
        levels[slab][mask[slab]] = inside
        own = np.bincount(inside, minlength=len(counts))
        own[: len(counts)] += counts
        counts = own
    return levels, counts


def _matrix_class(
    name: str, levels: NDArray[np.int32], spacing: Array, settings: PyRadiomics, *, with_mcc: bool
) -> Array:
    planar = settings.force_2d
    if name == "glszm":
        return zones.glszm_features(levels, planar=planar)
    around = neighbours.neighbourhood((1,) if name == "glrlm" else settings.distances, planar=planar)
    # PyRadiomics drops directions that leave the ROI's box at once, along which every run would have length 1.
    around = around[(np.abs(around) < levels.shape).all(axis=1)]
    if name == "gldm":
        return neighbours.ngldm_features(levels, offsets=around, alpha=settings.gldm_alpha)
    if name == "ngtdm":
        return neighbours.ngtdm_features(levels, offsets=around, count_isolated=True)
    half = around[len(around) // 2 :]  # one of each opposite pair: the list is symmetric
    weights = _weights(half, spacing, settings.weighting, squared=name == "glcm")
    merged = weights is not None
    if name == "glrlm":
        return glrlm.glrlm_features(levels, offsets=half, merged=merged, weights=weights)
    return glcm.glcm_features(
        levels, offsets=half, merged=merged, weights=weights, symmetric=settings.symmetric_glcm, with_mcc=with_mcc
    )


def _weights(offsets: NDArray[np.int64], spacing: Array, weighting: str | None, *, squared: bool) -> Array | None:
    """[direction] GLCM: exp(-length^2); GLRLM: length; under the chosen norm."""
    if weighting is None:
        return None
    steps = np.abs(offsets) * spacing
    if weighting == "no_weighting":
        return np.ones(len(offsets))
    length = {
        "infinity": steps.max(axis=1, initial=0.0),
        "euclidean": np.sqrt((steps**2).sum(axis=1)),
        "manhattan": steps.sum(axis=1),
    }[weighting]
    return np.exp(-(length**2)) if squared else length
