"""Presets: their lists of names are what they compute, and their counts are those that the papers print."""

from collections import Counter

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.radiomics.extract import extract
from concordct.radiomics.presets import PRESETS, preset, preset_names, settings_for
from concordct.radiomics.table import FeatureRows, class_of, read_rows, write_rows
from concordct.volumes.volume import Volume


@pytest.fixture(scope="module")
def scan():
    hu = np.random.default_rng(0).integers(-100, 200, (12, 24, 24)).astype(np.float32)
    labels = np.zeros(hu.shape, np.int32)
    labels[2:10, 4:20, 4:20] = 1
    return Volume(hu, np.diag([2.0, 2.0, 2.0, 1.0])), labels


@pytest.mark.parametrize("name", PRESETS)
def test_the_file_lists_the_columns(scan, name):
    table = extract(*scan, preset(name))
    assert table.names == preset_names(name)
    assert np.isfinite(table.values).all()
    assert tuple(class_of(column) for column in table.names) == table.classes


def test_the_reconstructions_count_1401():
    for name in ("pyradiomics-1401", "ibex-1401"):
        assert len(set(preset_names(name))) == 1401
    classes = Counter(class_of(column) for column in preset_names("ibex-1401"))
    assert set(classes) == {"GOH", "GLCM", "GLRLM", "ID", "IH", "NID"}
    # DiffusionCT: GLCM and GLRLM together are almost half of the features
    assert 0.45 < (classes["GLCM"] + classes["GLRLM"]) / 1401 < 0.5
    images = Counter(column.split("_")[0] for column in preset_names("pyradiomics-1401") if "_shape_" not in column)
    assert len(images) == 19
    assert set(images.values()) == {73}
    assert not any(column.endswith("_MCC") for column in preset_names("pyradiomics-1401"))


def test_what_is_neither_preset_nor_file_is_refused():
    with pytest.raises(ConcordctError, match="neither a preset"):
        settings_for("pyradiomics")
    with pytest.raises(ConcordctError, match="no preset"):
        preset("ibex")


def test_a_features_file_keeps_every_bit(tmp_path):
    values = np.random.default_rng(1).normal(size=(3, 4)) * 1e7
    values[1, 2] = np.nan
    values[0, 0] = np.inf
    names = ("original_glcm_Contrast", "cm_energy_3D_avg", "GOH_orientation_Range", "wavelet-LLH_ngtdm_Busyness")
    rows = FeatureRows(
        (("a", "1"), ("a", "2"), ("b", "1")), ("p", "p", "q"), names, tuple(map(class_of, names)), values
    )
    write_rows(tmp_path / "features.csv", rows)
    back = read_rows(tmp_path / "features.csv")
    assert np.array_equal(back.values, values, equal_nan=True)
    assert (back.keys, back.subjects, back.names) == (rows.keys, rows.subjects, rows.names)
    assert back.classes == ("glcm", "cm", "GOH", "ngtdm")
    (tmp_path / "broken.csv").write_text("image,subject,roi,a\nx,y,1,2,3\n")
    with pytest.raises(ConcordctError, match=r"row 2 .* 5 cells, expected 4"):
        read_rows(tmp_path / "broken.csv")
