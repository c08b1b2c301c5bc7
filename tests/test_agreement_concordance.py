"""Agreement measures against published tables, analytic cases and each other."""

import numpy as np
import pytest

from concordct.agreement import concordance as agreement
from concordct.agreement.bootstrap import draw_subjects
from concordct.errors import ConcordctError

# Shrout & Fleiss 1979 (doi:10.1037/0033-2909.86.2.420), Table 2: six targets, four judges.
SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)


def _anova(table):
    """ICC(2,1) and ICC(3,1) of [target, judge] from the two-way sums of squares, written out."""
    n, k = table.shape
    rows = k * ((table.mean(1) - table.mean()) ** 2).sum() / (n - 1)
    judges = n * ((table.mean(0) - table.mean()) ** 2).sum() / (k - 1)
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    residual = (rest**2).sum() / ((n - 1) * (k - 1))
    return (
        (rows - residual) / (rows + (k - 1) * residual + k * (judges - residual) / n),
        (rows - residual) / (rows + (k - 1) * residual),
    )


def test_the_reference_anova_gives_the_published_icc():
    assert _anova(SHROUT_FLEISS) == pytest.approx((0.2898, 0.7148), abs=5e-5)


def test_icc_of_two_images_equals_the_two_way_table():
    for pair in ((0, 1), (0, 3), (2, 3)):
        two = SHROUT_FLEISS[:, pair]
        expected = _anova(two)
        assert agreement.icc_2_1(two[:, :1], two[:, 1:])[0] == pytest.approx(expected[0])
        assert agreement.icc_3_1(two[:, :1], two[:, 1:])[0] == pytest.approx(expected[1])


def test_ccc_of_shift_and_scale_is_the_closed_form():
    x = np.random.default_rng(0).normal(5, 2, (200, 1))
    for scale, shift in ((1, 0), (1, 3), (0.5, 0), (-1, 0), (2, -1)):
        y = scale * x + shift
        s2 = x.var()
        expected = 2 * scale * s2 / (s2 + scale**2 * s2 + (x.mean() - y.mean()) ** 2)
        assert agreement.ccc_per_feature(x, y)[0] == pytest.approx(expected)
    assert agreement.ccc_per_feature(x, x)[0] == pytest.approx(1.0)


def test_constant_and_undefined_features_are_named_not_dropped():
    g = np.random.default_rng(1)
    source = g.normal(size=(10, 6))
    target = source.copy()
    source[:, 1] = target[:, 1] = 4.0
    target[:, 2] = 7.0
    source[:8, 3] = np.nan
    target[0, 4] = np.nan
    source[:, 5] = 1 / 3
    ccc = agreement.ccc_per_feature(source, target)
    assert agreement.status(source, target) == (
        "ok",
        "constant",
        "constant in target",
        "undefined",
        "partial",
        "constant in source",
    )
    assert ccc[0] == pytest.approx(1)
    assert np.isnan(ccc[[1, 3]]).all()
    assert ccc[2] == 0
    assert ccc[4] == pytest.approx(1)
    summary = agreement.mean_by_class(ccc, ["a", "a", "a", "a", "b", "b"])
    assert (summary["a"].defined, summary["a"].undefined) == (2, 2)
    assert summary["a"].mean == pytest.approx(0.5)


def test_the_papers_definition_is_dominated_by_the_largest_feature():
    g = np.random.default_rng(2)
    target = np.concatenate([np.full((20, 1), 1e6) + g.normal(size=(20, 1)), g.normal(size=(20, 9))], axis=1)
    source = np.concatenate([target[:, :1], g.normal(size=(20, 9))], axis=1)
    within = agreement.ccc_per_class(source, target, ["c"] * 10)["c"]
    across = agreement.ccc_per_feature(source, target)
    assert within.min() > 0.999
    assert np.abs(across[1:]).mean() < 0.3


def test_relative_error_and_its_two_shares():
    target = np.array([[1.0, 0.0, 10.0, np.nan], [1.0, 0.0, 10.0, np.nan]])
    source = np.array([[1.1, 0.0, 20.0, 1.0], [1.2, 1.0, 10.0, 1.0]])
    errors = agreement.relative_error(source, target)
    assert errors[0, 0] == pytest.approx(0.1)
    assert (errors[0, 1], errors[1, 1]) == (0.0, np.inf)
    found = agreement.reproducible(errors, threshold=0.15)
    # values under 0.15: 0.1, 0, 0 of 6 defined; features by median: 0.15 (not under), inf, 0.5
    assert found.of_values == pytest.approx(3 / 6)
    assert found.of_features == 0.0
    assert (found.undefined_features, found.undefined_values) == (1, 2)
    curve = agreement.reproducibility_curve(errors, np.array([0.15, 0.16, 0.6, 1e9]))
    assert curve == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3])


def test_bland_altman_is_the_mean_and_spread_of_the_differences():
    g = np.random.default_rng(3)
    x, y = g.normal(size=(50, 3)), g.normal(size=(50, 3))
    found = agreement.bland_altman(x, y)
    difference = x - y
    assert found.bias == pytest.approx(difference.mean(0))
    assert found.high - found.bias == pytest.approx(1.96 * difference.std(0, ddof=1))


def test_bootstrap_draws_subjects_and_repeats_with_the_seed():
    g = np.random.default_rng(4)
    effect = np.repeat(g.normal(size=(12, 1)), 10, axis=0)
    target = effect + 0.3 * g.normal(size=(120, 5))
    source = target + 0.5 * g.normal(size=(120, 5))
    subjects = [str(n // 10) for n in range(120)]
    kinds = ["a", "a", "a", "b", "b"]
    run = [
        agreement.bootstrap_by_subject(source, target, kinds, subjects, generator=np.random.default_rng(7), repeats=200)
        for _ in range(2)
    ]
    assert run[0] == run[1]
    middle = agreement.mean_by_class(agreement.ccc_per_feature(source, target), kinds)
    for name, interval in run[0].items():
        assert interval.low < middle[name].mean < interval.high
        assert interval.subjects == 12
    alone = agreement.bootstrap_by_subject(source, target, kinds, ["x"] * 120, generator=g)
    assert np.isnan(alone["a"].low)


def test_arrays_of_two_shapes_are_refused():
    with pytest.raises(ConcordctError, match="one shape"):
        agreement.ccc_per_feature(np.zeros((3, 2)), np.zeros((3, 1)))


def test_shapes_that_numpy_would_stretch_are_refused():
    with pytest.raises(ConcordctError, match="one shape"):
        agreement.relative_error(np.ones((3, 2)), np.ones((3, 1)))


def test_a_draw_of_two_subjects_is_the_ccc_of_their_rois():
    """Of two subjects there are three draws, AA, AB and BB, and each is the CCC of those ROIs, means apart and all."""
    g = np.random.default_rng(5)
    target = g.normal(size=(24, 3)) + np.repeat([[0.0], [4.0]], 12, axis=0)
    source = 1.3 * target + 0.4 * g.normal(size=(24, 3)) - np.repeat([[0.0], [1.0]], 12, axis=0)
    subjects = ["a"] * 12 + ["b"] * 12
    drawn = draw_subjects(subjects, repeats=40, generator=g)
    found = agreement.drawn_means_by_class(source, target, ["k"] * 3, drawn)["k"]
    for value, (first, second) in zip(found, drawn.counts, strict=True):
        rows = [*range(12)] * int(first) + [*range(12, 24)] * int(second)
        assert value == pytest.approx(agreement.ccc_per_feature(source[rows], target[rows]).mean())


def test_the_median_of_one_error_is_that_error_and_of_none_it_is_unknown():
    errors = np.array([[np.nan, 0.1, 0.3], [np.nan, np.nan, 0.1]])
    assert np.nan_to_num(agreement.median_error(errors), nan=-1) == pytest.approx([-1, 0.1, 0.2])
