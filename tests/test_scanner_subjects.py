"""Bodies: one body from every side, masks that hold what was drawn, parameters that reproduce."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from concordct.scanner.chest import Chest, ChestParameters
from concordct.scanner.frame import Frame
from concordct.scanner.nodules import Nodule
from concordct.scanner.patients import digital_patient, patient_height_mm, record
from concordct.scanner.phantom import chest_phantom
from concordct.scanner.shapes import chain, lattice_noise, tube_coverage
from concordct.scanner.trees import MURRAY, grow_tree

FRAME = Frame((180, 230), 2.0)


@pytest.fixture(scope="module")
def phantom() -> Chest:
    return chest_phantom()


def test_planes_do_not_depend_on_company_or_order(phantom: Chest) -> None:
    z = np.array([90.0, 150.0, 200.0])
    together = phantom.draw(z, FRAME)
    backwards = phantom.draw(z[::-1], FRAME)[::-1]
    again = chest_phantom().draw(z[1:2], FRAME)
    assert np.array_equal(together, backwards)
    assert np.array_equal(together[1], again[0])


def test_neighbouring_planes_show_one_body(phantom: Chest) -> None:
    near = phantom.draw(np.array([150.0, 150.5, 190.0]), FRAME)
    close = np.corrcoef(near[0].ravel(), near[1].ravel())[0, 1]
    far = np.corrcoef(near[0].ravel(), near[2].ravel())[0, 1]
    assert close > 0.995
    assert close > far


def test_tissues_have_their_density(phantom: Chest) -> None:
    z = np.array([150.0])
    hu = phantom.draw(z, FRAME)[0]
    masks = phantom.masks(z, FRAME)
    lungs = masks["lungs"][0] & ~np.any([m[0] for n, m in masks.items() if n != "lungs"], axis=0)
    assert -900 < np.median(hu[lungs]) < -830
    assert hu[0, 0] == -1000
    assert hu.max() > 500
    soft = (hu > 0) & (hu < 90)
    assert 0.05 < soft.mean() < 0.4


def test_tumours_are_where_and_what_they_say(phantom: Chest) -> None:
    fine = Frame((400, 400), 0.6, (0.0, 0.0))
    z = np.arange(130.0, 190.0, 1.5)
    masks = phantom.masks(z, fine)
    for tumour in phantom.nodules:
        mask = masks[tumour.name]
        volume = mask.sum() * 0.6**2 * 1.5
        assert abs(volume / (4 / 3 * np.pi * tumour.radius_mm**3) - 1) < 0.25
        zz, yy, xx = (c.mean() for c in np.nonzero(mask))
        centre = (z[0] + 1.5 * zz, fine.y_mm[0] + 0.6 * yy, fine.x_mm[0] + 0.6 * xx)
        np.testing.assert_allclose(centre, tumour.centre_mm, atol=2.5)
    first = phantom.nodules[0]
    k = int(np.argmin(np.abs(z - first.centre_mm[0])))
    hu = phantom.draw(z[k : k + 1], fine)[0]
    inner = masks[first.name][k]
    assert abs(hu[inner].mean() - first.hu) < 20


def test_patients_are_numbered_not_ordered() -> None:
    alone = record(digital_patient(3, seed=8))
    assert alone == record(digital_patient(3, seed=8))
    assert alone != record(digital_patient(4, seed=8))
    assert alone != record(digital_patient(3, seed=9))
    json.dumps(alone)
    assert patient_height_mm(3, seed=8) == alone["parameters"]["height_mm"]


def test_population_varies_and_nodules_lie_in_lungs() -> None:
    bodies = [digital_patient(k, seed=1) for k in range(6)]
    for body in bodies:
        assert 1 <= len(body.nodules) <= 4
        centres = np.array([n.centre_mm for n in body.nodules])
        assert (body.lung_depth(centres) > [n.radius_mm for n in body.nodules]).all()
    assert len({body.parameters.breast_mm > 0 for body in bodies}) == 2
    assert np.ptp([body.parameters.cage_width_mm for body in bodies]) > 5


def test_parameters_alone_make_the_body() -> None:
    body = digital_patient(2, seed=5)
    stored = json.loads(json.dumps(record(body)))
    nodules = tuple(Nodule(**{**n, "centre_mm": tuple(n["centre_mm"])}) for n in stored["nodules"])
    again = Chest(stored["key"], ChestParameters(**stored["parameters"]), nodules)
    z = np.array([body.nodules[0].centre_mm[0]])
    assert np.array_equal(again.draw(z, FRAME), body.draw(z, FRAME))


def test_emphysema_lowers_density() -> None:
    healthy = dataclasses.replace(chest_phantom().parameters, emphysema=0.0)
    sick = dataclasses.replace(healthy, emphysema=0.4)
    z = np.array([200.0])
    drawn = [Chest("x", p).draw(z, FRAME)[0] for p in (healthy, sick)]
    lungs = Chest("x", healthy).masks(z, FRAME)["lungs"][0]
    below = [(hu[lungs] < -950).mean() for hu in drawn]
    assert below[1] > below[0] + 0.05


def test_thin_vessels_keep_their_cross_section() -> None:
    axis = np.arange(-5, 5, 0.5)
    for radius in (0.15, 0.25, 0.5, 1.0):
        tube = chain(np.array([[-5.0, 0.1, 0.2], [5.0, 0.1, 0.2]]), radius)
        area = tube_coverage(tube, 0.0, axis, axis).sum() * 0.25
        assert abs(area / (np.pi * radius**2) - 1) < 0.35


def test_trees_obey_murray_and_reach_their_ends() -> None:
    generator = np.random.default_rng(2)
    ends = generator.normal(size=(200, 3)) * 30
    tubes, feeds = grow_tree(np.zeros(3), ends, end_radius_mm=0.4, wander=0.03, generator=generator)
    tips = tubes[feeds == 1][1::2, 3:6]
    assert len(tips) == 200
    assert all(np.linalg.norm(tips - end, axis=1).min() < 1e-9 for end in ends)
    trunk = tubes[feeds == 200][0]
    np.testing.assert_allclose(trunk[6], 0.4 * 200 ** (1 / MURRAY), rtol=1e-6)


def test_noise_field_is_the_same_in_every_frame() -> None:
    wide, part = Frame((60, 60), 1.0), Frame((20, 20), 1.0, (-10.0, 5.0))
    whole = lattice_noise(3.3, wide.y_mm, wide.x_mm, cell_mm=4.0, seed=1)
    cut = lattice_noise(3.3, part.y_mm, part.x_mm, cell_mm=4.0, seed=1)
    np.testing.assert_allclose(cut, whole[10:30, 25:45], atol=1e-5)
    assert 0.7 < whole.std() < 1.3
    # Grains finer than the pixels, of which only those beside a pixel are made.
    coarse = lattice_noise(3.3, wide.y_mm[::8], wide.x_mm[::8], cell_mm=0.9, seed=1)
    np.testing.assert_array_equal(coarse, lattice_noise(3.3, wide.y_mm, wide.x_mm, cell_mm=0.9, seed=1)[::8, ::8])
    # Patients are drawn anew from their numbers: the field stays what it has been.
    np.testing.assert_allclose(coarse[:2, 3], [-0.2570428, -0.7497757], rtol=0, atol=1e-6)
