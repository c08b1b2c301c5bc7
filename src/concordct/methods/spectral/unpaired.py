"""A `SpectralModel` without a pair: from two cohorts of different patients, or from two tables of MTF and NPS.

The ratio of the mean power spectra of many scans in either kernel is the squared transfer, as far as patients, doses
and fields of view are alike on average. What no pair says is where the information ends; it is taken from the source
alone: its kernel has nothing left where its spectrum has sunk to the floor that rounding and clipping leave. Both are
estimates, and the model says how sure the first one is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.methods.spectral.fit import (
    GONE,
    HALF,
    KNOWN,
    PROBE_WIDTH_SHARE,
    RING_COUNT,
    SIGNATURE,
    SIGNATURE_STEP,
    UNKNOWN,
    falls_below,
    from_zero,
)
from concordct.methods.spectral.transfer import Limits, NoiseModel, SpectralModel, noise_level, require_axial
from concordct.signal.body import material_mask
from concordct.signal.signature import SignatureMeter
from concordct.signal.spectra import (
    MM_PER_CM,
    Rings,
    cosine_frequencies,
    detail_from_cosines,
    detail_to_cosines,
    to_cosines,
)
from concordct.volumes.volume import Volume

#: Yields the scans of one cohort, or slabs of them, with a key that says which scan a slab belongs to.
Cohort = Callable[[], Iterable[tuple[str, Volume]]]

#: Anatomy this coarse passes every kernel, lp/cm: spectra are put on one scale by their power here.
ANATOMY_LP_CM = (0.1, 0.6)
#: Scans that a cohort needs before its spread says anything.
FEWEST_SCANS = 2
#: Terms of the smooth transfer: enough for an edge boost and a roll-off.
SMOOTH_TERMS = 7
#: Rounding to whole HU leaves noise of this variance, HU^2 (a uniform error of width 1).
ROUNDING_HU2 = 1 / 12
#: Exponent of the local noise law, which no unpaired data shows; real Siemens pairs gave 0.3 to 0.5.
EXPONENT = 0.4
#: MTF below which a kernel is taken to pass nothing, for tables: the 2 % that CT calls its limit of resolution.
MTF_FLOOR = 0.02


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """Mean log power spectrum of a cohort, [ring] each, its standard error, and its mean power in HU^2."""

    log_power: NDArray[np.float64]
    error: NDArray[np.float64]
    power: NDArray[np.float64]
    scans: int


def fit_unpaired(sources: Cohort, targets: Cohort, *, info: Mapping[str, Any] | None = None) -> SpectralModel:
    """Calibrate from two cohorts of different scans.

    Parameters
    ----------
    sources, targets : scans in either kernel, (scan key, [z, y, x] HU); each is read twice.
    info : JSON that the model carries.

    Returns
    -------
    SpectralModel whose `relative_error` is the standard error of the transfer over scans.

    Raises
    ------
    ConcordctError : fewer than two scans in a cohort, or slices that are not axial.
    """
    first = next((volume for _, volume in sources()), None)
    if first is None:
        raise ConcordctError("expected scans in the source kernel, found none")
    rings = Rings.covering(first.spacing_mm[1:], RING_COUNT)
    meter = SignatureMeter()

    def measured() -> Iterator[tuple[str, Volume]]:
        for key, volume in sources():
            for image in volume.hu[::SIGNATURE_STEP]:
                meter.add(image, spacing_mm=volume.spacing_mm[1:])
            yield key, volume

    a, b = (_mean_spectrum(cohort, rings, name) for cohort, name in ((measured, "source"), (targets, "target")))
    coherence = _coherence_of(a.power)
    half, gone = (falls_below(rings.centres_lp_cm, coherence, at) for at in (HALF, GONE))
    error = 0.5 * np.hypot(a.error, b.error)
    ratio = _smooth_ratio(rings.centres_lp_cm, 0.5 * (b.log_power - a.log_power), error, gone)
    wiener = ratio * coherence * (rings.centres_lp_cm < gone)
    known = rings.centres_lp_cm < half
    model = SpectralModel(
        frequency_lp_cm=np.concatenate([[0.0], rings.centres_lp_cm]),
        transfer=np.stack([from_zero(1.0, wiener), np.zeros(RING_COUNT + 1)]),
        single=from_zero(1.0, wiener),
        slice_spacing_mm=first.spacing_mm[0],
        coherence=from_zero(1.0, coherence),
        noise=None,
        limits=Limits(half, gone, None),
        info={
            **(info or {}),
            "unpaired": True,
            "scans": [a.scans, b.scans],
            "pixel_mm": [round(d, 6) for d in first.spacing_mm[1:]],
            "slice_spacing_mm": first.spacing_mm[0],
            "slice_thickness_mm": first.slice_thickness_mm,
            "transfer_error_median": round(float(np.median(error[known])), 4),
            "transfer_error_largest": round(float(np.max(error[known])), 4),
            SIGNATURE: meter.signature().to_json(),
        },
        relative_error=from_zero(0.0, error),
    )
    return _with_missing_noise(model, sources, targets, rings)


def _mean_spectrum(cohort: Cohort, rings: Rings, name: str) -> _Spectrum:
    sums: dict[str, NDArray[np.float64]] = {}
    cells: dict[str, NDArray[np.float64]] = {}
    for key, volume in cohort():
        require_axial(volume)
        ring = rings.index(cosine_frequencies(volume.shape[1:], volume.spacing_mm[1:]))
        for image in volume.hu:
            sums[key] = sums.get(key, np.zeros(rings.count)) + rings.sum(ring, to_cosines(image) ** 2)
            cells[key] = cells.get(key, np.zeros(rings.count)) + rings.sum(ring, np.ones(ring.size))
    if len(sums) < FEWEST_SCANS:
        raise ConcordctError(f"expected at least {FEWEST_SCANS} scans in the {name} kernel, found {len(sums)}")
    power = np.array([sums[key] / np.maximum(cells[key], 1) for key in sums])
    anatomy = (rings.centres_lp_cm >= ANATOMY_LP_CM[0]) & (rings.centres_lp_cm <= ANATOMY_LP_CM[1])
    logs = np.log(np.maximum(power, 1e-9))
    logs -= logs[:, anatomy].mean(axis=1, keepdims=True)
    return _Spectrum(
        log_power=logs.mean(axis=0),
        error=logs.std(axis=0, ddof=1) / np.sqrt(len(logs)),
        power=power.mean(axis=0),
        scans=len(logs),
    )


def _smooth_ratio(
    frequency_lp_cm: NDArray[np.float64], log_ratio: NDArray[np.float64], error: NDArray[np.float64], gone: float
) -> NDArray[np.float64]:
    """exp of an even polynomial that is 0 at frequency 0: kernels are smooth, the luck of the anatomy is not."""
    inside = frequency_lp_cm < gone
    x = (frequency_lp_cm / max(gone, frequency_lp_cm[0] * 2)) ** 2
    basis = np.stack([x**power for power in range(1, SMOOTH_TERMS + 1)], axis=1)
    weight = 1 / np.hypot(error, 0.01)[inside]
    terms, *_ = np.linalg.lstsq(basis[inside] * weight[:, None], log_ratio[inside] * weight, rcond=None)
    return np.asarray(np.where(inside, np.exp(np.minimum(basis @ terms, 10.0)), 0.0), dtype=np.float64)


def _coherence_of(source_power: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the source's power that its kernel passed: what stands above the floor of its own corner frequencies."""
    corner = np.median(source_power[-RING_COUNT // 10 :])
    floor = max(ROUNDING_HU2, float(min(corner, source_power.min() * 2)))
    return np.clip(1 - floor / np.maximum(source_power, 1e-12), 0, 1)


def _with_missing_noise(model: SpectralModel, sources: Cohort, targets: Cohort, rings: Rings) -> SpectralModel:
    """The target's power where the source has none, inside the body, on the scale of the source's own noise level."""
    missing = np.clip((KNOWN - model.coherence) / (KNOWN - UNKNOWN), 0, 1) * (1 - model.coherence)
    power, cells = np.zeros(rings.count), np.zeros(rings.count)
    for _, volume in targets():
        spacing = volume.spacing_mm[1:]
        frequency = cosine_frequencies(volume.shape[1:], spacing)
        ring = rings.index(frequency)
        band = np.sqrt(np.interp(frequency, model.frequency_lp_cm, missing)).astype(np.float32)
        for image, inside in zip(volume.hu, material_mask(volume.hu, spacing), strict=True):
            lost = detail_from_cosines(to_cosines(image) * band) * inside
            power += rings.sum(ring, detail_to_cosines(lost) ** 2)
            cells += rings.sum(ring, np.full(ring.size, inside.mean()))
    density = power / np.maximum(cells, 1e-12)  # HU^2 for each coefficient
    weight = _coefficients_per_ring(rings, model)
    variance = float(np.sum(density * weight) / weight.sum())
    probe = model.limits.half_lp_cm
    width = max(PROBE_WIDTH_SHARE * probe, rings.width_lp_cm)
    levels = []
    for _, volume in sources():
        spacing = volume.spacing_mm[1:]
        for image, inside in zip(volume.hu, material_mask(volume.hu, spacing), strict=True):
            if inside.any():
                level = noise_level(to_cosines(image), spacing_mm=spacing, probe_lp_cm=probe, probe_width_lp_cm=width)
                levels.append(float(np.median(level[inside])))
    if not levels or variance <= 0:
        return model
    pixel = model.info["pixel_mm"]
    noise = NoiseModel(
        nps_mm2=from_zero(0.0, density / variance * pixel[0] * pixel[1]),
        gain=float(np.sqrt(variance) / max(np.mean(levels), 1e-3)),
        exponent=EXPONENT,
        probe_lp_cm=probe,
        probe_width_lp_cm=width,
        z_correlation=0.0,
    )
    return replace(model, noise=noise)


def _coefficients_per_ring(rings: Rings, model: SpectralModel) -> NDArray[np.float64]:
    """Coefficients in each ring of a square field, up to a factor: rings are cut off at the Nyquist square's sides."""
    frequency = cosine_frequencies((256, 256), (model.info["pixel_mm"][0], model.info["pixel_mm"][1]))
    return rings.sum(rings.index(frequency), np.ones(frequency.size))


def fit_tables(
    frequency_lp_cm: NDArray[np.float64],
    mtf_source: NDArray[np.float64],
    mtf_target: NDArray[np.float64],
    *,
    nps_source_hu2_mm2: NDArray[np.float64] | None = None,
    nps_target_hu2_mm2: NDArray[np.float64] | None = None,
    info: Mapping[str, Any] | None = None,
) -> SpectralModel:
    """Calibrate from measured or published curves.

    Parameters
    ----------
    frequency_lp_cm : [f], ascending from 0.
    mtf_source, mtf_target : [f], modulation transfer functions, 1 at 0.
    nps_source_hu2_mm2, nps_target_hu2_mm2 : [f], noise power at one dose; both or neither. Without them the model
        has no noise part.

    Returns
    -------
    SpectralModel without neighbours and without an error, since tables carry none.

    Raises
    ------
    ConcordctError : curves of different length, frequencies that do not ascend from 0, MTF that is not 1 at 0.
    """
    curves = [mtf_source, mtf_target, *(c for c in (nps_source_hu2_mm2, nps_target_hu2_mm2) if c is not None)]
    if len(frequency_lp_cm) < 3 or any(len(curve) != len(frequency_lp_cm) for curve in curves):
        raise ConcordctError(
            f"expected curves of one length of at least 3, found {len(frequency_lp_cm)} frequencies and "
            f"{[len(curve) for curve in curves]} values"
        )
    if frequency_lp_cm[0] != 0 or np.any(np.diff(frequency_lp_cm) <= 0):
        raise ConcordctError(
            f"expected frequencies that ascend from 0 lp/cm, found {frequency_lp_cm[0]:g} to {frequency_lp_cm[-1]:g}"
        )
    for name, mtf in (("source", mtf_source), ("target", mtf_target)):
        if not np.isclose(mtf[0], 1, atol=0.02) or not np.all(np.isfinite(mtf)) or np.any(mtf < 0):
            raise ConcordctError(f"expected an MTF of 1 at 0 lp/cm and nowhere below 0 in the {name}, found {mtf[0]:g}")
    # Information at a share of 1 : (floor / MTF)^2 against what is taken to be noise below the limit of resolution.
    coherence = mtf_source**2 / (mtf_source**2 + MTF_FLOOR**2)
    half, gone = (falls_below(frequency_lp_cm, coherence, at) for at in (HALF, GONE))
    transfer = np.where(frequency_lp_cm < gone, mtf_target / np.maximum(mtf_source, MTF_FLOOR / 10) * coherence, 0.0)
    transfer[0] = 1.0
    noise = None
    if nps_source_hu2_mm2 is not None and nps_target_hu2_mm2 is not None:
        # Radial integrals over the frequency plane, 1/mm.
        f_mm = frequency_lp_cm / MM_PER_CM
        lost = nps_target_hu2_mm2 * np.clip((KNOWN - coherence) / (KNOWN - UNKNOWN), 0, 1) * (1 - coherence)
        variance = float(np.trapezoid(2 * np.pi * f_mm * lost, f_mm))
        width = PROBE_WIDTH_SHARE * half
        probe = np.exp(-(((frequency_lp_cm - half) / width) ** 2))
        level2 = float(np.trapezoid(2 * np.pi * f_mm * nps_source_hu2_mm2 * probe, f_mm))
        if variance > 0 and level2 > 0:
            noise = NoiseModel(lost / variance, float(np.sqrt(variance / level2)), EXPONENT, half, width, 0.0)
    return SpectralModel.in_plane(
        frequency_lp_cm,
        transfer,
        coherence=coherence,
        noise=noise,
        limits=Limits(half, gone, None),
        info={**(info or {}), "unpaired": True, "tables": True},
    )
