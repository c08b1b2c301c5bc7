"""The self-check of a scan before it is standardized: a few slices, on any method that holds a spectral model.

Nothing here depends on slabs, workers or the clock, so a check is as reproducible as the result that it stands beside.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from concordct.methods.slabs import for_filters
from concordct.methods.spectral.self_check import SelfCheck, check_return, check_series
from concordct.methods.spectral.transfer import SpectralModel
from concordct.methods.standardizer import Standardizer
from concordct.signal.signature import SignatureMeter
from concordct.volumes.scans import Scan, evenly_spaced
from concordct.volumes.seeds import SliceSeeds

#: Slices whose kernel is measured: so many, and one more for every so many slices of the scan.
KERNEL_SLICES, KERNEL_EVERY = 3, 50
#: Slices that are standardized and taken back, likewise; one costs as much as it does in the run itself.
RETURN_SLICES, RETURN_EVERY = 1, 100


#: What to do about a scan that fails its check.
Check = Literal["warn", "refuse", "off"]


def spectral_model(standardizer: Standardizer) -> SpectralModel | None:
    """The calibration that a standardizer works with; None for methods without one."""
    model = getattr(standardizer, "model", None)
    return model if isinstance(model, SpectralModel) else None


def check_scan(
    scan: Scan, standardizer: Standardizer, *, seed: int, allow: Collection[str] = frozenset()
) -> SelfCheck | None:
    """Check a scan and what becomes of it.

    Parameters
    ----------
    seed : as for the run: the slices that are taken back are those that it writes, before rounding.
    allow : problems that may pass, see `Series.check`.

    Returns
    -------
    None for methods without a spectral model, and for scans without body in the slices looked at.

    Raises
    ------
    ConcordctError : slices that cannot be read or are not axial.
    """
    model = spectral_model(standardizer)
    if model is None:
        return None
    depth = scan.shape[0]
    whole, meters = SignatureMeter(), dict[int, SignatureMeter]()
    for index in _spread(depth, KERNEL_SLICES + depth // KERNEL_EVERY):
        volume, meter = scan.read(index, index + 1, allow=allow), SignatureMeter()
        if meter.add(volume.hu[0], spacing_mm=volume.spacing_mm[1:]):
            meters[index] = meter
            whole.include(meter)
    if not meters:
        return None
    returned = []
    for at in _spread(len(meters), RETURN_SLICES + depth // RETURN_EVERY):
        index, meter = list(meters.items())[at]
        # Neighbours for the method, and for the transfer that it is compared with.
        context = max(standardizer.context_slices, int(model.uses_neighbours))
        low, high = max(0, index - context), min(depth, index + context + 1)
        source = scan.read(low, high, allow=allow)
        output = standardizer(for_filters(source), generator=SliceSeeds(seed, scan.key))
        returned.append(
            check_return(
                model,
                source,
                output,
                index=index - low,
                signature=meter.signature(),
                use_neighbours=evenly_spaced(scan),
            )
        )
    return check_series(model, whole.signature(), returned)


def _spread(depth: int, count: int) -> list[int]:
    """At most `count` indices, evenly spread over the inside of a scan."""
    count = min(depth, count)
    return sorted({int((at + 0.5) * depth / count) for at in range(count)})
