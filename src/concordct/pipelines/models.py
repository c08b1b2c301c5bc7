"""From a model on disk to a Standardizer. The one place that knows which methods there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concordct.errors import ConcordctError
from concordct.methods.concord import bundle as concord_bundle
from concordct.methods.concord import standardizer as concord
from concordct.methods.spectral import transfer as spectral
from concordct.methods.spectral.transfer import SpectralModel, SpectralStandardizer
from concordct.methods.standardizer import Mode, Standardizer
from concordct.training.bundle import Bundle, load_bundle

#: What overrides a trained model's own way of sampling: steps, sampler, start, begin, depth.
Sampling = Mapping[str, Any]
#: First value of ConvolutionKernel in derived series.
OWN_KERNEL = "CONCORDCT\\"


def _no_choice(method: str, sampling: Sampling) -> None:
    """Methods whose sampling has nothing to choose.

    Raises
    ------
    ConcordctError : something chosen.
    """
    if sampling:
        raise ConcordctError(f"expected no choice of sampling for method {method}, found {', '.join(sorted(sampling))}")


def _spectral(bundle: Bundle, mode: Mode, use_neighbours: bool, sampling: Sampling) -> Standardizer:
    _no_choice(bundle.method, sampling)
    return SpectralStandardizer(SpectralModel.from_bundle(bundle), mode=mode, use_neighbours=use_neighbours)


def _histogram(bundle: Bundle, mode: Mode, use_neighbours: bool, sampling: Sampling) -> Standardizer:
    from concordct.methods.paired import histogram

    _no_choice(bundle.method, sampling)
    return histogram.load(bundle)


# Torch is imported where a network is used: the spectral path needs none.


def _concord(bundle: Bundle, mode: Mode, use_neighbours: bool, sampling: Sampling) -> Standardizer:
    _no_choice(bundle.method, sampling)
    return concord.load(bundle, mode, use_neighbours)


def _ltdiffpp(bundle: Bundle, mode: Mode, use_neighbours: bool, sampling: Sampling) -> Standardizer:
    from concordct.methods.paired import ltdiffpp

    return ltdiffpp.load(bundle, mode, sampling=sampling)


def _diffusionct(bundle: Bundle, mode: Mode, use_neighbours: bool, sampling: Sampling) -> Standardizer:
    from concordct.methods.paired import diffusionct

    return diffusionct.load(bundle, mode, sampling=sampling)


def _ddpm(bundle: Bundle, mode: Mode, use_neighbours: bool, sampling: Sampling) -> Standardizer:
    from concordct.methods.paired import ddpm

    return ddpm.load(bundle, mode, sampling=sampling)


def _encoder_decoder(bundle: Bundle, mode: Mode, use_neighbours: bool, sampling: Sampling) -> Standardizer:
    from concordct.methods.paired import encoder_decoder

    return encoder_decoder.load(bundle, mode, sampling=sampling)


METHODS: dict[str, Callable[[Bundle, Mode, bool, Sampling], Standardizer]] = {
    concord_bundle.METHOD: _concord,
    spectral.METHOD: _spectral,
    "ltdiffpp": _ltdiffpp,
    "diffusionct": _diffusionct,
    "ddpm": _ddpm,
    "encoder-decoder": _encoder_decoder,
    "histogram": _histogram,
}


@dataclass(frozen=True, eq=False)
class Model:
    """A bundle with the name that it goes by and the digest that identifies it."""

    name: str
    bundle: Bundle
    sha256: str

    @property
    def source_kernels(self) -> tuple[str, ...]:
        """Kernels that it was calibrated from; empty when its data did not name them."""
        return tuple(self.bundle.metadata["info"].get("source_kernels", ()))

    @property
    def target_kernels(self) -> tuple[str, ...]:
        """Kernels that it was calibrated toward; empty when its data did not name them."""
        return tuple(self.bundle.metadata["info"].get("target_kernels", ()))

    def calibration(self) -> SpectralModel | None:
        """The calibrated transfer inside; None for methods without one."""
        if self.bundle.method == spectral.METHOD:
            return SpectralModel.from_bundle(self.bundle)
        return concord_bundle.parts(self.bundle)[0] if self.bundle.method == concord_bundle.METHOD else None

    def standardizer(
        self, *, mode: Mode, use_neighbours: bool = True, sampling: Sampling | None = None
    ) -> Standardizer:
        """The model at work.

        Parameters
        ----------
        use_neighbours : False for scans whose slices are not evenly spaced.
        sampling : overrides of a trained model's way of sampling; an unknown one raises.
        """
        return METHODS[self.bundle.method](self.bundle, mode, use_neighbours, sampling or {})


def load_model(path: Path) -> Model:
    """Read a model of any method.

    Raises
    ------
    ConcordctError : no model, a damaged one, or one of a method that this version does not know.
    """
    bundle = load_bundle(path)
    if bundle.method not in METHODS:
        raise ConcordctError(f"{path}: expected a model of {' or '.join(METHODS)}, found {bundle.method!r}")
    try:
        METHODS[bundle.method](bundle, "mean", True, {})
    except ConcordctError as error:
        raise ConcordctError(f"{path}: {error}") from error
    return Model(path.resolve().name, bundle, bundle.sha256)


def open_standardizer(path: str, mode: Mode = "sample") -> Standardizer:
    """A model on disk at work; what `configs/inference.json` names, so that a MONAI Bundle opens as one."""
    return load_model(Path(path)).standardizer(mode=mode)


def kernel_mismatch(model: Model, kernel: str | None) -> str | None:
    """Why a scan of this kernel is not the model's to convert; None when it is, or when nobody says."""
    if kernel is not None and kernel.startswith(OWN_KERNEL) and kernel not in model.source_kernels:
        return f"kernel {kernel}: standardized by concordct already"
    if kernel is None or not model.source_kernels or kernel in model.source_kernels:
        return None
    return f"kernel {kernel}, while the model converts from {' or '.join(model.source_kernels)}"
