"""The flagship on disk: a transfer and a transport in one bundle."""

from __future__ import annotations

from concordct.methods.concord.transport import Transport
from concordct.methods.spectral import transfer as spectral
from concordct.methods.spectral.transfer import SpectralModel
from concordct.training.bundle import Bundle

METHOD = "concord"
#: Tensors of the transport in a bundle that also holds the spectral model.
TRANSPORT = "transport/"


def to_bundle(model: SpectralModel, transport: Transport | None) -> Bundle:
    """A calibration as tensors and JSON."""
    calibrated = model.to_bundle()
    found = {} if transport is None else transport.to_tensors()
    tensors = {**calibrated.tensors, **{TRANSPORT + name: one for name, one in found.items()}}
    return Bundle(tensors, {**calibrated.metadata, "method": METHOD})


def parts(bundle: Bundle) -> tuple[SpectralModel, Transport | None]:
    """The calibration inside a bundle of this method."""
    model = SpectralModel.from_bundle(Bundle(bundle.tensors, {**bundle.metadata, "method": spectral.METHOD}))
    found = {n.removeprefix(TRANSPORT): one for n, one in bundle.tensors.items() if n.startswith(TRANSPORT)}
    return model, Transport.from_tensors(found) if found else None
