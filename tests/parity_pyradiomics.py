"""concordct beside PyRadiomics 3.0.1 on IBSI's digital phantom, real tumours and random ROIs in a real chest.

PyRadiomics runs in its own environment (`make reference`), in processes beside this one. Used by
tests/test_features_parity.py and benchmarks/features.py.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from concordct.radiomics.extract import extract
from concordct.radiomics.parameters import from_parameters
from concordct.radiomics.regions.rois import PAPER_RANGES_HU, random_rois
from concordct.volumes.files import open_volume_file
from concordct.volumes.find import find_series
from concordct.volumes.masks import read_regions, to_labels
from concordct.volumes.volume import Volume

ROOT = Path(__file__).resolve().parents[1]
#: The interpreter that `make reference` makes.
PYTHON = ROOT / ".venv" / "pyradiomics" / "bin" / "python"
SCRIPT = Path(__file__).with_name("reference_pyradiomics.py")

#: Relative difference that counts as agreement.
CLOSE = 1e-6
#: Below this in both, a value is zero: sums that cancel, as the skewness of a symmetric ROI, leave rounding only.
ZERO = 1e-9

#: The image types of `pyradiomics-1401` and LBP2D, with every class and feature instead of the preset's four classes.
#: LBP3D is left out: PyRadiomics' own does not run with a current SciPy.
EVERYTHING = {
    "imageType": {
        "Original": {},
        "LoG": {"sigma": [1.0, 2.0, 3.0, 4.0, 5.0]},
        "Wavelet": {},
        "Square": {},
        "SquareRoot": {},
        "Logarithm": {},
        "Exponential": {},
        "Gradient": {},
        "LBP2D": {"binWidth": 1},
    },
    "featureClass": {name: [] for name in ("shape", "firstorder", "glcm", "glrlm", "glszm", "gldm", "ngtdm")},
}


@dataclass(frozen=True, eq=False)
class Case:
    """One image with its ROIs and PyRadiomics' parameters for it."""

    title: str
    volume: Volume
    labels: np.ndarray
    parameters: dict[str, object]


@dataclass(frozen=True, eq=False)
class Parity:
    """Values [roi, column] of both, and the columns of both."""

    names: tuple[str, ...]
    reference_names: tuple[str, ...]
    values: np.ndarray
    reference: np.ndarray

    @property
    def far(self) -> list[tuple[str, float, float]]:
        """Column, concordct's value and PyRadiomics' of everything beyond `CLOSE`."""
        close = np.isclose(self.values, self.reference, rtol=CLOSE, atol=0, equal_nan=True)
        apart = ~close & ~((np.abs(self.values) < ZERO) & (np.abs(self.reference) < ZERO))
        return [(self.names[k], self.values[roi, k], self.reference[roi, k]) for roi, k in np.argwhere(apart)]

    @property
    def largest(self) -> float:
        """Largest relative difference of what is not zero."""
        known = np.isfinite(self.reference) & (np.abs(self.reference) > ZERO)
        return float(np.max(np.abs(self.values[known] / self.reference[known] - 1)))


def digital_phantom(data: Path) -> Case:
    """IBSI's digital phantom, in bins of 1."""
    folder = data / "ibsi_1"
    volume = open_volume_file(folder / "digital_phantom_image.nii.gz").read()
    mask = open_volume_file(folder / "digital_phantom_mask.nii.gz").read()
    parameters = {**EVERYTHING, "setting": {"binWidth": 1}}
    return Case("IBSI's digital phantom", volume, (mask.hu > 0).astype(np.int32), parameters)


def tumour(data: Path, patient: str) -> Case:
    """The GTV of one patient, filters over the whole image."""
    folder = data / "tumours_ct" / patient
    volume = find_series(folder).series[0].read()
    regions = read_regions(next(folder.glob("*RS*.dcm")), affine=volume.affine, shape=volume.shape)
    return Case(f"tumour of {patient}", volume, to_labels(regions), {**EVERYTHING, "setting": {"binWidth": 25}})


def random_chest(data: Path) -> Case:
    """20 ROIs in the papers' HU ranges, by seed: half of them squares in a slice, half balls; `preCrop`."""
    volume = find_series(data / "chest_B40f").series[0].read()
    drawn = random_rois(
        volume,
        ranges_hu=PAPER_RANGES_HU,
        count=5,
        size=24,
        least_share=0.5,
        generator=np.random.default_rng(0),
    ).labels
    labels = np.where(drawn <= 10, drawn, 0)
    for label in range(11, 21):
        centre = np.argwhere(drawn == label).mean(axis=0)
        away_mm = (np.indices(volume.shape).T - centre).T * np.reshape(volume.spacing_mm, (3, 1, 1, 1))
        labels[(np.square(away_mm).sum(axis=0) <= 10.0**2) & (labels == 0)] = label
    return Case("random ROIs of chest", volume, labels, {**EVERYTHING, "setting": {"binWidth": 25, "preCrop": True}})


def compare(case: Case, place: Path, *, python: Path = PYTHON) -> Parity:
    """Measure a case with both, PyRadiomics in two processes when there are many ROIs.

    Parameters
    ----------
    case : what to measure.
    place : an empty folder for what passes between the processes.
    python : an interpreter that has PyRadiomics.
    """
    parameters = place / "parameters.json"
    parameters.write_text(json.dumps(case.parameters))
    parts = np.array_split(np.unique(case.labels[case.labels > 0]), 1 if case.labels.max() == 1 else 2)
    running = []
    for number, part in enumerate(parts):
        labels = np.where(np.isin(case.labels, part), case.labels, 0)
        np.savez(
            place / f"in-{number}.npz", hu=stored(case.volume.hu), labels=labels, spacing_mm=case.volume.spacing_mm
        )
        command = [python, "-W", "ignore", SCRIPT, place / f"in-{number}.npz", parameters, place / f"out-{number}.npz"]
        running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    table = extract(case.volume, case.labels, from_parameters(case.parameters, origin=case.title))
    for process in running:
        _, message = process.communicate()
        if process.returncode:
            raise RuntimeError(f"PyRadiomics failed on {case.title}: {message.strip()}")
    found = [np.load(place / f"out-{number}.npz") for number in range(len(parts))]
    return Parity(
        table.names,
        tuple(str(name) for name in found[0]["columns"]),
        table.values,
        np.concatenate([one["values"] for one in found]),
    )


def stored(hu: np.ndarray) -> np.ndarray:
    """Whole HU as integers, as PyRadiomics would read them from a file."""
    whole = np.rint(hu)
    if not np.array_equal(whole, hu):
        raise ValueError("the image holds fractions of HU")
    return whole.astype(np.int16)
