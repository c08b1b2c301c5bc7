"""Concord beside everything else: virtual cohorts, safety, speed, real pairs, ablation; each part resumes.

python -m benchmarks.flagship                                  # every part; each writes its page of docs/results
python -m benchmarks.flagship --part cohorts --only patients   # one of them

Scans, models and measurements are kept under `runs/flagship`, so that a second run only writes the tables. Nothing is
tuned on these cohorts: choices are made on the validation cohort, which the ablation uses.
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks import flagship_ablation, flagship_real, flagship_safety, flagship_speed, nonlinear
from benchmarks.flagship_cohorts import COHORTS, FOLDER, Cohort, calibrated, subjects_of
from benchmarks.flagship_judge import (
    CEILING,
    ENOUGH,
    INPUT,
    OF_CEILING,
    SEEDS,
    Cell,
    Entry,
    Judge,
    cells,
    noise_ratio,
    rmse,
)
from benchmarks.papers_rows import CLOSED, ROWS, place_of
from benchmarks.results import table, write_section
from concordct.methods.concord.bundle import METHOD as FLAGSHIP

PARTS = ("cohorts", "safety", "speed", "real", "nonlinear", "ablation")
#: The cohort whose kernels are those that `benchmarks.papers` trains for.
PAPERS_COHORT = "patients"
#: Said where its rows stand.
NETWORKS = (
    "Networks are those of [the papers' table](papers.md), trained on ten other patients of the same pair of kernels\n"
    "by the budgets that stand there; they have met no scan of this protocol.\n\n"
)
#: Slices that are calibrated on; the first gets every seed and the noise, the others a row to compare.
CALIBRATIONS = (1, 3)


def entries(
    cohort: Cohort, pair: tuple[str, str], methods: tuple[str, ...], quick: bool
) -> tuple[list[Entry], list[str]]:
    """The rows of a cohort's table, and names of models that are not there."""
    rows, missing = [INPUT], []
    for slices in CALIBRATIONS[:1] if quick else CALIBRATIONS:
        for method in methods:
            path = calibrated(method, cohort, pair, slices)
            label = f"{method}, {slices} slice{'s' if slices > 1 else ''}"
            first = slices == CALIBRATIONS[0]
            if method != FLAGSHIP:
                rows.append(Entry(f"{label}, mean", path, "mean", noise=first))
            rows.append(
                Entry(f"{label}, sample", path, "sample", SEEDS if first and not quick else SEEDS[:1], noise=first)
            )
    if cohort.name == PAPERS_COHORT and not quick:
        for name, row in ROWS.items():
            if row.of or row.method in CLOSED:
                continue
            if place_of(name).exists():
                rows.append(Entry(name, place_of(name), noise=False))
            else:
                missing.append(name)
    return [*rows, CEILING], missing


def cohorts(only: list[str] | None, methods: tuple[str, ...], quick: bool) -> None:
    """Agreement, HU error and noise on the virtual cohorts."""
    for name, cohort in COHORTS.items():
        if only and name not in only:
            continue
        parts = []
        for pair in cohort.pairs:
            judge = Judge(name, subjects_of(cohort, pair)[1:])
            rows, missing = entries(cohort, pair, methods, quick)
            parts.append(_pair_section(judge, pair, rows, missing))
        people = cohort.count - 1
        body = (
            f"## Method concord on simulated cohorts: {cohort.title}\n\n"
            f"{people} subjects of {cohort.slices} slices that nothing was chosen on (seed {cohort.seed}), judged;\n"
            "one other subject of the same protocol calibrated on one slice or three. Lin's CCC of each feature over\n"
            f"ROIs, mean of a class (95 % interval over subjects), preset {judge.preset}; squares of 20 pixels in\n"
            "lungs and soft tissue, nodules slice by slice. `sample` calibrated on one slice is the mean of\n"
            f"{1 if quick else len(SEEDS)} seed(s), else one. Bold: at least {ENOUGH}, or {OF_CEILING} of the\n"
            "ceiling, a second scan of the target with other noise. Last columns: share of all\n"
            "1,401 features with a median relative error under 0.15, and RMSE in HU. In mode `mean` concord is\n"
            "the spectral transfer. Simulated data.\n\n"
            + (NETWORKS if name == PAPERS_COHORT else "")
            + "\n\n".join(parts)
        )
        write_section(
            f"flagship-{name}",
            "python -m benchmarks.flagship --part cohorts" + (" --quick" if quick else ""),
            body,
            seed=f"{cohort.seed}, 0" + ("" if quick else f" to {len(SEEDS) - 1}"),
        )


def _pair_section(judge: Judge, pair: tuple[str, str], rows: list[Entry], missing: list[str]) -> str:
    lines = [f"### {pair[0]} to {pair[1]}"]
    if missing:
        lines.append(f"Not there when this ran: {', '.join(missing)}.")
    errors = {row.name: rmse(judge, row) for row in rows}
    for region in ("lungs", "soft tissue", "nodules"):
        if not any(region in one for one in judge.regions.values()):
            continue
        found = {row.name: cells(judge, row, region) for row in rows}
        ceiling = found[CEILING.name]
        classes = [name for name in ceiling if name != "all"]
        count = sum(int(one[region].max()) for one in judge.regions.values() if region in one)
        body = [
            [
                name,
                *(_cell(by[one], ceiling[one]) for one in classes),
                f"{by['all'].share:.2f}",
                f"{errors[name].get(region, errors[name]['body']):.1f}",
            ]
            for name, by in found.items()
        ]
        lines.append(f"{region.capitalize()}, {count} ROIs:")
        lines.append(table(["", *classes, "RE < 0.15", "RMSE" if region != "nodules" else "RMSE, body"], body))
    lines.append("Noise power relative to the target's, from the difference of two scans, by band, cycles/pixel:")
    lines.append(_noise(judge, [row for row in rows if row.noise and row is not CEILING]))
    return "\n\n".join(lines)


def _cell(cell: Cell, ceiling: Cell) -> str:
    if not np.isfinite(cell.ccc):
        return "?"
    text = f"{cell.ccc:.3f}"
    text = f"**{text}**" if cell.ccc >= min(ENOUGH, OF_CEILING * ceiling.ccc) else text
    return f"{text} ({cell.low:.2f}, {cell.high:.2f})" if np.isfinite(cell.low) else text


def _noise(judge: Judge, rows: list[Entry]) -> str:
    body, header = [], ["", "place"]
    for row in rows:
        for place in next(iter(judge.of(row).values())).power:
            ratio, error = noise_ratio(judge, row, place)
            header = ["", "place", *(f"to {0.1 * (band + 1):.1f}" for band in range(len(ratio)))]
            body.append([row.name, place, *(f"{r:.2f} ± {e:.2f}" for r, e in zip(ratio, error, strict=True))])
    return table(header, body)


def main() -> None:
    """Run what is not there yet and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--only", nargs="*", choices=list(COHORTS), help="cohorts")
    parser.add_argument("--quick", action="store_true", help="one seed, calibrated on one slice, no learned model")
    given = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    methods = ("spectral", FLAGSHIP)
    if "cohorts" in given.part:
        cohorts(given.only, methods, given.quick)
    if "safety" in given.part:
        flagship_safety.run(methods, given.only or list(COHORTS), SEEDS[:1] if given.quick else SEEDS)
    if "speed" in given.part:
        flagship_speed.run(methods)
    if "real" in given.part:
        flagship_real.run(methods, given.quick)
    if "nonlinear" in given.part:
        nonlinear.main()
    if "ablation" in given.part:
        flagship_ablation.run()


if __name__ == "__main__":
    main()
