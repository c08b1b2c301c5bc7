"""`concord` on disk: transfer, transport and adaptive transfer in one bundle."""

from __future__ import annotations

from concordct.methods.concord.adaptive import Adaptive
from concordct.methods.concord.transport import Transport
from concordct.methods.spectral import transfer as spectral
from concordct.methods.spectral.transfer import SpectralModel
from concordct.training.bundle import Bundle

METHOD = "concord"
#: Tensors of transport and adaptive transfer in a bundle that also holds the spectral model.
TRANSPORT, ADAPTIVE = "transport/", "adaptive/"


def to_bundle(model: SpectralModel, transport: Transport | None, adaptive: Adaptive | None = None) -> Bundle:
    """A calibration as tensors and JSON."""
    calibrated = model.to_bundle()
    tensors = dict(calibrated.tensors)
    for prefix, part in ((TRANSPORT, transport), (ADAPTIVE, adaptive)):
        tensors |= {} if part is None else {prefix + name: one for name, one in part.to_tensors().items()}
    return Bundle(tensors, {**calibrated.metadata, "method": METHOD})


def parts(bundle: Bundle) -> tuple[SpectralModel, Transport | None, Adaptive | None]:
    """The calibration inside a bundle of this method."""
    model = SpectralModel.from_bundle(Bundle(bundle.tensors, {**bundle.metadata, "method": spectral.METHOD}))
    transport, adaptive = (
        {name.removeprefix(prefix): one for name, one in bundle.tensors.items() if name.startswith(prefix)}
        for prefix in (TRANSPORT, ADAPTIVE)
    )
    return (
        model,
        Transport.from_tensors(transport) if transport else None,
        Adaptive.from_tensors(adaptive) if adaptive else None,
    )
