"""Models of `benchmarks.followup`: CIResDiff's rows, its rivals of the catalogue, and DiffusionCT on slices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
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


def place_of_model(folder: Path, name: str) -> Path:
    """Where a fold keeps a model."""
    return folder / name.replace(",", "").replace(" ", "-")


def fit(train: Sequence[Prepared], name: str, steps: int | None, rate: float | None, run: Run) -> Bundle:
    """A model of a row by recipe `small` on the benchmark's grid, or the part of it that a run in pieces came to.

    Parameters
    ----------
    steps : None for the recipe's own. rate : learning rate of the last phase, None for the recipe's own.
    """
    if name == SLICES:
        return diffusionct.fit(_slices(train), _recipe_of_slices(steps), run)
    data = CohortData([one.data for one in train], {"row": name})
    recipe: Any
    if name in RIVALS:
        phase, recipe = "game", rival_recipe(RIVALS[name], "small", seed=SEED, most_steps=steps)
    else:
        phase, recipe = "diffusion", recipe_of("small", row=name, seed=SEED, most_steps=steps)
    recipe = dataclasses.replace(recipe, spacing_mm=SPACING_MM)
    if rate is not None:
        changed = dataclasses.replace(getattr(recipe, phase), learning_rate=rate)
        recipe = dataclasses.replace(recipe, **{phase: changed})
    return catalogue.method(RIVALS.get(name, "ciresdiff")).fit(data, recipe, run)


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
