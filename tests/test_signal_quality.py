"""Image quality: analytic cases and scikit-image's own numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from concordct.errors import ConcordctError
from concordct.signal.quality import bias_by_range, compare_images


def test_a_shift_is_bias_mae_and_rmse_at_once() -> None:
    target = np.random.default_rng(0).normal(0, 100, (2, 32, 32)).astype(np.float32)
    found = compare_images(target + 5, target, np.ones(target.shape, bool), data_range_hu=4096)
    assert found.rmse_hu == pytest.approx(5, rel=1e-4)
    assert found.mae_hu == pytest.approx(5, rel=1e-4)
    assert found.bias_hu == pytest.approx(5, rel=1e-4)
    assert found.psnr_db == pytest.approx(20 * math.log10(4096 / 5), abs=1e-3)


def test_equal_images_are_perfect() -> None:
    target = np.random.default_rng(1).normal(0, 100, (1, 16, 16)).astype(np.float32)
    found = compare_images(target, target, np.ones(target.shape, bool), data_range_hu=4096)
    assert found.rmse_hu == 0
    assert found.psnr_db == math.inf
    assert found.ssim == pytest.approx(1)


def test_psnr_and_ssim_are_those_of_scikit_image() -> None:
    rng = np.random.default_rng(2)
    target = rng.normal(0, 200, (1, 40, 40)).astype(np.float32)
    image = (target + rng.normal(0, 50, target.shape)).astype(np.float32)
    found = compare_images(image, target, np.ones(target.shape, bool), data_range_hu=2000)
    assert found.psnr_db == pytest.approx(peak_signal_noise_ratio(target, image, data_range=2000), abs=1e-3)
    _, full = structural_similarity(image[0], target[0], data_range=2000, full=True)
    assert found.ssim == pytest.approx(float(full.mean()), abs=1e-6)


def test_only_the_mask_counts() -> None:
    target = np.zeros((1, 20, 20), np.float32)
    image = target.copy()
    image[0, :10] = 100
    mask = np.zeros(target.shape, bool)
    mask[0, 10:] = True
    assert compare_images(image, target, mask, data_range_hu=4096).rmse_hu == 0


def test_bias_is_sorted_by_the_target() -> None:
    target = np.array([[[-800.0, -800.0, 50.0, 500.0]]], np.float32)
    image = target + np.array([[[10.0, 20.0, -3.0, 7.0]]], np.float32)
    found = {bounds: (bias, n) for bounds, bias, n in bias_by_range(image, target, np.ones(target.shape, bool))}
    assert found[(-1100.0, -500.0)] == (15.0, 2)
    assert found[(-20.0, 150.0)] == (-3.0, 1)
    assert found[(300.0, 3072.0)] == (7.0, 1)
    assert math.isnan(found[(150.0, 300.0)][0])


def test_what_does_not_fit_is_refused() -> None:
    a = np.zeros((1, 8, 8), np.float32)
    with pytest.raises(ConcordctError, match=r"\(1, 8, 8\)"):
        compare_images(a, np.zeros((1, 8, 9), np.float32), np.ones((1, 8, 9), bool), data_range_hu=1)
    with pytest.raises(ConcordctError, match="empty"):
        compare_images(a, a, np.zeros(a.shape, bool), data_range_hu=1)
