"""Features of many images: which ROIs, which settings, in parallel, resumable, one CSV.

A finished image leaves its rows in a hidden folder beside the output; a killed run goes on from there, and the file
that results is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.pipelines.engines import HERE, Engine, counted, results_of
from concordct.pipelines.parts import file_facts, joining, part_name, refuse_standing, scan_facts
from concordct.radiomics.extract import extract
from concordct.radiomics.presets import settings_for
from concordct.radiomics.table import FeatureRows, class_of, write_rows
from concordct.volumes.manifest import read_manifest
from concordct.volumes.masks import read_regions
from concordct.volumes.place import atomic_file, writing
from concordct.volumes.region import Region, whole_image
from concordct.volumes.scans import Scan, frame_of_reference, one_scan

Role = Literal["source", "target"]


@dataclass(frozen=True)
class FeatureJob:
    """One image to measure.

    Attributes
    ----------
    name : what stands in the column `image`; pairs are matched by it.
    subject : what stands in the column `subject`.
    image : a series folder or a volume file.
    roi : a mask, DICOM SEG or RTSTRUCT; None for the whole image as one ROI.
    series : SeriesInstanceUID, where the folder holds several series.
    """

    name: str
    subject: str
    image: Path
    roi: Path | None
    series: str | None = None


def one_job(
    image: Path, roi: Path | None, *, name: str | None = None, subject: str | None = None
) -> tuple[FeatureJob, ...]:
    """A single image; its name is that of its file or folder unless given."""
    found = name or image.name.split(".")[0] or "image"
    return (FeatureJob(found, subject or found, image, roi),)


def jobs_of_manifest(path: Path, *, role: Role, split: str | None = None) -> tuple[FeatureJob, ...]:
    """The sources, or the targets, of a manifest of pairs.

    Raises
    ------
    ConcordctError : the manifest is wrong, or no row of the split has such an image.
    """
    rows = [row for row in read_manifest(path) if split is None or row.split == split]
    jobs = tuple(
        FeatureJob(row.pair, row.subject, image, row.mask, row.source_series if role == "source" else row.target_series)
        for row in rows
        if (image := row.source if role == "source" else row.target) is not None
    )
    if not jobs:
        raise ConcordctError(f"no {role} in split {split or 'of any name'} of {path}")
    return jobs


@dataclass(frozen=True)
class ImageResult:
    """What became of one image: "done", "resumed" or "failed" with its reason, its number of ROIs, and where its rows
    are kept until all images are done."""

    image: str
    status: str
    rois: int
    reason: str = ""
    part: Path | None = None


def extract_features(
    jobs: Sequence[FeatureJob],
    settings: str,
    output: Path,
    *,
    engine: Engine = HERE,
    allow: Collection[str] = frozenset(),
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[ImageResult, ...]:
    """Measure images and write one features file.

    Parameters
    ----------
    jobs : images, each name once.
    settings : a preset's name or the path of a PyRadiomics parameter file.
    output : the CSV: columns image, subject, roi, then features; rows in the order of jobs and ROIs.
    engine : where the work runs. A share writes the output when the parts of all others stand.
    allow : geometry problems that may pass, see `Series.check`.
    overwrite : replace an existing output.
    progress : called with (images done, images in all).
    say : called with what is about to be measured, in words, where one process measures.

    Returns
    -------
    One result for each job of this run, in order. An image that fails is named with its reason and never
    stops the others.

    Raises
    ------
    ConcordctError : nothing to do, a name twice, wrong settings, an output that exists, or every image failed.
    """
    chosen = settings_for(settings)
    names = [job.name for job in jobs]
    if not jobs or len(set(names)) < len(names):
        twice = next((name for name in names if names.count(name) > 1), None)
        raise ConcordctError(f"image {twice} stands twice among the jobs" if twice else "no image to measure")
    parts = output.with_name(f".{output.name}.images")
    refuse_standing(output, parts, overwrite=overwrite)
    with writing(output):
        parts.mkdir(parents=True, exist_ok=True)
    # What is said about an image is said by this process alone.
    told = say if engine == HERE or len(jobs) == 1 else None
    work = partial(_one, settings=settings, digest=repr(chosen), parts=parts, allow=frozenset(allow), say=told)

    def kept(job: FeatureJob) -> ImageResult | None:
        return _kept(job, _part(job, _scan(job), repr(chosen), parts, allow))

    ordered = results_of(
        work,
        jobs,
        _lost,
        kept=kept,
        reason=lambda result: result.reason,
        marks=parts,
        engine=engine,
        progress=counted(progress),
    )
    if len(ordered) < len(jobs):
        return ordered
    if all(result.status == "failed" for result in ordered):
        raise ConcordctError(
            ordered[0].reason if len(jobs) == 1 else f"all {len(jobs)} images failed: {ordered[0].reason}"
        )
    with joining(output, parts):
        # Each worker found its image's part; asked again here, all headers would be read by this process.
        rows = _joined([(job, _load(one.part)) for job, one in zip(jobs, ordered, strict=True) if one.part is not None])
        write_rows(output, rows, overwrite=overwrite)
    return ordered


def _lost(job: FeatureJob, reason: str) -> ImageResult:
    return ImageResult(job.name, "failed", 0, reason)


def _one(
    job: FeatureJob,
    settings: str,
    digest: str,
    parts: Path,
    allow: frozenset[str],
    say: Callable[[str], None] | None = None,
) -> ImageResult:
    """Measure one image into its part, unless an earlier run did."""
    try:
        scan = _scan(job)
        part = _part(job, scan, digest, parts, allow)
        kept = _kept(job, part)
        if kept is not None:
            return kept
        rois, names, values = measure(scan, job.roi, settings, allow=allow, say=say)
        with atomic_file(part, overwrite=True) as aside, aside.open("wb") as stream:
            np.savez(stream, rois=np.array(rois), names=np.array(names), values=values)
    except ConcordctError as error:
        return ImageResult(job.name, "failed", 0, str(error))
    except Exception as error:  # one image never stops the others, whatever a decoder may throw
        return ImageResult(job.name, "failed", 0, f"{type(error).__name__} while measuring {job.image}")
    return ImageResult(job.name, "done", len(rois), part=part)


def _kept(job: FeatureJob, part: Path) -> ImageResult | None:
    """What an earlier run, or another share, measured; another run into the same output may join and remove it."""
    try:
        return ImageResult(job.name, "resumed", len(_load(part)[0]), part=part)
    except FileNotFoundError:
        return None


def measure(
    scan: Scan,
    roi: Path | None,
    settings: str,
    *,
    allow: Collection[str] = frozenset(),
    say: Callable[[str], None] | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...], NDArray[np.float64]]:
    """Names of the ROIs, names of the features and [roi, feature] of one scan.

    ROIs that overlap are measured in turns, so that none takes voxels from another.
    """
    volume = replace(scan.read(allow=allow), padding=None)  # padding is measured as the air that it holds
    if roi is None:
        regions: tuple[Region, ...] = (whole_image(volume.shape),)
    else:
        regions = read_regions(
            roi, affine=volume.affine, shape=volume.shape, frame_of_reference_uid=frame_of_reference(scan)
        )
    if say is not None:
        say(f"{len(regions)} ROIs of {volume.shape[0]} slices")
    chosen = settings_for(settings)
    rows: dict[int, NDArray[np.float64]] = {}
    names: tuple[str, ...] = ()
    for turn in _turns(regions):
        labels = np.zeros(volume.shape, np.min_scalar_type(len(regions)))
        for place in turn:
            labels[regions[place].box][regions[place].inside] = place + 1
        table = extract(volume, labels, chosen)
        names = table.names
        rows.update((label - 1, row) for label, row in zip(table.rois, table.values, strict=True))
    found = [region.name for region in regions]
    unique = [
        name if found.count(name) == 1 else f"{name} ({region.number})"
        for name, region in zip(found, regions, strict=True)
    ]
    return tuple(unique), names, np.array([rows[place] for place in range(len(regions))])


def _turns(regions: Sequence[Region]) -> list[list[int]]:
    """Groups of regions that share no voxel, each region in the first group that it fits."""
    if len(regions) == 1:
        return [[0]]
    groups: list[tuple[list[int], NDArray[np.bool_]]] = []
    for place, region in enumerate(regions):
        for members, taken in groups:
            if not (taken[region.box] & region.inside).any():
                members.append(place)
                taken[region.box] |= region.inside
                break
        else:
            groups.append(([place], region.mask))
    return [members for members, _ in groups]


def _scan(job: FeatureJob) -> Scan:
    return one_scan(job.image, series_uid=job.series)


def _part(job: FeatureJob, scan: Scan, digest: str, parts: Path, allow: Collection[str]) -> Path:
    """Where the rows of a job are kept: by everything that they depend on."""
    facts = [digest, job.name, *sorted(allow), *scan_facts(scan)]
    if job.roi is not None:
        if not job.roi.is_file():
            raise ConcordctError(f"no mask file {job.roi}")
        facts += file_facts((job.roi,))
    return parts / f"{part_name(facts)}.npz"


def _load(part: Path) -> tuple[list[str], list[str], NDArray[np.float64]]:
    with np.load(part, allow_pickle=False) as found:
        return found["rois"].tolist(), found["names"].tolist(), found["values"]


def _joined(parts: Sequence[tuple[FeatureJob, tuple[list[str], list[str], NDArray[np.float64]]]]) -> FeatureRows:
    names = parts[0][1][1]
    keys: list[tuple[str, str]] = []
    subjects: list[str] = []
    for job, (rois, own, _) in parts:
        if own != names:
            raise ConcordctError(f"image {job.name} has {len(own)} features, expected the {len(names)} of the first")
        keys += [(job.name, roi) for roi in rois]
        subjects += [job.subject] * len(rois)
    values = np.concatenate([found for _, (_, _, found) in parts])
    return FeatureRows(tuple(keys), tuple(subjects), tuple(names), tuple(map(class_of, names)), values)


def summary(results: Sequence[ImageResult], output: Path) -> dict[str, Any]:
    """What the command line prints: counts, and every image that failed with its reason."""
    return {
        "output": str(output),
        "images": len(results),
        "rois": sum(result.rois for result in results),
        "resumed": sum(result.status == "resumed" for result in results),
        "failed": [{"image": one.image, "reason": one.reason} for one in results if one.status == "failed"],
    }
