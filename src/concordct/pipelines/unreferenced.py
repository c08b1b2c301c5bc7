"""What changed? Endpoints of a scan and of its conversion side by side, where there is no target."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from concordct.errors import ConcordctError
from concordct.judging.case import same_place
from concordct.judging.endpoints import COLUMNS, class_warnings, endpoints_of, masks_for
from concordct.judging.features import number
from concordct.judging.provenance import provenance
from concordct.judging.stages import standardized as convert
from concordct.judging.stages import standardizer_for
from concordct.methods.models import Model
from concordct.methods.standardizer import Mode
from concordct.volumes.place import atomic_directory
from concordct.volumes.scans import one_scan


def evaluate_without_target(
    source: Path,
    standardized: Path | None,
    output: Path,
    *,
    model: Model | None = None,
    mode: Mode = "sample",
    seed: int = 0,
    allow: frozenset[str] = frozenset(),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure source and conversion under one mask and write `results.json` and `endpoints.csv`.

    Parameters
    ----------
    standardized : the conversion; None makes it with the model, in the mode and with the seed.

    Returns
    -------
    What `results.json` holds; "warnings" names every clinical class that the conversion changes.

    Raises
    ------
    ConcordctError : neither a conversion nor a model, scans in different places, an output that exists.
    """
    scan = one_scan(source)
    before = scan.read(allow=allow)
    if standardized is not None:
        after = one_scan(standardized).read(allow=allow)
        same_place(after, before, "standardized")
    elif model is not None:
        after = convert(scan, before, standardizer_for(scan, model, mode=mode), seed=seed, allow=allow)
    else:
        raise ConcordctError("expected a standardized scan or a model to make it with, found neither")
    masks = masks_for(before)
    old, new = endpoints_of(before, masks), endpoints_of(after, masks)
    rows = []
    for column in COLUMNS:
        first, second = old[column.name], new[column.name]
        if first is None and second is None:
            continue
        change = None if first is None or second is None else number(second - first)
        rows.append(
            {
                "name": column.name,
                "title": column.title,
                "unit": column.unit,
                "headline": column.headline,
                "source": first,
                "standardized": second,
                "change": change,
            }
        )
    warnings = [f"clinical class changed: {line}" for line in class_warnings(old, new, name=source.name)]
    if masks.enhanced:
        warnings.append("contrast medium in the heart: calcium is not defined, density endpoints mean little")
    if masks.of("lungs") is None:
        warnings.append("no lung found: noise and sharpness were measured alone")
    results: dict[str, Any] = {
        "schema": 1,
        "reference": "none",
        "model": None if model is None else {"method": model.bundle.method, "sha256": model.sha256, "mode": mode},
        "provenance": {**provenance(), "seed": seed},
        "endpoints": rows,
        "warnings": warnings,
    }
    with atomic_directory(output, overwrite=overwrite) as aside:
        (aside / "results.json").write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        with (aside / "endpoints.csv").open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, fieldnames=["name", "unit", "source", "standardized", "change"],
                                   extrasaction="ignore", lineterminator="\n")  # fmt: skip
            table.writeheader()
            table.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return results
