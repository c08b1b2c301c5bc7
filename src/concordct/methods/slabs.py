"""A scan through a standardizer, slab by slab, so that memory stays flat whatever its length."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from concordct.errors import ConcordctError
from concordct.methods.standardizer import Standardizer
from concordct.signal.spectra import transforms_on
from concordct.volumes.files import VolumeFile
from concordct.volumes.padding import continued
from concordct.volumes.scans import Scan
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

if TYPE_CHECKING:
    from concurrent.futures import Future

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
    workers: int = 1,
    device: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Volume]:
    """Standardize a scan slab by slab.

    Parameters
    ----------
    workers : processes that share the slabs, each with the slices that it needs on either side; they change no byte.
    seed : the user's seed; noise is keyed by it, by the scan and by the slice.
    allow : problems that may pass, see `Series.check`.
    device : of PyTorch, for cosine transforms; None for SciPy, see `spectra.transforms_on`.
    progress : called with the number of slices done after each slab.

    Yields
    ------
    Consecutive slabs that cover the scan.

    Raises
    ------
    ConcordctError : slices that cannot be read, or a worker that was killed.
    """
    depth = scan.shape[0]
    work = SlabWork(scan, standardizer, SliceSeeds(seed, scan.key), frozenset(allow), device)
    starts = range(0, depth, SLAB_SLICES)
    shared = workers > 1 and len(starts) > 1
    for start, slab in zip(starts, _shared(work, starts, workers) if shared else map(work, starts), strict=True):
        yield slab
        if progress is not None:
            progress(min(start + SLAB_SLICES, depth))


@dataclass(frozen=True, eq=False)
class SlabWork:
    """What makes each slab of a scan from its first slice."""

    scan: Scan
    standardizer: Standardizer
    generator: SliceSeeds
    allow: frozenset[str]
    device: str | None = None

    def read(self, start: int) -> Volume:
        """A slab with the slices that it needs on either side."""
        context, depth = self.standardizer.context_slices, self.scan.shape[0]
        low, high = max(0, start - context), min(depth, start + SLAB_SLICES + context)
        return self.scan.read(low, high, allow=self.allow)

    def made(self, start: int, volume: Volume) -> Volume:
        """The slab of what was read."""
        inside = start - volume.first_slice
        stop = min(start + SLAB_SLICES, self.scan.shape[0]) - volume.first_slice
        with transforms_on(self.device):
            return self.standardizer(for_filters(volume), generator=self.generator).slab(inside, stop)

    def __call__(self, start: int) -> Volume:
        """The slab that starts at this slice."""
        return self.made(start, self.read(start))


def _shared(work: SlabWork, starts: range, workers: int) -> Iterator[Volume]:
    """Slabs in order, by several processes; at most two slabs a process are on their way, so memory stays flat."""
    from concurrent.futures import BrokenExecutor

    from concordct.volumes.workers import worker_pool

    # A file is one stream, which this process reads once for all; slices of a series are files of their own.
    streamed = isinstance(work.scan, VolumeFile)
    waiting: deque[Future[Volume]] = deque()
    with worker_pool(min(workers, len(starts)), begin=partial(_take, work)) as pool:
        try:
            for start in starts:
                if len(waiting) == 2 * workers:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(_slab, start, work.read(start) if streamed else None))
            while waiting:
                yield waiting.popleft().result()
        except BrokenExecutor:
            raise ConcordctError("a worker process was killed (out of memory?); run again to resume") from None


#: Of a worker process: what it makes slabs with, sent once.
_work: SlabWork | None = None


def _take(work: SlabWork) -> None:
    global _work
    _work = work


def _slab(start: int, volume: Volume | None) -> Volume:
    assert _work is not None
    return _work(start) if volume is None else _work.made(start, volume)
