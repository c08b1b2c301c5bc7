"""The texture of the target from that of the source: the least change with the right power.

Wiener's transfer H gives the least error and too little power: a share gamma^2 of the target's. Adding independent
noise for the rest puts the power right and keeps a correlation of gamma^2 with the target. Raising H to

    F = sqrt(S_tt / S_ss) = H / gamma

puts it right, too, from the source's own noise, and keeps a correlation of gamma: between Gaussians it is the optimal
transport, the least error among all outputs with the target's spectrum (Freirich, Michaeli and Meir 2021,
arXiv:2107.02555). Only where nothing of the target is left in the source is noise drawn. Spectra are those of tissue:
the images over their local noise level, cut at a few deviations, so that edges do not count as texture.

Edges are coherent where noise is not: pixels alias the noise of a sharp kernel, iterative reconstruction shrinks it.
What the noise of the result still lacks is measured apart from anatomy (`lacking_power.py`). It is made up by raising,
as far as the sum of error and of noise to draw falls and never by more than the transfer leaves unexplained, and drawn
for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.methods.concord.lacking_power import Lacking, PatchPower, lacking_power
from concordct.methods.concord.texture_level import (
    LEAST_LEVEL_HU,
    LevelLaw,
    band_above,
    local_rms,
    own_and_relative,
)
from concordct.methods.spectral.fit import KNOWN, RESIDUAL_CUT, RING_COUNT, UNKNOWN, Pairs, from_zero
from concordct.methods.spectral.self_check import source_signature
from concordct.methods.spectral.transfer import SpectralModel, SpectralStandardizer
from concordct.signal.body import material_mask
from concordct.signal.spectra import Rings, cosine_frequencies, detail_from_cosines, detail_to_cosines, to_cosines
from concordct.volumes.seeds import SliceSeeds

Image = NDArray[np.float32]

#: Coherence of tissue above which the source's own noise is amplified to the target's power, and below which it is left
#: as the transfer gives it and noise is drawn.
RAISED, DRAWN = 0.30, 0.15
#: Between these frequencies, lp/cm, making up for lacking noise fades in: below them anatomy is all there is.
NOISE_FROM_LP_CM, NOISE_FULLY_LP_CM = 0.5, 1.5
#: Below this frequency nothing is compared, since patches are blind there; it fades over twice that, lp/cm.
SLOW_LP_CM = 0.25
#: Bands that the local level may be read from, as shares of the frequency at which the coherence falls to a half; the
#: level it stands for is that of what the transfer leaves over above the last share, in which anatomy has no part.
LEVEL_SHARES, LEFT_OVER_SHARE = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9), 0.6
#: Steepest law of the level; pixels between the samples that it is fitted to.
STEEPEST, SAMPLE_STEP = 1.5, 8
#: A median absolute deviation times this is the standard deviation of Gaussian noise.
GAUSSIAN_MAD = 1.4826
#: The source's spectrum is not known where the transfer passes less than this.
LEAST_TRANSFER = 0.1
#: Numbers of a law on disk.
LAW_LENGTH = 4


@dataclass(frozen=True, eq=False)
class Transport:
    """What a calibration says about texture, on the frequencies of its `SpectralModel`.

    Powers are for a local level of 1, as the laws give it.

    Attributes
    ----------
    free : [f], share of a frequency that may be written: 0 where the scan knows (coherence 0.99), 1 from 0.90 down.
    gain : [f], what the free part of the transfer is multiplied by. coherence : [f], of tissue, in power, 0 to 1.
    power_mm2 : [f], spectrum of the target's texture in the free part.
    drawn_mm2 : [f], what of it has to be drawn. added_mm2 : [f], noise to draw beside it, of all frequencies; negative
        where less than `drawn_mm2` is right.
    target_mm2, source_mm2 : [f], noise of target and source as wide pixels fold it back.
    scale : standard deviation of the target's texture in units of the level.
    laws : of the level, one for each band that it may be read from.
    """

    free: NDArray[np.float64]
    gain: NDArray[np.float64]
    coherence: NDArray[np.float64]
    power_mm2: NDArray[np.float64]
    drawn_mm2: NDArray[np.float64]
    added_mm2: NDArray[np.float64]
    target_mm2: NDArray[np.float64]
    source_mm2: NDArray[np.float64]
    scale: float
    laws: tuple[LevelLaw, ...]

    @property
    def factor(self) -> NDArray[np.float64]:
        """[f], what transferred texture is multiplied by in all."""
        return 1 + self.free * (self.gain - 1)

    def to_tensors(self) -> dict[str, NDArray[np.float64]]:
        """Arrays by name."""
        found = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("scale", "laws")}
        laws = [[law.from_lp_cm, law.offset, law.slope, law.misfit] for law in self.laws]
        return {**found, "scale": np.array([self.scale]), "laws": np.array(laws, np.float64)}

    @staticmethod
    def from_tensors(tensors: Mapping[str, NDArray[np.float64]]) -> Transport:
        """The inverse of `to_tensors`.

        Raises
        ------
        ConcordctError : a transport that lacks a part (of an older version, too) or holds impossible numbers.
        """
        try:
            found = {one.name: np.asarray(tensors[one.name], np.float64) for one in fields(Transport)}
        except KeyError as error:
            raise ConcordctError(f"expected a whole transport, found one without {error}: calibrate again") from error
        if not all(np.isfinite(one).all() for one in found.values()):
            raise ConcordctError("expected a transport of finite numbers, found others")
        scale, laws = found.pop("scale"), found.pop("laws")
        if scale.shape != (1,) or scale[0] <= 0 or laws.ndim != 2 or not laws.size or laws.shape[1] != LAW_LENGTH:
            raise ConcordctError(f"expected one scale above 0 and laws of the level, found {scale.shape}, {laws.shape}")
        sizes = {one.shape for one in found.values()}
        if len(sizes) > 1:
            raise ConcordctError(f"expected transport curves of one length, found {sorted(sizes)}")
        return Transport(**found, scale=float(scale[0]), laws=tuple(LevelLaw(*map(float, law)) for law in laws))


@dataclass(frozen=True, eq=False)
class _Slice:
    """Cosine coefficients of a transferred slice and its target, each [y, x], with the body."""

    made: Image
    true: Image
    body: NDArray[np.bool_]
    spacing_mm: tuple[float, float]

    @property
    def frequency(self) -> Image:
        return cosine_frequencies((self.made.shape[0], self.made.shape[1]), self.spacing_mm)

    def left_over(self, from_lp_cm: float) -> Image:
        """[y, x] level of what the transfer leaves over above a frequency, HU."""
        left = detail_from_cosines((self.true - self.made) * band_above(self.frequency, from_lp_cm))
        return np.maximum(local_rms(left, self.body, spacing_mm=self.spacing_mm), np.float32(LEAST_LEVEL_HU))


def fit_transport(model: SpectralModel, pairs: Pairs, *, drawn_share: float = 0.0) -> Transport | None:
    """Measure texture on the pairs that `model` was calibrated on.

    Parameters
    ----------
    pairs : as for `fit_pairs`.
    drawn_share : 0 raises the source's own noise to the target's power, which is the least error; 1 leaves it as it
        follows from the source and draws the rest, so that samples differ as widely as they should; between, in powers
        of gamma. `benchmarks/width.py` measures what that costs.

    Returns
    -------
    None where the model has no noise part, and where there is no quiet tissue: in a hollow phantom what looks like
    texture is edges.
    """
    signature = source_signature(model)
    if model.noise is None or (signature is not None and signature.noise_hu2_mm2 is None):
        return None
    left_over_lp_cm = LEFT_OVER_SHARE * model.limits.half_lp_cm
    laws = _laws(model, pairs, left_over_lp_cm)
    free = np.clip((KNOWN - model.coherence) / (KNOWN - UNKNOWN), 0, 1)
    free[0] = 0.0
    found = _tissue_spectra(model, pairs, free, left_over_lp_cm)
    if found is None:
        return None
    rings, aa, bb, ab, area = found
    coherence = np.clip(ab, 0, None) ** 2 / np.maximum(aa * bb, 1e-12)
    raised = np.clip((coherence - DRAWN) / (RAISED - DRAWN), 0, 1) * free[1:] * (model.single[1:] > 0)
    known = np.clip(coherence, 1e-6, 1) ** (drawn_share / 2)  # gamma is the root of the coherence
    gain = 1 + raised * (np.clip(known * np.sqrt(bb / np.maximum(aa, 1e-12)), 0.5, DRAWN**-0.5) - 1)
    # The squares of `free` are in bb already.
    drawn = np.maximum(bb - gain**2 * aa, 0)
    begun = Transport(
        free=free,
        gain=from_zero(1.0, gain),
        coherence=from_zero(1.0, np.clip(coherence, 0, 1)),
        power_mm2=from_zero(0.0, bb),
        drawn_mm2=from_zero(0.0, drawn),
        added_mm2=np.zeros_like(free),
        target_mm2=np.zeros_like(free),
        source_mm2=np.zeros_like(free),
        scale=float(np.sqrt(max(area, 1e-12))),
        laws=laws,
    )
    return _completed(begun, model, pairs, rings, left_over_lp_cm)


def _slices(model: SpectralModel, pairs: Pairs) -> Iterator[_Slice]:
    """Every slice that holds a body."""
    spectral = SpectralStandardizer(model, "mean")
    for source, target in pairs():
        spacing = source.spacing_mm[1:]
        base = spectral(source, generator=SliceSeeds(0, ""))
        for index in range(source.shape[0]):
            body = material_mask(source.hu[index : index + 1], spacing)[0]
            if body.any():
                yield _Slice(to_cosines(base.hu[index]), to_cosines(target.hu[index]), body, spacing)


def _laws(model: SpectralModel, pairs: Pairs, left_over_lp_cm: float) -> tuple[LevelLaw, ...]:
    starts = [share * model.limits.half_lp_cm for share in LEVEL_SHARES]
    levels: list[NDArray[np.float32]] = []
    samples: dict[float, list[NDArray[np.float64]]] = {start: [] for start in starts}  # [own, relative], logarithms
    thin = np.s_[SAMPLE_STEP // 2 :: SAMPLE_STEP, SAMPLE_STEP // 2 :: SAMPLE_STEP]
    for one in _slices(model, pairs):
        inside = one.body[thin]
        levels.append(np.log(one.left_over(left_over_lp_cm)[thin][inside]))
        for start in starts:
            noise = detail_from_cosines(one.made * band_above(one.frequency, start))
            own, relative = own_and_relative(local_rms(noise, one.body, spacing_mm=one.spacing_mm), one.body)
            logs = np.log(relative[thin][inside].astype(np.float64))
            samples[start].append(np.stack([np.full(logs.size, np.log(own)), logs]))
    found = []
    for start in starts:
        own_log, x = np.concatenate(samples[start], axis=1) if samples[start] else np.zeros((2, 0))
        y = np.concatenate(levels) - own_log if levels else x
        if x.size < 2:
            found.append(LevelLaw(start, 0.0, 1.0, 0.0))
            continue
        slope = float(np.clip(np.cov(x, y)[0, 1] / max(np.var(x, ddof=1), 1e-9), 0, STEEPEST))
        left = y - slope * x
        found.append(LevelLaw(start, float(left.mean()), slope, float(left.std())))
    return tuple(found)


def _tissue_spectra(
    model: SpectralModel, pairs: Pairs, free: NDArray[np.float64], left_over_lp_cm: float
) -> tuple[Rings, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float] | None:
    """Rings; power of transferred source, target and both, [ring] mm2, in the free part; the target's variance."""
    sums = np.zeros((4, RING_COUNT))
    rings: Rings | None = None
    for one in _slices(model, pairs):
        rings = rings or Rings.covering(one.spacing_mm, RING_COUNT)
        ring = rings.index(one.frequency)
        share = np.interp(one.frequency, model.frequency_lp_cm, free, right=0.0).astype(np.float32)
        level = one.left_over(left_over_lp_cm)
        a, b = (tissue(detail_from_cosines(image * share) / level, one.body) for image in (one.made, one.true))
        for row, values in enumerate((a * a, b * b, a * b)):
            sums[row] += rings.sum(ring, values) * one.spacing_mm[0] * one.spacing_mm[1]
        sums[3] += rings.sum(ring, np.full(ring.size, one.body.mean()))
    if rings is None or not sums[1].any():
        return None
    aa, bb, ab = (ndimage.median_filter(row / np.maximum(sums[3], 1e-12), 5, mode="nearest") for row in sums[:3])
    return rings, aa, bb, ab, float((bb * sums[3]).sum() / max(sums[3].sum(), 1e-12)) / _area(rings)


def _completed(begun: Transport, model: SpectralModel, pairs: Pairs, rings: Rings, left_over_lp_cm: float) -> Transport:
    """With what the result of a transport still lacks made up."""
    found, patches = _lacking(begun, model, pairs, left_over_lp_cm)
    if found is None or patches is None:
        return begun
    at = rings.centres_lp_cm

    def on_rings(curve: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.interp(at, patches.centres_lp_cm, curve)

    # As evidence thins, nothing is made up.
    sure = np.maximum(0, 1 - (found.error / np.maximum(np.abs(found.power), 1e-12)) ** 2)
    lacking = _fade(at) * on_rings(sure * found.power)
    made = np.maximum(on_rings(found.quiet_made), 1e-12)
    # A factor 1 + x adds 2 x N to the noise and x^2 P to the error, N the power of noise and P that of all there is:
    # the sum of error and of noise to draw is least at x = N / P. Too much noise is lowered likewise.
    least_error = on_rings(1 - found.anatomy_share)
    unexplained = np.sqrt(np.clip(1 - model.coherence[1:], 0, 1))
    most = np.minimum(least_error, np.maximum(unexplained - (begun.factor[1:] - 1), 0))
    least = -np.minimum(least_error, np.maximum(unexplained + (begun.factor[1:] - 1), 0))
    more = np.clip(np.sqrt(np.maximum(1 + lacking / made, 0)) - 1, least, most)
    more = np.where((begun.free[1:] > 0) & (begun.coherence[1:] > RAISED), more, 0)
    factor = begun.factor[1:] * (1 + more)
    gain = np.where(more != 0, 1 + (factor - 1) / np.maximum(begun.free[1:], 1e-6), begun.gain[1:])
    transfer = np.abs(model.single[1:])
    source = on_rings(found.quiet_source) / np.maximum(transfer, LEAST_TRANSFER) ** 2
    return Transport(
        free=begun.free,
        gain=from_zero(1.0, gain),
        coherence=begun.coherence,
        power_mm2=begun.power_mm2,
        drawn_mm2=begun.drawn_mm2,
        added_mm2=from_zero(0.0, np.maximum(lacking - (2 * more + more**2) * made, -begun.drawn_mm2[1:])),
        target_mm2=from_zero(0.0, on_rings(found.quiet_true)),
        source_mm2=from_zero(0.0, np.where(transfer > LEAST_TRANSFER, source, 0)),
        scale=begun.scale,
        laws=begun.laws,
    )


def _lacking(
    begun: Transport, model: SpectralModel, pairs: Pairs, left_over_lp_cm: float
) -> tuple[Lacking | None, PatchPower | None]:
    """Power that transported slices of the calibration lack."""
    powers: list[tuple[NDArray[np.float64], ...]] = []
    patches: PatchPower | None = None
    for one in _slices(model, pairs):
        patches = patches or PatchPower.of(one.spacing_mm)
        if PatchPower.of(one.spacing_mm).size != patches.size:
            continue  # another ring would be meant
        frequency = one.frequency
        level = one.left_over(left_over_lp_cm)
        fast = np.clip((frequency - SLOW_LP_CM) / (2 * SLOW_LP_CM), 0, 1)
        factor, drawn = (
            np.interp(frequency, model.frequency_lp_cm, curve, right=right).astype(np.float32)
            for curve, right in ((begun.factor, 1.0), (begun.drawn_mm2, 0.0))
        )
        drawn = np.sqrt(drawn / np.float32(one.spacing_mm[0] * one.spacing_mm[1]))
        white = np.random.default_rng(0).standard_normal(level.shape, dtype=np.float32)
        corners = patches.corners(one.body)
        images = (
            detail_from_cosines(one.made * factor * fast) / level + detail_from_cosines(white * drawn),
            detail_from_cosines(one.true * fast) / level,
            detail_from_cosines(one.made * fast) / level,
        )
        powers.append(tuple(patches.of_image(image, corners) for image in images))
    if patches is None:
        return None, None
    made, true, source = (np.concatenate(part) for part in zip(*powers, strict=True))
    return lacking_power(made, true, source, patches.centres_lp_cm), patches


def _fade(frequency: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.clip((frequency - NOISE_FROM_LP_CM) / (NOISE_FULLY_LP_CM - NOISE_FROM_LP_CM), 0, 1)


def _area(rings: Rings) -> float:
    """Area of a pixel behind rings out to the corner of its Nyquist square, mm2, for square pixels."""
    corner = rings.width_lp_cm * rings.count
    return float((10.0 / np.sqrt(2) / corner) ** 2)


def tissue(unit: NDArray[np.floating], body: NDArray[np.bool_]) -> Image:
    """Cosine coefficients [y, x] of texture inside the body, cut at some of its own deviations."""
    limit = np.float32(RESIDUAL_CUT * (GAUSSIAN_MAD * np.median(np.abs(unit[body])) + 1e-6))
    cut = np.clip(unit, -limit, limit) * body
    return detail_to_cosines(cut.astype(np.float32))
