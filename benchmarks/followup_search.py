"""Learning rates of `benchmarks.followup`, and the training of a row by the one chosen.

Every row that is trained has four, at an eighth of the steps, on patients whom neither of the first two folds tests:
most of them train, eight judge by the PSNR of the estimate above that of no change. A row that varies another takes
that one's. The other folds test exactly those patients, so their models keep the recipes' rates.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.followup_models import (
    FULL_STEPS,
    RIVALS,
    SLICES,
    Guess,
    fit,
    made_otherwise,
    opened,
    phases_of,
    place_of_model,
    said_of,
    stored,
)
from benchmarks.followup_rows import ASIDE_FOLDS, MODELS, WHOLE, rows_of
from benchmarks.followup_subjects import measure
from benchmarks.results import once, spent_in
from concordct.pipelines.followup_data import Prepared
from concordct.progression.ciresdiff_recipes import VARIANTS
from concordct.training.bundle import load_bundle, save_bundle
from concordct.training.engine import Run
from concordct.volumes.place import atomic_file

#: Rates that are tried, in recipe `small`'s.
SHARES = (0.25, 0.5, 1.0, 2.0)
#: Rows whose loss hardly moved in the study before, searched first and elsewhere: SAGAN's upwards, since its features
#: reach the output small; ResViT's downwards, as its paper has it.
ELSEWHERE: dict[str, tuple[float, ...]] = {
    "SAGAN": (1e-3, 2e-3, 4e-3, 8e-3),
    "ResViT": (1e-4, 2e-4, 4e-4, 8e-4),
}
#: Rows that are searched.
SEARCHED: tuple[str, ...] = (*MODELS, *RIVALS, SLICES)
#: A rate is tried for one in so many of the steps.
EIGHTH = 8
#: Patients who judge a learning rate, and trained ones on whom it is told whether a model learned.
JUDGES = 8


def place_of_search(folder: Path, name: str) -> Path:
    """Where a study keeps what a method's search found."""
    return place_of_model(folder / "search", name) / "search.json"


def searched_row(name: str) -> str:
    """The row whose search a row takes its rate from: a variant's is the one that it varies."""
    return VARIANTS[name][0] if name in VARIANTS else name


def rates_of(name: str) -> tuple[float, ...]:
    """Learning rates of a row's last phase that its search tries."""
    return ELSEWHERE.get(name) or tuple(share * usual_rate(name) for share in SHARES)


def usual_rate(name: str) -> float:
    """Learning rate of the last phase of a row's recipe."""
    return float(list(said_of(name, None, None)["phases"].values())[-1]["learning_rate"])


def chosen(folder: Path, name: str) -> float | None:
    """The rate that a row's search chose, None for its recipe's where the search is not done.

    The largest gain has it; where the recipe's own rate is among the four, by more than one standard error of the
    difference from that, or the recipe's stays: eight patients and an eighth of the steps tell no smaller ones apart.
    """
    name = searched_row(name)
    path = place_of_search(folder, name)
    tried = json.loads(path.read_text())["tried"] if path.exists() else []
    if name not in SEARCHED or len(tried) < len(rates_of(name)):
        return None
    best = max(tried, key=lambda one: one["gain"])
    usual = next((one for one in tried if one["rate"] == usual_rate(name)), best)
    if "gains" in best and "gains" in usual:
        more = np.subtract(best["gains"], usual["gains"])
        if len(more) > 1 and more.mean() <= more.std(ddof=1) / len(more) ** 0.5:
            best = usual
    return float(best["rate"])


def search(
    folder: Path,
    name: str,
    ready: Sequence[Prepared],
    parts: Sequence[Sequence[int]],
    steps: int | None,
    stop: Callable[[], bool],
) -> float | None:
    """The learning rate of a row in the first two folds; what is searched once stands in `search.json`.

    Parameters
    ----------
    folder : of all folds. parts : test subjects of each fold. steps : see `fit`.
    """
    name = searched_row(name)
    if name not in SEARCHED:
        return None
    path = place_of_search(folder, name)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"tried": []}
    seen = [i for fold, part in enumerate(parts) if fold not in ASIDE_FOLDS for i in part]
    judges = spaced(seen)
    trains = [i for i in seen if i not in judges]
    for index, rate in enumerate(rates_of(name)):
        if index < len(found["tried"]):
            continue
        run = Run(path.parent / str(index), stop=stop)
        bundle = fit([ready[i] for i in trains], name, (steps or FULL_STEPS) // EIGHTH, rate, run)
        gain = gains([ready[i] for i in judges], opened(name, bundle, "mean"))
        minutes = sum(seconds for _, seconds in spent_in(run.folder).values()) / 60
        found["tried"].append({"rate": rate, "gain": float(np.mean(gain)), "gains": gain, "minutes": minutes})
        found |= {"trained": len(trains), "judged": len(judges)}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, overwrite=True) as aside:
            aside.write_text(json.dumps(found, indent=1))
    return chosen(folder, name)


def spaced(every: Sequence[Any]) -> list[Any]:
    """`JUDGES` of a sequence, at equal distances."""
    return list(every[:: max(-(-len(every) // JUDGES), 1)])


def gains(subjects: Sequence[Prepared], guess: Guess) -> list[float]:
    """PSNR of a guess above that of no change, dB, of each subject."""
    return [
        measure(one, guess(one, one.data.sentence))["psnr"] - measure(one, np.asarray(one.data.initial))["psnr"]
        for one in subjects
    ]


def train_row(
    place: Path,
    train: Sequence[Prepared],
    name: str,
    steps: int | None,
    rate: float | None,
    stop: Callable[[], bool],
) -> Path:
    """A row's model of a fold, unless it stands. One that was made otherwise stands until its successor is trained."""
    path = place_of_model(place, name)
    run = path.with_name(f"{path.name}.run")
    old = path.exists()
    if old and not made_otherwise(name, load_bundle(path), steps, rate):
        return path
    if old:
        run = path.with_name(f"{path.name}-again.run")
    _same_recipe(run, said_of(name, steps, rate))
    bundle = fit(train, name, steps, rate, Run(run, stop=stop))
    if old:
        _forget(place, name)
        shutil.rmtree(path.with_name(f"{path.name}.run"), ignore_errors=True)
        run.rename(path.with_name(f"{path.name}.run"))
    save_bundle(bundle, path, card=name, overwrite=True)
    return path


def _same_recipe(run: Path, said: dict[str, Any]) -> None:
    """A run whose checkpoints another recipe left begins anew."""
    path = run / "recipe.json"
    if run.exists() and (not path.exists() or json.loads(path.read_text()) != said):
        shutil.rmtree(run)
    run.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said, indent=1))


def _forget(place: Path, name: str) -> None:
    """Take away what a fold's former model made and what was said of it."""
    model = place_of_model(place, name).name
    gone = [stored(place, row) for row in rows_of(name)]
    gone += [place / folder / f"{model}.json" for folder in ("learned", "chain")]
    gone += [place.parent / "few.json"] if (name, place.name) == (WHOLE, "fold-0") else []
    for path in gone:
        path.unlink(missing_ok=True)
    judged = place / "diagnosis.json"
    if judged.exists():
        kept = {row: said for row, said in json.loads(judged.read_text()).items() if row not in rows_of(name)}
        with atomic_file(judged, overwrite=True) as aside:
            aside.write_text(json.dumps(kept))


def others(place: Path, names: Sequence[str], steps: int | None) -> list[str]:
    """Models of a fold that were made otherwise than the search and the recipes of now ask for."""
    fold = int(place.name.removeprefix("fold-"))
    found = []
    for name in names:
        model = place_of_model(place, name)
        rate = chosen(place.parent, name) if fold in ASIDE_FOLDS else None
        if model.exists() and made_otherwise(name, load_bundle(model), steps, rate):
            found.append(f"{name} (fold {fold})")
    return found


def rate_of(model: Path) -> str:
    """Learning rate of a model's last phase, as it names it."""
    return f"{list(phases_of(load_bundle(model)).values())[-1]['learning_rate']:g}"


def learned(place: Path, name: str, train: Sequence[Prepared]) -> list[float]:
    """`gains` of a fold's model on some of its own training subjects: whether it has learned at all. Kept on disk."""
    model = place_of_model(place, name)
    found: list[float] = once(
        place / "learned" / f"{model.name}.json",
        lambda: gains(spaced(train), opened(name, load_bundle(model), "mean")),
    )
    return found


def rate_rows(folder: Path) -> list[list[str]]:
    """What each method's search found: gain of each rate on validation, the one chosen, processor minutes."""
    rows = []
    for name in SEARCHED:
        path = place_of_search(folder, name)
        tried = json.loads(path.read_text())["tried"] if path.exists() else []
        best = chosen(folder, name)
        if best is not None:
            minutes = sum(one["minutes"] for one in tried)
            gains_of = ", ".join(f"{one['rate']:g}: {one['gain']:+.2f}" for one in tried)
            rows.append([name, gains_of, f"{best:g}", f"{minutes:.1f}"])
    return rows


def searched_on(folder: Path) -> tuple[int, int]:
    """Subjects that train and that judge in the searches; 0 where there was none."""
    for path in (place_of_search(folder, name) for name in SEARCHED):
        if path.exists():
            found = json.loads(path.read_text())
            return int(found["trained"]), int(found["judged"])
    return 0, 0
