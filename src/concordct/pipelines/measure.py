"""Endpoints of many images: emphysema, density, calcium, nodules, noise; one CSV, one JSON, resumable.

An image gets a row under its lungs and its heart's region, and a further row for every labelled region. Without masks
of the caller's, both are found in the image. With a model, the standardized image is a stage of its own under the same
masks, each endpoint in the mode that is right for it.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from concordct import __version__
from concordct.endpoints.catalogue import ENDPOINTS
from concordct.errors import ConcordctError
from concordct.judging.endpoints import class_warnings
from concordct.methods.models import load_model
from concordct.pipelines.engines import HERE, Engine, results_of
from concordct.pipelines.headers import headers_on
from concordct.pipelines.measure_image import Choice, MeasureJob, Outcome, Row, measure_job
from concordct.pipelines.parts import file_facts, joining, part_name, refuse_standing, scan_facts
from concordct.volumes.csv_text import safe_cell
from concordct.volumes.manifest import read_manifest
from concordct.volumes.place import atomic_file, writing
from concordct.volumes.scans import Scan, find_scans, one_scan, scan_path

#: Called with (what is being done, steps done, steps in all).
Progress = Callable[[str, int, int], None]
KEYS = ("image", "subject", "stage", "region")


def jobs_of_path(
    path: Path,
    *,
    lungs: Path | None = None,
    heart: Path | None = None,
    regions: Path | None = None,
    model: Path | None = None,
    engine: Engine = HERE,
) -> tuple[MeasureJob, ...]:
    """One image, or every scan of a tree, named by where it lies in it; with a model once more, standardized.

    Parameters
    ----------
    engine : whose workers read the headers.

    Raises
    ------
    ConcordctError : no scan there, or masks for more than one image.
    """
    found = find_scans(path, reader=headers_on(engine))
    if not found.scans:
        one_scan(path)  # says what was set aside
    given = [name for name, mask in (("lungs", lungs), ("heart", heart), ("regions", regions)) if mask is not None]
    if given and len(found.scans) > 1:
        raise ConcordctError(f"{path}: expected one image for masks of {', '.join(given)}, found {len(found.scans)}")
    jobs = []
    for scan in found.scans:
        place = scan_path(scan)
        name = place.relative_to(path).as_posix() if place != path and path in place.parents else place.name
        name = name.split(".")[0] if place.is_file() and "/" not in name else name
        jobs.append(MeasureJob(name or "image", name or "image", "image", place, lungs, heart, regions, scan=scan))
    if len({job.image for job in jobs}) < len(jobs):  # several series in one folder
        jobs = [dataclasses.replace(job, image=f"{job.image}#{k}") for k, job in enumerate(jobs, start=1)]
    return _with_model(jobs, model)


def _with_model(jobs: Sequence[MeasureJob], model: Path | None) -> tuple[MeasureJob, ...]:
    """Every image (of pairs, the source) once more, standardized, right behind it."""
    if model is None:
        return tuple(jobs)
    found: list[MeasureJob] = []
    for job in jobs:
        if job.stage == "target":
            found.append(job)
            continue
        found += [
            dataclasses.replace(job, stage="source"),
            dataclasses.replace(job, stage="standardized", model=model, masks_of=job.path),
        ]
    return tuple(found)


def jobs_of_manifest(path: Path, *, split: str | None = None, model: Path | None = None) -> tuple[MeasureJob, ...]:
    """Sources and targets of a manifest, both under the source's lungs and heart; its masks are the regions.

    Raises
    ------
    ConcordctError : the manifest is wrong, or it has no row in the split.
    """
    jobs = []
    for row in read_manifest(path):
        if split not in (None, row.split):
            continue
        one = partial(MeasureJob, row.pair, row.subject, regions=row.mask, masks_of=row.source)
        jobs.append(one(stage="source", path=row.source))
        if row.target is not None:
            jobs.append(one(stage="target", path=row.target))
    if not jobs:
        raise ConcordctError(f"{path}: expected images in split {split or 'of any name'}, found none")
    return _with_model(jobs, model)


def measure_images(
    jobs: Sequence[MeasureJob],
    output: Path,
    *,
    choice: Choice | None = None,
    engine: Engine = HERE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[Outcome, ...]:
    """Measure images and write `output` (CSV) and the JSON beside it.

    Parameters
    ----------
    jobs : images; an image and stage once.
    output : the CSV: image, subject, stage, region, then a column for each number, units in its name; empty where a
        number is not defined. The JSON of the same name has definitions, notes and failures as well.
    engine : where the work runs. A share writes the output when the parts of all others stand.
    overwrite : replace an existing output.

    Returns
    -------
    One outcome for each job of this run, in order. An image that fails is named with its reason and never
    stops the others.

    Raises
    ------
    ConcordctError : nothing to do, an image twice, an output that exists, or every image failed.
    """
    chosen = choice or Choice()
    names = [(job.image, job.stage) for job in jobs]
    if not jobs or len(set(names)) < len(names):
        twice = next((name for name in names if names.count(name) > 1), None)
        raise ConcordctError(f"image {' '.join(twice)} stands twice among the jobs" if twice else "no image to measure")
    if output.suffix.lower() != ".csv":
        raise ConcordctError(f"expected an output that ends in .csv, found {output.name}")
    parts = output.with_name(f".{output.name}.images")
    refuse_standing(output, parts, overwrite=overwrite)
    with writing(output):
        parts.mkdir(parents=True, exist_ok=True)
    steps = 2 + len(chosen.endpoints)
    inner = progress if len(jobs) == 1 or engine == HERE else None
    done = 0

    def step(what: str, number: int) -> None:
        if inner is not None:
            inner(what, done * steps + number, len(jobs) * steps)

    work = partial(_one, choice=chosen, parts=parts, step=step if inner is not None else None)

    def report(outcome: Outcome, count: int, total: int) -> None:
        nonlocal done
        done = count
        if progress is not None:
            progress(outcome.image, count * steps, total * steps)

    ordered = results_of(
        work,
        jobs,
        _lost,
        kept=lambda job: _kept(_part(job, job.found(), chosen, parts)),
        reason=lambda outcome: outcome.reason,
        marks=parts,
        engine=engine,
        progress=report,
    )
    if len(ordered) < len(jobs):
        return ordered
    if all(outcome.status == "failed" for outcome in ordered):
        with suppress(OSError):  # what an earlier run kept stays for the next
            parts.rmdir()
        why = ordered[0].reason
        raise ConcordctError(why if len(jobs) == 1 else f"all {len(jobs)} images failed: {why}")
    with joining(output, parts):
        write_tables(output, jobs, ordered, chosen, overwrite=overwrite)
    return ordered


def _lost(job: MeasureJob, reason: str) -> Outcome:
    return Outcome(job.image, "failed", reason)


def _part(job: MeasureJob, scan: Scan, choice: Choice, parts: Path) -> Path:
    """Where the outcome of a job is kept: by everything that it depends on."""
    masks = [path for path in (job.lungs, job.heart, job.regions) if path is not None]
    facts = [repr(choice), job.image, job.stage, *scan_facts(scan), *file_facts(masks)]
    if job.model is not None:
        facts.append(load_model(job.model).sha256)
    if job.masks_of is not None:
        facts += scan_facts(scan if job.masks_of == job.path else one_scan(job.masks_of))
    return parts / f"{part_name(facts)}.json"


def _kept(part: Path) -> Outcome | None:
    """What an earlier run, or another share, measured."""
    if not part.exists():
        return None
    kept = json.loads(part.read_text(encoding="utf-8"))
    kept["rows"] = tuple(Row(**row) for row in kept["rows"])
    return Outcome(**{**kept, "notes": tuple(kept["notes"]), "status": "resumed"})


def _one(job: MeasureJob, *, choice: Choice, parts: Path, step: Callable[[str, int], None] | None) -> Outcome:
    """Measure one image into its part, unless an earlier run did."""
    try:
        scan = job.found()
        part = _part(job, scan, choice, parts)
        kept = _kept(part)
        if kept is not None:
            return kept
        outcome = measure_job(job, scan, choice, step)
        with atomic_file(part, overwrite=True) as aside:
            aside.write_text(json.dumps(dataclasses.asdict(outcome)), encoding="utf-8")
        return outcome
    except ConcordctError as error:
        return Outcome(job.image, "failed", str(error))
    except Exception as error:  # one image never stops the others, whatever a decoder may throw
        return Outcome(job.image, "failed", f"{type(error).__name__} while measuring {job.path}")


def columns_of(choice: Choice) -> dict[str, str]:
    """Column name -> title with unit, in the order of the CSV."""
    return {
        column.name: f"{column.title} [{column.unit}]" if column.unit else column.title
        for name in choice.endpoints
        for column in ENDPOINTS[name].columns
    }


def write_tables(
    output: Path, jobs: Sequence[MeasureJob], outcomes: Sequence[Outcome], choice: Choice, *, overwrite: bool
) -> None:
    """The CSV and its JSON, both whole or not at all."""
    columns = columns_of(choice)
    with (
        atomic_file(output, overwrite=overwrite) as aside,
        aside.open("w", newline="", encoding="utf-8") as stream,
    ):
        table = csv.writer(stream, lineterminator="\n")
        table.writerow((*KEYS, *columns))
        for job, outcome in zip(jobs, outcomes, strict=True):
            for row in outcome.rows:
                values = ["" if (value := row.values.get(name)) is None else f"{value:.6g}" for name in columns]
                table.writerow((*map(safe_cell, (job.image, job.subject, job.stage, row.region)), *values))
    told = {
        "software": f"concordct {__version__}",
        "endpoints": {name: ENDPOINTS[name].title for name in choice.endpoints},
        "columns": columns,
        "images": [
            {
                "image": job.image,
                "subject": job.subject,
                "stage": job.stage,
                "status": "failed" if outcome.status == "failed" else "done",
                "reason": outcome.reason or None,
                **outcome.facts,
                "notes": list(outcome.notes),
                "rows": [dataclasses.asdict(row) for row in outcome.rows],
            }
            for job, outcome in zip(jobs, outcomes, strict=True)
        ],
    }
    with atomic_file(output.with_suffix(".json"), overwrite=True) as aside:
        aside.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def class_changes_of(jobs: Sequence[MeasureJob], outcomes: Sequence[Outcome]) -> list[str]:
    """A line for every image that changes its clinical class when it is standardized (from source to standardized)."""
    of = {(job.image, job.stage): outcome for job, outcome in zip(jobs, outcomes, strict=True)}
    lines = []
    for (image, stage), outcome in of.items():
        before = of.get((image, "source"))
        if stage != "standardized" or before is None:
            continue
        lines += class_warnings(_own(before), _own(outcome), name=image)
    return lines


def _own(outcome: Outcome) -> Mapping[str, float | None]:
    return next((row.values for row in outcome.rows if row.region == ""), {})
