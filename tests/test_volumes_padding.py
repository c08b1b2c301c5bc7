"""Padding is found where the scanner left blank, and clipped air stays image."""

from __future__ import annotations

import numpy as np
import pytest

from concordct.volumes.padding import find_padding

SIDE = 128
Y, X = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
OUTSIDE = np.hypot(Y, X) > SIDE / 2 + 1


def scan(*, air_hu: float = -1000, noise_hu: float = 15, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, noise_hu, (SIDE, SIDE))
    return np.where(np.hypot(Y, X) < SIDE / 4, 40.0, air_hu) + noise


@pytest.mark.parametrize("declared", [None, (-32768.0, -32768.0)])
@pytest.mark.parametrize("blank", [-3024.0, -2000.0, -2048.0])
def test_far_below_air_at_the_border_whatever_is_declared(blank: float, declared: tuple[float, float] | None) -> None:
    hu = np.where(OUTSIDE, blank, scan())
    hu[SIDE // 2, SIDE // 2] = blank  # an undershoot inside is image when nobody calls it padding
    assert np.array_equal(find_padding(hu, declared_hu=declared), OUTSIDE)


def test_constant_at_air_without_declaration() -> None:
    hu = np.maximum(np.where(OUTSIDE, -1024.0, scan()), -1024)
    found = find_padding(hu)
    # A clipped voxel that touches the blank region from inside may join it; nothing further in may.
    assert not found[np.hypot(Y, X) < SIDE / 2 - 2].any()
    assert np.count_nonzero(found & ~OUTSIDE) < 0.01 * OUTSIDE.size
    # The tips, thinner than the solid square, may stay image: they hold the same value either way.
    assert np.count_nonzero(OUTSIDE & ~found) < 0.1 * np.count_nonzero(OUTSIDE)


@pytest.mark.parametrize("declared", [None, (-1024.5, -1023.5)])
@pytest.mark.parametrize("air_hu", [-1000.0, -1015.0, -1024.0])
def test_clipped_noisy_air_is_image(air_hu: float, declared: tuple[float, float] | None) -> None:
    for seed in range(5):
        hu = np.maximum(np.rint(scan(air_hu=air_hu, noise_hu=20, seed=seed)), -1024)
        assert not find_padding(hu, declared_hu=declared).any()


def test_declared_range_at_air() -> None:
    hu = np.where(OUTSIDE, -1023.0, np.maximum(scan(), -1010))
    found = find_padding(hu, declared_hu=(-1024.5, -1022.5))
    assert not found[~OUTSIDE].any()
    assert found[0, 0]


def test_constant_tissue_or_enclosed_constant_is_no_padding() -> None:
    assert not find_padding(np.full((SIDE, SIDE), 0.0)).any()
    hu = scan()
    hu[40:80, 40:80] = -1024  # a constant box that touches no border
    assert not find_padding(hu).any()


def test_wholly_blank_slice() -> None:
    assert find_padding(np.full((SIDE, SIDE), -3024.0)).all()
    assert find_padding(np.full((SIDE, SIDE), -1024.0)).all()
