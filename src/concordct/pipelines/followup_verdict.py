"""Stable or progressive: what a first scan and a predicted follow-up say together.

Where enough training subjects are labelled, `train ciresdiff` also fits the paper's classifier (Jiang et al. 2024,
Sec. 3.4, `progression/diagnosis.py`) on their real pairs and the weeks between the scans, and the model carries it: the
label says how fast the disease grows, and the same change in a quarter of the time is another answer. Without it the
rise of the fibrosis share is held against a published one. Either way: research, not for diagnosis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from concordct.methods.network import seeded
from concordct.nets.classifier3d import PairClassifier
from concordct.pipelines.followup_data import Prepared
from concordct.progression.cohort import LABELS
from concordct.progression.diagnosis import (
    ClassifierRecipe,
    LabelledPair,
    fit_classifier,
    lung_cube,
    pair_cubes,
    probabilities,
    weeks_vector,
)
from concordct.training.bundle import Bundle
from concordct.training.engine import Run

#: Subjects of either label from which a classifier is fitted; fewer would be learned by heart.
LEAST_LABELLED = 5
CLASSIFIER = ClassifierRecipe()
#: What the tensors of the classifier begin with in a bundle, and where its metadata stand.
PREFIX, ENTRY = "classifier.", "classifier"
#: A visual score of fibrosis that rose by more, per cent of the lungs, went with shorter survival without a transplant
#: (Taha et al. 2020, doi:10.1186/s12931-020-01371-7). A share of dense voxels is no visual score: a landmark, no more.
RISE = 0.07
#: Numbers of the table that a classifier sees beside the scans: the weeks alone. Models made before it see none.
WEEKS = 1
_PROGRESSIVE = LABELS[1]


def labelled(ready: Sequence[Prepared]) -> dict[str, int]:
    """Subjects of each label."""
    return {label: sum(one.label == label for one in ready) for label in LABELS}


def counted(subjects: Mapping[str, int]) -> str:
    """Subjects of each label in words."""
    return " and ".join(f"{count} {label}" for label, count in subjects.items())


def with_classifier(
    bundle: Bundle, ready: Sequence[Prepared], run: Run, *, spacing_mm: float, seed: int, most_steps: int | None = None
) -> Bundle:
    """The model with a classifier of its subjects' real pairs, or as it is where too few are labelled.

    Parameters
    ----------
    run : the classifier is one more phase of it, which stops and resumes like the others.
    spacing_mm : of the subjects' grid. most_steps : cut to this many steps.

    Raises
    ------
    Paused : `run.stop` said so.
    """
    counts = labelled(ready)
    if min(counts.values()) < LEAST_LABELLED:
        return bundle
    steps = CLASSIFIER.phase.steps if most_steps is None else min(CLASSIFIER.phase.steps, most_steps)
    recipe = dataclasses.replace(CLASSIFIER, seed=seed, phase=dataclasses.replace(CLASSIFIER.phase, steps=steps))
    cases = [
        _case(
            one.data.initial, one.data.followup, one.data.region, spacing_mm, table=weeks_vector(one.weeks),
            progressive=one.label == _PROGRESSIVE,
        )
        for one in ready
        if one.label is not None
    ]  # fmt: skip
    net = fit_classifier(cases, recipe, run)
    tensors = {f"{PREFIX}{name}": value.detach().cpu().numpy() for name, value in net.state_dict().items()}
    entry = {
        "widths": list(recipe.widths),
        "blocks": list(recipe.blocks),
        "table": WEEKS,
        "subjects": counts,
        "steps": steps,
    }
    return Bundle({**bundle.tensors, **tensors}, {**bundle.metadata, ENTRY: entry})


def parted(bundle: Bundle) -> tuple[Bundle, PairClassifier | None]:
    """The model without its classifier, and the classifier ready to judge; None where there is none."""
    entry = bundle.metadata.get(ENTRY)
    if entry is None:
        return bundle, None
    table = entry.get("table", 0)
    net = seeded(lambda: PairClassifier(2, table=table, widths=entry["widths"], blocks=entry["blocks"]), 0)
    assert isinstance(net, PairClassifier)
    own = {name.removeprefix(PREFIX): one for name, one in bundle.tensors.items() if name.startswith(PREFIX)}
    net.load_state_dict({name: torch.from_numpy(np.array(one)) for name, one in own.items()})
    rest = {name: one for name, one in bundle.tensors.items() if not name.startswith(PREFIX)}
    return Bundle(rest, bundle.metadata), net.eval().requires_grad_(False)


def verdict(
    initial: NDArray[Any],
    predicted: NDArray[Any],
    region: NDArray[np.bool_],
    *,
    spacing_mm: float,
    fibrosis: Mapping[str, Any],
    weeks: float,
    classifier: PairClassifier | None,
    subjects: Mapping[str, int] | None,
) -> dict[str, Any]:
    """Whether the disease progresses, and what says so.

    Parameters
    ----------
    initial, predicted : [z, y, x] HU on one isotropic grid. region : the dilated lungs.
    fibrosis : of both, see `followup.fibrosis`.
    classifier, subjects : of the model, and whom it was fitted on.

    Returns
    -------
    verdict, basis ("classifier" or "threshold"), probability (None without a classifier), rise of the fibrosis share,
    the threshold, and one line that says it all.
    """
    rise = fibrosis["predicted"]["share"] - fibrosis["initial"]["share"]
    change = f"fibrosis share {100 * rise:+.1f} points in {weeks:g} weeks"
    found: dict[str, Any] = {"rise": rise, "threshold": RISE, "probability": None, "basis": "threshold"}
    if classifier is not None and subjects is not None:
        table = weeks_vector(weeks) if classifier.table else None
        case = _case(initial, predicted, region, spacing_mm, table=table, progressive=False)
        probability = float(probabilities(classifier, [case])[0])
        found |= {"probability": probability, "basis": "classifier", "subjects": dict(subjects)}
        progressive = probability >= 0.5
        trained = counted(subjects) + " subjects" + ("" if classifier.table else ", without the weeks")
        why = f"by the model's classifier (probability {probability:.2f}, fitted on {trained}); {change}"
    else:
        progressive = rise > RISE
        why = f"by the change alone: {change}, threshold +{100 * RISE:g} (this model carries no classifier)"
    found["verdict"] = LABELS[int(progressive)]
    found["said"] = f"{found['verdict']} {why}; research only, not for diagnosis"
    return found


def _case(
    initial: NDArray[Any],
    followup: NDArray[Any],
    region: NDArray[np.bool_],
    spacing_mm: float,
    *,
    table: NDArray[np.float32] | None,
    progressive: bool,
) -> LabelledPair:
    scans = [lung_cube(np.asarray(hu), np.asarray(region), spacing_mm) for hu in (initial, followup)]
    return LabelledPair(pair_cubes(*scans), table, progressive)
