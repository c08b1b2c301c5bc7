"""A model to a reference, corrected by what its own results show.

A patch of 12 mm blurs the spectrum that it is measured in, so that a kernel which passes little at high frequencies
seems to pass more, and the gain that follows is too low there. A result at the reference has the reference's spectrum,
blurred alike: what is left between the two corrects the gain, as long as it gets less. The noise that is drawn follows
the local level of the whole body; how much of it arrives in quiet tissue, where the reference was measured, is seen on
a result, too.

    model = bring(load_reference("soft"), slices)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from concordct.methods.spectral.reference import (
    FREQUENCY_LP_CM,
    KNOWN,
    NOISE_FROM_LP_CM,
    NOISE_TO_NYQUIST,
    Condition,
    Reference,
    amplitude_over,
    gain_between,
    measure,
    model_to,
)
from concordct.methods.spectral.transfer import SpectralModel, SpectralStandardizer
from concordct.methods.standardizer import Mode
from concordct.signal.signature import Signature, SignatureMeter, ring_centres_lp_cm
from concordct.signal.spectra import MM_PER_CM
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

#: Rounds of correcting the gain at most, and slices that are looked at.
ROUNDS, SLICES = 2, 5
#: Results show noise closer to the pixels' end than scans, whose rounding lies there.
TO_NYQUIST = 0.95
#: Edges and noise disagree by more than this, in ln: the reconstruction is no linear kernel.
DISAGREED = 0.1
#: Noise is lacking in a ring that holds less than this share of what is wanted.
LACKING = 0.9
#: Drawn noise is corrected by at most this factor of variance: where anatomy is loud and tissue quiet, as in a phantom
#: almost without noise, the level of the body is many times that of tissue.
MOST = 100.0

Rings = NDArray[np.float64]


def bring(reference: Reference, slices: Iterable[Volume]) -> SpectralModel:
    """What leads from a scan to a reference, measured on some of its slices and corrected on their results.

    Raises
    ------
    ConcordctError : no surface between material and air that could be used.
    """
    volumes = list(slices)
    condition = measure(volumes)
    model = model_to(reference, condition)
    chosen = volumes[:: max(1, -(-len(volumes) // SLICES))]
    best = _corrected(reference, condition, model, chosen)
    if best is None:
        return model
    correction, shown = best
    model = model_to(reference, condition, correction=correction)
    louder = _louder(shown, reference, model)
    model = model_to(reference, condition, correction=correction, louder=louder)
    drawn = _drawn(model, reference, shown, chosen)
    return model_to(reference, condition, correction=correction, louder=louder, drawn=drawn)


def _corrected(
    reference: Reference, condition: Condition, model: SpectralModel, slices: Sequence[Volume]
) -> tuple[NDArray[np.float64], Signature] | None:
    """The gain's correction that leaves least, and what its results show; None where they show too little."""
    correction, best, least = np.zeros_like(FREQUENCY_LP_CM), None, np.inf
    blur = float(model.info["surface_blur_cm2"] or 0.0)
    disagreed = (model.info["edges_against_noise"] or 0.0) > DISAGREED
    for _ in range(ROUNDS + 1):
        shown = _shown(model, slices, "mean")
        if shown.edge is None or shown.noise_hu2_mm2 is None:
            break
        louder = _louder(shown, reference, model)
        if louder is None:
            break
        left = gain_between(shown, reference, noise_to_nyquist=TO_NYQUIST, blur_cm2=blur).log_gain
        known = (model.coherence > KNOWN) & (NOISE_TO_NYQUIST * MM_PER_CM / (2 * shown.pixel_mm) > FREQUENCY_LP_CM)
        size = float(np.sqrt(np.mean(left[known] ** 2)))
        if size < least:
            best, least = (correction, shown), size
        if louder < 1 and disagreed:
            break  # noise will be drawn to its level, and says nothing of the gain
        correction = correction + left
        model = model_to(reference, condition, correction=correction)
    return best


def _shown(model: SpectralModel, slices: Sequence[Volume], mode: Mode) -> Signature:
    work, meter = SpectralStandardizer(model, mode), SignatureMeter()
    for index, volume in enumerate(slices):
        for image in np.rint(work(volume, generator=SliceSeeds(0, f"refined {index}")).hu):
            meter.add(image, spacing_mm=volume.spacing_mm[1:])
    return meter.signature()


def _band(pixel_mm: float) -> NDArray[np.bool_]:
    f = ring_centres_lp_cm()
    return np.asarray((f >= NOISE_FROM_LP_CM) & (f <= TO_NYQUIST * MM_PER_CM / (2 * pixel_mm)))


def _louder(shown: Signature, reference: Reference, model: SpectralModel) -> float | None:
    """Amplitude of a result's noise over the reference's where it is the scan's own; None where it is not known."""
    power, wanted = shown.noise_hu2_mm2, reference.noise_hu2_mm2
    if power is None:
        return None
    known = np.interp(ring_centres_lp_cm(), model.frequency_lp_cm, model.coherence) > KNOWN
    heard = _band(shown.pixel_mm) & known & (power > 0) & (wanted > 0)  # neither where it was not measured: NaN
    return amplitude_over(power[heard], wanted[heard])


def _drawn(model: SpectralModel, reference: Reference, shown: Signature, slices: Sequence[Volume]) -> float:
    """Variance that quiet tissue lacks over what arrives there."""
    without = shown.noise_hu2_mm2
    with_it = None if model.noise is None else _shown(model, slices, "sample").noise_hu2_mm2
    if without is None or with_it is None:
        return 1.0
    f = ring_centres_lp_cm()
    wanted = max(float(model.info["noise_over_reference"]), 1.0) ** 2 * reference.noise_hu2_mm2
    with np.errstate(invalid="ignore"):
        lacking = _band(shown.pixel_mm) & (without < LACKING * wanted)
    arrived, missing = (float(np.sum((f * (one - without))[lacking])) for one in (with_it, wanted))
    return 1.0 if min(arrived, missing) <= 0 else float(np.clip(missing / arrived, 1 / MOST, MOST))
