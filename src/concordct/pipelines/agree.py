"""Two features files against each other: concordance, relative error, ICC, Bland-Altman; JSON, CSV and HTML."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.judging.features import add_repeatability, agreement_results
from concordct.radiomics.table import FeatureRows, read_rows
from concordct.report.curves import reproducibility_curves
from concordct.report.evaluation import write_evaluation_report
from concordct.volumes.csv_text import safe_cell
from concordct.volumes.place import atomic_directory

Array = NDArray[np.float64]
#: What says that two rows are of one ROI.
Join = Literal["image", "roi"]


def agree(
    source: Path,
    target: Path,
    output: Path,
    *,
    before: Path | None = None,
    retest: Sequence[Path] = (),
    by: Join | None = None,
    repeats: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Compare features of the same ROIs in two images.

    Parameters
    ----------
    source, target : features files; columns are matched by name.
    by : "image" matches rows by image and ROI, "roi" by ROI alone, as two reconstructions of one scan ask for. None
        takes "roi" where every file holds one image, else "image".
    output : folder for `results.json`, `features.csv` and `report.html`.
    before : a third features file, what the source was before standardization.
    retest : features of the target scanned again, one file a repeat: repeatability coefficient and within-subject SD
        of every feature, and how the source compares with a repeat.
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
    again = {f"repeat {number}": path for number, path in enumerate(retest, start=1)}
    paths |= again
    tables = {stage: read_rows(path) for stage, path in paths.items()}
    if by is None:
        by = "roi" if all(len({image for image, _ in table.keys}) == 1 for table in tables.values()) else "image"
    matched, subjects, names, classes, left_out = _match(tables, paths, by)
    agreement = agreement_results(
        {stage: values for stage, values in matched.items() if stage not in again},
        names=names,
        classes=classes,
        subjects=subjects,
        repeats=repeats,
        seed=seed,
    )
    if again:
        add_repeatability(agreement, matched, [matched[stage] for stage in again])
    results: dict[str, Any] = {
        "inputs": {stage: path.name for stage, path in paths.items()},
        "matched_by": "ROI" if by == "roi" else "image and ROI",
        "rois": len(subjects),
        "warnings": [
            f"{stage}: {found['rows']} rows and {found['features']} features without a counterpart are left out"
            for stage, found in left_out.items()
            if found["rows"] or found["features"]
        ],
        "left_out": left_out,
        "agreement": agreement,
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
            curves=reproducibility_curves({stage: matched[stage] for stage in matched if stage not in again}, classes),
            title=f"Agreement of {source.name} with {target.name}",
        )
    return results


def _match(
    tables: dict[str, FeatureRows], paths: dict[str, Path], by: Join
) -> tuple[dict[str, Array], list[str], list[str], list[str], dict[str, dict[str, int]]]:
    """Rows and columns that all files have, in the order of the target's."""
    target = tables["target"]
    rows = {stage: [key[1:] if by == "roi" else key for key in table.keys] for stage, table in tables.items()}
    places = {}
    for stage, found in rows.items():
        places[stage] = {key: row for row, key in enumerate(found)}
        if len(places[stage]) < len(found):
            twice = next(key for key in found if found.count(key) > 1)
            what = f"ROI {twice[-1]}" if by == "roi" else f"ROI {twice[-1]} of image {twice[0]}"
            raise ConcordctError(f"{paths[stage]}: expected every row once, found {what} {found.count(twice)} times")
    keys = [key for key in rows["target"] if all(key in places[stage] for stage in tables)]
    names = [name for name in target.names if all(name in table.names for table in tables.values())]
    if not keys and by == "image":
        shown = "; ".join(f"{paths[stage].name}: {_images(table)}" for stage, table in tables.items())
        raise ConcordctError(
            f"expected ROIs of images that all files name alike, found none ({shown}); match by ROI alone if the files "
            "hold reconstructions of the same scans"
        )
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


def _images(table: FeatureRows) -> str:
    names = list(dict.fromkeys(image for image, _ in table.keys))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _write_features(path: Path, features: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(features[0]), lineterminator="\n")
        writer.writeheader()
        for one in features:
            cells = {key: safe_cell(value) if isinstance(value, str) else value for key, value in one.items()}
            writer.writerow({key: "" if value is None else value for key, value in cells.items()})
