"""Two features files against each other: concordance, relative error, ICC, Bland-Altman; JSON, CSV and HTML."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.pipelines.agreement import agreement_results, reproducibility_curves
from concordct.radiomics.table import FeatureRows, read_rows
from concordct.report.evaluation import write_evaluation_report
from concordct.volumes.place import atomic_directory

Array = NDArray[np.float64]


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
    results: dict[str, Any] = {
        "inputs": {stage: path.name for stage, path in paths.items()},
        "warnings": [
            f"{stage}: {found['rows']} rows and {found['features']} features without a counterpart are left out"
            for stage, found in left_out.items()
            if found["rows"] or found["features"]
        ],
        "left_out": left_out,
        "agreement": agreement_results(
            matched, names=names, classes=classes, subjects=subjects, repeats=repeats, seed=seed
        ),
    }
    with atomic_directory(output, overwrite=overwrite, ours="results.json") as aside:
        text = json.dumps(results, indent=1, allow_nan=False)
        (aside / "results.json").write_text(text + "\n", encoding="utf-8")
        _write_features(aside / "features.csv", results["agreement"]["features"])
        write_evaluation_report(
            aside / "report.html",
            results=results,
            stacks=(),
            spacing_mm=(1.0, 1.0, 1.0),
            slice_positions_mm=(),
            curves=reproducibility_curves(matched, classes),
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


def _write_features(path: Path, features: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(features[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if value is None else value for key, value in one.items()} for one in features)
