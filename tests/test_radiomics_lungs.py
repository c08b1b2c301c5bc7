"""Lungs without weights: on a phantom whose lungs are known, on digital patients, on a real chest."""

import numpy as np
import pytest
import SimpleITK as sitk

from concordct.errors import ConcordctError
from concordct.radiomics.regions.lungs import LEFT, RIGHT, OneLungWarning, dilate, lung_masks
from concordct.scanner.ipf import ipf_subject
from concordct.volumes.files import open_volume_file
from concordct.volumes.find import find_series
from concordct.volumes.volume import Volume


def dice(one, other):
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def phantom(
    *, right=True, left=True, bridge=False, rim=False, emphysema=False, spacing=3.0, head_first=False, scale=1.0
):
    """A trunk with ellipsoidal lungs, a trachea and its bronchi, a stomach bubble; the labels beside it."""
    shape = [round(scale * mm / spacing) for mm in (270, 240, 350)]
    z, y, x = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * spacing / scale for n in shape], indexing="ij", sparse=True)
    hu = np.full(shape, -1000.0)
    hu[np.broadcast_to((x / 165) ** 2 + (y / 110) ** 2 < 1, shape)] = 40.0
    labels = np.zeros(shape, dtype=np.uint8)
    for label, side, there in ((RIGHT, -1, right), (LEFT, 1, left)):
        radius = np.sqrt(((x - 78 * side) / 58) ** 2 + (y / 72) ** 2 + (z / 112) ** 2)
        if there:
            labels[radius < 1] = label
            hu[radius < 1] = -940.0 if emphysema else -860.0
            if rim:
                # Honeycombs under the pleura: closed cysts of 10 mm between walls of 2 mm.
                wall = (np.mod(x + 200, 12) < 2) | (np.mod(y + 200, 12) < 2) | (np.mod(z + 200, 12) < 2)
                scar = (radius < 1) & (radius > 0.8)
                hu[scar] = np.where(np.broadcast_to(wall, shape), -60.0, -920.0)[scar]
    if bridge:
        thin = np.broadcast_to((np.abs(x) < 60) & (np.abs(y + 50) < 4) & (np.abs(z) < 60), shape) & (labels == 0)
        hu[thin] = -860.0
    trachea = np.broadcast_to((np.hypot(x, y - 10) < 9) & (z > 20), shape) & (labels == 0)
    bronchi = np.broadcast_to((np.hypot(y - 10, z - 25) < 6) & (np.abs(x) < 45), shape)
    wall = np.broadcast_to((np.hypot(y - 10, z - 25) < 9) & (np.abs(x) < 45), shape)
    hu[wall] = 30.0
    hu[bronchi | trachea] = -995.0
    labels[wall | trachea] = 0
    hu[np.broadcast_to(np.hypot(np.hypot(x - 60, y + 40), z + 125) < 18, shape) & (labels == 0)] = -1000.0
    hu += np.random.default_rng(1).normal(0, 15.0, shape)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = spacing, spacing, spacing, 1
    affine[:3, 3] = [-(shape[2] - 1) / 2 * spacing, -(shape[1] - 1) / 2 * spacing, 0.0]
    if head_first:
        hu, labels = hu[::-1], labels[::-1]
        affine[2, 0], affine[2, 3] = -spacing, (shape[0] - 1) * spacing
    return Volume(np.ascontiguousarray(hu, dtype=np.float32), affine), labels, bronchi | trachea


@pytest.mark.parametrize("head_first", [False, True])
def test_both_lungs_on_their_sides_without_airways(head_first):
    volume, labels, airways = phantom(head_first=head_first)
    found = lung_masks(volume, require_both=True)
    for label in (RIGHT, LEFT):
        assert dice(found == label, labels == label) > 0.97
    if head_first:
        airways = airways[::-1]
    assert np.count_nonzero((found > 0) & airways) < 0.05 * np.count_nonzero(airways)


def test_lungs_that_touch_are_told_apart():
    volume, labels, _ = phantom(bridge=True)
    found = lung_masks(volume, require_both=True)
    for label in (RIGHT, LEFT):
        assert dice(found == label, labels == label) > 0.96


def test_mirrored_columns_change_no_side():
    """Sides follow the geometry, not the order of the columns in the array."""
    volume, labels, _ = phantom()
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (volume.shape[2] - 1)
    affine[:3, 2] *= -1
    found = lung_masks(Volume(np.ascontiguousarray(volume.hu[:, :, ::-1]), affine))
    assert dice(found[:, :, ::-1] == RIGHT, labels == RIGHT) > 0.97


def test_thin_voxels_draw_a_finer_edge():
    volume, labels, _ = phantom(spacing=1.2, scale=0.6)
    assert dice(lung_masks(volume) > 0, labels > 0) > 0.985


@pytest.mark.parametrize(("spacing", "scale"), [(1.2, 0.6), (3.0, 1.0)])
def test_honeycombs_stay_inside(spacing, scale):
    volume, labels, _ = phantom(rim=True, spacing=spacing, scale=scale)
    found = lung_masks(volume)
    plain = phantom(spacing=spacing, scale=scale)[0].hu
    scars = (labels > 0) & (np.abs(volume.hu - plain) > 200)
    assert scars.sum() > 0.15 * np.count_nonzero(labels)
    # A tenth of the walls is the outermost one, which no density tells from the chest wall that it touches.
    assert np.count_nonzero(scars & (found > 0)) > 0.87 * np.count_nonzero(scars)
    assert dice(found > 0, labels > 0) > 0.98


def test_emphysema_is_lung():
    volume, labels, _ = phantom(emphysema=True)
    assert dice(lung_masks(volume) > 0, labels > 0) > 0.96


def test_no_lung_is_refused():
    volume, _, _ = phantom(right=False, left=False)
    with pytest.raises(ConcordctError, match=r"no lung found: .* expected at least 150 ml") as caught:
        lung_masks(volume)
    assert "\n" not in str(caught.value)
    water = Volume(np.full((20, 40, 40), 0.0, np.float32), volume.affine)
    with pytest.raises(ConcordctError, match="no lung found"):
        lung_masks(water)


@pytest.mark.parametrize(("right", "left", "word"), [(True, False, "right"), (False, True, "left")])
def test_one_lung_is_a_warning_or_an_error(right, left, word):
    volume, labels, _ = phantom(right=right, left=left)
    with pytest.warns(OneLungWarning, match=f"one lung found: {word}"):
        found = lung_masks(volume)
    assert dice(found == (RIGHT if right else LEFT), labels > 0) > 0.96
    with pytest.raises(ConcordctError, match=r"one lung found: .*; expected both"):
        lung_masks(volume, require_both=True)


@pytest.mark.parametrize("backend", ["totalsegmentator", "lungmask"])
def test_backends_that_are_not_installed_say_so(backend):
    try:
        __import__(backend)
    except ImportError:
        volume, _, _ = phantom(spacing=6.0, scale=0.6)
        with pytest.raises(ConcordctError, match=f"'{backend}' is not installed"):
            lung_masks(volume, backend=backend)
    with pytest.raises(ConcordctError, match="unknown lung backend"):
        lung_masks(phantom(spacing=6.0, scale=0.6)[0], backend="magic")


def test_a_digital_patient_with_fibrosis():
    subject = ipf_subject(1, seed=1)
    spacing = (6.0, 3.0, 3.0)
    volume = subject.draw_volume("followup", spacing)
    masks = subject.volume_masks("followup", spacing)
    found = lung_masks(volume, require_both=True)
    assert dice(found == RIGHT, masks["right lung"]) > 0.95
    assert dice(found == LEFT, masks["left lung"]) > 0.95
    scars = masks["fibrosis"]
    assert np.count_nonzero(scars & (found > 0)) > 0.95 * np.count_nonzero(scars)


def test_a_real_chest_agrees_with_its_labels(shared_data):
    folder = shared_data / "lung_lowres"
    found = lung_masks(open_volume_file(folder / "ct-64.nrrd").read(), require_both=True)
    true = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "wholeLung-64.nrrd"))) > 0
    assert dice(found > 0, true) > 0.97
    assert found[:, :, :32][found[:, :, :32] > 0].mean() < 1.2


def test_part_of_a_real_chest(shared_data):
    (series,) = find_series(shared_data / "chest_B40f").series
    volume = series.read()
    found = lung_masks(volume, require_both=True)
    ml = [np.count_nonzero(found == label) * np.prod(volume.spacing_mm) / 1000 for label in (RIGHT, LEFT)]
    assert 900 < ml[1] < ml[0] < 1400
    assert volume.hu[found > 0].mean() < -650


def test_dilation_is_a_distance():
    mask = np.zeros((21, 21, 21), bool)
    mask[10, 10, 10] = True
    grown = dilate(mask, 4.0, (2.0, 1.0, 1.0))
    assert grown[12, 10, 10]
    assert not grown[13, 10, 10]
    assert grown[10, 14, 10]
    assert not grown[10, 15, 10]
