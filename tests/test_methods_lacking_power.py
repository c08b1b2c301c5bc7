"""Noise that an image lacks is found beside anatomy that outweighs it and differs by more."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from concordct.methods.concord.lacking_power import PatchPower, lacking_power

SPACING = (0.75, 0.75)


def test_the_power_of_white_noise_is_its_variance_times_the_pixel() -> None:
    white = np.random.default_rng(0).normal(0, 5, (400, 400)).astype(np.float32)
    patches = PatchPower.of(SPACING)
    power = patches.of_image(white, patches.corners(np.ones(white.shape, bool)))
    assert power.mean(axis=0) == pytest.approx(25 * 0.75**2, rel=0.1)
    assert np.all(np.diff(patches.centres_lp_cm) > 0)
    assert patches.centres_lp_cm[-1] < np.hypot(*(5 / d for d in SPACING)) + 0.1


def test_patches_lie_inside_the_body() -> None:
    body = np.zeros((100, 120), bool)
    body[20:80, 30:110] = True
    patches = PatchPower.of(SPACING)
    for row, column in patches.corners(body):
        assert body[row : row + patches.size, column : column + patches.size].all()
    assert len(patches.corners(body[:4])) == 0


def anatomy(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Structure with a power that falls with frequency, much of it in some places and little in others."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 1.0)
    where = ndimage.gaussian_filter(rng.standard_normal(shape), 25.0)
    return np.asarray(400 * field * np.clip(where / where.std(), 0, None))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_what_noise_lacks_is_found_apart_from_anatomy(share: float) -> None:
    """The transfer is 2 % off for anatomy, which is up to a hundred times the noise."""
    rng = np.random.default_rng(3)
    shape = (512, 512)
    body = anatomy(rng, shape)
    kept, lost = (rng.normal(0, np.sqrt(part), shape) for part in (1 - share, share))
    true, made = 1.02 * body + kept + lost, body + kept
    patches = PatchPower.of(SPACING)
    corners = patches.corners(np.ones(shape, bool))
    powers = [patches.of_image(image.astype(np.float32), corners) for image in (made, true)]
    assert (powers[1] - powers[0]).mean() > 0.5 * 0.75**2 + share * 0.75**2  # anatomy owns the plain difference
    found = lacking_power(*powers, powers[0], patches.centres_lp_cm)
    assert found is not None
    noise = patches.centres_lp_cm > 1.5
    assert found.power[noise].mean() / 0.75**2 == pytest.approx(share, abs=0.05)
    assert np.all(found.error > 0)


def test_quiet_patches_do_not_speak_for_all() -> None:
    """Without anatomy, the quietest fifth lacks 0.4 of its power and all the rest nothing."""
    rng = np.random.default_rng(5)
    patches = PatchPower.of(SPACING)
    structure = np.linspace(0.5, 1.5, 500)[:, None]
    made = 1 + 0.1 * structure * rng.standard_normal((500, patches.centres_lp_cm.size))
    true = made + np.where(structure < 0.7, 0.4, 0) + 0.2 * structure * rng.standard_normal(made.shape)
    found = lacking_power(made, true, structure * np.ones_like(made), patches.centres_lp_cm)
    assert found is not None
    assert abs(found.power.mean()) < 0.12


def test_a_few_patches_tell_nothing() -> None:
    patches = PatchPower.of(SPACING)
    power = np.ones((20, patches.centres_lp_cm.size))
    assert lacking_power(power, power, power, patches.centres_lp_cm) is None


def test_a_slice_without_patches_has_no_power() -> None:
    patches = PatchPower.of((0.74, 0.74))
    thin = np.zeros((64, 64), bool)
    thin[30:36] = True
    corners = patches.corners(thin)
    assert len(corners) == 0
    assert patches.of_image(np.zeros((64, 64), np.float32), corners).shape == (0, patches.centres_lp_cm.size)
