"""The flagship's benchmark: its nodule measure and its blob detector against a ball that is known exactly."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

# The benchmarks are no part of the package and stand beside the tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.flagship_blobs import RADIUS_MM, blobs, unmatched
from benchmarks.flagship_safety import COHORT, measure

SPACING = (1.0, COHORT.pixel_mm, COHORT.pixel_mm)
CENTRE = (6.2, 31.4, 30.7)


def ball(radius_mm: float, hu: float, centre: tuple[float, float, float] = CENTRE) -> NDArray[np.float32]:
    """[13, 64, 64], its voxels averaged over a fine grid."""
    fine = (np.arange(5) - 2) / 5
    z, y, x = (
        ((np.arange(n)[:, None] + fine).ravel() - c) * d for n, c, d in zip((13, 64, 64), centre, SPACING, strict=True)
    )
    inside = z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None] ** 2 < radius_mm**2
    share = inside.reshape(13, 5, 64, 5, 64, 5).mean(axis=(1, 3, 5))
    return (hu * share).astype(np.float32)


def test_the_measure_finds_contrast_and_volume_of_a_ball() -> None:
    lung = np.full((13, 64, 64), -850, np.float32)
    found = measure(lung + ball(2.0, 800), lung, CENTRE)
    assert found.contrast == pytest.approx(800, rel=0.06)
    # Lines between voxels of a millimetre cut the corners of so small a ball.
    assert found.volume == pytest.approx(4 / 3 * np.pi * 2.0**3, rel=0.2)
    assert found.alone_contrast == pytest.approx(found.contrast, rel=0.01)
    assert found.alone_volume == pytest.approx(found.volume, rel=0.02)


def test_the_measure_follows_what_is_lost() -> None:
    lung = np.full((13, 64, 64), -850, np.float32)
    whole, half = (measure(lung + ball(radius, hu), lung, CENTRE) for radius, hu in ((2.0, 800), (2.0, 400)))
    assert half.contrast / whole.contrast == pytest.approx(0.5, rel=0.01)
    assert half.volume == pytest.approx(whole.volume, rel=0.01)
    smaller = measure(lung + ball(1.6, 800), lung, CENTRE)
    assert smaller.volume / whole.volume == pytest.approx((1.6 / 2.0) ** 3, rel=0.15)


def test_blobs_finds_balls_where_they_are() -> None:
    other = (6.0, 12.0, 50.0)
    noise = np.random.default_rng(0).normal(-850, 30, (13, 64, 64)).astype(np.float32)
    image = noise + ball(RADIUS_MM, 800) + ball(RADIUS_MM, 600, other)
    found = blobs(image, np.ones(image.shape, bool), SPACING)
    assert np.abs(found[0, :3] - np.array(CENTRE) * SPACING).max() < 0.8
    assert np.abs(found[1, :3] - np.array(other) * SPACING).max() < 0.8
    assert len(found) == 2
    assert found[0, 3] > found[1, 3]


def test_blobs_outside_the_lungs_do_not_count() -> None:
    image = np.full((13, 64, 64), -850, np.float32) + ball(RADIUS_MM, 800)
    lungs = np.ones(image.shape, bool)
    lungs[:, :, 29:] = False
    assert not len(blobs(image, lungs, SPACING))


def test_unmatched_counts_what_the_other_does_not_show() -> None:
    one = np.array([[5.0, 5.0, 5.0, 300.0], [5.0, 30.0, 5.0, 200.0], [5.0, 60.0, 5.0, 90.0]])
    near = one[:1] + np.array([[0.0, 2.0, 1.0, -140.0]])
    assert unmatched(one, near, 100.0, 0.5) == 1
    assert unmatched(one, near, 100.0, 1.7) == 2
    assert unmatched(one, np.zeros((0, 4)), 100.0, 0.5) == 2
    assert unmatched(one, one, 100.0, 0.5) == 0
