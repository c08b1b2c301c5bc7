"""The scan: from attenuation to noisy raw data, and raw data to parallel projections.

Fan beam: a point focus on a circle, equiangular channels with a quarter-channel offset, one full turn; opposite rays
are interleaved when the data are rebinned to parallel beams, which halves the sampling pitch (Kak and Slaney,
Principles of Computerized Tomographic Imaging, 1988, ch. 3). Parallel beam: half a turn at that halved pitch. Each
detector row is a
plane of its own (the cone angle is left out).

The detector's aperture and the focal spot blur every projection by the same H(f), whichever its angle; by the
projection slice theorem that is one radial filter on the object, applied before it is projected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.scanner.frame import Frame
from concordct.scanner.projector import line_integrals
from concordct.scanner.spectrum import BONE_HU, correct_water, harden
from concordct.signal.compiled import compiled

#: Linear attenuation of water at 70 keV, about the effective energy of 120 kVp behind a patient, per mm (NIST XCOM).
WATER_PER_MM = 0.01929
#: Photons per mAs and mm2 at the isocentre behind the bow-tie filter at 120 kVp; representative (a tungsten tube with
#: about 7 mm of aluminium gives 2 to 4e6 at 1 m), set so that a 20 cm water cylinder shows the noise of a body scanner.
PHOTONS_PER_MAS_MM2 = 3.0e6
#: Output rises with about this power of the tube voltage.
KVP_EXPONENT = 2.6

GEOMETRIES = ("fan", "parallel")


@dataclass(frozen=True)
class Acquisition:
    """How raw data are taken.

    Attributes
    ----------
    geometry : "fan" or "parallel".
    kvp : tube voltage, kV.
    mas : tube current times rotation time, mAs.
    views : views in a full turn; a parallel scan takes half of them.
    channel_mm : channel pitch at the isocentre, mm.
    field_mm : diameter of the measured field, mm.
    focal_spot_mm : width of the focal spot, mm.
    row_mm : detector row at the isocentre, mm; the thinnest slice.
    electronic_noise : standard deviation of the read-out, in photons.
    beam_hardening : a polychromatic beam with the usual correction for water; False is one energy.
    source_mm, detector_mm : focus to isocentre and focus to detector, mm.
    """

    geometry: str = "fan"
    kvp: float = 120.0
    mas: float = 100.0
    views: int = 984
    channel_mm: float = 0.6
    field_mm: float = 500.0
    focal_spot_mm: float = 0.9
    row_mm: float = 0.625
    electronic_noise: float = 10.0
    beam_hardening: bool = False
    source_mm: float = 595.0
    detector_mm: float = 1085.6

    def __post_init__(self) -> None:
        if self.geometry not in GEOMETRIES:
            raise ConcordctError(f"unknown geometry {self.geometry!r}; known are {', '.join(GEOMETRIES)}")
        for name, low, high, unit in (
            ("kvp", 70, 150, "kV"),
            ("mas", 1, 2000, "mAs"),
            ("views", 90, 4800, "views"),
            ("channel_mm", 0.1, 5, "mm"),
            ("field_mm", 20, 800, "mm"),
            ("focal_spot_mm", 0, 3, "mm"),
            ("row_mm", 0.1, 10, "mm"),
            ("electronic_noise", 0, 1000, "photons"),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConcordctError(f"{name} = {value} {unit} lies outside the allowed {low} to {high} {unit}")

    @property
    def sample_mm(self) -> float:
        """Distance between parallel rays at the isocentre, mm."""
        return self.channel_mm / 2

    @property
    def nyquist_lp_cm(self) -> float:
        """Highest frequency that the raw data carry, lp/cm."""
        return 5.0 / self.sample_mm

    @property
    def photons(self) -> float:
        """Photons per channel, row and view without a patient."""
        area = self.channel_mm * self.row_mm
        output = PHOTONS_PER_MAS_MM2 * (self.kvp / 120.0) ** KVP_EXPONENT
        return output * area * self.mas / self.views

    def geometric_mtf(self, f_lp_cm: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Blur of detector aperture and focal spot at the isocentre, H(f)."""
        f = np.asarray(f_lp_cm) / 10.0  # cycles per mm
        magnification = self.detector_mm / self.source_mm
        focus = self.focal_spot_mm * (magnification - 1.0) / magnification
        return np.sinc(f * self.channel_mm) * np.sinc(f * focus)

    def bins_mm(self) -> NDArray[np.floating[Any]]:
        """[bin] positions of the parallel rays that reconstruction reads, mm."""
        half = int(self.field_mm / 2 / self.sample_mm)
        return (np.arange(2 * half) - half + 0.5) * self.sample_mm


def channel_angles(acquisition: Acquisition) -> NDArray[np.floating[Any]]:
    """[channel] fan angles with the quarter-channel offset, radians."""
    pitch = acquisition.channel_mm / acquisition.source_mm
    half = math.ceil(math.asin(acquisition.field_mm / 2 / acquisition.source_mm) / pitch) + 4
    return (np.arange(2 * half) - half + 0.25) * pitch


def view_angles(acquisition: Acquisition) -> NDArray[np.floating[Any]]:
    """[view] angles of the focus (fan) or of the rays' normal (parallel), radians."""
    if acquisition.geometry == "fan":
        return np.arange(acquisition.views) * (2 * np.pi / acquisition.views)
    return parallel_angles(acquisition)


def parallel_angles(acquisition: Acquisition) -> NDArray[np.floating[Any]]:
    """[view] angles of the parallel projections, half a view off the axes, where rays would run along the lattice."""
    count = acquisition.views // 2
    return (np.arange(count) + 0.5) * (np.pi / count)


def ray_coordinates(acquisition: Acquisition) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """(theta, t), each [view, channel]: a ray is the line x cos(theta) + y sin(theta) = t, mm."""
    angles = view_angles(acquisition)
    if acquisition.geometry == "fan":
        gamma = channel_angles(acquisition)
        theta = angles[:, None] - gamma[None]
        return theta, np.broadcast_to(acquisition.source_mm * np.sin(gamma), theta.shape)
    theta, t = np.meshgrid(angles, acquisition.bins_mm(), indexing="ij")
    return theta, t


def blur_object(attenuation: NDArray[np.float32], pixel_mm: float, acquisition: Acquisition) -> NDArray[np.float32]:
    """The object [lane, y, x] as apertures and focal spot see it: one radial filter."""
    shape = attenuation.shape[1:]
    fy = np.fft.fftfreq(shape[0], pixel_mm / 10.0)[:, None]
    fx = np.fft.rfftfreq(shape[1], pixel_mm / 10.0)[None]
    response = acquisition.geometric_mtf(np.hypot(fy, fx)).astype(np.float32)
    return np.stack([np.fft.irfft2(np.fft.rfft2(plane) * response, shape).astype(np.float32) for plane in attenuation])


def project(hu: NDArray[np.float32], frame: Frame, acquisition: Acquisition) -> NDArray[np.float32]:
    """Noise-free line integrals of HU planes.

    Parameters
    ----------
    hu : [row, y, x] on `frame`.

    Returns
    -------
    [view, channel, row] float32.
    """
    attenuation = np.maximum(1.0 + hu * np.float32(1e-3), 0.0) * np.float32(WATER_PER_MM)
    if not acquisition.beam_hardening:
        return _integrate(attenuation, frame, acquisition)
    bone = np.maximum(hu - np.float32(BONE_HU), 0.0) * np.float32(1e-3 * WATER_PER_MM)
    both = _integrate(np.concatenate([attenuation - bone, bone]), frame, acquisition)
    return harden(both[..., : hu.shape[0]], both[..., hu.shape[0] :], acquisition.kvp)


def _integrate(attenuation: NDArray[np.float32], frame: Frame, acquisition: Acquisition) -> NDArray[np.float32]:
    blurred = blur_object(attenuation, frame.pixel_mm, acquisition)
    theta, t = ray_coordinates(acquisition)
    reach = math.hypot(frame.shape[0], frame.shape[1]) * frame.pixel_mm / 2 + math.hypot(*frame.centre_mm)
    met = np.abs(t) <= reach
    cosine, sine = np.cos(theta[met]), np.sin(theta[met])
    integrals = np.zeros((*theta.shape, attenuation.shape[0]), dtype=np.float32)
    integrals[met] = line_integrals(
        np.ascontiguousarray(blurred.transpose(1, 2, 0)),
        frame.pixel_mm,
        frame.centre_mm,
        (t[met] * sine, t[met] * cosine),
        (cosine, -sine),
    )
    return integrals


def detect(
    integrals: NDArray[np.float32], acquisition: Acquisition, generators: list[np.random.Generator]
) -> NDArray[np.float32]:
    """Raw data after the logarithm: Poisson photons plus electronic noise.

    Parameters
    ----------
    integrals : [view, channel, row] noise-free line integrals.
    generators : one per row, so that a row's noise does not depend on its company.

    Returns
    -------
    [view, channel, row] float32.
    """
    raw = np.empty_like(integrals)
    for row, generator in enumerate(generators):
        expected = acquisition.photons * np.exp(-integrals[..., row].astype(np.float64))
        counts = generator.poisson(expected) + acquisition.electronic_noise * generator.standard_normal(expected.shape)
        raw[..., row] = np.log(acquisition.photons / np.maximum(counts, 1.0))
    return correct_water(raw, acquisition.kvp, WATER_PER_MM) if acquisition.beam_hardening else raw


@compiled
def _rebin(
    raw: NDArray[np.float32],
    first_gamma: float,
    gamma_pitch: float,
    source_mm: float,
    bins_mm: NDArray[np.floating[Any]],
    parallel: NDArray[np.float32],
) -> None:
    views, channels, lanes = raw.shape
    merged = np.zeros((2 * channels, lanes), dtype=np.float32)
    for it in range(parallel.shape[0]):
        theta = (it + 0.5) * np.pi / parallel.shape[0]
        # With the quarter offset channel i lies at index 2i - 1 of a lattice of half the pitch; opposites are mirrored.
        for channel in range(channels):
            gamma = first_gamma + channel * gamma_pitch
            for opposite in range(2):
                view = (theta + gamma + opposite * np.pi) / (2 * np.pi) * views
                low = int(np.floor(view))
                w = np.float32(view - low)
                a, b = low % views, (low + 1) % views
                place = 2 * channel - 1 if opposite == 0 else 2 * (channels - 1 - channel)
                if place < 0:
                    continue
                for lane in range(lanes):
                    merged[place, lane] = (np.float32(1.0) - w) * raw[a, channel, lane] + w * raw[b, channel, lane]
        # The mirrored channels lie at -gamma: the first of them at -(first_gamma + (channels - 1) pitch).
        origin = -(first_gamma + (channels - 1) * gamma_pitch)
        for ib in range(bins_mm.size):
            position = (np.arcsin(bins_mm[ib] / source_mm) - origin) / (gamma_pitch / 2)
            low = int(np.floor(position))
            u = position - low
            # Six-point Lagrange interpolation: flat to 0.35 cycles per sample within 2%.
            w0 = np.float32(-u * (u - 1) * (u - 2) * (u - 3) * (u + 1) / 120)
            w1 = np.float32(u * (u - 1) * (u - 2) * (u - 3) * (u + 2) / 24)
            w2 = np.float32(-(u + 2) * (u + 1) * (u - 1) * (u - 2) * (u - 3) / 12)
            w3 = np.float32((u + 2) * (u + 1) * u * (u - 2) * (u - 3) / 12)
            w4 = np.float32(-(u + 2) * (u + 1) * u * (u - 1) * (u - 3) / 24)
            w5 = np.float32((u + 2) * (u + 1) * u * (u - 1) * (u - 2) / 120)
            for lane in range(lanes):
                parallel[it, ib, lane] = (
                    w0 * merged[low - 2, lane]
                    + w1 * merged[low - 1, lane]
                    + w2 * merged[low, lane]
                    + w3 * merged[low + 1, lane]
                    + w4 * merged[low + 2, lane]
                    + w5 * merged[low + 3, lane]
                )


def to_parallel(raw: NDArray[np.float32], acquisition: Acquisition) -> NDArray[np.float32]:
    """Fan data [view, channel, lane] as parallel projections [view, bin, lane] over half a turn."""
    if acquisition.geometry == "parallel":
        return raw
    bins = acquisition.bins_mm()
    gamma = channel_angles(acquisition)
    parallel = np.zeros((acquisition.views // 2, bins.size, raw.shape[2]), dtype=np.float32)
    _rebin(
        np.ascontiguousarray(raw), float(gamma[0]), float(gamma[1] - gamma[0]), acquisition.source_mm, bins, parallel
    )
    return parallel
