"""Cohorts of real pairs from a folder of the user's own, and how the subjects of any cohort are split."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from concordct.errors import ConcordctError
from concordct.volumes.csv_text import safe_cell
from concordct.volumes.decode import open_dataset
from concordct.volumes.manifest import PairRow, write_manifest
from concordct.volumes.pairing import pair_by_kernel
from concordct.volumes.place import atomic_file, make_folder
from concordct.volumes.scans import find_scans, scan_path
from concordct.volumes.series import Series

MANIFEST, FAILURES = "pairs.csv", "failures.csv"
#: Shares of the subjects, in this order.
SPLITS = (("train", 0.7), ("validation", 0.1), ("test", 0.2))

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Cohort:
    """What was found.

    Attributes
    ----------
    manifest : `pairs.csv`; None while nothing has been downloaded.
    pairs : rows in the manifest, or groups of series in the selection.
    failures : (pair, reason).
    size_mb : to download, or downloaded.
    licences : of what was selected.
    splits : rows of the manifest in each split.
    """

    manifest: Path | None
    pairs: int
    failures: tuple[tuple[str, str], ...]
    size_mb: float = 0.0
    licences: tuple[str, ...] = ()
    splits: Mapping[str, int] = field(default_factory=dict)


def split_of(subject: str) -> str:
    """The split of a subject: fixed by its name, so that a larger cohort moves nobody."""
    share = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big") / 2**64
    for name, part in SPLITS:
        if share < part:
            return name
        share -= part
    return SPLITS[-1][0]


def cohort_folder(
    path: Path,
    *,
    source_kernel: str,
    target_kernel: str,
    output: Path,
    allow: Collection[str] = frozenset(),
    progress: Progress | None = None,
) -> Cohort:
    """Find the pairs that lie in a folder: series of one frame of reference in the two kernels, verified.

    Parameters
    ----------
    path : searched to its depths. Volume files name no kernel and are not paired.
    output : folder for `pairs.csv` and `failures.csv`.
    allow : "frames" pairs series whose frames of reference differ, by position and content.
    progress : called with (files read, files in all).

    Raises
    ------
    ConcordctError : no series in one of the kernels; the message names those that are there.
    """
    series = [scan for scan in find_scans(path, progress=progress).scans if isinstance(scan, Series)]
    try:
        found = pair_by_kernel(series, source_kernel, target_kernel, allow=allow)
    except ConcordctError as error:
        raise ConcordctError(f"{path}: {error}") from None
    person = {one.key: _person(one) for one in series}
    people = {digest: f"subject-{rank:04d}" for rank, digest in enumerate(sorted(set(person.values())), 1)}
    shared = Counter(one.folder for one in series)
    names = {source.key: f"pair-{number:04d}" for number, source in enumerate(_sources(series, source_kernel), start=1)}
    rows = [
        PairRow(
            pair=names[source.key],
            subject=people[person[source.key]],
            split=split_of(person[source.key]),
            source=scan_path(source),
            target=scan_path(target),
            source_kernel=source_kernel,
            target_kernel=target_kernel,
            slice_thickness_mm=source.slice_thickness_mm,
            source_series=source.uid if shared[source.folder] > 1 else None,
            target_series=target.uid if shared[target.folder] > 1 else None,
        )
        for source, target in found.pairs
    ]
    failures = [(f"{names[source.key]} ({_place(source, path)})", reason) for source, reason in found.failures]
    make_folder(output)
    manifest = write_manifest(output / MANIFEST, rows, overwrite=True) if rows else None
    write_failures(output, failures)
    return Cohort(manifest, len(rows), tuple(failures), splits=dict(Counter(row.split for row in rows)))


def _sources(series: Sequence[Series], kernel: str) -> list[Series]:
    return [one for one in series if one.kernel == kernel]


def _place(series: Series, root: Path) -> str:
    return scan_path(series).relative_to(root).as_posix() if root.is_dir() else scan_path(series).name


def _person(series: Series) -> str:
    """A digest that stands for the patient; it leaves no trace of who that is."""
    header = open_dataset(series.slices[0].path, tags=["PatientID"])
    return hashlib.sha256(str(header.get("PatientID") or series.frame_of_reference_uid).encode()).hexdigest()


def write_failures(output: Path, failures: Sequence[tuple[str, str]]) -> None:
    """`failures.csv`: what was left out, and why."""
    with (
        atomic_file(output / FAILURES, overwrite=True) as aside,
        open(aside, "w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("pair", "reason"))
        table.writerows([safe_cell(cell) for cell in row] for row in failures)
