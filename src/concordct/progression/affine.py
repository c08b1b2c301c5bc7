"""One affine map between two lungs: their surfaces first, which bears large motions, then what is in them.

Surfaces are aligned as signed distances, by least squares, from the lungs' middles. The images inside the dilated lung
then decide by mutual information (Mattes 2003, doi:10.1109/TMI.2003.809072), in ANTs where it is installed (Avants
2009, as in CIResDiff) and else in SimpleITK. Both are ITK inside; one thread and a seed make them repeat
themselves to about a millionth of a millimetre.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.volumes.volume import Volume

BACKENDS = ("ants", "simpleitk")
#: The grid that transforms are found on; an affine map of a whole lung is settled far below a voxel of it.
GRID_MM = 2.0
#: Distances beyond this say nothing about where the surface lies, mm.
SURFACE_MM = 25.0
#: HU between which the inside of a chest is compared; bone and contrast medium move with nothing in the lung.
HU_RANGE = (-1000.0, 100.0)
#: Share of the voxels that the metric looks at in each step.
SAMPLING = 0.2
SEED = 7
#: ITK adds up its metric in an order of its own, which shows in the last bits; a nanometre is beyond any scanner.
DECIMALS = 9


@dataclass(frozen=True, eq=False)
class Target:
    """One lung of one scan, cut out on an even grid.

    Attributes
    ----------
    image : HU inside the dilated lung, without the other lung; soft tissue elsewhere.
    distance : signed distance to the lung's surface, mm, negative inside.
    region : the dilated lung.
    """

    image: sitk.Image
    distance: sitk.Image
    region: sitk.Image


def default_backend() -> str:
    """ "ants" where antspyx is installed, else "simpleitk"."""
    found = importlib.util.find_spec("ants")  # any folder of that name is found, too, but has no loader of code
    return "ants" if found is not None and found.origin is not None else "simpleitk"


def cut_out(volume: Volume, lung: NDArray[np.bool_], others: NDArray[np.bool_], margin_mm: float) -> Target:
    """The target region of one lung.

    Parameters
    ----------
    lung : [z, y, x] of the one; others : of what must not pull, the other lung.
    margin_mm : how far the lung is dilated.
    """
    places = np.argwhere(lung.any(axis=(1, 2))), np.argwhere(lung.any(axis=(0, 2))), np.argwhere(lung.any(axis=(0, 1)))
    margin = [int(np.ceil((margin_mm + GRID_MM) / s)) for s in volume.spacing_mm]
    box = tuple(
        slice(max(int(p.min()) - m, 0), min(int(p.max()) + 1 + m, n))
        for p, m, n in zip(places, margin, volume.shape, strict=True)
    )
    steps = tuple(max(1, round(GRID_MM / s)) for s in volume.spacing_mm)
    hu = ndimage.gaussian_filter(volume.hu[box], [0.4 * (f - 1) for f in steps]) if max(steps) > 1 else volume.hu[box]
    thin = tuple(slice(None, None, f) for f in steps)
    one, other, hu = lung[box][thin], others[box][thin], np.clip(hu[thin], *HU_RANGE)
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    affine[:3, :3] *= steps
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    outside = ndimage.distance_transform_edt(~one, sampling=spacing)
    inside = ndimage.distance_transform_edt(one, sampling=spacing)
    region = (outside <= margin_mm) & ~(other & (outside > 0))
    # Soft tissue stands in for what does not belong to the target, so that the region's own rim makes no edge.
    shown = np.where(region, hu, 0.0)
    signed = np.clip(outside - inside, -SURFACE_MM, SURFACE_MM)
    return Target(*(_image(a, affine) for a in (shown, signed, region)))


def _image(array: NDArray[np.generic], affine: NDArray[np.float64]) -> sitk.Image:
    image = sitk.GetImageFromArray(array.astype(np.uint8 if array.dtype == bool else np.float32))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing([float(s) for s in spacing[::-1]])
    image.SetOrigin([float(v) for v in affine[:3, 3]])
    image.SetDirection((affine[:3, :3] / spacing)[:, ::-1].ravel().tolist())
    return image


def register(moving: Target, fixed: Target, *, backend: str) -> NDArray[np.float64]:
    """[4, 4], LPS mm of the fixed lung -> LPS mm of the moving one.

    Raises
    ------
    ConcordctError : an unknown backend, one that is not installed, lungs that cannot be brought together.
    """
    if backend not in BACKENDS:
        raise ConcordctError(f"unknown registration backend {backend!r}; known are {', '.join(BACKENDS)}")
    if backend == "ants" and importlib.util.find_spec("ants") is None:
        raise ConcordctError(
            "registration backend 'ants' needs antspyx, which is not installed; another is 'simpleitk'"
        )
    start = sitk.AffineTransform(3)
    start.SetCenter(_middle(fixed))
    start.SetTranslation([m - f for m, f in zip(_middle(moving), _middle(fixed), strict=True)])
    surfaces = _by_itk(moving.distance, fixed.distance, start, region=fixed.region, shrink=(4, 2), surfaces=True)
    if backend == "ants":
        found = _by_ants(moving, fixed, surfaces)
    else:
        found = matrix(_by_itk(moving.image, fixed.image, surfaces, region=fixed.region, shrink=(2, 1), surfaces=False))
    return np.round(found, DECIMALS)


def _middle(target: Target) -> tuple[float, ...]:
    distance = sitk.GetArrayViewFromImage(target.distance)
    z, y, x = ndimage.center_of_mass(distance < 0)
    return tuple(target.distance.TransformContinuousIndexToPhysicalPoint((x, y, z)))


def _by_itk(
    moving: sitk.Image,
    fixed: sitk.Image,
    start: sitk.AffineTransform,
    *,
    region: sitk.Image,
    shrink: tuple[int, ...],
    surfaces: bool,
) -> sitk.AffineTransform:
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    if surfaces:
        method.SetMetricAsMeanSquares()
    else:
        method.SetMetricAsMattesMutualInformation(32)
        method.SetMetricFixedMask(region)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(SAMPLING, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0 if surfaces else 0.5, minStep=1e-3, numberOfIterations=120 if surfaces else 60,
        relaxationFactor=0.6, gradientMagnitudeTolerance=1e-7,
    )  # fmt: skip
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(list(shrink))
    method.SetSmoothingSigmasPerLevel([0.5 * f * GRID_MM if f > 1 else 0.0 for f in shrink])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(sitk.AffineTransform(start), inPlace=False)
    try:
        found = method.Execute(fixed, moving)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()[:120]
        raise ConcordctError(f"the lungs of the two scans cannot be brought together: {reason}") from None
    return sitk.AffineTransform(sitk.CompositeTransform(found).GetBackTransform())


def _by_ants(moving: Target, fixed: Target, start: sitk.AffineTransform) -> NDArray[np.float64]:
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
    ants = importlib.import_module("ants")

    def image(source: sitk.Image) -> object:
        # ants indexes (x, y, z), as SimpleITK does outside of numpy.
        array = sitk.GetArrayFromImage(source).T.astype(np.float32)
        direction = np.array(source.GetDirection()).reshape(3, 3)
        return ants.from_numpy(array, source.GetOrigin(), source.GetSpacing(), direction)

    with tempfile.TemporaryDirectory() as folder:
        initial = str(Path(folder) / "surfaces.mat")
        sitk.WriteTransform(start, initial)
        try:
            found = ants.registration(
                fixed=image(fixed.image), moving=image(moving.image), type_of_transform="Affine",
                initial_transform=[initial], mask=image(fixed.region), mask_all_stages=True,
                aff_metric="mattes", aff_sampling=32, aff_random_sampling_rate=SAMPLING,
                aff_iterations=(60, 40), aff_shrink_factors=(2, 1), aff_smoothing_sigmas=(1, 0),
                random_seed=SEED, outprefix=str(Path(folder) / "to_"),
            )  # fmt: skip
        except (RuntimeError, ValueError) as error:
            raise ConcordctError(f"ANTs could not bring the lungs of the two scans together: {error}") from None
        total = np.eye(4)
        # ITK applies the last transform of the list first.
        for name in found["fwdtransforms"]:
            total = total @ matrix(sitk.AffineTransform(sitk.ReadTransform(name)))
    return total


def matrix(transform: sitk.AffineTransform) -> NDArray[np.float64]:
    """[4, 4] of an ITK affine transform, which turns about its centre."""
    linear = np.array(transform.GetMatrix()).reshape(3, 3)
    centre = np.array(transform.GetCenter())
    total = np.eye(4)
    total[:3, :3] = linear
    total[:3, 3] = np.array(transform.GetTranslation()) + centre - linear @ centre
    return total
