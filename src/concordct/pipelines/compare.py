"""The papers' tables for any models: the same pairs, the same ROIs, every model from the source alone.

Tables I and II of LTDiff++ (Table 1 of DiffusionCT): six classes, mean and spread, in tumour ROIs, random ROIs of four
HU ranges and whole slices; DiffusionCT's Fig. 4 and 5; time and memory. Two numbers stand for agreement: Lin's
concordance of each feature across ROIs (the headline) and the papers' across the features of a class. Targets are read
to judge, and to place the random ROIs, never to standardize. Features of each (pair, model) are kept in `OUTPUT.run`,
so a killed run goes on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct import __version__
from concordct.agreement import concordance as agreement
from concordct.errors import ConcordctError
from concordct.methods.models import Model, load_model
from concordct.methods.slabs import standardized_slabs
from concordct.pipelines.agreement import number
from concordct.radiomics.extract import extract
from concordct.radiomics.presets import settings_for
from concordct.radiomics.regions.rois import PAPER_RANGES_HU, random_rois
from concordct.report.comparison import Panel, write_comparison
from concordct.signal.body import body_mask
from concordct.volumes.manifest import PairRow, read_manifest
from concordct.volumes.pairing import check_pair
from concordct.volumes.place import atomic_directory, atomic_file
from concordct.volumes.scans import evenly_spaced, one_scan
from concordct.volumes.volume import Volume

#: Random ROIs: squares of this many pixels, this many in each range of each pair, at least this share inside the range.
#: The papers print neither size nor number.
ROI_PIXELS, ROIS_PER_RANGE, LEAST_SHARE = 16, 8, 0.5
#: Whole slices measured in each pair, evenly spread.
WHOLE_SLICES = 3
INPUT, CEILING = "input (baseline)", "second scan of the target (ceiling)"
TUMOURS, RANDOM, WHOLE = "tumour ROIs", "random ROIs", "whole slices"
#: Thresholds of relative error in the curve of DiffusionCT's Fig. 4.
THRESHOLDS = np.linspace(0.0, 1.0, 51)
#: Bootstrap samples of subjects.
REPEATS = 200

Progress = Callable[[str, int, int], None]


@dataclass
class _Measured:
    """Feature values [roi, feature] by region and by what was measured, and whose ROIs they are."""

    values: dict[str, dict[str, list[NDArray[np.float64]]]] = field(default_factory=dict)
    subjects: dict[str, list[str]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    cost: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def compare(
    pairs: Path,
    models: Mapping[str, Path],
    output: Path,
    *,
    split: str | None = "test",
    ceiling: Path | None = None,
    preset: str = "ibex-1401",
    seed: int = 0,
    allow: frozenset[str] = frozenset(),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge models side by side and write `results.json` and `report.html`.

    Parameters
    ----------
    models : name -> path of a model of any method.
    ceiling : a manifest with the same pair names, scanned a second time: its targets against these.
    preset : features, see `features/presets.py`.
    allow : geometry problems that may pass.

    Returns
    -------
    What `results.json` holds.

    Raises
    ------
    ConcordctError : no pair, pairs that are not two reconstructions of one scan, a model that is none.
    """
    rows = [row for row in read_manifest(pairs) if row.target is not None and split in (None, row.split)]
    if not rows:
        raise ConcordctError(f"{pairs}: expected pairs in split {split!r}, found none")
    if output.exists() and not overwrite:
        raise ConcordctError(f"{output}: exists, expected a new place (--overwrite replaces it)")
    loaded = {name: load_model(path) for name, path in models.items()}
    again = {} if ceiling is None else {row.pair: row for row in read_manifest(ceiling)}
    stages = [INPUT, *loaded, *([CEILING] if again else [])]
    place = output.with_name(output.name + ".run")
    place.mkdir(parents=True, exist_ok=True)
    found, panels = _Measured(), []
    done, total = 0, len(rows) * (len(stages) + 1)
    for row in rows:
        source, target = _pair(row, allow)
        regions = _regions(row, source, target, seed)
        for region, labels in regions.items():
            found.subjects.setdefault(region, []).extend([row.subject] * int(labels.max()))
        for stage in ("target", *stages):
            key = _key(row, stage, loaded.get(stage), again.get(row.pair), seed, preset)
            kept = place / f"{key}.npz"
            if not kept.exists():
                volume, cost = _volume(stage, row, source, target, loaded.get(stage), again, seed, allow)
                _measure(kept, volume, regions, preset, cost)
            panel = _take(found, kept, stage, regions)
            if row is rows[0]:
                panels.append(Panel(stage, panel))
            done += 1
            if progress is not None:
                progress(f"{row.pair}, {stage}", done, total)
    results = _results(found, stages, loaded, rows, preset=preset, seed=seed)
    centre = _shown(rows[0], *_pair(rows[0], allow), seed)
    headline = results["table"][results["headline_region"]]
    glcm = {row["name"]: row["classes"].get("GLCM", {}).get("papers_ccc") for row in headline}
    with atomic_directory(output, overwrite=overwrite) as aside:
        (aside / "results.json").write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
        write_comparison(aside / "report.html", results, panels, centre=centre, below=glcm)
    return results


def _pair(row: PairRow, allow: frozenset[str]) -> tuple[Volume, Volume]:
    assert row.target is not None
    source, target = one_scan(row.source), one_scan(row.target)
    check_pair(source, target)
    return source.read(allow=allow), target.read(allow=allow)


def _key(row: PairRow, stage: str, model: Model | None, again: PairRow | None, seed: int, preset: str) -> str:
    """What the features follow from."""
    assert row.target is not None
    scans = [one_scan(row.source).key, one_scan(row.target).key]
    if stage == CEILING and again is not None and again.target is not None:
        scans.append(one_scan(again.target).key)
    rois = [ROI_PIXELS, ROIS_PER_RANGE, LEAST_SHARE, WHOLE_SLICES]
    parts = [row.pair, stage, None if model is None else model.sha256, scans, seed, preset, rois, __version__]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _regions(row: PairRow, source: Volume, target: Volume, seed: int) -> dict[str, NDArray[np.int32]]:
    """Labels 1 ... n of every region; the same for every model."""
    found: dict[str, NDArray[np.int32]] = {}
    if row.mask is not None:
        labels = np.rint(one_scan(row.mask).read().hu).astype(np.int32)
        if labels.shape != source.shape:
            raise ConcordctError(f"{row.mask}: expected a mask of shape {source.shape}, found {labels.shape}")
        names = np.unique(labels[labels > 0])
        if len(names):
            found[TUMOURS] = np.where(labels > 0, np.searchsorted(names, labels) + 1, 0).astype(np.int32)
    generator = np.random.default_rng([seed, *hashlib.sha256(row.pair.encode()).digest()[:8]])
    drawn = random_rois(
        target,
        ranges_hu=PAPER_RANGES_HU,
        count=ROIS_PER_RANGE,
        size=ROI_PIXELS,
        least_share=LEAST_SHARE,
        generator=generator,
        mask=None,
    )
    found[RANDOM] = drawn.labels
    for index, (low, high) in enumerate(PAPER_RANGES_HU):
        own = [label for label, of in enumerate(drawn.of_range, start=1) if of == index]
        if own:
            table = np.zeros(len(drawn.of_range) + 1, np.int32)
            table[own] = np.arange(1, len(own) + 1)
            found[f"[{low:.0f}, {high:.0f}] HU"] = table[drawn.labels]
    body = body_mask(source.hu)
    whole = np.zeros(source.shape, np.int32)
    depths = np.unique(np.linspace(0, source.shape[0] - 1, WHOLE_SLICES + 2).round().astype(int)[1:-1])
    for number_, z in enumerate((z for z in depths if body[z].any()), start=1):
        whole[z][body[z]] = number_
    if whole.any():
        found[WHOLE] = whole
    return found


def _volume(
    stage: str,
    row: PairRow,
    source: Volume,
    target: Volume,
    model: Model | None,
    again: Mapping[str, PairRow],
    seed: int,
    allow: frozenset[str],
) -> tuple[Volume, dict[str, Any]]:
    """What is measured, and what it cost."""
    if model is not None:
        scan = one_scan(row.source)
        _reset_peak()
        began = time.perf_counter()
        standardizer = model.standardizer(mode="sample", use_neighbours=evenly_spaced(scan))
        loaded = time.perf_counter()
        slabs = list(standardized_slabs(scan, standardizer, seed=seed, allow=allow))
        seconds = time.perf_counter() - loaded
        hu = np.concatenate([slab.hu for slab in slabs])
        limits = min(-1024, target.hu.min()), max(3071, target.hu.max())
        cost = {
            "seconds_per_slice": seconds / len(hu),
            "load_seconds": loaded - began,
            "peak_mb": _peak_mb(),
            "rows": source.shape[1],
        }
        return source.with_hu(np.clip(np.rint(hu), *limits)), cost
    if stage == CEILING:
        other = again.get(row.pair)
        if other is None or other.target is None:
            raise ConcordctError(f"pair {row.pair}: expected a second scan in the manifest of the ceiling, found none")
        volume = one_scan(other.target).read(allow=allow)
        if volume.shape != target.shape:
            raise ConcordctError(f"{other.target}: expected a scan of shape {target.shape}, found {volume.shape}")
        return volume, {}
    return (target if stage == "target" else source), {}


def _measure(
    path: Path, volume: Volume, regions: Mapping[str, NDArray[np.int32]], preset: str, cost: Mapping[str, Any]
) -> None:
    settings = settings_for(preset)
    tables = {name: extract(volume, labels, settings) for name, labels in regions.items()}
    first = next(iter(tables.values()))
    z = _middle(next(iter(regions.values())))
    with atomic_file(path, overwrite=True) as aside, open(aside, "wb") as file:
        arrays: dict[str, Any] = {
            "classes": np.array(first.classes),
            "cost": np.array(json.dumps(dict(cost))),
            "image": volume.hu[z].astype(np.int16),
        }
        arrays |= {f"values {name}": table.values for name, table in tables.items()}
        np.savez(file, **arrays)


def _take(found: _Measured, path: Path, stage: str, regions: Mapping[str, NDArray[np.int32]]) -> NDArray[np.int16]:
    with np.load(path, allow_pickle=False) as kept:
        found.classes = tuple(str(name) for name in kept["classes"])
        for region in regions:
            found.values.setdefault(region, {}).setdefault(stage, []).append(kept[f"values {region}"])
        cost = json.loads(str(kept["cost"]))
        if cost:
            found.cost.setdefault(stage, []).append(cost)
        return np.asarray(kept["image"])


def _middle(labels: NDArray[np.int32]) -> int:
    """The slice that holds most of the labels."""
    return int((labels > 0).sum(axis=(1, 2)).argmax())


def _shown(row: PairRow, source: Volume, target: Volume, seed: int) -> tuple[int, int]:
    """(row, column) of the ROI that the image row magnifies."""
    labels = next(iter(_regions(row, source, target, seed).values()))[...]
    places = np.argwhere(labels[_middle(labels)] > 0)
    first = places[len(places) // 2]
    own = np.argwhere(labels[_middle(labels)] == labels[_middle(labels)][tuple(first)])
    y, x = own.mean(axis=0).round().astype(int)
    return int(y), int(x)


def _results(
    found: _Measured,
    stages: list[str],
    models: Mapping[str, Model],
    rows: list[PairRow],
    *,
    preset: str,
    seed: int,
) -> dict[str, Any]:
    classes = list(dict.fromkeys(found.classes))
    table: dict[str, list[dict[str, Any]]] = {}
    warnings = []
    curves = {}
    for region, by_stage in found.values.items():
        subjects = found.subjects[region]
        target = np.concatenate(by_stage["target"])
        values = {stage: np.concatenate(by_stage[stage]) for stage in stages}
        if len(target) < agreement.LEAST_ROIS:
            warnings.append(f"{region}: {len(target)} ROIs, too few for concordance across ROIs")
        spread = _bootstrap(values, target, found.classes, subjects, seed)
        table[region] = [_row(stage, values[stage], target, found.classes, spread) for stage in stages]
        _mark_best(table[region], classes)
        errors = {stage: agreement.relative_error(one, target) for stage, one in values.items()}
        curves[region] = {
            stage: [number(share) for share in agreement.reproducibility_curve(error, THRESHOLDS)]
            for stage, error in errors.items()
        }
    people = len({row.subject for row in rows})
    if people < 3:
        warnings.append(f"{people} subjects: intervals over subjects say little")
    headline = TUMOURS if TUMOURS in table and len(found.subjects[TUMOURS]) >= agreement.LEAST_ROIS else RANDOM
    return {
        "schema": 1,
        "software": f"concordct {__version__}",
        "preset": preset,
        "seed": seed,
        "pairs": len(rows),
        "subjects": people,
        "rois": {region: len(subjects) for region, subjects in found.subjects.items()},
        "classes": classes,
        "features": {name: found.classes.count(name) for name in classes},
        "headline_region": headline,
        "table": table,
        "thresholds": [number(value) for value in THRESHOLDS],
        "curves": curves,
        "cost": {stage: _cost(costs, models[stage]) for stage, costs in found.cost.items()},
        "models": {name: {"method": model.bundle.method, "sha256": model.sha256} for name, model in models.items()},
        "warnings": warnings,
    }


def _row(
    stage: str,
    values: NDArray[np.float64],
    target: NDArray[np.float64],
    classes: tuple[str, ...],
    spread: Mapping[str, Mapping[str, NDArray[np.float64]]],
) -> dict[str, Any]:
    per_feature = agreement.mean_by_class(agreement.ccc_per_feature(values, target), classes)
    within = agreement.ccc_per_class(values, target, classes)
    errors = agreement.relative_error(values, target)
    of = np.array(classes)
    cells = {}
    for name, mean in per_feature.items():
        papers = within[name][np.isfinite(within[name])]
        share = agreement.reproducible(errors[:, of == name], threshold=agreement.REPRODUCIBLE)
        against = spread[stage][name] - spread[INPUT][name]
        cells[name] = {
            "ccc": number(mean.mean),
            "ccc_sd": number(mean.sd),
            "undefined": mean.undefined,
            "interval": _interval(spread[stage][name]),
            "difference_to_input": _interval(against),
            "papers_ccc": number(papers.mean() if papers.size else np.nan),
            "papers_ccc_sd": number(papers.std(ddof=1) if papers.size > 1 else np.nan),
            "re_share": number(share.of_features),
            "best": False,
        }
    return {"name": stage, "classes": cells}


def _bootstrap(
    values: Mapping[str, NDArray[np.float64]],
    target: NDArray[np.float64],
    classes: tuple[str, ...],
    subjects: list[str],
    seed: int,
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Mean CCC of each class under the same draws of subjects for every model: differences are paired."""
    who, index = np.unique(np.array(subjects), return_inverse=True)
    names = list(dict.fromkeys(classes))
    if who.size < 2 or len(target) < agreement.LEAST_ROIS:
        return {stage: {name: np.full(1, np.nan) for name in names} for stage in values}
    generator = np.random.default_rng(seed)
    found: dict[str, dict[str, list[float]]] = {stage: {name: [] for name in names} for stage in values}
    for _ in range(REPEATS):
        drawn = np.concatenate([np.flatnonzero(index == one) for one in generator.integers(0, who.size, who.size)])
        for stage, one in values.items():
            summary = agreement.mean_by_class(agreement.ccc_per_feature(one[drawn], target[drawn]), classes)
            for name in names:
                found[stage][name].append(summary[name].mean)
    return {stage: {name: np.array(means) for name, means in by.items()} for stage, by in found.items()}


def _interval(samples: NDArray[np.float64]) -> list[float | None]:
    known = samples[np.isfinite(samples)]
    if known.size < 2:
        return [None, None]
    return [number(float(value)) for value in np.quantile(known, (0.025, 0.975))]


def _mark_best(rows: list[dict[str, Any]], classes: list[str]) -> None:
    """The best model of each class; input and ceiling do not compete."""
    for name in classes:
        running = [
            row for row in rows if row["name"] not in (INPUT, CEILING) and row["classes"][name]["ccc"] is not None
        ]
        if running:
            max(running, key=lambda row: row["classes"][name]["ccc"])["classes"][name]["best"] = True


def _cost(costs: list[dict[str, Any]], model: Model) -> dict[str, Any]:
    peaks = [one["peak_mb"] for one in costs if one["peak_mb"] is not None]
    return {
        "seconds_per_slice": number(float(np.median([one["seconds_per_slice"] for one in costs]))),
        "peak_mb": max(peaks) if peaks else None,
        "rows": costs[0]["rows"],
        "parameters": model.bundle.metadata.get("parameters", sum(one.size for one in model.bundle.tensors.values())),
    }


def _reset_peak() -> None:
    """Linux forgets the peak of resident memory when asked; elsewhere none is reported."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_mb() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), None)
