"""Where along its chain a row of CIResDiff has learned: squared error of its estimate over that of no change.

At the last step, T, the state holds nothing of the follow-up, and the estimate is what `mean` writes; at step 1 it
holds nearly all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.followup_models import SEED, place_of_model
from benchmarks.results import once
from concordct.diffusion import residual_shifting as shifting
from concordct.diffusion import schedule as standard
from concordct.pipelines.followup_data import Prepared
from concordct.progression.ciresdiff import CENTRE, HIGH_HU, LOW_HU, OUTSIDE, SPREAD, Condition
from concordct.progression.ciresdiff_known import dense_share
from concordct.progression.ciresdiff_predict import load
from concordct.progression.patches3d import Patches3d
from concordct.training.bundle import load_bundle

#: Steps of the 15 that are looked at, and patches of 2 for each.
SHOWN, BATCHES = (15, 12, 8, 4, 1), 20


def along_chain(place: Path, name: str, train: Sequence[Prepared]) -> dict[str, float]:
    """The error at each of `SHOWN` on patches of a fold's training subjects over no change's there; kept on disk."""
    model = place_of_model(place, name)
    found: dict[str, float] = once(place / "chain" / f"{model.name}.json", lambda: _measured(model, train))
    return found


def chain_rows(place: Path, names: Sequence[str]) -> list[list[str]]:
    """What stands of it, a row a model."""
    rows = []
    for name in names:
        path = place / "chain" / f"{place_of_model(place, name).name}.json"
        if path.exists():
            found = json.loads(path.read_text())
            rows.append([name, *(f"{found[str(step)]:.3f}" for step in SHOWN)])
    return rows


@torch.no_grad()
def _measured(model: Path, train: Sequence[Prepared]) -> dict[str, float]:
    predictor = load(load_bundle(model), "mean")
    system, steps = predictor.system, predictor.system.config.steps
    patches = Patches3d([one.data for one in train], predictor.patch, SEED)
    error, still = dict.fromkeys(SHOWN, 0.0), 0.0
    for index in range(BATCHES):
        batch = patches.batch(index, range(2))
        source, target = torch.from_numpy(batch.source), torch.from_numpy(batch.target)
        region, who = source[:, 1:], [patches.subjects[patches.subject(seed)] for seed in batch.seeds]
        y0, x0 = (
            torch.where(region > 0, (hu - LOW_HU) / (HIGH_HU - LOW_HU), OUTSIDE) for hu in (source[:, :1], target)
        )
        dense = torch.tensor(np.array([dense_share(one.initial, one.region) for one in who], np.float32))
        words = system.words(predictor.tokenizer, [one.sentence for one in who], torch.device("cpu"))
        condition = Condition(y0, dense, *(words or (None, None)))
        noise = torch.randn(y0.shape, generator=torch.Generator().manual_seed(index))
        still += float(((y0 - x0).square() * region).sum())
        for step in SHOWN:
            t = torch.full((len(y0),), min(step, steps))
            if system.config.residual:
                found = system.denoise(shifting.q_sample(system.shift, x0, y0, t, noise), t / steps, condition)
            else:
                state = standard.q_sample(system.schedule, (x0 - CENTRE) / SPREAD, t, noise)
                found = CENTRE + SPREAD * system.denoise(state, t / steps, condition)
            error[step] += float(((found - x0).square() * region).sum())
    return {str(step): value / still for step, value in error.items()}
