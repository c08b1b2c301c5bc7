"""CIResDiff's tables on simulated patients with pulmonary fibrosis: five folds by subject, in pieces that resume.

python -m benchmarks.followup                     # cohort, registration, every fold and method; writes docs/results
python -m benchmarks.followup --minutes 9         # one piece; run it again to go on
python -m benchmarks.followup --folds 0 2 4       # a second process takes the others; whoever ends last writes
python -m benchmarks.followup --subjects 140 --folds 0 --most-steps 400 --brief   # two hours of one core, half to
                                                  # draw; its page is followup-400.md
python -m benchmarks.followup --folds 0 --only SAGAN cDiff        # a second process trains these beside the first
python -m benchmarks.followup --standing          # trains nothing; the page of what stands
python -m benchmarks.followup --search            # the learning rates alone: four of every row
python -m benchmarks.followup --subjects 20 --folds 0 --most-steps 300 --rehearsal    # tables to the screen only

Everything goes to `runs/followup` (not kept in the repository). PSNR and SSIM are taken inside the initial scan's lungs
against the registered follow-up, over the HU map's 1,600 HU. The page names folds and rows that are not done.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.followup_chain import along_chain, chain_rows
from benchmarks.followup_models import SPACING_MM, opened, place_of_model, stored
from benchmarks.followup_page import Study, command_of, page_of
from benchmarks.followup_picture import draw, made_slices, typical, words
from benchmarks.followup_rows import (
    ASIDE,
    ASIDE_FOLDS,
    BRIEF,
    EVERY,
    FIRST,
    MODELS,
    OPPOSITE,
    PLAIN,
    SHUFFLED,
    WHOLE,
    of_model,
)
from benchmarks.followup_search import (
    SEARCHED,
    learned,
    others,
    rate_of,
    rate_rows,
    search,
    searched_on,
    train_row,
)
from benchmarks.followup_subjects import FOLDS, RANGE_HU, Trend, folds, looked_at, measure, refused, usable
from benchmarks.followup_tables import RULE, cost_row, rule
from benchmarks.results import ROOT, table, write_section
from concordct.methods.standardizer import Mode
from concordct.pipelines.followup_data import Prepared
from concordct.progression.ciresdiff_predict import Predictor, load
from concordct.progression.diagnosis import (
    ClassifierRecipe,
    LabelledPair,
    fit_classifier,
    lung_cube,
    pair_cubes,
    probabilities,
    table_vector,
    weeks_vector,
)
from concordct.progression.patches3d import region_box
from concordct.progression.simulated import simulate_cohort
from concordct.scanner.ipf import ipf_subject
from concordct.training.bundle import load_bundle
from concordct.training.engine import Paused, Run
from concordct.volumes.place import atomic_file
from concordct.volumes.seeds import SliceSeeds

#: With five folds 151 subjects train: registration refuses 5.
SEED, SUBJECTS = 7, 194
#: Any interval between the scans, not one year alone.
WEEKS_BETWEEN = (13.0, 156.0)
#: Sampling steps against quality, on the first fold; so many of its subjects for this, the seams and the ceiling.
STEPS, FEW = (1, 2, 4), 2
#: Noise of a voxel of the simulated scans, HU.
NOISE_HU = 12.0
#: Names of simulated patients, who can be drawn again.
SIMULATED = re.compile(r"ipf-\d+")


def sentence_for(name: str, test: Sequence[Prepared], index: int) -> str:
    """The subject's own text, or the next one's: of anybody, or of who fares otherwise."""
    one = test[index]
    others = [*test[index + 1 :], *test[:index]]
    if name == SHUFFLED:
        return others[0].data.sentence
    if name == OPPOSITE:
        return next(other for other in others if other.label != one.label).data.sentence
    return one.data.sentence


def predicted(
    folder: Path, name: str, train: Sequence[Prepared], test: Sequence[Prepared], models: dict[str, Path]
) -> dict[str, Any]:
    """Figures of a method on the test subjects of a fold, and the cubes that the classifier sees; kept on disk."""
    place = stored(folder, name)
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        drawn = name.endswith(", drawn")
        mode: Mode = "sample" if drawn else "mean"
        model = models.get(of_model(name))
        if model is None and name not in PLAIN:
            raise ValueError(f"{place}: expected a model of {name}, found none")
        guess = None if model is None else opened(of_model(name), load_bundle(model), mode)
        trend = Trend(train) if name == "linear trend" else None
        rows: list[dict[str, float]] = []
        cubes = []
        for index, one in enumerate(test):
            began = time.process_time()
            hu, region = np.asarray(one.data.initial, np.float32), np.asarray(one.data.region)
            if guess is not None:
                made = guess(one, sentence_for(name, test, index))
            else:
                made = trend.predict(one) if trend is not None else hu
            rows.append({**measure(one, made), "seconds": time.process_time() - began})
            cubes.append(lung_cube(made, region, SPACING_MM))
        with atomic_file(place) as aside, aside.open("wb") as file:
            np.savez(file, rows=json.dumps(rows), cubes=np.stack(cubes).astype(np.float32))
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
    found: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
    if found and set(made) <= set(found):
        return found

    def case(one: Prepared, second: NDArray[np.float32] | None, *, tests: bool = False) -> LabelledPair:
        initial = lung_cube(one.data.initial, one.data.region, SPACING_MM)
        # How much a year adds is what the label says, so whoever judges two scans knows how far they lie apart.
        row = table_vector(one.tests, one.weeks) if tests else weeks_vector(one.weeks)
        scans = initial[None] if second is None else pair_cubes(initial, second)
        return LabelledPair(scans, row, one.label == "progressive")

    def real(one: Prepared) -> NDArray[np.float32]:
        return lung_cube(one.data.followup, one.data.region, SPACING_MM)

    recipe = ClassifierRecipe(seed=SEED)
    if steps is not None:
        recipe = dataclasses.replace(recipe, phase=dataclasses.replace(recipe.phase, steps=steps))
    net = fit_classifier([case(one, real(one)) for one in train], recipe, Run(folder / "classifier", stop=stop))
    found["real follow-up"] = probabilities(net, [case(one, real(one)) for one in test]).tolist()
    for name, results in made.items():
        if name in found:
            continue
        pairs = [case(one, second) for one, second in zip(test, results["cubes"], strict=True)]
        found[name] = probabilities(net, pairs).tolist()
    alone = fit_classifier([case(one, None, tests=True) for one in train], recipe, Run(folder / "alone", stop=stop))
    found["first scan and table alone"] = probabilities(alone, [case(one, None, tests=True) for one in test]).tolist()
    with atomic_file(path, overwrite=True) as aside:
        aside.write_text(json.dumps(found))
    return found


def on_few(folder: Path, test: Sequence[Prepared], model: Path) -> dict[str, Any]:
    """On some subjects of the first fold: steps against quality, seams against noise, and what nobody can predict."""
    path = folder / "few.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    few = test[:FEW]

    def predict(predictor: Predictor, one: Prepared) -> NDArray[np.float32]:
        hu, seeds = np.asarray(one.data.initial, np.float32), SliceSeeds(SEED, one.subject)
        return predictor.predict(hu, np.asarray(one.data.region), one.data.sentence, seeds=seeds)

    curve = []
    for steps in STEPS:
        predictor = load(load_bundle(model), steps=steps)
        began = time.process_time()
        found = [measure(one, predict(predictor, one)) for one in few]
        cost = (time.process_time() - began) / len(found)
        psnr, ssim = (np.mean([row[key] for row in found]) for key in ("psnr", "ssim"))
        curve.append([str(steps), f"{psnr:.2f}", f"{100 * ssim:.2f}", f"{cost:.0f}"])

    # The same volume in the recipe's patches and in one piece.
    patches, errors = load(load_bundle(model), "mean"), []
    divisor = patches.system.net.divisor
    for one in few:
        longest = int(max(np.subtract(*region_box(np.asarray(one.data.region))[::-1])))
        whole = dataclasses.replace(patches, patch=max(-(-longest // divisor) * divisor, patches.patch))
        lungs = np.asarray(one.data.lungs)
        errors.append((predict(patches, one) - predict(whole, one))[lungs])
    pooled = np.concatenate(errors)
    seams = {
        "rms": float(np.sqrt(np.mean(pooled**2))),
        "p999": float(np.percentile(np.abs(pooled), 99.9)),
        "patch": patches.patch,
        "overlap": patches.overlap,
    }

    # The true change, drawn without noise where the initial scan lies: what is left is registration and noise.
    ceiling = []
    for one in (one for one in few if SIMULATED.fullmatch(one.subject)):
        number = int(one.subject.removeprefix("ipf-"))
        patient = ipf_subject(number, seed=SEED, weeks_between=WEEKS_BETWEEN)
        still = dataclasses.replace(patient, poses=(patient.poses[0],) * 2)
        true = still.draw_volume("followup", (SPACING_MM,) * 3, one.data.initial.shape, noise_hu=0.0)
        ceiling.append(measure(one, true.hu))
    result: dict[str, Any] = {"subjects": len(few), "curve": curve, "seams": seams, "ceiling": ceiling}
    with atomic_file(path) as aside:
        aside.write_text(json.dumps(result))
    return result


def main() -> None:
    """Run what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "followup")
    parser.add_argument("--subjects", type=int, default=SUBJECTS)
    parser.add_argument("--folds", type=int, nargs="*", default=list(range(FOLDS)), choices=range(FOLDS))
    parser.add_argument("--minutes", type=float, help="stop with a checkpoint after this long")
    parser.add_argument("--most-steps", type=int)
    parser.add_argument("--aside", nargs="*", default=list(ASIDE), choices=ASIDE, help="of these, train these alone")
    parser.add_argument("--only", nargs="*", choices=(*MODELS, *ASIDE), help="train and predict with these, judge none")
    parser.add_argument("--search", action="store_true", help="choose learning rates of --only, or of all; train none")
    parser.add_argument("--standing", action="store_true", help="train no follow-up: the page of the models that stand")
    parser.add_argument("--brief", action="store_true", help=f"fewer rows: {', '.join(BRIEF)}")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw the cohort")
    parser.add_argument("--rehearsal", action="store_true", help="print the tables, write nothing to docs")
    given = parser.parse_args()
    began = time.monotonic()
    folder: Path = given.folder
    rows = BRIEF if given.brief else EVERY
    models_of = folder / f"folds-{given.subjects}{f'-{given.most_steps}' if given.most_steps else ''}"

    def stop() -> bool:
        return given.minutes is not None and time.monotonic() - began > 60 * given.minutes

    def check(*_: object) -> None:
        if stop():
            raise Paused

    paused = False
    cohort = folder / "cohort" / "cohort.csv"
    try:
        cohort = simulate_cohort(
            folder / "cohort", subjects=given.subjects, seed=SEED, spacing_mm=(SPACING_MM,) * 3,
            weeks_between=WEEKS_BETWEEN, workers=given.workers, progress=check,
        )  # fmt: skip
        ready = usable(cohort, folder / "subjects", stop)
        parts = folds(ready)
        for name in (given.only or SEARCHED) if given.search else ():
            search(models_of, name, ready, parts, given.most_steps, stop)
        if given.search:
            print(table(["method", "rate: gain, dB", "chosen", "processor min"], rate_rows(models_of)))
            return
        # Each fold is whole before the next begins: a run that ends early has a table of the folds it has.
        for index in given.folds:
            further = given.aside if index in ASIDE_FOLDS else []
            names, place = given.only or (*MODELS, *further), models_of / f"fold-{index}"
            if given.standing:
                names = [name for name in names if place_of_model(place, name).exists()]
            run_fold(
                models_of, index, ready, parts, names, [*rows, *FIRST], given.most_steps, stop, standing=given.standing
            )
            made = made_in(place, rows, index)
            if given.only or not all(stored(place, name).exists() for name in made):
                continue
            # Verdicts are shown of the folds that have every row.
            if index in ASIDE_FOLDS or not set(given.folds) & set(ASIDE_FOLDS):
                judge_fold(place, ready, parts[index], made, given.most_steps, stop)
            if index == 0 and not given.brief:
                on_few(models_of, [ready[i] for i in parts[index]], place / place_of_model(Path(), WHOLE))
    except Paused:
        paused = True
    if given.only or (paused and given.rehearsal):
        raise SystemExit("paused; run it again to go on" if paused else None)
    done = {}
    for index in given.folds:
        place = models_of / f"fold-{index}"
        if not all(stored(place, name).exists() for name in rows):
            continue
        test = [ready[i] for i in parts[index]]
        made = {name: predicted(place, name, [], test, {}) for name in made_in(place, rows, index)}
        train = [one for i, one in enumerate(ready) if i not in parts[index]]
        judged = place / "diagnosis.json"
        done[index] = (
            made,
            {**json.loads(judged.read_text()), RULE: rule(train, test)} if judged.exists() else {},
            [one.label == "progressive" for one in test],
        )
    if not done:
        raise SystemExit("no fold is done yet; run it again to go on")
    costs = [
        row
        for index in done
        for name in (*MODELS, *ASIDE)
        if (row := cost_row(models_of / f"fold-{index}", name, len(ready) - len(parts[index]), rate_of)) is not None
    ]
    seen = looked_at(ready)
    left_out = {name for name in refused(folder / "subjects") if name not in {one.subject for one in ready}}
    few = models_of / "few.json"
    study = Study(
        done=done,
        rows=rows,
        trained=[len(ready) - len(parts[index]) for index in done],
        few=json.loads(few.read_text()) if few.exists() else None,
        costs=costs,
        chain=chain_rows(models_of / f"fold-{min(done)}", MODELS),
        rates=rate_rows(models_of),
        searched=searched_on(models_of),
        others=[
            one for index in done for one in others(models_of / f"fold-{index}", (*MODELS, *ASIDE), given.most_steps)
        ],
        seen={index: [ready[i].subject in seen for i in parts[index]] for index in done},
        left_out=len(left_out & {f"ipf-{number:04d}" for number in range(given.subjects)}),
        steps=given.most_steps,
        weeks=WEEKS_BETWEEN,
        range_hu=RANGE_HU,
        noise_hu=NOISE_HU,
    )
    text = page_of(study)
    print(text)
    if not given.rehearsal:
        asked = [name for name in ASIDE if (models_of / f"fold-{min(done)}" / place_of_model(Path(), name)).exists()]
        typed = command_of(given.subjects, brief=given.brief, steps=given.most_steps, folds=list(done), aside=asked)
        name = "followup" if given.most_steps is None else f"followup-{given.most_steps}"
        first = min(done)
        test = [ready[i] for i in parts[first]]
        one, picture = typical(test, study.seen[first]), ROOT / "docs" / "figures" / f"{name}-images.png"
        train = [one for i, one in enumerate(ready) if i not in parts[first]]
        draw(one, made_slices(models_of / f"fold-{first}", (*MODELS, *ASIDE), train, one), picture)
        write_section(name, typed, "\n\n".join([text, *words(one, picture)]), seed=str(SEED))
    if paused:
        raise SystemExit("paused; run it again to go on")


def made_in(place: Path, rows: Sequence[str], index: int) -> list[str]:
    """Rows that a fold has predictions of."""
    beside = [name for name in FIRST if index in ASIDE_FOLDS and stored(place, name).exists()]
    return [*rows, *beside]


def run_fold(
    folder: Path,
    fold: int,
    ready: Sequence[Prepared],
    parts: Sequence[Sequence[int]],
    names: Sequence[str],
    rows: Sequence[str],
    steps: int | None,
    stop: Callable[[], bool],
    *,
    standing: bool = False,
) -> None:
    """Train the models of a fold that it does not have yet, one after the other, and predict their rows.

    Parameters
    ----------
    standing : all of them stand; take them as they are.
    """
    place, test = folder / f"fold-{fold}", [ready[i] for i in parts[fold]]
    train = [one for i, one in enumerate(ready) if i not in parts[fold]]
    for row in PLAIN:
        if row in rows:
            predicted(place, row, train, test, {})
    for name in names:
        own = [row for row in rows if row not in PLAIN and of_model(row) == name]
        model = place_of_model(place, name)
        if not standing:
            rate = search(folder, name, ready, parts, steps, stop) if fold in ASIDE_FOLDS else None
            model = train_row(place, train, name, steps, rate, stop)
        learned(place, name, train)
        if name in MODELS:
            along_chain(place, name, train)
        for row in own:
            predicted(place, row, train, test, {name: model})
            if stop():
                raise Paused


def judge_fold(
    place: Path,
    ready: Sequence[Prepared],
    tested: Sequence[int],
    rows: Sequence[str],
    steps: int | None,
    stop: Callable[[], bool],
) -> None:
    """What the classifier says of a fold's predictions."""
    test = [ready[i] for i in tested]
    train = [one for i, one in enumerate(ready) if i not in tested]
    diagnose(place, train, test, {name: predicted(place, name, train, test, {}) for name in rows}, steps, stop)


if __name__ == "__main__":
    main()
