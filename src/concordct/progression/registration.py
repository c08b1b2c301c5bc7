"""Target-region pre-registration (CIResDiff, Sec. 2.1): each lung by itself, then both in one volume.

The follow-up scan moves, the initial one stays: a prediction starts from the initial scan and has no other grid.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.progression.affine import cut_out, default_backend, register
from concordct.radiomics.regions.lungs import LEFT, LUNGS, RIGHT, dilate, lung_masks
from concordct.volumes.volume import AIR_HU, Volume

#: How far the lungs are dilated: chest wall and hilum help to align, and the pleura stays inside.
DILATION_MM = 10.0
#: Between the lungs one transform passes into the other over about this width, mm.
BLEND_MM = 8.0
#: Slices that are resampled together.
_SLAB = 16
#: Below this the lungs of the two scans have other shapes: a wrong subject, or a lung that has collapsed.
LEAST_DICE = 0.85
#: Below this the insides of the lungs, between `DETAIL_MM`, have nothing in common: scans of two patients.
LEAST_DETAIL = 0.15
#: Detail that is compared: the difference of two Gaussian means, mm. Vessels lie in it; noise and breath do not.
DETAIL_MM = (1.5, 5.0)
#: Window of the local correlation (SD of a Gaussian), mm: a few vessels wide.
WINDOW_MM = 8.0


@dataclass(frozen=True, eq=False)
class Registered:
    """A follow-up scan on the grid of the initial one, and what the registration did to it.

    Attributes
    ----------
    volume : the moved scan on the fixed grid; padding where the moving scan has nothing.
    lungs : [z, y, x] labels of the moved scan's lungs on the fixed grid: 1 right, 2 left.
    fixed_lungs : [z, y, x] labels of the fixed scan's lungs.
    region : [z, y, x] bool, the fixed lungs dilated: the target region, where the result is meant to be used.
    transforms : by lung ("right", "left"), [4, 4], LPS mm of the fixed scan -> LPS mm of the moving one.
    determinants : by lung, of the transform: volume of the moving lung per volume of the fixed one, as far as the
        affine map explains it; below 1 the lung has shrunk.
    volumes_ml : by lung, (fixed, moving, moved) lung volume, ml.
    dice_before, dice_after : by lung and for "both", of the masks in LPS before and after.
    detail_correlation : see the function; near 0 for scans of two patients, not a number where it cannot tell.
    backend : "ants" or "simpleitk".
    seconds : wall time of the registration proper.
    """

    volume: Volume
    lungs: NDArray[np.uint8]
    fixed_lungs: NDArray[np.uint8]
    region: NDArray[np.bool_]
    transforms: dict[str, NDArray[np.float64]]
    determinants: dict[str, float]
    volumes_ml: dict[str, tuple[float, float, float]]
    dice_before: dict[str, float]
    dice_after: dict[str, float]
    detail_correlation: float
    backend: str
    seconds: float


def pre_register(
    moving: Volume,
    fixed: Volume,
    *,
    moving_lungs: NDArray[np.uint8] | None = None,
    fixed_lungs: NDArray[np.uint8] | None = None,
    backend: str | None = None,
    check_same_patient: bool = True,
) -> Registered:
    """Bring the follow-up scan onto the initial one, lung by lung.

    Parameters
    ----------
    moving : the follow-up scan. fixed : the initial scan.
    moving_lungs, fixed_lungs : [z, y, x] labels (1 right, 2 left); None finds them with the embedded way.
    backend : "ants" or "simpleitk"; None takes ANTs where it is installed.
    check_same_patient : refuse scans whose lungs do not agree afterwards.

    Raises
    ------
    ConcordctError : a lung missing in one scan; scans of two patients (`LEAST_DICE`, `LEAST_DETAIL`).
    """
    backend = backend or default_backend()
    of_moving = lung_masks(moving, require_both=True) if moving_lungs is None else moving_lungs
    of_fixed = lung_masks(fixed, require_both=True) if fixed_lungs is None else fixed_lungs
    for name, volume, labels in (("follow-up", moving, of_moving), ("initial", fixed, of_fixed)):
        if labels.shape != volume.shape:
            raise ConcordctError(f"lungs of shape {labels.shape} do not fit the {name} scan of {volume.shape}")
        for lung, label in LUNGS.items():
            if not (labels == label).any():
                raise ConcordctError(f"the {name} scan has no {lung} lung; both are registered, each by itself")
    started = time.perf_counter()
    transforms = {}
    for lung, label in LUNGS.items():
        other = LEFT if label == RIGHT else RIGHT
        target = cut_out(fixed, of_fixed == label, of_fixed == other, DILATION_MM)
        source = cut_out(moving, of_moving == label, of_moving == other, DILATION_MM)
        transforms[lung] = register(source, target, backend=backend)
    region = dilate(of_fixed > 0, DILATION_MM, fixed.spacing_mm)
    volume, lungs = merge(moving, of_moving, fixed, of_fixed, transforms, region=region)
    seconds = time.perf_counter() - started
    result = Registered(
        volume=volume,
        lungs=lungs,
        fixed_lungs=of_fixed,
        region=region,
        transforms=transforms,
        determinants={lung: float(np.linalg.det(m[:3, :3])) for lung, m in transforms.items()},
        volumes_ml=_volumes(of_fixed, of_moving, lungs, fixed, moving),
        dice_before=_dice_untouched(moving, of_moving, fixed, of_fixed),
        dice_after=lung_dice(lungs, of_fixed),
        detail_correlation=detail_correlation(volume, fixed, (lungs > 0) & (of_fixed > 0)),
        backend=backend,
        seconds=seconds,
    )
    if check_same_patient:
        _check(result)
    return result


def _check(result: Registered) -> None:
    worst = min(result.dice_after["right"], result.dice_after["left"])
    if worst < LEAST_DICE:
        raise ConcordctError(
            f"after registration the lungs agree to Dice {worst:.2f}, expected at least {LEAST_DICE}: another subject?"
        )
    if result.detail_correlation < LEAST_DETAIL:
        raise ConcordctError(
            f"after registration the insides of the lungs correlate at {result.detail_correlation:.2f}, expected at "
            f"least {LEAST_DETAIL}: scans of two patients?"
        )


def _dice_untouched(
    moving: Volume, moving_lungs: NDArray[np.uint8], fixed: Volume, fixed_lungs: NDArray[np.uint8]
) -> dict[str, float]:
    """Dice where both scans lay, on every second millimetre: it is large or small, never close."""
    steps = [max(1, int(2.0 / s)) for s in fixed.spacing_mm]
    thin = tuple(slice(None, None, step) for step in steps)
    affine = fixed.affine.copy()
    affine[:3, :3] *= steps
    grid = Volume(fixed.hu[thin], affine)
    _, lungs = merge(moving, moving_lungs, grid, fixed_lungs[thin], {lung: np.eye(4) for lung in LUNGS}, hu=False)
    return lung_dice(lungs, fixed_lungs[thin])


def lung_dice(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> dict[str, float]:
    """Dice of the labels of two masks on one grid: "right", "left", and "both" regardless of side."""
    pairs = {name: (one == label, other == label) for name, label in LUNGS.items()}
    pairs["both"] = (one > 0, other > 0)
    dice = {}
    for name, (a, b) in pairs.items():
        size = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
        dice[name] = 2.0 * int(np.count_nonzero(a & b)) / max(size, 1)
    return dice


def merge(
    moving: Volume,
    moving_lungs: NDArray[np.uint8],
    fixed: Volume,
    fixed_lungs: NDArray[np.uint8],
    transforms: dict[str, NDArray[np.float64]],
    *,
    region: NDArray[np.bool_] | None = None,
    hu: bool = True,
) -> tuple[Volume, NDArray[np.uint8]]:
    """Resample the moving scan and its lungs onto the fixed grid, once, by one transform for each lung.

    Every voxel goes where the transform of the nearer lung takes it; between the lungs the two places are averaged, not
    the two images, so that the mediastinum has no ghost. HU by cubic B-splines in the target region and linearly
    outside, labels by the nearest voxel.

    Parameters
    ----------
    transforms : by lung, fixed LPS mm -> moving LPS mm.
    region : [z, y, x], the target region; None for everything.
    hu : False leaves HU out, and the volume is the fixed one.
    """
    share = _left_share(fixed_lungs, fixed.spacing_mm)
    back = np.linalg.inv(moving.affine)
    to_moving = [back @ transforms[lung] @ fixed.affine for lung in ("right", "left")]
    lungs = np.zeros(fixed.shape, dtype=np.uint8)
    values = np.empty(fixed.shape, dtype=np.float32) if hu else fixed.hu
    missing = np.zeros(fixed.shape, dtype=bool)
    spline = ndimage.spline_filter(moving.hu, order=3, output=np.float32, mode="mirror") if hu else None
    low, high = float(moving.hu.min()), float(moving.hu.max())
    last = np.array(moving.shape)[:, None, None, None] - 1
    rows = np.arange(fixed.shape[1], dtype=np.float32)[None, :, None]
    columns = np.arange(fixed.shape[2], dtype=np.float32)[None, None, :]
    for start in range(0, fixed.shape[0], _SLAB):
        part = slice(start, min(start + _SLAB, fixed.shape[0]))
        slices = np.arange(part.start, part.stop, dtype=np.float32)[:, None, None]
        left = share[part]
        place = np.empty((3, *left.shape), dtype=np.float32)
        for axis in range(3):
            right_place, left_place = (
                np.float32(m[axis, 0]) * slices + np.float32(m[axis, 1]) * rows + np.float32(m[axis, 2]) * columns
                + np.float32(m[axis, 3]) for m in to_moving
            )  # fmt: skip
            place[axis] = right_place + left * (left_place - right_place)
        nearest = np.rint(place)
        missing[part] = ((nearest < 0) | (nearest > last)).any(axis=0)
        lungs[part] = ndimage.map_coordinates(moving_lungs, place, order=0, mode="constant", cval=0)
        if hu:
            inside = np.ones(left.shape, dtype=bool) if region is None else region[part]
            drawn = ndimage.map_coordinates(moving.hu, place, order=1, mode="mirror", output=np.float32)
            drawn[inside] = ndimage.map_coordinates(
                spline, place[:, inside], order=3, mode="mirror", prefilter=False, output=np.float32
            )
            if moving.padding is not None:
                blank = ndimage.map_coordinates(moving.padding.astype(np.uint8), place, order=0, mode="nearest")
                missing[part] |= blank > 0
            values[part] = np.where(missing[part], np.float32(AIR_HU), np.clip(drawn, low, high))
    if not hu:
        return fixed, lungs
    padding = missing if missing.any() else None
    volume = Volume(
        values, fixed.affine, padding=padding, slice_thickness_mm=moving.slice_thickness_mm, kernel=moving.kernel
    )
    return volume, lungs


def _left_share(lungs: NDArray[np.uint8], spacing_mm: tuple[float, float, float]) -> NDArray[np.float32]:
    """[z, y, x] weight of the left lung's transform: 0 at the right lung, 1 at the left, smooth between them."""
    steps = [max(1, int(4.0 / s)) for s in spacing_mm]
    thin = lungs[:: steps[0], :: steps[1], :: steps[2]]
    spacing = [s * f for s, f in zip(spacing_mm, steps, strict=True)]
    away = [ndimage.distance_transform_edt(thin != label, sampling=spacing) for label in (RIGHT, LEFT)]
    share = 1.0 / (1.0 + np.exp(np.clip((away[1] - away[0]) / (BLEND_MM / 4.0), -30.0, 30.0)))
    for axis, (count, step) in enumerate(zip(lungs.shape, steps, strict=True)):
        share = _linear(share, np.arange(count) / step, axis)
    return share.astype(np.float32)


def _linear(values: NDArray[np.floating[Any]], positions: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    """Values along one axis at fractional positions."""
    low = np.minimum(positions.astype(np.intp), values.shape[axis] - 1)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    shape = [1, 1, 1]
    shape[axis] = -1
    part = (positions - low).astype(np.float32).reshape(shape)
    near, far = np.take(values, low, axis).astype(np.float32), np.take(values, high, axis).astype(np.float32)
    return near + part * (far - near)


def detail_correlation(one: Volume, other: Volume, inside: NDArray[np.bool_]) -> float:
    """How far two volumes on one grid hold the same vessels: the median over a mask of their local correlation.

    Local, because lesions lie in like places in different patients, and because they may have grown between the scans:
    neither makes a patient.

    Parameters
    ----------
    inside : [z, y, x], where both scans show lung.

    Returns
    -------
    -1 to 1; not a number where nothing lies deep enough inside the mask to tell.
    """
    places = ndimage.find_objects(inside.astype(np.uint8))
    if not places:
        return float("nan")
    box = places[0]
    inside = inside[box]
    steps = tuple(slice(None, None, max(1, int(2.0 / s))) for s in one.spacing_mm)
    thin = [s * step.step for s, step in zip(one.spacing_mm, steps, strict=True)]
    mask = ndimage.distance_transform_edt(np.pad(inside[steps], 1), sampling=thin)[1:-1, 1:-1, 1:-1] > 2 * DETAIL_MM[1]
    if not mask.any():
        return float("nan")
    scale = [1.0 / s for s in one.spacing_mm]
    window = [WINDOW_MM / s for s in thin]
    weight = ndimage.gaussian_filter(mask.astype(np.float32), window)
    parts = []
    for volume in (one, other):
        clipped = np.clip(volume.hu[box], -1000.0, 100.0)
        fine, coarse = (ndimage.gaussian_filter(clipped, [mm * k for k in scale])[steps] for mm in DETAIL_MM)
        detail = np.where(mask, fine - coarse, 0.0).astype(np.float32)
        parts.append(np.where(mask, detail - ndimage.gaussian_filter(detail, window) / np.maximum(weight, 1e-6), 0.0))

    def mean(product: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(ndimage.gaussian_filter(product, window), dtype=np.float32)[mask]

    power = mean(parts[0] ** 2) * mean(parts[1] ** 2)
    return float(np.median(mean(parts[0] * parts[1]) / np.sqrt(np.maximum(power, 1e-12))))


def _volumes(
    fixed_lungs: NDArray[np.uint8],
    moving_lungs: NDArray[np.uint8],
    moved: NDArray[np.uint8],
    fixed: Volume,
    moving: Volume,
) -> dict[str, tuple[float, float, float]]:
    """(fixed, moving, moved) ml by lung."""
    ml = [abs(float(np.linalg.det(v.affine[:3, :3]))) / 1000.0 for v in (fixed, moving, fixed)]
    sets = (fixed_lungs, moving_lungs, moved)
    found = {}
    for lung, label in LUNGS.items():
        a, b, c = (float(np.count_nonzero(s == label)) * k for s, k in zip(sets, ml, strict=True))
        found[lung] = (a, b, c)
    return found
