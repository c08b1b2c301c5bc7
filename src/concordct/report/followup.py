"""The page of a predicted follow-up scan: initial, predicted and their difference, fibrosis now and then.

The same page as `evaluate`'s (`evaluation.py`): one HTML file that opens offline.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from concordct.report.evaluation import ShownStack, write_evaluation_report
from concordct.report.tables import number, percent
from concordct.volumes.volume import Volume


def write_followup_report(path: Path, summary: Mapping[str, Any], initial: Volume, predicted: Volume) -> int:
    """Write the report.

    Parameters
    ----------
    path : the HTML file.
    summary : what `predict` writes as summary.json.
    initial, predicted : on one grid, HU.

    Returns
    -------
    The bytes written.
    """
    fibrosis = summary["fibrosis"]
    now, then = fibrosis["initial"], fibrosis["predicted"]
    low, high = fibrosis["range_hu"]
    progression = summary["progression"]
    cards = [
        {
            "label": "Verdict",
            "before": "",
            "after": progression["verdict"].capitalize(),
            "unit": "",
            "verdict": "",
            "note": progression["said"].removeprefix(progression["verdict"]).strip(),
        },
        {
            "label": "Fibrosis, share of the lungs",
            "before": number(100 * now["share"], 1),
            "after": number(100 * then["share"], 1),
            "unit": "%",
            "verdict": "",
            "note": f"voxels from {number(low, 0)} to {number(high, 0)} HU within the initial scan's lungs",
        },
        {
            "label": "Mean lung density",
            "before": number(now["mean_hu"], 0),
            "after": number(then["mean_hu"], 0),
            "unit": "HU",
            "verdict": "",
            "note": "both in the initial scan's lungs: a prediction has no breath of its own",
        },
        {
            "label": "Aerated lung",
            "before": number(now["aerated_ml"], 0),
            "after": number(then["aerated_ml"], 0),
            "unit": "ml",
            "verdict": "",
            "note": _volume_note(low, summary["volume_change_of_training_subjects"], progression["verdict"]),
        },
    ]
    results = {
        "cards": cards,
        "warnings": summary["warnings"],
        "provenance": {**summary["provenance"], "simulated_or_real": "synthetic follow-up"},
        "inputs": {"weeks": summary["weeks"], "text": summary["text"], "grid, mm": summary["grid_mm"]},
        "lungs": {
            "volume, ml": fibrosis["lung_ml"],
            "fibrosis, initial, ml": now["ml"],
            "fibrosis, predicted, ml": then["ml"],
        },
        "model": summary["model"],
    }  # fmt: skip
    step, first = initial.affine[2, 0], initial.affine[2, 3]
    return write_evaluation_report(
        path,
        results=results,
        stacks=[
            ShownStack("source", np.rint(initial.hu).astype(np.int16), "Initial"),
            ShownStack("standardized", np.rint(predicted.hu).astype(np.int16), "Predicted"),
        ],
        spacing_mm=initial.spacing_mm,
        slice_positions_mm=[float(first + i * step) for i in range(initial.shape[0])],
        curves=[],
        title=f"Follow-up predicted for {summary['weeks']:g} weeks later",
        affine=initial.affine,
    )


def _volume_note(low: float, changes: Mapping[str, Any], label: str) -> str:
    """Aerated lung within one outline, and what the outline itself may do."""
    known = changes.get(label) or changes.get("all")
    said = f"below {number(low, 0)} HU within the initial scan's outline"
    if known is None:
        return said
    whom = f"{label} training subjects" if label in changes else "training subjects"
    spread = f" ± {percent(known['sd'], 1)}" if known["sd"] is not None else ""
    change = f"{percent(known['mean'], 1)}{spread}"
    return f"{said}; the lungs of {known['subjects']} {whom} changed by {change} from scan to scan, breath included"
