"""The default method: the calibrated transfer first, then the texture that the source kernel destroyed.

`mean` is `spectral.py`'s closed-form transfer: the least HU error. `sample` has the target's texture:

1. the source's own noise is amplified to the target's power wherever anything of the target is left in it, edges as
   they are, and noise of the calibrated spectrum is drawn where nothing is (`transport.py`), at the local level of the
   scan's own noise (`texture_level.py`);
2. noise is added where tissue lacks power although edges say that the scan knows, and what pixels wider than the
   calibrated ones fold back (`curves.py`).

Pairs of iterative or deep-learning reconstruction, in which noise and edges have different gains, have an adaptive
transfer in place of both, if held-out slices said so (`adaptive.py`); it serves `mean`, too. Where honest
width was asked of the calibration, a sample's local gain is drawn as well (`width.py`).

    standardized = ConcordStandardizer(model, transport)(volume, generator=SliceSeeds(0, "series"))
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.methods.concord.adaptive import Adaptive
from concordct.methods.concord.bundle import METHOD, parts
from concordct.methods.concord.curves import curves, prepare
from concordct.methods.concord.learned import Learned
from concordct.methods.concord.transport import Transport
from concordct.methods.concord.width import Width
from concordct.methods.method import Method
from concordct.methods.spectral.transfer import SpectralModel, SpectralStandardizer
from concordct.methods.standardizer import Mode
from concordct.signal.body import material_mask
from concordct.signal.spectra import detail_from_cosines, detail_to_cosines
from concordct.training.bundle import Bundle
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume


@dataclass(frozen=True, eq=False)
class ConcordStandardizer:
    """A calibrated model at work; a `Standardizer`.

    Attributes
    ----------
    model : the calibrated transfer.
    transport : what calibration says about texture; None where it could not be measured, and a sample is the filter's.
    mode : "sample" (right texture) or "mean" (least HU error).
    use_neighbours : set to False for series whose slices are not evenly spaced.
    adaptive : in place of the transport for pairs that one transfer does not serve; None for linear ones.
    width : what of the local gain is not known and is drawn in mode "sample"; None draws none of it.
    learned : what many pairs tell beyond an adaptive transfer; None without.
    """

    model: SpectralModel
    transport: Transport | None
    mode: Mode = "sample"
    use_neighbours: bool = True
    adaptive: Adaptive | None = None
    width: Width | None = None
    learned: Learned | None = None

    def __post_init__(self) -> None:
        if self.mode == "sample" and self.model.noise is None:
            raise ConcordctError(
                "expected a model with a noise part for mode 'sample', found one calibrated without: use mode 'mean'"
            )

    @property
    def base(self) -> SpectralStandardizer:
        """The transfer alone."""
        return SpectralStandardizer(self.model, "mean", self.use_neighbours)

    @property
    def context_slices(self) -> int:
        """Slices needed on either side of a slab."""
        return self.base.context_slices

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the output beside model and seed."""
        return {"method": METHOD, "mode": self.mode, "use_neighbours": self.use_neighbours}

    def __call__(self, volume: Volume, *, generator: SliceSeeds) -> Volume:
        """Standardize a volume or slab.

        Parameters
        ----------
        volume : [z, y, x] HU, axial.
        generator : one random generator for each slice; unused in mode "mean".

        Returns
        -------
        Volume of the same geometry, HU not rounded and not clipped.

        Raises
        ------
        ConcordctError : slices that are not axial.
        """
        made = self._made(volume, generator)
        if self.width is None or self.mode == "mean":
            return made
        widened = self.width.drawn(made.hu, volume, generator=generator)
        return replace(made.with_hu(widened), reach_hu=self.model.reach_hu)

    def _made(self, volume: Volume, generator: SliceSeeds) -> Volume:
        base = self.base
        if self.adaptive is not None:
            return self._adapted(self.adaptive, volume, generator)
        if self.mode == "mean" or self.transport is None:
            return replace(base, mode=self.mode)(volume, generator=generator)
        on = curves(self.model, self.transport, volume.shape[1:], volume.spacing_mm[1:])
        hu = np.empty_like(volume.hu)
        for index, one in enumerate(prepare(base, self.transport, on, volume)):
            hu[index] = one.base
            if not one.inside.any():
                continue
            white = base.white(volume, index, generator)
            texture = detail_from_cosines(one.raised + white * on.drawn)
            hu[index] += _kept(one.level * texture, on.free > 0)
            hu[index] += one.level * detail_from_cosines(white * (on.in_all - on.drawn))
        return replace(volume.with_hu(hu), reach_hu=self.model.reach_hu)

    def _adapted(self, adaptive: Adaptive, volume: Volume, generator: SliceSeeds) -> Volume:
        base, spacing = self.base, volume.spacing_mm[1:]
        hu = base(volume, generator=generator).hu
        bodies = material_mask(volume.hu, spacing)
        for index, (source, body) in enumerate(zip(volume.hu, bodies, strict=True)):
            draws = self.mode == "sample" and adaptive.draws
            white = base.white(volume, index, generator) if draws else None
            written, quiet = adaptive.both(hu[index], source, body, spacing, white)
            if self.learned is not None:  # it sees what is not drawn
                written = written + self.learned.written(hu[index] + quiet, source, body, spacing)
            hu[index] += written
        return replace(volume.with_hu(hu), reach_hu=self.model.reach_hu)


def _kept(image: NDArray[np.float32], bands: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The part of an image in some cosine coefficients."""
    return detail_from_cosines(detail_to_cosines(image) * bands)


def load(bundle: Bundle, mode: Mode, *, use_neighbours: bool = True) -> ConcordStandardizer:
    """A stored calibration at work."""
    model, transport, adaptive, width, learned = parts(bundle)
    return ConcordStandardizer(model, transport, mode, use_neighbours, adaptive, width, learned)


ENTRY = Method(
    "Spectral transfer with sampled texture",
    load,
    neighbours=True,
    calibration=lambda bundle: parts(bundle)[0],
)
