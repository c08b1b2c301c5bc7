"""Calcium, dense lung, nodules, noise and masks on shapes whose answers are known."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage, stats

from concordct.endpoints import calcium, nodules, noise
from concordct.endpoints.catalogue import ENDPOINTS
from concordct.endpoints.masks import endpoint_masks, measured
from concordct.radiomics.regions.lungs import OneLungWarning
from concordct.signal.signature import EDGE_LP_CM
from concordct.volumes.scans import one_scan
from concordct.volumes.volume import Volume


def volume(hu: np.ndarray, spacing_mm: tuple[float, float, float], thickness_mm: float | None = None) -> Volume:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing_mm
    affine[3, 3] = 1.0
    return Volume(hu.astype(np.float32), affine, slice_thickness_mm=thickness_mm)


def plaques(spacing_z: float, repeat: int) -> tuple[Volume, np.ndarray]:
    """Per 3 mm: 8 pixels at 250 HU, 4 at 150 HU, 3 at 450 HU below 1 mm^2; pixels of 0.5 mm."""
    hu = np.full((2, 20, 20), 40.0)
    hu[0, 2:4, 2:6], hu[0, 10:12, 10:12], hu[0, 16, 2:5] = 250.0, 150.0, 450.0
    hu = np.repeat(hu, repeat, axis=0)
    return volume(hu, (spacing_z, 0.5, 0.5)), np.ones(hu.shape, np.uint8)


def test_agatston_is_area_times_weight_in_slices_of_3_mm() -> None:
    found = calcium.measure(*plaques(3.0, 1))
    assert found["agatston"] == pytest.approx(2.0 * 2 + 1.0 * 1)  # 2 mm^2 at weight 2, 1 mm^2 at weight 1
    assert found["calcium_volume_ml"] == pytest.approx(3 * 3.0 / 1000)
    assert found["calcium_mass_mg"] == pytest.approx(0.8 * (2 * 250 + 1 * 150) * 3 / 1000)
    assert found["calcium_lesions"] == 2


def test_thin_slices_are_averaged_and_scored_alike() -> None:
    thin, thick = calcium.measure(*plaques(1.0, 3)), calcium.measure(*plaques(3.0, 1))
    assert calcium.group_of_slices(plaques(1.0, 3)[0]) == 3
    assert thin == pytest.approx(thick)
    # Slices of 2.5 mm are scored as they are, and scaled.
    assert calcium.measure(*plaques(2.5, 1))["agatston"] == pytest.approx(thick["agatston"] * 2.5 / 3)


@pytest.mark.parametrize(("increment", "thickness", "group"), [
    (0.625, 0.625, 5), (1.0, 1.0, 3), (1.5, 1.5, 2), (2.0, 2.0, None), (2.5, 2.5, 1), (1.5, 3.0, 1), (5.0, 5.0, None),
    (3.0, 5.0, None), (0.7, 1.0, 4),
])  # fmt: skip
def test_thickness_rule(increment: float, thickness: float, group: int | None) -> None:
    one = volume(np.zeros((8, 4, 4)), (increment, 0.5, 0.5), thickness)
    assert calcium.group_of_slices(one) == group


def test_agatston_is_undefined_in_thick_slices() -> None:
    assert all(np.isnan(value) for value in calcium.measure(*plaques(5.0, 1)).values())


def test_dense_lung_counts_ranges_and_its_moments_are_scipys() -> None:
    hu = np.random.default_rng(0).gamma(2.0, 80.0, (6, 20, 20)) - 950.0
    mask = np.ones(hu.shape, np.uint8)
    found = ENDPOINTS["fibrosis"].measure(volume(hu, (1, 1, 1)), mask)
    values = hu.astype(np.float32).astype(float).ravel()
    assert found["high_attenuation_percent"] == pytest.approx(100 * np.mean((values >= -600) & (values < -250)))
    assert found["ground_glass_percent"] == pytest.approx(100 * np.mean((values >= -700) & (values < -500)))
    assert found["lung_skewness"] == pytest.approx(stats.skew(values), rel=1e-4)
    assert found["lung_kurtosis"] == pytest.approx(stats.kurtosis(values), rel=1e-4)


@pytest.mark.parametrize(("blur_mm", "share"), [(0.5, 0.06), (1.2, 0.14)])
def test_nodule_at_half_contrast_keeps_its_size_under_blur(blur_mm: float, share: float) -> None:
    spacing = (1.0, 0.7, 0.7)
    z, y, x = (np.arange(n) * s - (n - 1) * s / 2 for n, s in zip((48, 64, 64), spacing, strict=True))
    ball = np.clip(6.0 - np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2) + 0.5, 0, 1)
    hu = ndimage.gaussian_filter(-850.0 + 880.0 * ball, [blur_mm / s for s in spacing])
    # The mask is drawn by a hand that is 1.5 mm too generous on one side.
    mask = ndimage.shift((ball > 0.5).astype(float), (1, 1, 0), order=0).astype(np.uint8) | (ball > 0.5)
    found = nodules.measure(volume(hu, spacing), mask.astype(np.uint8))
    assert found["nodule_diameter_mm"] == pytest.approx(12.0, abs=0.35)
    # Blur moves a ball's half contrast inwards by about sigma^2 / radius: 0.04 and 0.24 mm.
    assert found["nodule_volume_ml"] == pytest.approx(4 / 3 * np.pi * 6**3 / 1000, rel=share)
    assert found["nodule_long_axis_mm"] == pytest.approx(12.0, abs=0.8)
    assert found["nodule_short_axis_mm"] == pytest.approx(12.0, abs=0.8)
    assert found["nodule_solidity"] > 0.9


def test_a_cross_is_less_solid_than_a_ball_and_longer_than_wide() -> None:
    hu = np.full((24, 40, 40), -850.0)
    hu[8:16, 18:22, 5:35] = hu[8:16, 12:28, 18:22] = 30.0
    found = nodules.measure(volume(hu, (1, 1, 1)), (hu > 0).astype(np.uint8))
    assert found["nodule_solidity"] < 0.75
    assert found["nodule_long_axis_mm"] == pytest.approx(30, abs=1.5)
    assert found["nodule_short_axis_mm"] == pytest.approx(16, abs=1)


def test_what_does_not_stand_out_has_no_size() -> None:
    hu = np.full((20, 30, 30), 40.0)
    mask = np.zeros(hu.shape, np.uint8)
    mask[8:12, 10:20, 10:20] = 1
    found = nodules.measure(volume(hu, (1, 1, 1)), mask)
    assert found["region_mean_hu"] == 40.0
    assert np.isnan(found["nodule_volume_ml"])


def test_noise_level_and_sharpness_of_a_disc() -> None:
    """White noise of 20 HU in water whose edge is a Gaussian of 0.8 mm: MTF(f) = exp(-2 (pi sigma f)^2)."""
    pixel, sigma = 0.7, 0.8
    y, x = np.mgrid[:384, :384] * pixel - 384 * pixel / 2
    disc = ndimage.gaussian_filter(np.where(np.hypot(y, x) < 110, 40.0, -1000.0), sigma / pixel)
    hu = disc + np.random.default_rng(1).normal(0, 20, (4, 384, 384)) * (np.hypot(y, x) < 100)
    found = noise.measure(volume(hu, (1, pixel, pixel)), None)
    # Rings hold frequencies up to the axes' end; a square's corners, a fifth of white noise, lie beyond.
    assert found["noise_level_hu"] == pytest.approx(20 * np.sqrt(np.pi / 4), rel=0.08)
    assert found["mtf50_lp_cm"] == pytest.approx(10 * np.sqrt(np.log(2) / 2) / (np.pi * sigma), rel=0.1)
    assert found["mtf10_lp_cm"] == pytest.approx(10 * np.sqrt(np.log(10) / 2) / (np.pi * sigma), rel=0.12)


def test_falls_below_interpolates() -> None:
    assert noise.falls_below(np.exp(-EDGE_LP_CM / 4), 0.5) == pytest.approx(4 * np.log(2), abs=0.01)
    assert np.isnan(noise.falls_below(np.ones(EDGE_LP_CM.size), 0.5))


def test_real_chest_has_a_heart_region_and_contrast_medium(shared_data: Path) -> None:
    scan = one_scan(shared_data / "chest_B40f").read()
    lower = Volume(scan.hu[:14, ::2, ::2], scan.affine @ np.diag([1.0, 2.0, 2.0, 1.0]), slice_thickness_mm=3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", OneLungWarning)
        masks = endpoint_masks(lower)
    assert masks.enhanced
    assert masks.of("mediastinum") is None
    assert all(np.isnan(value) for value in measured(ENDPOINTS["calcium"], lower, masks).values())
    assert measured(ENDPOINTS["density"], lower, masks)["density_lungs_hu"] == pytest.approx(-780, abs=30)
