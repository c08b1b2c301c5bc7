"""Spectra in physical frequency: identities, white noise, a known filter, the jackknife against many realizations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from concordct.signal.body import body_mask, material_mask, patch_corners
from concordct.signal.spectra import (
    Rings,
    cosine_frequencies,
    detail_from_cosines,
    detail_to_cosines,
    from_cosines,
    noise_power,
    power_ratio,
    to_cosines,
)
from concordct.volumes.volume import AIR_HU


def test_cosines_come_back_and_keep_the_power() -> None:
    image = np.random.default_rng(0).normal(0, 100, (40, 56)).astype(np.float32)
    coefficients = to_cosines(image)
    np.testing.assert_allclose(from_cosines(coefficients), image, atol=1e-3)
    np.testing.assert_allclose(detail_from_cosines(detail_to_cosines(image)), image, atol=1e-3)
    assert np.sum(coefficients**2) == pytest.approx(np.sum((image - AIR_HU) ** 2), rel=1e-5)


def test_frequencies_are_physical() -> None:
    # 5 lp/cm is a period of 2 mm: 4 pixels of 0.5 mm, and 2 of 1 mm.
    for pixel in (0.5, 1.0):
        x = (np.arange(64) + 0.5) * pixel
        wave = np.tile(np.cos(2 * np.pi * 0.5 * x), (8, 1)).astype(np.float32)
        coefficients = np.abs(detail_to_cosines(wave))
        f = cosine_frequencies((8, 64), (pixel, pixel))
        if pixel == 0.5:
            assert f.ravel()[coefficients.argmax()] == pytest.approx(5.0)
        assert f[0, -1] == pytest.approx(10 / (2 * pixel) * 63 / 64)


def test_rings_sum_every_coefficient_once() -> None:
    rings = Rings.covering((0.7, 0.7), 50)
    f = cosine_frequencies((30, 30), (0.7, 0.7))
    assert rings.sum(rings.index(f), np.ones(900)).sum() == 900
    wider = rings.index(cosine_frequencies((30, 30), (0.35, 0.35)))  # finer pixels reach beyond the last ring
    assert rings.sum(wider, np.ones(900)).sum() < 900


def test_white_noise_has_a_flat_spectrum_of_its_variance_times_the_pixel() -> None:
    sigma, pixel = 20.0, 0.7
    slices = np.random.default_rng(1).normal(0, sigma, (4, 256, 256)).astype(np.float32)
    power = noise_power(slices, np.ones(slices.shape, bool), spacing_mm=(pixel, pixel))
    # The quadratic surface takes what lies below the first band's middle.
    np.testing.assert_allclose(power.mean[1:], sigma**2 * pixel**2, rtol=0.05)


def test_filtered_noise_shows_the_filter() -> None:
    white = np.random.default_rng(2).normal(0, 20, (6, 256, 256))
    smooth = ndimage.gaussian_filter(white, (0, 1.0, 1.0), mode="wrap").astype(np.float32)
    mask = np.ones(white.shape, bool)
    ratio, _ = power_ratio(
        *(noise_power(np.asarray(x, np.float32), mask, spacing_mm=(1.0, 1.0)) for x in (smooth, white))
    )
    middle = np.arange(10) * 0.05 + 0.025
    np.testing.assert_allclose(ratio[1:7], np.exp(-((2 * np.pi * middle[1:7]) ** 2)), rtol=0.12)


def test_the_jackknife_error_is_the_spread_over_realizations() -> None:
    rng = np.random.default_rng(3)
    mask = np.ones((1, 128, 128), bool)
    ratios, errors = [], []
    for _ in range(40):
        pair = (noise_power(rng.normal(0, 1, (1, 128, 128)).astype(np.float32), mask, spacing_mm=(1, 1)) for _ in "ab")
        ratio, error = power_ratio(*pair)
        ratios.append(ratio)
        errors.append(error)
    np.testing.assert_allclose(np.mean(errors, axis=0)[1:], np.std(ratios, axis=0)[1:], rtol=0.45)


def test_bodies_are_found_and_filled() -> None:
    hu = np.full((1, 64, 64), -1000.0, np.float32)
    hu[0, 10:50, 10:50] = 30
    hu[0, 20:30, 20:30] = -850  # lung
    hu[0, 60:62, 5:60] = 200  # table
    hu[0, 2:8, 2:8] = 40  # a hand
    body = body_mask(hu)[0]
    assert body[25, 25]
    assert body[10:50, 10:50].all()
    assert body.sum() == 1600
    material = material_mask(hu, (2.0, 2.0))[0]
    assert material[4, 4]
    assert material[61, 30]
    assert not material_mask(hu, (1.0, 1.0))[0][4, 4]
    assert not body_mask(np.full((1, 8, 8), -1000.0, np.float32)).any()


def test_patches_lie_wholly_inside() -> None:
    mask = np.zeros((20, 33), bool)
    mask[:, 5:30] = True
    corners = patch_corners(mask, 8)
    assert {tuple(c) for c in corners} == {(r, c) for r in (0, 8) for c in (8, 16)}
    assert len(patch_corners(np.zeros((20, 20), bool), 8)) == 0
