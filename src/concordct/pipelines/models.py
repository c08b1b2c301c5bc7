"""From a model on disk to a Standardizer. The one place that knows which methods there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from concordct.errors import ConcordctError
from concordct.methods import spectral
from concordct.methods.spectral import Mode, SpectralModel, SpectralStandardizer
from concordct.methods.standardizer import Standardizer
from concordct.training.bundle import Bundle, load_bundle


def _spectral(bundle: Bundle, mode: Mode, use_neighbours: bool) -> Standardizer:
    return SpectralStandardizer(SpectralModel.from_bundle(bundle), mode=mode, use_neighbours=use_neighbours)


#: First value of ConvolutionKernel in derived series.
OWN_KERNEL = "CONCORDCT\\"

METHODS: dict[str, Callable[[Bundle, Mode, bool], Standardizer]] = {spectral.METHOD: _spectral}


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

    def standardizer(self, *, mode: Mode, use_neighbours: bool = True) -> Standardizer:
        """The model at work.

        Parameters
        ----------
        use_neighbours : False for scans whose slices are not evenly spaced.
        """
        return METHODS[self.bundle.method](self.bundle, mode, use_neighbours)


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
        METHODS[bundle.method](bundle, "mean", True)
    except ConcordctError as error:
        raise ConcordctError(f"{path}: {error}") from error
    return Model(path.resolve().name, bundle, bundle.sha256)


def kernel_mismatch(model: Model, kernel: str | None) -> str | None:
    """Why a scan of this kernel is not the model's to convert; None when it is, or when nobody says."""
    if kernel is not None and kernel.startswith(OWN_KERNEL) and kernel not in model.source_kernels:
        return f"kernel {kernel}: standardized by concordct already"
    if kernel is None or not model.source_kernels or kernel in model.source_kernels:
        return None
    return f"kernel {kernel}, while the model converts from {' or '.join(model.source_kernels)}"
