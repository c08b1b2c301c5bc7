"""Registration lung by lung: known motions come back, a lung that shrinks is told, two patients are refused."""

import json
import re

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.progression.affine import matrix, register
from concordct.progression.registration import detail_correlation, lung_dice, merge, pre_register
from concordct.radiomics.regions.lungs import LEFT, LUNGS, RIGHT, lung_masks
from concordct.report.registration import write_registration_report
from concordct.volumes.files import open_volume_file
from concordct.volumes.volume import Volume

BACKEND = "simpleitk"
SPACING = 4.0


def turned(degrees, shift, scale=1.0):
    """[4, 4] LPS rotation about z with a translation and a scale, about the middle of the chest."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    total = np.eye(4)
    total[:3, :3] = scale * np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    middle = np.array([0.0, 0.0, 130.0])
    total[:3, 3] = middle + np.array(shift) - total[:3, :3] @ middle
    return total


IDENTITY = {"right": np.eye(4), "left": np.eye(4)}


def chest(motion, seed=0):
    """A chest with two lungs full of vessels, each moved by a map of its own (body fixed); the labels beside it."""
    shape = (84, 68, 96)
    affine = np.zeros((4, 4))
    affine[2, 0] = affine[1, 1] = affine[0, 2] = SPACING
    affine[:3, 3] = [-(shape[2] - 1) / 2 * SPACING, -(shape[1] - 1) / 2 * SPACING, -30.0]
    affine[3, 3] = 1
    places = np.indices(shape).reshape(3, -1).astype(float)
    world = affine[:3, :3] @ places + affine[:3, 3:]
    hu = np.full(shape, 40.0)
    labels = np.zeros(shape, dtype=np.uint8)
    grain = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(80, 80, 100)), 1.5)
    grain = np.where(grain > 1.3 * grain.std(), 600.0, 0.0)
    for name, label in LUNGS.items():
        back = np.linalg.inv(motion[name])
        x, y, z = back[:3, :3] @ world + back[:3, 3:]
        side = -1 if label == RIGHT else 1
        inside = ((x - 78 * side) / 48) ** 2 + (y / 80) ** 2 + ((z - 130) / 105) ** 2 < 1
        # The heart's dent, without which nothing but vessels would tell how a lung is turned.
        inside &= np.sqrt((x - 25 * side) ** 2 + (y + 40) ** 2 + (z - 100) ** 2) > 50
        texture = ndimage.map_coordinates(grain, np.stack([z + 30, y + 130, x + 190]) / 4.0, order=1, mode="wrap")
        labels[inside.reshape(shape)] = label
        hu[inside.reshape(shape)] = (-860.0 + texture)[inside]
    hu += np.random.default_rng(seed + 1).normal(0, 10, shape)
    return Volume(hu.astype(np.float32), affine), labels


@pytest.fixture(scope="module")
def fixed():
    return chest(IDENTITY)


@pytest.mark.parametrize(("degrees", "shift"), [(15.0, (0.0, 0.0, 0.0)), (-11.0, (-12.0, 16.0, 22.0))])
def test_known_motions_come_back(fixed, degrees, shift):
    motion = turned(degrees, shift)
    moving, labels = chest({"right": motion, "left": motion})
    found = pre_register(moving, fixed[0], moving_lungs=labels, fixed_lungs=fixed[1], backend=BACKEND)
    assert min(found.dice_after.values()) > 0.96
    assert max(found.dice_before.values()) < 0.9
    for name, label in LUNGS.items():
        points = (
            fixed[0].affine @ np.column_stack([np.argwhere(fixed[1] == label), np.ones((fixed[1] == label).sum())]).T
        )
        miss = np.linalg.norm(((found.transforms[name] - motion) @ points)[:3], axis=0)
        assert miss.mean() < 1.0
        assert found.determinants[name] == pytest.approx(1.0, abs=0.03)
    inside = fixed[1] > 0
    assert np.corrcoef(found.volume.hu[inside], fixed[0].hu[inside])[0, 1] > 0.7
    assert found.detail_correlation > 0.5


def test_each_lung_has_a_map_of_its_own_and_shrinking_is_told(fixed):
    """The affine map undoes the loss of volume on the grid; determinant and millilitres keep it."""
    motion = {"right": turned(4.0, (3.0, 0.0, -6.0), 0.92), "left": turned(-3.0, (0.0, 5.0, 8.0), 1.0)}
    moving, labels = chest(motion)
    found = pre_register(moving, fixed[0], moving_lungs=labels, fixed_lungs=fixed[1], backend=BACKEND)
    assert found.determinants["right"] == pytest.approx(0.92**3, abs=0.03)
    assert found.determinants["left"] == pytest.approx(1.0, abs=0.03)
    before, after, moved = found.volumes_ml["right"]
    assert after / before == pytest.approx(0.92**3, abs=0.03)
    assert moved / before == pytest.approx(1.0, abs=0.03)
    assert min(found.dice_after.values()) > 0.95


def test_it_repeats_itself(fixed):
    motion = turned(5.0, (4.0, 0.0, 9.0))
    moving, labels = chest({"right": motion, "left": motion})
    first, second = (
        pre_register(moving, fixed[0], moving_lungs=labels, fixed_lungs=fixed[1], backend=BACKEND) for _ in range(2)
    )
    # ITK's sums vary in the last bits from run to run.
    np.testing.assert_allclose(first.transforms["left"], second.transforms["left"], atol=1e-5)
    np.testing.assert_allclose(first.volume.hu, second.volume.hu, atol=0.1)


def test_merging_by_the_identity_changes_nothing(fixed):
    volume, lungs = merge(fixed[0], fixed[1], fixed[0], fixed[1], IDENTITY)
    np.testing.assert_allclose(volume.hu, fixed[0].hu, atol=0.05)
    np.testing.assert_array_equal(lungs, fixed[1])
    assert volume.padding is None


def test_what_the_follow_up_does_not_show_is_padding(fixed):
    cut = fixed[0].slab(20, 84)
    volume, _ = merge(cut, fixed[1][20:], fixed[0], fixed[1], IDENTITY)
    assert volume.padding is not None
    assert volume.padding[:19].all()
    assert not volume.padding[21:].any()
    assert (volume.hu[:19] == -1000).all()


def test_two_patients_and_wrong_lungs_are_refused(fixed):
    other, labels = chest(IDENTITY, seed=50)
    with pytest.raises(ConcordctError, match="two patients") as caught:
        pre_register(other, fixed[0], moving_lungs=labels, fixed_lungs=fixed[1], backend=BACKEND)
    assert "\n" not in str(caught.value)
    found = pre_register(
        other, fixed[0], moving_lungs=labels, fixed_lungs=fixed[1], backend=BACKEND, check_same_patient=False
    )
    assert abs(found.detail_correlation) < 0.15
    one = np.where(labels == LEFT, 0, labels).astype(np.uint8)
    with pytest.raises(ConcordctError, match="follow-up scan has no left lung"):
        pre_register(other, fixed[0], moving_lungs=one, fixed_lungs=fixed[1], backend=BACKEND)
    with pytest.raises(ConcordctError, match="do not fit the initial scan"):
        pre_register(other, fixed[0], moving_lungs=labels, fixed_lungs=fixed[1][1:], backend=BACKEND)


def test_detail_is_of_the_vessels(fixed):
    inside = fixed[1] > 0
    assert detail_correlation(fixed[0], fixed[0], inside) == pytest.approx(1.0, abs=1e-3)
    assert abs(detail_correlation(chest(IDENTITY, seed=50)[0], fixed[0], inside)) < 0.15
    assert np.isnan(detail_correlation(fixed[0], fixed[0], np.zeros_like(inside)))


def test_backends_are_named():
    with pytest.raises(ConcordctError, match="unknown registration backend"):
        register(None, None, backend="magic")  # type: ignore[arg-type]


def test_an_itk_transform_turns_about_its_centre():
    transform = sitk.AffineTransform(3)
    transform.SetMatrix([0.9, 0.1, 0, -0.1, 1.1, 0.2, 0, 0, 1.05])
    transform.SetCenter((10.0, -20.0, 30.0))
    transform.SetTranslation((1.0, 2.0, 3.0))
    point = np.array([4.0, 5.0, 6.0])
    np.testing.assert_allclose((matrix(transform) @ [*point, 1])[:3], transform.TransformPoint(point.tolist()))


def test_a_real_chest_under_its_known_motion(shared_data):
    """Within 0.02 Dice of what the true motion gives; at 4 mm no motion gives more."""
    folder = shared_data / "lung_lowres"
    fixed, moving = (open_volume_file(folder / name).read() for name in ("ct-64.nrrd", "ct-64-moved.nrrd"))
    motion = json.loads((folder / "motion.json").read_text(encoding="utf-8"))
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(motion["matrix_row_major"])
    transform.SetCenter(motion["center"])
    transform.SetTranslation(motion["translation"])
    true = np.linalg.inv(matrix(transform))
    lungs, others = lung_masks(fixed, require_both=True), lung_masks(moving, require_both=True)
    found = pre_register(moving, fixed, moving_lungs=others, fixed_lungs=lungs, backend=BACKEND)
    _, ideal = merge(moving, others, fixed, lungs, {"right": true, "left": true}, hu=False)
    best = lung_dice(ideal, lungs)
    for name, value in found.dice_after.items():
        assert value > best[name] - 0.02
    for value in found.determinants.values():
        assert value == pytest.approx(np.linalg.det(true[:3, :3]), rel=0.01)


def test_the_report_shows_what_happened(fixed, tmp_path):
    motion = turned(5.0, (4.0, 0.0, 9.0), 0.95)
    moving, labels = chest({"right": motion, "left": motion})
    found = pre_register(moving, fixed[0], moving_lungs=labels, fixed_lungs=fixed[1], backend=BACKEND)
    path = tmp_path / "registration.html"
    size = write_registration_report(
        path,
        found,
        moving=moving,
        fixed=fixed[0],
        moving_lungs=labels,
        title="Registration of <ipf-0001>",
        warnings=["w"],
    )
    page = path.read_text(encoding="utf-8")
    assert size == path.stat().st_size < 4_000_000
    assert "&lt;ipf-0001&gt;" in page
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    for value in (found.dice_before["right"], found.dice_after["left"], found.determinants["right"]):
        assert f"{value:.3f}" in page
    assert f"{found.volumes_ml['right'][1]:.0f}" in page
    write_registration_report(
        tmp_path / "again.html", found, moving=moving, fixed=fixed[0], moving_lungs=labels,
        title="Registration of <ipf-0001>", warnings=["w"],
    )  # fmt: skip
    assert (tmp_path / "again.html").read_bytes() == path.read_bytes()
    with pytest.raises(ConcordctError, match="expected the initial scan's"):
        write_registration_report(path, found, moving=moving, fixed=fixed[0].slab(0, 5), moving_lungs=labels, title="x")
