"""Scans of one patient at two times, made ready: one isotropic grid, lungs, the follow-up registered onto the initial.

Each subject is prepared once and kept below the run's folder, with a record of what the registration did: an affine
map can hide that a lung shrank, which is a sign of the disease itself, so determinants and volumes are kept as results,
with a page of overlays to look at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.progression.cohort import FollowupPair
from concordct.progression.lung_function import LungFunction, first_visit, sentence
from concordct.progression.patches3d import Followup
from concordct.progression.registration import Registered, pre_register
from concordct.radiomics.regions.lungs import lung_masks
from concordct.radiomics.regions.resample import grid
from concordct.report.registration import write_registration_report
from concordct.signal.drawing import ready_to_draw
from concordct.volumes.decode import open_dataset
from concordct.volumes.files import VolumeFile
from concordct.volumes.place import atomic_directory
from concordct.volumes.scans import Scan, checked, one_scan
from concordct.volumes.volume import Volume

RECORD, REPORT = "subject.json", "registration.html"
#: Spacings that differ by less are the same: nothing is interpolated, mm.
SAME_MM = 1e-3
#: Bump when the same scans are made ready in another way.
PREPARATION = 1


@dataclass(frozen=True, eq=False)
class Prepared:
    """A subject that training and evaluation can use.

    Attributes
    ----------
    subject : pseudonym. data : registered volumes and the sentence. label : "stable", "progressive" or None.
    weeks : between the scans. tests : at the first visit.
    record : what the registration did, JSON.
    fresh : made ready now, not by an earlier run.
    """

    subject: str
    data: Followup
    label: str | None
    weeks: float
    tests: LungFunction
    record: dict[str, Any]
    fresh: bool


def to_spacing(volume: Volume, spacing_mm: float) -> Volume:
    """A volume on an isotropic grid about the same centre: blurred where it gets coarser, then linear.

    Parameters
    ----------
    spacing_mm : of the new grid; an axis that has it already is left alone.
    """
    hu, affine = volume.hu, volume.affine.copy()
    blank = volume.padding
    for axis, old in enumerate(volume.spacing_mm):
        if abs(old - spacing_mm) < SAME_MM:
            continue
        places = grid(hu.shape[axis], old, spacing_mm)
        # A voxel is about as wide as its spacing: what widens it from the old to the new one, as a standard deviation.
        blur = 0.35 * float(np.sqrt(max((spacing_mm / old) ** 2 - 1, 0.0)))
        if blur > 0:
            hu = ndimage.gaussian_filter1d(hu, blur, axis=axis, mode="nearest")
        hu = linear(hu, places, axis)
        if blank is not None:
            blank = linear(blank.astype(np.float32), places, axis) >= 0.5
        affine[:3, 3] += affine[:3, axis] * places[0]
        affine[:3, axis] *= spacing_mm / old
    if hu is volume.hu:
        return volume
    return Volume(hu.astype(np.float32), affine, blank, volume.slice_thickness_mm, volume.kernel)


def onto(change: NDArray[np.float32], grid_of: Volume, target: Volume) -> NDArray[np.float32]:
    """A map on the grid of `to_spacing(target, ...)` back on the grid of the target, [z, y, x]."""
    for axis, old in enumerate(target.spacing_mm):
        new = grid_of.spacing_mm[axis]
        if abs(old - new) < SAME_MM:
            continue
        first = grid(target.shape[axis], old, new)[0]
        change = linear(change, (np.arange(target.shape[axis]) - first) * old / new, axis)
    return change


def linear(values: NDArray[np.float32], places: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    """Values at fractional places along one axis; the ends continue."""
    places = np.clip(places, 0, values.shape[axis] - 1)
    low = np.minimum(places.astype(np.intp), max(values.shape[axis] - 2, 0))
    high = np.minimum(low + 1, values.shape[axis] - 1)
    part = np.expand_dims((places - low).astype(np.float32), [a for a in range(3) if a != axis])
    near = np.take(values, low, axis)
    return np.asarray(near + part * (np.take(values, high, axis) - near), np.float32)


def patient_of(scan: Scan) -> str | None:
    """Digest of the PatientID of a DICOM series; None of a volume file, or without one. Never shown, only compared."""
    if isinstance(scan, VolumeFile):
        return None
    header = open_dataset(scan.slices[0].path, tags=["PatientID"])
    named = str(header.get("PatientID") or "").strip()
    return digest_of(named) if named else None


def digest_of(patient_id: str) -> str:
    """What `patient_of` gives for a PatientID."""
    return hashlib.sha256(patient_id.strip().encode()).hexdigest()


def first_tests(pair: FollowupPair) -> LungFunction:
    """The tests that a prediction may know: those nearest to the first scan; all unknown without any."""
    return first_visit({pair.subject: pair.visits}, pair.subject).values if pair.visits else LungFunction()


def prepare(
    pair: FollowupPair,
    folder: Path,
    spacing_mm: float,
    *,
    allow: Collection[str] = frozenset(),
    pictures: bool = True,
) -> Prepared:
    """Read, resample, find the lungs, register; or take what an earlier run has left in `folder`.

    Parameters
    ----------
    folder : where prepared subjects are kept, one folder each.
    spacing_mm : of the isotropic grid.
    pictures : write the page of overlays, which takes about a third of the time at 4 mm.

    Raises
    ------
    ConcordctError : no follow-up, no lung or one lung, scans of two patients, what reading a scan raises. The caller
        says which row of the cohort it was.
    """
    if pair.followup is None:
        raise ConcordctError("expected a follow-up scan, found none")
    tests = first_tests(pair)
    said = sentence(tests, weeks=pair.weeks)
    scans = [one_scan(path) for path in (pair.initial, pair.followup)]
    keys = [scan.key for scan in scans]
    name = hashlib.sha256(json.dumps([PREPARATION, pair.subject, keys, spacing_mm]).encode()).hexdigest()[:24]
    place = folder / name
    fresh = not (place / RECORD).exists()
    if fresh:
        if pictures:
            ready_to_draw()
        if len({patient_of(scan) for scan in scans} - {None}) > 1:
            raise ConcordctError("expected two scans of one patient, found two PatientIDs")
        for scan in scans:
            checked(scan, allow)
        initial, followup = (to_spacing(scan.read(allow=allow), spacing_mm) for scan in scans)
        lungs = lung_masks(followup, require_both=True)
        registered = pre_register(followup, initial, moving_lungs=lungs)
        _keep(place, initial, followup, lungs, registered, pair.weeks if pictures else None)
    record = json.loads((place / RECORD).read_text())
    initial_hu, followup_hu, region, lungs = (
        np.load(place / f"{kind}.npy", mmap_mode="r") for kind in ("initial", "followup", "region", "lungs")
    )
    data = Followup(pair.subject, initial_hu, followup_hu, region, lungs, said)
    return Prepared(pair.subject, data, pair.label, pair.weeks, tests, record, fresh)


def _keep(
    place: Path,
    initial: Volume,
    followup: Volume,
    lungs: NDArray[np.uint8],
    registered: Registered,
    weeks: float | None,
) -> None:
    region = registered.region.copy()
    for padding in (initial.padding, registered.volume.padding):
        if padding is not None:
            region &= ~padding
    with atomic_directory(place, overwrite=True, ours=RECORD) as aside:
        for kind, volume in (("initial", initial), ("followup", registered.volume)):
            np.save(aside / f"{kind}.npy", np.clip(np.rint(volume.hu), -32768, 32767).astype(np.int16))
        np.save(aside / "region.npy", region)
        np.save(aside / "lungs.npy", registered.fixed_lungs > 0)
        if weeks is not None:
            write_registration_report(
                aside / REPORT, registered, moving=followup, fixed=initial, moving_lungs=lungs,
                title=f"Follow-up after {weeks:g} weeks, brought onto the initial scan",
            )  # fmt: skip
        (aside / RECORD).write_text(json.dumps(registration_record(registered), indent=1, sort_keys=True) + "\n")


def registration_record(registered: Registered) -> dict[str, Any]:
    """What the registration did, as JSON: determinants, volumes (fixed, moving, moved), Dice before and after."""
    return {
        "determinants": registered.determinants,
        "volumes_ml": {lung: list(values) for lung, values in registered.volumes_ml.items()},
        "dice_before": registered.dice_before,
        "dice_after": registered.dice_after,
        "detail_correlation": registered.detail_correlation,
        "backend": registered.backend,
        "seconds": round(registered.seconds, 1),
    }


def lungs_of(volume: Volume) -> NDArray[np.bool_]:
    """[z, y, x] both lungs of a scan.

    Raises
    ------
    ConcordctError : no lung, or one.
    """
    return lung_masks(volume, require_both=True) > 0
