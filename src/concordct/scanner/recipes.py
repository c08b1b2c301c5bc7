"""Cohorts by name: the designs of two papers at full scale, and a small one.

Counts follow the papers. LTDiff++: 38,048 paired slices of 70 patients at 1 mm, 5,280 phantom slices at four
thicknesses. DiffusionCT: 9,886 slices of 14 patients at 1 mm, 9,900 of a phantom at 1.5 and 3 mm, tested on 126 phantom
slices at 5 mm. "Paired slices" are counted as positions, "slices" as images of either kernel; increments are what fills
the chest with that many. Detector rows are half as thick as the thinnest slice where slices overlap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from concordct.scanner.acquisition import Acquisition
from concordct.scanner.cohorts import SimulationJob
from concordct.scanner.frame import Frame, Stack
from concordct.scanner.patients import digital_patient, patient_height_mm

SOURCE, TARGET = "Br40", "Bl64"
#: Clinical matrix and a field that holds most chests.
FRAME = Frame((512, 512), 0.75)
#: A cohort's exposures, mAs: median and spread of their logarithm, and limits.
MAS, MAS_SPREAD, MAS_RANGE = 100.0, 0.35, (30.0, 300.0)


def sample_acquisition(generator: np.random.Generator, row_mm: float) -> Acquisition:
    """The protocol of one scan: exposure, voltage, focal spot and read-out vary, the geometry does not."""
    mas = float(np.clip(MAS * np.exp(MAS_SPREAD * generator.normal()), *MAS_RANGE))
    return Acquisition(
        kvp=float(generator.choice((100.0, 120.0, 120.0, 140.0))),
        mas=round(mas, 1),
        focal_spot_mm=float(generator.choice((0.7, 0.9, 1.1))),
        electronic_noise=round(float(generator.uniform(6, 16)), 1),
        beam_hardening=True,
        row_mm=row_mm,
    )


def _stack(
    height_mm: float, thickness_mm: float, count: int, *, row_mm: float, middle_mm: float | None = None
) -> Stack:
    """`count` slices that fill the chest, or lie side by side around a height; the first on whole rows."""
    usable = height_mm - thickness_mm - 2.0
    step = round(usable / count, 3) if middle_mm is None else thickness_mm
    low = (height_mm / 2 if middle_mm is None else middle_mm) - (step * (count - 1) + thickness_mm) / 2
    return Stack(count, step, thickness_mm, round(low / row_mm) * row_mm + thickness_mm / 2)


def _patients(
    counts: list[int], splits: list[str], seed: int, *, row_mm: float, around_nodule: bool = False
) -> list[SimulationJob]:
    jobs = []
    for number, (count, split) in enumerate(zip(counts, splits, strict=True), start=1):
        generator = np.random.default_rng((seed, number, 2))
        height = patient_height_mm(number, seed=seed)
        middle = digital_patient(number, seed=seed).nodules[0].centre_mm[0] if around_nodule else None
        jobs.append(
            SimulationJob(
                "patient",
                number,
                split,
                0,
                sample_acquisition(generator, row_mm),
                FRAME,
                (_stack(height, 1.0, count, row_mm=row_mm, middle_mm=middle),),
                (SOURCE, TARGET),
                seed,
            )
        )
    return jobs


def _share(total: int, parts: int) -> list[int]:
    return [total // parts + (index < total % parts) for index in range(parts)]


def _phantom(
    number: int, split: str, scans: int, seed: int, stacks: tuple[tuple[float, int], ...], row_mm: float
) -> list[SimulationJob]:
    height = 280.0
    return [
        SimulationJob(
            "phantom",
            number,
            split,
            scan,
            sample_acquisition(np.random.default_rng((seed, 9000 + number, scan)), row_mm),
            FRAME,
            tuple(_stack(height, thickness, count, row_mm=row_mm) for thickness, count in stacks),
            (SOURCE, TARGET),
            seed,
        )
        for scan in range(scans)
    ]


def ltdiffpp(seed: int) -> tuple[SimulationJob, ...]:
    """LTDiff++: 70 patients with 38,048 paired slices at 1 mm; a phantom with 5,280 slices at four thicknesses."""
    splits = ["train"] * 52 + ["validation"] * 4 + ["test"] * 14
    stacks = ((0.625, 480), (1.25, 240), (3.75, 90), (5.0, 70))
    return (
        *_patients(_share(38048, 70), splits, seed, row_mm=0.5),
        *_phantom(0, "phantom", 3, seed, stacks, 0.3125),
    )


def diffusionct(seed: int) -> tuple[SimulationJob, ...]:
    """DiffusionCT: 14 patients and a phantom to train on, 126 phantom slices at 5 mm to test on.

    The paper tests on the phantom that it trains on; here the phantom that is tested is another of the same make, so
    that no subject lies in two splits.
    """
    patients = _patients(_share(9886 // 2, 14), ["train"] * 14, seed, row_mm=0.5)
    return (
        *patients,
        *_phantom(0, "train", 15, seed, ((1.5, 220), (3.0, 110)), 0.75),
        *_phantom(1, "test", 1, seed, ((5.0, 63),), 0.625),
    )


def small(seed: int) -> tuple[SimulationJob, ...]:
    """Twelve patients, twelve slices around a nodule each: minutes on two cores. The last two, on GE kernels, are held
    back; the very last has an iterative-like source."""
    splits = ["train"] * 6 + ["validation"] * 2 + ["test"] * 2 + ["held-out"] * 2
    jobs = _patients([12] * 12, splits, seed, row_mm=1.0, around_nodule=True)
    held_back = (("STANDARD", "LUNG"), ("STANDARD\\2", "LUNG"))
    changed = [dataclasses.replace(job, kernels=kernels) for job, kernels in zip(jobs[-2:], held_back, strict=True)]
    return (*jobs[:-2], *changed)


RECIPES: dict[str, Callable[[int], tuple[SimulationJob, ...]]] = {
    "ltdiffpp": ltdiffpp,
    "diffusionct": diffusionct,
    "small": small,
}
