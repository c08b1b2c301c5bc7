"""Masks that endpoints are measured under where the caller brings none: lungs, and the heart's region between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull
from skimage.transform import downscale_local_mean

from concordct.endpoints.endpoint import Endpoint, Needs
from concordct.radiomics.regions.lungs import lung_masks
from concordct.radiomics.regions.near import within
from concordct.volumes.volume import AIR_HU, Volume

#: The heart lies in the lower part of the lungs' height and in the front part of the way from sternum to spine.
LOWER_SHARE, FRONT_SHARE = 0.65, 0.62
#: Bone is what is at least this dense in one piece of at least this volume; no coronary lesion is as large.
BONE_HU, BONE_ML = 130.0, 3.0
#: Bone's blur reaches this far.
BONE_MARGIN_MM = 4.0
#: Quarter of the heart's region above this: contrast medium. Blood without it has 35 to 55 HU.
ENHANCED_HU = 110.0
#: Bone is looked for so far around the region: enough of a vertebra or the sternum to tell it from a lesion.
BONE_AROUND_MM = 25.0
#: The region and bone are found on voxels of about this size.
WORKING_MM = 2.0


@dataclass(frozen=True, eq=False)
class EndpointMasks:
    """Masks of one image by what endpoints need, and what they say about the image.

    Attributes
    ----------
    masks : [z, y, x] uint8 by need; a need without a mask is missing, and so is the heart's region where contrast
        medium fills it, since nothing there tells calcium.
    enhanced : whether the heart's region holds contrast medium; None where that region was not found.
    """

    masks: Mapping[Needs, NDArray[np.uint8]]
    enhanced: bool | None

    def of(self, needs: Needs) -> NDArray[np.uint8] | None:
        """The mask of a need, None where there is none."""
        return self.masks.get(needs)


def endpoint_masks(
    volume: Volume, *, lungs: NDArray[np.uint8] | None = None, heart: NDArray[np.uint8] | None = None
) -> EndpointMasks:
    """Lungs and heart region of an image, found where they are not given.

    Parameters
    ----------
    lungs : [z, y, x] 1 right, 2 left.
    heart : [z, y, x] where calcium is looked for, any label.

    Raises
    ------
    ConcordctError : no lung found where none was given.
    """
    lungs = lung_masks(volume) if lungs is None else lungs
    region = _between_the_lungs(volume, lungs)
    # Enhanced chambers are as dense as bone and as large, so that they are looked for before bone is left out.
    enhanced = bool(np.quantile(volume.hu[region], 0.75) > ENHANCED_HU) if region.any() else None
    region = _without_bone(volume, region)
    masks: dict[Needs, NDArray[np.uint8]] = {"lungs": lungs}
    chosen = region.astype(np.uint8) if heart is None else heart
    if chosen.any() and not enhanced:
        masks["mediastinum"] = chosen
    return EndpointMasks(masks, enhanced)


def measured(endpoint: Endpoint, volume: Volume, masks: EndpointMasks) -> dict[str, float]:
    """An endpoint's columns under the mask that it needs; NaN throughout where the image has no such mask."""
    mask = masks.of(endpoint.needs)
    if mask is None and endpoint.needs != "nothing":
        return {column.name: float("nan") for column in endpoint.columns}
    return endpoint.measure(volume, mask)


def heart_region(volume: Volume, lungs: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where the heart lies: between the lungs, in their lower part, in front of the spine, without bone.

    A region, no segmentation: calcium of valves, of the aorta's root and of a low arch lies in it as well.

    Parameters
    ----------
    lungs : [z, y, x] labels, 1 right and 2 left.

    Returns
    -------
    [z, y, x] bool, empty where only one side is seen.
    """
    return _without_bone(volume, _between_the_lungs(volume, lungs))


def _between_the_lungs(volume: Volume, lungs: NDArray[np.uint8]) -> NDArray[np.bool_]:
    step = tuple(max(1, round(WORKING_MM / s)) for s in volume.spacing_mm)
    small = lungs[:: step[0], :: step[1], :: step[2]]
    region = np.zeros(small.shape, bool)
    shown = np.flatnonzero(small.any(axis=(1, 2)))
    both = np.flatnonzero((small == 1).any(axis=(1, 2)) & (small == 2).any(axis=(1, 2)))
    if not len(both):
        return np.zeros(volume.shape, bool)
    share = (np.arange(len(small)) - shown[0]) / max(shown[-1] - shown[0], 1)  # 0 at the first slice that shows lung
    low = share <= LOWER_SHARE if volume.affine[2, 0] > 0 else share >= 1 - LOWER_SHARE
    front_first = volume.affine[1, 1] > 0  # rows run from the patient's front to the back
    for z in both[low[both]]:
        hull = convex_hull(small[z] > 0) & (small[z] == 0)
        rows = np.flatnonzero(hull.any(axis=1))
        if not len(rows):
            continue
        first, last = int(rows[0]), int(rows[-1]) + 1
        reach = round(FRONT_SHARE * (last - first))
        front = slice(first, first + reach) if front_first else slice(last - reach, last)
        # What lies beside the lungs, in the chest wall, is not between them.
        region[z, front] = hull[front] & _between(small[z])[front]
    return _as_large(region, step, volume.shape) & (lungs == 0)


def convex_hull(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[y, x] pixels whose centre lies in the convex hull of a mask's pixels, each taken with its four edges.

    As scikit-image's `convex_hull_image`, row by row along the hull's edges in place of pixel by pixel.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return np.zeros_like(mask)
    first, last = mask[rows].argmax(axis=1), mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
    edges = np.array([(-0.5, 0.0), (0.5, 0.0), (0.0, -0.5), (0.0, 0.5)])
    corners = np.concatenate([np.stack([rows, x], axis=1) + edge for x in (first, last) for edge in edges])
    hull = corners[ConvexHull(corners).vertices]
    (y0, x0), (y1, x1) = hull.T, np.roll(hull, -1, axis=0).T
    at = np.arange(rows[0], rows[-1] + 1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        x = x0 + (x1 - x0) * (at - y0) / (y1 - y0)
    meets = (np.minimum(y0, y1) <= at) & (at <= np.maximum(y0, y1)) & (y0 != y1)
    low = np.where(meets, x, np.inf).min(axis=1, keepdims=True)
    high = np.where(meets, x, -np.inf).max(axis=1, keepdims=True)
    columns = np.arange(mask.shape[1])
    found = np.zeros_like(mask)
    found[at[:, 0]] = (columns >= low - 1e-9) & (columns <= high + 1e-9)
    return found


def _as_large(mask: NDArray[np.bool_], step: tuple[int, ...], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask of wider voxels on the voxels of a volume or a part of it."""
    for axis, k in enumerate(step):
        mask = np.repeat(mask, k, axis)
    return np.asarray(mask[: shape[0], : shape[1], : shape[2]])


def _between(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels that have one lung somewhere to one side in their row, and the other lung to the other side."""
    found = np.zeros(labels.shape, bool)
    for one, other in ((1, 2), (2, 1)):
        before = np.maximum.accumulate(labels == one, axis=1)
        after = np.maximum.accumulate((labels == other)[:, ::-1], axis=1)[:, ::-1]
        found |= before & after
    return found


def _without_bone(volume: Volume, region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A region without large dense pieces and the reach of their blur, found on wider voxels around it."""
    found = ndimage.find_objects(region.view(np.uint8))
    if not found or found[0] is None:
        return region
    margin = [int(np.ceil(BONE_AROUND_MM / s)) for s in volume.spacing_mm]
    box = tuple(slice(max(part.start - m, 0), part.stop + m) for part, m in zip(found[0], margin, strict=True))
    step = tuple(max(1, round(WORKING_MM / s)) for s in volume.spacing_mm)
    hu = downscale_local_mean(volume.hu[box], step, cval=AIR_HU)
    spacing = [s * k for s, k in zip(volume.spacing_mm, step, strict=True)]
    labels, count = ndimage.label(hu > BONE_HU)
    ml = np.bincount(labels.ravel(), minlength=count + 1) * float(np.prod(spacing)) / 1000.0
    large = ml >= BONE_ML
    large[0] = False
    bone = large[labels]
    kept = region.copy()
    if bone.any():
        bone = within(bone, BONE_MARGIN_MM, spacing)
        kept[box] &= ~_as_large(bone, step, region[box].shape)
    return kept
