"""Several samples of one scan: their mean and how far they differ, voxel by voxel, beside the first of them.

Sample k of a run with seed s is what a run with seed s + k writes. The sums run over one slab at a time; means and
deviations of finished slabs wait on disk, so that memory depends neither on the samples nor on the length of the scan.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from concordct.methods.slabs import SLAB_SLICES, for_filters
from concordct.methods.standardizer import Standardizer
from concordct.volumes.ct_range import Reach
from concordct.volumes.files import ENDINGS
from concordct.volumes.place import writing
from concordct.volumes.scans import Scan
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

Statistic = Literal["mean", "uncertainty"]

STATISTICS: tuple[Statistic, ...] = ("mean", "uncertainty")
#: Window in which an uncertainty map is shown, HU: centre and width.
UNCERTAINTY_WINDOW = (50.0, 100.0)


def beside(output: Path, statistic: Statistic) -> Path:
    """Where a statistic goes: "out" has "out-mean" beside it, "out.nii.gz" has "out-mean.nii.gz"."""
    ending = next((end for end in ENDINGS if output.name.lower().endswith(end)), "")
    stem = output.name[: len(output.name) - len(ending)]
    return output.with_name(f"{stem}-{statistic}{output.name[len(stem) :]}")


class Statistics:
    """Mean and standard deviation of every slice done so far, waiting on disk; a context manager.

    Attributes
    ----------
    place : folder whose disk they wait on; nothing is left there, even by a killed run.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._files: dict[Statistic, IO[bytes]] = {}
        self._reach: Reach | None = None

    def __enter__(self) -> Statistics:
        with writing(self.place):
            self.place.mkdir(parents=True, exist_ok=True)
            self._files = {name: tempfile.TemporaryFile(dir=self.place) for name in STATISTICS}  # noqa: SIM115
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    def add(self, mean: Volume, deviation: NDArray[np.float32]) -> None:
        """The next slab, and [z, y, x]."""
        self._reach = mean.reach_hu
        with writing(self.place):
            for name, values in zip(STATISTICS, (mean.hu, deviation), strict=True):
                self._files[name].write(np.ascontiguousarray(values, dtype="<f4").tobytes())

    def slabs(self, statistic: Statistic, scan: Scan, *, allow: Collection[str]) -> Iterator[Volume]:
        """The statistic as consecutive slabs of the scan's geometry; padding has no uncertainty."""
        file = self._files[statistic]
        file.seek(0)
        for start in range(0, scan.shape[0], SLAB_SLICES):
            source = scan.read(start, min(start + SLAB_SLICES, scan.shape[0]), allow=allow)
            values = np.frombuffer(file.read(4 * source.hu.size), "<f4").astype(np.float32).reshape(source.shape)
            if statistic == "mean":
                yield replace(source.with_hu(values), reach_hu=self._reach)
                continue
            if source.padding is not None:
                values = np.where(source.padding, np.float32(0), values)
            yield replace(source, hu=values, padding=None)


def sampled_slabs(
    scan: Scan,
    standardizer: Standardizer,
    statistics: Statistics,
    *,
    seed: int,
    samples: int,
    allow: Collection[str] = frozenset(),
    progress: Callable[[int], None] | None = None,
) -> Iterator[Volume]:
    """The first sample slab by slab, as `standardized_slabs` gives it; statistics of all samples go to `statistics`.

    Parameters
    ----------
    seed : of the first sample; each further one has the next seed.
    samples : how many, at least 2.

    Yields
    ------
    Consecutive slabs that cover the scan.
    """
    context, depth = standardizer.context_slices, scan.shape[0]
    for start in range(0, depth, SLAB_SLICES):
        stop = min(start + SLAB_SLICES, depth)
        low, high = max(0, start - context), min(depth, stop + context)
        volume = for_filters(scan.read(low, high, allow=allow))
        first: Volume | None = None
        for count in range(1, samples + 1):
            sample = standardizer(volume, generator=SliceSeeds(seed + count - 1, scan.key)).slab(
                start - low, stop - low
            )
            if first is None:
                first, mean, squares = sample, sample.hu.copy(), np.zeros_like(sample.hu)
                continue
            # Welford, Technometrics 4:419 (1962), doi:10.1080/00401706.1962.10490022
            before = sample.hu - mean
            mean += before / np.float32(count)
            squares += before * (sample.hu - mean)
        assert first is not None
        statistics.add(first.with_hu(mean), np.sqrt(squares / np.float32(samples - 1)))
        yield first
        if progress is not None:
            progress(stop)
