"""A transport at work on a slice: its curves on the coefficients, and texture in units of its level."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from concordct.methods.concord.texture_level import (
    LATTICE,
    LEAST_LEVEL_HU,
    LevelLaw,
    band_above,
    best_law,
    level_of,
    plane,
)
from concordct.methods.concord.transport import Transport
from concordct.methods.spectral.transfer import SpectralModel, SpectralStandardizer
from concordct.signal.body import material_mask
from concordct.signal.spectra import MM_PER_CM, cosine_frequencies, detail_from_cosines, detail_to_cosines, to_cosines
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

#: Texture is amplified as it is up to this many levels, so that noise grows and edges stay.
RAISE_LIMIT = 3.0
#: Pixels wider than the calibrated ones by more than this factor fold noise back that calibration saw elsewhere.
WIDER = 1.02


@dataclass(frozen=True, eq=False)
class PreparedSlice:
    """One slice, transported.

    Attributes
    ----------
    base : [y, x], the slice through the calibrated transfer, HU.
    raised : [y, x] cosine coefficients of what texture is raised by in the bands that may be written, in units of
        `level`.
    level : [y, x], standard deviation expected of the target's texture, HU.
    inside : [y, x] bool, the body.
    """

    base: NDArray[np.float32]
    raised: NDArray[np.float32]
    level: NDArray[np.float32]
    inside: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Curves:
    """A transport on the lattice of a slice's cosine coefficients, each [y, x].

    Attributes
    ----------
    free, gain : as in `Transport`.
    drawn : root mean square coefficient of the noise to draw, in units of the level.
    in_all : the same with the noise that is added where nothing may be written.
    law : of the level, for pixels of this size.
    """

    free: NDArray[np.float32]
    gain: NDArray[np.float32]
    drawn: NDArray[np.float32]
    in_all: NDArray[np.float32]
    law: LevelLaw


@lru_cache(maxsize=2)
def curves(
    model: SpectralModel, transport: Transport, shape: tuple[int, int], spacing_mm: tuple[float, float]
) -> Curves:
    """The calibrated curves at every coefficient of a slice."""
    frequency = cosine_frequencies(shape, spacing_mm)

    def on_grid(curve: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.interp(frequency, model.frequency_lp_cm, curve, right=0.0).astype(np.float32)

    unit = 1.0 / (transport.scale**2 * spacing_mm[0] * spacing_mm[1])
    in_all = on_grid((transport.drawn_mm2 + transport.added_mm2) * unit)
    if _wider(model, spacing_mm):
        axes = tuple(np.arange(n) / (2 * n * d) * MM_PER_CM for n, d in zip(shape, spacing_mm, strict=True))
        target = _folded(transport.target_mm2, model, axes, spacing_mm)
        source = _folded(transport.source_mm2, model, axes, spacing_mm)
        passed = on_grid(transport.factor * model.single) ** 2
        in_all += np.float32(unit) * np.maximum(target - passed * source, 0)
    return Curves(
        on_grid(transport.free),
        on_grid(transport.gain),
        np.sqrt(on_grid(transport.drawn_mm2 * unit)),
        np.sqrt(np.maximum(in_all, 0)).astype(np.float32),
        _law(model, transport, spacing_mm),
    )


def _wider(model: SpectralModel, spacing_mm: tuple[float, float]) -> bool:
    calibrated = model.info.get("pixel_mm")
    return calibrated is not None and any(d > WIDER * c for d, c in zip(spacing_mm, calibrated, strict=True))


def _folded(
    power_mm2: NDArray[np.float64],
    model: SpectralModel,
    axes: tuple[NDArray[np.float64], ...],
    spacing_mm: tuple[float, float],
) -> NDArray[np.float32]:
    """[y, x] power that pixels wider than the calibrated ones fold back from beyond their Nyquist frequency.

    Sampling at d repeats a spectrum at multiples of 1 / d and keeps its variance. The power is known inside the
    calibrated pixels' Nyquist square.

    Parameters
    ----------
    axes : frequencies along y and x, lp/cm.
    """
    calibrated = model.info["pixel_mm"]
    found = np.zeros((axes[0].size, axes[1].size), np.float32)
    for shift in ((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x):
        fy, fx = (np.abs(f + k * MM_PER_CM / d) for f, k, d in zip(axes, shift, spacing_mm, strict=True))
        inside = (fy <= MM_PER_CM / (2 * calibrated[0]))[:, None] & (fx <= MM_PER_CM / (2 * calibrated[1]))[None]
        if inside.any():
            frequency = np.hypot(fy[:, None], fx[None])
            found += inside * np.interp(frequency, model.frequency_lp_cm, power_mm2, right=0.0).astype(np.float32)
    return found


def _law(model: SpectralModel, transport: Transport, spacing_mm: tuple[float, float]) -> LevelLaw:
    """The law of the level for pixels of this size: their band holds another share of the source's noise."""
    law = best_law(transport.laws, spacing_mm)
    calibrated = model.info.get("pixel_mm")
    if calibrated is None or np.allclose(calibrated, spacing_mm, rtol=WIDER - 1):
        return law
    variances = []
    for pixel in (tuple(calibrated), spacing_mm):
        frequency = plane(pixel)
        passed = np.interp(frequency, model.frequency_lp_cm, model.single, right=0.0)
        noise = np.interp(frequency, model.frequency_lp_cm, transport.source_mm2, right=0.0)
        if _wider(model, pixel):
            axes = tuple(np.linspace(0, MM_PER_CM / (2 * d), LATTICE) for d in pixel)
            noise = noise + _folded(transport.source_mm2, model, axes, pixel)
        band = band_above(frequency, law.from_lp_cm)
        variances.append(float(np.mean((passed * band) ** 2 * noise)) / (pixel[0] * pixel[1]))
    if min(variances) <= 0:
        return law
    return replace(law, offset=law.offset + 0.5 * math.log(variances[0] / variances[1]))


def prepare(spectral: SpectralStandardizer, transport: Transport, on: Curves, volume: Volume) -> list[PreparedSlice]:
    """Every slice of a volume or slab.

    Parameters
    ----------
    spectral : the base at work, in mode "mean", with a model that has a noise part.
    on : `curves` for this shape and spacing.
    """
    base = spectral(volume, generator=SliceSeeds(0, ""))
    spacing = volume.spacing_mm[1:]
    may_write, raising = on.free > 0, on.free * (on.gain - 1)
    found = []
    for image, made in zip(volume.hu, base.hu, strict=True):
        inside = material_mask(image[None], spacing)[0]
        coefficients = to_cosines(made)
        level = level_of(coefficients, inside, on.law, spacing_mm=spacing) * np.float32(transport.scale)
        level = np.maximum(level, np.float32(LEAST_LEVEL_HU))
        small = np.clip(detail_from_cosines(coefficients * may_write) / level, -RAISE_LIMIT, RAISE_LIMIT)
        found.append(PreparedSlice(made, detail_to_cosines(small) * raising, level, inside))
    return found
