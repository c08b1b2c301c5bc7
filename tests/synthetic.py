"""Small scans with known spectra, for tests of methods and pipelines: white noise and shapes through known filters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from concordct.volumes.volume import Volume

PIXEL_MM = 0.8


def axial_affine(spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """[4, 4] of axial slices: index z along the patient's feet-head axis, y posterior, x left."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *spacing_mm, 1.0
    return affine


def volume(
    hu: NDArray[np.floating], *, pixel_mm: float = PIXEL_MM, slice_mm: float = 3.0, kernel: str | None = None
) -> Volume:
    """A Volume of [z, y, x] HU."""
    spacing = (slice_mm, pixel_mm, pixel_mm)
    return Volume(np.asarray(hu, np.float32), axial_affine(spacing), slice_thickness_mm=slice_mm, kernel=kernel)


def frequency(size: int, pixel_mm: float = PIXEL_MM) -> NDArray[np.float64]:
    """[y, x] radial frequency of cosine coefficients, lp/cm."""
    f = np.arange(size) / (2 * size * pixel_mm) * 10
    return np.hypot(f[:, None], f[None, :])


def filtered(image: NDArray[np.floating], response: NDArray[np.floating]) -> NDArray[np.float64]:
    """An image mirrored at its borders and multiplied with a response in frequency."""
    return np.asarray(fft.idctn(fft.dctn(image, norm="ortho") * response, norm="ortho"))


def soft(f: NDArray[np.floating]) -> NDArray[np.float64]:
    """A smooth kernel with a hard end at 5 lp/cm."""
    return np.exp(-((f / 2.6) ** 2)) * (f < 5.0)


def sharp(f: NDArray[np.floating]) -> NDArray[np.float64]:
    """An edge-enhancing kernel that passes everything the pixels do."""
    return (1 + 1.2 * (f / 4) ** 2 * np.exp(-((f / 4) ** 2))) * np.exp(-((f / 5.5) ** 4))


def object_hu(size: int, slices: int, seed: int) -> NDArray[np.float64]:
    """[z, y, x] a body of fat and muscle with vessels, in air."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    body = (x / 0.45) ** 2 + (y / 0.38) ** 2 < 1
    out = np.full((slices, size, size), -1000.0)
    for z in range(slices):
        inside = np.full((size, size), -90.0)
        inside[(x / 0.38) ** 2 + (y / 0.31) ** 2 < 1] = 50
        for _ in range(25):
            cy, cx, radius = rng.uniform(-0.25, 0.25), rng.uniform(-0.3, 0.3), rng.uniform(0.005, 0.05)
            inside[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] += rng.uniform(-80, 250)
        out[z][body] = inside[body]
    return np.asarray(ndimage.gaussian_filter(out, (0, 0.7, 0.7)))


def pair(
    *, size: int = 192, slices: int = 6, seed: int = 0, noise_hu: float = 60.0, rounded: bool = True
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[z, y, x] soft and sharp reconstruction of one noisy raw scan; noise is stronger at the centre, as in CT."""
    rng = np.random.default_rng(seed + 1000)
    y, x = np.mgrid[:size, :size] / size - 0.5
    local = noise_hu * (0.6 + 0.8 * np.exp(-(x**2 + y**2) / 0.08))
    f = frequency(size)
    ramp = f / 5.0  # reconstruction noise rises with frequency
    result = []
    raw = object_hu(size, slices, seed)
    noise = [local * filtered(rng.standard_normal((size, size)), ramp) for _ in range(slices)]
    for kernel in (soft, sharp):
        images = np.stack([filtered(r + 1000 + n, kernel(f)) - 1000 for r, n in zip(raw, noise, strict=True)])
        result.append(np.clip(np.rint(images), -1024, 3071) if rounded else images)
    return result[0], result[1]


def denoised(seed: int, slices: int = 2) -> tuple[Volume, Volume]:
    """A round body with rods, 192 x 192, and the same with a third of the noise and the same edges: no linear pair."""
    rng = np.random.default_rng(seed)
    size, pixel_mm = 192, 0.75
    y, x = np.mgrid[:size, :size] - size / 2
    hu = np.where(np.hypot(y, x) < 80, 40.0, -1000.0)
    for _ in range(40):
        cy, cx, radius = rng.uniform(-20, 60), rng.uniform(-60, 60), rng.uniform(1.5, 5)
        hu[np.hypot(y - cy, x - cx) < radius] = rng.choice([-700.0, 300.0])
    body = ndimage.gaussian_filter(hu, 0.7)
    f = frequency(size, pixel_mm)
    noise = [18 * filtered(rng.standard_normal((size, size)), np.exp(-((f / 7.0) ** 4))) for _ in range(slices)]
    shape = np.exp(-((f / 6.0) ** 2))
    source = np.stack([body + one for one in noise])
    target = np.stack([body + 0.33 * filtered(one, shape) for one in noise])
    return volume(np.rint(source), pixel_mm=pixel_mm), volume(np.rint(target), pixel_mm=pixel_mm)
