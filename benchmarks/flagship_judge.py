"""What concord's benchmarks measure of a standardized scan, kept on disk so that a run resumes.

Features of ROIs, HU error, and noise: two scans of one subject that differ in their noise alone are standardized, and
the power of half their difference, in which there is no anatomy, stands beside that of the target's own two scans.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.flagship_blobs import blobs
from benchmarks.flagship_cohorts import FOLDER, Subject, flagship_code, masks, places, regions
from concordct.agreement import concordance as agreement
from concordct.judging.stages import standardized
from concordct.methods.concord.bundle import METHOD as CONCORD
from concordct.methods.models import Model, load_model
from concordct.methods.standardizer import Mode
from concordct.radiomics.extract import extract
from concordct.radiomics.presets import settings_for
from concordct.signal.spectra import NoisePower, noise_power, power_ratio
from concordct.volumes.place import atomic_file
from concordct.volumes.scans import Scan, evenly_spaced
from concordct.volumes.volume import Volume

PRESET = "ibex-1401"
SEEDS = (0, 1, 2)
#: Patches of noise power, pixels, and its bands, cycles/pixel: narrow patches fit into lungs and rim.
PATCH, BAND = 16, 0.1
#: Bootstrap samples of subjects.
REPEATS = 200
#: An agreement this close to that of the target's own second scan is as good as agreement can be.
OF_CEILING, ENOUGH = 0.97, 0.95

Hu = NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    """A row of a table.

    Attributes
    ----------
    model : None for the input and for the ceiling.
    seeds : one in mode "mean"; agreement is averaged over them.
    noise : whether the second scan is standardized, too.
    sampling : overrides, see `Model.standardizer`.
    """

    name: str
    model: Path | None = None
    mode: Mode = "sample"
    seeds: tuple[int, ...] = (0,)
    noise: bool = True
    sampling: Mapping[str, Any] = field(default_factory=dict)


INPUT = Entry("input")
CEILING = Entry("second scan of the target (ceiling)")


def made_by(entry: Entry, model: Model | None, scan: Scan, seed: int) -> Hu:
    """[z, y, x] of a scan through a row's model, as a scanner would have stored it."""
    if model is None:
        return scan.read().hu
    work = model.standardizer(mode=entry.mode, use_neighbours=evenly_spaced(scan), sampling=entry.sampling)
    return standardized(scan, scan.read(), work, seed=seed).hu


@dataclass(frozen=True, eq=False)
class Measured:
    """One row's numbers of one subject.

    Attributes
    ----------
    values : region -> [seed, roi, feature].
    errors : mask -> sum of squared differences to the target, and voxels.
    power : place -> [patch, band] noise power, HU^2 mm^2; empty where it was not measured.
    blobs : seed, in words -> [blob, 4], see `flagship_blobs.blobs`.
    """

    values: dict[str, NDArray[np.float64]]
    errors: dict[str, tuple[float, int]]
    power: dict[str, NDArray[np.float64]]
    blobs: dict[str, NDArray[np.float64]]


class Judge:
    """Measures rows on the subjects of a cohort and a pair."""

    def __init__(self, name: str, subjects: Sequence[Subject], *, preset: str = PRESET) -> None:
        self.name, self.subjects, self.preset = name, subjects, preset
        self._sources = {one.name: one.source.read() for one in subjects}
        self.regions = {one.name: regions(one, self._sources[one.name]) for one in subjects}
        self.classes: tuple[str, ...] = ()
        self._models: dict[Path, Model] = {}

    def of(self, entry: Entry) -> dict[str, Measured]:
        """Subject -> numbers of a row; "target" as a row's name gives the target itself."""
        return {one.name: self._all_seeds(entry, one) for one in self.subjects}

    def _all_seeds(self, entry: Entry, subject: Subject) -> Measured:
        """Seed by seed, so that more of them can be added later; noise is measured with the first."""
        rest = [dataclasses.replace(entry, seeds=(seed,), noise=False) for seed in entry.seeds[1:]]
        found = [self._one(one, subject) for one in (dataclasses.replace(entry, seeds=entry.seeds[:1]), *rest)]
        values = {name: np.concatenate([one.values[name] for one in found]) for name in found[0].values}
        errors = {
            name: (float(np.mean([one.errors[name][0] for one in found])), count)
            for name, (_, count) in found[0].errors.items()
        }
        blobs_of = {seed: blob for one in found for seed, blob in one.blobs.items()}
        return Measured(values, errors, found[0].power, blobs_of)

    def _model(self, entry: Entry) -> Model | None:
        if entry.model is None:
            return None
        if entry.model not in self._models:
            self._models[entry.model] = load_model(entry.model)
        return self._models[entry.model]

    def _one(self, entry: Entry, subject: Subject) -> Measured:
        model = self._model(entry)
        parts = [
            entry.name if model is None else model.sha256,
            entry.mode,
            entry.seeds,
            dict(entry.sampling),
            entry.noise,
            subject.source.key,
            subject.target.key,
            self.preset,
        ]
        if model is not None and model.bundle.method == CONCORD:
            parts.append(flagship_code())
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]
        path = FOLDER / "measured" / self.name / f"{subject.name}-{key}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            arrays = self._measure(entry, model, subject)
            with atomic_file(path, overwrite=True) as aside, open(aside, "wb") as file:
                np.savez(file, **arrays)
        with np.load(path, allow_pickle=False) as kept:
            self.classes = tuple(str(name) for name in kept["classes"])
            found: dict[str, dict[str, Any]] = {"values": {}, "errors": {}, "power": {}, "blobs": {}}
            for name in kept.files:
                what, _, where = name.partition(" ")
                if what in found:
                    found[what][where] = kept[name]
        errors = {name: (float(one[0]), int(one[1])) for name, one in found["errors"].items()}
        return Measured(found["values"], errors, found["power"], found["blobs"])

    def _measure(self, entry: Entry, model: Model | None, subject: Subject) -> dict[str, Any]:
        source, target = self._sources[subject.name], subject.target.read()
        first, second = subject.source, subject.second_source
        if entry.name == "target":
            first, second = subject.target, subject.second_target
        elif entry.name == CEILING.name:
            assert subject.second_target is not None
            first, second = subject.second_target, subject.target
        made = [made_by(entry, model, first, seed) for seed in entry.seeds]
        arrays: dict[str, Any] = {}
        settings = settings_for(self.preset)
        for name, labels in self.regions[subject.name].items():
            tables = [extract(_like(source, hu), labels, settings) for hu in made]
            arrays[f"values {name}"] = np.stack([one.values for one in tables])
            arrays["classes"] = np.array(tables[0].classes)
        for name, mask in zip(("body", "lungs", "soft tissue"), masks(subject, source), strict=True):
            squares = [np.sum((hu - target.hu)[mask].astype(np.float64) ** 2) for hu in made]
            arrays[f"errors {name}"] = np.array([np.mean(squares), mask.sum()])
        for seed, hu in zip(entry.seeds, made, strict=True):
            arrays[f"blobs {seed}"] = blobs(hu, subject.lungs, source.spacing_mm)
        if entry.noise and second is not None:
            half = (made[0] - made_by(entry, model, second, entry.seeds[0])) / np.float32(np.sqrt(2))
            for name, mask in places(subject, source).items():
                arrays[f"power {name}"] = _power(half, mask, source).nps_hu2_mm2
        return arrays


def _like(source: Volume, hu: Hu) -> Volume:
    return dataclasses.replace(source, hu=hu, padding=None)


def _power(hu: Hu, mask: NDArray[np.bool_], like: Volume) -> NoisePower:
    return noise_power(hu, mask, spacing_mm=like.spacing_mm[1:], patch=PATCH, band_width=BAND)


@dataclass(frozen=True)
class Cell:
    """Agreement of a class: mean CCC, its 95 % interval over subjects, share of features with a relative error < 0.15.

    Features that both images leave undefined or constant count in neither.
    """

    ccc: float
    low: float
    high: float
    share: float
    features: int


def cells(judge: Judge, entry: Entry, region: str) -> dict[str, Cell]:
    """Class -> agreement of a row with the target in a region; the class "all" holds every feature."""
    made, target = judge.of(entry), judge.of(Entry("target"))
    who = [name for name in made if region in target[name].values]
    truth = np.concatenate([target[name].values[region][0] for name in who])
    subjects = [name for name in who for _ in range(target[name].values[region].shape[1])]
    classes = np.array(judge.classes)
    means: dict[str, list[float]] = {}
    shares: dict[str, list[float]] = {}
    intervals = None
    for index in range(len(entry.seeds)):
        values = np.concatenate([made[name].values[region][index] for name in who])
        summary = agreement.mean_by_class(agreement.ccc_per_feature(values, truth), judge.classes)
        errors = agreement.relative_error(values, truth)
        for name in (*summary, "all"):
            inside = errors if name == "all" else errors[:, classes == name]
            share = agreement.reproducible(inside, threshold=agreement.REPRODUCIBLE).of_features
            shares.setdefault(name, []).append(share)
            means.setdefault(name, []).append(np.nan if name == "all" else summary[name].mean)
        if intervals is None:
            intervals = agreement.bootstrap_by_subject(
                values, truth, judge.classes, subjects, generator=np.random.default_rng(0), repeats=REPEATS
            )
    assert intervals is not None
    found = {}
    for name, ccc in means.items():
        low, high = (np.nan, np.nan) if name == "all" else (intervals[name].low, intervals[name].high)
        features = len(classes) if name == "all" else int((classes == name).sum())
        found[name] = Cell(float(np.mean(ccc)), low, high, float(np.mean(shares[name])), features)
    return found


def rmse(judge: Judge, entry: Entry) -> dict[str, float]:
    """Mask -> root mean square difference to the target over all subjects, HU."""
    made = list(judge.of(entry).values())
    return {
        name: float(np.sqrt(sum(one.errors[name][0] for one in made) / sum(one.errors[name][1] for one in made)))
        for name in made[0].errors
    }


def noise_ratio(judge: Judge, entry: Entry, place: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Noise power by band relative to the target's, with its standard error over patches, [band] each."""
    powers = []
    for one in (entry, Entry("target")):
        rows = np.concatenate([measured.power[place] for measured in judge.of(one).values()])
        edges = np.arange(rows.shape[1] + 1) * BAND
        powers.append(NoisePower(edges, np.ones(rows.shape[1]), rows))
    return power_ratio(powers[0], powers[1])
