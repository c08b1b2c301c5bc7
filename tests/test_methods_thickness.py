"""Thick slices from thin ones: a known profile is found, places are exact, what does not fit is refused."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.methods.spectral.thickness import SliceProfile, Stacking, fit_profile
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
