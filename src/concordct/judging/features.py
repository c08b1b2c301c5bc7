"""Agreement of features with a target as plain data: what `evaluate` and `agree` both write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.agreement import concordance as agreement

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


def number(value: float) -> float | None:
    """A float for JSON: six significant digits, None for what is not finite."""
    return float(f"{value:.6g}") if np.isfinite(value) else None
