"""Did it work? Source, standardized and target side by side: HU error, noise power, agreement of radiomic features.

Writes `results.json` and one offline HTML file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from concordct.errors import ConcordctError
from concordct.judging.case import Case, Pair, open_pair, same_place
from concordct.judging.endpoints import class_warnings, endpoint_rows, endpoints_of, masks_for
from concordct.judging.provenance import provenance
from concordct.judging.regions import body_grid, roi_edge
from concordct.judging.seen import check_kernels, check_roles, seen_in_calibration
from concordct.judging.signals import (
    Gathered,
    bias_results,
    case_results,
    features_results,
    gather,
    nps_results,
    quality_results,
    signal_results,
)
from concordct.judging.stages import STAGES, TARGET, standardized, standardizer_for
from concordct.methods.models import Model, kernel_mismatch
from concordct.methods.standardizer import Mode
from concordct.pipelines.records import recorded_check
from concordct.radiomics.definitions.pyradiomics import PyRadiomics
from concordct.radiomics.presets import settings_for
from concordct.report.curves import curves
from concordct.report.evaluation import ShownStack, write_evaluation_report
from concordct.report.methods_text import methods_text
from concordct.volumes.place import atomic_directory
from concordct.volumes.volume import Volume

#: Textures of 2D ROIs at PyRadiomics' default bin width for CT; the classes that do not depend on shape.
FEATURES = PyRadiomics(
    classes=dict.fromkeys(("firstorder", "glcm", "glrlm", "glszm", "gldm", "ngtdm"), ()),
    bin_width=25.0,
    force_2d=True,
)


#: Called with (cases done, cases in all).
Progress = Callable[[int, int], None]


def evaluate(
    cases: Sequence[Case],
    output: Path,
    *,
    model: Model | None = None,
    mode: Mode = "sample",
    seed: int = 0,
    preset: str | None = None,
    origin: str = "",
    any_kernel: bool = False,
    endpoints: bool = True,
    allow: frozenset[str] = frozenset(),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge standardized scans against their targets and write the report.

    Parameters
    ----------
    model : needed where a case has no standardized scan; its curves are shown.
    mode, seed : how such a case is standardized.
    preset : features to compare, a name of `features.presets` or a PyRadiomics parameter file; None for 2D textures.
    origin : what was simulated and what was real, in words, for the report.
    any_kernel : standardize sources of other kernels than the model's, too.
    endpoints : measure emphysema, density, calcium and noise of every stage as well.
    allow : geometry problems that may pass.

    Returns
    -------
    What `results.json` holds.

    Raises
    ------
    ConcordctError : no case, volumes that do not match, a mask that does not fit, an output that exists, a result in
        the place of a source or target, a scan of another kernel than the model's.
    """
    if not cases:
        raise ConcordctError("expected at least one case to evaluate, found none")
    for case in cases:
        check_roles(case.source, case.target)
        if model is not None and case.standardized is None and not any_kernel:
            check_kernels(model, case.source, case.target)
    settings = FEATURES if preset is None else settings_for(preset)
    gathered, warnings, edges = Gathered(), list[str](), set[int]()
    shown: dict[str, Volume] = {}
    measured: list[dict[str, dict[str, float | None]]] = []
    for index, case in enumerate(cases):
        pair = open_pair(case, allow=allow, checked=False)
        stages = {
            "source": pair.source,
            "standardized": _standardized(case, pair, model, mode, seed, allow),
            TARGET: pair.target,
        }
        region, rois, notes = body_grid(pair)
        warnings += notes
        if rois is not None and pair.labels is None:
            edges.add(roi_edge(rois))
        warnings += gather(gathered, stages, subject=case.subject, region=region, rois=rois, settings=settings)
        if endpoints:
            masks = masks_for(pair.source)
            measured.append({name: endpoints_of(image, masks) for name, image in stages.items()})
            changes = class_warnings(measured[-1]["source"], measured[-1]["standardized"], case.name or case.subject)
            warnings += [f"clinical class changed: {line}" for line in changes]
        shown = shown or stages
        if progress is not None:
            progress(index + 1, len(cases))
    grid = " or ".join(f"{edge} x {edge}" for edge in sorted(edges, reverse=True))
    warnings = [*_about_model(cases, model), *warnings]
    results = _results(
        gathered, cases, warnings, model=model, mode=mode, seed=seed, preset=preset, origin=origin, grid=grid
    )
    if measured:
        people = [case.subject for case in cases]
        results["endpoints"] = endpoint_rows(measured, people, target=TARGET, seed=seed)
    if model is not None:
        results["methods"] = methods_text(model.bundle.metadata, sha256=model.sha256, results=results).to_json()
    first = shown["source"]
    with atomic_directory(output, overwrite=overwrite, ours="results.json") as aside:
        (aside / "results.json").write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
        write_evaluation_report(
            aside / "report.html",
            results=results,
            stacks=[ShownStack(name, np.rint(shown[name].hu).astype(np.int16)) for name in (*STAGES, TARGET)],
            spacing_mm=first.spacing_mm,
            slice_positions_mm=[float(first.affine[2, 3] + i * first.affine[2, 0]) for i in range(first.shape[0])],
            curves=curves(gathered, model),
            title=_title(cases[0]),
            affine=first.affine,
        )
    return results


def _about_model(cases: Sequence[Case], model: Model | None) -> list[str]:
    """What the reader should know of the model, most of all whether it was calibrated on what is judged."""
    if model is None:
        return []
    info = model.bundle.metadata["info"]
    seen = seen_in_calibration(info, [scan for case in cases for scan in (case.source, case.target)])
    said = [] if seen is None else [seen.said]
    for case in cases:
        mismatch = kernel_mismatch(model, case.source.kernel)
        if mismatch is not None and mismatch not in said:
            said.append(mismatch)
    return [*said, *(f"calibration: {text}" for text in info.get("warnings", ()))]


def _title(case: Case) -> str:
    source, target = (scan.kernel or "source" for scan in (case.source, case.target))
    return f"{source} standardized to {target}"


def _standardized(case: Case, pair: Pair, model: Model | None, mode: Mode, seed: int, allow: frozenset[str]) -> Volume:
    if case.standardized is not None:
        volume = case.standardized.read(allow=allow)
        same_place(volume, pair.source, "standardized")
        return volume
    if model is None:
        raise ConcordctError("expected a standardized scan or a model to make it with, found neither")
    work = standardizer_for(case.source, model, mode=mode)
    return standardized(case.source, pair.source, work, seed=seed, allow=allow)


def _results(
    found: Gathered,
    cases: Sequence[Case],
    warnings: list[str],
    *,
    model: Model | None,
    mode: Mode,
    seed: int,
    preset: str | None,
    origin: str,
    grid: str,
) -> dict[str, Any]:
    region = "inside the given masks" if all(case.mask for case in cases) else "inside the body"
    scans = [scan for case in cases for scan in (case.source, case.target)]
    seen = None if model is None else seen_in_calibration(model.bundle.metadata["info"], scans)
    results: dict[str, Any] = {
        "schema": 1,
        "inputs": {
            "cases": len(cases),
            "subjects": len({case.subject for case in cases}),
            "source_kernels": sorted({case.source.kernel for case in cases if case.source.kernel}),
            "target_kernels": sorted({case.target.kernel for case in cases if case.target.kernel}),
            "slices": sum(case.source.shape[0] for case in cases),
        },
        "model": None if model is None else {"method": model.bundle.method, "sha256": model.sha256, "mode": mode},
        "in_sample": None if seen is None else seen.to_json(),
        "provenance": {**provenance(), "seed": seed, "simulated_or_real": origin},
        "image_quality": quality_results(found, region),
        "cases": case_results(found, [case.subject for case in cases]),
        "bias_by_hu_range": bias_results(found),
    }
    results["signal"] = signal_results(found)
    if found.features:
        masked = "the mask's labels" if any(case.mask for case in cases) else ""
        rois = " and ".join(filter(None, (masked, grid and f"{grid} pixels")))
        count = sum(len(one) for one in found.features["source"])
        what = "2D, bin width 25 HU, original image" if preset is None else Path(preset).name
        results["agreement"] = features_results(found, settings=f"{count} ROIs: {rois}; {what}")
    if found.noise:
        results["nps"], notes = nps_results(found)
        warnings = [*warnings, *notes]
    checks = [recorded_check(case.standardized) for case in cases if case.standardized is not None]
    checked = [check for check in checks if check is not None]
    if checked:
        results["self_check"] = {
            "scans": len(checked),
            "failed": sum(check["failed"] for check in checked),
            "found": [line for check in checked for line in check["lines"]],
        }
        warnings = [*warnings, *("self-check failed: " + "; ".join(c["lines"]) for c in checked if c["failed"])]
    results["warnings"] = [*warnings, *sorted({note for case in cases for note in case.source.notes})]
    return results
