"""Thick slices from thin ones: a known profile is found, places are exact, what does not fit is refused."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.methods.spectral.thickness import SliceProfile, Stacking, fit_profile, line_positions
from concordct.training.bundle import Bundle
from concordct.volumes.files import open_volume_file, write_volume_file
from concordct.volumes.volume import Volume

WIDTH_MM = 4.0


def scan(slices: int = 40, spacing_mm: float = 1.0, seed: int = 0) -> Volume:
    hu = np.random.default_rng(seed).normal(0, 100, (slices, 24, 20)).astype(np.float32)
    affine = np.diag([spacing_mm, 0.7, 0.7, 1.0])[:, [0, 1, 2, 3]]
    turned = np.zeros((4, 4))
    turned[2, 0], turned[1, 1], turned[0, 2], turned[3, 3] = affine[0, 0], affine[1, 1], affine[2, 2], 1.0
    turned[2, 3] = 100.0
    return Volume(hu, turned, slice_thickness_mm=spacing_mm)


def averaged(thin: Volume, places: list[float], width_mm: float = WIDTH_MM) -> Volume:
    """Gaussian weights of this full width at half maximum."""
    at = np.arange(thin.shape[0]) * thin.spacing_mm[0]
    weights = np.exp(-4 * np.log(2) * ((at - np.array(places)[:, None]) / width_mm) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    affine = thin.affine.copy()
    affine[2, 0] = places[1] - places[0]
    affine[2, 3] += places[0]
    return Volume(np.tensordot(weights, thin.hu, 1).astype(np.float32), affine, slice_thickness_mm=width_mm)


def thicken(volume: Volume, profile: SliceProfile, *, spacing_mm: float, first_mm: float | None = None) -> Volume:
    with tempfile.TemporaryDirectory() as place:
        path = write_volume_file(Path(place) / "scan.nii", volume, whole_hu=False)
        return Stacking(profile, spacing_mm).of(open_volume_file(path), first_mm=first_mm).read()


def test_a_known_profile_is_found_and_applied_where_it_should_be() -> None:
    thin = scan()
    profile = fit_profile(thin, averaged(thin, [8.0, 13.0, 18.0, 23.0, 28.0]))
    assert profile.width_mm == pytest.approx(WIDTH_MM, rel=0.05)
    other = scan(seed=1)
    wanted = averaged(other, [10.0, 14.0, 18.0, 22.0])
    found = thicken(other, profile, spacing_mm=4.0, first_mm=10.0)
    np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-4)
    np.testing.assert_allclose(found.hu[:4], wanted.hu, atol=1.0)
    assert found.slice_thickness_mm == WIDTH_MM


def test_finer_slices_than_the_calibrated_ones_give_the_same_profile() -> None:
    thin = scan()
    profile = fit_profile(thin, averaged(thin, [8.0, 13.0, 18.0, 23.0, 28.0]))
    fine = scan(slices=80, spacing_mm=0.5, seed=2)
    found, wanted = thicken(fine, profile, spacing_mm=5.0, first_mm=10.0), averaged(fine, [10.0, 15.0])
    assert np.sqrt(np.mean((found.hu[:2] - wanted.hu) ** 2)) < 0.1 * wanted.hu.std()


def test_every_slice_lies_wholly_in_the_scan() -> None:
    thin = scan()
    profile = fit_profile(thin, averaged(thin, [8.0, 13.0, 18.0, 23.0, 28.0]))
    flat = replace(thin, hu=np.full(thin.shape, 37, np.float32))
    found = thicken(flat, profile, spacing_mm=5.0)
    np.testing.assert_allclose(found.hu, 37, atol=1e-3)
    assert 100 < found.affine[2, 3] < 106
    assert found.affine[2, 3] + 5 * (len(found.hu) - 1) < 139
    with pytest.raises(ConcordctError, match="holds a slice of 4 mm"):
        thicken(flat.slab(0, 4), profile, spacing_mm=5.0)


def test_what_does_not_fit_is_refused() -> None:
    thin = scan()
    thick = averaged(thin, [8.0, 13.0, 18.0, 23.0])
    with pytest.raises(ConcordctError, match="thicknesses"):
        fit_profile(replace(thin, slice_thickness_mm=None), thick)
    moved = thick.affine.copy()
    moved[0, 3] += 3
    with pytest.raises(ConcordctError, match="3 mm apart in the plane"):
        fit_profile(thin, replace(thick, affine=moved))
    with pytest.raises(ConcordctError, match="slices of 5 mm, while the model"):
        thicken(
            scan(slices=9, spacing_mm=5.0), SliceProfile(np.arange(3.0), np.array([0.2, 0.1, 0.0]), 1, 4), spacing_mm=5
        )
    with pytest.raises(ConcordctError, match="on either side"):
        fit_profile(thin.slab(0, 9), thick)


def test_a_profile_comes_back_from_a_bundle_and_a_wrong_one_is_refused() -> None:
    thin = scan()
    stacking = Stacking(fit_profile(thin, averaged(thin, [8.0, 13.0, 18.0, 23.0, 28.0])), 5.0)
    bundle = stacking.added_to(Bundle({}, {"method": "spectral"}))
    again = Stacking.of_bundle(bundle)
    assert again is not None
    assert again.said() == stacking.said()
    np.testing.assert_array_equal(again.profile.density_per_mm, stacking.profile.density_per_mm)
    assert Stacking.of_bundle(Bundle({}, {"method": "spectral"})) is None
    doubled = {name: 2 * array for name, array in bundle.tensors.items()}
    doubled["stacking/distance_mm"] /= 2
    with pytest.raises(ConcordctError, match="integral is 1, found 2"):
        Stacking.of_bundle(Bundle(doubled, bundle.metadata))


def test_real_thin_and_thick_slices_of_one_scan(shared_data: Path) -> None:
    from concordct.volumes.find import find_series

    thin, thick = (find_series(shared_data / "philips_thickness" / f"UB_{mm}mm").series[0].read() for mm in (1, 5))
    profile = fit_profile(thin, thick.slab(0, 4))
    assert profile.width_mm == pytest.approx(5.0, abs=0.3)
    first = float(thick.affine[2, 3] - thin.affine[2, 3])
    found = thicken(thin, profile, spacing_mm=5.0, first_mm=first)
    assert found.affine[2, 3] == pytest.approx(thick.affine[2, 3] + 5.0)
    last = thick.hu[len(found.hu)]
    error = (found.hu[-1] - last)[last > -500]
    assert np.sqrt(np.mean(error**2)) < 4


HAND = SliceProfile(np.arange(4.0), np.array([0.3, 0.2, 0.1, 0.0]), 1.0, 3.0)


def test_width_and_weights_by_hand() -> None:
    """The weight falls through a half of 0.3 midway between 1 and 2 mm."""
    assert HAND.width_mm == pytest.approx(3.0)
    assert HAND.weights(np.array([0.0, -1.0, 2.5, 5.0]), 0.5) == pytest.approx([0.15, 0.1, 0.025, 0.0])


def test_slices_are_counted_along_their_normal() -> None:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = 2.0, 0.7, 0.7
    affine[:, 3] = 5, 6, 7, 1
    assert line_positions(affine, 3) == pytest.approx([7, 9, 11])


def test_thick_slices_are_interpolated_by_weights_that_fall_to_the_next_slice() -> None:
    thick = scan(slices=12, spacing_mm=5.0)
    at = np.arange(11, 44.0)
    low = (at // 5).astype(int)
    share = (at / 5 - low)[:, None, None]
    affine = thick.affine.copy()
    affine[2, 0], affine[2, 3] = 1.0, affine[2, 3] + at[0]
    hu = (1 - share) * thick.hu[low] + share * thick.hu[low + 1]
    profile = fit_profile(thick, Volume(hu.astype(np.float32), affine, slice_thickness_mm=1.0))
    assert profile.weights(np.array([0.0, 1, 2, 3, 4, 5, 7]), 5.0) == pytest.approx(
        [1, 0.8, 0.6, 0.4, 0.2, 0, 0], abs=1e-3
    )
    found = thicken(thick, profile, spacing_mm=1.0)
    np.testing.assert_allclose(found.hu[11:44], hu, atol=0.5)
    assert found.slice_thickness_mm == 5.0
    assert "slices of 5 mm interpolated every 1 mm" in Stacking(profile, 1.0).said()
    assert "slices of 3 mm every 2 mm as weighted means" in Stacking(HAND, 2.0).said()
    with pytest.raises(ConcordctError, match="interpolates between slices of 5 mm"):
        thicken(scan(slices=9, spacing_mm=3.0), profile, spacing_mm=1.0)


def test_slices_that_are_all_alike_still_give_weights_and_one_slice_none() -> None:
    thin = scan()
    alike = replace(thin, hu=np.broadcast_to(thin.hu[:1], thin.shape).copy())
    profile = fit_profile(alike, averaged(alike, [8.0, 13.0, 18.0]))
    assert profile.distance_mm[-1] == 1.5 * WIDTH_MM
    assert profile.weights(profile.distance_mm, 1.0).sum() > 0.5
    with pytest.raises(ConcordctError, match="holds a slice of 3 mm"):
        thicken(scan(slices=2).slab(0, 1), HAND, spacing_mm=3.0)
