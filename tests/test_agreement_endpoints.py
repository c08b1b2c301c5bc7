"""Bias and limits, classes, repeatability: textbook numbers and identities."""

from __future__ import annotations

import numpy as np
import pytest

from concordct.agreement import bland_altman
from concordct.agreement.bland_altman import agreement_of
from concordct.agreement.classes import class_changes, class_of
from concordct.agreement.concordance import ccc_per_feature, icc_2_1
from concordct.agreement.repeatability import repeatability, within_repeat
from concordct.errors import ConcordctError

#: Peak expiratory flow, l/min, by a Wright and a mini Wright meter, two readings each of 17 people: the table of
#: Bland & Altman 1986, whose text gives the mean difference -2.1, its deviation 38.8, limits -79.7 and 75.5, and a
#: repeatability coefficient of 43.2 (Wright, from the first and second readings, with 2 for 1.96).
WRIGHT = np.array([494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427], float)
WRIGHT_AGAIN = np.array([490, 397, 512, 401, 470, 611, 415, 431, 638, 429, 420, 633, 275, 492, 165, 372, 421], float)
MINI = np.array([512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451], float)
PEOPLE = [f"p{k}" for k in range(17)]


def test_limits_are_those_of_bland_and_altmans_table() -> None:
    found = agreement_of(WRIGHT, MINI, PEOPLE, generator=np.random.default_rng(0), repeats=400)
    assert found.bias == pytest.approx(-2.1, abs=0.05)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(38.8, abs=0.05)
    assert found.patients == found.count == 17
    # The paper's own 95 % interval of the bias, from Student's t.
    assert found.bias_interval == pytest.approx((-22.0, 17.8), abs=4.0)
    assert found.ccc_interval[0] < found.ccc < found.ccc_interval[1]
    assert found.icc == pytest.approx(found.ccc, abs=0.01)


def test_intervals_widen_when_scans_are_of_few_patients() -> None:
    generator = np.random.default_rng(1)
    truth = np.repeat(generator.normal(0, 10, 6), 10)
    shift = np.repeat(generator.normal(1, 3, 6), 10)
    many = agreement_of(truth + shift, truth, [str(k) for k in range(60)], generator=generator, repeats=300)
    few = agreement_of(truth + shift, truth, [str(k // 10) for k in range(60)], generator=generator, repeats=300)
    assert np.ptp(few.bias_interval) > 2 * np.ptp(many.bias_interval)


def test_patients_are_drawn_with_all_of_their_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn one by one, patients of one to five scans give the same interval as all draws together."""
    people = ["a"] * 5 + ["b"] + ["c"] * 2 + ["b"] + ["d"]
    truth = np.random.default_rng(2).normal(0, 5, len(people))
    values = truth + np.random.default_rng(3).normal(1, 2, len(people))
    monkeypatch.setattr(bland_altman, "MOST_AT_ONCE", 60)  # several parts
    found = agreement_of(values, truth, people, generator=np.random.default_rng(0), repeats=50)
    scans = [np.flatnonzero(np.array(people) == one) for one in "abcd"]
    drawn = []
    for who in np.random.default_rng(0).integers(0, 4, (50, 4)):
        chosen = np.concatenate([scans[k] for k in who])
        x, y = values[chosen, None], truth[chosen, None]
        drawn.append([(x - y).mean(), ccc_per_feature(x, y)[0], icc_2_1(x, y)[0]])
    for interval, samples in zip(
        (found.bias_interval, found.ccc_interval, found.icc_interval), np.transpose(drawn), strict=True
    ):
        assert interval == pytest.approx(np.nanquantile(samples, (0.025, 0.975)))


def test_undefined_values_are_left_out_and_one_patient_has_no_interval() -> None:
    found = agreement_of([1, 2, 3.5, np.nan], [1, 2, 3, 4], ["a"] * 4, generator=np.random.default_rng(0))
    assert (found.count, found.patients) == (3, 1)
    assert np.isnan(found.bias_interval).all()
    with pytest.raises(ConcordctError, match="both values"):
        agreement_of([np.nan], [1.0], ["a"], generator=np.random.default_rng(0))


def test_a_cut_belongs_to_the_class_below_it() -> None:
    assert class_of([0, 0.5, 10, 11, 400, 401, np.nan], (0, 10, 100, 400)).tolist() == [0, 1, 1, 2, 3, 4, -1]
    with pytest.raises(ConcordctError, match="ascending"):
        class_of([1.0], (5, 5))


def test_changes_are_counted_by_direction() -> None:
    found = class_changes([4, 6, 7, 2, np.nan], [4, 4, 7, 6, 1], (5,))
    assert found.table.tolist() == [[1, 1], [1, 1]]
    assert (found.patients, found.changed, found.up, found.down) == (4, 0.5, 0.25, 0.25)
    assert found.kappa == pytest.approx(0.0)
    assert class_changes([1, 9], [1, 9], (5,)).kappa == 1.0


def test_repeatability_coefficient_is_bland_and_altmans() -> None:
    values = np.concatenate([WRIGHT, WRIGHT_AGAIN])[:, None]
    found = repeatability(values, PEOPLE * 2)
    # The paper takes 2 standard deviations of the differences about zero: 43.2.
    assert found.coefficient[0] * 2 / 1.96 == pytest.approx(43.2, abs=0.1)
    assert found.degrees[0] == 17
    assert found.within_low[0] < found.within_sd[0] < found.within_high[0]


def test_a_repeat_lies_within_the_coefficient_in_95_of_100() -> None:
    generator = np.random.default_rng(2)
    truth = generator.normal(100, 20, (4000, 1))
    one, two, three = (truth + generator.normal(0, 2, truth.shape) for _ in range(3))
    found = repeatability(np.concatenate([one, two]), [str(k) for k in range(4000)] * 2)
    assert found.within_sd[0] == pytest.approx(2.0, rel=0.05)
    assert within_repeat(three, one, found)[0] == pytest.approx(0.95, abs=0.01)
    assert within_repeat(three + 6, one, found)[0] < 0.6
    with pytest.raises(ConcordctError, match="scanned twice"):
        repeatability(one, [str(k) for k in range(4000)])


def test_the_interval_of_the_repeatability_is_that_of_chi_squared() -> None:
    """Ten people scanned twice: chi squared with 10 degrees has 3.247 and 20.483 in the printed tables."""
    values = np.random.default_rng(0).normal(size=(20, 2))
    values[:, 1] = np.nan
    values[0, 1], values[10, 1] = 1.0, 2.0
    found = repeatability(values, [str(k) for k in range(10)] * 2)
    assert found.within_low[0] == pytest.approx(found.within_sd[0] * np.sqrt(10 / 20.483), rel=1e-4)
    assert found.within_high[0] == pytest.approx(found.within_sd[0] * np.sqrt(10 / 3.247), rel=1e-4)
    nothing = within_repeat(np.full((4, 2), np.nan), np.zeros((4, 2)), found)
    assert np.isnan(nothing).all()
