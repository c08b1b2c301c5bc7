"""PyRadiomics' batches: a CSV of images and masks in, the same rows with their features out; resumable.

Columns are those of PyRadiomics' command line (`Image`, `Mask`, perhaps `Label` and `Label_channel`, anything else is
carried along); paths are relative to the CSV's folder, or absolute.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from concordct.errors import ConcordctError
from concordct.pipelines.engines import HERE, Engine, counted, results_of
from concordct.pipelines.parts import file_facts, part_name, refuse_standing
from concordct.radiomics.featureextractor import RadiomicsFeatureExtractor
from concordct.volumes.place import atomic_file, writing

IMAGE, MASK, LABEL, CHANNEL = "Image", "Mask", "Label", "Label_channel"


@dataclass(frozen=True)
class Case:
    """One row: its number in the CSV (the header is row 1), its columns, the folder that its paths are relative to."""

    number: int
    columns: Mapping[str, str]
    folder: Path

    @property
    def image(self) -> Path:
        """A series folder or a volume file."""
        return self.folder / self.columns[IMAGE]

    @property
    def mask(self) -> Path:
        """Labels on the grid of the image."""
        return self.folder / self.columns[MASK]

    def whole(self, name: str) -> int | None:
        """A column that holds a whole number or nothing.

        Raises
        ------
        ConcordctError : it holds something else.
        """
        text = self.columns.get(name)
        if text is None or not text.strip():
            return None
        try:
            return int(float(text))
        except ValueError:
            raise ConcordctError(f"expected a whole number in column {name}, found {text!r}") from None


@dataclass(frozen=True)
class CaseResult:
    """What became of one row: its number in the CSV (the header is row 1), features, or why there are none."""

    row: int
    features: Mapping[str, Any]
    reason: str = ""


def read_cases(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a batch.

    Raises
    ------
    ConcordctError : unreadable, no row, or no column Image or Mask.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            table = csv.DictReader(stream)
            columns, rows = list(table.fieldnames or ()), list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConcordctError(f"cannot read the batch {path}: {error}") from error
    missing = [name for name in (IMAGE, MASK) if name not in columns]
    if missing or not rows:
        what = f"no column {missing[0]}" if missing else "no row"
        raise ConcordctError(f"{path}: expected columns {IMAGE} and {MASK} and a row for each case, found {what}")
    return columns, rows


def run_batch(
    batch: Path,
    output: Path,
    *,
    params: Path | None = None,
    engine: Engine = HERE,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[CaseResult, ...]:
    """Features of every row of a batch.

    Parameters
    ----------
    params : a PyRadiomics parameter file; its defaults without.
    output : CSV: the batch's own columns, then diagnostics and features.
    engine : where the work runs. A share writes the output when the parts of all others stand.

    Returns
    -------
    One result for each row of this run, in order; a row that fails is named with its reason and keeps its line
    without features.

    Raises
    ------
    ConcordctError : a wrong batch or parameter file, an output that exists, or every row failed.
    """
    columns, rows = read_cases(batch)
    RadiomicsFeatureExtractor(params)
    parts = output.with_name(f".{output.name}.cases")
    refuse_standing(output, parts, overwrite=overwrite)
    with writing(output):
        parts.mkdir(parents=True, exist_ok=True)
    work = partial(_one, params=params, parts=parts)
    cases = [Case(number, row, batch.parent) for number, row in enumerate(rows, start=2)]

    ordered = results_of(
        work,
        cases,
        _lost,
        kept=lambda case: _kept(case, params, parts),
        reason=lambda result: result.reason,
        marks=parts,
        engine=engine,
        progress=counted(progress),
    )
    if len(ordered) < len(cases):
        return ordered
    if all(result.reason for result in ordered):
        raise ConcordctError(f"{batch}: all {len(rows)} cases failed: {ordered[0].reason}")
    names = list(dict.fromkeys(name for result in ordered for name in result.features))
    with atomic_file(output, overwrite=overwrite) as aside, aside.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow((*columns, *names))
        for row, result in zip(rows, ordered, strict=True):
            table.writerow((*(row[name] for name in columns), *(result.features.get(name, "") for name in names)))
    shutil.rmtree(parts, ignore_errors=True)
    return ordered


def _lost(case: Case, reason: str) -> CaseResult:
    return CaseResult(case.number, {}, reason)


def _part(case: Case, params: Path | None, parts: Path) -> Path:
    """Where the features of a case are kept: by everything that they depend on."""
    missing = next((path for path in (case.image, case.mask) if not path.exists()), None)
    if missing is not None:
        raise ConcordctError(f"{missing}: expected a file, found none")
    settings = [] if params is None else file_facts((params,))
    facts = [str(case.number), str(case.whole(LABEL)), str(case.whole(CHANNEL)), *settings]
    return parts / f"{part_name([*facts, *file_facts(_files(case.image) + _files(case.mask))])}.json"


def _kept(case: Case, params: Path | None, parts: Path) -> CaseResult | None:
    """What an earlier run, or another share, found; a case that cannot be measured fails here as there."""
    try:
        part = _part(case, params, parts)
    except ConcordctError as error:
        return CaseResult(case.number, {}, str(error))
    return CaseResult(case.number, json.loads(part.read_text(encoding="utf-8"))) if part.exists() else None


def _one(case: Case, *, params: Path | None, parts: Path) -> CaseResult:
    try:
        kept = _kept(case, params, parts)
        if kept is not None:
            return kept
        found = RadiomicsFeatureExtractor(params).execute(case.image, case.mask, case.whole(LABEL), case.whole(CHANNEL))
        text = json.dumps(found, default=str)
        with atomic_file(_part(case, params, parts), overwrite=True) as aside:
            aside.write_text(text, encoding="utf-8")
        return CaseResult(case.number, json.loads(text))
    except ConcordctError as error:
        return CaseResult(case.number, {}, str(error))
    except Exception as error:  # one case never stops the others, whatever a reader may throw
        return CaseResult(case.number, {}, f"{type(error).__name__} in row {case.number}")


def _files(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]
