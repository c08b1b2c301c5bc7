"""The spectral standardizer: one radial transfer function, and sampled noise for what the source kernel destroyed.

Two reconstructions of one raw data set differ by a transfer function between their kernels. Where the two are coherent
it is known in closed form and applied; where they are not, nothing deterministic helps, and `mode="sample"` adds seeded
noise with the power spectrum that calibration found missing, scaled to the local noise level of the slice.
`spectral_fit.py` finds the model; `docs/equations.md` derives it.

    model = fit_pairs(lambda: [(source, target)])
    standardized = SpectralStandardizer(model, mode="sample")(volume, generator=SliceSeeds(0, "series"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.methods.method import Method
from concordct.methods.spectral.inside import inside
from concordct.methods.standardizer import Mode
from concordct.signal.body import material_mask
from concordct.signal.spectra import cosine_frequencies, detail_from_cosines, from_cosines, to_cosines
from concordct.training.bundle import Bundle
from concordct.volumes.ct_range import Reach
from concordct.volumes.scans import Scan
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

METHOD = "spectral"
#: Where the model's `info` holds what images of the target kernel reach beyond `CT_HU`.
REACH = "reach_hu"

#: Width of the box, applied twice, over which the local noise level is averaged: wide enough for some 400 pixels of
#: noise, narrow enough to follow the fall from the spine to the rim.
LEVEL_WIDTH_MM = 14.0
#: A pixel of the probe band counts at most this many times the local mean power: an edge is not noise.
LEVEL_CLIP = 4.0
#: The local level is trusted within this range of the slice's own level.
LEVEL_RANGE = (0.2, 4.0)
#: Far beyond the law of any calibration (0 to 1), where HU would overflow.
LARGEST_EXPONENT = 4.0
#: Slices closer than the calibrated ones by more than this factor are standardized without their neighbours.
CLOSER_SLICES = 1.25
#: Cosine between slice normal and patient axis below which a slice is not axial; gantries tilt by up to 30 degrees.
AXIAL_COSINE = 0.85


@dataclass(frozen=True)
class Limits:
    """Where the information ends.

    Attributes
    ----------
    half_lp_cm : frequency above which less than half of the target's power follows from the source.
    gone_lp_cm : frequency above which less than a tenth does; the transfer is zero from there on.
    noise_share_above_half : share of the target's noise power above `half_lp_cm`; None when it could not be measured.
    """

    half_lp_cm: float
    gone_lp_cm: float
    noise_share_above_half: float | None


@dataclass(frozen=True, eq=False)
class NoiseModel:
    """What calibration left unexplained, as noise.

    The standard deviation at a pixel is `gain * L * (level / L) ** exponent`: `level` is the local noise level in the
    probe band of the source, L its median over the body in the slice. A change of dose moves L and scales all of it;
    inside a slice the destroyed band varies less than the probe does, which is what the exponent says.

    Attributes
    ----------
    nps_mm2 : [f], noise power spectrum for a local standard deviation of 1 HU.
    gain, exponent : of the law above, dimensionless.
    probe_lp_cm, probe_width_lp_cm : centre and standard deviation of the Gaussian probe band.
    z_correlation : correlation between the noise of neighbouring slices, 0 to 0.5.
    """

    nps_mm2: NDArray[np.float64]
    gain: float
    exponent: float
    probe_lp_cm: float
    probe_width_lp_cm: float
    z_correlation: float


@dataclass(frozen=True, eq=False)
class SpectralModel:
    """A calibrated transfer between two kernels.

    Attributes
    ----------
    frequency_lp_cm : [f], from 0.
    transfer : [2, f], the tap of the slice itself and the tap of each of its two neighbours, dimensionless.
    single : [f], the transfer for a slice without both neighbours.
    slice_spacing_mm : distance of the taps.
    coherence : [f], share of the target's power that follows from the source, 0 to 1.
    relative_error : [f], relative standard error of the transfer; None where it was not estimated.
    noise : None when the calibration could not measure what is left.
    limits : where the information ends.
    info : JSON; kernels, scanners, pixel size, counts, warnings.
    inner : [3, f], `transfer` and `single` for the inside of the body, away from its rim (`inside.py`); None where
        those of whole slices serve it as well.
    """

    frequency_lp_cm: NDArray[np.float64]
    transfer: NDArray[np.float64]
    single: NDArray[np.float64]
    slice_spacing_mm: float
    coherence: NDArray[np.float64]
    noise: NoiseModel | None
    limits: Limits
    info: Mapping[str, Any]
    relative_error: NDArray[np.float64] | None = None
    inner: NDArray[np.float64] | None = None

    @property
    def of_inside(self) -> SpectralModel | None:
        """The transfer of the inside as a model of its own."""
        return None if self.inner is None else replace(self, transfer=self.inner[:2], single=self.inner[2], inner=None)

    @classmethod
    def in_plane(
        cls,
        frequency_lp_cm: NDArray[np.float64],
        transfer: NDArray[np.float64],
        *,
        coherence: NDArray[np.float64],
        noise: NoiseModel | None,
        limits: Limits,
        info: Mapping[str, Any],
    ) -> SpectralModel:
        """A transfer [f] of each slice by itself; what was measured without pairs says nothing of its neighbours."""
        taps = np.stack([transfer, np.zeros_like(transfer)])
        return cls(frequency_lp_cm, taps, transfer, 1.0, coherence, noise, limits, info)

    @property
    def uses_neighbours(self) -> bool:
        """Whether calibration found that the target kernel mixes neighbouring slices."""
        return bool(np.any(self.transfer[1]))

    @property
    def reach_hu(self) -> Reach | None:
        """(least, greatest) HU of the target images, where they go beyond the range of a CT image."""
        ends = self.info.get(REACH)
        return None if ends is None else (float(ends[0]), float(ends[1]))

    @property
    def sharpens(self) -> bool:
        """Whether the target kernel passes more than the source's at half the frequency where information ends."""
        return bool(np.interp(self.limits.half_lp_cm / 2, self.frequency_lp_cm, self.single) > 1)

    def taps_at(self, slice_spacing_mm: float) -> NDArray[np.float64]:
        """[2, f] taps for slices at another distance.

        At low f_z, T(f, f_z) = H_0(f) + 2 H_1(f) cos(2 pi f_z d) is H_0 + 2 H_1 - (2 pi f_z)^2 H_1 d^2: a distance d'
        keeps it with H_1 d^2 / d'^2. Closer slices than the calibrated ones would need more than two neighbours; the
        transfer of a single slice serves them.
        """
        ratio = self.slice_spacing_mm / slice_spacing_mm
        if not self.uses_neighbours or abs(ratio - 1) < 1e-3:
            return self.transfer
        if ratio > CLOSER_SLICES:
            return np.stack([self.single, np.zeros_like(self.single)])
        own, neighbour = self.transfer
        return np.stack([own + 2 * neighbour * (1 - ratio**2), neighbour * ratio**2])

    def to_bundle(self) -> Bundle:
        """The model as tensors and JSON."""
        tensors = {
            "frequency_lp_cm": self.frequency_lp_cm,
            "transfer": self.transfer,
            "single": self.single,
            "coherence": self.coherence,
        }
        metadata: dict[str, Any] = {
            "method": METHOD,
            "slice_spacing_mm": self.slice_spacing_mm,
            "sharpens": self.sharpens,
            "limits": asdict(self.limits),
            "info": dict(self.info),
            "noise": None,
        }
        if self.relative_error is not None:
            tensors["relative_error"] = self.relative_error
        if self.inner is not None:
            tensors["inner"] = self.inner
        if self.noise is not None:
            fields = asdict(self.noise)
            tensors["noise_nps_mm2"] = fields.pop("nps_mm2")
            metadata["noise"] = fields
        return Bundle(tensors, metadata)

    @staticmethod
    def from_bundle(bundle: Bundle) -> SpectralModel:
        """The model that `to_bundle` wrote.

        Raises
        ------
        ConcordctError : a bundle of another method, or one that lacks a part.
        """
        if bundle.method != METHOD:
            raise ConcordctError(f"expected a model of method {METHOD!r}, found {bundle.method!r}")
        tensors, metadata = bundle.tensors, bundle.metadata
        try:
            noise = metadata["noise"]
            model = SpectralModel(
                frequency_lp_cm=tensors["frequency_lp_cm"],
                transfer=tensors["transfer"],
                single=tensors["single"],
                slice_spacing_mm=metadata["slice_spacing_mm"],
                coherence=tensors["coherence"],
                noise=None if noise is None else NoiseModel(nps_mm2=tensors["noise_nps_mm2"], **noise),
                limits=Limits(**metadata["limits"]),
                info=metadata["info"],
                relative_error=tensors.get("relative_error"),
                inner=tensors.get("inner"),
            )
        except (KeyError, TypeError) as error:
            raise ConcordctError(f"expected a whole {METHOD} model, found one without {error}") from error
        _require_sound(model)
        return model


def _require_sound(model: SpectralModel) -> None:
    """Refuse numbers that no calibration writes: a model edited by hand, or of another program."""
    frequency, count, noise = model.frequency_lp_cm, model.frequency_lp_cm.size, model.noise
    arrays = {"transfer": (model.transfer, (2, count)), "single": (model.single, (count,))}
    if model.inner is not None:
        arrays["inner"] = (model.inner, (3, count))
    arrays |= {"frequency_lp_cm": (frequency, (count,)), "coherence": (model.coherence, (count,))}
    numbers: dict[str, Any] = {"slice_spacing_mm": model.slice_spacing_mm}
    numbers |= {"half_lp_cm": model.limits.half_lp_cm, "gone_lp_cm": model.limits.gone_lp_cm}
    if noise is not None:
        arrays["noise_nps_mm2"] = (noise.nps_mm2, (count,))
        numbers |= {name: value for name, value in asdict(noise).items() if name != "nps_mm2"}
    for name, (array, shape) in arrays.items():
        if not count or array.shape != shape or not np.isfinite(array).all():
            raise ConcordctError(f"expected {shape} finite numbers as {name}, found {array.shape} or others")
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise ConcordctError(f"expected a finite number as {name}, found {value!r:.20}")
    at_zero = (model.single[0], model.transfer[0, 0] + 2 * model.transfer[1, 0])
    if frequency[0] != 0 or np.any(np.diff(frequency) <= 0) or not np.allclose(at_zero, 1, rtol=0, atol=1e-3):
        raise ConcordctError(
            f"expected frequencies that ascend from 0 and a transfer of 1 there, found {frequency[0]:g} lp/cm and "
            f"{at_zero[0]:g}, {at_zero[1]:g}"
        )
    if model.slice_spacing_mm <= 0 or (noise is not None and not _sound_noise(noise)):
        raise ConcordctError("expected a slice distance and a noise law of positive numbers, found others")


def _sound_noise(noise: NoiseModel) -> bool:
    positive = min(float(noise.nps_mm2.min()), noise.gain) >= 0 and noise.probe_width_lp_cm > 0
    return positive and 0 <= noise.z_correlation <= 0.5 and abs(noise.exponent) <= LARGEST_EXPONENT


@lru_cache(maxsize=4)
def _frequencies(shape: tuple[int, int], spacing_mm: tuple[float, float]) -> NDArray[np.float32]:
    return cosine_frequencies(shape, spacing_mm)


def _smooth(image: NDArray[np.float32], spacing_mm: tuple[float, float]) -> NDArray[np.float32]:
    size = [max(1, 2 * round(LEVEL_WIDTH_MM / d / 2) + 1) for d in spacing_mm]
    return np.asarray(ndimage.uniform_filter(ndimage.uniform_filter(image, size), size))


def noise_level(
    coefficients: NDArray[np.float32],
    *,
    spacing_mm: tuple[float, float],
    probe_lp_cm: float,
    probe_width_lp_cm: float,
) -> NDArray[np.float32]:
    """Local noise level of a slice: root mean square in a band where noise outweighs anatomy.

    Parameters
    ----------
    coefficients : [y, x], as `to_cosines` gives them.
    spacing_mm : (y, x), mm.
    probe_lp_cm, probe_width_lp_cm : centre and standard deviation of the Gaussian band, lp/cm.

    Returns
    -------
    [y, x] float32, HU.
    """
    frequency = _frequencies((coefficients.shape[0], coefficients.shape[1]), spacing_mm)
    band = np.exp(-0.5 * ((frequency - np.float32(probe_lp_cm)) / np.float32(probe_width_lp_cm)) ** 2)
    power = detail_from_cosines(coefficients * band) ** 2
    clipped = np.minimum(power, np.float32(LEVEL_CLIP) * _smooth(power, spacing_mm))
    return np.sqrt(np.maximum(_smooth(clipped, spacing_mm), 0))


def local_deviation(
    level: NDArray[np.float32], body: NDArray[np.bool_], *, gain: float, exponent: float
) -> NDArray[np.float32]:
    """Standard deviation of the noise to add at each pixel: the law of `NoiseModel`.

    Parameters
    ----------
    level : [y, x], local noise level, HU.
    body : [y, x] bool; the slice's own level is the median inside. Without body nothing is added.
    """
    if not body.any():
        return np.zeros_like(level)
    own = np.float32(max(float(np.median(level[body])), 1e-3))
    return np.float32(gain) * own * np.clip(level / own, *LEVEL_RANGE) ** np.float32(exponent)


def require_axial(volume: Volume | Scan) -> None:
    """A reconstruction kernel acts in the axial plane.

    Raises
    ------
    ConcordctError : the slices are not axial.
    """
    rows, columns = (volume.affine[:3, axis] / np.linalg.norm(volume.affine[:3, axis]) for axis in (1, 2))
    normal = np.cross(rows, columns)
    if abs(normal[2]) < AXIAL_COSINE:
        x, y, z = normal
        raise ConcordctError(
            "expected axial slices (a kernel acts in the axial plane), "
            f"found slices with normal ({x:.2f}, {y:.2f}, {z:.2f}) in LPS"
        )


@dataclass(frozen=True, eq=False)
class SpectralStandardizer:
    """Applies a `SpectralModel`; a `Standardizer`.

    Attributes
    ----------
    model : the calibrated transfer.
    mode : "sample" adds the noise that the source kernel destroyed (right texture), "mean" does not (least HU error).
    use_neighbours : set to False for series whose slices are not evenly spaced.
    """

    model: SpectralModel
    mode: Mode = "sample"
    use_neighbours: bool = True

    def __post_init__(self) -> None:
        if self.mode == "sample" and self.model.noise is None:
            raise ConcordctError(
                "expected a model with a noise part for mode 'sample', found one calibrated without: use mode 'mean'"
            )

    @property
    def context_slices(self) -> int:
        """Slices needed on either side of a slab."""
        return int(self.use_neighbours and self.model.uses_neighbours)

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
        require_axial(volume)
        coefficients = [to_cosines(image) for image in volume.hu]
        whole = self._passes(self.model, volume)
        of_inside = self.model.of_inside
        within = None if of_inside is None else self._passes(of_inside, volume)
        hu = np.empty_like(volume.hu)
        for index, own_coefficients in enumerate(coefficients):
            hu[index] = from_cosines(whole(coefficients, index))
            if within is not None:
                weight = inside(volume.hu[index], volume.spacing_mm[1:])
                hu[index] += weight * (from_cosines(within(coefficients, index)) - hu[index])
            if self.mode == "sample":
                hu[index] += self._noise(own_coefficients, volume, index, generator)
        return replace(volume.with_hu(hu), reach_hu=self.model.reach_hu)

    def _passes(self, model: SpectralModel, volume: Volume) -> Callable[[list[NDArray[np.float32]], int], Any]:
        """A transfer on the coefficients of a slice, and its neighbours where it has both."""
        frequency = _frequencies(volume.shape[1:], volume.spacing_mm[1:])
        single = self._on_grid(model.single, frequency)
        if self.context_slices:
            own, side = (self._on_grid(tap, frequency) for tap in model.taps_at(volume.spacing_mm[0]))

        def filtered(coefficients: list[NDArray[np.float32]], index: int) -> NDArray[np.float32]:
            if self.context_slices and 0 < index < len(coefficients) - 1:
                both = coefficients[index - 1] + coefficients[index + 1]
                return np.asarray(own * coefficients[index] + side * both)
            return np.asarray(single * coefficients[index])

        return filtered

    def _on_grid(self, curve: NDArray[np.float64], frequency: NDArray[np.float32]) -> NDArray[np.float32]:
        # Beyond the calibrated frequencies nothing is known, so nothing passes.
        return np.interp(frequency, self.model.frequency_lp_cm, curve, right=0.0).astype(np.float32)

    def _noise(
        self, coefficients: NDArray[np.float32], volume: Volume, index: int, generator: SliceSeeds
    ) -> NDArray[np.float32]:
        return self.deviation(coefficients, volume, index) * self.unit_noise(volume, index, generator)

    def deviation(self, coefficients: NDArray[np.float32], volume: Volume, index: int) -> NDArray[np.float32]:
        """[y, x] standard deviation of what the transfer leaves over in a slice, HU; 0 where there is no body."""
        noise = self._required_noise()
        spacing = volume.spacing_mm[1:]
        level = noise_level(
            coefficients,
            spacing_mm=spacing,
            probe_lp_cm=noise.probe_lp_cm,
            probe_width_lp_cm=noise.probe_width_lp_cm,
        )
        body = material_mask(volume.hu[index : index + 1], spacing)[0]
        return local_deviation(level, body, gain=noise.gain, exponent=noise.exponent)

    def unit_noise(self, volume: Volume, index: int, generator: SliceSeeds) -> NDArray[np.float32]:
        """[y, x] noise of the calibrated spectrum for a deviation of 1, seeded slice by slice."""
        return detail_from_cosines(
            self.white(volume, index, generator) * self.amplitude(volume.shape[1:], volume.spacing_mm[1:])
        )

    def white(self, volume: Volume, index: int, generator: SliceSeeds) -> NDArray[np.float32]:
        """[y, x] white cosine coefficients (white noise), correlated between neighbouring slices as calibrated."""
        noise, shape = self._required_noise(), volume.shape[1:]
        white = generator.at(volume.first_slice + index).standard_normal(shape, dtype=np.float32)
        if noise.z_correlation > 0 and self.use_neighbours:
            # Each slice mixes its own with its predecessor's: a moving average of lag-one correlation
            # theta / (1 + theta^2).
            theta = np.float32((1 - np.sqrt(1 - 4 * noise.z_correlation**2)) / (2 * noise.z_correlation))
            before = generator.at(volume.first_slice + index - 1).standard_normal(shape, dtype=np.float32)
            white = (white + theta * before) / np.sqrt(1 + theta**2)
        return white

    def amplitude(self, shape: tuple[int, int], spacing_mm: tuple[float, float]) -> NDArray[np.float32]:
        """[y, x] root mean square of the cosine coefficients of `unit_noise`."""
        nps = self._on_grid(self._required_noise().nps_mm2, _frequencies(shape, spacing_mm))
        return np.sqrt(nps / np.float32(spacing_mm[0] * spacing_mm[1]))

    def _required_noise(self) -> NoiseModel:
        if self.model.noise is None:
            raise ConcordctError("expected a model with a noise part, found one calibrated without")
        return self.model.noise


def load(bundle: Bundle, mode: Mode, *, use_neighbours: bool = True) -> SpectralStandardizer:
    """A stored calibration at work."""
    return SpectralStandardizer(SpectralModel.from_bundle(bundle), mode=mode, use_neighbours=use_neighbours)


ENTRY = Method("Spectral transfer", load, neighbours=True, calibration=SpectralModel.from_bundle)
