"""Reconstruction by scikit-image and ASTRA, for the time beside ours."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from concordct.scanner.acquisition import WATER_PER_MM, Acquisition, parallel_angles
from concordct.scanner.frame import Frame
from concordct.scanner.projector import line_integrals


def skimage_seconds(plane: NDArray[np.float32], frame: Frame, acquisition: Acquisition) -> dict[str, float]:
    """Processor seconds of scikit-image for two kernels of one slice."""
    from skimage.transform import iradon, radon, resize

    image = np.maximum(resize(plane, frame.shape, order=1, preserve_range=True) + 1000.0, 0.0)
    angles = np.arange(acquisition.views // 2) * 180.0 / (acquisition.views // 2)
    begun = time.process_time()
    sinogram = radon(image, angles, circle=False)
    iradon(sinogram, angles, output_size=frame.shape[0], circle=False)
    iradon(sinogram, angles, output_size=frame.shape[0], circle=False, filter_name="hann")
    return {"skimage": time.process_time() - begun}


def astra_seconds(plane: NDArray[np.float32], fine: Frame, frame: Frame, acquisition: Acquisition) -> dict[str, float]:
    """Processor seconds of ASTRA, forth and back, and how far our line integrals are from its; nothing without it."""
    try:
        import astra
    except ImportError:
        return {}
    bins = acquisition.bins_mm()
    angles = parallel_angles(acquisition)
    image = (np.maximum(plane + 1000.0, 0.0) * 1e-3 * WATER_PER_MM).astype(np.float32)
    half_y, half_x = (n * fine.pixel_mm / 2 for n in fine.shape)
    volume = astra.create_vol_geom(*fine.shape, -half_x, half_x, -half_y, half_y)
    # astra's y axis points up and its angle turns the detector, so that t = x cos + y sin needs the rows reversed.
    geometry = astra.create_proj_geom("parallel", acquisition.sample_mm, bins.size, angles)
    projector = astra.create_projector("linear", geometry, volume)
    begun = time.process_time()
    identifier, theirs = astra.create_sino(np.ascontiguousarray(image[::-1]), projector)
    forward = time.process_time() - begun
    begun = time.process_time()
    astra.create_backprojection(theirs, projector)
    back = time.process_time() - begun
    astra.data2d.delete(identifier)
    theta, t = np.meshgrid(angles, bins, indexing="ij")
    cosine, sine = np.cos(theta).ravel(), np.sin(theta).ravel()
    ours = line_integrals(
        image[..., None], fine.pixel_mm, fine.centre_mm, (t.ravel() * sine, t.ravel() * cosine), (cosine, -sine)
    ).reshape(theta.shape)
    return {
        "astra_forward": forward,
        "astra_back": back,
        "astra_difference": float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
    }
