"""The small model of follow-up scans that comes with the package, and its card with what it is worth.

python -m benchmarks.followup_weights                # minutes after `benchmarks.followup`, whose model it takes
python -m benchmarks.followup_weights --minutes 9    # one piece; what is not there yet is drawn and trained first

It is the whole method of fold 0 of that study with the classifier of the fold's real pairs; those of its test subjects
judge it whose results were never looked at. It becomes `src/concordct/methods/weights/ciresdiff`, which
`concordct predict-followup -m ciresdiff` finds; the figures go to its card and to docs/results/followup-shipped.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.followup import SEED, SUBJECTS, WEEKS_BETWEEN
from benchmarks.followup_models import SPACING_MM, opened
from benchmarks.followup_rows import WHOLE
from benchmarks.followup_search import search, train_row
from benchmarks.followup_subjects import Trend, folds, looked_at, measure, usable
from benchmarks.followup_tables import against, spread
from benchmarks.papers_weights import WEIGHTS
from benchmarks.results import ROOT, spent_in, table, write_section
from concordct.pipelines.followup import INFERENCE, card_of, info_of
from concordct.pipelines.followup_data import Prepared
from concordct.pipelines.followup_verdict import parted, with_classifier
from concordct.progression.simulated import simulate_cohort
from concordct.training.bundle import Bundle, halved, load_bundle, save_bundle
from concordct.training.engine import METRICS, Paused, Run

NAME = "ciresdiff"
#: Whose training subjects train it.
FOLD = 0
PLAIN, TREND, MODEL = "no change", "linear trend", "the shipped model"
#: A link from the page, and the same for the card, which lies elsewhere.
STUDY = "[the study of the method](followup.md)"
STUDY_FROM_CARD = "the study of the method (docs/results/followup.md)"
#: Largest file of weights, bytes.
LARGEST = 4_000_000
#: Kept whole: they are small, and every word passes through them.
STATISTICS = ("text_mean", "text_spread", "text_basis")


def judge(model: Path, trained: Sequence[Prepared], judged: Sequence[Prepared]) -> dict[str, list[dict[str, float]]]:
    """Figures of each way to guess the follow-up, on patients whom none of them has seen."""
    trend = Trend(trained)
    network, _ = parted(load_bundle(model))
    guess = opened(WHOLE, network, "mean")
    return {
        PLAIN: [measure(one, np.asarray(one.data.initial, np.float32)) for one in judged],
        TREND: [measure(one, trend.predict(one)) for one in judged],
        MODEL: [measure(one, guess(one, one.data.sentence)) for one in judged],
    }


def rows(found: Mapping[str, Sequence[Mapping[str, float]]]) -> list[list[str]]:
    """The table of page and card."""
    result = []
    for name, figures in found.items():
        psnr, rmse = ([row[key] for row in figures] for key in ("psnr", "rmse"))
        ssim = [100 * row["ssim"] for row in figures]
        share = [100 * abs(row["share"] - row["true"]) for row in figures]
        gain = "" if name == MODEL else against([row["psnr"] for row in found[MODEL]], psnr, 2)
        result.append([name, spread(psnr, 2), spread(ssim, 2), spread(rmse, 1), f"{np.mean(share):.2f}", gain])
    return result


def conclusion(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Whether the model is worth more than a guess, in a sentence."""
    said = []
    for name in (PLAIN, TREND):
        gain = against([row["psnr"] for row in found[MODEL]], [row["psnr"] for row in found[name]], 2)
        mean, interval = gain.split(" ", 1)
        low = float(interval.strip("()").split(" to ")[0])
        if low > 0:
            verdict = "better than"
        elif float(mean) > 0:
            verdict = "not surely better than"
        else:
            verdict = "not better than"
        said.append(f'{verdict} "{name}" ({mean} dB, 95 % {interval.strip("()")})')
    return f"On {len(found[MODEL])} simulated patients whom it has not seen the model is " + " and ".join(said) + "."


def sure(found: Mapping[str, Sequence[Mapping[str, float]]], name: str) -> bool:
    """Whether the interval of the model's gain over a guess lies above 0."""
    gain = against([row["psnr"] for row in found[MODEL]], [row["psnr"] for row in found[name]], 2)
    return float(gain.split("(")[1].split(" to ")[0]) > 0


def losses(run: Path) -> str:
    """How the loss of each phase moved, in words: means over its first and last tenth."""
    every: dict[str, list[float]] = {}
    for line in (run / METRICS).read_text(encoding="utf-8").splitlines():
        step = json.loads(line)
        if "loss" in step:
            every.setdefault(step["phase"], []).append(step["loss"])
    said = []
    for name, values in every.items():
        tenth = max(len(values) // 10, 1)
        said.append(f"{name} {np.mean(values[:tenth]):.3g} to {np.mean(values[-tenth:]):.3g} in {len(values)} steps")
    return "; ".join(said)


def main() -> None:
    """Do what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "followup", help="of the study")
    parser.add_argument("--subjects", type=int, default=SUBJECTS)
    parser.add_argument("--minutes", type=float, help="stop with a checkpoint after this long")
    given = parser.parse_args()
    folder: Path = given.folder
    began = time.monotonic()

    def stop() -> bool:
        return given.minutes is not None and time.monotonic() - began > 60 * given.minutes

    def check(*_: object) -> None:
        if stop():
            raise Paused

    study = folder / f"folds-{given.subjects}"
    place = study / f"fold-{FOLD}"
    try:
        cohort = simulate_cohort(
            folder / "cohort", subjects=given.subjects, seed=SEED, spacing_mm=(SPACING_MM,) * 3,
            weeks_between=WEEKS_BETWEEN, progress=check,
        )  # fmt: skip
        ready = usable(cohort, folder / "subjects", stop)
        parts = folds(ready)
        trained = [one for i, one in enumerate(ready) if i not in parts[FOLD]]
        seen = looked_at(ready)
        judged = [ready[i] for i in parts[FOLD] if ready[i].subject not in seen]
        rate = search(study, WHOLE, ready, parts, None, stop)
        model = train_row(place, trained, WHOLE, None, rate, stop)
        network = load_bundle(model)
        # The study's own classifier, which stands where it is done.
        bundle = with_classifier(
            Bundle(network.tensors, {**network.metadata, "info": info_of(trained, "small", WHOLE)}),
            trained, Run(place / "classifier", stop=stop), spacing_mm=SPACING_MM, seed=SEED,
        )  # fmt: skip
    except Paused:
        raise SystemExit("paused; run it again to go on") from None

    caution = f"trained on {len(trained)} simulated patients: for studies of the method, not for patients' scans"
    info: dict[str, Any] = {"caution": caution}
    card, target = card_of(bundle), WEIGHTS / NAME
    save_bundle(halved(bundle, keep=STATISTICS, info=info), target, card=card, overwrite=True, inference=INFERENCE)
    size = (target / "models" / "model.safetensors").stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{target}: expected at most {LARGEST} bytes of weights, found {size}")

    # What ships is judged, half precision and all.
    found = judge(target, trained, judged)
    run = model.with_name(model.name + ".run")
    spent = sum(seconds for _, seconds in (*spent_in(run).values(), *spent_in(place / "classifier").values())) / 60
    header = ["guess", "PSNR, dB", "SSIM, %", "RMSE, HU", "error of fibrosis share, %", "the model above it, dB"]
    text = "\n\n".join([
        f"{len(trained)} simulated patients (seed {SEED}) trained the model that `-m {NAME}` names, {len(judged)} "
        f"others judge it: inside the lungs, on a grid of {SPACING_MM:g} mm, against the registered follow-up; its "
        "estimate (`--mode mean`), mean ± SD over patients, difference in PSNR with a 95 % bootstrap interval. "
        f"It is row {WHOLE} of fold {FOLD} of {STUDY}; no result of who judges it was looked at before.",
        table(header, rows(found)),
        conclusion(found),
        f"Recipe `small`, {bundle.metadata['parameters']:,} parameters, {size / 1e6:.1f} MB in half precision. "
        f"Training took {spent:.1f} minutes of one core. Loss, means over first and last tenth: "
        f"{losses(run)}; {losses(place / 'classifier')}.",
    ])  # fmt: skip
    # What it is worth goes with every result, too.
    weak = [name for name in (PLAIN, TREND) if not sure(found, name)]
    if weak:
        info["caution"] = f"{caution}; on {len(judged)} others it was not surely better than {' or '.join(weak)}"
    save_bundle(
        halved(bundle, keep=STATISTICS, info=info), target, overwrite=True, inference=INFERENCE,
        card=f"{card}\n## What it is worth\n\n{text.replace(STUDY, STUDY_FROM_CARD)}\n\n"
        f"**Simulated patients only:** {caution}. "
        "Weights in half precision; `python -m benchmarks.followup_weights` makes it anew.\n",
    )  # fmt: skip
    write_section("followup-shipped", "python -m benchmarks.followup_weights", text, seed=str(SEED))
    print(text)


if __name__ == "__main__":
    main()
