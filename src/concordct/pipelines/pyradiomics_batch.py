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
from concordct.pipelines.engines import Local, each
from concordct.pipelines.parts import file_facts, part_name
from concordct.radiomics.featureextractor import RadiomicsFeatureExtractor
from concordct.volumes.place import atomic_file, writing

IMAGE, MASK, LABEL, CHANNEL = "Image", "Mask", "Label", "Label_channel"


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
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[CaseResult, ...]:
    """Features of every row of a batch.

    Parameters
    ----------
    params : a PyRadiomics parameter file; its defaults without.
    output : CSV: the batch's own columns, then diagnostics and features.
    workers : processes.

    Returns
    -------
    One result a row, in order; a row that fails is named with its reason and keeps its line without features.

    Raises
    ------
    ConcordctError : a wrong batch or parameter file, an output that exists, or every row failed.
    """
    columns, rows = read_cases(batch)
    RadiomicsFeatureExtractor(params)
    if output.exists() and not overwrite:
        raise ConcordctError(f"output exists and stays as it is (overwrite was not asked for): {output}")
    parts = output.with_name(f".{output.name}.cases")
    with writing(output):
        parts.mkdir(parents=True, exist_ok=True)
    work = partial(_one, folder=batch.parent, params=params, parts=parts)
    found: dict[int, CaseResult] = {}
    for index, result in each(work, list(enumerate(rows, start=2)), _lost, engine=Local(workers)):
        found[index] = result
        if progress is not None:
            progress(len(found), len(rows))
    ordered = tuple(found[index] for index in range(len(rows)))
    if all(result.reason for result in ordered):
        raise ConcordctError(f"{batch}: all {len(rows)} cases failed: {ordered[0].reason}")
    names = list(dict.fromkeys(name for result in ordered for name in result.features))
    with atomic_file(output, overwrite=True) as aside, aside.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow((*columns, *names))
        for row, result in zip(rows, ordered, strict=True):
            table.writerow((*(row[name] for name in columns), *(result.features.get(name, "") for name in names)))
    shutil.rmtree(parts, ignore_errors=True)
    return ordered


def _lost(case: tuple[int, Mapping[str, str]], reason: str) -> CaseResult:
    return CaseResult(case[0], {}, reason)


def _one(case: tuple[int, Mapping[str, str]], *, folder: Path, params: Path | None, parts: Path) -> CaseResult:
    number, row = case
    try:
        image, mask = (folder / row[name] for name in (IMAGE, MASK))
        missing = next((path for path in (image, mask) if not path.exists()), None)
        if missing is not None:
            raise ConcordctError(f"{missing}: expected a file, found none")
        label, channel = (_whole(row.get(name), name) for name in (LABEL, CHANNEL))
        settings = [] if params is None else file_facts((params,))
        files = _files(image) + _files(mask)
        part = parts / f"{part_name([str(number), str(label), str(channel), *settings, *file_facts(files)])}.json"
        if part.exists():
            return CaseResult(number, json.loads(part.read_text(encoding="utf-8")))
        found = RadiomicsFeatureExtractor(params).execute(image, mask, label, channel)
        with atomic_file(part, overwrite=True) as aside:
            aside.write_text(json.dumps(found, default=str), encoding="utf-8")
        return CaseResult(number, json.loads(json.dumps(found, default=str)))
    except ConcordctError as error:
        return CaseResult(number, {}, str(error))
    except Exception as error:  # one case never stops the others, whatever a reader may throw
        return CaseResult(number, {}, f"{type(error).__name__} in row {number}")


def _files(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def _whole(text: str | None, name: str) -> int | None:
    if text is None or not text.strip():
        return None
    try:
        return int(float(text))
    except ValueError:
        raise ConcordctError(f"expected a whole number in column {name}, found {text!r}") from None
