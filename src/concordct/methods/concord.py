"""The flagship: the calibrated transfer first, then residual shifting for what the source kernel destroyed.

`mean` is `spectral.py`'s closed-form transfer: the least HU error. `sample` has the target's texture, in three steps:

1. the source's own noise is raised to the target's power wherever anything of the target is left in it, and noise of
   the calibrated spectrum is drawn where nothing is (`transport.py`);
2. a network leads that texture to what tissue of this kind looks like, by residual shifting between two textures of
   equal power (`diffusion/residual_flow.py`). It serves every kernel pair: it is told what calibration found, and was
   trained on simulated pairs of random kernels alone. A silent network leaves step 1 as it is;
3. in each band of the spectrum the network's texture is held to the power of step 1, which calibration measured, and to
   nothing where the scan knows: the network may move texture about, not make it.

    standardized = ConcordStandardizer(model, transport, network)(volume, generator=SliceSeeds(0, "series"))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft

from concordct.diffusion import residual_flow
from concordct.errors import ConcordctError
from concordct.features.body import material_mask
from concordct.features.spectra import Rings, cosine_frequencies, from_cosines
from concordct.methods.concord_bundle import METHOD, PREFIX, parts
from concordct.methods.concord_inputs import Curves, Prepared, curves, prepare
from concordct.methods.spectral import Mode, SpectralModel, SpectralStandardizer
from concordct.methods.transport import Transport, tissue
from concordct.nets.remainder import RemainderConfig, RemainderUNet
from concordct.training.bundle import Bundle
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

#: Evaluations of the network for a sample; docs/results.md has the curve.
STEPS = 3
#: Air around the body that the network sees, pixels.
BODY_MARGIN = 16
#: Bands in which the network's texture is held to the calibrated power.
BANDS = 120


@dataclass(frozen=True, eq=False)
class ConcordStandardizer:
    """A calibrated model and the network at work; a `Standardizer`.

    Attributes
    ----------
    model : the calibrated transfer.
    transport : what calibration says about texture; None when it could not be measured, and only "mean" is served.
    network : in evaluation, on the device it runs on.
    mode : "sample" (right texture) or "mean" (least HU error).
    use_neighbours : set to False for series whose slices are not evenly spaced.
    steps : evaluations of the network for a sample; 0 leaves the transport as it is.
    bound : hold the network's texture to the calibrated power; off for ablations only.
    """

    model: SpectralModel
    transport: Transport | None
    network: RemainderUNet
    mode: Mode = "sample"
    use_neighbours: bool = True
    steps: int = STEPS
    bound: bool = True

    def __post_init__(self) -> None:
        if self.mode == "sample" and self.transport is None:
            raise ConcordctError(
                "expected a model with a noise part for mode 'sample', found one calibrated without: use mode 'mean'"
            )
        if self.steps < 0:
            raise ConcordctError(f"expected 0 steps or more, found {self.steps}")

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
            return base(volume, generator=generator)
        spacing = volume.spacing_mm[1:]
        on = curves(self.model, self.transport, volume.shape[1:], spacing)
        hu = np.empty_like(volume.hu)
        for index, one in enumerate(prepare(base, self.transport, on, volume)):
            hu[index] = one.base
            if one.body is None:
                continue
            white = base.white(volume, index, generator)
            noise = from_cosines(white * on.drawn)
            start = one.texture + noise
            texture = self._shifted(one, start) if self.steps else start
            if self.bound and self.steps:
                texture = held(texture, start, on, material_mask(volume.hu[index : index + 1], spacing)[0])
            written = one.level * (texture + one.edges - one.transferred)
            hu[index] += _kept(written, on.free > 0) if self.bound else written
            hu[index] += one.level * from_cosines(white * (on.in_all - on.drawn))
        return volume.with_hu(hu)

    def _shifted(self, one: Prepared, start: NDArray[np.float32]) -> NDArray[np.float32]:
        """The texture at the end of the flow; outside the body's box it stays what it was."""
        assert one.body is not None
        rows, columns = start.shape
        top, bottom = max(one.body[0] - BODY_MARGIN, 0), min(one.body[1] + BODY_MARGIN, rows)
        left, right = max(one.body[2] - BODY_MARGIN, 0), min(one.body[3] + BODY_MARGIN, columns)
        device = next(self.network.parameters()).device
        divisor = self.network.divisor

        def tensor(planes: NDArray[np.float32]) -> torch.Tensor:
            cut = planes[:, top:bottom, left:right]
            width = ((0, 0), (0, -(bottom - top) % divisor), (0, -(right - left) % divisor))
            padded = torch.from_numpy(np.pad(cut, width, mode="symmetric"))[None]
            return padded.to(device).contiguous(memory_format=torch.channels_last)

        maps, condition = tensor(one.maps), torch.from_numpy(one.condition)[None].to(device)

        def velocity(x: torch.Tensor, shift: float) -> torch.Tensor:
            place = torch.tensor([shift], dtype=torch.float32, device=device)
            return torch.as_tensor(self.network(x, maps, condition, place))

        with torch.inference_mode():
            found = residual_flow.sample(velocity, tensor(start[None]), steps=self.steps)
        shifted = start.copy()
        shifted[top:bottom, left:right] = found[0, 0, : bottom - top, : right - left].cpu().numpy()
        if not np.isfinite(shifted).all():
            raise ConcordctError(f"{METHOD}: expected finite HU, found others")
        return shifted


@lru_cache(maxsize=4)
def _bands(shape: tuple[int, int]) -> NDArray[np.intp]:
    return Rings.covering((1.0, 1.0), BANDS).index(cosine_frequencies(shape, (1.0, 1.0)))


def _kept(image: NDArray[np.float32], bands: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The part of an image in some cosine coefficients."""
    coefficients = np.asarray(fft.dctn(image, type=2, norm="ortho"), np.float32)
    return np.asarray(fft.idctn(coefficients * bands, type=2, norm="ortho"), np.float32)


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
    coefficients, own = (np.asarray(fft.dctn(one, type=2, norm="ortho"), np.float32) for one in (texture, like))
    kept = np.where(on.free > 0, coefficients * gain[band].reshape(texture.shape), own)
    return np.asarray(fft.idctn(kept, type=2, norm="ortho"), dtype=np.float32)


def network_of(bundle: Bundle, *, prefix: str = "") -> RemainderUNet:
    """The network inside a bundle, in evaluation, on a GPU where there is one.

    Raises
    ------
    ConcordctError : tensors that do not fit their description.
    """
    try:
        described = dict(bundle.metadata["network"])
        network = RemainderUNet(RemainderConfig(**{**described, "widths": tuple(described["widths"])}))
        tensors = {
            name.removeprefix(prefix): torch.from_numpy(np.array(one))
            for name, one in bundle.tensors.items()
            if name.startswith(prefix)
        }
        network.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise ConcordctError(f"expected a whole {METHOD} model, found one that does not fit: {line}") from error
    network.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
    torch.nn.Module.to(network, memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth faster
    return network


def load(
    bundle: Bundle, mode: Mode, use_neighbours: bool, sampling: Mapping[str, Any] | None = None
) -> ConcordStandardizer:
    """A stored calibration at work; `sampling` overrides `steps` and `bound`."""
    model, transport = parts(bundle)
    network = network_of(bundle, prefix=PREFIX)
    chosen = ConcordStandardizer(model, transport, network, mode=mode, use_neighbours=use_neighbours)
    known = {name: value for name, value in (sampling or {}).items() if name in ("steps", "bound")}
    return replace(chosen, **known) if known else chosen
