"""Subjects with an initial scan, a follow-up and lung-function tests: manifests, OSIC folders, simulated cohorts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from concordct.progression.lung_function import Visit

LABELS = ("stable", "progressive")


@dataclass(frozen=True)
class FollowupPair:
    """One subject.

    Attributes
    ----------
    subject : pseudonym.
    initial, followup : a DICOM series folder or a volume file; followup None where there is none (yet).
    weeks : between the scans; without a follow-up the interval that is asked about.
    visits : lung-function tests in order of weeks; may be empty.
    label : "stable" or "progressive", None when unknown.
    """

    subject: str
    initial: Path
    followup: Path | None
    weeks: float
    visits: tuple[Visit, ...]
    label: str | None = None


def read_cohort(path: str | Path, *, lung_function: str | Path | None = None) -> tuple[FollowupPair, ...]:
    """Read `cohort.csv` (subject, initial, followup, weeks, label) and `lung_function.csv` beside it."""
    raise NotImplementedError


def osic_cohort(folder: str | Path, table: str | Path) -> tuple[FollowupPair, ...]:
    """OSIC as users have it: a folder of DICOM files for each patient, and the table of FVC by week."""
    raise NotImplementedError


def simulate_cohort(
    folder: str | Path, *, subjects: int, seed: int, spacing_mm: tuple[float, float, float], workers: int = 1,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write a simulated cohort: `cohort.csv`, `lung_function.csv`, NIfTI volumes and masks; returns `cohort.csv`."""
    raise NotImplementedError
