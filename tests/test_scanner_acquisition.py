"""Acquisition and reconstruction against closed forms: line integrals, HU, MTF, noise."""

from __future__ import annotations

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.scanner.acquisition import (
    WATER_PER_MM,
    Acquisition,
    channel_angles,
    detect,
    project,
    ray_coordinates,
    to_parallel,
)
from concordct.scanner.analytic import Disc, disc_projections
from concordct.scanner.frame import Frame, Stack
from concordct.scanner.kernels import kernel
from concordct.scanner.nonlinear import shrink_noise
from concordct.scanner.projector import line_integrals
from concordct.scanner.reconstruction import digitize, reconstruct
from concordct.scanner.spectrum import correct_water, harden

SMALL = Acquisition(views=360, field_mm=200.0, mas=100.0)


def disc_image(frame: Frame, radius_mm: float, hu: float) -> np.ndarray:
    distance = np.hypot(frame.y_mm[:, None], frame.x_mm[None]) - radius_mm
    return (np.clip(0.5 - distance / frame.pixel_mm, 0, 1) * (hu + 1000) - 1000).astype(np.float32)


def test_line_integrals_of_a_square_are_chords() -> None:
    image = np.zeros((40, 40, 3), dtype=np.float32)
    image[10:30, 10:30, 1] = 0.5
    image[..., 2] = 2 * image[..., 1]
    direction = (np.array([1.0, 0.0, np.sqrt(0.5)]), np.array([0.0, 1.0, np.sqrt(0.5)]))
    origin = (np.zeros(3), np.zeros(3))
    sums = line_integrals(image, 0.7, (0.0, 0.0), origin, direction)
    expected = 0.5 * 20 * 0.7 * np.array([1.0, 1.0, np.sqrt(2.0)])
    np.testing.assert_allclose(sums[:, 0], 0.0)
    np.testing.assert_allclose(sums[:2, 1], expected[:2], rtol=1e-5)
    np.testing.assert_allclose(sums[2, 1], expected[2], rtol=0.03)
    np.testing.assert_allclose(sums[:, 2], 2 * sums[:, 1], rtol=1e-6)


def test_slices_in_a_call_change_no_bit() -> None:
    frame = Frame((90, 90), 2.0)
    hu = np.random.default_rng(1).normal(-500, 300, (5, 90, 90)).astype(np.float32)
    together = project(hu, frame, SMALL)
    alone = np.concatenate([project(hu[k : k + 1], frame, SMALL) for k in range(5)], axis=2)
    assert np.array_equal(together, alone)
    parallel = to_parallel(together, SMALL)
    image = Frame((64, 64), 2.0)
    kernels = (kernel("Br40"), kernel("Bl64"))
    whole = reconstruct(parallel, SMALL, image, kernels)
    single = reconstruct(np.ascontiguousarray(parallel[..., 3:4]), SMALL, image, kernels[1:])
    assert np.array_equal(whole[1, 3], single[0, 0])


@pytest.mark.parametrize("geometry", ["fan", "parallel"])
def test_drawn_disc_projects_like_the_analytic_one(geometry: str) -> None:
    acquisition = Acquisition(geometry=geometry, views=180, field_mm=200.0)
    frame = Frame((360, 360), 0.5)
    drawn = project(disc_image(frame, 70.0, 0.0)[None], frame, acquisition)[..., 0]
    exact = disc_projections([Disc(0.0, 0.0, 70.0, 1000.0)], acquisition)[..., 0]
    inside = np.abs(ray_coordinates(acquisition)[1]) < 66
    assert np.abs(drawn - exact)[inside].max() < 0.004 * exact.max()


def test_fan_data_rebin_to_the_parallel_projections_they_came_from() -> None:
    fan = Acquisition(views=984, field_mm=200.0)
    parallel = Acquisition(views=984, field_mm=200.0, geometry="parallel")
    discs = [Disc(0, 0, 80, 1000.0), Disc(-20.0, 35.0, 12, 400.0), Disc(30.0, 10.0, 5, -700.0)]
    rebinned = to_parallel(disc_projections(discs, fan), fan)
    direct = disc_projections(discs, parallel)
    assert rebinned.shape == direct.shape
    assert np.abs(rebinned - direct).max() < 0.004 * direct.max()


def test_quarter_offset_interleaves_opposite_rays() -> None:
    gamma = channel_angles(Acquisition())
    merged = np.sort(np.concatenate([gamma, -gamma]))
    steps = np.diff(merged)
    np.testing.assert_allclose(steps, 0.5 * (gamma[1] - gamma[0]), rtol=1e-6)


@pytest.mark.parametrize("geometry", ["fan", "parallel"])
def test_inserts_come_back_within_two_hu(geometry: str) -> None:
    acquisition = Acquisition(geometry=geometry, field_mm=240.0)
    discs = {0.0: (0, 0), -900.0: (55, 0), 50.0: (0, 55), 340.0: (-55, 0), 900.0: (0, -55)}
    parts = [Disc(0, 0, 100, 1000.0), *(Disc(y, x, 12, hu) for hu, (y, x) in discs.items() if hu)]
    frame = Frame((200, 200), 1.1)
    image = reconstruct(
        to_parallel(disc_projections(parts, acquisition), acquisition), acquisition, frame, (kernel("Br40"),)
    )[0, 0]
    for hu, (y, x) in discs.items():
        roi = np.hypot(frame.y_mm[:, None] - y, frame.x_mm[None] - x) < 7
        assert abs(image[roi].mean() - hu) < 2.0
    assert image[0, 0] == -1024.0


@pytest.mark.parametrize("name", ["Br40", "Bl64"])
def test_wire_measures_the_kernel_that_was_asked_for(name: str) -> None:
    acquisition = Acquisition(field_mm=120.0)
    frame = Frame((160, 160), 0.15, (-18.0, 12.0))
    data = disc_projections([Disc(-18.0, 12.0, 0.08, 2e5)], acquisition)
    image = reconstruct(to_parallel(data, acquisition), acquisition, frame, (kernel(name),))[0, 0] + 1000.0
    axis = np.fft.fftfreq(160, 0.015)
    f = np.hypot(axis[:, None], axis[None])
    spectrum = np.abs(np.fft.fft2(image)) / abs(image.sum())
    one = kernel(name)
    for frequency, expected in ((one.mtf50_lp_cm, 0.5), (one.mtf10_lp_cm, 0.1)):
        found = spectrum[np.abs(f - frequency) < 0.3].mean()
        assert abs(found - expected) < 0.03


def test_noise_falls_with_the_root_of_the_dose_and_the_theory_holds() -> None:
    clean = np.full((60, 50, 1), 3.0, dtype=np.float32)
    spread = []
    for mas in (50.0, 200.0):
        acquisition = Acquisition(mas=mas, electronic_noise=0.0)
        raw = detect(clean, acquisition, [np.random.default_rng(1)])
        spread.append(raw.std())
        expected = 1.0 / np.sqrt(acquisition.photons * np.exp(-3.0))
        assert abs(raw.std() / expected - 1) < 0.05
    assert abs(np.log(spread[1] / spread[0]) / np.log(4.0) + 0.5) < 0.03


def test_water_correction_undoes_what_water_hardens_and_bone_is_left_dark() -> None:
    path = np.linspace(0.0, 6.0, 50, dtype=np.float32)
    none = np.zeros_like(path)
    hard = harden(path, none, 120.0)
    assert (np.diff(hard[1:] / path[1:]) < 0).all()
    assert hard[-1] / path[-1] < 0.95 * hard[1] / path[1]
    np.testing.assert_allclose(correct_water(hard, 120.0, WATER_PER_MM), path, atol=0.004)
    with_bone = correct_water(harden(path, none + 0.5, 120.0), 120.0, WATER_PER_MM)
    # Bone's surplus reads high in thin patients and less behind more water: the cause of dark bands.
    assert (np.diff(with_bone - path) < 0).all()


def test_iterative_step_lowers_noise_keeps_edges_and_is_not_linear() -> None:
    generator = np.random.default_rng(3)
    step = np.where(np.arange(120)[None] < 60, 0.0, 400.0) * np.ones((120, 1))
    noisy = (step + generator.normal(0, 20, step.shape)).astype(np.float32)
    smooth = shrink_noise(noisy, 0.7, 4)
    flat = np.s_[10:110, 10:40]
    assert smooth[flat].std() < 0.7 * noisy[flat].std()
    assert abs((smooth[:, 62].mean() - smooth[:, 57].mean()) - 400) < 25
    doubled = shrink_noise(noisy * 2, 0.7, 4) / 2
    other = shrink_noise(noisy + 300 * (generator.random(step.shape) > 0.97).astype(np.float32), 0.7, 4)
    assert np.abs(other - smooth)[flat].max() > 50
    assert np.abs(doubled - smooth).max() < 5.0


def test_images_are_whole_hu_of_twelve_bits() -> None:
    assert digitize(np.array([-5000.0, 0.4, 9000.0], dtype=np.float32)).tolist() == [-1024.0, 0.0, 3071.0]


def test_a_thick_slice_averages_the_rows_within_it() -> None:
    weights = Stack(3, 5.0, 5.0).row_weights(1, 0.625)
    assert sorted(weights) == list(range(8, 16))
    np.testing.assert_allclose(list(weights.values()), 1 / 8)
    between = Stack(1, 1.0, 1.0, 1.25).row_weights(0, 0.5)
    np.testing.assert_allclose([between[1], between[2], between[3]], [0.25, 0.5, 0.25])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mas": -5.0}, "mas = -5.0 mAs lies outside the allowed 1 to 2000 mAs"),
        ({"kvp": 500.0}, "allowed 70 to 150 kV"),
        ({"geometry": "cone"}, "known are fan, parallel"),
        ({"views": 3}, "allowed 90 to 4800"),
    ],
)
def test_impossible_acquisitions_name_the_range(change: dict, message: str) -> None:
    with pytest.raises(ConcordctError, match=message):
        Acquisition(**change)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Stack(1, 1.0, -1.0), "above 0 mm"),
        (lambda: Stack(0, 1.0, 1.0), "at least 1 slice"),
        (lambda: Frame((512, 512), 0.0), "allowed 0.01 to 20 mm"),
    ],
)
def test_impossible_stacks_and_frames_are_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConcordctError, match=message):
        call()


def test_projector_agrees_with_astra() -> None:
    astra = pytest.importorskip("astra")
    image = np.random.default_rng(5).random((48, 64)).astype(np.float32)
    angles = np.linspace(0.1, 3.0, 17)
    bins = (np.arange(90) - 44.5) * 0.8
    volume = astra.create_vol_geom(48, 64)
    projector = astra.create_projector("linear", astra.create_proj_geom("parallel", 0.8, 90, angles), volume)
    identifier, theirs = astra.create_sino(np.ascontiguousarray(image[::-1]), projector)
    astra.data2d.delete(identifier)
    theta, t = np.meshgrid(angles, bins, indexing="ij")
    cosine, sine = np.cos(theta).ravel(), np.sin(theta).ravel()
    ours = line_integrals(image[..., None], 1.0, (0.0, 0.0), (t.ravel() * sine, t.ravel() * cosine), (cosine, -sine))
    assert np.abs(ours.reshape(theirs.shape) - theirs).max() < 0.01 * theirs.max()
