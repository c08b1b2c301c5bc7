"""A scan to judge: its source, its target and where to look, each opened once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.judging.held import Held
from concordct.volumes.masks import read_regions, to_labels
from concordct.volumes.pairing import SAME_POSITION_MM, check_pair
from concordct.volumes.scans import Scan, frame_of_reference, one_scan, paired_scans
from concordct.volumes.volume import Volume


@dataclass(frozen=True, eq=False)
class Case:
    """One scan to judge.

    Attributes
    ----------
    subject : pseudonym; intervals are over subjects.
    standardized : a scan, or None to standardize the source now with a model.
    mask : ROIs on the same grid, as `volumes.masks.read_regions` reads them: labels in a volume file, DICOM SEG or
        RTSTRUCT. None for a grid over the body.
    name : of the pair in its manifest.
    """

    subject: str
    source: Scan
    standardized: Scan | None
    target: Scan
    mask: Path | None = None
    name: str = ""


@dataclass(frozen=True, eq=False)
class Pair:
    """The voxels of a case.

    Attributes
    ----------
    labels : [z, y, x] 1 ... n, the mask's ROIs; None without a mask.
    """

    source: Volume
    target: Volume
    labels: NDArray[np.int32] | None


def one_case(source: Path, standardized: Path, target: Path, mask: Path | None) -> tuple[Case, ...]:
    """The case that three paths and perhaps a mask make."""
    return (Case("one", one_scan(source), one_scan(standardized), one_scan(target), mask),)


def cases_of_manifest(path: Path, *, split: str | None) -> tuple[Case, ...]:
    """The pairs of a manifest, still to be standardized.

    Parameters
    ----------
    split : rows of this split only; None for all of them.

    Raises
    ------
    ConcordctError : a bad manifest, or no pair in the split.
    """
    pairs = paired_scans(path, split=split)
    return tuple(Case(pair.subject, pair.source, None, pair.target, pair.mask, pair.pair) for pair in pairs)


def open_pair(case: Case, *, allow: Collection[str] = frozenset()) -> Pair:
    """Read source, target and mask.

    Parameters
    ----------
    allow : problems of a scan that may pass, see `Series.check`, and "frames" of a pair.

    Raises
    ------
    ConcordctError : scans that are no pair, slices that cannot be read, a mask that does not fit.
    """
    check_pair(case.source, case.target, allow=allow)
    source, target = case.source.read(allow=allow), case.target.read(allow=allow)
    same_place(target, source, "target")
    return Pair(source, target, _labels(case, source))


@dataclass(frozen=True, eq=False)
class HeldPair:
    """The voxels of a case whose three stages are to be in memory together; `labels` as in `Pair`."""

    source: Held
    target: Held
    labels: NDArray[np.integer[Any]] | None


def hold_pair(case: Case, *, allow: Collection[str] = frozenset(), source: Held | None = None) -> HeldPair:
    """Read source, target and mask one after the other; the same place is enough.

    Parameters
    ----------
    allow : as for `open_pair`.
    source : where it was read before.

    Raises
    ------
    ConcordctError : scans of another place, slices that cannot be read, a mask that does not fit.
    """
    source = Held.of(case.source.read(allow=allow)) if source is None else source
    target = Held.of(case.target.read(allow=allow))
    same_place(target, source, "target")
    return HeldPair(source, target, _labels(case, source))


def _labels(case: Case, source: Volume | Held) -> NDArray[np.int32] | None:
    if case.mask is None:
        return None
    frame = frame_of_reference(case.source)
    return to_labels(read_regions(case.mask, affine=source.affine, shape=source.shape, frame_of_reference_uid=frame))


def same_place(volume: Volume | Held, source: Volume | Held, name: str) -> None:
    """Refuse a volume that does not lie voxel on voxel with its source.

    Raises
    ------
    ConcordctError : another shape, or another place, and by how much.
    """
    if volume.shape != source.shape:
        raise ConcordctError(f"expected a {name} volume of shape {source.shape}, found {volume.shape}")
    offset = float(np.abs(volume.affine - source.affine).max())
    if offset > SAME_POSITION_MM:
        raise ConcordctError(f"expected a {name} volume in the place of its source, found it {offset:.2f} mm off")
