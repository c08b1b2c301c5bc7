"""One labelled region: HU under its mask, and volume, diameters and solidity of what the image shows there.

The object is told from what surrounds it half-way between the two (the half-contrast threshold of calliper and volume
phantoms), so that its size depends on the image and not on the hand that drew the mask: the mask says where. A
flat surface stays at half contrast under any symmetrical blur; a ball of radius R loses about sigma^2 / R of it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

from concordct.endpoints.endpoint import Column, Endpoint, needed, voxel_ml
from concordct.volumes.volume import Volume

#: The object may reach this far beyond its mask.
REACH_MM = 3.0
#: What surrounds it is read between these distances from the mask.
SHELL_MM = (3.0, 8.0)
#: The object's own HU: mean of so large a share of the mask's voxels, the deepest.
CORE_SHARE = 0.25
#: Nothing is told apart below this contrast, HU.
LEAST_CONTRAST_HU = 30.0
#: Fewer points of a surface make no hull.
FEWEST_POINTS = 8


def measure(volume: Volume, mask: NDArray[np.uint8] | None) -> dict[str, float]:
    """HU and size of one region (any label above 0).

    Sizes at half contrast are NaN where the region does not stand out by `LEAST_CONTRAST_HU`.

    Raises
    ------
    ConcordctError : no mask, an empty one, or one of another shape.
    """
    region = needed(mask, volume, "a region") > 0
    values = volume.hu[region].astype(np.float64)
    ml = values.size * voxel_ml(volume)
    found = {
        "region_mean_hu": float(values.mean()),
        "region_sd_hu": float(values.std()),
        "region_volume_ml": ml,
        "region_diameter_mm": sphere_mm(ml),
    }
    found.update(half_contrast(*_around(volume, region), volume.spacing_mm))
    return found


def half_contrast(
    hu: NDArray[np.float32], region: NDArray[np.bool_], spacing_mm: tuple[float, float, float]
) -> dict[str, float]:
    """Volume, diameters and solidity of the object that a mask points at.

    Parameters
    ----------
    hu : [z, y, x], HU, with some surroundings.
    region : [z, y, x] bool.
    spacing_mm : (z, y, x), mm.
    """
    distance = ndimage.distance_transform_edt(~region, sampling=spacing_mm)
    depth = ndimage.distance_transform_edt(np.pad(region, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    shell = (distance >= SHELL_MM[0]) & (distance <= SHELL_MM[1])
    core = depth >= np.quantile(depth[region], 1 - CORE_SHARE)
    names = ("nodule_volume_ml", "nodule_diameter_mm", "nodule_long_axis_mm", "nodule_short_axis_mm", "nodule_solidity")
    nothing = dict.fromkeys(names, math.nan)
    if not shell.any():
        return nothing
    inner = float(np.mean(hu[core], dtype=np.float64))
    # The side that is most of the surroundings: a wall or vessel at one side does not move a median.
    outer = float(np.median(hu[shell]))
    if abs(inner - outer) < LEAST_CONTRAST_HU:
        return nothing
    middle = 0.5 * (inner + outer)
    stands_out = hu > middle if inner > outer else hu < middle
    labels, count = ndimage.label(stands_out & (distance <= REACH_MM))
    met = np.bincount(labels[region], minlength=count + 1)
    met[0] = 0
    if not met.any():
        return nothing
    thing = labels == met.argmax()
    ml = float(thing.sum()) * float(np.prod(spacing_mm)) / 1000.0
    long, short = _axes(thing, spacing_mm)
    return dict(zip(names, (ml, sphere_mm(ml), long, short, _solidity(thing)), strict=True))


def sphere_mm(ml: float) -> float:
    """Diameter of the ball of a volume, mm."""
    return float(np.cbrt(6000.0 * ml / np.pi))


def _around(volume: Volume, region: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    found = ndimage.find_objects(region.astype(np.uint8))[0]
    margin = [int(np.ceil(SHELL_MM[1] / s)) + 1 for s in volume.spacing_mm]
    box = tuple(
        slice(max(part.start - m, 0), min(part.stop + m, n))
        for part, m, n in zip(found, margin, region.shape, strict=True)
    )
    return volume.hu[box], region[box]


def _axes(thing: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> tuple[float, float]:
    """Longest axis in a slice and the longest across it, mm, in the slice where the object is largest."""
    points = np.argwhere(thing[thing.sum(axis=(1, 2)).argmax()]) * spacing_mm[1:]
    pixel = math.sqrt(spacing_mm[1] * spacing_mm[2])
    if len(points) < FEWEST_POINTS:
        return math.nan, math.nan
    try:
        points = points[ConvexHull(points).vertices]
    except QhullError:  # one row of pixels
        return math.nan, math.nan
    distances = pdist(points)
    first, second = np.triu_indices(len(points), 1)
    at = int(distances.argmax())
    along = (points[second[at]] - points[first[at]]) / distances[at]
    across = points @ np.array([-along[1], along[0]])
    # Distances run between centres of pixels; half a pixel lies beyond at either end.
    return float(distances[at]) + pixel, float(np.ptp(across)) + pixel


def _solidity(thing: NDArray[np.bool_]) -> float:
    """Share of its convex hull that the object fills, both as voxels (scikit-image's definition)."""
    from skimage.measure import regionprops

    if thing.sum() < FEWEST_POINTS or min(np.ptp(np.argwhere(thing), axis=0)) == 0:
        return math.nan
    return float(regionprops(thing.astype(np.uint8))[0].solidity)


COLUMNS = (
    Column("region_mean_hu", "HU", "mean under the mask", headline=True),
    Column("region_sd_hu", "HU", "standard deviation under the mask"),
    Column("region_volume_ml", "ml", "volume of the mask"),
    Column("region_diameter_mm", "mm", "diameter of the mask's volume as a ball"),
    Column("nodule_volume_ml", "ml", "volume at half contrast", headline=True),
    Column("nodule_diameter_mm", "mm", "diameter at half contrast as a ball", headline=True),
    Column("nodule_long_axis_mm", "mm", "longest axis in a slice"),
    Column("nodule_short_axis_mm", "mm", "longest axis across it"),
    Column("nodule_solidity", "", "solidity: share of the convex hull"),
)
ENDPOINT = Endpoint("nodules", "Regions and nodules", "region", COLUMNS, measure, mode="mean")
