"""Search and training of the rivals of the papers, the same budget for all, in pieces that resume.

python -m benchmarks.papers_rivals                    # every method: four settings on validation, then the final run
python -m benchmarks.papers_rivals --minutes 9        # one piece; run it again to go on
python -m benchmarks.papers_rivals --only pix2pix     # one of them
python -m benchmarks.papers_rivals --method FILE.py   # a stranger's

A method is one Python file. What it must hold:
1. `ENTRY = Method(title, load, fit, recipes)` (`concordct.methods.method`), as every method of the catalogue does;
2. `fit(data, recipe, run) -> Bundle` trains on `data.pairs`, resumes from `run.folder`, and names the bundle's method;
3. `load(bundle, mode) -> Standardizer` turns that bundle into what standardizes a volume; it never sees a target;
4. `recipes["small"]`, a `Recipe`: a frozen dataclass of settings, the patch size, and the phases of training;
5. `GRID`, if it likes: four settings, each from fields of that dataclass, or "learning_rate", to values.
The row carries the file's name, which is the method's. `python -m benchmarks.papers --method FILE.py` trains it in the
same way and prints the whole table with it; `examples/method/one_convolution.py` is one.

Budget: a setting of the search gets a quarter of the final run's steps, and the final run as many steps as fit into
`MINUTES` of one core's processor time, by its own measured speed. A setting is judged by the mean of the classes' CCC
in random ROIs of the validation pairs. Everything lies in the folder of the cohort: `search`, `models`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.papers_cohort import MINUTES, ROIS_PER_RANGE, SEED, cohort, runs
from concordct.agreement import concordance as agreement
from concordct.judging.stages import stored
from concordct.methods import catalogue
from concordct.methods.method import Method
from concordct.methods.network import Recipe, TrainingData
from concordct.radiomics.extract import extract
from concordct.radiomics.presets import settings_for
from concordct.radiomics.regions.rois import PAPER_RANGES_HU, random_rois
from concordct.training.bundle import Bundle, save_bundle
from concordct.training.data import Images, store
from concordct.training.engine import Paused, Run
from concordct.volumes.manifest import read_manifest
from concordct.volumes.place import atomic_file
from concordct.volumes.scans import one_scan
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

#: Steps that the speed is measured on, after a few to warm up.
WARM, MEASURED = 5, 25
PRESET = "ibex-1401"
ROI_PIXELS = 16

Setting = Mapping[str, Any]

#: Rows of the table, names in the catalogue, and four settings each. The order is that of training.
RIVALS: dict[str, tuple[str, tuple[Setting, ...]]] = {
    "Choe 2019": (
        "choe",
        tuple({"learning_rate": rate, "square": square} for rate in (5e-4, 2e-3) for square in (True, False)),
    ),
    "Pix2Pix": ("pix2pix", tuple({"learning_rate": r, "l1": w} for r in (5e-4, 2e-3) for w in (10.0, 100.0))),
    "CycleGAN": (
        "cyclegan",
        tuple({"learning_rate": r, "cycle": w, "identity": w / 2} for r in (1e-3, 4e-3) for w in (1.0, 10.0)),
    ),
    "GANai": ("ganai", tuple({"learning_rate": r, "l1": w} for r in (5e-4, 2e-3) for w in (10.0, 100.0))),
    "STAN-CT": ("stan-ct", tuple({"learning_rate": r, "l1": w} for r in (5e-4, 2e-3) for w in (10.0, 100.0))),
    "RadiomicGAN, random VGG": (
        "radiomicgan",
        tuple({"learning_rate": r, "l1": w} for r in (5e-4, 2e-3) for w in (10.0, 100.0)),
    ),
    "CVH-CT, random VGG": (
        "cvh-ct",
        tuple(
            {"learning_rate": r, "domain": 10.0, "cycle": w, "identity": w / 2}
            for r in (1e-3, 4e-3)
            for w in (1.0, 10.0)
        ),
    ),
    "uda": ("uda", tuple({"learning_rate": r, "l1": w} for r in (5e-4, 2e-3) for w in (10.0, 100.0))),
    "Multipath cycleGAN": (
        "multipath",
        tuple({"learning_rate": r, "l1": w} for r in (5e-4, 2e-3) for w in (10.0, 100.0)),
    ),
}
#: Settings of a stranger's method that names none.
RATES: tuple[Setting, ...] = tuple({"learning_rate": rate} for rate in (2e-4, 5e-4, 1e-3, 2e-3))


def stranger(file: Path) -> tuple[Method, tuple[Setting, ...]]:
    """A method and its settings from a file."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None or not file.exists():
        raise SystemExit(f"{file}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    entry = getattr(module, "ENTRY", None)
    if not isinstance(entry, Method) or entry.fit is None or "small" not in entry.recipes:
        raise SystemExit(f"{file}: expected ENTRY, a Method with fit and a recipe small, found {entry!r:.60}")
    # For this process it is a method like any other: models name it, rows are measured by it.
    sys.modules[f"concordct.methods.{file.stem}"] = module
    catalogue.CATALOGUE[file.stem] = catalogue.Place(file.stem, "train")
    RIVALS[file.stem] = (file.stem, tuple(getattr(module, "GRID", RATES)))
    return entry, RIVALS[file.stem][1]


def place(name: str) -> Path:
    """Where a row's model lies."""
    return runs() / "models" / name.replace(" ", "-").replace(",", "").lower()


def pairs(manifest: Path, split: str) -> list[Images]:
    """The pairs of a split, memory-mapped."""
    rows = [row for row in read_manifest(manifest) if row.split == split and row.target is not None]
    voxels = runs() / "voxels"
    voxels.mkdir(parents=True, exist_ok=True)
    return [store(voxels, row.pair, one_scan(row.source), one_scan(row.target)) for row in rows]  # type: ignore[arg-type]


def set_recipe(recipe: Recipe, setting: Setting, steps: int) -> Recipe:
    """The recipe with a setting's values, every phase of so many steps."""
    fields = {name: value for name, value in setting.items() if name != "learning_rate"}
    phases = tuple(
        (
            name,
            dataclasses.replace(
                one, epochs=0, steps=steps, learning_rate=setting.get("learning_rate", one.learning_rate)
            ),
        )
        for name, one in recipe.phases
    )
    return dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, **fields), phases=phases)


def seconds_a_step(method: Method, recipe: Recipe, data: TrainingData, folder: Path) -> float:
    """Processor seconds of one step, by `MEASURED` of them."""
    clock: list[float] = []
    short = set_recipe(recipe, {}, WARM + MEASURED)
    method.fit(data, short, Run(folder, progress=lambda *_: clock.append(time.process_time())))
    return (clock[WARM + MEASURED - 1] - clock[WARM - 1]) / MEASURED


@functools.cache
def validation(manifest: Path) -> list[tuple[SliceSeeds, Volume, Any, Any]]:
    """Source, ROIs and the target's features of each validation pair."""
    settings = settings_for(PRESET)
    judged = []
    for row in read_manifest(manifest):
        if row.split != "validation" or row.target is None:
            continue
        source, target = one_scan(row.source), one_scan(row.target)
        wanted = target.read()
        rois = random_rois(
            wanted,
            ranges_hu=PAPER_RANGES_HU,
            count=ROIS_PER_RANGE,
            size=ROI_PIXELS,
            least_share=0.5,
            generator=np.random.default_rng(SEED),
        ).labels
        judged.append((SliceSeeds(SEED, source.key), source.read(), rois, extract(wanted, rois, settings)))
    return judged


def agreement_of(standardizer: Any, manifest: Path) -> dict[str, float]:
    """Mean CCC of each class over the validation pairs; None for the input itself."""
    settings = settings_for(PRESET)
    judged = validation(manifest)
    values = []
    for seeds, volume, rois, _ in judged:
        made = volume if standardizer is None else standardizer(volume, generator=seeds)
        values.append(extract(made.with_hu(stored(made.hu, volume.hu)), rois, settings).values)
    targets = np.concatenate([wanted.values for *_, wanted in judged])
    classes = judged[0][-1].classes
    found = agreement.mean_by_class(agreement.ccc_per_feature(np.concatenate(values), targets), classes)
    return {name: round(float(one.mean), 4) for name, one in found.items()}


def score(by_class: Mapping[str, float]) -> float:
    """What settings are chosen by."""
    return float(np.mean(list(by_class.values())))


def gains(name: str) -> bool:
    """Whether a trained row lies above the input on validation."""
    found = json.loads((runs() / "search" / place(name).name / "search.json").read_text())
    given = json.loads((runs() / "search" / "input.json").read_text())
    return bool(found["final"]["score"] > given["score"])


def search(name: str, method: Method, grid: tuple[Setting, ...], manifest: Path, run: Run) -> dict[str, Any]:
    """Speed, score of each setting, and the one to train: `search/NAME/search.json`, written after each part."""
    folder = runs() / "search" / place(name).name
    path = folder / "search.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"settings": []}
    data = TrainingData(pairs(manifest, "train"), [], {})
    recipe = method.recipes["small"]
    if "seconds_a_step" not in found:
        found["seconds_a_step"] = round(seconds_a_step(method, recipe, data, folder / "speed"), 5)
        found["steps"] = int(60 * MINUTES / found["seconds_a_step"] / len(recipe.phases))
        _write(path, found)
    for index, setting in enumerate(grid):
        if index < len(found["settings"]):
            continue
        chosen = set_recipe(recipe, setting, found["steps"] // 4)
        bundle = method.fit(data, chosen, dataclasses.replace(run, folder=folder / str(index)))
        by_class = agreement_of(method.open(bundle, "sample", use_neighbours=False, sampling={}), manifest)
        found["settings"].append({**setting, "score": round(score(by_class), 4), "classes": by_class})
        _write(path, found)
        print(name, found["settings"][-1], flush=True)
    found["best"] = int(np.argmax([one["score"] for one in found["settings"]]))
    _write(path, found)
    return found


def train(name: str, method: Method, grid: tuple[Setting, ...], manifest: Path, run: Run) -> Path:
    """The model of a row, searched and trained where it is not there yet."""
    model = place(name)
    if model.exists():
        return model
    began = time.process_time()
    found = search(name, method, grid, manifest, run)
    recipe = set_recipe(method.recipes["small"], grid[found["best"]], found["steps"])
    images = pairs(manifest, "train")
    info = {
        "recipe": "small",
        "source_kernels": [],
        "target_kernels": [],
        "pairs": len(images),
        "subjects": len(images),
        "slices": sum(len(one.source) for one in images),
        "setting": dict(grid[found["best"]]),
        "steps": found["steps"],
        "processor_minutes": MINUTES,
        "chosen_on": "validation",
    }
    bundle: Bundle = method.fit(
        TrainingData(images, [], info), recipe, dataclasses.replace(run, folder=Path(f"{model}.run"))
    )
    standardizer = method.open(bundle, "sample", use_neighbours=False, sampling={})
    found["final"] = {"classes": agreement_of(standardizer, manifest)}
    found["final"]["score"] = round(score(found["final"]["classes"]), 4)
    _write(runs() / "search" / model.name / "search.json", found)
    card = f"# {name}\n\n{method.title}; a row of the papers' table. Research use; not a medical device.\n"
    save_bundle(bundle, model, card=card)
    print(f"{name}: {found['final']}, {time.process_time() - began:.0f} processor s in this piece", flush=True)
    return model


def _write(path: Path, found: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, overwrite=True) as aside:
        aside.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    """Search and train what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(RIVALS), help="these rows alone")
    parser.add_argument("--method", type=Path, help="a stranger's method, one Python file")
    parser.add_argument("--minutes", type=float, help="stop with a checkpoint after this long; the same call goes on")
    parser.add_argument("--pairs", type=Path, help="manifest of another cohort")
    given = parser.parse_args()
    torch.set_num_threads(1)
    until = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    manifest = given.pairs or cohort(minutes=given.minutes)[0]
    run = Run(Path(), stop=None if until is None else lambda: time.monotonic() > until)
    try:
        input_path = runs() / "search" / "input.json"
        if not input_path.exists():
            by_class = agreement_of(None, manifest)
            _write(input_path, {"score": round(score(by_class), 4), "classes": by_class})
        if given.method is not None:
            train(given.method.stem, *stranger(given.method), manifest, run)
            return
        for name in given.only or RIVALS:
            known, grid = RIVALS[name]
            train(name, catalogue.method(known), grid, manifest, run)
    except Paused:
        raise SystemExit("paused; run it again to go on") from None


if __name__ == "__main__":
    main()
