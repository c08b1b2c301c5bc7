"""The flagship: the calibrated transfer first, then the texture that the source kernel destroyed.

`mean` is `spectral.py`'s closed-form transfer: the least HU error. `sample` has the target's texture:

1. the source's own noise is raised to the target's power wherever anything of the target is left in it, edges as they
   are, and noise of the calibrated spectrum is drawn where nothing is (`transport.py`), at the local level of the
   scan's own noise (`texture_level.py`);
2. noise is added where tissue lacks power although edges say that the scan knows, and what pixels wider than the
   calibrated ones fold back (`concord_inputs.py`);
3. with `steps` above 0, a network leads the texture to what tissue of this kind looks like, by residual shifting
   between two textures of equal power (`diffusion/residual_flow.py`, `concord_network.py`). It serves every kernel
   pair: it is told what calibration found, and was trained on simulated pairs of random kernels alone. In each band of
   the spectrum its texture is held to the power of step 1, and to nothing where the scan knows: it may move texture
   about, not make it. It has not earned its time (docs/decisions.md), so the default is 0.

    standardized = ConcordStandardizer(model, transport)(volume, generator=SliceSeeds(0, "series"))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from concordct.errors import ConcordctError
from concordct.methods.concord.bundle import METHOD, PREFIX, parts
from concordct.methods.concord.inputs import Curves, curves, prepare
from concordct.methods.concord.transport import Transport, tissue
from concordct.methods.spectral.transfer import SpectralModel, SpectralStandardizer
from concordct.methods.standardizer import Mode
from concordct.signal.spectra import Rings, cosine_frequencies, from_cosines
from concordct.training.bundle import Bundle
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

#: Evaluations of the network for a sample; docs/results.md has the curve.
STEPS = 0
#: Bands in which the network's texture is held to the calibrated power.
BANDS = 120


@dataclass(frozen=True, eq=False)
class ConcordStandardizer:
    """A calibrated model and the network at work; a `Standardizer`.

    Attributes
    ----------
    model : the calibrated transfer.
    transport : what calibration says about texture; None where it could not be measured, and a sample is the filter's.
    network : a `RemainderUNet` in evaluation, on the device it runs on; None without steps.
    mode : "sample" (right texture) or "mean" (least HU error).
    use_neighbours : set to False for series whose slices are not evenly spaced.
    steps : evaluations of the network for a sample; 0 leaves the transport as it is.
    bound : hold the network's texture to the calibrated power; off for ablations only.
    """

    model: SpectralModel
    transport: Transport | None
    network: Any = None
    mode: Mode = "sample"
    use_neighbours: bool = True
    steps: int = STEPS
    bound: bool = True

    def __post_init__(self) -> None:
        if self.mode == "sample" and self.model.noise is None:
            raise ConcordctError(
                "expected a model with a noise part for mode 'sample', found one calibrated without: use mode 'mean'"
            )
        if self.steps < 0 or (self.steps and self.network is None):
            raise ConcordctError(f"expected 0 steps, or more and a network, found {self.steps} steps")

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
        found: dict[str, Any] = {"method": METHOD, "mode": self.mode, "use_neighbours": self.use_neighbours}
        return found if self.mode == "mean" else {**found, "steps": self.steps, "bound": self.bound}

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
        base = self.base
        if self.mode == "mean" or self.transport is None:
            return replace(base, mode=self.mode)(volume, generator=generator)
        on = curves(self.model, self.transport, volume.shape[1:], volume.spacing_mm[1:])
        hu = np.empty_like(volume.hu)
        for index, one in enumerate(prepare(base, self.transport, on, volume)):
            hu[index] = one.base
            if one.body is None:
                continue
            white = base.white(volume, index, generator)
            noise = from_cosines(white * on.drawn)
            start = one.texture + noise
            texture = start
            if self.steps:
                # Torch is imported where the network is used.
                from concordct.methods.concord.network import shifted

                texture = shifted(self.network, one, start, steps=self.steps)
                if self.bound:
                    texture = held(texture, start, on, one.inside)
            written = one.level * (texture + one.edges - one.transferred)
            hu[index] += _kept(written, on.free > 0) if self.bound else written
            hu[index] += one.level * from_cosines(white * (on.in_all - on.drawn))
        return volume.with_hu(hu)


@lru_cache(maxsize=4)
def _bands(shape: tuple[int, int]) -> NDArray[np.intp]:
    return Rings.covering((1.0, 1.0), BANDS).index(cosine_frequencies(shape, (1.0, 1.0)))


def _kept(image: NDArray[np.float32], bands: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The part of an image in some cosine coefficients."""
    return from_cosines(_cosines(image) * bands)


def _cosines(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """As `to_cosines`, of an image that is counted from 0 and not from air."""
    return np.asarray(fft.dctn(image, type=2, norm="ortho"), np.float32)


def held(
    texture: NDArray[np.float32], like: NDArray[np.float32], on: Curves, body: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """A texture with the power of another in every band of the spectrum, and the other itself where the scan knows.

    Parameters
    ----------
    texture, like : [y, x], in units of the level. body : [y, x] bool, where power is measured, edges cut.
    """
    band = _bands((texture.shape[0], texture.shape[1]))
    wanted, found = (
        np.bincount(band, np.square(tissue(one, body), dtype=np.float64).ravel()) for one in (like, texture)
    )
    gain = np.sqrt(wanted / np.maximum(found, 1e-12)).astype(np.float32)
    scaled = _cosines(texture) * gain[band].reshape(texture.shape)
    return from_cosines(np.where(on.free > 0, scaled, _cosines(like)))


def load(
    bundle: Bundle, mode: Mode, use_neighbours: bool, sampling: Mapping[str, Any] | None = None
) -> ConcordStandardizer:
    """A stored calibration at work; `sampling` overrides `steps` and `bound`."""
    model, transport = parts(bundle)
    chosen = ConcordStandardizer(model, transport, mode=mode, use_neighbours=use_neighbours)
    known = {name: value for name, value in (sampling or {}).items() if name in ("steps", "bound")}
    if known.get("steps"):
        from concordct.methods.concord.network import network_of

        known["network"] = network_of(bundle, prefix=PREFIX)
    return replace(chosen, **known)
