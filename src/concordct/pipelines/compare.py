"""The papers' tables for any models: the same pairs, the same ROIs, every model from the source alone.

Tables I and II of LTDiff++ (Table 1 of DiffusionCT): six classes, mean and spread, in tumour ROIs, random ROIs of four
HU ranges and whole slices; DiffusionCT's Fig. 4 and 5; time and memory. Targets are read to judge, and to place the
random ROIs, never to standardize. Features of each (pair, model) are kept in `OUTPUT.run`, so a killed run goes on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from concordct import __version__
from concordct.agreement import concordance
from concordct.endpoints.masks import EndpointMasks
from concordct.errors import ConcordctError
from concordct.judging import kept
from concordct.judging.case import Case, Pair, cases_of_manifest, open_pair, same_place
from concordct.judging.endpoints import endpoint_rows, endpoints_of, masks_for
from concordct.judging.features import number
from concordct.judging.regions import (
    LEAST_SHARE,
    RANDOM,
    RANDOM_PIXELS,
    TUMOURS,
    WHOLE_SLICES,
    centre_of_roi,
    middle_slice,
    paper_regions,
)
from concordct.judging.seen import check_kernels, check_roles, seen_in_calibration
from concordct.judging.stages import TARGET, standardized, standardizer_for
from concordct.judging.table import curves_of_methods, table_of_methods
from concordct.methods.models import Model, load_model
from concordct.pipelines.consistency import asked, consistency, downstream_rows
from concordct.radiomics.presets import settings_for
from concordct.report.comparison import Panel, write_comparison
from concordct.signal.drawing import ready_to_draw
from concordct.volumes.place import atomic_directory, atomic_file, make_folder
from concordct.volumes.volume import Volume

#: Random ROIs in each range of each pair.
ROIS_PER_RANGE = 8
INPUT, CEILING = "input (baseline)", "second scan of the target (ceiling)"
#: Thresholds of relative error in the curve of DiffusionCT's Fig. 4.
THRESHOLDS = np.linspace(0.0, 1.0, 51)
#: Fewer subjects than this make intervals over subjects that say little.
FEW_SUBJECTS = 3

Progress = Callable[[str, int, int], None]


@dataclass
class _Measured:
    """What was kept, by stage, pair after pair; whose ROIs they are, by region."""

    stages: dict[str, list[kept.Kept]] = field(default_factory=dict)
    subjects: dict[str, list[str]] = field(default_factory=dict)
    endpoints: list[dict[str, dict[str, float | None]]] = field(default_factory=list)

    def values(self, region: str, stage: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """[roi, feature] over all pairs that have the region."""
        return np.concatenate([one.values[region] for one in self.stages[stage] if region in one.values])


def compare(
    pairs: Path,
    models: Mapping[str, Path],
    output: Path,
    *,
    split: str | None = "test",
    ceiling: Path | None = None,
    preset: str = "ibex-1401",
    rois_per_range: int = ROIS_PER_RANGE,
    seed: int = 0,
    any_kernel: bool = False,
    endpoints: bool = False,
    downstream: Sequence[str] = (),
    allow: frozenset[str] = frozenset(),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge models side by side and write `results.json` and `report.html`.

    Parameters
    ----------
    models : name -> path of a model of any method.
    ceiling : a manifest with the same pair names, scanned a second time: its targets against these.
    preset : features, see `radiomics.presets`.
    rois_per_range : random ROIs in each of the papers' HU ranges, in each pair.
    any_kernel : judge models on scans of other kernels than theirs, too.
    endpoints : emphysema, density, calcium and noise of every stage as well.
    downstream : programs that are asked on source, output and target, see `consistency.asked`.
    allow : geometry problems that may pass.

    Returns
    -------
    What `results.json` holds.

    Raises
    ------
    ConcordctError : no pair, pairs that are not two reconstructions of one scan, a model that is none or of other
        kernels, a result in the place of a source or target.
    """
    cases = cases_of_manifest(pairs, split=split)
    if output.exists() and not overwrite:
        raise ConcordctError(f"{output}: expected a new place, found one that exists [exists]")
    loaded = {name: load_model(path) for name, path in models.items()}
    for case in cases:
        check_roles(case.source, case.target)
        for name, model in loaded.items():
            if not any_kernel:
                try:
                    check_kernels(model, case.source, case.target)
                except ConcordctError as error:
                    raise ConcordctError(f"model {name}: {error}") from None
    again = {} if ceiling is None else {case.name: case for case in cases_of_manifest(ceiling, split=None)}
    stages = [INPUT, *loaded, *([CEILING] if again else [])]
    ready_to_draw()
    place = output.with_name(output.name + ".run")
    make_folder(place)
    found, settings, centre = _Measured(), settings_for(preset), (0, 0)
    done, total = 0, len(cases) * (len(stages) + 1)
    for case in cases:
        pair = open_pair(case, allow=allow)
        drawn_by = [seed, *hashlib.sha256(case.name.encode(errors="surrogateescape")).digest()[:8]]
        regions = paper_regions(pair, rois_per_range=rois_per_range, seed=drawn_by)
        for region, labels in regions.items():
            found.subjects.setdefault(region, []).extend([case.subject] * int(labels.max()))
        first = next(iter(regions.values()))
        if case is cases[0]:
            centre = centre_of_roi(first)
        masks: EndpointMasks | None = None
        measured: dict[str, dict[str, float | None]] = {}
        for stage in (TARGET, *stages):
            key = _key(case, stage, loaded.get(stage), again.get(case.name), [seed, preset, rois_per_range])
            path, beside = place / f"{key}.npz", place / f"{key}.endpoints.json"
            if not path.exists() or (endpoints and not beside.exists()):
                volume, cost = _volume(stage, case, pair, loaded.get(stage), again, seed, allow)
                if not path.exists():
                    kept.save(path, kept.measure(volume, regions, settings, shown=middle_slice(first), cost=cost))
                if endpoints:
                    masks = masks_for(pair.source) if masks is None else masks
                    with atomic_file(beside, overwrite=True) as aside:
                        aside.write_text(json.dumps(endpoints_of(volume, masks)))
            if endpoints:
                measured[stage] = json.loads(beside.read_text())
            found.stages.setdefault(stage, []).append(kept.load(path))
            done += 1
            if progress is not None:
                progress(f"{case.name}, {stage}", done, total)
        found.endpoints.append(measured)
    results = _results(found, stages, loaded, cases, preset=preset, seed=seed)
    if endpoints:
        results["endpoints"] = endpoint_rows(
            found.endpoints, [case.subject for case in cases], target=TARGET, seed=seed
        )
    if downstream:
        results["downstream"] = [
            {"program": text, "rows": _asked(text, pairs, loaded, split=split, seed=seed, allow=allow, place=place)}
            for text in downstream
        ]
    headline = results["table"][results["headline_region"]]
    glcm = {row["name"]: row["classes"].get("GLCM", {}).get("papers_ccc") for row in headline}
    panels = [Panel(stage, one[0].image) for stage, one in found.stages.items()]
    with atomic_directory(output, overwrite=overwrite) as aside:
        (aside / "results.json").write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
        write_comparison(aside / "report.html", results, panels, centre=centre, below=glcm)
    return results


def _asked(
    text: str,
    pairs: Path,
    models: Mapping[str, Model],
    *,
    split: str | None,
    seed: int,
    allow: frozenset[str],
    place: Path,
) -> list[dict[str, Any]]:
    """What conversion by each model does to a program's answers; kept, model by model."""
    ask = asked(text)
    rows: list[dict[str, Any]] = []
    for name, model in models.items():
        scans = [[case.source.key, case.target.key] for case in cases_of_manifest(pairs, split=split)]
        parts = [text, name, model.sha256, scans, seed, sorted(allow), __version__]
        path = place / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]}.downstream.json"
        if not path.exists():
            found = consistency(pairs, model, ask, split=split, seed=seed, allow=allow)
            with atomic_file(path, overwrite=True) as aside:
                aside.write_text(json.dumps(downstream_rows(found, name)))
        rows += json.loads(path.read_text())
    return rows


def _key(case: Case, stage: str, model: Model | None, again: Case | None, settings: list[Any]) -> str:
    """What the features follow from."""
    scans = [case.source.key, case.target.key]
    if stage == CEILING and again is not None:
        scans.append(again.target.key)
    rois = [RANDOM_PIXELS, LEAST_SHARE, WHOLE_SLICES]
    parts = [case.name, stage, None if model is None else model.sha256, scans, *settings, rois, __version__]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _volume(
    stage: str,
    case: Case,
    pair: Pair,
    model: Model | None,
    again: Mapping[str, Case],
    seed: int,
    allow: frozenset[str],
) -> tuple[Volume, dict[str, Any]]:
    """What is measured, and what it cost."""
    if model is not None:
        _reset_peak()
        standardizer = standardizer_for(case.source, model)
        began = time.perf_counter()
        volume = standardized(case.source, pair.source, standardizer, seed=seed, allow=allow)
        seconds = time.perf_counter() - began
        depth, rows, _ = volume.shape
        return volume, {"seconds_per_slice": seconds / depth, "peak_mb": peak_mb(), "rows": rows}
    if stage == CEILING:
        if case.name not in again:
            raise ConcordctError(f"pair {case.name}: expected a second scan in the manifest of the ceiling, found none")
        volume = again[case.name].target.read(allow=allow)
        same_place(volume, pair.target, "second target")
        return volume, {}
    return (pair.target if stage == TARGET else pair.source), {}


def _results(
    found: _Measured,
    stages: list[str],
    models: Mapping[str, Model],
    cases: Sequence[Case],
    *,
    preset: str,
    seed: int,
) -> dict[str, Any]:
    of = found.stages[TARGET][0].classes
    classes = list(dict.fromkeys(of))
    table, curves, warnings = {}, {}, []
    for region, subjects in found.subjects.items():
        target = found.values(region, TARGET)
        values = {stage: found.values(region, stage) for stage in stages}
        if len(target) < concordance.LEAST_ROIS:
            warnings.append(f"{region}: {len(target)} ROIs, too few for concordance across ROIs")
        table[region] = table_of_methods(
            values, target, of, subjects, baseline=INPUT, not_competing=(INPUT, CEILING), seed=seed
        )
        curves[region] = curves_of_methods(values, target, THRESHOLDS)
    scans = [scan for case in cases for scan in (case.source, case.target)]
    for name, model in models.items():
        seen = seen_in_calibration(model.bundle.metadata["info"], scans)
        if seen is not None:
            warnings.insert(0, f"{name}: {seen.said}")
    people = len({case.subject for case in cases})
    if people < FEW_SUBJECTS:
        warnings.append(f"{people} subjects: intervals over subjects say little")
    headline = TUMOURS if TUMOURS in table and len(found.subjects[TUMOURS]) >= concordance.LEAST_ROIS else RANDOM
    return {
        "schema": 1,
        "software": f"concordct {__version__}",
        "preset": preset,
        "seed": seed,
        "pairs": len(cases),
        "subjects": people,
        "rois": {region: len(subjects) for region, subjects in found.subjects.items()},
        "classes": classes,
        "features": {name: of.count(name) for name in classes},
        "headline_region": headline,
        "table": table,
        "thresholds": [number(value) for value in THRESHOLDS],
        "curves": curves,
        "cost": {name: _cost([one.cost for one in found.stages[name]], model) for name, model in models.items()},
        "models": {name: {"method": model.bundle.method, "sha256": model.sha256} for name, model in models.items()},
        "warnings": warnings,
    }


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


def peak_mb() -> int | None:
    """Peak of this process's resident memory, MiB, where the system tells."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), None)
