"""CIResDiff's tables on simulated patients with pulmonary fibrosis: five folds by subject, in pieces that resume.

python -m benchmarks.followup                     # cohort, registration, every fold and method; writes docs/results.md
python -m benchmarks.followup --minutes 9         # one piece; run it again to go on
python -m benchmarks.followup --folds 0 2 4       # a second process takes the others; whoever ends last writes
python -m benchmarks.followup --subjects 20 --folds 0 --most-steps 300 --rehearsal     # tables to the screen only

Everything goes to `runs/followup` (not kept in the repository). Recipe `small` at 3 mm. PSNR and SSIM are taken inside
the initial scan's lungs at 3 mm against the registered follow-up, over the range of the HU map, 1,600 HU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.results import ROOT, table, write_section
from concordct.features.quality import compare_images
from concordct.methods import ciresdiff
from concordct.methods.ciresdiff import HIGH_HU, LOW_HU, CohortData
from concordct.methods.ciresdiff_predict import load
from concordct.pipelines.followup import FIBROSIS_HU, prepare_cohort, recipe_of
from concordct.pipelines.followup_data import Prepared
from concordct.progression.diagnosis import (
    Case,
    ClassifierRecipe,
    accuracy,
    auc,
    fit_classifier,
    lung_cube,
    probabilities,
    table_vector,
)
from concordct.progression.simulated import simulate_cohort
from concordct.training.bundle import load_bundle, save_bundle
from concordct.training.engine import Paused, Run
from concordct.volumes.place import atomic_file
from concordct.volumes.seeds import SliceSeeds

SEED, SUBJECTS, FOLDS = 7, 60, 5
SPACING_MM = 3.0
RANGE_HU = HIGH_HU - LOW_HU
#: Models of a fold: the ablation, and the usual cross-attention instead of eq. 5's. DM is also the rival cDiff.
MODELS = (*ciresdiff.ABLATIONS, "DM-R-CIP, query from the image")
WHOLE = "DM-R-CIP"
SHUFFLED, MEAN = "DM-R-CIP, text of another subject", "DM-R-CIP, mean"
PLAIN = ("no change", "linear trend")
METHODS = (*PLAIN, *MODELS, SHUFFLED, MEAN)
#: Sampling steps against quality, on the first fold.
STEPS = (1, 2, 4, 8, 15)
#: Voxels of each training subject that the linear trend is fitted on, and its smoothing, mm.
TREND_VOXELS, TREND_MM = 4000, 6.0


def folds(subjects: Sequence[Prepared]) -> list[list[int]]:
    """Test subjects of each fold: both labels spread evenly, by name and nothing else."""
    order = sorted(range(len(subjects)), key=lambda i: (subjects[i].label or "", subjects[i].subject))
    return [sorted(order[k::FOLDS]) for k in range(FOLDS)]


class Trend:
    """Change per week at a voxel as a linear function of the density around it, distance to the pleura, height."""

    def __init__(self, subjects: Sequence[Prepared]) -> None:
        rows, changes = [], []
        for index, one in enumerate(subjects):
            inside = np.flatnonzero(one.data.lungs)
            chosen = np.random.default_rng((SEED, index)).choice(inside, min(TREND_VOXELS, len(inside)), replace=False)
            rows.append(self._features(one).reshape(-1, 6)[chosen])
            change = np.asarray(one.data.followup, np.float64) - one.data.initial
            changes.append(change.ravel()[chosen] / one.weeks)
        self.slope = np.linalg.lstsq(np.concatenate(rows), np.concatenate(changes), rcond=None)[0]

    def predict(self, one: Prepared) -> NDArray[np.float32]:
        """[z, y, x] HU; the scan itself outside the lungs."""
        change = one.weeks * (self._features(one) @ self.slope)
        return np.where(one.data.lungs, one.data.initial + change, one.data.initial).astype(np.float32)

    @staticmethod
    def _features(one: Prepared) -> NDArray[np.float64]:
        lungs = np.asarray(one.data.lungs)
        smooth = ndimage.gaussian_filter(np.asarray(one.data.initial, np.float64), TREND_MM / SPACING_MM) / 1000 + 0.85
        pleura = np.exp(-ndimage.distance_transform_edt(lungs) * SPACING_MM / 10)
        z = np.flatnonzero(lungs.any(axis=(1, 2)))
        low = 1 - np.clip((np.arange(lungs.shape[0]) - z[0]) / max(z[-1] - z[0], 1), 0, 1)
        low = np.broadcast_to(low[:, None, None], lungs.shape)
        return np.stack([np.ones(lungs.shape), smooth, pleura, low, pleura * low, smooth * low], axis=-1)


def measure(one: Prepared, made: NDArray[np.float32]) -> dict[str, float]:
    """PSNR, SSIM and RMSE in the lungs, and the fibrosis found there."""
    lungs = np.asarray(one.data.lungs)
    truth = np.asarray(one.data.followup, np.float32)
    found = compare_images(np.clip(np.rint(made), -1024, 3071), truth, lungs, data_range_hu=RANGE_HU)

    def share(hu: NDArray[np.float32]) -> float:
        return float(((hu[lungs] >= FIBROSIS_HU[0]) & (hu[lungs] <= FIBROSIS_HU[1])).mean())

    return {
        "psnr": found.psnr_db,
        "ssim": found.ssim,
        "rmse": found.rmse_hu,
        "share": share(made),
        "true": share(truth),
    }


def train_fold(folder: Path, train: Sequence[Prepared], name: str, steps: int | None, stop: Callable[[], bool]) -> Path:
    """A model of a fold, unless it stands."""
    path = folder / name.replace(",", "").replace(" ", "-")
    if path.exists():
        return path
    row = name if name in ciresdiff.ABLATIONS else WHOLE
    recipe = recipe_of("small", row=row, seed=SEED, most_steps=steps)
    if name not in ciresdiff.ABLATIONS:
        recipe = dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, query="image"))
    data = CohortData([one.data for one in train], {"row": name})
    run = Run(path.with_name(path.name + ".run"), stop=stop)
    save_bundle(ciresdiff.fit(data, recipe, run), path, card=name)
    return path


def predicted(
    folder: Path, name: str, train: Sequence[Prepared], test: Sequence[Prepared], models: dict[str, Path]
) -> dict[str, Any]:
    """Figures of a method on the test subjects of a fold, and the cubes that the classifier sees; kept on disk."""
    place = folder / "predictions" / f"{name.replace(',', '').replace(' ', '-')}.npz"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        model = models.get(WHOLE if name in (SHUFFLED, MEAN) else name)
        predictor = None if model is None else load(load_bundle(model), "mean" if name == MEAN else "sample")
        trend = Trend(train) if name == "linear trend" else None
        rows, cubes = [], []
        for index, one in enumerate(test):
            hu, region = np.asarray(one.data.initial, np.float32), np.asarray(one.data.region)
            if predictor is not None:
                said = test[(index + 1) % len(test)].data.sentence if name == SHUFFLED else one.data.sentence
                made = predictor.predict(hu, region, said, seeds=SliceSeeds(SEED, one.subject))
            else:
                made = trend.predict(one) if trend is not None else hu
            rows.append(measure(one, made))
            cubes.append(lung_cube(made, region, SPACING_MM))
        with atomic_file(place) as aside, aside.open("wb") as file:
            np.savez(file, rows=json.dumps(rows), cubes=np.stack(cubes))
    found = np.load(place, allow_pickle=False)
    return {"rows": json.loads(str(found["rows"])), "cubes": found["cubes"]}


def diagnose(
    folder: Path,
    train: Sequence[Prepared],
    test: Sequence[Prepared],
    made: dict[str, dict[str, Any]],
    steps: int | None,
    stop: Callable[[], bool],
) -> dict[str, list[float]]:
    """The probability of "progressive" for each test subject by what the classifier sees as its second scan."""
    path = folder / "diagnosis.json"
    if path.exists():
        return dict(json.loads(path.read_text()))

    def case(one: Prepared, second: NDArray[np.float32] | None, *, tests: bool = False) -> Case:
        scans = [lung_cube(one.data.initial, one.data.region, SPACING_MM)] + ([] if second is None else [second])
        row = table_vector(one.tests, one.weeks) if tests else None
        return Case(np.stack(scans), row, one.label == "progressive")

    def real(one: Prepared) -> NDArray[np.float32]:
        return lung_cube(one.data.followup, one.data.region, SPACING_MM)

    recipe = ClassifierRecipe(seed=SEED)
    if steps is not None:
        recipe = dataclasses.replace(recipe, phase=dataclasses.replace(recipe.phase, steps=steps))
    net = fit_classifier([case(one, real(one)) for one in train], recipe, Run(folder / "classifier", stop=stop))
    found = {"real follow-up": probabilities(net, [case(one, real(one)) for one in test]).tolist()}
    for name, results in made.items():
        pairs = [case(one, second) for one, second in zip(test, results["cubes"], strict=True)]
        found[name] = probabilities(net, pairs).tolist()
    alone = fit_classifier([case(one, None, tests=True) for one in train], recipe, Run(folder / "alone", stop=stop))
    found["first scan and table alone"] = probabilities(alone, [case(one, None, tests=True) for one in test]).tolist()
    with atomic_file(path) as aside:
        aside.write_text(json.dumps(found))
    return found


def steps_curve(folder: Path, test: Sequence[Prepared], model: Path) -> list[list[str]]:
    """Sampling steps, PSNR, SSIM, seconds a scan."""
    path = folder / "steps.json"
    if not path.exists():
        rows = []
        for steps in STEPS:
            predictor = load(load_bundle(model), steps=steps)
            found, began = [], time.process_time()
            for one in test[:4]:
                hu = np.asarray(one.data.initial, np.float32)
                seeds = SliceSeeds(SEED, one.subject)
                found.append(
                    measure(one, predictor.predict(hu, np.asarray(one.data.region), one.data.sentence, seeds=seeds))
                )
            cost = (time.process_time() - began) / len(found)
            psnr, ssim = (np.mean([row[key] for row in found]) for key in ("psnr", "ssim"))
            rows.append([str(steps), f"{psnr:.2f}", f"{100 * ssim:.2f}", f"{cost:.0f}"])
        with atomic_file(path) as aside:
            aside.write_text(json.dumps(rows))
    return [list(row) for row in json.loads(path.read_text())]


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.{digits}f}"


def against(one: Sequence[float], other: Sequence[float], digits: int) -> str:
    """Mean of the paired difference with a bootstrap interval over subjects."""
    difference = np.array(one) - np.array(other)
    places = np.random.default_rng(SEED).integers(len(difference), size=(4000, len(difference)))
    low, high = np.percentile(difference[places].mean(axis=1), (2.5, 97.5))
    return f"{difference.mean():+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def report(
    done: dict[int, tuple[dict[str, dict[str, Any]], dict[str, list[float]], list[bool]]], curve: list[list[str]]
) -> str:
    """The section of docs/results.md."""
    every = {name: [row for made, _, _ in done.values() for row in made[name]["rows"]] for name in METHODS}
    truth = np.array([label for _, _, labels in done.values() for label in labels])
    whole = every[WHOLE]
    rows = []
    for name in METHODS:
        psnr, ssim, error = ([row[key] for row in every[name]] for key in ("psnr", "ssim", "rmse"))
        grown = np.mean([abs(row["share"] - row["true"]) for row in every[name]])
        rows.append(
            [
                name + (" (= cDiff)" if name == "DM" else ""),
                spread(psnr, 2),
                spread([100 * s for s in ssim], 2),
                spread(error, 1),
                f"{100 * grown:.2f}",
                "" if name == WHOLE else against([row["psnr"] for row in whole], psnr, 2),
            ]
        )
    judged = []
    for name in ("real follow-up", "first scan and table alone", *METHODS):
        p = np.array([value for _, found, _ in done.values() for value in found[name]])
        right, (low, high) = accuracy(p, truth)
        area, (least, most) = auc(p, truth, seed=SEED)
        judged.append(
            [
                name,
                f"{100 * right:.0f} ({100 * low:.0f} to {100 * high:.0f})",
                f"{area:.2f} ({least:.2f} to {most:.2f})",
            ]
        )
    header = ["method", "PSNR, dB", "SSIM, %", "RMSE, HU", "error of fibrosis share, %", f"{WHOLE} above it, dB"]
    parts = [
        "## Follow-up scans of pulmonary fibrosis",
        f"{len(truth)} simulated test subjects of {len(done)} folds, {int(truth.sum())} progressive; recipe `small` at "
        f"3 mm, inside the lungs, range {RANGE_HU:g} HU; mean ± SD over subjects, difference with a 95 % bootstrap "
        "interval. Every method is judged against the registered follow-up, whose noise nobody can predict.",
        table(header, rows),
        "The classifier (ResNet) was trained on real pairs; it sees the initial scan beside each method's follow-up.",
        table(["second scan", "accuracy, %", "AUC"], judged),
        f"Sampling steps of {WHOLE}, first fold, four subjects.",
        table(["steps", "PSNR, dB", "SSIM, %", "seconds a scan"], curve),
    ]
    return "\n\n".join(parts)


def main() -> None:
    """Run what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "followup")
    parser.add_argument("--subjects", type=int, default=SUBJECTS)
    parser.add_argument("--folds", type=int, nargs="*", default=list(range(FOLDS)), choices=range(FOLDS))
    parser.add_argument("--minutes", type=float, help="stop with a checkpoint after this long")
    parser.add_argument("--most-steps", type=int)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw the cohort")
    parser.add_argument("--rehearsal", action="store_true", help="print the tables, write nothing to docs")
    given = parser.parse_args()
    began = time.monotonic()
    folder: Path = given.folder
    models_of = folder / f"folds-{given.subjects}{f'-{given.most_steps}' if given.most_steps else ''}"

    def stop() -> bool:
        return given.minutes is not None and time.monotonic() - began > 60 * given.minutes

    def check(*_: object) -> None:
        if stop():
            raise Paused

    try:
        cohort = simulate_cohort(
            folder / "cohort", subjects=given.subjects, seed=SEED, spacing_mm=(SPACING_MM,) * 3, workers=given.workers,
            progress=check,
        )  # fmt: skip
        ready = prepare_cohort(cohort, folder / "subjects", SPACING_MM, stop=stop)
        parts = folds(ready)
        for index in given.folds:
            test = [ready[i] for i in parts[index]]
            train = [one for i, one in enumerate(ready) if i not in parts[index]]
            place = models_of / f"fold-{index}"
            models = {name: train_fold(place, train, name, given.most_steps, stop) for name in MODELS}
            made = {}
            for name in METHODS:
                made[name] = predicted(place, name, train, test, models)
                check()
            diagnose(place, train, test, made, given.most_steps, stop)
        curve = steps_curve(models_of, [ready[i] for i in parts[given.folds[0]]], models[WHOLE])
    except Paused:
        raise SystemExit("paused; run it again to go on") from None
    done = {}
    for index in given.folds if given.rehearsal else range(FOLDS):
        place = models_of / f"fold-{index}"
        if not (place / "diagnosis.json").exists():
            raise SystemExit(f"fold {index} is not done; run it again to go on")
        test = [ready[i] for i in parts[index]]
        made = {name: predicted(place, name, [], test, {}) for name in METHODS}
        done[index] = (
            made,
            json.loads((place / "diagnosis.json").read_text()),
            [one.label == "progressive" for one in test],
        )
    text = report(done, curve)
    print(text)
    if not given.rehearsal:
        write_section("followup", "python -m benchmarks.followup", text, seed=str(SEED))


if __name__ == "__main__":
    main()
