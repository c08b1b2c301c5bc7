"""ROI grids and the papers' random ROIs."""

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.radiomics.regions.rois import PAPER_RANGES_HU, grid_rois, random_rois
from concordct.volumes.volume import Volume


def _volume(hu):
    return Volume(hu.astype(np.float32), np.diag([3.0, 0.8, 0.8, 1.0]))


def test_grid_lies_inside_the_mask_and_covers_every_place():
    mask = np.zeros((2, 40, 50), bool)
    mask[0, 4:36, 8:48] = True
    mask[1] = True
    labels = grid_rois(mask, size=8)
    assert not labels[~mask].any()
    counts = np.bincount(labels.ravel())[1:]
    assert (counts == 64).all()
    assert len(counts) == 3 * 5 + 5 * 6  # rows 8..32, columns 8..48; the second slice holds all
    with pytest.raises(ConcordctError, match="no ROI of 41"):
        grid_rois(mask, size=41)
    with pytest.raises(ConcordctError, match="at least the size"):
        grid_rois(mask, size=8, step=4)


def test_random_rois_lie_in_their_range_and_repeat_with_the_seed():
    hu = np.full((4, 64, 64), -1000.0)
    hu[:, :, :20] = -500
    hu[:, :, 20:44] = 60
    hu[:, :, 44:] = 500
    volume = _volume(hu)
    drawn = [
        random_rois(
            volume, ranges_hu=PAPER_RANGES_HU, count=6, size=8, least_share=0.9, generator=np.random.default_rng(seed)
        )
        for seed in (3, 3, 4)
    ]
    assert np.array_equal(drawn[0].labels, drawn[1].labels)
    assert not np.array_equal(drawn[0].labels, drawn[2].labels)
    assert sorted(drawn[0].of_range) == [0] * 6 + [1] * 6 + [2] * 6 + [3] * 6
    for label, index in enumerate(drawn[0].of_range, start=1):
        inside = hu[drawn[0].labels == label]
        assert inside.size == 64
        low, high = PAPER_RANGES_HU[index]
        assert ((inside >= low) & (inside <= high)).mean() >= 0.9


def test_no_place_at_all_is_an_error():
    volume = _volume(np.full((1, 32, 32), -1000.0))
    with pytest.raises(ConcordctError, match="ranges"):
        random_rois(
            volume,
            ranges_hu=PAPER_RANGES_HU,
            count=1,
            size=8,
            least_share=0.5,
            generator=np.random.default_rng(0),
        )
