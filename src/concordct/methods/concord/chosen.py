"""Which texture a calibration keeps, said by slices that were held out of its fit.

A transfer that shrinks what it cannot know lacks noise; how much of it is drawn in each band, the noise power of
held-out slices says: of what lies near the target's, the texture has to agree (Lin's CCC of PyRadiomics features over
square ROIs), and a little of that agreement is given where two samples then agree no better with each other than with
the target: noise that is only amplified looks more certain than it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from concordct.agreement import concordance as agreement
from concordct.errors import ConcordctError
from concordct.methods.concord.adaptive import Adaptive
from concordct.methods.concord.standardizer import ConcordStandardizer
from concordct.methods.concord.transport import Transport
from concordct.methods.spectral.transfer import SpectralModel
from concordct.signal.spectra import noise_power
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

#: Shares of what is left over that are tried, from the finest band: none, the finest alone, or all.
DRAWN = ((0.0,) * 4, (1.0, 0.0, 0.0, 0.0), (2.0, 0.0, 0.0, 0.0), (0.5,) * 4, (1.0,) * 4)
#: Bands of noise power, cycles/pixel; below the second one anatomy is all there is.
BAND, FROM_BAND = 0.1, 1
#: Noise power within this share of the target's in every band is right.
NEAR = 0.1
#: Agreement that is given, at most, for samples whose width is nearer to the truth by more than that, mean CCC.
FREE = 0.005
#: Texture is compared in squares of this edge, pixels; fewer of them than this tell nothing.
ROI, FEWEST_ROIS = 28, 12
#: An adaptive transfer has to agree better than the transport by this much, mean CCC.
GAIN = 0.01
#: Classes that texture is judged by.
TEXTURES = ("glcm", "glrlm", "glszm", "gldm", "ngtdm")
SEED = 0


@dataclass(frozen=True, eq=False)
class Held:
    """A slab whose last slices, or some columns of whose only slice, were held out.

    Attributes
    ----------
    source, target : [z, y, x]. mask : [k, y, x] bool, what was held out of the last k slices.
    """

    source: Volume
    target: Volume
    mask: NDArray[np.bool_]

    def made(self, work: ConcordStandardizer, seed: int = SEED) -> NDArray[np.float32]:
        """[k, y, x] whole HU, standardized."""
        return np.rint(work(self.source, generator=SliceSeeds(seed, "calibration")).hu[-len(self.mask) :])

    def power(self, hu: NDArray[np.float32]) -> NDArray[np.float64]:
        """[band] noise power of these slices; anatomy is the same in all that are compared."""
        found = noise_power(hu, self.mask, spacing_mm=self.source.spacing_mm[1:], band_width=BAND)
        return np.asarray(found.nps_hu2_mm2.sum(axis=0))


def chosen(model: SpectralModel, transport: Transport, adaptive: Adaptive, held: Held) -> Adaptive | None:
    """The adaptive transfer with the best shares drawn; None where the transport is as good."""
    # Only pairs that are not linear come here: a plain installation, without numba, calibrates all others.
    from concordct.radiomics.definitions.pyradiomics import PyRadiomics
    from concordct.radiomics.extract import extract
    from concordct.radiomics.regions.rois import grid_rois

    settings = PyRadiomics(classes=dict.fromkeys(TEXTURES, ()), bin_width=25.0, force_2d=True)
    try:
        rois = grid_rois(held.mask, size=ROI)
    except ConcordctError:
        return None
    if rois.max() < FEWEST_ROIS:
        return None
    like = Volume(held.target.hu[-len(held.mask) :], held.target.affine)
    truth = extract(like, rois, settings)
    wanted = held.power(like.hu)

    def features(work: ConcordStandardizer, seed: int = SEED) -> NDArray[np.float64]:
        return extract(replace(like, hu=held.made(work, seed)), rois, settings).values

    def agree(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
        by_class = agreement.mean_by_class(agreement.ccc_per_feature(one, other), truth.classes)
        return float(np.mean([by_class[name].mean for name in TEXTURES]))

    def at_work(drawn: NDArray[np.float64]) -> ConcordStandardizer:
        return ConcordStandardizer(model, transport, adaptive=replace(adaptive, drawn=drawn))

    tried = [np.array(shares) for shares in DRAWN]
    works = [at_work(drawn) for drawn in tried]
    wrong = np.array([off(held.power(held.made(one)), wanted) for one in works])
    right = np.flatnonzero(wrong <= max(NEAR, float(wrong.min())))
    first = {index: features(works[index]) for index in right}
    scores = {index: agree(first[index], truth.values) for index in right}
    best = max(scores, key=lambda index: scores[index])
    # Two samples as far from each other as each is from the target: then its width is right.
    alike = [index for index in right if scores[index] >= scores[best] - FREE]
    gaps = {index: agree(first[index], features(works[index], SEED + 1)) - scores[index] for index in alike}
    narrow = min(gaps, key=lambda index: gaps[index])
    kept = narrow if gaps[narrow] < gaps[best] - FREE else best
    plain = agree(features(ConcordStandardizer(model, transport)), truth.values)
    return replace(adaptive, drawn=tried[kept]) if scores[kept] > plain + GAIN else None


def off(power: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """How far noise power is off in its worst band; 0 where there is none to compare."""
    ratio = power[FROM_BAND:] / np.maximum(wanted[FROM_BAND:], 1e-12)
    return float(np.abs(ratio - 1).max()) if ratio.size and wanted.any() else 0.0
