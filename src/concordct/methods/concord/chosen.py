"""Which texture a calibration keeps, said by slices that were held out of its fit.

A transfer that shrinks what it cannot know lacks noise; how much of it is drawn in each band, the noise power of
held-out slices says: of what lies near the target's, the texture has to agree best (Lin's CCC of PyRadiomics features
over square ROIs). Samples that are as wide as they should be are another calibration (`width.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from concordct.agreement.texture import Texture
from concordct.methods.concord.adaptive import Adaptive
from concordct.methods.concord.learned import Learned
from concordct.methods.concord.standardizer import ConcordStandardizer
from concordct.methods.concord.transport import Transport
from concordct.methods.concord.width import Width
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
#: Fewer squares than this tell nothing of texture.
FEWEST_ROIS = 12
#: An adaptive transfer has to agree better than the transport by this much, mean CCC.
GAIN = 0.01
#: Classes that texture is judged by.
TEXTURES = ("glcm", "glrlm", "glszm", "gldm", "ngtdm")
#: Samples whose agreement is averaged: a single one differs by as much as two choices do.
SEEDS = (0, 1, 2)


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

    def made(self, work: ConcordStandardizer, seed: int) -> NDArray[np.float32]:
        """[k, y, x] whole HU, standardized."""
        # Slices beside them only where they count.
        last = self._last(len(self.mask) + work.context_slices)
        return np.rint(work(last, generator=SliceSeeds(seed, "calibration")).hu[-len(self.mask) :])

    def widened(self, width: Width, made: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
        """[k, y, x] whole HU: what `made` gives, with its local gains drawn."""
        last = replace(self._last(len(self.mask)), first_slice=0)
        return np.rint(width.drawn(made, last, generator=SliceSeeds(seed, "calibration")))

    def _last(self, count: int) -> Volume:
        total = self.source.shape[0]
        return self.source.slab(total - min(total, count), total)

    def power(self, hu: NDArray[np.float32]) -> NDArray[np.float64]:
        """[band] noise power of these slices; anatomy is the same in all that are compared."""
        found = noise_power(hu, self.mask, spacing_mm=self.source.spacing_mm[1:], band_width=BAND)
        return np.asarray(found.nps_hu2_mm2.sum(axis=0))


def texture_of(held: Held) -> Texture | None:
    """Texture of what was held out; None where there are too few regions to compare.

    Only pairs that are not linear, and calibrations for honest width, come here: a plain installation, without numba,
    calibrates all others.
    """
    from concordct.radiomics.definitions.pyradiomics import PyRadiomics

    settings = PyRadiomics(classes=dict.fromkeys(TEXTURES, ()), bin_width=25.0, force_2d=True)
    target = held.target.hu[-len(held.mask) :]
    return Texture.of(held.target, target, held.mask, settings, fewest=FEWEST_ROIS)


def chosen(
    model: SpectralModel, transport: Transport, adaptive: Adaptive, held: Held, learned: Learned | None = None
) -> Adaptive | None:
    """The adaptive transfer with the best shares drawn; None where the transport is as good."""
    texture = texture_of(held)
    if texture is None:
        return None
    wanted = held.power(held.target.hu[-len(held.mask) :])

    def score(images: list[NDArray[np.float32]]) -> float:
        return float(np.mean([list(texture.ccc(hu).values()) for hu in images]))

    def at_work(drawn: NDArray[np.float64]) -> ConcordStandardizer:
        return ConcordStandardizer(model, transport, adaptive=replace(adaptive, drawn=drawn), learned=learned)

    tried = [np.array(shares) for shares in DRAWN]
    made = [[held.made(at_work(drawn), seed) for seed in (SEEDS if drawn.any() else SEEDS[:1])] for drawn in tried]
    wrong = np.array([off(np.mean([held.power(hu) for hu in one], axis=0), wanted) for one in made])
    right = np.flatnonzero(wrong <= max(NEAR, float(wrong.min())))
    scores = {index: score(made[index]) for index in right}
    best = max(scores, key=lambda index: scores[index])
    plain = score([held.made(ConcordStandardizer(model, transport), seed) for seed in SEEDS])
    return replace(adaptive, drawn=tried[best]) if scores[best] > plain + GAIN else None


def off(power: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """How far noise power is off in its worst band; 0 where there is none to compare."""
    ratio = power[FROM_BAND:] / np.maximum(wanted[FROM_BAND:], 1e-12)
    return float(np.abs(ratio - 1).max()) if ratio.size and wanted.any() else 0.0
