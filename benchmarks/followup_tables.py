"""Rows of the tables of `benchmarks.followup`: figures over subjects, with paired differences and intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.followup_models import place_of_model
from benchmarks.followup_rows import drawn, is_drawn
from benchmarks.results import lines_in, spent_in
from concordct.pipelines.followup_data import Prepared
from concordct.progression.ciresdiff_known import dense_share
from concordct.progression.diagnosis import accuracy, auc

SEED = 7
#: Share of the steps at either end that a loss is averaged over.
END = 0.1
#: Row of the rule that knows what tells most: see `rule`.
RULE = "linear rule: FVC %, DLCO, dense lung"


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.{digits}f}"


def against(one: Sequence[float], other: Sequence[float], digits: int) -> str:
    """Mean of the paired difference with a bootstrap interval over subjects."""
    difference = np.array(one) - np.array(other)
    places = np.random.default_rng(SEED).integers(len(difference), size=(4000, len(difference)))
    low, high = np.percentile(difference[places].mean(axis=1), (2.5, 97.5))
    return f"{difference.mean():+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def quality_rows(every: Mapping[str, Sequence[Mapping[str, float]]], whole: str) -> list[list[str]]:
    """One row for each method: its estimate's figures, what it draws, and what the whole method is above it."""
    rows = []
    for name, found in every.items():
        if is_drawn(name):
            continue
        psnr, ssim, error = ([row[key] for row in found] for key in ("psnr", "ssim", "rmse"))
        best = every[whole]
        beyond = [
            "" if best is found else against([scale * row[key] for row in best], [scale * v for v in values], 2)
            for key, scale, values in (("psnr", 1, psnr), ("ssim", 100, ssim))
        ]
        figures = [spread(psnr, 2), spread([100 * s for s in ssim], 2), spread(error, 1), _share(found)]
        samples = every.get(drawn(name))
        beside = ["", "", ""]
        if samples is not None:
            beside = [
                spread([row["psnr"] for row in samples], 2),
                spread([100 * row["ssim"] for row in samples], 2),
                _share(samples),
            ]
        rows.append([name, *figures, *beside, *beyond])
    return rows


def _share(found: Sequence[Mapping[str, float]]) -> str:
    return f"{100 * np.mean([abs(row['share'] - row['true']) for row in found]):.2f}"


def step_rows(every: Mapping[str, Sequence[Mapping[str, float]]], steps: Sequence[tuple[str, str]]) -> list[list[str]]:
    """What each step from one method to another gains, (less, more), with its interval over subjects."""
    rows = []
    for less, more in steps:
        gains = [
            against([scale * row[key] for row in every[more]], [scale * row[key] for row in every[less]], digits)
            for key, scale, digits in (("psnr", 1, 2), ("ssim", 100, 2))
        ]
        rows.append([f"{less} to {more}", *gains])
    return rows


def gain_rows(every: Mapping[str, Sequence[Mapping[str, float]]], progressive: NDArray[np.bool_]) -> list[list[str]]:
    """PSNR above no change of either label."""
    rows = []
    for name, found in every.items():
        gain = np.array([one["psnr"] - still["psnr"] for one, still in zip(found, every["no change"], strict=True)])
        rows.append([name, *(f"{gain[progressive == label].mean():+.2f}" for label in (False, True))])
    return rows


def judged_rows(
    diagnoses: Sequence[Mapping[str, Sequence[float]]], names: Sequence[str], progressive: NDArray[np.bool_]
) -> list[list[str]]:
    """Accuracy, area under the curve and Brier score of the classifier on what each method made, and how far the last
    lies above the linear rule's: calibration, where 0 is best and 0.25 is a coin.
    """

    def brier(name: str) -> list[float]:
        p = np.clip([value for found in diagnoses for value in found[name]], 0, 1)
        return list(np.square(p - progressive))

    rows, by_rule = [], brier(RULE)
    for name in ("real follow-up", "first scan and table alone", RULE, *names):
        p = np.array([value for found in diagnoses for value in found[name]])
        right, (low, high) = accuracy(p, progressive)
        area, (least, most) = auc(p, progressive, seed=SEED)
        shares = f"{100 * right:.0f} ({100 * low:.0f} to {100 * high:.0f})"
        beyond = "" if name == RULE else against(brier(name), by_rule, 3)
        rows.append([name, shares, f"{area:.2f} ({least:.2f} to {most:.2f})", f"{np.mean(brier(name)):.3f}", beyond])
    return rows


def cost_row(fold: Path, name: str, subjects: int, rate_of: Callable[[Path], str]) -> list[str] | None:
    """Steps, learning rate, processor minutes, loss at either end of the last phase, what it gains on subjects that it
    was trained on, and what a scan costs; None where none stands.
    """
    model = place_of_model(fold, name)
    run = model.with_name(model.name + ".run")
    phases = spent_in(run)
    if not (model.exists() and phases):
        return None
    losses = [float(line["loss"]) for line in lines_in(run) if line["phase"] == list(phases)[-1]]
    end = max(1, round(END * len(losses)))
    made = fold / "predictions" / f"{model.name}.npz"
    rows = json.loads(str(np.load(made, allow_pickle=False)["rows"])) if made.exists() else []
    own = fold / "learned" / f"{model.name}.json"
    gains = json.loads(own.read_text()) if own.exists() else []
    return [
        name,
        fold.name.removeprefix("fold-"),
        str(subjects),
        " + ".join(str(steps) for steps, _ in phases.values()),
        rate_of(model),
        f"{sum(seconds for _, seconds in phases.values()) / 60:.1f}",
        f"{np.mean(losses[:end]):.3g}",
        f"{np.mean(losses[-end:]):.3g}",
        against(gains, [0.0] * len(gains), 2) if gains else "",
        f"{np.median([row['seconds'] for row in rows]):.1f}" if rows else "",
    ]


def rule(train: Sequence[Prepared], test: Sequence[Prepared]) -> list[float]:
    """How likely the disease progresses by FVC %, DLCO and the share of dense lung, least squares: what could be read.

    A generated follow-up holds no more about the future than the first scan and the table that it was made from.
    """

    def numbers(subjects: Sequence[Prepared]) -> NDArray[np.float64]:
        rows = [[one.tests.fvc_percent, one.tests.dlco_percent] for one in subjects]
        tests = np.array([[np.nan if value is None else value for value in row] for row in rows])
        dense = [[1.0, dense_share(one.data.initial, np.asarray(one.data.region))] for one in subjects]
        return np.concatenate([tests, dense], axis=1)

    known, asked = numbers(train), numbers(test)
    counts = np.maximum((~np.isnan(known)).sum(axis=0), 1)
    usual = np.nansum(known, axis=0) / counts
    known, asked = (np.where(np.isnan(table), usual, table) for table in (known, asked))
    wanted = np.array([one.label == "progressive" for one in train], np.float64)
    return list((asked @ np.linalg.lstsq(known, wanted, rcond=None)[0]).tolist())
