"""Every scan under a path, whether DICOM series or volume file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from concordct.errors import ConcordctError
from concordct.volumes.files import VolumeFile, is_volume_file, open_volume_file
from concordct.volumes.find import Progress, Reader, SetAside, find_series
from concordct.volumes.geometry import Problem, units_problem
from concordct.volumes.series import Series

if TYPE_CHECKING:
    from concordct.volumes.manifest import PairRow

Scan = Series | VolumeFile

#: Why a volume file is no scan although it can be read: label maps lie beside the scans that they belong to.
LABEL_MAP = "a label map by its name"
#: The last word of such a name: `nodules.nii.gz`, `ct_lungs.nrrd`, `tumour-mask.mha`.
LABEL_WORDS = frozenset(
    (
        *("fibrosis", "label", "labelmap", "labels", "lungs", "mask", "masks", "nodules"),
        *("roi", "rois", "seg", "segmentation", "segmentations"),
    )
)


def is_label_map(path: Path) -> bool:
    """Whether the name of a volume file says that it holds labels and no image."""
    stem = path.name.lower().split(".")[0]
    return stem.replace("-", "_").replace(" ", "_").split("_")[-1] in LABEL_WORDS


@dataclass(frozen=True)
class Scans:
    """What lies under a path: DICOM series first, then volume files, each in order of path; and what was set aside."""

    scans: tuple[Scan, ...]
    set_aside: tuple[SetAside, ...]


def find_scans(path: Path, *, progress: Progress | None = None, reader: Reader | None = None) -> Scans:
    """Find DICOM series and volume files under a file or folder; label maps are set aside by their names.

    Parameters
    ----------
    progress : called with (files done, files in all).
    reader : who reads the headers; None for this process.

    Raises
    ------
    ConcordctError : the path does not exist or cannot be read.
    """
    if is_volume_file(path) and path.exists() and not path.is_dir():
        return Scans((open_volume_file(path).axial(),), ())
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ConcordctError(f"{path}: expected a file or folder, found a pipe or a device")
    found = find_series(path, progress=progress, reader=reader)
    volumes: list[VolumeFile] = []
    set_aside: list[SetAside] = []
    for item in found.set_aside:
        if not is_volume_file(item.path):
            set_aside.append(item)
            continue
        if is_label_map(item.path):
            set_aside.append(SetAside(item.path, LABEL_MAP))
            continue
        try:
            volumes.append(open_volume_file(item.path).axial())
        except ConcordctError as error:
            set_aside.append(SetAside(item.path, str(error)))
    # Voxels beside a header that was read belong to that scan.
    parts = {one.layout.data for one in volumes}
    series = sorted(found.series, key=lambda one: (str(one.slices[0].path), one.key))
    return Scans((*series, *volumes), tuple(item for item in set_aside if item.path not in parts))


def one_scan(path: Path, *, series_uid: str | None = None) -> Scan:
    """The only scan under a path, or the series of that SeriesInstanceUID where several share a folder.

    Raises
    ------
    ConcordctError : none there, or several.
    """
    found = find_scans(path)
    if series_uid is not None:
        wanted = [scan for scan in found.scans if isinstance(scan, Series) and scan.uid == series_uid]
        if len(wanted) != 1:
            raise ConcordctError(f"{path}: expected one stack of slices of the named series, found {len(wanted)}")
        return wanted[0]
    if len(found.scans) != 1:
        reasons = sorted({item.reason for item in found.set_aside})
        why = f" ({reasons[0]})" if len(reasons) == 1 else ""
        raise ConcordctError(f"{path}: expected one CT series or volume, found {len(found.scans)}{why}")
    return found.scans[0]


@dataclass(frozen=True, eq=False)
class PairedScans:
    """One row of a manifest whose source has a partner."""

    subject: str
    source: Scan
    target: Scan
    mask: Path | None
    pair: str


def paired_scans(manifest: Path, *, split: str | None) -> tuple[PairedScans, ...]:
    """The pairs of a manifest.

    Parameters
    ----------
    split : rows of this split only; None for all of them.

    Raises
    ------
    ConcordctError : a bad manifest, or no pair in the split.
    """
    from concordct.volumes.manifest import read_manifest  # its library of types takes long to load

    rows = [row for row in read_manifest(manifest) if row.target is not None]
    found = tuple(
        PairedScans(row.subject, *scans_of_row(row), row.mask, row.pair) for row in rows if split in (None, row.split)
    )
    if not found:
        where = "any split" if split is None else f"split {split!r}"
        there = ", ".join(f"{count} in split {name}" for name, count in Counter(row.split for row in rows).items())
        raise ConcordctError(
            f"{manifest}: expected pairs in {where}, found none"
            + (f" there but {there}; choose that split, or all of them" if there else "")
        )
    return found


def scans_of_row(row: PairRow) -> tuple[Scan, Scan]:
    """Source and target of a row of a manifest.

    Raises
    ------
    ConcordctError : a row without a target, or a place that does not hold the one scan that the row means.
    """
    if row.target is None:
        raise ConcordctError(f"pair {row.pair}: expected a target, found none")
    return (
        one_scan(row.source, series_uid=row.source_series),
        one_scan(row.target, series_uid=row.target_series),
    )


def scan_path(scan: Scan) -> Path:
    """The file of a volume, the folder of a series."""
    return scan.path if isinstance(scan, VolumeFile) else scan.folder


def frame_of_reference(scan: Scan) -> str | None:
    """The FrameOfReferenceUID of a series; None where there is none, as in a volume file."""
    return scan.frame_of_reference_uid if isinstance(scan, Series) else None


def checked(scan: Scan, allow: Collection[str]) -> tuple[Problem, ...]:
    """Refuse what is wrong with a scan: its geometry, and voxels that cannot be HU (of a series the middle slice).

    Returns
    -------
    The problems that were let pass; the caller records them.

    Raises
    ------
    ConcordctError : a problem that is not allowed, or voxels that cannot be read.
    """
    problems = scan.check(allow)
    if isinstance(scan, VolumeFile):
        return problems
    middle = scan.shape[0] // 2
    volume = scan.read(middle, middle + 1, allow=allow)
    units = units_problem(volume.hu if volume.padding is None else volume.hu[~volume.padding])
    if units is None:
        return problems
    if units.code not in allow:
        raise ConcordctError(f"{units.message} [{units.code}]: series in {scan.folder}")
    return (*problems, units)


def evenly_spaced(scan: Scan) -> bool:
    """Whether neighbouring slices are neighbours in space, all at one distance."""
    return not any(problem.code in {"gap", "spacing"} for problem in scan.problems)
