"""A scan whose slices are weighted means of another's: other thickness, other places, the same grid in the plane.

It is a scan like any other, so whatever reads, standardizes or writes scans serves it, slab by slab.

    thick = restacked(scan, Means(first=(0, 5), weights=(w, w), places=(2.0, 7.0), thickness_mm=5.0))
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.volumes.files import VolumeFile
from concordct.volumes.padding import continued
from concordct.volumes.scans import Scan, scan_path
from concordct.volumes.series import Series, SliceRef
from concordct.volumes.volume import AIR_HU, Volume

#: Problems of a stack that leave no even line of slices to take means along.
UNEVEN = frozenset({"gap", "spacing", "tilt", "duplicate"})
#: A slice that counts for less than this is not named as a source.
COUNTS = 5e-3


@dataclass(frozen=True, eq=False)
class Means:
    """What each new slice is made of.

    Attributes
    ----------
    first, weights : index of the first slice that counts, and the weights from there on; their sum is 1.
    places : centres of the new slices, evenly spaced and ascending, in slices of the scan from its first.
    thickness_mm : nominal thickness of the new slices.
    """

    first: tuple[int, ...]
    weights: tuple[NDArray[np.float64], ...]
    places: tuple[float, ...]
    thickness_mm: float

    @property
    def step(self) -> float:
        """Distance of the new slices, in slices of the scan."""
        return 1.0 if len(self.places) < 2 else (self.places[-1] - self.places[0]) / (len(self.places) - 1)

    def nearest(self, depth: int) -> list[int]:
        """For each new slice the nearest of the scan's `depth` slices."""
        return [int(np.clip(round(place), 0, depth - 1)) for place in self.places]

    def members(self, index: int) -> list[int]:
        """The slices that a new one is made of."""
        return [self.first[index] + at for at in np.flatnonzero(np.abs(self.weights[index]) >= COUNTS).tolist()]


@dataclass(frozen=True)
class Placed:
    """Where a new slice lies and what it is made of, for its header.

    Attributes
    ----------
    origin_lps_mm : centre of its first voxel. position_mm : along the slice normal.
    thickness_mm, spacing_mm : nominal thickness, distance to the next one. number : from 1.
    made_of : slices of the source.
    """

    origin_lps_mm: tuple[float, float, float]
    position_mm: float
    thickness_mm: float
    spacing_mm: float
    number: int
    made_of: tuple[SliceRef, ...]


@dataclass(frozen=True, eq=False)
class RestackedSeries(Series):
    """A series of new slices; `slices` are the source's nearest, at the new places."""

    source: Series | None = None
    means: Means | None = None

    def read(self, start: int = 0, stop: int | None = None, *, allow: Collection[str] = frozenset()) -> Volume:
        """New slices [start, stop) as a Volume; see `Series.read`."""
        self.check(allow)
        return _read(self, start, stop, allow)

    def placed(self, index: int, *, descending: bool = False) -> Placed:
        """Where a new slice lies. descending : the source's instance numbers fall along the normal."""
        source, means = _parts(self)
        assert isinstance(source, Series)
        ref = self.slices[index]
        number = self.shape[0] - index if descending else index + 1
        members = tuple(source.slices[at] for at in means.members(index))
        return Placed(ref.origin_lps_mm, ref.position_mm, means.thickness_mm, self.spacing_mm[0], number, members)


@dataclass(frozen=True, eq=False)
class RestackedFile(VolumeFile):
    """A volume file of new slices."""

    source: VolumeFile | None = None
    means: Means | None = None

    @property
    def key(self) -> str:
        """Of the source and the new stack."""
        source, means = _parts(self)
        return _key(source, means)

    def read(self, start: int = 0, stop: int | None = None, *, allow: Collection[str] = frozenset()) -> Volume:
        """New slices [start, stop) as a Volume; see `VolumeFile.read`."""
        return _read(self, start, stop, allow)

    def stored_hu(self, start: int, stop: int) -> NDArray[np.float32]:
        """[z, y, x] HU of the nearest slices as the file holds them."""
        source, means = _parts(self)
        nearest = means.nearest(source.shape[0])[start:stop]
        return np.concatenate([source.stored_hu(at, at + 1) for at in nearest])


Restacked = RestackedSeries | RestackedFile


def restacked(scan: Scan, means: Means) -> Restacked:
    """The scan with new slices.

    Raises
    ------
    ConcordctError : slices that are not on one even line.
    """
    uneven = [problem for problem in scan.problems if problem.code in UNEVEN]
    if uneven:
        raise ConcordctError(
            f"{scan_path(scan)}: expected slices at one distance to make others of, found {uneven[0].message} "
            f"[{uneven[0].code}]"
        )
    affine = scan.affine.copy()
    affine[:3, 0] *= means.step
    affine[:3, 3] += means.places[0] * scan.affine[:3, 0]
    changed: dict[str, Any] = {
        "shape": (len(means.places), *scan.shape[1:]),
        "affine": affine,
        "slice_thickness_mm": means.thickness_mm,
        "source": scan,
        "means": means,
    }
    kept = {field.name: getattr(scan, field.name) for field in fields(scan)}
    if isinstance(scan, VolumeFile):
        return RestackedFile(**{**kept, **changed})
    start, step = scan.slices[0].position_mm, scan.spacing_mm[0]
    refs = []
    for index, (place, near) in enumerate(zip(means.places, means.nearest(scan.shape[0]), strict=True)):
        x, y, z = (float(value) for value in affine[:3, 3] + index * affine[:3, 0])
        refs.append(replace(scan.slices[near], position_mm=start + place * step, origin_lps_mm=(x, y, z)))
    return RestackedSeries(**{**kept, **changed, "slices": tuple(refs), "key": _key(scan, means)})


def _key(scan: Scan, means: Means) -> str:
    return f"{scan.key}/{len(means.places)} of {means.thickness_mm:g} mm from {means.places[0]:.4f} by {means.step:.4f}"


def _parts(scan: Restacked) -> tuple[Scan, Means]:
    assert scan.source is not None
    assert scan.means is not None
    return scan.source, scan.means


def _read(scan: Restacked, start: int, stop: int | None, allow: Collection[str]) -> Volume:
    source, means = _parts(scan)
    stop = scan.shape[0] if stop is None else stop
    if not 0 <= start < stop <= scan.shape[0]:
        raise ConcordctError(f"slices {start} to {stop} asked of a stack of {scan.shape[0]}: {scan_path(source)}")
    nearest = means.nearest(source.shape[0])[start:stop]
    ends = [first + len(weights) for first, weights in zip(means.first, means.weights, strict=True)]
    low, high = min(*means.first[start:stop], *nearest), max(*ends[start:stop], *(at + 1 for at in nearest))
    slab = source.read(low, high, allow=allow)
    # Tissue goes on where padding cuts it off, so that no mean is of tissue and of a marker.
    hu = continued(slab.hu, slab.padding)
    made = np.empty((stop - start, *scan.shape[1:]), np.float32)
    for at, index in enumerate(range(start, stop)):
        begin = means.first[index] - low
        weights = means.weights[index].astype(np.float32)
        made[at] = np.tensordot(weights, hu[begin : begin + len(weights)], 1)
    padding = None if slab.padding is None else slab.padding[[at - low for at in nearest]]
    if padding is not None:
        made[padding] = AIR_HU
    affine = scan.affine.copy()
    affine[:3, 3] += start * affine[:3, 0]
    return Volume(
        made,
        affine,
        padding if padding is not None and padding.any() else None,
        scan.slice_thickness_mm,
        scan.kernel,
        start,
    )
