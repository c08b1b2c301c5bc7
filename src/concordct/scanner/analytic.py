"""Raw data of discs without any drawing: the wires, edges and inserts that the scanner is measured with.

A disc's projection is known in closed form, and so is its spectrum, r J1(2 pi r f) / f; the blur of aperture and focal
spot multiplies it. What is measured on such data is the scanner alone, free of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import j1

from concordct.scanner.acquisition import WATER_PER_MM, Acquisition, ray_coordinates

#: Step and half width beyond the disc of the tabulated profile, mm.
TABLE_STEP_MM, TABLE_MARGIN_MM = 0.02, 6.0
#: Frequencies up to here make up the profile, cycles per mm; aperture and focal spot leave nothing beyond.
HIGHEST_PER_MM = 8.0


@dataclass(frozen=True)
class Disc:
    """A disc that adds `hu` (relative to water's attenuation: 1000 is water) to what lies under it."""

    y_mm: float
    x_mm: float
    radius_mm: float
    hu: float


def disc_profile(radius_mm: float, acquisition: Acquisition) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(distance, length): chord lengths of a disc at distances from its centre, blurred by the geometry, both mm."""
    s = np.arange(0.0, radius_mm + TABLE_MARGIN_MM, TABLE_STEP_MM)
    exact = 2.0 * np.sqrt(np.maximum(radius_mm**2 - s**2, 0.0))
    if radius_mm > 20 * TABLE_MARGIN_MM:
        return s, exact
    # Midpoints, so that the removable singularity at 0 is never met; fine enough for the profile not to repeat.
    step = 1.0 / (4.0 * (radius_mm + TABLE_MARGIN_MM))
    f = np.arange(step / 2, HIGHEST_PER_MM, step)
    spectrum = radius_mm * j1(2 * np.pi * radius_mm * f) / f * acquisition.geometric_mtf(f * 10.0)
    profile = np.empty_like(s)
    for start in range(0, s.size, 512):
        part = s[start : start + 512]
        profile[start : start + 512] = 2.0 * step * (np.cos(2 * np.pi * part[:, None] * f) @ spectrum)
    return s, profile


def disc_projections(discs: Sequence[Disc], acquisition: Acquisition) -> NDArray[np.float32]:
    """Noise-free line integrals [view, channel, 1] of a sum of discs in air."""
    theta, t = ray_coordinates(acquisition)
    total = np.zeros(theta.shape)
    for disc in discs:
        s, profile = disc_profile(disc.radius_mm, acquisition)
        distance = np.abs(t - disc.x_mm * np.cos(theta) - disc.y_mm * np.sin(theta))
        total += np.interp(distance, s, profile, right=0.0) * (disc.hu / 1000.0 * WATER_PER_MM)
    return total[..., None].astype(np.float32)
