"""Texture matrices, surfaces, filters and local maps against brute force, closed forms and the libraries themselves."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
import pywt
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.radiomics.definitions import mesh, morphology
from concordct.radiomics.filters.image_types import FilterSettings, filtered
from concordct.radiomics.filters.lbp import icosphere
from concordct.radiomics.filters.local_maps import local_deviation, local_entropy, local_range
from concordct.radiomics.matrices import glcm, glrlm, neighbours, zones


@pytest.fixture(scope="module")
def levels():
    generator = np.random.default_rng(0)
    found = generator.integers(1, 5, (4, 7, 8)).astype(np.int32)
    return np.where(generator.random(found.shape) > 0.25, found, 0).astype(np.int32)


def _voxels(levels):
    return {place: int(levels[place]) for place in product(*map(range, levels.shape)) if levels[place] > 0}


def test_pairs_are_counted_as_by_hand(levels):
    voxels = _voxels(levels)
    for offset in glcm.DIRECTIONS_3D:
        expected = np.zeros((4, 4))
        for place, level in voxels.items():
            other = voxels.get(tuple(np.add(place, offset)))
            if other:
                expected[level - 1, other - 1] += 1
        found = np.zeros((4, 4))
        glcm.count_pairs(levels, *offset, 1.0, True, found)
        assert np.array_equal(found, expected + expected.T)


def test_runs_cover_every_voxel_once(levels):
    voxels = _voxels(levels)
    for step in glcm.DIRECTIONS_3D:
        expected = Counter()
        for place, level in voxels.items():
            if voxels.get(tuple(np.subtract(place, step))) == level:
                continue
            length = 1
            while voxels.get(tuple(np.add(place, length * step))) == level:
                length += 1
            expected[level, length] += 1
        found = np.zeros((4, 8))
        glrlm.count_runs(levels, *step, 1.0, found)
        assert Counter({(i + 1, j + 1): int(found[i, j]) for i, j in np.argwhere(found)}) == expected
        assert (found * np.arange(1, 9)).sum() == len(voxels)


@pytest.mark.parametrize("planar", [False, True])
def test_zones_are_the_connected_components(levels, planar):
    structure = np.ones((3, 3, 3), int)
    if planar:
        structure[[0, 2]] = 0
    expected = Counter()
    for level in range(1, 5):
        parts, count = ndimage.label(levels == level, structure)
        expected.update((level, int(size)) for size in np.bincount(parts.ravel())[1:])
        assert count == sum(number for (of, _), number in expected.items() if of == level)
    zone_levels, sizes, _ = zones.find_zones(levels, zones.NO_DISTANCES, planar, zones.NO_COUNTS)
    assert Counter(zip(zone_levels.tolist(), sizes.tolist(), strict=True)) == expected


def test_a_zone_whose_rim_outgrows_its_first_room_is_counted_whole():
    levels = np.ones((20, 30, 30), np.int32)
    levels[10, 15] = 2  # a bar through the middle
    zone_levels, sizes, _ = zones.find_zones(levels, zones.NO_DISTANCES, False, zones.NO_COUNTS)
    assert (zone_levels.tolist(), sizes.tolist()) == ([1, 2], [levels.size - 30, 30])


def test_distances_to_the_border_count_steps_over_faces():
    mask = np.zeros((5, 7, 7), bool)
    mask[:, 1:6, 1:6] = True
    assert zones.border_distances(mask, planar=False)[2].max() == 3
    assert zones.border_distances(mask, planar=False)[0, 3, 3] == 1
    assert zones.border_distances(mask, planar=True)[0, 3, 3] == 3


def test_dependences_and_tone_differences_are_those_by_hand(levels):
    voxels = _voxels(levels)
    offsets = neighbours.neighbourhood((1,), planar=False)
    assert len(offsets) == 26
    dependences = np.zeros((4, 27))
    counts, differences = np.zeros(4), np.zeros(4)
    for place, level in voxels.items():
        others = [voxels[o] for step in offsets if (o := tuple(np.add(place, step))) in voxels]
        dependences[level - 1, sum(abs(other - level) <= 1 for other in others)] += 1
        if others:
            counts[level - 1] += 1
            differences[level - 1] += abs(level - np.mean(others))
    assert np.array_equal(neighbours.count_dependences(levels, offsets, 1, 4), dependences)
    found = neighbours.count_differences(levels, offsets, 4, False)
    assert found[0] == pytest.approx(counts)
    assert found[1] == pytest.approx(differences)


def test_textures_do_not_depend_on_how_the_volume_lies(levels):
    turned = np.ascontiguousarray(levels.transpose(2, 0, 1)[::-1])
    around = neighbours.neighbourhood((1,), planar=False)
    for compute in (
        lambda one: glcm.glcm_features(one, offsets=glcm.DIRECTIONS_3D, merged=False, with_mcc=True),
        lambda one: glcm.glcm_features(one, offsets=glcm.DIRECTIONS_3D, merged=True, with_mcc=True),
        lambda one: glrlm.glrlm_features(one, offsets=glcm.DIRECTIONS_3D, merged=False),
        lambda one: zones.glszm_features(one, planar=False),
        lambda one: zones.gldzm_features(one, one > 0, planar=False),
        lambda one: neighbours.ngldm_features(one, offsets=around),
        lambda one: neighbours.ngtdm_features(one, offsets=around),
    ):
        assert compute(turned) == pytest.approx(compute(levels), rel=1e-12)


def test_the_surface_of_a_ball_is_that_of_a_ball():
    spacing = (2.0, 1.0, 0.5)
    z, y, x = (np.arange(-n, n + 1) * mm for n, mm in zip((12, 24, 48), spacing, strict=True))
    radius = 20.0
    mask = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 <= radius**2
    found = mesh.surface(mask, spacing)
    assert found.volume_mm3 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.01)
    assert found.volume_mm3 == pytest.approx(mask.sum() * np.prod(spacing), rel=0.01)
    reach = mesh.diameters(mask, spacing)
    assert reach.whole_mm == pytest.approx(2 * radius, rel=0.05)
    assert reach.slice_mm <= reach.whole_mm
    assert morphology.ellipsoid_area(20, 20, 20) == pytest.approx(4 * np.pi * 400, rel=1e-6)


def test_diameters_are_those_of_all_pairs():
    mask = np.random.default_rng(3).random((4, 6, 7)) > 0.5
    spacing = (3.0, 1.0, 0.7)
    padded = np.pad(mask, 1)
    points = []
    for axis in range(3):
        low, high = (
            np.take(padded, range(padded.shape[axis] - 1), axis),
            np.take(padded, range(1, padded.shape[axis]), axis),
        )
        half = np.zeros(3)
        half[axis] = 0.5
        points.append((np.argwhere(low != high) + half) * spacing)
    every = np.concatenate(points)
    gaps = np.linalg.norm(every[:, None] - every[None], axis=2)
    found = mesh.diameters(mask, spacing)
    assert found.whole_mm == pytest.approx(gaps.max())
    for axis, value in enumerate((found.slice_mm, found.column_mm, found.row_mm)):
        same = np.isclose(every[:, None, axis], every[None, :, axis])
        assert value == pytest.approx(gaps[same].max())


def test_autocorrelation_by_fft_is_the_sum_over_pairs():
    generator = np.random.default_rng(1)
    values = generator.normal(size=(4, 5, 6))
    inside = generator.random(values.shape) > 0.3
    spacing = (2.0, 1.0, 0.7)
    places = np.argwhere(inside) * spacing
    x = values[inside]
    gap = np.linalg.norm(places[:, None] - places[None], axis=2)
    weights = np.where(gap > 0, 1 / np.maximum(gap, 1e-9), 0)
    d = x - x.mean()
    moran = len(x) / weights.sum() * (weights * np.outer(d, d)).sum() / (d**2).sum()
    geary = (len(x) - 1) / (2 * weights.sum()) * (weights * (x[:, None] - x) ** 2).sum() / (d**2).sum()
    assert morphology.autocorrelation(inside, values, spacing) == pytest.approx((moran, geary))


@pytest.mark.parametrize(
    "kind", ["LoG", "Wavelet", "Square", "SquareRoot", "Logarithm", "Exponential", "Gradient", "LBP2D"]
)
def test_a_filter_gives_the_same_inside_a_box_as_everywhere(kind):
    image = np.round(np.random.default_rng(2).normal(0, 200, (11, 40, 43)))
    settings = FilterSettings(sigma=(1.0, 2.0), level=2, wavelet="haar")
    whole = (slice(0, 11), slice(0, 40), slice(0, 43))
    box = (slice(2, 9), slice(0, 12), slice(30, 43))
    spacing = (2.0, 0.8, 0.8)
    for (name, part), (other, full) in zip(
        filtered(image, spacing, box, kind, settings), filtered(image, spacing, whole, kind, settings), strict=True
    ):
        assert name == other
        assert np.abs(part - full[box]).max() <= 1e-6 * np.abs(full).max()


def test_wavelet_bands_are_those_of_pywavelets():
    image = np.random.default_rng(4).normal(size=(6, 8, 10))
    box = tuple(slice(0, n) for n in image.shape)
    found = dict(filtered(image, (1.0, 1.0, 1.0), box, "Wavelet", FilterSettings()))
    expected = pywt.swtn(image, "coif1", level=1, axes=(2, 1, 0))[0]
    assert set(found) == {f"wavelet-{name.replace('a', 'L').replace('d', 'H')}" for name in expected}
    for name, values in expected.items():
        assert np.array_equal(found[f"wavelet-{name.replace('a', 'L').replace('d', 'H')}"], values)


def test_spherical_patterns_of_a_plane_are_alike_and_named():
    assert [len(icosphere(division)) for division in (0, 1, 2)] == [12, 42, 162]
    z, y, x = np.mgrid[:31, :31, :31].astype(float)
    box = (slice(14, 17), slice(14, 17), slice(14, 17))
    found = dict(filtered(z + 0.31 * y + 0.17 * x, (1.0, 1.0, 1.0), box, "LBP3D", FilterSettings()))
    assert list(found) == ["lbp-3D-m1", "lbp-3D-m2", "lbp-3D-k"]
    for values in found.values():
        assert values == pytest.approx(np.full((3, 3, 3), values[0, 0, 0]), rel=1e-6)


def test_local_maps_are_those_of_each_window():
    generator = np.random.default_rng(5)
    image = np.round(generator.normal(0, 3, (5, 9, 9)))
    levels = (image - image.min()).astype(np.int32)
    window = (3, 5, 5)
    entropy = local_entropy(levels, window)
    deviation = local_deviation(image, window)
    spread = local_range(image, window)
    for z, y, x in ((2, 4, 4), (0, 0, 0), (4, 8, 3)):
        around = (slice(max(0, z - 1), z + 2), slice(max(0, y - 2), y + 3), slice(max(0, x - 2), x + 3))
        share = np.bincount(levels[around].ravel()) / levels[around].size
        share = share[share > 0]
        assert entropy[z, y, x] == pytest.approx(-(share * np.log2(share)).sum())
        assert deviation[z, y, x] == pytest.approx(image[around].std())
        assert spread[z, y, x] == np.ptp(image[around])


def test_filters_that_cannot_run_say_so():
    zero = np.zeros((6, 6, 6))
    box = (slice(0, 6),) * 3
    for image, kind, settings, message in (
        (zero, "Square", FilterSettings(), "largest intensity, which is 0"),
        (zero, "LoG", FilterSettings(), "at least one sigma"),
        (zero, "LoG", FilterSettings(sigma=(9.0,)), "longer image"),
        (zero, "Fourier", FilterSettings(), "no image type"),
    ):
        with pytest.raises(ConcordctError, match=message):
            list(filtered(image, (1.0, 1.0, 1.0), box, kind, settings))


def test_zones_of_a_large_roi_are_counted_to_the_same_features(monkeypatch):
    levels = np.random.default_rng(5).integers(0, 3, (6, 20, 20)).astype(np.int32)
    listed = zones.glszm_features(levels, planar=False)
    monkeypatch.setattr(zones, "LARGE", 0)
    monkeypatch.setattr(zones, "SMALL_ZONE", 3)
    np.testing.assert_allclose(zones.glszm_features(levels, planar=False), listed, rtol=1e-12)
