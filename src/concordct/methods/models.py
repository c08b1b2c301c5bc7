"""From a model on disk to a Standardizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concordct.errors import ConcordctError
from concordct.methods import catalogue
from concordct.methods.spectral.reference import METHOD as REFERENCE
from concordct.methods.spectral.reference import Reference, load_reference
from concordct.methods.spectral.refined import bring
from concordct.methods.spectral.thickness import Stacking
from concordct.methods.standardizer import Mode, Standardizer
from concordct.training.bundle import Bundle, load_bundle
from concordct.volumes.scans import Scan, scan_path

if TYPE_CHECKING:
    from concordct.methods.spectral.transfer import SpectralModel

#: What overrides a trained model's own way of sampling: steps, sampler, start, begin, depth.
Sampling = Mapping[str, Any]
#: A scan's own resolution and noise are measured on at most so many slices, evenly spread.
MEASURED_SLICES = 12
#: First value of ConvolutionKernel in derived series.
OWN_KERNEL = "CONCORDCT\\"


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

    @property
    def stacking(self) -> Stacking | None:
        """How it makes slices of another thickness; None when it leaves slices as they are."""
        return Stacking.of_bundle(self.bundle)

    def seen(self, scan: Scan) -> Scan:
        """The scan as its standardizer takes it: in slices of the target's thickness where that is another.

        Raises
        ------
        ConcordctError : slices that the model does not lead from.
        """
        stacking = self.stacking
        return scan if stacking is None else stacking.of(scan)

    def fitted(self, scan: Scan, *, allow: Collection[str] = frozenset()) -> Model:
        """The model for one scan: a reference is held against what the scan shows; any other is the same for all.

        Raises
        ------
        ConcordctError : a scan whose resolution cannot be measured, or slices that cannot be read.
        """
        if self.bundle.method != REFERENCE:
            return self
        depth = scan.shape[0]
        picked = sorted({int((at + 0.5) * depth / MEASURED_SLICES) for at in range(MEASURED_SLICES)})
        try:
            slices = (scan.read(index, index + 1, allow=allow) for index in picked)
            found = bring(Reference.from_json(self.bundle.metadata[REFERENCE]), slices)
        except ConcordctError as error:
            raise ConcordctError(f"{scan_path(scan)}: {error}") from None
        bundle = found.to_bundle()
        return Model(self.name, bundle, bundle.sha256)

    @property
    def samples_noise(self) -> bool:
        """Whether a closed-form model knows the noise that mode "sample" adds; True for methods that learn."""
        return self.bundle.metadata.get("noise", True) is not None

    def calibration(self) -> SpectralModel | None:
        """The calibrated transfer inside; None for methods without one."""
        found = catalogue.method(self.bundle.method).calibration
        return None if found is None else found(self.bundle)

    def standardizer(
        self, *, mode: Mode, use_neighbours: bool = True, sampling: Sampling | None = None
    ) -> Standardizer:
        """The model at work.

        Parameters
        ----------
        use_neighbours : False for scans whose slices are not evenly spaced.
        sampling : overrides of a model's way of sampling.

        Raises
        ------
        ConcordctError : an override that the method does not have.
        """
        method = catalogue.method(self.bundle.method)
        return method.open(self.bundle, mode, use_neighbours=use_neighbours, sampling=sampling or {})


def shipped() -> dict[str, Path]:
    """Models that come with the package, by the name that they go by."""
    folder = Path(__file__).parent / "weights"
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()} if folder.is_dir() else {}


def model_folder(path: Path) -> Path:
    """A model's folder, or that of the one of this name that comes with the package where no such folder is."""
    return path if path.exists() else shipped().get(str(path), path)


def load_model(path: Path) -> Model:
    """Read a model of any method, see `model_folder`.

    Raises
    ------
    ConcordctError : no model, a damaged one, or one of a method that this version does not know.
    """
    path = model_folder(path)
    bundle = load_bundle(path)
    try:
        catalogue.method(bundle.method).open(bundle, "mean", use_neighbours=True, sampling={})
        Stacking.of_bundle(bundle)
    except ConcordctError as error:
        raise ConcordctError(f"{path}: {error}") from error
    return Model(path.resolve().name, bundle, bundle.sha256)


def open_reference(given: str) -> Model:
    """A reference condition by name or from a file, in a model's place; `Model.fitted` makes one of it for a scan."""
    found = load_reference(given)
    bundle = Bundle({}, {"method": REFERENCE, "info": {}, REFERENCE: found.to_json()})
    return Model(f"reference {found.name}", bundle, bundle.sha256)


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
