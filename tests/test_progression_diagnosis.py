"""The classifier and its figures: what it can learn, what it reads, intervals against published values."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from concordct.progression import diagnosis
from concordct.progression.diagnosis import ClassifierRecipe, LabelledPair, accuracy, auc, fit_classifier, probabilities
from concordct.progression.lung_function import LungFunction
from concordct.training.engine import Paused, Phase, Run

RECIPE = ClassifierRecipe((4, 4, 8, 8), phase=Phase(steps=25, batch=4, learning_rate=5e-3, warmup=2, ema=0.8, every=5))


def cases(count: int, *, table: bool = False) -> list[LabelledPair]:
    """The second scan of a progressive case is denser."""
    found = []
    for index in range(count):
        generator = np.random.default_rng(index)
        initial = generator.normal(0.2, 0.03, (16, 16, 16))
        second = initial + generator.normal(0.1 * (index % 2), 0.03, initial.shape)
        row = np.array([1.0 - 2 * (index % 2)], np.float32) if table else None
        scans = np.stack([initial, second])[: 1 if table else 2].astype(np.float32)
        found.append(LabelledPair(scans, row, bool(index % 2)))
    return found


@pytest.mark.parametrize("table", [False, True])
def test_it_learns_what_the_follow_up_or_the_table_says(table: bool, tmp_path: Path) -> None:
    pytest.importorskip("monai")
    recipe = dataclasses.replace(RECIPE, phase=dataclasses.replace(RECIPE.phase, steps=40, learning_rate=1e-2))
    net = fit_classifier(cases(8, table=table), recipe, Run(tmp_path))
    found = probabilities(net, cases(20, table=table)[8:])
    assert auc(found, np.arange(12) % 2 == 1, seed=0)[0] > 0.95


def test_training_resumes_to_the_bit(tmp_path: Path) -> None:
    pytest.importorskip("monai")
    recipe = dataclasses.replace(RECIPE, phase=dataclasses.replace(RECIPE.phase, steps=6, every=2))
    whole = probabilities(fit_classifier(cases(4), recipe, Run(tmp_path / "a")), cases(4))
    while True:
        try:
            pieces = fit_classifier(cases(4), recipe, Run(tmp_path / "b", stop=lambda: True))
            break
        except Paused:
            continue
    assert np.array_equal(probabilities(pieces, cases(4)), whole)


def test_accuracy_has_wilsons_interval() -> None:
    # Newcombe 1998 (doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E), table I: 81 of 263.
    right = np.arange(263) < 81
    share, (low, high) = accuracy(right.astype(float), np.ones(263, bool))
    assert share == pytest.approx(0.3080, abs=1e-4)
    assert (low, high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))


def test_auc_counts_pairs() -> None:
    p, y = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    value, (low, high) = auc(p, y, seed=0)
    assert value == pytest.approx(3.5 / 4)
    assert 0 <= low <= value <= high <= 1
    assert np.isnan(auc(p, y | True, seed=0)[0])


def test_a_table_row_marks_what_was_not_measured() -> None:
    full = LungFunction(fvc_ml=2700.0, fvc_percent=75.0, sex="male", smoking="never")
    row, empty = diagnosis.table_vector(full, 52.0), diagnosis.table_vector(LungFunction(), 52.0)
    assert row.shape == empty.shape == (17,)
    assert row[:4].tolist() == [0, 0, 0, 0]  # typical values, measured
    assert empty[1::2].sum() == 8
    assert not empty[::2].any()


def test_the_cube_shows_lungs_and_nothing_else() -> None:
    region = np.zeros((30, 30, 30), bool)
    region[5:25, 8:22, 4:26] = True
    seen = diagnosis.lung_cube(np.where(region, -400.0, 3000.0), region, 6.0)
    assert seen.shape == (48, 48, 48)
    assert seen.max() == pytest.approx(0.5)
    assert (seen > 0).sum() == region.sum()
