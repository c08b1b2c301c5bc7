"""Stable or progressive: CIResDiff's classifier of (initial, follow-up), and what accuracy and AUC are worth.

Jiang et al. 2024, Sec. 3.4: a ResNet trained on real pairs judges pairs whose second scan was generated. Beside it a
rival that sees the first scan and the table alone: what a follow-up, real or generated, adds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from concordct.nets.classifier3d import PairClassifier
from concordct.progression.lung_function import LungFunction
from concordct.progression.patches3d import cube, patch_seed
from concordct.training.data import Batch
from concordct.training.engine import Phase, Run, train_phase

#: What the classifier sees: a cube of so many voxels of this spacing around the lungs.
CUBE, CUBE_MM = 48, 6.0
#: HU at 0 and 1.
LOW_HU, HIGH_HU = -1000.0, 200.0
#: The follow-up is seen as what it adds to the initial scan, so much enlarged. As two plain channels, the paper's way,
#: fifty patients teach the network their initial scans, and any second scan gets the same answer (docs/decisions.md).
CHANGE = 5.0
#: Middle and spread of what adults with fibrosis have, so that the table's numbers are about 1.
_TYPICAL = {
    "fvc_ml": (2700.0, 900.0), "fvc_percent": (75.0, 20.0), "fev1_ml": (2200.0, 700.0), "pef_l_min": (400.0, 120.0),
    "dlco_percent": (50.0, 18.0), "age_years": (67.0, 8.0),
}  # fmt: skip


@dataclass(frozen=True)
class ClassifierRecipe:
    """Size and training of the classifier."""

    widths: tuple[int, ...] = (8, 16, 32, 64)
    blocks: tuple[int, ...] = (1, 1, 1, 1)
    phase: Phase = Phase(steps=150, batch=8, learning_rate=1e-3, final_rate=0.05, warmup=20, ema=0.98, every=50)  # noqa: RUF009
    seed: int = 0


@dataclass(frozen=True, eq=False)
class LabelledPair:
    """What is known of a subject.

    Attributes
    ----------
    scans : [n, CUBE, CUBE, CUBE], initial and follow-up, see `pair_cubes`, or the initial alone, see `lung_cube`.
    table : see `table_vector`; None for a classifier that reads none.
    progressive : the label.
    """

    scans: NDArray[np.float32]
    table: NDArray[np.float32] | None
    progressive: bool


def lung_cube(hu: NDArray[Any], region: NDArray[np.bool_], spacing_mm: float) -> NDArray[np.float32]:
    """A scan as the classifier sees it: the region at `CUBE_MM`, 0 to 1.

    Parameters
    ----------
    hu, region : [z, y, x] on an isotropic grid of `spacing_mm`.
    """
    unit = np.clip((np.asarray(hu, np.float32) - LOW_HU) / (HIGH_HU - LOW_HU), 0, 1)
    return cube(unit, region, size=CUBE, factor=CUBE_MM / spacing_mm)


def pair_cubes(initial: NDArray[np.float32], followup: NDArray[np.float32]) -> NDArray[np.float32]:
    """Two of `lung_cube` as the classifier sees a pair: [2, CUBE, CUBE, CUBE]."""
    return np.stack([initial, CHANGE * (followup - initial)])


def table_vector(tests: LungFunction, weeks: float) -> NDArray[np.float32]:
    """A table's row as numbers about 1; what was not measured is 0, with a mark of its own."""
    values = []
    for field in fields(tests):
        value = getattr(tests, field.name)
        missing = value is None
        if field.name == "sex":
            number = 0.0 if missing else (1.0 if value == "male" else -1.0)
        elif field.name == "smoking":
            number = 0.0 if missing else {"never": -1.0, "ex": 0.5, "current": 1.0}[value]
        else:
            middle, spread = _TYPICAL[field.name]
            number = 0.0 if missing else (value - middle) / spread
        values += [number, float(missing)]
    return np.array([*values, *weeks_vector(weeks)], np.float32)


def weeks_vector(weeks: float) -> NDArray[np.float32]:
    """[1] the interval between two scans as a number about 1: what a change is held against."""
    return np.array([(weeks - 52.0) / 26.0], np.float32)


@dataclass(frozen=True, eq=False)
class _Draws:
    """Batches with as many of either label, moved by up to a voxel and mirrored."""

    cases: Sequence[LabelledPair]
    seed: int

    @property
    def slices(self) -> int:
        return len(self.cases)

    def case(self, seed: int) -> int:
        generator = np.random.Generator(np.random.Philox(key=seed))
        wanted = bool(generator.integers(2))
        of_label = [i for i, one in enumerate(self.cases) if one.progressive == wanted] or list(range(len(self.cases)))
        return of_label[int(generator.integers(len(of_label)))]

    def batch(self, step: int, places: Sequence[int]) -> Batch:
        seeds = tuple(patch_seed(self.seed, step, place) for place in places)
        drawn = []
        for seed in seeds:
            moves = [seed // 3**axis % 3 - 1 for axis in range(3)]
            scans = np.roll(self.cases[self.case(seed)].scans, moves, (1, 2, 3))
            drawn.append(scans[..., ::-1] if seed // 27 % 2 else scans)
        source = np.ascontiguousarray(np.stack(drawn), np.float32)
        return Batch(source, source[:, :1], seeds, tuple(f"case {self.case(seed)}" for seed in seeds))


class _Task(nn.Module):
    def __init__(self, net: PairClassifier, draws: _Draws) -> None:
        super().__init__()
        self.net, self.draws = net, draws

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        chosen = [self.draws.cases[self.draws.case(seed)] for seed in seeds]
        wanted = torch.tensor([float(one.progressive) for one in chosen], device=source.device)
        found = self.net(source, _table(chosen, source.device))
        return {"loss": functional.binary_cross_entropy_with_logits(found, wanted)}


def _table(cases: Sequence[LabelledPair], device: torch.device) -> Tensor | None:
    rows = [one.table for one in cases if one.table is not None]
    return torch.from_numpy(np.stack(rows)).to(device) if rows else None


def fit_classifier(cases: Sequence[LabelledPair], recipe: ClassifierRecipe, run: Run) -> PairClassifier:
    """Train on real pairs."""
    first = cases[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net = PairClassifier(
            len(first.scans),
            table=0 if first.table is None else len(first.table),
            widths=recipe.widths,
            blocks=recipe.blocks,
        )
    draws = _Draws(cases, recipe.seed)
    train_phase("classifier", _Task(net, draws), draws, recipe.phase, run)
    return net.eval().requires_grad_(False)


def probabilities(net: PairClassifier, cases: Sequence[LabelledPair]) -> NDArray[np.float64]:
    """The probability of "progressive" of each case."""
    device = next(net.parameters()).device
    found = []
    with torch.inference_mode():
        for one in cases:
            scans = torch.from_numpy(np.ascontiguousarray(one.scans))[None].to(device)
            found.append(float(torch.sigmoid(net(scans, _table([one], device)))[0]))
    return np.array(found)


def accuracy(probability: NDArray[np.float64], progressive: NDArray[np.bool_]) -> tuple[float, tuple[float, float]]:
    """Share that is right at 0.5, with Wilson's 95 % interval (1927, doi:10.1080/01621459.1927.10502953)."""
    n, right = len(progressive), int(((probability >= 0.5) == progressive).sum())
    z = float(stats.norm.ppf(0.975))
    p = right / n
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return p, ((middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n))


def auc(
    probability: NDArray[np.float64], progressive: NDArray[np.bool_], *, seed: int, draws: int = 2000
) -> tuple[float, tuple[float, float]]:
    """Area under the ROC curve (Mann-Whitney) with a bootstrap interval over subjects; NaN with one label alone."""
    generator = np.random.default_rng(seed)
    # How often a progressive subject has the larger probability, a tie for half.
    above = probability[progressive, None] - probability[None, ~progressive]
    wins = (above > 0) + 0.5 * (above == 0)

    def areas(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """[n, subjects] how often each subject is drawn, to [n]."""
        of_progressive, of_stable = counts[:, progressive], counts[:, ~progressive]
        pairs = of_progressive.sum(axis=1) * of_stable.sum(axis=1)
        won = ((of_progressive @ wins) * of_stable).sum(axis=1)
        return np.divide(won, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)

    subjects = len(probability)
    places = generator.integers(subjects, size=(draws, subjects))
    counts = np.stack([np.bincount(one, minlength=subjects) for one in places])
    drawn = areas(counts)
    kept = drawn[~np.isnan(drawn)]
    low, high = np.percentile(kept, (2.5, 97.5)) if len(kept) else (float("nan"), float("nan"))
    return float(areas(np.ones((1, subjects), np.int64))[0]), (float(low), float(high))
