"""A CT series on disk: where its slices lie, what is wrong with them, and their voxels slab by slab.

A Series holds headers only, never voxels; `read` decodes the slices it is asked for, so memory stays flat. A series
whose geometry is wrong refuses to be read unless the caller names what may pass.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset

from concordct.errors import ConcordctError
from concordct.volumes.allowable import ALLOWABLE
from concordct.volumes.decode import StoredSlice, begin_slice, open_dataset, quiet_dicom
from concordct.volumes.dicom_file import file_stamp
from concordct.volumes.geometry import Problem
from concordct.volumes.volume import Volume, spacing_of

__all__ = ["Problem", "Series", "SliceRef"]

#: A slab of 16 slices with its neighbours, of 512 x 512 at most.
RECENT_SLICES, RECENT_BYTES = 20, 32 * 2**20


@dataclass(frozen=True)
class SliceRef:
    """One slice of a series.

    Attributes
    ----------
    path : its file.
    frame : index of its frame, 0 in single-frame objects.
    position_mm : position along the slice normal.
    sop_instance_uid : of the object that holds it.
    origin_lps_mm : centre of its first voxel, LPS.
    stamp : size and time of change of the file when the series was found; None takes it as it is.
    """

    path: Path
    frame: int
    position_mm: float
    sop_instance_uid: str
    origin_lps_mm: tuple[float, float, float]
    stamp: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Series:
    """One stack of CT slices.

    Attributes
    ----------
    uid : SeriesInstanceUID.
    key : the UID, with a suffix when one UID holds several stacks ("...#2").
    kernel : ConvolutionKernel, values joined by a backslash; None when the header does not say.
    description : SeriesDescription.
    slices : ascending along the slice normal, no position twice.
    shape : (z, y, x) voxels.
    spacing_mm : (z, y, x) distance between voxel centres.
    affine : [4, 4] index (z, y, x, 1) to LPS mm.
    slice_thickness_mm : nominal; None when the header does not say.
    frame_of_reference_uid : None when the header does not say.
    energy : "40 keV", "material removed" or the like; None for the plain image of a scan.
    problems : what `check` refuses.
    notes : what a reader should know (iterative reconstruction, a spacing that nobody states).
    """

    uid: str
    key: str
    kernel: str | None
    description: str
    slices: tuple[SliceRef, ...]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    slice_thickness_mm: float | None
    frame_of_reference_uid: str | None = None
    energy: str | None = None
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(z, y, x) distance between voxel centres, mm."""
        return spacing_of(self.affine)

    @property
    def folder(self) -> Path:
        """The folder of the first slice; it names the series in messages."""
        return self.slices[0].path.parent

    def check(self, allow: Collection[str] = frozenset()) -> tuple[Problem, ...]:
        """Refuse what is wrong with the series.

        Parameters
        ----------
        allow : codes of `ALLOWABLE` that may pass.

        Returns
        -------
        The problems that were let pass; the caller records them.

        Raises
        ------
        ConcordctError : a problem that is not allowed, with its positions, or an unknown code.
        """
        unknown = sorted(set(allow) - ALLOWABLE)
        if unknown:
            raise ConcordctError(f"cannot allow {', '.join(unknown)}; expected one of {', '.join(sorted(ALLOWABLE))}")
        wrong = [problem for problem in self.problems if problem.code not in allow]
        if wrong:
            text = "; ".join(f"{problem.message} [{problem.code}]" for problem in wrong)
            raise ConcordctError(f"{text}: series in {self.folder}")
        return self.problems

    def read(self, start: int = 0, stop: int | None = None, *, allow: Collection[str] = frozenset()) -> Volume:
        """Slices [start, stop) as a Volume.

        Parameters
        ----------
        start, stop : slice indices along the normal, 0 <= start < stop; a `stop` of None means the last slice.
        allow : problems that may pass, see `check`.

        Raises
        ------
        ConcordctError : a problem that is not allowed, or a slice that cannot be decoded.
        """
        self.check(allow)
        stop = len(self.slices) if stop is None else stop
        if not 0 <= start < stop <= len(self.slices):
            raise ConcordctError(f"slices {start} to {stop} asked of a series of {len(self.slices)}: {self.folder}")
        hu = np.empty((stop - start, *self.shape[1:]), dtype=np.float32)
        padding = np.zeros(hu.shape, dtype=bool)
        for index, stored in enumerate(self.stored(start, stop)):
            hu[index], padding[index] = stored.hu(), stored.padding
        affine = self.affine.copy()
        affine[:3, 3] = self.slices[start].origin_lps_mm
        return Volume(
            hu=hu,
            affine=affine,
            padding=padding if padding.any() else None,
            slice_thickness_mm=self.slice_thickness_mm,
            kernel=self.kernel,
            first_slice=start,
        )

    def stored_hu(self, start: int, stop: int) -> NDArray[np.float32]:
        """[z, y, x] HU of slices [start, stop) as the files hold them, padding included."""
        return np.stack([stored.stored_hu() for stored in self.stored(start, stop)])

    def stored(self, start: int, stop: int) -> Iterator[StoredSlice]:
        """The stored slices [start, stop), one at a time; each file is opened once for neighbouring frames.

        While the caller works on a slice the next one is being decoded; what is wrong with it is said when it is due.
        """
        opened: dict[Path, FileDataset] = {}
        ready: Callable[[], StoredSlice] | None = None
        for ref in self.slices[start:stop]:
            begun = self._begin(ref, opened)
            if ready is not None:
                yield ready()
            ready = begun
        if ready is not None:
            yield ready()

    def _begin(self, ref: SliceRef, opened: dict[Path, FileDataset]) -> Callable[[], StoredSlice]:
        """Begin to read a slice; called, the slice. `opened` holds the file opened last."""
        recent = _RECENT.take(ref)
        if recent is not None:
            return partial(self._of_shape, ref, recent)
        try:
            if ref.path not in opened:
                opened.clear()
                opened[ref.path] = open_dataset(ref.path, pixels=True)
            dataset = opened[ref.path]
            begun = begin_slice(dataset, ref.frame, ref.path)
        except ConcordctError as error:
            return partial(_refused, error)

        def end() -> StoredSlice:
            stored = begun()
            with quiet_dicom():
                found = str(dataset.get("SOPInstanceUID"))
            # Asked after reading: whoever rewrites the file under the same UID meanwhile changes its stamp first.
            if found != ref.sop_instance_uid or ref.stamp not in (None, file_stamp(ref.path)):
                raise ConcordctError(f"the file changed since the series was found: {ref.path}")
            _RECENT.keep(ref, stored)
            return self._of_shape(ref, stored)

        return end

    def _of_shape(self, ref: SliceRef, stored: StoredSlice) -> StoredSlice:
        if stored.values.shape != self.shape[1:]:
            raise ConcordctError(f"slice of {stored.values.shape}, expected {self.shape[1:]}: {ref.path}")
        return stored


def _refused(error: ConcordctError) -> StoredSlice:
    raise error


@dataclass(frozen=True, eq=False)
class WatchedSeries(Series):
    """A series that takes the SHA-256 of the HU that it hands out, slab after slab; `watched` makes one."""

    digest: Any = field(default_factory=hashlib.sha256)

    def stored_hu(self, start: int, stop: int) -> NDArray[np.float32]:
        """As `Series.stored_hu`; what is asked for follows what was."""
        hu = super().stored_hu(start, stop)
        self.digest.update(hu.tobytes())
        return hu


def watched(series: Series) -> WatchedSeries:
    """The same series, watched from here on."""
    return WatchedSeries(**{one.name: getattr(series, one.name) for one in fields(Series)})


def hu_sha256(series: Series) -> str:
    """What a watched series of the same files says after all its slices were asked for once, in order."""
    copy = watched(series)
    for index in range(series.shape[0]):
        copy.stored_hu(index, index + 1)
    return str(copy.digest.hexdigest())


class _Recent:
    """The slices read last, each until it is read again: a result is stored in the range and padding of its source."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slices: dict[SliceRef, StoredSlice] = {}

    def take(self, ref: SliceRef) -> StoredSlice | None:
        """The slice, where it was read lately from a file that has not changed since."""
        with self._lock:
            found = self._slices.pop(ref, None)
        return found if found is not None and ref.stamp == file_stamp(ref.path) else None

    def keep(self, ref: SliceRef, stored: StoredSlice) -> None:
        if ref.stamp is None:
            return
        for array in (stored.values, stored.padding):
            array.flags.writeable = False
        with self._lock:
            self._slices[ref] = stored
            size = stored.values.nbytes + stored.padding.nbytes
            while len(self._slices) > min(RECENT_SLICES, RECENT_BYTES // size):
                del self._slices[next(iter(self._slices))]


_RECENT = _Recent()
