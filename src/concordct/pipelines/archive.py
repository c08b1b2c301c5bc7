"""A cohort from the Imaging Data Commons: select by its index, say its size, fetch, verify, write the manifest."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from concordct.errors import ConcordctError
from concordct.pipelines.archive_series import (
    PRESETS,
    ArchiveSeries,
    Preset,
    Relation,
    Wanted,
    find_series,
    together,
)
from concordct.pipelines.archive_transfer import ENDPOINT, Remote, check_room, fetch, is_there
from concordct.pipelines.cohort import MANIFEST, Cohort, Progress, split_of, write_failures
from concordct.volumes.csv_text import safe_cell
from concordct.volumes.manifest import PairRow, write_manifest
from concordct.volumes.pairing import check_pair
from concordct.volumes.place import atomic_file, make_folder
from concordct.volumes.scans import one_scan, scan_path

SELECTION, SCANS = "selection.json", "scans.csv"


@dataclass(frozen=True)
class Selection:
    """Groups of series that belong together, not yet fetched.

    Attributes
    ----------
    groups : pairs [source, target], repeats of one subject, or scans by themselves.
    """

    preset: Preset
    groups: tuple[tuple[ArchiveSeries, ...], ...]

    @property
    def series(self) -> tuple[ArchiveSeries, ...]:
        """All of them."""
        return tuple(one for group in self.groups for one in group)

    @property
    def size_gb(self) -> float:
        """With masks, GB."""
        return sum(one.size_mb + (one.mask[2] if one.mask else 0.0) for one in self.series) / 1000.0

    @property
    def licences(self) -> tuple[str, ...]:
        """Short names."""
        return tuple(sorted({one.licence for one in self.series}))

    @property
    def splits(self) -> Mapping[str, int]:
        """Groups in each split; subjects are in one alone."""
        return dict(Counter(split_of(group[0].subject) for group in self.groups))


def preset_of(name: str, relation: Relation | None = None) -> Preset:
    """A preset by its name, or any collection of the archive by its id.

    Parameters
    ----------
    relation : how the series belong together, where it is not the preset's; a collection's are "pairs" without.
    """
    if name in PRESETS:
        known = PRESETS[name]
        return known if relation in (None, known.relation) else Preset(
            known.collection, relation or known.relation, known.about, known.study, known.masks
        )  # fmt: skip
    return Preset(name, relation or "pairs", "")


def select(
    preset: Preset,
    wanted: Wanted,
    *,
    count: int | None = None,
    index: Path | None = None,
    ct_index: Path | None = None,
) -> Selection:
    """Select from the archive's index; nothing is fetched.

    Parameters
    ----------
    count : groups, spread evenly over those that there are; None takes all.
    index, ct_index : the archive's tables, see `find_series`.

    Raises
    ------
    ConcordctError : nothing found, a wrong number of kernels, or what `find_series` raises.
    """
    if preset.relation == "pairs" and len(wanted.kernels) not in (0, 2):
        raise ConcordctError(f"expected two kernels for pairs, found {len(wanted.kernels)}")
    if wanted.dates and not all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for date in wanted.dates):
        raise ConcordctError(f"expected dates as YYYY-MM-DD, found {' '.join(wanted.dates)}")
    if count is not None and count < 1:
        raise ConcordctError(f"expected at least 1 of the {preset.relation}, found {count}")
    found = find_series(preset, wanted, index=index, ct_index=ct_index)
    groups = together(found, preset.relation, wanted.kernels)
    if not groups:
        kernels = Counter(one.kernel for one in found if one.kernel)
        shown = ", ".join(f"{name} ({times})" for name, times in kernels.most_common(8))
        raise ConcordctError(
            f"{preset.collection}: expected {preset.relation} of what was asked for, found none among {len(found)} "
            f"series{f'; their kernels are {shown}' if shown else ''}"
        )
    if count is not None and count < len(groups):
        groups = [groups[place * len(groups) // count] for place in range(count)]
    return Selection(preset, tuple(tuple(group) for group in groups))


def fetch_ct_index() -> Path:
    """The archive's table of CT series, fetched by its own client once and kept where that keeps it.

    Raises
    ------
    ConcordctError : no client, or no network.
    """
    try:
        from idc_index import IDCClient
    except ImportError:
        raise ConcordctError("the archive's client is missing; expected: pip install concordct[archive]") from None
    try:
        client = IDCClient()
        client.fetch_index("ct_index")
        return Path(client.indices_overview["ct_index"]["file_path"])
    except Exception as error:
        raise ConcordctError(f"the archive's ct_index cannot be fetched ({type(error).__name__})") from None


def write_selection(selection: Selection, output: Path) -> Path:
    """`selection.json`: what is to be fetched, how much, under which licence."""
    make_folder(output)
    series = [
        {
            "name": name_of(group),
            "subject": group[0].subject,
            "split": split_of(group[0].subject),
            "series": [
                {
                    "uid": one.uid, "study": one.study, "kernel": one.kernel, "slice_thickness_mm": one.thickness_mm,
                    "slices": one.slices, "size_mb": one.size_mb, "licence": one.licence, "url": one.url,
                    **one.labels, "mask": one.mask and one.mask[0],
                }
                for one in group
            ],
        }
        for group in selection.groups
    ]  # fmt: skip
    what = {
        "collection": selection.preset.collection,
        "relation": selection.preset.relation,
        "groups": len(series),
        "size_gb": round(selection.size_gb, 6),
        "licences": selection.licences,
        "selected": series,
    }
    with atomic_file(output / SELECTION, overwrite=True) as aside:
        aside.write_text(json.dumps(what, indent=1) + "\n", encoding="utf-8")
    return output / SELECTION


def name_of(group: Sequence[ArchiveSeries]) -> str:
    """A name that stays the group's in any selection."""
    digest = hashlib.sha256("".join(one.uid for one in group).encode()).hexdigest()
    return f"{group[0].subject}_{digest[:8]}"


def fetch_cohort(
    selection: Selection,
    output: Path,
    *,
    most_gb: float | None,
    endpoint: str = ENDPOINT,
    allow: Collection[str] = frozenset(),
    progress: Progress | None = None,
) -> Cohort:
    """Fetch what is missing of a selection, verify all of it, write `pairs.csv`, `scans.csv` and `failures.csv`.

    Pairs are verified as pairs (geometry and content); scans and repeats stand in `pairs.csv` with a source alone, and
    `scans.csv` says what each is: subject, scanner, kernel, dose, number of the repeat.

    Parameters
    ----------
    most_gb : refuse a transfer that is larger; None leaves the disk as the limit.
    allow : of pairs, see `check_pair`.
    endpoint : address of the S3-compatible server.
    progress : called with (series fetched or found, series in all).

    Raises
    ------
    ConcordctError : too large, no client, or no network. What was fetched before stays and is not fetched again.
    """
    remotes = [
        remote
        for one in selection.series
        for remote in (
            Remote(one.url, _folder(output, one, one.uid), one.size_mb, one.slices),
            *([Remote(one.mask[1], _folder(output, one, one.mask[0]), one.mask[2], 1)] if one.mask else []),
        )
    ]
    write_selection(selection, output)
    check_room(output, sum(remote.size_mb for remote in remotes if not is_there(remote)) / 1000.0, most_gb)
    broken = dict(fetch(remotes, endpoint=endpoint, progress=progress))
    rows, failures = [], []
    for group in selection.groups:
        reasons = [broken[place] for one in group if (place := _folder(output, one, one.uid)) in broken]
        try:
            if reasons:
                raise ConcordctError(reasons[0])
            rows += _pair(group, output, allow) if selection.preset.relation == "pairs" else _scans(group, output)
        except ConcordctError as error:
            failures.append((name_of(group), str(error)))
    manifest = write_manifest(output / MANIFEST, [row for row, _ in rows], overwrite=True) if rows else None
    if selection.preset.relation != "pairs":
        _write_scans(output / SCANS, rows)
    write_failures(output, failures)
    splits = dict(Counter(row.split for row, _ in rows))
    return Cohort(manifest, len(rows), tuple(failures), 1000 * selection.size_gb, selection.licences, splits)


Row = tuple[PairRow, ArchiveSeries]


def _pair(group: Sequence[ArchiveSeries], output: Path, allow: Collection[str]) -> list[Row]:
    first, second = group
    source, target = (one_scan(_folder(output, one, one.uid)) for one in group)
    check_pair(source, target, allow=allow)
    row = PairRow(
        pair=name_of(group),
        subject=first.subject,
        split=split_of(first.subject),
        source=scan_path(source),
        target=scan_path(target),
        source_kernel=first.kernel,
        target_kernel=second.kernel,
        slice_thickness_mm=first.thickness_mm,
    )
    return [(row, first)]


def _scans(group: Sequence[ArchiveSeries], output: Path) -> list[Row]:
    rows = []
    for number, one in enumerate(group, start=1):
        mask = None
        if one.mask is not None:
            mask = next(iter(sorted(_folder(output, one, one.mask[0]).glob("*.dcm"))), None)
        labels = {"repeat": str(number), **one.labels} if len(group) > 1 else one.labels
        row = PairRow(
            pair=f"{name_of(group)}_{number}" if len(group) > 1 else name_of(group),
            subject=one.subject,
            split=split_of(one.subject),
            source=scan_path(one_scan(_folder(output, one, one.uid))),
            source_kernel=one.kernel,
            slice_thickness_mm=one.thickness_mm,
            mask=mask,
        )
        rows.append((row, _labelled(one, labels)))
    return rows


def _labelled(one: ArchiveSeries, labels: Mapping[str, str]) -> ArchiveSeries:
    return ArchiveSeries(**{**one.__dict__, "labels": labels})


def _write_scans(path: Path, rows: Sequence[Row]) -> None:
    """What each scan is, by the manifest's names; the table that `combat` and `agree` take as sites and repeats."""
    labels = list(dict.fromkeys(label for _, one in rows for label in one.labels))
    columns = ["image", "subject", "scanner", "kernel", *(label for label in labels if label != "scanner")]
    with atomic_file(path, overwrite=True) as aside, aside.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(columns)
        for row, one in rows:
            known = {"image": row.pair, "subject": row.subject, "kernel": one.kernel or "",
                     "scanner": one.scanner} | dict(one.labels)  # fmt: skip
            table.writerow([safe_cell(known.get(column, "")) for column in columns])


def _folder(output: Path, one: ArchiveSeries, uid: str) -> Path:
    return output / one.subject / uid
