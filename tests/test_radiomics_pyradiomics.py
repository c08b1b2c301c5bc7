"""PyRadiomics 3.0.1: the same columns in the same order, the same values to 1e-6."""

import json
from pathlib import Path

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.radiomics.definitions import first_order
from concordct.radiomics.definitions.pyradiomics import CLASSES, PyRadiomics
from concordct.radiomics.extract import extract
from concordct.radiomics.filters import image_types
from concordct.radiomics.parameters import from_parameters, read_parameters
from concordct.radiomics.presets import preset
from concordct.volumes.volume import Volume
from reference_pyradiomics import CASES, SPACING, phantom

FIXTURE = Path(__file__).parent / "data" / "pyradiomics_3.0.1.json"

#: Relative: the fixture has ten digits, and LoG and gradient are float32 in both.
CLOSE = 1e-6


@pytest.fixture(scope="module")
def scan():
    hu, labels = phantom()
    return Volume(hu.astype(np.float32), np.diag([*SPACING, 1.0])), labels


@pytest.mark.parametrize("case", list(CASES))
def test_names_and_values_are_those_of_pyradiomics(scan, case):
    expected = json.loads(FIXTURE.read_text())["cases"][case]
    columns = [f"{prefix}_{name}" for prefix, members in expected["columns"].items() for name in members]
    table = extract(*scan, from_parameters(CASES[case], origin=case))
    assert list(table.names) == columns
    for found, reference in zip(table.values, np.array(expected["values"]), strict=True):
        far = ~np.isclose(found, reference, rtol=CLOSE, atol=1e-9, equal_nan=True)
        assert [(columns[k], found[k], reference[k]) for k in np.flatnonzero(far)] == []


def test_an_roi_is_measured_alike_alone_and_among_others(scan):
    volume, labels = scan
    settings = from_parameters(CASES["filters"], origin="filters")
    together = extract(volume, labels, settings)
    alone = extract(volume, np.where(labels == 3, 3, 0), settings)
    assert alone.rois == (3,)
    assert np.array_equal(alone.values[0], together.values[2])


def test_one_voxel_and_one_level_have_defined_values():
    volume = Volume(np.full((4, 8, 8), 40.0, np.float32), np.eye(4))
    labels = np.zeros(volume.shape, np.int32)
    labels[1:3, 1:5, 1:5] = 1
    labels[0, 0, 0] = 2
    settings = PyRadiomics({name: () for name in CLASSES if name != "shape2D"}, bin_width=25.0)
    table = extract(volume, labels, settings)
    flat, single = (dict(zip(table.names, row, strict=True)) for row in table.values)
    assert flat["original_firstorder_Variance"] == flat["original_firstorder_Kurtosis"] == 0
    assert flat["original_glcm_Correlation"] == flat["original_glcm_MCC"] == 1
    assert flat["original_ngtdm_Coarseness"] == 1e6
    assert single["original_firstorder_Mean"] == 40
    assert single["original_shape_VoxelVolume"] == 1
    undefined = {name.split("_")[1] for name, value in single.items() if np.isnan(value)}
    assert undefined == {"glcm", "glrlm", "shape"}  # no neighbour, no direction, no axis to divide by


def test_an_roi_that_resegmentation_empties_has_shape_alone(scan):
    settings = PyRadiomics(
        {"shape": (), "firstorder": (), "glcm": ()},
        bin_width=25.0,
        image_types={"Original": {}, "Square": {}},
        resegment_range=(5000.0, 6000.0),
    )
    table = extract(*scan, settings)
    defined = np.isfinite(table.values)
    assert [name for name, known in zip(table.names, defined.all(axis=0), strict=True) if known] == [
        name for name in table.names if "_shape_" in name
    ]
    assert not defined[:, 14:].any()


def test_an_roi_between_the_new_voxels_vanishes_alone(scan):
    volume, labels = scan
    labels = np.where(labels == 3, 3, 0)
    labels[5, 0:2, 0:2] = 4
    settings = PyRadiomics(
        {"shape": (), "firstorder": ()},
        bin_width=25.0,
        resampled_spacing_mm=(0.0, 9.0, 9.0),
        resegment_range=(0.0, 1.0),
        resegment_mode="relative",
    )
    table = extract(volume, labels, settings)
    assert np.isfinite(table.values[0]).any()
    assert np.isnan(table.values[1]).all()


def test_bad_input_is_one_clear_line(scan):
    volume, labels = scan
    settings = PyRadiomics({"firstorder": ()}, bin_width=25.0)
    broken = volume.hu.copy()
    broken[3, 30, 32] = np.nan
    for found, message in (
        ((volume, np.zeros_like(labels)), "mask is empty"),
        ((volume, labels[1:]), "do not fit"),
        ((volume, labels.astype(float)), "integers"),
        ((volume, -labels), "0 or above"),
        ((Volume(broken, volume.affine), labels), "ROI 3 holds 1 voxels that are not finite"),
        ((Volume(broken, volume.affine), np.where(labels == 3, 0, labels)), "outside every ROI, holds 1 voxels"),
        ((volume, labels * 1_000_000), "labels go up to"),
    ):
        with pytest.raises(ConcordctError, match=message):
            extract(*found, settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("setting: {binwidth: 25}", "unknown setting binwidth"),
        ("settings: {binWidth: 25}", "unknown section settings"),
        ("featureClass: {glcm: [Dissimilarity]}", "no feature Dissimilarity"),
        ("featureClass: {texture: }", "no feature class texture"),
        ("imageType: {Fourier: {}}", "no image type Fourier"),
        ("setting: {resampledPixelSpacing: [1, 1]}", "3 spacings"),
        ("setting: {binWidth: 1e-3}", "expected numbers above 0 as binWidth, found '1e-3'"),
        ("setting: {binWidth: -5}", "expected numbers above 0 as binWidth, found -5"),
        ("setting: {binCount: 8.5}", "expected whole numbers from 1 as binCount, found 8.5"),
        ("setting: {resegmentRange: -100}", "expected a list as resegmentRange"),
        ("imageType: {LoG: {sigma: [-1]}}", "expected numbers above 0 as sigma, found -1"),
        ("imageType: {LoG: {sigma: 3}}", "expected a list as sigma, found 3"),
        ("setting: [1", "no YAML"),
        ("- 1", "map of sections"),
    ],
)
def test_a_parameter_file_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "parameters.yaml"
    path.write_text(text)
    with pytest.raises(ConcordctError, match=message):
        read_parameters(path)


def test_an_empty_parameter_file_means_pyradiomics_defaults(tmp_path):
    path = tmp_path / "parameters.yaml"
    path.write_text("setting: {label: 2, additionalInfo: false}\n")
    settings = read_parameters(path)
    assert settings.bin_width == 25
    assert set(settings.classes) == set(CLASSES) - {"shape2D"}
    assert settings.least_dimensions == 2


def test_a_large_roi_measured_in_parts_has_the_same_features_to_the_bit(monkeypatch):
    """But the energy, whose sum BLAS makes where the ROI is small."""
    hu = np.random.default_rng(4).normal(0, 90, (9, 40, 33)).astype(np.float32)
    hu[:, :9] = -1000.0
    labels = np.ones(hu.shape, np.uint8)
    labels[4, 20:, 7:] = 0
    volume = Volume(hu, np.diag([3.0, 0.8, 0.8, 1.0]))
    chosen = preset("pyradiomics-default")
    whole = extract(volume, labels, chosen)
    monkeypatch.setattr(first_order, "BLOCK", 1000)
    parts = extract(volume, labels, chosen)
    energy = np.array([name.endswith(("Energy", "RootMeanSquared")) for name in whole.names])
    assert np.array_equal(parts.values[:, ~energy], whole.values[:, ~energy], equal_nan=True)
    np.testing.assert_allclose(parts.values[:, energy], whole.values[:, energy], rtol=1e-12)


def test_a_large_image_is_filtered_in_slabs_to_the_same_in_float32(monkeypatch):
    image = np.random.default_rng(3).normal(0, 60, (9, 24, 20)).cumsum(axis=2).astype(np.float32)
    box = (slice(1, 9), slice(0, 24), slice(2, 19))
    settings = image_types.FilterSettings(sigma=(1.0, 2.5), level=2)
    for kind in ("LoG", "Wavelet", "Gradient", "Square", "Logarithm"):
        monkeypatch.undo()
        whole = list(image_types.filtered(image, (1.5, 0.8, 0.7), box, kind, settings))
        monkeypatch.setattr(image_types, "LARGE", 100)
        monkeypatch.setattr(image_types, "SLAB", 900)
        slabs = list(image_types.filtered(image, (1.5, 0.8, 0.7), box, kind, settings))
        assert [name for name, _ in slabs] == [name for name, _ in whole]
        for (_, found), (_, wanted) in zip(slabs, whole, strict=True):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-7 * np.abs(wanted).max())


def test_a_whole_image_is_sorted_where_it_stands_and_only_where_it_was_filtered(monkeypatch):
    hu = np.random.default_rng(4).normal(0, 60, (4, 12, 12)).astype(np.float32)
    kept, settings = hu.copy(), PyRadiomics(
        {"firstorder": (), "glrlm": ()}, bin_width=25.0, image_types={"Original": {}, "Square": {}}
    )  # fmt: skip
    labels = np.ones(hu.shape, np.uint8)
    wanted = extract(Volume(hu=hu, affine=np.eye(4)), labels, settings)
    monkeypatch.setattr(image_types, "LARGE", 100)
    found = extract(Volume(hu=hu, affine=np.eye(4)), labels, settings)
    assert np.array_equal(hu, kept)
    np.testing.assert_allclose(found.values, wanted.values, rtol=1e-6)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_voxels_between_bounds_that_their_type_cannot_hold(kind):
    ordered = np.array([0.1, 0.1, 0.2, 0.3, 0.3, 0.4], kind)
    for low in (0.1, float(ordered[0]), float(ordered[0]) + 1e-12, 0.15):
        for high in (0.3, float(ordered[3]), float(ordered[3]) - 1e-12, 0.35):
            inside = ordered[(ordered.astype(float) >= low) & (ordered.astype(float) <= high)]
            assert np.array_equal(first_order.between(ordered, low, high), inside)
