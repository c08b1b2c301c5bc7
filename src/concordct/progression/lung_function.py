"""Lung-function tests beside the scans: a checked table, typed records, and the sentence that a text encoder reads.

One row per visit. Columns, in any case and order: `subject`, `weeks` (since the first scan), and any of `fvc_ml` or
`fvc_l`, `fvc_percent`, `fev1_ml` or `fev1_l`, `pef_l_min` or `pef_l_s`, `dlco_percent`, `age_years`, `sex`, `smoking`.
The names of the OSIC table (Patient, Weeks, FVC, Percent, Age, Sex, SmokingStatus) are read with that table's meaning:
FVC in ml, and weeks that may be negative, for visits before the scan. An empty cell is a missing value.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from concordct.errors import ConcordctError
from concordct.volumes.csv_text import plain_cell, safe_cell
from concordct.volumes.given import open_text
from concordct.volumes.place import atomic_file

#: Beyond these an adult's test was mistyped or is in another unit. OSIC's own table spans 827 to 6399 ml FVC and 29 to
#: 154 % of predicted; the limits leave room on both sides.
RANGES: dict[str, tuple[float, float]] = {
    "fvc_ml": (300.0, 9000.0),
    "fvc_percent": (10.0, 200.0),
    "fev1_ml": (200.0, 8000.0),
    "pef_l_min": (30.0, 1200.0),
    "dlco_percent": (3.0, 200.0),
    "age_years": (18.0, 110.0),
}
#: FEV1 is a part of FVC; their best values may come from two blows, which agree to 150 ml (Graham 2019,
#: doi:10.1164/rccm.201908-1590ST).
REPEATABILITY_ML = 150.0
SEXES = {"female": "female", "f": "female", "male": "male", "m": "male"}
SMOKING = {
    "never": "never", "never smoked": "never", "ex": "ex", "ex-smoker": "ex", "former": "ex",
    "current": "current", "currently smokes": "current",
}  # fmt: skip
#: Cells that say "not measured".
_BLANK = {"", "na", "n/a", "nan", "-"}
#: Longest interval that a table or a prediction may name, weeks.
MAX_WEEKS = 1000.0


@dataclass(frozen=True)
class LungFunction:
    """One visit's tests and what is known of the person; None where it was not measured.

    Attributes
    ----------
    fvc_ml, fev1_ml : forced vital capacity, and the volume of its first second, ml.
    fvc_percent, dlco_percent : per cent of the value predicted for the person.
    pef_l_min : peak expiratory flow, l/min.
    age_years : age.
    sex : "female" or "male".
    smoking : "never", "ex" or "current".
    """

    fvc_ml: float | None = None
    fvc_percent: float | None = None
    fev1_ml: float | None = None
    pef_l_min: float | None = None
    dlco_percent: float | None = None
    age_years: float | None = None
    sex: str | None = None
    smoking: str | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConcordctError(f"{name} of {value:g}, expected {low:g} to {high:g}: another unit?")
        if self.sex not in (None, "female", "male"):
            raise ConcordctError(f"sex {self.sex!r}, expected female or male")
        if self.smoking not in (None, "never", "ex", "current"):
            raise ConcordctError(f"smoking {self.smoking!r}, expected never, ex or current")
        if self.fvc_ml and self.fev1_ml and self.fev1_ml > self.fvc_ml + REPEATABILITY_ML:
            raise ConcordctError(f"fev1_ml of {self.fev1_ml:g} above fvc_ml of {self.fvc_ml:g}, of which it is a part")

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of what was not measured."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) is None)


@dataclass(frozen=True)
class Visit:
    """Tests of one day.

    Attributes
    ----------
    weeks : since the first scan.
    values : what was measured.
    """

    weeks: float
    values: LungFunction


#: What a table may call a value -> (field, factor to the field's unit). OSIC's names stand last.
_COLUMNS: dict[str, tuple[str, float]] = {
    "fvc_ml": ("fvc_ml", 1.0), "fvc_l": ("fvc_ml", 1000.0), "fvc_percent": ("fvc_percent", 1.0),
    "fev1_ml": ("fev1_ml", 1.0), "fev1_l": ("fev1_ml", 1000.0), "pef_l_min": ("pef_l_min", 1.0),
    "pef_l_s": ("pef_l_min", 60.0), "dlco_percent": ("dlco_percent", 1.0), "age_years": ("age_years", 1.0),
    "sex": ("sex", 1.0), "smoking": ("smoking", 1.0),
    "fvc": ("fvc_ml", 1.0), "percent": ("fvc_percent", 1.0), "age": ("age_years", 1.0),
    "smokingstatus": ("smoking", 1.0),
}  # fmt: skip
COLUMNS = ("subject", "weeks", *(field.name for field in fields(LungFunction)))


def read_table(path: str | Path) -> dict[str, tuple[Visit, ...]]:
    """Read and check a table of lung-function tests.

    Returns
    -------
    Subject -> visits in order of weeks.

    Raises
    ------
    ConcordctError : file, row (the header is row 1) and column, what was found and what was expected: unknown or
        double columns, values that are no numbers or out of range, negative weeks, one subject twice in one week.
    """
    path = Path(path)
    try:
        with open_text(path) as file:
            table = csv.reader(file, strict=True)
            columns = _columns(next(table, []), path)
            rows = [(n, *_row(cells, n, columns, path)) for n, cells in enumerate(table, start=2) if cells]
    except OSError as error:
        raise ConcordctError(f"cannot read lung-function table {path}: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConcordctError(f"not a comma-separated table in UTF-8 ({type(error).__name__}): {path}") from None
    if not rows:
        raise ConcordctError(f"no rows, expected at least one visit: {path}")
    visits: dict[str, dict[float, Visit]] = {}
    for number, subject, visit in rows:
        of_subject = visits.setdefault(subject, {})
        if visit.weeks in of_subject and of_subject[visit.weeks] != visit:
            raise ConcordctError(f"row {number}: another row has the subject in week {visit.weeks:g} already: {path}")
        of_subject[visit.weeks] = visit
    return {subject: tuple(days[week] for week in sorted(days)) for subject, days in visits.items()}


def write_table(path: str | Path, table: Mapping[str, Sequence[Visit]], *, overwrite: bool = False) -> Path:
    """Write a table that `read_table` reads, with the columns of `COLUMNS`.

    Where visits lie before the scan, the column of the weeks is OSIC's `Weeks`, which may hold them.
    """
    path = Path(path)
    before = any(visit.weeks < 0 for visits in table.values() for visit in visits)
    header = [name.capitalize() if before and name == "weeks" else name for name in COLUMNS]
    with atomic_file(path, overwrite=overwrite) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for subject, visits in table.items():
            for visit in visits:
                values = [getattr(visit.values, name) for name in COLUMNS[2:]]
                cells = ["" if v is None else f"{v:g}" if isinstance(v, float) else v for v in (visit.weeks, *values)]
                writer.writerow([safe_cell(subject), *cells])
    return path


def first_visit(table: Mapping[str, Sequence[Visit]], subject: str) -> Visit:
    """The visit nearest to the first scan, the only one that a prediction may know.

    Raises
    ------
    ConcordctError : a table without the subject.
    """
    if not table.get(subject):
        raise ConcordctError(
            f"the lung-function table has no row of the subject asked for; it names {len(table)} others"
        )
    return min(table[subject], key=lambda visit: (abs(visit.weeks), visit.weeks))


def check_weeks(weeks: float) -> float:
    """An interval between two scans, weeks.

    Raises
    ------
    ConcordctError : not above 0, or beyond `MAX_WEEKS`.
    """
    if not (math.isfinite(weeks) and 0.0 < weeks <= MAX_WEEKS):
        raise ConcordctError(f"{weeks:g} weeks between the scans, expected above 0 and at most {MAX_WEEKS:g}")
    return float(weeks)


def sentence(values: LungFunction, *, weeks: float) -> str:
    """What a text encoder reads: every value in one fixed order, missing ones said to be unknown.

    Numbers are rounded to what a test can tell: volumes to 50 ml, flow to 10 l/min, the rest to whole numbers.

    Parameters
    ----------
    weeks : from the first scan to the one that is predicted.

    Raises
    ------
    ConcordctError : see `check_weeks`.
    """
    weeks = check_weeks(weeks)

    def told(value: float | None, unit: str, step: int = 1) -> str:
        return "unknown" if value is None else f"{step * round(value / step)} {unit}"

    smoking = {None: "unknown", "never": "never smoked", "ex": "stopped smoking", "current": "smokes"}
    return (
        f"Sex {values.sex or 'unknown'}, age {told(values.age_years, 'years')}, smoking {smoking[values.smoking]}. "
        f"Forced vital capacity {told(values.fvc_ml, 'ml', 50)}, {told(values.fvc_percent, 'percent of predicted')}. "
        f"First second {told(values.fev1_ml, 'ml', 50)}, peak flow {told(values.pef_l_min, 'litres per minute', 10)}. "
        f"Gas transfer {told(values.dlco_percent, 'percent of predicted')}. "
        f"Next scan after {round(weeks)} weeks."
    )


def _columns(header: list[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in header]
    known = {"subject", "patient", "weeks", *_COLUMNS}
    unknown = [name for name in names if name.lower() not in known]
    meant = [_COLUMNS.get(name.lower(), (_key(name), 0.0))[0] for name in names]
    if unknown or len(set(meant)) != len(meant) or not {"subject", "weeks"} <= set(meant):
        said = ", ".join(names) or "none"
        raise ConcordctError(f"row 1: columns {said}; expected subject, weeks and any of {', '.join(_COLUMNS)}: {path}")
    return names


def _key(name: str) -> str:
    return "subject" if name.lower() in ("subject", "patient") else "weeks"


def _row(cells: list[str], number: int, columns: list[str], path: Path) -> tuple[str, Visit]:
    if len(cells) != len(columns):
        raise ConcordctError(f"row {number}: {len(cells)} values, expected {len(columns)}: {path}")
    subject, weeks = "", math.nan
    given: dict[str, float | str] = {}
    for name, cell in zip(columns, (cell.strip() for cell in cells), strict=True):
        low = name.lower()
        if low in ("subject", "patient"):
            subject = plain_cell(cell)
        elif low == "weeks":
            weeks = _number(cell, number, name, path)
            # OSIC counts from the scan, and visits before it are negative there; a table of our own has no reason to.
            if weeks < 0 and name != "Weeks":
                raise ConcordctError(f"row {number}, column {name}: found {cell}, expected 0 or above: {path}")
        elif cell.lower() not in _BLANK:
            field, factor = _COLUMNS[low]
            words = {"sex": SEXES, "smoking": SMOKING}.get(field)
            given[field] = (
                _word(cell, words, number, name, path) if words else factor * _number(cell, number, name, path)
            )
    if not subject:
        raise ConcordctError(f"row {number}, column subject: found nothing, expected a name: {path}")
    if abs(weeks) > MAX_WEEKS:
        raise ConcordctError(f"row {number}: {weeks:g} weeks, expected at most {MAX_WEEKS:g}: {path}")
    try:
        return subject, Visit(weeks, LungFunction(**given))  # type: ignore[arg-type]
    except ConcordctError as error:
        raise ConcordctError(f"row {number}: {error}: {path}") from None


def _number(cell: str, number: int, name: str, path: Path) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConcordctError(f"row {number}, column {name}: found {cell[:32]!r}, expected a number: {path}")
    return value


def _word(cell: str, words: Mapping[str, str], number: int, name: str, path: Path) -> str:
    if cell.lower() not in words:
        expected = ", ".join(dict.fromkeys(words.values()))
        raise ConcordctError(f"row {number}, column {name}: found {cell[:32]!r}, expected {expected}: {path}")
    return words[cell.lower()]
