"""Learning rates of `benchmarks.followup`, and the training of a row by the one chosen.

A method of `SEARCHED` has four, at an eighth of the steps, on patients whom neither of the first two folds tests: most
of them train, eight judge by the PSNR of the estimate above that of no change. The others keep their recipes'.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.followup_models import FULL_STEPS, Guess, fit, opened, place_of_model
from benchmarks.followup_rows import ASIDE_FOLDS
from benchmarks.followup_subjects import measure
from benchmarks.results import spent_in
from concordct.pipelines.followup_data import Prepared
from concordct.training.bundle import load_bundle, save_bundle
from concordct.training.engine import Run
from concordct.volumes.place import atomic_file

#: Whose loss hardly moved at the recipe's learning rate, the rates tried instead: SAGAN's upwards, since its features
#: reach the output small; ResViT's downwards, as its paper has it.
SEARCHED: dict[str, tuple[float, ...]] = {
    "SAGAN": (1e-3, 2e-3, 4e-3, 8e-3),
    "ResViT": (1e-4, 2e-4, 4e-4, 8e-4),
}
#: A rate is tried for one in so many of the steps.
EIGHTH = 8
#: Patients who judge a learning rate, and trained ones on whom it is told whether a model learned.
JUDGES = 8


def place_of_search(folder: Path, name: str) -> Path:
    """Where a study keeps what a method's search found."""
    return place_of_model(folder / "search", name) / "search.json"


def search(
    folder: Path,
    name: str,
    ready: Sequence[Prepared],
    parts: Sequence[Sequence[int]],
    steps: int | None,
    stop: Callable[[], bool],
) -> float | None:
    """The learning rate of a row, None for its recipe's; what is searched once stands in `search.json`.

    Parameters
    ----------
    folder : of all folds. parts : test subjects of each fold. steps : see `fit`.
    """
    if name not in SEARCHED:
        return None
    path = place_of_search(folder, name)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"tried": []}
    seen = [i for fold, part in enumerate(parts) if fold not in ASIDE_FOLDS for i in part]
    judges = spaced(seen)
    trains = [i for i in seen if i not in judges]
    for index, rate in enumerate(SEARCHED[name]):
        if index < len(found["tried"]):
            continue
        run = Run(path.parent / str(index), stop=stop)
        bundle = fit([ready[i] for i in trains], name, (steps or FULL_STEPS) // EIGHTH, rate, run)
        gain = gains([ready[i] for i in judges], opened(name, bundle, "mean"))
        minutes = sum(seconds for _, seconds in spent_in(run.folder).values()) / 60
        found["tried"].append({"rate": rate, "gain": float(np.mean(gain)), "minutes": minutes})
        found |= {"trained": len(trains), "judged": len(judges)}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, overwrite=True) as aside:
            aside.write_text(json.dumps(found, indent=1))
    return float(max(found["tried"], key=lambda one: one["gain"])["rate"])


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
    """A row's model of a fold, unless it stands."""
    path = place_of_model(place, name)
    if not path.exists():
        run = Run(path.with_name(path.name + ".run"), stop=stop)
        save_bundle(fit(train, name, steps, rate, run), path, card=name)
    return path


def learned(place: Path, name: str, train: Sequence[Prepared]) -> list[float]:
    """`gains` of a fold's model on some of its own training subjects: whether it has learned at all. Kept on disk."""
    model = place_of_model(place, name)
    path = place / "learned" / f"{model.name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = gains(spaced(train), opened(name, load_bundle(model), "mean"))
        with atomic_file(path) as aside:
            aside.write_text(json.dumps(found))
    kept: list[float] = json.loads(path.read_text())
    return kept


def rate_rows(folder: Path) -> list[list[str]]:
    """What each method's search found: gain of each rate on validation, the one chosen, processor minutes."""
    rows = []
    for name in SEARCHED:
        path = place_of_search(folder, name)
        tried = json.loads(path.read_text())["tried"] if path.exists() else []
        if len(tried) == len(SEARCHED[name]):
            best = max(tried, key=lambda one: one["gain"])
            minutes = sum(one["minutes"] for one in tried)
            gains_of = ", ".join(f"{one['rate']:g}: {one['gain']:+.2f}" for one in tried)
            rows.append([name, gains_of, f"{best['rate']:g}", f"{minutes:.1f}"])
    return rows


def searched_on(folder: Path) -> tuple[int, int]:
    """Subjects that train and that judge in the searches; 0 where there was none."""
    for path in (place_of_search(folder, name) for name in SEARCHED):
        if path.exists():
            found = json.loads(path.read_text())
            return int(found["trained"]), int(found["judged"])
    return 0, 0
