"""Endpoints of every stage of a pair under one mask, and their agreement with the target's.

Lungs and the heart's region are found in the source, which is what a new scan has, and hold for every stage. What is no
chest has no lungs: noise and sharpness are measured alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from concordct.agreement.bland_altman import agreement_of
from concordct.agreement.classes import class_changes, class_of
from concordct.endpoints.catalogue import ENDPOINTS
from concordct.endpoints.endpoint import Column
from concordct.endpoints.masks import EndpointMasks, endpoint_masks, measured
from concordct.errors import ConcordctError
from concordct.judging.features import number
from concordct.volumes.volume import Volume

#: Column -> value; None where it is not defined.
Measured = Mapping[str, float | None]
#: Stage -> column -> value.
Values = Mapping[str, Measured]

#: Every column, in the order of the catalogue.
COLUMNS: tuple[Column, ...] = tuple(
    column for endpoint in ENDPOINTS.values() if endpoint.needs != "region" for column in endpoint.columns
)


def masks_for(source: Volume) -> EndpointMasks:
    """Masks of a pair from its source; none where no lung is found."""
    try:
        return endpoint_masks(source)
    except ConcordctError:
        return EndpointMasks({}, None)


def endpoints_of(image: Volume, masks: EndpointMasks) -> dict[str, float | None]:
    """Every column of one image."""
    found: dict[str, float | None] = {}
    for endpoint in ENDPOINTS.values():
        if endpoint.needs != "region":
            found |= {name: number(value) for name, value in measured(endpoint, image, masks).items()}
    return found


def endpoint_rows(
    cases: Sequence[Values], subjects: Sequence[str], *, target: str, seed: int = 0
) -> list[dict[str, Any]]:
    """Agreement of every stage with the target, a row for each endpoint that some case has.

    Parameters
    ----------
    cases : what `endpoints_of` found, by stage.
    subjects : [case], over whom intervals are bootstrapped.
    target : name of the target's stage.

    Returns
    -------
    Rows {"name", "title", "unit", "headline", "stages": {stage: {"bias", "bias_interval", "low", "high", "ccc",
    "ccc_interval", "icc", "icc_interval", "count", "changed"}}}; "changed" is the share of cases of another clinical
    class, None for endpoints without classes.
    """
    rows = []
    stages = [stage for stage in (cases[0] if cases else {}) if stage != target]
    for column in COLUMNS:
        of = {stage: _column(cases, stage, column.name) for stage in (*stages, target)}
        if not np.isfinite(of[target]).any():
            continue
        found = {}
        for stage in stages:
            if not (np.isfinite(of[stage]) & np.isfinite(of[target])).any():
                continue
            one = asdict(agreement_of(of[stage], of[target], subjects, generator=np.random.default_rng(seed)))
            one.pop("patients")
            told: dict[str, Any] = {
                name: [number(v) for v in value] if isinstance(value, tuple) else number(value)
                for name, value in one.items()
            }
            cuts = column.cuts
            told["changed"] = number(class_changes(of[stage], of[target], cuts).changed) if cuts else None
            found[stage] = told
        rows.append(
            {
                "name": column.name,
                "title": column.title,
                "unit": column.unit,
                "headline": column.headline,
                "target_mean": number(float(np.nanmean(of[target]))),
                "stages": found,
            }
        )
    return rows


def class_warnings(before: Measured, after: Measured, *, name: str = "", target: Measured | None = None) -> list[str]:
    """A line for every clinical class that a conversion changes, with what it should be where that is known."""
    lines = []
    for column, old, new in changed_classes(before, after):
        wanted = None if target is None else target.get(column.name)
        beside = "" if wanted is None else f", target {wanted:.4g}"
        lines.append(f"{name and f'{name}: '}{column.title} from {old:.4g} to {new:.4g}{beside}")
    return lines


def changed_classes(before: Measured, after: Measured) -> list[tuple[Column, float, float]]:
    """The columns whose clinical class differs, with their values before and after."""
    found = []
    for column in COLUMNS:
        old, new = before.get(column.name), after.get(column.name)
        if not column.cuts or old is None or new is None:
            continue
        first, second = class_of([old, new], column.cuts)
        if first != second:
            found.append((column, old, new))
    return found


def _column(cases: Sequence[Values], stage: str, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([np.nan if (value := case[stage].get(name)) is None else value for case in cases])
