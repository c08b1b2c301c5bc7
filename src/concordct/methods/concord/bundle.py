"""The flagship on disk: a calibration and the network's weights in one bundle. Calibrating needs no torch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from concordct.methods.concord.transport import Transport
from concordct.methods.spectral import transfer as spectral
from concordct.methods.spectral.transfer import SpectralModel
from concordct.training.bundle import Bundle, load_bundle

METHOD = "concord"
#: Method of a bundle that holds a trained network and no calibration.
WEIGHTS = "concord-weights"
#: Tensors of the network in a bundle that also holds the spectral model.
PREFIX = "network/"
#: Tensors of the transport.
TRANSPORT = "transport/"
#: Weights that come with the package, trained on simulated studies alone; `make weights` trains them again.
SHIPPED = Path(__file__).parent / "weights" / "concord"


@lru_cache(maxsize=1)
def shipped_weights() -> Bundle:
    """The network that comes with the package, checked against its own checksum."""
    return load_bundle(SHIPPED)


def to_bundle(model: SpectralModel, transport: Transport | None, weights: Bundle) -> Bundle:
    """A calibration with the network that serves it; the bundle keeps its own copy of the weights.

    Parameters
    ----------
    weights : as `shipped_weights` or training gives them.
    """
    calibrated = model.to_bundle()
    tensors = {**calibrated.tensors, **{PREFIX + name: one for name, one in weights.tensors.items()}}
    if transport is not None:
        tensors |= {TRANSPORT + name: one for name, one in transport.to_tensors().items()}
    described = {"network": weights.metadata["network"], "weights_sha256": weights.sha256}
    return Bundle(tensors, {**calibrated.metadata, "method": METHOD, **described})


def weights_of(bundle: Bundle) -> Bundle:
    """The network inside a bundle of this method, by itself."""
    tensors = {name.removeprefix(PREFIX): one for name, one in bundle.tensors.items() if name.startswith(PREFIX)}
    info = {"taken_from": bundle.metadata["weights_sha256"]}
    return Bundle(tensors, {"method": WEIGHTS, "network": bundle.metadata["network"], "info": info})


def parts(bundle: Bundle) -> tuple[SpectralModel, Transport | None]:
    """The calibration inside a bundle of this method."""
    own = (PREFIX, TRANSPORT)
    spectral_tensors = {name: one for name, one in bundle.tensors.items() if not name.startswith(own)}
    model = SpectralModel.from_bundle(Bundle(spectral_tensors, {**bundle.metadata, "method": spectral.METHOD}))
    found = {n.removeprefix(TRANSPORT): one for n, one in bundle.tensors.items() if n.startswith(TRANSPORT)}
    return model, Transport.from_tensors(found) if found else None
