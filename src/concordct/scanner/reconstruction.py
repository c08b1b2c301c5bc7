"""Filtered back projection of parallel projections with any number of named kernels."""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.scanner.acquisition import WATER_PER_MM, Acquisition, parallel_angles
from concordct.scanner.frame import Frame
from concordct.scanner.kernels import Kernel
from concordct.scanner.nonlinear import shrink_noise
from concordct.scanner.projector import add_backprojection

#: Most that a kernel may amplify a projection's frequency to undo the geometry's blur; beyond lies only noise.
LARGEST_GAIN = 8.0
#: What a 12 bit CT image can hold, HU (a rescale intercept of -1024).
HU_RANGE = (-1024.0, 3071.0)
#: Filtered projections are resampled this much finer, so that linear interpolation between bins loses little.
UPSAMPLING = 2
#: Views that are filtered and smeared back together, to bound memory; any value gives the same bits.
VIEW_CHUNK = 48
#: The rim of the measured field is left out, mm.
EDGE_MM = 1.0


def check_kernel(kernel: Kernel, acquisition: Acquisition) -> None:
    """Refuse a kernel that the detector cannot serve."""
    if kernel.mtf10_lp_cm > acquisition.nyquist_lp_cm:
        raise ConcordctError(
            f"kernel {kernel.name}: MTF10 of {kernel.mtf10_lp_cm} lp/cm lies beyond the detector's Nyquist frequency; "
            f"with channels of {acquisition.channel_mm} mm at most {acquisition.nyquist_lp_cm:.2f} lp/cm is allowed"
        )


def aliases(kernel: Kernel, frame: Frame) -> bool:
    """Whether the kernel passes frequencies that the pixels cannot carry, as lung kernels do on a wide field."""
    return kernel.cutoff_lp_cm > frame.nyquist_lp_cm


def filter_response(kernel: Kernel, acquisition: Acquisition, length: int) -> NDArray[np.float32]:
    """[length // 2 + 1] ramp times kernel over the geometry's own blur, for projections padded to `length`, per mm."""
    pitch = acquisition.sample_mm
    # Kak and Slaney (1988), eq. 3.61: the ramp sampled in space keeps the mean right where |f| would not.
    n = np.fft.fftfreq(length, 1.0 / length)
    ramp = np.zeros(length)
    ramp[0] = 1.0 / (4.0 * pitch**2)
    odd = n % 2 == 1
    ramp[odd] = -1.0 / (np.pi * pitch * n[odd]) ** 2
    response = np.fft.rfft(ramp).real * pitch
    f = np.fft.rfftfreq(length, pitch / 10.0)  # lp/cm
    geometry = np.maximum(acquisition.geometric_mtf(f), 1e-3)
    interpolation = np.sinc(f / 10.0 * pitch / UPSAMPLING) ** 2
    window = np.minimum(kernel.mtf(f) / (geometry * interpolation), LARGEST_GAIN)
    return (response * window).astype(np.float32)


def reconstruct(
    projections: NDArray[np.float32], acquisition: Acquisition, frame: Frame, kernels: tuple[Kernel, ...]
) -> NDArray[np.float32]:
    """Images of every kernel from the same projections.

    Parameters
    ----------
    projections : [view, bin, lane] parallel projections over half a turn (`to_parallel`).
    frame : pixels of the image.

    Returns
    -------
    [kernel, lane, y, x] float32 HU, neither rounded nor clipped; -1024 outside the measured field.
    """
    views, bins, lanes = projections.shape
    length = scipy.fft.next_fast_len(2 * bins, real=True)
    fine = UPSAMPLING * length
    for kernel in kernels:
        check_kernel(kernel, acquisition)
    responses = [filter_response(kernel, acquisition, length) for kernel in kernels]
    angles = parallel_angles(acquisition)
    summed = np.zeros((*frame.shape, len(kernels) * lanes), dtype=np.float32)
    for start in range(0, views, VIEW_CHUNK):
        chunk = slice(start, start + VIEW_CHUNK)
        spectrum = scipy.fft.rfft(projections[chunk], length, axis=1)
        filtered = np.empty((spectrum.shape[0], UPSAMPLING * bins, len(kernels), lanes), dtype=np.float32)
        for index, response in enumerate(responses):
            shaped = scipy.fft.irfft(spectrum * response[None, :, None], fine, axis=1)
            filtered[:, :, index] = shaped[:, : UPSAMPLING * bins] * np.float32(UPSAMPLING)
        add_backprojection(
            summed,
            filtered.reshape(spectrum.shape[0], UPSAMPLING * bins, len(kernels) * lanes),
            angles[chunk],
            float(acquisition.bins_mm()[0]),
            acquisition.sample_mm / UPSAMPLING,
            frame.y_mm,
            frame.x_mm,
        )
    hu = summed * np.float32(np.pi / views / WATER_PER_MM * 1000.0) - np.float32(1000.0)
    images = np.ascontiguousarray(hu.reshape(*frame.shape, len(kernels), lanes).transpose(2, 3, 0, 1))
    for image, kernel in zip(images, kernels, strict=True):
        if kernel.iterative:
            image[:] = shrink_noise(image, frame.pixel_mm, kernel.iterative)
    images[..., np.hypot(frame.y_mm[:, None], frame.x_mm[None]) > acquisition.field_mm / 2 - EDGE_MM] = HU_RANGE[0]
    return images


def digitize(hu: NDArray[np.float32]) -> NDArray[np.float32]:
    """Whole HU within 12 bits, as scanners store them."""
    return np.clip(np.rint(hu), *HU_RANGE).astype(np.float32)
