"""Local level of noise: what it is of noise alone, and that vessels and air do not count."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from concordct.methods.concord.texture_level import LEAST_LEVEL_HU, LevelLaw, best_law, level_of, local_rms
from concordct.signal.spectra import detail_to_cosines

SPACING = (0.7, 0.7)
WHOLE = np.ones((200, 240), bool)


@pytest.fixture(scope="module")
def noise() -> NDArray[np.float32]:
    """Deviation 10 on the left, 30 on the right."""
    white = np.random.default_rng(0).standard_normal(WHOLE.shape, dtype=np.float32)
    white[:, :120] *= 10
    white[:, 120:] *= 30
    return white


def test_the_level_of_noise_is_its_deviation_where_it_is(noise: NDArray[np.float32]) -> None:
    level = local_rms(noise, WHOLE, spacing_mm=SPACING)
    assert np.median(level[:, :70]) == pytest.approx(10, rel=0.05)
    assert np.median(level[:, 170:]) == pytest.approx(30, rel=0.05)
    assert local_rms(3 * noise, WHOLE, spacing_mm=SPACING) == pytest.approx(3 * level, rel=1e-3)


def test_vessels_hardly_count(noise: NDArray[np.float32]) -> None:
    rng = np.random.default_rng(1)
    image = noise.copy()
    vessels = rng.random(WHOLE.shape) < 0.04
    image[vessels] += 400
    level, plain = (local_rms(image, WHOLE, spacing_mm=SPACING, rounds=rounds) for rounds in (10, 0))
    assert np.median(level[:, :70]) < 12
    assert np.median(plain[:, :70]) > 60


def test_the_rim_is_not_averaged_with_air(noise: NDArray[np.float32]) -> None:
    body = np.zeros(WHOLE.shape, bool)
    body[40:160, 20:110] = True
    image = np.where(body, noise, 0).astype(np.float32)
    level = local_rms(image, body, spacing_mm=SPACING)
    assert level[42, 22] == pytest.approx(10, rel=0.2)
    assert level[0, 239] == 0
    assert not local_rms(image, ~WHOLE, spacing_mm=SPACING).any()


def test_a_law_is_linear_in_dose_and_needs_no_body(noise: NDArray[np.float32]) -> None:
    law = LevelLaw(from_lp_cm=4.0, offset=0.3, slope=0.7, misfit=0.1)
    coefficients = detail_to_cosines(noise)
    level = level_of(coefficients, WHOLE, law, spacing_mm=SPACING)
    assert level_of(2 * coefficients, WHOLE, law, spacing_mm=SPACING) == pytest.approx(2 * level, rel=1e-3)
    other = level_of(coefficients, WHOLE, LevelLaw(4.0, 0.3 + np.log(2), 0.7, 0.1), spacing_mm=SPACING)
    assert other == pytest.approx(2 * level, rel=1e-3)
    empty = level_of(np.zeros_like(coefficients), ~WHOLE, law, spacing_mm=SPACING)
    np.testing.assert_array_equal(empty, np.float32(LEAST_LEVEL_HU))


def test_the_best_law_lies_in_a_band_that_the_pixels_hold() -> None:
    laws = [LevelLaw(from_lp_cm, 0.0, 1.0, misfit) for from_lp_cm, misfit in ((3.0, 0.3), (5.0, 0.2), (7.0, 0.1))]
    assert best_law(laws, (0.5, 0.5)).from_lp_cm == 7.0
    assert best_law(laws, (0.9, 0.9)).from_lp_cm == 5.0
    assert best_law(laws, (3.0, 3.0)).from_lp_cm == 3.0
