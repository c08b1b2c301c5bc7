"""Models of `benchmarks.followup`: CIResDiff's rows, its rivals of the catalogue, and DiffusionCT on slices."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.methods.network import TrainingData
from concordct.methods.paired import diffusionct
from concordct.methods.standardizer import Mode
from concordct.pipelines.followup import recipe_of, rival_recipe
from concordct.pipelines.followup_data import Prepared
from concordct.progression import catalogue
from concordct.progression.ciresdiff import CohortData
from concordct.training.bundle import Bundle
from concordct.training.data import Images
from concordct.training.engine import Run
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

SEED = 7
#: Grid of the whole benchmark, mm: coarser than the recipe's 3 mm, half the voxels to draw, to register, to predict.
SPACING_MM = 4.0
#: Rows of Table 2 and their names in the catalogue.
RIVALS = {
    "Pix2Pix 3D": "pix2pix3d",
    "SAGAN": "sagan",
    "TransUNet": "transunet",
    "ResViT": "resvit",
    "cDiff": "cdiff",
}
#: The rival that standardizes slices, and its tile.
SLICES, SLICES_TILE = "DiffusionCT", 64
#: Sampling steps of cDiff, whose recipe has 10: these took 20 s a scan.
CDIFF_STEPS = 4
#: Steps of recipe `small`, and so of every model: a text tower's 100 come before, DiffusionCT's phases share them.
FULL_STEPS = 800
#: Phases of CIResDiff and of its rivals, the last one last.
PHASES = ("contrast", "diffusion", "game")


def place_of_model(folder: Path, name: str) -> Path:
    """Where a fold keeps a model."""
    return folder / name.replace(",", "").replace(" ", "-")


def stored(folder: Path, name: str) -> Path:
    """Where a fold keeps what a method made."""
    return folder / "predictions" / f"{place_of_model(folder, name).name}.npz"


def fit(train: Sequence[Prepared], name: str, steps: int | None, rate: float | None, run: Run) -> Bundle:
    """A model of a row by recipe `small` on the benchmark's grid, or the part of it that a run in pieces came to.

    Parameters
    ----------
    steps, rate : see `recipe_for`.
    """
    recipe = recipe_for(name, steps, rate)
    if name == SLICES:
        return diffusionct.fit(_slices(train), recipe, run)
    data = CohortData([one.data for one in train], {"row": name})
    return catalogue.method(RIVALS.get(name, "ciresdiff")).fit(data, recipe, run)


def recipe_for(name: str, steps: int | None, rate: float | None) -> Any:
    """Recipe `small` of a row on the benchmark's grid.

    Parameters
    ----------
    steps : None for the recipe's own.
    rate : learning rate of the last phase, None for the recipe's own. DiffusionCT's other phases follow in proportion.
    """
    if name == SLICES:
        recipe = _recipe_of_slices(steps)
        share = 1.0 if rate is None else rate / recipe.phases[-1][1].learning_rate
        phases = (
            (phase, dataclasses.replace(one, learning_rate=share * one.learning_rate)) for phase, one in recipe.phases
        )
        return dataclasses.replace(recipe, phases=tuple(phases))
    if name in RIVALS:
        phase, found = "game", rival_recipe(RIVALS[name], "small", seed=SEED, most_steps=steps)
    else:
        phase, found = "diffusion", recipe_of("small", row=name, seed=SEED, most_steps=steps)
    found = dataclasses.replace(found, spacing_mm=SPACING_MM)
    if rate is not None:
        changed = dataclasses.replace(getattr(found, phase), learning_rate=rate)
        found = dataclasses.replace(found, **{phase: changed})
    return found


def said_of(name: str, steps: int | None, rate: float | None) -> dict[str, Any]:
    """What a bundle would say of its phases and networks; the text tower's vocabulary is its training sentences'."""
    recipe = recipe_for(name, steps, rate)
    known = ((phase, getattr(recipe, phase, None)) for phase in PHASES)
    phases = dict(recipe.phases) if name == SLICES else {phase: one for phase, one in known if one is not None}
    config = dataclasses.asdict(recipe.config)
    config.pop("text", None)
    stored_as = {"phases": {phase: dataclasses.asdict(one) for phase, one in phases.items()}, "config": config}
    found: dict[str, Any] = json.loads(json.dumps(stored_as))
    return found


def phases_of(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """Phases that a model was trained in, in their order."""
    recipe = bundle.metadata["recipe"]
    found: dict[str, dict[str, Any]] = recipe.get("phases") or {one: recipe[one] for one in PHASES if one in recipe}
    return found


def made_otherwise(name: str, bundle: Bundle, steps: int | None, rate: float | None) -> bool:
    """Whether a model of a row has other phases or networks than `fit` would give it now."""
    said, config = said_of(name, steps, rate), type(recipe_for(name, steps, rate).config)
    # What a model does not name is what it was before it had a name.
    usual = {one.name: one.default for one in dataclasses.fields(config) if one.default is not dataclasses.MISSING}
    return not (
        _agrees(phases_of(bundle), said["phases"]) and _agrees({**usual, **bundle.metadata["config"]}, said["config"])
    )


def _agrees(found: Any, wanted: Any) -> bool:
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        return all(_agrees(found[key], wanted[key]) for key in found if key in wanted)
    if isinstance(found, tuple | list) and isinstance(wanted, tuple | list):
        return list(found) == list(wanted)
    return bool(found == wanted)


def _recipe_of_slices(steps: int | None) -> diffusionct.Recipe:
    small = diffusionct.RECIPES["small"]
    share = min(steps or FULL_STEPS, FULL_STEPS) / sum(phase.steps for _, phase in small.phases)
    phases = tuple(
        (name, dataclasses.replace(phase, steps=max(1, round(share * phase.steps)))) for name, phase in small.phases
    )
    config = dataclasses.replace(small.config, tile=SLICES_TILE)
    return dataclasses.replace(small, config=config, patch=SLICES_TILE, phases=phases, seed=SEED)


def _slices(train: Sequence[Prepared]) -> TrainingData:
    pairs = []
    for one in train:
        whole = np.array([0, one.data.initial.shape[1] - 1, 0, one.data.initial.shape[2] - 1], np.int32)
        boxes = np.tile(whole, (len(one.data.initial), 1))
        pairs.append(Images(one.subject, one.data.initial, one.data.followup, boxes))
    return TrainingData(pairs, [], {"row": SLICES})


#: What predicts a subject's follow-up, [z, y, x] HU, told a sentence.
Guess = Callable[[Prepared, str], NDArray[np.float32]]


def opened(name: str, bundle: Bundle, mode: Mode) -> Guess:
    """The model of a row at work."""
    if name == SLICES:
        standardizer = diffusionct.load(bundle, mode)

        def of_slices(one: Prepared, said: str) -> NDArray[np.float32]:
            hu = np.asarray(one.data.initial, np.float32)
            scan = Volume(hu, np.diag([*(SPACING_MM,) * 3, 1.0]), slice_thickness_mm=SPACING_MM)
            return standardizer(scan, generator=SliceSeeds(SEED, one.subject)).hu

        return of_slices
    steps = CDIFF_STEPS if RIVALS.get(name) == "cdiff" else None
    predictor = catalogue.method(RIVALS.get(name, "ciresdiff")).load(bundle, mode, steps=steps)

    def of_volume(one: Prepared, said: str) -> NDArray[np.float32]:
        hu, region = np.asarray(one.data.initial, np.float32), np.asarray(one.data.region)
        return predictor.predict(hu, region, said, seeds=SliceSeeds(SEED, one.subject))

    return of_volume
