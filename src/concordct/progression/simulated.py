"""A simulated cohort on disk: patients of `scanner.ipf`, drawn twice, with their tests and the masks that are known.

COHORT/cohort.csv, lung_function.csv
COHORT/ipf-0000/initial.nii.gz, followup.nii.gz          HU
                initial_lungs.nii.gz, ...                1 right, 2 left
                initial_fibrosis.nii.gz, ...             1 fibrosis, 2 honeycombing
                subject.json                             everything that they were drawn from
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import as_completed
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.progression.cohort import TESTS, FollowupPair, write_cohort
from concordct.progression.lung_function import LungFunction, Visit, write_table
from concordct.radiomics.regions.lungs import LUNGS
from concordct.scanner.ipf import TIMES, IpfSubject, ipf_subject
from concordct.volumes.files import write_volume_file
from concordct.volumes.masks import read_labels, write_labels
from concordct.volumes.place import atomic_directory
from concordct.volumes.workers import worker_pool

RECORD = "subject.json"
COHORT = "cohort.csv"
#: Bump when a change of the generator changes images, so that an old cohort is not resumed with new patients.
GENERATOR = 1


def visits_of(subject: IpfSubject) -> tuple[Visit, ...]:
    """A simulated patient's tests as `read_table` gives them."""
    return tuple(
        Visit(
            tests.weeks,
            LungFunction(
                fvc_ml=tests.fvc_ml,
                fvc_percent=tests.fvc_percent,
                fev1_ml=tests.fev1_ml,
                pef_l_min=tests.pef_l_min,
                dlco_percent=tests.dlco_percent,
                age_years=subject.age_years,
                sex=subject.sex,
                smoking=subject.smoking,
            ),
        )
        for tests in subject.tests
    )


def simulate_cohort(
    folder: str | Path,
    *,
    subjects: int,
    seed: int,
    spacing_mm: tuple[float, float, float],
    noise_hu: float = 12.0,
    first: int = 0,
    weeks_between: tuple[float, float] | None = None,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write a simulated cohort; subjects that are there already, drawn from the same parameters, are kept.

    Parameters
    ----------
    folder : of the cohort.
    subjects, first : how many patients, from which number on.
    seed : of the population and its noise.
    spacing_mm : (z, y, x), y and x the same.
    noise_hu : standard deviation of a voxel's noise.
    weeks_between : see `ipf_subject`.
    workers : processes; the files do not depend on it.
    progress : called with the number of subjects done.

    Returns
    -------
    The path of `cohort.csv`.
    """
    if subjects < 1:
        raise ConcordctError(f"{subjects} subjects, expected at least 1")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(first, first + subjects)
    if workers <= 1:
        for done, number in enumerate(numbers, start=1):
            _write_subject(folder, ipf_subject(number, seed=seed, weeks_between=weeks_between), spacing_mm, noise_hu)
            if progress is not None:
                progress(done)
    else:
        with worker_pool(workers) as pool:
            waiting = [
                pool.submit(
                    _write_subject, folder, ipf_subject(n, seed=seed, weeks_between=weeks_between), spacing_mm, noise_hu
                )
                for n in numbers
            ]
            for done, one in enumerate(as_completed(waiting), start=1):
                one.result()
                if progress is not None:
                    progress(done)
    pairs = []
    for number in numbers:
        subject = ipf_subject(number, seed=seed, weeks_between=weeks_between)
        place = folder / subject.name
        scans = [place / f"{time}.nii.gz" for time in TIMES]
        pairs.append(FollowupPair(subject.name, scans[0], scans[1], subject.weeks, visits_of(subject), subject.label))
    write_table(folder / TESTS, {pair.subject: pair.visits for pair in pairs}, overwrite=True)
    return write_cohort(folder / COHORT, pairs, overwrite=True)


def known_mask(scan: Path, kind: str) -> NDArray[np.uint8] | None:
    """[z, y, x] "lungs" or "fibrosis" of a simulated scan's file, None beside any other scan."""
    path = scan.with_name(scan.name.removesuffix(".nii.gz") + f"_{kind}.nii.gz")
    if path == scan or not path.is_file():
        return None
    return read_labels(path)[0].astype(np.uint8)


def _write_subject(folder: Path, subject: IpfSubject, spacing_mm: tuple[float, float, float], noise_hu: float) -> None:
    record = {"generator": GENERATOR, "seed": subject.seed, "spacing_mm": list(spacing_mm), "noise_hu": noise_hu}
    text = json.dumps({**record, **subject.record()}, indent=1, sort_keys=True) + "\n"
    final = folder / subject.name
    if (final / RECORD).is_file():
        if (final / RECORD).read_text(encoding="utf-8") == text:
            return
        raise ConcordctError(
            f"{final} holds another patient, seed or spacing; expected an empty folder or the same cohort"
        )
    with atomic_directory(final) as aside:
        for time in TIMES:
            volume = subject.draw_volume(time, spacing_mm, noise_hu=noise_hu)
            write_volume_file(aside / f"{time}.nii.gz", volume)
            masks = subject.volume_masks(time, spacing_mm)
            lungs = sum(np.uint8(label) * masks[f"{side} lung"] for side, label in LUNGS.items())
            write_labels(aside / f"{time}_lungs.nii.gz", np.asarray(lungs, dtype=np.uint8), volume.affine)
            scars = masks["fibrosis"].astype(np.uint8) + masks["honeycombing"]
            write_labels(aside / f"{time}_fibrosis.nii.gz", scars.astype(np.uint8), volume.affine)
        (aside / RECORD).write_text(text, encoding="utf-8")
