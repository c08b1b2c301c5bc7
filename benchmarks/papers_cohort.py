"""The one cohort of the tables of methods: digital patients, Br40 to Bl64, split by patient, simulated once.

python -m benchmarks.papers_cohort             # everything, ten minutes of one core; resumes
python -m benchmarks.papers_cohort --minutes 9 # one piece

It lies in `runs/papers`, or in the folder that the environment's CONCORDCT_RUNS names: `cohort` with its manifest
`pairs.csv` (splits train, validation, test) and `second-scans`, the test subjects scanned again with other noise, whose
manifest has the names of the first scans' pairs. Choices are made on validation; test is for the tables alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import time
from pathlib import Path

import numpy as np

from benchmarks.results import ROOT
from concordct.errors import ConcordctError
from concordct.pipelines.simulate import Progress, simulate
from concordct.scanner.cohorts import SimulationJob
from concordct.scanner.frame import Stack
from concordct.scanner.patients import digital_patient
from concordct.scanner.recipes import FRAME, SOURCE, TARGET, sample_acquisition
from concordct.training.engine import Paused
from concordct.volumes.manifest import read_manifest, write_manifest

SEED = 7
#: Subjects of each split and slices of 1 mm of each subject, around its first nodule.
SPLITS: tuple[tuple[str, int, int], ...] = (("train", 10, 8), ("validation", 3, 4), ("test", 12, 4))
#: Random ROIs of each HU range of a test pair: with 12 subjects more than 300 in all.
ROIS_PER_RANGE = 12
THICKNESS_MM = 1.0
#: The common budget of every row: processor minutes of its training, by the speed measured. A rival's search over four
#: settings takes as much again.
MINUTES = 2.25


def runs() -> Path:
    """Where cohort, models and comparison lie."""
    given = os.environ.get("CONCORDCT_RUNS")
    return Path(given) if given else ROOT / "runs" / "papers"


@functools.cache
def jobs() -> tuple[SimulationJob, ...]:
    """Every scan of the cohort; patients are numbered through the splits."""
    found = []
    number = 0
    for split, subjects, slices in SPLITS:
        for _ in range(subjects):
            number += 1
            acquisition = sample_acquisition(np.random.default_rng((SEED, number, 2)), THICKNESS_MM)
            middle = digital_patient(number, seed=SEED).nodules[0].centre_mm[0]
            # On whole detector rows.
            first = round(middle / THICKNESS_MM - slices / 2) * THICKNESS_MM + THICKNESS_MM / 2
            stack = Stack(slices, THICKNESS_MM, THICKNESS_MM, first)
            found.append(
                SimulationJob("patient", number, split, 0, acquisition, FRAME, (stack,), (SOURCE, TARGET), SEED)
            )
    return tuple(found)


def second_scans(folder: Path, manifest: Path, *, progress: Progress | None = None) -> Path:
    """The test subjects scanned again with other noise: a manifest with the names of the first scans' pairs."""
    again = [dataclasses.replace(job, scan=1) for job in jobs() if job.split == "test"]
    made = simulate(again, folder, file_format="nifti", progress=progress)
    rows = [
        row.model_copy(update={"pair": row.pair.replace("scan-1", "scan-0")}) for row in read_manifest(made.manifest)
    ]
    if not {row.pair for row in rows} <= {row.pair for row in read_manifest(manifest)}:
        raise ConcordctError(f"{folder}: expected second scans of the pairs of {manifest}, found others")
    return write_manifest(folder / "repeats.csv", rows, overwrite=True)


def cohort(*, minutes: float | None = None) -> tuple[Path, Path]:
    """The manifests of the cohort and of its second scans, simulated where they are not there yet.

    Raises
    ------
    Paused : the time is up; the next call goes on.
    """
    until = None if minutes is None else time.monotonic() + 60 * minutes

    def progress(done: int, total: int) -> None:
        if until is not None and time.monotonic() > until:
            raise Paused
        print(f"{done} of {total} slices", flush=True)

    manifest = simulate(jobs(), runs() / "cohort", file_format="nifti", progress=progress).manifest
    return manifest, second_scans(runs() / "second-scans", manifest, progress=progress)


def main() -> None:
    """Simulate what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="stop after this long; the same call goes on")
    try:
        manifest, repeats = cohort(minutes=parser.parse_args().minutes)
    except Paused:
        raise SystemExit("paused; run it again to go on") from None
    print(f"{manifest}\n{repeats}")


if __name__ == "__main__":
    main()
