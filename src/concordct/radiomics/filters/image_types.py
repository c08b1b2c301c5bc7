"""Filtered images under PyRadiomics' names: LoG, wavelet, square, square root, logarithm, exponential, gradient, LBP.

Each is computed from the whole image but only where ROIs lie, and handed on before the next is begun. A box of more
than `LARGE` voxels is filtered slab by slab and held in float32, ITK's own precision, so that a whole scan takes little
more than its filtered image. Source: PyRadiomics 3.0.1, `imageoperations.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError

Array = NDArray[np.float64]
Image = NDArray[np.floating[Any]]
Box = tuple[slice, slice, slice]

#: Sigmas around a box beyond which ITK's recursive filter feels nothing: its slowest term falls as
#: exp(-1.37 x / sigma), and at 24 sigmas is under float64's last digit, so that an ROI has the values that it would
#: have had in the whole image.
LOG_REACH = 24.0

#: Voxels of a box from which on filters work in slabs, and of one slab.
LARGE, SLAB = 1 << 24, 1 << 22

#: Names as they stand in a parameter file.
IMAGE_TYPES = (
    "Original",
    "LoG",
    "Wavelet",
    "Square",
    "SquareRoot",
    "Logarithm",
    "Exponential",
    "Gradient",
    "LBP2D",
    "LBP3D",
)


@dataclass(frozen=True)
class FilterSettings:
    """Parameters of the filters, under PyRadiomics' defaults.

    Attributes
    ----------
    sigma : widths of the Laplacian of Gaussian, mm.
    wavelet, start_level, level : name (PyWavelets), first level and number of levels of the stationary transform.
    gradient_use_spacing : gradient per mm instead of per voxel.
    lbp_2d_radius, lbp_2d_samples, lbp_2d_method : circle (pixels) and variant of the planar local binary pattern.
    lbp_3d_levels, lbp_3d_radius, lbp_3d_subdivision : spherical harmonics and icosphere (voxels) of the solid one.
    planar_axis : the axis across slices when features are planar, None in 3D: no wavelet runs along it.
    """

    sigma: tuple[float, ...] = ()
    wavelet: str = "coif1"
    start_level: int = 0
    level: int = 1
    gradient_use_spacing: bool = True
    lbp_2d_radius: float = 1.0
    lbp_2d_samples: int = 8
    lbp_2d_method: str = "uniform"
    lbp_3d_levels: int = 2
    lbp_3d_radius: float = 1.0
    lbp_3d_subdivision: int = 1
    planar_axis: int | None = None


def filtered(
    image: Image, spacing_mm: tuple[float, float, float], box: Box, name: str, settings: FilterSettings
) -> Iterator[tuple[str, Image]]:
    """The images of one type, as (column prefix, values inside the box).

    Parameters
    ----------
    image : [z, y, x] float32 or float64, the whole image; filters work in float64, ITK's in float32.
    spacing_mm : (z, y, x).
    box : where values are wanted.
    name : one of `IMAGE_TYPES`.

    Raises
    ------
    ConcordctError : unknown type, LoG without sigma or wider than the image, a constant image of zeros to rescale.
    """
    if name == "Original":
        yield "original", image[box]
    elif name == "LoG":
        yield from _log(image, spacing_mm, box, settings.sigma)
    elif name == "Wavelet":
        yield from _wavelet(image, box, settings)
    elif name == "Gradient":
        own = settings.gradient_use_spacing
        yield "gradient", _in_slabs(box, lambda part: _gradient(image, spacing_mm, part, use_spacing=own))
    elif name == "LBP2D":
        yield "lbp-2D", _in_slabs(box, lambda part: _lbp_2d(image, part, settings))
    elif name == "LBP3D":
        from concordct.radiomics.filters.lbp import lbp_3d

        yield from lbp_3d(
            image.astype(np.float64),
            box,
            levels=settings.lbp_3d_levels,
            radius=settings.lbp_3d_radius,
            subdivision=settings.lbp_3d_subdivision,
        )
    elif name in ("Square", "SquareRoot", "Logarithm", "Exponential"):
        yield name.lower(), _in_slabs(box, lambda part: _pointwise(image, part, name))
    else:
        raise ConcordctError(f"no image type {name}; known: {', '.join(IMAGE_TYPES)}")


def _voxels(box: Box) -> int:
    return int(np.prod([side.stop - side.start for side in box]))


def _slabs(box: Box) -> Iterator[tuple[slice, Box]]:
    """Parts of a box along z, of at most `SLAB` voxels or one slice: their slices in the box, and in the image."""
    depth = box[0].stop - box[0].start
    step = max(1, SLAB // max(_voxels(box) // depth, 1))
    for start in range(0, depth, step):
        stop = min(start + step, depth)
        yield slice(start, stop), (slice(box[0].start + start, box[0].start + stop), box[1], box[2])


def _in_slabs(box: Box, work: Callable[[Box], Image]) -> Image:
    """What `work` gives for a box; of a large one in float32, slab by slab."""
    if _voxels(box) <= LARGE:
        return work(box)
    found = np.empty([side.stop - side.start for side in box], np.float32)
    for place, part in _slabs(box):
        found[place] = work(part)
    return found


def _pointwise(image: Image, box: Box, name: str) -> Array:
    """Maps of single intensities, rescaled to the range of the whole image."""
    largest = max(float(image.max()), -float(image.min()))
    x = image[box].astype(np.float64)
    if largest == 0:
        raise ConcordctError(f"{name} rescales to the largest intensity, which is 0 in this image")
    size = np.abs(x)
    if name == "Square":
        # (c x)^2 with c = 1 / sqrt(max |x|)
        return (1 / np.sqrt(largest) * x) ** 2
    if name == "SquareRoot":
        # sign(x) sqrt(max|x| |x|)
        return np.sign(x) * np.sqrt(size * largest)
    if name == "Logarithm":
        # sign(x) c log(|x| + 1) with c = max|x| / log(max|x| + 1)
        return np.sign(x) * np.log(size + 1) * (largest / np.log(largest + 1))
    # exp(c x) with c = log(max|x|) / max|x|
    return np.exp(np.log(largest) / largest * x)


def _log(
    image: Image, spacing_mm: tuple[float, float, float], box: Box, sigma: tuple[float, ...]
) -> Iterator[tuple[str, Image]]:
    import SimpleITK as sitk

    if not sigma:
        raise ConcordctError("LoG needs at least one sigma, found none")
    for width in sigma:
        short = [n for n, mm in zip(image.shape, spacing_mm, strict=True) if n < max(4, np.ceil(width / mm) + 1)]
        if short:
            raise ConcordctError(f"LoG of sigma {width:g} mm needs a longer image than {image.shape} voxels (z, y, x)")
        name = f"log-sigma-{width}-mm-3D".replace(".", "-")
        if _voxels(box) > LARGE:
            yield name, _log_in_slabs(image, spacing_mm, width)[box]
            continue
        run = sitk.LaplacianRecursiveGaussianImageFilter()
        run.SetNormalizeAcrossScale(True)
        run.SetSigma(width)
        wider, inside = _widen(image.shape, box, [int(np.ceil(LOG_REACH * width / mm)) for mm in spacing_mm])
        found = run.Execute(_to_sitk(image[wider], spacing_mm))  # named: a view does not keep its image alive
        yield name, sitk.GetArrayViewFromImage(found)[inside].astype(np.float64)


def _log_in_slabs(image: Image, spacing_mm: tuple[float, float, float], width: float) -> NDArray[np.float32]:
    """ITK's filter of the whole image, its one-dimensional passes taken apart so that each works in slabs.

    As in ITK: second derivative along one axis, smoothing along the others, divided by the spacing squared and summed
    over the axes, all in float32.
    """
    import SimpleITK as sitk

    def along(values: Image, axis: int, order: int) -> NDArray[np.float32]:
        """One pass; slabs lie across another axis than that of the pass."""
        run = sitk.RecursiveGaussianImageFilter()
        run.SetNormalizeAcrossScale(True)
        run.SetSigma(width)
        run.SetOrder(order)
        run.SetDirection(2 - axis)
        across = 0 if axis else 1
        found = values if values.dtype == np.float32 and values is not image else np.empty(values.shape, np.float32)
        step = max(1, SLAB * values.shape[across] // values.size)
        for start in range(0, values.shape[across], step):
            part = tuple(slice(start, start + step) if k == across else slice(None) for k in range(3))
            done = run.Execute(_to_sitk(values[part], spacing_mm))
            found[part] = sitk.GetArrayViewFromImage(done)
        return found

    total = np.zeros(image.shape, np.float32)
    for axis in (2, 1, 0):
        part = along(image, axis, 2)
        for other in (2, 1, 0):
            if other != axis:
                part = along(part, other, 0)
        part /= np.float32(spacing_mm[axis] ** 2)
        total += part
        del part  # before the next is made
    return total


def _gradient(image: Image, spacing_mm: tuple[float, float, float], box: Box, *, use_spacing: bool) -> Array:
    import SimpleITK as sitk

    wider, inside = _widen(image.shape, box, [1, 1, 1])
    run = sitk.GradientMagnitudeImageFilter()
    run.SetUseImageSpacing(use_spacing)
    found = run.Execute(_to_sitk(image[wider], spacing_mm))
    return np.asarray(sitk.GetArrayViewFromImage(found)[inside], dtype=np.float64)


def _lbp_2d(image: Image, box: Box, settings: FilterSettings) -> Array:
    from skimage.feature import local_binary_pattern

    axis = settings.planar_axis or 0
    wider, inside = _widen(image.shape, box, [int(np.ceil(settings.lbp_2d_radius)) + 1] * 3)
    # On integers, as PyRadiomics does it on CT: scikit-image warns against comparing interpolated floats for equality.
    part = np.moveaxis(image[wider].astype(np.float64), axis, 0)
    whole = np.equal(part, np.round(part)).all()
    slices = [
        local_binary_pattern(
            one.astype(np.int64) if whole else one,
            P=settings.lbp_2d_samples,
            R=settings.lbp_2d_radius,
            method=settings.lbp_2d_method,
        )
        for one in part
    ]
    return np.moveaxis(np.stack(slices), 0, axis)[inside].astype(np.float64)


def _wavelet(image: Image, box: Box, settings: FilterSettings) -> Iterator[tuple[str, Image]]:
    """Undecimated wavelet bands (PyWavelets' stationary transform), one level after the other on the approximation.

    Bands come in PyRadiomics' order, details first. An axis of odd length is continued by its first voxel, as there.
    """
    import pywt

    try:
        wavelet = pywt.Wavelet(settings.wavelet)
    except ValueError:
        raise ConcordctError(f"no wavelet {settings.wavelet}, expected one of PyWavelets' such as coif1") from None
    axes = [axis for axis in (2, 1, 0) if axis != settings.planar_axis]
    if _voxels(box) > LARGE:
        yield from _wavelet_in_slabs(image, box, settings, wavelet, axes)
        return
    levels = settings.start_level + settings.level
    part, inside = _wrapped(image, box, axes, reach=levels * wavelet.dec_len)
    for _ in range(settings.start_level):
        part = dict(_bands(part, axes, wavelet))["L" * len(axes)]
    for level in range(1, settings.level + 1):
        prefix = "wavelet" if level == 1 else f"wavelet{level}"
        for band, values in _bands(part, axes, wavelet):
            if "H" in band:
                yield f"{prefix}-{band}", np.ascontiguousarray(values[inside])
            else:
                approximation = values
        part = approximation
    yield f"{prefix}-{'L' * len(axes)}", np.ascontiguousarray(part[inside])


def _wavelet_in_slabs(
    image: Image, box: Box, settings: FilterSettings, wavelet: Any, axes: list[int]
) -> Iterator[tuple[str, Image]]:
    """`_wavelet` of a large box: each band by itself, from slabs with what lies around them."""
    names = ["".join(letters) for letters in itertools.product("LH", repeat=len(axes))]
    smooth, levels = names[0], settings.start_level + settings.level
    for level in range(1, settings.level + 1):
        prefix = "wavelet" if level == 1 else f"wavelet{level}"
        last = level == settings.level
        for name in [*names[1:], *(names[:1] if last else [])]:
            path = [*[smooth] * (settings.start_level + level - 1), name]

            def band(place: Box, path: list[str] = path) -> Image:
                part, inside = _wrapped(image, place, axes, reach=levels * wavelet.dec_len)
                for step in path:
                    part = _band(part, axes, wavelet, step)
                return part[inside]

            yield f"{prefix}-{name}", _in_slabs(box, band)


def _band(part: Array, axes: list[int], wavelet: Any, name: str) -> Array:
    """One of the bands of one level."""
    import pywt

    for axis, letter in zip(axes, name, strict=True):
        ((low, high),) = pywt.swt(part, wavelet, level=1, start_level=0, axis=axis)
        part = low if letter == "L" else high
        del low, high
    return part


def _bands(part: Array, axes: list[int], wavelet: object, band: str = "") -> Iterator[tuple[str, Array]]:
    """The 2^n bands of one level, depth first, so that few are alive at a time."""
    import pywt

    if not axes:
        yield band, part
        return
    ((low, high),) = pywt.swt(part, wavelet, level=1, start_level=0, axis=axes[0])
    yield from _bands(low, axes[1:], wavelet, band + "L")
    del low
    yield from _bands(high, axes[1:], wavelet, band + "H")


def _wrapped(image: Image, box: Box, axes: list[int], *, reach: int) -> tuple[Array, Box]:
    """The box with `reach` more voxels along the axes, continued periodically, of even length; and the box in it."""
    part = image
    inside = list(box)
    for axis in range(3):
        if axis not in axes:
            part = part[tuple(box[k] if k == axis else slice(None) for k in range(3))]
            inside[axis] = slice(0, box[axis].stop - box[axis].start)
            continue
        length = image.shape[axis]
        period = length + length % 2
        start, stop = box[axis].start - reach, box[axis].stop + reach
        stop += (stop - start) % 2
        if stop - start >= period:
            start, stop = 0, period
        places = np.arange(start, stop) % period
        part = np.take(part, np.where(places == length, 0, places), axis=axis)
        inside[axis] = slice(box[axis].start - start, box[axis].stop - start)
    return part.astype(np.float64), (inside[0], inside[1], inside[2])


def _widen(shape: tuple[int, ...], box: Box, reach: list[int]) -> tuple[Box, Box]:
    """The box grown by so many voxels (z, y, x) where the image goes on, and where the box lies in it."""
    grown = [slice(max(0, b.start - more), min(n, b.stop + more)) for n, b, more in zip(shape, box, reach, strict=True)]
    inner = [slice(b.start - g.start, b.stop - g.start) for b, g in zip(box, grown, strict=True)]
    return (grown[0], grown[1], grown[2]), (inner[0], inner[1], inner[2])


def _to_sitk(image: Image, spacing_mm: tuple[float, float, float]):  # type: ignore[no-untyped-def]
    import SimpleITK as sitk

    # float32 in, float32 out: ITK's own precision for these filters on CT
    found = sitk.GetImageFromArray(image.astype(np.float32))
    found.SetSpacing(spacing_mm[::-1])
    return found
