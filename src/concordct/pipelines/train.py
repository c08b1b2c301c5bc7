"""Train a method on a manifest of pairs: scans into memory-mapped patches, phases, a bundle. Resumes where it stopped.

`MODEL.run/` holds the copied voxels, checkpoints, metrics and sample pictures; `MODEL` appears when all phases are
done.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import distributed

from concordct import __version__
from concordct.errors import ConcordctError
from concordct.methods import catalogue
from concordct.methods.method import Method
from concordct.methods.network import Recipe, TrainingData
from concordct.training.bundle import Bundle, save_bundle
from concordct.training.data import Images, store
from concordct.training.engine import Paused, Run, team
from concordct.training.run import (
    Progress,
    Trained,
    claim,
    cut_short,
    digest_of,
    last_losses,
    place_of_run,
    plain,
    time_limit,
)
from concordct.volumes.manifest import PairRow, read_manifest
from concordct.volumes.pairing import check_pair
from concordct.volumes.scans import Scan, find_scans, scans_of_row


def train(
    method: str,
    pairs: Path,
    output: Path,
    *,
    recipe: str = "small",
    split: str = "train",
    images: Path | None = None,
    without: str | None = None,
    imagenet: Path | None = None,
    seed: int = 0,
    most_steps: int | None = None,
    minutes: float | None = None,
    allow: Collection[str] = frozenset(),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Trained:
    """Train a method, or go on with training it.

    Parameters
    ----------
    method : a name of `methods.catalogue` that is trained. pairs : manifest; rows of `split` are trained on.
    recipe : "paper", "small" or "gpu".
    images : folder of further scans without partner, for the phases that take any image.
    without : a name of the method's ablations.
    imagenet : file of published weights, for a method that starts from them.
    most_steps : cut every phase to this many steps, to try things out.
    minutes : write a checkpoint and stop after this long; the same call goes on.
    allow : "frames" lets pairs of two frames of reference pass, see `check_pair`.

    Raises
    ------
    ConcordctError : a bad manifest, pairs that are not two reconstructions of one scan, a run of other data or another
        recipe in the place, a loss that is not finite.
    """
    trained = _trainable(method)
    chosen = _recipe(method, trained, recipe, without=without, seed=seed, most_steps=most_steps)
    if imagenet is not None and not trained.pretrained:
        raise ConcordctError(f"{method}: expected no file of pre-trained weights, found {imagenet}")
    began, limit = time.monotonic(), time_limit(minutes)
    folder = place_of_run(output, overwrite=overwrite)
    rows = [row for row in read_manifest(pairs) if row.split == split and row.target is not None]
    if not rows:
        raise ConcordctError(f"{pairs}: expected pairs in split {split!r}, found none")
    scans = [(row.pair, *scans_of_row(row)) for row in rows]
    loose = _images(images)
    with team() as members:
        if members.rank == 0:
            for _, source, target in scans:
                check_pair(source, target, allow=allow)
            claim(folder, _identity(method, chosen, scans, loose, imagenet))
            data = _store(folder / "voxels", scans, loose)
        if members.size > 1:
            distributed.barrier()
        if members.rank > 0:
            data = _store(folder / "voxels", scans, loose)
        info = _info(scans, rows, recipe)
        try:
            assert trained.fit is not None
            options = {"imagenet": imagenet} if trained.pretrained else {}
            bundle = trained.fit(TrainingData(*data, info), chosen, Run(folder, members, progress, limit), **options)
        except Paused:
            return Trained(output, False, time.monotonic() - began, 0)
        if members.rank == 0:
            save_bundle(bundle, output, card=_card(trained, recipe, bundle, folder), overwrite=overwrite)
    return Trained(output, True, time.monotonic() - began, int(bundle.metadata.get("parameters", 0)))


def _trainable(name: str) -> Method:
    known = catalogue.names("train")
    if name not in known:
        raise ConcordctError(f"expected a method of {', '.join(known)}, found {name!r}")
    return catalogue.method(name)


def _recipe(
    name: str, method: Method, recipe: str, *, without: str | None, seed: int, most_steps: int | None
) -> Recipe | None:
    if without is not None and without not in method.ablations:
        known = ", ".join(method.ablations) or "nothing"
        raise ConcordctError(f"{name}: expected to leave out a part of {known}, found {without}")
    if not method.recipes:
        return None
    if recipe not in method.recipes:
        raise ConcordctError(f"{name}: expected a recipe of {', '.join(method.recipes)}, found {recipe!r}")
    chosen = dataclasses.replace(method.recipes[recipe], seed=seed)
    if without is not None:
        chosen = method.ablations[without](chosen)
    phases = tuple((key, cut_short(phase, most_steps)) for key, phase in chosen.phases)
    return dataclasses.replace(chosen, phases=phases)


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


def _identity(
    method: str,
    recipe: Recipe | None,
    scans: Sequence[tuple[str, Scan, Scan]],
    loose: Sequence[Scan],
    imagenet: Path | None,
) -> dict[str, Any]:
    keys = [(name, source.key, target.key) for name, source, target in scans]
    return {
        "method": method,
        "recipe": plain(recipe),
        "data_sha256": digest_of([keys, [scan.key for scan in loose]]),
        "imagenet_sha256": None if imagenet is None else digest_of(imagenet),
    }


def _info(scans: Sequence[tuple[str, Scan, Scan]], rows: Sequence[PairRow], recipe: str) -> dict[str, Any]:
    # A volume file names no kernel; its manifest may.
    both = list(zip(scans, rows, strict=True))
    sources = {source.kernel or row.source_kernel for (_, source, _), row in both}
    targets = {target.kernel or row.target_kernel for (_, _, target), row in both}
    thickness = sorted({scan.slice_thickness_mm for _, scan, _ in scans if scan.slice_thickness_mm})
    return {
        "software": f"concordct {__version__}",
        "recipe": recipe,
        "source_kernels": sorted(filter(None, sources)),
        "target_kernels": sorted(filter(None, targets)),
        "pairs": len(scans),
        "subjects": len({row.subject for row in rows}),
        "slices": sum(source.shape[0] for _, source, _ in scans),
        "slice_thickness_mm": thickness[0] if len(thickness) == 1 else None,
    }


def _card(method: Method, recipe: str, bundle: Bundle, folder: Path) -> str:
    """The model card, Markdown: data, recipe, metrics, intended use."""
    info = bundle.metadata["info"]
    source, target = ("/".join(info[f"{side}_kernels"]) or "unnamed" for side in ("source", "target"))
    return "\n".join(
        [
            f"# {method.title}, {source} to {target}",
            "",
            f"Trained by {info['software']} with recipe `{recipe}` on {info['pairs']} pairs, {info['slices']} slices",
            f"of {info['subjects']} subjects; {bundle.metadata.get('parameters', 0):,} parameters.",
            "",
            *(f"- {name}: {steps} steps, last loss {loss:.5g}" for name, (steps, loss) in last_losses(folder).items()),
            "",
            "For standardizing scans of the source kernel before radiomic features are pooled. Research use; not a",
            "medical device. What it draws above the source kernel's limit is texture of the right kind, not the",
            "patient's own.",
            "`configs/metadata.json` holds the configuration; `configs/inference.json` opens the model in MONAI.",
            "",
        ]
    )
