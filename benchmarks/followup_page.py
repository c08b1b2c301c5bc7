"""The page of `benchmarks.followup`, in words and tables."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.followup_chain import SHOWN
from benchmarks.followup_models import CDIFF_STEPS, FULL_STEPS, RIVALS, SLICES, SPACING_MM
from benchmarks.followup_rows import ASIDE, ASIDE_FOLDS, FIRST, LADDER, MODELS, WHOLE
from benchmarks.followup_subjects import FOLDS
from benchmarks.followup_tables import against, gain_rows, judged_rows, quality_rows, step_rows
from benchmarks.results import table

SHORT = (
    " **Cut short:** every model has the same number of optimizer steps, {steps}, where recipe `small` has {full}; "
    "rows compare what so much training gives, not what the methods can do. [The whole recipe](followup.md) has a page "
    "of its own."
)
WHOLE_RECIPE = (
    " Every model has the same number of optimizer steps, the recipe's {full} (a text tower's 100 come before; "
    "DiffusionCT's phases share them), far from any paper's schedule."
)
FIRST_FOLDS = (
    "The first tables hold the {count} test subjects of the first {folds} folds, which have every row; the ablation on "
    "all folds stands below them."
)
BLIND = (
    "**Not all of them are blind:** of {seen} of these test subjects results were looked at in studies before (with "
    "other models), while the ablation, the reading of the text and the classifier were developed. The other {fresh} "
    "were never looked at, and no learning rate was chosen on a test subject; they stand alone in the second table."
)
BEFORE_SAID = " Some of these stand in [the study before](followup-200.md): 112 patients, 200 steps."
LEARNED_WHERE = (
    "Why rows of CIResDiff lie so near to no change: squared error of their estimate over that of no change, on "
    "patches of training subjects, by the step of the chain. The estimate of a follow-up is made at the last step, "
    "where the state holds nothing of it; most of the 15 steps that training draws ask for something else, to take "
    "noise away."
)
UNTRAINED = (
    "Recipes `paper` (1 mm, 96³, 400 epochs) and `gpu` (1 mm, 96³, 4,000 steps) are untrained: they need a graphics "
    "processor. What they would give is not known, and no row stands for a published system at its published size."
)
DRAWN_FASTER = (
    "To have more patients, their noise is made only where pixels lie (the same to the bit) and registration writes no "
    "page of overlays; planes a slice, registration and lung masks are those of any cohort."
)
RATES_SAID = (
    "Learning rates: every row has its own four, at an eighth of the steps, on {trained} patients whom neither of the "
    "first two folds tests, judged by the gain in PSNR over no change on {judged} others of them, dB. They are a "
    "quarter, half, once and twice the recipe's of its last phase (DiffusionCT's others in proportion); SAGAN's and "
    "ResViT's, searched first, lie above and below, since their losses had hardly moved. The largest gain has it, but "
    "the recipe's rate stays unless another gains more by over one standard error of the difference (fixed after the "
    "four of DM had been seen on validation; SAGAN's and ResViT's were chosen before, by the largest). A row that "
    "varies DM-R-CIP or another of the ablation takes that one's. Folds 2 to 4 test exactly the patients who chose, so "
    "models there have their recipes' rates, and no fold's rate was chosen on whom it tests; a table of all five folds "
    "joins the two."
)
UNSEARCHED = " Not searched, at their recipes' rates: {names}."
OTHERS = " **Not yet trained again** at the rate or with the network that holds now: {names}."
#: PSNR, dB, of CIResDiff's Tables 1 and 2; its cDiff has DM's figures.
PRINTED = {
    "DM": 25.84,
    "DM-CIP": 26.12,
    "DM-R": 26.84,
    "DM-R-CIP": 27.52,
    "Pix2Pix 3D": 22.53,
    "SAGAN": 22.93,
    "TransUNet": 23.35,
    "ResViT": 23.62,
    "DiffusionCT": 25.21,
    "cDiff": 25.84,
}
PRINTED_SAID = (
    "Beside the published figures (200 pairs of scans of OSIC at 1 mm, 160 of them for training, two A100, min-max "
    "intensities, no row of no change): how far CIResDiff lies above each system, PSNR, dB. The scans, "
    "the grid and the scale differ, so the levels do not compare, and after minutes of one core no system is refuted."
)
HEAD = ["method", "PSNR, dB", "SSIM, %", "RMSE, HU", "error of fibrosis share, %"]


@dataclass(frozen=True)
class Study:
    """What a run of the benchmark has: by fold (results of each row, verdicts, labels), and the rest of its figures.

    Attributes
    ----------
    rows : of every fold; further ones stand in the first folds.
    trained : training subjects of each fold. left_out : whom registration refused. steps : None for the recipe's own.
    costs : see `followup_tables.cost_row`. rates, searched : of `followup_search`, and who trains and judges there.
    others : models that were made otherwise than is asked for now, see `followup_search.others`.
    chain : see `followup_chain`. seen : by fold, who of its test subjects is in `followup_subjects.looked_at`.
    """

    done: Mapping[int, tuple[dict[str, dict[str, Any]], dict[str, list[float]], list[bool]]]
    rows: Sequence[str]
    trained: Sequence[int]
    few: dict[str, Any] | None
    costs: list[list[str]]
    rates: list[list[str]]
    searched: tuple[int, int]
    others: Sequence[str]
    chain: list[list[str]]
    seen: Mapping[int, Sequence[bool]]
    left_out: int
    steps: int | None
    weeks: tuple[float, float]
    range_hu: float
    noise_hu: float


def command_of(subjects: int, *, brief: bool, steps: int | None, folds: Sequence[int], aside: Sequence[str]) -> str:
    """The command that makes the page, as it is typed."""
    words = ["python", "-m", "benchmarks.followup", "--subjects", str(subjects)]
    words += ["--brief"] if brief else []
    words += [] if steps is None else ["--most-steps", str(steps)]
    words += [] if len(folds) == FOLDS else ["--folds", *map(str, folds)]
    words += [] if list(aside) == list(ASIDE) else ["--aside", *aside]
    return shlex.join(words)


def page_of(study: Study) -> str:
    """The page of docs/results."""
    done, first_rows = study.done, [name for name in study.rows if name not in FIRST]
    every = {name: [row for made, _, _ in done.values() for row in made[name]["rows"]] for name in first_rows}
    truth = np.array([label for _, _, labels in done.values() for label in labels])
    stuck = sorted({f"{row[0]} (fold {row[1]})" for row in study.costs if row[8] and float(row[8].split()[0]) <= 0})
    spent = [f"{sum(float(row[5]) for row in study.costs if row[1] == str(fold)):.0f}" for fold in done]
    missing = [str(fold) for fold in range(FOLDS) if fold not in done]
    aside = [done[index][0] for index in ASIDE_FOLDS if index in done]
    beside = [name for name in FIRST if aside and all(name in made for made in aside)]
    partly = [name for name in ASIDE if name not in beside and any(name in made for made in aside)]
    absent = [name for name in ASIDE if name not in (*beside, *partly)]
    shown = [name for name in (*first_rows, *beside) if all(name in made for made in aside)] if beside else []
    first = {name: [row for made in aside for row in made[name]["rows"]] for name in shown}
    of_first = np.array([label for index in ASIDE_FOLDS if index in done for label in done[index][2]])
    unsearched = [name for name in (*MODELS, *RIVALS, SLICES) if name not in {row[0] for row in study.rates}]
    seen = np.array([one for index in done if not first or index in ASIDE_FOLDS for one in study.seen[index]])
    header = [*HEAD, "drawn: PSNR, dB", "SSIM, %", "error of share, %", f"{WHOLE} above it, dB", "and SSIM, %"]
    parts = [
        "## Follow-up scans of pulmonary fibrosis",
        f"{len(truth)} simulated test subjects of {len(done)} folds, {int(truth.sum())} progressive, "
        f"{' or '.join(map(str, sorted(set(study.trained))))} training subjects each, "
        f"{study.weeks[0]:g} to {study.weeks[1]:g} weeks between the scans; recipe `small` at {SPACING_MM:g} mm, "
        f"inside the lungs, range {study.range_hu:g} HU; mean ± SD over subjects, difference with a 95 % bootstrap "
        "interval over subjects. A row is a method's estimate of the follow-up (one evaluation, `mean`); beside it, "
        "`drawn`, samples in the recipe's number of steps, which hold the texture that an estimate leaves out and "
        "therefore lie further from the one follow-up that there is."
        + (
            f" {study.left_out} patients whose scans registration took for two patients' are left out."
            * bool(study.left_out)
        )
        + (WHOLE_RECIPE if study.steps is None else SHORT).format(steps=study.steps, full=FULL_STEPS)
        + (
            f" Folds that are not done: {', '.join(missing)}; one fold of many patients says more than many of few."
            if missing
            else ""
        ),
        *([FIRST_FOLDS.format(count=len(of_first), folds=len(aside))] if beside and len(done) > len(aside) else []),
        BLIND.format(seen=int(seen.sum()), fresh=int((~seen).sum())),
        table(header, quality_rows(first or every, WHOLE)),
        f"The {int((~seen).sum())} who were never looked at.",
        table(header, quality_rows(only(first or every, ~seen), WHOLE)),
    ]
    if beside:
        parts.append(
            "`x_0 itself`: the network's output is not added to the initial scan; beside it a text tower that was "
            "never trained, a reading of the text that does not start along the ridge's direction, a query from the "
            "image (the usual cross-attention), more patches at the last step of the chain; and the rivals, which read "
            f"no lung function. cDiff walks its chain in {CDIFF_STEPS} steps: the 10 of its recipe take 20 s a scan."
            + (f" In one of the first folds alone, in its own table: {'; '.join(partly)}." if partly else "")
            + (f" Not trained here: {'; '.join(absent)}.{BEFORE_SAID}" if absent else "")
        )
        for index in done if len(aside) > 1 else ():
            if index in ASIDE_FOLDS:
                found = done[index][0]
                made = {name: found[name]["rows"] for name in (*first_rows, *FIRST) if name in found}
                parts += [f"Fold {index} alone.", table(header, quality_rows(made, WHOLE))]
        if len(done) > len(aside):
            parts += [f"The rows of all {len(done)} folds.", table(header, quality_rows(every, WHOLE))]
    parts += [
        DRAWN_FASTER,
        UNTRAINED,
        *(
            [
                RATES_SAID.format(trained=study.searched[0], judged=study.searched[1])
                + (UNSEARCHED.format(names=", ".join(unsearched)) if unsearched else "")
                + (OTHERS.format(names=", ".join(study.others)) if study.others else ""),
                table(["method", "rate: gain, dB", "chosen", "processor min"], study.rates),
            ]
            if study.rates
            else []
        ),
        "What each model cost to train, its loss (the mean over the first and over the last tenth of its steps; "
        "different losses, not to be compared), and whether it learned: its gain in PSNR over no change, dB, on "
        "eight of the patients that it was trained on. Loss is of few random patches a step and may hide what was "
        "learned; a row without gain on its own patients counts as not trained."
        + (f" That is: {', '.join(stuck)}." if stuck else "")
        + f" Training a fold took {', '.join(spent)} processor minutes, of the 60 that a fold may take."
        + " Why TransUNet gains what ResViT does not, and what cDiff lacks: [short trainings](followup-why.md).",
        table(
            [
                "model",
                "fold",
                "subjects",
                "steps",
                "rate",
                "processor min",
                "loss at first",
                "at last",
                "gain on its own",
                "s a scan",
            ],
            study.costs,
        ),
        *([LEARNED_WHERE, table(["row", *(f"step {step}" for step in SHOWN)], study.chain)] if study.chain else []),
        "From one row to another, on the same subjects: the ablation, the output's parametrization, the text.",
        table(
            ["from, to", "PSNR, dB", "SSIM, %"],
            step_rows(first or every, [step for step in LADDER if set(step) <= set(first or every)]),
        ),
        PRINTED_SAID,
        table(["system", "printed", "CIResDiff above it, printed", "here"], printed_rows(first or every)),
        "PSNR above no change, dB, in patients who stay stable and in those who progress.",
        table(["method", "stable", "progressive"], gain_rows(first or every, of_first if first else truth)),
    ]
    verdicts = [done[index][1] for index in done if not first or index in ASIDE_FOLDS]
    if verdicts and all(verdicts):
        names = [name for name in (first or every) if all(name in found for found in verdicts)]
        parts += [
            "The verdict, stable or progressive. The classifier (ResNet) was trained on real pairs; it sees the first "
            "scan beside each method's follow-up and the weeks between them. The rule reads the table and the first "
            "scan alone, and is fitted by least squares on the training subjects. Brier: 0 is best, 0.25 a coin.",
            table(
                ["second scan", "accuracy, %", "AUC", "Brier", "Brier above the rule's"],
                judged_rows(verdicts, names, of_first if first else truth),
            ),
        ]
    return "\n\n".join([*parts, *of_few(study.few, study.noise_hu)])


def printed_rows(every: Mapping[str, Sequence[Mapping[str, float]]]) -> list[list[str]]:
    """The published PSNR of each system that has a row, and how far the whole method lies above it there and here."""
    rows = []
    for name, value in PRINTED.items():
        if name in every and name != WHOLE:
            here = against([one["psnr"] for one in every[WHOLE]], [one["psnr"] for one in every[name]], 2)
            rows.append([name, f"{value:.2f}", f"{PRINTED[WHOLE] - value:+.2f}", here])
    return rows


def only(every: Mapping[str, Sequence[Any]], chosen: NDArray[np.bool_]) -> dict[str, list[Any]]:
    """Some subjects' rows of each method."""
    return {name: [row for row, wanted in zip(rows, chosen, strict=True) if wanted] for name, rows in every.items()}


def of_few(few: dict[str, Any] | None, noise_hu: float) -> list[str]:
    """Steps, seams and ceiling on some subjects, in words; nothing of a brief study."""
    if few is None:
        return []
    seams = few["seams"]
    parts = [
        f"Sampling steps of {WHOLE}, first fold, {few['subjects']} subjects.",
        table(["steps", "PSNR, dB", "SSIM, %", "seconds a scan"], few["curve"]),
        f"Seams: the estimate in patches of {seams['patch']} with an overlap of {seams['overlap']} voxels differs from "
        f"the one made in one piece by {seams['rms']:.2f} HU (rms in the lungs; 99.9 % of the voxels by less than "
        f"{seams['p999']:.1f} HU); the noise of the scans is {noise_hu:g} HU.",
    ]
    if few["ceiling"]:
        psnr, ssim = (np.mean([row[key] for row in few["ceiling"]]) for key in ("psnr", "ssim"))
        parts.append(
            "What nobody can predict: the true follow-up of these subjects, drawn without noise where the initial scan "
            f"lies, has a PSNR of {psnr:.2f} dB and an SSIM of {100 * ssim:.2f} % against the registered one, from "
            "which it differs by the noise and by what an affine registration leaves."
        )
    return parts
