"""The manifest of pairs, `pairs.csv`: which scan stands beside which, from whom, for what.

Columns: pair, subject, split, source, target, source_kernel, target_kernel, slice_thickness_mm, mask, and where several
series share a folder source_series and target_series. Paths are relative to the manifest's folder; `target` and `mask`,
the kernels and the thickness may be empty.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from concordct.errors import ConcordctError
from concordct.volumes.csv_text import plain_cell, safe_cell
from concordct.volumes.given import open_text
from concordct.volumes.place import atomic_file

Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=128)]


class PairRow(BaseModel):
    """One row of the manifest.

    Attributes
    ----------
    pair : name of the pair, once in a manifest.
    subject : pseudonym of the patient or phantom; a subject stays in one split.
    split : "train", "validation", "test" or any other word.
    source, target : a series folder or a volume file, absolute once read; target None for unpaired scans.
    source_kernel, target_kernel : None when unknown.
    slice_thickness_mm : None when unknown.
    mask : volume file of the region that counts, None for all.
    source_series, target_series : SeriesInstanceUID, where the folder holds several series; None where it holds one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pair: Word
    subject: Word
    split: Word
    source: Path
    target: Path | None = None
    source_kernel: Word | None = None
    target_kernel: Word | None = None
    slice_thickness_mm: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    mask: Path | None = None
    source_series: Word | None = None
    target_series: Word | None = None


#: Columns that a manifest may leave out.
OPTIONAL_COLUMNS = ("source_series", "target_series")
COLUMNS = tuple(name for name in PairRow.model_fields if name not in OPTIONAL_COLUMNS)
_PATHS = ("source", "target", "mask")


def read_manifest(path: str | Path) -> tuple[PairRow, ...]:
    """Read and check a manifest.

    Raises
    ------
    ConcordctError : file, row (the header is row 1), what was found and what was expected: missing or unknown
        columns, empty or wrong values, paths that do not exist, a pair named twice, a subject in two splits.
    """
    path = Path(path)
    try:
        with open_text(path) as file:
            table = csv.DictReader(file, strict=True)
            found = tuple(table.fieldnames or ())
            _check_columns(found, path)
            rows = [_row(values, number, path) for number, values in enumerate(table, start=2)]
    except OSError as error:
        raise ConcordctError(f"cannot read manifest {path}: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConcordctError(f"not a comma-separated table in UTF-8 ({type(error).__name__}): {path}") from None
    if not rows:
        raise ConcordctError(f"no rows, expected at least one pair: {path}")
    first_of: dict[str, int] = {}
    split_of: dict[str, tuple[str, int]] = {}
    for number, row in enumerate(rows, start=2):
        if row.pair in first_of:
            raise ConcordctError(
                f"row {number}: pair named as in row {first_of[row.pair]}, expected a new name: {path}"
            )
        first_of[row.pair] = number
        split, before = split_of.setdefault(row.subject, (row.split, number))
        if split != row.split:
            raise ConcordctError(
                f"row {number}: split {row.split}, but row {before} has the same subject in {split}; expected one "
                f"split for each subject: {path}"
            )
    return tuple(rows)


def write_manifest(path: str | Path, rows: Sequence[PairRow], *, overwrite: bool = False) -> Path:
    """Write a manifest whole, paths relative to its folder."""
    path = Path(path)
    folder = path.absolute().parent
    columns = [*COLUMNS, *(name for name in OPTIONAL_COLUMNS if any(getattr(row, name) for row in rows))]
    with atomic_file(path, overwrite=overwrite) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        for row in rows:
            values = row.model_dump(include=set(columns))
            for name in _PATHS:
                if values[name] is not None:
                    values[name] = Path(os.path.relpath(values[name], folder)).as_posix()
            table.writerow({name: _cell(value, path) for name, value in values.items()})
    return path


def _cell(value: object, path: Path) -> object:
    """A value as it is written: no formula, and a path that begins like one from its folder on."""
    if not isinstance(value, str):
        return "" if value is None else value
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConcordctError(f"{path}: expected paths in UTF-8, found one that is not") from None
    return safe_cell(value)


def _check_columns(found: tuple[str, ...], path: Path) -> None:
    missing = [name for name in COLUMNS if name not in found]
    unknown = [name for name in found if name not in (*COLUMNS, *OPTIONAL_COLUMNS)]
    if missing or unknown or len(set(found)) != len(found):
        said = f"row 1: columns {' '.join(', '.join(map(str, found)).split())[:200] or 'none'}"
        raise ConcordctError(f"{said}; expected {', '.join(COLUMNS)}: {path}")


def _row(values: dict[str | None, str | None], number: int, path: Path) -> PairRow:
    if None in values or any(value is None for value in values.values()):
        raise ConcordctError(f"row {number}: another number of values than columns, expected {len(COLUMNS)}: {path}")
    given = {str(name): plain_cell(value.strip()) for name, value in values.items() if value and value.strip()}
    try:
        row = PairRow.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        shown = "nothing" if first["type"] == "missing" else repr(first["input"])[:80]
        raise ConcordctError(f"row {number}, column {name}: found {shown}, {first['msg'].lower()}: {path}") from None
    for name in ("pair", "subject", "split"):  # they name folders and rows of tables
        if not getattr(row, name).isprintable():
            raise ConcordctError(f"row {number}, column {name}: expected printable characters alone: {path}")
    folder = path.absolute().parent
    placed = {name: folder / getattr(row, name) for name in _PATHS if getattr(row, name) is not None}
    for name, place in placed.items():
        if not place.exists():
            said = f"no such file or folder {str(place)[:200]}"
            if "\\" in str(place) and os.sep == "/":
                said += ", expected / between folders"
            raise ConcordctError(f"row {number}, column {name}: {said}: {path}")
    return row.model_copy(update=placed)
