"""Which voxels the scanner left blank, decided slice by slice so that slabs change nothing.

Four kinds exist in the field. A declared padding value far below air (GE: -2000 stored, -3024 HU), or beyond what any
CT holds, is padding wherever it stands. A declared value among tissue or above it (PS3.3 C.7.5.1.1.2 sets no bound) is
padding in solid regions that touch the image border, so that clipped metal inside stays image. Values far below air
that nobody declared (or that the header declares wrongly) are padding where they touch the image border. A constant at
about air, declared (Siemens, Philips: 0 stored, -1024 HU) or not, is also what clipped air looks like; it is padding
only where it is solid and touches the border, so that the scattered clipped voxels of noisy air inside the field of
view stay image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.volumes.volume import AIR_HU

#: Below this no reconstruction goes over a whole region: air is -1000 HU and even sharp kernels undershoot it by less.
FAR_BELOW_AIR_HU = -1500.0
#: The extended CT scale ends at 30,710 HU; beyond it stands no image.
FAR_ABOVE_CT_HU = 31000.0
#: A constant above this is tissue, a table or a phantom, never blank border.
CONSTANT_BELOW_HU = -900.0
#: Tissue beside padding: body that the field of view cuts off, neither air nor a blanket.
TISSUE_HU = -500.0
#: So many voxels of it, or there is nothing to go on with.
FEWEST_CUT = 9
#: Width (voxels) of the mean that goes on: noise is not drawn out into stripes.
CONTINUED_SIGMA = 1.5
#: Side of the square (voxels) that must be constant throughout; clipped noise in air does not fill it.
SOLID_SIDE = 9
#: Voxels that a solid region is grown back by, so that the thin tips between circle and border are kept.
GROW_BACK = 4


def find_padding(hu: NDArray[np.floating[Any]], *, declared_hu: tuple[float, float] | None = None) -> NDArray[np.bool_]:
    """Voxels of one slice that hold padding.

    Parameters
    ----------
    hu : [y, x], Hounsfield units as stored, padding included.
    declared_hu : lowest and highest HU that the header declares as padding; None when it declares nothing.

    Returns
    -------
    [y, x] bool.
    """
    far = hu < FAR_BELOW_AIR_HU
    padding = np.zeros(hu.shape, dtype=bool)
    if far.any():
        padding |= touching_border(far)
    low, high = (float(hu.min()),) * 2
    if declared_hu is not None:
        declared = (hu >= declared_hu[0]) & (hu <= declared_hu[1])
        if declared_hu[1] < FAR_BELOW_AIR_HU or declared_hu[0] > FAR_ABOVE_CT_HU:
            padding |= declared
        elif declared_hu[0] > CONSTANT_BELOW_HU:
            padding |= _with_solid_part(declared)
        elif declared_hu[1] <= CONSTANT_BELOW_HU:
            low, high = declared_hu
    if low < FAR_BELOW_AIR_HU and not far.all():
        low = high = float(hu[~far].min())
    if FAR_BELOW_AIR_HU <= high <= CONSTANT_BELOW_HU:
        padding |= _solid_at_border((hu >= low) & (hu <= high))
    return padding


def continued(hu: NDArray[np.float32], padding: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """HU for a filter: tissue that padding cuts off goes on beyond the cut, else the step to air would ring inside.

    Parameters
    ----------
    hu : [z, y, x], HU, air where there is padding.
    padding : [z, y, x]; None for none.

    Returns
    -------
    [z, y, x]: the same array, or one in which padding beside tissue holds the mean of the image nearest to it.
    """
    if padding is None:
        return hu
    result = hu
    for index in range(len(hu)):
        beyond = padding[index]
        if not beyond.any() or beyond.all():
            continue
        beside = ndimage.binary_dilation(beyond) & ~beyond
        if np.count_nonzero(hu[index][beside] > TISSUE_HU) < FEWEST_CUT:
            continue
        weight = ndimage.gaussian_filter((~beyond).astype(np.float32), CONTINUED_SIGMA, mode="nearest")
        mean = ndimage.gaussian_filter(np.where(beyond, np.float32(0), hu[index]), CONTINUED_SIGMA, mode="nearest")
        mean /= np.maximum(weight, np.float32(1e-3))
        nearest = ndimage.distance_transform_edt(beyond, return_distances=False, return_indices=True)
        reached = mean[tuple(nearest)]
        result = hu.copy() if result is hu else result
        result[index][beyond] = np.where(reached > CONSTANT_BELOW_HU, reached, np.float32(AIR_HU))[beyond]
    return result


def _with_solid_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whole parts of `mask` that reach the border and are solid somewhere: unlike clipped air, a declared value above
    air does not scatter into the image, so nothing of a part is held back."""
    solid = _solid_at_border(mask)
    if not solid.any():
        return solid
    labels, _ = ndimage.label(mask)
    return np.isin(labels, np.unique(labels[solid]))


def _solid_at_border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Parts of `mask` that are solid over `SOLID_SIDE` voxels and connected to the border."""
    if np.count_nonzero(mask) < SOLID_SIDE**2:
        return np.zeros_like(mask)
    # The mask goes on beyond the border, where blank regions go on.
    eroded = _over_squares(np.logical_and, np.pad(mask, SOLID_SIDE // 2, mode="edge"), SOLID_SIDE)
    if not eroded.any():
        return np.zeros_like(mask)
    side = SOLID_SIDE + 2 * GROW_BACK
    return touching_border(_over_squares(np.logical_or, np.pad(eroded, side // 2), side) & mask)


def _over_squares(combine: np.ufunc, mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """[y - side + 1, x - side + 1] a mask's voxels combined over squares; runs of 1, 2, 4, ... are joined to `side`."""
    for _ in range(2):
        run, length = mask, 1
        while length < side:
            step = min(length, side - length)
            run = combine(run[:-step], run[step:])
            length += step
        mask = run.T
    return mask


def touching_border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[y, x] connected parts (4-neighbours) of a mask that reach the border of the slice."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    reaches = np.zeros(count + 1, dtype=bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        reaches[edge] = True
    reaches[0] = False
    if reaches[1:].all():
        return mask
    return np.take(reaches, labels)
