"""Endpoints against other libraries' measurements of the same voxels: scikit-image, SimpleITK, SciPy.

Chest Imaging Platform, which does not install from an index, counts low attenuation strictly below its thresholds and
reads percentiles of the same voxels; that is asserted by SimpleITK's and SciPy's own statistics here.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import SimpleITK as sitk
from scipy import ndimage
from skimage.measure import label, regionprops

from concordct.endpoints.catalogue import ENDPOINTS
from concordct.volumes.volume import Volume

SPACING_MM = (3.0, 0.7, 0.8)


@pytest.fixture(scope="module")
def chest() -> tuple[Volume, np.ndarray]:
    """Two blocks of noisy lung with smooth texture, so that low attenuation comes in clusters of many sizes."""
    generator = np.random.default_rng(11)
    hu = np.full((16, 48, 96), 40.0)
    lungs = np.zeros(hu.shape, np.uint8)
    lungs[2:14, 6:42, 6:42], lungs[2:14, 6:42, 54:90] = 1, 2
    texture = ndimage.gaussian_filter(generator.normal(size=hu.shape), 1.2)
    hu[lungs > 0] = (-880 + 75 * texture / texture.std())[lungs > 0]
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *SPACING_MM, 1.0
    return Volume(np.rint(hu).astype(np.float32), affine, slice_thickness_mm=3.0), lungs


def image(values: np.ndarray) -> sitk.Image:
    found = sitk.GetImageFromArray(values)
    found.SetSpacing(SPACING_MM[::-1])
    return found


def test_the_lungs_histogram_is_simpleitks_and_scipys(chest: tuple[Volume, np.ndarray]) -> None:
    volume, lungs = chest
    mine = {name: value for key in ("density", "emphysema", "fibrosis")
            for name, value in ENDPOINTS[key].measure(volume, lungs).items()}  # fmt: skip
    of = sitk.LabelStatisticsImageFilter()
    of.Execute(image(volume.hu), image((lungs > 0).astype(np.uint8)))
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(image((lungs > 0).astype(np.uint8)))
    hu = volume.hu[lungs > 0].astype(np.float64)
    assert mine["density_lungs_hu"] == pytest.approx(of.GetMean(1), abs=1e-3)
    assert mine["lung_sd_hu"] == pytest.approx(of.GetSigma(1), rel=1e-4)
    assert mine["volume_lungs_ml"] == pytest.approx(shape.GetPhysicalSize(1) / 1000)
    assert mine["lung_skewness"] == pytest.approx(scipy.stats.skew(hu), abs=1e-4)
    assert mine["lung_kurtosis"] == pytest.approx(scipy.stats.kurtosis(hu), abs=1e-4)
    for threshold in (950, 910, 856):
        share = scipy.stats.percentileofscore(hu, -threshold, kind="strict")
        assert mine[f"laa{threshold}_lungs_percent"] == pytest.approx(share)
    assert mine["perc15_lungs_hu"] == pytest.approx(scipy.stats.scoreatpercentile(hu, 15), abs=1e-3)


def test_clusters_are_those_of_scikit_image_and_simpleitk(chest: tuple[Volume, np.ndarray]) -> None:
    volume, lungs = chest
    mine = ENDPOINTS["emphysema"].measure(volume, lungs)
    low = (volume.hu < -950) & (lungs > 0)
    sizes = np.array([one.area for one in regionprops(label(low, connectivity=1))])
    assert len(sizes) > 20
    assert mine["clusters_count"] == len(sizes)
    joined = sitk.LabelShapeStatisticsImageFilter()
    joined.Execute(sitk.ConnectedComponent(image(low.astype(np.uint8))))
    assert mine["clusters_count"] == joined.GetNumberOfLabels()
    assert mine["clusters_largest_ml"] == pytest.approx(max(map(joined.GetPhysicalSize, joined.GetLabels())) / 1000)
    # Number of clusters not smaller than each size that there is, by SciPy's own survival function and regression.
    steps = scipy.stats.ecdf(sizes).sf
    values = np.unique(sizes)
    not_smaller = len(sizes) * np.concatenate([[1.0], steps.evaluate(values[:-1])])
    slope = scipy.stats.linregress(np.log10(values), np.log10(not_smaller)).slope
    assert mine["clusters_slope_d"] == pytest.approx(-slope, rel=1e-6)


def test_agatston_is_that_of_labelled_slices(chest: tuple[Volume, np.ndarray]) -> None:
    """Agatston 1990 from scikit-image's labels and peaks, slice by slice."""
    volume, _ = chest
    generator = np.random.default_rng(2)
    hu = np.full(volume.shape, 40.0, np.float32)
    spots = ndimage.gaussian_filter(generator.normal(size=hu.shape), (0.4, 1.0, 1.0))
    hu += np.rint(np.clip(spots / spots.std() - 1.2, 0, None) * 260).astype(np.float32)
    mask = np.zeros(hu.shape, np.uint8)
    mask[3:12, 8:40, 20:80] = 1
    mine = ENDPOINTS["calcium"].measure(volume.with_hu(hu), mask)
    score = mm3 = weighted = 0.0
    for plane, inside in zip(hu, mask, strict=True):
        lesions = label((plane >= 130) & (inside > 0), connectivity=1)
        for one in regionprops(lesions, intensity_image=plane):
            area = one.area * SPACING_MM[1] * SPACING_MM[2]
            if area >= 1.0:
                score += area * min(int(one.intensity_max // 100), 4)
                mm3 += area * SPACING_MM[0]
                weighted += area * SPACING_MM[0] * one.intensity_mean
    assert score > 100
    assert mine["agatston"] == pytest.approx(score, rel=1e-6)
    assert mine["calcium_volume_ml"] == pytest.approx(mm3 / 1000, rel=1e-6)
    assert mine["calcium_mass_mg"] == pytest.approx(0.8 * weighted / 1000, rel=1e-5)


def test_a_nodules_size_and_form_are_simpleitks() -> None:
    z, y, x = np.mgrid[:28, :28, :28].astype(np.float64) - 13.5
    ball = (z / 5) ** 2 + (y / 7.5) ** 2 + (x / 6) ** 2 < 1
    hu = np.where(ball, 40.0, -860.0).astype(np.float32)
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, 1.0], [0, 1.0, 0], [1.0, 0, 0]]
    mine = ENDPOINTS["nodules"].measure(Volume(hu, affine), ball.astype(np.uint8))
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.ComputeFeretDiameterOn()
    shape.Execute(sitk.GetImageFromArray(ball[13:14].astype(np.uint8)))
    solid = sitk.LabelShapeStatisticsImageFilter()
    solid.Execute(sitk.GetImageFromArray(ball.astype(np.uint8)))
    assert mine["nodule_volume_ml"] == pytest.approx(solid.GetPhysicalSize(1) / 1000)
    assert mine["nodule_diameter_mm"] == pytest.approx(2 * solid.GetEquivalentSphericalRadius(1), rel=1e-6)
    # ITK's Feret diameter runs between centres of pixels; half a pixel lies beyond at either end.
    assert mine["nodule_long_axis_mm"] == pytest.approx(shape.GetFeretDiameter(1) + 1.0, rel=1e-6)
    assert mine["nodule_solidity"] == pytest.approx(regionprops(ball.astype(np.uint8))[0].solidity)
