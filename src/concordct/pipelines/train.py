"""Train a method on a manifest of pairs: scans into memory-mapped patches, phases, a bundle. Resumes where it stopped.

`MODEL.run/` holds the copied voxels, checkpoints, metrics and sample pictures; `MODEL` appears when all phases are
done.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import distributed

from concordct import __version__
from concordct.errors import ConcordctError
from concordct.methods.network import Recipe, TrainingData
from concordct.methods.paired import ddpm, diffusionct, encoder_decoder, histogram, ltdiffpp
from concordct.training.bundle import Bundle, save_bundle
from concordct.training.data import Images, store
from concordct.training.engine import Paused, Run, team
from concordct.volumes.manifest import read_manifest
from concordct.volumes.pairing import check_pair
from concordct.volumes.place import atomic_file
from concordct.volumes.scans import Scan, find_scans, one_scan

#: Recipes by method; the order is that of the papers' tables.
RECIPES: dict[str, dict[str, Recipe]] = {
    "encoder-decoder": encoder_decoder.RECIPES,
    "unetpp": encoder_decoder.UNETPP_RECIPES,
    "ddpm": ddpm.RECIPES,
    "diffusionct": diffusionct.RECIPES,
    "ltdiffpp": ltdiffpp.RECIPES,
}
#: Methods that `train` knows; histogram matching has no recipe.
TRAINABLE = (*RECIPES, histogram.METHOD)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trained:
    """What a run left: the bundle when `done`, else a run to go on with."""

    output: Path
    done: bool
    seconds: float
    parameters: int


def train(
    method: str,
    pairs: Path,
    output: Path,
    *,
    recipe: str = "small",
    split: str = "train",
    images: Path | None = None,
    without: Literal["skips", "supervision", "integration"] | None = None,
    imagenet: Path | None = None,
    seed: int = 0,
    most_steps: int | None = None,
    minutes: float | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Trained:
    """Train a method, or go on with training it.

    Parameters
    ----------
    method : one of `TRAINABLE`. pairs : manifest; rows of `split` are trained on.
    recipe : "paper", "small" or "gpu".
    images : folder of further scans without partner, for the phases that take any image.
    without : LTDiff++ without its skips, deep supervision or integration phase.
    imagenet : ResNet-18 weights for DiffusionCT's encoder.
    most_steps : cut every phase to this many steps, to try things out.
    minutes : write a checkpoint and stop after this long; the same call goes on.

    Raises
    ------
    ConcordctError : a bad manifest, pairs that are not two reconstructions of one scan, a run of other data or another
        recipe in the place, a loss that is not finite.
    """
    chosen = _recipe(method, recipe, without=without, seed=seed, most_steps=most_steps)
    if imagenet is not None and method != diffusionct.METHOD:
        raise ConcordctError(f"expected --imagenet with {diffusionct.METHOD} alone, found it with {method}")
    began = time.monotonic()
    if output.exists() and not overwrite:
        raise ConcordctError(f"{output}: exists, expected a new place (--overwrite replaces it)")
    folder = output.with_name(output.name + ".run")
    rows = [row for row in read_manifest(pairs) if row.split == split and row.target is not None]
    if not rows:
        raise ConcordctError(f"{pairs}: expected pairs in split {split!r}, found none")
    scans = [(row.pair, one_scan(row.source), one_scan(row.target)) for row in rows if row.target is not None]
    loose = _images(images)
    with team() as members:
        if members.rank == 0:
            for _, source, target in scans:
                check_pair(source, target)
            _claim(folder, _identity(method, chosen, scans, loose, imagenet))
            data = _store(folder / "voxels", scans, loose)
        if members.size > 1:
            distributed.barrier()
        if members.rank > 0:
            data = _store(folder / "voxels", scans, loose)
        info = _info(scans, len({row.subject for row in rows}), recipe)
        limit = None if minutes is None else (lambda: time.monotonic() - began > 60 * minutes)
        try:
            bundle = _fit(
                method, TrainingData(*data, info), chosen, Run(folder, members, progress, limit), imagenet=imagenet
            )
        except Paused:
            return Trained(output, False, time.monotonic() - began, 0)
        if members.rank == 0:
            save_bundle(bundle, output, card=_card(method, recipe, bundle, folder), overwrite=overwrite)
    return Trained(output, True, time.monotonic() - began, int(bundle.metadata.get("parameters", 0)))


def _recipe(method: str, name: str, *, without: str | None, seed: int, most_steps: int | None) -> Recipe | None:
    if method == histogram.METHOD:
        return None
    if method not in RECIPES:
        raise ConcordctError(f"expected a method of {', '.join(TRAINABLE)}, found {method!r}")
    if name not in RECIPES[method]:
        raise ConcordctError(f"expected a recipe of {', '.join(RECIPES[method])}, found {name!r}")
    chosen = dataclasses.replace(RECIPES[method][name], seed=seed)
    if without is not None:
        if method != ltdiffpp.METHOD or without not in ltdiffpp.ABLATIONS:
            known = ", ".join(ltdiffpp.ABLATIONS)
            raise ConcordctError(f"expected --without {known} for {ltdiffpp.METHOD}, found {without} for {method}")
        chosen = ltdiffpp.without(chosen, without)
    if most_steps is not None:
        phases = tuple(
            (key, dataclasses.replace(phase, epochs=0, steps=min(phase.steps or most_steps, most_steps)))
            for key, phase in chosen.phases
        )
        chosen = dataclasses.replace(chosen, phases=phases)
    return chosen


def _images(path: Path | None) -> tuple[Scan, ...]:
    if path is None:
        return ()
    found = find_scans(path).scans
    if not found:
        raise ConcordctError(f"{path}: expected CT scans, found none")
    return found


def _store(
    place: Path, scans: Sequence[tuple[str, Scan, Scan]], loose: Sequence[Scan]
) -> tuple[list[Images], list[Images]]:
    place.mkdir(parents=True, exist_ok=True)
    paired = [store(place, name, source, target) for name, source, target in scans]
    return paired, [store(place, f"image {index + 1}", scan, None) for index, scan in enumerate(loose)]


def _fit(method: str, data: TrainingData, recipe: Recipe | None, run: Run, *, imagenet: Path | None) -> Bundle:
    if recipe is None:
        pairs = ((one.source, one.target) for one in data.pairs if one.target is not None)
        return histogram.fit_histogram(pairs).to_bundle(data.info)
    if method == diffusionct.METHOD:
        return diffusionct.fit(data, recipe, run, imagenet=imagenet)
    if method == ltdiffpp.METHOD:
        return ltdiffpp.fit(data, recipe, run)
    if method == ddpm.METHOD:
        return ddpm.fit(data, recipe, run)
    return encoder_decoder.fit(data, recipe, run)


def _identity(
    method: str,
    recipe: Recipe | None,
    scans: Sequence[tuple[str, Scan, Scan]],
    loose: Sequence[Scan],
    imagenet: Path | None,
) -> dict[str, Any]:
    try:
        weights = None if imagenet is None else hashlib.sha256(imagenet.read_bytes()).hexdigest()
    except OSError as error:
        raise ConcordctError(f"{imagenet}: expected ResNet-18 weights, cannot read it ({error.strerror})") from None
    keys = [(name, source.key, target.key) for name, source, target in scans]
    text = json.dumps([keys, [scan.key for scan in loose]]).encode()
    return {
        "method": method,
        "recipe": None if recipe is None else json.loads(json.dumps(dataclasses.asdict(recipe))),
        "data_sha256": hashlib.sha256(text).hexdigest(),
        "imagenet_sha256": weights,
    }


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Write what is trained on what into the run's folder, or check that it is the same."""
    plan = folder / "run.json"
    if plan.exists():
        try:
            found = json.loads(plan.read_text())
        except (OSError, ValueError):
            found = {}
        differing = [name for name, value in identity.items() if found.get(name) != value]
        if differing:
            raise ConcordctError(
                f"{folder}: holds the run of another {differing[0].split('_')[0]}; name a new output or remove it"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(plan) as aside:
        aside.write_text(json.dumps(identity, indent=1, sort_keys=True) + "\n")


def _info(scans: Sequence[tuple[str, Scan, Scan]], subjects: int, recipe: str) -> dict[str, Any]:
    thickness = sorted({scan.slice_thickness_mm for _, scan, _ in scans if scan.slice_thickness_mm})
    return {
        "software": f"concordct {__version__}",
        "recipe": recipe,
        "source_kernels": sorted({source.kernel for _, source, _ in scans if source.kernel}),
        "target_kernels": sorted({target.kernel for _, _, target in scans if target.kernel}),
        "pairs": len(scans),
        "subjects": subjects,
        "slices": sum(source.shape[0] for _, source, _ in scans),
        "slice_thickness_mm": thickness[0] if len(thickness) == 1 else None,
    }


def _card(method: str, recipe: str, bundle: Bundle, folder: Path) -> str:
    """The model card, Markdown: data, recipe, metrics, intended use."""
    info = bundle.metadata["info"]
    last: dict[str, dict[str, Any]] = {}
    metrics = folder / "metrics.jsonl"
    for line in metrics.read_text().splitlines() if metrics.exists() else ():
        found = json.loads(line)
        last[found["phase"]] = found
    source, target = ("/".join(info[f"{side}_kernels"]) or "unnamed" for side in ("source", "target"))
    return "\n".join(
        [
            f"# {method}, {source} to {target}",
            "",
            f"Trained by {info['software']} with recipe `{recipe}` on {info['pairs']} pairs, {info['slices']} slices",
            f"of {info['subjects']} subjects; {bundle.metadata.get('parameters', 0):,} parameters.",
            "",
            *(f"- {name}: {one['step']} steps, last loss {one['loss']:.5g}" for name, one in last.items()),
            "",
            "For standardizing scans of the source kernel before radiomic features are pooled. Research use; not a",
            "medical device. What it draws above the source kernel's limit is texture of the right kind, not the",
            "patient's own.",
            "`configs/metadata.json` holds the configuration; `configs/inference.json` opens the model in MONAI.",
            "",
        ]
    )
