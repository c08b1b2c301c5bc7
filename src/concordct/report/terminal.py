"""Results as lines of a table on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from concordct.judging.stages import STAGES


def summary_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, before, after) for a table on a terminal."""
    before, after = (results["image_quality"][stage] for stage in STAGES)
    rows = []
    for key, label, digits in (
        ("rmse_hu", "RMSE, HU", 2),
        ("mae_hu", "MAE, HU", 2),
        ("psnr_db", "PSNR, dB", 2),
        ("ssim", "SSIM", 4),
    ):
        rows.append((label, _shown(before[key], digits), _shown(after[key], digits)))
    for row in results.get("agreement", {}).get("per_class", []):
        for key, label in (("ccc_mean", "CCC"), ("re_share", "share with RE < 0.15")):
            shown = [_shown(row[f"{stage}_{key}"], 3) for stage in STAGES]
            rows.append((f"{row['class']}: {label}", shown[0], shown[1]))
    return rows


def _shown(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"
