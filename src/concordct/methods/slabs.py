"""A scan through a standardizer, slab by slab, so that memory stays flat whatever its length."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from concordct.methods.standardizer import Standardizer
from concordct.volumes.padding import continued
from concordct.volumes.scans import Scan
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

#: Slices handled at once: 16 of 512 x 512 are 16 MB of HU, whatever the length of the series.
SLAB_SLICES = 16


def for_filters(volume: Volume) -> Volume:
    """The volume as a standardizer may see it: tissue goes on where padding cuts it off (`padding.continued`)."""
    hu = continued(volume.hu, volume.padding)
    return volume if hu is volume.hu else replace(volume, hu=hu)


def standardized_slabs(
    scan: Scan,
    standardizer: Standardizer,
    *,
    seed: int,
    allow: Collection[str] = frozenset(),
    progress: Callable[[int], None] | None = None,
) -> Iterator[Volume]:
    """Standardize a scan slab by slab.

    Parameters
    ----------
    seed : the user's seed; noise is keyed by it, by the scan and by the slice.
    allow : problems that may pass, see `Series.check`.
    progress : called with the number of slices done after each slab.

    Yields
    ------
    Consecutive slabs that cover the scan.
    """
    generator = SliceSeeds(seed, scan.key)
    context, depth = standardizer.context_slices, scan.shape[0]
    for start in range(0, depth, SLAB_SLICES):
        stop = min(start + SLAB_SLICES, depth)
        low, high = max(0, start - context), min(depth, stop + context)
        volume = scan.read(low, high, allow=allow)
        yield standardizer(for_filters(volume), generator=generator).slab(start - low, stop - low)
        if progress is not None:
            progress(stop)
