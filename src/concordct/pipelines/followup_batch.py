"""Follow-up scans of a whole cohort: a folder for each subject, one table of the verdicts, on any engine, resumable."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from concordct.errors import ConcordctError, reason_of
from concordct.methods.standardizer import Mode
from concordct.pipelines.engines import HERE, Engine, counted, results_of
from concordct.pipelines.followup import SUMMARY, predict, what_makes
from concordct.progression.cohort import TESTS, read_cohort
from concordct.volumes.csv_text import safe_cell
from concordct.volumes.given import read_json
from concordct.volumes.place import atomic_file

#: The table of all subjects, in the output.
VERDICTS = "followup.csv"
COLUMNS = ("subject", "status", "weeks", "verdict", "fibrosis_share_initial", "fibrosis_share_predicted", "reason")
#: Subjects become names of folders.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class FollowupJob:
    """A subject, the first scan, the weeks that are asked about, and the folder of the prediction."""

    subject: str
    scan: Path
    weeks: float
    output: Path


@dataclass(frozen=True)
class FollowupResult:
    """What became of a subject: "done", "resumed" or "failed" with its reason, and the prediction's summary."""

    subject: str
    status: str
    summary: Mapping[str, Any]
    reason: str = ""


def jobs_of_cohort(
    cohort: Path, output: Path, *, table: Path | None = None, weeks: float | None = None, subject: str | None = None
) -> tuple[FollowupJob, ...]:
    """A job for each subject of a cohort.

    Parameters
    ----------
    table : lung-function tests; None for those beside the cohort.
    weeks : for all; None for those of the cohort.
    subject : this one alone.

    Raises
    ------
    ConcordctError : a wrong cohort, no such subject, or a subject that cannot be the name of a folder.
    """
    found = [pair for pair in read_cohort(cohort, lung_function=table) if subject in (None, pair.subject)]
    if not found:
        raise ConcordctError(f"{cohort}: expected the subject asked for, found no row of it")
    for number, pair in enumerate(found, start=1):
        if not _PLAIN.fullmatch(pair.subject):
            raise ConcordctError(
                f"{cohort}: expected subjects of letters, digits, dots and dashes, found another as {number}."
            )
    return tuple(
        FollowupJob(pair.subject, pair.initial, pair.weeks if weeks is None else weeks, output / pair.subject)
        for pair in found
    )


def predict_cohort(
    cohort: Path,
    model: Path,
    output: Path,
    *,
    table: Path | None = None,
    weeks: float | None = None,
    subject: str | None = None,
    steps: int | None = None,
    mode: Mode = "sample",
    seed: int = 0,
    any_subject: bool = False,
    allow: Collection[str] = frozenset(),
    engine: Engine = HERE,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[FollowupResult, ...]:
    """Predict the follow-up scan of every subject; `OUTPUT/<subject>/` as `predict` writes it, and `VERDICTS`.

    Parameters
    ----------
    cohort : `cohort.csv`; the initial scans are read, follow-ups are not. The rest as for `predict`.
    engine : where the work runs. A share writes the table when the predictions of all others stand.

    Returns
    -------
    One result for each subject of this run, in order. A subject that fails never stops the others.

    Raises
    ------
    ConcordctError : what `jobs_of_cohort` raises, or every subject failed.
    """
    jobs = jobs_of_cohort(cohort, output, table=table, weeks=weeks, subject=subject)
    options: dict[str, Any] = {"steps": steps, "mode": mode, "seed": seed, "allow": frozenset(allow)}
    work = partial(
        _one,
        table=cohort.absolute().parent / TESTS if table is None else table,
        model=model,
        options=options,
        any_subject=any_subject,
        overwrite=overwrite,
    )
    marks = output / f".{VERDICTS}.shares"

    found = results_of(
        work,
        jobs,
        _lost,
        kept=partial(_standing, model=model, options=options),
        reason=lambda result: result.reason,
        marks=marks,
        engine=engine,
        progress=counted(progress),
    )
    if len(found) < len(jobs):
        return found
    if all(result.reason for result in found):
        raise ConcordctError(f"{cohort}: all {len(found)} subjects failed: {found[0].reason}")
    with atomic_file(output / VERDICTS, overwrite=True) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        rows.writerows(_rows(jobs, found))
    shutil.rmtree(marks, ignore_errors=True)
    return found


def _rows(jobs: Sequence[FollowupJob], found: Sequence[FollowupResult]) -> list[list[object]]:
    rows: list[list[object]] = []
    for job, result in zip(jobs, found, strict=True):
        row: list[object] = [safe_cell(job.subject), "failed" if result.reason else "done", f"{job.weeks:g}"]
        if not result.reason:
            extent = result.summary["fibrosis"]
            row.append(result.summary["progression"]["verdict"])
            row += [f"{extent[when]['share']:.4f}" for when in ("initial", "predicted")]
        rows.append([*row, *[""] * (len(COLUMNS) - 1 - len(row)), safe_cell(result.reason)])
    return rows


def _lost(job: FollowupJob, reason: str) -> FollowupResult:
    return FollowupResult(job.subject, "failed", {}, reason)


def _standing(job: FollowupJob, *, model: Path, options: Mapping[str, Any]) -> FollowupResult | None:
    """A prediction that stands already, made of the same scan in the same way; None where there is none.

    Raises
    ------
    ConcordctError : another one stands there.
    """
    if not job.output.exists():
        return None
    made = what_makes(job.scan, model, weeks=job.weeks, **options)
    try:
        summary = read_json(job.output / SUMMARY)
        same = all(summary[name] == value for name, value in made.items())
    except (OSError, ConcordctError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ConcordctError(f"{job.output}: holds the prediction of another scan, model, setting or version [exists]")
    return FollowupResult(job.subject, "resumed", summary)


def _one(
    job: FollowupJob, *, table: Path, model: Path, options: Mapping[str, Any], any_subject: bool, overwrite: bool
) -> FollowupResult:
    try:
        before = None if overwrite else _standing(job, model=model, options=options)
        if before is not None:
            return before
        summary = predict(
            job.scan, table, model, job.output, subject=job.subject, weeks=job.weeks, any_subject=any_subject,
            overwrite=overwrite, **options,
        )  # fmt: skip
        return FollowupResult(job.subject, "done", summary)
    except Exception as error:  # one subject never stops the others
        return FollowupResult(job.subject, "failed", {}, reason_of(error))
