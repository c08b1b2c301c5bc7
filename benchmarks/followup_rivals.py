"""CIResDiff's rivals on its folds: those of the catalogue of follow-up methods, and DiffusionCT on slices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from concordct.methods.network import TrainingData
from concordct.methods.paired import diffusionct
from concordct.methods.standardizer import Mode
from concordct.pipelines.followup import rival_recipe
from concordct.pipelines.followup_data import Prepared
from concordct.progression import catalogue
from concordct.progression.ciresdiff import CohortData
from concordct.training.bundle import load_bundle, save_bundle
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
#: The rival that standardizes slices, and the steps of each of its two phases here.
SLICES, SLICES_STEPS, SLICES_TILE = "DiffusionCT", 500, 96


def place_of_model(folder: Path, name: str) -> Path:
    """Where a fold keeps a model."""
    return folder / name.replace(",", "").replace(" ", "-")


def train_rival(
    folder: Path, train: Sequence[Prepared], name: str, steps: int | None, stop: Callable[[], bool]
) -> Path:
    """A rival of a fold, unless it stands: recipe `small` on the benchmark's grid, as many steps as CIResDiff's own."""
    path = place_of_model(folder, name)
    if path.exists():
        return path
    run = Run(path.with_name(path.name + ".run"), stop=stop)
    if name == SLICES:
        bundle = diffusionct.fit(_slices(train), _recipe_of_slices(steps), run)
    else:
        recipe = dataclasses.replace(
            rival_recipe(RIVALS[name], "small", seed=SEED, most_steps=steps), spacing_mm=SPACING_MM
        )
        data = CohortData([one.data for one in train], {"row": name})
        bundle = catalogue.method(RIVALS[name]).fit(data, recipe, run)
    save_bundle(bundle, path, card=name)
    return path


def _recipe_of_slices(steps: int | None) -> diffusionct.Recipe:
    small = diffusionct.RECIPES["small"]
    most = min(steps or SLICES_STEPS, SLICES_STEPS)
    phases = tuple((name, dataclasses.replace(phase, steps=most)) for name, phase in small.phases)
    config = dataclasses.replace(small.config, tile=SLICES_TILE)
    return dataclasses.replace(small, config=config, patch=SLICES_TILE, phases=phases, seed=SEED)


def _slices(train: Sequence[Prepared]) -> TrainingData:
    pairs = []
    for one in train:
        whole = np.array([0, one.data.initial.shape[1] - 1, 0, one.data.initial.shape[2] - 1], np.int32)
        boxes = np.tile(whole, (len(one.data.initial), 1))
        pairs.append(Images(one.subject, one.data.initial, one.data.followup, boxes))
    return TrainingData(pairs, [], {"row": SLICES})


def by_rival(name: str, model: Path, one: Prepared, mode: Mode, spacing_mm: float) -> NDArray[np.float32]:
    """[z, y, x] HU."""
    seeds = SliceSeeds(SEED, one.subject)
    hu = np.asarray(one.data.initial, np.float32)
    if name != SLICES:
        work = catalogue.method(RIVALS[name]).load(load_bundle(model), mode)
        return work.predict(hu, np.asarray(one.data.region), one.data.sentence, seeds=seeds)
    scan = Volume(hu, np.diag([*(spacing_mm,) * 3, 1.0]), slice_thickness_mm=spacing_mm)
    return diffusionct.load(load_bundle(model), mode)(scan, generator=seeds).hu
