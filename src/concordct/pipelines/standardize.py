"""A scan, or a tree of scans, through a model: outputs moved into place whole, resumable, one record for each scan.

A file becomes a file, a folder of slices a folder of slices, a tree a tree of the same shape, however many series it
holds. What already stands there, made from the same source by the same model, settings and version, is left alone, so
a killed run continues where it stopped and ends with the same bytes as an undisturbed one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from concordct.errors import ConcordctError, reason_of
from concordct.methods.models import Model, kernel_mismatch
from concordct.methods.slabs import standardized_slabs
from concordct.methods.standardizer import Mode, Standardizer
from concordct.pipelines.checks import Check, check_scan
from concordct.pipelines.engines import HERE, Engine, Local, Share, results_of, within_of
from concordct.pipelines.headers import forget_headers, headers_on
from concordct.pipelines.records import (
    SELF_CHECK,
    Record,
    ScanJob,
    done,
    made_from,
    output_names,
    record_path,
    standing,
)
from concordct.pipelines.samples import STATISTICS, UNCERTAINTY_WINDOW, Statistics, beside, sampled_slabs
from concordct.volumes.derivation import Derivation
from concordct.volumes.derived import RECORD, write_derived_series
from concordct.volumes.files import VolumeFile, is_volume_file, refuse_uneven, write_volume_file
from concordct.volumes.find import SetAside
from concordct.volumes.geometry import Problem
from concordct.volumes.place import alone, atomic_file
from concordct.volumes.scans import LABEL_MAP, Scan, checked, evenly_spaced, find_scans, scan_path
from concordct.volumes.series import Series, WatchedSeries, watched
from concordct.volumes.volume import Volume

logger = logging.getLogger(__name__)

#: The records of a tree, one JSON object a line.
RECORDS = "standardize.jsonl"
#: Slice thickness may differ from the calibration's by this share before the record says so.
SAME_THICKNESS = 0.1
#: Pixels smaller than the calibration's by more than this factor hold frequencies that the model does not pass.
SMALLER_PIXELS = 0.75


@dataclass(frozen=True)
class Settings:
    """What the user chose.

    Attributes
    ----------
    mode : "sample" or "mean".
    seed : of the sampled noise.
    allow : geometry problems that may pass, see `Series.check`.
    any_kernel : standardize scans of other kernels than the model was calibrated from, too.
    overwrite : replace outputs that something else made.
    check : what to do about a scan that fails its self-check.
    samples : of so many, mean and uncertainty are written beside the first; 0 for the first alone.
    sampling : overrides of a model's way of sampling (steps, start, depth, ...), recorded with the result.
    device : of PyTorch, for the cosine transforms of `concord` and `spectral`; None for SciPy. Recorded, since HU
        differ by up to 0.01 before they are rounded. Networks take a card where there is one.
    """

    mode: Mode = "sample"
    seed: int = 0
    allow: frozenset[str] = frozenset()
    any_kernel: bool = False
    overwrite: bool = False
    check: Check = "warn"
    samples: int = 0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None

    def __post_init__(self) -> None:
        if self.samples and (self.samples < 2 or self.mode != "sample"):
            raise ConcordctError(
                f"expected at least 2 samples in mode 'sample', found {self.samples} in mode {self.mode!r}"
            )
        if self.samples and self.device is not None:
            raise ConcordctError(f"expected one sample on device {self.device}, found {self.samples}")


@dataclass(frozen=True)
class Plan:
    """What a run will do, before it does anything; `skipped` are the records of what it will not do."""

    jobs: tuple[ScanJob, ...]
    skipped: tuple[Record, ...]
    set_aside: tuple[SetAside, ...]
    tree: bool


#: Called with (scan done of all scans, slices done, slices in the scan).
Progress = Callable[[int, int, int], None]


def plan(input_path: Path, output: Path, model: Model, settings: Settings, *, engine: Engine = HERE) -> Plan:
    """Find what is there and decide where each result goes.

    Parameters
    ----------
    engine : whose workers read the headers.

    Raises
    ------
    ConcordctError : nothing to standardize, an output inside the input, or a single scan that is not the model's.
    """
    inside, outside = output.resolve(), input_path.resolve()
    if inside == outside or outside in inside.parents or (inside in outside.parents and inside.exists()):
        raise ConcordctError(f"{output}: expected an output apart from the input {input_path}")
    found = find_scans(input_path, reader=headers_on(engine, output=output))
    if not found.scans:
        forget_headers(output)
        reasons = sorted({item.reason for item in found.set_aside})
        raise ConcordctError(
            f"{input_path}: expected a CT series or volume, found none"
            + (f" ({len(found.set_aside)} files set aside: {'; '.join(reasons[:3])})" if reasons else "")
        )
    broken = [item for item in found.set_aside if is_volume_file(item.path) and item.reason != LABEL_MAP]
    if len(found.scans) == 1 and not broken:
        scan = found.scans[0]
        mismatch = None if settings.any_kernel else kernel_mismatch(model, scan.kernel)
        if mismatch:
            raise ConcordctError(f"{scan_path(scan)}: {mismatch} [other-kernel]")
        if _is_the_scan(scan, input_path):
            scan = model.seen(scan)
            if isinstance(scan, VolumeFile) and not is_volume_file(output):
                raise ConcordctError(
                    f"{output}: expected a volume file such as .nii.gz, since the input is {scan.path.name}"
                )
            if is_volume_file(output):
                refuse_uneven(scan, output)
            job = ScanJob(scan, output, input_path.name, output.name, _beside(scan, found.set_aside))
            return Plan((job,), (), found.set_aside, tree=False)
    if is_volume_file(output):
        count = len(found.scans) + len(broken)
        raise ConcordctError(f"{output}: expected a folder, since {input_path} holds {count} scans")
    jobs, skipped = [], []
    names = output_names(input_path, found.scans)
    for scan, name in zip(found.scans, names, strict=True):
        shown = str(scan_path(scan).relative_to(input_path))
        mismatch = None if settings.any_kernel else kernel_mismatch(model, scan.kernel)
        if mismatch is None and model.stacking is not None:
            mismatch = model.stacking.mismatch(scan)
        if mismatch:
            skipped.append(Record(shown, None, "skipped", mismatch, scan.shape[0]))
            continue
        try:
            jobs.append(ScanJob(model.seen(scan), output / name, shown, name, _beside(scan, found.set_aside)))
        except ConcordctError as error:
            skipped.append(Record(shown, None, "failed", str(error), scan.shape[0]))
    skipped += [Record(str(item.path.relative_to(input_path)), None, "failed", item.reason) for item in broken]
    return Plan(tuple(jobs), tuple(skipped), found.set_aside, tree=True)


def _is_the_scan(scan: Scan, input_path: Path) -> bool:
    """Whether the path names the scan itself; one that lies deeper is a tree of one, and its output a tree, too."""
    if isinstance(scan, VolumeFile):
        return scan.path == input_path
    return input_path.is_file() or all(ref.path.parent == input_path for ref in scan.slices)


def _beside(scan: Scan, set_aside: Sequence[SetAside]) -> tuple[str, ...]:
    """What lies in the folder of a series and was not used: a slice with a broken header is one of these."""
    if isinstance(scan, VolumeFile):
        return ()
    folders = {ref.path.parent for ref in scan.slices}
    reasons = [item.reason for item in set_aside if item.path.parent in folders and item.path.name != RECORD]
    counted = ", ".join(f"{count} x {reason}" for reason, count in sorted(Counter(reasons).items()))
    return (f"not used in its folder: {counted}",) if counted else ()


def run(
    plan: Plan,
    model: Model,
    output: Path,
    settings: Settings,
    *,
    engine: Engine = HERE,
    progress: Progress | None = None,
) -> tuple[Record, ...]:
    """Standardize what was planned. A scan that fails never stops the others.

    Parameters
    ----------
    model : the one that was planned with; read from disk once, whatever the number of scans.
    engine : where the work runs; the result is the same. A share writes `RECORDS` when the results of all stand.

    Returns
    -------
    One Record for each scan in the order of the plan, those skipped last; for a tree in which any is done also written
    to `RECORDS`.
    """
    logger.debug("%d scans to standardize, %d of other kernels or broken", len(plan.jobs), len(plan.skipped))
    count = 0
    # What a slice reports is heard in this process alone.
    here = engine == HERE or (len(plan.jobs) == 1 and not isinstance(engine, Share))
    slice_by_slice = (lambda done: progress(count, done, plan.jobs[count].scan.shape[0])) if progress else None
    work = partial(
        _standardize,
        model=model,
        settings=settings,
        workers=_spare(engine, len(plan.jobs)),
        progress=slice_by_slice if here else None,
    )

    def report(record: Record, done: int, _: int) -> None:
        nonlocal count
        if progress is not None:
            progress(count, record.slices, record.slices)
        count = done

    marks = output / f".{RECORDS}.shares"
    made = results_of(
        work,
        plan.jobs,
        _killed,
        kept=lambda job: _stands(job, model, settings),
        reason=lambda record: record.reason,
        marks=marks,
        engine=HERE if here else engine,
        progress=report,
    )
    if len(made) < len(plan.jobs):
        return (*made, *plan.skipped)
    everything = (*made, *plan.skipped)
    if plan.tree and any(record.status == "done" for record in everything):
        with atomic_file(output / RECORDS, overwrite=True) as aside:
            aside.write_text("".join(record.line() + "\n" for record in everything))
    shutil.rmtree(marks, ignore_errors=True)
    forget_headers(output)
    return everything


def _spare(engine: Engine, scans: int) -> int:
    """Processes that share the slabs of each scan: what this machine has more than scans."""
    within = within_of(engine)
    return max(1, within.workers // max(scans, 1)) if isinstance(within, Local) else 1


def _killed(job: ScanJob, reason: str) -> Record:
    return Record(job.input_name, job.output_name, "failed", reason, job.scan.shape[0])


def _stands(job: ScanJob, model: Model, settings: Settings) -> Record | None:
    """The record of a scan that another share has done; None where it has not."""
    try:
        intended = _intended(job, model, settings)
        before = standing(job, intended.derivation, intended.notes)
        extra = _extras(job, intended.derivation, settings) if settings.samples else []
        if before is None or any(standing(*each, intended.notes) is None for each in extra):
            return None
    except ConcordctError:
        return None
    return replace(before, beside=tuple(each.output_name for each, _ in extra))


def _standardize(
    job: ScanJob,
    model: Model,
    settings: Settings,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Record:
    """One scan, with every failure turned into a record."""
    try:
        return standardize_scan(job, model, settings, workers=workers, progress=progress)
    except Exception as error:
        # The text of a foreign exception may hold what a header says of the patient.
        reason = reason_of(error)
    return Record(job.input_name, job.output_name, "failed", reason, job.scan.shape[0])


@dataclass(frozen=True)
class _Intended:
    """How a scan is to be standardized, and what a reader of the result should know."""

    standardizer: Standardizer
    derivation: Derivation
    notes: tuple[str, ...]


def _intended(job: ScanJob, model: Model, settings: Settings) -> _Intended:
    scan = job.scan
    problems = checked(scan, settings.allow)
    reference, model = model, model.fitted(scan, allow=settings.allow)
    mode = settings.mode if model is reference or model.samples_noise else "mean"
    standardizer = model.standardizer(mode=mode, use_neighbours=evenly_spaced(scan), sampling=settings.sampling)
    derivation = Derivation(
        method=model.bundle.method,
        model_sha256=model.sha256,
        target_kernel="/".join(model.target_kernels) or None,
        settings={
            **standardizer.settings,
            "seed": settings.seed,
            "allowed": sorted({p.code for p in problems}),
            **({} if settings.device is None else {"device": settings.device}),
        },
        sharpens=model.bundle.metadata.get("sharpens"),
        slices=None if model.stacking is None else model.stacking.said(),
    )
    return _Intended(standardizer, derivation, (*_notes(scan, model, problems), *job.notes))


def standardize_scan(
    job: ScanJob,
    model: Model,
    settings: Settings,
    *,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Record:
    """Standardize one scan, or find that it has been; `workers` processes share its slabs.

    Raises
    ------
    ConcordctError : bad geometry, undecodable slices, an output that something else made, or no place to write.
    """
    scan = job.scan
    intended = _intended(job, model, settings)
    standardizer, derivation, notes = intended.standardizer, intended.derivation, intended.notes
    before = None if settings.overwrite else standing(job, derivation, notes)
    found = _self_check(job, standardizer, settings, before)
    extra = _extras(job, derivation, settings) if settings.samples else []
    missing = [each for each in extra if settings.overwrite or standing(*each, notes) is None]
    options: dict[str, Any] = {"seed": settings.seed, "allow": settings.allow, "progress": progress}
    if before is None and not missing:
        slabs = standardized_slabs(scan, standardizer, workers=workers, device=settings.device, **options)
        before = _write(job, slabs, derivation, settings, notes, found)
    elif missing:
        with Statistics(job.output.parent) as statistics:
            slabs = sampled_slabs(scan, standardizer, statistics, samples=settings.samples, **options)
            if before is None:
                before = _write(job, slabs, derivation, settings, notes, found)
            for _ in slabs:  # all of them make the statistics, whether this run wrote the result or not
                pass
            for name, (job_beside, derivation_beside) in zip(STATISTICS, extra, strict=True):
                if (job_beside, derivation_beside) in missing:
                    slabs = statistics.slabs(name, scan, allow=settings.allow)
                    _write(job_beside, slabs, derivation_beside, settings, notes, found)
    assert before is not None
    return replace(before, beside=tuple(each.output_name for each, _ in extra), self_check=found)


def _self_check(
    job: ScanJob, standardizer: Standardizer, settings: Settings, before: Record | None
) -> dict[str, Any] | None:
    """The self-check of a scan, that of the result which stands already where it has one.

    Raises
    ------
    ConcordctError : it failed and is to be refused.
    """
    if settings.check == "off":
        return None
    found = None if before is None else before.self_check
    if before is None or (found is None and settings.check == "refuse"):
        measured = check_scan(job.scan, standardizer, seed=settings.seed, allow=settings.allow)
        found = None if measured is None else measured.to_json()
    if settings.check == "refuse" and found is not None and found["failed"]:
        said = "; ".join(found["problems"])
        raise ConcordctError(f"{scan_path(job.scan)}: self-check failed: {said} [self-check]")
    return found


def _extras(job: ScanJob, derivation: Derivation, settings: Settings) -> list[tuple[ScanJob, Derivation]]:
    """What is written beside a result of several samples, in the order of `STATISTICS`."""
    shows = {
        "mean": f"mean of {settings.samples} samples",
        "uncertainty": f"standard deviation of {settings.samples} samples",
    }
    return [
        (
            replace(job, output=beside(job.output, name), output_name=beside(Path(job.output_name), name).as_posix()),
            replace(
                derivation,
                settings={**derivation.settings, "samples": settings.samples},
                shows=shows[name],
                window_hu=UNCERTAINTY_WINDOW if name == "uncertainty" else None,
            ),
        )
        for name in STATISTICS
    ]


def _write(
    job: ScanJob,
    slabs: Iterator[Volume],
    derivation: Derivation,
    settings: Settings,
    notes: tuple[str, ...],
    found: dict[str, Any] | None,
) -> Record:
    """A result, to a series or to a file."""
    scan = job.scan
    if not isinstance(scan, Series) or is_volume_file(job.output):
        return _write_file(job, slabs, derivation, settings, notes, found)
    options: dict[str, Any] = {"allow": settings.allow, "overwrite": settings.overwrite}
    try:
        written = write_derived_series(scan, slabs, job.output, derivation, also={SELF_CHECK: found}, **options)
    except ConcordctError:
        # Another run to the same place may have put the same result there meanwhile.
        before = None if settings.overwrite else standing(job, derivation, notes)
        if before is None:
            raise
        return before
    return done(job, written.clipped_voxels, written.pixels_sha256, notes)


def _write_file(
    job: ScanJob,
    slabs: Iterator[Volume],
    derivation: Derivation,
    settings: Settings,
    notes: tuple[str, ...],
    found: dict[str, Any] | None,
) -> Record:
    """A volume file with its record beside it. The record comes first, without a digest: it claims the name for a run
    that is killed before the second one is written."""
    digest = hashlib.sha256()
    # A map of deviations is no CT image: it is neither rounded nor held to the range of one.
    image = derivation.window_hu is None
    source = watched(job.scan) if type(job.scan) is Series and image else job.scan if image else None

    def hashed() -> Iterator[Volume]:
        for slab in slabs:
            digest.update(slab.hu.round().astype("<i4").tobytes())
            yield slab

    def write_record(pixels_sha256: str | None) -> None:
        record = {**made_from(job, derivation), "notes": list(notes), "pixels_sha256": pixels_sha256}
        record[SELF_CHECK] = found
        if isinstance(source, WatchedSeries) and pixels_sha256 is not None:
            record["source_sha256"] = source.digest.hexdigest()
        with atomic_file(record_path(job), overwrite=True) as aside:
            aside.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")

    with alone(job.output):
        # Another run may have been here meanwhile; what it made in another way stays and is named.
        before = None if settings.overwrite else standing(job, derivation, notes)
        if before is not None:
            return before
        claimed = record_path(job).exists()
        earlier = record_path(job).read_bytes() if claimed else None
        if job.output.exists() and not (claimed or settings.overwrite):
            raise ConcordctError(f"{job.output}: exists and was not made by this run [exists]")
        write_record(None)
        try:
            over = claimed or settings.overwrite
            write_volume_file(job.output, hashed(), source=source, whole_hu=image, overwrite=over)
        except BaseException:
            _give_back(record_path(job), earlier)
            raise
        write_record(digest.hexdigest())
    return done(job, 0, digest.hexdigest(), notes)


def _give_back(path: Path, earlier: bytes | None) -> None:
    """The record of before a run that wrote nothing; none where there was none."""
    if earlier is None:
        path.unlink(missing_ok=True)
        return
    with atomic_file(path, overwrite=True) as aside:
        aside.write_bytes(earlier)


def _notes(scan: Scan, model: Model, problems: Sequence[Problem]) -> tuple[str, ...]:
    """What a reader of the result should know."""
    info = model.bundle.metadata["info"]
    notes = [*scan.notes, *(f"{problem.message} [allowed: {problem.code}]" for problem in problems)]
    mismatch = kernel_mismatch(model, scan.kernel)
    if mismatch:
        notes.append(mismatch)
    if info.get("caution"):
        notes.append(info["caution"])
    if model.stacking is not None:
        notes.append(f"new slices: {model.stacking.said()}")
    calibrated, own = info.get("slice_thickness_mm"), scan.slice_thickness_mm
    if calibrated and own and abs(own / calibrated - 1) > SAME_THICKNESS:
        notes.append(f"slice thickness {own:g} mm, calibrated at {calibrated:g} mm")
    pixel, pixels = min(scan.spacing_mm[1:]), info.get("pixel_mm")
    if pixels and pixel < SMALLER_PIXELS * min(pixels):
        notes.append(f"pixels of {pixel:.3g} mm, calibrated at {min(pixels):.3g} mm: finer detail is not passed")
    return tuple(notes)
