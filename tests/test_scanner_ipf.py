"""Simulated patients with fibrosis: they repeat themselves, their disease grows as stated, and they can be scanned."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, distance_transform_edt

from concordct.errors import ConcordctError
from concordct.scanner.acquisition import Acquisition
from concordct.scanner.cells import sheet_cover, wall_distance
from concordct.scanner.frame import Frame, Stack
from concordct.scanner.ipf import PROGRESSIVE_GROWTH, ipf_subject
from concordct.scanner.scan import simulate_pair

SPACING = (10.0, 5.0, 5.0)


@pytest.fixture(scope="module")
def subject():
    found = ipf_subject(1, seed=1)
    assert found.label == "progressive"
    return found


@pytest.fixture(scope="module")
def population():
    return [ipf_subject(number, seed=3) for number in range(150)]


def partial(a, b, given):
    """Correlation of a and b with what a line through `given` explains taken out."""

    def rest(values):
        return values - np.polyval(np.polyfit(given, values, 1), given)

    return np.corrcoef(rest(a), rest(b))[0, 1]


def test_number_and_seed_fix_everything(subject):
    again = ipf_subject(1, seed=1)
    assert again.record() == subject.record()
    np.testing.assert_array_equal(
        again.draw_volume("initial", (60.0, 8.0, 8.0)).hu, subject.draw_volume("initial", (60.0, 8.0, 8.0)).hu
    )
    assert ipf_subject(2, seed=1).record() != subject.record()
    assert ipf_subject(1, seed=2).record() != subject.record()


def test_any_interval_leaves_body_and_first_visit_as_they_are(population):
    others = [ipf_subject(number, seed=3, weeks_between=(13.0, 156.0)) for number in range(40)]
    weeks = np.array([one.weeks for one in others])
    assert weeks.min() >= 13
    assert weeks.max() <= 156
    assert np.ptp(np.log(weeks)) > 2  # of log 12, 2.5
    for one, usual in zip(others, population, strict=False):
        assert (one.growth, one.extents[0], one.tests[0]) == (usual.growth, usual.extents[0], usual.tests[0])
        assert one.extents[1] - one.extents[0] == pytest.approx(one.growth * one.weeks / 52)
    with pytest.raises(ConcordctError, match="in this order"):
        ipf_subject(0, seed=3, weeks_between=(20.0, 10.0))


def test_the_first_slices_do_not_depend_on_how_many_are_drawn(subject):
    short, long = (subject.draw_volume("initial", (40.0, 8.0, 8.0), (n, 40, 50)).hu for n in (2, 4))
    np.testing.assert_array_equal(short, long[:2])


def test_fibrosis_takes_the_stated_share_of_the_lungs_and_grows(subject):
    shares = []
    for time, extent in zip(("initial", "followup"), subject.extents, strict=True):
        masks = subject.volume_masks(time, SPACING)
        assert not (masks["fibrosis"] & ~masks["lungs"]).any()
        assert not (masks["honeycombing"] & ~masks["fibrosis"]).any()
        assert not (masks["right lung"] & masks["left lung"]).any()
        np.testing.assert_array_equal(masks["right lung"] | masks["left lung"], masks["lungs"])
        shares.append(masks["fibrosis"].sum() / masks["lungs"].sum())
        assert shares[-1] == pytest.approx(extent, abs=0.025)
    assert shares[1] > shares[0]


def test_disease_is_dense_and_lies_under_the_pleura_at_the_base(subject):
    volume = subject.draw_volume("followup", SPACING, noise_hu=0.0)
    masks = subject.volume_masks("followup", SPACING)
    scars, healthy = masks["fibrosis"], masks["lungs"] & ~masks["fibrosis"]
    assert volume.hu[scars].mean() > volume.hu[healthy].mean() + 100
    heights = [np.argwhere(mask)[:, 0].mean() for mask in (scars, healthy)]
    assert heights[0] < heights[1]
    depth = distance_transform_edt(masks["lungs"], sampling=SPACING)
    assert np.median(depth[scars]) < np.median(depth[healthy])


def test_old_disease_stays_and_healthy_lung_does_not_change(subject):
    """The two scans in the plan of one body: what was diseased stays so, and vessels stay where they are."""
    first, second = subject.initial.chest, subject.followup.chest
    frame, z = Frame((120, 150), 2.0), np.array([70.0, 120.0])
    before, after = first.masks(z, frame), second.masks(z, frame)
    assert not (before["fibrosis"] & ~after["fibrosis"]).any()
    spared = np.stack([first.lung_plane(float(h), frame)[1] < -6 for h in z]) & ~after["fibrosis"]
    spared &= ~np.stack([binary_dilation(plane, iterations=3) for plane in after["fibrosis"]])
    change = np.abs(second.draw(z, frame) - first.draw(z, frame))[spared]
    # Traction bronchi that open in the disease run on into healthy lung.
    assert (change == 0).mean() > 0.98


def test_lungs_shrink_as_the_pose_says(subject):
    size = [subject.volume_masks(time, SPACING)["lungs"].sum() for time in ("initial", "followup")]
    first, second = subject.poses
    plan = second.length * second.width**2 / (first.length * first.width**2)
    assert size[1] / size[0] == pytest.approx(plan, rel=0.03)


def test_tests_tell_of_growth_as_stated(population):
    growth = np.array([s.growth for s in population])
    extent = np.array([s.extents[0] for s in population])
    years = np.array([s.weeks for s in population]) / 52.0
    decline = np.array([s.tests[0].fvc_percent - s.tests[-1].fvc_percent for s in population])
    assert np.corrcoef(decline, growth * years)[0, 1] > 0.85
    gas = np.array([s.tests[0].dlco_percent or np.nan for s in population])
    known = ~np.isnan(gas)
    assert -0.97 < partial(gas[known], growth[known], extent[known]) < -0.8
    # The first scan's extent says nothing of the growth to come.
    assert abs(np.corrcoef(extent, growth)[0, 1]) < 0.2
    labels = np.array([s.label == "progressive" for s in population])
    assert 0.35 < labels.mean() < 0.65
    np.testing.assert_array_equal(labels, growth >= PROGRESSIVE_GROWTH)
    assert (~known).sum() > 0


def test_a_scanner_can_scan_it(subject):
    stack = Stack(1, 5.0, 5.0, 80.0)
    frame = Frame((96, 96), 4.0)
    images = simulate_pair(
        subject.followup, Acquisition(row_mm=5.0), frame=frame, stack=stack, kernels=("Br40",), seed=1
    )
    drawn = subject.followup.draw(stack.z_mm, frame)
    inside = subject.followup.masks(stack.z_mm, frame)["lungs"]
    assert np.corrcoef(images["Br40"].hu[inside], drawn[inside])[0, 1] > 0.5
    assert abs(images["Br40"].hu[inside].mean() - drawn[inside].mean()) < 40


def test_refusals(subject):
    with pytest.raises(ConcordctError, match="expected square"):
        subject.draw_volume("initial", (5.0, 4.0, 3.0))
    with pytest.raises(ConcordctError, match="initial or followup"):
        subject.scan("later")


def test_walls_do_not_depend_on_the_frame():
    y, x = np.arange(40) * 0.5, np.arange(60) * 0.5 - 7
    whole = wall_distance(3.3, y, x, np.ones((40, 60), bool), cell_mm=5.0, seed=4)
    part = wall_distance(3.3, y[10:30], x[20:50], np.ones((20, 30), bool), cell_mm=5.0, seed=4)
    np.testing.assert_array_equal(whole[10:30, 20:50], part)
    assert whole.min() >= 0
    assert whole.max() < 5.0
    near = wall_distance(3.3 + 0.01, y, x, np.ones((40, 60), bool), cell_mm=5.0, seed=4)
    assert np.abs(near - whole).max() <= 0.02


@pytest.mark.parametrize("pixel", [0.4, 1.0, 5.0])
def test_a_sheet_keeps_its_mass_in_any_pixel(pixel):
    at = (np.arange(4000) + 0.5) * pixel - 2000 * pixel + 0.123
    assert sheet_cover(np.abs(at), 1.3, pixel).sum() * pixel == pytest.approx(1.3, rel=1e-3)
