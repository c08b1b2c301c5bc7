"""Subjects with an initial scan, a follow-up and lung-function tests: our own manifest, and OSIC as users have it.

`cohort.csv` has the columns subject, initial, followup, weeks, label; paths are relative to its folder; followup and
label may be empty. The tests lie in `lung_function.csv` beside it, see `lung_function.read_table`.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from concordct.errors import ConcordctError
from concordct.progression.lung_function import Visit, check_weeks, read_table
from concordct.volumes.csv_text import plain_cell, safe_cell
from concordct.volumes.decode import open_dataset
from concordct.volumes.find import find_series
from concordct.volumes.given import open_text
from concordct.volumes.place import atomic_file

LABELS = ("stable", "progressive")
COLUMNS = ("subject", "initial", "followup", "weeks", "label")
TESTS = "lung_function.csv"
#: The interval that is asked about where neither a second scan nor a later test names one.
YEAR_WEEKS = 52.0
#: Tests this long after the second scan still say how the lungs did between the scans, weeks.
LATE_WEEKS = 13.0


@dataclass(frozen=True)
class FollowupPair:
    """One subject.

    Attributes
    ----------
    subject : pseudonym.
    initial, followup : a DICOM series folder or a volume file; followup None where there is none (yet).
    weeks : between the scans; without a follow-up the interval that is asked about.
    visits : lung-function tests in order of weeks; may be empty.
    label : "stable" or "progressive", None when unknown.
    """

    subject: str
    initial: Path
    followup: Path | None
    weeks: float
    visits: tuple[Visit, ...]
    label: str | None = None


def read_cohort(path: str | Path, *, lung_function: str | Path | None = None) -> tuple[FollowupPair, ...]:
    """Read and check a cohort.

    Parameters
    ----------
    path : `cohort.csv`.
    lung_function : the table of tests; None takes `lung_function.csv` beside the cohort, where there is one.

    Raises
    ------
    ConcordctError : file, row (the header is row 1) and column, what was found and what was expected: other columns,
        a subject twice, missing paths, weeks not above 0, an unknown label, a table that `read_table` refuses.
    """
    path = Path(path)
    try:
        with open_text(path) as file:
            table = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(table, [])]
            if sorted(header) != sorted(COLUMNS):
                said = ", ".join(header) or "none"
                raise ConcordctError(f"row 1: columns {said}; expected {', '.join(COLUMNS)}: {path}")
            rows = [
                (n, [plain_cell(cell.strip()) for cell in cells])
                for n, cells in enumerate(table, start=2)
                if any(cells)
            ]
    except OSError as error:
        raise ConcordctError(f"cannot read cohort {path}: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConcordctError(f"not a comma-separated table in UTF-8 ({type(error).__name__}): {path}") from None
    if not rows:
        raise ConcordctError(f"no rows, expected at least one subject: {path}")
    beside = path.absolute().parent / TESTS
    tests = read_table(lung_function or beside) if lung_function is not None or beside.is_file() else {}
    pairs: dict[str, FollowupPair] = {}
    for number, cells in rows:
        if len(cells) != len(header):
            raise ConcordctError(f"row {number}: {len(cells)} values, expected {len(header)}: {path}")
        pair = _pair(dict(zip(header, cells, strict=True)), number, path, tests)
        if pair.subject in pairs:
            raise ConcordctError(f"row {number}: the subject stands in an earlier row; expected one row each: {path}")
        pairs[pair.subject] = pair
    return tuple(pairs.values())


def _pair(cells: Mapping[str, str], number: int, path: Path, tests: Mapping[str, tuple[Visit, ...]]) -> FollowupPair:
    folder = path.absolute().parent
    for name in ("subject", "initial", "weeks"):
        if not cells[name]:
            raise ConcordctError(f"row {number}, column {name}: found nothing: {path}")
    for name in ("initial", "followup"):
        if cells[name] and not (folder / cells[name]).exists():
            raise ConcordctError(f"row {number}, column {name}: no such file or folder {folder / cells[name]}: {path}")
    if cells["label"] and cells["label"] not in LABELS:
        raise ConcordctError(
            f"row {number}, column label: found {cells['label'][:32]!r}, expected {' or '.join(LABELS)}: {path}"
        )
    try:
        weeks = check_weeks(float(cells["weeks"]))
    except ValueError:
        raise ConcordctError(
            f"row {number}, column weeks: found {cells['weeks'][:32]!r}, expected a number: {path}"
        ) from None
    except ConcordctError as error:
        raise ConcordctError(f"row {number}, column weeks: {error}: {path}") from None
    return FollowupPair(
        subject=cells["subject"],
        initial=folder / cells["initial"],
        followup=folder / cells["followup"] if cells["followup"] else None,
        weeks=weeks,
        visits=tests.get(cells["subject"], ()),
        label=cells["label"] or None,
    )


def write_cohort(path: str | Path, pairs: Sequence[FollowupPair], *, overwrite: bool = False) -> Path:
    """Write `cohort.csv`, paths relative to its folder; the tests are written by `lung_function.write_table`."""
    path = Path(path)
    folder = path.absolute().parent

    def placed(scan: Path | None) -> str:
        return "" if scan is None else Path(os.path.relpath(scan, folder)).as_posix()

    with atomic_file(path, overwrite=overwrite) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for pair in pairs:
            writer.writerow(
                [
                    safe_cell(pair.subject),
                    placed(pair.initial),
                    placed(pair.followup),
                    f"{pair.weeks:g}",
                    pair.label or "",
                ]
            )
    return path


@dataclass(frozen=True)
class OsicCohort:
    """What was found.

    Attributes
    ----------
    pairs : one for each patient of the table whose scans can be used.
    failures : (place of the patient in the table, counted from 1, and the reason) for those whose scans cannot.
    without_scans : patients of the table without a folder.
    """

    pairs: tuple[FollowupPair, ...]
    failures: tuple[tuple[int, str], ...]
    without_scans: int


def osic_cohort(
    folder: str | Path,
    table: str | Path,
    *,
    progressive_decline: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> OsicCohort:
    """OSIC as users have it: a folder of DICOM files for each patient, and the table of FVC by week.

    A patient's folder holds one series, which is the initial scan, or two, which are told apart by their acquisition
    dates. Patients of the table without a folder are counted only, as the table also names those of held-back scans.

    Parameters
    ----------
    folder : holds a folder for each patient, named as in the table.
    table : with the columns Patient, Weeks, FVC, Percent, Age, Sex, SmokingStatus, or our own.
    progressive_decline : relative loss of FVC per 52 weeks from which a patient counts as progressive (0.1 in most
        trials); None leaves the labels out.
    progress : called with the patients done and all of them.

    Raises
    ------
    ConcordctError : a table that cannot be read, a decline not between 0 and 1, no patient with a folder. A folder
        with no or more than two series, or two without dates or of one day, is a failure of its patient alone.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConcordctError(f"no such folder: {folder}")
    if progressive_decline is not None and not 0.0 < progressive_decline < 1.0:
        raise ConcordctError(
            f"a decline of FVC of {progressive_decline:g} a year, expected a share between 0 and 1, such as 0.1"
        )
    everyone = read_table(table)
    pairs, failures, absent = [], [], 0
    for number, (subject, visits) in enumerate(everyone.items(), start=1):
        if progress is not None:
            progress(number, len(everyone))
        place = folder / subject
        if not place.is_dir():
            absent += 1
            continue
        try:
            scans, weeks = _osic_scans(place)
        except ConcordctError as error:
            failures.append((number, str(error)))
            continue
        later = [visit.weeks for visit in visits if visit.weeks > 0]
        weeks = weeks or (max(later) if later else YEAR_WEEKS)
        label = None
        if progressive_decline is not None:
            decline = fvc_decline(visits, weeks)
            label = None if decline is None else LABELS[int(decline >= progressive_decline)]
        pairs.append(FollowupPair(subject, scans[0], scans[1] if len(scans) > 1 else None, weeks, visits, label))
    if not pairs and not failures:
        raise ConcordctError(f"no patient of {table} has a folder in {folder}")
    return OsicCohort(tuple(pairs), tuple(failures), absent)


def fvc_decline(visits: Sequence[Visit], weeks: float) -> float | None:
    """Relative loss of FVC per 52 weeks, from a line through the visits; None with fewer than two of them.

    Parameters
    ----------
    weeks : visits up to `LATE_WEEKS` after it count.
    """
    points = [(v.weeks, v.values.fvc_ml) for v in visits if v.values.fvc_ml and v.weeks <= weeks + LATE_WEEKS]
    if len({week for week, _ in points}) < 2:
        return None
    when, fvc = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    slope, start = np.polyfit(when, fvc, 1)
    return float(-slope * YEAR_WEEKS / start) if start > 0 else None


def _osic_scans(place: Path) -> tuple[list[Path], float | None]:
    """(initial, follow-up where there is one) of a patient's folder, and the weeks between them."""
    series = find_series(place).series
    where = [one.folder for one in series]
    if len(series) == 1:
        return [where[0]], None
    if len(series) != 2 or where[0] == where[1]:
        raise ConcordctError(
            f"{len(series)} CT series in a patient's folder of {place.parent}; expected one, or two in two folders"
        )
    days = [_day(one.slices[0].path) for one in series]
    dated = sorted((day, str(folder)) for day, folder in zip(days, where, strict=True) if day is not None)
    if len(dated) < 2 or dated[0][0] == dated[1][0]:
        raise ConcordctError(
            f"two CT series in a patient's folder of {place.parent} without acquisition dates that tell them apart; "
            "name initial and follow-up in a cohort.csv"
        )
    return [Path(folder) for _, folder in dated], (dated[1][0] - dated[0][0]).days / 7.0


def _day(path: Path) -> date | None:
    header = open_dataset(path, tags=["AcquisitionDate", "StudyDate"])
    for name in ("AcquisitionDate", "StudyDate"):
        value = str(header.get(name) or "")
        if len(value) == 8 and value.isdigit():
            try:
                return date(int(value[:4]), int(value[4:6]), int(value[6:]))
            except ValueError:
                continue
    return None
