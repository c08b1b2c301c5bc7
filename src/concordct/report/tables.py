"""From evaluate's results.json to the rows that a report prints. Every section may be missing; then it is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from concordct.agreement.concordance import REPRODUCIBLE
from concordct.judging.signals import NPS_TOLERANCE

#: Features listed by name, the least concordant first; all of them are in results.json.
WORST_FEATURES = 15

#: Metric -> (label, decimals, smaller is better; None for no verdict).
METRICS: dict[str, tuple[str, int, bool | None]] = {
    "rmse_hu": ("RMSE, HU", 2, True),
    "mae_hu": ("MAE, HU", 2, True),
    "bias_hu": ("Bias (mean error), HU", 2, None),
    "psnr_db": ("PSNR, dB", 2, False),
    "ssim": ("SSIM", 4, False),
}


def is_number(value: Any) -> bool:
    """True for a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 2) -> str:
    """A number as the page prints it: fixed decimals, a true minus sign, a dash for what is missing."""
    if not is_number(value):
        return "–"
    text = f"{value:.{digits}f}"
    return (text[1:] if text.startswith("-") and float(text) == 0 else text).replace("-", "−")


def percent(value: Any, digits: int = 0) -> str:
    """A share as per cent."""
    return f"{number(100 * value, digits)} %" if is_number(value) else "–"


def _verdict(before: Any, after: Any, *, smaller_is_better: bool) -> str:
    if not (is_number(before) and is_number(after)) or before == after:
        return ""
    return "better" if (after < before) == smaller_is_better else "worse"


def quality_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Image quality: one row per metric with its value before and after."""
    quality = results.get("image_quality") or {}
    before, after = quality.get("source") or {}, quality.get("standardized") or {}
    rows = []
    for key in [*METRICS, *(k for k in {**before, **after} if k not in METRICS)]:
        if key not in before and key not in after:
            continue
        label, digits, smaller = METRICS.get(key, (key, 4, None))
        verdict = "" if smaller is None else _verdict(before.get(key), after.get(key), smaller_is_better=smaller)
        rows.append({
            "label": label,
            "before": number(before.get(key), digits),
            "after": number(after.get(key), digits),
            "verdict": verdict,
        })  # fmt: skip
    return rows


def agreement_rows(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Agreement by feature class, in the order of results.json."""
    return [row for row in (results.get("agreement") or {}).get("per_class") or [] if isinstance(row, Mapping)]


def worst_features(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The features that agree least after standardization."""
    features = [
        f for f in (results.get("agreement") or {}).get("features") or [] if is_number(f.get("standardized_ccc"))
    ]
    return sorted(features, key=lambda f: (f["standardized_ccc"], str(f.get("name"))))[:WORST_FEATURES]


def nps_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Noise power by band, with `off` set where the ratio leaves 1 by more than `NPS_TOLERANCE`."""
    rows = []
    for band in (results.get("nps") or {}).get("bands") or []:
        ratio, source, target = band.get("ratio"), band.get("source"), band.get("target")
        before = source / target if is_number(source) and is_number(target) and target > 0 else None
        rows.append({**band, "before": before, "off": is_number(ratio) and abs(ratio - 1) > NPS_TOLERANCE})
    return rows


def headline(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """What is asked first: is it closer to the target, do the features agree, is the noise right.

    Feature classes are never pooled: the class that agrees least after standardization speaks for all of them.
    """
    cards = []
    quality = results.get("image_quality") or {}
    before = (quality.get("source") or {}).get("rmse_hu")
    after = (quality.get("standardized") or {}).get("rmse_hu")
    if is_number(before) or is_number(after):
        cards.append({
            "label": "RMSE to target", "before": number(before, 1), "after": number(after, 1), "unit": "HU",
            "note": str(quality.get("region") or ""), "verdict": _verdict(before, after, smaller_is_better=True),
        })  # fmt: skip

    classes = agreement_rows(results)
    for key, label, as_text, aim in (
        ("ccc_mean", "CCC", number, "1 is perfect concordance"),
        ("re_share", f"Features with RE < {REPRODUCIBLE}", percent, "share of the class"),
    ):
        ranked = [row for row in classes if is_number(row.get(f"standardized_{key}"))]
        if not ranked:
            continue
        weakest = min(ranked, key=lambda row: (row[f"standardized_{key}"], str(row.get("class"))))
        name = str(weakest.get("class"))
        note = f"{name}; {aim}" if len(ranked) == 1 else f"{name}, the weakest of {len(ranked)} classes"
        before, after = weakest.get(f"source_{key}"), weakest[f"standardized_{key}"]
        cards.append({
            "label": label, "before": as_text(before), "after": as_text(after), "unit": "", "note": note,
            "verdict": _verdict(before, after, smaller_is_better=False),
        })  # fmt: skip

    bands = [row for row in nps_rows(results) if is_number(row.get("ratio"))]
    if bands:
        worst = max(bands, key=lambda row: abs(row["ratio"] - 1))
        off = sum(row["off"] for row in bands)
        unit = (results.get("nps") or {}).get("unit") or "cycles/pixel"
        was = worst["before"]
        cards.append({
            "label": "Noise power, worst band", "before": number(was, 2), "after": number(worst["ratio"], 2),
            "unit": "× target",
            "note": f"{number(worst.get('low'), 2)}–{number(worst.get('high'), 2)} {unit}; "
                    f"{len(bands) - off} of {len(bands)} bands within {percent(NPS_TOLERANCE)}",
            "verdict": _verdict(abs(was - 1) if is_number(was) else None, abs(worst["ratio"] - 1),
                                smaller_is_better=True),
        })  # fmt: skip
    return cards


def flatten(section: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested section as (dotted key, text) rows; lists of plain values on one line."""
    if isinstance(section, Mapping):
        return [
            row for key, value in section.items() for row in flatten(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(section, Sequence) and not isinstance(section, str):
        if any(isinstance(item, Mapping) for item in section):
            return [row for i, item in enumerate(section) for row in flatten(item, f"{prefix}[{i}]")]
        return [(prefix, ", ".join(str(item) for item in section))] if section else []
    if section is None:
        return []
    if isinstance(section, float):
        return [(prefix, f"{section:.6g}".replace("-", "−") if math.isfinite(section) else "–")]
    return [(prefix, {True: "yes", False: "no"}[section] if isinstance(section, bool) else str(section))]
