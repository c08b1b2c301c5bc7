"""Subjects of `benchmarks.followup`: made ready, parted into folds, and the linear trend over them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.followup_models import SEED, SPACING_MM
from concordct.errors import ConcordctError
from concordct.pipelines.followup import FIBROSIS_HU
from concordct.pipelines.followup_data import Prepared, prepare
from concordct.progression.ciresdiff import HIGH_HU, LOW_HU
from concordct.progression.cohort import read_cohort
from concordct.signal.quality import compare_images
from concordct.training.engine import Paused

FOLDS = 5
#: Patients of the studies before: of the last, whose fold 0 was looked at, and of the first.
BEFORE, FIRST_STUDY = 144, 60
RANGE_HU = HIGH_HU - LOW_HU
#: Subjects that registration refused, beside those that are ready.
REFUSED = "refused.json"
#: Voxels of each training subject that the linear trend is fitted on, and its smoothing, mm.
TREND_VOXELS, TREND_MM = 4000, 6.0


def folds(subjects: Sequence[Prepared]) -> list[list[int]]:
    """Test subjects of each fold: both labels spread evenly, by name and nothing else."""
    order = sorted(range(len(subjects)), key=lambda i: (subjects[i].label or "", subjects[i].subject))
    return [sorted(order[k::FOLDS]) for k in range(FOLDS)]


def looked_at(subjects: Sequence[Prepared]) -> set[str]:
    """Names of the test subjects whose results were seen while methods and classifier were developed.

    They were fold 0 of the first `BEFORE` numbers; before them came, at one year, the first 60.
    """
    first = [one for one in subjects if one.subject in {f"ipf-{number:04d}" for number in range(BEFORE)}]
    return {first[i].subject for i in folds(first)[0]} | {f"ipf-{number:04d}" for number in range(FIRST_STUDY)}


def usable(cohort: Path, folder: Path, stop: Callable[[], bool]) -> list[Prepared]:
    """Subjects made ready; whom registration refuses (see `refused`) is left out, as any user would have to.

    Raises
    ------
    Paused : `stop` said so.
    """
    ready, out = [], refused(folder)
    for pair in read_cohort(cohort):
        if pair.subject in out:
            continue
        try:
            ready.append(prepare(pair, folder, SPACING_MM, pictures=False))
        except ConcordctError as error:
            out[pair.subject] = str(error)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / REFUSED).write_text(json.dumps(out, indent=1))
            continue
        if ready[-1].fresh and stop():
            raise Paused
    return ready


def refused(folder: Path) -> dict[str, str]:
    """Whom registration refused and why: what the two scans have in common is not enough to be one patient's."""
    path = folder / REFUSED
    return json.loads(path.read_text()) if path.exists() else {}


def measure(one: Prepared, made: NDArray[np.float32]) -> dict[str, float]:
    """PSNR, SSIM and RMSE of a follow-up in the lungs, and the fibrosis found there."""
    lungs = np.asarray(one.data.lungs)
    truth = np.asarray(one.data.followup, np.float32)
    found = compare_images(np.clip(np.rint(made), -1024, 3071), truth, lungs, data_range_hu=RANGE_HU)

    def share(hu: NDArray[np.float32]) -> float:
        return float(((hu[lungs] >= FIBROSIS_HU[0]) & (hu[lungs] <= FIBROSIS_HU[1])).mean())

    return {
        "psnr": found.psnr_db,
        "ssim": found.ssim,
        "rmse": found.rmse_hu,
        "share": share(made),
        "true": share(truth),
    }


class Trend:
    """Change per week at a voxel as a linear function of the density around it, distance to the pleura, height."""

    def __init__(self, subjects: Sequence[Prepared]) -> None:
        rows, changes = [], []
        for index, one in enumerate(subjects):
            inside = np.flatnonzero(one.data.lungs)
            chosen = np.random.default_rng((SEED, index)).choice(inside, min(TREND_VOXELS, len(inside)), replace=False)
            rows.append(self._features(one).reshape(-1, 6)[chosen])
            change = np.asarray(one.data.followup, np.float64) - one.data.initial
            changes.append(change.ravel()[chosen] / one.weeks)
        self.slope = np.linalg.lstsq(np.concatenate(rows), np.concatenate(changes), rcond=None)[0]

    def predict(self, one: Prepared) -> NDArray[np.float32]:
        """[z, y, x] HU; the scan itself outside the lungs."""
        change = one.weeks * (self._features(one) @ self.slope)
        return np.where(one.data.lungs, one.data.initial + change, one.data.initial).astype(np.float32)

    @staticmethod
    def _features(one: Prepared) -> NDArray[np.float64]:
        lungs = np.asarray(one.data.lungs)
        smooth = ndimage.gaussian_filter(np.asarray(one.data.initial, np.float64), TREND_MM / SPACING_MM) / 1000 + 0.85
        pleura = np.exp(-ndimage.distance_transform_edt(lungs) * SPACING_MM / 10)
        z = np.flatnonzero(lungs.any(axis=(1, 2)))
        low = 1 - np.clip((np.arange(lungs.shape[0]) - z[0]) / max(z[-1] - z[0], 1), 0, 1)
        low = np.broadcast_to(low[:, None, None], lungs.shape)
        return np.stack([np.ones(lungs.shape), smooth, pleura, low, pleura * low, smooth * low], axis=-1)
