"""Methods side by side: agreement of features by class and region, each method beside the input.

Two numbers stand for agreement: Lin's concordance of each feature across ROIs (the headline) and the papers' across the
features of a class. Every method meets the same draws of subjects, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.agreement import concordance
from concordct.agreement.bootstrap import draw_subjects, percentiles
from concordct.judging.features import number

Array = NDArray[np.float64]

#: Bootstrap samples of subjects.
REPEATS = 200


def table_of_methods(
    values: Mapping[str, Array],
    target: Array,
    classes: Sequence[str],
    subjects: Sequence[str],
    *,
    baseline: str,
    not_competing: Sequence[str],
    seed: int,
) -> list[dict[str, Any]]:
    """One row a method: for each class the concordance with its interval, and whether it is the best.

    Parameters
    ----------
    values : method -> [roi, feature]. target : [roi, feature]. classes : [feature]. subjects : [roi].
    baseline : the row that others are compared with.
    not_competing : rows that are never marked as the best.
    seed : of the bootstrap.
    """
    repeats = REPEATS if len(target) >= concordance.LEAST_ROIS else 0
    drawn = draw_subjects(subjects, repeats=repeats, generator=np.random.default_rng(seed))
    spread = {name: concordance.drawn_means_by_class(one, target, classes, drawn) for name, one in values.items()}
    rows = [_row(name, one, target, classes, spread, baseline) for name, one in values.items()]
    for name in dict.fromkeys(classes):
        running = [row for row in rows if row["name"] not in not_competing and row["classes"][name]["ccc"] is not None]
        if running:
            max(running, key=lambda row: row["classes"][name]["ccc"])["classes"][name]["best"] = True
    return rows


def _row(
    method: str,
    values: Array,
    target: Array,
    classes: Sequence[str],
    spread: Mapping[str, Mapping[str, Array]],
    baseline: str,
) -> dict[str, Any]:
    per_feature = concordance.mean_by_class(concordance.ccc_per_feature(values, target), classes)
    within = concordance.ccc_per_class(values, target, classes)
    errors = concordance.relative_error(values, target)
    of = np.array(classes)
    cells = {}
    for name, mean in per_feature.items():
        papers = within[name][np.isfinite(within[name])]
        share = concordance.reproducible(errors[:, of == name], threshold=concordance.REPRODUCIBLE)
        cells[name] = {
            "ccc": number(mean.mean),
            "ccc_sd": number(mean.sd),
            "undefined": mean.undefined,
            "interval": _interval(spread[method][name]),
            "difference_to_input": _interval(spread[method][name] - spread[baseline][name]),
            "papers_ccc": number(papers.mean() if papers.size else np.nan),
            "papers_ccc_sd": number(papers.std(ddof=1) if papers.size > 1 else np.nan),
            "re_share": number(share.of_features),
            "best": False,
        }
    return {"name": method, "classes": cells}


def _interval(samples: Array) -> list[float | None]:
    return [number(end) for end in percentiles(samples)]


def curves_of_methods(values: Mapping[str, Array], target: Array, thresholds: Array) -> dict[str, list[float | None]]:
    """DiffusionCT's Fig. 4: share of features under each threshold of relative error, by method."""
    errors = {name: concordance.relative_error(one, target) for name, one in values.items()}
    return {
        name: [number(share) for share in concordance.reproducibility_curve(error, thresholds)]
        for name, error in errors.items()
    }
