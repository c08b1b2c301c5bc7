"""Right and left lung of a CT: without weights by default, through TotalSegmentator or lungmask where installed.

The embedded way is thresholds and morphology on a working grid of about 2 mm: air inside the body, the trachea and main
bronchi grown from the top and taken out, the two lungs told apart, then closed. A threshold alone loses the lines and
walls of subpleural fibrosis, which average to less than soft tissue over a few millimetres: so the mean over such a
neighbourhood decides as well as the voxel, and a closing gives back what dense bands cut off.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from concordct.errors import ConcordctError
from concordct.radiomics.regions.near import closing, within
from concordct.signal.body import body_mask
from concordct.volumes.volume import AIR_HU, Volume

RIGHT, LEFT = 1, 2
LUNGS = {"right": RIGHT, "left": LEFT}
BACKENDS = ("threshold", "totalsegmentator", "lungmask")

#: Half way between lung and soft tissue.
AERATED_HU = -300.0
#: Mean over `NEIGHBOURHOOD_MM` below which scarred lung still lies; fat's mean is -100, fibrosis' about -500.
SCARRED_HU = -400.0
#: No voxel above this is taken for the mean around it.
SOFT_HU = -200.0
NEIGHBOURHOOD_MM = 2.2
#: Mean above which a region is gas of the gut or the airways, not lung; emphysema seldom passes -950 as a mean.
GAS_HU = -960.0
#: The working grid is not coarser than this; morphology on it takes seconds.
WORKING_MM = 2.5
#: Radius of the closing: bands of dense fibrosis and vessels narrower than twice this come back.
CLOSING_MM = 7.0
#: Half the thickness of a honeycomb's walls that are bridged before regions are counted; the diaphragm is thicker.
WALL_MM = 2.5
#: A honeycomb's cyst holds less, a bubble in the stomach more, ml.
LEAST_BUBBLE_ML = 4.0
#: Less than this is no lung: an adult's is 10 times as large, a stomach bubble seldom reaches it.
LEAST_ML = 150.0
#: A lung smaller than this share of the other counts as missing; IPF seldom takes more than half of one side.
LEAST_SHARE = 0.12
#: Areas of the trachea's lumen in a slice, mm^2, and the most that trachea and main bronchi hold, ml.
TRACHEA_MM2, AIRWAYS_ML = (40.0, 800.0), 90.0


class OneLungWarning(UserWarning):
    """Only one lung was found."""


def lung_masks(volume: Volume, *, backend: str = "threshold", require_both: bool = False) -> NDArray[np.uint8]:
    """Label the lungs of a chest CT.

    Parameters
    ----------
    volume : any spacing up to about 5 mm; slices may run either way along z.
    backend : "threshold" (embedded), "totalsegmentator" or "lungmask" (where installed, with their own weights).
    require_both : refuse a volume with one lung; else it is returned with a `OneLungWarning`.

    Returns
    -------
    [z, y, x] uint8: 0 none, 1 right lung, 2 left lung (the patient's sides), without trachea and main bronchi.

    Raises
    ------
    ConcordctError : no lung found; one lung with `require_both`; a backend that is unknown or not installed.
    """
    if backend not in BACKENDS:
        raise ConcordctError(f"unknown lung backend {backend!r}; known are {', '.join(BACKENDS)}")
    labels = {"threshold": _threshold, "totalsegmentator": _totalsegmentator, "lungmask": _lungmask}[backend](volume)
    voxel_ml = float(abs(np.linalg.det(volume.affine[:3, :3]))) / 1000.0
    size = {name: float(np.count_nonzero(labels == label)) * voxel_ml for name, label in LUNGS.items()}
    total = sum(size.values())
    if total < LEAST_ML:
        raise ConcordctError(
            f"no lung found: {total:.0f} ml of lung in the volume, expected at least {LEAST_ML:.0f} ml"
        )
    smaller, larger = sorted(size, key=lambda name: size[name])
    if size[smaller] < LEAST_SHARE * size[larger]:
        found = f"one lung found: {larger} {size[larger]:.0f} ml, {smaller} {size[smaller]:.0f} ml"
        if require_both:
            raise ConcordctError(f"{found}; expected both")
        warnings.warn(found, OneLungWarning, stacklevel=2)
    return labels


def dilate(mask: NDArray[np.bool_], radius_mm: float, spacing_mm: tuple[float, float, float]) -> NDArray[np.bool_]:
    """[z, y, x] everything within a distance of a mask."""
    box = _box(mask, radius_mm, spacing_mm)
    grown = np.zeros_like(mask)
    if box is not None:
        grown[box] = within(mask[box], radius_mm, spacing_mm)
    return grown


def _box(mask: NDArray[np.bool_], margin_mm: float, spacing_mm: tuple[float, float, float]) -> tuple[slice, ...] | None:
    """Where a mask lies, with a margin, within the array."""
    lines = (mask.any(axis=(1, 2)), mask.any(axis=(0, 2)), mask.any(axis=(0, 1)))
    places = [np.flatnonzero(line) for line in lines]
    if not len(places[0]):
        return None
    margin = [int(np.ceil(margin_mm / s)) + 1 for s in spacing_mm]
    return tuple(
        slice(max(int(place[0]) - m, 0), min(int(place[-1]) + 1 + m, n))
        for place, m, n in zip(places, margin, mask.shape, strict=True)
    )


def _close(mask: NDArray[np.bool_], radius_mm: float, spacing_mm: tuple[float, float, float]) -> NDArray[np.bool_]:
    """Closing with a ball, then holes filled; the volume's end does not cut the ball."""
    pad = [int(np.ceil(radius_mm / s)) + 1 for s in spacing_mm]
    box = _box(mask, 0.0, spacing_mm)
    if box is None:
        return mask
    # Slices beyond the scan repeat its ends: a lung that is cut off there must not be rounded.
    part = np.pad(mask[box], [(p, p) for p in pad], mode="edge" if mask.shape[0] == mask[box].shape[0] else "constant")
    closed = ndimage.binary_fill_holes(closing(part, radius_mm, spacing_mm))
    inner = tuple(slice(p, -p) for p in pad)
    result = mask.copy()
    result[box] = closed[inner]
    return result


def _threshold(volume: Volume) -> NDArray[np.uint8]:
    factors = [max(1, int(WORKING_MM / s)) for s in volume.spacing_mm]
    hu = _block_mean(volume.hu, factors)
    spacing = tuple(float(s * f) for s, f in zip(volume.spacing_mm, factors, strict=True))
    affine = volume.affine.copy()
    affine[:3, :3] *= factors
    coarse = _coarse(hu, (spacing[0], spacing[1], spacing[2]), affine)
    if max(factors) == 1:
        return coarse
    return _refine(volume, coarse, factors)


def _block_mean(hu: NDArray[np.float32], factors: list[int]) -> NDArray[np.float32]:
    """Mean of blocks; what does not fill a block at the far ends repeats the last voxels."""
    short = [(0, -n % f) for n, f in zip(hu.shape, factors, strict=True)]
    for axis, (factor, pad) in enumerate(zip(factors, short, strict=True)):
        if factor == 1:
            continue
        padded = np.pad(hu, [pad if a == axis else (0, 0) for a in range(3)], mode="edge") if pad[1] else hu
        every = [slice(None)] * 3
        total = np.zeros((), np.float32)
        for k in range(factor):
            every[axis] = slice(k, None, factor)
            total = total + padded[tuple(every)]
        hu = total / np.float32(factor)
    return hu


def _coarse(
    hu: NDArray[np.float32], spacing: tuple[float, float, float], affine: NDArray[np.float64]
) -> NDArray[np.uint8]:
    body = body_mask(hu)
    # Nothing outside the body counts; what lies around it costs time alone.
    around = _box(body, CLOSING_MM, spacing)
    if around is None:
        return np.zeros(hu.shape, dtype=np.uint8)
    around = (slice(None), *around[1:])
    labels = np.zeros(hu.shape, dtype=np.uint8)
    moved = affine.copy()
    moved[:3, 3] += affine[:3, 1] * around[1].start + affine[:3, 2] * around[2].start
    labels[around] = _inside(np.ascontiguousarray(hu[around]), body[around], spacing, moved)
    return labels


def _inside(
    hu: NDArray[np.float32],
    body: NDArray[np.bool_],
    spacing: tuple[float, float, float],
    affine: NDArray[np.float64],
) -> NDArray[np.uint8]:
    """The lungs' labels on the working grid, cropped to the body."""
    mean = ndimage.gaussian_filter(hu, [NEIGHBOURHOOD_MM / s for s in spacing], mode="nearest")
    lung = body & ((hu < AERATED_HU) | ((mean < SCARRED_HU) & (hu < SOFT_HU)))
    airways = _airways(hu, body, spacing, affine)
    lung &= ~airways
    voxel_ml = float(np.prod(spacing)) / 1000.0
    lung = _without_gas(lung, hu, voxel_ml)
    # Cysts of a honeycomb lie apart from the lung behind their walls, each too small to be one.
    wall = max(WALL_MM, *spacing)
    joined = closing(np.pad(lung, 3), wall, spacing)[3:-3, 3:-3, 3:-3]
    kept = _components((joined & body & ~airways) | lung, hu, voxel_ml) & lung
    if not kept.any():
        return np.zeros(hu.shape, dtype=np.uint8)
    labels = _sides(kept, spacing, affine)
    closed = np.zeros_like(labels)
    for label in LUNGS.values():
        one = _close(labels == label, CLOSING_MM, spacing) & ~airways & body
        closed[one & (closed == 0) & ((labels == 0) | (labels == label))] = label
    return closed


def _without_gas(lung: NDArray[np.bool_], hu: NDArray[np.float32], voxel_ml: float) -> NDArray[np.bool_]:
    """Air without the bubbles of stomach and gut, before anything is joined to the lungs."""
    labels, count = ndimage.label(lung)
    if not count:
        return lung
    ml = np.bincount(labels.ravel(), minlength=count + 1) * voxel_ml
    means = np.asarray(ndimage.mean(hu, labels, np.arange(count + 1)))
    keep = (ml < LEAST_BUBBLE_ML) | (means > GAS_HU)
    keep[0] = False
    return np.asarray(keep[labels])


def _components(lung: NDArray[np.bool_], hu: NDArray[np.float32], voxel_ml: float) -> NDArray[np.bool_]:
    """The regions that are lung: large enough, and not gas alone."""
    labels, count = ndimage.label(lung)
    if not count:
        return lung
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    means = ndimage.mean(hu, labels, np.arange(count + 1))
    lungs = (sizes * voxel_ml >= LEAST_ML / 5) & (np.asarray(means) > GAS_HU)
    sizes = np.where(lungs, sizes, 0)
    return np.asarray((sizes >= LEAST_SHARE / 4 * max(sizes.max(), 1)) & lungs)[labels]


def _airways(
    hu: NDArray[np.float32],
    body: NDArray[np.bool_],
    spacing: tuple[float, float, float],
    affine: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Trachea and main bronchi with their wall, grown from the trachea; empty where no trachea is seen."""
    nothing = np.zeros(hu.shape, dtype=bool)
    head_first = affine[2, 0] < 0
    order = range(hu.shape[0]) if head_first else range(hu.shape[0] - 1, -1, -1)
    seed: tuple[int, int, int] | None = None
    for z in list(order)[: max(hu.shape[0] // 2, 1)]:
        lumen = _trachea(hu[z], body[z], spacing)
        if lumen is not None:
            seed = (z, *lumen)
            break
    if seed is None:
        return nothing
    voxel_ml = float(np.prod(spacing)) / 1000.0
    grown, before = nothing, 0.0
    # Each step lets the lumen's edge in; the step at which it breaks into the lung is the one too many.
    for level in (-960.0, -940.0, -920.0, -900.0, -880.0, -850.0, -800.0):
        labels, _ = ndimage.label((hu < level) & body)
        if not labels[seed]:
            continue
        region = labels == labels[seed]
        ml = float(region.sum()) * voxel_ml
        if ml > AIRWAYS_ML or (before > 8.0 and ml > 1.8 * before):
            break
        grown, before = region, ml
    if before == 0.0:
        return nothing
    return dilate(grown, 1.2 * max(spacing), spacing) & body


def _trachea(
    hu: NDArray[np.float32], body: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> tuple[int, int] | None:
    """(row, column) of a round lumen near the middle of the body in one slice."""
    if not body.any():
        return None
    columns = np.flatnonzero(body.any(axis=0))
    low, high = np.quantile(columns, (0.3, 0.7))
    labels, count = ndimage.label((hu < -800.0) & body)
    best: tuple[float, tuple[int, int]] | None = None
    for index, part in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[part] == index
        area = float(inside.sum()) * spacing[1] * spacing[2]
        height, width = inside.shape[0] * spacing[1], inside.shape[1] * spacing[2]
        middle = 0.5 * (part[1].start + part[1].stop)
        if not TRACHEA_MM2[0] <= area <= TRACHEA_MM2[1] or not low <= middle <= high:
            continue
        if max(height, width) > 2.2 * min(height, width) or area < 0.5 * height * width:
            continue
        places = np.argwhere(inside)
        deepest = places[np.argmin(hu[part][inside])]
        lumen = (int(deepest[0]) + part[0].start, int(deepest[1]) + part[1].start)
        if best is None or float(hu[lumen]) < best[0]:
            best = float(hu[lumen]), lumen
    return None if count == 0 or best is None else best[1]


def _sides(
    lung: NDArray[np.bool_], spacing: tuple[float, float, float], affine: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Tell the two sides apart, cutting them where they touch; what is small goes to the nearer side."""
    box = _box(lung, 0.0, spacing)
    if box is not None and lung[box].size < lung.size:
        named = np.zeros(lung.shape, dtype=np.uint8)
        moved = affine.copy()
        moved[:3, 3] += affine[:3, :3] @ np.array([part.start for part in box])
        named[box] = _sides(lung[box], spacing, moved)
        return named
    total = int(lung.sum())
    depth: NDArray[np.float64] | None = None
    markers = np.zeros(lung.shape, dtype=np.int32)
    for radius in (0.0, 3.0, 5.0, 7.0, 9.0, 12.0):
        if radius and depth is None:
            depth = ndimage.distance_transform_edt(np.pad(lung, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
        labels, count = ndimage.label(lung if depth is None else depth > radius)
        if not count:
            break
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        sizes[0] = 0
        largest = np.argsort(sizes)[::-1][:2]
        if sizes[largest[0]] < 0.1 * total:
            break
        markers = np.where(labels == largest[0], 1, 0).astype(np.int32)
        if (
            len(largest) == 2
            and sizes[largest[1]] >= LEAST_SHARE * sizes[largest[0]]
            and _apart(labels, largest, affine)
        ):
            markers[labels == largest[1]] = 2
            break
    if markers.max() < 2:
        # One body of air: which side it is follows from where it lies against the middle of the scan's content.
        markers = lung.astype(np.int32)
    if depth is not None and markers.max() == 2:
        markers = watershed(-depth, markers, mask=lung)
    return _named(markers, lung, affine)


def _apart(labels: NDArray[np.int32], pair: NDArray[np.intp], affine: NDArray[np.float64]) -> bool:
    """Whether two regions lie side by side: their middles differ by 50 mm and more across the patient."""
    middles = [np.array(ndimage.center_of_mass(labels == k)) for k in pair]
    return abs(float(affine[0, :3] @ (middles[0] - middles[1]))) >= 50.0


def _named(regions: NDArray[np.int32], lung: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Regions 1 and 2 as right and left: x grows to the patient's left."""
    named = np.zeros(lung.shape, dtype=np.uint8)
    middles = {
        k: float(affine[0, :3] @ np.array(ndimage.center_of_mass(regions == k))) for k in (1, 2) if (regions == k).any()
    }
    if len(middles) == 2:
        order = sorted(middles, key=lambda k: middles[k])
        for side, region in zip((RIGHT, LEFT), order, strict=True):
            named[regions == region] = side
        rest = lung & (named == 0)
        if rest.any():
            nearest = ndimage.distance_transform_edt(named == 0, return_distances=False, return_indices=True)
            named[rest] = named[tuple(nearest[:, rest])]
        return named
    centre = float(affine[0, :3] @ (np.array(lung.shape) - 1) / 2)
    for k, middle in middles.items():
        named[regions == k] = RIGHT if middle < centre else LEFT
    return named


def _refine(volume: Volume, coarse: NDArray[np.uint8], factors: list[int]) -> NDArray[np.uint8]:
    """The working grid's labels at full resolution, their edge drawn anew where the voxels say it lies."""
    fine = np.zeros(volume.shape, dtype=np.uint8)
    for label in LUNGS.values():
        one = coarse == label
        box = _box(one, 0.0, (1.0, 1.0, 1.0))
        if box is None:
            continue
        part = one[box]
        shapes = (ndimage.binary_dilation(part), part, ndimage.binary_erosion(part, border_value=1))
        place = tuple(
            slice(b.start * f, min(b.stop * f, n)) for b, f, n in zip(box, factors, volume.shape, strict=True)
        )
        size = tuple(slice(s.stop - s.start) for s in place)
        outer, middle, core = (_repeat(shape, factors)[size] for shape in shapes)
        edge = ndimage.gaussian_filter(volume.hu[place], 0.5, mode="nearest") < AERATED_HU
        # Walls and lines are as dense as the chest wall that they touch; where lung prevails around them they are lung.
        near = [NEIGHBOURHOOD_MM / s for s in volume.spacing_mm]
        scarred = ndimage.gaussian_filter(volume.hu[place], near, mode="nearest") < SCARRED_HU
        found = core | (outer & edge) | (middle & scarred)
        closed = ndimage.binary_closing(np.pad(found, 3), iterations=2)[3:-3, 3:-3, 3:-3]
        found |= closed & outer
        fine[place][found & (fine[place] == 0)] = label
    return fine


def _repeat(mask: NDArray[np.bool_], factors: list[int]) -> NDArray[np.bool_]:
    for axis, factor in enumerate(factors):
        mask = np.repeat(mask, factor, axis)
    return mask


def _installed(module: str, backend: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConcordctError(f"lung backend {backend!r} is not installed; the embedded one is 'threshold'") from None


def _totalsegmentator(volume: Volume) -> NDArray[np.uint8]:
    """TotalSegmentator's five lobes as two lungs (Wasserthal 2023, doi:10.1148/ryai.230024)."""
    api = _installed("totalsegmentator.python_api", "totalsegmentator")
    nibabel = _installed("nibabel", "totalsegmentator")
    # nibabel is RAS and indexes (x, y, z).
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine = flip @ volume.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume.hu.T), affine)
    right = [f"lung_{part}_lobe_right" for part in ("upper", "middle", "lower")]
    left = [f"lung_{part}_lobe_left" for part in ("upper", "lower")]
    found = api.totalsegmentator(image, None, roi_subset=right + left, quiet=True, ml=True)
    classes = _installed("totalsegmentator.map_to_binary", "totalsegmentator").class_map["total"]
    values = np.asarray(found.dataobj).T.astype(np.int32)
    side = {number: RIGHT if name in right else LEFT for number, name in classes.items() if name in right + left}
    table = np.zeros(max(max(classes), int(values.max())) + 1, dtype=np.uint8)
    table[list(side)] = list(side.values())
    return table[values]


def _lungmask(volume: Volume) -> NDArray[np.uint8]:
    """lungmask's R231 network (Hofmanninger 2020, doi:10.1186/s41747-020-00173-2), which labels 1 right, 2 left."""
    import SimpleITK as sitk

    module = _installed("lungmask", "lungmask")
    image = sitk.GetImageFromArray(np.maximum(volume.hu, AIR_HU - 24.0).astype(np.int16))
    spacing = volume.spacing_mm
    image.SetSpacing(spacing[::-1])
    image.SetOrigin(volume.affine[:3, 3].tolist())
    image.SetDirection((volume.affine[:3, :3] / np.array(spacing))[:, ::-1].ravel().tolist())
    labels = module.LMInferer().apply(image)
    return np.asarray(labels, dtype=np.uint8)
