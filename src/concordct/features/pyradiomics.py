"""Features under PyRadiomics' definitions and names, computed for all ROIs of a volume together.

Source: van Griethuysen et al. 2017, doi:10.1158/0008-5472.CAN-17-0339; PyRadiomics 3.0.1. Where its definitions leave
IBSI's, `docs/features.md` says how. Filtered images are made once for the volume, not once for each ROI.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.features import discretize, first_order, glcm
from concordct.features.definition import Definition
from concordct.features.table import FeatureTable
from concordct.volumes.volume import Volume


def _named(members: tuple[Definition, ...]) -> dict[str, int]:
    """PyRadiomics' names with their places among the computed values, in the order of its columns."""
    places = {one.pyradiomics: place for place, one in enumerate(members) if one.pyradiomics}
    return dict(sorted(places.items(), key=lambda item: f"get{item[0]}FeatureValue"))


#: Every class with its names in the order of PyRadiomics' columns, and where each stands among the computed values.
CLASSES: dict[str, dict[str, int]] = {
    "firstorder": {name: place for place, name in enumerate(first_order.PYRADIOMICS)},
    "glcm": _named(glcm.GLCM),
}


@dataclass(frozen=True)
class PyRadiomics:
    """Settings of an extraction, named after those of a PyRadiomics parameter file.

    Attributes
    ----------
    classes : class -> names to compute, an empty tuple for all of them; in column order.
    bin_width : width of a grey level, in the unit of the image (HU for CT); exactly one of this and `bin_count`.
    bin_count : number of grey levels in each ROI.
    force_2d : co-occurrence, runs and zones within slices only (PyRadiomics' `force2D`).
    distances : Chebyshev distances of the neighbours of GLCM, voxels.
    voxel_array_shift : added before squaring in the energies.
    """

    classes: Mapping[str, tuple[str, ...]]
    bin_width: float | None = None
    bin_count: int | None = None
    force_2d: bool = False
    voxel_array_shift: float = 0.0
    image_types: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"Original": {}})

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
                raise ConcordctError(f"no feature {unknown} in class {name}")


@dataclass(frozen=True, eq=False)
class Roi:
    """One ROI in its bounding box: intensities [z, y, x] float64 and mask [z, y, x] bool."""

    label: int
    box: tuple[slice, slice, slice]
    mask: NDArray[np.bool_]


def extract_pyradiomics(volume: Volume, labels: NDArray[np.integer[Any]], settings: PyRadiomics) -> FeatureTable:
    """Features of every label above 0; see `extract.extract` for shapes and errors."""
    rois = find_rois(labels)
    image = volume.hu.astype(np.float64)
    columns: list[tuple[str, str]] = []
    blocks: list[NDArray[np.float64]] = []
    for image_name, filtered in _images(volume, image, settings):
        rows = []
        for roi in rois:
            intensities = filtered[roi.box]
            rows.append(_roi_features(intensities, roi.mask, volume, settings))
        blocks.append(np.array(rows))
        for name, members in settings.classes.items():
            columns += [(f"{image_name}_{name}_{member}", name) for member in members or CLASSES[name]]
    return FeatureTable(
        names=tuple(name for name, _ in columns),
        classes=tuple(found for _, found in columns),
        rois=tuple(roi.label for roi in rois),
        values=np.concatenate(blocks, axis=1),
    )


def find_rois(labels: NDArray[np.integer[Any]]) -> list[Roi]:
    """The ROIs of a label volume, ascending, each cut to its bounding box."""
    from scipy import ndimage

    boxes = ndimage.find_objects(labels)
    return [Roi(place + 1, box, labels[box] == place + 1) for place, box in enumerate(boxes) if box is not None]


def _images(
    volume: Volume, image: NDArray[np.float64], settings: PyRadiomics
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    yield "original", image


def _roi_features(
    intensities: NDArray[np.float64], mask: NDArray[np.bool_], volume: Volume, settings: PyRadiomics
) -> NDArray[np.float64]:
    """[feature] all enabled features of one ROI in one image."""
    values = intensities[mask]
    inside = _discretize(values, settings)
    levels = np.zeros(mask.shape, np.int32)
    levels[mask] = inside
    parts = []
    for name, members in settings.classes.items():
        if name == "firstorder":
            found = first_order.pyradiomics_first_order(
                values,
                inside,
                voxel_volume_mm3=float(np.prod(volume.spacing_mm)),
                shift=settings.voxel_array_shift,
            )
        else:
            directions = glcm.DIRECTIONS_2D if settings.force_2d else glcm.DIRECTIONS_3D
            wanted = members or tuple(CLASSES[name])
            found = glcm.glcm_features(levels, offsets=directions, merged=False, with_mcc="MCC" in wanted)
        places = CLASSES[name]
        parts.append(found[[places[member] for member in members or places]])
    return np.concatenate(parts)


def _discretize(values: NDArray[np.float64], settings: PyRadiomics) -> NDArray[np.int32]:
    if settings.bin_width is not None:
        return discretize.by_width_from_zero(values, settings.bin_width)
    assert settings.bin_count is not None
    return discretize.by_count_closed(values, settings.bin_count)
