"""What CIResDiff knows beside a patch: how dense the lungs are, and the sentence, told in more ways than one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from concordct.progression.patches3d import Followup

#: Lung between these HU is dense, below the upper one it holds air; what share is dense in a cohort, mean and spread.
#: A patch cannot see how far the disease has come in the rest of the lungs, and the tests mean little without.
DENSE_HU = (-700.0, -250.0)
DENSE_SHARE, DENSE_SPREAD = 0.28, 0.1
#: In training each sentence is told in so many ways: every number as a second test might have measured it (SD, a
#: share of it; Pellegrino et al. 2005, doi:10.1183/09031936.05.00034805, has some per cent from week to week).
TOLD, REPEATED = 8, 0.03
#: Ridge of the regression that the reading of the text starts from, for each sentence.
RIDGE = 0.4


def dense_share(hu: NDArray[Any], region: NDArray[np.bool_]) -> float:
    """How much of the aerated region is dense, as a number about 0 with a spread about 1."""
    inside = np.asarray(hu)[region]
    aerated = inside[inside < DENSE_HU[1]]
    share = float((aerated >= DENSE_HU[0]).mean()) if aerated.size else DENSE_SHARE
    return (share - DENSE_SHARE) / DENSE_SPREAD


def told_again(sentence: str, way: int) -> str:
    """The sentence as the `way`-th repetition of all measurements would have it; 0 is the sentence itself."""
    if way == 0:
        return sentence
    digest = hashlib.sha256(f"{way}\0{sentence}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def again(found: re.Match[str]) -> str:
        value = int(found[0])
        # As `progression.lung_function.sentence` rounds volumes, flow and the rest.
        step = 50 if value >= 1000 else 10 if value >= 150 else 1
        return str(max(step * round(value * (1 + REPEATED * generator.standard_normal()) / step), step))

    return re.sub(r"\d+", again, sentence)


def text_direction(components: Tensor, subjects: Sequence[Followup]) -> Tensor:
    """Which direction of the text goes with how much denser lungs became, given how dense they were: [c], ridge.

    From random directions eight hundred steps do not find it (docs/decisions.md). Training subjects only.
    """
    denser, dense = [], []
    for one in subjects:
        region = np.asarray(one.region)
        denser.append(float(np.subtract(one.followup, one.initial, dtype=np.float32)[region].mean()))
        dense.append(dense_share(one.initial, one.region))
    table = torch.cat([components, torch.tensor(dense).repeat_interleave(TOLD)[:, None]], dim=1).double()
    wanted = torch.tensor(denser).repeat_interleave(TOLD).double()
    table, wanted = table - table.mean(dim=0), wanted - wanted.mean()
    penalty = RIDGE * len(table) * torch.eye(table.shape[1], dtype=torch.float64)
    found = torch.linalg.solve(table.T @ table + penalty, table.T @ wanted)[:-1]
    spread = float((table[:, :-1] @ found).std())
    return (found / spread if spread > 0 else found).float()
