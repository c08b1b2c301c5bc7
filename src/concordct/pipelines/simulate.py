"""Run a cohort of simulated scans: workers, resuming, the manifest at the end."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from concordct.errors import ConcordctError
from concordct.pipelines.engines import HERE, Engine, each, share_of, within_of
from concordct.progression.simulated import simulate_cohort
from concordct.scanner.acquisition import Acquisition
from concordct.scanner.cohorts import FORMATS, SIMULATOR, SimulationJob, digest, job_rows, run_job, warnings_of
from concordct.scanner.frame import Frame, Stack
from concordct.scanner.kernels import kernel
from concordct.scanner.patients import digital_patient, patient_height_mm
from concordct.scanner.phantom import chest_phantom
from concordct.scanner.recipes import RECIPES, sample_acquisition
from concordct.scanner.reconstruction import check_kernel
from concordct.volumes.manifest import write_manifest
from concordct.volumes.place import atomic_file, writing

SUBJECTS = ("phantom", "patients")
MANIFEST, PLAN = "pairs.csv", "cohort.json"
#: Detector rows that a scan may be given; slices are whole numbers of them.
THINNEST_ROW_MM, THICKEST_ROW_MM = 0.25, 1.25

#: Voxels of drawn patients with fibrosis are no larger; the disease's structure is finer than that.
COARSEST_MM = 10.0

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Simulated:
    """What a run left behind.

    Attributes
    ----------
    manifest : `pairs.csv`; None while scans of other shares are missing.
    scans : raw data sets in the cohort; made : those of this run, the others stood already.
    slices : slices per kernel in the cohort.
    warnings : what the user should know.
    """

    manifest: Path | None
    scans: int
    made: int
    slices: int
    warnings: tuple[str, ...]


def plan_simulation(
    subjects: str,
    *,
    kernels: Sequence[str],
    slice_thickness_mm: Sequence[float],
    seed: int,
    count: int = 1,
    slices: int | None = None,
    matrix: int = 512,
    pixel_mm: float = 0.75,
    mas: float | None = None,
    kvp: float | None = None,
    geometry: str = "fan",
    acquisition: Acquisition | None = None,
    split: str = "train",
    scans: int = 1,
) -> tuple[SimulationJob, ...]:
    """Jobs for `simulate phantom` or `simulate patients`.

    Parameters
    ----------
    subjects : "phantom" or "patients".
    kernels : names; the first is the source. One alone gives images without a partner.
    slice_thickness_mm : every scan is reconstructed at each.
    count : subjects.
    slices : per thickness, around the first nodule; None fills the chest.
    mas, kvp : exposure and tube voltage of every scan; None samples them (and records what was drawn).
    geometry : "fan" or "parallel".
    acquisition : the whole protocol in place of the sampled one and of the three above.
    scans : raw data sets per subject, equal but for their noise when `acquisition` is given.

    Raises
    ------
    ConcordctError : impossible parameters, with the allowed range.
    """
    if subjects not in SUBJECTS:
        raise ConcordctError(f"unknown subjects {subjects!r}; known are {', '.join(SUBJECTS)}")
    if not kernels or len(set(kernels)) != len(kernels):
        raise ConcordctError(f"expected one or more different kernels, found {', '.join(kernels) or 'none'}")
    if not slice_thickness_mm or len(set(slice_thickness_mm)) != len(slice_thickness_mm):
        raise ConcordctError("expected one or more different slice thicknesses")
    for value, name in ((count, "subjects"), (scans, "scans"), (1 if slices is None else slices, "slices")):
        if value < 1:
            raise ConcordctError(f"{value} {name}: at least 1 is allowed")
    frame = Frame((matrix, matrix), pixel_mm)
    row_mm = _row_for(slice_thickness_mm)
    jobs = []
    for number in range(1, count + 1):
        height, middle = _extent(subjects, number, seed, slices is not None)
        stacks = []
        for thickness in slice_thickness_mm:
            fitting = max(int((height - 4.0) // thickness), 1)
            chosen = fitting if slices is None else min(slices, fitting)
            # Whole detector rows, so that thin and thick slices share them.
            start = min(max(round(middle / thickness - chosen / 2), 0), fitting - chosen) * thickness
            stacks.append(Stack(chosen, thickness, thickness, start + thickness / 2))
        for scan in range(scans):
            sampled = sample_acquisition(np.random.default_rng((seed, number, 2, scan)), row_mm)
            used = acquisition or dataclasses.replace(
                sampled,
                mas=sampled.mas if mas is None else mas,
                kvp=sampled.kvp if kvp is None else kvp,
                geometry=geometry,
            )
            jobs.append(
                SimulationJob(
                    "phantom" if subjects == "phantom" else "patient",
                    number if subjects == "patients" else number - 1,
                    split,
                    scan,
                    used,
                    frame,
                    tuple(stacks),
                    tuple(kernels),
                    seed,
                )
            )
    for name in kernels:
        check_kernel(kernel(name), jobs[0].acquisition)
    return tuple(jobs)


def _extent(subjects: str, number: int, seed: int, around_nodule: bool) -> tuple[float, float]:
    """(height, middle) of what is scanned, mm."""
    if subjects == "phantom":
        body = chest_phantom()
        return body.height_mm, body.nodules[0].centre_mm[0] if around_nodule else body.height_mm / 2
    height = patient_height_mm(number, seed=seed)
    return height, digital_patient(number, seed=seed).nodules[0].centre_mm[0] if around_nodule else height / 2


def _row_for(thicknesses_mm: Sequence[float]) -> float:
    """The thickest detector row that every slice is a whole number of, at most `THICKEST_ROW_MM`."""
    if min(thicknesses_mm) <= 0:
        raise ConcordctError(f"slice thickness {min(thicknesses_mm)} mm: it must be above 0 mm")
    common = math.gcd(*(round(thickness * 1000) for thickness in thicknesses_mm)) / 1000
    if common < THINNEST_ROW_MM:
        raise ConcordctError(
            f"slice thicknesses {', '.join(f'{t:g}' for t in thicknesses_mm)} mm share no detector row of at least "
            f"{THINNEST_ROW_MM} mm; allowed are multiples of one"
        )
    return common / math.ceil(common / THICKEST_ROW_MM - 1e-9)


def simulate_fibrosis(
    output: Path,
    *,
    count: int,
    slice_thickness_mm: float,
    pixel_mm: float,
    seed: int,
    weeks_between: tuple[float, float] | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Draw patients with pulmonary fibrosis at two visits, with their lung-function tests. Resumes.

    They are drawn, not scanned: white noise, no kernel. What they teach a method is the course of a disease.

    Parameters
    ----------
    output : folder of the cohort.
    count : patients, each at the first scan and at the follow-up.
    weeks_between : shortest and longest interval between the visits; None for about a year.
    progress : called with (patients done, patients in all).

    Returns
    -------
    `cohort.csv`, which `train ciresdiff` reads; `lung_function.csv` lies beside it.

    Raises
    ------
    ConcordctError : impossible parameters, or a folder that holds another cohort.
    """
    for value, name in ((slice_thickness_mm, "slice thickness"), (pixel_mm, "pixel")):
        if not COARSEST_MM >= value > 0:
            raise ConcordctError(f"{name} of {value:g} mm, expected more than 0 and at most {COARSEST_MM:g} mm")
    return simulate_cohort(
        output,
        subjects=count,
        seed=seed,
        spacing_mm=(slice_thickness_mm, pixel_mm, pixel_mm),
        weeks_between=weeks_between,
        workers=workers,
        progress=None if progress is None else lambda done: progress(done, count),
    )


def plan_recipe(name: str, *, seed: int) -> tuple[SimulationJob, ...]:
    """Jobs of a recipe by name: "ltdiffpp", "diffusionct", "small"."""
    if name not in RECIPES:
        raise ConcordctError(f"unknown recipe {name!r}; known are {', '.join(RECIPES)}")
    return RECIPES[name](seed)


def simulate(
    jobs: Sequence[SimulationJob],
    output: Path,
    *,
    file_format: str = "dicom",
    engine: Engine = HERE,
    progress: Progress | None = None,
) -> Simulated:
    """Run the jobs that have no output yet, and write the manifest when all stand.

    Parameters
    ----------
    output : the cohort's folder; a run that was killed goes on where it stopped.
    file_format : "dicom" (a folder per series) or "nifti".
    engine : where the work runs; it changes no byte. A share writes the manifest when all scans stand.
    progress : called with (slices done, slices in all).

    Raises
    ------
    ConcordctError : the folder holds another cohort, or a job fails.
    """
    if file_format not in FORMATS:
        raise ConcordctError(f"unknown file format {file_format!r}; known are {', '.join(FORMATS)}")
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    _claim(output, jobs, file_format)
    mine = [jobs[index] for index in share_of(engine, jobs)]
    waiting = [job for job in mine if not (output / job.folder).is_dir()]
    total = sum(job.slices for job in mine)
    done = total - sum(job.slices for job in waiting)

    def report(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total)

    report(0)
    # What a slice reports is heard in this process alone.
    within = within_of(engine)
    slice_by_slice = within == HERE
    work = partial(_simulated, output=output, file_format=file_format, progress=report if slice_by_slice else None)
    for index, reason in each(work, waiting, lambda job, reason: reason, engine=within):
        if reason is not None:
            raise ConcordctError(reason)
        if not slice_by_slice:
            report(waiting[index].slices)
    missing = [job for job in jobs if not (output / job.folder).is_dir()]
    if missing:
        return Simulated(None, len(mine), len(waiting), total, warnings_of(mine))
    rows = [row for job in jobs for row in job_rows(job, output, file_format)]
    manifest = write_manifest(output / MANIFEST, rows, overwrite=True)
    return Simulated(manifest, len(jobs), len(waiting), total, warnings_of(jobs))


def _simulated(
    job: SimulationJob, *, output: Path, file_format: str, progress: Callable[[int], None] | None
) -> str | None:
    """Run a job; why it failed, or None."""
    try:
        run_job(job, output, file_format, progress)
    except ConcordctError as error:
        return str(error)
    except OSError as error:
        return f"{output}: {error.strerror}"
    return None


def _claim(output: Path, jobs: Sequence[SimulationJob], file_format: str) -> None:
    """Write the cohort's identity into its folder, or check that it is the same."""
    identity = digest([SIMULATOR, file_format, *(dataclasses.asdict(job) for job in jobs)])
    plan = output / PLAN
    if plan.exists():
        try:
            found = json.loads(plan.read_text(encoding="utf-8")).get("identity")
        except (OSError, ValueError, AttributeError):
            found = None
        if found != identity:
            raise ConcordctError(
                f"{output} holds another cohort (identity {found}, expected {identity}); name a new folder"
            )
        return
    # What a run leaves that was killed while it wrote the plan is hidden, and cleared when the plan is written.
    if any(not place.name.startswith(f".{PLAN}.") for place in output.iterdir()):
        raise ConcordctError(f"{output} is not empty and holds no {PLAN}; name a new folder")
    with atomic_file(plan) as aside:
        text = json.dumps(
            {"identity": identity, "format": file_format, "scans": [job.folder for job in jobs]}, indent=1
        )
        aside.write_text(text + "\n", encoding="utf-8")
