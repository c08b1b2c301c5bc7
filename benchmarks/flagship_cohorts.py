"""Virtual test cohorts of concord: subjects, protocols and kernels that nothing was chosen on.

A cohort is one protocol: its first subject is calibrated on, the others are judged, each scanned twice with nothing but
other noise. Exposure differs from subject to subject. Cohorts lie under `runs/flagship/cohorts`, simulated once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

import concordct
from benchmarks.results import ROOT
from concordct.methods.concord.bundle import METHOD as CONCORD
from concordct.pipelines.calibrate import calibrate_pairs
from concordct.pipelines.simulate import plan_simulation, simulate
from concordct.radiomics.regions.rois import grid_rois
from concordct.scanner.cohorts import SimulationJob, kernel_folder, stack_name
from concordct.scanner.recipes import MAS, MAS_RANGE, MAS_SPREAD, sample_acquisition
from concordct.signal.body import body_mask
from concordct.volumes.scans import Scan, one_scan
from concordct.volumes.volume import Volume

FOLDER = ROOT / "runs" / "flagship"
#: Square ROIs, pixels, and at most this many in each region of each subject.
ROI_PIXELS, ROIS_OF_SUBJECT = 20, 16
#: A nodule is measured slice by slice where it covers this many pixels.
LEAST_PIXELS = 60
#: Soft tissue of the blurred source, HU.
SOFT_HU = (-200.0, 250.0)
#: The rim of the body, and the column around the spine: width, and depth as a share of the body's. mm.
RIM_MM, SPINE_MM, SPINE_SHARE = 25.0, 60.0, 0.45


@dataclass(frozen=True)
class Cohort:
    """One protocol and its subjects.

    Attributes
    ----------
    subjects : "patients" or "phantom". count : with the one that is calibrated on.
    pairs : kernels (source, target).
    slices : of each subject, around its first nodule.
    seed : of population, protocol and noise.
    """

    name: str
    title: str
    subjects: str
    count: int
    pairs: tuple[tuple[str, str], ...]
    thickness_mm: float
    row_mm: float
    pixel_mm: float
    slices: int
    seed: int

    @property
    def folder(self) -> Path:
        """Where its scans lie."""
        return FOLDER / "cohorts" / self.name

    def jobs(self) -> tuple[SimulationJob, ...]:
        """Every subject twice; the first once."""
        generator = np.random.default_rng((self.seed, 77))
        protocol = sample_acquisition(generator, self.row_mm)
        jobs = plan_simulation(
            self.subjects,
            kernels=tuple(dict.fromkeys(name for pair in self.pairs for name in pair)),
            slice_thickness_mm=(self.thickness_mm,),
            seed=self.seed,
            count=self.count,
            slices=self.slices,
            pixel_mm=self.pixel_mm,
            acquisition=protocol,
            scans=2,
        )
        exposures = np.clip(MAS * np.exp(MAS_SPREAD * generator.normal(size=self.count)), *MAS_RANGE)
        made = [
            dataclasses.replace(
                job,
                split="test" if index >= 2 else "calibration",
                acquisition=dataclasses.replace(protocol, mas=round(float(exposures[index // 2]), 1)),
            )
            for index, job in enumerate(jobs)
        ]
        return (made[0], *made[2:])


COHORTS = {
    one.name: one
    for one in (
        Cohort("patients", "Patients, 1 mm", "patients", 5, (("Br40", "Bl64"),), 1.0, 1.0, 0.75, 6, 2001),
        Cohort(
            "vendors",
            "Patients, kernels of other vendors and an iterative-like source, 1 mm",
            "patients",
            4,
            (("STANDARD", "LUNG"), ("FC08", "FC51"), ("Br40\\3", "Bl64")),
            1.0,
            1.0,
            0.70,
            3,
            2002,
        ),
        Cohort("phantom", "Phantom, 2.5 mm", "phantom", 3, (("Br40", "Bl64"),), 2.5, 1.25, 0.75, 3, 2003),
    )
}
#: The ablation is judged, and choices are made, on these subjects alone.
VALIDATION = Cohort("validation", "Patients, 1 mm", "patients", 3, (("B35f", "B70f"),), 1.0, 1.0, 0.72, 3, 2010)


@dataclass(frozen=True, eq=False)
class Subject:
    """A subject scanned twice, in two kernels.

    Attributes
    ----------
    source, target, second_source, second_target : scans of equal geometry; the second ones None for the calibrated.
    lungs, nodules : [z, y, x] mask, and labels.
    """

    name: str
    source: Scan
    target: Scan
    second_source: Scan | None
    second_target: Scan | None
    lungs: NDArray[np.bool_]
    nodules: NDArray[np.int32]


def subjects_of(cohort: Cohort, pair: tuple[str, str]) -> list[Subject]:
    """The cohort, simulated where it is not there yet; the first is to calibrate on."""
    jobs = cohort.jobs()
    simulate(jobs, cohort.folder, progress=lambda done, total: print(f"{cohort.name}: {done} of {total}", flush=True))
    found = []
    for job in (job for job in jobs if job.scan == 0):
        place = cohort.folder / job.folder / stack_name(job.stacks[0])
        again = cohort.folder / job.subject_name / "scan-1" / stack_name(job.stacks[0])
        first = [one_scan(place / kernel_folder(name)) for name in pair]
        second = [one_scan(again / kernel_folder(name)) if again.is_dir() else None for name in pair]
        masks = [_mask(place / f"{name}.nii.gz", first[0].shape) for name in ("lungs", "nodules")]
        found.append(Subject(job.subject_name, first[0], first[1], second[0], second[1], masks[0] > 0, masks[1]))
    return found


def _mask(path: Path, shape: tuple[int, int, int]) -> NDArray[np.int32]:
    if not path.exists():
        return np.zeros(shape, np.int32)
    return np.rint(one_scan(path).stored_hu(0, shape[0])).astype(np.int32)


def calibrated(method: str, cohort: Cohort, pair: tuple[str, str], slices: int) -> Path:
    """A model calibrated as a user would, from the middle slices of the cohort's first subject."""
    name = "-".join(kernel_folder(kernel) for kernel in pair)
    subject = subjects_of(cohort, pair)[0]
    places = []
    for side, scan in (("source", subject.source), ("target", subject.target)):
        part = FOLDER / "calibration" / cohort.name / name / f"{slices}" / side
        if not part.exists():
            part.mkdir(parents=True)
            start = (scan.shape[0] - slices) // 2
            for each in scan.slices[start : start + slices]:  # type: ignore[union-attr]
                shutil.copy(each.path, part)
        places.append(part)
    pairs = [(one_scan(places[0]), one_scan(places[1]))]
    return calibrate(method, pairs, FOLDER / "models" / cohort.name / f"{name}-{slices}")


def calibrate(method: str, pairs: list[tuple[Scan, Scan]], path: Path) -> Path:
    """One pair or several to a model of a method by name, where it does not stand; other code is another model."""
    kind = f"{method}-{flagship_code()}" if method == CONCORD else method
    path = path.with_name(f"{path.name}-{kind}")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        calibrate_pairs(pairs, path, method=method)
    return path


@lru_cache(maxsize=1)
def flagship_code() -> str:
    """Eight digits that stand for the package's code: what was measured with other code is not taken up again."""
    package = Path(concordct.__file__).parent
    files = sorted(package.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]


def regions(subject: Subject, source: Volume) -> dict[str, NDArray[np.int32]]:
    """Labels by region: squares in the lungs and in soft tissue, nodules slice by slice; placed without the target."""
    lungs, soft = (_squares(mask) for mask in masks(subject, source)[1:3])
    nodules = np.zeros(source.shape, np.int32)
    for z, labels in enumerate(subject.nodules):
        for label in np.unique(labels[labels > 0]):
            if (labels == label).sum() >= LEAST_PIXELS:
                nodules[z][labels == label] = nodules.max() + 1
    found = {"lungs": lungs, "soft tissue": soft, "nodules": nodules}
    return {name: labels for name, labels in found.items() if labels.any()}


def _squares(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    grid = grid_rois(mask, size=ROI_PIXELS)
    count = int(grid.max())
    chosen = np.linspace(1, count, min(ROIS_OF_SUBJECT, count)).round().astype(int)
    table = np.zeros(count + 1, np.int32)
    table[chosen] = np.arange(1, len(chosen) + 1)
    return table[grid]


def masks(subject: Subject, source: Volume) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Body, lungs and soft tissue, [z, y, x] each."""
    body = body_mask(source.hu)
    blurred = np.stack([ndimage.gaussian_filter(image, 2.0) for image in source.hu])
    away = ~np.stack([ndimage.binary_dilation(one, iterations=3) for one in subject.lungs])
    soft = body & away & (blurred > SOFT_HU[0]) & (blurred < SOFT_HU[1])
    return body, subject.lungs & body, soft


def places(subject: Subject, source: Volume) -> dict[str, NDArray[np.bool_]]:
    """Where noise power is compared, [z, y, x] each: the body, its lungs, its rim, and around its spine."""
    body = masks(subject, source)[0]
    pixel = source.spacing_mm[1]
    rim, spine = np.zeros_like(body), np.zeros_like(body)
    for z, inside in enumerate(body):
        if not inside.any():
            continue
        rim[z] = inside & (ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1] < RIM_MM / pixel)
        rows, columns = np.nonzero(inside)
        back = np.arange(inside.shape[0]) > rows.max() - SPINE_SHARE * (rows.max() - rows.min())
        middle = np.abs(np.arange(inside.shape[1]) - columns.mean()) < SPINE_MM / 2 / pixel
        spine[z] = inside & back[:, None] & middle[None]
    return {"body": body, "lungs": subject.lungs & body, "rim": rim, "around the spine": spine}
