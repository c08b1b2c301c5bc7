"""`concord` on disk: transfer, transport, adaptive transfer, width and learned residual in one bundle."""

from __future__ import annotations

from concordct.errors import ConcordctError
from concordct.methods.concord.adaptive import Adaptive
from concordct.methods.concord.learned import Learned
from concordct.methods.concord.transport import Transport
from concordct.methods.concord.width import Width
from concordct.methods.spectral import transfer as spectral
from concordct.methods.spectral.transfer import SpectralModel
from concordct.training.bundle import Bundle

METHOD = "concord"
#: Tensors of the parts in a bundle that also holds the spectral model.
TRANSPORT, ADAPTIVE, WIDTH, LEARNED = "transport/", "adaptive/", "width/", "learned/"


def to_bundle(
    model: SpectralModel,
    transport: Transport | None,
    adaptive: Adaptive | None = None,
    width: Width | None = None,
    learned: Learned | None = None,
) -> Bundle:
    """A calibration as tensors and JSON."""
    calibrated = model.to_bundle()
    tensors = dict(calibrated.tensors)
    for prefix, part in ((TRANSPORT, transport), (ADAPTIVE, adaptive), (WIDTH, width), (LEARNED, learned)):
        tensors |= {} if part is None else {prefix + name: one for name, one in part.to_tensors().items()}
    return Bundle(tensors, {**calibrated.metadata, "method": METHOD})


def parts(
    bundle: Bundle,
) -> tuple[SpectralModel, Transport | None, Adaptive | None, Width | None, Learned | None]:
    """The calibration inside a bundle of this method.

    Raises
    ------
    ConcordctError : a part that this version does not know, or one that is not whole.
    """
    model = SpectralModel.from_bundle(Bundle(bundle.tensors, {**bundle.metadata, "method": spectral.METHOD}))
    known = (TRANSPORT, ADAPTIVE, WIDTH, LEARNED)
    strange = sorted({name.split("/")[0] for name in bundle.tensors if "/" in name and not name.startswith(known)})
    if strange:
        raise ConcordctError(f"expected a calibration of this version, found {', '.join(strange)} in it: a newer one")
    transport, adaptive, width, learned = (
        {name.removeprefix(prefix): one for name, one in bundle.tensors.items() if name.startswith(prefix)}
        for prefix in known
    )
    return (
        model,
        Transport.from_tensors(transport) if transport else None,
        Adaptive.from_tensors(adaptive) if adaptive else None,
        Width.from_tensors(width) if width else None,
        Learned.from_tensors(learned) if learned else None,
    )
