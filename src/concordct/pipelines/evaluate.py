"""Did it work? Source, standardized and target side by side: HU error, noise power, agreement of radiomic features.

Writes `results.json` and one offline HTML file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from concordct.errors import ConcordctError
from concordct.judging.case import Case
from concordct.judging.endpoints import endpoint_rows
from concordct.judging.provenance import provenance
from concordct.judging.seen import check_kernels, check_roles, seen_in_calibration
from concordct.judging.signals import (
    Gathered,
    bias_results,
    case_results,
    features_results,
    nps_results,
    quality_results,
    rings_of,
    signal_results,
)
from concordct.judging.stages import STAGES, TARGET
from concordct.methods.models import Model, kernel_mismatch
from concordct.methods.standardizer import Mode
from concordct.pipelines.engines import HERE, Engine, Share, results_of
from concordct.pipelines.evaluate_case import Judged, JudgeJob, Question, judge, kept, lost, shown_part
from concordct.pipelines.parts import joining, refuse_standing
from concordct.pipelines.records import recorded_check
from concordct.radiomics.definitions.pyradiomics import PyRadiomics
from concordct.radiomics.presets import settings_for
from concordct.report.curves import curves
from concordct.report.evaluation import ShownStack, write_evaluation_report
from concordct.report.methods_text import methods_text
from concordct.volumes.place import atomic_directory, writing

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
    engine: Engine = HERE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any] | None:
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
    engine : where the work runs; it changes no byte. A share writes the report when the cases of all others stand.

    Returns
    -------
    What `results.json` holds; None for a share that is not the last.

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
    parts = output.with_name(f".{output.name}.cases")
    refuse_standing(output, parts, overwrite=overwrite)
    question = Question(model, mode, seed, settings, endpoints, allow, rings_of(cases[0].source.spacing_mm))
    jobs = [JudgeJob(case, shown=index == 0) for index, case in enumerate(cases)]
    with writing(output):  # said before anything is measured
        parts.mkdir(parents=True, exist_ok=True)

    def report(judged: Judged, done: int, total: int) -> None:
        if judged.reason and not isinstance(engine, Share):
            raise ConcordctError(judged.reason)
        if progress is not None:
            progress(done, total)

    judged = results_of(
        partial(judge, question=question, parts=parts),
        jobs,
        lost,
        kept=partial(kept, question=question, parts=parts),
        reason=lambda one: one.reason,
        marks=parts,
        engine=engine,
        progress=report,
    )
    failed = [one.reason for one in judged if one.reason]
    if failed:
        raise ConcordctError(failed[0])
    if len(judged) < len(jobs):
        return None
    gathered = Gathered()
    for one in judged:
        assert one.gathered is not None
        gathered.add(one.gathered)
    warnings = [line for one in judged for line in one.warnings]
    measured = [one.endpoints for one in judged if one.endpoints is not None]
    edges = {one.edge for one in judged if one.edge is not None}
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
    first = cases[0].source
    with (
        joining(output, parts),
        np.load(shown_part(jobs[0], question, parts), allow_pickle=False) as shown,
        atomic_directory(output, overwrite=overwrite, ours="results.json") as aside,
    ):
        (aside / "results.json").write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
        write_evaluation_report(
            aside / "report.html",
            results=results,
            stacks=[ShownStack(name, shown[name]) for name in (*STAGES, TARGET)],
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
