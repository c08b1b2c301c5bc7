"""One case of an evaluation, judged and kept on disk, so that cases run anywhere and a killed evaluation goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError, reason_of
from concordct.judging.case import Case, HeldPair, hold_pair, same_place
from concordct.judging.endpoints import class_warnings, endpoints_of, masks_for
from concordct.judging.held import Held
from concordct.judging.regions import body_grid, roi_edge
from concordct.judging.signals import Gathered, gather
from concordct.judging.stages import TARGET, standardized, standardizer_for
from concordct.methods.models import Model
from concordct.methods.standardizer import Mode
from concordct.pipelines.parts import file_facts, part_name, scan_facts
from concordct.radiomics.extract import Settings
from concordct.signal.quality import Quality
from concordct.signal.spectra import NoisePower, Rings
from concordct.volumes.place import atomic_file

Endpoints = dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Question:
    """What is asked of every case.

    Attributes
    ----------
    model, mode, seed : how a source without a standardized scan is standardized.
    settings : of the features.
    endpoints : whether they are measured, too.
    allow : geometry problems that may pass.
    rings : of the spectra, the same for all cases.
    """

    model: Model | None
    mode: Mode
    seed: int
    settings: Settings
    endpoints: bool
    allow: frozenset[str]
    rings: Rings


@dataclass(frozen=True, eq=False)
class Judged:
    """What was found of one case.

    Attributes
    ----------
    gathered : as if the case were the only one; None for a case that failed.
    warnings : what the reader should know.
    edge : of the ROIs of its grid, pixels; None under a mask, or where no ROI fits.
    endpoints : stage -> column -> value; None where they were not asked for.
    reason : why it failed.
    """

    gathered: Gathered | None
    warnings: tuple[str, ...] = ()
    edge: int | None = None
    endpoints: Endpoints | None = None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class JudgeJob:
    """A case, and whether it is the one that the report shows: its volumes are kept for it."""

    case: Case
    shown: bool


def judge(job: JudgeJob, *, question: Question, parts: Path) -> Judged:
    """Judge a case into its part, unless an earlier run did; a case that fails says why."""
    try:
        before = kept(job, question=question, parts=parts)
        if before is not None:
            return before
        found, stages = _judged(job.case, question)
        if job.shown:
            _save(shown_part(job, question, parts), {name: one.whole_hu() for name, one in stages.items()})
        _save_judged(_part(job, question, parts), found)
        return found
    except Exception as error:  # whatever a reader may throw is said once, by the process that asked
        return Judged(None, reason=reason_of(error))


def lost(job: JudgeJob, reason: str) -> Judged:
    """A case whose process was killed."""
    return Judged(None, reason=f"{job.case.name or job.case.subject}: {reason}")


def kept(job: JudgeJob, *, question: Question, parts: Path) -> Judged | None:
    """What an earlier run, or another share, found of a case."""
    if job.shown and not shown_part(job, question, parts).exists():
        return None
    try:
        return _load_judged(_part(job, question, parts), question.rings)
    except FileNotFoundError:
        return None


def shown_part(job: JudgeJob, question: Question, parts: Path) -> Path:
    """Where the volumes of the case that the report shows are kept, one array of whole HU for each stage."""
    return _part(job, question, parts).with_suffix(".shown.npz")


def _part(job: JudgeJob, question: Question, parts: Path) -> Path:
    """Where a case is kept: by everything that it depends on."""
    case = job.case
    scans = [scan for scan in (case.source, case.standardized, case.target) if scan is not None]
    asked = [question.mode, question.seed, question.settings, question.endpoints, sorted(question.allow)]
    model = "" if question.model is None else question.model.sha256
    facts = [case.name, case.subject, str(len(scans)), model, repr(asked), repr(question.rings)]
    for scan in scans:
        facts += scan_facts(scan)
    return parts / f"{part_name([*facts, *file_facts(() if case.mask is None else (case.mask,))])}.npz"


def _judged(case: Case, question: Question) -> tuple[Judged, dict[str, Held]]:
    source = case.source.read(allow=question.allow)
    # While no other scan is held: looking for the lungs takes more memory than all the rest.
    masks = masks_for(replace(source, padding=None)) if question.endpoints else None
    held = Held.of(source)
    del source
    pair = hold_pair(case, allow=question.allow, source=held)
    stages = {"source": pair.source, "standardized": _standardized(case, pair, question), TARGET: pair.target}
    measured: Endpoints | None = None
    if masks is not None:
        measured = {name: endpoints_of(stage.volume(), masks) for name, stage in stages.items()}
        del masks
    region, rois, notes = body_grid(pair)
    edge = roi_edge(rois) if rois is not None and pair.labels is None else None
    gathered, warnings = gather(
        stages, subject=case.subject, region=region, rois=rois, settings=question.settings, rings=question.rings
    )
    warnings = [*notes, *warnings]
    if measured is not None:
        before, after, target = (measured[name] for name in ("source", "standardized", TARGET))
        changes = class_warnings(before, after, name=case.name, target=target)
        warnings += [f"clinical class changed: {line}" for line in changes]
    return Judged(gathered, tuple(warnings), edge, measured), stages


def _standardized(case: Case, pair: HeldPair, question: Question) -> Held:
    if case.standardized is not None:
        held = Held.of(case.standardized.read(allow=question.allow))
        same_place(held, pair.source, "standardized")
        return held
    if question.model is None:
        raise ConcordctError("expected a standardized scan or a model to make it with, found neither")
    work = standardizer_for(case.source, question.model, mode=question.mode)
    source = case.source.read(allow=question.allow)
    return Held.of(standardized(case.source, source, work, seed=question.seed, allow=question.allow))


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    stored: dict[str, Any] = dict(arrays)
    with atomic_file(path, overwrite=True) as aside, aside.open("wb") as file:
        np.savez(file, **stored)


def _save_judged(path: Path, judged: Judged) -> None:
    found = judged.gathered
    assert found is not None
    told = {
        "warnings": judged.warnings,
        "edge": judged.edge,
        "endpoints": judged.endpoints,
        "quality": {stage: [asdict(one) for one in each] for stage, each in found.quality.items()},
        "bias": found.bias,
        "roi_subjects": found.roi_subjects,
        "names": found.names,
        "classes": found.classes,
        "pixel_mm": found.pixel_mm,
    }
    arrays: dict[str, NDArray[Any]] = {"told": np.array(json.dumps(told))}
    arrays |= {f"features {stage}": values[0] for stage, values in found.features.items()}
    for stage, (power,) in found.noise.items():
        arrays |= {f"noise {stage} {name}": values for name, values in vars(power).items()}
    arrays |= {f"spectra {name}": sums for name, sums in found.spectra.items()}
    _save(path, arrays)


def _load_judged(path: Path, rings: Rings) -> Judged:
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    told = json.loads(str(arrays.pop("told")))
    found = Gathered(
        quality={stage: [Quality(**one) for one in each] for stage, each in told["quality"].items()},
        bias={
            stage: [[((low, high), value, voxels) for (low, high), value, voxels in case] for case in each]
            for stage, each in told["bias"].items()
        },
        roi_subjects=told["roi_subjects"],
        names=tuple(told["names"]),
        classes=tuple(told["classes"]),
        rings=rings,
        pixel_mm=told["pixel_mm"],
    )
    powers: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name, values in arrays.items():
        kind, key, *part = name.split()
        if kind == "features":
            found.features[key] = [values]
        elif kind == "spectra":
            found.spectra[key] = values
        else:
            powers.setdefault(key, {})[part[0]] = values
    found.noise = {stage: [NoisePower(**each)] for stage, each in powers.items()}
    return Judged(found, tuple(told["warnings"]), told["edge"], told["endpoints"])
