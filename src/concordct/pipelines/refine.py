"""Train the flagship's network further on pairs of one's own: `concordct train concord PAIRS.csv --from MODEL`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from concordct.errors import ConcordctError
from concordct.methods.concord import bundle as concord_bundle
from concordct.methods.concord.inputs import THICKNESS_MM
from concordct.methods.concord.training import Refinement, Scanned, refine
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_manifest
from concordct.pipelines.models import load_model
from concordct.training.data import store
from concordct.training.engine import Paused, Run, team
from concordct.volumes.pairing import check_pair


def refine_model(
    pairs: Path,
    output: Path,
    *,
    pretrained: Path | None = None,
    split: str = "train",
    seed: int = 0,
    most_steps: int | None = None,
    minutes: float | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> bool:
    """Refine on the pairs of a manifest, calibrate on the same pairs, and save both as one model.

    Parameters
    ----------
    pretrained : a concord model to start from; None starts from the weights that come with the package.
    most_steps, minutes : as for `train`; the same call goes on.

    Returns
    -------
    Whether it is done; False when `minutes` ended it.

    Raises
    ------
    ConcordctError : a bad manifest, pairs that are not two reconstructions of one scan, a model of another method.
    """
    if output.exists() and not overwrite:
        raise ConcordctError(f"{output}: exists, expected a new place (--overwrite replaces it)")
    weights = concord_bundle.shipped_weights()
    if pretrained is not None:
        bundle = load_model(pretrained).bundle
        if bundle.method != concord_bundle.METHOD:
            raise ConcordctError(f"{pretrained}: expected a model of {concord_bundle.METHOD}, found {bundle.method!r}")
        weights = concord_bundle.weights_of(bundle)
    began = time.monotonic()
    found = pairs_of_manifest(pairs, split=split)
    refinement = Refinement(seed=seed)
    if most_steps is not None:
        steps = min(most_steps, refinement.phase.steps)
        refinement = dataclasses.replace(refinement, phase=dataclasses.replace(refinement.phase, steps=steps))
    # A run of other pairs, weights or settings has another folder, and is never taken for this one.
    identity = json.dumps([weights.sha256, [(a.key, b.key) for a, b in found], dataclasses.asdict(refinement)])
    folder = output.with_name(output.name + ".run") / hashlib.sha256(identity.encode()).hexdigest()[:12]
    (folder / "voxels").mkdir(parents=True, exist_ok=True)
    scanned = []
    for number, (source, target) in enumerate(found, start=1):
        check_pair(source, target)
        images = store(folder / "voxels", f"pair {number}", source, target)
        assert images.target is not None
        thickness = source.slice_thickness_mm or THICKNESS_MM
        both = [images.target, images.source]
        scanned.append(Scanned(f"pair {number}", both, 1, source.spacing_mm[1], thickness, directed=True))
    limit = None if minutes is None else (lambda: time.monotonic() - began > 60 * minutes)
    with team() as members:
        try:
            refined = refine(weights, scanned, Run(folder, members, progress, limit), refinement)
        except Paused:
            return False
        if members.rank == 0:
            calibrate_pairs(found, output, weights=refined, overwrite=overwrite)
    return True
