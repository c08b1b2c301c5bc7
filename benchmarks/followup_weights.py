"""The small model of follow-up scans that comes with the package, and its card with what it is worth.

python -m benchmarks.followup_weights                # a quarter of an hour of one core; stops and resumes
python -m benchmarks.followup_weights --minutes 9    # one piece

20 simulated patients train it, 8 others judge it; they are the first of `benchmarks.followup`, whose recipe it is. It
becomes `src/concordct/methods/weights/ciresdiff`, which `concordct predict-followup -m ciresdiff` finds; the figures go
to its card and to docs/results/followup-shipped.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.followup import SEED, WEEKS_BETWEEN, measure
from benchmarks.followup_tables import against, spread
from benchmarks.papers_weights import WEIGHTS
from benchmarks.results import ROOT, table, write_section
from concordct.pipelines.followup import prepare_cohort, train
from concordct.pipelines.followup_data import Prepared
from concordct.pipelines.followup_verdict import parted
from concordct.progression.ciresdiff_predict import load
from concordct.progression.simulated import simulate_cohort
from concordct.training.bundle import halved, load_bundle, save_bundle
from concordct.training.engine import METRICS, Paused
from concordct.volumes.place import atomic_file
from concordct.volumes.seeds import SliceSeeds

NAME = "ciresdiff"
#: Patients who train the model, and others who judge it.
TRAINED, JUDGED = 20, 8
#: Each phase of recipe `small` is cut to so many steps: minutes of a core, and a loss that has stopped falling fast.
MOST_STEPS = 400
#: Of the simulated scans, and of the recipe's grid.
SCAN_MM, GRID_MM = 4.0, 3.0
#: The linear trend: blur of the density, mm; depth below the pleura, mm; voxels of each patient that it is fitted on.
BLUR_MM, DEPTH_MM, VOXELS = 6.0, 10.0, 4000
PLAIN, TREND, MODEL = "no change", "linear trend", "the shipped model"
#: A link from the page, and the same for the card, which lies elsewhere.
STUDY = "[the study of the method](followup.md)"
STUDY_FROM_CARD = "the study of the method (docs/results/followup.md)"
#: Largest file of weights, bytes.
LARGEST = 4_000_000
#: Kept whole: they are small, and every word passes through them.
STATISTICS = ("text_mean", "text_spread", "text_basis")


def features(one: Prepared) -> NDArray[np.float64]:
    """[z, y, x, 6]: density around a voxel, nearness to the pleura, how low it lies, and products of them."""
    lungs = np.asarray(one.data.lungs)
    density = ndimage.gaussian_filter(np.asarray(one.data.initial, np.float64), BLUR_MM / GRID_MM) / 1000 + 0.85
    pleura = np.exp(-ndimage.distance_transform_edt(lungs) * GRID_MM / DEPTH_MM)
    z = np.flatnonzero(lungs.any(axis=(1, 2)))
    low = 1 - np.clip((np.arange(len(lungs)) - z[0]) / max(z[-1] - z[0], 1), 0, 1)
    low = np.broadcast_to(low[:, None, None], lungs.shape)
    return np.stack([np.ones(lungs.shape), density, pleura, low, pleura * low, density * low], axis=-1)


def linear_trend(trained: Sequence[Prepared]) -> NDArray[np.float64]:
    """[6] change per week and feature, HU, by least squares over voxels of the training patients' lungs."""
    rows, changes = [], []
    for index, one in enumerate(trained):
        inside = np.flatnonzero(one.data.lungs)
        chosen = np.random.default_rng((SEED, index)).choice(inside, min(VOXELS, len(inside)), replace=False)
        rows.append(features(one).reshape(-1, 6)[chosen])
        changes.append((np.asarray(one.data.followup, np.float64) - one.data.initial).ravel()[chosen] / one.weeks)
    return np.linalg.lstsq(np.concatenate(rows), np.concatenate(changes), rcond=None)[0]


def judge(model: Path, trained: Sequence[Prepared], judged: Sequence[Prepared]) -> dict[str, list[dict[str, float]]]:
    """Figures of each way to guess the follow-up, on patients whom none of them has seen."""
    slope = linear_trend(trained)
    network, _ = parted(load_bundle(model))
    estimate = load(network, "mean")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in (PLAIN, TREND, MODEL)}
    for one in judged:
        hu, region = np.asarray(one.data.initial, np.float32), np.asarray(one.data.region)
        seeds = SliceSeeds(SEED, one.subject)
        found[PLAIN].append(measure(one, hu))
        found[TREND].append(measure(one, np.where(one.data.lungs, hu + one.weeks * (features(one) @ slope), hu)))
        found[MODEL].append(measure(one, estimate.predict(hu, region, one.data.sentence, seeds=seeds)))
    return found


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
    return f"On {JUDGED} simulated patients whom it has not seen the model is " + " and ".join(said) + "."


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
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "followup-weights")
    parser.add_argument("--minutes", type=float, help="stop with a checkpoint after this long")
    given = parser.parse_args()
    folder: Path = given.folder
    began = time.monotonic()

    def stop(*_: object) -> bool:
        if given.minutes is not None and time.monotonic() - began > 60 * given.minutes:
            raise SystemExit("paused; run it again to go on")
        return False

    cohort = simulate_cohort(
        folder / "cohort", subjects=TRAINED + JUDGED, seed=SEED, spacing_mm=(SCAN_MM,) * 3,
        weeks_between=WEEKS_BETWEEN, progress=stop,
    )  # fmt: skip
    names = [f"ipf-{number:04d}" for number in range(TRAINED + JUDGED)]
    model = folder / NAME
    cost = folder / "seconds.json"
    try:
        judged = prepare_cohort(cohort, folder / "judged", GRID_MM, subjects=names[TRAINED:])
        if not model.exists():
            spent = json.loads(cost.read_text()) if cost.exists() else 0.0
            clock = time.process_time()
            minutes = given.minutes and max(given.minutes - (time.monotonic() - began) / 60, 0)
            done = train(
                cohort, model, subjects=names[:TRAINED], seed=SEED, most_steps=MOST_STEPS, minutes=minutes
            ).done
            with atomic_file(cost) as aside:
                aside.write_text(json.dumps(spent + time.process_time() - clock))
            if not done:
                raise Paused
    except Paused:
        raise SystemExit("paused; run it again to go on") from None
    trained = prepare_cohort(cohort, model.with_name(f"{NAME}.run") / "subjects", GRID_MM, subjects=names[:TRAINED])

    bundle = load_bundle(model)
    caution = f"trained on {TRAINED} simulated patients: for studies of the method, not for patients' scans"
    info: dict[str, Any] = {"caution": caution}
    card = (model / "docs" / "README.md").read_text(encoding="utf-8")
    inference = json.loads((model / "configs" / "inference.json").read_text())
    place = WEIGHTS / NAME
    save_bundle(halved(bundle, keep=STATISTICS, info=info), place, card=card, overwrite=True, inference=inference)
    size = (place / "models" / "model.safetensors").stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{place}: expected at most {LARGEST} bytes of weights, found {size}")

    # What ships is judged, half precision and all.
    found = judge(place, trained, judged)
    header = ["guess", "PSNR, dB", "SSIM, %", "RMSE, HU", "error of fibrosis share, %", "the model above it, dB"]
    minutes_spent = json.loads(cost.read_text()) / 60
    text = "\n\n".join([
        f"{TRAINED} simulated patients (seed {SEED}) trained the model that `-m {NAME}` names, {JUDGED} others judge "
        f"it: inside the lungs, on a grid of {GRID_MM:g} mm (scans of {SCAN_MM:g} mm), "
        "against the registered follow-up; its estimate (`--mode mean`), mean ± SD over patients, "
        "difference in PSNR with a 95 % bootstrap interval over patients. Nothing of this model was chosen on them; "
        f"the recipe comes from {STUDY}, on patients of the same kind.",
        table(header, rows(found)),
        conclusion(found),
        f"Recipe `small` of at most {MOST_STEPS} steps a phase, "
        f"{bundle.metadata['parameters']:,} parameters, {size / 1e6:.1f} MB in half precision. "
        f"Registration and training took {minutes_spent:.0f} minutes of one core. Loss, means over first and last "
        "tenth: "
        f"{losses(model.with_name(f'{NAME}.run'))}.",
    ])  # fmt: skip
    # What it is worth goes with every result, too.
    if not all(sure(found, name) for name in (PLAIN, TREND)):
        info["caution"] = f"{caution}; on {JUDGED} others it was not better than no change or a linear trend"
    save_bundle(
        halved(bundle, keep=STATISTICS, info=info), place, overwrite=True, inference=inference,
        card=f"{card}\n## What it is worth\n\n{text.replace(STUDY, STUDY_FROM_CARD)}\n\n"
        f"**Simulated patients only:** {caution}. "
        "Weights in half precision; `python -m benchmarks.followup_weights` makes it anew.\n",
    )  # fmt: skip
    write_section("followup-shipped", "python -m benchmarks.followup_weights", text, seed=str(SEED))
    print(text)


if __name__ == "__main__":
    main()
