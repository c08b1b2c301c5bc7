"""Cohorts of simulated scans: what is to be scanned, in what protocol, in which split; one folder per scan.

A cohort is a list of jobs, each a subject scanned once and reconstructed with some kernels at some slice thicknesses.
Jobs are drawn from a seed before anything is scanned, so that they can be run in any order, anywhere, again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from concordct.errors import ConcordctError
from concordct.scanner.acquisition import Acquisition
from concordct.scanner.chest import Chest
from concordct.scanner.frame import Frame, Stack
from concordct.scanner.kernels import Kernel, kernel
from concordct.scanner.patients import digital_patient, record
from concordct.scanner.phantom import chest_phantom
from concordct.scanner.reconstruction import aliases
from concordct.scanner.scan import scan_slabs
from concordct.volumes.files import write_volume_file
from concordct.volumes.manifest import PairRow
from concordct.volumes.masks import write_labels
from concordct.volumes.new_series import SimulatedScan, write_slices
from concordct.volumes.place import atomic_directory
from concordct.volumes.volume import Volume

FORMATS = ("dicom", "nifti")
RECORD = "scan.json"
#: Bump when a change of the simulator changes images, so that an old cohort is not resumed with new physics.
SIMULATOR = 2


@dataclass(frozen=True)
class SimulationJob:
    """One subject, one raw data set, some images of it.

    Attributes
    ----------
    subject : "phantom" or "patient".
    number : which phantom or patient.
    split : "train", "validation", "test", "held-out" or any other word.
    scan : number of the raw data set; the same subject can be scanned again.
    acquisition : how raw data are taken.
    frame, stacks : pixels, and the slices of each thickness.
    kernels : names; the first is the source of every pair, the others are targets.
    seed : of the population and of the noise.
    """

    subject: str
    number: int
    split: str
    scan: int
    acquisition: Acquisition
    frame: Frame
    stacks: tuple[Stack, ...]
    kernels: tuple[str, ...]
    seed: int

    @property
    def subject_name(self) -> str:
        """Pseudonym, e.g. "patient-0007"."""
        return f"{self.subject}-{self.number:04d}"

    @property
    def folder(self) -> str:
        """Where the job's output lies within its cohort."""
        return f"{self.subject_name}/scan-{self.scan}"

    @property
    def slices(self) -> int:
        """Slices per kernel."""
        return sum(stack.count for stack in self.stacks)

    def body(self) -> Chest:
        """The subject itself."""
        if self.subject == "patient":
            return digital_patient(self.number, seed=self.seed)
        return chest_phantom(self.subject_name, variant=self.number)

    def record(self) -> dict[str, Any]:
        """Everything that fixes the images, ready for JSON."""
        kernels = [dataclasses.asdict(kernel(name)) for name in self.kernels]
        return {"simulator": SIMULATOR, **dataclasses.asdict(self), "kernels": kernels, "body": record(self.body())}


def digest(value: Any) -> str:
    """Twelve hexadecimal digits that stand for a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def stack_name(stack: Stack) -> str:
    """Folder of one thickness, e.g. "0.625mm"."""
    return f"{stack.thickness_mm:g}mm"


def kernel_folder(name: str) -> str:
    """A kernel's name as a folder's."""
    return name.replace("\\", "-")


def job_rows(job: SimulationJob, directory: Path, file_format: str) -> list[PairRow]:
    """The manifest's rows of a job whose output lies in a cohort's folder; no mask where no nodule was met."""
    rows = []
    for stack in job.stacks:
        place = directory / job.folder / stack_name(stack)

        def image(name: str, place: Path = place) -> Path:
            return place / (kernel_folder(name) + (".nii.gz" if file_format == "nifti" else ""))

        mask = place / "nodules.nii.gz"
        source, *targets = job.kernels
        partners: list[str | None] = [*targets] or [None]
        for target in partners:
            kernels = kernel_folder(source) + (f"_{kernel_folder(target)}" if target else "")
            rows.append(
                PairRow(
                    pair=f"{job.subject_name}_scan-{job.scan}_{stack_name(stack)}_{kernels}",
                    subject=job.subject_name,
                    split=job.split,
                    source=image(source),
                    target=image(target) if target else None,
                    source_kernel=source,
                    target_kernel=target,
                    slice_thickness_mm=stack.thickness_mm,
                    mask=mask if mask.exists() else None,
                )
            )
    return rows


def run_job(
    job: SimulationJob, directory: Path, file_format: str, progress: Callable[[int], None] | None = None
) -> None:
    """Scan, reconstruct and write one job into `directory`/`job.folder`, whole or not at all.

    Parameters
    ----------
    file_format : "dicom" or "nifti".
    progress : called with the number of slices done since the last call.
    """
    if file_format not in FORMATS:
        raise ConcordctError(f"unknown file format {file_format!r}; known are {', '.join(FORMATS)}")
    body = job.body()
    parameters = job.record()
    identity = digest(parameters)
    final = directory / job.folder
    final.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(final) as aside:
        for number, stack in enumerate(job.stacks):
            place = aside / stack_name(stack)
            place.mkdir()
            collected: dict[str, list[Volume]] = {name: [] for name in job.kernels}
            for slabs in _slabs(job, body, stack):
                for index, (name, slab) in enumerate(slabs.items()):
                    if file_format == "nifti":
                        collected[name].append(slab)
                        continue
                    (place / kernel_folder(name)).mkdir(exist_ok=True)
                    scan = SimulatedScan(
                        subject=job.subject_name,
                        scan=f"scan-{job.scan}-{identity}",
                        description=f"{name} {stack.thickness_mm:g} mm",
                        series_number=10 * (number + 1) + index,
                        kvp=job.acquisition.kvp,
                        mas=job.acquisition.mas,
                        details=f"concordct simulation {identity}",
                    )
                    write_slices(slab, place / kernel_folder(name), scan)
                if progress is not None:
                    progress(next(iter(slabs.values())).shape[0])
            for name, parts in collected.items():
                if parts:
                    write_volume_file(place / f"{kernel_folder(name)}.nii.gz", parts)
            _write_masks(body, job.frame, stack, place)
        (aside / RECORD).write_text(json.dumps(parameters, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _slabs(job: SimulationJob, body: Chest, stack: Stack) -> Iterator[dict[str, Volume]]:
    return scan_slabs(
        body, job.acquisition, frame=job.frame, stack=stack, kernels=job.kernels, seed=job.seed, scan=job.scan
    )


def _write_masks(body: Chest, frame: Frame, stack: Stack, place: Path) -> None:
    """`nodules.nii.gz`, labels in the order of the record (0 outside), where there are any; `lungs.nii.gz`."""
    nodules = np.zeros((stack.count, *frame.shape), dtype=np.uint8)
    lungs = np.zeros_like(nodules)
    for index, z in enumerate(stack.z_mm):
        masks = body.masks(np.array([z]), frame)
        lungs[index] = masks.pop("lungs")[0]
        for label, nodule in enumerate(body.nodules, start=1):
            nodules[index][masks[nodule.name][0]] = label
    affine = stack.affine(frame)
    for name, labels in (("nodules", nodules), ("lungs", lungs)):
        if not labels.any():
            continue
        write_labels(place / f"{name}.nii.gz", labels, affine)


def warnings_of(jobs: Sequence[SimulationJob]) -> tuple[str, ...]:
    """What a user should know before: kernels that the pixels cannot carry."""
    found = {}
    for job in jobs:
        for item in map(kernel, job.kernels):
            if aliases(item, job.frame):
                found[item.name, job.frame.pixel_mm] = _alias_warning(item, job.frame)
    return tuple(found.values())


def _alias_warning(item: Kernel, frame: Frame) -> str:
    return (
        f"kernel {item.name} passes up to {item.cutoff_lp_cm:g} lp/cm and pixels of {frame.pixel_mm:g} mm carry "
        f"{frame.nyquist_lp_cm:.2f} lp/cm: the rest aliases, as it does on real scanners"
    )
