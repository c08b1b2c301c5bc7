"""IBSI-1: every published reference value (doi:10.1148/radiol.2020191145) of the phantoms, within its tolerance."""

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.radiomics.definitions.ibsi import AGGREGATIONS, FAMILIES, Ibsi, names
from concordct.radiomics.definitions.ibsi_reference import CONFIGURATIONS, run_benchmark
from concordct.radiomics.extract import extract
from concordct.radiomics.regions.resample import grid, resample
from concordct.volumes.volume import Volume

#: How many features IBSI prints a value for, by configuration.
PRINTED = {"digital": 482, "A": 346, "B": 346, "C": 210, "D": 210, "E": 210}


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_every_reference_value_is_met(shared_data, name):
    found = run_benchmark(shared_data / "ibsi_1", configurations=(name,))
    assert len(found) == PRINTED[name]
    assert [one for one in found if not one.within] == []


def test_the_resampled_grid_keeps_the_centre():
    for length, old, new in ((60, 3.0, 2.0), (204, 0.9765625, 2.0), (5, 2.0, 2.0), (7, 1.0, 3.0)):
        places = grid(length, old, new)
        assert len(places) == int(np.ceil(length * old / new - 1e-9))
        assert places.mean() == pytest.approx((length - 1) / 2)
        assert np.diff(places) == pytest.approx(new / old)


def test_a_linear_image_is_resampled_exactly():
    z, y, x = np.mgrid[:9, :11, :13]
    image = 1.0 + 2.0 * z - 3.0 * y + 0.5 * x
    new = (1.5, 0.8, 1.7)
    found = resample(image, (1.0, 1.0, 1.0), new, order=1)
    at = np.meshgrid(*(grid(n, 1.0, mm) for n, mm in zip(image.shape, new, strict=True)), indexing="ij")
    inside = np.ones(found.shape, bool)
    for place, n in zip(at, image.shape, strict=True):
        inside &= (place >= 0) & (place <= n - 1)
    expected = 1.0 + 2.0 * at[0] - 3.0 * at[1] + 0.5 * at[2]
    assert inside.any()
    assert found[inside] == pytest.approx(expected[inside])


def test_one_grey_level_and_one_voxel_have_defined_values():
    volume = Volume(np.full((4, 6, 6), 40.0, np.float32), np.eye(4))
    labels = np.zeros(volume.shape, np.int32)
    labels[1:3, 1:5, 1:5] = 1
    labels[0, 0, 0] = 2
    table = extract(volume, labels, Ibsi(("stat", "ih", "cm", "szm", "ngt", "ngl"), ("3D_comb",), bin_width=25.0))
    flat, single = (dict(zip(table.names, row, strict=True)) for row in table.values)
    assert flat["stat_var"] == flat["stat_skew"] == flat["stat_kurt"] == 0
    assert flat["cm_corr_3D_comb"] == 1
    assert flat["cm_contrast_3D_comb"] == flat["cm_joint_entr_3D_comb"] == 0
    assert flat["szm_z_perc_3D"] == pytest.approx(1 / 32)
    assert flat["ngt_coarseness_3D"] == 1e6
    assert single["stat_mean"] == 40
    assert np.isnan(single["cm_contrast_3D_comb"])
    assert np.isnan(single["ngt_coarseness_3D"])
    assert single["ngl_lde_3D"] == 1


def test_flat_thin_and_vanished_rois_have_defined_values():
    hu = np.random.default_rng(0).integers(-50, 50, (5, 9, 9)).astype(np.float32)
    labels = np.zeros(hu.shape, np.int32)
    labels[0, 0, 0] = 1
    labels[1, 1, 2:8] = 2
    labels[3, 1:8, 1:8] = 3
    volume = Volume(hu, np.eye(4))
    settings = Ibsi(tuple(FAMILIES), AGGREGATIONS, bin_width=25.0, range_hu=(-60.0, 60.0))
    rows = [dict(zip(names(settings), row, strict=True)) for row in extract(volume, labels, settings).values]
    for row, count in zip(rows, (1, 6, 49), strict=True):
        assert row["morph_vol_approx"] == count
        assert np.isfinite(row["morph_area_mesh"])
        assert np.isnan(row["morph_vol_dens_aee"])
    assert np.isfinite(rows[2]["morph_area_dens_aee"])
    assert np.isnan(rows[1]["morph_area_dens_aee"])
    # A volume of one slice has only in-plane pairs, whatever the aggregation looks for
    assert rows[2]["cm_contrast_2D_comb"] == pytest.approx(rows[2]["cm_contrast_3D_comb"])
    nothing = Ibsi(tuple(FAMILIES), AGGREGATIONS, bin_width=25.0, range_hu=(1000.0, 2000.0))
    assert np.isnan(extract(volume, labels, nothing).values).all()


def test_settings_that_leave_the_science_open_are_refused():
    with pytest.raises(ConcordctError, match="bin width or a bin count"):
        Ibsi(("stat",), ("3D_avg",))
    with pytest.raises(ConcordctError, match="aggregation"):
        Ibsi(("stat",), ("4D",), bin_width=1.0)
