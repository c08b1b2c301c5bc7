"""A population of digital patients: parameters are sampled, then drawn deterministically, and recorded.

Ranges follow what chest CT and body composition studies report for adults, rounded; they give variety, not an
epidemiology.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from concordct.scanner.chest import Chest, ChestParameters
from concordct.scanner.nodules import KINDS, Nodule

#: Least distance of a nodule's surface from the lung's edge, mm.
NODULE_MARGIN_MM = 2.0


def sample_parameters(generator: np.random.Generator) -> ChestParameters:
    """Draw the anatomy of one adult."""
    g = generator
    female = g.random() < 0.5
    size = g.normal(0.94 if female else 1.0, 0.05)
    fat = float(np.clip(g.lognormal(np.log(18.0 if female else 16.0), 0.4), 5.0, 36.0))
    contrast = g.random() < 0.4
    smoker = g.random() < 0.45
    return ChestParameters(
        seed=int(g.integers(1, 2**31)),
        height_mm=float(np.clip(275.0 * size + g.normal(0, 12), 225, 320)),
        cage_width_mm=float(np.clip(127.0 * size + g.normal(0, 5), 105, 145)),
        cage_depth_mm=float(np.clip(100.0 * size + g.normal(0, 6) + 0.25 * fat + 6.0 * smoker, 82, 122)),
        fat_mm=fat,
        muscle=float(np.clip(g.normal(0.85 if female else 1.05, 0.15), 0.5, 1.4)),
        breast_mm=float(np.clip(g.normal(24, 10) + 0.6 * fat, 8, 52)) if female else float(np.clip(fat - 14, 0, 12)),
        glandular=float(g.uniform(0.0, 1.0)) if female else 0.0,
        heart=float(np.clip(g.normal(1.0, 0.07), 0.85, 1.18)),
        blood_hu=float(g.uniform(120, 230)) if contrast else float(g.uniform(36, 48)),
        lung_hu=float(np.clip(g.normal(-865, 22) - 20.0 * smoker, -925, -800)),
        gradient_hu=float(g.uniform(20, 70)),
        texture_hu=float(g.uniform(9, 20)),
        emphysema=float(g.uniform(0.03, 0.4)) if smoker and g.random() < 0.6 else 0.0,
        vessels=int(g.integers(1000, 1800)),
        bone_hu=float(np.clip(g.normal(170, 45), 70, 290)),
        cortex_hu=float(g.uniform(600, 950)),
        kyphosis_mm=float(g.uniform(6, 20)),
        table=True,
    )


def _sample_nodule(body: Chest, index: int, generator: np.random.Generator) -> Nodule:
    g, p = generator, body.parameters
    kind = str(g.choice(KINDS, p=(0.6, 0.2, 0.2)))
    radius = float(np.clip(g.lognormal(np.log(7.0), 0.5), 2.5, 20.0))
    while True:
        points = g.uniform(
            (0.2 * p.height_mm, -p.cage_depth_mm, -p.cage_width_mm),
            (0.9 * p.height_mm, p.cage_depth_mm + 20, p.cage_width_mm),
            (600, 3),
        )
        # Many places at few heights: the wall is worked out once for each height.
        points[:, 0] = np.repeat(points[::20, 0], 20)
        clear = [
            np.linalg.norm(points - np.array(n.centre_mm), axis=1) > n.radius_mm + radius + 8 for n in body.nodules
        ]
        fits = (body.lung_depth(points) > radius + NODULE_MARGIN_MM) & np.logical_and.reduce(
            [np.ones(600, bool), *clear]
        )
        if fits.any():
            break
        radius *= 0.85
    centre = points[np.flatnonzero(fits)[0]]
    spiculated = kind != "ground-glass" and g.random() < 0.4
    return Nodule(
        name=f"nodule-{index + 1}",
        kind=kind,
        centre_mm=(float(centre[0]), float(centre[1]), float(centre[2])),
        radius_mm=radius,
        hu=float(g.uniform(-10, 70)) if kind != "ground-glass" else float(g.uniform(-680, -480)),
        glass_hu=float(g.uniform(-680, -500)),
        lobation=float(g.uniform(0.03, 0.22)),
        spicules=int(g.integers(8, 26)) if spiculated else 0,
        texture_hu=float(g.uniform(12, 55)),
        texture_mm=float(g.uniform(1.4, 4.0)),
        seed=int(g.integers(1, 2**31)),
    )


def patient_height_mm(number: int, *, seed: int) -> float:
    """Height of a patient's chest, without drawing the rest."""
    return sample_parameters(np.random.default_rng((seed, number, 1))).height_mm


def digital_patient(number: int, *, seed: int) -> Chest:
    """Patient `number` of the population that a seed stands for; neighbours do not change it."""
    generator = np.random.default_rng((seed, number, 1))
    body = Chest(f"patient-{number:04d}", sample_parameters(generator))
    nodules: tuple[Nodule, ...] = ()
    for index in range(int(generator.integers(1, 5))):
        nodule = _sample_nodule(dataclasses.replace(body, nodules=nodules), index, generator)
        nodules = (*nodules, nodule)
    return dataclasses.replace(body, nodules=nodules)


def record(body: Chest) -> dict[str, Any]:
    """Everything that a chest is drawn from, ready for JSON."""
    return {
        "key": body.key,
        "parameters": dataclasses.asdict(body.parameters),
        "nodules": [dataclasses.asdict(nodule) for nodule in body.nodules],
    }
