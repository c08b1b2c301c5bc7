"""ROIs from files onto the grid of an image: NIfTI/NRRD/MetaImage masks, DICOM SEG and RTSTRUCT.

Nothing is resampled: a mask belongs to the image's grid up to flips, order of axes and whole voxels, or is refused with
what was found. Masks and scans are read by the same readers, so that one geometry counts for both.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.volumes.files import is_volume_file
from concordct.volumes.formats.stream import planes
from concordct.volumes.formats.written import read_layout, write_planes
from concordct.volumes.region import GRID_TOLERANCE, Region

#: Labels that one file may hold; a file with more is no mask but an image.
MAX_LABELS = 2**15


def read_regions(
    path: Path,
    *,
    affine: NDArray[np.float64],
    shape: tuple[int, int, int],
    frame_of_reference_uid: str | None = None,
) -> tuple[Region, ...]:
    """The ROIs of any supported file.

    Parameters
    ----------
    path : NIfTI, NRRD or MetaImage labels, DICOM SEG or RTSTRUCT.
    affine : [4, 4] the image's index (z, y, x, 1) -> LPS mm.
    shape : the image's (z, y, x).
    frame_of_reference_uid : the image's; a SEG or RTSTRUCT that names another one is refused.

    Raises
    ------
    ConcordctError : unreadable or of another kind, no ROI in it, other geometry, or an ROI outside the image.
    """
    if not path.exists():
        raise ConcordctError(f"no mask file {path}")
    if is_volume_file(path):
        return _regions_of_labels(*read_labels(path), affine, shape, path)
    from concordct.volumes.dicom_masks import read_dicom_regions

    return read_dicom_regions(path, affine=affine, shape=shape, frame_of_reference_uid=frame_of_reference_uid)


def to_labels(regions: Sequence[Region]) -> NDArray[np.int32]:
    """[z, y, x] int32 with 1, 2, ... in the order of the regions.

    Raises
    ------
    ConcordctError : when two regions share a voxel; measure them one by one instead.
    """
    labels = np.zeros(regions[0].shape, np.int32)
    for place, one in enumerate(regions, start=1):
        view = labels[one.box]
        taken = view[one.inside]
        if taken.any():
            other = regions[int(taken[taken > 0][0]) - 1]
            raise ConcordctError(f"ROIs {other.name} and {one.name} overlap in {int((taken > 0).sum())} voxels")
        view[one.inside] = place
    return labels


def read_values(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The values of a volume file in the order of its axes, whatever they mean, and where they lie.

    Returns
    -------
    [z, y, x], slowest axis of the file first; [4, 4] index (z, y, x, 1) to LPS mm.

    Raises
    ------
    ConcordctError : unreadable.
    """
    layout = read_layout(path)
    values = planes(layout, 0, layout.size[2])
    if (layout.slope, layout.inter) != (1.0, 0.0):
        values = values * layout.slope + layout.inter
    affine = layout.affine.copy()
    affine[:3, :3] = layout.affine[:3, 2::-1]
    return values, affine


def read_labels(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The labels of a volume file, as `read_values` reads them.

    Raises
    ------
    ConcordctError : unreadable, or other values than whole numbers from 0.
    """
    values, affine = read_values(path)
    for plane in list(values):
        low, high = plane.min(), plane.max()
        if not (low >= 0 and high < 2**31) or (values.dtype.kind == "f" and not np.equal(plane, np.rint(plane)).all()):
            said = f"{float(low):g} to {float(high):g}"
            raise ConcordctError(f"a mask holds whole labels from 0, found values of {said} in {path}")
    return values, affine


def write_labels(path: Path, labels: NDArray[Any], affine: NDArray[np.float64], *, overwrite: bool = False) -> None:
    """Write labels [z, y, x] in the smallest integer type that holds them, and read them back.

    Parameters
    ----------
    path : ending .nii, .nii.gz, .nrrd, .mha or .mhd.
    affine : [4, 4] index (z, y, x, 1) to LPS mm.
    """
    most = int(labels.max())
    kind = np.uint8 if most < 2**8 else np.uint16 if most < 2**16 else np.int32
    write_planes(path, (labels[at : at + 1].astype(kind) for at in range(len(labels))), affine, overwrite=overwrite)


def _regions_of_labels(
    values: NDArray[Any], own: NDArray[np.float64], affine: NDArray[np.float64], shape: tuple[int, int, int], path: Path
) -> tuple[Region, ...]:
    occupied = [np.asarray(values.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if not occupied[0].any():
        raise ConcordctError(f"the mask is empty: no voxel above 0 in {path}")
    ends = [(int(np.argmax(line)), len(line) - int(np.argmax(line[::-1]))) for line in occupied]
    part = values[tuple(slice(*end) for end in ends)]
    order, flips, corner = _on_grid([(low, high - 1) for low, high in ends], own, affine, path)
    turned = part.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    inside = tuple(slice(max(-at, 0), max(size - at, 0)) for at, size in zip(corner, shape, strict=True))
    outside = int(np.count_nonzero(turned)) - int(np.count_nonzero(turned[inside]))
    if outside:
        count = int(np.count_nonzero(turned))
        raise ConcordctError(f"{outside} of {count} voxels of the mask lie outside the image, in {path}")
    labels: set[int] = set()
    for plane in turned:
        labels.update(int(value) for value in np.unique(plane))
        if len(labels) > MAX_LABELS:
            raise ConcordctError(f"more than {MAX_LABELS} labels, expected a mask: {path}")
    known = np.array(sorted(labels - {0}))
    compact = np.empty(turned.shape, np.uint16)  # 0 outside, else the label's place from 1
    for plane, of in zip(compact, turned, strict=True):
        plane[...] = np.where(of > 0, np.searchsorted(known, of) + 1, 0)
    found = []
    for place, (label, box) in enumerate(zip(known, ndimage.find_objects(compact), strict=True), start=1):
        z, y, x = (slice(side.start + at, side.stop + at) for side, at in zip(box, corner, strict=True))
        found.append(Region(int(label), str(int(label)), (z, y, x), compact[box] == place, shape))
    return tuple(found)


def _on_grid(
    ends: list[tuple[int, int]], own: NDArray[np.float64], affine: NDArray[np.float64], path: Path
) -> tuple[tuple[int, int, int], tuple[bool, bool, bool], tuple[int, int, int]]:
    """How a box of the mask lies on the image's grid: its axes that run along z, y, x, whether each runs backward, and
    the first voxel of the box in the image.

    Parameters
    ----------
    ends : first and last index of the box along the mask's axes.
    """
    to_image = np.linalg.inv(affine) @ own
    # Over a single voxel an axis has no direction; it takes what the others leave.
    order = list(max(itertools.permutations(range(3)), key=lambda axes: _aligned(axes, to_image, ends)))
    corners = np.array(list(itertools.product(*ends)), float)
    place = corners @ to_image[:3, :3].T + to_image[:3, 3]
    start = np.rint(np.array([low for low, _ in ends]) @ to_image[:3, :3].T + to_image[:3, 3])
    flips = [bool(to_image[axis, one] < 0) and ends[one][1] > ends[one][0] for axis, one in enumerate(order)]
    expected = np.empty_like(place)
    for axis, one in enumerate(order):
        expected[:, axis] = start[axis] + (corners[:, one] - ends[one][0]) * (-1 if flips[axis] else 1)
    off = float(np.abs(place - expected).max())
    if not off <= GRID_TOLERANCE:
        raise ConcordctError(
            f"the mask has another geometry than the image: a voxel lies {off:.2f} voxels off its grid, expected at "
            f"most {GRID_TOLERANCE}, in {path}"
        )
    corner = [int(start[axis]) - (ends[one][1] - ends[one][0] if flips[axis] else 0) for axis, one in enumerate(order)]
    return _three(order), (flips[0], flips[1], flips[2]), _three(corner)


def _aligned(axes: Iterable[int], to_image: NDArray[np.float64], ends: list[tuple[int, int]]) -> float:
    """How far the box extends along the image's axes if the mask's axes are taken in this order."""
    return float(sum(abs(to_image[axis, one]) * (ends[one][1] - ends[one][0]) for axis, one in enumerate(axes)))


def _three(values: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = (int(value) for value in values)
    return z, y, x
