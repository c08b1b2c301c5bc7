"""The contrastive loss against numbers worked by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from concordct.nets.clip import ContrastivePair


class Told(torch.nn.Module):
    """In a tower's place: says what it was given."""

    def __init__(self, said: torch.Tensor, field: str | None = None) -> None:
        super().__init__()
        self.said, self.field = said, field

    def forward(self, *given, **named):
        return SimpleNamespace(**{self.field: self.said}) if self.field else self.said


def test_the_loss_is_the_mean_of_both_directions() -> None:
    """Scans (1, 0) and (1, 0), sentences (1, 0) and (0, 1), scale 1: logits [[1, 0], [1, 0]], which rows see as

    scans to sentences log(1 + e^-1) and log(1 + e), columns sentences to scans log 2 and log 2.
    """
    pair = ContrastivePair.__new__(ContrastivePair)
    torch.nn.Module.__init__(pair)
    pair.text = Told(torch.eye(2), "pooler_output")
    pair.scan = Told(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    pair.of_text = pair.of_scan = torch.nn.Identity()
    pair.log_scale = torch.nn.Parameter(torch.zeros(()))
    ids = torch.zeros(2, 3, dtype=torch.long)
    loss, hit = pair(torch.zeros(2, 1), ids, ids == 0, torch.tensor([0, 1]))
    scans = (math.log(1 + math.exp(-1)) + math.log(1 + math.e)) / 2
    assert float(loss.detach()) == pytest.approx((scans + math.log(2)) / 2, rel=1e-5)
    assert float(hit) == 0.5
    # Two sentences of one subject share the target: every logit is as good as its neighbour.
    alike, _ = pair(torch.zeros(2, 1), ids, ids == 0, torch.tensor([4, 4]))
    rows = math.log(1 + math.e) - 0.5
    assert float(alike.detach()) == pytest.approx((rows + math.log(2)) / 2, rel=1e-5)
