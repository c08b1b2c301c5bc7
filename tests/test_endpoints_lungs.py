"""Endpoints of the lungs on boxes whose answers follow by counting."""

from __future__ import annotations

import numpy as np
import pytest

from concordct.endpoints.catalogue import ENDPOINTS
from concordct.endpoints.emphysema import clusters
from concordct.errors import ConcordctError
from concordct.volumes.volume import Volume

SPACING_MM = (2.0, 1.0, 0.5)


def box(hu: np.ndarray, *, head_first: bool = False) -> Volume:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = (-1 if head_first else 1) * SPACING_MM[0], SPACING_MM[1], SPACING_MM[2]
    affine[3, 3] = 1.0
    return Volume(hu.astype(np.float32), affine)


@pytest.fixture
def lungs() -> tuple[np.ndarray, np.ndarray]:
    """Two lungs of 6 slices and 10 x 10 voxels each at -850 HU in tissue of 40 HU."""
    hu, mask = np.full((8, 12, 24), 40.0), np.zeros((8, 12, 24), np.uint8)
    mask[1:7, 1:11, 1:11], mask[1:7, 1:11, 13:23] = 1, 2
    hu[mask > 0] = -850.0
    return hu, mask


def test_every_endpoint_names_its_units_and_columns_are_unique() -> None:
    names = [column.name for endpoint in ENDPOINTS.values() for column in endpoint.columns]
    assert len(set(names)) == len(names)
    ends = {"%": "percent", "HU": "hu", "ml": "ml", "mg": "mg", "mm": "mm", "g": "g", "g/l": "g_l", "lp/cm": "lp_cm"}
    for name, endpoint in ENDPOINTS.items():
        assert endpoint.name == name
        for column in endpoint.columns:
            assert not column.unit or column.name.endswith(f"_{ends[column.unit]}"), column


def test_density_counts_voxels_by_side_and_third(lungs: tuple[np.ndarray, np.ndarray]) -> None:
    hu, mask = lungs
    hu[mask == 2] = -800.0
    hu[5:7][mask[5:7] == 1] = -700.0
    found = ENDPOINTS["density"].measure(box(hu), mask)
    assert found["volume_lungs_ml"] == pytest.approx(1.2)
    assert found["density_left_hu"] == pytest.approx(-800)
    assert found["density_right_hu"] == pytest.approx(-800)
    # Slices run from the feet up: the last third is the upper one.
    assert found["density_upper_hu"] == pytest.approx(-750)
    assert found["density_lower_hu"] == pytest.approx(-825)
    assert found["mass_left_g"] == pytest.approx(0.6 * 0.2)
    turned = ENDPOINTS["density"].measure(box(hu, head_first=True), mask)
    assert turned["density_lower_hu"] == pytest.approx(-750)


def test_emphysema_counts_low_voxels(lungs: tuple[np.ndarray, np.ndarray]) -> None:
    hu, mask = lungs
    hu[1:3, 1:6, 1:7] = -980.0  # 60 of the right lung's 600 voxels
    hu[6, 1:11, 13:16] = -920.0  # 30 of the left lung's
    found = ENDPOINTS["emphysema"].measure(box(hu), mask)
    assert found["laa950_lungs_percent"] == pytest.approx(5.0)
    assert found["laa950_right_percent"] == pytest.approx(10.0)
    assert found["laa950_left_percent"] == 0.0
    assert found["laa910_left_percent"] == pytest.approx(5.0)
    assert found["laa950_lungs_ml"] == pytest.approx(0.06)
    assert found["laa950_lower_percent"] == pytest.approx(15.0)
    assert found["perc15_lungs_hu"] == pytest.approx(-850.0)
    # 1.2 ml at 150 g/l, spread over the reference's 6 l
    assert found["perc15_adjusted_lungs_g_l"] == pytest.approx(150 * 1.2 / 6000)
    assert (found["clusters_count"], found["clusters_largest_ml"]) == (1.0, pytest.approx(0.06))


def test_percentile_is_numpys_own(lungs: tuple[np.ndarray, np.ndarray]) -> None:
    hu, mask = lungs
    hu[mask > 0] = np.random.default_rng(0).normal(-850, 40, int((mask > 0).sum()))
    found = ENDPOINTS["emphysema"].measure(box(hu), mask)
    assert found["perc15_lungs_hu"] == pytest.approx(-850 - 1.0364 * 40, abs=4)


def test_cluster_slope_is_that_of_a_power_law() -> None:
    """100, 50, 25, 12.5 ... clusters of at least 1, 2, 4, 8 ... voxels: D = 1."""
    low = np.zeros((260, 1, 130), bool)
    row = 0
    for size, count in ((1, 64), (2, 32), (4, 16), (8, 8), (16, 4), (32, 2), (64, 1), (128, 1)):
        for _ in range(count):
            low[2 * row, 0, :size] = True
            row += 1
    found = clusters(low, voxel_ml=0.001)
    assert found["clusters_count"] == 128
    assert found["clusters_largest_ml"] == pytest.approx(0.128)
    assert found["clusters_slope_d"] == pytest.approx(1.0, abs=1e-6)


def test_no_emphysema_has_no_slope(lungs: tuple[np.ndarray, np.ndarray]) -> None:
    found = ENDPOINTS["emphysema"].measure(box(lungs[0]), lungs[1])
    assert found["clusters_count"] == 0
    assert np.isnan(found["clusters_slope_d"])


@pytest.mark.parametrize(("mask", "message"), [
    (None, "needs a mask"), (np.zeros((8, 12, 24), np.uint8), "empty"), (np.ones((2, 2, 2), np.uint8), "of shape"),
])  # fmt: skip
def test_a_mask_that_does_not_fit_is_refused(
    lungs: tuple[np.ndarray, np.ndarray], mask: np.ndarray | None, message: str
) -> None:
    with pytest.raises(ConcordctError, match=message):
        ENDPOINTS["emphysema"].measure(box(lungs[0]), mask)


def test_one_lung_leaves_the_other_undefined(lungs: tuple[np.ndarray, np.ndarray]) -> None:
    found = ENDPOINTS["density"].measure(box(lungs[0]), np.where(lungs[1] == 1, 1, 0).astype(np.uint8))
    assert np.isnan(found["density_left_hu"])
    assert np.isfinite(found["density_right_hu"])
