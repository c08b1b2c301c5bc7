"""The texture of the target from that of the source: the least change with the right power.

Wiener's transfer H gives the least error and too little power: a share gamma^2 of the target's. Adding independent
noise for the rest puts the power right and keeps a correlation of gamma^2 with the target. Raising H to

    F = sqrt(S_tt / S_ss) = H / gamma

puts it right, too, from the source's own noise, and keeps a correlation of gamma: between Gaussians it is the optimal
transport, the least error among all outputs with the target's spectrum (Freirich, Michaeli and Meir 2021,
arXiv:2107.02555). Only where nothing of the target is left in the source is noise drawn. Spectra are those of tissue:
the images over their local noise level, cut at a few deviations, so that edges do not count as texture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.features.body import material_mask
from concordct.features.spectra import Rings, cosine_frequencies, from_cosines, to_cosines
from concordct.methods.self_check import source_signature
from concordct.methods.spectral import SpectralModel, SpectralStandardizer
from concordct.methods.spectral_fit import KNOWN, RESIDUAL_CUT, RING_COUNT, UNKNOWN, Pairs, from_zero
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import AIR_HU

#: Coherence of tissue above which the source's own noise is raised to the target's power, and below which it is left as
#: the transfer gives it and noise is drawn.
RAISED, DRAWN = 0.30, 0.15
#: Where edges say that the scan knows and tissue says that noise is missing, nothing is raised (edges would be, too)
#: and noise is drawn, if more than this share of the target's power is missing; between these frequencies, lp/cm, the
#: rule fades in, since below them anatomy is all there is.
LEAST_MISSING = 0.03
NOISE_FROM_LP_CM, NOISE_FULLY_LP_CM = 0.5, 1.5
#: A median absolute deviation times this is the standard deviation of Gaussian noise.
GAUSSIAN_MAD = 1.4826


@dataclass(frozen=True, eq=False)
class Transport:
    """What a calibration says about texture, on the frequencies of its `SpectralModel`.

    Attributes
    ----------
    free : [f], share of a frequency that may be written: 0 where the scan knows (coherence 0.99), 1 from 0.90 down.
    gain : [f], what the transfer is multiplied by. coherence : [f], of tissue, in power, 0 to 1.
    power_mm2 : [f], spectrum of the target's texture for a local deviation of 1 HU.
    drawn_mm2 : [f], what of it has to be drawn. added_mm2 : [f], noise to add where nothing may be written, since the
        source's noise was shrunk there (iterative reconstruction) or the target's grew (aliasing).
    scale : standard deviation of the target's texture in units of the local deviation.
    """

    free: NDArray[np.float64]
    gain: NDArray[np.float64]
    coherence: NDArray[np.float64]
    power_mm2: NDArray[np.float64]
    drawn_mm2: NDArray[np.float64]
    added_mm2: NDArray[np.float64]
    scale: float

    def to_tensors(self) -> dict[str, NDArray[np.float64]]:
        """Arrays by name."""
        return {one.name: np.atleast_1d(np.asarray(getattr(self, one.name), np.float64)) for one in fields(self)}

    @staticmethod
    def from_tensors(tensors: Mapping[str, NDArray[np.float64]]) -> Transport:
        """The inverse of `to_tensors`."""
        try:
            found = {one.name: np.asarray(tensors[one.name], np.float64) for one in fields(Transport)}
        except KeyError as error:
            raise ConcordctError(f"expected a whole transport, found one without {error}") from error
        scale = found.pop("scale")
        sizes = {one.shape for one in found.values()}
        if not all(np.isfinite(one).all() for one in (*found.values(), scale)) or scale.shape != (1,) or scale[0] <= 0:
            raise ConcordctError("expected a transport of finite numbers, found others")
        if len(sizes) > 1:
            raise ConcordctError(f"expected transport curves of one length, found {sorted(sizes)}")
        return Transport(**found, scale=float(scale[0]))


def fit_transport(model: SpectralModel, pairs: Pairs) -> Transport | None:
    """Measure texture on the pairs that `model` was calibrated on; None where the model has no noise part.

    Parameters
    ----------
    pairs : as for `fit_pairs`.
    """
    if model.noise is None:
        return None
    spectral = SpectralStandardizer(model, "mean")
    free = np.clip((KNOWN - model.coherence) / (KNOWN - UNKNOWN), 0, 1)
    free[0] = 0.0
    sums = np.zeros((4, RING_COUNT))  # transferred source, target, both, coefficients
    whole = np.zeros((2, RING_COUNT))  # the first two without `free`
    rings: Rings | None = None
    for source, target in pairs():
        spacing = source.spacing_mm[1:]
        rings = rings or Rings.covering(spacing, RING_COUNT)
        frequency = cosine_frequencies(source.shape[1:], spacing)
        ring = rings.index(frequency)
        share = np.interp(frequency, model.frequency_lp_cm, free, right=0.0).astype(np.float32)
        no_anatomy = _fade(frequency).astype(np.float32)
        base = spectral(source, generator=SliceSeeds(0, ""))
        for index in range(source.shape[0]):
            body = material_mask(source.hu[index : index + 1], spacing)[0]
            if not body.any():
                continue
            deviation = spectral.deviation(to_cosines(source.hu[index]), source, index)
            deviation = np.maximum(deviation, np.float32(1e-3))
            area = spacing[0] * spacing[1]
            both = [to_cosines(image) for image in (base.hu[index], target.hu[index])]
            # The transport compares each with its own noise.
            a, b = (tissue(from_cosines(one * share) / deviation, body) for one in both)
            for row, values in enumerate((a * a, b * b, a * b)):
                sums[row] += rings.sum(ring, values) * area
            # Missing power is a difference, so both are cut alike.
            made, true = (from_cosines(one * no_anatomy) / deviation for one in both)
            limit = _cut(true, body)
            for row, one in enumerate((made, true)):
                whole[row] += rings.sum(ring, tissue(one, body, limit) ** 2) * area
            sums[3] += rings.sum(ring, np.full(ring.size, body.mean()))
    if rings is None or not sums[1].any():
        return None
    aa, bb, ab = (ndimage.median_filter(one / np.maximum(sums[3], 1e-12), 5, mode="nearest") for one in sums[:3])
    coherence = np.clip(ab, 0, None) ** 2 / np.maximum(aa * bb, 1e-12)
    raised = np.clip((coherence - DRAWN) / (RAISED - DRAWN), 0, 1) * free[1:] * (model.single[1:] > 0)
    gain = 1 + raised * (np.clip(np.sqrt(bb / np.maximum(aa, 1e-12)), 0.5, DRAWN**-0.5) - 1)
    # The squares of `free` are in bb already.
    drawn = np.maximum(bb - gain**2 * aa, 0)
    added = _missing(whole / np.maximum(sums[3], 1e-12), 1 - free[1:] + free[1:] * gain, drawn, rings)
    signature = source_signature(model)
    if signature is not None and signature.noise_hu2_mm2 is None:
        # No quiet patch, as in a hollow phantom: what looks like texture is edges, and is served as `spectral` does.
        gain, drawn, added = np.ones_like(gain), model.noise.nps_mm2[1:], np.zeros_like(added)
    variance = float((bb * sums[3]).sum() / max(sums[3].sum(), 1e-12)) / _area(rings)
    return Transport(
        free=free,
        gain=from_zero(1.0, gain),
        coherence=from_zero(1.0, np.clip(coherence, 0, 1)),
        power_mm2=from_zero(0.0, bb),
        drawn_mm2=from_zero(0.0, drawn),
        added_mm2=from_zero(0.0, added),
        scale=float(np.sqrt(max(variance, 1e-12))),
    )


def _fade(frequency: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.clip((frequency - NOISE_FROM_LP_CM) / (NOISE_FULLY_LP_CM - NOISE_FROM_LP_CM), 0, 1)


def _missing(
    powers: NDArray[np.float64], factor: NDArray[np.float64], drawn: NDArray[np.float64], rings: Rings
) -> NDArray[np.float64]:
    """[ring] power of the target's tissue that transferred, raised and drawn texture together lack.

    Parameters
    ----------
    powers : [2, ring], transferred source and target, of all frequencies. factor : [ring], of the transport.
    """
    aa, bb = (ndimage.median_filter(one, 9, mode="nearest") for one in powers)
    lacking = np.maximum((1 - LEAST_MISSING) * bb - factor**2 * aa - drawn, 0)
    return np.asarray(_fade(rings.centres_lp_cm) * lacking, dtype=np.float64)


def _area(rings: Rings) -> float:
    """Area of a pixel behind rings out to the corner of its Nyquist square, mm2, for square pixels."""
    corner = rings.width_lp_cm * rings.count
    return float((10.0 / np.sqrt(2) / corner) ** 2)


def tissue(
    unit: NDArray[np.floating], body: NDArray[np.bool_], limit: np.floating | None = None
) -> NDArray[np.float32]:
    """Cosine coefficients [y, x] of texture inside the body, cut at a limit, or at some of its own deviations."""
    limit = _cut(unit, body) if limit is None else limit
    cut = np.clip(unit, -limit, limit) * body
    return to_cosines((cut + np.float32(AIR_HU)).astype(np.float32))


def _cut(unit: NDArray[np.floating], body: NDArray[np.bool_]) -> np.floating:
    return np.float32(RESIDUAL_CUT * (GAUSSIAN_MAD * np.median(np.abs(unit[body])) + 1e-6))
