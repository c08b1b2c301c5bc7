"""ComBat against neuroCombat, its identities, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from concordct.agreement.combat import fit_combat
from concordct.errors import ConcordctError

FIXTURE = json.loads((Path(__file__).parent / "data" / "neurocombat.json").read_text())
VALUES = np.array(FIXTURE["values"])
BATCH = FIXTURE["batch"]
COVARIATES = np.stack([FIXTURE["sex"], FIXTURE["age"]], axis=1).astype(float)


@pytest.mark.parametrize(
    ("case", "options"),
    [("parametric", {}), ("nonparametric", {"parametric": False}), ("reference", {"reference": "scanner2"})],
)
def test_values_are_those_of_neurocombat(case, options):
    found = fit_combat(VALUES, BATCH, COVARIATES, **options).apply(VALUES, BATCH, COVARIATES)
    # 1e-4: neuroCombat stops iterating at a signed relative change of 1e-4
    assert np.abs(found - np.array(FIXTURE[case])).max() < (1e-4 if case != "nonparametric" else 1e-7)


def test_new_subjects_are_moved_as_those_fitted_on():
    fitted = fit_combat(VALUES, BATCH, COVARIATES)
    whole = fitted.apply(VALUES, BATCH, COVARIATES)
    for row in (0, 11, 23):
        alone = fitted.apply(VALUES[row : row + 1], [BATCH[row]], COVARIATES[row : row + 1])[0]
        # A product of one row and of many may differ in the last bit, by the build of BLAS.
        assert np.allclose(alone, whole[row], rtol=1e-12, atol=0)


def test_the_reference_batch_stays():
    fitted = fit_combat(VALUES, BATCH, COVARIATES, reference="scanner3")
    found = fitted.apply(VALUES, BATCH, COVARIATES)
    stays = np.array(BATCH) == "scanner3"
    assert found[stays] == pytest.approx(VALUES[stays], abs=1e-12)
    assert np.abs(found[~stays] - VALUES[~stays]).max() > 0.1


def test_a_shift_and_scale_of_one_batch_vanish():
    g = np.random.default_rng(0)
    values = g.normal(size=(400, 30))
    batch = ["a", "b"] * 200
    values[1::2] = values[1::2] * 2 + 3
    found = fit_combat(values, batch).apply(values, batch)
    # What is left is each feature's own sampling error, which empirical Bayes does not take for a batch effect
    assert np.abs(found[::2].mean(0) - found[1::2].mean(0)).max() < 0.5
    assert abs((found[::2].mean(0) - found[1::2].mean(0)).mean()) < 0.05
    assert found[::2].std(0) / found[1::2].std(0) == pytest.approx(np.ones(30), abs=0.2)


def test_constant_features_pass_unchanged():
    values = VALUES.copy()
    values[:, 3] = 5.0
    fitted = fit_combat(values, BATCH)
    assert fitted.constant.tolist() == [place == 3 for place in range(values.shape[1])]
    assert (fitted.apply(values, BATCH)[:, 3] == 5.0).all()


def test_what_combat_cannot_do_is_refused():
    undefined = VALUES.copy()
    undefined[2, 1] = np.nan
    fitted = fit_combat(VALUES, BATCH)
    for run, message in (
        (lambda: fit_combat(undefined, BATCH), "1 with undefined"),
        (lambda: fit_combat(VALUES, ["a"] * len(VALUES)), "two batches"),
        (lambda: fit_combat(VALUES, BATCH, reference="scanner9"), "no reference batch scanner9"),
        (lambda: fit_combat(VALUES, BATCH, np.eye(3)[[int(b[-1]) - 1 for b in BATCH]][:, :1]), "determine each other"),
        (lambda: fitted.apply(VALUES[:1], ["scanner9"]), "not been fitted on batch scanner9"),
        (lambda: fitted.apply(VALUES[:1], BATCH[:1], COVARIATES[:1]), "0 covariates"),
    ):
        with pytest.raises(ConcordctError, match=message):
            run()
