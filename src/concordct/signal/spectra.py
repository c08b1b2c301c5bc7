"""Spectra of CT slices in line pairs per centimetre: cosine spectra for whole slices, NPS for patches.

Whole slices use the type-II cosine transform, which is the Fourier transform of the slice mirrored at its borders. A
body cut by the edge of the field then meets its own mirror image and not the opposite border, so nothing rings across,
and a radial real filter stays a multiplication.

Noise power spectra follow ICRU Report 87 (2012) and Boedeker et al., Phys. Med. Biol. 52:4027 (2007),
doi:10.1088/0031-9155/52/14/002: mean squared Fourier amplitude of detrended patches, in HU^2 mm^2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from concordct.errors import ConcordctError
from concordct.signal.body import patch_corners
from concordct.volumes.volume import AIR_HU

MM_PER_CM = 10.0
#: Where cosine transforms run: a device of PyTorch, or None for SciPy.
_device: ContextVar[str | None] = ContextVar("device", default=None)


@contextmanager
def transforms_on(device: str | None) -> Iterator[None]:
    """Cosine transforms of this block on a device of PyTorch ("cuda", "cpu"); None for SciPy. HU agree within 0.01.

    Raises
    ------
    ConcordctError : no PyTorch, or no such card.
    """
    if device is not None:
        try:
            import torch
        except ImportError:
            raise ConcordctError(f"expected PyTorch for device {device}, found none") from None
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConcordctError(f"expected a card for device {device}, found none")
    token = _device.set(device)
    try:
        yield
    finally:
        _device.reset(token)


def cosine_frequencies(shape: tuple[int, int], spacing_mm: tuple[float, float]) -> NDArray[np.float32]:
    """Radial frequency of every cosine coefficient of a slice.

    Parameters
    ----------
    shape : (y, x), pixels.
    spacing_mm : (y, x), mm.

    Returns
    -------
    [y, x] float32, lp/cm.
    """
    fy, fx = (np.arange(n) / (2 * n * d) * MM_PER_CM for n, d in zip(shape, spacing_mm, strict=True))
    return np.hypot(fy[:, None], fx[None, :]).astype(np.float32)


def to_cosines(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Orthonormal cosine coefficients of a slice, [y, x] HU above air, so that empty field contributes nothing."""
    return detail_to_cosines(image - np.float32(AIR_HU))


def from_cosines(coefficients: NDArray[np.float32]) -> NDArray[np.float32]:
    """The slice of these coefficients, [y, x] HU; the inverse of `to_cosines`."""
    return detail_from_cosines(coefficients) + np.float32(AIR_HU)


def detail_to_cosines(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Orthonormal cosine coefficients of an image around 0: a difference, a band, noise, [y, x]."""
    device = _device.get()
    if device is not None:
        from concordct.signal import torch_cosines

        return torch_cosines.dctn(image, device)
    return np.asarray(fft.dctn(image, type=2, norm="ortho"), dtype=np.float32)


def detail_from_cosines(coefficients: NDArray[np.float32]) -> NDArray[np.float32]:
    """The image around 0 of these coefficients, [y, x]; the inverse of `detail_to_cosines`."""
    device = _device.get()
    if device is not None:
        from concordct.signal import torch_cosines

        return torch_cosines.idctn(coefficients, device)
    return np.asarray(fft.idctn(coefficients, type=2, norm="ortho"), dtype=np.float32)


@dataclass(frozen=True)
class Rings:
    """Rings of equal width in radial frequency.

    Attributes
    ----------
    width_lp_cm : width of a ring; the first ring starts at 0.
    count : number of rings; coefficients beyond the last are left out of every sum.
    """

    width_lp_cm: float
    count: int

    @staticmethod
    def covering(spacing_mm: tuple[float, float], count: int) -> Rings:
        """`count` rings out to the corner of the Nyquist square of pixels of this size."""
        corner = float(np.hypot(MM_PER_CM / (2 * spacing_mm[0]), MM_PER_CM / (2 * spacing_mm[1])))
        return Rings(width_lp_cm=corner / count, count=count)

    @property
    def centres_lp_cm(self) -> NDArray[np.float64]:
        """[ring] centres, lp/cm."""
        return np.asarray((np.arange(self.count) + 0.5) * self.width_lp_cm, dtype=np.float64)

    def index(self, frequency_lp_cm: NDArray[np.float32]) -> NDArray[np.intp]:
        """The ring of each frequency, flattened; `count` for what lies beyond the last."""
        return np.minimum((frequency_lp_cm.ravel() / self.width_lp_cm).astype(np.intp), self.count)

    def sum(self, ring: NDArray[np.intp], values: NDArray[np.floating]) -> NDArray[np.float64]:
        """[ring] sums of values over rings, `ring` as `index` gives it."""
        return np.asarray(np.bincount(ring, values.ravel(), self.count + 1)[: self.count], dtype=np.float64)


@dataclass(frozen=True)
class NoisePower:
    """Noise power of patches by radial band.

    Attributes
    ----------
    edges_cycles_per_pixel : [band + 1].
    cells : [band], number of frequencies in each band.
    nps_hu2_mm2 : [patch, band], mean noise power spectrum in each band, HU^2 mm^2.
    """

    edges_cycles_per_pixel: NDArray[np.float64]
    cells: NDArray[np.float64]
    nps_hu2_mm2: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """[band], HU^2 mm^2."""
        return self.nps_hu2_mm2.mean(axis=0)


def noise_power(
    slices: Iterable[NDArray[np.float32]],
    mask: NDArray[np.bool_],
    *,
    spacing_mm: tuple[float, float],
    patch: int = 32,
    band_width: float = 0.05,
    band_limit: float = 0.5,
) -> NoisePower:
    """Noise power spectrum of the patches inside a mask.

    Parameters
    ----------
    slices : [z, y, x], HU.
    mask : [z, y, x] bool; a patch counts when it lies wholly inside.
    spacing_mm : (y, x), mm.
    patch : edge of a patch, pixels.
    band_width : width of a radial band, cycles/pixel.
    band_limit : end of the last band, cycles/pixel: 0.5 along the axes, 0.71 in the corners of the Nyquist square.

    Returns
    -------
    NoisePower, with one row for each patch; no rows where no patch fits.
    """
    frequency = np.hypot(fft.fftfreq(patch)[:, None], fft.fftfreq(patch)[None, :])
    count = round(band_limit / band_width)
    edges = np.arange(count + 1) * band_width
    band = np.searchsorted(edges, frequency.ravel(), side="right") - 1
    cells = np.bincount(band, minlength=count)[:count].astype(float)
    taper = np.outer(np.hanning(patch + 2)[1:-1], np.hanning(patch + 2)[1:-1])
    scale = spacing_mm[0] * spacing_mm[1] / np.sum(taper**2)
    plane = plane_projector(patch)
    rows: list[NDArray[np.float64]] = []
    for image, inside in zip(slices, mask, strict=True):
        for row, column in patch_corners(inside, patch):
            values = image[row : row + patch, column : column + patch].astype(np.float64).ravel()
            detrended = (values - plane @ (plane.T @ values)).reshape(patch, patch)
            power = np.abs(fft.fft2(detrended * taper)) ** 2 * scale
            rows.append(np.bincount(band, power.ravel(), count)[:count] / np.maximum(cells, 1))
    nps: NDArray[np.float64] = np.array(rows, dtype=np.float64).reshape(len(rows), count)
    return NoisePower(np.asarray(edges, dtype=np.float64), cells, nps)


def plane_projector(patch: int) -> NDArray[np.float64]:
    """[pixel, 6] orthonormal basis of quadratic surfaces, which stand for anatomy and cupping in a patch."""
    y, x = (axis.ravel() for axis in np.mgrid[-1 : 1 : patch * 1j, -1 : 1 : patch * 1j])
    q, _ = np.linalg.qr(np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1))
    return np.asarray(q)


def power_ratio(numerator: NoisePower, denominator: NoisePower) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ratio of two noise power spectra of the same patches, with its standard error by the jackknife over patches.

    Returns
    -------
    ratio, error : [band] each, dimensionless.
    """
    a, b = numerator.nps_hu2_mm2, denominator.nps_hu2_mm2
    n = len(a)
    ratio = a.sum(axis=0) / b.sum(axis=0)
    left_out = (a.sum(axis=0) - a) / (b.sum(axis=0) - b)
    # Efron and Stein, Ann. Stat. 9:586 (1981), doi:10.1214/aos/1176345462
    error = np.sqrt((n - 1) / n * np.sum((left_out - left_out.mean(axis=0)) ** 2, axis=0))
    return ratio, error
