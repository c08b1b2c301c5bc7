"""Two features files against each other: concordance, relative error, ICC, Bland-Altman; JSON, CSV and HTML."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.features import agreement
from concordct.features.table import FeatureRows, read_rows
from concordct.report.charts import Curve
from concordct.report.evaluation import write_evaluation_report
from concordct.volumes.place import atomic_directory

Array = NDArray[np.float64]

#: Thresholds of relative error that the curve of DiffusionCT's Fig. 4 is drawn at.
THRESHOLDS = np.linspace(0.0, 1.0, 101)


def agree(
    source: Path,
    target: Path,
    output: Path,
    *,
    before: Path | None = None,
    repeats: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Compare features of the same ROIs in two images.

    Parameters
    ----------
    source, target : features files; rows are matched by image and ROI, columns by name.
    output : folder for `results.json`, `features.csv` and `report.html`.
    before : a third features file, what the source was before standardization.
    repeats, seed : of the bootstrap over subjects.
    overwrite : replace an existing folder.

    Returns
    -------
    What `results.json` holds.

    Raises
    ------
    ConcordctError : unreadable files, no row or no feature in common, an output that exists.
    """
    paths = {"standardized": source, "target": target, **({"source": before} if before is not None else {})}
    tables = {stage: read_rows(path) for stage, path in paths.items()}
    matched, subjects, names, classes, left_out = _match(tables, paths)
    stages: list[str] = [stage for stage in ("source", "standardized") if stage in matched]
    results: dict[str, Any] = {
        "inputs": {stage: path.name for stage, path in paths.items()},
        "warnings": [
            f"{stage}: {found['rows']} rows and {found['features']} features without a counterpart are left out"
            for stage, found in left_out.items()
            if found["rows"] or found["features"]
        ],
        "left_out": left_out,
        "agreement": _results(matched, stages, names, classes, subjects, repeats=repeats, seed=seed),
    }
    with atomic_directory(output, overwrite=overwrite) as aside:
        text = json.dumps(results, indent=1, allow_nan=False)
        (aside / "results.json").write_text(text + "\n", encoding="utf-8")
        _write_features(aside / "features.csv", results["agreement"]["features"])
        write_evaluation_report(
            aside / "report.html",
            results=results,
            stacks=(),
            spacing_mm=(1.0, 1.0, 1.0),
            slice_positions_mm=(),
            curves=_curves(matched, stages, classes),
            title=f"Agreement of {source.name} with {target.name}",
        )
    return results


def _match(
    tables: dict[str, FeatureRows], paths: dict[str, Path]
) -> tuple[dict[str, Array], list[str], list[str], list[str], dict[str, dict[str, int]]]:
    """Rows and columns that all files have, in the order of the target's."""
    target = tables["target"]
    places = {}
    for stage, table in tables.items():
        places[stage] = {key: row for row, key in enumerate(table.keys)}
        if len(places[stage]) < len(table.keys):
            raise ConcordctError(f"an image and ROI stands twice in {paths[stage]}")
    keys = [key for key in target.keys if all(key in places[stage] for stage in tables)]
    names = [name for name in target.names if all(name in table.names for table in tables.values())]
    if not keys or not names:
        raise ConcordctError(
            f"{len(keys)} ROIs and {len(names)} features stand in all of {', '.join(map(str, paths.values()))}; "
            "expected some of both"
        )
    matched = {}
    for stage, table in tables.items():
        column = {name: place for place, name in enumerate(table.names)}
        matched[stage] = table.values[np.ix_([places[stage][key] for key in keys], [column[name] for name in names])]
    subjects = [target.subjects[places["target"][key]] for key in keys]
    of = dict(zip(target.names, target.classes, strict=True))
    left_out = {
        stage: {"rows": len(table.keys) - len(keys), "features": len(table.names) - len(names)}
        for stage, table in tables.items()
    }
    return matched, subjects, names, [of[name] for name in names], left_out


def _results(
    matched: dict[str, Array],
    stages: list[str],
    names: list[str],
    classes: list[str],
    subjects: list[str],
    *,
    repeats: int,
    seed: int,
) -> dict[str, Any]:
    target = matched["target"]
    of = np.array(classes)
    rows: dict[str, dict[str, Any]] = {
        name: {"class": name, "features": int((of == name).sum())} for name in dict.fromkeys(classes)
    }
    features: list[dict[str, Any]] = [{"name": n, "class": c} for n, c in zip(names, classes, strict=True)]
    for stage in stages:
        values = matched[stage]
        ccc = agreement.ccc_per_feature(values, target)
        errors = agreement.relative_error(values, target)
        limits = agreement.bland_altman(values, target)
        columns = {
            "ccc": ccc,
            "re": agreement.median_error(errors),
            "icc_2_1": agreement.icc_2_1(values, target),
            "icc_3_1": agreement.icc_3_1(values, target),
            "bias": limits.bias,
            "limits_low": limits.low,
            "limits_high": limits.high,
        }
        states = agreement.status(values, target)
        for place, feature in enumerate(features):
            feature |= {f"{stage}_{key}": number(found[place]) for key, found in columns.items()}
            feature[f"{stage}_status"] = states[place]
        within = agreement.ccc_per_class(values, target, classes)
        intervals = agreement.bootstrap_by_subject(
            values, target, classes, subjects, generator=np.random.default_rng(seed), repeats=repeats
        )
        for name, found in agreement.mean_by_class(ccc, classes).items():
            share = agreement.reproducible(errors[:, of == name], threshold=agreement.REPRODUCIBLE)
            papers = within[name][np.isfinite(within[name])]
            rows[name] |= {
                f"{stage}_ccc_mean": number(found.mean),
                f"{stage}_ccc_sd": number(found.sd),
                f"{stage}_ccc_undefined": found.undefined,
                f"{stage}_ccc_interval": [number(intervals[name].low), number(intervals[name].high)],
                f"{stage}_re_share": number(share.of_features),
                f"{stage}_re_share_of_values": number(share.of_values),
                f"{stage}_re_undefined_values": share.undefined_values,
                f"{stage}_papers_ccc_mean": number(papers.mean() if papers.size else np.nan),
                f"{stage}_papers_ccc_sd": number(papers.std(ddof=1) if papers.size > 1 else np.nan),
            }
    return {
        "rois": len(target),
        "subjects": len(set(subjects)),
        "per_class": list(rows.values()),
        "features": features,
        "undefined": [
            f"{one['name']}: {one['standardized_status']}" for one in features if one["standardized_status"] != "ok"
        ],
    }


def _curves(matched: dict[str, Array], stages: list[str], classes: list[str]) -> list[Curve]:
    """DiffusionCT's Fig. 4, one chart for each class."""
    of = np.array(classes)
    errors = {stage: agreement.relative_error(matched[stage], matched["target"]) for stage in stages}
    return [
        Curve(
            title=f"Reproducible features: {name}",
            x_label="threshold of the relative error",
            y_label="share of features (median over ROIs)",
            series=[
                (stage, THRESHOLDS, agreement.reproducibility_curve(errors[stage][:, of == name], THRESHOLDS))
                for stage in stages
            ],
            markers=((agreement.REPRODUCIBLE, f"{agreement.REPRODUCIBLE:g}"),),
            y_range=(0.0, 1.0),
        )
        for name in dict.fromkeys(classes)
    ]


def _write_features(path: Path, features: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(features[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if value is None else value for key, value in one.items()} for one in features)


def number(value: float) -> float | None:
    """A float for JSON: six significant digits, None for what is not finite."""
    return float(f"{value:.6g}") if np.isfinite(value) else None
