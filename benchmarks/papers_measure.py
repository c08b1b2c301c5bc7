"""Features of every row in the test subjects' random ROIs, each measured once and kept; the ceilings beside them.

The target is read to place the ROIs and to judge. Two middle slices of each subject are judged.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import papers_rivals
from benchmarks.papers_cohort import ROIS_PER_RANGE, SEED, runs
from benchmarks.papers_rows import DCT, LONG, ROWS, chosen_steps, place_of
from concordct.judging import kept
from concordct.judging.case import Case, Pair, cases_of_manifest, open_pair
from concordct.judging.regions import RANDOM, paper_regions
from concordct.judging.stages import stored
from concordct.methods.models import Model, load_model, shipped
from concordct.methods.standardizer import Mode, Standardizer
from concordct.radiomics.presets import settings_for
from concordct.volumes.scans import one_scan
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

#: The features: IBEX's classes, as both papers name them.
PRESET = "ibex-1401"
#: Slices that are judged of each subject's four.
FIRST, LAST = 1, 3
INPUT = "input"
SECOND = "second scan of the target"
REDRAWN = "target, its unknown part drawn anew"


@dataclass(frozen=True, eq=False)
class Judged:
    """A subject of the split, opened once.

    Attributes
    ----------
    pair : all slices of source and target. slab : source and target on the slices that are judged.
    rois : [z, y, x] labels there. again : source and target of the second scan, None without one.
    """

    case: Case
    pair: Pair
    slab: Pair
    rois: dict[str, Any]
    again: Pair | None


@dataclass(frozen=True, eq=False)
class Measured:
    """A row over all subjects: [roi, feature], whose ROIs they are, classes, and processor seconds a slice."""

    values: np.ndarray
    subjects: tuple[str, ...]
    classes: tuple[str, ...]
    seconds: float


@cache
def judged(manifest: Path, repeats: Path | None, split: str) -> tuple[Judged, ...]:
    """Every subject of a split."""
    second = {} if repeats is None else {case.name: case for case in cases_of_manifest(repeats, split=None)}
    found = []
    for case in cases_of_manifest(manifest, split=split):
        pair = open_pair(case)
        slab = Pair(pair.source.slab(FIRST, LAST), pair.target.slab(FIRST, LAST), None)
        seed = [SEED, *hashlib.sha256(case.name.encode()).digest()[:8]]
        regions = paper_regions(slab, rois_per_range=ROIS_PER_RANGE, seed=seed)
        again = open_pair(second[case.name]) if case.name in second else None
        found.append(Judged(case, pair, slab, {RANDOM: regions[RANDOM]}, again))
    return tuple(found)


def made_by(standardizer: Standardizer, one: Judged, *, seed: int, source: Volume | None = None) -> Volume:
    """The judged slices through a standardizer that sees as many neighbours as it asks for."""
    whole = one.pair.source if source is None else source
    low, high = max(0, FIRST - standardizer.context_slices), min(whole.shape[0], LAST + standardizer.context_slices)
    made = standardizer(whole.slab(low, high), generator=SliceSeeds(seed, one.case.source.key))
    slab = made.slab(FIRST - low, LAST - low)
    return slab.with_hu(stored(slab.hu, whole.slab(FIRST, LAST).hu))


def row_stage(
    name: str, seed: int = SEED, *, steps: int | None = None
) -> tuple[str, Callable[[Judged], tuple[Volume, float]]]:
    """A row's identity, and what makes its volume; `steps` in place of its own sampling steps."""
    model = load_model(model_of(name))
    sampling = dict(ROWS[name].sampling) if name in ROWS else {}
    if name in ROWS and ROWS[name].chosen:
        steps = chosen_steps(ROWS[name].of)
    if steps is not None:
        sampling["steps"] = steps

    def make(one: Judged) -> tuple[Volume, float]:
        standardizer = _at_work(model, "sample", json.dumps(sampling, sort_keys=True))
        began = time.process_time()
        volume = made_by(standardizer, one, seed=seed)
        return volume, (time.process_time() - began) / (LAST - FIRST)

    return f"{model.sha256} {sorted(sampling.items())} {seed}", make


def model_of(name: str) -> Path:
    """The model that stands for a row: the one that ships, in half precision, where it does."""
    if name not in ROWS:
        return papers_rivals.place(name)
    ships = shipped()
    owner = ROWS[name].of or name
    word = {LONG: "ltdiffpp", DCT: "diffusionct"}.get(owner, "")
    return ships.get(word, place_of(name))


_OPEN: dict[tuple[str, str, str], Standardizer] = {}


def _at_work(model: Model, mode: Mode, sampling: str) -> Standardizer:
    key = (model.sha256, mode, sampling)
    if key not in _OPEN:
        _OPEN[key] = model.standardizer(mode=mode, sampling=json.loads(sampling))
    return _OPEN[key]


def fixed_stage(name: str) -> tuple[str, Callable[[Judged], tuple[Volume, float]]]:
    """Input, target or a ceiling.

    REDRAWN is S(A) + (B2 - S(A2)), S the spectral transfer without noise and A2, B2 the subject's second scan: what A
    says of B stays, the noise that it does not say is another. The anatomy beyond A's limit stays too, so that this is
    a little more than what a method can reach.
    """
    if name == REDRAWN:
        model = load_model(place_of("spectral"))

        def redrawn(one: Judged) -> tuple[Volume, float]:
            assert one.again is not None
            transfer = _at_work(model, "mean", "{}")
            first = made_by(transfer, one, seed=SEED).hu
            second = made_by(transfer, one, seed=SEED, source=one.again.source).hu
            hu = first + one.again.target.slab(FIRST, LAST).hu - second
            return one.slab.target.with_hu(stored(hu, one.slab.target.hu)), 0.0

        return f"{name} {model.sha256}", redrawn

    def plain(one: Judged) -> tuple[Volume, float]:
        if name == SECOND:
            assert one.again is not None
            return one.again.target.slab(FIRST, LAST), 0.0
        return (one.slab.source if name == INPUT else one.slab.target), 0.0

    return name, plain


def measured(
    subjects: tuple[Judged, ...], stage: tuple[str, Callable[[Judged], tuple[Volume, float]]], *, label: str
) -> Measured:
    """A stage's features over all subjects; what was measured before is read."""
    identity, make = stage
    values, whose, seconds = [], [], []
    classes: tuple[str, ...] = ()
    for one in subjects:
        parts = [identity, one.case.name, one.case.source.key, one.case.target.key, ROIS_PER_RANGE, PRESET, FIRST, LAST]
        path = runs() / "measured" / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]}.npz"
        if path.exists():
            found = kept.load(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            volume, cost = make(one)
            error = float(np.sqrt(np.mean((volume.hu - one.slab.target.hu)[one.slab.target.hu > -500] ** 2)))
            found = kept.measure(
                volume, one.rois, settings_for(PRESET), shown=0, cost={"seconds": cost, "rmse": error, "stage": label}
            )
            kept.save(path, found)
            print(f"{label}: {one.case.subject}", flush=True)
        values.append(found.values[RANDOM])
        whose.extend([one.case.subject] * len(found.values[RANDOM]))
        seconds.append(found.cost["seconds"])
        classes = found.classes
    return Measured(np.concatenate(values), tuple(whose), classes, float(np.median(seconds)))


def repeat_of_phantom(folder: Path) -> Mapping[str, Measured]:
    """Two real scans of one printed lung phantom: name -> features of one of them, "target" the other's beside it."""
    found = {}
    for kind in ("IR", "DLR"):
        scans = [one_scan(folder / f"{kind}_{number}") for number in (2, 3)]
        volumes = [scan.read() for scan in scans]
        pair = Pair(volumes[0], volumes[1], None)
        rois = {RANDOM: paper_regions(pair, rois_per_range=ROIS_PER_RANGE, seed=[SEED])[RANDOM]}
        for number, volume in zip((2, 3), volumes, strict=True):
            table = kept.measure(volume, rois, settings_for(PRESET), shown=0, cost={})
            count = len(table.values[RANDOM])
            found[f"{kind}_{number}"] = Measured(table.values[RANDOM], ("phantom",) * count, table.classes, 0.0)
    return found
