"""Distances, closings and hulls of masks against the exact transforms of SciPy and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import convex_hull_image

from concordct.endpoints.masks import convex_hull
from concordct.radiomics.regions.near import closing, within
from concordct.volumes import padding

SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.7, 0.7), (0.8, 1.7656, 2.5)]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("radius", [0.0, 1.0, 2.5, 7.0])
def test_within_is_the_euclidean_distance_transform_cut_at_the_radius(spacing, radius):
    mask = np.random.default_rng(0).random((7, 19, 23)) < 0.01
    mask[3] = False  # a slice without anything
    assert np.array_equal(within(mask, radius, spacing), ndimage.distance_transform_edt(~mask, spacing) <= radius)


def test_nothing_is_near_an_empty_mask():
    assert not within(np.zeros((3, 4, 5), bool), 10.0, (1.0, 1.0, 1.0)).any()


def test_closing_bridges_what_is_narrower_than_twice_the_radius_and_nothing_wider():
    mask = np.zeros((9, 9, 40), bool)
    mask[:, :, 5:12] = mask[:, :, 15:20] = mask[:, :, 30:35] = True  # gaps of 3 and of 10 voxels
    line = closing(mask, 2.0, (1.0, 1.0, 1.0))[4, 4]
    assert line[5:20].all()
    assert not line[20:30].any()
    assert not line[:5].any()


def test_convex_hull_is_scikit_images():
    rng = np.random.default_rng(1)
    for density in (0.01, 0.05, 0.3):
        mask = rng.random((23, 31)) < density
        assert np.array_equal(convex_hull(mask), convex_hull_image(mask))
    one = np.zeros((5, 6), bool)
    assert not convex_hull(one).any()
    one[2, 5] = True
    assert np.array_equal(convex_hull(one), one)


def test_padding_is_solid_squares_grown_back_that_reach_the_border():
    rng = np.random.default_rng(2)
    for _ in range(20):
        noise = ndimage.gaussian_filter(rng.standard_normal((41, 53)), 3.0)
        mask = noise > np.quantile(noise, 0.4)
        solid = ndimage.minimum_filter(mask, padding.SOLID_SIDE, mode="nearest")
        grown = ndimage.maximum_filter(solid, padding.SOLID_SIDE + 2 * padding.GROW_BACK, mode="constant") & mask
        labels, _ = ndimage.label(grown)
        edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        assert np.array_equal(padding._solid_at_border(mask), np.isin(labels, edge[edge > 0]))
