"""Agreement of features with a target as plain data: what `evaluate` and `agree` both write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.agreement import concordance as agreement
from concordct.agreement.repeatability import repeatability, within_repeat

Array = NDArray[np.float64]

#: Bootstrap samples of subjects where a caller does not say.
REPEATS = 1000


def agreement_results(
    matched: Mapping[str, Array],
    *,
    names: Sequence[str],
    classes: Sequence[str],
    subjects: Sequence[str],
    repeats: int = REPEATS,
    seed: int = 0,
) -> dict[str, Any]:
    """Agreement by class and by feature.

    Parameters
    ----------
    matched : [roi, feature] of the same ROIs by stage: "target", "standardized" and, if there is one, "source".
    names, classes : [feature].
    subjects : [roi], over whom intervals are bootstrapped.
    repeats, seed : of the bootstrap.

    Returns
    -------
    {"rois", "subjects", "per_class", "features", "undefined"}, ready for JSON.
    """
    stages = [stage for stage in ("source", "standardized") if stage in matched]
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


def add_repeatability(results: dict[str, Any], matched: Mapping[str, Array], again: Sequence[Array]) -> None:
    """What a repeat of the target leaves, beside what the stages leave, into what `agreement_results` returned.

    Each feature gets `repeat_within_sd` with its interval, `repeat_coefficient`, `repeat_relative` and for each stage
    `<stage>_within_repeat` (share of ROIs that are as close to the target as 95 of 100 repeats) and
    `<stage>_to_repeat` (within-subject SD of stage and target over that of the repeats; at most 1 is as good as a
    repeat). Each class gets the medians of its features, and the share of them whose ratio is at most 1.

    Parameters
    ----------
    matched : as for `agreement_results`.
    again : the target scanned again, [roi, feature] of the same ROIs each.

    Raises
    ------
    ConcordctError : no repeat, or shapes that do not fit.
    """
    target = matched["target"]
    scans = [target, *again]
    whose = [str(roi) for _ in scans for roi in range(len(target))]
    found = repeatability(np.concatenate(scans), whose)
    columns = {
        "repeat_within_sd": found.within_sd,
        "repeat_within_low": found.within_low,
        "repeat_within_high": found.within_high,
        "repeat_coefficient": found.coefficient,
        "repeat_relative": found.relative,
    }
    for stage in ("source", "standardized"):
        if stage not in matched:
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            within = np.sqrt(np.nanmean((matched[stage] - target) ** 2, axis=0) / 2.0)
            columns[f"{stage}_to_repeat"] = within / found.within_sd
        columns[f"{stage}_within_repeat"] = within_repeat(matched[stage], target, found)
    for place, feature in enumerate(results["features"]):
        feature |= {name: number(values[place]) for name, values in columns.items()}
    of = np.array([feature["class"] for feature in results["features"]])
    shown = [name for name in columns if name == "repeat_relative" or name.endswith(("_to_repeat", "_within_repeat"))]
    for row in results["per_class"]:
        inside = of == row["class"]
        for name in shown:
            known = columns[name][inside]
            known = known[np.isfinite(known)]
            row[f"{name}_median"] = number(float(np.median(known)) if known.size else np.nan)
            if name.endswith("_to_repeat"):
                row[f"{name}_share"] = number(float((known <= 1.0).mean()) if known.size else np.nan)


def number(value: float) -> float | None:
    """A float for JSON: six significant digits, None for what is not finite."""
    return float(f"{value:.6g}") if np.isfinite(value) else None
